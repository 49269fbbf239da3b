//! Legacy TLS: serves phones that rustls cannot, with OpenSSL, in constituencies that allow it.
//!
//! Old firmware offers no ECDHE, no TLS 1.2, or only SHA-1 signatures. rustls rightly supports none of these; OpenSSL
//! does. No other module uses OpenSSL. The ClientHello alone decides who is served here, before OpenSSL sees a byte
//! ([`is_for_rustls`](super::hello::ClientHelloFacts::is_for_rustls),
//! [`required_level`](super::hello::ClientHelloFacts::required_level));
//! [`PrefixedStream`](prefixed_stream::PrefixedStream) then replays that hello to OpenSSL. If we name a TLS level as
//! the remedy, OpenSSL must serve the client there. [`SCHEMES`] and [`GROUPS`] therefore list what OpenSSL requires of
//! a hello, including what goes beyond the RFCs.
//!
//! - [`backend`]: the handshake, with a context per constituency.
//! - [`context`]: the protocol limits of that context.
//! - [`verify_callback`]: verifies the device certificate in place of OpenSSL.
//!
//! Without the feature `old-tls` there is no OpenSSL, and no constituency has a [`LegacyTls`].

use rustls::{CipherSuite, NamedGroup, SignatureScheme};

use crate::identity::trust::Verdict;

#[cfg(feature = "old-tls")]
mod backend;
#[cfg(feature = "old-tls")]
mod context;
#[cfg(not(feature = "old-tls"))]
mod disabled;
#[cfg(feature = "old-tls")]
mod prefixed_stream;
#[cfg(feature = "old-tls")]
mod verify_callback;

#[cfg(feature = "old-tls")]
pub use backend::{LegacyStream, LegacyTls};
#[cfg(not(feature = "old-tls"))]
pub use disabled::{LegacyStream, LegacyTls};

/// The cipher suites of this backend in our order, with OpenSSL's names: forward secrecy first, then AEAD, then
/// AES-128. rustls has none of them, so that the suite identifies the backend. There are no 3DES, RC4, EXPORT, NULL or
/// anonymous suites. Names that end in `-SHA` are older than TLS 1.2.
pub const SUITES: [(CipherSuite, &str); 16] = {
    use CipherSuite as S;
    [
        (S::TLS_DHE_RSA_WITH_AES_128_GCM_SHA256, "DHE-RSA-AES128-GCM-SHA256"),
        (S::TLS_DHE_RSA_WITH_AES_256_GCM_SHA384, "DHE-RSA-AES256-GCM-SHA384"),
        (S::TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256, "ECDHE-RSA-AES128-SHA256"),
        (S::TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384, "ECDHE-RSA-AES256-SHA384"),
        (S::TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, "ECDHE-RSA-AES128-SHA"),
        (S::TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, "ECDHE-RSA-AES256-SHA"),
        (S::TLS_DHE_RSA_WITH_AES_128_CBC_SHA256, "DHE-RSA-AES128-SHA256"),
        (S::TLS_DHE_RSA_WITH_AES_256_CBC_SHA256, "DHE-RSA-AES256-SHA256"),
        (S::TLS_DHE_RSA_WITH_AES_128_CBC_SHA, "DHE-RSA-AES128-SHA"),
        (S::TLS_DHE_RSA_WITH_AES_256_CBC_SHA, "DHE-RSA-AES256-SHA"),
        (S::TLS_RSA_WITH_AES_128_GCM_SHA256, "AES128-GCM-SHA256"),
        (S::TLS_RSA_WITH_AES_256_GCM_SHA384, "AES256-GCM-SHA384"),
        (S::TLS_RSA_WITH_AES_128_CBC_SHA256, "AES128-SHA256"),
        (S::TLS_RSA_WITH_AES_256_CBC_SHA256, "AES256-SHA256"),
        (S::TLS_RSA_WITH_AES_128_CBC_SHA, "AES128-SHA"),
        (S::TLS_RSA_WITH_AES_256_CBC_SHA, "AES256-SHA"),
    ]
};

/// The curves for ECDHE. OpenSSL assumes none: a client that names none has no ECDHE.
pub const GROUPS: [NamedGroup; 3] = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];

/// The TLS 1.2 signature schemes that this backend makes and verifies. OpenSSL requires the client to offer one of them
/// even if the key exchange needs no signature.
pub const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// The additional scheme of the level `legacy`, for clients that support none of [`SCHEMES`]: SHA-1, on which TLS 1.0
/// and 1.1 depend anyway.
pub const LEGACY_SCHEME: SignatureScheme = SignatureScheme::RSA_PKCS1_SHA1;

/// Why a handshake with OpenSSL failed.
#[derive(Debug)]
pub enum LegacyTlsFailure {
    /// OpenSSL could not be set up, whatever the client offered.
    Unable(String),
    /// The client presented no certificate.
    NoCertificate,
    /// The client sent this alert.
    Alert(rustls::AlertDescription),
    /// The client closed the connection.
    Closed,
    /// The connection broke; the error of the system.
    Broken(String),
    /// The client's offer or behavior was rejected; the error of OpenSSL.
    Other(String),
}

/// The end of a handshake with OpenSSL.
#[derive(Debug)]
pub struct LegacyHandshake<S> {
    pub result: Result<LegacyStream<S>, FailedLegacyHandshake<S>>,
    /// The verdict on the device certificate, if the client presented one.
    pub verdict: Option<Verdict>,
}

#[derive(Debug)]
pub struct FailedLegacyHandshake<S> {
    pub failure: LegacyTlsFailure,
    /// Can only be closed; `None` if OpenSSL could not be set up.
    pub stream: Option<LegacyStream<S>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constituency::TlsLevel;
    use crate::serve::access_log::ServedTls;
    use crate::serve::site::TlsMaterial;

    #[test]
    fn suites_served_by_openssl_are_not_served_by_rustls() {
        use rustls::ProtocolVersion::{TLSv1_0, TLSv1_2};
        let lane = |version, suite| ServedTls { version, suite, is_tolerated: false, has_only_sha1: false }.lane();
        for suite in &TlsMaterial::provider().cipher_suites {
            assert_eq!(lane(suite.version().version, suite.suite()), None, "{:?}", suite.suite());
        }
        for (suite, name) in SUITES {
            assert_eq!(lane(TLSv1_2, suite), Some("old"), "{suite:?}");
            assert_eq!(TlsLevel::of("TLSv1.2", suite.as_str().unwrap()), TlsLevel::Compatible, "{suite:?}");
            if name.ends_with("-SHA") {
                assert_eq!(lane(TLSv1_0, suite), Some("old"), "{suite:?}");
            }
        }
    }

    #[test]
    fn no_suite_is_insecure() {
        for (suite, _) in SUITES {
            let name = suite.as_str().unwrap();
            for broken in ["3DES", "RC4", "EXPORT", "NULL", "anon", "MD5", "_DES_", "IDEA", "SEED"] {
                assert!(!name.contains(broken), "{name}");
            }
        }
    }
}
