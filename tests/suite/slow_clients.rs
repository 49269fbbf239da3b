//! Timeouts: slow clients are disconnected in time, and refusals are logged with their reason.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::{Stopwatch, TIMEOUT, VVX500};

/// Each timeout has another length, so that the elapsed time shows which one applied.
fn site_with_short_timeouts() -> Site {
    let mut site = Site::with_ote();
    site.config["limits"] = json!({
        "handshake_s": 1, "header_s": 1, "idle_s": 2, "stall_s": 1, "free_space_bytes": 0,
    });
    site
}

/// Asserts that about `seconds` have passed since the start of `watch`: not less, and not much more.
#[track_caller]
fn assert_took_about(watch: &Stopwatch, seconds: u64) {
    let took = watch.elapsed();
    assert!(took >= Duration::from_millis(seconds * 1000 - 50), "{took:?} instead of {seconds} s");
    watch.at_most(Duration::from_secs(seconds + 2), &format!("what ends after {seconds} s"));
}

/// Asserts that `line` reports something that began after `before`, lasted at least `seconds`, and is over.
#[track_caller]
fn assert_logged_duration(line: &Value, before: OffsetDateTime, seconds: i64) {
    let after = OffsetDateTime::now_utc();
    let time = OffsetDateTime::parse(line["time"].as_str().unwrap(), &Rfc3339).unwrap();
    let duration = time::Duration::seconds_f64(line["duration_ms"].as_f64().unwrap() / 1000.0);
    assert!(duration >= time::Duration::seconds(seconds), "{line}");
    // The start is from the wall clock, which may be adjusted, in milliseconds; the duration is measured.
    let blur = time::Duration::milliseconds(5);
    assert!(time >= before - blur && time + duration <= after + blur, "{before} {line} {after}");
}

fn stranger(server: &Running) -> Socket {
    Socket::connect(server.address()).unwrap()
}

/// Waits until the server closes.
fn wait_for_end(stream: &mut Socket) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server did not close: {error}"),
    }
}

/// The bytes of a ClientHello.
fn client_hello() -> Vec<u8> {
    let name = format!("ote.{DOMAIN}").try_into().unwrap();
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(config.into(), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn unfinished_handshake_times_out_and_is_logged() {
    let site = site_with_short_timeouts();
    let server = site.start();
    let hello = client_hello();
    let beginnings: [&[u8]; 4] = [&[], &hello[..1], &hello[..hello.len() / 2], &hello];
    for (number, beginning) in beginnings.iter().enumerate() {
        let (watch, before) = (Stopwatch::start(), OffsetDateTime::now_utc());
        let mut stream = stranger(&server);
        stream.write_all(beginning).unwrap();
        wait_for_end(&mut stream);
        assert_took_about(&watch, 1);
        let port = stream.local_addr().unwrap().to_string();
        let line = server.access("the handshake", |line| line["address"] == port.as_str());
        assert_eq!(line["reason"], "the handshake took more than 1 s", "beginning {number}");
        assert_eq!((&line["status"], &line["mac"]), (&Value::Null, &Value::Null));
        assert_logged_duration(&line, before, 1);
    }
}

#[test]
fn dripping_client_hello_does_not_extend_the_timeout() {
    let site = site_with_short_timeouts();
    let server = site.start();
    let hello = client_hello();
    let mut stream = stranger(&server);
    let watch = Stopwatch::start();
    for byte in hello.chunks(2) {
        if stream.write_all(byte).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
        if watch.elapsed() > Duration::from_secs(3) {
            break;
        }
    }
    wait_for_end(&mut stream);
    assert_took_about(&watch, 1);
    let line = server.reason("the handshake took more than 1 s");
    assert_eq!(line["address"], stream.local_addr().unwrap().to_string().as_str());
}

#[test]
fn unfinished_or_dripping_header_times_out_and_is_logged() {
    let site = site_with_short_timeouts();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    for drips in [false, true] {
        let mut connection = client.connect().unwrap();
        // The timeout does not include an earlier request.
        connection.get("/site.cfg").unwrap();
        let (watch, before) = (Stopwatch::start(), OffsetDateTime::now_utc());
        connection.send(b"GET /site.cfg HTTP/1.1\r\nX: ").unwrap();
        let port = connection.tcp().local_addr().unwrap().to_string();
        if drips {
            while connection.send(b"x").is_ok() && watch.elapsed() < TIMEOUT {
                thread::sleep(Duration::from_millis(50));
            }
        }
        assert!(connection.is_closed());
        assert_took_about(&watch, 1);
        let line = server.access("the header", |line| line["address"] == port.as_str() && !line["reason"].is_null());
        let reason = "the request's header took too long; it starts with \"GET /site.cfg HTTP/1.1\"";
        assert_eq!(line["reason"], reason);
        assert_eq!((&line["mac"], &line["status"]), (&VVX500.into(), &Value::Null));
        assert_logged_duration(&line, before, 1);
    }
}

#[test]
fn idle_connection_is_closed_without_a_log_line() {
    let site = site_with_short_timeouts();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    let watch = Stopwatch::start();
    let mut fresh = client.connect().unwrap();
    assert!(fresh.is_closed());
    // Before its first request, a connection has the header timeout.
    assert_took_about(&watch, 1);
    let mut used = client.connect().unwrap();
    let mut watch = Stopwatch::start();
    for _ in 0..5 {
        // The timeout starts again after each response.
        thread::sleep(Duration::from_millis(500));
        watch = Stopwatch::start();
        assert_eq!(used.get("/site.cfg").unwrap().status, 200);
    }
    assert!(used.is_closed());
    assert_took_about(&watch, 2);
    // Later lines are present, and none about idling.
    assert_eq!(client.get("/absent.cfg").unwrap().status, 404);
    server.access("the last request", |line| line["path"] == "/absent.cfg");
    assert_eq!(server.access_lines().len(), 6);
}

#[test]
fn stalled_upload_is_aborted_and_leaves_no_file() {
    let site = site_with_short_timeouts();
    let server = site.start();
    let path = format!("/{VVX500}-app.log");
    let mut connection = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\nHost: ote.{DOMAIN}\r\nContent-Length: 100000\r\n\r\n");
    let watch = Stopwatch::start();
    connection.send(head.as_bytes()).unwrap();
    connection.send(&[b'x'; 5000]).unwrap();
    assert!(connection.is_closed());
    assert_took_about(&watch, 1);
    let line = server.reason("no progress for too long");
    assert_eq!((&line["path"], &line["mac"]), (&path.as_str().into(), &VVX500.into()));
    assert!(!site.uploads("ote", VVX500).join(format!("{VVX500}-app.log")).exists());
    // The upload slot and the file are free again.
    let put = server.client("ote", &FACTORY.device(VVX500)).put(&path, "", b"whole").unwrap();
    assert_eq!(put.status, 201);
}

#[test]
fn client_that_does_not_read_is_aborted_and_logged() {
    let site = site_with_short_timeouts();
    let whole = 20 << 20;
    site.file("ote/firmware.ld", vec![0; whole]);
    let server = site.start();
    let mut connection = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    let watch = Stopwatch::start();
    connection.send(format!("GET /firmware.ld HTTP/1.1\r\nHost: ote.{DOMAIN}\r\n\r\n").as_bytes()).unwrap();
    let line = server.access("the download", |line| line["path"] == "/firmware.ld");
    assert_took_about(&watch, 1);
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.starts_with("no progress for too long after "), "{reason}");
    assert!(reason.ends_with(&format!(" of {whole} bytes")), "{reason}");
    assert_eq!((&line["status"], &line["mac"]), (&200.into(), &VVX500.into()));
    assert!(line["bytes"].as_u64().unwrap() < whole as u64);
}

#[test]
fn slow_but_steady_reader_gets_the_whole_file() {
    let mut site = site_with_short_timeouts();
    site.config["limits"]["stall_s"] = 2.into();
    let whole = 20 << 20;
    site.file("ote/firmware.ld", vec![7; whole]);
    let server = site.start();
    let mut connection = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    // Pauses shorter than stall_s, together longer than any timeout; buffered data is read at once.
    connection.send(format!("GET /firmware.ld HTTP/1.1\r\nHost: ote.{DOMAIN}\r\n\r\n").as_bytes()).unwrap();
    let mut received = 0;
    let mut pauses = 0;
    let mut next_pause = 0;
    while received < whole {
        if received >= next_pause && pauses < 6 {
            thread::sleep(Duration::from_millis(600));
            pauses += 1;
            next_pause = pauses * whole / 6;
        }
        received += connection.read_some().unwrap();
    }
    let line = server.access("the download", |line| line["path"] == "/firmware.ld");
    assert_eq!((&line["reason"], &line["bytes"]), (&Value::Null, &whole.into()));
    assert_eq!(pauses, 6);
}
