//! Responses with files: whole, partial, and conditional.

use std::os::unix::fs::MetadataExt;

use crate::harness::VVX500;
use crate::harness::eventually;
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::tls::{Client, Connection, Response};

const TEXT: &str = "0123456789abcdefghij";

fn client(server: &Running) -> Client {
    server.client("ote", &FACTORY.device(VVX500))
}

fn phone(server: &Running) -> Connection {
    client(server).connect().unwrap()
}

#[test]
fn get_and_head_carry_length_etag_and_last_modified() {
    let site = Site::with_ote();
    let file = site.file("ote/text.cfg", TEXT);
    let server = site.start();
    let mut phone = phone(&server);
    let got = phone.get("/text.cfg").unwrap();
    assert_eq!((got.status, got.text().as_str()), (200, TEXT));
    assert_eq!(got.header("content-length"), Some("20"));
    assert_eq!(got.header("accept-ranges"), Some("bytes"));
    let modified = httpdate::fmt_http_date(file.metadata().unwrap().modified().unwrap());
    assert_eq!(got.header("last-modified"), Some(modified.as_str()));
    let etag = got.header("etag").unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2, "a strong tag: {etag}");

    let head = phone.request("HEAD", "/text.cfg", "", b"").unwrap();
    assert_eq!(head.body, b"");
    assert_eq!(
        Response { body: got.body.clone(), ..head }.without_date(),
        got.without_date(),
        "HEAD says what GET does"
    );
    let line = server.access("the HEAD", |line| line["method"] == "HEAD");
    assert_eq!((&line["bytes"], &line["reason"]), (&0.into(), &serde_json::Value::Null));
}

#[test]
fn empty_file_is_served() {
    let site = Site::with_ote();
    site.file("ote/empty.cfg", "");
    let server = site.start();
    let mut phone = phone(&server);
    for method in ["GET", "HEAD"] {
        let got = phone.request(method, "/empty.cfg", "", b"").unwrap();
        assert_eq!((got.status, got.header("content-length")), (200, Some("0")), "{method}");
    }
    let ranged = phone.request("GET", "/empty.cfg", "Range: bytes=0-\r\n", b"").unwrap();
    assert_eq!((ranged.status, ranged.header("content-range")), (416, Some("bytes */0")));
}

#[test]
fn conditional_requests_get_304_or_412() {
    let site = Site::with_ote();
    site.file("ote/text.cfg", TEXT);
    let server = site.start();
    let mut phone = phone(&server);
    let got = phone.get("/text.cfg").unwrap();
    let (etag, modified) = (got.header("etag").unwrap(), got.header("last-modified").unwrap());
    let cases = [
        (format!("If-None-Match: {etag}"), 304),
        (format!("If-None-Match: \"x\", W/{etag}"), 304),
        ("If-None-Match: *".to_owned(), 304),
        ("If-None-Match: \"x\"".to_owned(), 200),
        (format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {modified}"), 200),
        (format!("If-Modified-Since: {modified}"), 304),
        ("If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT".to_owned(), 200),
        ("If-Modified-Since: nonsense".to_owned(), 200),
        (format!("If-Match: {etag}"), 200),
        ("If-Match: \"x\"".to_owned(), 412),
        ("If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT".to_owned(), 412),
        // Conditions are evaluated before ranges.
        (format!("If-None-Match: {etag}\r\nRange: bytes=0-1"), 304),
    ];
    for (condition, status) in cases {
        for method in ["GET", "HEAD"] {
            let got = phone.request(method, "/text.cfg", &format!("{condition}\r\n"), b"").unwrap();
            assert_eq!(got.status, status, "{method} {condition}");
            if status == 304 {
                assert_eq!((got.header("etag"), got.body.as_slice()), (Some(etag), &b""[..]), "{condition}");
            }
        }
    }
    assert_eq!(phone.request("GET", "/absent", "If-None-Match: *\r\n", b"").unwrap().status, 404);
}

#[test]
fn refused_head_has_the_headers_of_the_refused_get() {
    let site = Site::with_ote();
    site.file("ote/text.cfg", TEXT);
    let server = site.start();
    let cases = [
        ("/absent", "", 404),
        ("/%00", "", 400),
        ("/00005e0053c7.cfg", "", 403),
        ("/text.cfg", "If-Match: \"x\"\r\n", 412),
    ];
    for (path, headers, status) in cases {
        let ask = |method| phone(&server).request(method, path, headers, b"").unwrap().without_date();
        let (get, head) = (ask("GET"), ask("HEAD"));
        assert_eq!((get.status, head.status), (status, status), "{path}");
        assert_eq!((head.headers, head.body), (get.headers, Vec::new()), "{path}");
    }
}

#[test]
fn single_range_gets_206_and_several_get_the_whole_file() {
    let site = Site::with_ote();
    site.file("ote/text.cfg", TEXT);
    let server = site.start();
    let mut phone = phone(&server);
    let whole = phone.get("/text.cfg").unwrap();
    let (etag, modified) = (whole.header("etag").unwrap(), whole.header("last-modified").unwrap());
    let cases = [
        ("bytes=0-3".to_owned(), Some("bytes 0-3/20")),
        ("bytes=15-".to_owned(), Some("bytes 15-19/20")),
        ("bytes=-3".to_owned(), Some("bytes 17-19/20")),
        ("bytes=-300".to_owned(), Some("bytes 0-19/20")),
        ("bytes=19-99999999999999999999".to_owned(), Some("bytes 19-19/20")),
        (format!("bytes=0-3\r\nIf-Range: {etag}"), Some("bytes 0-3/20")),
        (format!("bytes=0-3\r\nIf-Range: {modified}"), Some("bytes 0-3/20")),
        ("bytes=0-3\r\nIf-Range: \"x\"".to_owned(), None),
        (format!("bytes=0-3\r\nIf-Range: W/{etag}"), None),
        ("bytes=0-3\r\nIf-Range: Thu, 01 Jan 1970 00:00:00 GMT".to_owned(), None),
        ("bytes=0-3,5-6".to_owned(), None),
        ("bytes=0-3\r\nRange: bytes=5-6".to_owned(), None),
        ("bytes=5-4".to_owned(), None),
        ("lines=0-3".to_owned(), None),
        ("nonsense".to_owned(), None),
    ];
    for (range, expected) in cases {
        let got = phone.request("GET", "/text.cfg", &format!("Range: {range}\r\n"), b"").unwrap();
        assert_eq!(got.header("content-range"), expected, "{range:?}");
        let (status, text) = match expected.and_then(|range| range["bytes ".len()..].split(['-', '/']).next()) {
            Some(first) => (206, &TEXT[first.parse().unwrap()..][..got.body.len()]),
            None => (200, TEXT),
        };
        assert_eq!((got.status, got.text().as_str()), (status, text), "{range:?}");
        assert_eq!(got.header("content-length"), Some(got.body.len().to_string().as_str()), "{range:?}");
        assert_eq!(got.header("etag"), Some(etag), "{range:?}");
    }
    for range in ["bytes=20-", "bytes=99999999999999999999-", "bytes=-0"] {
        let got = phone.request("GET", "/text.cfg", &format!("Range: {range}\r\n"), b"").unwrap();
        assert_eq!((got.status, got.header("content-range")), (416, Some("bytes */20")), "{range:?}");
    }
}

#[test]
fn range_is_ignored_for_head() {
    let site = Site::with_ote();
    site.file("ote/text.cfg", TEXT);
    let server = site.start();
    let mut phone = phone(&server);
    for range in ["bytes=0-3", "bytes=20-"] {
        let head = phone.request("HEAD", "/text.cfg", &format!("Range: {range}\r\n"), b"").unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some("20")), "{range}");
    }
}

#[test]
fn every_file_change_changes_the_etag() {
    let site = Site::with_ote();
    let file = site.file("ote/text.cfg", "one");
    let server = site.start();
    let mut phone = phone(&server);
    let mut tags = vec![phone.get("/text.cfg").unwrap().header("etag").unwrap().to_owned()];
    let mut changed = |what: &str, content: &str| {
        let got = phone.get("/text.cfg").unwrap();
        let tag = got.header("etag").unwrap().to_owned();
        assert_eq!(got.text(), content, "{what}");
        assert!(!tags.contains(&tag), "{what}: {tag} was another content's");
        tags.push(tag);
    };
    // Rewritten in place with the same size and time; the loop only waits until the clock has advanced.
    let (before, modified) = (file.metadata().unwrap(), file.metadata().unwrap().modified().unwrap());
    eventually("a tick of the file system's clock", || {
        std::fs::write(&file, "two").unwrap();
        let open = std::fs::File::options().write(true).open(&file).unwrap();
        open.set_modified(modified).unwrap();
        let now = file.metadata().unwrap();
        assert_eq!(now.modified().unwrap(), modified);
        ((now.ctime(), now.ctime_nsec()) != (before.ctime(), before.ctime_nsec())).then_some(())
    });
    changed("in place", "two");
    // Replaced by a rename, like rsync does.
    let new = site.file("ote/.text.cfg.new", "six");
    std::fs::File::options().write(true).open(&new).unwrap().set_modified(modified).unwrap();
    std::fs::rename(&new, &file).unwrap();
    changed("replaced", "six");
    std::fs::write(&file, "three").unwrap();
    changed("longer", "three");
}

#[test]
fn content_type_follows_from_the_file_name() {
    let types = [
        ("000000000000.cfg", "text/xml"),
        ("000000000000-directory.xml", "text/xml"),
        ("SITE.CFG", "text/xml"),
        ("3111-44500-001.sip.ld", "application/octet-stream"),
        ("Welcome.wav", "audio/wav"),
        ("logo.jpg", "image/jpeg"),
        ("logo.png", "image/png"),
        ("readme.txt", "text/plain"),
        ("app.log", "text/plain"),
        ("nothing", "application/octet-stream"),
        ("unheard.of", "application/octet-stream"),
        ("folder.xml/nothing", "application/octet-stream"),
    ];
    let site = Site::with_ote();
    for (name, _) in types {
        site.file(&format!("ote/{name}"), "x");
    }
    let server = site.start();
    let mut phone = phone(&server);
    for (name, expected) in types {
        assert_eq!(phone.get(&format!("/{name}")).unwrap().header("content-type"), Some(expected), "{name}");
    }
}

#[test]
fn changed_file_is_served_at_once_despite_the_fd_cache() {
    let site = Site::with_ote();
    site.file("other/secret.cfg", "a secret");
    let file = site.file("ote/a.cfg", "first");
    let server = site.start();
    // Several connections, so that every thread of the server has sent it.
    let mut phones: Vec<Connection> = (0..8).map(|_| phone(&server)).collect();
    let mut all_get = |what: &str, status: u16, content: &str| {
        for _ in 0..3 {
            for connection in &mut phones {
                let got = connection.get("/a.cfg").unwrap();
                assert_eq!(got.status, status, "{what}");
                assert!(status != 200 || got.text() == content, "{what}: {}", got.text());
            }
        }
    };
    all_get("at first", 200, "first");
    std::fs::write(&file, "again").unwrap();
    all_get("written in place, as long as before", 200, "again");
    let new = site.file("ote/new.cfg", "third");
    std::fs::rename(&new, &file).unwrap();
    all_get("replaced by a rename", 200, "third");
    std::fs::remove_file(&file).unwrap();
    all_get("removed", 404, "");
    std::fs::create_dir(&file).unwrap();
    all_get("a folder", 404, "");
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, "fourth").unwrap();
    all_get("there again", 200, "fourth");
    std::fs::rename(&file, site.served("ote/b.cfg")).unwrap();
    std::os::unix::fs::symlink("b.cfg", &file).unwrap();
    all_get("a link to the same file", 200, "fourth");
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("../other/secret.cfg", &file).unwrap();
    all_get("a link that leaves", 404, "");
}
