//! Device certificates over legacy TLS: the same verifier, log lines and results as with rustls.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::*;
use crate::harness::pki::{DAY, OTHER_FACTORY, ca_params, valid};
use crate::harness::socket::Socket;
use crate::harness::{STRANGER, VVX550, eventually};

const OLD: [(&str, &str, &str); 3] = [
    ("legacy", "tls1", "AES128-SHA"),
    ("legacy", "tls1_1", "DHE-RSA-AES128-SHA"),
    ("compatible", "tls1_2", "AES128-SHA"),
];

/// The reason, MAC and status of the log line after `before` others.
fn reported(server: &Running, before: usize) -> (Value, Value, Value) {
    let line = eventually("a line", || server.access_lines().get(before).cloned());
    (line["reason"].clone(), line["mac"].clone(), line["status"].clone())
}

#[test]
fn device_certificates_are_judged_alike_by_both_tls_backends() {
    let site = site_with_each_setting();
    let server = site.start();
    let expired = |since: u32| {
        let mut params = device_params(VVX500);
        valid(&mut params, SystemTime::now() - 800 * DAY, SystemTime::now() - since * DAY);
        FACTORY.issuing.issue_rsa(&params)
    };
    let mut early = device_params(VVX500);
    valid(&mut early, SystemTime::now() + DAY, SystemTime::now() + 800 * DAY);
    let mut server_only = device_params(VVX500);
    server_only.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let below = FACTORY.issuing.below(ca_params("Sub CA")).issue_rsa(&device_params(VVX500));
    // Each with the alert that legacy TLS sends.
    let cases: [(&str, Identity, Option<&str>); 9] = [
        ("good", PHONE.clone(), None),
        ("good, of an ECDSA key", FACTORY.device(VVX500), None),
        ("of an unlisted phone", FACTORY.issuing.issue_rsa(&device_params(STRANGER)), None),
        ("expired", expired(3), Some("certificate expired")),
        ("not valid yet", FACTORY.issuing.issue_rsa(&early), Some("handshake failure")),
        ("for servers", FACTORY.issuing.issue_rsa(&server_only), Some("handshake failure")),
        ("of another factory", OTHER_FACTORY.issuing.issue_rsa(&device_params(VVX500)), Some("unknown ca")),
        ("self-signed", Identity::self_signed(&device_params(VVX500)), Some("unknown ca")),
        ("below a CA that is not sent", below, Some("unknown ca")),
    ];
    for (what, identity, alert) in &cases {
        let before = server.access_lines().len();
        attempt(&site, &server, "modern", Some(identity), "-tls1_2");
        let modern = reported(&server, before);
        assert_eq!(alert.is_some(), modern.2.is_null(), "{what}: {modern:?}");
        for (setting, version, suite) in OLD {
            let before = server.access_lines().len();
            let found = attempt(&site, &server, setting, Some(identity), &only(version, suite));
            let expected = (
                serde_json::from_str(&modern.0.to_string().replace("modern", setting)).unwrap(),
                modern.1.clone(),
                modern.2.clone(),
            );
            assert_eq!(reported(&server, before), expected, "{what}, {version}: {}", found.text);
            // Accepted or refused.
            assert_eq!(server.access_lines()[before]["lane"], "old", "{what}, {version}");
            assert_eq!(found.alert(), *alert, "{what}, {version}: {}", found.text);
        }
    }
}

/// OpenSSL would accept their signatures in the handshake; a key on a weak curve can be broken.
#[test]
fn key_types_unknown_to_rustls_are_refused_in_legacy_tls() {
    let site = site_with_each_setting();
    let server = site.start();
    let reason = "the device certificate's key is neither RSA, nor ECDSA with P-256, P-384 or P-521, nor Ed25519";
    let kinds: [&[&str]; 3] = [
        &["-pkeyopt", "ec_paramgen_curve:secp224r1"],
        &["-pkeyopt", "ec_paramgen_curve:secp256k1"],
        &["-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"],
    ];
    for kind in kinds {
        let arguments = [&["-newkey", "ec"], kind, &["-addext", "basicConstraints=CA:FALSE"]].concat();
        let identity = FACTORY.issuing.issue_by_openssl(&format!("/CN={VVX500}"), &arguments);
        let before = server.access_lines().len();
        let found = attempt(&site, &server, "legacy", Some(&identity), &only("tls1", "AES128-SHA"));
        assert!(!found.is_served(), "{kind:?}: {}", found.text);
        assert_eq!(reported(&server, before), (reason.into(), Value::Null, Value::Null), "{kind:?}");
    }
}

#[test]
fn legacy_tls_verifies_whole_chains_and_refuses_too_long_ones() {
    let site = site_with_each_setting();
    let server = site.start();
    let sub = FACTORY.issuing.below(ca_params("Sub CA"));
    let sent = sub.issue_rsa(&device_params(VVX500)).with(&sub);
    let found = attempt(&site, &server, "legacy", Some(&sent), &only("tls1", "AES128-SHA"));
    assert!(found.is_served(), "{}", found.text);
    // Unrelated certificates change nothing.
    let noise = sent.with(&OTHER_FACTORY.root).with(&FACTORY.root);
    let found = attempt(&site, &server, "legacy", Some(&noise), &only("tls1", "AES128-SHA"));
    assert!(found.is_served(), "{}", found.text);
    let mut ca = FACTORY.issuing.below(ca_params("0"));
    let mut cas: Vec<CertificateDer<'static>> = vec![ca.certificate.der().clone()];
    for depth in 1..12 {
        ca = ca.below(ca_params(&depth.to_string()));
        cas.insert(0, ca.certificate.der().clone());
    }
    let mut deep = ca.issue_rsa(&device_params(VVX500));
    deep.chain.extend(cas);
    let found = attempt(&site, &server, "legacy", Some(&deep), &only("tls1", "AES128-SHA"));
    assert!(!found.is_served() && found.alert().is_some(), "{}", found.text);
}

#[test]
fn legacy_tls_accepts_tolerated_expired_and_pinned_leaves() {
    let site = site_with_each_setting();
    let mut params = device_params(VVX500);
    valid(&mut params, SystemTime::now() - 800 * DAY, SystemTime::now() - DAY);
    let (expired, own) = (FACTORY.issuing.issue_rsa(&params), Identity::self_signed(&device_params(VVX550)));
    let mut tolerant = policy("legacy");
    tolerant["expired_device_certificates"] = "accept".into();
    tolerant["phones"][VVX550] =
        json!({ "note": "", "certificate_sha256": provost::constituency::Fingerprint::of(&own.chain[0]).to_string() });
    site.constituency("legacy", &tolerant);
    let server = site.start();
    for (identity, mac, mark) in [(&expired, VVX500, "/expired-certificate"), (&own, VVX550, "")] {
        let before = server.access_lines().len();
        let found = attempt(&site, &server, "legacy", Some(identity), &only("tls1", "AES128-SHA"));
        assert!(found.is_served(), "{}", found.text);
        let line = eventually("a line", || server.access_lines().get(before).cloned());
        assert_eq!(line["mac"], mac);
        assert_eq!(line["tls"], format!("TLSv1.0/TLS_RSA_WITH_AES_128_CBC_SHA{mark}"));
    }
}

/// A man in the middle that replaces the client's certificate by `certificate` once.
fn man_in_the_middle(server: SocketAddr, certificate: CertificateDer<'static>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut client = Socket::of(listener.accept().unwrap().0).unwrap();
        let mut server = Socket::connect(server).unwrap();
        let mut from_server = Socket::of(server.try_clone().unwrap()).unwrap();
        let mut to_client = Socket::of(client.try_clone().unwrap()).unwrap();
        let back = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_server, &mut to_client);
            let _ = to_client.shutdown(std::net::Shutdown::Both);
        });
        while let Some(record) = record(&mut client) {
            let is_certificate = record[0] == 22 && record.get(5) == Some(&11);
            let sent = if is_certificate { certificate_record(&record, &certificate) } else { record };
            if server.write_all(&sent).is_err() {
                break;
            }
        }
        let _ = server.shutdown(std::net::Shutdown::Write);
        let _ = back.join();
    });
    address
}

fn record(stream: &mut Socket) -> Option<Vec<u8>> {
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).ok()?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    stream.read_exact(&mut record[5..]).ok()?;
    Some(record)
}

/// The Certificate message of `record`, with only `certificate` in it.
fn certificate_record(record: &[u8], certificate: &[u8]) -> Vec<u8> {
    let long = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..], bytes].concat();
    let length = usize::try_from(u32::from_be_bytes([0, record[6], record[7], record[8]])).unwrap();
    let behind = &record[9 + length..];
    let message = [&[11], &long(&long(&long(certificate)))[..], behind].concat();
    [&record[..3], &u16::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
}

/// A chain is public: without its key it proves nothing.
#[test]
fn stolen_certificate_without_its_key_is_refused() {
    let site = site_with_each_setting();
    let server = site.start();
    let thief = FACTORY.issuing.issue_rsa(&device_params(STRANGER));
    for (setting, version, suite) in OLD {
        let before = server.access_lines().len();
        let between = man_in_the_middle(server.address(), PHONE.chain[0].clone());
        let (chain, key) = thief.write(&site.path(""), "thief");
        let name = format!("{setting}.{DOMAIN}");
        let arguments = only(version, suite);
        let mut all = vec!["-servername", &name, "-cert", chain.to_str().unwrap(), "-key", key.to_str().unwrap()];
        all.extend(arguments.split_whitespace());
        let ended = s_client(between, &all, "GET /site.cfg HTTP/1.0\r\n\r\n");
        assert!(!ended.stdout.contains("HTTP/1.1"), "{version}: {}", ended.stdout);
        let (reason, mac, status) = reported(&server, before);
        assert!(mac.is_null() && status.is_null(), "{version}");
        assert!(reason.as_str().unwrap().contains("OpenSSL: "), "{version}: {reason}");
        assert!(!reason.as_str().unwrap().contains("certificate was presented"), "{version}: {reason}");
    }
}
