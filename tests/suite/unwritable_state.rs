//! A state directory that is completely or partly unwritable: phones are served, and the errors are reported.

use serde_json::json;

use crate::harness::operators::Operators;
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
    assert!(second.code == 1 && second.stderr.contains("is in use by another provost"), "{second:?}");

    namespace::writable(&state);
    server.says("can be written again");
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
        server.says("can be written again");
        assert_eq!(phone(&server).put(LOG, "", b"log").unwrap().status / 100, 2, "{name}");
        if name == "ledger" {
            eventually("the phone history", || site.path("state/ledger/ledger.sqlite").exists().then_some(()));
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
}
