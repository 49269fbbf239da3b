//! Idle connections: the server frees their memory, and clients notice nothing.

use std::time::Instant;

use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Connection;
use crate::harness::{VVX500, eventually};

fn start(site: &Site) -> Running {
    let mut command = site.command();
    command.env("PROVOST_LOG", "info,provost=trace");
    Running::start(command, 1)
}

fn connect(server: &Running) -> Connection {
    server.client("ote", &FACTORY.device(VVX500)).connect().unwrap()
}

/// Waits until the server has logged `times` times that it suspended a connection.
fn wait_for_suspensions(server: &Running, times: usize) {
    let suspensions = || server.stderr().iter().filter(|line| line.contains("HTTP suspended")).count();
    eventually("a suspension", || (suspensions() >= times).then_some(()));
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: ote.{DOMAIN}\r\n\r\n")
}

#[test]
fn idle_client_is_answered_when_it_sends_again() {
    let site = Site::with_ote();
    let server = start(&site);
    let mut connection = connect(&server);
    for suspensions in 1..=3 {
        wait_for_suspensions(&server, suspensions);
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200, "after suspension {suspensions}");
        let upload = connection.request("PUT", "/00005e00530c-app.log", "", &vec![b'x'; 100_000]).unwrap();
        assert_eq!(upload.status, if suspensions == 1 { 201 } else { 204 });
    }
}

#[test]
fn partial_pipelined_request_survives_idle_suspension() {
    let site = Site::with_ote();
    let server = start(&site);
    let mut connection = connect(&server);
    let second = get("/site.cfg");
    let (begun, rest) = second.split_at(20);
    connection.send(format!("{}{begun}", get("/site.cfg")).as_bytes()).unwrap();
    assert_eq!(connection.response("GET").unwrap().status, 200);
    wait_for_suspensions(&server, 1);
    connection.send(rest.as_bytes()).unwrap();
    assert_eq!(connection.response("GET").unwrap().status, 200);
}

#[test]
fn request_refused_after_idling_is_logged_with_its_line() {
    let site = Site::with_ote();
    let server = start(&site);
    let mut connection = connect(&server);
    for (suspensions, piece) in [(1, "G"), (1, "ET /after a"), (1, " rest HTTP/1.1\r\nHost: x\r\n\r\n")] {
        wait_for_suspensions(&server, suspensions);
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
    let server = start(&site);
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
    let server = start(&site);
    let mut connection = connect(&server);
    let start = Instant::now();
    connection.send(format!("{}GET /si", get("/site.cfg")).as_bytes()).unwrap();
    assert_eq!(connection.response("GET").unwrap().status, 200);
    assert!(connection.is_closed());
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    server.reason("the request's header took too long");
}

#[test]
fn shutdown_sends_close_notify_to_an_idle_client() {
    let site = Site::with_ote();
    let server = start(&site);
    let mut connection = connect(&server);
    assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    wait_for_suspensions(&server, 1);
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
    let server = start(&site);
    for suspensions in 1..=2 {
        let mut connection = eventually("a free slot", || {
            let mut connection = server.client("ote", &FACTORY.device(VVX500)).connect().ok()?;
            (connection.get("/site.cfg").ok()?.status == 200).then_some(connection)
        });
        wait_for_suspensions(&server, suspensions);
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
        connection.hang_up();
    }
}
