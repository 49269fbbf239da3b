//! Chains with keys that are expensive to verify: unauthenticated clients must not cause that work.

use rcgen::{KeyPair, PKCS_RSA_SHA256};

use super::hostile::{answer, ote};
use super::*;
use crate::harness::VVX550;
use crate::harness::pki::Ca;

/// The number of measured handshakes.
const ROUNDS: usize = 50;

fn tlv(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let length = content.len();
    let length = match length {
        0..128 => vec![u8::try_from(length).unwrap()],
        _ => [&[0x82], &u16::try_from(length).unwrap().to_be_bytes()[..]].concat(),
    };
    [&[tag], &length[..], &content].concat()
}

/// An odd number of exactly this many bits.
fn number(bits: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..bits / 8).map(|place| u8::try_from(place * 37 % 251).unwrap()).collect();
    bytes[0] |= 0x80;
    *bytes.last_mut().unwrap() |= 1;
    bytes
}

fn common_name(name: &str) -> Vec<u8> {
    tlv(0x30, &[&tlv(0x31, &[&tlv(0x30, &[b"\x06\x03\x55\x04\x03", &tlv(12, &[name.as_bytes()])])])])
}

/// A certificate with a made-up RSA key and a made-up signature as long as one by a key of `signed` bits.
fn certificate(subject: &str, issuer: &str, key: (usize, usize), signed: usize, is_ca: bool) -> Vec<u8> {
    let oid = |last: u8| [b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01", &[last, 5, 0][..]].concat();
    let signature_algorithm = tlv(0x30, &[&oid(11)]);
    let integer = |bits| tlv(2, &[&[0], &number(bits)]);
    let public_key = tlv(0x30, &[&integer(key.0), &integer(key.1)]);
    let public_key = tlv(0x30, &[&tlv(0x30, &[&oid(1)]), &tlv(3, &[&[0], &public_key])]);
    let basic = tlv(0x30, &[b"\x06\x03\x55\x1d\x13\x01\x01\xff", &tlv(4, &[b"\x30\x03\x01\x01\xff"])]);
    let extensions = if is_ca { tlv(0xa3, &[&tlv(0x30, &[&basic])]) } else { Vec::new() };
    let dates = tlv(0x30, &[&tlv(23, &[b"250101000000Z"]), &tlv(23, &[b"490101000000Z"])]);
    let signed_part = tlv(
        0x30,
        &[
            b"\xa0\x03\x02\x01\x02\x02\x01\x07",
            &signature_algorithm,
            &common_name(issuer),
            &dates,
            &common_name(subject),
            &public_key,
            &extensions,
        ],
    );
    let signature = number(signed - 8);
    tlv(0x30, &[&signed_part, &signature_algorithm, &tlv(3, &[&[0, 0], &signature])])
}

/// Seven CAs with keys of these sizes, modulus and exponent, each issued by the next; the first is called `name`.
fn cas(name: &str, key: (usize, usize)) -> Vec<Vec<u8>> {
    let called = |place: usize| if place == 0 { name.to_owned() } else { format!("CA {place}") };
    (0..7).map(|place| certificate(&called(place), &called(place + 1), key, key.0, true)).collect()
}

/// The records of a Certificate message with `chain`.
fn message(chain: &[Vec<u8>]) -> Vec<u8> {
    let long = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..], bytes].concat();
    let list: Vec<u8> = chain.iter().flat_map(|der| long(der)).collect();
    let message = [&[11], &long(&long(&list))[..]].concat();
    let record = |body: &[u8]| [&[22, 3, 3][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat();
    message.chunks(16_000).flat_map(record).collect()
}

#[test]
fn chain_of_huge_keys_does_not_cost_processor_time() {
    let site = ote();
    let server = site.start();
    let hello = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/hellos/rsa-kx.bin")).unwrap();
    let mut spent = [0.0; 2];
    for (which, key, reason) in
        [(0, (2048, 24), "maximum path depth exceeded"), (1, (16_384, 64), "16384 bits, 2048 to 4096")]
    {
        let leaf = certificate(&VVX500.to_uppercase(), "CA 0", (2048, 24), key.0, false);
        let bytes = [&hello[..], &message(&[vec![leaf], cas("CA 0", key)].concat())].concat();
        let (before, lines) = (server.processor_time(), server.access_lines().len());
        for _ in 0..ROUNDS {
            assert_eq!(answer(&server, &bytes).first(), Some(&22), "the hello itself is good");
        }
        let reported = eventually("a line for each", || {
            let reported = server.access_lines().split_off(lines);
            (reported.len() == ROUNDS).then_some(reported)
        });
        spent[which] = server.processor_time() - before;
        assert!(reported.iter().all(|line| line["reason"].as_str().unwrap().contains(reason)), "{}", reported[0]);
    }
    // Processor time is counted in hundredths of a second.
    assert!(spent[1] < 5.0 * spent[0].max(0.1), "{spent:?} seconds");
}

#[test]
fn huge_ca_keys_are_refused_beside_a_pinned_certificate() {
    let site = site_with_each_setting();
    let maker = Ca::root_with("Maker", KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    let pinned = maker.issue_rsa(&device_params(VVX550));
    let mut legacy = policy("legacy");
    legacy["phones"][VVX550] = json!({
        "note": "",
        "certificate_sha256": provost::constituency::Fingerprint::of(&pinned.chain[0]).to_string(),
    });
    site.constituency("legacy", &legacy);
    let server = site.start();
    let arguments = only("tls1", "AES128-SHA");
    let its_own = pinned.clone().with(&maker);
    for identity in [&pinned, &its_own] {
        let found = attempt(&site, &server, "legacy", Some(identity), &arguments);
        assert!(found.is_served(), "{}", found.text);
    }
    // A huge modulus, and a huge exponent.
    for key in [(16_384, 64), (3072, 3064)] {
        let mut sent = pinned.clone();
        sent.chain.extend(cas("Maker", key).into_iter().map(Into::into));
        let found = attempt(&site, &server, "legacy", Some(&sent), &arguments);
        assert!(!found.is_served() && found.alert() == Some("handshake failure"), "{}", found.text);
        let reason = format!("CA 1 has a key of {} bits, whose kind or size is not supported", key.0);
        server.reason(&reason);
    }
}
