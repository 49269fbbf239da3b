//! The hints in the log: the setting named there serves the refused client, and no lower setting does.
//!
//! Each client tries every setting, with and without client authentication. The hint in the log of the constituency
//! `modern` is tested.

use std::io::{Read, Write};

use openssl::pkey::PKey;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslOptions, SslVerifyMode, SslVersion};
use openssl::x509::X509;

use super::*;
use crate::harness::socket::Socket;

/// OpenSSL's `SSL_OP_NO_EXTENDED_MASTER_SECRET`, which its crate does not name.
const NO_EXTENDED_MASTER_SECRET: u64 = 1;

/// Suites of TLS 1.2; the old ones among them are also of TLS 1.0.
const SUITES: [&str; 7] = [
    "AES128-SHA",
    "DHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "DHE-RSA-AES128-SHA:AES128-SHA",
    "ECDHE-RSA-AES128-GCM-SHA256:AES128-SHA",
];
const OF_TLS_1_0: usize = 3;

/// `signature_algorithms` of TLS 1.2.
const SIGNATURES: [&str; 7] = [
    "RSA+SHA1",
    "RSA+SHA224:RSA+SHA1",
    "ECDSA+SHA256:RSA+SHA1",
    "RSA+SHA256",
    "RSA+SHA1:RSA+SHA256",
    "RSA-PSS+SHA384",
    "RSA+SHA224",
];

/// A phone that uses OpenSSL.
struct Phone {
    version: SslVersion,
    suites: &'static str,
    signatures: &'static str,
    has_extended_master_secret: bool,
}

impl Phone {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for has_extended_master_secret in [true, false] {
            for version in [SslVersion::TLS1, SslVersion::TLS1_1] {
                for suites in &SUITES[..OF_TLS_1_0] {
                    all.push(Self { version, suites, signatures: "RSA+SHA1:RSA+SHA256", has_extended_master_secret });
                }
            }
            for suites in SUITES {
                let of =
                    |signatures| Self { version: SslVersion::TLS1_2, suites, signatures, has_extended_master_secret };
                all.extend(SIGNATURES.map(of));
            }
        }
        all
    }

    fn context(&self) -> SslContext {
        let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
        context.set_security_level(0);
        context.set_min_proto_version(Some(self.version)).unwrap();
        context.set_max_proto_version(Some(self.version)).unwrap();
        context.set_cipher_list(self.suites).unwrap();
        context.set_sigalgs_list(self.signatures).unwrap();
        if !self.has_extended_master_secret {
            context.set_options(SslOptions::from_bits_retain(NO_EXTENDED_MASTER_SECRET));
        }
        context.cert_store_mut().add_cert(X509::from_der(SERVER_CA.certificate.der()).unwrap()).unwrap();
        context.set_verify(SslVerifyMode::PEER);
        context.set_certificate(&X509::from_der(&PHONE.chain[0]).unwrap()).unwrap();
        context.set_private_key(&PKey::private_key_from_der(PHONE.key().secret_der()).unwrap()).unwrap();
        context.build()
    }

    /// Whether it gets the `site.cfg` of the constituency `name`.
    fn is_served(&self, context: &SslContext, server: &Running, name: &str) -> bool {
        let host = format!("{name}.{DOMAIN}");
        let mut ssl = Ssl::new(context).unwrap();
        ssl.set_hostname(&host).unwrap();
        ssl.param_mut().set_host(&host).unwrap();
        let tcp = Socket::connect(server.address()).unwrap();
        let Ok(mut stream) = ssl.connect(tcp) else { return false };
        assert_eq!(stream.ssl().version2(), Some(self.version));
        assert_eq!(stream.ssl().extms_support(), Some(self.has_extended_master_secret));
        let asked = write!(stream, "GET /site.cfg HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        asked.and_then(|()| stream.read_to_end(&mut answer)).unwrap();
        answer.starts_with(b"HTTP/1.1 200 OK\r\n")
    }
}

/// The setting that a reason names; `None` if it says that there is none.
#[track_caller]
pub(super) fn hinted_setting(reason: &str, name: &str) -> Option<&'static str> {
    let of = |setting: &&str| reason.ends_with(&format!("; \"tls\": \"{setting}\" of {name} would accept it"));
    let setting = SETTINGS.into_iter().find(of);
    assert_eq!(setting.is_none(), reason.ends_with(", which no setting accepts"), "{reason}");
    // rustls's own error text does not help an operator.
    assert!(!reason.contains("peer is incompatible") && !reason.contains("old lane"), "{reason}");
    setting
}

/// Tries a client at each constituency `prefix`SETTING by `is_served`, and returns the lowest setting that serves it;
/// asserts that every refusal named this setting.
#[track_caller]
pub(super) fn lowest_setting(
    server: &Running,
    prefix: &str,
    case: &str,
    mut is_served: impl FnMut(&str) -> bool,
) -> Option<&'static str> {
    let names = SETTINGS.map(|setting| format!("{prefix}{setting}"));
    // Not all lines are parsed for each client, because there are thousands.
    let lines = || server.stdout().into_iter().filter(|line| line.starts_with('{'));
    let before = lines().count();
    let answers = names.each_ref().map(|name| is_served(name));
    let reported: Vec<Value> = eventually("three lines", || {
        let new: Vec<String> = lines().skip(before).collect();
        (new.len() == SETTINGS.len()).then(|| new.iter().map(|line| serde_json::from_str(line).unwrap()).collect())
    });
    let reason = |name: &String| {
        let line = reported.iter().find(|line| line["constituency"] == name.as_str());
        let line = line.unwrap_or_else(|| panic!("{case}: nothing of {name} in {reported:?}"));
        line["reason"].as_str().unwrap_or_default().to_owned()
    };
    let found: Vec<(bool, String)> = answers.into_iter().zip(names.each_ref().map(reason)).collect();
    let lowest_setting = SETTINGS.into_iter().zip(&found).find_map(|(setting, (served, _))| served.then_some(setting));
    let mut is_admitted = false;
    for ((served, reason), name) in found.iter().zip(&names) {
        assert!(*served || !is_admitted, "{case}: a wider setting accepts less: {reason}");
        is_admitted |= served;
        assert!(
            *served || hinted_setting(reason, name) == lowest_setting,
            "{case}: {lowest_setting:?} serves it, and at {name}: {reason}"
        );
    }
    lowest_setting
}

/// A constituency for each setting with client authentication, and one without.
pub(super) fn both_kinds() -> Site {
    let site = site_with_each_setting();
    for setting in SETTINGS {
        site.constituency(&format!("open-{setting}"), &json!({ "client_auth": "none", "tls": setting }));
        site.file(&format!("open-{setting}/site.cfg"), "<open/>");
    }
    site
}

#[test]
fn logged_setting_is_the_least_that_serves_the_phone() {
    let site = both_kinds();
    let server = site.start();
    let mut seen = std::collections::BTreeMap::<_, usize>::new();
    for phone in Phone::all() {
        let context = phone.context();
        let Phone { version, suites, signatures, has_extended_master_secret } = &phone;
        let case = format!("{version:?} {suites} {signatures} {has_extended_master_secret}");
        for prefix in ["", "open-"] {
            let lowest_setting =
                lowest_setting(&server, prefix, &case, |name| phone.is_served(&context, &server, name));
            *seen.entry(lowest_setting).or_default() += 1;
        }
    }
    // With and without extended master secret, with and without a certificate.
    let each = |count: usize| count * 2 * 2;
    let expected = [
        // SHA-224 alone; SHA-1, and suites that only rustls supports.
        (None, each(7 + 3)),
        (Some("compatible"), each(5 * 3)),
        // TLS 1.0 and 1.1; SHA-1 alone.
        (Some("legacy"), each(2 * OF_TLS_1_0 + 6 * 3)),
        (Some("modern"), each(2 * 3)),
    ];
    assert_eq!(seen, expected.into());
}

/// OpenSSL signs with SHA-1 only if the client requests nothing else.
#[test]
fn sha1_signs_only_at_legacy_if_the_client_offers_no_other() {
    let site = both_kinds();
    let server = site.start();
    for suite in ["AES128-SHA", "DHE-RSA-AES128-SHA"] {
        let only_sha1 = format!("{} -sigalgs RSA+SHA1", only("tls1_2", suite));
        let both = format!("{} -sigalgs RSA+SHA1:RSA+SHA256", only("tls1_2", suite));
        for (setting, arguments, digest) in [
            ("modern", &only_sha1, None),
            ("compatible", &only_sha1, None),
            ("legacy", &only_sha1, Some("SHA1")),
            ("compatible", &both, Some("SHA256")),
            ("legacy", &both, Some("SHA256")),
        ] {
            for (prefix, identity) in [("", Some(&*PHONE)), ("open-", None)] {
                let name = format!("{prefix}{setting}");
                let found = attempt(&site, &server, &name, identity, arguments);
                assert_eq!(found.is_served(), digest.is_some(), "{name} {arguments}: {}", found.text);
                let Some(digest) = digest else { continue };
                let asks = found.text.contains(&format!("Shared Requested Signature Algorithms: RSA+{digest}"));
                assert_eq!(asks, identity.is_some(), "{name} {arguments}: {}", found.text);
                let signs = found.text.contains(&format!("Peer signing digest: {digest}\n"));
                assert_eq!(signs, suite.starts_with("DHE"), "{name} {arguments}: {}", found.text);
            }
        }
    }
    server.reason("offered only SHA-1 signatures; \"tls\": \"legacy\" of compatible would accept it");
    server.reason(
        "offered only RSA key exchange, and only SHA-1 signatures; \"tls\": \"legacy\" of modern would accept it",
    );
}

/// A client without any extension names neither signature algorithms nor a constituency; `GnuTLS` can do this.
#[test]
fn hello_without_extensions_is_served_at_legacy_without_sni() {
    for setting in SETTINGS {
        for (name, identity) in [(setting.to_owned(), Some(&*PHONE)), (format!("open-{setting}"), None)] {
            let mut site = both_kinds();
            site.config["no_sni"] = name.as_str().into();
            let server = site.start();
            for (exchange, agreed) in [("RSA", "(RSA)-(AES"), ("DHE-RSA", "-(RSA-SHA1)-(AES")] {
                let before = server.access_lines().len();
                let found = by_gnutls(&site, &server, &name, identity, exchange);
                let line = eventually("a line", || server.access_lines().get(before).cloned());
                let is_served = found.contains("HTTP/1.1 200 OK");
                assert_eq!(is_served, setting == "legacy", "{name} {exchange}: {line} {found}");
                if is_served {
                    assert!(found.contains(agreed), "{name} {exchange}: {found}");
                    assert!(line["tls"].as_str().unwrap().starts_with("TLSv1.2-sha1/TLS_"), "{line}");
                    continue;
                }
                let why = line["reason"].as_str().unwrap();
                assert_eq!(hinted_setting(why, &name), Some("legacy"));
                assert!(why.contains("only SHA-1 signatures (no signature_algorithms extension); "), "{why}");
            }
        }
    }
}

/// `GnuTLS`'s report of requesting `site.cfg` from `name` over TLS 1.2 without extensions.
fn by_gnutls(site: &Site, server: &Running, name: &str, identity: Option<&Identity>, exchange: &str) -> String {
    let mut gnutls = Command::new("timeout");
    gnutls.args(["20", "gnutls-cli", "--port", &server.address().port().to_string(), "127.0.0.1"]);
    gnutls.arg("--x509cafile").arg(site.path("server-ca.pem")).arg(format!("--verify-hostname={name}.{DOMAIN}"));
    if let Some((chain, key)) = identity.map(|identity| identity.write(&site.path(""), "device")) {
        gnutls.arg("--x509certfile").arg(chain).arg("--x509keyfile").arg(key);
    }
    let sha1 = "+SIGN-RSA-SHA1:%VERIFY_ALLOW_SIGN_WITH_SHA1:%NO_EXTENSIONS";
    gnutls.arg("--priority").arg(format!("NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+{exchange}:{sha1}"));
    let mut child = gnutls.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let request = format!("GET /site.cfg HTTP/1.1\r\nHost: {name}.{DOMAIN}\r\nConnection: close\r\n\r\n");
    // A refused client is gone before anything is sent.
    let _ = child.stdin.take().unwrap().write_all(request.as_bytes());
    let ended = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr)
}
