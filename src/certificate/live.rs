//! The certificates in use now, and which of them a client is shown.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, SignatureAlgorithm, SignatureScheme};

use super::ServerCertificate;

/// The certificates in use. Replaced whole; a handshake sees the old set or the new one.
#[derive(Debug, Default)]
pub struct LiveCertificates {
    /// ECDSA first: cheaper, and shown only to clients that ask for it.
    current: ArcSwap<Vec<ServerCertificate>>,
}

impl LiveCertificates {
    /// Shows `certificates` from now on.
    pub fn publish(&self, mut certificates: Vec<ServerCertificate>) {
        certificates.sort_by_key(|certificate| certificate.algorithm() == SignatureAlgorithm::RSA);
        self.current.store(Arc::new(certificates));
    }

    /// Whether there is nothing to show yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.current.load().is_empty()
    }

    /// The RSA certificate, for phones that know no other kind.
    #[must_use]
    pub fn rsa(&self) -> Option<ServerCertificate> {
        self.current.load().iter().find(|certificate| certificate.rsa_key().is_some()).cloned()
    }

    /// The certificates in use.
    #[must_use]
    pub fn current(&self) -> Arc<Vec<ServerCertificate>> {
        self.current.load_full()
    }
}

impl ResolvesServerCert for LiveCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        let chosen = shown_to(&current, hello.signature_schemes(), hello.cipher_suites());
        chosen.map(|certificate| Arc::clone(&certificate.key))
    }
}

/// Which of `certificates`, as they are published, a client is shown that offers these `schemes` and `suites`.
#[must_use]
pub fn shown_to<'a>(
    certificates: &'a [ServerCertificate],
    schemes: &[SignatureScheme],
    suites: &[CipherSuite],
) -> Option<&'a ServerCertificate> {
    let fits = |certificate: &&ServerCertificate| {
        certificate.key.key.choose_scheme(schemes).is_some() && has_suite_for(certificate.algorithm(), suites)
    };
    certificates.iter().find(fits).or(certificates.last())
}

/// Whether one of `suites` can authenticate with such a key: any of TLS 1.3, or the matching ones of TLS 1.2.
///
/// A TLS 1.2 client may offer ECDSA signatures and yet no ECDHE-ECDSA suite; the scheme alone does not tell.
fn has_suite_for(algorithm: SignatureAlgorithm, suites: &[CipherSuite]) -> bool {
    use CipherSuite as S;
    suites.iter().any(|suite| match suite {
        S::TLS13_AES_128_GCM_SHA256 | S::TLS13_AES_256_GCM_SHA384 | S::TLS13_CHACHA20_POLY1305_SHA256 => true,
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        | S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => algorithm == SignatureAlgorithm::RSA,
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => algorithm != SignatureAlgorithm::RSA,
        _ => false,
    })
}
