//! Uploads with Content-Range, chunked bodies and `100 Continue`: which of them change the file.

use crate::harness::site::{Site, holds};
use crate::harness::tls::{Client, Response};
use crate::harness::{VVX500, eventually};
use crate::uploads::{LOG, begin_put, content, curl, files_below, incomplete_uploads, phone};

const OLD: &[u8] = b"0123456789";

fn put_range(client: &Client, range: &str, body: &[u8]) -> Response {
    client.put(LOG, &format!("Content-Range: {range}\r\n"), body).unwrap()
}

/// A chunked body, in chunks of 3 bytes.
fn chunked(body: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    for chunk in body.chunks(3) {
        sent.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        sent.extend([chunk, b"\r\n"].concat());
    }
    sent.extend(b"0\r\n\r\n");
    sent
}

fn put_chunked(client: &Client, headers: &str, body: &[u8]) -> u16 {
    let headers = format!("Transfer-Encoding: chunked\r\n{headers}");
    client.put(LOG, &headers, &chunked(body)).unwrap().status
}

#[test]
fn content_range_appends_or_replaces_a_tail_or_all() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    let steps: [(&str, &[u8], u16, &[u8]); 9] = [
        ("bytes 0-9/10", OLD, 201, OLD),
        ("bytes 10-12/13", b"abc", 204, b"0123456789abc"),
        ("bytes 13-13/*", b"d", 204, b"0123456789abcd"),
        ("bytes 5-6/7", b"XY", 204, b"01234XY"),
        ("bytes 6-8/9", b"890", 204, b"01234X890"),
        ("bytes 9-9/4096", b"!", 204, b"01234X890!"),
        ("Bytes 0-2/3", b"new", 204, b"new"),
        ("bytes 1-1/*", b"o", 204, b"no"),
        ("bytes 2-3/4", b"de", 204, b"node"),
    ];
    for (range, body, status, result) in steps {
        assert_eq!(put_range(&phone, range, body).status, status, "{range}");
        assert!(holds(&stored, result), "{range}: {:?}", std::fs::read(&stored));
    }
    assert_eq!(phone.put(LOG, "", b"").unwrap().status, 204);
    assert_eq!(put_range(&phone, "bytes 0-1/2", b"ab").status, 204, "an empty file is appended to");
    assert!(holds(&stored, "ab"));
}

#[test]
fn range_put_beyond_eof_gets_409_with_the_real_size() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let far = 1u64 << 40;
    let starts = [1, 2, far, u64::MAX - 1];
    for (size, body) in [(0, None), (10, Some(OLD))] {
        if let Some(body) = body {
            assert_eq!(phone.put(LOG, "", body).unwrap().status, 201);
        }
        for start in starts.map(|start| start.saturating_add(size)).into_iter().filter(|start| *start < u64::MAX) {
            let response = put_range(&phone, &format!("bytes {start}-{start}/*"), b"x");
            assert_eq!(response.status, 409, "{start}");
            assert_eq!(response.header("content-range"), Some(format!("bytes */{size}").as_str()), "{start}");
        }
    }
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), OLD));
    assert_eq!(files_below(&site.path("state/uploads")).len(), 1);
}

#[test]
fn malformed_or_mismatched_content_range_gets_400() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let wrong = [
        "bytes 9-8/10",
        "bytes 0-1/1",
        "bytes 0-1/2, bytes 2-3/4",
        "bytes 0-0,1-1/2",
        "bytes */2",
        "bytes */*",
        "bytes 0-18446744073709551615/*",
        "bytes 18446744073709551615-18446744073709551616/*",
        "bytes 0-99999999999999999999999/*",
        "bytes -1/2",
        "bytes 0-/2",
        "bytes 0-1",
        "bytes 0-1/",
        "bytes +0-1/2",
        "bytes 0x0-1/2",
        "bytes=0-1/2",
        "lines 0-1/2",
        "bytes",
        "",
        // The body below has two bytes.
        "bytes 0-0/1",
        "bytes 0-2/3",
        "bytes 10-10/11",
        "bytes 10-99/100",
        "bytes 4-9/10",
    ];
    let check = |stored: &[String]| {
        for range in wrong {
            assert_eq!(put_range(&phone, range, b"xy").status, 400, "{range}");
            assert_eq!(files_below(&site.path("state/uploads")), stored, "{range}");
        }
        let two = "Content-Range: bytes 0-1/2\r\nContent-Range: bytes 0-1/2\r\n";
        assert_eq!(phone.put(LOG, two, b"xy").unwrap().status, 400);
        assert_eq!(put_range(&phone, "bytes 0-0/1", b"").status, 400, "no body at all");
    };
    check(&[]);
    assert_eq!(phone.put(LOG, "", OLD).unwrap().status, 201);
    check(&["ote/00005e00530c/00005e00530c-app.log".to_owned()]);
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), OLD));
}

#[test]
fn chunked_body_must_have_the_length_of_its_range() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    for range in ["bytes 0-9/10", "bytes 0-7/8"] {
        assert_eq!(put_chunked(&phone, &format!("Content-Range: {range}\r\n"), b"9 bytes !"), 400, "{range}");
        assert!(!stored.exists(), "{range}");
    }
    assert_eq!(put_chunked(&phone, "", OLD), 201);
    assert!(holds(&stored, OLD));
    for (first, last) in [(10, 17), (10, 19), (5, 12), (5, 14), (0, 7), (0, 9)] {
        let range = format!("Content-Range: bytes {first}-{last}/{}\r\n", last + 1);
        assert_eq!(put_chunked(&phone, &range, b"9 bytes !"), 400, "{range}");
        assert!(holds(&stored, OLD), "{range}");
    }
    assert_eq!(put_chunked(&phone, "Content-Range: bytes 10-18/19\r\n", b"9 bytes !"), 204);
    assert!(holds(&stored, "01234567899 bytes !"));
    assert_eq!(put_chunked(&phone, "Content-Range: bytes 4-12/13\r\n", b"9 bytes !"), 204);
    assert!(holds(&stored, "01239 bytes !"));
    assert_eq!(put_chunked(&phone, "", b""), 204);
    assert!(holds(&stored, ""));
    assert_eq!(incomplete_uploads(&site), 0);
}

#[test]
fn chunked_append_of_a_wrong_length_is_rolled_back() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    assert_eq!(phone.put(LOG, "", OLD).unwrap().status, 201);
    // Long enough that much of it is on the disk before the error is known.
    let body = content(700_000, 1);
    let mut sending = phone.connect().unwrap();
    let headers = "Transfer-Encoding: chunked\r\nContent-Range: bytes 10-800009/800010\r\n";
    sending.send_head("PUT", LOG, headers).unwrap();
    sending.send(format!("{:x}\r\n", body.len()).as_bytes()).unwrap();
    sending.send(&body).unwrap();
    eventually("the append to grow", || (std::fs::metadata(&stored).unwrap().len() > 10).then_some(()));
    sending.send(b"\r\n0\r\n\r\n").unwrap();
    assert_eq!(sending.response("PUT").unwrap().status, 400);
    assert!(holds(&stored, OLD));
}

#[test]
fn aborted_append_keeps_its_prefix_and_can_resume() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    begin_put(&phone, LOG, "Content-Range: bytes 0-9/10\r\n", 10, b"01234").hang_up();
    eventually("the prefix", || holds(&stored, "01234").then_some(()));
    server.reason("the upload was incomplete");
    assert_eq!(phone.request("HEAD", LOG, "", b"").unwrap().header("content-length"), Some("5"));
    assert_eq!(put_range(&phone, "bytes 5-9/10", b"56789").status, 204);
    assert!(holds(&stored, OLD));
    let body = content(600_000, 2);
    begin_put(&phone, LOG, "Content-Range: bytes 10-600009/600010\r\n", body.len(), &body[..500_000]).hang_up();
    let whole = [OLD, &body].concat();
    eventually("the long prefix", || holds(&stored, &whole[..500_010]).then_some(()));
    eventually("the file to be free", || {
        (put_range(&phone, "bytes 500010-600009/600010", &body[500_000..]).status == 204).then_some(())
    });
    assert!(holds(&stored, &whole));
}

#[test]
fn failed_append_leaves_no_new_folder() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let folder = site.uploads("ote", VVX500);
    let lie = "Transfer-Encoding: chunked\r\nContent-Range: bytes 0-7/8\r\n";
    let refused = |path: &str| phone.put(path, lie, &chunked(b"9 bytes !")).unwrap().status == 400;
    assert!(refused(&format!("/a/b{LOG}")));
    eventually("all files to be removed", || (!folder.exists()).then_some(()));
    assert_eq!(phone.put(&format!("/a{LOG}"), "", OLD).unwrap().status, 201);
    assert!(refused(&format!("/a/b/c{LOG}")));
    eventually("the new folders to go", || (!folder.join("a/b").exists()).then_some(()));
    assert!(holds(&folder.join("a").join(&LOG[1..]), OLD));
}

#[test]
fn append_aborted_before_its_first_byte_leaves_no_file() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    let sending = begin_put(&phone, LOG, "Content-Range: bytes 0-9/10\r\n", 10, b"");
    eventually("the upload to begin", || stored.exists().then_some(()));
    drop(sending);
    server.reason("the upload was incomplete");
    assert!(!stored.exists());
}

#[test]
fn aborted_replacement_leaves_the_old_file() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    assert_eq!(phone.put(LOG, "", OLD).unwrap().status, 201);
    let body = content(600_000, 3);
    let ranges = ["", "Content-Range: bytes 0-599999/600000\r\n", "Content-Range: bytes 9-600008/600009\r\n"];
    for (number, range) in ranges.iter().enumerate() {
        let sending = begin_put(&phone, LOG, range, body.len(), &body[..500_000]);
        eventually("the upload to begin", || (incomplete_uploads(&site) == 1).then_some(()));
        assert_eq!(phone.get(LOG).unwrap().body, OLD, "{range}");
        drop(sending);
        let is_of_break = |line: &&serde_json::Value| {
            line["reason"].as_str().is_some_and(|it| it.contains("the upload was incomplete"))
        };
        eventually("the upload to end and to be logged", || {
            (server.access_lines().iter().filter(is_of_break).count() == number + 1).then_some(())
        });
        assert_eq!(incomplete_uploads(&site), 0);
        assert_eq!(phone.get(LOG).unwrap().body, OLD, "{range}");
    }
}

#[test]
fn expect_100_continue_is_answered_or_refused_at_once() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let head = "Content-Length: 10\r\nExpect: 100-continue\r\n";
    let mut welcome = phone.connect().unwrap();
    welcome.send_head("PUT", LOG, head).unwrap();
    assert_eq!(welcome.head().unwrap().0, 100);
    welcome.send(OLD).unwrap();
    assert_eq!(welcome.response("PUT").unwrap().status, 201);
    let refusals = [
        ("/site.cfg", "", 403),
        (LOG, "Content-Range: bytes 11-20/21\r\n", 409),
        (LOG, "Content-Range: bytes 0-3/4\r\n", 400),
        (LOG, "Content-Range: nonsense\r\n", 400),
    ];
    for (path, range, status) in refusals {
        let mut refused = phone.connect().unwrap();
        refused.send_head("PUT", path, &format!("{head}{range}")).unwrap();
        assert_eq!(refused.head().unwrap().0, status, "{path} {range}");
    }
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), OLD));
}

#[test]
fn refusal_after_100_continue_reaches_the_client() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let mut sending = phone.connect().unwrap();
    let head = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\nContent-Range: bytes 0-9/10\r\n";
    sending.send_head("PUT", LOG, head).unwrap();
    assert_eq!(sending.head().unwrap().0, 100);
    let body = chunked(&content(300_000, 4));
    sending.send(&body).unwrap();
    assert_eq!(sending.response("PUT").unwrap().status, 400);
    assert_eq!(sending.get("/site.cfg").unwrap().status, 200, "all of the body was read, so the connection goes on");
}

#[test]
fn refused_upload_of_50_mib_is_answered() {
    let site = Site::with_ote();
    let server = site.start();
    let body = vec![b'x'; 50 << 20];
    for (path, status) in [("/site.cfg", 403), (LOG, 413)] {
        let file = site.path("large");
        std::fs::write(&file, &body).unwrap();
        let ended = curl(&site, &server, path, &["-T", file.to_str().unwrap(), "-H", "Expect:"]);
        assert_eq!(ended.stdout, status.to_string(), "{}", ended.stderr);
    }
    assert_eq!(files_below(&site.path("state/uploads")), Vec::<String>::new());
}

#[test]
fn shadowing_upload_is_never_served_partially() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let body = content(600_000, 5);
    let mut seen = 0;
    for kind in ["-phone.cfg", "-web.cfg", "-directory.xml", "-calls.xml"] {
        let path = format!("/overrides/{VVX500}{kind}");
        site.file(&format!("ote{path}"), "<folder/>");
        // Without an earlier upload, and with one of ten bytes: replaced, appended to, with its tail rewritten.
        for (before, range) in [
            (None, ""),
            (None, "bytes 0-599999/600000"),
            (Some(OLD), "bytes 0-599999/600000"),
            (Some(OLD), "bytes 10-600009/600010"),
            (Some(OLD), "bytes 10-600009/*"),
            (Some(OLD), "bytes 9-600008/600009"),
        ] {
            if let Some(before) = before {
                assert_eq!(phone.put(&path, "", before).unwrap().status / 100, 2);
            }
            let whole = before.unwrap_or(b"<folder/>");
            let headers = if range.is_empty() { String::new() } else { format!("Content-Range: {range}\r\n") };
            let sending = begin_put(&phone, &path, &headers, body.len(), &body[..500_000]);
            eventually("the upload to begin", || (incomplete_uploads(&site) == 1).then_some(()));
            assert_eq!(phone.get(&path).unwrap().body, whole, "{kind} {range} while it runs");
            sending.hang_up();
            eventually("the upload to end", || (incomplete_uploads(&site) == 0).then_some(()));
            assert_eq!(phone.get(&path).unwrap().body, whole, "{kind} {range} when it has broken off");
            let refused = phone.put(&path, &format!("Transfer-Encoding: chunked\r\n{headers}"), b"4\r\nhalf\r\n!");
            assert!(refused.is_err() || refused.unwrap().status >= 400);
            assert_eq!(phone.get(&path).unwrap().body, whole, "{kind} {range} when it was malformed");
            seen += 1;
        }
        assert_eq!(phone.put(&path, "Content-Range: bytes 10-12/13\r\n", b"new").unwrap().status, 204);
        assert_eq!(phone.get(&path).unwrap().body, [OLD, b"new"].concat(), "{kind}: a whole append takes effect");
    }
    assert_eq!(seen, 24);
}
