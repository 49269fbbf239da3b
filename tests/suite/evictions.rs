//! Evictions: idle connections are closed to make room, so that phones are served during an attack.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::{Client, in_pieces};
use crate::harness::{VVX500, eventually, namespace};

/// The address of a known phone behind a NAT with others.
const NAT: [u8; 4] = [127, 9, 9, 9];
/// The limits of these tests and the attack of 60,000 connections, both scaled down from the default limits.
const SLOTS: usize = 256;
const CROWD: usize = 60_000 * SLOTS / 8_192;
const PER_ADDRESS: usize = 1_024 * SLOTS / 8_192;

fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["limits"] = json!({
        "unfinished_handshakes": SLOTS, "connections_per_address": PER_ADDRESS, "handshake_s": 60, "free_space_bytes": 0,
    });
    site
}

fn phone(server: &Running) -> Client {
    server.client("ote", &FACTORY.device(VVX500)).from(NAT.into())
}

/// Boots a phone from a prefix where no phone was authenticated yet. It retries, as phones do: on a busy machine, it may
/// pause between its connect and its ClientHello, and is then evicted like the idle clients.
fn first_boot(phone: &Client) {
    let status = eventually("the first boot", || phone.get("/site.cfg").ok()).status;
    assert_eq!(status, 200);
}

fn evicted(server: &Running) -> Vec<Value> {
    let is_it = |line: &Value| line["reason"].as_str().is_some_and(|reason| reason.starts_with("evicted before its"));
    server.access_lines().into_iter().filter(is_it).collect()
}

/// The behavior of an idle client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    Silent,
    /// Sends a part of a ClientHello.
    Begun,
    /// Sends a ClientHello byte by byte.
    Drips,
}

/// Keeps `count` connections from `addresses` open while `act` runs: each that the server closes is replaced.
fn under_attack<T>(server: &Running, addresses: &[IpAddr], count: usize, idle: Idle, act: impl FnOnce() -> T) -> T {
    let hello = phone(server).hello();
    let is_over = AtomicBool::new(false);
    let (rounds, reported) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connections: Vec<Option<(Socket, usize)>> = Vec::new();
            connections.resize_with(count, || None);
            while !is_over.load(Ordering::Relaxed) {
                for (connection, source) in connections.iter_mut().zip(addresses.iter().cycle()) {
                    if connection.as_ref().is_none_or(|(socket, _)| is_closed(socket)) {
                        let Ok(mut socket) = Socket::connect_from(*source, server.address()) else { continue };
                        if idle == Idle::Begun {
                            let _ = socket.write_all(&hello[..hello.len() / 2]);
                        }
                        socket.set_nonblocking(true).unwrap();
                        *connection = Some((socket, 0));
                    }
                    if let Some((socket, sent)) = connection.as_mut().filter(|_| idle == Idle::Drips) {
                        let _ = hello.get(*sent).map(|byte| socket.write(&[*byte]));
                        *sent += 1;
                    }
                }
                let _ = rounds.send(());
            }
        });
        reported.recv().unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        is_over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether the server has closed a non-blocking socket that receives nothing else.
fn is_closed(socket: &Socket) -> bool {
    !matches!(socket.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn addresses(count: usize) -> Vec<IpAddr> {
    (0..count)
        .map(|number| {
            IpAddr::from([127, 8, u8::try_from(number / 250).unwrap(), u8::try_from(number % 250 + 1).unwrap()])
        })
        .collect()
}

#[test]
fn known_phone_boots_behind_a_nat_while_idle_connections_attack() {
    raise_descriptors();
    for (addresses_of_60_000, idle) in
        [(3, Idle::Silent), (60, Idle::Silent), (6_000, Idle::Silent), (6_000, Idle::Begun), (60, Idle::Drips)]
    {
        let site = site();
        let server = site.start();
        let sources = addresses((addresses_of_60_000 * SLOTS / 8_192).max(3));
        // The others behind the same address are idle too, and count for the same address as the phone.
        let others: Vec<Socket> =
            (0..300 * SLOTS / 8_192).map(|_| Socket::connect_from(NAT.into(), server.address()).unwrap()).collect();
        under_attack(&server, &sources, CROWD, idle, || {
            first_boot(&phone(&server));
            // From now on, its prefix is evicted last.
            for _ in 0..10 {
                assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200, "{} {idle:?}", sources.len());
            }
        });
        if sources.len() > SLOTS / PER_ADDRESS {
            server.reason("evicted before its ClientHello was complete: all 256 permits for unfinished handshakes");
        }
        assert_eq!(others.len(), 9);
    }
}

#[test]
fn prefix_of_a_proven_phone_is_evicted_last() {
    const OTHERS: usize = PER_ADDRESS / 2;
    raise_descriptors();
    for is_proven in [true, false] {
        let site = site();
        let server = site.start();
        if is_proven {
            assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
        }
        let mut others: Vec<Socket> =
            (0..OTHERS).map(|_| Socket::connect_from(NAT.into(), server.address()).unwrap()).collect();
        // One connection per address, far fewer than the phone's address has.
        under_attack(&server, &addresses(2 * SLOTS), 2 * SLOTS, Idle::Silent, || {
            eventually("evictions", || (evicted(&server).len() > SLOTS).then_some(()));
        });
        let open = others.iter_mut().filter_map(|socket| is_open(socket).then_some(())).count();
        if is_proven {
            assert_eq!(open, OTHERS);
        } else {
            assert!(open <= 2, "{open}");
        }
    }
}

#[test]
fn evicted_client_is_logged_with_the_limit_and_the_prefix() {
    let mut site = site();
    site.config["limits"]["unfinished_handshakes"] = 4.into();
    let server = site.start();
    let idle: Vec<Socket> = (0..6).map(|_| Socket::connect(server.address()).unwrap()).collect();
    let lines = eventually("two evictions", || Some(evicted(&server)).filter(|lines| lines.len() == 2));
    for (line, socket) in lines.iter().zip(&idle) {
        assert_eq!(line["address"], socket.local_addr().unwrap().to_string(), "the oldest is evicted first");
        assert_eq!(
            line["reason"],
            "evicted before its ClientHello was complete: all 4 permits for unfinished handshakes are in use \
             (limits.unfinished_handshakes); 127.0.0.1/32 has the most connections without one (4)"
        );
        assert_eq!((&line["status"], &line["mac"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn handshakes_after_their_hello_are_not_evicted() {
    let mut site = site();
    site.config["limits"]["unfinished_handshakes"] = 4.into();
    let server = site.start();
    let hello = phone(&server).hello();
    let mut waiting: Vec<Socket> = (0..4)
        .map(|_| {
            let mut socket = Socket::connect(server.address()).unwrap();
            socket.write_all(&hello).unwrap();
            // The answer has begun, so the ClientHello was complete.
            socket.read_exact(&mut [0; 5]).unwrap();
            socket
        })
        .collect();
    let (phone, served) = (phone(&server), AtomicBool::new(false));
    thread::scope(|scope| {
        let phone = scope.spawn(|| {
            let status = phone.get("/site.cfg").unwrap().status;
            served.store(true, Ordering::Relaxed);
            status
        });
        server.says("no connection can be accepted: all 4 permits for unfinished handshakes are in use");
        assert!(!served.load(Ordering::Relaxed));
        assert!(waiting.iter_mut().all(is_open));
        waiting.pop();
        assert_eq!(phone.join().unwrap(), 200);
    });
    assert!(evicted(&server).is_empty());
    drop(waiting);
    eventually("connections to be accepted again", || {
        assert_eq!(self::phone(&server).get("/site.cfg").unwrap().status, 200);
        server.stderr().iter().any(|line| line.contains("connections are accepted again")).then_some(())
    });
}

#[test]
fn stalled_handshakes_do_not_block_others() {
    let mut site = site();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "tls": "legacy" }));
    site.config["limits"]["unfinished_handshakes"] = 200.into();
    site.config["limits"]["connections_per_address"] = 0.into();
    let server = site.start();
    // More than any machine has processors, for both TLS libraries.
    let old = include_bytes!("hellos/dhe-and-rsa-kx.bin").as_slice();
    let modern = phone(&server).hello();
    let waiting: Vec<Socket> = (0..160)
        .map(|number| {
            let mut socket = Socket::connect(server.address()).unwrap();
            socket.write_all(if number % 2 == 0 { old } else { &modern }).unwrap();
            let mut first = [0; 1];
            socket.read_exact(&mut first).unwrap();
            assert_eq!(first, [22], "a ServerHello answers a ClientHello");
            socket
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
    }
    drop(waiting);
}

#[test]
fn phones_connecting_at_once_are_all_served_at_a_low_limit() {
    const PHONES: usize = 100;
    for places in [4, 32] {
        let mut site = site();
        site.config["limits"]["unfinished_handshakes"] = places.into();
        let server = site.start();
        let phone = phone(&server);
        // While the server is stopped, all hellos arrive, however busy the machine is.
        server.signal(Signal::STOP);
        // Without a retry: an evicted or refused phone fails the test.
        let served = thread::scope(|scope| {
            let phones: Vec<_> = addresses(PHONES)
                .into_iter()
                .map(|address| {
                    let phone = phone.clone().from(address);
                    scope.spawn(move || phone.get("/site.cfg").map(|answer| answer.status))
                })
                .collect();
            eventually("all hellos", || (with_unread_bytes(&server) == PHONES).then_some(()));
            server.signal(Signal::CONT);
            phones.into_iter().map(|phone| phone.join().unwrap()).collect::<Vec<_>>()
        });
        let failed: Vec<_> = served.iter().filter(|status| !matches!(status, Ok(200))).collect();
        assert!(failed.is_empty(), "{} of {PHONES} failed with {places} places: {failed:?}", failed.len());
        assert!(evicted(&server).is_empty());
    }
}

#[test]
fn refused_lingering_clients_are_closed_to_make_room() {
    let mut site = site();
    site.config["limits"]["unfinished_handshakes"] = 4.into();
    let server = site.start();
    let unknown = Client::new(server.address(), Some("nobody.phones.example.com")).hello();
    let refused: Vec<Socket> = (0..8)
        .map(|_| {
            let mut socket = Socket::connect(server.address()).unwrap();
            socket.write_all(&unknown).unwrap();
            socket.read_exact(&mut [0; 7]).unwrap();
            socket
        })
        .collect();
    assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
    assert!(evicted(&server).is_empty(), "they were logged as refused before");
    drop(refused);
}

#[test]
fn idle_client_at_the_same_address_does_not_block_a_phone() {
    let site = site();
    let server = site.start();
    let idle: Vec<Socket> =
        (0..2 * PER_ADDRESS).filter_map(|_| Socket::connect_from(NAT.into(), server.address()).ok()).collect();
    assert_eq!(idle.len(), 2 * PER_ADDRESS);
    eventually("the phone to be served", || phone(&server).get("/site.cfg").ok().filter(|answer| answer.status == 200));
    server.reason("127.9.9.9/32 already has 32 connections (limits.connections_per_address)");
}

#[test]
fn handshakes_without_a_request_block_no_client() {
    let mut site = site();
    site.config["limits"]["anonymous_connections"] = 4.into();
    site.config["limits"]["header_s"] = 600.into();
    site.constituency("public", &json!({ "client_auth": "none" }));
    site.file("public/site.cfg", "<public/>");
    let server = site.start();
    let client = |from: [u8; 4]| server.client("public", &FACTORY.device(VVX500)).from(from.into());
    let silent: Vec<_> = (0..20).map(|_| client([127, 8, 0, 1]).connect().unwrap()).collect();
    // These are idle after a request, and are evicted after those that have sent none.
    let mut served: Vec<_> = (0..2)
        .map(|_| {
            let mut connection = client(NAT).connect().unwrap();
            assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
            connection
        })
        .collect();
    server.reason("evicted before its first request was complete: all 4 permits for anonymous connections are in use");
    for connection in &mut served {
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    }
    assert_eq!(silent.len(), 20);
}

#[test]
fn anonymous_connection_idle_between_requests_makes_room() {
    let mut site = site();
    site.config["limits"]["anonymous_connections"] = 2.into();
    site.constituency("public", &json!({ "client_auth": "none" }));
    site.file("public/site.cfg", "<public/>");
    let server = site.start();
    let client = |from: [u8; 4]| server.client("public", &FACTORY.device(VVX500)).from(from.into());
    let mut idle: Vec<_> = (0..2).map(|_| client([127, 8, 0, 1]).connect().unwrap()).collect();
    for connection in &mut idle {
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    }
    // Each is idle a moment after its answer, so one or both of them are when the third connects.
    eventually("a free slot", || client(NAT).get("/site.cfg").ok().filter(|answer| answer.status == 200));
    let line = server.reason("evicted while it was idle between requests: all 2 permits for anonymous connections");
    assert_eq!(line["constituency"], "public");
    let reason = line["reason"].as_str().unwrap();
    let who = [1, 2].map(|idle| format!("; 127.8.0.1/32 has the most idle connections ({idle})"));
    assert!(who.iter().any(|who| reason.ends_with(who)), "{line}");
}

#[test]
fn unlimited_networks_are_never_evicted() {
    let mut site = site();
    site.config["limits"]["unfinished_handshakes"] = 8.into();
    site.config["limits"]["unlimited_networks"] = json!(["127.9.0.0/16"]);
    let server = site.start();
    let mut trusted: Vec<Socket> =
        (0..4).map(|_| Socket::connect_from(NAT.into(), server.address()).unwrap()).collect();
    under_attack(&server, &addresses(50), 50, Idle::Silent, || {
        eventually("evictions", || (evicted(&server).len() > 50).then_some(()));
        assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
    });
    assert!(trusted.iter_mut().all(is_open));
}

/// IPv6 addresses: of an attacker in one /64 and in many of one /48, and of phones in another /48 and in the same.
fn ipv6(network: u16, host: usize) -> String {
    format!("fd00:0:{network:x}:{host:x}::1")
}

#[test]
fn many_ipv6_prefixes_of_an_attacker_do_not_block_phones() {
    const TEST: &str = "evictions::many_ipv6_prefixes_of_an_attacker_do_not_block_phones";
    const NETWORKS: usize = 48;
    let mut all: Vec<String> = (0..NETWORKS).map(|host| ipv6(1, host)).collect();
    all.extend((2..20).map(|host| format!("fd00:0:1:0::{host:x}")));
    all.extend([ipv6(2, 1), ipv6(1, 0xffff)]);
    let all: Vec<String> = all.into_iter().map(|address| address + "/128").collect();
    if !namespace::is_inside(TEST, &all.iter().map(String::as_str).collect::<Vec<_>>()) {
        return;
    }
    raise_descriptors();
    let address = |text: String| text.parse::<IpAddr>().unwrap();
    let one_64 = (2..20).map(|host| address(format!("fd00:0:1:0::{host:x}"))).collect::<Vec<_>>();
    let many_64 = (0..NETWORKS).map(|host| address(ipv6(1, host))).collect::<Vec<_>>();
    for (attackers, what) in [(one_64, "one /64"), (many_64, "many /64 of one /48")] {
        let mut site = site();
        site.config["listen"] = json!(["[::1]:0"]);
        site.config["limits"]["unfinished_handshakes"] = 64.into();
        site.config["limits"]["connections_per_address"] = 0.into();
        let server = site.start();
        // More connections than each of the attacker's /64, fewer than its /48.
        let from = address(ipv6(2, 1));
        let mut idle: Vec<Socket> = (0..8).map(|_| Socket::connect_from(from, server.address()).unwrap()).collect();
        under_attack(&server, &attackers, 200, Idle::Silent, || {
            for from in [from, address(ipv6(1, 0xffff))] {
                first_boot(&server.client("ote", &FACTORY.device(VVX500)).from(from));
            }
        });
        eventually("evictions", || (evicted(&server).len() > 100).then_some(()));
        assert_eq!(idle.iter_mut().filter_map(|socket| is_open(socket).then_some(())).count(), 8, "{what}");
    }
}

#[test]
fn client_with_incomplete_hello_holds_little_memory() {
    raise_descriptors();
    let mut site = site();
    site.config["limits"]["unfinished_handshakes"] = 5_000.into();
    site.config["limits"]["connections_per_address"] = 0.into();
    let server = site.start();
    assert_eq!(phone(&server).get("/site.cfg").unwrap().status, 200);
    let hold = |count: usize, bytes: &[u8]| {
        let before = server.memory_kib();
        let connect = |_| {
            let mut socket = Socket::connect(server.address()).unwrap();
            socket.write_all(bytes).unwrap();
            socket
        };
        let connections: Vec<Socket> = (0..count).map(connect).collect();
        eventually("the connections to be read", || (unread_bytes(&server) == 0).then_some(()));
        let used = server.memory_kib().saturating_sub(before) / count as u64;
        drop(connections);
        eventually("their end", || (established(&server) == 0).then_some(()));
        used
    };
    let hello = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc], &[0; 16_000][..]].concat();
    let in_small_records = in_pieces(&[&[22, 3, 1, 0x3e, 0], &hello[5..5 + 0x3e00]].concat(), 1);
    // Once before measuring, because the allocator keeps some memory for reuse.
    let silent = hold(2_000, &[]);
    assert!(silent <= 4, "silent: {silent} KiB each");
    let (begun, in_small_records) = (hold(1_000, &hello), hold(100, &in_small_records));
    assert!(begun <= 22 && in_small_records <= 22, "begun: {begun} KiB, in small records: {in_small_records} KiB each");
}

/// Bytes that the server's sockets have received and it has not read.
fn unread_bytes(server: &Running) -> u64 {
    sockets(server).map(|queues| unread(&queues)).sum()
}

/// How many connections have bytes that the server has not read.
fn with_unread_bytes(server: &Running) -> usize {
    sockets(server).filter(|queues| unread(queues) > 0).count()
}

fn unread(queues: &str) -> u64 {
    u64::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap()
}

fn established(server: &Running) -> usize {
    sockets(server).count()
}

/// The server's connections with their queues, from /proc/net.
fn sockets(server: &Running) -> impl Iterator<Item = String> {
    let port = format!(":{:04X}", server.address().port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let lines: Vec<String> = table.lines().map(str::to_owned).collect();
    lines.into_iter().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1).is_some_and(|local| local.ends_with(&port)) && fields.get(3) == Some(&"01");
        is_it.then(|| fields[4].to_owned())
    })
}

/// Whether the server has kept it open.
fn is_open(socket: &mut Socket) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    loop {
        match socket.read(&mut [0; 4096]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

/// Raises this process's limit of open files.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
