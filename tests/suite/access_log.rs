//! The access log: one line for each request and each refused handshake, whatever bytes a client sends.

use std::io::{Read, Write};
use std::time::SystemTime;

use rcgen::DnType;
use serde_json::Value;

use crate::harness::pki::{DAY, FACTORY, Identity, OTHER_FACTORY, device_params, valid};
use crate::harness::site::{Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::Client;
use crate::harness::{STRANGER, TIMEOUT, VVX500, eventually};

const KEYS: [&str; 12] = [
    "time",
    "address",
    "constituency",
    "mac",
    "method",
    "path",
    "status",
    "bytes",
    "duration_ms",
    "user_agent",
    "reason",
    "tls",
];

fn start_with_log(site: &Site, format: &str) -> Running {
    let mut command = site.command();
    command.args(["--log", format]);
    Running::start(command, 1)
}

/// A device certificate whose subject contains line breaks and terminal escapes.
fn hostile_device() -> Identity {
    let mut params = device_params(VVX500);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "x\n{\"forged\":1}\u{1b}[2J\" reason=\"ok\u{202e}");
    FACTORY.issuing.issue(&params)
}

/// Sends a ClientHello whose server name is replaced by `name`, and waits for the end.
fn hello_with_server_name(server: &Running, name: &[u8]) {
    let mut hello = include_bytes!("hellos/default.bin").to_vec();
    let usual = b"ote.phones.example.com";
    let at = hello.windows(usual.len()).position(|window| window == usual).expect("the hello names ote");
    let end = at + name.len();
    assert!(name.len() <= usual.len());
    hello[at..end].copy_from_slice(name);
    let mut tcp = Socket::connect(server.address()).unwrap();
    tcp.write_all(&hello).unwrap();
    let mut rest = Vec::new();
    let _ = tcp.read_to_end(&mut rest);
}

/// Sends hostile bytes in every way that an unauthenticated client can. Returns the number of log lines to expect.
fn attack(server: &Running) -> usize {
    let phone = || server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    let requests: [&[u8]; 6] = [
        b"GET /site.cfg HTTP/1.1\r\nHost: ote.phones.example.com\r\nUser-Agent: \"\\ \xff\xc2\x9b2J\t\" reason=\"x\r\n\r\n",
        b"GET /a%0d%0a%1b[2J HTTP/1.1\r\nHost: ote.phones.example.com\r\n\r\n",
        b"GET /\"\\\xff?\"q HTTP/1.1\r\nHost: ote.phones.example.com\r\n\r\n",
        b"GET /site.cfg HTTP/1.1\r\nHost: \"\x9b\xff\r\n\r\n",
        b"GET /\x1b[2J HTTP/1.1\r\nHost: ote.phones.example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nX\x1b: \n{\"forged\":1}\r\n\r\n",
    ];
    for request in requests {
        let mut connection = phone();
        connection.send(request).unwrap();
        connection.response("GET").unwrap();
    }
    // In TLS 1.3, a refused certificate shows only after the handshake.
    let hostile = server.client("ote", &hostile_device()).get("/site.cfg");
    assert_eq!(hostile.unwrap().status, 403);
    let names: [&[u8]; 3] = [b"x\n{\"forged\":1}", b"\x1b[2J\xff\"reason\\", b"nobody"];
    for name in names {
        hello_with_server_name(server, name);
    }
    let mut tcp = Socket::connect(server.address()).unwrap();
    tcp.write_all(b"GET / HTTP/1.0\r\n\r\n\x1b[2J\n").unwrap();
    let _ = tcp.read_to_end(&mut Vec::new());
    requests.len() + 1 + names.len() + 1
}

#[test]
fn request_is_logged_as_one_json_line_with_every_key() {
    let site = Site::with_ote();
    let server = site.start();
    let mut phone = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    let agent = "FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application";
    phone.request("GET", "/site.cfg?a=b", &format!("User-Agent: {agent}\r\n"), b"").unwrap();
    let line = server.access("the request", |_| true);
    let keys = line.as_object().unwrap().keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(keys, KEYS.into_iter().collect());
    for (key, value) in [
        ("constituency", "ote"),
        ("mac", VVX500),
        ("method", "GET"),
        ("path", "/site.cfg?a=b"),
        ("user_agent", agent),
        ("tls", "TLSv1.3/TLS13_AES_128_GCM_SHA256"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!((&line["status"], &line["bytes"], &line["reason"]), (&200.into(), &7.into(), &Value::Null));
    let local = phone.tcp().local_addr().unwrap();
    assert_eq!(line["address"], local.to_string());
    let time =
        time::OffsetDateTime::parse(line["time"].as_str().unwrap(), &time::format_description::well_known::Rfc3339);
    assert!((time::OffsetDateTime::now_utc() - time.unwrap()).abs() < TIMEOUT, "{line}");
    assert!((0.0..20_000.0).contains(&line["duration_ms"].as_f64().unwrap()), "{line}");
}

#[test]
fn each_request_and_rejected_handshake_is_logged_once() {
    let site = Site::with_ote();
    let server = site.start();
    let mut phone = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    for _ in 0..5 {
        phone.get("/site.cfg").unwrap();
    }
    phone.request("PUT", "/00005e00530c-app.log", "", b"x").unwrap();
    let old =
        server.client("ote", &FACTORY.device(STRANGER)).only(&rustls::version::TLS12, Some(&FACTORY.device(STRANGER)));
    old.get("/site.cfg").unwrap();
    server.client("ote", &OTHER_FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
    Client::new(server.address(), Some("nobody.phones.example.com")).get("/").unwrap_err();
    let lines = eventually("every line", || Some(server.access_lines()).filter(|lines| lines.len() >= 9));
    assert_eq!(lines.len(), 9, "{lines:?}");
    let count = |is_it: &dyn Fn(&Value) -> bool| lines.iter().filter(|line| is_it(line)).count();
    assert_eq!(count(&|line| line["path"] == "/site.cfg" && line["status"] == 200), 5);
    assert_eq!(count(&|line| line["method"] == "PUT" && line["status"] == 201), 1);
    let is_tls12 = |line: &Value| line["tls"].as_str().is_some_and(|tls| tls.starts_with("TLSv1.2/TLS_ECDHE_"));
    assert_eq!(count(&|line| line["status"] == 403 && line["mac"] == STRANGER && is_tls12(line)), 1);
    let is_refused = |line: &Value| line["method"].is_null() && line["status"].is_null() && line["tls"].is_null();
    assert_eq!(count(&|line| is_refused(line) && line["reason"].as_str().unwrap().contains("not trusted")), 1);
    assert_eq!(count(&|line| is_refused(line) && line["constituency"].is_null()), 1);
}

#[test]
fn hostile_bytes_cannot_break_a_json_log_line() {
    let site = Site::with_ote();
    let server = start_with_log(&site, "json");
    let expected = attack(&server);
    let lines = eventually("every line", || Some(server.stdout()).filter(|lines| lines.len() >= expected));
    assert_eq!(lines.len(), expected, "{lines:#?}");
    for line in &lines {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        assert_eq!(value.as_object().unwrap().len(), KEYS.len(), "{line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    let agent = server.access("the agent", |line| line["path"] == "/site.cfg" && line["status"] == 200);
    assert_eq!(agent["user_agent"], r"\x22\x5C \xFF\xC2\x9B2J\x09\x22 reason=\x22x");
    assert!(!server.stderr().iter().any(|line| line.contains("forged")), "{:?}", server.stderr());
}

#[test]
fn hostile_bytes_cannot_break_a_text_log_line() {
    let site = Site::with_ote();
    let server = start_with_log(&site, "text");
    let expected = attack(&server);
    let lines = eventually("every line", || Some(server.stdout()).filter(|lines| lines.len() >= expected));
    assert_eq!(lines.len(), expected, "{lines:#?}");
    for line in &lines {
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
        assert!(line.starts_with("20") && line.contains("Z 127.0.0.1:"), "{line}");
        assert!(!line.contains("\"forged"), "quotes are escaped: {line}");
    }
}

#[test]
fn text_format_states_status_user_agent_tls_and_reason() {
    let site = Site::with_ote();
    let server = start_with_log(&site, "text");
    let phone = server.client("ote", &FACTORY.device(VVX500));
    phone.request("GET", "/site.cfg", "User-Agent: Polycom\r\n", b"").unwrap();
    phone.get("/00005e0053c7.cfg").unwrap();
    let lines = eventually("two lines", || Some(server.stdout()).filter(|lines| lines.len() == 2));
    let words: Vec<&str> = lines[0].split(' ').collect();
    assert_eq!(words[2..=7], ["ote", VVX500, "\"GET", "/site.cfg\"", "200", "7"], "{lines:?}");
    assert_eq!(words[9..], ["\"Polycom\"", "TLSv1.3/TLS13_AES_128_GCM_SHA256"], "{lines:?}");
    let reason = " reason=\"the path holds 00005e0053c7, a MAC address on no list, \
                  so the file is served to no phone unless 'common' names it\"";
    assert!(lines[1].contains("\"GET /00005e0053c7.cfg\" 403 ") && lines[1].ends_with(reason), "{lines:?}");
}

#[test]
fn accepted_expired_certificate_is_marked_in_json_and_text() {
    let site = Site::with_ote();
    let policy = serde_json::json!({
        "trust": ["factory"], "phones": "any", "expired_device_certificates": "accept",
    });
    site.constituency("ote", &policy);
    let mut params = device_params(VVX500);
    valid(&mut params, SystemTime::now() - 800 * DAY, SystemTime::now() - DAY);
    let expired = FACTORY.issuing.issue(&params);
    for format in ["json", "text"] {
        let server = start_with_log(&site, format);
        for device in [&expired, &FACTORY.device(VVX500)] {
            assert_eq!(server.client("ote", device).get("/site.cfg").unwrap().status, 200);
        }
        let lines = eventually("both lines", || Some(server.stdout()).filter(|lines| lines.len() == 2));
        let marked = lines.iter().filter(|line| line.contains("TLS13_AES_128_GCM_SHA256/expired-certificate"));
        assert_eq!(marked.count(), 1, "{lines:?}");
    }
}
