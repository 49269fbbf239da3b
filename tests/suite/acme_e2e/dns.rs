//! DNS failures, tested with the whole server.

use std::net::SocketAddr;

use serde_json::json;

use super::{CHALLENGE, Public, primary, usual};
use crate::harness::bind::{self, Bind, BindConfig};
use crate::harness::internet::{self, at, delegation, root, zone_file};
use crate::harness::knot::{self, Knot};
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::{eventually, namespace, tool, unbound};

/// A site whose zone is on the primary and on a secondary that gets no NOTIFY.
fn with_secondary(test: &str) -> Option<(Bind, Bind, Public)> {
    let (primary, mut public) = usual(test, Behavior::default())?;
    let secondary = BindConfig::new().secondary("example.com", &primary).start();
    public.acme()["dns"]["authorities"] = json!([primary.address.to_string(), secondary.address.to_string()]);
    Some((primary, secondary, public))
}

fn no_record(primary: &Bind) {
    assert_eq!(primary.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn wrong_tsig_secret_is_logged_and_spends_no_validation() {
    let test = "acme_e2e::dns::wrong_tsig_secret_is_logged_and_spends_no_validation";
    let Some((_bind, mut public)) = usual(test, Behavior::default()) else { return };
    let other = BindConfig::new().key("provost.", "hmac-sha256").primary("example.net", "", "").start();
    public.acme()["dns"]["tsig_key_file"] = json!(other.key_file("provost."));
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("BADSIG") && line.contains("action required"), "{line}");
    let status = public.certificate(&["status"]);
    assert_eq!(status.code, 1, "{status:?}");
    assert!(status.stdout.contains("none yet") && status.stdout.contains("BADSIG"), "{status:?}");
    assert!(!public.has_spent_validations());
}

#[test]
fn refused_update_logs_the_grant_and_spends_no_validation() {
    let test = "acme_e2e::dns::refused_update_logs_the_grant_and_spends_no_validation";
    let Some((_bind, mut public)) = usual(test, Behavior::default()) else { return };
    public.site.config["domain"] = json!("other.example.com");
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    for part in ["REFUSED", "grant provost. name _acme-challenge.other.example.com. TXT;", "action required"] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert!(!public.has_spent_validations());
    // Nothing was added, so that nothing is removed in vain, and no warning says so.
    let journal = eventually("an empty journal", || {
        let journal = std::fs::read_to_string(public.site.path("state/dns-journal.json")).ok()?;
        (!journal.contains("values")).then_some(journal)
    });
    server.says("next attempt in");
    let said = server.stderr().join("\n");
    assert!(!said.contains("cannot be removed"), "{journal}: {said}");
}

#[test]
fn challenge_cname_into_another_zone_is_followed() {
    let test = "acme_e2e::dns::challenge_cname_into_another_zone_is_followed";
    if !bind::is_here(test)
        || !Pebble::is_here(test)
        || !unbound::is_here(test)
        || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2", "192.0.2.3"])
    {
        return;
    }
    let _root = root(&[
        ("com", &delegation("example.com", "192.0.2.2")),
        ("net", &delegation("acme.example.net", "192.0.2.3")),
    ]);
    // The domain's own servers accept no updates; the challenge is a CNAME into a zone on another primary. The target
    // exists only during a challenge.
    let hosted = "phones A 127.0.0.1\n_acme-challenge.phones CNAME phones.acme.example.net.";
    let hosted = zone_file("example.com", "192.0.2.2", hosted);
    let _hosted = BindConfig::new().primary_from("example.com", &hosted, "").start_at(at("192.0.2.2"));
    let policy = "grant provost. name phones.acme.example.net. TXT;";
    let ours = zone_file("acme.example.net", "192.0.2.3", "");
    let ours = BindConfig::new().key("provost.", "hmac-sha256").primary_from("acme.example.net", &ours, policy);
    let ours = ours.start_at(at("192.0.2.3"));
    // The CA and we ask the same caching resolver.
    let resolver = internet::resolver(&[]);
    let pebble = Pebble::start(Behavior::default(), resolver.address);
    let mut public = Public::new(pebble, ours.address, &ours.key_file("provost."));
    public.acme()["dns"] = json!({
        "primary": "ns1.acme.example.net", "tsig_key_file": ours.key_file("provost."),
        "resolvers": ["127.0.0.1"], "settle_s": 2,
    });
    let server = public.start();
    server.says("publishing 2 records at phones.acme.example.net");
    public.obtains();
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
    assert_eq!(ours.txt("phones.acme.example.net"), Vec::<String>::new());
    // The resolver has the values of the first order, or knows that the name is gone again.
    public.renew();
    public.renew();
    assert_eq!(public.pebble.logged("Added order"), 3);
}

#[test]
fn validation_waits_for_a_lagging_secondary() {
    let test = "acme_e2e::dns::validation_waits_for_a_lagging_secondary";
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
fn stale_secondary_is_named_and_spends_no_validation() {
    let test = "acme_e2e::dns::stale_secondary_is_named_and_spends_no_validation";
    let Some((primary, secondary, mut public)) = with_secondary(test) else { return };
    public.acme()["dns"]["propagation_timeout_s"] = json!(4);
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains(&format!("{} lacks 2 of 2 values, serial 1", secondary.address)), "{line}");
    assert!(!public.has_spent_validations());
    no_record(&primary);
    assert!(!server.stderr().join("\n").contains("telling the CA"));
    server.kill();
    // The operator repairs the secondary and raises the timeout.
    public.acme()["dns"]["propagation_timeout_s"] = json!(20);
    let server = public.start();
    server.says(&format!("{}: lacks 2 of 2 values yet", secondary.address));
    secondary.notify("example.com");
    public.obtains();
    no_record(&primary);
    assert_eq!(public.pebble.logged("Added order"), 1);
}

#[test]
fn dead_secondary_is_logged_and_skipped() {
    let test = "acme_e2e::dns::dead_secondary_is_logged_and_skipped";
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
fn dns_outage_keeps_serving_and_renewal_follows_recovery() {
    let test = "acme_e2e::dns::dns_outage_keeps_serving_and_renewal_follows_recovery";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    let config = primary();
    let bind = config.start();
    let pebble = Pebble::start(Behavior::default(), bind.address);
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
fn certificate_is_obtained_through_knot() {
    let test = "acme_e2e::dns::certificate_is_obtained_through_knot";
    if !knot::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    let acl = "acl:\n  - id: provost\n    key: provost\n    action: update\n    update-type: [TXT]\n    \
               update-owner: name\n    update-owner-match: equal\n    update-owner-name: [_acme-challenge.phones]\n\
               zone:\n  - domain: example.com\n    acl: [provost]\n";
    let knot = Knot::start("example.com", "provost", acl);
    let pebble = Pebble::start(Behavior::default(), knot.address);
    let public = Public::new(pebble, knot.address, &knot.settings().tsig_key_file);
    let server = public.start();
    public.obtains();
    public.renew();
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
    assert_eq!(bind::txt(knot.address, CHALLENGE), Vec::<String>::new());
}

#[test]
fn failed_validation_names_a_wrong_delegation() {
    let test = "acme_e2e::dns::failed_validation_names_a_wrong_delegation";
    if !bind::is_here(test)
        || !Pebble::is_here(test)
        || !unbound::is_here(test)
        || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2", "192.0.2.3"])
    {
        return;
    }
    let _root = root(&[("com", "example.com. NS old.example.com.\nold.example.com. A 192.0.2.3")]);
    let zone = zone_file("example.com", "192.0.2.2", "old A 192.0.2.3\n*.phones A 192.0.2.10");
    let ours = BindConfig::new().key("provost.", "hmac-sha256").primary_from("example.com", &zone, super::POLICY);
    let ours = ours.start_at(at("192.0.2.2"));
    // It no longer serves the zone: REFUSED.
    let _old = BindConfig::new().primary("example.net", "", "").start_at(at("192.0.2.3"));
    let resolver = internet::resolver(&[]);
    let pebble = Pebble::start(Behavior::default(), resolver.address);
    let mut public = Public::new(pebble, ours.address, &ours.key_file("provost."));
    public.acme()["dns"] = json!({
        "primary": "192.0.2.2", "tsig_key_file": ours.key_file("provost."), "resolvers": ["127.0.0.1"], "settle_s": 0,
    });
    let server = public.start();
    let line = server.says("no new certificate (ecdsa-p256)");
    assert!(line.contains("the CA's validation failed: "), "{line}");
    let causes = line.split_once("; likely cause: ").unwrap_or_else(|| panic!("no cause in {line}")).1;
    let delegation =
        "example.com: the parent zone delegates to old.example.com, which the zone's own NS records do not name";
    assert!(causes.contains(delegation), "{line}");
    assert!(causes.contains("old.example.com (192.0.2.3:53): passed over: it answers REFUSED"), "{line}");
    // `check --live` finds the same.
    let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_provost"));
    let checked = tool::run(check.args(["check", "--live", "--config"]).arg(public.site.write_config()));
    assert!(checked.stdout.contains(&format!("warning: dns: {delegation}")), "{checked:?}");
}
