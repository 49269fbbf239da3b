//! What every test stands on: a site in a temporary folder, the real binary serving it, and clients to ask it.
//!
//! - [`bind`], [`knot`]: name servers of a test's own.
//! - [`browser`]: a real browser, to see pages as people do.
//! - [`directory`]: a CA's directory that says what a test wants.
//! - [`namespace`]: a network and a file system of a test's own.
//! - [`operators`]: an operator with curl.
//! - [`pebble`]: a CA for tests, as a process, with a DNS of its own.
//! - [`pki`]: a factory CA like Polycom's, devices below it, server certificates.
//! - [`site`]: folders and `provost.json`; the server as a process that is killed and waited for.
//! - [`systemd`]: what a unit starts, as systemd would start it, and what it tells.
//! - [`tls`]: a client that speaks TLS and raw HTTP/1.1, to say exactly what a test wants to say.
//! - [`tool`]: other programs: the binary itself, curl, openssl.
//! - [`wishing`]: a stand-in for a CA that says when it wants to be asked, and offers profiles.

pub mod bind;
pub mod browser;
pub mod directory;
pub mod knot;
pub mod namespace;
pub mod operators;
pub mod pebble;
pub mod pki;
pub mod site;
pub mod systemd;
pub mod tls;
pub mod tool;
pub mod wishing;

use std::time::{Duration, Instant};

/// How long anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The three phones of the documentation range.
pub const VVX500: &str = "00005e00530c";
pub const VVX550: &str = "00005e0053c7";
pub const STRANGER: &str = "00005e0053aa";

/// Waits until `probe` gives something; fails the test, saying `what` was waited for, when that takes too long.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        // Not to wait for something by time, only to leave the processor to whom we wait for.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `probe` gives something, from the change on that was just made, and fails the test unless that was so
/// within the second that a change may take: more only where more work is waiting than the machine has processors for.
/// Gives the time it took, too.
#[track_caller]
pub fn within_a_second<T>(what: &str, probe: impl FnMut() -> Option<T>) -> (T, Duration) {
    let start = Instant::now();
    let found = eventually(what, probe);
    let took = start.elapsed();
    let allowed = Duration::from_secs(1).mul_f64(crowding());
    assert!(took <= allowed, "{what} took {took:?}, {allowed:?} allowed");
    (found, took)
}

/// How many processes want each processor, at least 1: by how much a limit on our own slowness must be stretched.
pub fn crowding() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    // Over the last minute, and at this moment: what has just begun weighs nothing yet in the one.
    let (minute, now) = (load.split(' ').next(), load.split([' ', '/']).nth(3));
    let most = [minute, now].into_iter().flatten().filter_map(|load| load.parse::<f64>().ok()).fold(1.0, f64::max);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (most / f64::from(u32::try_from(processors).unwrap())).max(1.0)
}

/// Says that a test cannot run on this machine, and why; `tests/run` counts these.
pub fn not_run(test: &str, reason: &str) {
    use std::io::Write;
    let line = format!("NOT RUN: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os("PROVOST_NOT_RUN") {
        let mut file =
            std::fs::File::options().append(true).create(true).open(file).expect("the list of tests not run");
        file.write_all(line.as_bytes()).expect("the list of tests not run");
    }
}

/// Whether `program` is installed; where it is not, says that `test` cannot run.
pub fn is_here(test: &str, program: &str) -> bool {
    let is_here = std::process::Command::new(program).arg("--version").output().is_ok();
    if !is_here {
        not_run(test, &format!("{program} is not installed"));
    }
    is_here
}
