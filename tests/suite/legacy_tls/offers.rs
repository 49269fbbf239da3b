//! Generated `ClientHello`s of every kind: the logged hints match the clients that are answered, and name the real
//! reason.

use super::refusal_hints::{both_kinds, lowest_setting};
use super::tls_libraries::first_record;
use super::*;

const VERSIONS: [u16; 3] = [0x0301, 0x0302, 0x0303];

/// Suites that some setting serves, by version.
const GOOD: [&[u16]; 8] =
    [&[0x002f], &[0x009c], &[0x0033], &[0xc013], &[0xc027], &[0xc02f], &[0x0005, 0x0033, 0x0035], &[0x000a, 0xc013]];

/// Suites that no setting serves, with their names.
const BAD: [(&[u16], &str); 14] = [
    (&[0x0005], "RC4"),
    (&[0x000a], "3DES"),
    (&[0x0005, 0x0004, 0x000a], "RC4 and 3DES"),
    (&[0x0009], "DES"),
    (&[0x0003, 0x0008], "EXPORT"),
    (&[0x0002], "NULL"),
    (&[0x0032, 0x0038], "DSS"),
    (&[0x0034], "anonymous"),
    (&[0x0041, 0x0096], "CAMELLIA and SEED"),
    (&[0xc009], "ECDSA"),
    (&[0xc00e, 0x0031], "static Diffie-Hellman"),
    (&[0x008c], "PSK"),
    (&[0xfefd], "unknown"),
    (&[0xfefd, 0x0013, 0x000a, 0x0007], "unknown, 3DES and IDEA"),
];

/// `signature_algorithms`, or no such extension.
const SIGNATURES: [Option<&[u16]>; 6] =
    [None, Some(&[0x0201]), Some(&[0x0401]), Some(&[0x0301]), Some(&[0x0101, 0x0203]), Some(&[0x0603, 0x0201, 0x0806])];

/// `supported_groups`: P-256, and the unsupported P-521.
const GROUPS: [Option<&[u16]>; 3] = [None, Some(&[23]), Some(&[25])];

#[derive(Debug, Clone, Copy)]
struct Offer {
    version: u16,
    suites: &'static [u16],
    signatures: Option<&'static [u16]>,
    groups: Option<&'static [u16]>,
    has_extended_master_secret: bool,
}

impl Offer {
    /// The record of this hello to the constituency `name`.
    fn hello(&self, name: &str) -> Vec<u8> {
        let long = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
        let words = |words: &[u16]| long(&words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>());
        let name = [&[0], &long(format!("{name}.{DOMAIN}").as_bytes())[..]].concat();
        let extensions = [
            (0_u16, Some(long(&name))),
            (10, self.groups.map(words)),
            (13, self.signatures.map(words)),
            (23, self.has_extended_master_secret.then(Vec::new)),
        ];
        let extensions: Vec<u8> = extensions
            .into_iter()
            .filter_map(|(kind, data)| Some([&kind.to_be_bytes()[..], &long(&data?)].concat()))
            .flatten()
            .collect();
        let body = [&self.version.to_be_bytes(), &[7; 32][..], &[0], &words(self.suites), &[1, 0], &long(&extensions)];
        let message = [&[1, 0], &long(&body.concat())[..]].concat();
        [&[22, 3, 1], &long(&message)[..]].concat()
    }

    /// The lowest setting that answers it with a `ServerHello`.
    #[track_caller]
    fn lowest_setting(&self, server: &Running, prefix: &str) -> Option<&'static str> {
        lowest_setting(server, prefix, &format!("{self:x?}"), |name| first_record(server, &self.hello(name))[0] == 22)
    }
}

#[test]
fn logged_setting_is_the_least_that_answers_the_hello() {
    let site = both_kinds();
    let server = site.start();
    let mut seen = std::collections::BTreeMap::<_, usize>::new();
    for version in VERSIONS {
        for suites in GOOD {
            for signatures in SIGNATURES {
                for groups in GROUPS {
                    // Half of them each, so that each of the other three occurs with and without.
                    let has_extended_master_secret = suites.len().wrapping_add(usize::from(version)) % 2 == 0;
                    let offer = Offer { version, suites, signatures, groups, has_extended_master_secret };
                    *seen.entry((version, offer.lowest_setting(&server, ""))).or_default() += 1;
                }
            }
        }
    }
    let all = 8 * 6 * 3;
    // Suites without curves are combined with any groups, those with curves with one of the three.
    let (old, tls12) = ((3 * 3 + 2) * 6, 4 * 3 + 3);
    let expected = [
        ((0x0301, None), all - old),
        ((0x0301, Some("legacy")), old),
        ((0x0302, None), all - old),
        ((0x0302, Some("legacy")), old),
        ((0x0303, None), all - 2 * tls12 - 2 * tls12 - 2),
        // Two sets of signature algorithms contain SHA-2, two contain only SHA-1.
        ((0x0303, Some("compatible")), 2 * tls12),
        ((0x0303, Some("legacy")), 2 * tls12),
        ((0x0303, Some("modern")), 2),
    ];
    assert_eq!(seen, expected.into());
}

#[test]
fn unservable_suites_are_named_in_the_log() {
    let site = both_kinds();
    let server = site.start();
    let mut seen = 0;
    for version in VERSIONS {
        for (suites, kinds) in BAD {
            for signatures in [None, Some(&[0x0401_u16][..])] {
                let offer = Offer { version, suites, signatures, groups: None, has_extended_master_secret: false };
                let prefix = if signatures.is_some() { "" } else { "open-" };
                assert_eq!(offer.lowest_setting(&server, prefix), None, "{offer:x?}");
                let lines = server.access_lines();
                let expected = format!("offered only {kinds} cipher suites, which no setting accepts");
                for line in &lines[lines.len() - SETTINGS.len()..] {
                    assert_eq!(line["reason"], expected, "{offer:x?}");
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, 3 * 14 * 2 * 3);
}

#[test]
fn unservable_versions_groups_and_signatures_are_logged() {
    let site = both_kinds();
    let server = site.start();
    let good = Offer {
        version: 0x0303,
        suites: &[0x002f],
        signatures: Some(&[0x0401]),
        groups: None,
        has_extended_master_secret: true,
    };
    assert_eq!(good.lowest_setting(&server, ""), Some("compatible"));
    for (offer, reason) in [
        (Offer { version: 0x0300, ..good }, "offered only SSL 3.0"),
        (Offer { version: 0x0301, suites: &[0x009c, 0x003c], ..good }, "offered only TLS 1.2 cipher suites in TLS 1.0"),
        (
            Offer { version: 0x0302, suites: &[0x009c, 0x0005], ..good },
            "offered only TLS 1.2 and RC4 cipher suites in TLS 1.1",
        ),
        (Offer { suites: &[0x1301], ..good }, "offered only TLS 1.3 cipher suites in TLS 1.2"),
        (Offer { suites: &[0xc013], groups: Some(&[25]), ..good }, "offered no group that is served (secp521r1)"),
        (Offer { suites: &[0xc013], ..good }, "offered no group for its key exchange"),
        (Offer { suites: &[0xc02f], groups: Some(&[25]), ..good }, "offered no group that is served (secp521r1)"),
        (Offer { signatures: Some(&[0x0301]), ..good }, "offered only RSA+SHA224 signatures"),
        (Offer { signatures: Some(&[0x0101, 0x0203]), ..good }, "offered only RSA+MD5 and ECDSA+SHA1 signatures"),
        (
            Offer { suites: &[0xc02f], groups: Some(&[23]), signatures: Some(&[0x0201]), ..good },
            "offered only SHA-1 signatures with modern cipher suites",
        ),
        (
            Offer { suites: &[0xc02f], groups: Some(&[23]), signatures: Some(&[0x0403, 0x0201]), ..good },
            "offered only ECDSA+SHA256 and RSA+SHA1 signatures with modern cipher suites",
        ),
        (
            Offer { suites: &[0xc02f], groups: Some(&[23]), signatures: None, ..good },
            "offered only SHA-1 signatures (no signature_algorithms extension) with modern cipher suites",
        ),
    ] {
        assert_eq!(offer.lowest_setting(&server, ""), None, "{offer:x?}");
        let lines = server.access_lines();
        for line in &lines[lines.len() - SETTINGS.len()..] {
            assert_eq!(line["reason"], format!("{reason}, which no setting accepts"), "{offer:x?}");
        }
    }
}
