//! Shutdown: transfers under way complete, other connections close at once, and every answered request is logged.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site, holds};
use crate::harness::socket::Socket;
use crate::harness::tls::Connection;
use crate::harness::{Stopwatch, VVX500, VVX550, eventually};

const UPLOAD: &str = "/00005e00530c-app.log";

fn site(drain_s: u64) -> Site {
    let mut site = Site::with_ote();
    site.config["limits"]["drain_s"] = drain_s.into();
    site
}

fn connect(server: &Running) -> Connection {
    server.client("ote", &FACTORY.device(VVX500)).connect().unwrap()
}

/// Begins an upload of `whole` bytes and sends the first of them; returns when the server has accepted it.
fn begin_upload(server: &Running, site: &Site, whole: usize, first: &[u8]) -> Connection {
    let mut connection = connect(server);
    let head = format!("PUT {UPLOAD} HTTP/1.1\r\nHost: ote.{DOMAIN}\r\nContent-Length: {whole}\r\n\r\n");
    connection.send(head.as_bytes()).unwrap();
    connection.send(first).unwrap();
    let incoming = site.path("state/uploads/.incoming");
    eventually("the upload to begin", || std::fs::read_dir(&incoming).ok()?.next().map(drop));
    connection
}

fn stop(server: &Running, signal: Signal) {
    server.signal(signal);
    server.says("no new connections");
}

#[test]
fn upload_in_progress_completes_during_shutdown() {
    for signal in [Signal::TERM, Signal::INT] {
        let site = site(20);
        let server = site.start();
        let mut upload = begin_upload(&server, &site, 10, b"first");
        stop(&server, signal);
        eventually("the listener to close", || TcpStream::connect(server.address()).is_err().then_some(()));
        upload.send(b"-last").unwrap();
        let response = upload.response("PUT").unwrap();
        assert_eq!((response.status, response.header("connection")), (201, Some("close")), "{signal:?}");
        assert!(upload.is_closed());
        let (status, lines) = server.ended();
        assert_eq!(status.code(), Some(0), "{signal:?}");
        assert!(holds(&site.uploads("ote", VVX500).join(&UPLOAD[1..]), "first-last"));
        // Besides, at most the request that tested whether the server listens.
        let answered: Vec<&Value> = lines.iter().filter(|line| !line["status"].is_null()).collect();
        assert_eq!(answered.len(), 1, "{lines:?}");
        assert_eq!((&answered[0]["status"], &answered[0]["path"]), (&201.into(), &UPLOAD.into()));
    }
}

#[test]
fn download_in_progress_completes_during_shutdown() {
    let site = site(20);
    let whole = 30 << 20;
    site.file("ote/firmware.ld", vec![1; whole]);
    let server = site.start();
    let mut connection = connect(&server);
    connection.send(format!("GET /firmware.ld HTTP/1.1\r\nHost: ote.{DOMAIN}\r\n\r\n").as_bytes()).unwrap();
    let begun = connection.read_some().unwrap();
    stop(&server, Signal::TERM);
    let rest = connection.read_to_close().unwrap();
    assert!(begun + rest.len() > whole, "{} of {whole} bytes and a header", begun + rest.len());
    let (status, lines) = server.ended();
    assert_eq!(status.code(), Some(0));
    assert_eq!((&lines[0]["bytes"], &lines[0]["reason"]), (&whole.into(), &Value::Null));
}

#[test]
fn idle_connections_and_handshakes_do_not_delay_shutdown() {
    let site = site(600);
    let server = site.start();
    let mut fresh = connect(&server);
    let mut used = connect(&server);
    assert_eq!(used.get("/site.cfg").unwrap().status, 200);
    let mut stranger = Socket::connect(server.address()).unwrap();
    // Later than the stranger's connection, which is therefore accepted when this is answered.
    assert_eq!(connect(&server).get("/site.cfg").unwrap().status, 200);
    let silent = stranger.local_addr().unwrap().to_string();
    stop(&server, Signal::TERM);
    assert!(fresh.is_closed() && used.is_closed());
    // The end of the stream, or a reset.
    assert_eq!(stranger.read(&mut [0]).unwrap_or(0), 0);
    let (status, lines) = server.ended();
    assert_eq!(status.code(), Some(0));
    let line = lines.iter().find(|line| line["address"] == silent.as_str()).unwrap();
    assert_eq!((&line["reason"], &line["status"]), (&"provost is shutting down".into(), &Value::Null));
}

#[test]
fn transfers_past_the_drain_timeout_are_cut_and_logged() {
    let site = site(1);
    site.file("ote/firmware.ld", vec![1; 30 << 20]);
    let server = site.start();
    let mut upload = begin_upload(&server, &site, 10, b"first");
    let mut download = connect(&server);
    download.send(format!("GET /firmware.ld HTTP/1.1\r\nHost: ote.{DOMAIN}\r\n\r\n").as_bytes()).unwrap();
    download.read_some().unwrap();
    let watch = Stopwatch::start();
    stop(&server, Signal::TERM);
    assert!(upload.is_closed());
    assert!(watch.elapsed() >= Duration::from_millis(900), "{:?}", watch.elapsed());
    watch.at_most(Duration::from_secs(5), "the end");
    server.says("2 connections were closed before they had finished");
    let (status, lines) = server.ended();
    assert_eq!(status.code(), Some(0));
    let line = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap();
    let reason = |path: &str| line(path)["reason"].as_str().unwrap().to_owned();
    assert_eq!(reason(UPLOAD), "closed at the end of the drain time (limits.drain_s) before the response was ready");
    assert!(reason("/firmware.ld").starts_with("closed at the end of the drain time (limits.drain_s) after "));
    assert!(!site.uploads("ote", VVX500).join(&UPLOAD[1..]).exists(), "never half");
}

#[test]
fn second_signal_stops_the_drain_at_once() {
    let site = site(600);
    let server = site.start();
    let mut upload = begin_upload(&server, &site, 10, b"first");
    stop(&server, Signal::TERM);
    // A reload in between changes nothing.
    server.signal(Signal::HUP);
    server.signal(Signal::INT);
    server.says("second SIGINT: ending requests in progress");
    assert!(upload.is_closed());
    let (status, lines) = server.ended();
    assert_eq!(status.code(), Some(0));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["reason"], "closed because of a second stop signal before the response was ready");
}

#[test]
fn phones_are_served_as_usual_during_the_shutdown_delay() {
    let mut site = site(20);
    site.config["limits"]["shutdown_delay_s"] = 600.into();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    let operators = Operators::of(&server);
    assert_eq!(operators.get("/readyz").status, 200);
    let mut kept = connect(&server);
    server.signal(Signal::TERM);
    server.says("SIGTERM: /readyz is 503 from now on; connections are served as usual for 600 s");
    let stopping = operators.get("/readyz");
    assert_eq!((stopping.status, stopping.body.as_str()), (503, "provost is shutting down\n"));
    eventually("the metric", || operators.get("/metrics").body.contains("provost_ready 0\n").then_some(()));
    for _ in 0..3 {
        assert_eq!(kept.get("/site.cfg").unwrap().header("connection"), None);
        let mut new = connect(&server);
        assert_eq!(new.get("/site.cfg").unwrap().status, 200);
        assert_eq!(new.request("PUT", UPLOAD, "", b"log").unwrap().status / 10, 20);
    }
    // A reload is a part of that service.
    server.signal(Signal::HUP);
    server.says("SIGHUP: ");
    assert!(!server.stderr().iter().any(|line| line.contains("no new connections")));
    server.signal(Signal::TERM);
    server.says("SIGTERM: graceful shutdown: no new connections");
    assert!(kept.is_closed());
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn shutdown_delay_ends_by_itself_and_then_drains() {
    let mut site = site(600);
    site.config["limits"]["shutdown_delay_s"] = 1.into();
    let server = site.start();
    let mut upload = begin_upload(&server, &site, 10, b"first");
    server.signal(Signal::INT);
    server.says("SIGINT: /readyz is 503 from now on; connections are served as usual for 1 s");
    server.says("SIGINT: graceful shutdown: no new connections");
    upload.send(b"-last").unwrap();
    assert_eq!(upload.response("PUT").unwrap().status, 201);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn third_signal_ends_requests_in_progress() {
    let mut site = site(600);
    site.config["limits"]["shutdown_delay_s"] = 600.into();
    let server = site.start();
    let mut upload = begin_upload(&server, &site, 10, b"first");
    server.signal(Signal::TERM);
    server.says("/readyz is 503 from now on");
    server.signal(Signal::INT);
    server.says("SIGINT: graceful shutdown: no new connections");
    server.signal(Signal::TERM);
    server.says("second SIGTERM: ending requests in progress");
    assert!(upload.is_closed());
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn next_server_starts_on_the_same_address_at_once() {
    let mut site = site(20);
    // No other test uses this address, so none takes the port between the two servers.
    site.config["listen"] = serde_json::json!(["127.7.7.7:0"]);
    let server = site.start();
    let address = server.address();
    let client = server.client("ote", &FACTORY.device(VVX500));
    assert_eq!(client.put(UPLOAD, "", b"kept").unwrap().status, 201);
    site.config["listen"] = serde_json::json!([address.to_string()]);
    let mut kept = client.connect().unwrap();
    assert_eq!(kept.get("/site.cfg").unwrap().status, 200);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    let next = site.start();
    assert_eq!(next.address(), address);
    assert_eq!(client.get("/site.cfg").unwrap().status, 200);
    assert_eq!(client.get(UPLOAD).unwrap().text(), "kept");
}

#[test]
fn every_answered_request_is_logged_when_stopped_under_load() {
    let site = site(20);
    site.constituency("ote", &serde_json::json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" } }));
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX550));
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let client = client.clone();
            std::thread::spawn(move || {
                let Ok(mut connection) = client.connect() else { return 0 };
                let path = format!("/site.cfg?{worker}");
                // Until the server stops.
                (0..1_000_000)
                    .take_while(|_| connection.get(&path).is_ok_and(|response| response.status == 200))
                    .count()
            })
        })
        .collect();
    eventually("load", || (server.access_lines().len() > 500).then_some(()));
    server.signal(Signal::TERM);
    let answered: Vec<usize> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    let (status, lines) = server.ended();
    assert_eq!(status.code(), Some(0));
    for (worker, count) in answered.iter().enumerate() {
        let path = format!("/site.cfg?{worker}");
        let logged = lines.iter().filter(|line| line["path"] == path.as_str()).count();
        // One more may have been answered that its client did not read.
        assert!(logged == *count || logged == count + 1, "{logged} lines for {count} answers");
    }
    assert!(answered.iter().sum::<usize>() > 400, "{answered:?}");
}
