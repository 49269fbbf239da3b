//! Refusals whose cause cannot be seen from here, made with real servers: the message names the cause among the likely
//! ones.

use provost::dns::{DnsError, DnsSettings, PropagationTimeouts, Refusal};

use super::refusals::{refusal, refused, says, with_other_key};
use super::{CHALLENGE, POLICY, example, example_config, open, place, quick, values};
use crate::harness::bind::{self, BindConfig};
use crate::harness::eventually;
use crate::harness::pdns::{self, PowerDns};

#[tokio::test]
async fn frozen_zone_is_among_the_causes() {
    if !bind::is_here("dns::refusal_causes::frozen_zone_is_among_the_causes") {
        return;
    }
    let primary = example();
    let dns = open(&primary.settings("provost."));
    primary.rndc(&["freeze", "example.com"]);
    assert!(primary.rndc(&["zonestatus", "example.com"]).contains("frozen: yes"));
    let error = refused(&dns, &place()).await;
    says(&error, &["REFUSED, signed with the key provost.", "`rndc zonestatus example.com` shows \"frozen: yes\""]);
    says(&error, &[POLICY, "`rndc thaw example.com`"]);
    assert!(error.needs_human());
    primary.rndc(&["thaw", "example.com"]);
    eventually("the zone to thaw", || {
        primary.rndc(&["zonestatus", "example.com"]).contains("frozen: no").then_some(())
    });
    dns.add(&place(), &values(&["one"])).await.unwrap();
}

#[tokio::test]
async fn record_limit_is_among_the_causes() {
    if !bind::is_here("dns::refusal_causes::record_limit_is_among_the_causes") {
        return;
    }
    // BIND's limit is 100 records of a type; older versions have none.
    let stale: String = (0..100).map(|number| format!("_acme-challenge.phones TXT \"stale {number}\"\n")).collect();
    let config = BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", &stale, POLICY);
    let primary = config.start();
    let dns = open(&primary.settings("provost."));
    match dns.add(&place(), &values(&["one"])).await {
        Ok(()) => crate::harness::not_run(
            "dns::refusal_causes::record_limit_is_among_the_causes",
            "this BIND has no limit of records per type",
        ),
        Err(error) => {
            eventually("the reason in BIND's log", || primary.log().contains("too many records").then_some(()));
            let server = format!("@127.0.0.1 -p {}", primary.address.port());
            says(
                &error,
                &["SERVFAIL", "too many TXT records", &format!("`dig +short TXT {CHALLENGE} {server} | wc -l`")],
            );
            says(&error, &["permission denied", "journal out of sync"]);
        }
    }
}

#[tokio::test]
async fn journal_out_of_sync_is_among_the_causes() {
    if !bind::is_here("dns::refusal_causes::journal_out_of_sync_is_among_the_causes") {
        return;
    }
    let mut primary = example();
    let dns = open(&primary.settings("provost."));
    dns.add(&place(), &values(&["one"])).await.unwrap();
    // An operator edited the zone's file, without `rndc freeze`.
    primary.restart(|folder| {
        let file = folder.join("example.com.zone");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("hostmaster.example.com. 1 ", "hostmaster.example.com. 77 ")).unwrap();
    });
    eventually("the reason in BIND's log", || primary.log().contains("journal out of sync").then_some(()));
    let error = refused(&dns, &place()).await;
    says(&error, &["SERVFAIL", "`rndc zonestatus example.com`", "journal out of sync"]);
    assert!(!error.needs_human());
    // A query is answered by SERVFAIL, too.
    let error = dns.locate(CHALLENGE).await.unwrap_err();
    says(&error, &["likely causes", "journal out of sync", "DNSSEC"]);
}

#[tokio::test]
async fn views_are_among_the_causes_of_missing_records() {
    if !bind::is_here("dns::refusal_causes::views_are_among_the_causes_of_missing_records") {
        return;
    }
    let primary = example_config().in_views("provost.").start();
    let settings = primary.settings("provost.");
    let timeouts = PropagationTimeouts { for_lagging: std::time::Duration::from_secs(2), ..quick() };
    let dns = open(&settings).with_patience(timeouts);
    dns.add(&place(), &values(&["one"])).await.unwrap();
    let error = dns.wait_until_visible(&place(), &values(&["one"]), &super::ignore).await.unwrap_err();
    assert!(matches!(error, DnsError::NotVisible { .. }), "{error}");
    says(&error, &["the primary has views", "\"dns\".\"authorities\"", &format!("`dig TXT {CHALLENGE} @PRIMARY`")]);
    says(&error, &["NOTIFY", "propagation_timeout_s"]);
}

#[tokio::test]
async fn powerdns_takes_updates_and_its_one_refusal_has_its_causes() {
    if !pdns::is_here("dns::refusal_causes::powerdns_takes_updates_and_its_one_refusal_has_its_causes") {
        return;
    }
    let server = PowerDns::start("example.com", "provost");
    let settings = bind::settings(server.address, &server.made_key());
    let dns = open(&settings);
    dns.add(&place(), &values(&["one", "two"])).await.unwrap();
    dns.wait_until_visible(&place(), &values(&["one", "two"]), &super::ignore).await.unwrap();
    dns.remove(&place(), &values(&["one", "two"])).await.unwrap();

    let file = settings.tsig_key_file.with_file_name("wrong.key");
    let mut seen = 0;
    for (name, algorithm) in [("provost.", "hmac-sha256"), ("unknown.", "hmac-sha256"), ("provost.", "hmac-sha512")] {
        let error = refused(&with_other_key(&settings, &file, name, algorithm), &place()).await;
        assert!(matches!(refusal(&error), Refusal::Unsigned(_)), "{error}");
        let key = format!("`pdnsutil list-tsig-keys` must show {name} with {algorithm}");
        says(&error, &["unknown key, a wrong secret and a wrong algorithm", &key]);
        seen += 1;
    }
    assert_eq!(seen, 3);

    server.pdnsutil(&["set-meta", "example.com", "TSIG-ALLOW-DNSUPDATE", "other"]);
    // PowerDNS caches metadata.
    let error = eventually_refused(&settings).await;
    says(&error, &["REFUSED, signed", "`pdnsutil set-meta example.com TSIG-ALLOW-DNSUPDATE provost`"]);
}

/// Updates until one is refused.
async fn eventually_refused(settings: &DnsSettings) -> DnsError {
    let dns = open(settings);
    let watch = crate::harness::Stopwatch::start();
    loop {
        match dns.add(&place(), &values(&["one"])).await {
            Err(error) => return error,
            Ok(()) => assert!(!watch.is_past(crate::harness::TIMEOUT), "never refused"),
        }
    }
}
