//! Headers whole, in pieces, invalid and random.

use std::net::Ipv6Addr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;

/// A stream that yields one byte at a time.
struct Pieces<'a>(&'a [u8]);

impl AsyncRead for Pieces<'_> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some((first, rest)) = this.0.split_first() {
            buffer.put_slice(&[*first]);
            this.0 = rest;
        }
        Poll::Ready(Ok(()))
    }
}

/// The result for a stream that is always ready.
fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<ProxiedClient, HeaderError> {
    match pin!(receive_header(stream)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the stream was ready"),
    }
}

/// The client that `bytes` name, and what follows the header. Whole and in pieces are the same.
fn receive(bytes: &[u8]) -> Result<(ProxiedClient, &[u8]), String> {
    let (mut whole, mut pieces) = (bytes, Pieces(bytes));
    let client = read(&mut whole).map_err(|error| error.to_string());
    assert_eq!(client, read(&mut pieces).map_err(|error| error.to_string()), "{}", bytes.escape_ascii());
    let client = client?;
    assert_eq!(whole, pieces.0);
    Ok((client, whole))
}

/// A header of version 2 with this command, this family and protocol, and these further bytes.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [v2::PROTOCOL_PREFIX, &[command, family], &length, rest].concat()
}

/// The addresses 192.0.2.1 and 192.0.2.2, and the ports 5000 and 443.
const IPV4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0x13, 0x88, 1, 0xbb];

fn ipv6(client: &str) -> Vec<u8> {
    let client: Ipv6Addr = client.parse().unwrap();
    [&client.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0x13, 0x88, 1, 0xbb]].concat()
}

/// Headers and the clients that they name.
fn valid() -> Vec<(Vec<u8>, Option<&'static str>)> {
    let v1 = |line: &str| line.as_bytes().to_vec();
    let tlvs = [&IPV4[..], &[0x04, 0, 2, 0, 0, 0x05, 0, 1, 7]].concat();
    vec![
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\n"), Some("192.0.2.1:5000")),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 0 443\r\n"), Some("192.0.2.1:0")),
        (v1("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"), Some("255.255.255.255:65535")),
        (v1("PROXY TCP6 2001:db8::1 ::1 5000 443\r\n"), Some("[2001:db8::1]:5000")),
        (v1("PROXY TCP6 2001:DB8:0:0:0:0:0:1 ::1 5000 443\r\n"), Some("[2001:db8::1]:5000")),
        (v1("PROXY TCP6 ::ffff:192.0.2.1 ::1 5000 443\r\n"), Some("192.0.2.1:5000")),
        (v1("PROXY UNKNOWN\r\n"), None),
        (v1("PROXY UNKNOWN 1 2 3 4 5 6 7 8 9\r\n"), None),
        (v1(&format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_LIMIT - 16))), None),
        (v2(0x21, 0x11, &IPV4), Some("192.0.2.1:5000")),
        (v2(0x21, 0x21, &ipv6("2001:db8::1")), Some("[2001:db8::1]:5000")),
        (v2(0x21, 0x21, &ipv6("::ffff:192.0.2.1")), Some("192.0.2.1:5000")),
        (v2(0x21, 0x11, &tlvs), Some("192.0.2.1:5000")),
        // Additional fields are skipped, whatever they hold.
        (v2(0x21, 0x11, &[&IPV4[..], &[0xff; 3]].concat()), Some("192.0.2.1:5000")),
        (v2(0x21, 0x11, &[&IPV4[..], &[0; V2_LIMIT - 28]].concat()), Some("192.0.2.1:5000")),
        (v2(0x21, 0x11, &[&[192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat()), Some("192.0.2.1:0")),
        // LOCAL: "discard the protocol block including the family".
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, &IPV4), None),
        (v2(0x20, 0x11, &[]), None),
        (v2(0x20, 0xff, &[1, 2, 3]), None),
        // A client that the balancer does not know, and one on its own machine.
        (v2(0x21, 0x00, &[]), None),
        (v2(0x21, 0x00, &[1, 2, 3]), None),
        (v2(0x21, 0x31, &[b'/'; 216]), None),
    ]
}

/// Invalid headers, each with its reason.
fn invalid() -> Vec<(Vec<u8>, &'static str)> {
    let v1 = |line: &str| line.as_bytes().to_vec();
    let huge = |command| [v2::PROTOCOL_PREFIX, &[command, 0x11, 0xff, 0xff], &vec![0; 70_000]].concat();
    vec![
        (vec![0x16], "begins with TLS"),
        (vec![0x16, 3, 1, 2, 0], "begins with TLS"),
        (v1("GET / HTTP/1.1\r\n"), "begins with other data"),
        (v1("PUT"), "begins with other data"),
        (v1("PROXYxTCP4 192.0.2.1 192.0.2.2 5000 443\r\n"), "begins with other data"),
        (v1("proxy TCP4 192.0.2.1 192.0.2.2 5000 443\r\n"), "begins with other data"),
        (v1(" PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\n"), "begins with other data"),
        (v1("\r\n\r\n\0\r\nQUIT "), "begins with other data"),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\n"), "does not end in CRLF"),
        (v1("PROXY TCP4 192.0.2.1\r192.0.2.2 5000 443\r\n"), "does not end in CRLF"),
        (v1("PROXY UNKNOWN\n\r\n"), "does not end in CRLF"),
        (v1("PROXY UNKNOWNS\r\n"), "not TCP4, TCP6 or UNKNOWN"),
        (v1("PROXY UDP4 192.0.2.1 192.0.2.2 5000 443\r\n"), "not TCP4, TCP6 or UNKNOWN"),
        (v1("PROXY  TCP4 192.0.2.1 192.0.2.2 5000 443\r\n"), "not TCP4, TCP6 or UNKNOWN"),
        (v1("PROXY TCP4  192.0.2.1 192.0.2.2 5000 443\r\n"), "malformed"),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 5000 443 \r\n"), "malformed"),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 5000\r\n"), "malformed"),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 5000 443 7\r\n"), "malformed"),
        (v1("PROXY TCP4 192.0.2.01 192.0.2.2 5000 443\r\n"), "malformed address"),
        (v1("PROXY TCP4 ::1 ::1 5000 443\r\n"), "malformed address"),
        (v1("PROXY TCP6 192.0.2.1 192.0.2.2 5000 443\r\n"), "malformed address"),
        (v1("PROXY TCP6 fe80::1%eth0 ::1 5000 443\r\n"), "malformed address"),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n"), "malformed port"),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 05000 443\r\n"), "malformed port"),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 -1 443\r\n"), "malformed port"),
        (v1("PROXY TCP4 192.0.2.1 192.0.2.2 +1 443\r\n"), "a port has a sign"),
        (v1("PROXY TCP4 \u{fc} 192.0.2.2 5000 443\r\n"), "malformed address"),
        (b"PROXY TCP4 \xff 192.0.2.2 5000 443\r\n".to_vec(), "malformed"),
        (v1(&format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_LIMIT - 15))), "too long"),
        (v1(&format!("PROXY UNKNOWN {}\n", "f".repeat(V1_LIMIT - 15))), "too long"),
        (v1(&format!("PROXY {}", "f".repeat(70_000))), "too long"),
        (v2(0x11, 0x11, &IPV4), "its version is 1, not 2"),
        (v2(0x31, 0x11, &IPV4), "its version is 3, not 2"),
        (v2(0x22, 0x11, &IPV4), "unknown command 2"),
        (v2(0x21, 0x41, &IPV4), "unknown address family 4"),
        (v2(0x21, 0x13, &IPV4), "unknown transport protocol 3"),
        (v2(0x21, 0x12, &IPV4), "does not use TCP"),
        (v2(0x21, 0x22, &ipv6("::1")), "does not use TCP"),
        (v2(0x21, 0x32, &[b'/'; 216]), "does not use TCP"),
        (v2(0x21, 0x10, &IPV4), "does not use TCP"),
        (v2(0x21, 0x01, &[]), "does not use TCP"),
        (v2(0x21, 0x11, &IPV4[..11]), "its length is 11 bytes, but the addresses of its family take 12"),
        (v2(0x21, 0x21, &IPV4), "its length is 12 bytes, but the addresses of its family take 36"),
        (v2(0x21, 0x31, &IPV4), "its length is 12 bytes, but the addresses of its family take 216"),
        (huge(0x21), "too long"),
        (huge(0x20), "too long"),
        (v2(0x21, 0x11, &[&IPV4[..], &[0; V2_LIMIT - 27]].concat()), "too long"),
    ]
}

#[test]
fn valid_header_names_the_client_and_leaves_the_rest() {
    let all = valid();
    for (header, client) in &all {
        let client = client.map(|client| client.parse().unwrap());
        for rest in [&b""[..], b"\x16\x03\x01", b"\r\n", b"PROXY UNKNOWN\r\n"] {
            let stream = [header, rest].concat();
            assert_eq!(receive(&stream), Ok((client, rest)), "{}", header.escape_ascii());
        }
    }
    assert_eq!(all.len(), 23);
}

#[test]
fn invalid_header_is_refused_with_the_reason() {
    let all = invalid();
    for (bytes, reason) in &all {
        let error = receive(bytes).unwrap_err();
        assert!(error.contains(reason), "{}: {error}", bytes.escape_ascii());
    }
    assert_eq!(all.len(), 47);
}

#[test]
fn header_that_ends_early_is_incomplete() {
    for (header, _) in valid() {
        assert!(matches!(read(&mut &b""[..]), Err(HeaderError::Nothing)));
        for end in 1..header.len() {
            let error = read(&mut &header[..end]).unwrap_err();
            assert!(matches!(error, HeaderError::Incomplete(received) if received == end), "{end}: {error}");
        }
    }
}

#[test]
fn header_that_cannot_become_valid_is_refused_before_its_end() {
    // Only the fixed part of each, without the announced rest.
    for (header, reason) in
        [(v2(0x11, 0x11, &IPV4), "version"), (v2(0x21, 0x51, &IPV4), "family"), (v2(0x21, 0x11, &IPV4[..4]), "length")]
    {
        let error = receive(&header[..V2_FIXED]).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let huge = [v2::PROTOCOL_PREFIX, &[0x21, 0x11, 0xff, 0xff]].concat();
    assert!(receive(&huge).unwrap_err().contains("too long"));
}

#[test]
fn networks_contain_mapped_addresses_and_not_the_internet() {
    let networks = |texts: &[&str]| LoadBalancers::new(texts.iter().map(|text| text.parse().unwrap()).collect());
    let balancers = networks(&["10.0.0.0/24", "2001:db8::5/128"]).unwrap();
    for (address, is_in) in [
        ("10.0.0.255", true),
        ("::ffff:10.0.0.7", true),
        ("2001:db8::5", true),
        ("10.0.1.0", false),
        ("2001:db8::6", false),
        ("::10.0.0.7", false),
    ] {
        assert_eq!(balancers.contains(address.parse().unwrap()), is_in, "{address}");
    }
    assert!(!LoadBalancers::default().contains([127, 0, 0, 1].into()));
    for all in ["0.0.0.0/0", "::/0"] {
        assert!(networks(&["10.0.0.0/24", all]).unwrap_err().starts_with(&format!("{all} is the whole internet")));
    }
}

/// Whether `header` is a valid header, by other means than the parser's.
fn is_valid(header: &[u8]) -> bool {
    if let Some(rest) = header.strip_prefix(v2::PROTOCOL_PREFIX) {
        let [command, family, high, low, block @ ..] = rest else { return false };
        let needed = match family {
            0x00 => 0,
            0x11 => 12,
            0x21 => 36,
            0x31 => 216,
            _ => usize::MAX,
        };
        let is_whole = usize::from(*high) * 256 + usize::from(*low) == block.len() && header.len() <= V2_LIMIT;
        return is_whole && (*command == 0x20 || (*command == 0x21 && block.len() >= needed));
    }
    let text = String::from_utf8_lossy(header);
    let Some(line) = text.strip_suffix("\r\n") else { return false };
    let words: Vec<&str> = line.split(' ').collect();
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port.to_string() == text);
    let is_client = match words[..] {
        ["PROXY", "UNKNOWN", ..] => !line.contains(['\r', '\n']),
        ["PROXY", "TCP4", source, target, from, to] => {
            let is_address = |text: &str| text.parse::<std::net::Ipv4Addr>().is_ok();
            is_address(source) && is_address(target) && is_port(from) && is_port(to)
        }
        ["PROXY", "TCP6", source, target, from, to] => {
            let is_address = |text: &str| text.parse::<Ipv6Addr>().is_ok();
            is_address(source) && is_address(target) && is_port(from) && is_port(to)
        }
        _ => false,
    };
    is_client && header.len() <= V1_LIMIT
}

/// Random bytes, and valid headers with random changes.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let random = proptest::collection::vec(any::<u8>(), 0..300);
    let text = "PROXY (TCP4|TCP6|UNKNOWN|TCP5) ?[0-9a-f:. +\r\n-]{0,110}(\r\n|\n|\r)?".prop_map(String::into_bytes);
    let binary = (any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(command, family, rest)| v2(command & 0x31, family & 0x33, &rest));
    let changed = (0..valid().len(), proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4)).prop_map(
        |(index, changes)| {
            let mut header = valid().swap_remove(index).0;
            for (place, byte) in changes {
                let place = place % header.len();
                header[place] = byte;
            }
            header
        },
    );
    prop_oneof![random, text, binary, changed]
}

proptest! {
    #[test]
    fn random_bytes_are_taken_for_a_header_only_if_they_are_one(mut stream in streams(), rest in any::<[u8; 8]>()) {
        stream.extend(rest);
        if let Ok((_, left)) = receive(&stream) {
            let header = &stream[..stream.len() - left.len()];
            prop_assert!(is_valid(header), "{}", header.escape_ascii());
        }
    }
}
