//! Waiting for every authority.

use std::net::TcpListener;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hickory_net::proto::op::{Message, ResponseCode};
use provost::dns::{Dns, DnsError, DnsSettings, PropagationTimeouts};

use super::{CHALLENGE, FOREIGN_VALUE, example, ignore, open, place, quick, values};
use crate::harness::TIMEOUT;
use crate::harness::bind::{self, Bind, BindConfig};
use crate::harness::relay::{Relay, Tcp, Udp};

/// A primary and a secondary that gets no NOTIFY.
fn with_lagging_secondary() -> (Bind, Bind) {
    let primary = example();
    let secondary = BindConfig::new().secondary("example.com", &primary).start();
    assert_eq!(secondary.txt(CHALLENGE), [FOREIGN_VALUE]);
    (primary, secondary)
}

/// A client that updates the primary and queries these authorities.
fn asking(primary: &Bind, authorities: &[String]) -> Dns {
    let settings = DnsSettings { authorities: authorities.to_vec(), ..primary.settings("provost.") };
    open(&settings).with_patience(quick())
}

#[tokio::test]
async fn lagging_secondary_is_awaited() {
    if !bind::is_here("dns::propagation::lagging_secondary_is_awaited") {
        return;
    }
    let (primary, secondary) = with_lagging_secondary();
    let dns = asking(&primary, &[primary.address.to_string(), secondary.address.to_string()]);
    let both = values(&["one", "two"]);
    dns.add(&place(), &both).await.unwrap();
    let said = Mutex::new(Vec::new());
    let lacks = format!("{}: lacks 2 of 2 values yet", secondary.address);
    let say = |line: String| {
        if line == lacks {
            secondary.notify("example.com");
        }
        said.lock().unwrap().push(line);
    };
    dns.wait_until_visible(&place(), &both, &say).await.unwrap();
    assert_eq!(secondary.txt(CHALLENGE).len(), 3);
    let said = said.into_inner().unwrap();
    let of_secondary: Vec<&String> =
        said.iter().filter(|line| line.starts_with(&secondary.address.to_string())).collect();
    assert_eq!(of_secondary, [&lacks, &format!("{}: has the records", secondary.address)]);
}

#[tokio::test]
async fn stale_secondary_is_reported_with_its_serial() {
    if !bind::is_here("dns::propagation::stale_secondary_is_reported_with_its_serial") {
        return;
    }
    let (primary, secondary) = with_lagging_secondary();
    let dns = asking(&primary, &[primary.address.to_string(), secondary.address.to_string()])
        .with_patience(PropagationTimeouts { for_lagging: Duration::from_secs(3), ..quick() });
    let secret = values(&["a-secret-value"]);
    dns.add(&place(), &secret).await.unwrap();
    let said = Mutex::new(String::new());
    let began = Instant::now();
    let wait = dns.wait_until_visible(&place(), &secret, &|line| said.lock().unwrap().push_str(&line)).await;
    assert!(began.elapsed() >= Duration::from_secs(3));
    let error = wait.unwrap_err();
    assert!(!error.needs_human(), "{error}");
    let text = error.to_string();
    let (behind, ahead) = (secondary.address, primary.address);
    assert!(text.contains(&format!("{behind} lacks 1 of 1 values, serial 1")), "{text}");
    assert!(text.contains(&format!("({ahead} has the records, serial 2)")), "{text}");
    assert!(text.contains("after 3 s"), "{text}");
    assert!(!(text + &said.into_inner().unwrap()).contains(&secret[0]));
}

#[tokio::test]
async fn dead_secondary_is_skipped_after_a_timeout() {
    if !bind::is_here("dns::propagation::dead_secondary_is_skipped_after_a_timeout") {
        return;
    }
    let (primary, secondary) = with_lagging_secondary();
    let dead = secondary.kill();
    let dns = asking(&primary, &[dead.to_string(), primary.address.to_string()]);
    let one = values(&["one"]);
    dns.add(&place(), &one).await.unwrap();
    let said = Mutex::new(Vec::new());
    let began = Instant::now();
    let silent = dns.wait_until_visible(&place(), &one, &|line| said.lock().unwrap().push(line)).await.unwrap();
    let refuses =
        format!("{dead}: does not answer: it refuses the connection; resolvers pass over it, but validations fail");
    assert!(silent.len() == 1 && silent[0].starts_with(&refuses), "{silent:?}");
    assert!(began.elapsed() >= quick().for_silent);
    let said = said.into_inner().unwrap().join("\n");
    assert!(said.contains(&format!("{dead}: does not answer: it refuses the connection")), "{said}");
    assert!(said.contains(&format!("{dead}: went on without it")), "{said}");
}

#[tokio::test]
async fn server_that_accepts_without_answering_is_skipped() {
    if !bind::is_here("dns::propagation::server_that_accepts_without_answering_is_skipped") {
        return;
    }
    let primary = example();
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap();
    let dns = asking(&primary, &[address.to_string(), primary.address.to_string()]);
    let one = values(&["one"]);
    dns.add(&place(), &one).await.unwrap();
    let said = Mutex::new(String::new());
    dns.wait_until_visible(&place(), &one, &|line| said.lock().unwrap().push_str(&line)).await.unwrap();
    let said = said.into_inner().unwrap();
    assert!(said.contains(&format!("{address}: went on without it")), "{said}");
}

#[tokio::test]
async fn silent_server_that_answers_later_without_values_blocks() {
    if !bind::is_here("dns::propagation::silent_server_that_answers_later_without_values_blocks") {
        return;
    }
    let (primary, secondary) = with_lagging_secondary();
    // Refuses the first connections, then forwards to the secondary.
    let address = bind::free_address();
    let dns =
        asking(&primary, &[address.to_string(), primary.address.to_string()]).with_patience(PropagationTimeouts {
            for_lagging: Duration::from_secs(4),
            for_silent: Duration::from_secs(30),
            ..quick()
        });
    let one = values(&["one"]);
    dns.add(&place(), &one).await.unwrap();
    let behind = secondary.address;
    let wire = Mutex::new(None);
    let say = |line: String| {
        if line.contains("does not answer") {
            wire.lock().unwrap().get_or_insert_with(|| Wire::start(address, behind));
        }
    };
    let error = dns.wait_until_visible(&place(), &one, &say).await.unwrap_err();
    assert!(error.to_string().contains(&format!("{address} lacks 1 of 1 values")), "{error}");
}

#[tokio::test]
async fn propagation_fails_if_no_authority_answers() {
    if !bind::is_here("dns::propagation::propagation_fails_if_no_authority_answers") {
        return;
    }
    let (primary, secondary) = with_lagging_secondary();
    let dead = secondary.kill();
    let dns = asking(&primary, &[dead.to_string(), "nowhere.example.com:53".to_owned()])
        .with_patience(PropagationTimeouts { for_lagging: Duration::from_millis(300), ..quick() });
    let error = dns.wait_until_visible(&place(), &values(&["one"]), &ignore).await.unwrap_err();
    assert!(matches!(error, DnsError::AuthoritiesSilent { .. }), "{error}");
    assert!(error.to_string().contains(&dead.to_string()), "{error}");
    assert!(error.to_string().contains("nowhere.example.com"), "{error}");
    // If none has an address, waiting is useless.
    let dns = asking(&primary, &["nowhere.example.com".to_owned()]);
    let began = Instant::now();
    let error = dns.wait_until_visible(&place(), &values(&["one"]), &ignore).await.unwrap_err();
    assert!(matches!(error, DnsError::AuthoritiesSilent { .. }), "{error}");
    assert!(began.elapsed() < TIMEOUT / 2);
}

/// Answers everything with `code`.
fn failing(code: ResponseCode) -> Relay {
    let answer = move |question: &[u8]| {
        let mut answer = Message::from_vec(question).unwrap().into_response();
        answer.metadata.response_code = code;
        vec![answer.to_vec().unwrap()]
    };
    Relay::start(Udp::Answered(Box::new(answer)), Tcp::Closed)
}

#[tokio::test]
async fn server_that_does_not_serve_the_zone_is_passed_over() {
    if !bind::is_here("dns::propagation::server_that_does_not_serve_the_zone_is_passed_over") {
        return;
    }
    let primary = example();
    let other = BindConfig::new().primary("example.net", "", "").start();
    let codes = [ResponseCode::Refused, ResponseCode::ServFail, ResponseCode::NotAuth];
    let relays = codes.map(failing);
    let [refused, failed, not_auth] = [&relays[0], &relays[1], &relays[2]].map(|relay| relay.address);
    let lame = [other.address, refused, failed, not_auth].map(|address| address.to_string());
    let one = values(&["one"]);
    // A wait for a silent server would outlast the test.
    let timeouts = PropagationTimeouts {
        for_silent: Duration::from_secs(3_600),
        for_lagging: Duration::from_secs(7_200),
        ..quick()
    };
    let dns = asking(&primary, &[&lame[..], &[primary.address.to_string()]].concat()).with_patience(timeouts);
    dns.add(&place(), &one).await.unwrap();
    let said = Mutex::new(Vec::new());
    let passed_over = dns.wait_until_visible(&place(), &one, &|line| said.lock().unwrap().push(line)).await.unwrap();
    let expected: Vec<String> = lame
        .iter()
        .zip(["REFUSED", "REFUSED", "SERVFAIL", "NOTAUTH"])
        .map(|(server, code)| format!("{server}: passed over: it answers {code}"))
        .collect();
    assert_eq!(passed_over.len(), expected.len(), "{passed_over:?}");
    for (remark, expected) in passed_over.iter().zip(&expected) {
        let note = remark.strip_prefix(expected.as_str()).unwrap_or_else(|| panic!("{expected} is not in {remark}"));
        assert!(note.contains("validations fail at times because of it") && note.contains("use-caps-for-id"), "{note}");
    }
    let said = said.into_inner().unwrap();
    assert!(expected.iter().all(|line| said.contains(line)), "{said:?}");
    // If no server serves the zone, that is the failure.
    let dns =
        asking(&primary, &lame).with_patience(PropagationTimeouts { for_silent: Duration::from_secs(1), ..quick() });
    let error = dns.wait_until_visible(&place(), &one, &ignore).await.unwrap_err();
    assert!(matches!(error, DnsError::AuthoritiesSilent { .. }), "{error}");
    assert!(expected.iter().all(|line| error.to_string().contains(line)), "{error}");
}

#[tokio::test]
async fn all_addresses_of_all_name_servers_are_queried() {
    if !bind::is_here("dns::propagation::all_addresses_of_all_name_servers_are_queried") {
        return;
    }
    // So many that the UDP answer is truncated. None of them listens.
    let servers = (0..24).map(|server| {
        let name = format!("a-name-server-with-a-long-name-{server}");
        format!("@ NS {name}\n{name} A 127.77.0.{}\n", server + 1)
    });
    let records = "$TTL 300\n@ SOA ns0 hostmaster 1 3600 600 86400 60\n".to_owned()
        + &servers.collect::<Vec<_>>().concat()
        + "a-name-server-with-a-long-name-0 A 127.77.1.1\n";
    let server = BindConfig::new().key("provost.", "hmac-sha256").primary_from("example.com", &records, "").start();
    let settings = DnsSettings { authorities: vec![], ..server.settings("provost.") };
    let dns = open(&settings).with_patience(PropagationTimeouts { for_lagging: Duration::from_secs(3), ..quick() });
    let text = dns.wait_until_visible(&place(), &values(&["one"]), &ignore).await.unwrap_err().to_string();
    let named = |server: usize, address: &str| {
        text.contains(&format!("a-name-server-with-a-long-name-{server}.example.com ({address}:53)"))
    };
    let seen = (0..24).filter(|server| named(*server, &format!("127.77.0.{}", server + 1))).count();
    assert_eq!(seen, 24, "{text}");
    assert!(named(0, "127.77.1.1"), "{text}");
}

#[tokio::test]
async fn settle_time_follows_the_agreement_of_all_authorities() {
    if !bind::is_here("dns::propagation::settle_time_follows_the_agreement_of_all_authorities") {
        return;
    }
    let primary = example();
    let settings = DnsSettings { settle_s: 1, ..primary.settings("provost.") };
    let dns = open(&settings);
    assert_eq!(dns.patience().for_silent, TIMEOUT, "within the timeout for all of them");
    let patient = DnsSettings { propagation_timeout_s: 120, ..settings };
    assert_eq!(open(&patient).patience().for_silent, Duration::from_secs(30));
    let one = values(&["one"]);
    dns.add(&place(), &one).await.unwrap();
    let began = Instant::now();
    dns.wait_until_visible(&place(), &one, &ignore).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
}

/// Forwards connections from one address to another until the test ends.
struct Wire;

impl Wire {
    fn start(at: std::net::SocketAddr, to: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(mut client), Ok(mut server)) = (client, std::net::TcpStream::connect(to)) else { return };
                let (mut from, mut into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut into);
                    let _ = into.shutdown(std::net::Shutdown::Both);
                });
                std::thread::spawn(move || std::io::copy(&mut server, &mut client));
            }
        });
        Self
    }
}
