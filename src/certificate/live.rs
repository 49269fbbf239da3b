//! The certificates in use now, and which of them a client is shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, SignatureAlgorithm, SignatureScheme};

use super::ServerCertificate;
use crate::constituency::ConstituencyName;

/// The certificates in use. Each set is replaced whole; a handshake sees the old one or the new one.
#[derive(Debug, Default)]
pub struct LiveCertificates {
    /// ECDSA first: cheaper, and shown only to clients that ask for it.
    current: ArcSwap<Vec<ServerCertificate>>,
    /// Those for exact names, in the same order.
    exact: ArcSwap<BTreeMap<ConstituencyName, Vec<ServerCertificate>>>,
    /// How often either was replaced.
    generation: AtomicU64,
}

/// The certificates that one constituency shows.
#[derive(Debug)]
pub struct ConstituencyCertificates {
    live: Arc<LiveCertificates>,
    /// Whose exact names come first; `None` where the wildcard is what is wanted.
    exact: Option<ConstituencyName>,
}

impl LiveCertificates {
    /// Shows `certificates` from now on, to all who ask for no exact name.
    pub fn publish(&self, mut certificates: Vec<ServerCertificate>) {
        in_order(&mut certificates);
        self.current.store(Arc::new(certificates));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Shows these for exact names from now on, each only to those who ask for its constituency.
    pub fn publish_exact(&self, mut certificates: BTreeMap<ConstituencyName, Vec<ServerCertificate>>) {
        for certificates in certificates.values_mut() {
            in_order(certificates);
        }
        self.exact.store(Arc::new(certificates));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Another number whenever others are shown.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether there is nothing to show yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.current.load().is_empty() && self.exact.load().is_empty()
    }

    /// The certificates in use that are for no constituency's exact names.
    #[must_use]
    pub fn current(&self) -> Arc<Vec<ServerCertificate>> {
        self.current.load_full()
    }

    /// The certificates in use for exact names, by constituency.
    #[must_use]
    pub fn exact(&self) -> Arc<BTreeMap<ConstituencyName, Vec<ServerCertificate>>> {
        self.exact.load_full()
    }
}

impl ConstituencyCertificates {
    /// Those of a constituency; with `exact`, its name, the certificate for its exact names before all others.
    #[must_use]
    pub fn new(live: Arc<LiveCertificates>, exact: Option<ConstituencyName>) -> Self {
        Self { live, exact }
    }

    /// Whether any of them is valid at `now`, in Unix seconds.
    #[must_use]
    pub fn is_any_valid(&self, now: i64) -> bool {
        let exact = self.live.exact.load();
        let own = self.exact.as_ref().and_then(|name| exact.get(name)).into_iter().flatten();
        own.chain(self.live.current.load().iter()).any(|own| own.validity().contains(now))
    }

    /// The RSA certificate that is shown to a client that asks for `server_name`, also one that knows no other kind.
    #[must_use]
    pub fn rsa(&self, server_name: Option<&str>) -> Option<ServerCertificate> {
        let is_rsa = |certificate: &&ServerCertificate| certificate.algorithm() == SignatureAlgorithm::RSA;
        let exact = self.live.exact.load();
        let own = self.exact.as_ref().and_then(|name| exact.get(name)).into_iter().flatten();
        let mut own = own.filter(|certificate| server_name.is_none_or(|name| certificate.covers(name)));
        own.find(is_rsa).or(self.live.current.load().iter().find(is_rsa)).cloned()
    }

    /// What a client is shown that asks for `server_name` and offers these `schemes` and `suites`.
    #[must_use]
    pub fn shown_to(
        &self,
        server_name: Option<&str>,
        schemes: &[SignatureScheme],
        suites: &[CipherSuite],
    ) -> Option<Arc<CertifiedKey>> {
        let fits = |certificate: &&ServerCertificate| {
            certificate.key.key.choose_scheme(schemes).is_some() && has_suite_for(certificate.algorithm(), suites)
        };
        let shown = |certificate: &ServerCertificate| Arc::clone(&certificate.key);
        if let Some(constituency) = &self.exact {
            let exact = self.live.exact.load();
            // An alias may be newer than the certificate: the wildcard covers it meanwhile.
            let own = exact
                .get(constituency)
                .into_iter()
                .flatten()
                .find(|certificate| server_name.is_none_or(|name| certificate.covers(name)) && fits(certificate));
            if let Some(own) = own {
                return Some(shown(own));
            }
        }
        let current = self.live.current.load();
        current.iter().find(fits).or(current.last()).map(shown)
    }
}

impl ResolvesServerCert for ConstituencyCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown_to(hello.server_name(), hello.signature_schemes(), hello.cipher_suites())
    }
}

fn in_order(certificates: &mut [ServerCertificate]) {
    certificates.sort_by_key(|certificate| certificate.algorithm() == SignatureAlgorithm::RSA);
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
