//! How costs grow with the number of constituencies, and of phones on one list; without nginx.
//!
//! Each row starts a new server. The costs are processor time of the server, or of the command, and memory. Costs that
//! grow faster than the site are a defect; the suite counts work to find them.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, json};

use super::cases::HANDSHAKE;
use super::load::Worker;
use super::machine::{self, CpuTime};
use super::servers::Server;
use super::site::Site;

/// The sizes of the site, and the number of handshakes.
#[derive(Debug, Clone, Copy)]
pub struct ScaleEffort {
    constituencies: &'static [usize],
    phones: &'static [usize],
    handshakes: u32,
}

pub const FULL: ScaleEffort = ScaleEffort {
    constituencies: &[10, 100, 1_000, 10_000],
    phones: &[1_000, 10_000, 100_000, 1_000_000],
    handshakes: 500,
};
pub const QUICK: ScaleEffort = ScaleEffort { constituencies: &[10, 100], phones: &[1_000, 10_000], handshakes: 20 };

/// The phones of each added constituency.
const PHONES_EACH: usize = 10;
/// The first phone of the added lists. The site's own phones have other addresses.
const FIRST: u64 = 0x0004_f200_0000;
/// The first phone of those that are allowed. The lists have other addresses.
const NEW: u64 = 0x0004_f300_0000;
/// How long a server must be idle before it is measured.
const IDLE: Duration = Duration::from_millis(500);
/// Within how much time it must become idle.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One row of the table.
struct Row {
    size: String,
    start: Duration,
    memory_kib: u64,
    /// Of one handshake with a request.
    request: Duration,
    /// The first `/metrics`, and the memory that it adds.
    metrics: Duration,
    metrics_kib: u64,
    allow: Duration,
    phones: Duration,
}

/// Measures all rows; returns the table.
pub async fn measure(site: &Site, effort: ScaleEffort) -> String {
    let mut rows = Vec::new();
    let mut made = 0;
    for count in effort.constituencies {
        for number in made..*count {
            let folder = site.path("constituencies").join(format!("c{number}"));
            std::fs::create_dir(&folder).unwrap();
            let phones = macs(number * PHONES_EACH, PHONES_EACH).map(|mac| (mac, "a phone".into()));
            let policy = json!({ "trust": ["factory"], "phones": phones.collect::<Map<_, _>>() });
            std::fs::write(folder.join("constituency.json"), policy.to_string()).unwrap();
        }
        made = *count;
        rows.push(row(site, rows.len(), format!("{count} constituencies"), effort).await);
    }
    for number in 0..made {
        std::fs::remove_dir_all(site.path("constituencies").join(format!("c{number}"))).unwrap();
    }
    for count in effort.phones {
        let lines: String = macs(0, *count).map(|mac| format!("{mac},a phone\n")).collect();
        let text = format!("mac,note\n{lines}");
        std::fs::write(site.path("constituencies/ote/phones.csv"), text).unwrap();
        rows.push(row(site, rows.len(), format!("{count} phones in a phones.csv"), effort).await);
    }
    std::fs::remove_file(site.path("constituencies/ote/phones.csv")).unwrap();
    table(&rows)
}

fn macs(first: usize, count: usize) -> impl Iterator<Item = String> {
    (first..first + count).map(|number| format!("{:012x}", FIRST + number as u64))
}

/// Measures the row with this `number`.
async fn row(site: &Site, number: usize, size: String, effort: ScaleEffort) -> Row {
    eprint!("{size} ");
    let (server, operators) = Server::start_with_operators(site);
    let pid = server.pid();
    wait_until_idle(pid);
    let start = CpuTime::of(pid).total();
    let memory_kib = machine::memory_kib(pid);
    let mut worker = Worker::new(&HANDSHAKE, &server, site);
    worker.warm_up().await;
    wait_until_idle(pid);
    let before = CpuTime::of(pid);
    for _ in 0..effort.handshakes {
        worker.operate().await;
    }
    wait_until_idle(pid);
    let request = CpuTime::of(pid).since(&before) / effort.handshakes;
    let before = (CpuTime::of(pid), machine::memory_kib(pid));
    get(operators, "/metrics");
    let metrics = CpuTime::of(pid).since(&before.0);
    let metrics_kib = machine::memory_kib(pid).saturating_sub(before.1);
    // A phone that no list has yet.
    let mac = format!("{:012x}", NEW + number as u64);
    let allow = command(site, &["allow", &mac, "--constituency", "ote", "--note", &size]);
    let phones = command(site, &["phones", "--constituency", "ote", "--refused"]);
    eprintln!("measured");
    Row { size, start, memory_kib, request, metrics, metrics_kib, allow, phones }
}

/// Waits until a server has done what it does after a start or a request.
fn wait_until_idle(pid: u32) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let before = CpuTime::of(pid);
        std::thread::sleep(IDLE);
        if CpuTime::of(pid).since(&before) < IDLE / 50 {
            return;
        }
        assert!(Instant::now() < deadline, "the server is not idle after {TIMEOUT:?}");
    }
}

/// Requests a path of the operators' listener.
fn get(address: SocketAddr, path: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{path}: {}", String::from_utf8_lossy(&answer));
}

/// Runs a command of provost; returns its processor time.
fn command(site: &Site, arguments: &[&str]) -> Duration {
    let before = machine::children_time();
    let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
    command.args(arguments).arg("--config").arg(site.path("provost.json")).current_dir(site.folder());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{arguments:?}");
    machine::children_time().saturating_sub(before)
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<30}{:>10}{:>10}{:>12}{:>16}{:>12}{:>10}{:>10}\n",
        "", "start", "memory", "handshake", "first /metrics", "", "allow", "phones"
    );
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    for row in rows {
        let _ = writeln!(
            text,
            "{:<30}{:>10}{:>10}{:>12}{:>16}{:>12}{:>10}{:>10}",
            row.size,
            ms(row.start),
            mib(row.memory_kib),
            format!("{:.0} µs", row.request.as_secs_f64() * 1e6),
            ms(row.metrics),
            format!("+{}", mib(row.metrics_kib)),
            ms(row.allow),
            ms(row.phones),
        );
    }
    text.push_str("start: until the server is idle; times are processor time, handshake is with one request\n");
    text
}
