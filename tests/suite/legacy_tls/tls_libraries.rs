//! The choice between rustls and OpenSSL for each client, and the separation of libraries and constituencies.

use std::io::{Read, Write};
use std::process::Command;

use rustls::AlertDescription;
use rustls::version::{TLS12, TLS13};

use super::*;
use crate::harness::eventually;
use crate::harness::pki::named;
use crate::harness::socket::Socket;
use crate::harness::tls::{Client, alert};
use crate::harness::tool::{provost, run};

type Agreed = Result<(u16, u16), u8>;

/// The captured hellos, each with the answer at the setting legacy: version and suite of the `ServerHello`, or the
/// alert.
const HELLOS: [(&str, Agreed); 14] = [
    ("default", Ok((0x0303, 0x1301))),
    ("no-sni", Ok((0x0303, 0x1301))),
    ("tls13-only", Ok((0x0303, 0x1301))),
    ("tls12-only", Ok((0x0303, 0xc02b))),
    ("tls11-only", Ok((0x0302, 0xc013))),
    ("tls10-only", Ok((0x0301, 0xc013))),
    ("rsa-kx", Ok((0x0303, 0x009c))),
    ("dhe-kx", Ok((0x0303, 0x009e))),
    ("dhe-and-rsa-kx", Ok((0x0303, 0x009e))),
    ("ecdhe-cbc", Ok((0x0303, 0xc013))),
    ("ecdhe-cbc-rsa-gcm", Ok((0x0303, 0xc013))),
    ("ecdhe-ccm", Err(40)),
    ("sha1-signatures", Err(40)),
    ("p521-only", Err(40)),
];

fn captured(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/suite/hellos/{name}.bin"));
    std::fs::read(path).unwrap()
}

/// Sends `hello` and returns the first record of the answer.
pub(super) fn first_record(server: &Running, hello: &[u8]) -> Vec<u8> {
    let mut tcp = Socket::connect(server.address()).unwrap();
    tcp.write_all(hello).unwrap();
    let mut record = vec![0; 5];
    tcp.read_exact(&mut record).unwrap();
    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
    tcp.read_exact(&mut record[5..]).unwrap();
    record
}

/// Version, random and suite of a `ServerHello`, or the alert instead.
fn answer(record: &[u8]) -> Result<(u16, [u8; 32], u16), u8> {
    match record {
        [21, _, _, 0, 2, 2, alert] => Err(*alert),
        [22, _, _, _, _, 2, _, _, _, high, low, rest @ ..] => {
            let (random, rest) = rest.split_first_chunk().unwrap();
            let suite = &rest[1 + usize::from(rest[0])..][..2];
            Ok((u16::from_be_bytes([*high, *low]), *random, u16::from_be_bytes([suite[0], suite[1]])))
        }
        other => panic!("neither a ServerHello nor an alert: {other:02x?}"),
    }
}

/// The hellos contain the server name of a constituency `ote`.
fn ote(setting: &str) -> Site {
    let mut site = Site::with_ote();
    site.constituency("ote", &policy(setting));
    site.config["no_sni"] = "ote".into();
    site
}

#[test]
fn captured_hellos_get_the_expected_version_and_suite() {
    let site = ote("legacy");
    let server = site.start();
    for (name, expected) in HELLOS {
        let found = answer(&first_record(&server, &captured(name)));
        assert_eq!(found.map(|(version, _, suite)| (version, suite)), expected, "{name}");
    }
}

/// RFC 8446 §4.1.3: a server that negotiates an older version than it supports marks it in the last bytes of the
/// random.
#[test]
fn server_random_carries_the_downgrade_marker() {
    let site = ote("legacy");
    let server = site.start();
    for (name, mark) in [
        ("rsa-kx", b"DOWNGRD\x01"),
        ("dhe-kx", b"DOWNGRD\x01"),
        ("tls12-only", b"DOWNGRD\x01"),
        ("tls11-only", b"DOWNGRD\x00"),
        ("tls10-only", b"DOWNGRD\x00"),
    ] {
        let (_, random, _) = answer(&first_record(&server, &captured(name))).unwrap();
        assert_eq!(&random[24..], mark, "{name}");
    }
}

#[test]
fn modern_clients_are_served_by_rustls_at_every_setting() {
    let site = site_with_each_setting();
    let server = site.start();
    let (chain, key) = PHONE.write(&site.path(""), "phone");
    let mut seen = 0;
    for setting in SETTINGS {
        for version in [&TLS12, &TLS13] {
            let client =
                Client::new(server.address(), Some(&format!("{setting}.{DOMAIN}"))).only(version, Some(&PHONE));
            assert_eq!(client.get("/site.cfg").unwrap().status, 200, "{setting}");
            seen += 1;
        }
        // Clients that offer old suites beside modern ones.
        for arguments in
            ["", "-tls1_2", "-no_tls1_3 -cipher ALL:@SECLEVEL=0", "-cipher ALL:COMPLEMENTOFALL:@SECLEVEL=0"]
        {
            let found = attempt(&site, &server, setting, Some(&PHONE), arguments);
            assert!(found.is_served(), "{setting} {arguments}: {}", found.text);
            seen += 1;
        }
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--cacert"]).arg(site.path("server-ca.pem"));
        curl.arg("--cert").arg(&chain).arg("--key").arg(&key).args(["--tls-max", "1.2"]);
        curl.args([
            "--connect-to",
            &format!("::{}", server.address()),
            &format!("https://{setting}.{DOMAIN}/site.cfg"),
        ]);
        assert_eq!(run(&mut curl).stdout, format!("<{setting}/>"));
        seen += 1;
    }
    eventually("all lines", || (server.access_lines().len() == seen).then_some(()));
    for line in server.access_lines() {
        assert!(line["lane"].is_null() && line["status"] == 200, "{line}");
    }
}

#[test]
fn legacy_tls_selects_by_sni_and_requires_a_matching_host() {
    let mut site = site_with_each_setting();
    site.config["no_sni"] = "compatible".into();
    let server = site.start();
    // A client that another constituency serves may be refused here.
    for name in ["modern", "compatible"] {
        assert_eq!(attempt(&site, &server, name, Some(&PHONE), OLD).alert(), Some("protocol version"), "{name}");
    }
    assert!(attempt(&site, &server, "legacy", Some(&PHONE), OLD).is_served());
    for host in ["compatible", "open", "nobody"] {
        let host = format!("{host}.{DOMAIN}");
        let found = attempt_as(&site, &server, "legacy", &host, Some(&PHONE), OLD);
        assert_eq!(found.status(), Some(421), "{host}: {}", found.text);
    }
    let unknown = attempt(&site, &server, "nobody", Some(&PHONE), OLD);
    assert!(unknown.text.contains("unrecognized name"), "{}", unknown.text);
    server.reason("offered only TLS 1.0; unknown server name \"nobody.phones.example.com\"");
    // Without SNI, the constituency of `no_sni` applies with its whole policy.
    let nameless = "-noservername -tls1_2 -cipher AES128-SHA:@SECLEVEL=0";
    let found = attempt(&site, &server, "compatible", Some(&PHONE), nameless);
    assert!(found.text.contains("<compatible/>"), "{}", found.text);
    let found = attempt(&site, &server, "compatible", Some(&PHONE), &format!("-noservername {OLD}"));
    assert_eq!(found.alert(), Some("protocol version"), "{}", found.text);
    let found = attempt_as(&site, &server, "legacy", &format!("legacy.{DOMAIN}"), Some(&PHONE), nameless);
    assert_eq!(found.status(), Some(421), "{}", found.text);
}

#[test]
fn legacy_tls_normalizes_the_server_name() {
    let mut site = site_with_each_setting();
    site.config["no_sni"] = "legacy".into();
    let server = site.start();
    for name in ["LEGACY.Phones.example.com", "legacy.phones.example.com.", "127.0.0.1"] {
        let arguments = format!("-noservername {OLD} -servername {name}");
        let found = attempt(&site, &server, "legacy", Some(&PHONE), &arguments.replacen("-noservername ", "", 1));
        assert!(found.is_served(), "{name}: {}", found.text);
    }
}

#[test]
fn legacy_tls_session_is_never_resumed() {
    let site = site_with_each_setting();
    let server = site.start();
    let session = site.path("session.pem");
    for (version, suite) in [("tls1", "AES128-SHA"), ("tls1_1", "DHE-RSA-AES128-SHA"), ("tls1_2", "AES128-GCM-SHA256")]
    {
        let arguments = format!("{} -sess_out {}", only(version, suite), session.display());
        let found = attempt(&site, &server, "legacy", Some(&PHONE), &arguments);
        assert!(found.is_served(), "{version}: {}", found.text);
        // Neither a session ID nor a ticket: the client cannot resume anything.
        let id = found.text.lines().find_map(|line| line.trim().strip_prefix("Session-ID:")).unwrap();
        assert!(id.trim().is_empty() && !found.text.contains("session ticket"), "{version}: {}", found.text);
        assert!(!session.exists(), "{version}");
    }
    // Nor does the other library resume it, or a constituency that requires a certificate.
    let modern = format!("-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256 -sess_out {}", session.display());
    assert!(attempt(&site, &server, "open", None, &modern).is_served());
    assert!(session.exists());
    let old = format!("-tls1_2 -cipher AES128-SHA:@SECLEVEL=0 -sess_in {}", session.display());
    let found = attempt(&site, &server, "legacy", None, &old);
    assert_eq!(found.status(), None, "{}", found.text);
    server.reason("no client certificate was presented");
}

#[test]
fn legacy_tls_refuses_renegotiation_and_compression() {
    let site = site_with_each_setting();
    let server = site.start();
    for (version, suite) in [("tls1", "AES128-SHA"), ("tls1_2", "AES128-GCM-SHA256")] {
        let (chain, key) = PHONE.write(&site.path(""), "phone");
        let name = format!("legacy.{DOMAIN}");
        let mut child = Command::new("timeout");
        child.args(["20", "openssl", "s_client", "-connect", &server.address().to_string(), "-servername", &name]);
        child.arg("-cert").arg(chain).arg("-key").arg(key).args(only(version, suite).split(' '));
        child.env("OPENSSL_CONF", "/dev/null").stdin(std::process::Stdio::piped());
        child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        // A line with R makes openssl request a renegotiation.
        child.stdin.as_mut().unwrap().write_all(b"R\n").unwrap();
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{version}: {said}");
        assert!(said.contains("Compression: NONE") && said.contains("Secure Renegotiation IS supported"), "{said}");
    }
}

/// RFC 7507: a client that falls back to an older version after a failed handshake is refused.
#[test]
fn fallback_scsv_is_refused() {
    let site = site_with_each_setting();
    let server = site.start();
    for (setting, version, suite) in
        [("legacy", "tls1", "AES128-SHA"), ("legacy", "tls1_1", "AES128-SHA"), ("compatible", "tls1_2", "AES128-SHA")]
    {
        let arguments = format!("{} -fallback_scsv", only(version, suite));
        let found = attempt(&site, &server, setting, Some(&PHONE), &arguments);
        assert!(found.text.contains("inappropriate fallback"), "{version}: {}", found.text);
        assert!(!found.is_served());
    }
}

#[test]
fn legacy_tls_alpn_negotiates_http_1_1_or_http_1_0() {
    let site = site_with_each_setting();
    let server = site.start();
    for (offered, agreed) in [
        ("h2,http/1.1", "http/1.1"),
        ("http/1.0", "http/1.0"),
        ("http/0.9,http/1.0", "http/1.0"),
        ("http/1.0,http/1.1", "http/1.1"),
    ] {
        let found = attempt(&site, &server, "legacy", Some(&PHONE), &format!("{OLD} -alpn {offered}"));
        let is_agreed = found.text.contains(&format!("ALPN protocol: {agreed}"));
        assert!(found.is_served() && is_agreed, "{offered}: {}", found.text);
    }
    let found = attempt(&site, &server, "legacy", Some(&PHONE), &format!("{OLD} -alpn h2"));
    assert!(found.text.contains("no application protocol"), "{}", found.text);
    let line = server.reason("offered only h2 as application protocol");
    assert_eq!((&line["lane"], &line["constituency"]), (&"old".into(), &"legacy".into()), "{line}");
}

#[test]
fn legacy_tls_without_an_rsa_certificate_is_refused_and_logged() {
    let mut site = site_with_each_setting();
    site.config["certificate"]["files"].as_array_mut().unwrap().remove(0);
    let server = site.start();
    assert_eq!(attempt(&site, &server, "legacy", Some(&PHONE), OLD).alert(), Some("protocol version"));
    server.reason("; legacy TLS needs an RSA server certificate, and there is none");
    assert_eq!(attempt(&site, &server, "modern", Some(&PHONE), OLD).alert(), Some("protocol version"));
    server.reason("; \"tls\": \"legacy\" of modern and an RSA server certificate would accept it");
    assert!(attempt(&site, &server, "legacy", Some(&PHONE), "-tls1_2").is_served());
}

#[test]
fn handshake_timeout_applies_to_legacy_tls() {
    let mut site = ote("legacy");
    site.config["limits"]["handshake_s"] = 1.into();
    let server = site.start();
    let mut tcp = Socket::connect(server.address()).unwrap();
    tcp.write_all(&captured("tls10-only")).unwrap();
    let mut all = Vec::new();
    tcp.read_to_end(&mut all).unwrap();
    assert_eq!(answer(&all).map(|(version, ..)| version), Ok(0x0301));
    server.reason("the handshake took more than 1 s");
}

#[test]
fn rustls_sends_certificate_required_at_the_legacy_setting() {
    let site = site_with_each_setting();
    let server = site.start();
    let error =
        Client::new(server.address(), Some(&format!("legacy.{DOMAIN}"))).connect().unwrap().get("/").unwrap_err();
    assert_eq!(alert(&error), Some(AlertDescription::CertificateRequired));
}

#[test]
fn legacy_tls_serves_the_exact_certificate() {
    let mut site = site_with_each_setting();
    let mut exact = policy("legacy");
    exact["certificate_names"] = "exact".into();
    site.constituency("legacy", &exact);
    let mut params = rcgen::CertificateParams::new(vec![format!("legacy.{DOMAIN}")]).unwrap();
    params.distinguished_name = named("legacy");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    SERVER_CA.issue_rsa(&params).write(&site.path(""), "own");
    let files = site.config["certificate"]["files"].as_array_mut().unwrap();
    files.push(json!({ "chain": "own.pem", "key": "own.key" }));
    let server = site.start();
    for (setting, shown) in [("legacy", "legacy.phones.example.com"), ("compatible", "*.phones.example.com")] {
        for arguments in ["-tls1_2 -cipher AES128-SHA:@SECLEVEL=0", "-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256"] {
            let found = attempt(&site, &server, setting, Some(&PHONE), arguments);
            assert!(found.is_served(), "{setting} {arguments}: {}", found.text);
            assert!(
                found.text.contains(&format!("Verified peername: {shown}\n")),
                "{setting} {arguments}: {}",
                found.text
            );
        }
    }
}

/// The printed settings make a client modern that supports those suites.
#[test]
fn printed_cipher_settings_make_a_phone_use_rustls() {
    let site = site_with_each_setting();
    let server = site.start();
    let config = site.write_config();
    let print = |arguments: &[&str]| {
        let common = ["print", "phone-config", "--config", config.to_str().unwrap(), "--constituency", "legacy"];
        provost(&site.path(""), &[&common[..], &["--ca", "server-ca.pem"], arguments].concat()).stdout
    };
    assert!(!print(&[]).contains("cipherSuite"));
    let printed = print(&["--modern-tls"]);
    let document = roxmltree::Document::parse(&printed).unwrap();
    let tls = document.descendants().find(|node| node.has_tag_name("tls")).unwrap_or_else(|| panic!("{printed}"));
    let of = |name: &str| (tls.attribute(format!("{name}.set").as_str()), tls.attribute(name));
    assert_eq!(of("device.sec.TLS.protocol.prov"), (Some("1"), Some("TLSv1_2")));
    assert_eq!(of("device.sec.TLS.profile.cipherSuiteDefault1"), (Some("1"), Some("0")));
    assert_eq!(of("device.sec.TLS.profileSelection.provisioning"), (Some("1"), Some("PlatformProfile1")));
    let (set, suites) = of("device.sec.TLS.profile.cipherSuite1");
    let suites = suites.filter(|_| set == Some("1")).unwrap();
    for setting in SETTINGS {
        let found = attempt(&site, &server, setting, Some(&PHONE), &only("tls1_2", suites));
        assert_eq!(found.agreed(), Some(("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256")), "{setting}: {}", found.text);
    }
    eventually("three lines", || (server.access_lines().len() == 3).then_some(()));
    assert!(server.access_lines().iter().all(|line| line["lane"].is_null()));
    // A client that supports only the last of them still has a suite.
    let found = attempt(&site, &server, "legacy", Some(&PHONE), &only("tls1", suites));
    assert!(found.is_served(), "{}", found.text);
}
