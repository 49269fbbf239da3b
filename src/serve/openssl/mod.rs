//! The old lane: phones that rustls cannot serve, of constituencies that want them.
//!
//! Old firmware offers no ECDHE, or no TLS 1.2 at all, or in it no signature but with SHA-1. rustls has none of that,
//! rightly; OpenSSL has, and this is the only place in the house that knows OpenSSL. Who comes here is decided from the
//! ClientHello alone, before OpenSSL sees a byte ([`is_for_rustls`](super::hello::ClientHelloFacts::is_for_rustls),
//! [`needs`](super::hello::ClientHelloFacts::required_level)); [`Rewound`](prefixed_stream::PrefixedStream) lets it read that hello once more.
//! Whom we promise a setting OpenSSL must serve there: what it wants of a hello, and what it wants beside what the RFCs
//! say, stands at [`SCHEMES`] and [`GROUPS`].
//!
//! - [`backend`]: the handshake, by a context of the constituency's own.
//! - [`context`]: what that context permits.
//! - [`verify_callback`]: our judgement of a device certificate in the place of OpenSSL's.
//!
//! Without the feature `old-tls` there is no OpenSSL, and no constituency has an [`LegacyTls`].

use rustls::{CipherSuite, NamedGroup, SignatureScheme};

use crate::identity::trust::DeviceFinding;

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

/// The suites of the old lane in our order, with OpenSSL's names: forward secrecy first, then AEAD, then AES-128. None
/// of them is one of rustls', so that a suite tells the lane. No 3DES, RC4, EXPORT, NULL or anonymous ones; names that
/// end in `-SHA` are older than TLS 1.2.
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

/// The curves of its ECDHE. OpenSSL takes none for granted: whoever names none has no ECDHE.
pub const GROUPS: [NamedGroup; 3] = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];

/// The signatures of TLS 1.2 that it makes and takes. OpenSSL wants one of them to be the client's whatever the key
/// exchange, also where nobody signs anything.
pub const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// What legacy has beside those, for whoever knows none of them: SHA-1, on which TLS 1.0 and 1.1 rest anyway.
pub const LEGACY_SCHEME: SignatureScheme = SignatureScheme::RSA_PKCS1_SHA1;

/// How a handshake in the old lane failed.
#[derive(Debug)]
pub enum LegacyTlsFailure {
    /// We are not able to, whoever asks.
    Unable(String),
    /// The client presented no certificate.
    NoCertificate,
    /// The client sent this alert.
    Alert(rustls::AlertDescription),
    /// The client closed the connection.
    Closed,
    /// The connection broke, in the system's words.
    Broken(String),
    /// The client offered or did something that does not go, in OpenSSL's words.
    Other(String),
}

/// What the handshake came to, and what was found of the device certificate, if one was presented. A stream on which it
/// failed is good for nothing but to be closed.
pub type LegacyAccept<S> =
    (Result<LegacyStream<S>, (LegacyTlsFailure, Option<LegacyStream<S>>)>, Option<DeviceFinding>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constituency::TlsLevel;
    use crate::serve::access_log::ServedTls;
    use crate::serve::site::TlsMaterial;

    #[test]
    fn a_suite_tells_the_lane() {
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
    fn no_suite_is_a_broken_one() {
        for (suite, _) in SUITES {
            let name = suite.as_str().unwrap();
            for broken in ["3DES", "RC4", "EXPORT", "NULL", "anon", "MD5", "_DES_", "IDEA", "SEED"] {
                assert!(!name.contains(broken), "{name}");
            }
        }
    }
}
