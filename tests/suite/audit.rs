//! The audit log: what is recorded, by whom, from where; what happens if it cannot be written; `provost audit`, the page
//! and the API.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::acme_e2e;
use crate::harness::operators::Operators;
use crate::harness::pebble::Behavior;
use crate::harness::site::Site;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually};

/// Every action, as the log spells it.
const ACTIONS: [&str; 19] = [
    "allowed",
    "ca_made",
    "certificate_renewed",
    "certificate_revoked",
    "constituency_added",
    "denied",
    "device_certificate_issued",
    "device_certificate_revoked",
    "file_changed",
    "operator_added",
    "operator_removed",
    "operator_rotated",
    "password_made",
    "password_removed",
    "pinned",
    "undenied",
    "unpinned",
    "upload_removed",
    "uploads_moved",
];
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const FINGERPRINT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn site() -> Site {
    let mut site = Site::with_ote();
    with_token(&mut site);
    site.write_config();
    site
}

fn with_token(site: &mut Site) {
    std::fs::write(site.path("token"), TOKEN).unwrap();
    std::fs::set_permissions(site.path("token"), PermissionsExt::from_mode(0o600)).unwrap();
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
}

fn command(site: &Site, arguments: &[&str]) -> Ended {
    provost(&site.path("."), arguments)
}

#[track_caller]
fn good(site: &Site, arguments: &[&str]) -> Ended {
    let ended = command(site, arguments);
    assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");
    ended
}

/// The entries by `provost audit --json`.
fn audit(site: &Site, arguments: &[&str]) -> Vec<Value> {
    let shown = good(site, &[&["audit", "--json"], arguments].concat()).stdout;
    shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_change_leaves_its_line_in_the_audit_log() {
    let test = "audit::every_change_leaves_its_line_in_the_audit_log";
    let Some((_bind, mut public)) = acme_e2e::usual(test, Behavior::default()) else { return };
    with_token(&mut public.site);
    let site = &public.site;
    for name in ["own", "pw"] {
        let client_auth = if name == "pw" { "digest" } else { "required" };
        site.constituency(name, &json!({ "client_auth": client_auth }));
    }
    let _server = public.start();
    public.obtains();
    let upload = |constituency: &str| {
        let folder = site.uploads(constituency, VVX500);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{VVX500}-app.log")), "log").unwrap();
    };
    upload("own");
    for line in [
        format!("allow {VVX500} --constituency own"),
        format!("allow {VVX500} --constituency own --certificate-sha256 {FINGERPRINT}"),
        format!("deny {VVX500} --constituency own"),
        format!("deny {VVX550} --note stolen"),
        format!("undeny {VVX550}"),
        format!("allow {VVX550} --constituency pw --digest"),
        format!("deny {VVX550} --constituency pw"),
        "constituency add new --from own".to_owned(),
        format!("uploads move {VVX500} --from own --to new"),
        format!("uploads remove {VVX500} {VVX500}-app.log"),
        "ca init --name Own".to_owned(),
        format!("ca issue {VVX500} --out phone.pem"),
        format!("ca revoke {VVX500}"),
        "operator add anna".to_owned(),
        "operator rotate anna".to_owned(),
        "operator remove anna".to_owned(),
        "certificate renew --now".to_owned(),
        "certificate revoke --key ecdsa-p256".to_owned(),
    ] {
        good(site, &line.split(' ').collect::<Vec<_>>());
    }
    site.constituency("own", &json!({ "phones": { STRANGER: "by hand" } }));
    let all = eventually("every action", || {
        let all = audit(site, &[]);
        let seen: BTreeSet<String> = all.iter().map(|entry| entry["action"].as_str().unwrap().to_owned()).collect();
        (seen.len() == ACTIONS.len()).then_some(all)
    });
    let seen: BTreeSet<&str> = all.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ACTIONS);
    let of_commands: Vec<&Value> = all.iter().filter(|entry| entry["action"] != "file_changed").collect();
    // One each, and two where a denial removes a pin or a password.
    assert_eq!(of_commands.len(), 21, "{all:#?}");
    assert!(of_commands.iter().all(|entry| entry["by"] == "command" && entry["who"] == "root"), "{all:#?}");
    let file = std::fs::read_to_string(site.path("state/audit.jsonl")).unwrap();
    assert!(!file.contains("stolen") && !file.contains("by hand") && !file.contains("PRIVATE"), "{file}");
}

#[test]
fn page_and_api_record_token_address_and_claimed_address() {
    let site = site();
    let server = site.start();
    let operators = Operators::of(&server);
    let forwarded = operators.with(&["-H", "X-Forwarded-For: 192.0.2.7, 198.51.100.3\t"]);
    let answer = forwarded.post("/api/allow", &json!({ "mac": STRANGER, "constituency": "ote", "note": "n" }));
    assert_eq!(answer.status, 200, "{answer:?}");
    // Again: nothing changes.
    forwarded.post("/api/allow", &json!({ "mac": STRANGER, "constituency": "ote" }));
    let form = operators.with(&["--data", &format!("mac={STRANGER}&constituency=ote")]);
    assert_eq!(form.get("/deny").status, 303);
    assert_eq!(operators.post("/api/deny", &json!({ "mac": VVX550 })).status, 200);
    let wrong = operators.with_token("wrong").post("/api/allow", &json!({ "mac": VVX500, "constituency": "ote" }));
    assert_eq!(wrong.status, 401);
    let all = audit(&site, &[]);
    let shown: Vec<[&str; 4]> =
        all.iter().map(|it| ["action", "by", "who", "from"].map(|key| it[key].as_str().unwrap())).collect();
    assert_eq!(
        shown,
        [
            ["allowed", "api", "token_file", "127.0.0.1"],
            ["denied", "page", "token_file", "127.0.0.1"],
            ["denied", "api", "token_file", "127.0.0.1"]
        ]
    );
    assert_eq!(all[0]["claimed_from"], "192.0.2.7, 198.51.100.3");
    assert_eq!((&all[1]["claimed_from"], &all[2]["constituency"]), (&Value::Null, &Value::Null));
    let page = operators.get("/audit");
    assert_eq!(page.status, 200);
    for part in
        [STRANGER, "forwarded from (claimed)", "192.0.2.7, 198.51.100.3", "the page", "the API", "href=\"/audit\""]
    {
        assert!(page.body.contains(part), "{part}: {}", page.body);
    }
    assert!(!page.body.contains(TOKEN));
    let api = operators.json("/api/audit?constituency=ote&limit=1");
    // Denials on the whole server concern each constituency.
    assert_eq!((api["entries"].as_array().unwrap().len(), &api["entries"][0]["mac"]), (1, &json!(VVX550)));
    assert_eq!(operators.get("/api/audit?limit=0").status, 400);
    assert_eq!(operators.get("/api/audit?before=1").status, 400);
    assert_eq!(operators.without_token().get("/api/audit").status, 401);
}

#[test]
fn command_records_sudo_user_as_claimed() {
    let site = site();
    drop(site.start());
    let mut allow = Command::new(env!("CARGO_BIN_EXE_provost"));
    allow.args(["allow", STRANGER, "--constituency", "ote"]).current_dir(site.path("."));
    let ended = run(allow.env("SUDO_USER", "mallory\n{\"action\":\"forged\"}").env_remove("PROVOST_CONFIG"));
    assert_eq!(ended.code, 0, "{ended:?}");
    let [entry] = &audit(&site, &[])[..] else { panic!("{:?}", audit(&site, &[])) };
    assert_eq!((&entry["who"], &entry["by"]), (&json!("root"), &json!("command")));
    assert_eq!(entry["claimed_user"], "mallory\u{fffd}{\"action\":\"forged\"}");
    let shown = good(&site, &["audit"]).stdout;
    assert!(
        shown.contains(&format!(" allowed {STRANGER} in ote, by root (command), SUDO_USER claims mallory")),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 1, "{shown}");
}

#[test]
fn hand_edit_is_recorded_and_a_command_is_not_recorded_twice() {
    let site = site();
    let _server = site.start();
    good(&site, &["allow", STRANGER, "--constituency", "ote"]);
    good(&site, &["deny", VVX550]);
    // Later than the commands' changes of the same files.
    site.constituency("home", &json!({ "phones": {} }));
    let is_file = |entry: &Value| entry["action"] == "file_changed";
    let first = eventually("the new folder", || audit(&site, &[]).into_iter().find(is_file));
    assert_eq!((&first["constituency"], &first["detail"]), (&json!("home"), &json!("folder added, 0 known phones")));
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "secret", VVX550: "" } }));
    let of_ote = |entry: &Value| is_file(entry) && entry["constituency"] == "ote";
    let second = eventually("the hand edit", || audit(&site, &[]).into_iter().find(of_ote));
    assert_eq!(
        (&second["by"], &second["detail"]),
        (&json!("file"), &json!("constituency.json: 1 added, 1 removed, 0 denied, 0 undenied"))
    );
    site.file("ote/phones.csv", "mac,note\n00005e0053ab,secret\n");
    let of_phones_csv = |entry: &Value| of_ote(entry) && entry["detail"].as_str().unwrap().starts_with("phones.csv: ");
    let third = eventually("the list", || audit(&site, &[]).into_iter().find(of_phones_csv));
    assert_eq!(third["detail"], "phones.csv: 1 added, 0 removed, 0 denied, 0 undenied");
    std::fs::write(site.path("state/denied.json"), "{}").unwrap();
    let of_list = |entry: &Value| is_file(entry) && entry["constituency"].is_null();
    let fourth = eventually("the lifted denial", || audit(&site, &[]).into_iter().find(of_list));
    assert_eq!(fourth["detail"], "denied.json: 0 denied, 1 lifted");
    let files = audit(&site, &[]).into_iter().filter(is_file).count();
    assert_eq!(files, 4, "{:?}", audit(&site, &[]));
    assert_eq!(audit(&site, &["--constituency", "home"]).len(), 3, "and those of the whole server");
    assert!(audit(&site, &["--since", "2100-01-01T00:00:00Z"]).is_empty());
    assert_eq!(audit(&site, &["--since", "1h"]).len(), 6);
}

#[test]
fn denial_succeeds_although_it_cannot_be_logged() {
    let site = site();
    let server = site.start();
    let operators = Operators::of(&server);
    std::fs::create_dir(site.path("state/audit.jsonl")).unwrap();
    let denied = command(&site, &["deny", STRANGER, "--note", "lost"]);
    assert!(denied.code == 0 && denied.stdout.contains("is denied everywhere"), "{denied:?}");
    let said = "THE CHANGE IS IN FORCE BUT NOT IN THE AUDIT LOG: ";
    assert!(denied.stderr.contains(said) && denied.stderr.contains("audit.jsonl cannot be written"), "{denied:?}");
    assert_eq!(operators.post("/api/deny", &json!({ "mac": VVX550 })).json(), json!({ "changed": true }));
    let logged = server.says("everywhere, by token_file (API)");
    assert!(
        logged.contains("ERROR") && logged.contains("not in the audit log: ") && logged.contains(VVX550),
        "{logged}"
    );
    eventually("the line on the page", || operators.get("/").body.contains("audit.jsonl").then_some(()));
    let check = command(&site, &["check"]);
    assert!(check.code == 1 && check.stdout.contains("audit.jsonl"), "{check:?}");
    std::fs::remove_dir(site.path("state/audit.jsonl")).unwrap();
    good(&site, &["undeny", STRANGER]);
    // The server could not know who made the others.
    let by_command = audit(&site, &[]).into_iter().filter(|entry| entry["by"] == "command");
    assert_eq!(by_command.map(|entry| entry["action"].clone()).collect::<Vec<_>>(), ["undenied"]);
}

#[test]
fn cut_last_line_is_named_and_the_rest_is_shown() {
    let site = site();
    drop(site.start());
    good(&site, &["deny", STRANGER]);
    good(&site, &["deny", VVX550]);
    let file = site.path("state/audit.jsonl");
    let text = std::fs::read(&file).unwrap();
    std::fs::write(&file, &text[..text.len() - 5]).unwrap();
    let shown = good(&site, &["audit"]);
    assert!(shown.stdout.contains(STRANGER) && !shown.stdout.contains(VVX550), "{shown:?}");
    assert!(shown.stderr.contains("audit.jsonl: lines that are cut or damaged, and not shown: 1"), "{shown:?}");
    good(&site, &["undeny", STRANGER]);
    assert_eq!(audit(&site, &[]).len(), 2);
}
