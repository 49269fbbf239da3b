//! The delegation is proven before the CA is asked to validate, and by `check --live`. Both ask every delegated name server,
//! and name the cause where one is wrong.

use std::process::Command;

use serde_json::json;

use crate::harness::bind::{Bind, BindConfig};
use crate::harness::directory::Directory;
use crate::harness::namespace;
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::site::{Running, Site};

use super::APEX;
use super::chain::{Above, OTHER, REGISTRAR, SERVER, TWO_RECORDS, is_inside, obtains, provost, site};

/// What `check --live` says.
pub fn live(site: &Site) -> String {
    provost(site, &["check", "--live"]).stdout
}

/// The lines of `said` about DNS that are errors and warnings.
pub fn faults(said: &str) -> Vec<&str> {
    let is_fault = |line: &&str| line.starts_with("error: dns") || line.starts_with("warning: dns");
    said.lines().filter(is_fault).collect()
}

/// Another name server at [`OTHER`] that serves the zone of the challenges.
fn other_server() -> Bind {
    let zone = "$TTL 60\n@ SOA ns1.example.com. hostmaster.example.com. 1 1 1 1 1\n@ NS old.example.com.\n";
    BindConfig::new().primary_from(APEX, zone, "").start_at(format!("{OTHER}:53").parse().unwrap())
}

/// The reason why there is no certificate. The CA was not asked to validate.
#[track_caller]
fn reason_without_a_validation(site: &Site, server: &Running) -> String {
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(!line.contains("validation failed"), "{line}");
    let memory = std::fs::read_to_string(site.path("state/renewal.json")).unwrap();
    assert!(memory.contains("\"orders\"") && !memory.contains("\"validations\""), "{memory}");
    line
}

#[test]
fn one_wrong_name_server_of_two_blocks_the_order() {
    if !is_inside("responder::proof::one_wrong_name_server_of_two_blocks_the_order") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let two = format!("{TWO_RECORDS}_acme-challenge.phones NS old.example.com.\nold A {OTHER}\n");
    let above = Above::start(&two);
    let _other = other_server();
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    let line = reason_without_a_validation(&site, &server);
    let problem =
        format!("another server answers for {APEX} at old.example.com ({OTHER}, port 53): NXDOMAIN without the proof");
    let remedy = format!("remove this NS record at the parent zone example.com: {APEX}. NS old.example.com.");
    assert!(line.contains("the CA is not asked to validate, because that would fail: "), "{line}");
    assert!(line.contains(&problem) && line.contains(&remedy) && line.contains("action required"), "{line}");
    // Not by luck: the resolver may ask the right one.
    for _ in 0..3 {
        let said = live(&site);
        assert!(said.contains(&format!("ns.phones.example.com ({SERVER}): is this server, by the proof")), "{said}");
        let [fault] = faults(&said)[..] else { panic!("{said}") };
        assert!(fault.starts_with(&format!("error: dns: {problem}")), "{said}");
        assert!(said.contains(&remedy), "{said}");
    }
    drop(above);
    let _above = Above::start(TWO_RECORDS);
    server.says("is delegated to this server now");
    obtains(&site, 1);
}

#[test]
fn silent_name_server_beside_a_proven_one_is_passed_over() {
    if !is_inside("responder::proof::silent_name_server_beside_a_proven_one_is_passed_over") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let names = ["old", "gone"].map(|name| format!("_acme-challenge.phones NS {name}.example.com.\n"));
    // Unbound that mixes the case of names asks the silent server at times until the CA's two seconds are over.
    let resolver = ["use-caps-for-id: no", "unknown-server-time-limit: 50"];
    let above = Above::start_with(&format!("{TWO_RECORDS}{}old A {OTHER}\n", names.concat()), &resolver);
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    let silent = format!("port 53 of old.example.com ({OTHER}) does not answer: it refuses the connection");
    server.says(&silent);
    server.says(&format!("{APEX} is delegated to gone.example.com, which has no address"));
    obtains(&site, 1);
    let checked = provost(&site, &["check", "--live"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(checked.stdout.contains("is delegated to this server"), "{checked:?}");
    let faults = faults(&checked.stdout);
    assert_eq!(faults.len(), 2, "{checked:?}");
    for name in ["old", "gone"] {
        let remedy = format!("remove this NS record at the parent zone example.com: {APEX}. NS {name}.example.com.");
        assert!(faults.iter().any(|fault| fault.contains(&remedy)), "{name}: {checked:?}");
    }
    assert!(faults.iter().any(|fault| fault.starts_with(&format!("warning: dns: {silent}"))), "{checked:?}");
}

#[test]
fn ds_record_of_the_unsigned_zone_is_named_and_blocks() {
    if !is_inside("responder::proof::ds_record_of_the_unsigned_zone_is_named_and_blocks") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let ds = format!("{TWO_RECORDS}_acme-challenge.phones DS 1 13 2 {}\n", "ab".repeat(32));
    let above = Above::start(&ds);
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    let line = reason_without_a_validation(&site, &server);
    let problem = format!("example.com has a DS record for {APEX}, which promises that the zone is signed");
    let remedy = format!("remove the DS record of {APEX} at the parent zone example.com");
    assert!(line.contains(&problem) && line.contains(&remedy) && line.contains("action required"), "{line}");
    let said = live(&site);
    let [fault] = faults(&said)[..] else { panic!("{said}") };
    assert!(fault.starts_with(&format!("error: dns: {problem}")) && said.contains(&remedy), "{said}");
}

#[test]
fn doubled_zone_at_the_registrar_is_one_cause() {
    if !is_inside("responder::proof::doubled_zone_at_the_registrar_is_one_cause") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let wildcard = "*.phones A 192.0.2.10\n";
    let elsewhere = format!("{wildcard}acme NS ns.phones.example.com.\n");
    let target = format!("{wildcard}_acme-challenge.phones NS ns.phones.example.com\n");
    let answered = format!("{target}*.com A {REGISTRAR}\n");
    let beside = format!("{TWO_RECORDS}_acme-challenge.phones NS ns2.phones.example.com\n");
    let owner = format!("{wildcard}_acme-challenge.phones.example.com NS ns.phones.example.com.\n");
    let alias = format!("{elsewhere}_acme-challenge.phones CNAME phones.acme.example.com\n");
    let alias_owner = format!("{elsewhere}_acme-challenge.phones.example.com CNAME phones.acme.example.com.\n");
    let cases = [
        (
            &target,
            "the NS record of _acme-challenge.phones.example.com names ns.phones.example.com.example.com",
            "ns.phones",
        ),
        (
            &answered,
            "the NS record of _acme-challenge.phones.example.com names ns.phones.example.com.example.com",
            "ns.phones",
        ),
        (
            &beside,
            "the NS record of _acme-challenge.phones.example.com names ns2.phones.example.com.example.com",
            "ns2.phones",
        ),
        (
            &owner,
            "the NS record of _acme-challenge.phones.example.com was entered at _acme-challenge.phones.example.com.example.com",
            "_acme-challenge.phones",
        ),
        (
            &alias,
            "the CNAME record of _acme-challenge.phones.example.com leads to phones.acme.example.com.example.com",
            "phones.acme",
        ),
        (
            &alias_owner,
            "the CNAME record of _acme-challenge.phones.example.com was entered at \
             _acme-challenge.phones.example.com.example.com",
            "_acme-challenge.phones",
        ),
    ];
    for (records, problem, relative) in cases {
        let above = Above::start(records);
        let pebble = Pebble::start(Behavior::default(), above.resolver.address);
        let site = site(&pebble);
        let server = site.start();
        let remedy = format!("enter \"{relative}.example.com.\" with the final dot, or only \"{relative}\"");
        if *records == beside {
            server.says(problem);
            obtains(&site, 1);
        } else {
            let line = reason_without_a_validation(&site, &server).replace("\\\"", "\"");
            assert!(line.contains(problem) && line.contains(&remedy), "{line}");
            assert_eq!((line.matches("enter ").count(), line.matches("publish").count()), (1, 0), "{line}");
        }
        let said = live(&site);
        let [fault] = faults(&said)[..] else { panic!("{said}") };
        assert!(fault.contains(problem) && fault.contains(&remedy) && !fault.contains("publish"), "{said}");
    }
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
            "the name servers of example.com do not lead _acme-challenge.phones.example.com to the DNS responder: they have no \
             NS record for it",
            "publish in the zone example.com: _acme-challenge.phones.example.com. NS ns.phones.example.com.",
        ),
        (
            nowhere,
            "is delegated to ns.elsewhere.example.com, which has no address",
            "_acme-challenge.phones.example.com. NS ns.elsewhere.example.com. to: _acme-challenge.phones.example.com. NS \
             ns.phones.example.com.",
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
    assert!(said.contains("ss -lntup sport = :53"), "{said}");
    drop(other);
    let other = BindConfig::new().primary("example.net", "", "").start_at(format!("{SERVER}:53").parse().unwrap());
    let said = live(&site);
    let [fault] = faults(&said)[..] else { panic!("{said}") };
    assert!(fault.contains(&format!("({SERVER}) does not serve {APEX}: it answers REFUSED")), "{said}");
    assert!(fault.contains(&format!("stop the other DNS server on {SERVER}")) && !fault.contains("publish"), "{said}");
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
fn name_server_whose_address_leads_elsewhere_blocks() {
    if !is_inside("responder::proof::name_server_whose_address_leads_elsewhere_blocks") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    // The NS record names this server, and its address is the registrar's server.
    let above = Above::start(&format!("{TWO_RECORDS}ns.phones A {REGISTRAR}\n"));
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    let line = reason_without_a_validation(&site, &server);
    let cause = format!(
        "ns.phones.example.com ({REGISTRAR}) does not serve {APEX}: it delegates {APEX} to other servers ({REGISTRAR} is not \
         an address of this server by \"listen\" and \"addresses\" of \"dns\".\"responder\": replace the record \
         ns.phones.example.com. A {REGISTRAR} with: ns.phones.example.com. A {SERVER})"
    );
    let line = line.replace("\\\"", "\"");
    assert!(line.contains(&format!("because no name server of {APEX} proves to be this server: {cause}")), "{line}");
    let said = live(&site);
    assert_eq!(faults(&said).len(), 1, "{said}");
    assert!(
        said.contains(&format!("error: dns: ns.phones.example.com ({REGISTRAR}) does not serve {APEX}: ")),
        "{said}"
    );
}

/// Starts provost below `records`. `serve` and `check --live` name one cause, `problem`, and `remedy`.
#[track_caller]
pub fn names_one_cause(records: &str, problem: &str, remedy: &str) -> (Site, Running) {
    let above = Above::start(records);
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    let line = reason_without_a_validation(&site, &server).replace("\\\"", "\"");
    assert!(line.contains(problem) && line.contains(remedy), "{line}");
    let said = live(&site);
    let [fault] = faults(&said)[..] else { panic!("{said}") };
    assert!(fault.contains(problem) && fault.contains(remedy), "{said}");
    drop(above);
    (site, server)
}

#[test]
fn alias_into_no_delegated_zone_needs_an_ns_record() {
    if !is_inside("responder::proof::alias_into_no_delegated_zone_needs_an_ns_record") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let to = |target: &str| format!("*.phones A {SERVER}\n_acme-challenge.phones CNAME {target}.\n");
    let leads = |target: &str| format!("the CNAME record of {APEX} leads to {target}, and the name servers of");
    let replace = format!("replace the CNAME record of {APEX} with: {APEX}. NS ns.phones.example.com.");
    let delegate =
        |zone: &str| format!("publish in the zone example.com: {zone}. NS ns.phones.example.com.; or {replace}");
    let cases = [
        ("phones.acme.example.com", delegate("acme.example.com")),
        ("typo.example.com", delegate("typo.example.com")),
        ("a.b.elsewhere.invalid", replace.clone()),
    ];
    for (target, remedy) in cases {
        let (site, server) = names_one_cause(&to(target), &leads(target), &remedy);
        if target == "phones.acme.example.com" {
            let _above = Above::start(&format!("{}acme NS ns.phones.example.com.\n", to(target)));
            server.says("is delegated to this server now");
            drop((site, server));
        }
    }
}

#[test]
fn wrong_name_server_of_a_zone_elsewhere_is_named() {
    if !is_inside("responder::proof::wrong_name_server_of_a_zone_elsewhere_is_named") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let zone = "$TTL 60\n@ SOA ns1.example.com. hostmaster.example.com. 1 1 1 1 1\n@ NS old.example.com.\n";
    let other = BindConfig::new().primary_from("acme.example.com", zone, "");
    let _other = other.start_at(format!("{OTHER}:53").parse().unwrap());
    let alias = format!("*.phones A {SERVER}\n_acme-challenge.phones CNAME phones.acme.example.com.\n");
    names_one_cause(
        &format!("{alias}acme NS ns.phones.example.com.\nacme NS old.example.com.\nold A {OTHER}\n"),
        &format!("another server answers for acme.example.com at old.example.com ({OTHER}, port 53): NXDOMAIN without"),
        "remove this NS record at the parent zone example.com: acme.example.com. NS old.example.com.",
    );
}

#[test]
fn foreign_address_is_named_with_the_record_that_has_it() {
    if !is_inside("responder::proof::foreign_address_is_named_with_the_record_that_has_it") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let closed = format!("{TWO_RECORDS}ns.phones A {OTHER}\n");
    let above = Above::start(&closed);
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    let record = format!("the record ns.phones.example.com. A {OTHER}");
    let remedy = format!(
        "if {OTHER} is a public address of this server, add it to \"dns\".\"responder\".\"addresses\"; otherwise replace \
         {record} with: ns.phones.example.com. A {SERVER}"
    );
    let problem = format!("port 53 of ns.phones.example.com ({OTHER}) does not answer");
    let line = reason_without_a_validation(&site, &server).replace("\\\"", "\"");
    assert!(line.contains(&problem) && line.contains(&remedy), "{line}");
    let said = live(&site);
    let [fault] = faults(&said)[..] else { panic!("{said}") };
    assert!(fault.contains(&problem) && fault.contains(&remedy), "{said}");
    drop((server, site, above));
    let _other = other_server();
    let answers =
        format!("another server answers for {APEX} at ns.phones.example.com ({OTHER}, port 53): NXDOMAIN without");
    names_one_cause(&format!("{closed}ns.phones A {SERVER}\n"), &answers, &format!("remove {record}"));
}

#[test]
fn only_name_server_is_changed_and_not_removed() {
    if !is_inside("responder::proof::only_name_server_is_changed_and_not_removed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let _other = other_server();
    let above =
        Above::start(&format!("*.phones A {SERVER}\n_acme-challenge.phones NS old.example.com.\nold A {OTHER}\n"));
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    let line = reason_without_a_validation(&site, &server);
    assert!(line.contains("change its NS record to ns.phones.example.com."), "{line}");
    let said = live(&site);
    let [fault] = faults(&said)[..] else { panic!("{said}") };
    let remedy = format!(
        "change this NS record at the parent zone example.com: {APEX}. NS old.example.com. to: {APEX}. NS ns.phones.example.com."
    );
    assert!(fault.contains(&remedy) && !fault.contains("remove"), "{said}");
}

#[test]
fn exact_name_with_an_ns_record_needs_a_cname_record() {
    if !is_inside("responder::proof::exact_name_with_an_ns_record_needs_a_cname_record") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let exact = format!("ote.phones A {SERVER}\n_acme-challenge.ote.phones NS ns.phones.example.com.\n");
    let above = Above::start(&format!("{TWO_RECORDS}{exact}"));
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    site.constituency("ote", &json!({ "client_auth": "none", "certificate_names": "exact" }));
    let server = site.start();
    let challenge = "_acme-challenge.ote.phones.example.com";
    let problem = format!("{challenge} leads to the zone {challenge}, and this server serves only the zone {APEX}");
    let remedy = format!(
        "replace the NS records of {challenge} at the parent zone example.com with: {challenge}. CNAME ote.{APEX}."
    );
    let line = server.says(&problem);
    assert!(line.contains(&remedy) && line.contains("action required"), "{line}");
    let said = live(&site);
    let [fault] = faults(&said)[..] else { panic!("{said}") };
    assert!(fault.contains(&problem) && fault.contains(&remedy), "{said}");
}

#[test]
fn failed_validation_names_name_servers_of_the_responder() {
    if !is_inside("responder::proof::failed_validation_names_name_servers_of_the_responder") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let _above = Above::start(&format!("{TWO_RECORDS}_acme-challenge.phones NS old.example.com.\nold A {OTHER}\n"));
    // The CA asks another server, which knows nothing of the zone.
    let elsewhere = BindConfig::new().primary("example.net", "", "").start();
    let pebble = Pebble::start(Behavior::default(), elsewhere.address);
    let site = site(&pebble);
    let server = site.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    let cause = format!("; likely cause: port 53 of old.example.com ({OTHER}) does not answer");
    assert!(line.contains("the CA's validation failed: ") && line.contains(&cause), "{line}");
    assert!(line.contains("validations fail at times because of it"), "{line}");
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

#[test]
fn one_cause_of_two_certificates_is_printed_once_and_dated() {
    if !is_inside("responder::proof::one_cause_of_two_certificates_is_printed_once_and_dated") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let above = Above::start(&format!("*.phones A {SERVER}\n"));
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let mut site = site(&pebble);
    site.config["certificate"]["acme"]["keys"] = json!(["ecdsa-p256", "rsa-2048"]);
    let server = site.start();
    for key in ["ecdsa-p256", "rsa-2048"] {
        let line = server.says(&format!("no new certificate ({key})"));
        assert!(line.contains("next attempt in ") && line.contains(" UTC)"), "{line}");
    }
    let cause = "they have no NS record for it, and no CNAME record";
    let said = live(&site);
    let certificate: Vec<&str> = said.lines().filter(|line| line.starts_with("error: certificate")).collect();
    let [of_both] = certificate[..] else { panic!("{said}") };
    let start = "error: certificate: the ecdsa-p256 and rsa-2048 certificates could not be obtained: the error of \"dns\" says \
                 why (attempt of 2";
    assert!(of_both.starts_with(start) && of_both.contains(" UTC; next attempt in "), "{said}");
    assert!(!of_both.contains("renew --now"), "it is not repaired: {said}");
    assert_eq!((said.matches(cause).count(), faults(&said).len()), (1, 1), "{said}");
    // Without `--live`, the last attempt's reason is all there is.
    let offline = provost(&site, &["check"]).stdout;
    let both =
        "error: certificate: the ecdsa-p256 and rsa-2048 certificates could not be obtained: the name servers of";
    assert!(offline.contains(both) && offline.matches(cause).count() == 1, "{offline}");
    let status = provost(&site, &["certificate", "status"]).stdout;
    assert_eq!(status.matches(cause).count(), 1, "{status}");
    assert!(status.contains(" UTC failed for the same reason as "), "{status}");
    drop(above);
}

#[test]
fn port_that_resolvers_do_not_ask_is_named() {
    if !is_inside("responder::proof::port_that_resolvers_do_not_ask_is_named") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let above = Above::start(TWO_RECORDS);
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let mut site = site(&pebble);
    site.config["certificate"]["acme"]["dns"]["responder"]["listen"] = json!([format!("{SERVER}:5353")]);
    let server = site.start();
    server.says("no new certificate (ecdsa-p256)");
    let listens = format!("listens on {SERVER}:5353, and resolvers ask port 53");
    let offline = provost(&site, &["check"]).stdout;
    assert!(offline.contains(&format!("warning: dns: the DNS responder {listens}")), "{offline}");
    let said = live(&site);
    let error = said.lines().find(|line| line.starts_with("error: dns")).unwrap_or_else(|| panic!("{said}"));
    let remedy = format!("this server {listens}: name that port in \"listen\" of \"dns\".\"responder\"");
    assert!(error.contains(&remedy) && !error.contains("check that provost runs"), "{said}");
}

#[test]
fn exact_name_below_an_alias_waits_for_the_domains_records() {
    if !is_inside("responder::proof::exact_name_below_an_alias_waits_for_the_domains_records") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let alias = format!("*.phones A {SERVER}\n_acme-challenge.phones CNAME phones.acme.example.com.\n");
    let exact = format!("ote.phones A {SERVER}\n_acme-challenge.ote.phones CNAME ote.{APEX}.\n");
    let above = Above::start(&format!("{alias}{exact}"));
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    site.constituency("ote", &json!({ "client_auth": "none", "certificate_names": "exact" }));
    let server = site.start();
    let line = server.says("no new certificate (exact/ote)");
    let remedy = format!("{APEX} is an alias (CNAME), below which nothing can be: mend the records of {APEX} first");
    assert!(line.contains(&remedy) && !line.contains(&format!("{APEX}. NS")), "{line}");
    assert!(live(&site).contains(&remedy));
    drop(above);
}
