//! What DNS may do to us, through the whole server.

use std::net::SocketAddr;

use serde_json::json;

use super::{CHALLENGE, Public, primary, usual};
use crate::harness::bind::{self, Bind, BindConfig};
use crate::harness::knot::{self, Knot};
use crate::harness::pebble::{Behaviour, Pebble};

/// A site whose zone is on the primary and on this secondary, which has a copy and hears of no change.
fn with_secondary(test: &str) -> Option<(Bind, Bind, Public)> {
    let (primary, mut public) = usual(test, Behaviour::default())?;
    let secondary = BindConfig::new().secondary("example.com", &primary).start();
    public.acme()["dns"]["authorities"] = json!([primary.address.to_string(), secondary.address.to_string()]);
    Some((primary, secondary, public))
}

fn no_record(primary: &Bind) {
    assert_eq!(primary.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn a_wrong_secret_is_told_and_costs_no_validation() {
    let test = "unattended::dns::a_wrong_secret_is_told_and_costs_no_validation";
    let Some((_bind, mut public)) = usual(test, Behaviour::default()) else { return };
    let other = BindConfig::new().key("provost.", "hmac-sha256").primary("example.net", "", "").start();
    public.acme()["dns"]["tsig_key_file"] = json!(other.key_file("provost."));
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("BADSIG") && line.contains("needs somebody"), "{line}");
    let status = public.certificate(&["status"]);
    assert_eq!(status.code, 1, "{status:?}");
    assert!(status.stdout.contains("none yet") && status.stdout.contains("BADSIG"), "{status:?}");
    assert!(!public.has_spent_validations());
}

#[test]
fn a_name_outside_the_policy_is_told_with_the_line_to_add_and_costs_no_validation() {
    let test = "unattended::dns::a_name_outside_the_policy_is_told_with_the_line_to_add_and_costs_no_validation";
    let Some((_bind, mut public)) = usual(test, Behaviour::default()) else { return };
    public.site.config["domain"] = json!("other.example.com");
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    for part in ["REFUSED", "grant provost. name _acme-challenge.other.example.com. TXT;", "needs somebody"] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert!(!public.has_spent_validations());
}

#[test]
fn a_domain_hosted_elsewhere_is_certified_through_a_delegated_name() {
    let test = "unattended::dns::a_domain_hosted_elsewhere_is_certified_through_a_delegated_name";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    // The domain's own servers take no updates; the challenge is a CNAME into a zone of ours, on another primary.
    let hosted = "phones A 127.0.0.1\n_acme-challenge.phones CNAME phones.acme.example.net.";
    let hosted = BindConfig::new().primary("example.com", hosted, "").start();
    let policy = "grant provost. name phones.acme.example.net. TXT;";
    let ours = BindConfig::new().key("provost.", "hmac-sha256").primary("acme.example.net", "", policy).start();
    // Resolvers remember that a name was not there: so the CA has one of its own, as CAs do.
    let resolver = || {
        let config = BindConfig::new().forward("example.com", &hosted).forward("acme.example.net", &ours);
        config.primary("ready.test", "", "").start()
    };
    let (our_resolver, their_resolver) = (resolver(), resolver());
    let pebble = Pebble::start(Behaviour::default(), their_resolver.address);
    let mut public = Public::new(pebble, ours.address, &ours.key_file("provost."));
    public.acme()["dns"]["resolvers"] = json!([our_resolver.address.to_string()]);
    let server = public.start();
    server.says("publishing 2 records at phones.acme.example.net");
    public.obtains();
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
    assert_eq!(ours.txt("phones.acme.example.net"), Vec::<String>::new());
}

#[test]
fn a_secondary_that_lags_is_waited_for_before_the_ca_is_told() {
    let test = "unattended::dns::a_secondary_that_lags_is_waited_for_before_the_ca_is_told";
    let Some((primary, secondary, public)) = with_secondary(test) else { return };
    let server = public.start();
    server.says(&format!("{}: lacks 2 of 2 values yet", secondary.address));
    secondary.notify("example.com");
    public.obtains();
    let said = server.stderr();
    let at = |text: &str| said.iter().position(|line| line.contains(text));
    let seen = at(&format!("{}: has the records", secondary.address)).unwrap();
    assert!(at("telling the CA").unwrap() > seen, "{}", said.join("\n"));
    no_record(&primary);
}

#[test]
fn a_secondary_that_never_catches_up_is_named_and_costs_neither_validation_nor_order() {
    let test = "unattended::dns::a_secondary_that_never_catches_up_is_named_and_costs_neither_validation_nor_order";
    let Some((primary, secondary, mut public)) = with_secondary(test) else { return };
    public.acme()["dns"]["propagation_timeout_s"] = json!(4);
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains(&format!("{} lacks 2 of 2 values, serial 1", secondary.address)), "{line}");
    assert!(!public.has_spent_validations());
    no_record(&primary);
    assert!(!server.stderr().join("\n").contains("telling the CA"));
    server.kill();
    // Somebody has mended it, and given it more time.
    public.acme()["dns"]["propagation_timeout_s"] = json!(20);
    let server = public.start();
    server.says(&format!("{}: lacks 2 of 2 values yet", secondary.address));
    secondary.notify("example.com");
    public.obtains();
    no_record(&primary);
    assert_eq!(public.pebble.logged("Added order"), 1);
}

#[test]
fn a_dead_secondary_is_named_and_done_without() {
    let test = "unattended::dns::a_dead_secondary_is_named_and_done_without";
    let Some((primary, secondary, mut public)) = with_secondary(test) else { return };
    public.acme()["dns"]["propagation_timeout_s"] = json!(4);
    let dead = secondary.kill();
    let server = public.start();
    public.obtains();
    server.says(&format!("{dead}: does not answer: it refuses the connection"));
    server.says(&format!("{dead}: went on without it"));
    no_record(&primary);
}

#[test]
fn without_dns_it_serves_on_and_renews_when_the_primary_is_back() {
    let test = "unattended::dns::without_dns_it_serves_on_and_renews_when_the_primary_is_back";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    let config = primary();
    let bind = config.start();
    let pebble = Pebble::start(Behaviour::default(), bind.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    let server = public.start();
    public.obtains();
    let address: SocketAddr = bind.kill();
    public.fails(&format!("{address}: it refuses the connection"));
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
    assert!(!public.has_spent_validations());
    let bind = config.start_at(address);
    public.renew();
    no_record(&bind);
}

#[test]
fn knot_is_a_primary_too() {
    let test = "unattended::dns::knot_is_a_primary_too";
    if !knot::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    let acl = "acl:\n  - id: provost\n    key: provost\n    action: update\n    update-type: [TXT]\n    \
               update-owner: name\n    update-owner-match: equal\n    update-owner-name: [_acme-challenge.phones]\n\
               zone:\n  - domain: example.com\n    acl: [provost]\n";
    let knot = Knot::start("example.com", "provost", acl);
    let pebble = Pebble::start(Behaviour::default(), knot.address);
    let public = Public::new(pebble, knot.address, &knot.settings().tsig_key_file);
    let server = public.start();
    public.obtains();
    public.renew();
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
    assert_eq!(bind::txt(knot.address, CHALLENGE), Vec::<String>::new());
}
