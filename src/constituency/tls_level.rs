//! The oldest TLS that a constituency accepts.

use schemars::JsonSchema;
use serde::Deserialize;

/// The oldest TLS that is accepted. Each level accepts what those before it accept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
#[schemars(with = "Written")]
pub enum TlsLevel {
    /// What rustls serves: TLS 1.3, and TLS 1.2 with forward secrecy and authenticated encryption.
    #[default]
    Modern,
    /// TLS 1.2 with DHE or RSA key exchange and with CBC too.
    Compatible,
    /// TLS 1.0 and 1.1 too, and signatures with SHA-1 in TLS 1.2.
    Legacy,
}

/// A [`TlsLevel`] as it is written, whether or not this provost can serve it.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Written {
    /// TLS 1.3, and TLS 1.2 with ECDHE and authenticated encryption.
    Modern,
    /// Also TLS 1.2 with DHE or RSA key exchange, and with CBC.
    Compatible,
    /// Also TLS 1.1 and 1.0, and signatures with SHA-1 in TLS 1.2.
    Legacy,
}

impl TlsLevel {
    /// Whether this build includes OpenSSL, which the levels above modern need.
    pub const HAS_LEGACY: bool = cfg!(feature = "old-tls");

    /// The log's name for TLS 1.2 with a client that supports only SHA-1 signatures.
    pub const TLS12_WITH_SHA1: &str = "TLSv1.2-sha1";

    /// The level as written in settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Modern => "modern",
            Self::Compatible => "compatible",
            Self::Legacy => "legacy",
        }
    }

    /// The lowest level that allows a connection with this `version` and cipher `suite`, both named as in the access
    /// log. Connections above modern use legacy TLS (OpenSSL backend, `lane=old`).
    #[must_use]
    pub fn of(version: &str, suite: &str) -> Self {
        let is_modern = suite.starts_with("TLS13_")
            || suite.starts_with("TLS_ECDHE_") && (suite.contains("_GCM_") || suite.contains("_CHACHA20_"));
        match version {
            "TLSv1.0" | "TLSv1.1" | Self::TLS12_WITH_SHA1 => Self::Legacy,
            _ if is_modern => Self::Modern,
            _ => Self::Compatible,
        }
    }
}

impl TryFrom<Written> for TlsLevel {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let level = match written {
            Written::Modern => return Ok(Self::Modern),
            Written::Compatible => Self::Compatible,
            Written::Legacy => Self::Legacy,
        };
        if Self::HAS_LEGACY {
            Ok(level)
        } else {
            let level = level.as_str();
            Err(format!("\"{level}\" needs OpenSSL, and this provost was built without it (cargo feature old-tls)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::constituency::Policy;

    fn level(text: &str) -> Result<Option<TlsLevel>, String> {
        let text = format!("{{\n\"tls\": {text}}}");
        let policy = Policy::parse(Path::new("constituency.json"), &text, &["polycom"]);
        policy.map(|policy| policy.tls.level).map_err(|error| error.to_string())
    }

    #[test]
    fn level_is_one_of_three_words() {
        assert_eq!(level("\"modern\""), Ok(Some(TlsLevel::Modern)));
        let wrong = level("\"legasy\"").unwrap_err();
        assert_eq!(
            wrong,
            "constituency.json:2:8: \"tls\": must be one of \"modern\", \"compatible\", \"legacy\", not \"legasy\"; did you mean \"legacy\"?"
        );
        assert!(TlsLevel::Modern < TlsLevel::Compatible && TlsLevel::Compatible < TlsLevel::Legacy);
    }

    #[cfg(feature = "old-tls")]
    #[test]
    fn every_level_is_available_with_openssl() {
        for wanted in [TlsLevel::Compatible, TlsLevel::Legacy] {
            assert_eq!(level(&format!("\"{}\"", wanted.as_str())), Ok(Some(wanted)));
        }
    }

    #[cfg(not(feature = "old-tls"))]
    #[test]
    fn legacy_levels_without_openssl_are_rejected_with_reason() {
        for wanted in ["compatible", "legacy"] {
            let refused = level(&format!("\"{wanted}\"")).unwrap_err();
            let expected = format!(
                "constituency.json:2:8: \"tls\": \"{wanted}\" needs OpenSSL, and this provost was built without it (cargo feature old-tls)"
            );
            assert_eq!(refused, expected);
        }
    }

    #[test]
    fn level_follows_from_version_and_suite() {
        for (version, suite, level) in [
            ("TLSv1.3", "TLS13_AES_128_GCM_SHA256", TlsLevel::Modern),
            ("TLSv1.2", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", TlsLevel::Modern),
            ("TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", TlsLevel::Compatible),
            ("TLSv1.2", "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256", TlsLevel::Compatible),
            ("TLSv1.2", "TLS_RSA_WITH_AES_256_CBC_SHA", TlsLevel::Compatible),
            ("TLSv1.2-sha1", "TLS_RSA_WITH_AES_256_CBC_SHA", TlsLevel::Legacy),
            ("TLSv1.1", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", TlsLevel::Legacy),
            ("TLSv1.0", "TLS_RSA_WITH_AES_128_CBC_SHA", TlsLevel::Legacy),
        ] {
            assert_eq!(TlsLevel::of(version, suite), level, "{version} {suite}");
        }
    }
}
