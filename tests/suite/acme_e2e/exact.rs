//! Constituencies with a certificate for their exact names, beside the wildcard certificate of the others.

use std::path::PathBuf;

use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CHALLENGE, POLICY, Public};
use crate::harness::bind::{self, Bind, BindConfig};
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::site::{DOMAIN, Running};
use crate::harness::tls::Client;
use crate::harness::tool;
use crate::harness::{eventually, within_a_second};

const NAMES: [&str; 2] = ["ote.phones.example.com", "older.phones.example.com"];
const EXACT_CHALLENGE: &str = "_acme-challenge.ote.phones.example.com";

/// The certificate that a constituency presents: its common name and names.
#[derive(Debug, PartialEq)]
struct Shown {
    common_name: String,
    names: Vec<String>,
    der: Vec<u8>,
}

/// A site with the constituencies `ote` and `home`, whose zone has these further records and grants; `None`, after NOT
/// RUN, if a program is missing.
fn site(test: &str, records: &str, grants: &str) -> Option<(Bind, Public)> {
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return None;
    }
    let records = format!("*.phones A 127.0.0.1\nphones A 127.0.0.1\n{records}");
    let config = BindConfig::new().key("provost.", "hmac-sha256").key("operator.", "hmac-sha256");
    let policy = format!("{POLICY} {grants} grant operator. zonesub ANY;");
    let bind = config.primary("example.com", &records, &policy).start();
    let pebble = Pebble::start(Behavior::default(), bind.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    public.site.constituency("home", &json!({ "client_auth": "none" }));
    Some((bind, public))
}

/// The same with addresses and grants for the exact names.
fn prepared(test: &str) -> Option<(Bind, Public)> {
    let grants = NAMES.map(|name| format!("grant provost. name _acme-challenge.{name}. TXT;")).join(" ");
    site(test, "ote.phones A 127.0.0.1\nolder.phones A 127.0.0.1", &grants)
}

fn shown_to(client: &Client) -> Shown {
    let connection = client.connect().unwrap();
    let leaf = connection.tls().peer_certificates().unwrap()[0].clone().into_owned();
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    let common_name = parsed.subject().iter_common_name().next().map(|name| name.as_str().unwrap().to_owned());
    let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.iter();
    let names = names.map(|name| name.to_string().trim_start_matches("DNSName(").trim_end_matches(')').to_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    Shown { common_name: common_name.unwrap_or_default(), names, der: leaf.to_vec() }
}

impl Public {
    fn want_exact(&self, aliases: &[&str]) {
        let policy = json!({ "client_auth": "none", "certificate_names": "exact", "aliases": aliases });
        self.site.constituency("ote", &policy);
    }

    fn client_of_label(&self, server: &Running, label: &str) -> Client {
        self.client(server).named(Some(&format!("{label}.{DOMAIN}")))
    }

    /// The certificate that clients of the constituency `label` get.
    fn shown(&self, server: &Running, label: &str) -> Shown {
        shown_to(&self.client_of_label(server, label))
    }

    fn is_wildcard(&self, server: &Running, label: &str) -> bool {
        self.shown(server, label).names.contains(&format!("*.{DOMAIN}"))
    }

    /// Waits until `ote` presents a certificate for exactly these names.
    #[track_caller]
    fn wait_for_names(&self, server: &Running, names: &[&str]) -> Shown {
        let mut names = names.to_vec();
        names.sort_unstable();
        eventually(&format!("a certificate for {names:?}"), || {
            Some(self.shown(server, "ote")).filter(|shown| shown.names == names)
        })
    }

    /// Waits until this many certificates are obtained and in use.
    #[track_caller]
    fn obtains_all(&self, count: usize) {
        eventually("all certificates", || {
            let all = self.status()["certificates"].as_array()?.clone();
            (all.len() == count && all.iter().all(|it| it["held"].is_object() && it["step"].is_null())).then_some(())
        });
    }

    fn exact_status(&self) -> Value {
        let all = self.status()["certificates"].as_array().unwrap().clone();
        all.into_iter().find(|certificate| certificate["constituency"] == "ote").unwrap()
    }

    fn exact_folder(&self) -> PathBuf {
        self.site.path("state/certs/exact/ote")
    }

    fn run(&self, arguments: &[&str]) -> tool::Ended {
        let config = self.site.write_config();
        tool::provost(&self.site.path(""), &[arguments, &["--config", config.to_str().unwrap()]].concat())
    }
}

#[test]
fn exact_constituency_is_served_with_its_own_certificate() {
    let test = "acme_e2e::exact::exact_constituency_is_served_with_its_own_certificate";
    let Some((bind, mut public)) = prepared(test) else { return };
    let server = public.start();
    public.obtains();
    let wildcard = std::fs::read(public.chain("ecdsa-p256")).unwrap();
    assert!(public.is_wildcard(&server, "ote"));
    public.want_exact(&["older"]);
    server.says("certificate (exact/ote): due for ote.phones.example.com, older.phones.example.com");
    let shown = public.wait_for_names(&server, &NAMES);
    // Firmware that refuses wildcards may read only the common name.
    assert_eq!(shown.common_name, NAMES[0]);
    assert_eq!(public.shown(&server, "older"), shown);
    assert!(public.is_wildcard(&server, "home"));
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
    let status = public.obtains();
    assert_eq!(status["certificates"].as_array().unwrap().len(), 2);
    assert_eq!(
        (status["certificates"][0]["constituency"].clone(), public.exact_status()["key"].clone()),
        (Value::Null, json!("rsa-2048"))
    );
    assert_eq!(public.pebble.logged("Added order"), 2);
    assert_eq!(std::fs::read(public.chain("ecdsa-p256")).unwrap(), wildcard);
    for name in [CHALLENGE, EXACT_CHALLENGE, "_acme-challenge.older.phones.example.com"] {
        assert_eq!(bind.txt(name), Vec::<String>::new(), "{name}");
    }

    // After a restart the stored certificates are presented, even without CA and DNS.
    let client = public.client_of_label(&server, "ote");
    server.kill();
    public.pebble.stop();
    let server = public.start();
    assert_eq!(shown_to(&client.at(server.address())), shown);
}

#[test]
fn exact_and_wildcard_are_renewed_and_revoked_separately() {
    let test = "acme_e2e::exact::exact_and_wildcard_are_renewed_and_revoked_separately";
    let Some((_bind, public)) = prepared(test) else { return };
    public.want_exact(&[]);
    let server = public.start();
    public.obtains();
    let read = || [public.chain("ecdsa-p256"), public.chain("exact/ote")].map(|chain| std::fs::read(chain).unwrap());
    let first = read();
    let said = public.renew();
    for lineage in ["ecdsa-p256", "exact/ote"] {
        assert!(said.contains(&format!("{lineage}: a new certificate is in use")), "{said}");
    }
    let second = read();
    assert!(first[0] != second[0] && first[1] != second[1]);
    let renewed = public.certificate(&["renew", "--now", "--constituency", "ote"]);
    assert!(renewed.code == 0 && !renewed.stdout.contains("ecdsa-p256"), "{renewed:?}");
    let third = read();
    assert!(second[0] == third[0] && second[1] != third[1]);
    let revoked = public.certificate(&["revoke", "--constituency", "ote"]);
    assert_eq!(revoked.code, 0, "{revoked:?}");
    eventually("another certificate", || (read()[1] != third[1]).then_some(()));
    assert_eq!(read()[0], third[0]);
    public.wait_for_names(&server, &NAMES[..1]);
    let both = public.certificate(&["revoke", "--constituency", "ote", "--key", "ecdsa-p256"]);
    assert!(both.code != 0 && public.certificate(&["revoke"]).code != 0, "{both:?}");
}

#[test]
fn missing_exact_grant_is_reported_and_the_wildcard_is_served() {
    let test = "acme_e2e::exact::missing_exact_grant_is_reported_and_the_wildcard_is_served";
    let Some((_bind, public)) = site(test, "ote.phones A 127.0.0.1", "") else { return };
    public.want_exact(&[]);
    let server = public.start();
    let line = server.says("no new certificate (exact/ote)");
    let grant = format!("grant provost. name {EXACT_CHALLENGE}. TXT;");
    for part in ["REFUSED", &grant, "phones get the wildcard certificate meanwhile", "action required"] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert!(public.is_wildcard(&server, "ote"));
    let wildcard = std::fs::read(public.chain("ecdsa-p256")).unwrap();
    let renewed = public.certificate(&["renew", "--now"]);
    assert!(renewed.code == 1 && renewed.stdout.contains("ecdsa-p256: a new certificate is in use"), "{renewed:?}");
    assert_ne!(std::fs::read(public.chain("ecdsa-p256")).unwrap(), wildcard);
    assert!(!public.has_spent_validations());
    let status = public.exact_status();
    assert!(
        status["held"].is_null() && status["needs_human"] == true && status["names"] == json!([NAMES[0]]),
        "{status}"
    );
    let shown = public.certificate(&["status"]);
    assert!(
        shown.code == 1 && shown.stdout.contains("none yet for ote.phones.example.com; phones get the wildcard"),
        "{shown:?}"
    );
    let checked = public.run(&["check"]);
    assert!(
        checked.code == 1
            && checked.stdout.contains("error: certificate: the exact/ote certificate could not be obtained")
            && checked.stdout.contains("no certificate for ote.phones.example.com yet"),
        "{checked:?}"
    );
    let asked = public.run(&["check", "--live"]);
    assert!(asked.code == 1 && asked.stdout.contains(&grant), "{asked:?}");
    for (dialect, line) in [("bind-policy", grant.as_str()), ("knot-acl", "_acme-challenge.ote.phones.example.com.]")] {
        let printed = public.run(&["print", dialect]);
        assert!(printed.stdout.contains(line), "{printed:?}");
    }
}

#[test]
fn no_challenge_is_published_where_it_would_hide_the_address() {
    let test = "acme_e2e::exact::no_challenge_is_published_where_it_would_hide_the_address";
    let grant = format!("grant provost. name {EXACT_CHALLENGE}. TXT;");
    let Some((bind, public)) = site(test, "", &grant) else { return };
    public.want_exact(&[]);
    let server = public.start();
    let line = server.says("no new certificate (exact/ote)");
    let record = "ote.phones.example.com. A 127.0.0.1";
    assert!(line.contains("has no address of its own") && line.contains(record), "{line}");
    let asked = public.run(&["check", "--live"]);
    assert!(asked.code == 1 && asked.stdout.contains(record), "{asked:?}");
    let published = |text: &str| server.stderr().iter().any(|line| line.contains(text));
    assert!(!published("certificate (exact/ote): publishing"));
    assert!(bind::dig(bind.address, &["+short", NAMES[0], "A"]).contains("127.0.0.1"));
    // The operator adds the record that the message names.
    bind.nsupdate("operator.", "update add ote.phones.example.com. 60 A 127.0.0.1");
    let renewed = public.certificate(&["renew", "--constituency", "ote"]);
    assert!(renewed.code == 0 && renewed.stdout.contains("exact/ote: a new certificate is in use"), "{renewed:?}");
    public.wait_for_names(&server, &NAMES[..1]);
    assert!(bind::dig(bind.address, &["+short", NAMES[0], "A"]).contains("127.0.0.1"));
    assert_eq!(public.run(&["check", "--live"]).code, 0);
}

#[test]
fn exact_turned_off_serves_wildcard_and_back_needs_no_order() {
    let test = "acme_e2e::exact::exact_turned_off_serves_wildcard_and_back_needs_no_order";
    let Some((_bind, public)) = prepared(test) else { return };
    public.want_exact(&[]);
    let server = public.start();
    public.obtains();
    let shown = public.wait_for_names(&server, &NAMES[..1]);
    public.site.constituency("ote", &json!({ "client_auth": "none" }));
    within_a_second("the wildcard", || public.is_wildcard(&server, "ote").then_some(()));
    server.says("certificate (exact/ote): no longer configured");
    assert_eq!(public.status()["certificates"].as_array().unwrap().len(), 1);
    assert!(public.exact_folder().join("current/chain.pem").exists());
    public.want_exact(&[]);
    assert_eq!(public.wait_for_names(&server, &NAMES[..1]), shown);
    std::fs::rename(public.site.served("ote"), public.site.path("away")).unwrap();
    server.says("ote was removed");
    eventually("one certificate", || (public.status()["certificates"].as_array()?.len() == 1).then_some(()));
    std::fs::rename(public.site.path("away"), public.site.served("ote")).unwrap();
    let client = public.client(&server);
    eventually("ote again", || client.connect().ok());
    assert_eq!(public.wait_for_names(&server, &NAMES[..1]), shown);
    assert_eq!(public.pebble.logged("Added order"), 2);
}

#[test]
fn new_alias_is_served_by_the_wildcard_until_certified() {
    let test = "acme_e2e::exact::new_alias_is_served_by_the_wildcard_until_certified";
    let Some((_bind, public)) = prepared(test) else { return };
    public.want_exact(&[]);
    let server = public.start();
    public.obtains();
    public.wait_for_names(&server, &NAMES[..1]);
    let folder = public.exact_folder();
    // Storing fails for a moment, so that the state in between can be observed.
    let aside = public.site.path("aside");
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "").unwrap();
    public.want_exact(&["older"]);
    server.says("no new certificate (exact/ote)");
    assert!(public.is_wildcard(&server, "older"));
    public.wait_for_names(&server, &NAMES[..1]);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(aside, &folder).unwrap();
    let renewed = public.certificate(&["renew", "--constituency", "ote"]);
    assert_eq!(renewed.code, 0, "{renewed:?}");
    let shown = public.wait_for_names(&server, &NAMES);
    assert_eq!(public.shown(&server, "older"), shown);
}

#[test]
fn exact_order_is_finished_after_a_kill_at_any_step() {
    let test = "acme_e2e::exact::exact_order_is_finished_after_a_kill_at_any_step";
    let Some((bind, public)) = prepared(test) else { return };
    let server = public.start();
    public.obtains();
    server.kill();
    public.want_exact(&[]);
    let steps = ["ordering a certificate", "publishing 1 record", "telling the CA", "sending the certificate request"];
    for step in steps {
        public.kill_at(&format!("certificate (exact/ote): {step}"));
        let folder = public.exact_folder();
        let key = folder.join("order.json").exists().then(|| std::fs::read(folder.join("order.key")).unwrap());
        let server = public.start();
        let status = public.obtains();
        assert_eq!(status["certificates"][1]["failures"], 0, "{step}: {status}");
        public.wait_for_names(&server, &NAMES[..1]);
        let used = std::fs::read(folder.join("current/key.pem")).unwrap();
        assert!(key.is_none_or(|key| key == used), "{step}: not the order's certificate");
        assert_eq!(bind.txt(EXACT_CHALLENGE), Vec::<String>::new(), "{step}");
        server.kill();
        std::fs::remove_dir_all(folder).unwrap();
    }
    // Only an order whose URL was not stored yet is placed again.
    let orders = public.pebble.logged("Added order");
    assert!((1 + steps.len()..=3 + steps.len()).contains(&orders), "{orders} orders");
}

#[test]
fn delegated_challenge_is_followed_for_an_exact_name() {
    let test = "acme_e2e::exact::delegated_challenge_is_followed_for_an_exact_name";
    let records = "ote.phones A 127.0.0.1\n_acme-challenge.ote.phones CNAME ote.acme";
    let Some((bind, public)) = site(test, records, "grant provost. name ote.acme.example.com. TXT;") else { return };
    public.want_exact(&[]);
    let server = public.start();
    server.says("certificate (exact/ote): publishing 1 record at ote.acme.example.com");
    public.obtains();
    public.wait_for_names(&server, &NAMES[..1]);
    assert_eq!(bind.txt("ote.acme.example.com"), Vec::<String>::new());
}

#[test]
fn dry_run_by_its_old_name_orders_exact_names_too() {
    let test = "acme_e2e::exact::dry_run_by_its_old_name_orders_exact_names_too";
    let Some((bind, public)) = prepared(test) else { return };
    public.want_exact(&["older"]);
    std::fs::create_dir(public.site.path("state")).unwrap();
    let (root, directory) = (public.pebble.root_file(), public.pebble.directory());
    let args = ["rehearse", "--directory", &directory, "--directory-root", root.to_str().unwrap()];
    let tried = public.certificate(&args);
    assert!(tried.code == 0 && tried.stdout.contains("dry run successful: 2 certificates"), "{tried:?}");
    assert!(tried.stdout.contains("exact/ote: ordering a certificate for ote.phones.example.com, older."), "{tried:?}");
    assert!(!public.exact_folder().exists() && !public.site.path("state/rehearsal/certs").exists());
    assert_eq!(bind.txt(EXACT_CHALLENGE), Vec::<String>::new());
}

#[test]
fn exact_name_added_during_an_order_is_obtained_and_counted() {
    let test = "acme_e2e::exact::exact_name_added_during_an_order_is_obtained_and_counted";
    let Some((_bind, mut public)) = prepared(test) else { return };
    public.site.config["status"] = json!({ "listen": format!("unix:{}", public.site.path("status.sock").display()) });
    public.acme()["dns"]["settle_s"] = json!(1);
    public.want_exact(&[]);
    let server = public.start();
    server.says("certificate (exact/ote): waiting until all authorities have them");
    // A folder with the name of an alias is a constituency of its own.
    public.site.constituency("older", &json!({ "client_auth": "none", "certificate_names": "exact" }));
    public.obtains_all(3);
    assert_eq!(public.shown(&server, "older").names, NAMES[1..]);
    assert_eq!(public.shown(&server, "ote").names, NAMES[..1]);
    let mut metrics = std::process::Command::new("curl");
    metrics.args(["-sSf", "--unix-socket"]).arg(public.site.path("status.sock")).arg("http://localhost/metrics");
    let metrics = tool::run(&mut metrics).stdout;
    for label in [r#"{key="ecdsa"}"#, r#"{key="rsa",constituency="ote"}"#, r#"{key="rsa",constituency="older"}"#] {
        assert!(metrics.contains(&format!("provost_renewal_attempts_total{label} 1")), "{label}: {metrics}");
    }
}
