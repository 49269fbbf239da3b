//! The last good policy: it is kept across restarts as long as the folder and its policy file exist.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustls::AlertDescription;
use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site, holds};
use crate::harness::tls::alert;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, namespace, within_a_second};

const TYPO: &str = "{ \"phnes\": {} }";

fn policy(phones: &[&str]) -> Value {
    let phones: serde_json::Map<String, Value> = phones.iter().map(|mac| ((*mac).to_owned(), "".into())).collect();
    json!({ "trust": ["factory"], "phones": phones })
}

fn status(server: &Running, mac: &str) -> Option<u16> {
    server.client("ote", &FACTORY.device(mac)).get("/site.cfg").ok().map(|answer| answer.status)
}

fn is_not_served(server: &Running) -> bool {
    let error = server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
    alert(&error) == Some(AlertDescription::UnrecognisedName)
}

/// Waits until `ote`'s policy `text` is kept.
#[track_caller]
fn is_kept(site: &Site, text: &str) {
    eventually("the policy to be kept", || holds(&site.path("state/last-good/ote.json"), text).then_some(()));
}

#[track_caller]
fn is_removed(site: &Site, name: &str) {
    eventually("the kept policy to be removed", || {
        (!site.path(&format!("state/last-good/{name}")).exists()).then_some(())
    });
}

fn check(site: &Site) -> Ended {
    provost(&site.path("."), &["check"])
}

#[test]
fn last_good_policy_survives_a_typo_and_a_restart() {
    let site = Site::with_ote();
    let server = site.start();
    // The most recent good policy counts, not an older one.
    site.constituency("ote", &policy(&[VVX550]));
    is_kept(&site, &policy(&[VVX550]).to_string());
    let kept = site.path("state/last-good/ote.json");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(kept.clone()), mode(site.path("state/last-good"))), (0o600, 0o700));
    site.file("ote/constituency.json", TYPO);
    server.says("unknown key");
    server.kill();
    for _ in 0..2 {
        let server = site.start();
        server.says("unknown key; did you mean");
        server.says("the last good policy stays in force");
        assert_eq!((status(&server, VVX550), status(&server, VVX500)), (Some(200), Some(403)));
        let ended = check(&site);
        assert_eq!(ended.code, 1);
        assert!(ended.stdout.contains("(the last good policy stays in force)"), "{}", ended.stdout);
        let listed = provost(&site.path("."), &["phones"]);
        let known = |mac| listed.stdout.contains(&format!("{mac}  known"));
        assert!(known(VVX550) && !known(VVX500), "{listed:?}");
        server.kill();
    }
    let server = site.start();
    site.constituency("ote", &policy(&[VVX500]));
    within_a_second("the repaired policy", || (status(&server, VVX500) == Some(200)).then_some(()));
    is_kept(&site, &policy(&[VVX500]).to_string());
    assert_eq!(status(&server, VVX550), Some(403));
}

#[test]
fn policy_for_unlisted_phones_is_not_kept_across_a_restart() {
    let open = [json!({ "client_auth": "none" }), json!({ "trust": ["factory"], "phones": "any" })];
    for text in &open {
        let site = Site::with_ote();
        let server = site.start();
        is_kept(&site, &policy_of_ote());
        site.constituency("ote", text);
        is_kept(&site, &text.to_string());
        site.file("ote/constituency.json", TYPO);
        server.says("the last good policy stays in force");
        server.kill();
        let server = site.start();
        server.says("not served; the last good policy accepts phones that are not listed");
        assert!(is_not_served(&server), "{text}");
    }
    assert_eq!(open.len(), 2);
}

fn policy_of_ote() -> String {
    json!({ "trust": ["factory"], "phones": { VVX500: "vvx500" } }).to_string()
}

#[test]
fn kept_policy_is_validated_against_current_trust_bundles() {
    let mut site = Site::with_ote();
    let server = site.start();
    is_kept(&site, &policy_of_ote());
    server.kill();
    site.file("ote/constituency.json", TYPO);
    site.config["trust"] = json!({});
    let server = site.start();
    server.says("not served; the stored last good policy is no longer valid: ");
    assert!(is_not_served(&server));
}

#[test]
fn kept_policy_is_removed_with_its_folder_or_file() {
    let site = Site::with_ote();
    site.constituency("other", &policy(&[VVX500]));
    site.constituency("stays", &policy(&[VVX500]));
    let server = site.start();
    for name in ["ote", "other", "stays"] {
        let kept = site.path(&format!("state/last-good/{name}.json"));
        eventually("the policy to be kept", || kept.exists().then_some(()));
    }
    fs::remove_file(site.served("ote/constituency.json")).unwrap();
    fs::remove_dir_all(site.served("other")).unwrap();
    is_removed(&site, "ote.json");
    is_removed(&site, "other.json");
    // Recreated with a syntax error, they are not served, before and after a restart.
    for name in ["ote", "other"] {
        site.file(&format!("{name}/constituency.json"), TYPO);
    }
    server.says("other: ");
    server.kill();
    // A folder removed while no server runs is forgotten at the next start.
    fs::remove_dir_all(site.served("stays")).unwrap();
    let server = site.start();
    server.says("other: ");
    assert!(is_not_served(&server));
    is_removed(&site, "stays.json");
}

#[test]
fn constituencies_mounted_after_the_start_are_served() {
    let site = Site::with_ote();
    let server = site.start();
    is_kept(&site, &policy_of_ote());
    server.kill();
    site.file("ote/constituency.json", TYPO);
    fs::rename(site.served(""), site.path("unmounted")).unwrap();
    let server = site.start();
    server.says("(nothing is served)");
    assert!(is_not_served(&server));
    fs::rename(site.path("unmounted"), site.served("")).unwrap();
    within_a_second("the constituencies", || (status(&server, VVX500) == Some(200)).then_some(()));
    server.says("the last good policy stays in force");
}

#[test]
fn removal_of_a_policy_reports_its_lost_denials() {
    let site = Site::with_ote();
    let mut denying = policy(&[VVX500]);
    denying["denied"] = json!([STRANGER, VVX550]);
    site.constituency("ote", &denying);
    let server = site.start();
    is_kept(&site, &denying.to_string());
    fs::remove_file(site.served("ote/constituency.json")).unwrap();
    let reported = format!("constituency.json was removed, and 2 denials with it ({STRANGER}, {VVX550})");
    assert!(server.says(&reported).contains("To deny a phone under every policy, run provost deny MAC"));
    is_removed(&site, "ote.json");
    let warns = || {
        let ended = check(&site);
        assert_eq!(ended.code, 0, "{}", ended.stdout);
        ended.stdout.contains(&reported)
    };
    assert!(warns(), "while the server runs");
    server.kill();
    assert!(warns(), "and when it does not");
    site.start().says(&reported);
    // A new policy ends it.
    site.constituency("ote", &json!({}));
    let server = site.start();
    eventually("its traces to be removed", || {
        (fs::read_dir(site.path("state/last-good")).unwrap().count() == 1).then_some(())
    });
    assert!(!warns());
    drop(server);
    // A policy that denied nothing, or that never existed, is not mentioned.
    fs::remove_file(site.served("ote/constituency.json")).unwrap();
    assert!(!warns() && !check(&site).stdout.contains("was removed"));
}

#[test]
fn phone_both_listed_and_denied_is_a_warning() {
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let mut contradictory = policy(&[VVX500, VVX550]);
    contradictory["denied"] = json!([VVX550, STRANGER]);
    site.constituency("ote", &contradictory);
    let server = site.start();
    let reported = format!("both name {VVX550}: the denial takes precedence");
    assert!(server.says(&reported).contains("WARN"));
    assert_eq!(status(&server, VVX550), Some(403));
    let ended = check(&site);
    assert!(ended.code == 0 && ended.stdout.contains(&format!("warning: ote: \"phones\" and \"denied\" {reported}")));
    let operators = Operators::of(&server);
    let warnings = || operators.json("/api/overview")["constituencies"][0]["warnings"].clone();
    assert!(warnings()[0].as_str().is_some_and(|warning| warning.contains(&reported)), "{}", warnings());
    let page = operators.get("/").body;
    assert!(page.matches(&reported).count() == 2 && page.contains("1 problem needs attention"), "{page}");
    site.constituency("ote", &policy(&[VVX500, VVX550]));
    eventually("the end of the warning", || {
        let lines = server.stderr();
        lines.iter().any(|line| line.contains(": resolved: ") && line.contains(&reported)).then_some(())
    });
    eventually("the end of the warning on the page", || (warnings() == json!([])).then_some(()));
}

#[test]
fn full_or_read_only_disk_only_stops_keeping_policies() {
    let test = "last_good::full_or_read_only_disk_only_stops_keeping_policies";
    if !namespace::is_inside(test, &[]) {
        return;
    }
    let site = Site::with_ote();
    let folder = site.path("state/last-good");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(site.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
    namespace::mount_full(&folder);
    for state in ["full", "read-only"] {
        if state == "read-only" {
            let ended = run(Command::new("mount").args(["-o", "remount,ro"]).arg(&folder));
            assert_eq!(ended.code, 0, "{}", ended.stderr);
        }
        let server = site.start();
        assert!(server.says("the last good policies cannot be stored in ").contains("WARN"), "{state}");
        assert_eq!(status(&server, VVX500), Some(200));
        site.constituency("ote", &policy(&[VVX550]));
        within_a_second("the change", || (status(&server, VVX550) == Some(200)).then_some(()));
        site.file("ote/constituency.json", TYPO);
        server.says("the last good policy stays in force");
        assert_eq!(status(&server, VVX550), Some(200), "{state}");
        let reported = server.stderr().into_iter().filter(|line| line.contains("cannot be stored")).count();
        assert_eq!(reported, 1, "{state}: it is said once");
        site.constituency("ote", &policy(&[VVX500]));
    }
}
