//! What a resolver that a CA shares hears of us.

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
    let records = "phones A 192.0.2.10\nucs-3.phones A 192.0.2.10\nzz.phones A 192.0.2.10";
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
    // The resolver does conclude so, once it is asked.
    assert!(dig(resolver.address, &["zz.phones.example.com", "AAAA"]).contains("ANSWER: 0"));
    let found = dns.locate("_acme-challenge.zz.phones.example.com").await.unwrap();
    dns.add(&found, &values(&["value"])).await.unwrap();
    let denied = dig(resolver.address, &["_acme-challenge.zz.phones.example.com", "TXT"]);
    assert!(denied.contains("status: NXDOMAIN"), "{denied}");
}
