//! The certificates in use, and the choice among them for a client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, SignatureAlgorithm, SignatureScheme};

use super::{FilePair, ServerCertificate};
use crate::clock;
use crate::constituency::ConstituencyName;

/// The certificates in use. Each set is replaced atomically: a handshake sees the old one or the new one.
#[derive(Debug, Default)]
pub struct LiveCertificates {
    /// ECDSA first: it is cheaper, and presented only to clients that support it.
    current: ArcSwap<Vec<ServerCertificate>>,
    /// The certificates for exact names, sorted the same way.
    exact: ArcSwap<BTreeMap<ConstituencyName, Vec<ServerCertificate>>>,
    /// The pairs of files that they were read from, if they were.
    pairs: ArcSwap<Vec<FilePair>>,
    /// How often any of these was replaced.
    generation: AtomicU64,
}

/// The certificates that one constituency presents.
#[derive(Debug)]
pub struct ConstituencyCertificates {
    live: Arc<LiveCertificates>,
    /// The constituency whose exact names come first; `None` for the wildcard.
    exact: Option<ConstituencyName>,
}

impl LiveCertificates {
    /// Presents `certificates` from now on, wherever no certificate for exact names is in use.
    pub fn publish(&self, mut certificates: Vec<ServerCertificate>) {
        in_order(&mut certificates);
        self.current.store(Arc::new(certificates));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Presents these for exact names from now on, each only to clients of its constituency.
    pub fn publish_exact(&self, mut certificates: BTreeMap<ConstituencyName, Vec<ServerCertificate>>) {
        for certificates in certificates.values_mut() {
            in_order(certificates);
        }
        self.exact.store(Arc::new(certificates));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Publishes what the pairs of files are now.
    pub(super) fn publish_pairs(&self, pairs: Vec<FilePair>) {
        self.pairs.store(Arc::new(pairs));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The pairs of files, in the order of the configuration.
    #[must_use]
    pub fn pairs(&self) -> Arc<Vec<FilePair>> {
        self.pairs.load_full()
    }

    /// A number that changes with the certificates, and with the state of their files.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether no certificate exists yet.
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
    /// Those of one constituency. With `exact`, its name, the certificate for its exact names comes first.
    #[must_use]
    pub fn new(live: Arc<LiveCertificates>, exact: Option<ConstituencyName>) -> Self {
        Self { live, exact }
    }

    /// Whether phones that ask for `host` are presented a certificate that is valid at `now`, in Unix seconds: all of them, or
    /// those that know RSA alone.
    #[must_use]
    pub fn is_any_valid(&self, host: &str, now: i64) -> bool {
        let presented = [self.best(Some(host), now, |_| true), self.best(Some(host), now, is_rsa)];
        presented.iter().flatten().any(|certificate| certificate.validity().contains(now))
    }

    /// The RSA certificate for a client that asks for `server_name`.
    #[must_use]
    pub fn rsa(&self, server_name: Option<&str>) -> Option<ServerCertificate> {
        self.best(server_name, clock::unix_seconds(clock::now()), is_rsa)
    }

    /// The certificate for a client that asks for `server_name` and offers these `schemes` and `suites`. If none fits,
    /// the last one.
    #[must_use]
    pub fn shown_to(
        &self,
        server_name: Option<&str>,
        schemes: &[SignatureScheme],
        suites: &[CipherSuite],
    ) -> Option<Arc<CertifiedKey>> {
        let fits = |certificate: &ServerCertificate| {
            certificate.key.key.choose_scheme(schemes).is_some() && has_suite_for(certificate.algorithm(), suites)
        };
        let best = self.best(server_name, clock::unix_seconds(clock::now()), fits);
        // The client can use none of them: rustls refuses it, and names the reason.
        best.or_else(|| self.live.current.load().last().cloned()).map(|certificate| certificate.key)
    }

    /// The certificate to present at `now` to a client that asks for `server_name`, among those that satisfy `fits`.
    ///
    /// A certificate for the name comes first, then one that is valid, then one whose intermediates are. Among equals, the
    /// order is that of the candidates: exact names before the wildcard, ECDSA before RSA.
    fn best(
        &self,
        server_name: Option<&str>,
        now: i64,
        fits: impl Fn(&ServerCertificate) -> bool,
    ) -> Option<ServerCertificate> {
        let is_for_name = |certificate: &&ServerCertificate| server_name.is_none_or(|name| certificate.covers(name));
        let (exact, current) = (self.live.exact.load(), self.live.current.load());
        // An alias may be newer than the certificate for exact names. Until that is renewed, the wildcard covers the alias.
        let own = self.exact.as_ref().and_then(|name| exact.get(name)).into_iter().flatten().filter(is_for_name);
        own.chain(current.iter())
            .filter(|certificate| fits(certificate))
            .min_by_key(|certificate| {
                (!is_for_name(certificate), !certificate.validity().contains(now), !certificate.is_chain_valid(now))
            })
            .cloned()
    }
}

impl ResolvesServerCert for ConstituencyCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown_to(hello.server_name(), hello.signature_schemes(), hello.cipher_suites())
    }
}

fn is_rsa(certificate: &ServerCertificate) -> bool {
    certificate.algorithm() == SignatureAlgorithm::RSA
}

fn in_order(certificates: &mut [ServerCertificate]) {
    certificates.sort_by_key(is_rsa);
}

/// Whether one of `suites` can authenticate with such a key: any of TLS 1.3, or the matching ones of TLS 1.2.
///
/// The signature scheme alone is not enough: a TLS 1.2 client may offer ECDSA signatures without an ECDHE-ECDSA suite.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const HOST: &str = "home.phones.example.com";
    const WILDCARD: &str = "*.phones.example.com";
    const SUITES: [CipherSuite; 1] = [CipherSuite::TLS13_AES_128_GCM_SHA256];
    const BOTH: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];

    /// A certificate for `name` that began 30 days ago and ends in a day, or ended a day ago.
    fn certificate(name: &str, kind: &'static rcgen::SignatureAlgorithm, is_valid: bool) -> ServerCertificate {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let now = clock::now();
        params.not_before = (now - 30 * DAY).into();
        params.not_after = if is_valid { now + DAY } else { now - DAY }.into();
        let key = rcgen::KeyPair::generate_for(kind).unwrap();
        let chain = vec![params.self_signed(&key).unwrap().der().clone()];
        ServerCertificate::new(chain, &PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap()
    }

    /// What the constituency home presents of these, of which `exact` are for its exact names.
    fn presenting(current: &[&ServerCertificate], exact: &[&ServerCertificate]) -> ConstituencyCertificates {
        let live = Arc::new(LiveCertificates::default());
        let home: ConstituencyName = "home".parse().unwrap();
        live.publish(current.iter().copied().cloned().collect());
        live.publish_exact([(home.clone(), exact.iter().copied().cloned().collect())].into());
        ConstituencyCertificates::new(live, (!exact.is_empty()).then_some(home))
    }

    #[track_caller]
    fn assert_presents(
        certificates: &ConstituencyCertificates,
        schemes: &[SignatureScheme],
        wanted: &ServerCertificate,
    ) {
        for name in [Some(HOST), None] {
            let shown = certificates.shown_to(name, schemes, &SUITES).unwrap();
            assert!(Arc::ptr_eq(&shown, &wanted.key), "{name:?}: not {:?}", wanted.names);
        }
    }

    fn now() -> i64 {
        clock::unix_seconds(clock::now())
    }

    #[test]
    fn expired_exact_certificate_yields_to_a_valid_wildcard() {
        for kind in [&PKCS_RSA_SHA256, &PKCS_ECDSA_P256_SHA256] {
            let (wildcard, exact) = (certificate(WILDCARD, &PKCS_RSA_SHA256, true), certificate(HOST, kind, false));
            let certificates = presenting(&[&wildcard], &[&exact]);
            assert_presents(&certificates, &BOTH, &wildcard);
            assert!(certificates.rsa(Some(HOST)).unwrap().is_same_as(&wildcard));
            assert!(certificates.is_any_valid(HOST, now()));
        }
    }

    #[test]
    fn expired_ecdsa_certificate_yields_to_a_valid_rsa_one() {
        let rsa = certificate(WILDCARD, &PKCS_RSA_SHA256, true);
        let ecdsa = certificate(WILDCARD, &PKCS_ECDSA_P256_SHA256, false);
        let certificates = presenting(&[&rsa, &ecdsa], &[]);
        assert_presents(&certificates, &BOTH, &rsa);
        // A client that knows ECDSA alone can use nothing else.
        assert_presents(&certificates, &BOTH[..1], &ecdsa);
    }

    #[test]
    fn expired_certificate_yields_to_a_valid_one_of_its_kind() {
        let expired = certificate(WILDCARD, &PKCS_RSA_SHA256, false);
        let valid = certificate(WILDCARD, &PKCS_RSA_SHA256, true);
        for order in [[&expired, &valid], [&valid, &expired]] {
            let certificates = presenting(&order, &[]);
            assert_presents(&certificates, &BOTH, &valid);
            assert!(certificates.rsa(Some(HOST)).unwrap().is_same_as(&valid));
        }
        let certificates = presenting(&[&expired], &[]);
        assert_presents(&certificates, &BOTH, &expired);
        assert!(!certificates.is_any_valid(HOST, now()), "presented, because there is no other");
    }

    #[test]
    fn valid_certificates_keep_their_order() {
        let (rsa, ecdsa) =
            (certificate(WILDCARD, &PKCS_RSA_SHA256, true), certificate(WILDCARD, &PKCS_ECDSA_P256_SHA256, true));
        let exact = certificate(HOST, &PKCS_RSA_SHA256, true);
        assert_presents(&presenting(&[&rsa, &ecdsa], &[&exact]), &BOTH, &exact);
        assert_presents(&presenting(&[&rsa, &ecdsa], &[]), &BOTH, &ecdsa);
        assert_presents(&presenting(&[&rsa, &ecdsa], &[]), &BOTH[1..], &rsa);
    }

    #[test]
    fn valid_certificate_for_another_host_is_not_used() {
        let expired = certificate(WILDCARD, &PKCS_RSA_SHA256, false);
        let other = certificate("other.phones.example.com", &PKCS_ECDSA_P256_SHA256, true);
        let certificates = presenting(&[&expired, &other], &[]);
        let shown = certificates.shown_to(Some(HOST), &BOTH, &SUITES).unwrap();
        assert!(Arc::ptr_eq(&shown, &expired.key));
        assert!(
            !certificates.is_any_valid(HOST, now()) && certificates.is_any_valid("other.phones.example.com", now())
        );
    }
}
