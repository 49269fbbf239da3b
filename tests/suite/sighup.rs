//! SIGHUP: trust bundles and `no_sni` are reloaded; a broken one keeps the last good one; other connections stay open.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use rustls::AlertDescription;
use serde_json::json;

use crate::harness::operators::Operators;
use crate::harness::pki::{FACTORY, OTHER_FACTORY};
use crate::harness::site::{Running, Site};
use crate::harness::tls::{Client, alert};
use crate::harness::{VVX500, VVX550, eventually};

const TOKEN: &str = "a-token-of-the-tests-0123456789";

/// Sends SIGHUP and waits until the reload is complete.
fn reload(server: &Running) {
    let obeyed = || server.stderr().iter().filter(|line| line.contains("SIGHUP: ")).count();
    let before = obeyed();
    server.signal(Signal::HUP);
    eventually("the reload", || (obeyed() > before).then_some(()));
}

fn refused_as(client: &Client, description: AlertDescription) -> bool {
    client.get("/site.cfg").is_err_and(|error| alert(&error) == Some(description))
}

#[test]
fn changed_trust_bundle_ends_connections_of_the_old_one() {
    let site = Site::with_ote();
    let server = site.start();
    let old = server.client("ote", &FACTORY.device(VVX500));
    let new = server.client("ote", &OTHER_FACTORY.device(VVX500));
    let mut open = old.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert!(refused_as(&new, AlertDescription::UnknownCA));

    fs::write(site.path("factory.pem"), OTHER_FACTORY.bundle()).unwrap();
    reload(&server);
    assert_eq!(open.get("/site.cfg").unwrap().status, 403);
    assert!(open.is_closed());
    // The old session is offered but not resumed: the certificate is verified again and refused.
    assert!(refused_as(&old, AlertDescription::UnknownCA));
    assert_eq!(new.get("/site.cfg").unwrap().status, 200);
}

#[test]
fn unchanged_trust_bundle_keeps_connections_and_sessions() {
    let site = Site::with_ote();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    let mut open = client.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    fs::write(site.path("factory.pem"), FACTORY.bundle()).unwrap();
    reload(&server);
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert!(client.resumes());
}

#[test]
fn broken_trust_bundle_keeps_the_last_good_one_and_is_logged() {
    let site = Site::with_ote();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    let mut open = client.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    let good = fs::read_to_string(site.path("factory.pem")).unwrap();
    for broken in ["", "no certificate", &good[..good.len() / 3]] {
        fs::write(site.path("factory.pem"), broken).unwrap();
        reload(&server);
        let said = server.says("the last valid one stays in force");
        assert!(said.contains("invalid trust bundle \\\"factory\\\""), "{said}");
        assert_eq!(open.get("/site.cfg").unwrap().status, 200);
        assert!(client.resumes());
        assert!(refused_as(&server.client("ote", &OTHER_FACTORY.device(VVX500)), AlertDescription::UnknownCA));
    }
    fs::remove_file(site.path("factory.pem")).unwrap();
    reload(&server);
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
}

#[test]
fn bundle_broken_at_start_disables_only_its_constituencies() {
    let mut site = Site::with_ote();
    site.config["trust"]["corp"] = json!(["corp.pem"]);
    site.constituency("corp", &json!({ "trust": ["corp"], "phones": { VVX500: "" } }));
    site.constituency("both", &json!({ "trust": ["corp", "factory"], "phones": { VVX500: "" } }));
    let server = site.start();
    let device = FACTORY.device(VVX500);
    assert_eq!(server.client("ote", &device).get("/site.cfg").unwrap().status, 200);
    for name in ["corp", "both"] {
        // It does not fall back to the remaining bundles.
        assert!(refused_as(&server.client(name, &device), AlertDescription::UnrecognisedName), "{name}");
        server.reason(&format!("{name} is not served: the trust bundle \"corp\" cannot be used"));
    }
    fs::write(site.path("corp.pem"), OTHER_FACTORY.bundle()).unwrap();
    reload(&server);
    server.says("corp is served");
    let other = OTHER_FACTORY.device(VVX500);
    assert_eq!(server.client("corp", &other).get("/site.cfg").unwrap().status, 404);
    assert_eq!(server.client("both", &device).get("/site.cfg").unwrap().status, 404);
    assert!(refused_as(&server.client("corp", &device), AlertDescription::UnknownCA));
}

#[test]
fn broken_configuration_keeps_the_one_in_use() {
    let mut site = Site::with_ote();
    let server = site.start();
    let nameless = Client::new(server.address(), None).with_identity(&FACTORY.device(VVX500));
    assert!(refused_as(&nameless, AlertDescription::UnrecognisedName));

    site.config["no_sni"] = "ote".into();
    fs::write(site.path("other.pem"), OTHER_FACTORY.bundle()).unwrap();
    site.config["trust"]["factory"] = json!(["factory.pem", "other.pem"]);
    site.write_config();
    reload(&server);
    let other = server.client("ote", &OTHER_FACTORY.device(VVX500));
    assert_eq!(nameless.get("/site.cfg").unwrap().status, 200);
    assert_eq!(other.get("/site.cfg").unwrap().status, 200);

    fs::write(site.path("provost.json"), "{\n \"domains\": \"x\"\n}").unwrap();
    reload(&server);
    let said = server.says("the old configuration stays in force");
    assert!(said.contains("provost.json:2:2: \\\"domains\\\""), "{said}");
    let last = server.stderr().into_iter().rfind(|line| line.contains("SIGHUP")).unwrap();
    assert!(last == said && last.contains("ERROR"), "the last line reports no success: {last}");
    assert_eq!(nameless.get("/site.cfg").unwrap().status, 200);
    assert_eq!(other.get("/site.cfg").unwrap().status, 200);

    site.config.as_object_mut().unwrap().remove("no_sni");
    site.write_config();
    reload(&server);
    assert!(refused_as(&nameless, AlertDescription::UnrecognisedName));
}

#[test]
fn new_trust_bundle_applies_on_sighup_without_a_restart() {
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    fs::write(site.path("token"), TOKEN).unwrap();
    fs::set_permissions(site.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let server = site.start();
    let (old, new) = (FACTORY.device(VVX500), OTHER_FACTORY.device(VVX550));
    let mut open = server.client("ote", &old).connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    // A policy may name it before or after the configuration does.
    fs::write(site.path("corp.pem"), OTHER_FACTORY.bundle()).unwrap();
    site.constituency("early", &json!({ "trust": ["corp"], "phones": {} }));
    server.says("early: ");
    site.config["trust"]["corp"] = json!(["corp.pem"]);
    site.write_config();
    reload(&server);
    site.constituency("late", &json!({ "trust": ["factory", "corp"], "phones": { VVX500: "", VVX550: "" } }));
    for name in ["early", "late"] {
        server.says(&format!("{name} is served"));
    }
    let wanted = json!({ "mac": VVX550, "constituency": "early", "note": "" });
    assert_eq!(Operators::of(&server).with_token(TOKEN).post("/api/allow", &wanted).status, 200);
    for (name, device) in [("early", &new), ("late", &new), ("late", &old)] {
        eventually("the policy", || (server.client(name, device).get("/").ok()?.status == 404).then_some(()));
    }
    assert_eq!(open.get("/site.cfg").unwrap().status, 200, "other connections stay open");
    assert!(!server.stderr().iter().any(|line| line.contains("restart")), "{:?}", server.stderr());

    // It is watched like the others.
    fs::write(site.path("new.pem"), FACTORY.bundle()).unwrap();
    fs::rename(site.path("new.pem"), site.path("corp.pem")).unwrap();
    eventually("the other CA", || refused_as(&server.client("early", &new), AlertDescription::UnknownCA).then_some(()));
    // A bundle that is removed from the configuration stays as long as policies use it.
    site.config["trust"].as_object_mut().unwrap().remove("corp");
    site.write_config();
    reload(&server);
    server.says("no longer has \\\"corp\\\"");
    assert_eq!(server.client("early", &FACTORY.device(VVX550)).get("/").unwrap().status, 404);
}

#[test]
fn change_that_needs_a_restart_is_logged_and_not_applied() {
    let mut site = Site::with_ote();
    let mut command = site.command();
    // The command line's setting is no change of the file.
    command.args(["--log", "json"]);
    let server = Running::start(command, 1);
    reload(&server);
    assert!(!server.stderr().iter().any(|line| line.contains("restart")), "{:?}", server.stderr());

    site.config["domain"] = "elsewhere.example.com".into();
    site.config["limits"]["idle_s"] = 1.into();
    site.config["log"] = "text".into();
    site.config["state"] = "another".into();
    site.config["constituencies"] = "others".into();
    site.config["listen"] = json!(["127.0.0.1:0", "127.0.0.2:0"]);
    site.config["plain_http"] = json!({ "listen": "127.0.0.1:0", "networks": ["10.0.0.0/8"] });
    site.config["trust"] = json!({ "new": ["factory.pem"] });
    site.config["certificate"]["files"].as_array_mut().unwrap().pop();
    site.write_config();
    reload(&server);
    for key in ["domain", "limits", "log", "state", "constituencies", "listen", "plain_http", "certificate"] {
        server.says(&format!("provost.json: \\\"{key}\\\" changed; restart provost to apply it"));
    }
    server.says("\\\"trust\\\" no longer has \\\"factory\\\"; policies that name it use it until provost is restarted");
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
    assert!(!site.path("another").exists());
}

#[test]
fn sighup_rereads_constituency_folders() {
    let site = Site::with_ote();
    let server = site.start();
    let client = server.client("ote", &FACTORY.device(VVX500));
    for (policy, status) in [(json!({ "trust": ["factory"] }), 403), (json!({ "client_auth": "none" }), 200)] {
        site.constituency("ote", &policy);
        reload(&server);
        assert_eq!(client.get("/site.cfg").unwrap().status, status, "it is finished by then");
    }
    for _ in 0..20 {
        server.signal(Signal::HUP);
    }
    reload(&server);
    site.constituency("ote", &json!({ "trust": ["factory"] }));
    reload(&server);
    eventually("the phone to be unknown", || (client.get("/site.cfg").ok()?.status == 403).then_some(()));
}

#[test]
fn fifo_in_place_of_a_file_blocks_neither_reload_nor_shutdown() {
    let site = Site::with_ote();
    let server = site.start();
    for name in ["factory.pem", "rsa.pem", "ec.key"] {
        fs::remove_file(site.path(name)).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, site.path(name), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        reload(&server);
        server.says(&format!("{name}: is not a regular file"));
    }
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
    server.signal(Signal::TERM);
    assert!(server.wait().success());
}
