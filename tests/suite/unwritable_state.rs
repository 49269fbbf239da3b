//! A state directory that is completely or partly unwritable: phones are served, and the errors are reported.

use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;

use crate::acme_e2e::usual;
use crate::harness::operators::Operators;
use crate::harness::pebble::Behavior;
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::{self, provost};
use crate::harness::{VVX500, eventually, namespace};

const DIRECTORY: &str = "/00005e00530c-directory.xml";
const LOG: &str = "/00005e00530c-app.log";

/// A site with an operators' listener, whose phones find a master configuration.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.file("ote/000000000000.cfg", r#"<APPLICATION CONFIG_FILES="site.cfg"/>"#);
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    site
}

fn phone(server: &Running) -> Client {
    server.client("ote", &FACTORY.device(VVX500))
}

/// Asserts that log, check, page and `/readyz` report the error, and that phones are served.
#[track_caller]
fn assert_all_report(site: &Site, server: &Running, fault: &str, effect: &str) {
    let is_said = |text: &str| text.contains(fault) && text.contains(effect);
    server.says(fault);
    assert!(server.stderr().iter().any(|line| line.contains("\"ERROR\"") && is_said(line)), "{:?}", server.stderr());
    let check = provost(&site.path("."), &["check"]);
    assert!(check.code == 1 && check.stdout.lines().any(is_said), "{check:?}");
    let operators = Operators::of(server);
    let ready = operators.get("/readyz");
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert!(ready.body.lines().any(|line| line.starts_with("error: ") && is_said(line)), "{}", ready.body);
    let troubles = operators.json("/api/overview")["troubles"].to_string();
    assert!(is_said(&troubles), "{troubles}");
    assert!(is_said(&operators.get("/").body));
    assert_eq!(phone(server).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn read_only_state_at_start_serves_phones() {
    const TEST: &str = "unwritable_state::read_only_state_at_start_serves_phones";
    if !namespace::is_inside(TEST, &[]) {
        return;
    }
    let site = site();
    {
        let server = site.start();
        assert_eq!(phone(&server).put(DIRECTORY, "", b"<directory/>").unwrap().status, 201);
        server.signal(rustix::process::Signal::TERM);
        assert!(server.wait().success());
    }
    let state = site.path("state");
    namespace::read_only(&state);
    let server = site.start();
    assert_all_report(&site, &server, "state cannot be written: Read-only file system", "uploads are refused");
    assert_eq!(phone(&server).get(DIRECTORY).unwrap().text(), "<directory/>");
    assert_eq!(phone(&server).put(LOG, "", b"log").unwrap().status, 500);
    server.reason("state/uploads cannot be stored: Read-only file system");
    let second = tool::run(&mut site.command());
    assert!(second.code == 1 && second.stderr.contains("another provost uses the state directory"), "{second:?}");

    namespace::writable(&state);
    server.says("is writable again");
    assert_eq!(phone(&server).put(LOG, "", b"log").unwrap().status, 201);
    eventually("the phone history", || site.path("state/ledger/ledger.sqlite").exists().then_some(()));
    let operators = Operators::of(&server);
    eventually("the warning to end", || (operators.get("/readyz").body == "ready\n").then_some(()));
}

#[test]
fn file_in_place_of_a_state_folder_does_not_stop_the_start() {
    let mut seen = 0;
    for (name, effect) in [
        ("uploads", "uploads are refused"),
        ("ledger", "the phone history is not kept"),
        ("last-good", "the last good policies are not kept"),
        ("digest", "passwords cannot be changed"),
    ] {
        let site = site();
        std::fs::create_dir(site.path("state")).unwrap();
        std::fs::write(site.path("state").join(name), "").unwrap();
        let server = site.start();
        let fault = format!("state/{name} cannot be written: Not a directory");
        assert_all_report(&site, &server, &fault, effect);
        let stored = phone(&server).put(LOG, "", b"log").unwrap().status;
        assert_eq!(stored, if name == "uploads" { 500 } else { 201 }, "{name}");
        std::fs::remove_file(site.path("state").join(name)).unwrap();
        server.says("is writable again");
        assert_eq!(phone(&server).put(LOG, "", b"log").unwrap().status / 100, 2, "{name}");
        if name == "ledger" {
            eventually("the phone history", || site.path("state/ledger/ledger.sqlite").exists().then_some(()));
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
}

type Plant = fn(&Path);

/// Wrong file types, in the words of messages.
const KINDS: [(&str, Plant); 3] = [
    ("a FIFO", |path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap()),
    ("a folder", |path| std::fs::create_dir(path).unwrap()),
    ("a symbolic link", |path| std::os::unix::fs::symlink("elsewhere", path).unwrap()),
];

/// Runs a command that must end soon.
fn command(site: &Site, args: &[&str]) -> tool::Ended {
    let mut command = Command::new("timeout");
    tool::run(command.args(["60", env!("CARGO_BIN_EXE_provost")]).args(args).current_dir(site.path("")))
}

#[test]
fn history_of_wrong_file_type_is_reported_without_blocking() {
    let mut seen = 0;
    for name in ["ledger.sqlite", "ledger.sqlite-wal"] {
        for (kind, plant) in KINDS {
            let site = site();
            std::fs::create_dir_all(site.path("state/ledger")).unwrap();
            let path = site.path("state/ledger").join(name);
            plant(&path);
            let server = site.start();
            let fault = format!("state/ledger/{name} cannot be used: it is {kind}, not a file");
            assert_all_report(&site, &server, &fault, "the phone history is not kept");
            let ready = Operators::of(&server).get("/readyz").body;
            assert_eq!(ready.lines().count(), 2, "the same fault is not said twice: {ready}");
            for args in [&["phones"][..], &["phone-log", VVX500]] {
                let ended = command(&site, args);
                // The server is asked first, and knows why.
                let is_cause = ended.stderr.contains(name) && ended.stderr.contains(kind);
                assert!(is_cause && !ended.stderr.contains("did not answer"), "{name} {kind}: {ended:?}");
                // Without a database, no phone was seen, which is an error for phone-log only.
                let fails = name == "ledger.sqlite" || args[0] == "phone-log";
                assert_eq!(ended.code, i32::from(fails), "{name} {kind}: {ended:?}");
            }
            let removed = if path.is_dir() { std::fs::remove_dir(&path) } else { std::fs::remove_file(&path) };
            removed.unwrap();
            server.says("is writable again");
            server.says("the phone history is written again");
            let operators = Operators::of(&server);
            eventually("the fault to end", || (operators.get("/readyz").body == "ready\n").then_some(()));
            eventually("the phone", || command(&site, &["phones"]).stdout.contains(VVX500).then_some(()));
            server.signal(rustix::process::Signal::TERM);
            assert!(server.wait().success());
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
}

#[test]
fn lock_of_wrong_file_type_is_named_with_the_remedy() {
    let site = site();
    std::fs::create_dir(site.path("state")).unwrap();
    let lock = site.path("state/lock");
    for (kind, plant) in KINDS {
        plant(&lock);
        let ended = tool::run(&mut site.command());
        let expected = format!("state/lock is {kind}, not a regular file; remove it, and start again");
        assert!(ended.code == 1 && ended.stderr.contains(&expected), "{ended:?}");
        let check = provost(&site.path("."), &["check"]);
        let fault = format!("state/lock cannot be used: it is {kind}, not a file; the next start fails");
        assert!(check.code == 1 && check.stdout.contains(&fault), "{check:?}");
        let removed = if lock.is_dir() { std::fs::remove_dir(&lock) } else { std::fs::remove_file(&lock) };
        removed.unwrap();
    }
    assert_eq!(phone(&site.start()).get("/site.cfg").unwrap().status, 200);
}

/// What the server opens at the start, without which it serves phones.
const OPENED: [&str; 5] = ["uploads", "ledger", "last-good", "digest", "digest/ote.json"];

#[test]
fn state_entries_of_wrong_file_type_do_not_stop_the_start() {
    let mut seen = 0;
    for (kind, plant) in KINDS {
        for name in OPENED {
            if kind == "a folder" && Path::new(name).extension().is_none() {
                continue;
            }
            let site = site();
            let path = site.path("state").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            plant(&path);
            if kind == "a symbolic link" {
                // One that leads to itself cannot be made a folder.
                std::fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink(path.file_name().unwrap(), &path).unwrap();
            }
            let server = site.start();
            let said = server.says(&format!("state/{name} cannot be "));
            assert!(said.contains(kind), "{said}");
            let operators = Operators::of(&server);
            let ready = operators.get("/readyz");
            assert!(ready.status == 200 && ready.body.contains(&format!("state/{name} cannot be ")), "{ready:?}");
            assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200, "{name} {kind}");
            seen += 1;
        }
    }
    assert_eq!(seen, 5 + 1 + 5);
}

#[test]
fn control_socket_of_wrong_file_type_is_reported_by_commands() {
    let site = site();
    let server = site.start();
    let socket = site.path("state/control.sock");
    for (kind, plant) in KINDS {
        std::fs::rename(&socket, site.path("aside")).unwrap();
        plant(&socket);
        let ended = command(&site, &["phones"]);
        let cause = format!("{kind}, not a socket; remove it, and restart provost");
        assert!(ended.stderr.contains("control.sock") && ended.stderr.contains(&cause), "{ended:?}");
        assert!(!ended.stderr.contains("did not answer"), "{ended:?}");
        let operators = Operators::of(&server);
        let fault = format!("state/control.sock cannot be used: it is {kind}, not a socket; commands do not reach");
        eventually("the fault", || operators.get("/readyz").body.contains(&fault).then_some(()));
        let removed = if socket.is_dir() { std::fs::remove_dir(&socket) } else { std::fs::remove_file(&socket) };
        removed.unwrap();
        std::fs::rename(site.path("aside"), &socket).unwrap();
        assert_eq!(command(&site, &["phones"]).stderr, "");
    }
}

#[test]
fn read_only_state_serves_certificates_obtained_by_acme() {
    const TEST: &str = "unwritable_state::read_only_state_serves_certificates_obtained_by_acme";
    if !namespace::is_inside(TEST, &[]) {
        return;
    }
    let Some((_bind, public)) = usual(TEST, Behavior::default()) else { return };
    {
        let server = public.start();
        public.obtains();
        server.signal(rustix::process::Signal::TERM);
        assert!(server.wait().success());
    }
    let state = public.site.path("state");
    // A renewal is due at once.
    let memory = std::fs::read_to_string(state.join("renewal.json")).unwrap();
    let mut memory: serde_json::Value = serde_json::from_str(&memory).unwrap();
    memory["certificates"]["ecdsa-p256"]["revoked"] = json!(true);
    std::fs::write(state.join("renewal.json"), memory.to_string()).unwrap();
    namespace::read_only(&state);
    let orders = public.pebble().logged("Added order");
    let server = public.site.start();
    server.says("state cannot be written: Read-only file system");
    server.says("no certificate is obtained or renewed");
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("Read-only file system") && line.contains("action required"), "{line}");
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
    assert_eq!(public.pebble().logged("Added order"), orders, "no order without a place for its certificate");
}
