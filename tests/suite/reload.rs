//! Changes of policies and files apply within a second, at the next request of an open connection.

use std::fs;

use rustls::AlertDescription;
use serde_json::{Value, json};

use crate::harness::pki::{FACTORY, OTHER_FACTORY};
use crate::harness::site::{Running, Site};
use crate::harness::tls::{Client, Connection, alert};
use crate::harness::{STRANGER, VVX500, VVX550, within_a_second};

/// A policy of `ote` that lists these phones.
fn policy_listing(phones: &[&str]) -> Value {
    let phones: serde_json::Map<String, Value> = phones.iter().map(|mac| ((*mac).to_owned(), "".into())).collect();
    json!({ "trust": ["factory"], "phones": phones })
}

/// Three ways to edit a policy.
const WAYS: [&str; 3] = ["a policy renamed into its place", "a policy written in place", "a file of its own"];

fn add_phone(site: &Site, way: &str) {
    match way {
        "a policy renamed into its place" => site.constituency("ote", &policy_listing(&[VVX500, VVX550])),
        "a policy written in place" => {
            site.file("ote/constituency.json", policy_listing(&[VVX500, VVX550]).to_string());
        }
        _ => {
            site.file(&format!("ote/{VVX550}.cfg"), "<own/>");
        }
    }
}

fn remove_phone(site: &Site, way: &str) {
    match way {
        "a policy renamed into its place" => site.constituency("ote", &policy_listing(&[VVX500])),
        "a policy written in place" => {
            site.file("ote/constituency.json", policy_listing(&[VVX500]).to_string());
        }
        _ => fs::remove_file(site.served(&format!("ote/{VVX550}.cfg"))).unwrap(),
    }
}

/// Waits until a GET on a new connection of `client` gets `status`.
#[track_caller]
fn gives_within_a_second(client: &Client, status: u16) {
    within_a_second(&format!("{status}"), || {
        client.get("/site.cfg").ok().filter(|response| response.status == status).map(drop)
    });
}

/// Sends requests on the open `connection` until one gets `status`.
#[track_caller]
fn changes_within_a_second(connection: &mut Connection, status: u16) {
    within_a_second(&format!("{status} on an open connection"), || {
        (connection.get("/site.cfg").unwrap().status == status).then_some(())
    });
}

fn unrecognized(client: &Client) -> bool {
    client.get("/site.cfg").is_err_and(|error| alert(&error) == Some(AlertDescription::UnrecognisedName))
}

#[test]
fn added_phone_is_served_on_its_open_connection() {
    let mut seen = 0;
    for way in WAYS {
        let site = Site::with_ote();
        let server = site.start();
        let client = server.client("ote", &FACTORY.device(VVX550));
        let mut early = client.connect().unwrap();
        assert_eq!(client.get("/site.cfg").unwrap().status, 403, "{way}");
        add_phone(&site, way);
        gives_within_a_second(&client, 200);
        assert_eq!(early.get("/site.cfg").unwrap().status, 200, "{way}");
        assert!(client.resumes(), "{way}");
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn removed_phone_gets_403_on_its_open_connection() {
    for way in WAYS {
        let site = Site::with_ote();
        add_phone(&site, way);
        let server = site.start();
        let client = server.client("ote", &FACTORY.device(VVX550));
        let bystander = server.client("ote", &FACTORY.device(VVX500));
        let mut open = client.connect().unwrap();
        let mut other = bystander.connect().unwrap();
        assert_eq!(open.get("/site.cfg").unwrap().status, 200, "{way}");
        assert_eq!(other.get("/site.cfg").unwrap().status, 200, "{way}");
        remove_phone(&site, way);
        changes_within_a_second(&mut open, 403);
        assert!(open.is_closed(), "{way}");
        assert_eq!(client.get("/site.cfg").unwrap().status, 403, "{way}");
        assert_eq!(other.get("/site.cfg").unwrap().status, 200, "the others keep their connection: {way}");
        assert!(bystander.resumes(), "and their sessions: {way}");
        server.reason(&format!("{VVX550} is not known to ote"));
    }
}

#[test]
fn denial_overrides_list_and_own_file_within_a_second() {
    let site = Site::with_ote();
    add_phone(&site, "a file of its own");
    site.constituency("ote", &policy_listing(&[VVX500, VVX550]));
    let server = site.start();
    let mut open = server.client("ote", &FACTORY.device(VVX550)).connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    let mut policy = policy_listing(&[VVX500, VVX550]);
    policy["denied"] = json!([VVX550]);
    site.constituency("ote", &policy);
    changes_within_a_second(&mut open, 403);
    server.reason(&format!("{VVX550} is denied by ote"));
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn alias_change_applies_to_open_connections() {
    let site = Site::with_ote();
    let server = site.start();
    let device = FACTORY.device(VVX500);
    let old_name = server.client("old-name", &device);
    assert!(unrecognized(&old_name));
    let mut policy = policy_listing(&[VVX500]);
    policy["aliases"] = json!(["old-name"]);
    site.constituency("ote", &policy);
    gives_within_a_second(&old_name, 200);
    let mut open = old_name.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    site.constituency("ote", &policy_listing(&[VVX500]));
    changes_within_a_second(&mut open, 421);
    assert!(open.is_closed());
    assert!(unrecognized(&old_name));
    gives_within_a_second(&server.client("ote", &device), 200);
}

#[test]
fn folder_overrides_alias_and_duplicate_alias_is_unserved() {
    let site = Site::with_ote();
    let device = FACTORY.device(VVX500);
    let mut policy = policy_listing(&[VVX500]);
    policy["aliases"] = json!(["lab"]);
    site.constituency("ote", &policy);
    let server = site.start();
    let lab = server.client("lab", &device);
    assert_eq!(lab.get("/site.cfg").unwrap().text(), "<site/>");

    site.file("lab/site.cfg", "<lab/>");
    site.constituency("lab", &policy_listing(&[VVX500]));
    within_a_second("the folder's own file", || lab.get("/site.cfg").ok().filter(|it| it.text() == "<lab/>"));
    server.says("the alias \\\"lab\\\" has no effect: a folder of that name exists");

    // A folder that cannot be served overrides the alias too.
    site.file("lab/constituency.json", "{");
    server.says("lab/constituency.json");
    fs::remove_dir_all(site.served("lab")).unwrap();
    gives_within_a_second(&lab, 200);
    assert_eq!(lab.get("/site.cfg").unwrap().text(), "<site/>");

    site.constituency("second", &policy);
    within_a_second("the refusal", || unrecognized(&lab).then_some(()));
    server.says("the alias \\\"lab\\\" has no effect: ote and second have the same alias");
    gives_within_a_second(&server.client("ote", &device), 200);
    fs::remove_dir_all(site.served("second")).unwrap();
    gives_within_a_second(&lab, 200);
}

#[test]
fn folder_with_a_broken_policy_still_overrides_an_alias() {
    let site = Site::with_ote();
    let mut policy = policy_listing(&[VVX500]);
    policy["aliases"] = json!(["lab"]);
    site.constituency("ote", &policy);
    site.file("lab/constituency.json", "{");
    let server = site.start();
    server.says("has no effect: a folder of that name exists");
    assert!(unrecognized(&server.client("lab", &FACTORY.device(VVX500))));
}

#[test]
fn broken_policy_keeps_the_last_good_one_and_is_located() {
    let site = Site::with_ote();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    let mut open = client.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    site.file("ote/constituency.json", "{\n  \"trust\": [\"factory\"],\n  \"phone\": {}\n}\n");
    // The server may also read it while it is still empty.
    let said = server.says("ote/constituency.json:3:3: \\\"phone\\\"");
    assert!(said.contains("the last good policy stays in force"), "{said}");
    assert!(said.contains("did you mean \\\"phones\\\"?"), "{said}");
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert!(client.resumes());
    assert_eq!(server.client("ote", &FACTORY.device(VVX550)).get("/site.cfg").unwrap().status, 403);
    site.constituency("ote", &policy_listing(&[VVX500, VVX550]));
    gives_within_a_second(&server.client("ote", &FACTORY.device(VVX550)), 200);
    server.says("ote: its policy is valid again and in force");
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
}

#[test]
fn broken_first_policy_is_not_served_until_repaired() {
    let site = Site::with_ote();
    let server = site.start();
    let client = server.client("new", &FACTORY.device(VVX500));
    site.file("new/site.cfg", "<new/>");
    // Only the folder is served, by the default policy, which is not kept as a last good policy.
    server.says("new is served");
    site.file("new/constituency.json", "{ \"trust\": [\"factory\"], \"phones\": [] }");
    let said = server.says("new/constituency.json:1");
    assert!(said.contains("(not served)"), "{said}");
    assert!(unrecognized(&client));
    site.constituency("new", &policy_listing(&[VVX500]));
    gives_within_a_second(&client, 200);
}

#[test]
fn tls_policy_change_ends_earlier_connections_and_sessions() {
    let with = |key: &str, value: Value| {
        let mut policy = policy_listing(&[VVX500]);
        policy[key] = value;
        policy
    };
    let changes = [
        with("trust", json!(["factory", "other"])),
        with("expired_device_certificates", "accept".into()),
        json!({ "client_auth": "none" }),
    ];
    for changed in &changes {
        let mut site = Site::with_ote();
        fs::write(site.path("other.pem"), OTHER_FACTORY.bundle()).unwrap();
        site.config["trust"]["other"] = json!(["other.pem"]);
        let server = site.start();
        let client = server.client("ote", &FACTORY.device(VVX500));
        let mut open = client.connect().unwrap();
        assert_eq!(open.get("/site.cfg").unwrap().status, 200);
        assert!(client.resumes());
        site.constituency("ote", changed);
        changes_within_a_second(&mut open, 403);
        assert!(open.is_closed());
        server.reason("the policy's TLS settings changed after this connection was made");
        assert!(!client.resumes(), "a session from before {changed}");
        gives_within_a_second(&client, 200);
        assert!(client.resumes(), "a session from after {changed}");
        let newcomer = server.client("ote", &OTHER_FACTORY.device(VVX500)).get("/site.cfg");
        assert_eq!(newcomer.is_ok(), changed.get("expired_device_certificates").is_none(), "{changed}");
    }
    assert_eq!(changes.len(), 3);
}

#[test]
fn other_policy_changes_keep_sessions_and_connections() {
    let site = Site::with_ote();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    let mut open = client.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    let changes = [
        ("description", json!("another")),
        ("denied", json!([STRANGER])),
        ("aliases", json!(["old-name"])),
        ("shared", json!(["firmware"])),
        ("uploads", json!({ "max_file_bytes": 1 })),
        // The default values, now explicit.
        ("tls", json!("modern")),
    ];
    for (key, value) in &changes {
        let mut policy = policy_listing(&[VVX500]);
        policy[*key] = value.clone();
        policy["phones"][VVX550] = "".into();
        site.constituency("ote", &policy);
        // The new phone shows that the change applies; then it is removed again.
        gives_within_a_second(&server.client("ote", &FACTORY.device(VVX550)), 200);
        assert_eq!(open.get("/site.cfg").unwrap().status, 200, "{key}");
        assert!(client.resumes(), "{key}");
        site.constituency("ote", &policy_listing(&[VVX500]));
        gives_within_a_second(&server.client("ote", &FACTORY.device(VVX550)), 403);
    }
    assert_eq!(changes.len(), 6);
}

#[test]
fn rewritten_identical_policy_changes_nothing() {
    let site = Site::with_ote();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    let mut open = client.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    let policy = json!({ "trust": ["factory"], "phones": { VVX500: "vvx500" } });
    site.constituency("ote", &policy);
    site.file("ote/constituency.json", serde_json::to_string_pretty(&policy).unwrap());
    // A later change whose log line shows that the earlier one was read.
    site.constituency("marker", &policy_listing(&[]));
    server.says("marker is served");
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert!(client.resumes());
    assert!(!changes_told(&server).iter().any(|line| line.contains("ote: ")), "{:?}", server.stderr());
}

fn changes_told(server: &Running) -> Vec<String> {
    server.stderr().into_iter().filter(|line| line.contains("changed") || line.contains("is gone")).collect()
}

#[test]
fn renamed_folder_is_served_only_under_its_new_name() {
    let site = Site::with_ote();
    let server = site.start();
    let device = FACTORY.device(VVX500);
    let mut open = server.client("ote", &device).connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    fs::rename(site.served("ote"), site.served("production")).unwrap();
    gives_within_a_second(&server.client("production", &device), 200);
    assert_eq!(open.get("/site.cfg").unwrap().status, 421);
    assert!(open.is_closed());
    assert!(unrecognized(&server.client("ote", &device)));
}
