//! Refused updates and their error messages.

use std::time::{Duration, SystemTime};

use provost::dns::{Dns, DnsError, DnsSettings, RecordLocation, Refusal};

use super::{CHALLENGE, FOREIGN_VALUE, POLICY, example, open, place, values};
use crate::harness::bind::{self, BindConfig, dead_address};
use crate::harness::knot::{self, Knot};

pub(super) async fn refused(dns: &Dns, place: &RecordLocation) -> DnsError {
    let one = values(&["one"]);
    let added = dns.add(place, &one).await.unwrap_err();
    let removed = dns.remove(place, &one).await.unwrap_err();
    assert_eq!(added.to_string().split(" s apart").next(), removed.to_string().split(" s apart").next());
    added
}

#[track_caller]
pub(super) fn says(error: &DnsError, parts: &[&str]) {
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
}

pub(super) fn refusal(error: &DnsError) -> Refusal {
    let DnsError::Refused(refused) = error else { panic!("{error}") };
    refused.refusal
}

/// Settings with a key that differs from the server's.
pub(super) fn with_other_key(settings: &DnsSettings, file: &std::path::Path, name: &str, algorithm: &str) -> Dns {
    let other = BindConfig::new().key(name, algorithm).primary("example.net", "", "").start();
    std::fs::copy(other.key_file(name), file).unwrap();
    open(&DnsSettings { tsig_key_file: file.to_owned(), ..settings.clone() })
}

#[tokio::test]
async fn badsig_and_badkey_are_reported_differently() {
    if !bind::is_here("dns::refusals::badsig_and_badkey_are_reported_differently") {
        return;
    }
    let primary = example();
    let settings = primary.settings("provost.");
    let file = settings.tsig_key_file.with_file_name("wrong.key");
    let error = refused(&with_other_key(&settings, &file, "provost.", "hmac-sha256"), &place()).await;
    assert_eq!(refusal(&error), Refusal::BadSig);
    says(&error, &["BADSIG", "key provost.", "copy the key file", CHALLENGE, &primary.address.to_string()]);
    let error = refused(&with_other_key(&settings, &file, "unknown.", "hmac-sha256"), &place()).await;
    assert_eq!(refusal(&error), Refusal::BadKey);
    says(
        &error,
        &["BADKEY", "unknown. with hmac-sha256", "grant unknown. name _acme-challenge.phones.example.com. TXT;"],
    );
    let error = refused(&with_other_key(&settings, &file, "provost.", "hmac-sha512"), &place()).await;
    assert_eq!(refusal(&error), Refusal::BadKey);
    says(&error, &["BADKEY", "provost. with hmac-sha512"]);
    assert!(error.needs_human());
    assert_eq!(primary.txt(CHALLENGE), [FOREIGN_VALUE]);
}

#[tokio::test]
async fn badtime_is_reported_with_both_clocks() {
    if !bind::is_here("dns::refusals::badtime_is_reported_with_both_clocks") {
        return;
    }
    let primary = example();
    let dns = open(&primary.settings("provost."));
    let slow: fn() -> SystemTime = || SystemTime::now() - Duration::from_secs(3_600);
    let fast: fn() -> SystemTime = || SystemTime::now() + Duration::from_secs(3_600);
    for (clock, apart) in [(slow, 3_600), (fast, -3_600)] {
        let error = refused(&dns.clone().with_clock(clock), &place()).await;
        let Refusal::BadTime { ours, theirs: Some(theirs) } = refusal(&error) else { panic!("{error}") };
        assert!((theirs - ours - apart).abs() <= 2, "{error}");
        assert_eq!(error.server_time(), Some(theirs));
        says(&error, &["BADTIME", "(300 s are allowed): here it is 20", "there it is 20", "NTP"]);
    }
    let a_little_slow = dns.with_clock(|| SystemTime::now() - Duration::from_secs(200));
    a_little_slow.add(&place(), &values(&["one"])).await.unwrap();
}

#[tokio::test]
async fn refused_update_names_the_grant_to_add() {
    if !bind::is_here("dns::refusals::refused_update_names_the_grant_to_add") {
        return;
    }
    let primary = example();
    let dns = open(&primary.settings("provost."));
    let outside = RecordLocation { name: "_acme-challenge.other.example.com".to_owned(), ..place() };
    let error = refused(&dns, &outside).await;
    says(&error, &["REFUSED", "grant provost. name _acme-challenge.other.example.com. TXT;", "zone example.com"]);
    assert!(error.needs_human() && error.server_time().is_none());
    assert_eq!(primary.txt(&outside.name), Vec::<String>::new());
}

#[tokio::test]
async fn update_of_a_foreign_zone_names_the_settings_to_correct() {
    if !bind::is_here("dns::refusals::update_of_a_foreign_zone_names_the_settings_to_correct") {
        return;
    }
    let primary = example();
    let dns = open(&primary.settings("provost."));
    let elsewhere =
        RecordLocation { name: "_acme-challenge.example.net".to_owned(), zone: "example.net".to_owned(), via: vec![] };
    let error = refused(&dns, &elsewhere).await;
    says(
        &error,
        &["NOTAUTH", "it is not the primary of a zone example.net", "\"dns\".\"primary\"", "\"dns\".\"zone\""],
    );
    assert!(error.needs_human());
    // A name outside of the zone is not sent.
    let outside = RecordLocation { name: "_acme-challenge.example.net".to_owned(), ..place() };
    assert!(matches!(refused(&dns, &outside).await, DnsError::OutsideZone { .. }));
}

#[tokio::test]
async fn update_sent_to_a_secondary_names_the_primary_setting() {
    if !bind::is_here("dns::refusals::update_sent_to_a_secondary_names_the_primary_setting") {
        return;
    }
    let primary = example();
    let secondary = BindConfig::new().keys_of(&primary).secondary("example.com", &primary).start();
    let dns = open(&bind::settings(secondary.address, &primary.key_file("provost.")));
    let error = refused(&dns, &place()).await;
    says(&error, &["\"dns\".\"primary\""]);
    assert!(error.needs_human());
}

#[tokio::test]
async fn unreachable_primary_is_tried_at_every_address() {
    if !bind::is_here("dns::refusals::unreachable_primary_is_tried_at_every_address") {
        return;
    }
    let primary = example();
    let settings = primary.settings("provost.");
    let dead = dead_address();
    // The key's folder is removed with the server.
    let dns = open(&DnsSettings { primary: dead.to_string(), ..settings.clone() });
    let error = refused(&dns, &place()).await;
    says(&error, &[&format!("{dead}: it refuses the connection"), "is it running"]);
    assert!(!error.needs_human());
    // By name: 127.0.0.1 answers, whatever other addresses localhost has. The system's resolver reads it from
    // /etc/hosts.
    let port = primary.address.port();
    let named = DnsSettings { primary: format!("localhost:{port}"), resolvers: vec![], ..settings };
    open(&named).add(&place(), &values(&["one"])).await.unwrap();
    assert_eq!(primary.txt(CHALLENGE), ["one", FOREIGN_VALUE]);
}

#[tokio::test]
async fn update_is_retried_after_a_broken_connection() {
    use std::io::Read;
    if !bind::is_here("dns::refusals::update_is_retried_after_a_broken_connection") {
        return;
    }
    let primary = example();
    // Closes the first connection like a restarting server, and forwards to the primary from then on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = primary.settings("provost.");
    settings.primary = listener.local_addr().unwrap().to_string();
    let behind = primary.address;
    let wire = std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        first.read_exact(&mut [0; 2]).unwrap();
        drop(first);
        let (mut client, _) = listener.accept().unwrap();
        let mut server = std::net::TcpStream::connect(behind).unwrap();
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let upstream = std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
        let mut answer = [0; 2];
        server.read_exact(&mut answer).unwrap();
        std::io::Write::write_all(&mut client, &answer).unwrap();
        let mut rest = vec![0; usize::from(u16::from_be_bytes(answer))];
        server.read_exact(&mut rest).unwrap();
        std::io::Write::write_all(&mut client, &rest).unwrap();
        upstream.join().unwrap().unwrap();
    });
    open(&settings).add(&place(), &values(&["one"])).await.unwrap();
    wire.join().unwrap();
    assert_eq!(primary.txt(CHALLENGE), ["one", FOREIGN_VALUE]);
}

#[tokio::test]
async fn unsigned_or_forged_success_is_rejected() {
    if !bind::is_here("dns::refusals::unsigned_or_forged_success_is_rejected") {
        return;
    }
    // An impostor with a key of the same name and another secret accepts every update.
    let (real, impostor) = (example(), example());
    let mut settings = real.settings("provost.");
    settings.primary = impostor.address.to_string();
    let error = refused(&open(&settings), &place()).await;
    assert_eq!(refusal(&error), Refusal::BadSig);
    // A server that answers without any key.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    settings.primary = listener.local_addr().unwrap().to_string();
    let yes = std::thread::spawn(move || {
        use std::io::{Read, Write};
        for _ in 0..2 {
            let (mut client, _) = listener.accept().unwrap();
            let mut head = [0; 14];
            client.read_exact(&mut head).unwrap();
            // The same ID, an answer to an UPDATE, NOERROR, nothing else.
            let answer = [&[0, 12], &head[2..4], &[0xa8, 0], &[0; 8]].concat();
            client.write_all(&answer).unwrap();
            let _ = client.read_to_end(&mut Vec::new());
        }
    });
    let error = refused(&open(&settings), &place()).await;
    says(&error, &["it said that it did, but did not sign that"]);
    yes.join().unwrap();
    assert_eq!(real.txt(CHALLENGE), [FOREIGN_VALUE]);
}

#[tokio::test]
async fn knot_updates_work_and_its_refusals_are_understood() {
    if !knot::is_here("dns::refusals::knot_updates_work_and_its_refusals_are_understood") {
        return;
    }
    let acl = "acl:\n  - id: provost\n    key: provost\n    action: update\n    update-type: [TXT]\n    \
               update-owner: name\n    update-owner-match: equal\n    update-owner-name: [_acme-challenge.phones]\n\
               zone:\n  - domain: example.com\n    acl: [provost]\n";
    let knot = Knot::start("example.com", "provost", acl);
    let dns = open(&knot.settings());
    let found = dns.locate(CHALLENGE).await.unwrap();
    assert_eq!(found, place());
    let both = values(&["one", "two"]);
    dns.add(&found, &both).await.unwrap();
    assert_eq!(bind::txt(knot.address, CHALLENGE), ["one", "two"]);
    dns.remove(&found, &values(&["one"])).await.unwrap();
    assert_eq!(bind::txt(knot.address, CHALLENGE), ["two"]);
    // Knot refuses a name outside of its ACL with the code that BIND uses for an unknown key.
    let outside = RecordLocation { name: "_acme-challenge.other.example.com".to_owned(), ..place() };
    let error = refused(&dns, &outside).await;
    assert_eq!(refusal(&error), Refusal::BadKey);
    says(
        &error,
        &["(Knot) its acl does not allow this update", "update-owner-name: [_acme-challenge.other.example.com.]"],
    );
    let elsewhere = RecordLocation { name: "a.example.net".to_owned(), zone: "example.net".to_owned(), via: vec![] };
    let error = refused(&dns, &elsewhere).await;
    says(&error, &["NOTAUTH", "it is not the primary of a zone example.net"]);
}

#[test]
fn policy_of_these_tests_equals_the_printed_grant() {
    assert!(provost::dns::UpdateGrant::new("provost.", CHALLENGE, "example.com").bind_lines().eq([POLICY]));
}
