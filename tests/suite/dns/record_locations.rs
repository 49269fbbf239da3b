//! Where records go: CNAMEs and zones.

use provost::dns::{CaaRecords, DnsError, RecordLocation};

use super::{CHALLENGE, example, ignore, open, place, quick, values};
use crate::harness::bind::{self, BindConfig, dead_address};

fn at(name: &str, zone: &str, via: &[&str]) -> RecordLocation {
    RecordLocation { name: name.to_owned(), zone: zone.to_owned(), via: values(via) }
}

#[tokio::test]
async fn zone_is_found_for_names_at_any_depth() {
    if !bind::is_here("dns::record_locations::zone_is_found_for_names_at_any_depth") {
        return;
    }
    let challenge =
        "$TTL 300\n@ SOA ns1.example.com. hostmaster.example.com. 1 3600 600 86400 60\n@ NS ns1.example.com.\n";
    let server = BindConfig::new()
        .key("provost.", "hmac-sha256")
        .primary("example.com", "phones A 127.0.0.1\nown NS ns1", "")
        .primary("own.example.com", "", "")
        .primary_from("_acme-challenge.own2.example.com", challenge, "")
        .start();
    let dns = open(&server.settings("provost"));
    for (name, zone) in [
        ("_acme-challenge.example.com", "example.com"),
        ("_acme-challenge.phones.example.com", "example.com"),
        ("_acme-challenge.no.such.name.example.com", "example.com"),
        ("_acme-challenge.own.example.com", "own.example.com"),
        ("_acme-challenge.own2.example.com", "_acme-challenge.own2.example.com"),
    ] {
        assert_eq!(dns.locate(name).await.unwrap(), at(name, zone, &[]));
    }
    assert_eq!(dns.locate("_ACME-challenge.Phones.Example.COM.").await.unwrap(), place());
}

#[tokio::test]
async fn cname_of_a_wildcard_record_is_not_followed() {
    if !bind::is_here("dns::record_locations::cname_of_a_wildcard_record_is_not_followed") {
        return;
    }
    let records = "*.phones CNAME host.elsewhere.example.\n\
                   explicit.phones CNAME other.elsewhere.example.";
    let server = BindConfig::new()
        .key("provost.", "hmac-sha256")
        .primary("example.com", records, "grant provost. zonesub TXT;")
        .primary("elsewhere.example", "host A 127.0.0.1", "")
        .start();
    let dns = open(&server.settings("provost")).with_patience(quick());
    let found = dns.locate(CHALLENGE).await.unwrap();
    assert_eq!(found, place(), "the record itself makes the name exist");
    let one = values(&["one"]);
    dns.add(&found, &one).await.unwrap();
    dns.wait_until_visible(&found, &one, &ignore).await.unwrap();
    assert_eq!(server.txt(CHALLENGE), ["one"]);
    // An explicit CNAME under the same wildcard is followed.
    let found = dns.locate("explicit.phones.example.com").await.unwrap();
    assert_eq!(found, at("other.elsewhere.example", "elsewhere.example", &["explicit.phones.example.com"]));
}

#[tokio::test]
async fn dname_above_a_challenge_is_followed() {
    if !bind::is_here("dns::record_locations::dname_above_a_challenge_is_followed") {
        return;
    }
    let records = "phones DNAME phones.elsewhere.example.";
    let server = BindConfig::new()
        .key("provost.", "hmac-sha256")
        .primary("example.com", records, "")
        .primary("elsewhere.example", "", "grant provost. zonesub TXT;")
        .start();
    let dns = open(&server.settings("provost")).with_patience(quick());
    let found = dns.locate(CHALLENGE).await.unwrap();
    assert_eq!(found, at("_acme-challenge.phones.elsewhere.example", "elsewhere.example", &[CHALLENGE]));
    let one = values(&["one"]);
    dns.add(&found, &one).await.unwrap();
    assert_eq!(dns.wait_until_visible(&found, &one, &ignore).await, Ok(Vec::new()));
}

#[tokio::test]
async fn cname_chains_over_eight_hops_and_loops_are_errors() {
    if !bind::is_here("dns::record_locations::cname_chains_over_eight_hops_and_loops_are_errors") {
        return;
    }
    let hops: Vec<String> = (0..9).map(|hop| format!("hop{hop} CNAME hop{}", hop + 1)).collect();
    let records = format!("ring-a CNAME ring-b\nring-b CNAME ring-a\n{}", hops.join("\n"));
    let server = BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", &records, "").start();
    let dns = open(&server.settings("provost"));
    let found = dns.locate("hop1.example.com").await.unwrap();
    assert_eq!((found.name.as_str(), found.via.len()), ("hop9.example.com", 8));
    for (start, seen) in [("hop0.example.com", "hop8.example.com → hop9.example.com"), ("ring-a.example.com", "ring-b")]
    {
        let error = dns.locate(start).await.unwrap_err();
        assert!(matches!(error, DnsError::CnameChain { .. }), "{error}");
        assert!(error.needs_human() && error.to_string().contains(seen), "{error}");
    }
}

#[tokio::test]
async fn configured_zone_is_used_and_must_contain_the_name() {
    if !bind::is_here("dns::record_locations::configured_zone_is_used_and_must_contain_the_name") {
        return;
    }
    let server = example();
    let mut settings = server.settings("provost.");
    settings.zone = Some("phones.example.com".to_owned());
    assert_eq!(open(&settings).locate(CHALLENGE).await.unwrap(), at(CHALLENGE, "phones.example.com", &[]));
    settings.zone = Some("example.net".to_owned());
    let error = open(&settings).locate(CHALLENGE).await.unwrap_err();
    assert!(error.needs_human(), "{error}");
    assert!(error.to_string().contains("is not in the zone example.net; correct \"dns\".\"zone\""), "{error}");
}

#[tokio::test]
async fn nonexistent_name_has_no_zone() {
    if !bind::is_here("dns::record_locations::nonexistent_name_has_no_zone") {
        return;
    }
    // A root zone of the test: all names outside of it do not exist.
    let root = "$TTL 300\n@ SOA ns.test. host.test. 1 3600 600 86400 60\n@ NS ns.test.\nns.test. A 127.0.0.1\n";
    let server = BindConfig::new().key("provost.", "hmac-sha256").primary_from(".", root, "").start();
    let error = open(&server.settings("provost")).locate(CHALLENGE).await.unwrap_err();
    assert_eq!(error, DnsError::NoZone { name: CHALLENGE.to_owned() });
    assert!(error.needs_human());
}

#[tokio::test]
async fn dead_or_refusing_resolver_is_skipped() {
    if !bind::is_here("dns::record_locations::dead_or_refusing_resolver_is_skipped") {
        return;
    }
    let server = example();
    let other = BindConfig::new().primary("example.net", "", "").start();
    let mut settings = server.settings("provost.");
    let (dead, refuses) = (dead_address(), other.address.to_string());
    settings.authorities = vec![];
    settings.resolvers = vec![dead.to_string(), refuses.clone(), server.address.to_string()];
    assert_eq!(open(&settings).locate(CHALLENGE).await.unwrap(), place());
    settings.resolvers.pop();
    // The primary would know.
    settings.primary = dead.to_string();
    let error = open(&settings).locate(CHALLENGE).await.unwrap_err();
    assert!(!error.needs_human(), "{error}");
    assert!(error.to_string().contains(&format!("{dead}: it refuses the connection")), "{error}");
    assert!(error.to_string().contains(&format!("{refuses}: it answers REFUSED")), "{error}");
}

#[tokio::test]
async fn ring_of_aliases_above_caa_records_is_named() {
    if !bind::is_here("dns::record_locations::ring_of_aliases_above_caa_records_is_named") {
        return;
    }
    let chain = |length: usize| {
        (0..length).map(|at| format!("c{length}-{at} CNAME c{length}-{}\n", at + 1)).collect::<String>()
            + &format!("c{length}-{length} CAA 0 issue \"ca.example\"\n")
    };
    let rings = "one CNAME one\ntwo CNAME other\nother CNAME two\nlead CNAME two\n";
    let records = format!("{rings}{}{}", chain(7), chain(9));
    let server = BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", &records, "").start();
    let settings = server.settings("provost.");
    let find =
        async |name: &str| CaaRecords::find(&settings.resolvers, Some(&settings), &format!("{name}.example.com")).await;
    for (name, ring) in [
        ("one", "one.example.com → one.example.com"),
        ("two", "two.example.com → other.example.com → two.example.com"),
        ("lead", "lead.example.com → two.example.com → other.example.com → two.example.com"),
        ("c9-0", "c9-0.example.com → c9-1.example.com"),
    ] {
        let error = find(name).await.unwrap_err();
        assert!(matches!(&error, DnsError::CnameChain { chain } if chain.len() <= 10), "{error}");
        let start = format!("the CNAME records of {name}.example.com lead nowhere: {ring}");
        assert!(error.to_string().starts_with(&start), "{error}");
    }
    assert!(find("c7-0").await.is_ok());
}
