//! Interrupted uploads: disconnects, slow clients, policy changes, server crashes.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::harness::site::{Running, Site, holds};
use crate::harness::tls::Connection;
use crate::harness::tool::provost;
use crate::harness::{STRANGER, VVX500, eventually, not_run};
use crate::uploads::{LOG, begin_put, content, files_below, incomplete_uploads, phone};

/// Waits until there are `count` access-log lines of PUT requests, and returns them.
fn lines_of_puts(server: &Running, count: usize) -> Vec<serde_json::Value> {
    let puts = || -> Vec<_> { server.access_lines().into_iter().filter(|line| line["method"] == "PUT").collect() };
    eventually("a line for each PUT", || (puts().len() >= count).then_some(()));
    puts()
}

#[test]
fn hangup_during_an_upload_is_one_log_line_and_no_error() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let body = content(600_000, 1);
    let ways: [fn(Connection); 3] = [Connection::hang_up, reset, drop];
    let append = "Content-Range: bytes 0-599999/600000\r\n";
    let ranges = ["", "Content-Range: bytes 1-600000/600001\r\n", append];
    let mut count = 0;
    for (way, range, sent) in (0..27).map(|case| (ways[case / 9], ranges[case / 3 % 3], [0, 1000, 500_000][case % 3])) {
        count += 1;
        // A file for each, because a file's lock may outlive its connection for a moment.
        let path = format!("/00005e00530c-{count}.log");
        let stored = site.uploads("ote", VVX500).join(&path[1..]);
        if range != append {
            assert_eq!(phone.put(&path, "", b"old").unwrap().status, 201);
        }
        let connection = begin_put(&phone, &path, range, body.len(), &body[..sent]);
        let has_begun = || if range == append { stored.exists() } else { incomplete_uploads(&site) == 1 };
        eventually("the upload to begin", || has_begun().then_some(()));
        way(connection);
        let line = server.access(&path, |line| line["path"] == path && line["status"] != 201);
        assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{line}");
        eventually("all temporary files to be removed", || (incomplete_uploads(&site) == 0).then_some(()));
        if range == append {
            let found = std::fs::read(&stored).unwrap_or_default();
            assert!(body.starts_with(&found), "{path}: {} bytes", found.len());
        } else {
            assert!(holds(&stored, "old"), "{path}");
        }
    }
    let broken = |line: &&serde_json::Value| line["method"] == "PUT" && line["status"] != 201;
    assert_eq!((count, server.access_lines().iter().filter(broken).count()), (27, 27));
    let reported: Vec<_> =
        server.stderr().into_iter().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    assert!(reported.is_empty(), "{reported:?}");
}

/// Resets the connection, so that even sent bytes may be lost.
fn reset(connection: Connection) {
    socket2::SockRef::from(connection.tcp()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(connection);
}

#[test]
fn upload_is_stored_if_the_client_skips_the_answer() {
    let site = Site::with_ote();
    let server = site.start();
    let body = content(600_000, 2);
    begin_put(&phone(&server), LOG, "", body.len(), &body).hang_up();
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    eventually("the upload to be stored", || holds(&stored, &body).then_some(()));
    lines_of_puts(&server, 1);
}

#[test]
fn stalled_upload_is_aborted_and_keeps_the_old_file() {
    let mut site = Site::with_ote();
    site.config["limits"]["stall_s"] = json!(1);
    let server = site.start();
    let phone = phone(&server);
    assert_eq!(phone.put(LOG, "", b"old").unwrap().status, 201);
    let mut stalled = begin_put(&phone, LOG, "", 100, b"half");
    let mut append = begin_put(&phone, "/00005e00530c-new.log", "Content-Range: bytes 0-99/100\r\n", 100, b"half");
    assert!(stalled.is_closed());
    assert!(append.is_closed());
    let lines = lines_of_puts(&server, 3);
    assert!(
        lines[1..].iter().all(|line| line["reason"].as_str().unwrap().contains("no progress for too long")),
        "{lines:?}"
    );
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), "old"));
    eventually("the prefix", || holds(&site.uploads("ote", VVX500).join("00005e00530c-new.log"), "half").then_some(()));
    assert_eq!(phone.put(LOG, "", b"free again").unwrap().status, 204);
}

#[test]
fn slow_but_steady_upload_is_stored() {
    let mut site = Site::with_ote();
    site.config["limits"]["stall_s"] = json!(2);
    let server = site.start();
    let body = content(40, 3);
    let mut slow = begin_put(&phone(&server), LOG, "", body.len(), b"");
    for byte in &body {
        // The time itself is tested: each pause is far below the limit, all together are above it.
        std::thread::sleep(Duration::from_millis(60));
        slow.send(&[*byte]).unwrap();
    }
    assert_eq!(slow.response("PUT").unwrap().status, 201);
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), &body));
}

#[test]
fn running_upload_completes_after_its_phone_is_removed() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let body = content(300_000, 4);
    let mut sending = begin_put(&phone, LOG, "", body.len(), &body[..1000]);
    eventually("the upload to begin", || (incomplete_uploads(&site) == 1).then_some(()));
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { STRANGER: "another" } }));
    eventually("the phone to be refused", || (phone.get("/site.cfg").unwrap().status == 403).then_some(()));
    sending.send(&body[1000..]).unwrap();
    assert_eq!(sending.response("PUT").unwrap().status, 201);
    assert_eq!(sending.request("PUT", LOG, "", b"more").unwrap().status, 403);
    assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), &body));
}

#[test]
fn upload_completes_after_its_folder_was_removed() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let path = "/logs/00005e00530c-app.log";
    assert_eq!(phone.put(path, "", b"old").unwrap().status, 201);
    let mut sending = begin_put(&phone, path, "", 10, b"01234");
    eventually("the upload to begin", || (incomplete_uploads(&site) == 1).then_some(()));
    std::fs::remove_dir_all(site.path("state/uploads/ote")).unwrap();
    sending.send(b"56789").unwrap();
    assert_eq!(sending.response("PUT").unwrap().status / 100, 2);
    assert!(holds(&site.uploads("ote", VVX500).join(&path[1..]), "0123456789"));
}

#[test]
fn partial_uploads_of_an_earlier_run_are_removed_at_start() {
    let site = Site::with_ote();
    let server = site.start();
    let sending = begin_put(&phone(&server), LOG, "", 600_000, &content(500_000, 5));
    eventually("the upload to begin", || (incomplete_uploads(&site) == 1).then_some(()));
    server.kill();
    drop(sending);
    assert_eq!(incomplete_uploads(&site), 1, "no server removed it");
    let server = site.start();
    assert_eq!(incomplete_uploads(&site), 0);
    assert_eq!(files_below(&site.path("state/uploads")), Vec::<String>::new());
    assert_eq!(phone(&server).get(LOG).unwrap().status, 404);
}

/// A round of the crash test: the upload's start, the number of bytes sent, and the delay until the server is killed;
/// without a `delay`, right after its answer. Returns whether the upload was acknowledged.
fn crash(site: &Site, start: Option<usize>, body: &[u8], sent: usize, delay: Option<Duration>) -> bool {
    let server = site.start();
    let range = start
        .map_or_else(String::new, |start| format!("Content-Range: bytes {start}-{}/*\r\n", start + body.len() - 1));
    let mut connection = begin_put(&phone(&server), LOG, &range, body.len(), b"");
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    let killer = delay.map(|delay| {
        std::thread::spawn(move || {
            // The crash may happen at any step of the server's work.
            std::thread::sleep(delay);
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        })
    });
    let is_sent = connection.send(&body[..sent]).is_ok();
    let is_acknowledged = is_sent && connection.response("PUT").is_ok_and(|response| response.status == 204);
    if let Some(killer) = killer {
        killer.join().unwrap();
    }
    server.kill();
    is_acknowledged
}

#[test]
fn crash_leaves_the_old_or_new_file_or_an_append_prefix() {
    let site = Site::with_ote();
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    let (mut acknowledged, mut grown) = (0, 0);
    for round in 0..24_usize {
        let old = content(200_000, 100 + u32::try_from(round).unwrap());
        std::fs::create_dir_all(stored.parent().unwrap()).unwrap();
        std::fs::File::create(&stored).unwrap().write_all(&old).unwrap();
        let body = content(900_000, 200 + u32::try_from(round).unwrap());
        // A third of the rounds send everything, and half of these wait for the answer.
        let sent = if round % 3 == 0 { body.len() } else { round * 7_919_777 % body.len() };
        let delay = (round % 6 != 0).then(|| Duration::from_micros(u64::try_from(round * 997).unwrap()));
        let start = [None, Some(old.len()), Some(100_000)][round / 6 % 3];
        let was_acknowledged = crash(&site, start, &body, sent, delay);
        let found = std::fs::read(&stored).unwrap();
        let new = [&old[..start.unwrap_or(0)], &body].concat();
        let is_append = start == Some(old.len());
        acknowledged += usize::from(was_acknowledged);
        grown += usize::from(is_append && found.len() > old.len());
        assert!(found == new || !was_acknowledged, "round {round}: the acknowledged bytes are stored");
        let is_prefix = is_append && found.len() >= old.len() && new.starts_with(&found);
        assert!(found == old || found == new || is_prefix, "round {round}: {} bytes", found.len());
        let server = site.start();
        assert_eq!(incomplete_uploads(&site), 0, "round {round}");
        let read = phone(&server).get(LOG).unwrap();
        assert!(read.status == 200 && read.body == found, "round {round}");
        server.kill();
    }
    assert!((4..24).contains(&acknowledged), "{acknowledged} of 24 rounds were acknowledged");
    assert!(grown > 0, "no append left any bytes");
}

#[test]
fn uploads_on_another_file_system_are_reported() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let test = "uploads_on_another_file_system_are_reported";
    let site = Site::with_ote();
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return not_run(test, "there is no /dev/shm") };
    let device = |path: &std::path::Path| std::fs::metadata(path).unwrap().dev();
    if device(elsewhere.path()) == device(&site.path(".")) {
        return not_run(test, "/dev/shm is on the same file system");
    }
    std::fs::create_dir_all(site.path("state/uploads")).unwrap();
    symlink(elsewhere.path(), site.path("state/uploads/ote")).unwrap();
    let reported = "state/uploads/ote is a link or a mount of its own";
    site.write_config();
    let check = provost(&site.path("."), &["check"]);
    assert!(check.code == 1 && check.stdout.contains(reported), "{check:?}");
    let server = site.start();
    server.says(reported);
    assert_eq!(phone(&server).put(LOG, "", b"x").unwrap().status, 500);
    server.reason("is on another file system than");
}
