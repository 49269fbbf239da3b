//! How questions and updates travel: by UDP, by TCP, past firewalls, and past what lies.

use std::net::UdpSocket;
use std::sync::Mutex;
use std::time::Duration;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::rdata::TXT;
use hickory_net::proto::rr::{RData, Record};
use provost::dns::{Dns, DnsError, DnsSettings, PropagationTimeouts, RecordLocation};

use super::{CHALLENGE, FOREIGN_VALUE, example, example_config, ignore, open, place, quick, values};
use crate::harness::bind::{self, Bind, BindConfig};
use crate::harness::relay::{Relay, Tcp, Udp, exchange, passed};

/// A client that reaches `primary` only through `relay`.
fn through(relay: &Relay, primary: &Bind) -> Dns {
    let address = relay.address.to_string();
    let settings = primary.settings("provost.");
    open(&DnsSettings {
        primary: address.clone(),
        resolvers: vec![address.clone()],
        authorities: vec![address],
        ..settings
    })
    .with_patience(quick())
}

/// Publishes and removes a value.
async fn works(dns: &Dns, primary: &Bind, place: &RecordLocation) {
    let one = values(&["one"]);
    assert_eq!(dns.locate(CHALLENGE).await.unwrap(), *place);
    dns.add(place, &one).await.unwrap();
    assert_eq!(dns.wait_until_visible(place, &one, &ignore).await, Ok(Vec::new()));
    dns.remove(place, &one).await.unwrap();
    assert_eq!(primary.txt(CHALLENGE), [FOREIGN_VALUE]);
}

#[tokio::test]
async fn server_that_answers_only_by_udp_works() {
    if !bind::is_here("dns::transport::server_that_answers_only_by_udp_works") {
        return;
    }
    // A resolver that refuses a question about com would be asked by TCP too.
    let primary = example_config().primary("com", "", "").start();
    for tcp in [Tcp::Closed, Tcp::Mute] {
        let relay = Relay::start(passed(&[primary.address]), tcp);
        works(&through(&relay, &primary), &primary, &place()).await;
        assert_eq!(relay.connections(), 0, "UDP was answered");
    }
}

#[tokio::test]
async fn server_that_answers_only_by_tcp_works() {
    if !bind::is_here("dns::transport::server_that_answers_only_by_tcp_works") {
        return;
    }
    let primary = example();
    for udp in [Udp::Closed, Udp::Dropped] {
        let relay = Relay::start(udp, Tcp::Passed(vec![primary.address]));
        let dns =
            through(&relay, &primary).with_patience(PropagationTimeouts { for_silent: super::TIMEOUT, ..quick() });
        works(&dns, &primary, &place()).await;
    }
}

#[tokio::test]
async fn server_that_drops_edns_works() {
    if !bind::is_here("dns::transport::server_that_drops_edns_works") {
        return;
    }
    let primary = example();
    let behind = primary.address;
    let has_edns = |question: &[u8]| Message::from_vec(question).unwrap().edns.is_some();
    let old = Udp::Answered(Box::new(move |question| {
        if !has_edns(question) {
            return exchange(behind, question).into_iter().collect();
        }
        let mut answer = Message::from_vec(question).unwrap().into_response();
        answer.metadata.response_code = ResponseCode::FormErr;
        answer.edns = None;
        vec![answer.to_vec().unwrap()]
    }));
    let relay = Relay::start(old, Tcp::Closed);
    works(&through(&relay, &primary), &primary, &place()).await;
}

#[tokio::test]
async fn update_over_512_bytes_goes_by_tcp() {
    if !bind::is_here("dns::transport::update_over_512_bytes_goes_by_tcp") {
        return;
    }
    let primary = example();
    let relay = Relay::start(passed(&[primary.address]), Tcp::Passed(vec![primary.address]));
    let dns = through(&relay, &primary);
    let many: Vec<String> = (0..8).map(|number| format!("{number:0>43}")).collect();
    dns.add(&place(), &many).await.unwrap();
    assert_eq!((relay.datagrams(), relay.connections()), (0, 1));
    assert_eq!(primary.txt(CHALLENGE).len(), 9);
    dns.add(&place(), &values(&["one"])).await.unwrap();
    assert_eq!((relay.datagrams(), relay.connections()), (1, 1));
}

#[tokio::test]
async fn truncated_answer_is_fetched_by_tcp() {
    if !bind::is_here("dns::transport::truncated_answer_is_fetched_by_tcp") {
        return;
    }
    let primary = example();
    let relay = Relay::start(passed(&[primary.address]), Tcp::Passed(vec![primary.address]));
    let dns = through(&relay, &primary);
    // Forty records of a megaphone's challenge do not fit into 1,232 bytes.
    let many: Vec<String> = (0..40).map(|number| format!("{number:0>43}")).collect();
    dns.add(&place(), &many).await.unwrap();
    let before = relay.connections();
    dns.wait_until_visible(&place(), &many, &ignore).await.unwrap();
    assert!(relay.connections() > before);
}

/// What a forger sends, who has seen the question or guesses it.
type Forgery = fn(&[u8]) -> Message;

/// An answer that has the value.
fn forged(question: &[u8]) -> Message {
    let mut answer = Message::from_vec(question).unwrap().into_response();
    answer.metadata.authoritative = true;
    let name = answer.queries[0].name().clone();
    answer.answers = vec![Record::from_rdata(name, 60, RData::TXT(TXT::new(vec!["one".to_owned()])))];
    answer
}

#[tokio::test]
async fn truncated_answer_without_tcp_is_named() {
    if !bind::is_here("dns::transport::truncated_answer_without_tcp_is_named") {
        return;
    }
    let primary = example();
    for (tcp, reason) in [(Tcp::Closed, "it refuses the connection"), (Tcp::Mute, "it did not answer within 5 s")] {
        let truncate = |question: &[u8]| {
            let mut answer = Message::from_vec(question).unwrap().into_response();
            answer.metadata.authoritative = true;
            answer.metadata.truncation = true;
            vec![answer.to_vec().unwrap()]
        };
        let relay = Relay::start(Udp::Answered(Box::new(truncate)), tcp);
        let settings = DnsSettings { authorities: vec![relay.address.to_string()], ..primary.settings("provost.") };
        let causes = open(&settings).likely_causes(&place(), &values(&["one"])).await.unwrap();
        let expected =
            format!("{}: does not answer: its answer by UDP is truncated, and by TCP {reason}", relay.address);
        assert!(causes.len() == 1 && causes[0].starts_with(&expected), "{causes:?}");
    }
}

#[tokio::test]
async fn forged_datagrams_are_ignored() {
    if !bind::is_here("dns::transport::forged_datagrams_are_ignored") {
        return;
    }
    let primary = example();
    let forgeries: [(&str, Forgery); 4] = [
        ("another ID", |question| {
            let mut answer = forged(question);
            answer.metadata.id ^= 1;
            answer
        }),
        ("another spelling", |question| {
            let mut answer = forged(question);
            let name = answer.queries[0].name().to_lowercase();
            answer.queries[0].set_name(name);
            answer
        }),
        ("no question", |question| {
            let mut answer = forged(question);
            answer.queries.clear();
            answer
        }),
        ("no AA", |question| {
            let mut answer = forged(question);
            answer.metadata.authoritative = false;
            answer
        }),
    ];
    for (what, forgery) in forgeries {
        let is_believable = what == "no AA";
        let behind = primary.address;
        let liar = Udp::Answered(Box::new(move |question| {
            let forged = forgery(question).to_vec().unwrap();
            // A forger is faster than the server.
            [Some(forged), exchange(behind, question)].into_iter().flatten().collect()
        }));
        let relay = Relay::start(liar, Tcp::Passed(vec![primary.address]));
        let dns = through(&relay, &primary)
            .with_patience(PropagationTimeouts { for_lagging: Duration::from_secs(2), ..quick() });
        let error = dns.wait_until_visible(&place(), &values(&["one"]), &ignore).await.unwrap_err();
        let expected = if is_believable { "is not authoritative (no AA)" } else { "lacks 1 of 1 values" };
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
}

#[tokio::test]
async fn answer_from_another_address_is_ignored() {
    if !bind::is_here("dns::transport::answer_from_another_address_is_ignored") {
        return;
    }
    let primary = example();
    let said = Mutex::new(String::new());
    // The server drops each question. A forger, who knows all of it, answers from a port of its own.
    let (server, forger) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, client)) = server.recv_from(&mut question) {
            forger.send_to(&forged(&question[..length]).to_vec().unwrap(), client).unwrap();
        }
    });
    let settings = DnsSettings { authorities: vec![address.to_string()], ..primary.settings("provost.") };
    let dns = open(&settings).with_patience(PropagationTimeouts { for_silent: Duration::from_secs(6), ..quick() });
    let say = |line: String| said.lock().unwrap().push_str(&line);
    let error = dns.wait_until_visible(&place(), &values(&["one"]), &say).await.unwrap_err();
    assert!(matches!(error, DnsError::AuthoritiesSilent { .. }), "{error}");
    let said = said.into_inner().unwrap();
    assert!(said.contains("it did not answer within 2 s by UDP") && !said.contains("has the records"), "{said}");
}

#[tokio::test]
async fn unsigned_refusal_by_udp_is_confirmed_by_tcp() {
    if !bind::is_here("dns::transport::unsigned_refusal_by_udp_is_confirmed_by_tcp") {
        return;
    }
    let primary = example();
    let refuse = || {
        Udp::Answered(Box::new(|update: &[u8]| {
            let mut answer = Message::from_vec(update).unwrap().into_response();
            answer.metadata.response_code = ResponseCode::Refused;
            answer.signature = None;
            vec![answer.to_vec().unwrap()]
        }))
    };
    let relay = Relay::start(refuse(), Tcp::Passed(vec![primary.address]));
    let one = values(&["one"]);
    through(&relay, &primary).add(&place(), &one).await.unwrap();
    assert_eq!(primary.txt(CHALLENGE), ["one", FOREIGN_VALUE]);
    // Without TCP, it is the best answer that there is.
    let relay = Relay::start(refuse(), Tcp::Closed);
    let error = through(&relay, &primary).remove(&place(), &one).await.unwrap_err();
    assert!(error.to_string().contains("REFUSED, not signed"), "{error}");
}

#[tokio::test]
async fn answers_from_a_cache_do_not_count() {
    if !bind::is_here("dns::transport::answers_from_a_cache_do_not_count") {
        return;
    }
    let primary = example();
    let resolver = BindConfig::new().forward("example.com", &primary).primary("ready.test", "", "").start();
    let one = values(&["one"]);
    let dns = |authorities: &[&Bind]| {
        let authorities = authorities.iter().map(|server| server.address.to_string()).collect();
        open(&DnsSettings { authorities, ..primary.settings("provost.") }).with_patience(quick())
    };
    dns(&[&primary]).add(&place(), &one).await.unwrap();
    assert_eq!(resolver.txt(CHALLENGE), ["one", FOREIGN_VALUE]);
    let error = dns(&[&resolver]).wait_until_visible(&place(), &one, &ignore).await.unwrap_err();
    assert!(error.to_string().contains("is not authoritative (no AA)"), "{error}");
    let passed_over = dns(&[&resolver, &primary]).wait_until_visible(&place(), &one, &ignore).await.unwrap();
    assert_eq!(passed_over.len(), 1, "{passed_over:?}");
}
