//! What a resolver that a CA shares hears of us.

use provost::dns::{CaaRecords, DnsMethod, Responder};

use super::{CHALLENGE, ignore, open, quick, values};
use crate::harness::bind::{self, BindConfig, dig};
use crate::harness::internet::{at, delegation, root, through, zone_file};
use crate::harness::unbound;
use crate::harness::{eventually, internet, namespace};

#[tokio::test]
async fn no_resolver_is_asked_about_a_challenge() {
    let test = "dns::caches::no_resolver_is_asked_about_a_challenge";
    if !bind::is_here(test)
        || !unbound::is_here(test)
        || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2", "192.0.2.3"])
    {
        return;
    }
    let _root = root(&[
        ("com", &delegation("example.com", "192.0.2.2")),
        ("net", &delegation("acme.example.net", "192.0.2.3")),
    ]);
    // The domain's own servers take no updates; the challenge is a CNAME into a zone of ours. Its target exists only while a
    // challenge is published.
    let records = "*.phones A 192.0.2.10\n_acme-challenge.phones CNAME phones.acme.example.net.";
    let hosted = BindConfig::new().primary_from("example.com", &zone_file("example.com", "192.0.2.2", records), "");
    let _hosted = hosted.start_at(at("192.0.2.2"));
    let ours = zone_file("acme.example.net", "192.0.2.3", "");
    let ours = BindConfig::new().key("provost.", "hmac-sha256").primary_from(
        "acme.example.net",
        &ours,
        "grant provost. name phones.acme.example.net. TXT;",
    );
    let ours = ours.start_at(at("192.0.2.3"));
    let resolver = internet::resolver(&[]);
    let dns = open(&through(&resolver, &ours)).with_patience(quick());
    for round in ["one", "two"] {
        let found = dns.locate(CHALLENGE).await.unwrap();
        assert_eq!((found.name.as_str(), found.zone.as_str()), ("phones.acme.example.net", "acme.example.net"));
        let value = values(&[round]);
        dns.add(&found, &value).await.unwrap();
        assert_eq!(dns.wait_until_visible(&found, &value, &ignore).await, Ok(Vec::new()));
        // As the CA asks: through the same cache, which may still hold the value of a second ago.
        eventually("the value at the resolver", || {
            dig(resolver.address, &["+short", CHALLENGE, "TXT"]).contains(round).then_some(())
        });
        dns.remove(&found, &value).await.unwrap();
        dns.wait_until_gone(&found, &value, &ignore).await.unwrap();
    }
    dns.stands_alone("phones.example.com").await.unwrap_err();
    provost::dns::probe(&dns, CHALLENGE, &ignore, std::future::pending()).await.unwrap();
    let asked = resolver.asked();
    assert!(asked.iter().any(|name| name == "example.com"), "{asked:?}");
    // dig's questions are the test's own.
    let ours: Vec<&String> = asked.iter().filter(|name| *name != CHALLENGE).collect();
    let is_secret = |name: &&&String| {
        name.contains("_acme-challenge") || name.starts_with("provost-") || name.as_str() == "phones.acme.example.net"
    };
    assert_eq!(ours.iter().filter(is_secret).count(), 0, "{ours:?}");
}

#[tokio::test]
async fn signed_zone_is_not_made_to_deny_a_challenge() {
    let test = "dns::caches::signed_zone_is_not_made_to_deny_a_challenge";
    if !bind::is_here(test) || !unbound::is_here(test) || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2"]) {
        return;
    }
    let _root = root(&[("com", &delegation("example.com", "192.0.2.2"))]);
    // No wildcard stands between these names and their challenges: NSEC records about them deny the challenges' names.
    let records = "phones A 192.0.2.10\nucs-3.phones A 192.0.2.10\nzz.phones A 192.0.2.10\nzzz.phones A 192.0.2.10";
    let zone = zone_file("example.com", "192.0.2.2", records);
    let primary = BindConfig::new().key("provost.", "hmac-sha256").signed(
        "example.com",
        &zone,
        "grant provost. subdomain example.com. TXT;",
    );
    let primary = primary.start_at(at("192.0.2.2"));
    let resolver = internet::resolver(&[primary.trust_anchor("example.com")]);
    let dns = open(&through(&resolver, &primary)).with_patience(quick());
    for name in ["phones.example.com", "ucs-3.phones.example.com"] {
        let challenge = format!("_acme-challenge.{name}");
        dns.stands_alone(name).await.unwrap();
        let found = dns.locate(&challenge).await.unwrap();
        assert_eq!((found.name.as_str(), found.zone.as_str()), (challenge.as_str(), "example.com"));
        let value = values(&["value"]);
        dns.add(&found, &value).await.unwrap();
        dns.wait_until_visible(&found, &value, &ignore).await.unwrap();
        let answer = dig(resolver.address, &["+dnssec", &challenge, "TXT"]);
        assert!(answer.contains("\"value\"") && answer.contains(" ad;"), "{answer}");
    }
    // CAA records are looked up before and between challenges. There are none, at any of these names.
    let update = through(&resolver, &primary);
    let resolvers = update.resolvers.clone();
    for update in [Some(&update), None] {
        let caa = CaaRecords::find(&resolvers, update, "zz.phones.example.com").await.unwrap();
        assert!(caa.bound_to(None).is_empty());
    }
    let zz = "_acme-challenge.zz.phones.example.com";
    let found = dns.locate(zz).await.unwrap();
    dns.add(&found, &values(&["value"])).await.unwrap();
    assert!(dig(resolver.address, &[zz, "TXT"]).contains("\"value\""), "{}", resolver.log());
    dns.remove(&found, &values(&["value"])).await.unwrap();
    let asked = resolver.asked();
    let is_ours = |name: &&String| name.ends_with("phones.example.com") && !name.starts_with("_acme-challenge.");
    assert_eq!(asked.iter().find(is_ours), None, "{asked:?}");
    // The resolver does conclude so, once it is asked.
    let zz = "_acme-challenge.zzz.phones.example.com";
    assert!(dig(resolver.address, &["zzz.phones.example.com", "AAAA"]).contains("ANSWER: 0"));
    let found = dns.locate(zz).await.unwrap();
    dns.add(&found, &values(&["value"])).await.unwrap();
    let denied = dig(resolver.address, &[zz, "TXT"]);
    assert!(denied.contains("status: NXDOMAIN"), "{denied}");
}

#[tokio::test]
async fn responder_asks_no_resolver_about_a_missing_delegation() {
    let test = "dns::caches::responder_asks_no_resolver_about_a_missing_delegation";
    if !bind::is_here(test)
        || !unbound::is_here(test)
        || !namespace::is_inside(test, &["192.0.2.1", "192.0.2.2", "192.0.2.3"])
    {
        return;
    }
    let _root =
        root(&[("com", &delegation("example.com", "192.0.2.2")), ("net", &delegation("example.net", "192.0.2.3"))]);
    // The registrar's zones are signed, and the operator has not published the records yet.
    let hosted = |zone: &str, address: &str, records: &str| {
        let text = zone_file(zone, address, records);
        let config = BindConfig::new().key("registrar.", "hmac-sha256");
        config.signed(zone, &text, "grant registrar. zonesub ANY;").start_at(at(address))
    };
    let com = hosted(
        "example.com",
        "192.0.2.2",
        "*.phones A 192.0.2.10\nots.phones A 192.0.2.10\n*.other CNAME host\nhost A 192.0.2.10",
    );
    let net = hosted("example.net", "192.0.2.3", "aaa TXT x\nzzz TXT x");
    let resolver = internet::resolver(&[com.trust_anchor("example.com"), net.trust_anchor("example.net")]);
    let folder = tempfile::tempdir().unwrap();
    let settings: DnsMethod = serde_json::from_value(serde_json::json!({
        "responder": { "listen": ["192.0.2.10:53"] }, "resolvers": [resolver.address.ip()],
    }))
    .unwrap();
    let settings = settings.responder().unwrap();
    let responder = Responder::open(settings, "phones.example.com", folder.path()).unwrap();
    let exact = "_acme-challenge.ots.phones.example.com";
    for challenge in [CHALLENGE, exact] {
        let missing = responder.locate(challenge).await.unwrap_err().to_string();
        let text = format!("the name servers of example.com do not lead {challenge} to the DNS responder");
        assert!(missing.starts_with(&text), "{missing}");
    }
    // The wildcard's CNAME record does not answer for a name that is delegated.
    let other = tempfile::tempdir().unwrap();
    let other = Responder::open(settings, "other.example.com", other.path()).unwrap();
    let missing = other.locate("_acme-challenge.other.example.com").await.unwrap_err().to_string();
    assert!(
        missing.ends_with(
            "(publish in the zone example.com: _acme-challenge.other.example.com. NS ns.other.example.com.)"
        ),
        "{missing}"
    );
    assert!(CaaRecords::find(&settings.resolvers, None, "ots.phones.example.com").await.is_ok());
    // The operator publishes them now, one as a CNAME record into a zone elsewhere.
    com.nsupdate("registrar.", &format!("update add {CHALLENGE} 60 CNAME phones.mmm.example.net."));
    com.nsupdate("registrar.", &format!("update add {exact} 60 CNAME ots.mmm.example.net."));
    let missing = responder.locate(CHALLENGE).await.unwrap_err().to_string();
    assert!(missing.contains("the name servers of example.net do not lead phones.mmm.example.net"), "{missing}");
    net.nsupdate("registrar.", "update add mmm.example.net 60 NS ns.phones.example.com.");
    let found = responder.locate(CHALLENGE).await.unwrap();
    assert_eq!((found.name.as_str(), found.zone.as_str()), ("phones.mmm.example.net", "mmm.example.net"));
    assert_eq!(responder.locate(exact).await.unwrap().name, "ots.mmm.example.net");
    let asked = resolver.asked();
    let known = ["example.com", "example.net", "com", "net", ""];
    let is_ours = |name: &&String| !known.contains(&name.as_str()) && !name.starts_with("ns");
    assert_eq!(asked.iter().find(is_ours), None, "{asked:?}");
    for (name, target) in [(CHALLENGE, "phones.mmm.example.net."), (exact, "ots.mmm.example.net.")] {
        let answer = dig(resolver.address, &[name, "CNAME"]);
        assert!(answer.contains(target), "the resolver denies {name}: {answer}");
    }
}
