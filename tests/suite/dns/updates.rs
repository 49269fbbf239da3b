//! Adding and removing values.

use std::future::pending;
use std::sync::Mutex;
use std::time::Duration;

use provost::dns::{DnsError, PropagationTimeouts, probe};

use super::{CHALLENGE, FOREIGN_VALUE, POLICY, example, ignore, open, place, quick, values};
use crate::harness::bind::{self, BindConfig, dig};
use crate::harness::eventually;

#[tokio::test]
async fn adding_and_removing_values_keeps_foreign_ones() {
    if !bind::is_here("dns::updates::adding_and_removing_values_keeps_foreign_ones") {
        return;
    }
    let primary = example();
    let dns = open(&primary.settings("provost."));
    let ours = values(&["of-the-wildcard", "of-the-name"]);
    dns.add(&place(), &ours).await.unwrap();
    assert_eq!(primary.txt(CHALLENGE), ["of-the-name", "of-the-wildcard", FOREIGN_VALUE]);
    dns.add(&place(), &ours).await.unwrap();
    assert_eq!(primary.txt(CHALLENGE).len(), 3, "existing values stay");
    dns.remove(&place(), &values(&["of-the-name", "never-there"])).await.unwrap();
    assert_eq!(primary.txt(CHALLENGE), ["of-the-wildcard", FOREIGN_VALUE]);
    dns.remove(&place(), &ours).await.unwrap();
    assert_eq!(primary.txt(CHALLENGE), [FOREIGN_VALUE]);
}

#[tokio::test]
async fn all_values_are_sent_in_one_update() {
    if !bind::is_here("dns::updates::all_values_are_sent_in_one_update") {
        return;
    }
    let primary = example();
    let dns = open(&primary.settings("provost."));
    let serial = || -> u32 {
        dig(primary.address, &["+short", "example.com", "SOA"]).split(' ').nth(2).unwrap().parse().unwrap()
    };
    assert_eq!(serial(), 1);
    dns.add(&place(), &values(&["one", "two", "three"])).await.unwrap();
    assert_eq!(serial(), 2, "each update makes one new serial");
    dns.remove(&place(), &values(&["one", "two", "three"])).await.unwrap();
    assert_eq!(serial(), 3);
}

#[tokio::test]
async fn records_carry_the_configured_ttl() {
    if !bind::is_here("dns::updates::records_carry_the_configured_ttl") {
        return;
    }
    let primary = example();
    let mut settings = primary.settings("provost.");
    settings.ttl_s = 77;
    open(&settings).add(&place(), &values(&["one"])).await.unwrap();
    let answer = dig(primary.address, &["+noall", "+answer", CHALLENGE, "TXT"]);
    let record = answer.lines().find(|line| line.ends_with("\"one\"")).unwrap();
    assert_eq!(record.split_whitespace().nth(1), Some("77"), "{answer}");
}

#[tokio::test]
async fn every_supported_tsig_algorithm_is_accepted_by_bind() {
    if !bind::is_here("dns::updates::every_supported_tsig_algorithm_is_accepted_by_bind") {
        return;
    }
    let (mut config, mut policy) = (BindConfig::new(), String::new());
    let algorithms = ["hmac-sha256", "hmac-sha384", "hmac-sha512"];
    for algorithm in algorithms {
        config = config.key(&format!("{algorithm}-key."), algorithm);
        policy += &POLICY.replace("provost.", &format!("{algorithm}-key."));
    }
    let primary = config.primary("example.com", "phones A 127.0.0.1", &policy).start();
    for algorithm in algorithms {
        let dns = open(&primary.settings(&format!("{algorithm}-key")));
        assert_eq!(dns.key().algorithm(), algorithm);
        dns.add(&place(), &values(&[algorithm])).await.unwrap();
    }
    assert_eq!(primary.txt(CHALLENGE), algorithms);
}

#[tokio::test]
async fn key_is_selected_by_name_from_a_file_of_several() {
    if !bind::is_here("dns::updates::key_is_selected_by_name_from_a_file_of_several") {
        return;
    }
    let config = BindConfig::new().key("other.", "hmac-sha512").key("provost.", "hmac-sha256");
    let primary = config.primary("example.com", "", POLICY).start();
    let mut settings = primary.settings("keys.conf");
    settings.tsig_key_file = settings.tsig_key_file.with_file_name("keys.conf");
    let error = provost::dns::Dns::open(&settings).unwrap_err().to_string();
    assert!(error.contains("it holds several keys (other, provost)"), "{error}");
    settings.tsig_key_name = Some("provost.".to_owned());
    open(&settings).add(&place(), &values(&["one"])).await.unwrap();
    assert_eq!(primary.txt(CHALLENGE), ["one"]);
}

#[test]
fn missing_key_file_is_a_read_error() {
    if !bind::is_here("dns::updates::missing_key_file_is_a_read_error") {
        return;
    }
    let primary = example();
    let settings = primary.settings("provost.");
    std::fs::remove_file(&settings.tsig_key_file).unwrap();
    let error = provost::dns::Dns::open(&settings).unwrap_err();
    assert!(matches!(error, provost::dns::TsigKeyError::Read { .. }), "{error}");
}

#[tokio::test]
async fn probe_record_is_published_observed_and_removed() {
    if !bind::is_here("dns::updates::probe_record_is_published_observed_and_removed") {
        return;
    }
    let primary = example();
    let dns = open(&primary.settings("provost.")).with_patience(quick());
    let said = Mutex::new(Vec::new());
    let say = |line| said.lock().unwrap().push(line);
    let probed = probe(&dns, CHALLENGE, &say, pending()).await.unwrap();
    assert_eq!((probed.place, probed.seen, probed.gone), (place(), Ok(Vec::new()), Ok(())));
    let said = said.into_inner().unwrap().join("\n");
    assert!(said.contains("a probe record was added in zone example.com"), "{said}");
    assert!(said.contains(&format!("{}: has the records\n", primary.address)), "{said}");
    assert!(said.ends_with(&format!("{}: has the records no more", primary.address)), "{said}");
    assert_eq!(primary.txt(CHALLENGE), [FOREIGN_VALUE]);
    assert!(primary.log().contains("deleting an RR at _acme-challenge.phones.example.com TXT"), "{}", primary.log());
}

#[tokio::test]
async fn probe_not_visible_everywhere_is_removed() {
    if !bind::is_here("dns::updates::probe_not_visible_everywhere_is_removed") {
        return;
    }
    let primary = example();
    let behind = BindConfig::new().secondary("example.com", &primary).start();
    let mut settings = primary.settings("provost.");
    settings.authorities = vec![behind.address.to_string()];
    let dns = open(&settings).with_patience(PropagationTimeouts { for_lagging: Duration::from_secs(3), ..quick() });
    let probed = probe(&dns, CHALLENGE, &ignore, pending()).await.unwrap();
    assert!(matches!(probed.seen, Err(DnsError::NotVisible { .. })), "{probed:?}");
    assert_eq!(probed.gone, Ok(()));
    eventually("the probe to be gone", || (primary.txt(CHALLENGE) == [FOREIGN_VALUE]).then_some(()));
    assert!(primary.log().contains("deleting an RR"), "{}", primary.log());
}

#[tokio::test]
async fn probe_left_on_a_secondary_is_reported_with_its_serial() {
    if !bind::is_here("dns::updates::probe_left_on_a_secondary_is_reported_with_its_serial") {
        return;
    }
    let primary = example();
    let behind = BindConfig::new().secondary("example.com", &primary).start();
    let mut settings = primary.settings("provost.");
    settings.authorities = vec![behind.address.to_string()];
    let dns = open(&settings).with_patience(PropagationTimeouts { for_lagging: Duration::from_secs(5), ..quick() });
    // It is notified of the first change only.
    let say = |line: String| {
        if line.ends_with("lacks 1 of 1 values yet") {
            behind.notify("example.com");
        }
    };
    let probed = probe(&dns, CHALLENGE, &say, pending()).await.unwrap();
    assert_eq!(probed.seen, Ok(Vec::new()));
    let text = probed.gone.unwrap_err().to_string();
    assert!(
        text.contains(&format!("are not gone everywhere: {} has 1 of 1 values, serial 2", behind.address)),
        "{text}"
    );
    assert_eq!(primary.txt(CHALLENGE), [FOREIGN_VALUE]);
}

#[tokio::test]
async fn stopped_probe_is_removed_without_waiting() {
    if !bind::is_here("dns::updates::stopped_probe_is_removed_without_waiting") {
        return;
    }
    let primary = example();
    let behind = BindConfig::new().secondary("example.com", &primary).start();
    let mut settings = primary.settings("provost.");
    settings.authorities = vec![behind.address.to_string()];
    let dns = open(&settings).with_patience(quick());
    let stop = tokio::sync::Notify::new();
    let say = |line: String| {
        if line.ends_with("lacks 1 of 1 values yet") {
            stop.notify_one();
        }
    };
    let probed = probe(&dns, CHALLENGE, &say, stop.notified()).await.unwrap();
    assert_eq!(probed.seen, Err(DnsError::Stopped { name: CHALLENGE.to_owned() }));
    assert_eq!(probed.gone, Ok(()));
    assert_eq!(primary.txt(CHALLENGE), [FOREIGN_VALUE]);
}

#[tokio::test]
async fn probe_stopped_after_its_removal_does_not_wait() {
    if !bind::is_here("dns::updates::probe_stopped_after_its_removal_does_not_wait") {
        return;
    }
    let primary = example();
    let behind = BindConfig::new().secondary("example.com", &primary).start();
    let mut settings = primary.settings("provost.");
    settings.authorities = vec![behind.address.to_string()];
    let dns = open(&settings).with_patience(quick());
    let stop = tokio::sync::Notify::new();
    let say = |line: String| {
        if line.ends_with("lacks 1 of 1 values yet") {
            behind.notify("example.com");
        } else if line.ends_with("has 1 of 1 values still") {
            stop.notify_one();
        }
    };
    let probed = probe(&dns, CHALLENGE, &say, stop.notified()).await.unwrap();
    assert_eq!(probed.seen, Ok(Vec::new()));
    assert_eq!(probed.gone, Err(DnsError::Stopped { name: CHALLENGE.to_owned() }));
    assert_eq!(primary.txt(CHALLENGE), [FOREIGN_VALUE]);
}

#[tokio::test]
async fn probe_that_cannot_be_removed_is_reported_as_left_over() {
    if !bind::is_here("dns::updates::probe_that_cannot_be_removed_is_reported_as_left_over") {
        return;
    }
    let primary = example();
    let dns = open(&primary.settings("provost."))
        .with_patience(PropagationTimeouts { for_lagging: Duration::from_millis(200), ..quick() });
    let primary = Mutex::new(Some(primary));
    let say = |line: String| {
        if line.contains("a probe record was added") {
            primary.lock().unwrap().take().unwrap().kill();
        }
    };
    let probed = probe(&dns, CHALLENGE, &say, pending()).await.unwrap();
    assert!(matches!(probed.seen, Err(DnsError::AuthoritiesSilent { .. })), "{probed:?}");
    let text = probed.gone.unwrap_err().to_string();
    assert!(text.starts_with("the TXT record \"provost probe ") && text.contains(CHALLENGE), "{text}");
    assert!(text.contains("does not answer an update") && text.ends_with("; remove it by hand"), "{text}");
}
