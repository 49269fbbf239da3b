//! Local mode and the demonstration, which serve only this machine.
//!
//! Their port is fixed and may be in use here: servers run in a network namespace if possible, and the demo takes the
//! next free port.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::namespace;
use crate::harness::site::{Running, Site};
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{VVX500, VVX550, eventually, not_run};

const MASTER: &str = r#"<APPLICATION CONFIG_FILES="site.cfg"/>"#;

fn demo_once(folder: &Path) -> Ended {
    provost(folder, &["demo", "--once"])
}

/// Constituencies without provost.json that list the phones of the map.
fn folder_with(phones: &Value) -> Site {
    let site = Site::new();
    site.constituency("home", &json!({ "phones": phones, "uploads": {} }));
    site.file("home/000000000000.cfg", MASTER);
    site.file("home/site.cfg", "<site/>");
    site
}

#[test]
fn demo_in_an_empty_folder_boots_three_phones_and_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let ended = demo_once(folder.path());
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.ends_with("3 of 3 phones provisioned\n"), "{}", ended.stdout);
    assert_eq!(ended.stdout.lines().filter(|line| line.starts_with("provisioned (")).count(), 3);
    assert!(ended.stdout.contains("ote.phones.localhost") && ended.stdout.contains("ucs-5-9.phones.localhost"));
    assert!(ended.stderr.lines().next().unwrap().contains("LOCAL MODE"), "{}", ended.stderr);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn demo_uses_existing_constituencies() {
    let site = folder_with(&json!({ VVX500: "", VVX550: "" }));
    let ended = demo_once(&site.path("."));
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.ends_with("2 of 2 phones provisioned\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("https://home.phones.localhost:"), "{}", ended.stdout);
    assert!(!site.path("state").exists());
}

#[test]
fn demo_without_a_known_phone_exits_with_status_2() {
    let site = folder_with(&json!({}));
    let mut demo = Command::new("timeout");
    demo.args(["60", env!("CARGO_BIN_EXE_provost"), "demo"]).current_dir(site.path("."));
    let ended = run(&mut demo);
    assert_eq!(ended.code, 2, "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("no constituency here has a known phone"), "{}", ended.stderr);
}

#[test]
fn demo_exits_1_if_a_phone_is_not_provisioned() {
    let site = folder_with(&json!({ VVX500: "", VVX550: "" }));
    site.file(&format!("home/{VVX550}.cfg"), "<APPLICATION");
    let ended = demo_once(&site.path("."));
    assert_eq!(ended.code, 1, "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("the master configuration /00005e0053c7.cfg cannot be read"), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("1 of 2 phones provisioned\n"), "{}", ended.stdout);
    let site = folder_with(&json!({}));
    let ended = demo_once(&site.path("."));
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("no constituency here has a known phone"), "{}", ended.stderr);
}

#[test]
fn demo_refuses_to_run_beside_a_provost_json() {
    let site = Site::with_ote();
    site.write_config();
    let ended = demo_once(&site.path("."));
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    assert!(ended.stderr.contains("provost.json exists here"), "{}", ended.stderr);
}

#[test]
fn demo_takes_the_next_port_if_8443_is_in_use() {
    let ended = eventually("a demo while the usual port was in use", || {
        // If the port cannot be bound, another process holds it, and may free it before the demo starts.
        let holder = std::net::TcpListener::bind("127.0.0.1:8443");
        let ended = demo_once(tempfile::tempdir().unwrap().path());
        (holder.is_ok() || ended.stderr.contains("is in use; trying")).then_some(ended)
    });
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("127.0.0.1:8443 is in use; trying the next port"), "{}", ended.stderr);
    assert!(!ended.stdout.contains("phones.localhost:8443/"), "{}", ended.stdout);
}

#[test]
fn demo_keeps_serving_until_sigterm() {
    let site = folder_with(&json!("any"));
    let scratch = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
    command.arg("demo").current_dir(site.path(".")).env("TMPDIR", scratch.path());
    let demo = Running::start(command, 1);
    let try_this = eventually("the advice", || {
        demo.stdout().into_iter().find(|line| line.trim_start().starts_with("provost phone --url "))
    });
    assert!(demo.address().ip().is_loopback());
    let words: Vec<&str> = try_this.split_whitespace().skip(1).collect();
    let one = provost(scratch.path(), &words);
    assert_eq!(one.code, 0, "{words:?}: {}{}", one.stdout, one.stderr);

    let many = provost(scratch.path(), &[&words[..], &["--count", "50", "--json"]].concat());
    assert_eq!(many.code, 0, "{}{}", many.stdout, many.stderr);
    let lines: Vec<Value> = many.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let provisioned = lines.iter().filter(|line| line["event"] == "outcome" && line["provisioned"] == true);
    let phones: std::collections::BTreeSet<&str> = provisioned.map(|line| line["mac"].as_str().unwrap()).collect();
    assert_eq!(phones.len(), 50, "each has its own MAC");
    assert_eq!((*phones.first().unwrap(), *phones.last().unwrap()), (VVX500, "00005e00533d"));
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["phones"], &last["provisioned"]), (&json!("summary"), &json!(50), &json!(50)));

    demo.signal(rustix::process::Signal::TERM);
    assert!(demo.wait().success());
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "its state is deleted");
}

/// A server in local mode in a network namespace; `None`, after NOT RUN, if this user cannot create one.
fn serve_locally(test: &str, site: &Site, environment: &str) -> Option<Running> {
    let alone = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net", "sh", "-c", &format!("ip link set lo up && exec {script}")]);
        command.current_dir(site.path("."));
        command
    };
    if alone("true").output().map_or(true, |output| !output.status.success()) {
        not_run(test, "network namespaces are not available (unshare --net)");
        return None;
    }
    Some(Running::start(alone(&format!("env {environment} '{}' serve", env!("CARGO_BIN_EXE_provost"))), 1))
}

#[test]
fn local_mode_is_announced_on_loopback_with_private_keys() {
    let site = folder_with(&json!({ VVX500: "" }));
    let Some(server) = serve_locally("local_mode_is_announced_on_loopback_with_private_keys", &site, "") else {
        return;
    };
    assert!(server.stderr()[0].contains("LOCAL MODE"), "{:?}", server.stderr());
    assert_eq!(server.addresses, ["127.0.0.1:8443".parse().unwrap()]);
    let mut keys = 0;
    for folder in ["state/local", "state/server-ca"] {
        assert_eq!(site.path(folder).metadata().unwrap().permissions().mode() & 0o777, 0o700, "{folder}");
        for entry in std::fs::read_dir(site.path(folder)).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            keys += usize::from(std::fs::read_to_string(entry.path()).unwrap().contains("PRIVATE KEY"));
        }
    }
    assert!(keys >= 2, "a key for each CA");
    let second = run(Command::new(env!("CARGO_BIN_EXE_provost")).arg("serve").current_dir(site.path(".")));
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("another provost uses the state directory"), "{}", second.stderr);
}

#[test]
fn local_device_ca_is_not_trusted_beside_a_provost_json() {
    let mut site = folder_with(&json!({ VVX500: "" }));
    let Some(server) = serve_locally("local_device_ca_is_not_trusted_beside_a_provost_json", &site, "") else { return };
    server.kill();
    assert!(site.path("state/local/ca.pem").exists());
    for certificate in [site.config["certificate"].clone(), json!({ "local_ca": {} })] {
        site.config["certificate"] = certificate;
        let server = site.start();
        let device = local_device(&site, &server);
        assert_eq!(device.code, 1, "{}{}", device.stdout, device.stderr);
        server.reason("issuer \"CN=provost local device CA\" is not trusted here");
    }
}

/// A phone with a certificate of the local device CA at a server that is not in local mode.
fn local_device(site: &Site, server: &Running) -> Ended {
    let url = format!("https://home.{}:{}/", crate::harness::site::DOMAIN, server.address().port());
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("ca.pem"), ca_of(site)).unwrap();
    let state = site.path("state");
    let resolve = server.address().to_string();
    let args = ["phone", "--url", &url, "--mac", VVX500, "--state", state.to_str().unwrap(), "--resolve", &resolve];
    provost(elsewhere.path(), &[&args[..], &["--ca", "ca.pem"]].concat())
}

/// The CA of the server's certificate, of either kind.
fn ca_of(site: &Site) -> String {
    if site.config["certificate"].get("local_ca").is_some() {
        std::fs::read_to_string(site.path("state/server-ca/ca.pem")).unwrap()
    } else {
        crate::harness::pki::SERVER_CA.pem()
    }
}

#[test]
fn listen_address_and_local_mode_are_logged_at_any_level() {
    let site = folder_with(&json!({ VVX500: "" }));
    let test = "listen_address_and_local_mode_are_logged_at_any_level";
    if let Some(server) = serve_locally(test, &site, "PROVOST_LOG=off") {
        assert!(server.stderr()[0].contains("LOCAL MODE"), "{:?}", server.stderr());
    }
    for filter in ["warn", "off"] {
        let site = Site::with_ote();
        let mut command = site.command();
        command.env("PROVOST_LOG", filter);
        let server = Running::start(command, 1);
        assert_eq!(server.stderr().len(), 1, "{filter}: {:?}", server.stderr());
    }
}

/// Every command that needs a configuration; its arguments do not exist.
const ABOUT_A_CONFIGURATION: [&[&str]; 32] = [
    &["check"],
    &["certificate", "status"],
    &["certificate", "renew"],
    &["certificate", "rehearse"],
    &["certificate", "renew", "--dry-run"],
    &["certificate", "revoke", "--key", "rsa-2048"],
    &["phones"],
    &["phone-log", "00005e00530c"],
    &["allow", "00005e00530c", "--constituency", "ote"],
    &["deny", "00005e00530c"],
    &["undeny", "00005e00530c"],
    &["operator", "add", "anna"],
    &["operator", "list"],
    &["operator", "remove", "anna"],
    &["operator", "rotate", "anna"],
    &["constituency", "list"],
    &["constituency", "add", "ote"],
    &["uploads", "list", "00005e00530c"],
    &["uploads", "cat", "00005e00530c", "app.log"],
    &["uploads", "remove", "00005e00530c", "app.log"],
    &["uploads", "move", "00005e00530c", "--from", "a", "--to", "b"],
    &["trust", "list"],
    &["trust", "verify", "--constituency", "ote", "chain.pem"],
    &["ca", "init"],
    &["ca", "issue", "00005e00530c", "--out", "phone.pem"],
    &["ca", "list"],
    &["ca", "revoke", "00005e00530c"],
    &["print", "bind-policy"],
    &["print", "knot-acl"],
    &["print", "dns-records"],
    &["print", "dhcp", "--format", "kea", "--constituency", "ote"],
    &["print", "phone-config", "--constituency", "ote"],
];

#[test]
fn commands_outside_the_service_folder_name_its_config() {
    let test = "local::commands_outside_the_service_folder_name_its_config";
    if !namespace::is_inside(test, &[]) {
        return;
    }
    let above = tempfile::tempdir().unwrap();
    namespace::mount_overlay("/etc", above.path());
    let reported = |args: &[&str]| {
        let note = "note: local mode, because there is no provost.json here; for the service, \
                    add --config /etc/provost/provost.json\n";
        let ended = provost(tempfile::tempdir().unwrap().path(), args);
        assert!(!ended.stdout.contains("note: local"), "{args:?}: {ended:?}");
        assert_eq!(ended.stderr.contains("note: local"), ended.stderr.starts_with(note), "{args:?}: {ended:?}");
        ended.stderr.starts_with(note)
    };
    let service = Path::new("/etc/provost/provost.json");
    let _ = std::fs::remove_file(service);
    assert!(!reported(&["phones"]), "there is no service");
    std::fs::create_dir_all(service.parent().unwrap()).unwrap();
    let config = json!({ "domain": "phones.example.com", "certificate": { "local_ca": {} } }).to_string();
    std::fs::write(service, &config).unwrap();
    for args in ABOUT_A_CONFIGURATION {
        assert!(reported(args), "{args:?}");
    }
    assert!(!reported(&["phones", "--config", "/etc/provost/provost.json"]), "it is named");
    for (there, content) in [("provost.json", Some(config.as_str())), ("constituencies", None)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(there);
        content.map_or_else(|| std::fs::create_dir(&path), |content| std::fs::write(&path, content)).unwrap();
        let ended = provost(folder.path(), &["trust", "list"]);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{there}: {ended:?}");
    }
}
