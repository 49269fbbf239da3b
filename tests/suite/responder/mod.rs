//! The built-in DNS responder: asked by dig and over raw sockets, and what `provost.json` may say about it.
//!
//! [`chain`] puts it below a signed parent, behind a validating resolver that a CA asks; [`proof`] has `check --live` prove
//! its delegation, and name the cause where that fails; in [`phone_names`], the wildcard record leads phones elsewhere, too.

mod chain;
mod phone_names;
mod proof;
mod walk;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use hickory_net::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_net::proto::rr::{Name, RecordType};
use serde_json::{Value, json};

use crate::harness::bind::{dig, program};
use crate::harness::operators::Operators;
use crate::harness::site::{Lines, Running, Site};
use crate::harness::{TIMEOUT, eventually, namespace, not_run, tool};

const APEX: &str = "_acme-challenge.phones.example.com";
/// How many TCP connections the responder keeps.
const MAX_CONNECTIONS: usize = 128;

/// A site whose challenges are published by the responder. No CA answers.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["certificate"] = json!({ "acme": {
        "directory": "https://127.0.0.1:1/dir", "terms_of_service_agreed": true, "keys": ["ecdsa-p256"],
        "dns": { "responder": { "listen": ["127.0.0.1:0"] }, "zone": APEX, "resolvers": ["127.0.0.1:1"] },
    } });
    site
}

fn dns(site: &mut Site) -> &mut Value {
    &mut site.config["certificate"]["acme"]["dns"]
}

/// Where the responder of `server` listens.
fn address(server: &Running) -> SocketAddr {
    let line = server.says("DNS responder on ");
    let text = line.split_once("DNS responder on ").unwrap().1.split(' ').next().unwrap();
    text.parse().unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn query(owner: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(owner).unwrap(), kind));
    query.to_vec().unwrap()
}

/// Sends `query` on a TCP connection and reads the answer.
fn over_tcp(stream: &mut TcpStream, query: &[u8]) -> Message {
    stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes()[..], query].concat()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// What `dig` says in a line of its header: `status: NOERROR` and flags.
fn header(answer: &str) -> (String, String) {
    let between = |from: &str, to: &str| {
        let rest = answer.split_once(from).unwrap_or_else(|| panic!("no {from:?} in {answer}")).1;
        rest.split(to).next().unwrap().trim().to_owned()
    };
    (between("status: ", ","), between(";; flags:", ";"))
}

#[test]
fn dig_gets_the_answer_of_each_rule() {
    if program("dig").is_none() {
        return not_run("responder::dig_gets_the_answer_of_each_rule", "dig is not installed");
    }
    let site = site();
    let server = site.start();
    let address = address(&server);
    let absent = format!("absent.{APEX}");
    let key = "hmac-sha256:unknown:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyYnk=";
    let rows: [(&[&str], &str, &str, &str); 22] = [
        (&[APEX, "SOA"], "NOERROR", "qr aa rd", "3600\tIN\tSOA\tns.phones.example.com. hostmaster._acme-challenge"),
        (&[APEX, "NS"], "NOERROR", "qr aa rd", "3600\tIN\tNS\tns.phones.example.com."),
        (&[APEX, "TXT"], "NOERROR", "qr aa rd", "AUTHORITY SECTION:\n_acme-challenge.phones.example.com. 1 IN SOA"),
        (&[APEX, "DS"], "NOERROR", "qr aa rd", "AUTHORITY: 1"),
        (&[APEX, "DNSKEY", "+dnssec"], "NOERROR", "qr aa rd", "flags: do; udp: 1232"),
        (&[APEX, "CAA"], "NOERROR", "qr aa rd", "ANSWER: 0, AUTHORITY: 1"),
        (&[APEX, "ANY", "+notcp"], "NOERROR", "qr aa rd", "IN\tHINFO\t\"RFC8482\" \"\""),
        (&[&absent, "TXT"], "NXDOMAIN", "qr aa rd", "ANSWER: 0, AUTHORITY: 1"),
        (&["phones.example.com", "A"], "REFUSED", "qr rd", "ANSWER: 0, AUTHORITY: 0"),
        (&["example.net", "A"], "REFUSED", "qr rd", "ANSWER: 0"),
        (&["version.bind", "CH", "TXT"], "REFUSED", "qr rd", "ANSWER: 0"),
        (&[APEX, "IXFR=1", "+notcp"], "REFUSED", "qr", "ANSWER: 0"),
        (&[APEX, "SOA", "+opcode=notify"], "NOTIMP", "qr rd", "opcode: NOTIFY"),
        (&[APEX, "SOA", "+opcode=status"], "NOTIMP", "qr rd", "opcode: STATUS"),
        (&[APEX, "SOA", "+edns=1", "+noednsneg"], "BADVERS", "qr rd", "EDNS: version: 0"),
        (&[APEX, "SOA", "+opcode=notify"], "NOTIMP", "qr rd", "EDNS: version: 0, flags:; udp: 1232"),
        (&[APEX, "SOA", "+edns=1", "+noednsneg", "+opcode=status"], "BADVERS", "qr rd", "EDNS: version: 0"),
        (&[APEX, "TXT", "-y", key], "NOTAUTH", "qr rd", "EDNS: version: 0, flags:; udp: 1232"),
        (&[APEX, "SOA", "+ednsopt=65001:00ff"], "NOERROR", "qr aa rd", "ANSWER: 1"),
        (&[APEX, "SOA", "+cookie=0123456789abcdef"], "NOERROR", "qr aa rd", "COOKIE: 0123456789abcdef01000000"),
        (&["+header-only", "+cookie"], "NOERROR", "qr rd", "QUERY: 0, ANSWER: 0"),
        (
            &["_aCME-CHALLENGE.phoneS.example.COM", "SOA", "+tcp"],
            "NOERROR",
            "qr aa rd",
            "_aCME-CHALLENGE.phoneS.example.COM. 3600 IN SOA",
        ),
    ];
    for (question, status, flags, text) in rows {
        let answer = dig(address, &[question, &["+noall", "+comments", "+question", "+answer", "+authority"]].concat());
        assert_eq!(header(&answer), (status.to_owned(), flags.to_owned()), "{question:?}: {answer}");
        let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(plain(&answer).contains(&plain(text)), "{question:?}: no {text:?} in {answer}");
    }
    let without = dig(address, &["+noedns", APEX, "SOA"]);
    assert!(!without.contains("OPT PSEUDOSECTION") && without.contains("ANSWER: 1"), "{without}");
    let signed = dig(address, &["-y", key, APEX, "TXT"]);
    assert!(signed.contains("tsig indicates error") && signed.contains("BADKEY"), "{signed}");
    let transfer = dig(address, &["AXFR", APEX]);
    assert!(transfer.contains("Transfer failed"), "{transfer}");
}

#[test]
fn udp_over_the_rate_is_truncated_and_refusals_are_dropped() {
    let site = site();
    let server = site.start();
    let address = address(&server);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    let mut buffer = [0; 1500];
    let mut receive = |timeout: Duration| {
        socket.set_read_timeout(Some(timeout)).unwrap();
        let length = socket.recv(&mut buffer).ok()?;
        Some(Message::from_vec(&buffer[..length]).unwrap())
    };
    let (soa, refused) = (query(APEX, RecordType::SOA), query("example.net.", RecordType::A));
    socket.send(&refused).unwrap();
    let first = receive(TIMEOUT).expect("an answer below the rate");
    assert_eq!((first.response_code, first.truncation), (ResponseCode::Refused, false));
    eventually("truncated answers, and none to a refusal", || {
        for _ in 0..300 {
            socket.send(&soa).unwrap();
        }
        socket.send(&refused).unwrap();
        let mut answers = Vec::new();
        while let Some(answer) = receive(Duration::from_millis(300)) {
            answers.push(answer);
        }
        for answer in answers.iter().filter(|answer| answer.response_code == ResponseCode::NoError) {
            assert_eq!(answer.answers.is_empty(), answer.truncation, "{answer}");
        }
        let is_limited = answers.iter().any(|answer| answer.truncation);
        let is_refused = answers.iter().any(|answer| answer.response_code == ResponseCode::Refused);
        (is_limited && !is_refused).then_some(())
    });
    let answer = over_tcp(&mut connect(address), &soa);
    assert!(!answer.truncation && answer.answers.len() == 1, "{answer}");
}

#[test]
fn metrics_count_queries_by_outcome() {
    let mut site = site();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    let (address, operators) = (address(&server), Operators::of(&server));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let soa = query(APEX, RecordType::SOA);
    let mut response = soa.clone();
    response[2] |= 0x80;
    let notify = Message::new(1, MessageType::Query, OpCode::Notify).to_vec().unwrap();
    // Each gets an answer, so that none is lost.
    for bytes in [
        soa.clone(),
        query(APEX, RecordType::TXT),
        query(&format!("absent.{APEX}"), RecordType::TXT),
        query("example.net.", RecordType::A),
        soa[..14].to_vec(),
        notify,
    ] {
        socket.send(&bytes).unwrap();
        socket.recv(&mut [0; 1500]).unwrap();
    }
    socket.send(&response).unwrap();
    assert_eq!(over_tcp(&mut connect(address), &soa).answers.len(), 1);
    let count = |text: &str, transport: &str, outcome: &str| -> Option<u64> {
        let start = format!("provost_dns_queries_total{{transport=\"{transport}\",outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
    };
    let text = eventually("the ignored response to be counted", || {
        let text = operators.get("/metrics").body;
        (count(&text, "udp", "ignored") == Some(1)).then_some(text)
    });
    for outcome in ["answered", "no_data", "nxdomain", "refused", "malformed", "unsupported"] {
        assert_eq!(count(&text, "udp", outcome), Some(1), "{outcome}: {text}");
    }
    assert_eq!((count(&text, "tcp", "answered"), count(&text, "udp", "rate_limited")), (Some(1), Some(0)), "{text}");
    let series = |text: &str| text.lines().filter(|line| line.starts_with("provost_dns_queries_total{")).count();
    assert_eq!(series(&text), 18, "{text}");
    eventually("answers over the rate limit", || {
        for _ in 0..300 {
            socket.send(&soa).unwrap();
        }
        let text = operators.get("/metrics").body;
        assert_eq!(series(&text), 18, "{text}");
        (count(&text, "udp", "rate_limited")? > 0).then_some(())
    });
}

#[test]
fn responder_thread_stands_back_behind_phones() {
    let server = site().start();
    address(&server);
    let niceness = |task: std::fs::DirEntry| -> Option<(bool, i32)> {
        // A thread that has just ended has none.
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, fields) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
        Some((name == "dns", fields.split(' ').nth(16).unwrap().parse().unwrap()))
    };
    let of_threads = || -> Vec<(bool, i32)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().map(Result::unwrap);
        tasks.filter_map(niceness).collect()
    };
    eventually("the thread to have a lower priority", || {
        let all = of_threads();
        let others = all.iter().filter(|(is_dns, _)| !is_dns).map(|(_, nice)| *nice).max()?;
        all.iter().any(|(is_dns, nice)| *is_dns && *nice > others).then_some(())
    });
}

#[test]
fn a_tcp_connection_takes_several_queries_until_it_is_idle() {
    let site = site();
    let server = site.start();
    let mut stream = connect(address(&server));
    for _ in 0..3 {
        assert_eq!(over_tcp(&mut stream, &query(APEX, RecordType::SOA)).answers.len(), 1);
    }
    assert_eq!(over_tcp(&mut stream, &query(APEX, RecordType::AXFR)).response_code, ResponseCode::Refused);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed, since nothing more is asked");
}

#[test]
fn the_oldest_idle_tcp_connection_makes_room() {
    let site = site();
    let server = site.start();
    let address = address(&server);
    let soa = query(APEX, RecordType::SOA);
    let mut all: Vec<TcpStream> = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        let mut stream = connect(address);
        assert_eq!(over_tcp(&mut stream, &soa).answers.len(), 1);
        all.push(stream);
    }
    // The first were closed; the last one is still served.
    assert_eq!(all[0].read(&mut [0; 1]).unwrap_or(0), 0);
    let mut last = connect(address);
    assert_eq!(over_tcp(&mut last, &soa).answers.len(), 1);
}

/// Connects from `source`, another address of loopback.
fn connect_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

#[test]
fn one_network_cannot_take_the_tcp_connections_of_another() {
    let site = site();
    let server = site.start();
    let address = address(&server);
    let soa = query(APEX, RecordType::SOA);
    // Resolvers of other networks are connected, and have not asked yet.
    let mut resolvers: Vec<TcpStream> = (1..=40).map(|third| connect_from([127, 0, third, 1], address)).collect();
    let mut flood = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        let mut stream = connect_from([127, 0, 200, 1], address);
        stream.write_all(&[&u16::try_from(soa.len()).unwrap().to_be_bytes()[..], &soa].concat()).unwrap();
        flood.push(stream);
    }
    let mut answered = 0;
    for resolver in &mut resolvers {
        assert_eq!(over_tcp(resolver, &soa).answers.len(), 1);
        answered += 1;
    }
    assert_eq!(answered, 40);
}

#[test]
fn responder_settings_that_make_no_sense_are_exit_code_2() {
    let site = site();
    let good = site.config.clone();
    let cases: [(&str, Value, &str); 20] = [
        ("/responder/listen", json!(["0.0.0.0:53"]), "stands for all addresses"),
        ("/responder/listen", json!(["[::ffff:0.0.0.0]:53"]), "stands for all addresses"),
        ("/responder/listen", json!(["[::ffff:192.0.2.10]:53"]), "write \"192.0.2.10:53\""),
        ("/responder/addresses", json!(["0.0.0.0"]), "stands for all addresses"),
        ("/responder/addresses", json!(["::ffff:192.0.2.10"]), "write \"192.0.2.10\""),
        ("/responder/listen", json!(["224.0.0.251:53"]), "an address of many hosts"),
        ("/responder/name_server", json!("192.0.2.10"), "name_server is a host name"),
        ("/responder/listen", json!(["[::]:53"]), "stands for all addresses"),
        ("/responder/listen", json!(["192.0.2.10"]), "not an address with a port"),
        ("/responder/listen", json!([]), "lists no address"),
        ("/responder/name_server", json!("bücher.example"), "A-labels"),
        ("/primary", json!("ns1.example.com"), "\"responder\" excludes \"primary\""),
        ("/tsig_key_file", json!("k"), "\"responder\" excludes \"tsig_key_file\""),
        ("/tsig_key_name", json!("provost."), "\"responder\" excludes \"tsig_key_name\""),
        ("/authorities", json!(["ns1.example.com"]), "\"responder\" excludes \"authorities\""),
        ("/ttl_s", json!(60), "\"responder\" excludes \"ttl_s\""),
        ("/settle_s", json!(5), "\"responder\" excludes \"settle_s\""),
        ("/propagation_timeout_s", json!(120), "\"responder\" excludes \"propagation_timeout_s\""),
        ("/zone", json!("phones.example.com"), "it holds phones.example.com"),
        ("/zone", json!("example.com."), "it holds phones.example.com"),
    ];
    for (key, value, reason) in cases {
        let mut wrong = Site::with_ote();
        wrong.config = good.clone();
        let (parent, key) = key.rsplit_once('/').unwrap();
        dns(&mut wrong).pointer_mut(parent).unwrap()[key] = value;
        for command in ["serve", "check"] {
            let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_provost"));
            let ended = tool::run(run.arg(command).arg("--config").arg(wrong.write_config()));
            assert!(ended.code == 2 && ended.stderr.contains(reason), "{command} {key}: {ended:?}");
        }
    }
}

#[test]
fn a_busy_port_asks_for_an_operator_until_it_is_free() {
    // In a network of its own, no other process takes the port meanwhile.
    if !namespace::is_inside("responder::a_busy_port_asks_for_an_operator_until_it_is_free", &[]) {
        return;
    }
    let mut site = site();
    let other = UdpSocket::bind("127.0.0.1:53").unwrap();
    let busy = other.local_addr().unwrap();
    dns(&mut site)["responder"]["listen"] = json!([busy]);
    let server = site.start();
    let line = server.says("the DNS responder cannot listen on");
    assert!(line.contains(&busy.to_string()) && line.contains("ss -lntup"), "{line}");
    let status = || {
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_provost"));
        let ended = tool::run(run.args(["certificate", "status", "--json", "--config"]).arg(site.write_config()));
        serde_json::from_str::<Value>(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    };
    let faulty = status()["certificates"][0].clone();
    assert_eq!(
        (&faulty["needs_human"], &faulty["state"], &faulty["level"]),
        (&json!(true), &json!("missing"), &json!("error"))
    );
    assert!(faulty["problem"].as_str().unwrap().contains("the DNS responder cannot listen on"), "{faulty}");
    drop(other);
    assert_eq!(address(&server), busy);
    // Now the attempt gets as far as to the CA, which does not answer.
    eventually("another failure", || {
        let error = status()["certificates"][0]["last_error"].as_str()?.to_owned();
        (!error.contains("cannot listen")).then_some(())
    });
}

#[test]
fn the_key_of_the_proofs_is_private_and_survives_a_restart() {
    let site = site();
    let file = site.path("state/responder.json");
    let server = site.start();
    address(&server);
    let first = std::fs::read(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let name = format!("_provost-0123456789abcdef.{APEX}.");
    let proof = |server: &Running| over_tcp(&mut connect(address(server)), &query(&name, RecordType::TXT)).answers;
    let before = proof(&server);
    assert_eq!(before.len(), 1);
    server.kill();
    let server = site.start();
    assert_eq!(proof(&server), before);
    assert_eq!(std::fs::read(&file).unwrap(), first);
}

#[test]
fn print_dns_records_for_updates_names_no_delegation() {
    let mut site = site();
    site.config["listen"] = json!(["192.0.2.10:443"]);
    site.constituency("ote", &json!({ "client_auth": "none", "certificate_names": "exact" }));
    let mut print = |zone: Value| {
        *dns(&mut site) = json!({ "primary": "127.0.0.1:1", "tsig_key_file": "absent.key", "zone": zone });
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_provost"));
        let ended = tool::run(run.args(["print", "dns-records", "--config"]).arg(site.write_config()));
        assert_eq!(ended.code, 0, "{ended:?}");
        let comments = ended.stdout.lines().filter(|line| line.starts_with("; ")).count();
        assert!(comments >= 2 && !ended.stdout.contains(" NS "), "{ended:?}");
        ended.stdout
    };
    let within = print(json!("example.com"));
    assert!(within.contains("; No record for the challenge: provost adds and removes"), "{within}");
    assert!(within.contains("\note.phones.example.com. A 192.0.2.10\n") && !within.contains("CNAME"), "{within}");
    let elsewhere = print(json!("acme.example.com"));
    assert!(elsewhere.contains("_acme-challenge.phones.example.com. CNAME phones.acme.example.com.\n"), "{elsewhere}");
    assert!(elsewhere.contains("_acme-challenge.ote.phones.example.com. CNAME ote.acme.example.com.\n"), "{elsewhere}");
}

#[test]
fn print_dns_records_remarks_addresses_and_ports_out_of_reach() {
    let mut site = site();
    let mut print = |responder: Value| {
        dns(&mut site)["responder"] = responder;
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_provost"));
        let ended = tool::run(run.args(["print", "dns-records", "--config"]).arg(site.write_config()));
        assert_eq!(ended.code, 0, "{ended:?}");
        let remarks = ended.stdout.lines().filter(|line| line.starts_with("; Warning: "));
        remarks.map(str::to_owned).collect::<Vec<_>>()
    };
    let inside = print(json!({ "listen": ["10.0.0.2:5353", "[fd00::2]:53"] }));
    let [v4, v6, port] = &inside[..] else { panic!("{inside:?}") };
    assert!(
        v4.starts_with("; Warning: 10.0.0.2 is a private address (RFC 1918), which the internet cannot reach"),
        "{v4}"
    );
    assert!(v6.starts_with("; Warning: fd00::2 is a unique local address (RFC 4193)"), "{v6}");
    assert!(port.starts_with("; Warning: the responder listens on 10.0.0.2:5353, and resolvers ask port 53"), "{port}");
    let chosen = print(json!({ "listen": ["9.9.9.9:0"] }));
    let [port] = &chosen[..] else { panic!("{chosen:?}") };
    assert!(port.ends_with("listens on 9.9.9.9:0, and resolvers ask port 53; listen on port 53."), "{port}");
    let behind_nat = json!({ "listen": ["10.0.0.2:53"], "addresses": ["9.9.9.9", "2620:fe::9"] });
    assert_eq!(print(behind_nat), Vec::<String>::new());
    let copied = print(json!({ "listen": ["192.0.2.10:53"] }));
    assert!(copied.len() == 1 && copied[0].contains("192.0.2.10 is an address for documentation"), "{copied:?}");
}

#[test]
fn systemd_may_keep_the_udp_socket() {
    let test = "responder::systemd_may_keep_the_udp_socket";
    let Some(activate) = program("systemd-socket-activate").filter(|_| program("dig").is_some()) else {
        return not_run(test, "systemd-socket-activate or dig is not installed");
    };
    if !namespace::is_inside(test, &[]) {
        return;
    }
    let mut site = site();
    dns(&mut site)["responder"]["listen"] = json!(["127.0.0.1:53"]);
    let mut command = std::process::Command::new(activate);
    command.args(["--datagram", "--listen=127.0.0.1:53", "--fdname=responder", env!("CARGO_BIN_EXE_provost"), "serve"]);
    command.arg("--config").arg(site.write_config()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let log = Lines::default();
    log.follow(child.stderr.take().unwrap());
    // The first query starts the server, which answers it.
    eventually("an answer", || {
        let answer = dig("127.0.0.1:53".parse().unwrap(), &["+notcp", APEX, "SOA"]);
        answer.contains("ANSWER: 1").then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let log = log.all().join("\n");
    assert!(log.contains("DNS responder on 127.0.0.1:53 (UDP and TCP)"), "{log}");
}
