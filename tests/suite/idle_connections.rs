//! Idle connections: their timeouts, what they wait for, and the memory that they hold.

use std::time::Instant;

use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Connection;
use crate::harness::{VVX500, eventually};

const UPLOAD: &str = "/00005e00530c-app.log";

fn connect(server: &Running) -> Connection {
    server.client("ote", &FACTORY.device(VVX500)).connect().unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: ote.{DOMAIN}\r\n\r\n")
}

fn put(header: &str, body: &str) -> String {
    format!("PUT {UPLOAD} HTTP/1.1\r\nHost: ote.{DOMAIN}\r\n{header}\r\n\r\n{body}")
}

#[test]
fn idle_connection_outlives_the_header_timeout() {
    let mut site = Site::with_ote();
    site.config["limits"] = json!({ "header_s": 1, "idle_s": 600, "free_space_bytes": 0 });
    let server = site.start();
    let mut idle: Vec<Connection> = (0..3).map(|_| connect(&server)).collect();
    assert_eq!(idle[0].get("/site.cfg").unwrap().status, 200);
    assert_eq!(idle[1].request("PUT", UPLOAD, "", b"log").unwrap().status, 201);
    idle[2].send(put("Transfer-Encoding: chunked", "3\r\nlog\r\n0\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(idle[2].response("PUT").unwrap().status, 204);
    // A connection without a request ends at the header timeout, after these were idle for as long.
    assert!(connect(&server).is_closed());
    for connection in &mut idle {
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    }
}

#[test]
fn partial_pipelined_request_is_answered_when_it_is_complete() {
    let site = Site::with_ote();
    let server = site.start();
    let next = get("/site.cfg");
    let (begun, rest) = next.split_at(20);
    for (method, request) in [
        ("GET", get("/site.cfg")),
        ("PUT", put("Content-Length: 3", "log")),
        ("PUT", put("Transfer-Encoding: chunked", "3\r\nlog\r\n0\r\n\r\n")),
    ] {
        let mut connection = connect(&server);
        connection.send(format!("{request}{begun}").as_bytes()).unwrap();
        assert_eq!(connection.response(method).unwrap().status / 100, 2, "{request}");
        connection.send(rest.as_bytes()).unwrap();
        assert_eq!(connection.response("GET").unwrap().status, 200, "{request}");
    }
}

#[test]
fn request_refused_after_idling_is_logged_with_its_line() {
    let site = Site::with_ote();
    let server = site.start();
    let mut connection = connect(&server);
    assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    for piece in ["G", "ET /after a", " rest HTTP/1.1\r\nHost: x\r\n\r\n"] {
        connection.send(piece.as_bytes()).unwrap();
    }
    assert_eq!(connection.response("GET").unwrap().status, 400);
    drop(connection);
    server.reason("\"GET /after a rest HTTP/1.1\"");
}

#[test]
fn empty_line_after_a_request_starts_no_header_timeout() {
    let mut site = Site::with_ote();
    site.config["limits"] = json!({ "header_s": 1, "idle_s": 3, "free_space_bytes": 0 });
    let server = site.start();
    let mut connection = connect(&server);
    connection.send(format!("{}\r\n", get("/site.cfg")).as_bytes()).unwrap();
    assert_eq!(connection.response("GET").unwrap().status, 200);
    let start = Instant::now();
    assert!(connection.is_closed());
    // The idle timeout applies, not the header timeout.
    assert!(start.elapsed().as_millis() > 2000, "{:?}", start.elapsed());
}

#[test]
fn header_timeout_covers_a_partial_pipelined_request() {
    let mut site = Site::with_ote();
    site.config["limits"] = json!({ "header_s": 1, "idle_s": 600, "free_space_bytes": 0 });
    let server = site.start();
    let start = Instant::now();
    let requests = [
        ("GET", get("/site.cfg")),
        ("PUT", put("Content-Length: 3", "log")),
        ("PUT", put("Transfer-Encoding: chunked", "3\r\nlog\r\n0\r\n\r\n")),
        // Its body is discarded.
        ("GET", get("/site.cfg").replacen("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nlog", 1)),
    ];
    let connections = requests.map(|(method, request)| {
        let mut connection = connect(&server);
        connection.send(format!("{request}GET /si").as_bytes()).unwrap();
        assert_eq!(connection.response(method).unwrap().status / 100, 2, "{request}");
        connection
    });
    for mut connection in connections {
        assert!(connection.is_closed());
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    let reason = "the request's header took too long";
    let is_timeout = |line: &serde_json::Value| line["reason"].as_str().is_some_and(|it| it.starts_with(reason));
    eventually("a line for each", || {
        (server.access_lines().iter().filter(|line| is_timeout(line)).count() == 4).then_some(())
    });
}

#[test]
fn shutdown_sends_close_notify_to_an_idle_client() {
    let site = Site::with_ote();
    let server = site.start();
    let mut connection = connect(&server);
    assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    server.signal(rustix::process::Signal::TERM);
    // Closed by close_notify; a stream that ends without it is an error.
    assert_eq!(connection.read_some().unwrap(), 0);
    let (status, lines) = server.ended();
    assert_eq!((status.code(), lines.len()), (Some(0), 1));
}

#[test]
fn disconnect_while_idle_frees_the_connection_slot() {
    let mut site = Site::with_ote();
    site.config["limits"] = json!({ "connections_per_address": 1, "free_space_bytes": 0 });
    let server = site.start();
    for _ in 0..2 {
        let connection = eventually("a free slot", || {
            let mut connection = server.client("ote", &FACTORY.device(VVX500)).connect().ok()?;
            (connection.get("/site.cfg").ok()?.status == 200).then_some(connection)
        });
        connection.hang_up();
    }
}

/// Without the state of a handshake, and without buffers beside hyper's.
#[test]
fn idle_connection_holds_at_most_32_kib() {
    const COUNT: usize = 300;
    let mut site = Site::with_ote();
    site.config["limits"] = json!({ "connections_per_address": 0, "connections_per_phone": 0, "free_space_bytes": 0 });
    let server = site.start();
    let open = || {
        let mut connection = connect(&server);
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
        connection
    };
    // Some before measuring, because the allocator keeps memory for reuse.
    let warm: Vec<Connection> = (0..COUNT / 3).map(|_| open()).collect();
    let before = server.memory_kib();
    let idle: Vec<Connection> = (0..COUNT).map(|_| open()).collect();
    let each = server.memory_kib().saturating_sub(before) / COUNT as u64;
    assert!((1..=32).contains(&each), "{each} KiB each");
    drop((warm, idle));
}
