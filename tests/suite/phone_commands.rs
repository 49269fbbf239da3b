//! The commands about the state of phones: `phones`, `phone-log`, `uploads`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::pki::{FACTORY, Identity, OTHER_FACTORY, device_params};
use crate::harness::site::{Running, Site};
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, not_run};
use crate::uploads::{LOG, files_below, phone};

/// Debian's user nobody and group nogroup.
const NOBODY: u32 = 65534;

/// Runs a command that must succeed, in the site's folder.
#[track_caller]
fn good(site: &Site, args: &[&str]) -> String {
    let ended = provost(&site.path("."), args);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}: {}", ended.stdout);
    ended.stdout
}

fn bad(site: &Site, args: &[&str]) -> Ended {
    let ended = provost(&site.path("."), args);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args:?}: {}", ended.stderr);
    ended
}

/// The JSON lines that a command prints.
fn objects(site: &Site, args: &[&str]) -> Vec<Value> {
    let printed = good(site, &[args, &["--json"]].concat());
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The phones that `provost phones` lists with further arguments.
fn macs(site: &Site, args: &[&str]) -> Vec<String> {
    let phones = objects(site, &[&["phones"], args].concat());
    phones.iter().map(|phone| phone["mac"].as_str().unwrap().to_owned()).collect()
}

/// A site with a served phone, a listed one without requests, an unknown one, and an unproven claim.
fn site_with_visitors() -> (Site, Running) {
    let site = Site::with_ote();
    let phones = json!({ VVX500: "the kitchen", VVX550: "the cellar" });
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones }));
    site.constituency("lab", &json!({ "trust": ["factory"], "phones": "any" }));
    site.file("lab/site.cfg", "<lab/>");
    let server = site.start();
    let agent = "User-Agent: FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application\r\n";
    assert_eq!(phone(&server).request("GET", "/site.cfg", agent, b"").unwrap().status, 200);
    assert_eq!(phone(&server).request("GET", "/absent.cfg?\u{9b}2J", agent, b"").unwrap().status, 404);
    // Of two requests in the same millisecond, the one recorded first counts as the earlier.
    server.access("the absent file", |line| line["status"] == 404);
    assert_eq!(server.client("lab", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
    assert_eq!(server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status, 403);
    let claimant = Identity::self_signed(&device_params(VVX550));
    server.client("ote", &claimant).get("/site.cfg").unwrap_err();
    eventually("the phone history to contain them all", || {
        let all = objects(&site, &["phones", "--refused"]);
        (all.len() == 2 && macs(&site, &["--constituency", "lab"]).len() == 1).then_some(())
    });
    (site, server)
}

#[test]
fn phones_command_lists_state_model_firmware_and_refusal() {
    let (site, _server) = site_with_visitors();
    assert_eq!(macs(&site, &[]), [VVX500, VVX500, STRANGER, VVX550]);
    assert_eq!(macs(&site, &["--constituency", "ote"]), [VVX500, STRANGER, VVX550]);
    assert_eq!(macs(&site, &["--refused"]), [STRANGER, VVX550]);
    assert_eq!(macs(&site, &["--silent-for", "2d"]), [VVX550]);
    assert_eq!(
        macs(&site, &["--silent-for", "0s"]),
        [VVX500, VVX500, VVX550],
        "unlisted phones are not reported as missing"
    );
    let unknown = bad(&site, &["phones", "--constituency", "nobody"]);
    assert_eq!(unknown.stderr, "error: constituency nobody not found; see provost constituency list\n");

    let known = objects(&site, &["phones", "--constituency", "ote"]).remove(0);
    for (key, value) in [
        ("standing", json!("known")),
        ("note", json!("the kitchen")),
        ("proven", json!(true)),
        ("refused", json!(false)),
        ("address", json!("127.0.0.1")),
        ("model", json!("VVX_500")),
        ("firmware", json!("5.9.7.4477")),
        ("tls", json!("TLSv1.3/TLS13_AES_128_GCM_SHA256")),
        ("requests", json!(2)),
        ("last_refusal", Value::Null),
    ] {
        assert_eq!(known[key], value, "{key}: {known}");
    }
    assert_eq!(known["last_configuration"]["path"], "/site.cfg");
    let refused = objects(&site, &["phones", "--refused"]);
    assert_eq!(refused[0]["last_refusal"]["reason"], format!("{STRANGER} is not known to ote"));
    assert_eq!((&refused[1]["proven"], &refused[1]["mac"]), (&json!(false), &json!(VVX550)));
    assert_eq!(refused[1]["certificate_sha256"].as_str().unwrap().len(), 64);

    let table = good(&site, &["phones", "--refused"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("CONSTITUENCY  PHONE"), "{table}");
    assert!(lines[1].starts_with(&format!("ote           {STRANGER}  unknown   20")), "{table}");
    assert!(lines[2].contains(&format!(": {STRANGER} is not known to ote")), "{table}");
    assert!(
        lines[3].starts_with("unproven: a client at 127.0.0.1 claims to be 00005e0053c7 of ote (once, last at "),
        "{table}"
    );
    assert!(lines[4].starts_with("    refused: ") && lines[4].contains("self-signed"), "{table}");
    assert!(lines[5].starts_with("    certificate (unproven; any client can make or copy it): SHA-256 "), "{table}");
}

#[test]
fn unproven_claim_is_listed_with_the_later_real_boot() {
    let (site, server) = site_with_visitors();
    let all = provost(&site.path("."), &["phones"]);
    assert!(all.stdout.contains("00005e0053c7  known     never"), "{all:?}");
    assert_eq!(all.stderr, "note: there are unproven claims to be a phone; --refused lists them\n");
    assert_eq!(objects(&site, &["phones", "--refused"])[1]["let_in_since"], Value::Null);
    assert_eq!(server.client("ote", &FACTORY.device(VVX550)).get("/site.cfg").unwrap().status, 200);
    let table = eventually("the phone itself", || {
        let table = good(&site, &["phones", "--refused"]);
        table.contains("\n    the phone itself was accepted since, at 20").then_some(table)
    });
    assert!(table.contains("unproven: a client at 127.0.0.1 claims to be 00005e0053c7"), "{table}");
    assert!(good(&site, &["phone-log", VVX550]).contains("the phone itself was accepted since, at 20"));
    assert!(objects(&site, &["phones", "--refused"])[1]["let_in_since"].is_string());
}

#[test]
fn phones_command_reflects_policy_changes_at_once() {
    let (site, server) = site_with_visitors();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { STRANGER: "no more" }, "denied": [VVX500] }));
    let standing: Vec<Value> =
        objects(&site, &["phones", "--constituency", "ote"]).iter().map(|phone| phone["standing"].clone()).collect();
    assert_eq!(standing, ["denied", "known"]);
    let stranger = || objects(&site, &["phones", "--constituency", "ote"]).remove(1);
    assert_eq!((&stranger()["refused"], &stranger()["mac"]), (&json!(false), &json!(STRANGER)));
    let said = "was put on the list after its last refusal, and has sent no request since";
    assert!(provost(&site.path("."), &["phones"]).stdout.contains(said));
    assert!(!macs(&site, &["--refused"]).contains(&STRANGER.to_owned()));
    drop(server);
    assert_eq!(macs(&site, &["--constituency", "ote"]), [VVX500, STRANGER], "no server is needed");
    good(&site, &["allow", "00005e0053aa", "--constituency", "ote", "--note", "an \x1b[2J escape"]);
    let listed = provost(&site.path("."), &["phones"]).stdout;
    assert!(listed.contains("an \u{fffd}[2J escape"), "control characters in a note are replaced");
}

#[test]
fn broken_policy_is_reported_by_the_phones_command() {
    let (site, server) = site_with_visitors();
    let broken = "{ \"phones\": { \"00005e00530c\": \"\" }, }";
    for name in ["lab", "unseen"] {
        site.file(&format!("{name}/constituency.json"), broken);
    }
    server.says("the last good policy stays in force");
    assert_eq!(server.client("lab", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
    let unlisted = |name: &str| {
        format!(
            "invalid policy of {name}, so its list of phones is unknown: \
             constituencies/{name}/constituency.json:1:37: "
        )
    };
    let listed = |args: &[&str]| provost(&site.path("."), &[&["phones"], args].concat());
    for args in [&[][..], &["--json"]] {
        let all = listed(args);
        let warned: Vec<&str> = all.stderr.lines().filter_map(|line| line.strip_prefix("warning: ")).collect();
        assert_eq!((all.code, warned.len()), (0, 2), "{all:?}");
        for (warning, name) in warned.iter().zip(["lab", "unseen"]) {
            assert!(warning.starts_with(&unlisted(name)) && warning.contains("trailing comma"), "{warning}");
            assert!(!warning.contains("not served"), "{warning}");
        }
    }
    assert!(listed(&[]).stdout.contains(&format!("lab           {VVX500}  unclear   20")), "{}", listed(&[]).stdout);
    let seen = listed(&["--constituency", "lab", "--json"]);
    assert!(seen.code == 0 && seen.stdout.contains("\"standing\":\"unclear\""), "{seen:?}");
    assert!(seen.stderr.starts_with(&format!("warning: {}", unlisted("lab"))), "{seen:?}");
    assert_eq!(seen.stderr.lines().count(), 1, "{seen:?}");
    let unseen = bad(&site, &["phones", "--constituency", "unseen"]);
    assert!(unseen.stderr.starts_with(&format!("error: {}", unlisted("unseen"))), "{unseen:?}");
    assert!(unseen.stderr.contains("trailing comma") && unseen.stderr.lines().count() == 1, "{unseen:?}");
    let whole = listed(&["--constituency", "ote"]);
    assert!(whole.code == 0 && !whole.stderr.contains("warning"), "{whole:?}");

    let none = listed(&["--constituency", "ote", "--silent-for", "10000d", "--tls-legacy"]);
    assert_eq!((none.code, none.stdout.lines().count()), (0, 1), "{none:?}");
    assert!(none.stderr.starts_with("note: no phones found\n"), "{none:?}");
    let elsewhere = provost(tempfile::tempdir().unwrap().path(), &["phones"]);
    let said = "note: no phones found: local mode, without constituencies here; name the configuration with --config\n";
    assert!(elsewhere.code == 0 && elsewhere.stderr.ends_with(said), "{elsewhere:?}");
}

#[test]
fn phone_log_lists_requests_with_status_and_reason() {
    let (site, _server) = site_with_visitors();
    let log = objects(&site, &["phone-log", "00:00:5E:00:53:0C"]);
    let asked: Vec<(&str, &str, u64)> = log
        .iter()
        .map(|it| (it["constituency"].as_str().unwrap(), it["path"].as_str().unwrap(), it["status"].as_u64().unwrap()))
        .collect();
    assert_eq!(asked, [("ote", "/site.cfg", 200), ("ote", r"/absent.cfg?\xC2\x9B2J", 404), ("lab", "/site.cfg", 200)]);
    let text = good(&site, &["phone-log", STRANGER]);
    assert!(text.contains(" ote 127.0.0.1 \"GET /site.cfg\" 403 "), "{text}");
    assert!(text.trim_end().ends_with("00005e0053aa is not known to ote"), "{text}");
    let claim = good(&site, &["phone-log", VVX550]);
    assert!(claim.starts_with("unproven: a client at 127.0.0.1") && claim.contains("self-signed"), "{claim}");
    let never = bad(&site, &["phone-log", "00005e005300"]);
    assert!(never.stderr.contains("no requests of 00005e005300"), "{}", never.stderr);
}

#[test]
fn phones_of_the_policy_are_listed_without_a_history() {
    let site = Site::with_ote();
    site.write_config();
    assert_eq!(macs(&site, &[]), [VVX500]);
    assert_eq!(macs(&site, &["--silent-for", "1h"]), [VVX500]);
    assert!(!site.path("state").exists(), "reading creates nothing");
    std::fs::create_dir_all(site.path("state/ledger")).unwrap();
    std::fs::write(site.path("state/ledger/ledger.sqlite"), "no database".repeat(1000)).unwrap();
    let ended = bad(&site, &["phones"]);
    assert!(ended.stderr.contains("ledger.sqlite: file is not a database"), "{}", ended.stderr);
}

#[test]
fn commands_run_by_root_keep_the_owner_of_state_files() {
    if !rustix::process::geteuid().is_root() {
        return not_run("commands_run_by_root_keep_the_owner_of_state_files", "it needs root");
    }
    let site = Site::with_ote();
    site.write_config();
    std::fs::set_permissions(site.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let give_away = |folder: &Path| run(Command::new("chown").args(["-R", "65534:65534"]).arg(folder));
    std::fs::create_dir(site.path("state")).unwrap();
    assert_eq!(give_away(&site.path("state")).code, 0);
    let serve = |wrapper: &[&str]| Running::start(site.command_under(wrapper), 1);
    for key in ["rsa.key", "ec.key"] {
        assert_eq!(give_away(&site.path(key)).code, 0);
    }
    let wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let all_of_nobody = || {
        let files = files_below(&site.path("state"));
        let owner = |file: &String| std::fs::symlink_metadata(site.path("state").join(file)).unwrap().uid();
        let strange: Vec<&String> = files.iter().filter(|file| owner(file) != NOBODY).collect();
        assert!(strange.is_empty(), "{strange:?}");
        files.into_iter().filter(|file| file.starts_with("ledger/")).count()
    };
    let server = serve(&wrapper);
    phone(&server).get("/site.cfg").unwrap();
    assert_eq!(phone(&server).put(LOG, "", b"log").unwrap().status, 201);
    eventually("the phone history", || good(&site, &["phones"]).contains("known     20").then_some(()));
    good(&site, &["uploads", "list", VVX500]);
    all_of_nobody();
    // After a crash, the database's log is still there, and its index may be missing.
    server.kill();
    std::fs::remove_file(site.path("state/ledger/ledger.sqlite-shm")).unwrap();
    good(&site, &["phones"]);
    all_of_nobody();
    let server = serve(&wrapper);
    phone(&server).get("/site.cfg").unwrap();
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    good(&site, &["phones"]);
    assert_eq!(all_of_nobody(), 1);
    good(&site, &["uploads", "remove", VVX500, &LOG[1..]]);
    all_of_nobody();
}

#[test]
fn uploads_are_listed_printed_and_removed() {
    let site = Site::with_ote();
    site.constituency("lab", &json!({ "trust": ["factory"], "phones": { VVX500: "" } }));
    let own = format!("/{VVX500}-phone.cfg");
    site.file(&format!("ote{own}"), "<the folder's/>");
    let server = site.start();
    assert_eq!(phone(&server).get(&own).unwrap().text(), "<the folder's/>");
    assert_eq!(phone(&server).put(&own, "", b"<the phone's/>").unwrap().status, 201);
    assert_eq!(phone(&server).put("/logs/00005E00530C-app.log", "", b"\x1b[2J\xff").unwrap().status, 201);
    assert_eq!(phone(&server).get(&own).unwrap().text(), "<the phone's/>");
    let listed = good(&site, &["uploads", "list", VVX500]);
    let names: Vec<&str> = listed.lines().map(|line| line.rsplit("  ").next().unwrap()).collect();
    assert_eq!(names, [&own[1..], "logs/00005e00530c-app.log"], "{listed}");
    assert!(listed.starts_with("ote         14  20"), "{listed}");
    for (to, said) in [(&[][..], ""), (&["--constituency", "lab"], " to lab")] {
        let ended = provost(&site.path("."), &[&["uploads", "list", VVX550], to].concat());
        let note = format!("note: no uploads of 00005e0053c7{said}\n");
        assert_eq!((ended.code, ended.stdout, ended.stderr), (0, String::new(), note));
    }
    let shown = Command::new(env!("CARGO_BIN_EXE_provost"))
        .args(["uploads", "cat", VVX500, "logs/00005E00530C-app.log"])
        .current_dir(site.path("."))
        .output()
        .unwrap();
    assert_eq!(shown.stdout, b"\x1b[2J\xff");

    good(&site, &["uploads", "remove", VVX500, &own]);
    assert_eq!(phone(&server).get(&own).unwrap().text(), "<the folder's/>");
    let gone = bad(&site, &["uploads", "cat", VVX500, &own]);
    assert!(gone.stderr.contains("`provost uploads list 00005e00530c` lists its uploads"), "{}", gone.stderr);
    for outside in ["../../../provost.json", "..", "/etc/passwd", "logs", ""] {
        bad(&site, &["uploads", "remove", VVX500, outside]);
    }

    let elsewhere = server.client("lab", &FACTORY.device(VVX500));
    assert_eq!(elsewhere.put("/logs/00005e00530c-app.log", "", b"lab").unwrap().status, 201);
    let log = "logs/00005e00530c-app.log";
    let which = bad(&site, &["uploads", "cat", VVX500, log]);
    assert!(which.stderr.contains("to lab and ote; choose one with --constituency"), "{}", which.stderr);
    assert_eq!(good(&site, &["uploads", "cat", VVX500, log, "--constituency", "lab"]), "lab");
    // The owner of these uploads is proven; they are not another phone's.
    server.client("lab", &OTHER_FACTORY.device(VVX500)).put(LOG, "", b"x").unwrap_err();
    assert_eq!(good(&site, &["uploads", "list", VVX500]).lines().count(), 2);
}
