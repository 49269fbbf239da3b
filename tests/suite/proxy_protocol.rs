//! The PROXY protocol: whose address a connection from a load balancer has, and what that address decides.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::FACTORY;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::Client;
use crate::harness::tool::provost;
use crate::harness::{VVX500, eventually};

/// The load balancer; `127.0.0.1` is not one.
const BALANCER: [u8; 4] = [127, 0, 0, 2];
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["proxy_protocol"] = json!(["127.0.0.2/32"]);
    site
}

fn phone(server: &Running) -> Client {
    server.client("ote", &FACTORY.device(VVX500))
}

/// The phone behind the load balancer, which sends `header`.
fn relayed(server: &Running, header: &[u8]) -> Client {
    phone(server).from(BALANCER.into()).after(header)
}

/// A header of version 1 for a client at `address`.
fn v1(address: &str) -> Vec<u8> {
    let family = if address.contains(':') { "TCP6" } else { "TCP4" };
    let target = if address.contains(':') { "::1" } else { "192.0.2.2" };
    format!("PROXY {family} {address} {target} 5000 443\r\n").into_bytes()
}

/// A header of version 2 with this command, and family and protocol.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

/// A header of version 2 for a client at `address`, port 5000, with an additional field.
fn v2_of(address: &str) -> Vec<u8> {
    let (family, client) = match address.parse().unwrap() {
        IpAddr::V4(address) => (0x11, address.octets().to_vec()),
        IpAddr::V6(address) => (0x21, address.octets().to_vec()),
    };
    let target = vec![1; client.len()];
    v2(0x21, family, &[&client[..], &target, &[0x13, 0x88, 1, 0xbb], &[0x05, 0, 1, 7]].concat())
}

/// A connection from the load balancer that has sent `bytes`.
fn send(server: &Running, bytes: &[u8]) -> Socket {
    let mut socket = Socket::connect_from(BALANCER.into(), server.address()).unwrap();
    socket.write_all(bytes).unwrap();
    socket
}

/// Waits until the server closes.
fn wait_for_close(mut socket: Socket) {
    let mut rest = Vec::new();
    // The end of the stream, or a reset.
    let _ = socket.read_to_end(&mut rest);
}

/// The access-log lines, without those of requests that were answered.
fn refusals(lines: &[Value]) -> Vec<(String, String)> {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    lines
        .iter()
        .filter(|line| line["status"].is_null())
        .map(|line| (text(line, "address"), text(line, "reason")))
        .collect()
}

#[test]
fn address_of_the_header_is_in_log_and_history() {
    let site = site();
    let server = site.start();
    let headers = [
        (v1("203.0.113.7"), "203.0.113.7:5000"),
        (v2_of("203.0.113.8"), "203.0.113.8:5000"),
        (v1("2001:db8::7"), "[2001:db8::7]:5000"),
        (v2_of("2001:db8::8"), "[2001:db8::8]:5000"),
        (v1("::ffff:203.0.113.9"), "203.0.113.9:5000"),
        (v2_of("::ffff:203.0.113.10"), "203.0.113.10:5000"),
        (b"PROXY TCP4 203.0.113.11 192.0.2.2 0 443\r\n".to_vec(), "203.0.113.11:0"),
    ];
    for (header, address) in &headers {
        let response = relayed(&server, header).get(&format!("/site.cfg?{address}")).unwrap();
        assert_eq!(response.status, 200, "{address}");
        let path = format!("/site.cfg?{address}");
        let line = server.access(address, |line| line["path"] == path.as_str());
        assert_eq!(line["address"], *address);
        let ip = address.parse::<SocketAddr>().unwrap().ip().to_string();
        eventually("the phone history", || {
            let printed = provost(&site.path("."), &["phones", "--json"]).stdout;
            let phone: Value = serde_json::from_str(printed.lines().next()?).ok()?;
            (phone["address"] == ip.as_str()).then_some(())
        });
    }
}

#[test]
fn own_connection_of_the_balancer_has_its_address() {
    let site = site();
    let server = site.start();
    let unix = [b'/'; 216];
    for header in [
        v2(0x20, 0x00, &[]),
        v2(0x20, 0x11, &[203, 0, 113, 7, 1, 1, 1, 1, 0, 1, 0, 1]),
        v2(0x21, 0x00, &[]),
        v2(0x21, 0x31, &unix),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 203.0.113.7 192.0.2.2 5000 443\r\n".to_vec(),
    ] {
        assert_eq!(relayed(&server, &header).get("/site.cfg").unwrap().status, 200, "{}", header.escape_ascii());
    }
    let lines = eventually("six lines", || Some(server.access_lines()).filter(|lines| lines.len() == 6));
    assert!(lines.iter().all(|line| line["address"].as_str().unwrap().starts_with("127.0.0.2:")), "{lines:?}");
}

#[test]
fn header_may_arrive_byte_by_byte_or_with_the_hello() {
    let site = site();
    let server = site.start();
    for header in [v1("203.0.113.7"), v2_of("203.0.113.7"), v2(0x20, 0, &[])] {
        // In one segment with the ClientHello: the handshake answers.
        let mut whole = send(&server, &[&header[..], &phone(&server).hello()].concat());
        let mut record = [0; 5];
        whole.read_exact(&mut record).unwrap();
        assert_eq!(record[0], 0x16, "{}", header.escape_ascii());
        let mut pieces = send(&server, b"");
        for byte in header.iter().chain(&phone(&server).hello()) {
            pieces.write_all(&[*byte]).unwrap();
        }
        pieces.read_exact(&mut record).unwrap();
        assert_eq!(record[0], 0x16, "{}", header.escape_ascii());
    }
}

#[test]
fn balancer_without_a_valid_header_is_refused_and_logged() {
    let site = site();
    let server = site.start();
    let hello = phone(&server).hello();
    let huge = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff], &[0; 5000]].concat();
    let cases: [(&[u8], &str); 9] = [
        (&hello, "no PROXY header: the connection begins with TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "no PROXY header: the connection begins with other data"),
        (b"PROXY TCP4 203.0.113.7 192.0.2.2 5000 443\n\n", "invalid PROXY header: its line does not end in CRLF"),
        (b"PROXY TCP4 203.0.113.700 192.0.2.2 5000 443\r\n", "invalid PROXY header: it has a malformed address"),
        (&[b"PROXY UNKNOWN "[..].to_vec(), vec![b'f'; 200]].concat(), "the PROXY header is too long"),
        (&v2(0x11, 0x11, &[1; 12]), "invalid PROXY header: its version is 1, not 2"),
        (&v2(0x21, 0x12, &[1; 12]), "invalid PROXY header: its client does not use TCP"),
        (&v2(0x21, 0x11, &[1; 4]), "invalid PROXY header: its length is 4 bytes"),
        (&huge, "the PROXY header is too long"),
    ];
    for (bytes, reason) in cases {
        let socket = send(&server, bytes);
        let address = socket.local_addr().unwrap().to_string();
        wait_for_close(socket);
        let line = server.access(reason, |line| line["address"] == address.as_str());
        assert!(line["reason"].as_str().unwrap().starts_with(reason), "{line}");
        assert_eq!((&line["status"], &line["mac"], &line["constituency"]), (&Value::Null, &Value::Null, &Value::Null));
    }
    relayed(&server, b"").get("/site.cfg").unwrap_err();
}

#[test]
fn header_from_another_network_is_not_read() {
    let site = site();
    let server = site.start();
    assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
    for header in [v1("203.0.113.7"), v2_of("203.0.113.7"), v2(0x20, 0, &[])] {
        phone(&server).after(&header).get("/site.cfg").unwrap_err();
    }
    let lines =
        eventually("three refusals", || Some(refusals(&server.access_lines())).filter(|refusals| refusals.len() == 3));
    for (address, reason) in lines {
        assert!(address.starts_with("127.0.0.1:") && reason.starts_with("is not TLS"), "{address}: {reason}");
    }
}

#[test]
fn silent_balancer_is_closed_at_the_handshake_timeout() {
    let mut site = site();
    site.config["limits"]["handshake_s"] = 1.into();
    let server = site.start();
    let cases: [(&[u8], &str); 4] = [
        (b"", "no whole PROXY header within 1 s"),
        (b"PROXY TCP4 203.0", "no whole PROXY header within 1 s"),
        (&v2_of("203.0.113.7")[..20], "no whole PROXY header within 1 s"),
        (&v1("203.0.113.7"), "the handshake took more than 1 s"),
    ];
    for (bytes, reason) in cases {
        let socket = send(&server, bytes);
        let own = socket.local_addr().unwrap().to_string();
        let address = if reason.starts_with("no") { own } else { "203.0.113.7:5000".to_owned() };
        wait_for_close(socket);
        let line = server.access(reason, |line| line["address"] == address.as_str());
        assert_eq!(line["reason"], reason);
    }
}

#[test]
fn connections_are_limited_by_the_address_of_the_header() {
    let mut site = site();
    site.config["limits"]["connections_per_address"] = 2.into();
    let server = site.start();
    // Without a header, more than one address may have.
    let _silent: Vec<Socket> = (0..5).map(|_| send(&server, b"")).collect();
    let connect = |address: &str| {
        let mut connection = relayed(&server, &v2_of(address)).connect().unwrap();
        // Known phones are not evicted.
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200, "{address}");
        connection
    };
    let _of_one = [connect("203.0.113.7"), connect("203.0.113.7")];
    let _of_others = [connect("203.0.113.8"), connect("203.0.113.9"), connect("203.0.113.10")];
    relayed(&server, &v1("203.0.113.7")).get("/site.cfg").unwrap_err();
    let line = server.reason("203.0.113.7/32 already has 2 connections (limits.connections_per_address)");
    assert_eq!(line["address"], "203.0.113.7:5000");
    // The balancer's own connections count for the balancer.
    let own = || {
        let mut connection = relayed(&server, &v2(0x20, 0, &[])).connect().unwrap();
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
        connection
    };
    let _own = [own(), own()];
    relayed(&server, &v2(0x20, 0, &[])).get("/site.cfg").unwrap_err();
    server.reason("127.0.0.2/32 already has 2 connections (limits.connections_per_address)");
}

#[test]
fn unlimited_networks_apply_to_the_address_of_the_header() {
    let mut site = site();
    site.config["limits"]["connections_per_address"] = 1.into();
    site.config["limits"]["unlimited_networks"] = json!(["203.0.113.0/24"]);
    let server = site.start();
    let _many: Vec<_> = (0..3)
        .map(|_| {
            let mut connection = relayed(&server, &v1("203.0.113.7")).connect().unwrap();
            assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
            connection
        })
        .collect();
}

#[test]
fn silent_balancer_connections_are_evicted_even_if_unlimited() {
    let mut site = site();
    site.config["limits"] = json!({
        "unfinished_handshakes": 4, "handshake_s": 600, "unlimited_networks": ["127.0.0.2/32"], "free_space_bytes": 0,
    });
    let server = site.start();
    let _silent: Vec<Socket> = (0..20).map(|_| send(&server, b"")).collect();
    assert_eq!(relayed(&server, &v1("203.0.113.7")).get("/site.cfg").unwrap().status, 200);
    assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
    let line = server.reason("evicted before its PROXY header was complete: all 4 permits for unfinished handshakes");
    assert!(line["address"].as_str().unwrap().starts_with("127.0.0.2:"), "{line}");
}

#[test]
fn prefix_of_the_header_decides_who_is_evicted() {
    let mut site = site();
    site.config["limits"] = json!({ "unfinished_handshakes": 4, "handshake_s": 600, "free_space_bytes": 0 });
    let server = site.start();
    let _many: Vec<Socket> = (0..3).map(|_| send(&server, &v2_of("198.51.100.1"))).collect();
    let heaviest = "198.51.100.1/32 has the most connections without one";
    let mut others = Vec::new();
    let line = eventually(heaviest, || {
        // Each from another address, so that none is as heavy.
        let address = format!("203.0.113.{}", others.len() % 250);
        others.push(send(&server, &v1(&address)));
        server.access_lines().into_iter().find(|line| line["reason"].as_str().unwrap_or_default().contains(heaviest))
    });
    assert_eq!(line["address"], "198.51.100.1:5000");
}

#[test]
fn header_admits_no_client_to_plain_http_or_operators() {
    let mut site = site();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "plain_http": true }));
    site.config["plain_http"] = json!({ "listen": "127.0.0.1:0", "networks": ["127.0.0.1/32"] });
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = Running::start(site.command(), 2);
    let plain = server.addresses[1];
    let request = format!("GET /site.cfg HTTP/1.1\r\nHost: ote.{DOMAIN}\r\nConnection: close\r\n\r\n");
    let answer = |from: [u8; 4], to: SocketAddr, header: &[u8], request: &str| {
        let mut socket = Socket::connect_from(from.into(), to).unwrap();
        let mut answer = Vec::new();
        // A connection that is refused may be reset.
        let _ = socket.write_all(&[header, request.as_bytes()].concat());
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(answer([127, 0, 0, 1], plain, b"", &request).starts_with("HTTP/1.1 200 "));
    for header in [v1("127.0.0.1"), v2_of("127.0.0.1"), v2(0x20, 0, &[])] {
        // The balancer is outside of the networks, whatever its header says.
        assert_eq!(answer(BALANCER, plain, &header, &request), "");
        // In the networks, a header is a malformed request.
        assert!(answer([127, 0, 0, 1], plain, &header, &request).starts_with("HTTP/1.1 400 "));
        let operators = Operators::of(&server).base;
        let operators = operators.strip_prefix("http://").unwrap().parse().unwrap();
        let request = "GET /api/overview HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert!(answer(BALANCER, operators, b"", request).starts_with("HTTP/1.1 200 "));
        assert!(answer(BALANCER, operators, &header, request).starts_with("HTTP/1.1 400 "));
    }
    let line = server.reason("the client is outside the networks for plain HTTP");
    assert!(line["address"].as_str().unwrap().starts_with("127.0.0.2:"), "{line}");
}

#[test]
fn connect_and_close_of_a_balancer_is_not_logged() {
    let site = site();
    let server = site.start();
    let own = "PROXY TCP4 127.0.0.2 127.0.0.1 5000 443\r\n";
    let quiet: [&[u8]; 5] = [b"", &v2(0x20, 0, &[]), &v2(0x21, 0, &[]), b"PROXY UNKNOWN\r\n", own.as_bytes()];
    for bytes in quiet {
        for is_reset in [false, true] {
            let socket = send(&server, bytes);
            if is_reset {
                // As HAProxy ends its checks.
                socket2::SockRef::from(&*socket).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
    }
    // All that is not such a check is logged.
    drop(send(&server, b"PROXY TCP4 203"));
    drop(send(&server, &v1("203.0.113.7")));
    drop(send(&server, &[&v2(0x20, 0, &[])[..], &[0x16, 3, 1]].concat()));
    drop(Socket::connect(server.address()).unwrap());
    let reasons = [
        "closed by the load balancer after 14 bytes of its PROXY header",
        "closed by the client: sent nothing",
        "closed by the client: a truncated ClientHello (3 bytes)",
    ];
    for reason in reasons {
        server.reason(reason);
    }
    // Later than all others, so they have been accepted when this is answered.
    assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
    server.access("the client of another network", |line| {
        line["reason"] == reasons[1] && line["address"].as_str().unwrap().starts_with("127.0.0.1:")
    });
    server.signal(Signal::TERM);
    let (status, lines) = server.ended();
    assert_eq!(status.code(), Some(0));
    let refusals = refusals(&lines);
    assert_eq!(refusals.len(), 4, "{refusals:?}");
    let addresses: Vec<&str> = refusals.iter().map(|(address, _)| address.rsplit_once(':').unwrap().0).collect();
    for (address, count) in [("203.0.113.7", 1), ("127.0.0.2", 2), ("127.0.0.1", 1)] {
        assert_eq!(addresses.iter().filter(|found| **found == address).count(), count, "{refusals:?}");
    }
}

#[test]
fn check_warns_where_a_balancer_may_use_plain_http() {
    let mut site = site();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "plain_http": true }));
    for (network, is_warned) in [("127.0.0.0/8", true), ("127.0.0.1/32", false)] {
        site.config["plain_http"] = json!({ "listen": "127.0.0.1:0", "networks": [network] });
        site.write_config();
        let printed = provost(&site.path("."), &["check"]).stdout;
        let warning = format!("{network} overlaps with 127.0.0.2/32 of \"proxy_protocol\"");
        assert_eq!(printed.contains(&warning), is_warned, "{printed}");
    }
}

#[test]
fn whole_internet_as_load_balancers_is_rejected() {
    let mut site = site();
    site.config["proxy_protocol"] = json!(["10.0.0.0/24", "0.0.0.0/0"]);
    site.write_config();
    let ended = provost(&site.path("."), &["serve"]);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("\"proxy_protocol\": 0.0.0.0/0 is the whole internet"), "{}", ended.stderr);
}
