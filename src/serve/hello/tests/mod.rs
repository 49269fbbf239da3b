//! Hellos as `openssl s_client` 3.0 sends them, and malformed ones.

use super::*;

pub(in crate::serve) mod backends;
#[cfg(feature = "old-tls")]
mod openssl;

macro_rules! captured {
    ($name:literal) => {
        include_bytes!(concat!("../../../../tests/suite/hellos/", $name, ".bin")).as_slice()
    };
}

const ANYTHING_MODERN: &str =
    "offered TLS 1.3, TLS 1.2, TLS 1.1 and TLS 1.0 with ECDHE-ECDSA and ECDHE-RSA key exchange";

/// The captured hellos, each with its sentence for the log.
const CAPTURED: [(&[u8], &str); 14] = [
    (captured!("default"), ANYTHING_MODERN),
    (captured!("no-sni"), ANYTHING_MODERN),
    (captured!("tls13-only"), "offered TLS 1.3"),
    (captured!("tls12-only"), "offered TLS 1.2 with ECDHE-ECDSA and ECDHE-RSA key exchange"),
    (captured!("tls11-only"), "offered only TLS 1.1"),
    (captured!("tls10-only"), "offered only TLS 1.0"),
    (captured!("rsa-kx"), "offered only RSA key exchange"),
    (captured!("dhe-kx"), "offered only DHE key exchange"),
    (captured!("dhe-and-rsa-kx"), "offered only DHE and RSA key exchange"),
    (captured!("ecdhe-cbc"), "offered only CBC cipher suites"),
    (captured!("ecdhe-cbc-rsa-gcm"), "offered ECDHE key exchange only with CBC cipher suites"),
    (captured!("ecdhe-ccm"), "offered no cipher suite that is served (TLS_ECDHE_ECDSA_WITH_AES_128_CCM)"),
    (captured!("sha1-signatures"), "offered only SHA-1 signatures"),
    (captured!("p521-only"), "offered no group that is served (secp521r1)"),
];

/// The same handshake message in records of at most `size` bytes.
fn split(raw: &[u8], size: usize) -> Vec<u8> {
    let record = |fragment: &[u8]| {
        let mut record = vec![0x16, 0x03, 0x01];
        record.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
        record.extend(fragment);
        record
    };
    raw[5..].chunks(size).flat_map(record).collect()
}

fn refusal(raw: &[u8]) -> String {
    ClientHelloFacts::read(raw).unwrap_err().to_string()
}

#[test]
fn each_captured_hello_has_its_log_sentence() {
    for (raw, sentence) in CAPTURED {
        assert_eq!(ClientHelloFacts::read(raw).unwrap().offered(), sentence);
    }
}

#[test]
fn facts_of_a_modern_hello_are_read() {
    let facts = ClientHelloFacts::read(captured!("default")).unwrap();
    assert_eq!(facts.versions[..2], [ProtocolVersion::TLSv1_3, ProtocolVersion::TLSv1_2]);
    assert_eq!(facts.server_name, Some(ServerNameSent::Host("ote.phones.example.com".to_owned())));
    assert!(facts.extended_master_secret && facts.null_compression && facts.offers_aead());
    assert!(facts.key_exchanges().contains(&KeyExchange::Tls13));
    assert!(facts.rustls_incompatibility().is_none());
    assert_eq!(ClientHelloFacts::read(captured!("no-sni")).unwrap().server_name, None);
    assert!(!ClientHelloFacts::read(captured!("ecdhe-cbc")).unwrap().offers_aead());
}

#[test]
fn every_suite_and_group_of_our_provider_is_served() {
    let facts = ClientHelloFacts::read(captured!("default")).unwrap();
    let provider = TlsMaterial::provider();
    assert!(provider.cipher_suites.len() >= 9 && provider.kx_groups.len() >= 4);
    for group in &provider.kx_groups {
        let only = ClientHelloFacts { groups: Some(vec![group.name()]), ..facts.clone() };
        assert_eq!(only.rustls_incompatibility(), None, "{:?}", group.name());
    }
    for suite in &provider.cipher_suites {
        let versions = vec![suite.version().version];
        let only = ClientHelloFacts { cipher_suites: vec![suite.suite()], versions, ..facts.clone() };
        assert_eq!(only.rustls_incompatibility(), None, "{:?}", suite.suite());
    }
}

#[test]
fn hello_without_extensions_is_read() {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0xc0, 0x2f, 0x00, 0xff, 1, 0]);
    let mut raw = vec![0x16, 3, 1, 0, 47, 1, 0, 0, 43];
    raw.extend(&body);
    let facts = ClientHelloFacts::read(&raw).unwrap();
    assert_eq!(facts.cipher_suites, [CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]);
    assert!(!facts.extended_master_secret);
    assert_eq!(facts.offered(), "offered no group for its key exchange");
    assert_eq!(
        ClientHelloFacts { groups: Some(vec![NamedGroup::secp256r1]), ..facts }.offered(),
        "offered only SHA-1 signatures (no signature_algorithms extension)"
    );
}

/// The reported incompatibility of a client that offers these ALPN protocols.
fn of_alpn(protocols: &[&[u8]]) -> Option<String> {
    let long = |data: &[u8]| [&u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat();
    let names = protocols.iter().flat_map(|name| [&[u8::try_from(name.len()).unwrap()], *name].concat());
    let alpn = [&[0, 16][..], &long(&long(&names.collect::<Vec<_>>()))].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2f, 1, 0], &long(&alpn)].concat();
    let message = [&[1, 0][..], &long(&body)].concat();
    ClientHelloFacts::read(&[&[22, 3, 1][..], &long(&message)].concat()).unwrap().alpn_incompatibility()
}

#[test]
fn client_without_our_alpn_protocols_gets_a_reason() {
    assert_eq!(of_alpn(&[b"h2", b"http/1.1"]), None);
    assert_eq!(of_alpn(&[b"\x0a\x0a", b"http/1.0"]), None);
    assert_eq!(
        of_alpn(&[b"h2", b"\xfa\xfa", b"a\x1b[2J"]).unwrap(),
        r"offered only h2 and a\x1b[2J as application protocol (ALPN); this server supports http/1.1 and http/1.0"
    );
    let many = vec![b"x".as_slice(); 5_000];
    assert!(
        of_alpn(&many).unwrap().starts_with("offered only x, x, x, x, x, x, x, x and more as application protocol")
    );
    assert_eq!(of_alpn(&[&many[..], &[b"http/1.1"]].concat()), None);
}

#[test]
fn non_tls_data_is_named_in_the_reason() {
    for (raw, sentence) in [
        (b"".as_slice(), "sent nothing"),
        (b"GET / HTTP/1.1\r\n", "is not TLS (starts like an HTTP request)"),
        (b"SSH-2.0-x\x1b[2J\r\n", r#"is not TLS (starts with "SSH-2.0-x\x1b[2J\r\n")"#),
        (b"\x80\x2e\x01\x00\x02\x00\x15", "an SSL 2.0 hello"),
        (b"\x80\x2e\x01\x03\x01\x00\x15", "an SSL 2.0 hello that asks for TLS 1.0"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "a TLS record of type 21 instead of a ClientHello"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "a TLS handshake message of type 2 instead of a ClientHello"),
        (
            b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
            "a ClientHello of 16777219 bytes, which is too long (at most 16384 are accepted)",
        ),
        (b"\x16\x03\x01\x00\x00", "a malformed ClientHello"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "a malformed ClientHello"),
        (b"\x16\x03\x01\x00\x01\x01\x17\x03\x01\x00", "a malformed ClientHello"),
        (b"\x16", "a truncated ClientHello (1 bytes)"),
        (&captured!("default")[..123], "a truncated ClientHello (123 bytes)"),
    ] {
        assert_eq!(refusal(raw), sentence, "{raw:02x?}");
    }
}

#[test]
fn hello_truncated_anywhere_is_reported() {
    for (raw, _) in CAPTURED {
        for length in 1..raw.len() {
            assert_eq!(ClientHelloFacts::read(&raw[..length]), Err(NoClientHello::Truncated(length)));
        }
    }
}

#[test]
fn hello_split_over_records_has_the_same_facts() {
    for (raw, _) in CAPTURED {
        for size in [1, 5, 50] {
            assert_eq!(ClientHelloFacts::read(&split(raw, size)), ClientHelloFacts::read(raw));
        }
    }
}

/// A message of `length` bytes with the header of a ClientHello.
fn message(length: usize) -> Vec<u8> {
    let [.., high, middle, low] = (length - 4).to_be_bytes();
    let mut message = vec![1, high, middle, low];
    message.resize(length, 0);
    message
}

#[test]
fn hello_announcing_over_16_kib_is_rejected_at_once() {
    let too_long = Err(NoClientHello::TooLong(HELLO_LIMIT + 1));
    for length in [HELLO_LIMIT + 1, 0xffff] {
        let mut reader = HelloReader::default();
        let begin = [&[0x16, 3, 1, 0, 4], &message(length)[..4]].concat();
        assert_eq!(reader.push(&begin), Err(NoClientHello::TooLong(length)));
    }
    // The record announces it before the message does.
    assert_eq!(HelloReader::default().push(&[0x16, 3, 1, 0x40, 1]), too_long);
    // A hello of a legal size, in a record that holds more than it.
    let mut reader = HelloReader::default();
    assert_eq!(reader.push(&split(&[&[0; 5][..], &message(HELLO_LIMIT)[..100]].concat(), 100)), Ok(false));
    assert_eq!(reader.push(&[0x16, 3, 1, 0x3f, 0x9d]), too_long);
}

#[test]
fn hello_of_16_kib_is_read_in_any_fragments() {
    let message = message(HELLO_LIMIT);
    for size in [1, 5, 200, HELLO_LIMIT] {
        let raw = split(&[&[0; 5][..], &message].concat(), size);
        for read in [1, 7, 2048, raw.len()] {
            let mut reader = HelloReader::default();
            let reads: Vec<bool> = raw.chunks(read).map(|bytes| reader.push(bytes).unwrap()).collect();
            assert_eq!(reads.iter().position(|is_complete| *is_complete), Some(reads.len() - 1), "{size}, {read}");
            let (rest, record) = (reader.take_rest(), reader.into_record());
            assert_eq!(record[..5], [0x16, 3, 1, 0x40, 0]);
            assert!(record[5..] == message && rest.is_empty(), "{size}, {read}");
        }
    }
}

#[test]
fn hello_reader_buffers_only_received_bytes() {
    assert_eq!(HelloReader::default().capacity(), 0);
    // An announced length allocates nothing.
    let mut reader = HelloReader::default();
    reader.push(&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc]).unwrap();
    assert!(reader.capacity() <= 1024, "{}", reader.capacity());
    for size in [1, 5, HELLO_LIMIT] {
        let raw = split(&[&[0; 5][..], &message(HELLO_LIMIT)].concat(), size);
        let mut reader = HelloReader::default();
        for (at, byte) in raw[..raw.len() - 1].iter().enumerate() {
            reader.push(&[*byte]).unwrap();
            assert!(reader.capacity() <= at + 1 + 1024, "{} after {at} bytes", reader.capacity());
        }
        assert!(reader.capacity() <= 5 + HELLO_LIMIT + 1024, "{size}: {}", reader.capacity());
    }
}

#[test]
fn bytes_after_a_hello_are_kept_for_tls() {
    let hello = split(captured!("default"), 100);
    for rest in [&b"\x14\x03\x03\x00\x01\x01"[..], b"anything"] {
        let mut reader = HelloReader::default();
        assert_eq!(reader.push(&[&hello, rest].concat()), Ok(true));
        assert_eq!((reader.take_rest(), reader.into_record()), (rest.to_vec(), captured!("default").to_vec()));
    }
}

#[test]
fn other_records_are_kept_for_the_alert() {
    let begin = split(&captured!("default")[..105], 50);
    let alert = b"\x15\x03\x03\x00\x02\x01\x00";
    let mut reader = HelloReader::default();
    assert_eq!(reader.push(&begin), Ok(false));
    assert_eq!(reader.push(alert), Err(NoClientHello::Malformed));
    assert_eq!(reader.into_record(), [&[0x16, 3, 1, 0, 100], &captured!("default")[5..105], alert].concat());
}

#[test]
fn longest_lists_are_explained_in_linear_time() {
    let facts = ClientHelloFacts {
        cipher_suites: std::iter::repeat_n(CipherSuite::TLS13_AES_128_GCM_SHA256, 16_000).collect(),
        signature_schemes: Some(vec![SignatureScheme::RSA_PKCS1_SHA256; 16_000]),
        ..ClientHelloFacts::read(captured!("tls13-only")).unwrap()
    };
    let start = crate::clock::monotonic();
    assert!(facts.offered().starts_with("offered no signature scheme that is served"));
    // Reading each list once takes milliseconds; checking each pair would take a minute.
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn grease_and_long_lists_are_cut_in_the_reason() {
    let facts = ClientHelloFacts {
        cipher_suites: (0xd000..0xd100).map(CipherSuite::from).collect(),
        versions: vec![ProtocolVersion::TLSv1_2],
        ..ClientHelloFacts::read(captured!("default")).unwrap()
    };
    assert_eq!(facts.offered(), "offered only other key exchange");
    assert_eq!(listed(1..=3), "1, 2 and 3");
    assert_eq!(listed(1..=100), "1, 2, 3, 4, 5, 6, 7, 8 and more");
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(raw: Vec<u8>) {
        let _ = ClientHelloFacts::read(&raw).map(|facts| facts.offered());
    }

    #[test]
    fn no_corrupted_hello_panics(which in 0..CAPTURED.len(), changes: Vec<(proptest::sample::Index, u8)>) {
        let mut raw = CAPTURED[which].0.to_vec();
        for (at, value) in changes {
            let at = at.index(raw.len());
            raw[at] = value;
        }
        let _ = ClientHelloFacts::read(&raw).map(|facts| facts.offered());
    }

    #[test]
    fn any_record_split_gives_the_same_facts(which in 0..CAPTURED.len(), size in 1usize..400) {
        let raw = CAPTURED[which].0;
        proptest::prop_assert_eq!(ClientHelloFacts::read(&split(raw, size)), ClientHelloFacts::read(raw));
    }
}
