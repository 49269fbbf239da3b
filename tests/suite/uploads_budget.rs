//! Upload quotas: per file, phone, constituency and disk; and one writer per file.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site, holds};
use crate::harness::tls::{Client, Connection, Response};
use crate::harness::{VVX500, VVX550, eventually, not_run};
use crate::uploads::{LOG, begin_put, content, files_below, incomplete_uploads, phone, site_with};

/// Sends a PUT of `length` bytes with `Expect: 100-continue`; returns the status and the connection.
fn begin_with_expect(client: &Client, path: &str, length: usize) -> (u16, Connection) {
    let mut connection = client.connect().unwrap();
    let headers = format!("Content-Length: {length}\r\nExpect: 100-continue\r\n");
    connection.send_head("PUT", path, &headers).unwrap();
    (connection.head().unwrap().0, connection)
}

fn status(client: &Client, path: &str, length: usize) -> u16 {
    client.put(path, "", &vec![b'x'; length]).unwrap().status
}

fn name(kind: usize) -> String {
    format!("/00005e00530c-{kind}.log")
}

#[test]
fn second_writer_of_a_file_gets_409() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let body = content(300_000, 1);
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    for range in ["", "Content-Range: bytes 300000-599999/600000\r\n", "Content-Range: bytes 1-300000/300001\r\n"] {
        let length = || std::fs::metadata(&stored).map_or(0, |file| file.len());
        let before = length();
        let mut first = begin_put(&phone, LOG, range, body.len(), &body[..270_000]);
        // A request as a probe might lock the file itself.
        let has_grown = || length() > before;
        eventually("the first to begin", || (incomplete_uploads(&site) == 1 || has_grown()).then_some(()));
        assert_eq!(begin_with_expect(&phone, LOG, 10).0, 409);
        assert_eq!(phone.put(LOG, "", b"second").unwrap().status, 409);
        assert_eq!(phone.put(&LOG.replace("0c-", "0C-").replace("5e", "5E"), "", b"second").unwrap().status, 409);
        assert_eq!(phone.put("/00005e00530c-boot.log", "", b"other").unwrap().status / 100, 2, "another file");
        first.send(&body[270_000..]).unwrap();
        assert_eq!(first.response("PUT").unwrap().status / 100, 2, "{range}");
    }
    assert!(holds(&stored, [&body[..1], &body].concat()));
    begin_put(&phone, LOG, "", 100, b"half").hang_up();
    eventually("the claim to be given up", || (phone.put(LOG, "", b"next").unwrap().status == 204).then_some(()));
    server.reason("another upload of this file is under way");
}

#[test]
fn upload_over_max_file_bytes_gets_413() {
    let site = site_with(&json!({ "max_file_bytes": 1000 }));
    let server = site.start();
    let phone = phone(&server);
    let range = |range: &str, length: usize| {
        phone.put(LOG, &format!("Content-Range: {range}\r\n"), &vec![b'y'; length]).unwrap().status
    };
    let chunked = |length: usize| {
        let body = format!("{length:x}\r\n{}\r\n0\r\n\r\n", "z".repeat(length));
        phone.put(LOG, "Transfer-Encoding: chunked\r\n", body.as_bytes()).unwrap().status
    };
    assert_eq!(status(&phone, LOG, 1001), 413);
    assert_eq!(chunked(1001), 413);
    assert_eq!(range("bytes 0-1000/*", 1001), 413);
    assert_eq!(files_below(&site.path("state/uploads")), Vec::<String>::new());
    assert_eq!(status(&phone, LOG, 1000), 201);
    assert_eq!(range("bytes 1000-1000/1001", 1), 413, "an append");
    assert_eq!(range("bytes 999-1000/1001", 2), 413, "a new tail");
    assert_eq!(chunked(300_000), 413);
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), vec![b'x'; 1000]));
    assert_eq!(chunked(1000), 204);
    assert_eq!(range("bytes 999-999/1000", 1), 204);
    server.reason("larger than 1000 bytes (max_file_bytes)");
}

#[test]
fn max_phone_bytes_and_max_phone_files_are_enforced() {
    let site = site_with(&json!({ "max_phone_bytes": 1000, "max_phone_files": 3 }));
    let server = site.start();
    let (phone, other) = (phone(&server), server.client("ote", &FACTORY.device(VVX550)));
    assert_eq!(status(&phone, &name(1), 600), 201);
    assert_eq!(status(&phone, &name(2), 401), 507);
    server.reason("the quota max_phone_bytes (1000) is used up");
    assert_eq!(status(&phone, &name(2), 400), 201);
    assert_eq!(status(&phone, &name(1), 600), 204, "a replacement takes no more");
    let chunked = "258\r\n".to_owned() + &"z".repeat(600) + "\r\n0\r\n\r\n";
    let replaced = phone.put(&name(1), "Transfer-Encoding: chunked\r\n", chunked.as_bytes()).unwrap();
    assert_eq!(replaced.status, 204, "a replacement of unknown length takes no more either");
    assert_eq!(status(&phone, &name(1), 601), 507);
    let append = phone.put(&name(2), "Content-Range: bytes 400-400/401\r\n", b"x").unwrap();
    assert_eq!(append.status, 507);
    assert_eq!(status(&phone, &name(3), 0), 201);
    assert_eq!(status(&phone, &name(4), 0), 507);
    server.reason("the quota max_phone_files (3) is used up");
    assert_eq!(status(&other, &name(1).replace(VVX500, VVX550), 1000), 201, "each phone has its own");
    std::fs::remove_file(site.uploads("ote", VVX500).join(&name(1)[1..])).unwrap();
    assert_eq!(status(&phone, &name(4), 600), 201, "what an operator removes is free at once");
}

#[test]
fn max_constituency_bytes_is_enforced() {
    let site = site_with(&json!({ "max_constituency_bytes": 1000 }));
    site.constituency("other", &json!({ "trust": ["factory"], "phones": { VVX500: "vvx500" } }));
    let server = site.start();
    let (one, two) = (phone(&server), server.client("ote", &FACTORY.device(VVX550)));
    let name_of_two = |kind| name(kind).replace(VVX500, VVX550);
    assert_eq!(status(&one, &name(1), 700), 201);
    assert_eq!(status(&two, &name_of_two(1), 301), 507);
    server.reason("the quota max_constituency_bytes (1000) is used up");
    begin_put(&two, &name_of_two(1), "", 300, b"half").hang_up();
    eventually("the space of aborted uploads to be freed", || {
        (status(&two, &name_of_two(1), 300) == 201).then_some(())
    });
    assert_eq!(status(&one, &name(2), 1), 507);
    assert_eq!(status(&server.client("other", &FACTORY.device(VVX500)), &name(1), 1001), 201);
    std::fs::remove_dir_all(site.uploads("ote", VVX550)).unwrap();
    eventually("the space of removed uploads to be freed", || (status(&one, &name(2), 300) == 201).then_some(()));
}

#[test]
fn concurrent_uploads_do_not_exceed_a_quota() {
    for (limits, allowed) in [
        (json!({ "max_phone_bytes": 100 }), 3),
        (json!({ "max_constituency_bytes": 100 }), 3),
        (json!({ "max_phone_files": 2 }), 2),
    ] {
        let site = site_with(&limits);
        let server = site.start();
        let phone = phone(&server);
        // All of them have their answers before the first sends a byte.
        let offers: Vec<_> = (0..8).map(|kind| begin_with_expect(&phone, &name(kind), 30)).collect();
        let statuses: Vec<u16> = offers.iter().map(|(status, _)| *status).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 100).count(), allowed, "{limits} {statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 507).count(), 8 - allowed, "{limits} {statuses:?}");
        for (_, mut connection) in offers.into_iter().filter(|(status, _)| *status == 100) {
            connection.send(&[b'x'; 30]).unwrap();
            assert_eq!(connection.response("PUT").unwrap().status, 201);
        }
        assert_eq!(files_below(&site.uploads("ote", VVX500)).len(), allowed);
    }
}

#[test]
fn ninth_concurrent_upload_of_a_phone_gets_503() {
    let site = Site::with_ote();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" } }));
    let server = site.start();
    let phone = phone(&server);
    let mut under_way: Vec<_> = (0..8).map(|kind| begin_with_expect(&phone, &name(kind), 30)).collect();
    assert_eq!(under_way.iter().filter(|(status, _)| *status == 100).count(), 8);
    assert_eq!(begin_with_expect(&phone, &name(8), 30).0, 503);
    server.reason("8 uploads of this phone are under way already");
    let other = server.client("ote", &FACTORY.device(VVX550));
    assert_eq!(status(&other, "/00005e0053c7-app.log", 30), 201);
    let (_, mut first) = under_way.remove(0);
    first.send(&[b'x'; 30]).unwrap();
    assert_eq!(first.response("PUT").unwrap().status, 201);
    assert_eq!(status(&phone, &name(8), 30), 201);
}

#[test]
fn upload_into_the_free_space_reserve_gets_507() {
    let mut site = Site::with_ote();
    site.config["limits"]["free_space_bytes"] = json!(u64::MAX / 4);
    let server = site.start();
    assert_eq!(phone(&server).put(LOG, "", b"x").unwrap().status, 507);
    server.reason("bytes stay reserved");
    assert_eq!(files_below(&site.path("state/uploads")), Vec::<String>::new());
}

/// The value of Retry-After.
fn retry_after(response: &Response) -> u64 {
    assert_eq!(response.status, 429, "{response:?}");
    response.header("retry-after").unwrap().parse().unwrap()
}

#[test]
fn write_quota_counts_bytes_written_by_a_tail_rewrite() {
    let site = site_with(&json!({ "max_phone_write_bytes_per_hour": 1_000_000 }));
    let server = site.start();
    let (phone, other) = (phone(&server), server.client("ote", &FACTORY.device(VVX550)));
    let old = content(300_000, 1);
    assert_eq!(phone.put(LOG, "", &old).unwrap().status, 201);
    let last_byte = || phone.put(LOG, "Content-Range: bytes 299999-299999/300000\r\n", b"!").unwrap();
    // 300,000 bytes are written three times; a fourth time would exceed the quota.
    assert_eq!([last_byte().status, last_byte().status], [204, 204]);
    let refused = last_byte();
    assert!((600..=1000).contains(&retry_after(&refused)), "{refused:?}");
    server.reason("the quota max_phone_write_bytes_per_hour (1000000) is used up");
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), [&old[..299_999], b"!"].concat()));
    // An upload within the rest of the quota and another phone's are accepted.
    assert_eq!(phone.put(LOG, "Content-Range: bytes 300000-300000/300001\r\n", b"!").unwrap().status, 204);
    assert_eq!(other.put(&LOG.replace(VVX500, VVX550), "", &old).unwrap().status, 201);
}

#[test]
fn write_quota_counts_at_least_4_kib_per_upload() {
    let site = site_with(&json!({ "max_phone_write_bytes_per_hour": 1 << 20 }));
    let server = site.start();
    let phone = phone(&server);
    let mut connection = phone.connect().unwrap();
    let stored = (0..300).filter(|kind| {
        let response = connection.request("PUT", &name(kind % 2), "", b"x").unwrap();
        assert!([201, 204, 429].contains(&response.status), "{response:?}");
        response.status != 429
    });
    // 4 KiB each; a little of the quota is freed meanwhile.
    assert!((256..270).contains(&stored.count()));
    assert_eq!(connection.get("/site.cfg").unwrap().status, 200, "the connection goes on");
}

#[test]
fn write_quota_counts_aborted_and_refused_uploads() {
    let site = site_with(&json!({ "max_phone_write_bytes_per_hour": 1_000_000, "max_file_bytes": 400_000 }));
    let server = site.start();
    let phone = phone(&server);
    let body = content(400_000, 2);
    let chunked = format!("61a80\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", "z".repeat(400_000));
    let too_large = |path: &str| phone.put(path, "Transfer-Encoding: chunked\r\n", chunked.as_bytes()).unwrap().status;
    // 400,000 bytes are announced and none sent: nothing is written.
    for kind in 0..8 {
        let sending = begin_put(&phone, &name(kind), "", body.len(), b"");
        eventually("the upload to begin", || (incomplete_uploads(&site) == 1).then_some(()));
        sending.hang_up();
        eventually("the upload to end", || (incomplete_uploads(&site) == 0).then_some(()));
    }
    begin_put(&phone, LOG, "", body.len(), &body[..390_000]).hang_up();
    eventually("the upload to be logged", || {
        let is_broken = |line: &serde_json::Value| line["path"] == LOG && line["reason"].is_string();
        server.access_lines().iter().any(is_broken).then_some(())
    });
    assert_eq!(too_large(LOG), 413);
    // 8 times about 4,000, then about 390,000 and about 400,000 are written.
    assert_eq!(phone.put(LOG, "", &body[..300_000]).unwrap().status, 429);
    assert_eq!(phone.put(LOG, "", &body[..100_000]).unwrap().status, 201);
    // An upload of unknown length is refused when it exceeds the quota.
    assert_eq!(phone.put(LOG, "Transfer-Encoding: chunked\r\n", chunked.as_bytes()).unwrap().status, 429);
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), &body[..100_000]));
}

#[test]
fn concurrent_uploads_do_not_exceed_the_write_quota() {
    let site = site_with(&json!({ "max_phone_write_bytes_per_hour": 100_000 }));
    let server = site.start();
    let phone = phone(&server);
    let offers: Vec<_> = (0..8).map(|kind| begin_with_expect(&phone, &name(kind), 30_000)).collect();
    let statuses: Vec<u16> = offers.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [100, 100, 100, 429, 429, 429, 429, 429]);
    drop(offers);
    eventually("the space of unwritten bytes to be freed", || (status(&phone, LOG, 80_000) == 201).then_some(()));
}

#[test]
fn raised_write_quota_applies_at_once() {
    let site = site_with(&json!({ "max_phone_write_bytes_per_hour": 10_000 }));
    let server = site.start();
    let phone = phone(&server);
    assert_eq!((status(&phone, LOG, 9_000), status(&phone, LOG, 9_000)), (201, 429));
    assert_eq!(status(&phone, LOG, 900), 204, "what fits is stored");
    let policy = json!({ "trust": ["factory"], "phones": { VVX500: "" }, "uploads": { "max_phone_bytes": 10_000 } });
    site.constituency("ote", &policy);
    // By default ten times the phone's storage quota.
    eventually("the policy", || (status(&phone, LOG, 9_000) == 204).then_some(()));
    let stored = (0..20).take_while(|_| status(&phone, LOG, 9_000) == 204).count();
    assert!((8..=10).contains(&stored), "{stored}");
}

/// The site's server with its state on a private file system of `kib` KiB, if one can be created here.
pub fn on_a_small_disk(site: &Site, kib: usize) -> Result<(Running, PathBuf), String> {
    let state = site.path("state");
    std::fs::create_dir_all(&state).unwrap();
    let namespaces = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let mount = format!("mount -t tmpfs -o size={kib}k,mode=700 tmpfs \"$0\"");
    let probe = Command::new("unshare").args([namespaces, "sh", "-c", &mount]).arg(&state).output();
    match probe {
        Ok(probe) if probe.status.success() => {}
        Ok(probe) => return Err(String::from_utf8_lossy(&probe.stderr).into_owned()),
        Err(error) => return Err(error.to_string()),
    }
    let serve = site.command();
    let mut command = Command::new("unshare");
    command.args([namespaces, "sh", "-c", &format!("{mount} && exec \"$@\"")]).arg(&state);
    command.arg(serve.get_program()).args(serve.get_args()).current_dir(site.path(""));
    let server = Running::start(command, 1);
    let seen = PathBuf::from(format!("/proc/{}/root{}", server.pid(), state.display()));
    Ok((server, seen))
}

#[test]
fn full_disk_gets_507_and_keeps_stored_files() {
    let site = Site::with_ote();
    // With room for the phone history, whose size varies, besides the uploads.
    let (server, state) = match on_a_small_disk(&site, 1400) {
        Ok(started) => started,
        Err(reason) => return not_run("full_disk_gets_507_and_keeps_stored_files", &reason),
    };
    let phone = phone(&server);
    let stored = state.join("uploads/ote").join(VVX500);
    let (old, large) = (content(100_000, 1), content(1_500_000, 2));
    assert_eq!(phone.put(LOG, "", &old).unwrap().status, 201);
    assert_eq!(phone.put(LOG, "", &large).unwrap().status, 507, "known before the body");
    assert!(holds(&stored.join(&LOG[1..]), &old));

    // The disk fills up during uploads.
    let range = "Content-Range: bytes 100000-599999/600000\r\n";
    let mut append = begin_put(&phone, LOG, range, 500_000, &large[..300_000]);
    let mut beside = begin_put(&phone, &name(1), "", 300_000, &large[..1000]);
    eventually("both to begin", || {
        let has_grown = std::fs::metadata(stored.join(&LOG[1..])).unwrap().len() > 100_000;
        let is_beside = files_below(&state.join("uploads/.incoming")).len() == 1;
        (has_grown && is_beside).then_some(())
    });
    let fill = |name: &str| {
        let full = std::io::copy(&mut std::io::repeat(0), &mut std::fs::File::create(state.join(name)).unwrap());
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    };
    fill("filler");
    beside.send(&large[1000..300_000]).unwrap();
    assert_eq!(beside.response("PUT").unwrap().status, 507);
    append.send(&large[300_000..500_000]).unwrap();
    assert_eq!(append.response("PUT").unwrap().status, 507);
    assert!(holds(&stored.join(&LOG[1..]), &old), "a refused append changes nothing");
    assert_eq!(files_below(&state.join("uploads")), ["ote/00005e00530c/00005e00530c-app.log"]);
    server.reason("is full");

    fill("what the append gave back");
    assert_eq!(phone.get("/site.cfg").unwrap().status, 200, "phones are served all the same");
    assert_eq!(phone.get(LOG).unwrap().body, old);
    assert_eq!(phone.put("/new/00005e00530c-app.log", "", b"x").unwrap().status, 507);
    std::fs::remove_file(state.join("filler")).unwrap();
    assert_eq!(phone.put(LOG, "", &large[..300_000]).unwrap().status, 204);
    assert_eq!(phone.put("/new/00005e00530c-app.log", "", b"x").unwrap().status, 201);
    assert!(holds(&stored.join(&LOG[1..]), &large[..300_000]));
    // The phone history may be written while the disk is full.
    let is_of_uploads = |line: &String| line.contains("ERROR") && !line.contains("phone history");
    assert!(!server.stderr().iter().any(is_of_uploads), "{:?}", server.stderr());
}
