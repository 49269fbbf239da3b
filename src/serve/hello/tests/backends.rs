//! Compares our choice of TLS backend with what rustls really accepts.

use std::sync::{Arc, LazyLock};

use proptest::prelude::{Strategy, any};
use proptest::sample::{Index, subsequence};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::Acceptor;

use super::*;
use crate::certificate::{ConstituencyCertificates, LiveCertificates, ServerCertificate};
use crate::constituency::TlsLevel;
use crate::serve::openssl::SUITES;

const V10: ProtocolVersion = ProtocolVersion::TLSv1_0;
const V12: ProtocolVersion = ProtocolVersion::TLSv1_2;
const V13: ProtocolVersion = ProtocolVersion::TLSv1_3;

/// A server with certificates of these kinds, and the certificates.
struct Ours {
    certificates: Arc<ConstituencyCertificates>,
    config: Arc<ServerConfig>,
}

impl Ours {
    fn with(kinds: &[&'static rcgen::SignatureAlgorithm]) -> Self {
        let live = Arc::new(LiveCertificates::default());
        live.publish(kinds.iter().map(|kind| certificate(kind)).collect());
        let certificates = Arc::new(ConstituencyCertificates::new(live, None));
        let versions = ServerConfig::builder_with_provider(TlsMaterial::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]);
        let mut config = versions.unwrap().with_no_client_auth().with_cert_resolver(certificates.clone());
        config.ignore_client_order = true;
        Self { certificates, config: Arc::new(config) }
    }

    /// Whether rustls completes its negotiation for this hello.
    fn agrees(&self, mut raw: &[u8]) -> bool {
        let mut acceptor = Acceptor::default();
        while !raw.is_empty() {
            acceptor.read_tls(&mut raw).unwrap();
        }
        match acceptor.accept() {
            Ok(hello) => hello.unwrap().into_connection(Arc::clone(&self.config)).is_ok(),
            Err(_) => false,
        }
    }
}

pub(in crate::serve) fn certificate(kind: &'static rcgen::SignatureAlgorithm) -> ServerCertificate {
    let key = rcgen::KeyPair::generate_for(kind).unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    ServerCertificate::new(vec![certificate.der().clone()], &PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap()
}

static BOTH: LazyLock<Ours> = LazyLock::new(|| Ours::with(&[&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P256_SHA256]));
static RSA: LazyLock<Ours> = LazyLock::new(|| Ours::with(&[&rcgen::PKCS_RSA_SHA256]));
static ECDSA: LazyLock<Ours> = LazyLock::new(|| Ours::with(&[&rcgen::PKCS_ECDSA_P384_SHA384]));
static ALL: [&LazyLock<Ours>; 3] = [&BOTH, &RSA, &ECDSA];

/// An offer to encode as a hello.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    legacy_version: u16,
    versions: Option<Vec<ProtocolVersion>>,
    suites: Vec<CipherSuite>,
    groups: Option<Vec<NamedGroup>>,
    schemes: Option<Vec<SignatureScheme>>,
    pub(super) points: Option<Vec<u8>>,
    compression: Vec<u8>,
    name: Option<Vec<u8>>,
}

impl Offer {
    /// The offer of an OpenSSL from before TLS 1.3, with these suites only.
    fn of_its_time(legacy_version: u16, suites: &[CipherSuite]) -> Self {
        Self {
            legacy_version,
            versions: None,
            suites: suites.to_vec(),
            groups: Some(vec![NamedGroup::secp256r1]),
            schemes: Some(vec![SignatureScheme::RSA_PKCS1_SHA256, SignatureScheme::RSA_PKCS1_SHA1]),
            points: Some(vec![0, 1, 2]),
            compression: vec![0],
            name: Some(b"ote.phones.example.com".to_vec()),
        }
    }

    pub(super) fn raw(&self) -> Vec<u8> {
        let long = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
        let short = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let words = |words: Vec<u16>| words.into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        let mut extensions = Vec::new();
        let mut extend = |kind: u16, data: Option<Vec<u8>>| {
            extensions.extend(data.map(|data| [&kind.to_be_bytes()[..], &long(&data)].concat()).unwrap_or_default());
        };
        extend(0, self.name.as_ref().map(|name| long(&[&[0], &long(name)[..]].concat())));
        let numbers = |list: &Vec<NamedGroup>| long(&words(list.iter().map(|it| u16::from(*it)).collect()));
        extend(10, self.groups.as_ref().map(numbers));
        extend(11, self.points.as_ref().map(|points| short(points)));
        let schemes = |list: &Vec<SignatureScheme>| long(&words(list.iter().map(|it| u16::from(*it)).collect()));
        extend(13, self.schemes.as_ref().map(schemes));
        let versions = |list: &Vec<ProtocolVersion>| short(&words(list.iter().map(|it| u16::from(*it)).collect()));
        extend(43, self.versions.as_ref().map(versions));
        let body = [
            &self.legacy_version.to_be_bytes()[..],
            &[7; 32],
            &[0],
            &long(&words(self.suites.iter().map(|it| u16::from(*it)).collect())),
            &short(&self.compression),
            &long(&extensions),
        ]
        .concat();
        let message = [&[1, 0], &long(&body)[..]].concat();
        [&[0x16, 3, 1], &long(&message)[..]].concat()
    }

    pub(super) fn facts(&self) -> ClientHelloFacts {
        ClientHelloFacts::read(&self.raw()).unwrap()
    }
}

/// A nonempty selection, in any order: rustls rejects empty lists.
fn some<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = Vec<T>> + use<T> {
    let all = of.to_vec();
    subsequence(all, 1..=of.len()).prop_shuffle()
}

/// Offers close to the limit of what rustls can serve in TLS 1.2.
pub(super) fn offer() -> impl Strategy<Value = Offer> {
    use NamedGroup as G;
    use SignatureScheme as S;
    let mut suites: Vec<CipherSuite> =
        TlsMaterial::provider().cipher_suites.iter().map(rustls::SupportedCipherSuite::suite).collect();
    suites.extend(SUITES.map(|(suite, _)| suite));
    suites.push(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA);
    let groups = [G::X25519, G::secp256r1, G::secp384r1, G::secp521r1, G::FFDHE2048, G::X25519MLKEM768];
    let schemes = [
        S::from(0x0101),
        S::RSA_PKCS1_SHA1,
        S::from(0x0301),
        S::RSA_PKCS1_SHA256,
        S::RSA_PKCS1_SHA512,
        S::RSA_PSS_SHA256,
        S::RSA_PSS_SHA384,
        S::ECDSA_SHA1_Legacy,
        S::ECDSA_NISTP256_SHA256,
        S::ECDSA_NISTP384_SHA384,
        S::ECDSA_NISTP521_SHA512,
        S::ED25519,
    ];
    let few = subsequence(suites.clone(), 1..=3);
    let few_schemes = subsequence(schemes.to_vec(), 1..=2);
    (
        proptest::sample::select(vec![0x0301_u16, 0x0302, 0x0303, 0x0303, 0x0303, 0x0304]),
        proptest::option::of(some(&[V10, ProtocolVersion::TLSv1_1, V12])),
        proptest::prop_oneof![few, some(&suites)],
        proptest::option::weighted(0.9, some(&groups)),
        proptest::option::weighted(0.9, proptest::prop_oneof![few_schemes, some(&schemes)]),
        proptest::option::of(some(&[0, 1, 2])),
        proptest::sample::select(vec![vec![0], vec![1, 0], vec![0], vec![1]]),
        proptest::option::of(proptest::sample::select(vec![b"Ote.phones.example.com".to_vec(), b"127.0.0.1".to_vec()])),
    )
        .prop_map(|(legacy_version, versions, suites, groups, schemes, points, compression, name)| Offer {
            legacy_version,
            versions,
            suites,
            groups,
            schemes,
            points,
            compression,
            name,
        })
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(4096))]

    /// rustls gets a client if and only if it can serve it.
    #[test]
    fn backend_choice_matches_what_rustls_can_serve(offer in offer()) {
        let raw = offer.raw();
        for ours in ALL {
            proptest::prop_assert_eq!(offer.facts().is_for_rustls(&ours.certificates), ours.agrees(&raw));
        }
    }

    #[test]
    fn tls13_offer_always_goes_to_rustls(mut offer in offer(), at: Index) {
        let versions = offer.versions.get_or_insert_default();
        versions.insert(at.index(versions.len() + 1), V13);
        let facts = offer.facts();
        proptest::prop_assert!(facts.is_for_rustls(&BOTH.certificates));
        proptest::prop_assert_eq!(facts.required_level(), None);
    }

    /// A client that offers suites of the OpenSSL backend is incompatible at every level exactly if no level serves it.
    #[test]
    fn unserved_offer_has_a_reason_at_every_level(offer in offer()) {
        let facts = offer.facts();
        let offers_openssl_suite = offer.suites.iter().any(|suite| SUITES.iter().any(|(old, _)| old == suite));
        if facts.required_level().is_some() {
            proptest::prop_assert_eq!(facts.incompatibility(TlsLevel::Legacy), None);
        } else if offers_openssl_suite {
            proptest::prop_assert!(facts.incompatibility(TlsLevel::Legacy).is_some());
        }
    }

    /// Names are classified as rustls does, whatever their bytes.
    #[test]
    fn server_name_is_classified_as_rustls_does(name in proptest::prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..40),
        "[-a-zA-Z0-9_.]{1,40}".prop_map(String::into_bytes),
        "[0-9a-f:.]{1,40}".prop_map(String::into_bytes),
    ]) {
        let offer = Offer {
            name: Some(name),
            ..Offer::of_its_time(0x0303, &[CipherSuite::TLS_RSA_WITH_AES_128_CBC_SHA])
        };
        let raw = offer.raw();
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut raw.as_slice()).unwrap();
        let theirs = acceptor.accept().map(|it| it.unwrap().client_hello().server_name().map(str::to_owned));
        let facts = ClientHelloFacts::read(&raw);
        let ours = facts.as_ref().map_or(Err(InvalidServerName), |facts| facts.host().map(|host| host.map(str::to_owned)));
        proptest::prop_assert_eq!(ours, theirs.map_err(|_| InvalidServerName));
    }

    #[test]
    fn no_bytes_make_the_backend_choice_panic(which in 0..CAPTURED.len(), changes: Vec<(Index, u8)>) {
        let mut raw = CAPTURED[which].0.to_vec();
        for (at, value) in changes {
            let at = at.index(raw.len());
            raw[at] = value;
        }
        if let Ok(facts) = ClientHelloFacts::read(&raw) {
            let _ = (facts.is_for_rustls(&BOTH.certificates), facts.required_level(), facts.host());
            let _ = (facts.incompatibility(TlsLevel::Legacy), facts.incompatibility(TlsLevel::Modern), facts.legacy_summary());
        }
    }
}

/// Whether rustls serves each captured hello, and if not, the level that it needs.
const SERVED: [(&str, bool, Option<TlsLevel>); 14] = [
    ("default", true, None),
    ("no-sni", true, None),
    ("tls13-only", true, None),
    ("tls12-only", true, Some(TlsLevel::Compatible)),
    ("tls11-only", false, Some(TlsLevel::Legacy)),
    ("tls10-only", false, Some(TlsLevel::Legacy)),
    ("rsa-kx", false, Some(TlsLevel::Compatible)),
    ("dhe-kx", false, Some(TlsLevel::Compatible)),
    ("dhe-and-rsa-kx", false, Some(TlsLevel::Compatible)),
    ("ecdhe-cbc", false, Some(TlsLevel::Compatible)),
    ("ecdhe-cbc-rsa-gcm", false, Some(TlsLevel::Compatible)),
    ("ecdhe-ccm", false, None),
    ("sha1-signatures", false, None),
    ("p521-only", false, None),
];

#[test]
fn each_captured_hello_gets_its_backend_and_level() {
    for ((raw, sentence), (name, is_served, needs)) in CAPTURED.into_iter().zip(SERVED) {
        let facts = ClientHelloFacts::read(raw).unwrap();
        assert_eq!(BOTH.agrees(raw), is_served, "{name}: {sentence}");
        assert_eq!(facts.is_for_rustls(&BOTH.certificates), is_served, "{name}: {sentence}");
        assert_eq!(facts.rustls_incompatibility().is_none(), is_served, "{name}: {sentence}");
        assert_eq!(facts.required_level(), needs, "{name}: {sentence}");
    }
}

/// The presumed default lists of UC Software: 5.x without ECDHE, 4.x with RSA key exchange over TLS 1.0.
#[test]
fn old_phones_need_the_level_of_their_time() {
    use CipherSuite as S;
    let dhe_and_rsa = [
        S::TLS_DHE_RSA_WITH_AES_256_CBC_SHA,
        S::TLS_RSA_WITH_AES_256_CBC_SHA,
        S::TLS_DHE_RSA_WITH_AES_128_CBC_SHA,
        S::TLS_RSA_WITH_AES_128_CBC_SHA,
        S::TLS_RSA_WITH_3DES_EDE_CBC_SHA,
    ];
    let needs =
        |legacy_version, suites: &[CipherSuite]| Offer::of_its_time(legacy_version, suites).facts().required_level();
    assert_eq!(needs(0x0303, &dhe_and_rsa), Some(TlsLevel::Compatible));
    assert_eq!(needs(0x0302, &dhe_and_rsa), Some(TlsLevel::Legacy));
    assert_eq!(needs(0x0301, &dhe_and_rsa[3..]), Some(TlsLevel::Legacy));
    // TLS 1.0 has no TLS 1.2 suites, and some suites fit no version.
    assert_eq!(needs(0x0301, &[S::TLS_RSA_WITH_AES_128_GCM_SHA256, S::TLS_RSA_WITH_AES_128_CBC_SHA256]), None);
    for broken in [S::TLS_RSA_WITH_3DES_EDE_CBC_SHA, S::TLS_RSA_WITH_RC4_128_SHA, S::TLS_RSA_WITH_NULL_SHA] {
        assert_eq!(needs(0x0303, &[broken]), None, "{broken:?}");
        assert_eq!(needs(0x0301, &[broken]), None, "{broken:?}");
    }
    assert_eq!(needs(0x0300, &dhe_and_rsa), None);
}

/// A missing signature list means SHA-1. OpenSSL requires a known scheme even if the key exchange needs no signature.
#[test]
fn sha1_only_client_needs_legacy_with_any_key_exchange() {
    use CipherSuite as S;
    use SignatureScheme as Sig;
    let sha1 = Some(TlsLevel::Legacy);
    for suite in [
        S::TLS_RSA_WITH_AES_128_CBC_SHA,
        S::TLS_RSA_WITH_AES_128_GCM_SHA256,
        S::TLS_DHE_RSA_WITH_AES_128_CBC_SHA,
        S::TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
    ] {
        for (schemes, needs) in [
            (None, sha1),
            (Some(vec![Sig::RSA_PKCS1_SHA1]), sha1),
            (Some(vec![Sig::ECDSA_NISTP256_SHA256, Sig::RSA_PKCS1_SHA1]), sha1),
            (Some(vec![Sig::RSA_PKCS1_SHA1, Sig::RSA_PKCS1_SHA256]), Some(TlsLevel::Compatible)),
            (Some(vec![Sig::RSA_PSS_SHA384]), Some(TlsLevel::Compatible)),
            (Some(vec![Sig::ECDSA_SHA1_Legacy]), None),
            (Some(vec![]), None),
        ] {
            let facts = Offer { schemes: schemes.clone(), ..Offer::of_its_time(0x0303, &[suite]) }.facts();
            assert_eq!(facts.required_level(), needs, "{suite:?} {schemes:?}");
            assert_eq!(facts.has_only_sha1(), needs == sha1, "{suite:?} {schemes:?}");
        }
    }
    // Before TLS 1.2, signature schemes are not negotiable.
    let old = Offer { schemes: None, ..Offer::of_its_time(0x0301, &[S::TLS_DHE_RSA_WITH_AES_128_CBC_SHA]) }.facts();
    assert_eq!((old.required_level(), old.has_only_sha1()), (Some(TlsLevel::Legacy), false));
}

#[test]
fn client_without_supported_curve_has_no_ecdhe() {
    let groups = |groups| {
        let offer = Offer::of_its_time(0x0301, &[CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]);
        Offer { groups, ..offer }.facts().required_level()
    };
    assert_eq!(groups(Some(vec![NamedGroup::secp384r1])), Some(TlsLevel::Legacy));
    assert_eq!((groups(None), groups(Some(vec![NamedGroup::secp521r1]))), (None, None));
}

/// No suite of the OpenSSL backend is reported as incompatible with a TLS version that has it.
#[test]
fn openssl_suites_fit_every_tls_version_that_has_them() {
    let names = |version, suite| Offer::of_its_time(version, &[suite]).facts().incompatibility(TlsLevel::Legacy);
    for (suite, name) in SUITES {
        assert_eq!(names(0x0303, suite), None, "{name}");
        let newer = "offered only TLS 1.2 cipher suites in TLS 1.0".to_owned();
        assert_eq!(names(0x0301, suite), (!name.ends_with("-SHA")).then_some(newer), "{name}");
    }
}
