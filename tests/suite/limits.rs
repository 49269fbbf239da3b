//! Limits of connections and open files: other clients are served, and the server recovers.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{Lines, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::Connection;
use crate::harness::{TIMEOUT, VVX500, VVX550, eventually, tool};

fn site_with(limits: serde_json::Value) -> Site {
    let mut site = Site::with_ote();
    site.config["limits"] = limits;
    site.config["limits"]["free_space_bytes"] = 0.into();
    site
}

/// Connections that have each been answered once.
fn answered(server: &Running, count: usize) -> Vec<Connection> {
    let client = server.client("ote", &FACTORY.device(VVX500));
    let open = |_| {
        let mut connection = client.connect().unwrap();
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
        connection
    };
    (0..count).map(open).collect()
}

/// Whether a new connection gets an answer.
fn is_served(server: &Running) -> bool {
    server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").is_ok_and(|response| response.status == 200)
}

#[test]
fn connections_per_address_is_enforced_exactly() {
    let site = site_with(json!({ "connections_per_address": 64 }));
    let server = site.start();
    let mut connections = answered(&server, 64);
    assert!(!is_served(&server));
    server.reason("127.0.0.1/32 already has 64 connections (limits.connections_per_address)");
    for connection in &mut connections {
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    }
    // A freed slot is reused.
    drop(connections.pop());
    eventually("the slot", || is_served(&server).then_some(()));
}

#[test]
fn no_address_limit_if_zero_or_in_an_unlimited_network() {
    for limits in [
        json!({ "connections_per_address": 0 }),
        json!({ "connections_per_address": 2, "unlimited_networks": ["127.0.0.0/8"] }),
    ] {
        let site = site_with(limits);
        let server = site.start();
        assert_eq!(answered(&server, 40).len(), 40);
    }
}

#[test]
fn address_limit_applies_outside_the_unlimited_network() {
    let site = site_with(json!({ "connections_per_address": 2, "unlimited_networks": ["10.0.0.0/8"] }));
    let server = site.start();
    let _two = answered(&server, 2);
    assert!(!is_served(&server));
}

#[test]
fn known_phones_and_anonymous_clients_have_separate_limits() {
    let site = site_with(json!({ "connections": 3, "anonymous_connections": 2 }));
    site.constituency("public", &json!({ "client_auth": "none" }));
    site.file("public/site.cfg", "<public/>");
    site.file("public/large.bin", "x".repeat(32 << 20));
    let server = site.start();
    let public = server.client("public", &FACTORY.device(VVX500));
    let mut strangers: Vec<_> = (0..2).map(|_| public.connect().unwrap()).collect();
    for stranger in &mut strangers {
        // The response is not read to its end, because a request under way keeps its slot.
        stranger.send_head("GET", "/large.bin", "").unwrap();
        assert_eq!(stranger.head().unwrap().0, 200);
    }
    assert!(public.get("/site.cfg").is_err());
    server.reason("all 2 permits for anonymous connections are in use (limits.anonymous_connections)");
    let phones = answered(&server, 3);
    assert!(!is_served(&server));
    let line = server.reason("all 3 permits for phones' connections are in use (limits.connections)");
    assert_eq!(line["constituency"], "ote");
    drop(phones);
    eventually("a phone's slot", || is_served(&server).then_some(()));
    assert!(public.get("/site.cfg").is_err(), "a phone's slot is not used for unknown clients");
}

#[test]
fn unlisted_phone_counts_as_an_anonymous_connection() {
    let site = site_with(json!({ "connections": 1, "anonymous_connections": 0 }));
    let server = site.start();
    // The owner of any phone has such a certificate.
    let unknown = server.client("ote", &FACTORY.device(VVX550));
    assert!(unknown.get("/site.cfg").is_err());
    server.reason("all 0 permits for anonymous connections are in use (limits.anonymous_connections)");
    assert_eq!(answered(&server, 1).len(), 1);
}

#[test]
fn connections_per_phone_is_enforced_per_constituency() {
    let site = site_with(json!({ "connections_per_phone": 4 }));
    for name in ["ote", "other"] {
        site.constituency(name, &json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" } }));
    }
    let server = site.start();
    let mut connections = answered(&server, 4);
    assert!(!is_served(&server));
    let line = server.reason("00005e00530c already has 4 connections (limits.connections_per_phone)");
    assert_eq!(line["constituency"], "ote");
    assert_eq!(server.client("ote", &FACTORY.device(VVX550)).get("/site.cfg").unwrap().status, 200);
    assert_eq!(server.client("other", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 404);
    for connection in &mut connections {
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    }
    drop(connections.pop());
    eventually("the slot", || is_served(&server).then_some(()));
}

#[test]
fn connections_per_phone_zero_means_unlimited() {
    let site = site_with(json!({ "connections_per_phone": 0 }));
    assert_eq!(answered(&site.start(), 100).len(), 100);
}

#[test]
fn every_kind_of_connection_end_frees_its_slot() {
    const ROUNDS: usize = 500;
    let site = site_with(json!({ "connections_per_address": 4, "connections": 4, "unfinished_handshakes": 4 }));
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    for round in 0..ROUNDS {
        // A connection that was just closed may still hold its slot.
        eventually("a free slot", || {
            let done = match round % 3 {
                0 => TcpStream::connect(server.address()).is_ok(),
                1 => client.connect().is_ok(),
                _ => client.get("/site.cfg").is_ok(),
            };
            done.then_some(())
        });
    }
    // All four slots at once: none has leaked.
    eventually("four slots", || {
        let mut four: Vec<_> = (0..4).map_while(|_| client.connect().ok()).collect();
        (four.len() == 4 && four.iter_mut().all(|one| one.get("/site.cfg").is_ok())).then_some(())
    });
}

#[test]
fn process_with_few_descriptors_still_serves_phones() {
    let site = site_with(json!({ "idle_s": 600, "handshake_s": 600 }));
    site.file("ote/firmware.ld", vec![0; 1 << 20]);
    let server = Running::start(site.command_under(&["prlimit", "--nofile=64:64"]), 1);
    let mut phone = answered(&server, 1).pop().unwrap();
    let strangers: Vec<Socket> = (0..200).filter_map(|_| Socket::connect(server.address()).ok()).collect();
    assert_eq!(strangers.len(), 200);
    server.reason("all 24 permits for unfinished handshakes that the limit of open files allows are in use");
    // The phone's files can still be opened, and folders can still be read.
    assert_eq!(phone.get("/firmware.ld").unwrap().status, 200);
    assert!(is_served(&server));
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" } }));
    server.says("ote: the policy changed");
    drop(strangers);
}

/// The number of the server's open files.
fn descriptors(server: &Running) -> u64 {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64
}

#[test]
fn process_out_of_descriptors_waits_and_keeps_serving() {
    let site = site_with(json!({ "idle_s": 600, "handshake_s": 600 }));
    for number in 0..40 {
        site.constituency(&format!("c{number}"), &json!({ "trust": ["factory"] }));
    }
    let server = site.start();
    eventually("the server", || is_served(&server).then_some(()));
    let used = server.processor_time();
    // A few more than it has, because the lowest free numbers are used first.
    server.limit_descriptors(descriptors(&server) + 4);
    let strangers: Vec<Socket> = (0..200).filter_map(|_| Socket::connect(server.address()).ok()).collect();
    assert_eq!(strangers.len(), 200);
    server.says("no connection can be accepted");
    // Reading the folders fails for lack of descriptors too, and is repeated later.
    site.constituency("new", &json!({ "trust": ["factory"] }));
    server.says("the last known state is served");
    // The time itself is tested: a busy loop would show within three seconds.
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let spent = server.processor_time() - used;
    assert!(spent < 1.0, "{spent} s of processor time in {:?}", start.elapsed());
    let said = server.stderr().iter().filter(|line| line.contains("no connection can be accepted")).count();
    assert_eq!(said, 1, "once, not ten times a second");
    assert!(!server.stderr().iter().any(|line| line.contains("is gone")), "{:?}", server.stderr());
    drop(strangers);
    server.limit_descriptors(1024);
    eventually("connections to be accepted again", || {
        assert!(is_served(&server));
        server.stderr().iter().any(|line| line.contains("connections are accepted again")).then_some(())
    });
    server.says("new is served");
}

/// A site with this many constituencies, each of which lists VVX500 and has a small and a large file.
fn site_of(constituencies: usize) -> Site {
    let mut site = Site::new();
    site.config["limits"] = json!({ "connections_per_address": 0, "idle_s": 600, "free_space_bytes": 0 });
    for number in 0..constituencies {
        let name = format!("c{number}");
        site.constituency(&name, &json!({ "trust": ["factory"], "phones": { VVX500: "" } }));
        site.file(&format!("{name}/site.cfg"), format!("<{name}/>"));
    }
    site
}

/// The limit of open files that the server or check recommends.
fn asked_for(text: &str) -> Option<u64> {
    text.split_once("raise LimitNOFILE to ")?.1.split(' ').next()?.parse().ok()
}

#[test]
fn more_folders_than_open_files_are_all_served() {
    const FOLDERS: usize = 600;
    let site = site_of(FOLDERS);
    let large = site.file("c0/large.ld", vec![0; 1 << 20]);
    for number in 1..FOLDERS {
        fs::hard_link(&large, site.served(&format!("c{number}/large.ld"))).unwrap();
    }
    let server = Running::start(site.command_under(&["prlimit", "--nofile=600:600"]), 1);
    server.says("c599 is served");
    let identity = FACTORY.device(VVX500);
    let get = |number: usize| {
        let mut phone = server.client(&format!("c{number}"), &identity).connect().unwrap();
        assert_eq!(phone.get("/site.cfg").unwrap().text(), format!("<c{number}/>"));
        phone
    };
    // As many connections as any limit allows at once, each to another folder.
    let mut phones: Vec<Connection> = (0..32).map(get).collect();
    for number in 32..FOLDERS {
        phones[number % 32] = get(number);
    }
    for phone in &mut phones {
        assert_eq!(phone.get("/large.ld").unwrap().status, 200);
        assert_eq!(phone.request("PUT", "/00005e00530c-app.log", "", b"log").unwrap().status, 201);
    }
    assert!(descriptors(&server) < 300, "{}", descriptors(&server));
    let errors: Vec<_> = server.stderr().into_iter().filter(|line| line.contains("\"ERROR\"")).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn low_open_files_limit_is_reported_with_the_needed_value() {
    let site = site_of(400);
    let needed = {
        let server = Running::start(site.command_under(&["prlimit", "--nofile=600:600"]), 1);
        let reported = server.says("the limit of open files (600) is enough for");
        assert!(reported.contains("there are 400 known phones; raise LimitNOFILE to"), "{reported}");
        asked_for(&reported).unwrap()
    };
    let check = tool::run(
        Command::new("prlimit")
            .args(["--nofile=600:600", env!("CARGO_BIN_EXE_provost"), "check"])
            .current_dir(site.path("")),
    );
    assert_eq!((check.code, asked_for(&check.stdout)), (0, Some(needed)), "{check:?}");
    let enough = format!("--nofile={needed}:{needed}");
    let server = Running::start(site.command_under(&["prlimit", &enough]), 1);
    server.says("c399 is served");
    assert!(!server.stderr().iter().any(|line| line.contains("LimitNOFILE")), "{:?}", server.stderr());
    // Later phones count too.
    let phones: serde_json::Map<_, _> = (1..=needed).map(|number| (format!("{number:012x}"), json!(""))).collect();
    site.constituency("large", &json!({ "trust": ["factory"], "phones": phones }));
    assert!(asked_for(&server.says("raise LimitNOFILE to")).unwrap() > needed);
    fs::remove_dir_all(site.served("large")).unwrap();
    server.says("the limit of open files is enough for all known phones again");
}

#[test]
fn start_without_descriptors_names_the_limit_to_raise() {
    let site = Site::with_ote();
    let mut reported = 0;
    for files in 4..24 {
        let limit = format!("--nofile={files}:{files}");
        let mut command = site.command_under(&["prlimit", &limit]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let stderr = Lines::default();
        stderr.follow(server.stderr.take().unwrap());
        let is_listening = || stderr.all().iter().any(|line| line.contains("listening on ")).then_some(true);
        let has_ended = |server: &mut Child| {
            let has_ended = server.try_wait().unwrap().is_some() && stderr.is_complete();
            has_ended.then_some(false)
        };
        let starts = eventually("the start or the end", || is_listening().or_else(|| has_ended(&mut server)));
        let _ = server.kill();
        server.wait().unwrap();
        // With more than a few it starts.
        if starts {
            break;
        }
        let said = stderr.all().join("\n");
        assert!(!said.contains("write access"), "{files}: {said}");
        reported += usize::from(said.contains("raise LimitNOFILE to 1024 or more"));
    }
    assert!(reported >= 3, "{reported}");
}

#[test]
fn unread_access_log_blocks_no_request_and_loss_is_logged() {
    let site = site_with(json!({ "drain_s": 1 }));
    let mut command = site.command();
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer);
    let server = Running::start_with_log(command, 1);
    let mut phone = answered(&server, 1).pop().unwrap();
    // More lines than a pipe and the queue hold, from concurrent connections.
    let burst = format!("HEAD /site.cfg HTTP/1.1\r\nHost: ote.{}\r\n\r\n", crate::harness::site::DOMAIN).repeat(100);
    let deadline = Instant::now() + TIMEOUT * 3;
    while !server.stderr().iter().any(|line| line.contains("access-log lines are being lost")) {
        phone.send(burst.as_bytes()).unwrap();
        for _ in 0..100 {
            assert_eq!(phone.response("HEAD").unwrap().status, 200);
        }
        assert!(Instant::now() < deadline, "no line was lost");
    }
    assert_eq!(phone.get("/site.cfg").unwrap().status, 200);
    // Even shutdown does not wait for the reader indefinitely.
    server.signal(rustix::process::Signal::TERM);
    server.says("the last access-log lines are lost: the reader of standard output has stopped reading");
    assert_eq!(server.wait().code(), Some(0));
    drop(reader);
}

#[test]
fn access_log_read_again_reports_the_lost_lines() {
    let site = site_with(json!({}));
    let mut command = site.command();
    let (mut reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer);
    let server = Running::start_with_log(command, 1);
    let mut phone = answered(&server, 1).pop().unwrap();
    let burst = format!("HEAD /site.cfg HTTP/1.1\r\nHost: ote.{}\r\n\r\n", crate::harness::site::DOMAIN).repeat(100);
    while !server.stderr().iter().any(|line| line.contains("access-log lines are being lost")) {
        phone.send(burst.as_bytes()).unwrap();
        for _ in 0..100 {
            assert_eq!(phone.response("HEAD").unwrap().status, 200);
        }
    }
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while reader.read(&mut buffer).is_ok_and(|read| read > 0) {}
    });
    server.says("access-log lines were lost");
}

#[test]
fn state_directory_is_private_and_locked() {
    let site = Site::with_ote();
    let server = site.start();
    let put = server.client("ote", &FACTORY.device(VVX500)).put(&format!("/{VVX500}-app.log"), "", b"log").unwrap();
    assert_eq!(put.status, 201);
    let mut seen = 0;
    let mut folders = vec![site.path("state")];
    while let Some(folder) = folders.pop() {
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700, "{}", folder.display());
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            seen += 1;
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o077;
                assert_eq!(mode, 0, "{}", entry.path().display());
            }
        }
    }
    assert!(seen >= 5, "lock, uploads, ote, the phone's folder and its log: {seen}");

    let second = tool::run(&mut site.command());
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains("another provost uses the state directory"), "{second:?}");
    assert!(is_served(&server), "the first server is not affected");
    server.kill();
    // A crash leaves no lock behind.
    assert!(is_served(&site.start()));
}

#[test]
fn silent_client_that_hangs_up_frees_its_slot() {
    let site = site_with(json!({ "unfinished_handshakes": 1, "handshake_s": 600 }));
    let server = site.start();
    for _ in 0..20 {
        let mut stranger = Socket::connect(server.address()).unwrap();
        stranger.shutdown(std::net::Shutdown::Write).unwrap();
        match stranger.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    eventually("the slot", || is_served(&server).then_some(()));
    server.reason("closed by the client");
}
