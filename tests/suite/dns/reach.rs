//! What this machine reaches, and what the parent zone says about it.

use std::net::SocketAddrV6;
use std::sync::Mutex;
use std::time::Duration;

use provost::dns::{DnsError, DnsSettings, PropagationTimeouts};

use super::{CHALLENGE, FOREIGN_VALUE, POLICY, example, ignore, open, place, quick, values};
use crate::harness::bind::{self, BindConfig};
use crate::harness::internet::{self, at, delegation, root, through, zone_file};
use crate::harness::namespace;
use crate::harness::relay::{Relay, Tcp, passed};
use crate::harness::unbound;

/// The usual zone, on a name server at `address`.
fn primary(address: &str, records: &str) -> BindConfig {
    let zone = zone_file("example.com", address, &format!("*.phones A 192.0.2.10\n{records}"));
    BindConfig::new().key("provost.", "hmac-sha256").primary_from("example.com", &zone, POLICY)
}

#[tokio::test]
async fn primary_is_asked_when_resolvers_find_no_zone() {
    let test = "dns::reach::primary_is_asked_when_resolvers_find_no_zone";
    if !bind::is_here(test) || !namespace::is_inside(test, &["192.0.2.2"]) {
        return;
    }
    let primary = primary("192.0.2.2", "").start_at(at("192.0.2.2"));
    // It knows that nothing of it exists.
    let knows_nothing =
        "$TTL 300\n@ SOA ns.test. host.test. 1 3600 600 86400 60\n@ NS ns.test.\nns.test. A 127.0.0.1\n";
    let knows_nothing = BindConfig::new().primary_from(".", knows_nothing, "").start();
    let refuses = BindConfig::new().primary("example.net", "", "").start();
    for resolver in [knows_nothing.address, refuses.address, bind::dead_address().address] {
        let settings = primary.settings("provost.");
        let settings = DnsSettings { resolvers: vec![resolver.to_string()], authorities: Vec::new(), ..settings };
        let dns = open(&settings).with_patience(quick());
        let one = values(&["one"]);
        assert_eq!(dns.locate(CHALLENGE).await.unwrap(), place());
        dns.add(&place(), &one).await.unwrap();
        assert_eq!(dns.wait_until_visible(&place(), &one, &ignore).await, Ok(Vec::new()));
        dns.remove(&place(), &one).await.unwrap();
    }
}

#[tokio::test]
async fn server_without_a_route_is_named_and_costs_no_time() {
    let test = "dns::reach::server_without_a_route_is_named_and_costs_no_time";
    if !bind::is_here(test) || !unbound::is_here(test) || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2"]) {
        return;
    }
    let _root = root(&[(
        "com",
        "example.com. NS ns1.example.com.\nexample.com. NS v4.example.com.\nexample.com. NS v6.example.com.\n\
         ns1.example.com. A 192.0.2.2\nv4.example.com. A 203.0.113.53\nv6.example.com. AAAA 2001:db8::53",
    )]);
    let records = "@ NS v4\n@ NS v6\nv4 A 203.0.113.53\nv6 AAAA 2001:db8::53";
    let primary = primary("192.0.2.2", records).start_at(at("192.0.2.2"));
    let resolver = internet::resolver(&[]);
    // A wait for a silent server would outlast the test.
    let timeouts = PropagationTimeouts {
        for_silent: Duration::from_secs(3_600),
        for_lagging: Duration::from_secs(7_200),
        ..quick()
    };
    let dns = open(&through(&resolver, &primary)).with_patience(timeouts);
    let one = values(&["one"]);
    assert_eq!(dns.locate(CHALLENGE).await.unwrap(), place());
    dns.add(&place(), &one).await.unwrap();
    let said = Mutex::new(Vec::new());
    let passed_over = dns.wait_until_visible(&place(), &one, &|line| said.lock().unwrap().push(line)).await.unwrap();
    let no_route = [
        "v4.example.com (203.0.113.53:53): passed over: there is no route to it from here (IPv4)",
        "v6.example.com ([2001:db8::53]:53): passed over: there is no route to it from here (IPv6)",
    ];
    assert_eq!(passed_over, no_route);
    let said = said.into_inner().unwrap();
    assert!(no_route.iter().all(|line| said.contains(&(*line).to_owned())), "{said:?}");
}

#[tokio::test]
async fn silent_zone_below_the_domain_is_named() {
    let test = "dns::reach::silent_zone_below_the_domain_is_named";
    if !bind::is_here(test)
        || !unbound::is_here(test)
        || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2", "192.0.2.9"])
    {
        return;
    }
    let _root = root(&[("com", &delegation("example.com", "192.0.2.2"))]);
    // The challenge's name is delegated to a server that does not run.
    let records = "_acme-challenge.phones NS ns.dead\nns.dead A 192.0.2.9\n*.phones A 192.0.2.10";
    let hosted = BindConfig::new().key("provost.", "hmac-sha256");
    let hosted = hosted.primary_from("example.com", &zone_file("example.com", "192.0.2.2", records), "");
    let hosted = hosted.start_at(at("192.0.2.2"));
    let resolver = internet::resolver(&[]);
    let dns = open(&through(&resolver, &hosted)).with_patience(quick());
    let error = dns.locate(CHALLENGE).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("no name server of {CHALLENGE} answers: ns.dead.example.com (192.0.2.9:53)")),
        "{error}"
    );
}

#[tokio::test]
async fn link_local_resolver_is_asked_on_its_interface() {
    let test = "dns::reach::link_local_resolver_is_asked_on_its_interface";
    if !bind::is_here(test) || !namespace::is_inside(test, &["fe80::53/64"]) {
        return;
    }
    let primary = primary("127.0.0.1", "").start_at(at("127.0.0.1"));
    // Linux numbers the loopback first.
    let address = SocketAddrV6::new("fe80::53".parse().unwrap(), 53, 0, 1).into();
    let relay = Relay::start_at(address, passed(&[primary.address]), Tcp::Closed);
    let folder = tempfile::tempdir().unwrap();
    namespace::resolve_through("fe80::53%lo", folder.path());
    let mut seen = 0;
    for resolvers in [vec![], vec!["fe80::53%lo".to_owned()], vec!["[fe80::53%lo]:53".to_owned()]] {
        let settings = primary.settings("provost.");
        let settings = DnsSettings { resolvers, authorities: Vec::new(), ..settings };
        let dns = open(&settings).with_patience(quick());
        let one = values(&["one"]);
        assert_eq!(dns.locate(CHALLENGE).await.unwrap(), place());
        dns.add(&place(), &one).await.unwrap();
        assert_eq!(dns.wait_until_visible(&place(), &one, &ignore).await, Ok(Vec::new()));
        dns.remove(&place(), &one).await.unwrap();
        assert!(relay.datagrams() > seen);
        seen = relay.datagrams();
    }
}

#[tokio::test]
async fn one_of_several_backends_that_lags_is_noticed() {
    if !bind::is_here("dns::reach::one_of_several_backends_that_lags_is_noticed") {
        return;
    }
    let primary = example();
    let lagging = BindConfig::new().secondary("example.com", &primary).start();
    assert_eq!(lagging.txt(CHALLENGE), [FOREIGN_VALUE]);
    let backends = [primary.address, lagging.address];
    let balancer = Relay::start(passed(&backends), Tcp::Passed(backends.to_vec()));
    let settings = DnsSettings { authorities: vec![balancer.address.to_string()], ..primary.settings("provost.") };
    let one = values(&["one"]);
    let dns = open(&settings).with_patience(PropagationTimeouts { for_lagging: Duration::from_secs(3), ..quick() });
    dns.add(&place(), &one).await.unwrap();
    let error = dns.wait_until_visible(&place(), &one, &ignore).await.unwrap_err();
    let named =
        format!("{} lacks 1 of 1 values in some answers, so several servers share the address", balancer.address);
    assert!(error.to_string().contains(&named), "{error}");
    // Once it has caught up, all looks agree.
    let dns = open(&settings).with_patience(quick());
    let say = |line: String| {
        if line.ends_with("lacks 1 of 1 values yet") {
            lagging.notify("example.com");
        }
    };
    assert_eq!(dns.wait_until_visible(&place(), &one, &say).await, Ok(Vec::new()));
    assert_eq!(lagging.txt(CHALLENGE), ["one", FOREIGN_VALUE]);
}

#[tokio::test]
async fn delegation_to_an_old_server_is_named() {
    let test = "dns::reach::delegation_to_an_old_server_is_named";
    if !bind::is_here(test)
        || !unbound::is_here(test)
        || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2", "192.0.2.3"])
    {
        return;
    }
    let old_delegation = "example.com. NS old.example.com.\nold.example.com. A 192.0.2.3";
    let _root = root(&[("com", old_delegation)]);
    let primary = primary("192.0.2.2", "old A 192.0.2.3").start_at(at("192.0.2.2"));
    let old_zone = zone_file("example.com", "192.0.2.2", "old A 192.0.2.3\n*.phones A 192.0.2.9");
    let old = BindConfig::new().primary_from("example.com", &old_zone, "").start_at(at("192.0.2.3"));
    let resolver = internet::resolver(&[]);
    let one = values(&["one"]);
    let dns = open(&through(&resolver, &primary))
        .with_patience(PropagationTimeouts { for_lagging: Duration::from_secs(3), ..quick() });
    dns.add(&place(), &one).await.unwrap();
    let mismatch =
        "example.com: the parent zone delegates to old.example.com, which the zone's own NS records do not name";
    // It answers, without the values: a CA would ask it.
    let error = dns.wait_until_visible(&place(), &one, &ignore).await.unwrap_err();
    assert!(matches!(error, DnsError::NotVisible { .. }), "{error}");
    assert!(error.to_string().contains("old.example.com (192.0.2.3:53) lacks 1 of 1 values, serial 1"), "{error}");
    assert!(error.to_string().contains(mismatch), "{error}");
    // It does not answer: a CA asks the others.
    old.kill();
    let remarks = dns.wait_until_visible(&place(), &one, &ignore).await.unwrap();
    assert!(
        remarks.iter().any(|remark| remark.starts_with("old.example.com (192.0.2.3:53): does not answer")),
        "{remarks:?}"
    );
    assert!(remarks.iter().any(|remark| remark.starts_with(mismatch)), "{remarks:?}");
}

#[tokio::test]
async fn delegation_is_compared_beside_configured_authorities() {
    let test = "dns::reach::delegation_is_compared_beside_configured_authorities";
    if !bind::is_here(test) || !unbound::is_here(test) || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2"]) {
        return;
    }
    let delegation = "example.com. NS old.example.com.\nold.example.com. A 192.0.2.3";
    let _root = root(&[("com", delegation)]);
    let primary = primary("192.0.2.2", "").start_at(at("192.0.2.2"));
    let resolver = internet::resolver(&[]);
    let settings = DnsSettings { authorities: vec!["192.0.2.2".to_owned()], ..through(&resolver, &primary) };
    let one = values(&["one"]);
    let dns = open(&settings).with_patience(quick());
    dns.add(&place(), &one).await.unwrap();
    let remarks = dns.wait_until_visible(&place(), &one, &ignore).await.unwrap();
    let [mismatch] = &remarks[..] else { panic!("{remarks:?}") };
    assert!(mismatch.starts_with("example.com: the parent zone delegates to old.example.com, which"), "{mismatch}");
    assert!(mismatch.contains("the zone's own NS records name ns1.example.com"), "{mismatch}");
    // Where the delegation cannot be found out, only the log says so.
    let blind = DnsSettings { resolvers: vec!["127.0.0.1:1".to_owned()], ..settings };
    let said = Mutex::new(Vec::new());
    let dns = open(&blind).with_patience(quick());
    let remarks = dns.wait_until_visible(&place(), &one, &|line| said.lock().unwrap().push(line)).await;
    assert_eq!(remarks, Ok(Vec::new()));
    let start = "example.com: the parent's delegation was not compared with the zone's NS records: no resolver says";
    let said = said.into_inner().unwrap();
    assert_eq!(said.iter().filter(|line| line.starts_with(start)).count(), 1, "{said:?}");
}

#[tokio::test]
async fn delegation_that_matches_is_not_mentioned() {
    let test = "dns::reach::delegation_that_matches_is_not_mentioned";
    if !bind::is_here(test) || !unbound::is_here(test) || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2"]) {
        return;
    }
    let _root = root(&[("com", &delegation("example.com", "192.0.2.2"))]);
    let primary = primary("192.0.2.2", "").start_at(at("192.0.2.2"));
    let resolver = internet::resolver(&[]);
    let dns = open(&through(&resolver, &primary)).with_patience(quick());
    let one = values(&["one"]);
    dns.add(&place(), &one).await.unwrap();
    assert_eq!(dns.wait_until_visible(&place(), &one, &ignore).await, Ok(Vec::new()));
}
