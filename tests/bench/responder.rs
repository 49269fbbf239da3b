//! The built-in DNS responder under a flood of queries, while phones boot: what it answers, at what cost, and whether
//! the phones notice.
//!
//! The server has its processor, flood and phones share the other. The phones are measured several times: without a
//! flood; with one to a socket that drops it, which shows what the sharing costs; and with floods to the responder:
//! from many networks, each below the rate limit, and from one network, far above it. nginx has no responder, so this is
//! a table of its own.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hickory_net::proto::op::{Message, MessageType, OpCode, Query};
use hickory_net::proto::rr::{Name, RecordType};

use super::machine::{self, CpuTime};
use super::power_cut::Phones;
use super::servers::Server;
use super::site::{CHALLENGE, Site};

/// How long each row is measured, and how often a phone boots meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct ResponderEffort {
    pub round: Duration,
    pub boot_interval: Duration,
}

pub const NAME: &str = "DNS responder: phones boot under a flood of queries";
/// The networks of the flood, each a /24. At 50 answers a second each and a burst of 200, they are never over the limit.
const NETWORKS: u16 = 4096;
/// The phones that boot in turn.
const PHONES: usize = 200;
/// How long the last answers of a flood may take.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// The name of the responder's thread.
const THREAD: &str = "dns";

/// A flood, sent by a thread as fast as it can.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Counts>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    sent: u64,
    answered: u64,
    /// Empty answers with TC, because the network is over the rate limit.
    truncated: u64,
}

/// One row of the table.
struct Row {
    name: &'static str,
    elapsed: Duration,
    counts: Counts,
    /// Processor time of the responder's thread, and of all others of the server.
    responder: Duration,
    others: Duration,
    /// How long each boot took, in order of length.
    boots: Vec<Duration>,
    failures: Vec<std::io::Error>,
}

/// Measures all rows; returns the table.
pub async fn measure(site: &Site, effort: ResponderEffort) -> String {
    let phones = Phones::new(site, PHONES);
    let (server, responder) = Server::start_with_responder(site);
    // Its buffer is full at once, and the kernel drops the rest.
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sink = (sink.local_addr().unwrap(), sink);
    let rows = [
        ("no flood", None),
        ("flood to a socket that drops it", Some((sink.0, NETWORKS))),
        ("flood from many networks", Some((responder, NETWORKS))),
        ("flood from one network", Some((responder, 1))),
    ];
    // Fills caches.
    assert!(
        phones.boot_in_turn(&server, effort.boot_interval, effort.boot_interval * 20).await.iter().all(Result::is_ok)
    );
    let mut measured = Vec::new();
    for (name, flood) in rows {
        eprint!("{name} ");
        measured.push(Row::measure(name, flood, &phones, &server, effort).await);
        eprintln!(".");
    }
    table(&measured)
}

impl Row {
    async fn measure(
        name: &'static str,
        flood: Option<(SocketAddr, u16)>,
        phones: &Phones,
        server: &Server,
        effort: ResponderEffort,
    ) -> Self {
        let before = (CpuTime::of(server.pid()), machine::thread_time(server.pid(), THREAD));
        let flood = flood.map(|(target, networks)| Flood::start(target, networks));
        let began = Instant::now();
        let results = phones.boot_in_turn(server, effort.boot_interval, effort.round).await;
        let elapsed = began.elapsed();
        let counts = flood.map(Flood::end).unwrap_or_default();
        let used = CpuTime::of(server.pid()).since(&before.0);
        let responder = machine::thread_time(server.pid(), THREAD).saturating_sub(before.1);
        let (mut boots, mut failures) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(time) => boots.push(time),
                Err(error) => failures.push(error),
            }
        }
        boots.sort_unstable();
        Self { name, elapsed, counts, responder, others: used.saturating_sub(responder), boots, failures }
    }

    fn boot_at(&self, share: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small length")]
        let index = ((self.boots.len() as f64 - 1.0) * share) as usize;
        self.boots.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

impl Flood {
    fn start(target: SocketAddr, networks: u16) -> Self {
        let sockets: Vec<UdpSocket> = (0..networks).map(source).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            // The phones come first on the processor that both share.
            let thread = rustix::thread::gettid();
            rustix::process::setpriority_process(Some(thread), 19).expect("a lower priority");
            flood(&sockets, target, &stopped)
        });
        Self { stop, thread }
    }

    fn end(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the flood")
    }
}

/// A socket in a network of its own.
fn source(number: u16) -> UdpSocket {
    let [high, low] = number.to_be_bytes();
    let socket = UdpSocket::bind((IpAddr::from([127, 100 + high, low, 1]), 0)).expect("a loopback address");
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Sends queries from all `sockets` in turn until `stopped`, and counts the answers.
fn flood(sockets: &[UdpSocket], target: SocketAddr, stopped: &AtomicBool) -> Counts {
    let query = query();
    let mut counts = Counts::default();
    while !stopped.load(Ordering::Relaxed) {
        for socket in sockets {
            // If the sender's buffer is full, the query was not sent.
            counts.sent += u64::from(socket.send_to(&query, target).is_ok());
            counts.receive(socket);
        }
    }
    let deadline = Instant::now() + LAST_ANSWERS;
    while Instant::now() < deadline {
        for socket in sockets {
            counts.receive(socket);
        }
    }
    counts
}

impl Counts {
    fn receive(&mut self, socket: &UdpSocket) {
        let mut buffer = [0; 1500];
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let code = buffer[3] & 0x0f;
                    assert!(length >= 12 && code == 0, "not an answer: {:?}", &buffer[..length]);
                    let is_truncated = buffer[2] & 0x02 != 0;
                    *(if is_truncated { &mut self.truncated } else { &mut self.answered }) += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// The question of a CA's resolver.
fn query() -> Vec<u8> {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(CHALLENGE).unwrap(), RecordType::TXT));
    query.set_edns(hickory_net::proto::op::Edns::new());
    query.to_vec().unwrap()
}

fn table(rows: &[Row]) -> String {
    let mut text = format!("{NAME}\n");
    let _ = writeln!(
        text,
        "{:<33}{:>10}{:>11}{:>11}{:>8}{:>11}{:>11}{:>9}{:>8}{:>9}{:>9}{:>9}{:>10}",
        "per second, then boots in ms",
        "queries",
        "answered",
        "truncated",
        "lost",
        "CPU/query",
        "per core",
        "boots",
        "failed",
        "median",
        "90 %",
        "99 %",
        "CPU/boot"
    );
    for row in rows {
        let seconds = row.elapsed.as_secs_f64();
        let Counts { sent, answered, truncated } = row.counts;
        let done = (answered + truncated) as f64;
        let rate = |count: u64| format!("{:.0}", count as f64 / seconds);
        let lost = if sent == 0 { String::new() } else { format!("{:.0} %", (1.0 - done / sent as f64) * 100.0) };
        let (cost, per_core) = if done > 0.0 {
            let cost = row.responder.as_secs_f64() / done;
            (format!("{:.2} µs", cost * 1e6), format!("{:.0}", 1.0 / cost))
        } else {
            (String::new(), String::new())
        };
        let tries = row.boots.len() + row.failures.len();
        let _ = writeln!(
            text,
            "{:<33}{:>10}{:>11}{:>11}{lost:>8}{cost:>11}{per_core:>11}{tries:>9}{:>8}{:>9.1}{:>9.1}{:>9.1}{:>10.2}",
            row.name,
            rate(sent),
            rate(answered),
            rate(truncated),
            row.failures.len(),
            row.boot_at(0.5),
            row.boot_at(0.9),
            row.boot_at(0.99),
            row.others.as_secs_f64() * 1e3 / tries as f64,
        );
        if let Some(failure) = row.failures.first() {
            let _ = writeln!(text, "  the first failure: {failure}");
        }
    }
    text
}
