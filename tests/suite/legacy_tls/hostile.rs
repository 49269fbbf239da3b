//! Invalid `ClientHello`s at the most permissive setting: the server goes on serving.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::harness::eventually;
use crate::harness::socket::Socket;
use crate::harness::tls::in_pieces;

const HELLOS: [&str; 14] = [
    "default",
    "no-sni",
    "tls13-only",
    "tls12-only",
    "tls11-only",
    "tls10-only",
    "rsa-kx",
    "dhe-kx",
    "dhe-and-rsa-kx",
    "ecdhe-cbc",
    "ecdhe-cbc-rsa-gcm",
    "ecdhe-ccm",
    "sha1-signatures",
    "p521-only",
];

fn hellos() -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/hellos");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), HELLOS.len());
    HELLOS.iter().map(|name| std::fs::read(folder.join(format!("{name}.bin"))).unwrap()).collect()
}

pub(super) fn ote() -> Site {
    let mut site = Site::with_ote();
    site.constituency("ote", &policy("legacy"));
    site.config["no_sni"] = "ote".into();
    std::fs::write(site.path("server-ca.pem"), SERVER_CA.pem()).unwrap();
    site
}

/// Sends only `bytes`, and reads until the server closes.
pub(super) fn answer(server: &Running, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = Socket::connect(server.address()).unwrap();
    // The server may have refused before everything was sent.
    let _ = tcp.write_all(bytes).and_then(|()| tcp.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    match tcp.read_to_end(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => answer,
    }
}

/// Asserts that both TLS libraries serve clients, that no bug was logged, and that every failed handshake has its line.
#[track_caller]
fn assert_healthy(site: &Site, server: &Running, sent: usize) {
    for arguments in ["-tls1 -cipher AES128-SHA:@SECLEVEL=0", "-tls1_3"] {
        let found = attempt(site, server, "ote", Some(&PHONE), arguments);
        assert!(found.is_served(), "{arguments}: {}", found.text);
    }
    assert!(!server.stderr().iter().any(|line| line.contains("panic")), "{:?}", server.stderr());
    eventually("a line for each", || (server.access_lines().len() == sent + 2).then_some(()));
    assert_eq!(server.access_lines().iter().filter(|line| line["status"] == 200).count(), 2);
}

#[test]
fn mutated_hellos_do_not_harm_the_server() {
    let (site, hellos) = (ote(), hellos());
    let server = site.start();
    let cases = 1500;
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let strategy = (
        0..hellos.len(),
        proptest::collection::vec(
            (proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()),
            1..6,
        ),
        proptest::option::of(1_usize..64),
    );
    runner
        .run(&strategy, |(which, changes, pieces)| {
            let mut raw = hellos[which].clone();
            for (at, value) in changes {
                // After the record header, so that the server reads most of it.
                let at = 5 + at.index(raw.len() - 5);
                raw[at] = value;
            }
            let raw = pieces.map_or_else(|| raw.clone(), |size| in_pieces(&raw, size));
            answer(&server, &raw);
            Ok(())
        })
        .unwrap();
    assert_healthy(&site, &server, usize::try_from(cases).unwrap());
}

#[test]
fn truncated_hellos_do_not_harm_the_server() {
    let (site, hellos) = (ote(), hellos());
    let server = site.start();
    let mut sent = 0;
    for hello in &hellos {
        for length in (0..hello.len()).step_by(7) {
            assert!(answer(&server, &hello[..length]).is_empty(), "{length} bytes");
            sent += 1;
        }
    }
    assert!(sent > 300, "{sent}");
    assert_healthy(&site, &server, sent);
}

/// After the ClientHello, OpenSSL reads the bytes alone: records of any kind, wrong lengths, endless certificates.
#[test]
fn garbage_after_a_legacy_hello_does_not_harm_the_server() {
    let (site, hellos) = (ote(), hellos());
    let server = site.start();
    let record =
        |kind: u8, body: &[u8]| [&[kind, 3, 1][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat();
    let many_certificates: Vec<u8> = {
        let certificate = &FACTORY.root.certificate.der()[..];
        let long = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..], bytes].concat();
        let list = long(certificate).repeat(150);
        let message = [&[11], &long(&long(&list))[..]].concat();
        message.chunks(16_000).flat_map(|chunk| record(22, chunk)).collect()
    };
    let cases: [Vec<u8>; 12] = [
        record(22, &[11, 0, 0, 3, 0, 0, 0]),
        record(22, &[11, 0xff, 0xff, 0xff]),
        record(22, &[16, 0, 1, 2, 1, 0]),
        record(20, &[1]),
        record(20, &[1]).repeat(50),
        record(21, &[1, 0]),
        record(21, &[1, 90]).repeat(300),
        record(21, &[2, 42]),
        record(23, b"GET /site.cfg HTTP/1.1\r\n\r\n"),
        record(22, &[1, 0, 0, 0]),
        [&[22, 3, 1, 0xff, 0xff][..], &vec![0; 70_000]].concat(),
        many_certificates,
    ];
    let old = ["tls10-only", "tls11-only", "rsa-kx", "dhe-kx", "ecdhe-cbc"];
    let mut sent = 0;
    for name in old {
        let hello = &hellos[HELLOS.iter().position(|known| *known == name).unwrap()];
        for case in &cases {
            let found = answer(&server, &[hello, case.as_slice()].concat());
            assert_eq!(found.first(), Some(&22), "{name}: the hello itself is good");
            sent += 1;
        }
    }
    assert_eq!(sent, 60);
    assert_healthy(&site, &server, sent);
}

#[test]
fn reset_during_a_handshake_is_logged_alike_by_both_backends() {
    let (site, hellos) = (ote(), hellos());
    let server = site.start();
    let cases = [("tls13-only", "modern"), ("tls12-only", "modern"), ("tls10-only", "old"), ("rsa-kx", "old")];
    for (at, (name, lane)) in cases.into_iter().enumerate() {
        let mut tcp = Socket::connect(server.address()).unwrap();
        tcp.write_all(&hellos[HELLOS.iter().position(|known| *known == name).unwrap()]).unwrap();
        let mut first = [0];
        tcp.read_exact(&mut first).unwrap();
        assert_eq!(first, [22], "{name}: the {lane} lane takes the hello");
        // A reset, without any alert.
        socket2::SockRef::from(&*tcp).set_linger(Some(Duration::ZERO)).unwrap();
        drop(tcp);
        let line = eventually("its line", || server.access_lines().get(at).cloned());
        assert_eq!(line["reason"], "Connection reset by peer (os error 104)", "{name}, {lane} lane: {line}");
        assert_eq!(line["lane"] == "old", lane == "old", "{name}: {line}");
    }
}
