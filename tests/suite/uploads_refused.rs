//! Refused uploads: the answer is sent at once, before the body is read, and the connection stays open if possible.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::harness::pki::{FACTORY, Identity, OTHER_FACTORY, SERVER_CA, device_params};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::{Client, Connection};
use crate::harness::tool::{Ended, run, s_client};
use crate::harness::{STRANGER, Stopwatch, VVX500, VVX550, eventually};
use crate::uploads::{LOG, begin_put, content, files_below, incomplete_uploads, phone};

/// More than the server reads of a refused body, and less than the free space of the disk.
const HUGE: u64 = 64 << 20;
const MIB: usize = 1 << 20;

/// A client and a PUT that is refused.
struct Refusal {
    client: Client,
    target: &'static str,
    headers: &'static str,
    status: u16,
    /// Whether it is refused for the length of its body.
    by_length: bool,
}

impl Refusal {
    fn closes(&self) -> bool {
        [403, 421].contains(&self.status) || self.headers.contains("Host")
    }

    /// The status for a body announced by `headers`: a range of another length is checked before a gap.
    fn status_of(&self, headers: &str) -> u16 {
        let is_other_length = headers.contains("Content-Length") && !headers.contains(&HUGE.to_string());
        if self.headers.contains("bytes 7-") && is_other_length { 400 } else { self.status }
    }

    fn head(&self, headers: &str) -> String {
        let host = if self.headers.contains("Host") { "" } else { &format!("Host: {}\r\n", self.client.host_name()) };
        format!("PUT {} HTTP/1.1\r\n{host}{}{headers}\r\n", self.target, self.headers)
    }

    fn begin(&self, headers: &str) -> Connection {
        let mut connection = self.client.connect().unwrap();
        connection.send(self.head(headers).as_bytes()).unwrap();
        connection
    }
}

/// A site with a constituency for each kind of refusal, and with long timeouts.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["limits"] = json!({ "free_space_bytes": 0, "stall_s": 3600, "min_bytes_per_s": 0 });
    let phones = json!({ VVX500: "", VVX550: "" });
    let policy = |uploads: serde_json::Value| json!({ "trust": ["factory"], "phones": phones, "uploads": uploads });
    site.constituency("ote", &policy(json!({ "max_file_bytes": 2 << 20 })));
    site.file(&format!("ote/{VVX500}-user.cfg"), "the folder's");
    site.constituency("full", &policy(json!({ "max_phone_bytes": 1, "max_file_bytes": HUGE * 2 })));
    site.constituency("many", &policy(json!({ "max_phone_files": 0, "max_file_bytes": HUGE * 2 })));
    site.constituency("shared", &policy(json!({ "max_constituency_bytes": 1, "max_file_bytes": HUGE * 2 })));
    let busy = json!({ "max_phone_write_bytes_per_hour": 0, "max_phone_bytes": HUGE * 2, "max_file_bytes": HUGE * 2 });
    site.constituency("busy", &policy(busy));
    site.constituency("any", &json!({ "trust": ["factory"], "phones": "any" }));
    site.constituency("open", &json!({ "client_auth": "none" }));
    site.constituency("pw", &json!({ "client_auth": "digest", "phones": { VVX500: "" } }));
    site.constituency("denied", &json!({ "trust": ["factory"], "phones": phones, "denied": [VVX500] }));
    for name in ["full", "many", "shared", "busy", "any", "open", "pw", "denied"] {
        site.file(&format!("{name}/site.cfg"), "<site/>");
    }
    site
}

fn refusals(server: &Running) -> Vec<Refusal> {
    let identity = FACTORY.device(VVX500);
    let of = |client: &Client, target, headers, status, by_length| Refusal {
        client: client.clone(),
        target,
        headers,
        status,
        by_length,
    };
    let at = |name: &str| server.client(name, &identity);
    let ote = at("ote");
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    let anonymous = |name: &str| Client::new(server.address(), Some(&format!("{name}.{DOMAIN}")));
    vec![
        of(&ote, "/00005e0053c7-app.log", "", 403, false),
        of(&ote, "/00005e00530c.cfg", "", 403, false),
        of(&ote, "/site.cfg", "", 403, false),
        of(&ote, "/00005e00530c-user.cfg", "", 403, false),
        of(&stranger, "/00005e0053aa-app.log", "", 403, false),
        of(&at("denied"), LOG, "", 403, false),
        of(&at("any"), LOG, "", 403, false),
        of(&anonymous("open"), LOG, "", 405, false),
        of(&anonymous("pw"), LOG, "", 401, false),
        of(&ote, "/00005e00530c-%00.log", "", 400, false),
        of(&ote, LOG, "Host: full.phones.example.com\r\n", 421, false),
        of(&ote, LOG, "Host: a b\r\n", 400, false),
        of(&ote, LOG, "Content-Range: nonsense\r\n", 400, false),
        of(&ote, LOG, "Content-Range: bytes 7-67108870/*\r\n", 409, false),
        of(&ote, "/00005e00530c-old.log/00005e00530c-x", "", 409, false),
        of(&ote, LOG, "", 413, true),
        of(&at("full"), LOG, "", 507, true),
        of(&at("many"), LOG, "", 507, false),
        of(&at("shared"), LOG, "", 507, true),
        of(&at("busy"), LOG, "", 429, true),
    ]
}

/// Starts it with an upload of `ote` whose name is then no folder.
fn start(site: &Site) -> Running {
    let server = site.start();
    assert_eq!(phone(&server).put("/00005e00530c-old.log", "", b"old").unwrap().status, 201);
    server
}

#[test]
fn every_refused_put_is_answered_before_its_body() {
    let site = site();
    let server = start(&site);
    let mut seen = 0;
    for refusal in refusals(&server) {
        let huge = format!("Content-Length: {HUGE}\r\n");
        let waits = "Expect: 100-continue\r\n";
        let mut ways = vec![huge.clone(), format!("{huge}{waits}"), format!("Content-Length: 10\r\n{waits}")];
        if !refusal.by_length {
            ways.extend([
                "Transfer-Encoding: chunked\r\n".to_owned(),
                format!("Transfer-Encoding: chunked\r\n{waits}"),
            ]);
        }
        for headers in ways {
            if refusal.by_length && headers.starts_with("Content-Length: 10\r\n") && refusal.status == 413 {
                continue;
            }
            let mut connection = refusal.begin(&headers);
            // The first response: no `100 Continue` before it.
            let (status, answer) = connection.head().unwrap();
            assert_eq!(status, refusal.status_of(&headers), "{}", refusal.head(&headers));
            let is_last = refusal.closes() || headers.contains("Expect") || headers.contains(&HUGE.to_string());
            let connection = answer.get("connection").map(String::as_str);
            assert_eq!(connection, is_last.then_some("close"), "{}", refusal.head(&headers));
            seen += 1;
        }
    }
    assert_eq!(seen, 20 * 3 - 1 + 16 * 2);
    assert_eq!(files_below(&site.path("state/uploads")), ["ote/00005e00530c/00005e00530c-old.log"]);
    let lines = || server.access_lines().iter().filter(|line| line["method"] == "PUT").count();
    eventually("a line for each", || (lines() == seen + 1).then_some(()));
}

#[test]
fn request_after_a_refused_put_is_answered_unless_it_closes() {
    let site = site();
    let server = start(&site);
    let mut seen = [0, 0];
    for refusal in refusals(&server) {
        // The whole body with the request and another request behind it, in one piece and in two.
        for (length, is_chunked) in [(100, false), (300_000, false), (MIB, false), (100, true), (300_000, true)] {
            if refusal.status == 413 {
                continue;
            }
            let body = content(length, 1);
            let (headers, body) = if is_chunked {
                let chunk = [format!("{length:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
                ("Transfer-Encoding: chunked\r\n".to_owned(), chunk)
            } else {
                (format!("Content-Length: {length}\r\n"), body)
            };
            let mut connection = refusal.begin(&headers);
            let _ = connection.send(&body);
            let next = format!("HEAD /site.cfg HTTP/1.1\r\nHost: {}\r\n\r\n", refusal.client.host_name());
            let _ = connection.send(next.as_bytes());
            let case = format!("{} {headers}", refusal.head(""));
            let answer = connection.response("PUT").unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(answer.status, refusal.status_of(&headers), "{case}");
            if refusal.closes() {
                assert_eq!(connection.read_to_close().unwrap(), b"", "{case}");
            } else {
                let again = connection.response("HEAD").unwrap_or_else(|error| panic!("{case}: {error}"));
                assert!([200, 401].contains(&again.status), "{case}: {again:?}");
            }
            seen[usize::from(refusal.closes())] += 1;
        }
    }
    assert_eq!(seen, [10 * 5, 9 * 5]);
}

#[test]
fn refused_body_over_1_mib_closes_the_connection() {
    let site = site();
    let server = start(&site);
    let many = server.client("many", &FACTORY.device(VVX500));
    let longer = content(MIB + 1, 2);
    let chunked = [format!("{:x}\r\n", 3 * MIB).as_bytes(), &content(3 * MIB, 2), b"\r\n0\r\n\r\n"].concat();
    let length = format!("Content-Length: {}\r\n", longer.len());
    for (headers, body) in [(length.as_str(), &longer), ("Transfer-Encoding: chunked\r\n", &chunked)] {
        let mut connection = many.connect().unwrap();
        connection.send_head("PUT", LOG, headers).unwrap();
        let _ = connection.send(body);
        assert_eq!(connection.response("PUT").unwrap().status, 507);
        assert_eq!(connection.read_to_close().unwrap(), b"", "{headers}");
    }
}

#[test]
fn upload_refused_mid_body_is_answered_at_once() {
    let site = site();
    let server = start(&site);
    let phone = phone(&server);
    let mut connection = phone.connect().unwrap();
    connection.send_head("PUT", LOG, "Transfer-Encoding: chunked\r\n").unwrap();
    let chunk = |length: usize| [format!("{length:x}\r\n").as_bytes(), &content(length, 3), b"\r\n"].concat();
    connection.send(&chunk(2 << 20)).unwrap();
    // One byte more than the file may have, and nothing after it.
    connection.send(&chunk(1)).unwrap();
    connection.send(&chunk(300_000)).unwrap();
    assert_eq!(connection.response("PUT").unwrap().status, 413);
    connection.send(b"0\r\n\r\n").unwrap();
    assert_eq!(connection.get("/site.cfg").unwrap().status, 200, "the rest of it was short");
    assert_eq!(incomplete_uploads(&site), 0);
    assert_eq!(phone.get(LOG).unwrap().status, 404);
}

#[test]
fn second_writer_and_ninth_upload_are_refused_at_once() {
    let site = site();
    let server = start(&site);
    let phone = phone(&server);
    let sending: Vec<_> =
        (0..8).map(|kind| begin_put(&phone, &format!("/00005e00530c-{kind}.log"), "", 10, b"half")).collect();
    eventually("eight uploads", || (incomplete_uploads(&site) == 8).then_some(()));
    for (path, status) in [("/00005e00530c-0.log", 409), ("/00005e00530c-8.log", 503)] {
        let mut connection = begin_put(&phone, path, "", 1000, b"");
        assert_eq!(connection.response("PUT").unwrap().status, status, "{path}");
        connection.send(&[b'x'; 1000]).unwrap();
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200, "{path}");
    }
    assert_eq!(sending.len(), 8);
}

#[test]
fn unexpected_body_does_not_close_the_connection() {
    let site = site();
    let server = start(&site);
    let mut connection = phone(&server).connect().unwrap();
    for (method, path, status) in
        [("GET", "/site.cfg", 200), ("HEAD", "/site.cfg", 200), ("GET", "/absent", 404), ("POST", "/site.cfg", 405)]
    {
        connection.send_head(method, path, "Content-Length: 400000\r\n").unwrap();
        assert_eq!(connection.response(method).unwrap().status, status, "{method} {path}");
        connection.send(&content(400_000, 4)).unwrap();
    }
    assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
}

#[test]
fn client_flooding_after_its_refusal_is_closed() {
    let site = site();
    let server = start(&site);
    for (target, status) in [("/site.cfg", 403), (LOG, 413)] {
        let mut connection = begin_put(&phone(&server), target, "", usize::try_from(HUGE).unwrap(), b"");
        assert_eq!(connection.response("PUT").unwrap().status, status);
        connection.tcp().set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        let (watch, mut sent) = (Stopwatch::start(), 0);
        let piece = content(64 << 10, 5);
        while connection.send(&piece).is_ok() {
            sent += piece.len();
        }
        // A mebibyte, and the content of both ends' buffers.
        assert!(sent < 24 * MIB, "{status}: {sent}");
        assert!(!watch.is_past(Duration::from_secs(20)), "{:?}", watch.elapsed());
    }
}

#[test]
fn stalled_body_of_a_refused_put_closes_the_connection() {
    let mut site = site();
    site.config["limits"]["stall_s"] = json!(1);
    let server = start(&site);
    let mut connection = begin_put(&server.client("full", &FACTORY.device(VVX500)), LOG, "", 1000, b"half");
    assert_eq!(connection.response("PUT").unwrap().status, 507);
    assert!(connection.is_closed());
}

#[test]
fn plain_http_put_is_refused_at_once() {
    let mut site = site();
    site.config["plain_http"] = json!({ "listen": "127.0.0.1:0", "networks": ["127.0.0.0/24"] });
    site.constituency("open", &json!({ "client_auth": "none", "plain_http": true }));
    let server = Running::start(site.command(), 2);
    let mut socket = Socket::connect(server.addresses[1]).unwrap();
    let host = format!("open.{DOMAIN}");
    socket
        .write_all(format!("PUT {LOG} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {HUGE}\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut socket, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[cfg(feature = "old-tls")]
#[test]
fn legacy_tls_put_is_refused_at_once() {
    let site = site();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "tls": "legacy" }));
    let server = site.start();
    let (chain, key) = FACTORY.issuing.issue_rsa(&device_params(VVX500)).write(&site.path(""), "device");
    let name = format!("ote.{DOMAIN}");
    let arguments = ["-servername", &name, "-cert", chain.to_str().unwrap(), "-key", key.to_str().unwrap(), "-tls1"];
    let arguments = [&arguments[..], &["-cipher", "AES128-SHA:@SECLEVEL=0"]].concat();
    for waits in ["", "Expect: 100-continue\r\n"] {
        let head = format!("PUT /site.cfg HTTP/1.1\r\nHost: {name}\r\nContent-Length: {HUGE}\r\n{waits}\r\n");
        let ended = s_client(server.address(), &arguments, &head);
        assert!(ended.stdout.contains("HTTP/1.1 403 Forbidden"), "{ended:?}");
    }
}

/// Real curl, which uploads `file` to `path` of the constituency `name`.
fn curl(site: &Site, server: &Running, identity: &Identity, name: &str, path: &str, arguments: &[&str]) -> Ended {
    let (chain, key) = identity.write(&site.path(""), "curl");
    std::fs::write(site.path("server-ca.pem"), SERVER_CA.pem()).unwrap();
    let port = server.address().port();
    let mut command = Command::new("curl");
    command.args(["-sS", "--http1.1", "-w", "%{http_code} ", "--noproxy", "*", "-o", "/dev/null", "--cacert"]);
    command.arg(site.path("server-ca.pem")).arg("--cert").arg(chain).arg("--key").arg(key);
    command.args([
        "--resolve",
        &format!("{name}.{DOMAIN}:{port}:127.0.0.1"),
        "-T",
        site.path("body").to_str().unwrap(),
    ]);
    run(command.args(arguments).arg(format!("https://{name}.{DOMAIN}:{port}{path}")))
}

#[test]
fn curl_reads_the_status_of_a_refused_upload() {
    let site = site();
    let server = start(&site);
    let identity = FACTORY.device(VVX500);
    let mut seen = 0;
    for length in [10, 900_000, 50 * MIB] {
        std::fs::write(site.path("body"), content(length, 6)).unwrap();
        for headers in
            [&[][..], &["-H", "Expect:"], &["-H", "Expect: 100-continue"], &["-H", "Transfer-Encoding: chunked"]]
        {
            let refused = [("ote", "/site.cfg", 403), ("many", LOG, 507), ("open", LOG, 405)];
            for (name, path, status) in refused {
                let ended = curl(&site, &server, &identity, name, path, headers);
                assert_eq!(ended.stdout, format!("{status} "), "{name} {length} {headers:?}: {}", ended.stderr);
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 3 * 4 * 3);
}

#[test]
fn untrusted_client_sending_a_body_reads_the_tls_alert() {
    let site = site();
    let server = start(&site);
    let stranger = server.client("ote", &OTHER_FACTORY.device(VVX500));
    let mut connection = stranger.connect().unwrap();
    let _ = connection.send_head("PUT", LOG, &format!("Content-Length: {HUGE}\r\n"));
    assert!(crate::harness::tls::alert(&connection.response("PUT").unwrap_err()).is_some());
}
