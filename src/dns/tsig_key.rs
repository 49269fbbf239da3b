//! TSIG keys (RFC 8945). Pure: text in, key out.
//!
//! Messages quote only names and algorithms, since all else in a key file may be the secret.

use std::fmt;
use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hickory_net::proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_net::proto::rr::{Name, TSigner};

use super::key_formats;
use super::name;
use super::stored_key::{StoredKey, TsigKeyProblem, normal_name};

/// How many seconds the primary's clock and ours may differ, as RFC 8945 recommends.
pub(super) const FUDGE_S: u16 = 300;

/// A key that signs our updates. `Debug` does not print its secret.
#[derive(Clone)]
pub struct TsigKey {
    signer: TSigner,
}

/// Why the key cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TsigKeyError {
    /// The file cannot be read.
    #[error("the TSIG key file {path} cannot be read: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file holds no usable key.
    #[error("the TSIG key file {path}: {problem}", path = .path.display())]
    Unusable { path: PathBuf, problem: TsigKeyProblem },
}

impl TsigKey {
    /// Finds the key `wanted`, or the only one, in `text`, the content of the key file `file_name`.
    pub fn parse(text: &str, file_name: &str, wanted: Option<&str>) -> Result<Self, TsigKeyProblem> {
        let mut keys = key_formats::keys(text, file_name, wanted)?;
        let held: Vec<String> = keys.iter().map(|key| key.name.clone()).collect();
        if let Some(twice) = held.iter().enumerate().find_map(|(at, name)| held[..at].contains(name).then_some(name)) {
            return Err(TsigKeyProblem::Twice(twice.clone()));
        }
        let index = match wanted.map(normal_name) {
            Some(wanted) => {
                let index = held.iter().position(|name| *name == wanted);
                index.ok_or(TsigKeyProblem::NotThere { wanted, held })?
            }
            None if held.len() > 1 => return Err(TsigKeyProblem::Several(held)),
            None if held.is_empty() => return Err(TsigKeyProblem::NoKey),
            None => 0,
        };
        Self::new(keys.swap_remove(index))
    }

    /// Its name with the last dot, as the primary's configuration has it.
    #[must_use]
    pub fn name(&self) -> String {
        self.signer.signer_name().to_ascii()
    }

    /// Its algorithm, `hmac-sha256` for example.
    #[must_use]
    pub fn algorithm(&self) -> String {
        self.signer.algorithm().to_string()
    }

    /// The bytes of its secret, and how many it should have, if it has fewer. A secret that is shorter than the hash "is
    /// strongly discouraged as it would decrease the security strength of the function" (RFC 2104 §3). Primaries accept it;
    /// BIND logs that it is "too short to be secure".
    #[must_use]
    pub fn short_secret(&self) -> Option<(usize, usize)> {
        let hash = match self.signer.algorithm() {
            TsigAlgorithm::HmacSha384 => 48,
            TsigAlgorithm::HmacSha512 => 64,
            _ => 32,
        };
        let bytes = self.signer.key().len();
        (bytes < hash).then_some((bytes, hash))
    }

    /// Signs and verifies. hickory does not wipe its copy of the secret, so wiping ours would gain nothing.
    pub(super) fn signer(&self) -> &TSigner {
        &self.signer
    }
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TsigKey")
            .field("name", &self.name())
            .field("algorithm", &self.algorithm())
            .finish_non_exhaustive()
    }
}

impl TsigKey {
    fn new(key: StoredKey) -> Result<Self, TsigKeyProblem> {
        let StoredKey { name: key, algorithm, secret } = key;
        let supported = match algorithm.trim_end_matches('.') {
            "hmac-sha256" => TsigAlgorithm::HmacSha256,
            "hmac-sha384" => TsigAlgorithm::HmacSha384,
            "hmac-sha512" => TsigAlgorithm::HmacSha512,
            known if known.starts_with("hmac-") => return Err(TsigKeyProblem::Algorithm { key, algorithm }),
            _ => return Err(TsigKeyProblem::Algorithm { key, algorithm: "an unknown algorithm".to_owned() }),
        };
        let unusable = || TsigKeyProblem::Secret(key.clone());
        let secret: String = secret.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(secret).ok().filter(|bytes| !bytes.is_empty()).ok_or_else(unusable)?;
        let name: Name = name::parse(&key).map_err(|_| TsigKeyProblem::Name(key.clone()))?;
        let signer = TSigner::new(bytes, supported, name, FUDGE_S).map_err(|_| unusable())?;
        Ok(Self { signer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyYnk=";

    fn statement(name: &str, algorithm: &str) -> String {
        format!("key \"{name}\" {{\n\talgorithm {algorithm};\n\tsecret \"{SECRET}\";\n}};\n")
    }

    fn problem(text: &str, wanted: Option<&str>) -> TsigKeyProblem {
        TsigKey::parse(text, "provost.key", wanted).map(|key| key.name()).unwrap_err()
    }

    #[test]
    fn tsig_keygen_output_is_parsed() {
        for algorithm in ["hmac-sha256", "hmac-sha384", "hmac-sha512"] {
            let key = TsigKey::parse(&statement("provost.", algorithm), "provost.key", None).unwrap();
            assert_eq!((key.name().as_str(), key.algorithm().as_str()), ("provost.", algorithm));
            assert_eq!(key.signer().key(), b"secret-secret-secret-secret-32by");
        }
    }

    #[test]
    fn hand_edited_key_file_is_parsed() {
        let text = format!(
            "# ours\n// two\n/* three\nlines */KEY Provost{{secret {SECRET};# x\n algorithm \"HMAC-SHA256.\"; }} ;"
        );
        assert_eq!(TsigKey::parse(&text, "provost.key", None).unwrap().name(), "provost.");
    }

    /// A key in the formats of other software than BIND's, each with the name of its file.
    fn foreign(name: &str, secret: &str) -> [(&'static str, String); 4] {
        [
            (
                "knot.key",
                format!(
                    "# hmac-sha512:{name}:x\nkey:\n  - id: {name}\n    algorithm: hmac-sha256\n    secret: {secret}\n"
                ),
            ),
            ("pdns.txt", format!("Create new TSIG key {name}. hmac-sha256 {secret}\n")),
            ("y.txt", format!("hmac-sha256:{name}:{secret}\n")),
            ("Kprovost.+163+01234.key", format!("{name}. IN KEY 512 3 163 {secret}\n")),
        ]
    }

    #[test]
    fn keys_of_other_software_are_read() {
        let others = [
            ("list.txt", format!("provost. hmac-sha256. {SECRET}\nother. hmac-sha512. {SECRET}\n")),
            (
                "Kprovost.+163+01234.private",
                format!("Private-key-format: v1.3\nAlgorithm: 163 (HMAC_SHA256)\nKey: {SECRET}\nBits: AAA=\n"),
            ),
            (
                "knot.conf",
                format!(
                    "server:\n    listen: 0.0.0.0@53\n\nkey:\n- id: \"other\"\n  secret: eA==\n- secret: '{SECRET}'\n  \
                     algorithm: HMAC-SHA256 # ours\n  id: provost.\nzone:\n  - domain: example.com\n"
                ),
            ),
            (
                "nsd.conf",
                format!(
                    "server:\n\tport: 53\nkey:\n\tname: \"other\"\n\talgorithm: hmac-md5\n\tsecret: \"eA==\"\nkey:\n\tname: \
                     provost\n\talgorithm: hmac-sha256\n\tsecret: {SECRET}\n"
                ),
            ),
            (
                "dhcpd.conf",
                format!("option x 1;\nkey provost {{ algorithm hmac-sha256; secret {SECRET}; }}\nsubnet {{ }}\n"),
            ),
            (
                "confgen.txt",
                statement("provost", "hmac-sha256")
                    + "# Then, in the \"zone\" statement\nupdate-policy {\n\tgrant provost zonesub ANY;\n};\nnsupdate -k <keyfile>\n",
            ),
        ];
        let mut seen = 0;
        for (file, text) in foreign("provost", SECRET).into_iter().chain(others) {
            for text in [text.clone(), format!("\u{feff}{text}"), text.replace('\n', "\r\n")] {
                let key =
                    TsigKey::parse(&text, file, Some("provost")).unwrap_or_else(|problem| panic!("{file}: {problem}"));
                assert_eq!((key.name().as_str(), key.algorithm().as_str()), ("provost.", "hmac-sha256"), "{file}");
                assert_eq!(key.signer().key(), b"secret-secret-secret-secret-32by", "{file}");
                seen += 1;
            }
        }
        assert_eq!(seen, 30);
    }

    #[test]
    fn files_that_are_no_tsig_keys_are_named() {
        let found = |text: &str, file: &str| TsigKey::parse(text, file, None).map(|key| key.name()).unwrap_err();
        let pem = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(found(pem, "provost.key"), TsigKeyProblem::Pem);
        let dnssec = "Private-key-format: v1.3\nAlgorithm: 13 (ECDSAP256SHA256)\nPrivateKey: AAAA\n";
        assert_eq!(found(dnssec, "Kexample.com.+013+12345.private"), TsigKeyProblem::Dnssec);
        let public = "; a zone-signing key\nexample.com. 3600 IN DNSKEY 256 3 13 AAAA\n";
        assert_eq!(found(public, "Kexample.com.+013+12345.key"), TsigKeyProblem::Dnssec);
        let half = format!("Private-key-format: v1.3\nAlgorithm: 163 (HMAC_SHA256)\nKey: {SECRET}\n");
        assert_eq!(found(&half, "provost.key"), TsigKeyProblem::Nameless);
        assert_eq!(TsigKey::parse(&half, "provost.key", Some("provost")).unwrap().name(), "provost.");
        let md5 = "Private-key-format: v1.2\nAlgorithm: 157 (HMAC)\nKey: AAAA\n";
        assert!(matches!(found(md5, "Ka.+157+1.private"), TsigKeyProblem::Algorithm { .. }));
    }

    #[test]
    fn key_must_be_named_when_the_file_holds_several() {
        let text = statement("a.", "hmac-md5") + &statement("B.example", "hmac-sha512");
        assert_eq!(TsigKey::parse(&text, "provost.key", Some("b.example.")).unwrap().algorithm(), "hmac-sha512");
        assert_eq!(problem(&text, None), TsigKeyProblem::Several(vec!["a".to_owned(), "b.example".to_owned()]));
        assert!(matches!(problem(&text, Some("c")), TsigKeyProblem::NotThere { .. }));
        assert!(matches!(problem(&text, Some("a")), TsigKeyProblem::Algorithm { .. }));
        assert_eq!(
            problem(&(statement("A", "x") + &statement("a.", "y")), None),
            TsigKeyProblem::Twice("a".to_owned())
        );
    }

    #[test]
    fn key_file_syntax_error_names_the_line() {
        for without in
            ["", "# nothing\n", "options { };", "zone \"x\" { type primary; update-policy { grant k zonesub ANY; }; };"]
        {
            assert_eq!(problem(without, None), TsigKeyProblem::NoKey, "{without}");
        }
        for (text, line) in [
            ("key \"a\" {\n algorithm hmac-sha256;\n};", 3),
            ("key \"a\" {\n algorithm hmac-sha256;\n secret \"abc;\n};", 3),
            ("key \"a\"\n{ algorithm hmac-sha256; secret", 2),
            ("\n/* never closed", 2),
            ("key { }", 1),
        ] {
            let TsigKeyProblem::Syntax { line: found, .. } = problem(text, None) else { panic!("{text}") };
            assert_eq!(found, line, "{text}");
        }
        assert_eq!(
            problem("key a { algorithm hmac-sha256; secret \"!\"; };", None),
            TsigKeyProblem::Secret("a".to_owned())
        );
        assert_eq!(
            problem("key a { algorithm hmac-sha256; secret \"\"; };", None),
            TsigKeyProblem::Secret("a".to_owned())
        );
    }

    #[test]
    fn secret_shorter_than_the_hash_is_short() {
        let short = |algorithm: &str, secret: &str| {
            let text = statement("provost.", algorithm).replace(SECRET, secret);
            TsigKey::parse(&text, "provost.key", None).unwrap().short_secret()
        };
        assert_eq!(short("hmac-sha256", "eA=="), Some((1, 32)));
        assert_eq!(short("hmac-sha256", SECRET), None);
        assert_eq!(short("hmac-sha384", SECRET), Some((32, 48)));
        assert_eq!(short("hmac-sha512", SECRET), Some((32, 64)));
    }

    #[test]
    fn secret_is_absent_from_debug_and_errors() {
        let good = statement("provost.", "hmac-sha256");
        let debug = format!("{:?}", TsigKey::parse(&good, "provost.key", None).unwrap());
        assert_eq!(debug, "TsigKey { name: \"provost.\", algorithm: \"hmac-sha256\", .. }");
        // Wherever the file is broken, the message does not contain its text.
        let mut seen = [0; 5];
        let formats = [good].into_iter().chain(foreign("provost", SECRET).map(|(_, text)| text));
        for (seen, good) in seen.iter_mut().zip(formats) {
            for at in (0..good.len()).filter(|at| good.is_char_boundary(*at)) {
                for broken in
                    [format!("{}}}{}", &good[..at], &good[at..]), good[..at].to_owned(), good[at..].to_owned()]
                {
                    if let Err(problem) = TsigKey::parse(&broken, "provost.key", None) {
                        assert!(!problem.to_string().contains(&SECRET[..8]), "{problem}");
                        *seen += 1;
                    }
                }
            }
        }
        assert!(seen.iter().all(|seen| *seen > 30), "saw {seen:?} problems");
    }

    proptest::proptest! {
        #[test]
        fn key_file_parser_accepts_any_text_without_panic(text in "(key|[a-z{};\"#/* \n\u{e4}]){0,60}") {
            let _ = TsigKey::parse(&text, "provost.key", None);
        }
    }
}
