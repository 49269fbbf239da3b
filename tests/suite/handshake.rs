//! The ClientHello: its fragmentation, the constituency by SNI, and refusals.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use rustls::AlertDescription;
use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::{Client, alert, in_pieces};
use crate::harness::tool::s_client;
use crate::harness::{STRANGER, VVX500, VVX550, eventually};

/// The alert for an unknown name: one record, fatal, `unrecognized_name` (RFC 6066 §3).
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];

/// Two constituencies with different phones and files.
fn two_constituencies() -> Site {
    let site = Site::with_ote();
    site.constituency("prod", &json!({ "trust": ["factory"], "phones": { VVX550: "" }, "aliases": ["old-prod"] }));
    site.file("prod/site.cfg", "<prod/>");
    site
}

/// Sends `bytes`, then nothing more, and reads until the server closes.
fn answer_to(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = Socket::connect(address).unwrap();
    // It may refuse before it has read everything.
    let _ = tcp.write_all(bytes);
    let mut answer = Vec::new();
    // The server may close with unread bytes, which causes a reset.
    match tcp.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => answer,
    }
}

#[test]
fn fragmented_hello_reaches_its_constituency() {
    let site = two_constituencies();
    let server = site.start();
    for size in [1, 5, 50, 200] {
        for (name, mac, content) in [("ote", VVX500, "<site/>"), ("prod", VVX550, "<prod/>")] {
            let client = server.client(name, &FACTORY.device(mac));
            let mut connection = client.connect_in_pieces(size).unwrap_or_else(|error| panic!("{size}: {error}"));
            assert_eq!(connection.get("/site.cfg").unwrap().text(), content, "records of {size} bytes");
        }
        let unknown = server.client("nobody", &FACTORY.device(VVX500));
        assert_eq!(answer_to(server.address(), &in_pieces(&unknown.hello(), size)), UNRECOGNIZED_NAME, "{size}");
    }
}

#[test]
fn hello_sent_byte_by_byte_is_read_before_its_refusal() {
    let site = two_constituencies();
    let server = site.start();
    let mut tcp = Socket::connect(server.address()).unwrap();
    for byte in server.client("nobody", &FACTORY.device(VVX500)).hello() {
        tcp.write_all(&[byte]).unwrap();
    }
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, UNRECOGNIZED_NAME);
}

#[test]
fn unknown_server_name_gets_only_the_alert() {
    let site = two_constituencies();
    let server = site.start();
    let domain = format!("{DOMAIN}.evil.example");
    let names = [
        Some("nobody.phones.example.com"),
        Some(DOMAIN),
        Some("a.ote.phones.example.com"),
        Some("ote.phones.example.org"),
        Some("otexphones.example.com"),
        Some("ote"),
        Some(domain.as_str()),
        None,
    ];
    for name in names {
        let hello = Client::new(server.address(), name).hello();
        assert_eq!(answer_to(server.address(), &hello), UNRECOGNIZED_NAME, "{name:?}");
    }
    server.reason("unknown server name \"a.ote.phones.example.com\"");
    server.reason("no SNI");
    assert_eq!(server.access_lines().iter().filter(|line| !line["constituency"].is_null()).count(), 0);
}

/// The content of `site.cfg` for openssl as a phone with exactly this SNI; `None` if the handshake fails.
fn by_openssl(site: &Site, server: &Running, sni: &[&str], mac: &str) -> Option<String> {
    let (chain, key) = FACTORY.device(mac).write(&site.path(""), mac);
    let arguments = [sni, &["-cert", chain.to_str().unwrap(), "-key", key.to_str().unwrap(), "-quiet"]].concat();
    let host = if mac == VVX500 { "ote" } else { "prod" };
    let request = format!("GET /site.cfg HTTP/1.1\r\nHost: {host}.{DOMAIN}\r\nConnection: close\r\n\r\n");
    let answer = s_client(server.address(), &arguments, &request);
    answer.stdout.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

#[test]
fn server_name_ignores_case_and_one_trailing_dot() {
    let site = two_constituencies();
    let server = site.start();
    for name in
        ["ote.phones.example.com", "OTE.Phones.EXAMPLE.com", "ote.phones.example.com.", "Ote.phones.example.com."]
    {
        let found = by_openssl(&site, &server, &["-servername", name], VVX500);
        assert_eq!(found.as_deref(), Some("<site/>"), "{name}");
    }
    for name in ["OLD-prod.phones.example.com.", "prod.phones.example.com"] {
        let found = by_openssl(&site, &server, &["-servername", name], VVX550);
        assert_eq!(found.as_deref(), Some("<prod/>"), "{name}");
    }
    assert_eq!(by_openssl(&site, &server, &["-servername", "ote.phones.example.com.."], VVX500), None);
}

#[test]
fn alias_serves_its_constituency_until_removed() {
    let site = two_constituencies();
    let server = site.start();
    let phone = server.client("old-prod", &FACTORY.device(VVX550));
    assert_eq!(phone.get("/site.cfg").unwrap().text(), "<prod/>");
    assert_eq!(server.client("old-prod", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 403);
    site.constituency("prod", &json!({ "trust": ["factory"], "phones": { VVX550: "" } }));
    eventually("the alias to go", || {
        let error = phone.get("/site.cfg").err()?;
        (alert(&error) == Some(AlertDescription::UnrecognisedName)).then_some(())
    });
}

#[test]
fn no_sni_constituency_applies_its_policy_to_nameless_clients() {
    let mut site = two_constituencies();
    site.config["no_sni"] = "prod".into();
    let server = site.start();
    let phone = Client::new(server.address(), None).with_identity(&FACTORY.device(VVX550));
    for host in [server.address().to_string(), "127.0.0.1".into(), "[::1]:8443".into(), format!("prod.{DOMAIN}")] {
        let response = phone.clone().host(&host).get("/site.cfg").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "<prod/>"), "{host}");
    }
    for host in [format!("ote.{DOMAIN}"), format!("nobody.{DOMAIN}"), "localhost".into()] {
        let mut connection = phone.clone().host(&host).connect().unwrap();
        assert_eq!(connection.get("/site.cfg").unwrap().status, 421, "{host}");
        assert!(connection.is_closed(), "{host}");
    }
    // If there is a server name, an IP address as Host does not match the constituency.
    let named = server.client("prod", &FACTORY.device(VVX550)).host("127.0.0.1");
    assert_eq!(named.get("/site.cfg").unwrap().status, 421);
    for stranger in [VVX500, STRANGER] {
        let client = Client::new(server.address(), None).with_identity(&FACTORY.device(stranger));
        assert_eq!(client.get("/site.cfg").unwrap().status, 403, "{stranger}");
    }
    assert!(Client::new(server.address(), None).get("/site.cfg").is_err());
    assert_eq!(server.reason("no client certificate was presented")["constituency"], "prod");
}

#[test]
fn ip_address_as_server_name_is_treated_as_no_sni() {
    let mut site = two_constituencies();
    let without = site.start();
    let address = ["-servername", "127.0.0.1"];
    assert_eq!(by_openssl(&site, &without, &address, VVX550), None);
    without.reason("no SNI");
    without.kill();
    site.config["no_sni"] = "prod".into();
    let server = site.start();
    assert_eq!(by_openssl(&site, &server, &address, VVX550).as_deref(), Some("<prod/>"));
    assert_eq!(by_openssl(&site, &server, &["-noservername"], VVX550).as_deref(), Some("<prod/>"));
}

#[test]
fn no_sni_client_is_refused_while_its_constituency_is_broken() {
    let mut site = Site::with_ote();
    site.config["no_sni"] = "legacy".into();
    let server = site.start();
    let nameless = || answer_to(server.address(), &Client::new(server.address(), None).hello());
    assert_eq!(nameless(), UNRECOGNIZED_NAME);
    server.reason("legacy is not served: no such constituency, or its policy is invalid");
    site.file("legacy/constituency.json", "{ broken");
    server.says("legacy/constituency.json");
    assert_eq!(nameless(), UNRECOGNIZED_NAME);
    site.constituency("legacy", &json!({ "client_auth": "none" }));
    site.file("legacy/site.cfg", "<legacy/>");
    let healed =
        eventually("the constituency to be served", || Client::new(server.address(), None).get("/site.cfg").ok());
    assert_eq!(healed.text(), "<legacy/>");
    std::fs::remove_dir_all(site.served("legacy")).unwrap();
    eventually("the constituency to go", || {
        let error = Client::new(server.address(), None).get("/site.cfg").err()?;
        (alert(&error) == Some(AlertDescription::UnrecognisedName)).then_some(())
    });
}

#[test]
fn non_tls_bytes_are_closed_and_logged() {
    let site = Site::with_ote();
    let server = site.start();
    let http: &[u8] = b"GET /site.cfg HTTP/1.1\r\nHost: ote.phones.example.com\r\n\r\n";
    let close_notify = [21, 3, 1, 0, 2, 1, 0];
    let of_many: Vec<u8> = close_notify.repeat(200);
    let zeroes = [0; 4000];
    let too_long: Vec<u8> =
        [22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat_n(7, 70_000)).collect();
    let cases: [(&[u8], &str); 7] = [
        (http, "is not TLS (starts like an HTTP request)"),
        (b"\r\n\r\n\r\n", "is not TLS (starts with \"\\r\\n\\r\\n\\r\\n\")"),
        (&zeroes, "is not TLS (starts with \"\\x00"),
        (&close_notify, "a TLS record of type 21 instead of a ClientHello"),
        (&of_many, "a TLS record of type 21 instead of a ClientHello"),
        (&[22, 3, 1, 0, 4, 2, 0, 0, 0], "a TLS handshake message of type 2 instead of a ClientHello"),
        (&too_long, "ClientHello"),
    ];
    for (bytes, reason) in cases {
        let answer = answer_to(server.address(), bytes);
        assert!(!answer.starts_with(b"HTTP") && answer.len() <= 7, "{reason}: {answer:?}");
        server.reason(reason);
    }
    // More than the server reads, in one message: by the length in its header, and in valid records.
    let announced = [&[1, 2, 0, 0][..], &[7; 12_000]].concat();
    let record = |part: &[u8]| [&[22, 3, 1][..], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
    let long: Vec<u8> = [1, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat_n(7, 66_000)).collect();
    let cases: [(Vec<u8>, &str); 2] = [
        (record(&announced), "ClientHello"),
        (long.chunks(16_000).flat_map(record).collect(), "a ClientHello of 65539 bytes, which is too long"),
    ];
    for (bytes, reason) in cases {
        let before = server.access_lines().len();
        assert_eq!(answer_to(server.address(), &bytes), [21, 3, 3, 0, 2, 2, 50], "{reason}");
        let line = eventually("the line", || server.access_lines().get(before).cloned());
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
    }
    let silent = Socket::connect(server.address()).unwrap();
    silent.shutdown(Shutdown::Write).unwrap();
    server.reason("closed by the client: sent nothing");
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
}

/// Extends `hello`, one record, to a message of `length` bytes by a padding extension (RFC 7685).
fn padded(hello: &[u8], length: usize) -> Vec<u8> {
    let mut message = hello[5..].to_vec();
    let padding = length - message.len() - 4;
    message.extend([0, 21]);
    message.extend(u16::try_from(padding).unwrap().to_be_bytes());
    message.resize(length, 0);
    // Header and version, random, session, suites, compression; then the length of the extensions.
    let session = 4 + 2 + 32;
    let suites = session + 1 + usize::from(message[session]);
    let compression = suites + 2 + usize::from(u16::from_be_bytes([message[suites], message[suites + 1]]));
    let extensions = compression + 1 + usize::from(message[compression]);
    let left = u16::try_from(length - extensions - 2).unwrap().to_be_bytes();
    message[extensions..extensions + 2].copy_from_slice(&left);
    message[2..4].copy_from_slice(&u16::try_from(length - 4).unwrap().to_be_bytes());
    [&[22, 3, 1][..], &u16::try_from(length).unwrap().to_be_bytes(), &message].concat()
}

#[test]
fn hello_of_16_kib_is_answered_and_a_longer_one_refused() {
    let site = Site::with_ote();
    let server = site.start();
    let hello = server.client("ote", &FACTORY.device(VVX500)).hello();
    for (length, size, is_answered) in
        [(16_384, 16_384, true), (16_384, 1, true), (16_384, 5, true), (16_385, 16_384, false), (16_385, 1, false)]
    {
        let mut socket = Socket::connect(server.address()).unwrap();
        let before = server.access_lines().len();
        // The server may refuse before it has read everything.
        let _ = socket.write_all(&in_pieces(&padded(&hello, length), size));
        let mut answer = [0; 7];
        socket.read_exact(&mut answer).unwrap();
        if is_answered {
            assert_eq!(answer[0], 22, "{length} in records of {size}: {answer:?}");
        } else {
            assert_eq!(answer, [21, 3, 3, 0, 2, 2, 50], "{length} in records of {size}");
            let line = eventually("the line", || server.access_lines().get(before).cloned());
            let reason = line["reason"].as_str().unwrap();
            assert_eq!(reason, "a ClientHello of 16385 bytes, which is too long (at most 16384 are accepted)");
        }
        drop(socket);
        eventually("its line", || (server.access_lines().len() > before).then_some(()));
    }
}

#[test]
fn hello_sent_byte_by_byte_is_served() {
    let site = Site::with_ote();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    let mut tls = client.begin().unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    let mut socket = Socket::connect(server.address()).unwrap();
    for byte in hello {
        socket.write_all(&[byte]).unwrap();
    }
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).unwrap();
    }
}

#[test]
fn legacy_client_is_refused_and_its_offer_is_logged() {
    let site = Site::with_ote();
    let server = site.start();
    let sni = ["-servername", "ote.phones.example.com"];
    let cases: [(&[&str], &str); 4] = [
        (&["-tls1", "-cipher", "DEFAULT@SECLEVEL=0"], "offered only TLS 1.0"),
        (&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], "offered only TLS 1.1"),
        (&["-tls1_2", "-cipher", "AES128-SHA"], "offered only RSA key exchange"),
        (&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"], "offered only CBC cipher suites"),
    ];
    for (arguments, reason) in cases {
        let answer = s_client(server.address(), &[&sni, arguments].concat(), "");
        assert_ne!(answer.code, 0, "{reason}: {}", answer.stdout);
        assert!(answer.stdout.contains("Cipher is (NONE)"), "{reason}: {}", answer.stdout);
        server.reason(reason);
    }
}

#[test]
fn handshake_timeout_applies_at_every_stage() {
    let mut site = Site::with_ote();
    site.config["limits"]["handshake_s"] = 1.into();
    let server = site.start();
    let hello = server.client("ote", &FACTORY.device(VVX500)).hello();
    for (beginning, what) in [(&hello[..0], "nothing"), (&hello[..100], "half a hello"), (&hello[..], "a hello alone")]
    {
        let before = server.access_lines().len();
        let answer = answer_to(server.address(), beginning);
        assert_eq!(answer.is_empty(), beginning.len() < hello.len(), "{what}");
        let line = eventually(what, || server.access_lines().get(before).cloned());
        assert_eq!(line["reason"], "the handshake took more than 1 s", "{what}");
    }
}
