//! The wildcard record of the manual leads phones here, and gives the name server its address. Where it is wrong, the record
//! that the operator made is named, and phones are not forgotten once the name server has an address of its own.

use std::net::{SocketAddr, TcpListener};

use serde_json::json;

use super::APEX;
use super::chain::{Above, OTHER, SERVER, TWO_RECORDS, is_inside, obtains, provost, site};
use super::proof::{faults, live, names_one_cause};
use crate::harness::directory::Directory;
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::relay::{Relay, Tcp, Udp};
use crate::harness::site::Site;
use crate::harness::{eventually, namespace};

/// The delegation of the manual, without an address record.
const DELEGATION: &str = "_acme-challenge.phones NS ns.phones.example.com.\n";

#[test]
fn wrong_wildcard_record_is_named_and_not_the_name_server() {
    if !is_inside("responder::phone_names::wrong_wildcard_record_is_named_and_not_the_name_server") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    let closed = format!("port 53 of ns.phones.example.com ({OTHER}) does not answer: it refuses the connection");
    let cases = [
        (
            format!("*.phones A {OTHER}\n"),
            closed.as_str(),
            format!(
                "if {OTHER} is a public address of this server, add it to \"dns\".\"responder\".\"addresses\"; otherwise change \
                 the A record of *.phones.example.com to {SERVER} (phones follow it too)"
            ),
        ),
        (
            "*.phones AAAA 2001:db8:bad::1\n".to_owned(),
            "ns.phones.example.com (2001:db8:bad::1) cannot be reached from here",
            format!(
                "replace the record *.phones.example.com. AAAA 2001:db8:bad::1 with: *.phones.example.com. A {SERVER} (phones \
                 follow it too)"
            ),
        ),
        (
            String::new(),
            "is delegated to ns.phones.example.com, which has no address",
            format!("publish: *.phones.example.com. A {SERVER} (phones need it too)"),
        ),
        (
            format!("*.phones CNAME host\nhost A {OTHER}\n"),
            "is an alias (CNAME)",
            format!(
                "give it an address record of its own, which keeps the CNAME record of *.phones.example.com from it; publish: \
                 ns.phones.example.com. A {SERVER}"
            ),
        ),
    ];
    for (wildcard, problem, remedy) in cases {
        let records = format!("{wildcard}{DELEGATION}");
        if wildcard.contains("CNAME") {
            let above = Above::start(&records);
            let pebble = Pebble::start(Behavior::default(), above.resolver.address);
            let site = site(&pebble);
            let server = site.start();
            server.says("no new certificate (ecdsa-p256)");
            let said = live(&site);
            let named = faults(&said).into_iter().filter(|fault| fault.contains(problem) && fault.contains(&remedy));
            assert_eq!(named.count(), 1, "{said}");
            let phones =
                "warning: dns: *.phones.example.com leads phones to 192.0.2.99, which is not an address of this server";
            let correct =
                "correct the addresses of host.example.com, to which the CNAME record of *.phones.example.com leads";
            assert!(faults(&said).iter().any(|it| it.starts_with(phones) && it.ends_with(correct)), "{said}");
        } else {
            names_one_cause(&records, problem, &remedy);
        }
    }
}

#[test]
fn one_wrong_address_among_several_is_removed_from_the_wildcard() {
    if !is_inside("responder::phone_names::one_wrong_address_among_several_is_removed_from_the_wildcard") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    for (kind, wrong) in [("A", OTHER), ("AAAA", "2001:db8:bad::1")] {
        let above = Above::start(TWO_RECORDS);
        let pebble = Pebble::start(Behavior::default(), above.resolver.address);
        let site = site(&pebble);
        let _server = site.start();
        obtains(&site, 1);
        drop(above);
        let above = Above::start(&format!("{TWO_RECORDS}*.phones {kind} {wrong}\n"));
        let said = live(&site);
        let [fault] = faults(&said)[..] else { panic!("{said}") };
        // The random names that show a wildcard never reach a cache, which the CA may share.
        let asked = above.resolver.asked();
        assert!(asked.iter().any(|name| name == "example.com"), "{asked:?}");
        assert!(!asked.iter().any(|name| name.starts_with("provost-") || *name == APEX), "{asked:?}");
        let remedy = format!("remove the record *.phones.example.com. {kind} {wrong} (phones follow it too)");
        assert!(fault.starts_with("warning: dns: ") && fault.contains(&remedy), "{said}");
    }
}

#[test]
fn wildcard_that_leads_elsewhere_is_reported_beside_a_good_delegation() {
    if !is_inside("responder::phone_names::wildcard_that_leads_elsewhere_is_reported_beside_a_good_delegation") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    // The name server has a record of its own, and the wildcard is still wrong.
    let above = Above::start(&format!("*.phones A {OTHER}\nns.phones A {SERVER}\n{DELEGATION}"));
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let _server = site.start();
    obtains(&site, 1);
    let change = format!("change the A record of *.phones.example.com to {SERVER}");
    let leads = format!("dns: *.phones.example.com leads phones to {OTHER}, which ");
    let one_fault = |start: &str, part: &str| {
        let said = live(&site);
        let [fault] = faults(&said)[..] else { panic!("{said}") };
        assert!(fault.starts_with(&format!("{start}: {leads}")), "{said}");
        assert!(fault.contains(part) && fault.ends_with(&change), "{said}");
        assert!(said.contains("is delegated to this server"), "{said}");
    };
    one_fault("warning", "shows no certificate of ours to this machine (port 443: Connection refused");
    let web = Directory::start(&json!({}));
    let https: SocketAddr = format!("{OTHER}:443").parse().unwrap();
    let web_at = web.url.trim_start_matches("https://").trim_end_matches("/dir").parse().unwrap();
    let relay = Relay::start_at(https, Udp::Closed, Tcp::Passed(vec![web_at]));
    one_fault("error", "is another server: it shows a certificate for ");
    drop(relay);
    // An old provost with a certificate of its own for the same names.
    let mut old_site = Site::with_ote();
    old_site.config["listen"] = json!([https.to_string()]);
    eventually("the port", || TcpListener::bind(https).ok().map(drop));
    let old = old_site.start();
    one_fault(
        "warning",
        "shows a certificate for *.phones.example.com, phones.example.com with a key that is not ours",
    );
    drop(old);
    // An address in front of this server, such as that of NAT, shows our own certificate.
    let here = format!("{SERVER}:443").parse().unwrap();
    eventually("the port", || TcpListener::bind(https).ok().map(drop));
    let _relay = Relay::start_at(https, Udp::Closed, Tcp::Passed(vec![here]));
    let said = live(&site);
    assert_eq!(faults(&said), Vec::<&str>::new(), "{said}");
}

#[test]
fn each_constituency_is_looked_up_as_its_phones_do() {
    if !is_inside("responder::phone_names::each_constituency_is_looked_up_as_its_phones_do") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("127.0.0.1", folder.path());
    // `ote` has an old record of its own, `lab` only text, and an alias of `home` leads to a name that is gone.
    let own = format!("ote.phones A {OTHER}\nlab.phones TXT \"a lab\"\nflat.phones CNAME gone.example.com.\n");
    let above = Above::start(&format!("{TWO_RECORDS}{own}"));
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    site.constituency("home", &json!({ "client_auth": "none", "aliases": ["flat", "house"] }));
    site.constituency("lab", &json!({ "client_auth": "none" }));
    let _server = site.start();
    obtains(&site, 1);
    let said = live(&site);
    let expected = [
        format!("warning: dns: ote.phones.example.com leads phones to {OTHER}, which is not an address of this server"),
        "error: dns: lab.phones.example.com has no address, so phones cannot find it".to_owned(),
        "error: dns: flat.phones.example.com is an alias of gone.example.com, which has no address, so phones cannot find it"
            .to_owned(),
    ];
    let faults = faults(&said);
    assert_eq!(faults.len(), expected.len(), "{said}");
    for start in &expected {
        assert!(faults.iter().any(|fault| fault.starts_with(start)), "{start}: {said}");
    }
    assert!(said.contains(&format!("change the A record of ote.phones.example.com to {SERVER}")), "{said}");
    assert!(said.contains(&format!("publish: lab.phones.example.com. A {SERVER}")), "{said}");
    drop(above);
    // Without the wildcard, a constituency with a record of its own is found, and the others are named.
    let _above = Above::start(&format!("home.phones A {SERVER}\nns.phones A {SERVER}\n{DELEGATION}"));
    let said = provost(&site, &["check", "--live"]).stdout;
    let missing = "error: dns: *.phones.example.com has no address, so phones cannot find flat.phones.example.com, \
                   house.phones.example.com, lab.phones.example.com, ote.phones.example.com; publish: *.phones.example.com. A";
    assert!(said.contains(missing), "{said}");
}
