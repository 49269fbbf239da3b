//! Plain HTTP on a trusted LAN: which files it serves, to which networks, and within which limits.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{VVX500, VVX550, eventually, within_a_second};

/// A site with plain HTTP for 127.0.0.0/24, enabled for `ote` and not for `other`, which has the same files.
fn site() -> Site {
    let mut site = Site::new();
    site.config["plain_http"] = json!({ "listen": "127.0.0.1:0", "networks": ["127.0.0.0/24"] });
    for (name, is_open) in [("ote", true), ("other", false)] {
        site.constituency(name, &policy(is_open));
        site.file(&format!("{name}/site.cfg"), "<site/>");
    }
    site
}

fn policy(is_open: bool) -> Value {
    json!({ "trust": ["factory"], "phones": { VVX500: "" }, "plain_http": is_open })
}

fn start(site: &Site) -> Running {
    Running::start(site.command(), 2)
}

/// The address for plain HTTP.
fn plain(server: &Running) -> SocketAddr {
    server.addresses[1]
}

/// curl, which requests `path` of `name`.
fn curl(server: &Running, name: &str, path: &str, arguments: &[&str]) -> Ended {
    let (host, port) = (format!("{name}.{DOMAIN}"), plain(server).port());
    let mut command = Command::new("curl");
    command.args(["-sS", "--path-as-is", "--resolve", &format!("{host}:{port}:127.0.0.1")]);
    run(command.arg(format!("http://{host}:{port}{path}")).args(arguments))
}

fn status(server: &Running, path: &str, arguments: &[&str]) -> u16 {
    let ended = curl(server, "ote", path, &[&["-o", "/dev/null", "-w", "%{http_code}"], arguments].concat());
    ended.stdout.parse().unwrap_or_else(|_| panic!("{path}: {ended:?}"))
}

/// A connection for raw requests.
struct Raw(Socket);

impl Raw {
    fn connect(server: &Running) -> Self {
        let stream = Socket::connect(plain(server)).unwrap();
        Self(stream)
    }

    /// Requests `path` with these whole header lines; returns the status and the rest of the head.
    fn ask(&mut self, path: &str, headers: &str) -> (u16, String) {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes()).unwrap();
        self.head()
    }

    /// Reads one response; returns the status and the rest of the head.
    fn head(&mut self) -> (u16, String) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(|it| it.parse().unwrap()));
        self.0.read_exact(&mut vec![0; length.unwrap_or(0)]).unwrap();
        (status, head)
    }

    fn status(&mut self, host: &str) -> u16 {
        self.ask("/site.cfg", &format!("Host: {host}\r\n")).0
    }

    /// The same; `None` if the server closes the connection instead. The rest of the response stays unread.
    fn try_status(&mut self, host: &str) -> Option<u16> {
        let mut line = [0; "HTTP/1.1 200".len()];
        write!(self.0, "GET /site.cfg HTTP/1.1\r\nHost: {host}\r\n\r\n").ok()?;
        self.0.read_exact(&mut line).ok()?;
        std::str::from_utf8(&line).ok()?.rsplit(' ').next()?.parse().ok()
    }

    /// Whether the server closes it within the timeout.
    fn is_closed(&mut self) -> bool {
        let ended = self.0.read_to_end(&mut Vec::new());
        ended.map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |_| true)
    }
}

fn host(name: &str) -> String {
    format!("{name}.{DOMAIN}")
}

#[test]
fn plain_http_serves_only_files_without_a_mac() {
    let site = site();
    let firmware: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    site.file("ote/firmware/sip.ld", &firmware);
    site.file(&format!("ote/{VVX500}.cfg"), "secret");
    site.file("ote/logs/00-00-5E-00-53-0C/a.cfg", "secret");
    site.file("ote/.hidden", "secret");
    symlink(format!("{VVX500}.cfg"), site.served("ote/kitchen.cfg")).unwrap();
    let server = start(&site);
    assert_eq!(curl(&server, "ote", "/site.cfg", &[]).stdout, "<site/>");
    let fetched = site.path("fetched");
    assert_eq!(curl(&server, "ote", "/firmware/sip.ld", &["-o", fetched.to_str().unwrap()]).code, 0);
    assert_eq!(std::fs::read(&fetched).unwrap(), firmware);
    assert_eq!(curl(&server, "ote", "/site.cfg", &["-r", "1-4"]).stdout, "site");
    let head = curl(&server, "ote", "/site.cfg", &["-I"]).stdout;
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: 7\r\n"), "{head}");

    let upper = format!("/{}.cfg", VVX500.to_uppercase());
    let (own, others) = (format!("/{VVX500}.cfg"), format!("/{VVX550}.cfg"));
    let absent = [
        &own,
        &upper,
        &others,
        "/logs/00-00-5E-00-53-0C/a.cfg",
        "/.hidden",
        "/constituency.json",
        "/kitchen.cfg",
        "/firmware/",
        "/absent",
    ];
    for path in absent {
        assert_eq!((status(&server, path, &[]), status(&server, path, &["-I"])), (404, 404), "{path}");
    }
    assert_eq!(status(&server, "/..%2fother/site.cfg", &[]), 400);
    let upload = site.file("upload", "log");
    let log = format!("/{VVX500}-app.log");
    for arguments in [["-T", upload.to_str().unwrap()], ["-X", "DELETE"], ["-d", "x"]] {
        for path in ["/site.cfg", "/..", log.as_str()] {
            assert_eq!(status(&server, path, &arguments), 405, "{path} {arguments:?}");
        }
    }
    let allow = curl(&server, "ote", "/site.cfg", &["-X", "DELETE", "-i"]).stdout.to_lowercase();
    assert!(allow.contains("allow: get, head\r\n"), "{allow}");

    let line = server.access("a phone's file", |line| line["path"] == own && line["method"] == "GET");
    assert_eq!(
        (&line["constituency"], &line["tls"], &line["mac"], &line["status"]),
        (&json!("ote"), &Value::Null, &Value::Null, &json!(404))
    );
    assert!(!site.path("state/uploads/ote").exists());
    // The same phone over TLS has its own file, and is the only one in the history.
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get(&own).unwrap().text(), "secret");
    let seen = eventually("the phone in the history", || {
        let listed = provost(&site.path("."), &["phones", "--json"]).stdout;
        let seen: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Some(seen.into_iter().filter(|line: &Value| line["requests"].is_u64()).collect::<Vec<_>>())
            .filter(|seen| !seen.is_empty())
    });
    assert_eq!((seen.len(), &seen[0]["requests"]), (1, &json!(1)));
}

#[test]
fn phone_boots_over_plain_http_from_common_files() {
    let mut site = site();
    site.config["domain"] = json!("phones.localhost");
    site.file(&format!("ote/{VVX500}.cfg"), "not to be read here");
    let master = r#"<APPLICATION APP_FILE_PATH="sip.ld" CONFIG_FILES="[PHONE_MAC_ADDRESS]-user.cfg, site.cfg" LOG_FILE_DIRECTORY="logs"/>"#;
    site.file("ote/000000000000.cfg", master);
    site.file("ote/3111-44500-001.sip.ld", "firmware");
    let server = start(&site);
    let url = format!("http://ote.phones.localhost:{}/", plain(&server).port());
    let booted = provost(&site.path("."), &["phone", "--url", &url, "--mac", VVX500, "--no-certificate"]);
    assert_eq!(booted.code, 0, "{} {}", booted.stdout, booted.stderr);
    let asked = |path: &str, status: u16| {
        server.access(path, |line| line["path"] == path && line["status"] == status && line["tls"].is_null());
    };
    asked(&format!("/{VVX500}.cfg"), 404);
    asked("/000000000000.cfg", 200);
    asked("/3111-44500-001.sip.ld", 200);
    asked("/site.cfg", 200);
    assert_eq!(server.access_lines().iter().filter(|line| !line["mac"].is_null()).count(), 0);
}

#[test]
fn plain_http_is_read_only_with_client_auth_none_too() {
    let site = site();
    site.constituency("ote", &json!({ "client_auth": "none", "plain_http": true }));
    site.file(&format!("ote/{VVX500}.cfg"), "secret");
    let server = start(&site);
    assert_eq!((status(&server, "/site.cfg", &[]), status(&server, &format!("/{VVX500}.cfg"), &[])), (200, 404));
    assert_eq!(status(&server, "/site.cfg", &["-X", "PUT"]), 405);
}

#[test]
fn plain_http_selects_the_constituency_by_host_per_request() {
    let mut site = site();
    site.constituency("third", &json!({ "client_auth": "none", "plain_http": true, "aliases": ["drei"] }));
    site.file("third/site.cfg", "<third-site/>");
    site.constituency("broken", &json!({ "trust": ["factory"], "plain_http": true }));
    site.config["trust"]["acme"] = json!(["absent.pem"]);
    site.constituency("broken", &json!({ "trust": ["acme"], "plain_http": true }));
    site.file("broken/site.cfg", "<broken/>");
    let server = start(&site);
    let mut one = Raw::connect(&server);
    for (name, length) in [("ote", 7), ("third", 13), ("drei", 13), ("OTE", 7)] {
        let (status, head) = one.ask("/site.cfg", &format!("Host: {}:80\r\n", host(name)));
        assert!(
            status == 200 && head.to_lowercase().contains(&format!("content-length: {length}\r\n")),
            "{name}: {head}"
        );
    }
    // Missing, disabled, broken and too deep names get the same answer.
    let strip = |head: String| {
        head.lines().filter(|line| !line.to_lowercase().starts_with("date")).collect::<Vec<_>>().join("\n")
    };
    let mut answers = Vec::new();
    for name in [&host("nobody"), &host("other"), &host("broken"), DOMAIN, &host("a.ote"), "127.0.0.1", "[::1]"] {
        let mut raw = Raw::connect(&server);
        let (status, head) = raw.ask("/site.cfg", &format!("Host: {name}\r\n"));
        assert_eq!((status, raw.is_closed()), (421, true), "{name}");
        answers.push(strip(head));
    }
    assert_eq!(answers.len(), 7);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let line = server.reason("is not a constituency with \"plain_http\": true");
    assert_eq!((&line["constituency"], &line["status"]), (&Value::Null, &json!(421)));
    let ote = host("ote");
    for headers in [String::new(), format!("Host: {ote}\r\nHost: {ote}\r\n"), "Host: a b\r\n".to_owned()] {
        let mut raw = Raw::connect(&server);
        assert_eq!((raw.ask("/site.cfg", &headers).0, raw.is_closed()), (400, true), "{headers:?}");
    }
}

#[test]
fn ip_address_as_host_selects_the_no_sni_constituency() {
    for (no_sni, expected) in [("ote", 200), ("other", 421), ("nobody", 421)] {
        let mut site = site();
        site.config["no_sni"] = no_sni.into();
        let server = start(&site);
        eventually("the constituencies", || (Raw::connect(&server).status(&host("ote")) == 200).then_some(()));
        assert_eq!(Raw::connect(&server).status("127.0.0.1"), expected, "{no_sni}");
        assert_eq!(Raw::connect(&server).status("192.0.2.1:80"), expected, "{no_sni}");
        assert_eq!(Raw::connect(&server).status(&host("other")), 421, "{no_sni}");
    }
}

#[test]
fn http_1_0_without_host_selects_the_no_sni_constituency() {
    for (no_sni, expected) in [(Some("ote"), 200), (Some("other"), 400), (Some("nobody"), 400), (None, 400)] {
        let mut site = site();
        if let Some(no_sni) = no_sni {
            site.config["no_sni"] = no_sni.into();
        }
        let server = start(&site);
        eventually("the constituencies", || (Raw::connect(&server).status(&host("ote")) == 200).then_some(()));
        let mut raw = Raw::connect(&server);
        raw.0.write_all(b"GET /site.cfg HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(raw.head().0, expected, "{no_sni:?}");
        if expected == 400 {
            server.reason("no Host header, and \"no_sni\"");
        }
        assert_eq!(Raw::connect(&server).ask("/site.cfg", "").0, 400, "HTTP/1.1 requires Host");
    }
}

#[test]
fn plain_http_from_an_unlisted_network_is_closed_unread() {
    let mut site = site();
    site.config["plain_http"]["listen"] = json!(["127.0.0.1:0", "[::1]:0"]);
    let server = Running::start(site.command(), 3);
    let inside = curl(&server, "ote", "/site.cfg", &["--interface", "127.0.0.77"]);
    assert_eq!(inside.stdout, "<site/>");
    let outside = curl(&server, "ote", "/site.cfg", &["--interface", "127.0.1.1"]);
    assert!(outside.code != 0 && outside.stdout.is_empty(), "{outside:?}");
    let line = server.reason("outside the networks for plain HTTP");
    assert!(line["address"].as_str().unwrap().starts_with("127.0.1.1:"), "{line}");
    assert_eq!((&line["method"], &line["status"]), (&Value::Null, &Value::Null));
    // Closed before any byte is sent.
    let mut silent = Socket::connect(server.addresses[2]).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap_or(0), 0);
    server
        .access("the IPv6 peer", |line| line["address"].as_str().is_some_and(|address| address.starts_with("[::1]:")));
    // TLS clients are still served.
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn policy_change_applies_to_open_plain_http_connections() {
    let site = site();
    let server = start(&site);
    let (mut ote, mut phone) =
        (Raw::connect(&server), server.client("ote", &FACTORY.device(VVX500)).connect().unwrap());
    assert_eq!((ote.status(&host("ote")), phone.get("/site.cfg").unwrap().status), (200, 200));
    site.constituency("other", &policy(true));
    within_a_second("the opening of legacy TLS", || {
        (Raw::connect(&server).status(&host("other")) == 200).then_some(())
    });
    assert_eq!((ote.status(&host("other")), ote.status(&host("ote"))), (200, 200));
    site.constituency("ote", &policy(false));
    within_a_second("the connection to be closed", || {
        (Raw::connect(&server).status(&host("ote")) == 421).then_some(())
    });
    assert_eq!((ote.status(&host("ote")), ote.is_closed()), (421, true));
    assert_eq!(phone.get("/site.cfg").unwrap().status, 200, "TLS clients are not affected");
    std::fs::remove_dir_all(site.served("other")).unwrap();
    within_a_second("its end", || (Raw::connect(&server).status(&host("other")) == 421).then_some(()));
}

#[test]
fn plain_http_clients_use_only_anonymous_slots_and_time_out() {
    let mut site = site();
    site.config["limits"] = json!({ "anonymous_connections": 2, "connections_per_phone": 1, "header_s": 1, "idle_s": 8, "free_space_bytes": 0 });
    site.file("ote/large.bin", "x".repeat(32 << 20));
    let server = start(&site);
    let phone = server.client("ote", &FACTORY.device(VVX500));
    let busy = [(); 2].map(|()| {
        let mut peer = Raw::connect(&server);
        assert_eq!(peer.ask("/large.bin", &format!("Host: {}\r\n", host("ote"))).0, 200);
        peer
    });
    assert!(Raw::connect(&server).is_closed());
    server.reason("all 2 permits for anonymous connections are in use");
    let mut connection = phone.connect().unwrap();
    assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    assert!(phone.get("/site.cfg").is_err(), "its only slot is used by a phone");
    drop(busy);
    let [mut first, mut second] = [(); 2].map(|()| {
        eventually("a free slot", || {
            let mut peer = Raw::connect(&server);
            peer.try_status(&host("ote")).filter(|status| *status == 200).map(|_| peer)
        })
    });
    // An unfinished header and a silent connection each have their own timeout.
    first.0.write_all(b"GET /site.cfg HTTP/1.1\r\nHost: ").unwrap();
    assert!(first.is_closed() && second.is_closed());
    server.access("the slow one", |line| {
        line["tls"].is_null()
            && line["reason"].as_str().is_some_and(|reason| reason.starts_with("the request's header took too long"))
    });
    eventually("free slots", || (Raw::connect(&server).status(&host("ote")) == 200).then_some(()));
}

#[test]
fn silent_plain_http_connections_are_evicted_for_clients() {
    let mut site = site();
    site.config["limits"] = json!({ "anonymous_connections": 4, "header_s": 600, "free_space_bytes": 0 });
    let server = start(&site);
    let silent: Vec<Socket> =
        (0..40).map(|_| Socket::connect_from([127, 0, 0, 2].into(), plain(&server)).unwrap()).collect();
    for _ in 0..10 {
        assert_eq!(Raw::connect(&server).status(&host("ote")), 200);
    }
    let line = server.reason("evicted before its first request was complete: all 4 permits for anonymous connections");
    assert!(
        line["reason"].as_str().unwrap().contains("; 127.0.0.2/32 has the most connections without one ("),
        "{line}"
    );
    assert_eq!(silent.len(), 40);
}

#[test]
fn silent_plain_http_connection_ends_at_the_header_timeout() {
    let mut site = site();
    site.config["limits"] = json!({ "header_s": 1, "idle_s": 600, "free_space_bytes": 0 });
    let server = start(&site);
    assert!(Raw::connect(&server).is_closed());
}

#[test]
fn idle_plain_http_connection_resumes_and_ends_on_shutdown() {
    let site = site();
    let server = start(&site);
    let mut peer = Raw::connect(&server);
    let long = format!("Host: {}\r\nX-Padding: {}\r\n", host("ote"), "x".repeat(3000));
    for _ in 0..3 {
        assert_eq!(peer.ask("/site.cfg", &long).0, 200);
    }
    server.signal(Signal::TERM);
    assert!(peer.is_closed());
    assert!(server.wait().success());
}

#[test]
fn tls_and_plain_http_ports_refuse_each_others_protocol() {
    let site = site();
    let server = start(&site);
    let hello = server.client("ote", &FACTORY.device(VVX500)).hello();
    let mut raw = Raw::connect(&server);
    raw.0.write_all(&hello).unwrap();
    let mut answer = Vec::new();
    let _ = raw.0.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    server.access("a ClientHello as a request", |line| line["status"] == 400 && line["tls"].is_null());
    let mut tls = Socket::connect(server.address()).unwrap();
    tls.write_all(format!("GET /site.cfg HTTP/1.1\r\nHost: {}\r\n\r\n", host("ote")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer);
    assert!(!answer.windows(4).any(|window| window == b"HTTP" || window == b"site"), "{answer:?}");
}

#[test]
fn virtual_phone_reports_the_right_scheme_for_the_port() {
    let site = site();
    let server = start(&site);
    let boot = |scheme: &str, address: SocketAddr| {
        let (url, resolve) = (format!("{scheme}://{}:{}/", host("ote"), address.port()), address.to_string());
        let args = ["phone", "--url", &url, "--mac", VVX500, "--no-certificate", "--resolve", &resolve];
        let ended = provost(&site.path("."), &args);
        assert_eq!(ended.code, 1, "{ended:?}");
        ended.stdout + &ended.stderr
    };
    let said = boot("http", server.address());
    assert!(said.contains("the server expects TLS there, not plain HTTP; use https://"), "{said}");
    let said = boot("https", plain(&server));
    assert!(said.contains("the server does not speak TLS there"), "{said}");
}

#[test]
fn check_reports_public_or_ineffective_plain_http() {
    let mut site = site();
    let checked = |site: &Site| {
        site.write_config();
        provost(&site.path("."), &["check"])
    };
    let quiet = checked(&site);
    assert!(quiet.code == 0 && !quiet.stdout.contains("plain_http"), "{}", quiet.stdout);
    site.config["plain_http"]["networks"] = json!(["10.0.0.0/8", "198.51.100.0/24"]);
    let public = checked(&site);
    assert!(
        public.code == 0 && public.stdout.contains("198.51.100.0/24 is not a private network"),
        "{}",
        public.stdout
    );
    assert!(!public.stdout.contains("10.0.0.0/8"), "{}", public.stdout);
    site.constituency("ote", &policy(false));
    assert!(checked(&site).stdout.contains("no constituency has \"plain_http\": true"));
    site.constituency("ote", &policy(true));
    site.config.as_object_mut().unwrap().remove("plain_http");
    assert!(checked(&site).stdout.contains("warning: ote: \"plain_http\": true has no effect"));
    let lan = json!(["10.0.0.0/8"]);
    site.config["listen"] = json!(["127.0.0.1:4433"]);
    let mistakes = [
        (json!({ "listen": "127.0.0.1:0", "networks": ["::/0"] }), "\"plain_http\": ::/0 is the whole internet"),
        (json!({ "listen": "127.0.0.1:0", "networks": [] }), "\"plain_http\": \"networks\" is empty"),
        (json!({ "listen": "127.0.0.1:0" }), "the key \"networks\" is missing"),
        (json!({ "listen": ["127.0.0.1:80", "10.0.0.1"], "networks": lan }), "invalid address \"10.0.0.1\""),
        (json!({ "listen": 80, "networks": lan }), "an address with a port, or a list of them"),
        (
            json!({ "listen": ["127.0.0.1:80", "127.0.0.1:4433"], "networks": lan }),
            "127.0.0.1:4433 is already listened on",
        ),
        (json!({ "listn": "127.0.0.1:80", "networks": lan }), "did you mean \"listen\"?"),
    ];
    for (mistake, said) in mistakes {
        site.config["plain_http"] = mistake;
        let ended = checked(&site);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
        assert!(ended.stderr.contains(said) && ended.stderr.contains("provost.json:"), "{said}: {}", ended.stderr);
    }
}
