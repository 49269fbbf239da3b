//! HTTP framing: invalid requests are refused and logged, and no request is smuggled inside another.

use crate::harness::VVX500;
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::tls::Connection;

const HEAD: &str = "Host: ote.phones.example.com\r\n";

fn connect(server: &Running) -> Connection {
    server.client("ote", &FACTORY.device(VVX500)).connect().unwrap()
}

/// Sends bytes, reads until the server closes, and returns the status lines.
fn statuses(server: &Running, bytes: &[u8]) -> Vec<u16> {
    let mut connection = connect(server);
    // It may refuse before it has read everything.
    let _ = connection.send(bytes);
    let answers = String::from_utf8_lossy(&connection.read_to_close().unwrap()).into_owned();
    let lines = answers.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3));
    lines.map(|status| status.parse().unwrap()).collect()
}

/// The access log including all earlier requests; lines are written in the order in which requests end.
fn all_lines(server: &Running) -> Vec<serde_json::Value> {
    connect(server).get("/the-last-one").unwrap();
    server.access("the last request", |line| line["path"] == "/the-last-one");
    server.access_lines()
}

#[test]
fn malformed_request_is_refused_and_logged() {
    let site = Site::with_ote();
    let server = site.start();
    let many: String = (0..100).map(|number| format!("X-{number}: 1\r\n")).collect();
    let secret = "Authorization: Digest response=\"5ec2e7\"\r\n";
    let get = format!("GET /site.cfg HTTP/1.1\r\n{HEAD}{secret}");
    let asked = r#""GET /site.cfg HTTP/1.1""#;
    let long = format!("\"GET /{}...\"", "a".repeat(195));
    let cases = [
        ("HELO there\r\n\r\n".to_owned(), 400, r#""HELO there""#),
        ("GET /site.cfg\r\n\r\n".to_owned(), 400, r#""GET /site.cfg""#),
        ("GET /site.cfg HTTP/3.0\r\n\r\n".to_owned(), 400, r#""GET /site.cfg HTTP/3.0""#),
        (
            format!("GET /si te.cfg HTTP/1.1\r\n{HEAD}{secret}\r\n"),
            400,
            r#"a raw space in the target (write %20) in "GET /si te.cfg HTTP/1.1""#,
        ),
        (format!("\r\n\r\nGET /a b HTTP/1.1\r\n{HEAD}\r\n"), 400, r#""GET /a b HTTP/1.1""#),
        (format!("GET /site.cfg\x01 HTTP/1.1\r\n{HEAD}\r\n"), 400, r#""GET /site.cfg\x01 HTTP/1.1""#),
        (format!("GET https://me:pass word@a/b c HTTP/1.1\r\n{HEAD}\r\n"), 400, r#""GET https://...@a/b c HTTP/1.1""#),
        (format!("{secret}\r\n"), 400, ""),
        (format!("{get}Bad Header: 1\r\n\r\n"), 400, asked),
        (format!("{get}X: a\0b\r\n\r\n"), 400, asked),
        (format!("{get} folded: 1\r\n\r\n"), 400, asked),
        // hyper refuses these after it has parsed the header.
        (format!("{get}Content-Length: +1\r\n\r\nGET /body HTTP/1.1"), 400, asked),
        (format!("{get}Transfer-Encoding: gzip\r\n\r\nGET /body HTTP/1.1"), 400, asked),
        (format!("GET {{ HTTP/1.1\r\n{HEAD}\r\n"), 400, r#""GET { HTTP/1.1""#),
        (format!("GET /{} HTTP/1.1\r\n{HEAD}\r\n", "a".repeat(70_000)), 431, &long),
        (format!("{get}X: {}\r\n\r\n", "a".repeat(70_000)), 431, asked),
        (format!("{get}{many}\r\n"), 431, asked),
    ];
    for (count, (request, status, asked)) in cases.iter().enumerate() {
        let shown = &request[..request.len().min(60)];
        assert_eq!(statuses(&server, request.as_bytes()), [*status], "{shown:?}");
        let is_logged = |line: &serde_json::Value| {
            line["reason"].as_str().is_some_and(|reason| reason.starts_with("malformed request: "))
        };
        let lines = crate::harness::eventually("a line of its own for each refusal", || {
            let lines: Vec<_> = server.access_lines().into_iter().filter(is_logged).collect();
            (lines.len() == count + 1).then_some(lines)
        });
        let last = lines.last().unwrap();
        assert_eq!((&last["status"], &last["mac"]), (&(*status).into(), &VVX500.into()), "{shown:?}: {last}");
        let reason = last["reason"].as_str().unwrap();
        assert!(reason.contains(asked) && !reason.contains("5ec2e7") && !reason.contains("/body"), "{shown:?}: {last}");
    }
}

#[test]
fn http2_preface_is_closed_and_logged() {
    let site = Site::with_ote();
    let server = site.start();
    assert_eq!(statuses(&server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Vec::<u16>::new());
    let line = server.reason("HTTP/2 is not supported");
    assert!(line["status"].is_null(), "no answer was sent: {line}");
}

#[test]
fn malformed_later_request_is_logged_with_its_own_line() {
    let site = Site::with_ote();
    let server = site.start();
    let good = format!("GET /site.cfg HTTP/1.1\r\n{HEAD}\r\n");
    let both = |requests: &str| {
        let mut connection = connect(&server);
        connection.send(requests.as_bytes()).unwrap();
        [(); 2].map(|()| connection.response("GET").unwrap().status)
    };
    // The second of two on a connection, and the second of two sent together.
    let mut one_by_one = connect(&server);
    one_by_one.send(good.as_bytes()).unwrap();
    assert_eq!(one_by_one.response("GET").unwrap().status, 200);
    one_by_one.send(format!("GET /one by one HTTP/1.1\r\n{HEAD}\r\n").as_bytes()).unwrap();
    assert_eq!(one_by_one.response("GET").unwrap().status, 400);
    drop(one_by_one);
    server.reason("\"GET /one by one HTTP/1.1\"");
    let together = format!("{good}GET /to gether HTTP/1.1\r\n{HEAD}\r\n");
    assert_eq!(both(&together), [200, 400]);
    server.reason("\"GET /to gether HTTP/1.1\"");
    // A request refused for its header is not logged as the request before or after it.
    let by_header = format!("{good}GET /other.cfg HTTP/1.1\r\n{HEAD}Content-Length: x\r\n\r\nsecret of the body");
    assert_eq!(both(&by_header), [200, 400]);
    let line = server.reason("content-length");
    assert!(line["reason"].as_str().unwrap().ends_with(" in \"GET /other.cfg HTTP/1.1\""), "{line}");
    // Bytes after a request that arrived in pieces are not logged as a request line.
    let mut in_pieces = connect(&server);
    in_pieces.send(format!("{good}GET /?x=se").as_bytes()).unwrap();
    assert_eq!(in_pieces.response("GET").unwrap().status, 200);
    in_pieces.send(format!("cret word HTTP/1.1\r\n{HEAD}Content-Length: y\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(in_pieces.response("GET").unwrap().status, 400);
    drop(in_pieces);
    server.reason("\"GET /?x=secret word HTTP/1.1\"");
}

#[test]
fn refused_client_may_send_the_rest_without_a_reset() {
    let site = Site::with_ote();
    let server = site.start();
    let long = format!("GET /site.cfg HTTP/1.1\r\n{HEAD}X: {}", "a".repeat(20_000));
    for (begun, status) in [("HELO there\r\n\r\n", 400), (long.as_str(), 431)] {
        let mut phone = connect(&server);
        phone.send(begun.as_bytes()).unwrap();
        assert_eq!(phone.response("GET").unwrap().status, status);
        assert_eq!(phone.read_to_close().unwrap(), b"");
        // Closing early would send a reset, which can overtake the response.
        for number in 0..200 {
            phone.send(&[b'a'; 1000]).unwrap_or_else(|error| panic!("{status}, piece {number}: {error}"));
        }
    }
}

#[test]
fn disconnect_between_requests_is_not_logged() {
    let site = Site::with_ote();
    let server = site.start();
    let mut phone = connect(&server);
    phone.get("/site.cfg").unwrap();
    drop(phone);
    let mut other = connect(&server);
    other.get("/absent.cfg").unwrap();
    assert_eq!(server.stderr().iter().filter(|line| line.contains("ERROR")).count(), 0);
    server.signal(rustix::process::Signal::TERM);
    let (_, lines) = server.ended();
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let site = Site::with_ote();
    site.file("ote/other.cfg", "<other/>");
    let server = site.start();
    let mut phone = connect(&server);
    let one = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\n{HEAD}\r\n");
    let requests =
        [one("GET", "/site.cfg"), one("HEAD", "/site.cfg"), one("GET", "/absent"), one("GET", "/other.cfg")].concat();
    phone.send(requests.as_bytes()).unwrap();
    assert_eq!(phone.response("GET").unwrap().text(), "<site/>");
    assert_eq!(phone.response("HEAD").unwrap().header("content-length"), Some("7"));
    assert_eq!(phone.response("GET").unwrap().status, 404);
    assert_eq!(phone.response("GET").unwrap().text(), "<other/>");
    phone.send(format!("PUT /00005e00530c-app.log HTTP/1.1\r\n{HEAD}Content-Length: 3\r\n\r\nabc").as_bytes()).unwrap();
    phone.send(one("GET", "/00005e00530c-app.log").as_bytes()).unwrap();
    assert_eq!(phone.response("PUT").unwrap().status, 201);
    assert_eq!(phone.response("GET").unwrap().text(), "abc");
}

#[test]
fn chunked_overrides_content_length_and_closes() {
    let site = Site::with_ote();
    let server = site.start();
    let smuggled = format!("GET /site.cfg HTTP/1.1\r\n{HEAD}\r\n");
    let request = format!(
        "PUT /00005e00530c-app.log HTTP/1.1\r\n{HEAD}Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\n{smuggled}",
        smuggled.len()
    );
    assert_eq!(statuses(&server, request.as_bytes()), [201], "one answer, and the following bytes are not read");
    let stored = connect(&server).get("/00005e00530c-app.log").unwrap();
    assert_eq!(stored.text(), "abc");
    assert!(all_lines(&server).iter().all(|line| line["path"] != "/site.cfg"));
}

#[test]
fn ambiguous_framing_never_yields_a_second_request() {
    let site = Site::with_ote();
    let server = site.start();
    let inner = format!("GET /smuggled HTTP/1.1\r\n{HEAD}\r\n");
    let chunk = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    // Each is one request or none, never two.
    let framings = [
        format!("Content-Length: {0}\r\nContent-Length: 0\r\n\r\n{inner}", inner.len()),
        format!("Content-Length: 0, {}\r\n\r\n{inner}", inner.len()),
        format!("Content-Length: +0\r\n\r\n{inner}"),
        format!("Content-Length: -1\r\n\r\n{inner}"),
        format!("Content-Length : 0\r\n\r\n{inner}"),
        format!("Transfer-Encoding : chunked\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: xchunked\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: chunked, identity\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: identity\r\nTransfer-Encoding: \tx\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{inner}"),
        format!("Transfer-Encoding: chunked\r\n\r\n-1\r\n{inner}"),
        format!("Transfer-Encoding: chunked\r\n\r\n0;\n\r\n{inner}"),
        format!("Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n{inner}"),
        format!("Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n{inner}"),
        format!("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{inner}"),
    ];
    for framing in &framings {
        for (method, path) in [("PUT", "/00005e00530c-app.log"), ("GET", "/site.cfg")] {
            let request = format!("{method} {path} HTTP/1.1\r\n{HEAD}{framing}");
            let answers = statuses_with_end(&server, &request);
            assert!(answers.len() <= 1, "{answers:?} to {request:?}");
        }
    }
    let lines = all_lines(&server);
    assert!(lines.len() > framings.len(), "{lines:?}");
    assert!(lines.iter().all(|line| line["path"] != "/smuggled"), "{lines:?}");
}

#[test]
fn body_of_a_get_is_not_parsed_as_a_request() {
    let site = Site::with_ote();
    let server = site.start();
    let inner = format!("GET /smuggled HTTP/1.1\r\n{HEAD}\r\n");
    let mut phone = connect(&server);
    let get = format!("GET /site.cfg HTTP/1.1\r\n{HEAD}Content-Length: {}\r\n\r\n{inner}", inner.len());
    phone.send(format!("{get}GET /absent HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(phone.response("GET").unwrap().text(), "<site/>");
    // The next response on the connection is for the request after the body, if the connection stays open.
    let rest = String::from_utf8(phone.read_to_close().unwrap()).unwrap();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 404"), "{rest}");
    assert!(all_lines(&server).iter().all(|line| line["path"] != "/smuggled"));
}

/// Like `statuses`, but the client also closes its side, so that a server that waits for more gives up.
fn statuses_with_end(server: &Running, request: &str) -> Vec<u16> {
    let mut connection = connect(server);
    let _ = connection.send(request.as_bytes());
    let _ = connection.tcp().shutdown(std::net::Shutdown::Write);
    let answers = String::from_utf8_lossy(&connection.read_to_close().unwrap_or_default()).into_owned();
    let lines = answers.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3));
    lines.map(|status| status.parse().unwrap()).collect()
}
