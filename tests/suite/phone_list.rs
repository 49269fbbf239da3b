//! `phones.csv`: a list of phones beside the policy.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::time::Duration;

use serde_json::json;

use crate::harness::operators::Operators;
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site, holds};
use crate::harness::tool::{Ended, provost};
use crate::harness::{STRANGER, Stopwatch, VVX500, VVX550, eventually, within_a_second};

const LIST: &str = "ote/phones.csv";

/// The usual site, whose constituency knows VVX500 by its policy and VVX550 by `phones.csv`.
fn site() -> Site {
    let site = Site::with_ote();
    site.file(LIST, format!("mac,note\n{VVX550},Lobby\n"));
    site
}

fn status(server: &Running, mac: &str) -> u16 {
    server.client("ote", &FACTORY.device(mac)).get("/site.cfg").unwrap().status
}

#[track_caller]
fn becomes(server: &Running, mac: &str, expected: u16) {
    within_a_second("the list", || (status(server, mac) == expected).then_some(()));
}

/// Replaces the list by renaming a new file over it.
fn replace(site: &Site, text: &str) {
    let new = site.served("ote/.phones.new");
    fs::write(&new, text).unwrap();
    fs::rename(new, site.served(LIST)).unwrap();
}

fn command(site: &Site, args: &[&str]) -> Ended {
    provost(&site.path("."), args)
}

#[track_caller]
fn good(site: &Site, args: &[&str]) -> String {
    let ended = command(site, args);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}: {}", ended.stdout);
    ended.stdout
}

#[test]
fn known_phones_are_those_of_the_list_the_policy_and_own_files() {
    let site = site();
    let server = site.start();
    assert_eq!([VVX500, VVX550, STRANGER].map(|mac| status(&server, mac)), [200, 200, 403]);
    // With a byte order mark, CRLF, semicolons and colons, as Excel writes it; in place, and by a rename.
    let excel = |mac: &str| format!("\u{feff}Site;MAC;Note\r\nA;{};\"Room \"\"1\"\"; east\"\r\n", mac.to_uppercase());
    site.file(LIST, excel(STRANGER));
    becomes(&server, STRANGER, 200);
    assert_eq!(status(&server, VVX550), 403);
    replace(&site, &excel("00:00:5e:00:53:c7"));
    becomes(&server, VVX550, 200);
    assert_eq!(status(&server, STRANGER), 403);
    let listed = good(&site, &["phones"]);
    assert!(listed.contains("Room \"1\"; east") && listed.contains(VVX500), "{listed}");
    assert_eq!(good(&site, &["constituency", "list"]), "ote      2 phones\n");
    // A denial takes precedence.
    site.constituency("ote", &json!({ "trust": ["factory"], "denied": [VVX550] }));
    becomes(&server, VVX550, 403);
    let warned = "phones.csv and \"denied\" both name 00005e0053c7: the denial takes precedence";
    server.says(&warned.replace('"', "\\\""));
    assert!(good(&site, &["check"]).contains(warned));
    // A removed list is an empty one, and the phone's own file makes it known.
    site.file(&format!("ote/{STRANGER}.cfg"), "");
    becomes(&server, STRANGER, 200);
    site.constituency("ote", &json!({ "trust": ["factory"] }));
    becomes(&server, VVX550, 200);
    fs::remove_file(site.served(LIST)).unwrap();
    becomes(&server, VVX550, 403);
    assert_eq!(status(&server, STRANGER), 200);
}

#[test]
fn change_of_the_list_keeps_sessions_and_connections() {
    let site = site();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX550));
    let mut open = client.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    replace(&site, &format!("mac,note\n{VVX550},Lobby\n{STRANGER},\n"));
    becomes(&server, STRANGER, 200);
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert!(client.resumes());
    replace(&site, "mac,note\n");
    within_a_second("the removal", || (open.get("/site.cfg").unwrap().status == 403).then_some(()));
}

#[test]
fn broken_list_keeps_the_last_good_one_also_after_a_restart() {
    let site = site();
    let server = site.start();
    let stored = format!("mac,note\n{VVX550},Lobby\n");
    eventually("the list to be kept", || holds(&site.path("state/last-good/ote.csv"), &stored).then_some(()));
    let broken = format!("mac,note\n{STRANGER},a\n00:00:5E:00:53:AA,b\n");
    let error = "phones.csv:3: 00005e0053aa is listed twice, first in line 2; remove one of the two lines (the last good list stays in force)";
    replace(&site, &broken);
    server.says(error);
    assert_eq!([VVX550, STRANGER].map(|mac| status(&server, mac)), [200, 403]);
    server.kill();
    let server = site.start();
    server.says(error);
    assert_eq!([VVX500, VVX550, STRANGER].map(|mac| status(&server, mac)), [200, 200, 403]);
    let checked = command(&site, &["check"]);
    assert_eq!(checked.code, 1);
    assert!(checked.stdout.contains(error), "{}", checked.stdout);
    let listed = command(&site, &["phones"]);
    assert!(listed.code == 0 && listed.stderr.contains(error), "{}", listed.stderr);
    assert!(
        listed.stdout.contains("Lobby") && !listed.stdout.contains(&format!("{STRANGER}  known")),
        "{}",
        listed.stdout
    );
    replace(&site, &format!("mac,note\n{STRANGER},a\n"));
    becomes(&server, STRANGER, 200);
    server.says("ote: resolved: ");
    assert_eq!(status(&server, VVX550), 403);
    // A removed list is forgotten, so that a broken one in its place has no last good one.
    fs::remove_file(site.served(LIST)).unwrap();
    eventually("the kept list to be removed", || (!site.path("state/last-good/ote.csv").exists()).then_some(()));
    server.kill();
    site.file(LIST, "kitchen\n");
    let server = site.start();
    server.says("phones.csv:1: no column \\\"mac\\\"; the first line names the columns, for example mac,note (its phones are not known)");
    assert_eq!([VVX500, VVX550, STRANGER].map(|mac| status(&server, mac)), [200, 403, 403]);
}

#[test]
fn list_that_is_a_link_or_cannot_be_read_is_refused() {
    let site = site();
    site.file("other.csv", format!("mac\n{STRANGER}\n"));
    let server = site.start();
    fs::remove_file(site.served(LIST)).unwrap();
    symlink("../other.csv", site.served(LIST)).unwrap();
    server.says("ote/phones.csv: is not a regular file (links, folders and pipes are not read) (the last good list stays in force)");
    assert_eq!([VVX550, STRANGER].map(|mac| status(&server, mac)), [200, 403]);
    let ended = command(&site, &["allow", STRANGER, "--constituency", "ote"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("phones.csv: is not a regular file") && ended.stderr.contains("nothing was changed"));
    assert!(fs::symlink_metadata(site.served(LIST)).unwrap().is_symlink());
}

#[test]
fn list_without_effect_is_reported() {
    let site = site();
    for (name, policy, key) in [
        ("any", json!({ "trust": ["factory"], "phones": "any" }), "\"phones\": \"any\""),
        ("none", json!({ "client_auth": "none" }), "\"client_auth\": \"none\""),
    ] {
        site.constituency(name, &policy);
        site.file(&format!("{name}/phones.csv"), format!("mac\n{VVX550}\n"));
        site.file(&format!("{name}/site.cfg"), "<site/>");
        site.write_config();
        let checked = command(&site, &["check"]);
        let expected = format!("warning: {name}: phones.csv has no effect with {key}; remove one of the two");
        assert!(checked.stdout.contains(&expected), "{}", checked.stdout);
    }
}

#[test]
fn list_with_upper_case_letters_in_its_name_is_reported() {
    let site = Site::with_ote();
    site.file("ote/PHONES.CSV", format!("mac\n{STRANGER}\n"));
    let server = site.start();
    let warned =
        |name: &str| format!("{name} is neither read nor served, because of its upper-case letters; rename it to ");
    server.says(&format!("ote: {}phones.csv, or remove it", warned("PHONES.CSV")));
    assert_eq!(status(&server, STRANGER), 403);
    let checked = good(&site, &["check"]);
    assert!(checked.contains(&format!("warning: ote: {}phones.csv", warned("PHONES.CSV"))), "{checked}");
    fs::rename(site.served("ote/PHONES.CSV"), site.served(LIST)).unwrap();
    becomes(&server, STRANGER, 200);
    server.says("ote: resolved: PHONES.CSV is neither");
    // Beside the list, and a policy of such a name.
    for name in ["Phones.csv", "Constituency.json"] {
        site.file(&format!("ote/{name}"), "{}");
        server.says(&format!("ote: {}", warned(name)));
    }
    let checked = good(&site, &["check"]);
    assert_eq!(checked.matches(" is neither read nor served").count(), 2, "{checked}");
    assert!(!checked.contains(" phones.csv is neither"), "{checked}");
    assert_eq!([VVX500, STRANGER].map(|mac| status(&server, mac)), [200, 200]);
}

/// Names of policy files and of their copies.
const POLICY_FILES: [&str; 14] = [
    "constituency.json",
    "Constituency.json",
    "constituency.json.bak",
    "constituency.json~",
    "#constituency.json#",
    "constituency.json.rpmsave",
    "phones.csv",
    "PHONES.CSV",
    "phones.csv.bak",
    "phones.csv~",
    "#phones.csv#",
    "Phones.csv.2026-11-30",
    "phones.csv.d",
    "phoneſ.csv",
];

#[test]
fn policy_files_are_never_served_linked_shared_or_uploaded() {
    let site = Site::with_ote();
    let folder = |name: &str| fs::create_dir_all(site.served(name)).unwrap();
    folder("ote/links");
    site.constituency("ucs", &json!({ "trust": ["factory"], "shared": POLICY_FILES }));
    let mut paths = Vec::new();
    for (number, name) in POLICY_FILES.iter().enumerate() {
        for owner in ["ote", "ucs"] {
            if *name != "constituency.json" {
                site.file(&format!("{owner}/{name}"), "mac\n");
            }
        }
        symlink(format!("../{name}"), site.served(&format!("ote/links/own-{number}"))).unwrap();
        symlink(format!("../../ucs/{name}"), site.served(&format!("ote/links/other-{number}"))).unwrap();
        paths.extend([format!("/{name}"), format!("/links/own-{number}"), format!("/links/other-{number}")]);
    }
    symlink("../../ucs", site.served("ote/links/ucs")).unwrap();
    symlink("..", site.served("ote/links/ote")).unwrap();
    for name in POLICY_FILES {
        paths.extend(["ote", "ucs"].map(|owner| format!("/links/{owner}/{name}")));
    }
    // A shared folder of such a name.
    for (number, name) in ["phones.csv.x", "constituency.json.x"].iter().enumerate() {
        site.file(&format!("ote/{name}/site.cfg"), "secret");
        symlink(format!("../{name}"), site.served(&format!("ote/links/folder-{number}"))).unwrap();
        paths.extend([format!("/{name}/site.cfg"), format!("/links/folder-{number}/site.cfg")]);
    }
    assert_eq!(paths.len(), 5 * POLICY_FILES.len() + 4);
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    assert_eq!(client.get("/links/ote/site.cfg").unwrap().status, 200);
    for path in &paths {
        let path = path.replace('#', "%23").replace('ſ', "%C5%BF");
        assert_eq!(client.get(&path).unwrap().status, 404, "{path}");
        assert_eq!(client.put(&path, "", b"mac\n").unwrap().status, 403, "{path}");
    }
    assert!(holds(&site.served("ote/phones.csv"), "mac\n"));
    assert!(!site.path("state/uploads/ote").exists());
}

#[test]
fn allow_edits_the_list_and_changes_no_other_byte() {
    let site = Site::with_ote();
    let list = site.served(LIST);
    let before = "\u{feff}Site;MAC;Note;Serial\r\nA;00:00:5E:00:53:C7;\"the \"\"lobby\"\"\";0017\r\n";
    site.file(LIST, before);
    fs::set_permissions(&list, PermissionsExt::from_mode(0o640)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        chown(&list, Some(65534), Some(65533)).unwrap();
    }
    let policy = fs::read_to_string(site.served("ote/constituency.json")).unwrap();
    let server = site.start();
    let said = good(&site, &["allow", STRANGER, "--constituency", "ote", "--note", "attic; east"]);
    assert_eq!(said, "00005e0053aa is allowed in ote within a second\n");
    becomes(&server, STRANGER, 200);
    let after = format!("{before};00005e0053aa;\"attic; east\";\r\n");
    assert!(holds(&list, &after));
    assert_eq!(good(&site, &["allow", STRANGER, "--constituency", "ote"]), "00005e0053aa is allowed in ote already\n");
    good(&site, &["allow", VVX550, "--constituency", "ote", "--note", "hall"]);
    let after = after.replace("\"the \"\"lobby\"\"\"", "hall");
    assert!(holds(&list, &after));
    let metadata = fs::metadata(&list).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert!(!is_root || (metadata.uid(), metadata.gid()) == (65534, 65533));
    // A phone that the policy names is edited there; a denial stays in the policy.
    good(&site, &["allow", VVX500, "--constituency", "ote", "--note", "renamed"]);
    assert!(holds(&list, &after));
    assert!(holds(&site.served("ote/constituency.json"), policy.replace("vvx500", "renamed")));
    good(&site, &["deny", STRANGER, "--constituency", "ote"]);
    becomes(&server, STRANGER, 403);
    assert!(holds(&list, &after));
    good(&site, &["allow", STRANGER, "--constituency", "ote"]);
    becomes(&server, STRANGER, 200);
    assert!(holds(&list, &after));
    assert_eq!(fs::read_dir(site.served("ote")).unwrap().count(), 3, "no temporary file is left");
    // A broken list is not edited, and a phone can be denied all the same.
    let broken = format!("{after}vvx500;;;\r\n");
    replace(&site, &broken);
    let ended = command(&site, &["allow", "00005e0053ab", "--constituency", "ote"]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("phones.csv:4: 4 fields") || ended.stderr.contains("phones.csv:4: invalid MAC address"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("nothing was changed"), "{}", ended.stderr);
    assert!(holds(&list, &broken));
    good(&site, &["deny", VVX550, "--constituency", "ote"]);
    becomes(&server, VVX550, 403);
}

#[test]
fn page_allows_into_the_list_and_waits_until_it_is_in_force() {
    let mut site = site();
    fs::write(site.path("token"), "0123456789abcdef0123456789abcdef\n").unwrap();
    fs::set_permissions(site.path("token"), PermissionsExt::from_mode(0o600)).unwrap();
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    let server = site.start();
    let operators = Operators::of(&server).with_token("0123456789abcdef0123456789abcdef");
    assert_eq!(status(&server, STRANGER), 403);
    let answer = operators.post("/api/allow", &json!({ "mac": STRANGER, "constituency": "ote", "note": "attic" }));
    assert_eq!((answer.status, answer.json()), (200, json!({ "changed": true })));
    assert!(holds(&site.served(LIST), format!("mac,note\n{VVX550},Lobby\n{STRANGER},attic\n")));
    becomes(&server, STRANGER, 200);
    let phone = operators.json(&format!("/api/phones/ote/{STRANGER}"));
    assert_eq!(phone["phone"]["note"], "attic", "{phone}");
}

#[test]
fn continuous_writes_elsewhere_do_not_delay_the_list() {
    let site = site();
    let server = site.start();
    assert_eq!(status(&server, STRANGER), 403);
    fs::create_dir(site.served("other")).unwrap();
    server.says("other is served");
    site.file(LIST, format!("mac\n{STRANGER}\n"));
    let (mut writes, watch) = (0, Stopwatch::start());
    while status(&server, STRANGER) != 200 {
        site.file(&format!("other/noise-{}.xml", writes % 50), "noise");
        writes += 1;
        assert!(!watch.is_over(), "not in force after {writes} writes");
    }
    watch.at_most(Duration::from_secs(2), &format!("the list beside {writes} writes"));
}

/// The file is written in two halves, each a valid list, with a pause as on a slow line.
#[test]
fn half_written_list_locks_no_phone_out() {
    let site = site();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX550));
    let mut open = client.connect().unwrap();
    let rounds = 20;
    for round in 0..rounds {
        let file = fs::File::create(site.served(LIST)).unwrap();
        let half = format!("mac,note\n{STRANGER},{round}\n");
        std::io::Write::write_all(&mut &file, half.as_bytes()).unwrap();
        assert_eq!(open.get("/site.cfg").unwrap().status, 200, "round {round}");
        std::io::Write::write_all(&mut &file, format!("{VVX550},Lobby\n").as_bytes()).unwrap();
    }
    becomes(&server, STRANGER, 200);
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
}
