//! The phone history of a real server: its content, and that neither disk errors nor floods affect serving.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use provost::phone_history::{HistoryReader, StoredClaim, StoredPhone};
use rusqlite::Connection;
use serde_json::json;

use crate::harness::operators::Operators;
use crate::harness::pki::{FACTORY, Identity, OTHER_FACTORY, device_params};
use crate::harness::site::{Running, Site};
use crate::harness::tool::{provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, not_run};
use crate::uploads::{LOG, phone};
use crate::uploads_budget::on_a_small_disk;

const AGENT: &str = "User-Agent: FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application\r\n";

/// The phones in the history in `state`.
fn phones(state: &Path) -> Vec<StoredPhone> {
    HistoryReader::open(state).unwrap().map_or_else(Vec::new, |ledger| ledger.phones().unwrap())
}

fn claims(state: &Path) -> Vec<StoredClaim> {
    HistoryReader::open(state).unwrap().map_or_else(Vec::new, |ledger| ledger.claims().unwrap())
}

/// Waits until the history of a phone satisfies `is_it`, and returns it.
#[track_caller]
fn seen(state: &Path, mac: &str, is_so: impl Fn(&StoredPhone) -> bool) -> StoredPhone {
    let find = || phones(state).into_iter().find(|phone| phone.mac.to_string() == mac && is_so(phone));
    eventually(&format!("the ledger to know of {mac}, not only {:?}", phones(state)), find)
}

/// Sends `count` requests of the usual phone.
fn ask(server: &Running, count: u64) {
    let mut connection = phone(server).connect().unwrap();
    for _ in 0..count {
        assert_eq!(connection.request("GET", "/site.cfg", AGENT, b"").unwrap().status, 200);
    }
}

#[test]
fn phone_history_records_requests_uploads_and_refusals() {
    let site = Site::with_ote();
    let server = site.start();
    let state = site.path("state");
    ask(&server, 2);
    assert_eq!(phone(&server).get("/absent.cfg").unwrap().status, 404);
    assert_eq!(phone(&server).put(LOG, "", b"log").unwrap().status, 201);
    assert_eq!(phone(&server).get(&format!("/{VVX550}.cfg")).unwrap().status, 403);
    let known = seen(&state, VVX500, |phone| phone.requests == 5);
    assert_eq!((known.constituency.as_str(), known.address.as_str()), ("ote", "127.0.0.1"));
    assert_eq!((known.model.as_deref(), known.firmware.as_deref()), (Some("VVX_500"), Some("5.9.7.4477")));
    assert_eq!(known.tls, Some(("TLSv1.3".to_owned(), "TLS13_AES_128_GCM_SHA256".to_owned())));
    assert_eq!(known.configuration.as_ref().unwrap().what, "/site.cfg");
    assert_eq!(known.upload.as_ref().unwrap().what, LOG);
    eventually("five lines", || (server.access_lines().len() == 5).then_some(()));
    let sent: u64 = server.access_lines().iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    assert_eq!((known.refusals, known.uploads, known.bytes), (1, 1, sent));
    assert!(known.refusal.as_ref().unwrap().what.contains(&format!("the path holds {VVX550}")), "{known:?}");
    let expiry = time::OffsetDateTime::from_unix_timestamp(known.certificate_not_after.unwrap()).unwrap();
    assert!((time::OffsetDateTime::now_utc() + time::Duration::days(3650) - expiry).abs() < time::Duration::HOUR);
    let requests = HistoryReader::open(&state).unwrap().unwrap().requests(VVX500.parse().unwrap()).unwrap();
    assert_eq!(requests.iter().map(|request| request.status.unwrap()).collect::<Vec<_>>(), [200, 200, 404, 201, 403]);
    for file in std::fs::read_dir(state.join("ledger")).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
}

#[test]
fn unproven_claims_are_recorded_apart_from_refused_phones() {
    let site = Site::with_ote();
    let server = site.start();
    let state = site.path("state");
    ask(&server, 1);
    assert_eq!(server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status, 403);
    let self_signed = Identity::self_signed(&device_params(VVX500));
    for claimant in [&self_signed, &OTHER_FACTORY.device(VVX500), &self_signed] {
        server.client("ote", claimant).get("/site.cfg").unwrap_err();
    }
    let refused = seen(&state, STRANGER, |phone| phone.is_refused);
    assert_eq!(refused.last_accepted, None);
    assert_eq!(refused.refusal.unwrap().what, format!("{STRANGER} is not known to ote"));
    let mut claims =
        eventually("the claims", || Some(claims(&state)).filter(|all| all.iter().map(|it| it.count).sum::<u64>() == 3));
    claims.sort_by_key(|claim| claim.count);
    assert_eq!(
        claims.iter().map(|claim| (claim.mac.to_string(), claim.count)).collect::<Vec<_>>(),
        [(VVX500.to_owned(), 1), (VVX500.to_owned(), 2)]
    );
    assert!(claims[0].refusal.as_ref().unwrap().contains("not trusted here"), "{claims:?}");
    assert!(claims[1].refusal.as_ref().unwrap().contains("self-signed"), "{claims:?}");
    let untouched = seen(&state, VVX500, |_| true);
    assert_eq!((untouched.requests, untouched.refusal), (1, None));
    assert_eq!(phones(&state).len(), 2);
}

#[test]
fn refusal_appears_in_phone_log_at_once() {
    let site = Site::with_ote();
    let server = site.start();
    let log = |mac: &str| provost(&site.path("."), &["phone-log", mac]);
    for number in 0..5 {
        let mac = format!("00005e0054{number:02x}");
        assert_eq!(server.client("ote", &FACTORY.device(&mac)).get("/site.cfg").unwrap().status, 403);
        let ended = log(&mac);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
        assert!(ended.stdout.contains(&format!("{mac} is not known to ote")), "{}", ended.stdout);
        // A refused handshake, too.
        let claimed = format!("00005e0055{number:02x}");
        server.client("ote", &Identity::self_signed(&device_params(&claimed))).get("/site.cfg").unwrap_err();
        let refused = provost(&site.path("."), &["phones", "--refused"]);
        assert_eq!((refused.code, refused.stderr.as_str()), (0, ""), "{refused:?}");
        assert!(refused.stdout.contains(&claimed) && refused.stdout.contains(&mac), "{}", refused.stdout);
    }
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    assert!(!site.path("state/control.sock").exists());
    assert_eq!(log("00005e005400").stderr, "", "shutdown has written everything");
}

#[test]
fn hung_server_does_not_block_commands() {
    let site = Site::with_ote();
    let server = site.start();
    ask(&server, 1);
    seen(&site.path("state"), VVX500, |phone| phone.requests == 1);
    server.signal(rustix::process::Signal::STOP);
    let config = site.write_config();
    let missing = "phone events of the last second may be missing: the server did not answer";
    // Later connections find the socket's queue full of earlier ones.
    for command in [["phones"].as_slice(), &["phone-log", VVX500], &["allow", STRANGER, "--constituency", "ote"]] {
        let mut timed = std::process::Command::new("timeout");
        timed.args(["20", env!("CARGO_BIN_EXE_provost")]).args(command).arg("--config").arg(&config);
        let ended = run(&mut timed);
        assert_eq!(ended.code, 0, "{command:?}: {ended:?}");
        assert!(ended.stderr.contains(missing), "{command:?}: {ended:?}");
    }
    server.signal(rustix::process::Signal::CONT);
    let listed = provost(&site.path("."), &["phones"]);
    assert_eq!((listed.code, listed.stderr.as_str()), (0, ""), "{listed:?}");
}

#[test]
fn flood_from_one_address_evicts_no_known_phone() {
    let site = Site::with_ote();
    let server = site.start();
    let state = site.path("state");
    ask(&server, 1);
    let mac = |number: u32| format!("00005e01{number:04x}");
    // Many phones with factory certificates that are not listed.
    for number in 0..80 {
        assert_eq!(server.client("ote", &FACTORY.device(&mac(number))).get("/site.cfg").unwrap().status, 403);
        // The order of recording counts, not that of the answers.
        server.access("the refusal", |line| line["mac"] == mac(number));
    }
    seen(&state, &mac(79), |phone| phone.is_refused);
    // And self-made certificates for a listed, a refused and an unused MAC.
    let claimants = [VVX500, &mac(79), &mac(80)].map(device_params);
    for number in 0..45 {
        let claimant = Identity::self_signed(&claimants[number % 3]);
        server.client("ote", &claimant).get("/site.cfg").unwrap_err();
    }
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    let phones = phones(&state);
    let (known, refused): (Vec<_>, Vec<_>) = phones.iter().partition(|phone| phone.last_accepted.is_some());
    assert_eq!(
        known.iter().map(|phone| (phone.mac.to_string(), phone.requests)).collect::<Vec<_>>(),
        [(VVX500.to_owned(), 1)]
    );
    let refused: Vec<String> = refused.iter().map(|phone| phone.mac.to_string()).collect();
    assert_eq!(refused, (16..80).map(mac).collect::<Vec<_>>(), "the last ones of them");
    let claims = claims(&state);
    assert_eq!(claims.len(), 16);
    assert!(claims.iter().all(|claim| claim.count == 1 && claim.refusal.as_ref().unwrap().contains("self-signed")));
}

#[test]
fn written_history_survives_a_crash_and_stop_writes_all() {
    let site = Site::with_ote();
    let state = site.path("state");
    let mut known = 0;
    for _ in 0..8 {
        let server = site.start();
        ask(&server, 20);
        known = seen(&state, VVX500, |phone| phone.requests > known).requests;
        // While these are being written.
        ask(&server, 50);
        server.kill();
        let after = seen(&state, VVX500, |phone| phone.requests >= known).requests;
        assert!(after <= known + 70, "{after}");
        known = after;
    }
    let server = site.start();
    ask(&server, 100);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    assert_eq!(phones(&state)[0].requests, known + 100, "shutdown writes everything");
    let files = std::fs::read_dir(state.join("ledger")).unwrap().count();
    assert_eq!(files, 1, "a closed database is one file, also after another process has read it");
}

#[test]
fn unread_access_log_does_not_block_the_phone_history() {
    let site = Site::with_ote();
    let mut command = site.command();
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer);
    let server = Running::start_with_log(command, 1);
    // More lines than a pipe holds.
    ask(&server, 1000);
    seen(&site.path("state"), VVX500, |phone| phone.requests == 1000);
    assert_eq!(server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status, 403);
    server.signal(rustix::process::Signal::TERM);
    server.says("the reader of standard output has stopped reading");
    server.says("stopped");
    assert!(!server.stderr().iter().any(|line| line.contains("phone history")), "{:?}", server.stderr());
    assert!(server.wait().success());
    seen(&site.path("state"), STRANGER, |phone| phone.is_refused);
    drop(reader);
}

#[test]
fn external_reader_does_not_remove_the_database_log() {
    let site = Site::with_ote();
    let server = site.start();
    ask(&server, 1);
    seen(&site.path("state"), VVX500, |phone| phone.requests == 1);
    // An exclusive lock on the file would block other processes; the kernel lists locks (proc_locks(5)), and SQLite's
    // file format defines which bytes it locks.
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let is_its = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words[1] == "POSIX" && words[4] == server.pid().to_string() && words[6..] == ["1073741826", "1073742335"]
    };
    assert_eq!(locks.lines().filter(is_its).count(), 1, "{locks}");
    // Like `sqlite3` or a backup: the last process that closes a database merges its log and removes it.
    let database = rusqlite::Connection::open(site.path("state/ledger/ledger.sqlite")).unwrap();
    let count: i64 = database.query_row("SELECT count(*) FROM phone", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 1);
    database.close().unwrap();
    assert!(site.path("state/ledger/ledger.sqlite-wal").exists(), "the server still has it open");
    ask(&server, 1);
    seen(&site.path("state"), VVX500, |phone| phone.requests == 2);
}

#[test]
fn damaged_history_is_moved_aside_and_serving_continues() {
    let site = Site::with_ote();
    let file = site.path("state/ledger/ledger.sqlite");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, vec![b'x'; 100_000]).unwrap();
    let server = site.start();
    server.says("moved it to");
    ask(&server, 3);
    seen(&site.path("state"), VVX500, |phone| phone.requests == 3);
    assert_eq!(std::fs::read(file.with_extension("corrupt")).unwrap(), vec![b'x'; 100_000]);

    // Damaged while it is being written, and removed altogether.
    std::fs::File::options().write(true).open(&file).unwrap().set_len(0).unwrap();
    ask(&server, 1);
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    eventually("a new phone history", || {
        ask(&server, 1);
        (!phones(&site.path("state")).is_empty()).then_some(())
    });
}

#[test]
fn full_disk_delays_history_writes_without_losing_any() {
    let site = Site::with_ote();
    let (server, state) = match on_a_small_disk(&site, 2048) {
        Ok(started) => started,
        Err(reason) => return not_run("full_disk_delays_history_writes_without_losing_any", &reason),
    };
    // SQLite does not open files through /proc into the mount, so a copy is read.
    let requests = |mac: &str| {
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("ledger")).unwrap();
        for file in ["ledger.sqlite", "ledger.sqlite-wal"].map(|name| Path::new("ledger").join(name)) {
            std::fs::copy(state.join(&file), copy.path().join(&file)).ok()?;
        }
        // A copy made during a change may be inconsistent.
        let phones = HistoryReader::open(copy.path()).ok()??.phones().ok()?;
        phones.into_iter().find(|phone| phone.mac.to_string() == mac).map(|phone| phone.requests)
    };
    let filler = state.join("filler");
    let mut rest = 1 << 20;
    while rest > 0 {
        let old = std::fs::read(&filler).unwrap_or_default();
        match std::fs::write(&filler, [old, vec![b'x'; rest]].concat()) {
            Ok(()) => {}
            Err(_) => rest /= 2,
        }
    }
    // Until its own files are full too.
    let mut asked = 0;
    eventually("the phone history to fail", || {
        ask(&server, 50);
        asked += 50;
        server.stderr().iter().any(|line| line.contains("cannot write the phone history")).then_some(())
    });
    ask(&server, 50);
    assert_eq!(server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status, 403);
    std::fs::remove_file(&filler).unwrap();
    server.says("the phone history is written again");
    eventually("everything to be written", || {
        (requests(VVX500) == Some(asked + 50) && requests(STRANGER) == Some(1)).then_some(())
    });
    let said = server.stderr().iter().filter(|line| line.contains("cannot write the phone history")).count();
    assert_eq!(said, 1, "{:?}", server.stderr());
}

#[test]
fn uncreatable_history_is_logged_and_serving_continues() {
    let site = Site::with_ote();
    std::fs::create_dir_all(site.path("state/ledger/ledger.sqlite")).unwrap();
    let server = site.start();
    server.says("state/ledger/ledger.sqlite cannot be used: it is a folder, not a file");
    ask(&server, 10);
    std::fs::remove_dir(site.path("state/ledger/ledger.sqlite")).unwrap();
    seen(&site.path("state"), VVX500, |phone| phone.requests == 10);
    let unusual = json!({ "trust": ["factory"], "phones": "any" });
    site.constituency("ote", &unusual);
    eventually("the unknown phone to be accepted", || {
        (server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status == 200).then_some(())
    });
    seen(&site.path("state"), STRANGER, |phone| !phone.is_refused);
}

#[test]
fn newer_history_is_named_and_phones_are_served() {
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    ask(&server, 1);
    seen(&site.path("state"), VVX500, |phone| phone.requests == 1);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    let file = site.path("state/ledger/ledger.sqlite");
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = std::fs::read(&file).unwrap();
    let server = site.start();
    server.says("unsupported version 99 of the phone history");
    ask(&server, 2);
    let overview = Operators::of(&server).json("/api/overview");
    assert!(overview["troubles"].to_string().contains("unsupported version 99"), "{overview}");
    // The policies are known without the history.
    assert!(overview["counts"]["known"].as_u64() > Some(0), "{overview}");
    assert_eq!(std::fs::read(&file).unwrap(), before, "the newer provost's file is as it was");
}

#[test]
fn history_of_0_1_is_indexed_while_phones_are_served() {
    const PHONES: u32 = 5000;
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    site.constituency("large", &json!({ "trust": ["factory"], "phones": "any" }));
    let server = site.start();
    ask(&server, 1);
    seen(&site.path("state"), VVX500, |phone| phone.requests == 1);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    let file = site.path("state/ledger/ledger.sqlite");
    let mut old = Connection::open(&file).unwrap();
    old.execute_batch(
        "DROP TRIGGER phone_deleted; DROP TABLE phone_index; DROP TABLE phone_count; DROP TABLE tls_count;
         DROP TABLE negotiated_tls; DROP TABLE index_version;
         PRAGMA user_version = 5;",
    )
    .unwrap();
    let transaction = old.transaction().unwrap();
    for number in 0..PHONES {
        let sql = "INSERT INTO phone SELECT NULL, 'large', ?, first_seen, last_seen, last_let_in, is_refused, address, network,
                       model, firmware, tls_version, tls_suite, certificate_not_after, configuration, configuration_at, upload,
                       upload_at, refusal, refusal_at, requests, refusals, uploads, bytes, updater_tls_version,
                       updater_tls_suite, visits, usual_pause FROM phone WHERE constituency = 'ote'";
        assert_eq!(transaction.execute(sql, [format!("00005e{number:06x}")]).unwrap(), 1);
    }
    transaction.commit().unwrap();
    drop(old);
    let server = site.start();
    ask(&server, 1);
    let operators = Operators::of(&server);
    let counts = || operators.json("/api/overview")["counts"].clone();
    eventually("all phones in the list", || (counts()["well"] == PHONES + 1).then_some(()));
    let page = operators.json("/api/phones?sort=name&offset=4999&constituency=large");
    assert_eq!((&page["matching"], &page["phones"][0]["mac"]), (&json!(PHONES), &json!("00005e001387")));
    ask(&server, 1);
    seen(&site.path("state"), VVX500, |phone| phone.requests == 3);
}
