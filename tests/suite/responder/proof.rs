//! `check --live` proves the delegation, and names the cause where it cannot.

use std::process::Command;

use serde_json::json;

use crate::harness::bind::BindConfig;
use crate::harness::directory::Directory;
use crate::harness::namespace;
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::site::Site;

use super::chain::{Above, REGISTRAR, SERVER, TWO_RECORDS, is_inside, obtains, provost, site};

/// What `check --live` says.
fn live(site: &Site) -> String {
    provost(site, &["check", "--live"]).stdout
}

#[test]
fn check_live_names_the_cause_of_a_missing_delegation() {
    if !is_inside("responder::proof::check_live_names_the_cause_of_a_missing_delegation") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let wildcard = "*.phones A 192.0.2.10\n";
    let nowhere = "_acme-challenge.phones NS ns.elsewhere.example.com.\n*.phones A 192.0.2.10\nelsewhere TXT x\n";
    let alias = "_acme-challenge.phones NS ns.phones.example.com.\nns.phones CNAME host\nhost A 192.0.2.10\n*.phones A 192.0.2.10\n";
    let cases = [
        (
            wildcard,
            "_acme-challenge.phones.example.com is not delegated: the name servers of example.com have no NS record",
            "publish at the registrar: _acme-challenge.phones.example.com. NS ns.phones.example.com.",
        ),
        (
            nowhere,
            "is delegated to ns.elsewhere.example.com, which has no address",
            "publish: ns.elsewhere.example.com. A 192.0.2.10",
        ),
        (
            alias,
            "ns.phones.example.com, the name server of _acme-challenge.phones.example.com, is an alias (CNAME)",
            "ns.phones.example.com. A 192.0.2.10",
        ),
    ];
    for (records, problem, remedy) in cases {
        let above = Above::start(records);
        let pebble = Pebble::start(Behavior::default(), above.resolver.address);
        let site = site(&pebble);
        let before = live(&site);
        assert!(before.contains("no server has run with the DNS responder"), "{before}");
        let server = site.start();
        server.says("DNS responder on");
        let said = live(&site);
        assert!(said.contains(problem) && said.contains(remedy), "{said}\n{}", above.resolver.log());
    }
}

#[test]
fn check_live_tells_a_closed_port_from_another_server() {
    if !is_inside("responder::proof::check_live_tells_a_closed_port_from_another_server") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let above = Above::start(TWO_RECORDS);
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    obtains(&site, 1);
    assert!(live(&site).contains("is delegated to this server"));
    server.kill();
    let closed = live(&site);
    let port = format!("port 53 of ns.phones.example.com ({SERVER}) does not answer");
    assert!(closed.contains(&port) && closed.contains("firewall"), "{closed}");
    let zone = "$TTL 60\n@ SOA ns1.example.com. hostmaster.example.com. 1 1 1 1 1\n@ NS ns.phones.example.com.\n";
    let other = BindConfig::new().primary_from("_acme-challenge.phones.example.com", zone, "");
    let other = other.start_at(format!("{SERVER}:53").parse().unwrap());
    let said = live(&site);
    assert!(said.contains("another server answers for _acme-challenge.phones.example.com"), "{said}");
    assert!(said.contains("ss -lnup sport = :53"), "{said}");
    drop(other);
}

#[test]
fn print_dns_records_prints_what_the_walk_needs() {
    if !is_inside("responder::proof::print_dns_records_prints_what_the_walk_needs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let above = Above::start(TWO_RECORDS);
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let ca = Directory::leading_to(&json!({ "caaIdentities": ["ca.example"] }), &pebble.links());
    let mut site = site(&pebble);
    site.config["certificate"]["acme"]["directory"] = json!(ca.url);
    let print = || provost(&site, &["print", "dns-records"]);
    let printed = print();
    assert_eq!(printed.code, 0, "{printed:?}");
    let records =
        |text: &str| text.lines().filter(|line| !line.starts_with(';')).map(str::to_owned).collect::<Vec<_>>();
    let all = records(&printed.stdout);
    assert_eq!(
        all[..2],
        ["*.phones.example.com. A 192.0.2.10", "_acme-challenge.phones.example.com. NS ns.phones.example.com."]
    );
    assert!(
        all[2].starts_with("phones.example.com. CAA 0 issue \"") && all[2].ends_with("; validationmethods=dns-01\""),
        "{all:?}"
    );
    assert!(!printed.stdout.contains("accounturi=") && printed.stdout.contains("run this again"), "{printed:?}");
    let _server = site.start();
    obtains(&site, 1);
    let with_account = print().stdout;
    assert_eq!(with_account.matches("; accounturi=https://").count(), 2, "{with_account}");
    // A name server takes the lines as they are.
    let zone = format!("$TTL 300\n@ SOA ns1 hostmaster 1 1 1 1 1\n@ NS ns1\nns1 A {REGISTRAR}\n{with_account}");
    let file = folder.path().join("zone");
    std::fs::write(&file, &zone).unwrap();
    let checked = crate::harness::tool::run(
        Command::new(crate::harness::bind::program("named-checkzone").unwrap()).arg("example.com").arg(&file),
    );
    assert_eq!(checked.code, 0, "{checked:?}\n{zone}");
    drop(above);
}

#[test]
fn failed_validation_names_a_wrong_delegation_of_the_responder() {
    if !is_inside("responder::proof::failed_validation_names_a_wrong_delegation_of_the_responder") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    // The NS record names this server, and its address is another server's.
    let elsewhere =
        format!("_acme-challenge.phones NS ns.phones.example.com.\n*.phones A 192.0.2.10\nns.phones A {REGISTRAR}\n");
    let above = Above::start(&elsewhere);
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    let cause = format!(
        "another server answers for _acme-challenge.phones.example.com at ns.phones.example.com ({REGISTRAR}, port 53)"
    );
    assert!(
        line.contains("the CA's validation failed: ") && line.contains(&format!("; likely cause: {cause}")),
        "{line}"
    );
    assert!(live(&site).contains(&cause));
}

#[test]
fn check_live_compares_the_delegation_with_our_name_server() {
    if !is_inside("responder::proof::check_live_compares_the_delegation_with_our_name_server") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let above = Above::start("_acme-challenge.phones NS dns.phones.example.com.\n*.phones A 192.0.2.10\n");
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let _server = site.start();
    obtains(&site, 1);
    let said = live(&site);
    let mismatch = "warning: dns: _acme-challenge.phones.example.com: the parent zone delegates to dns.phones.example.com, \
                    which the zone's own NS records do not name, and the zone's own NS records name ns.phones.example.com";
    assert!(said.contains(mismatch) && said.contains("is delegated to this server"), "{said}");
}
