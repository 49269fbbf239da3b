//! A TSIG key as a file has it, and what may be wrong with such a file.

/// A key as a file has it.
pub(super) struct StoredKey {
    /// Lower-case, without the last dot.
    pub(super) name: String,
    pub(super) algorithm: String,
    pub(super) secret: String,
}

/// The algorithms of TSIG keys by their numbers in `K*` files.
const BY_NUMBER: [(&str, &str); 6] = [
    ("157", "hmac-md5"),
    ("161", "hmac-sha1"),
    ("162", "hmac-sha224"),
    ("163", "hmac-sha256"),
    ("164", "hmac-sha384"),
    ("165", "hmac-sha512"),
];

/// What is wrong with a key file's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TsigKeyProblem {
    #[error(
        "line {line}: {expected} expected; the file must be as `tsig-keygen`, `keymgr -t` (Knot) or `pdnsutil generate-tsig-key` (PowerDNS) writes it"
    )]
    Syntax { line: usize, expected: &'static str },
    #[error(
        "it holds no key in a known format; make one with `tsig-keygen -a hmac-sha256 provost.`, `keymgr -t provost hmac-sha256` (Knot) or `pdnsutil generate-tsig-key provost hmac-sha256` (PowerDNS)"
    )]
    NoKey,
    #[error("it is no UTF-8 text{0}")]
    NotText(&'static str),
    #[error(
        "it is a PEM file, so a certificate or its key, and no TSIG key; make one with `tsig-keygen -a hmac-sha256 provost.`"
    )]
    Pem,
    #[error(
        "it is a DNSSEC key, which signs the records of a zone and no updates; make a TSIG key with `tsig-keygen -a hmac-sha256 provost.`"
    )]
    Dnssec,
    #[error(
        "it is the private half of a K* key, whose name is in the name of its file, and this file was renamed; say the name in \"tsig_key_name\""
    )]
    Nameless,
    #[error("it holds several keys ({}); say which in \"tsig_key_name\"", .0.join(", "))]
    Several(Vec<String>),
    #[error("it holds no key named {wanted:?}, only {}", .held.join(", "))]
    NotThere { wanted: String, held: Vec<String> },
    #[error("it holds two keys named {0:?}")]
    Twice(String),
    #[error(
        "the key {key:?} is for {algorithm}; hmac-sha256, hmac-sha384 and hmac-sha512 will do: make a new one with `tsig-keygen -a hmac-sha256 {key}`"
    )]
    Algorithm { key: String, algorithm: String },
    #[error("the secret of the key {0:?} is empty or no base64")]
    Secret(String),
    #[error("the key {0:?} has a name that is no domain name")]
    Name(String),
}

impl StoredKey {
    pub(super) fn new(name: &str, algorithm: &str, secret: &str) -> Self {
        let (algorithm, secret) = (algorithm.to_ascii_lowercase(), secret.to_owned());
        Self { name: normal_name(name), algorithm, secret }
    }

    /// A key with the algorithm `number` of a `K*` file.
    pub(super) fn numbered(name: &str, number: &str, secret: &str) -> Result<Self, TsigKeyProblem> {
        let algorithm = BY_NUMBER.iter().find(|(known, _)| *known == number);
        let (_, algorithm) = algorithm.ok_or(TsigKeyProblem::Dnssec)?;
        Ok(Self::new(name, algorithm, secret))
    }
}

pub(super) fn normal_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}
