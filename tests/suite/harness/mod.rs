//! What every test stands on: a site in a temporary folder, the real binary serving it, and clients to ask it.
//!
//! - [`bind`], [`knot`]: name servers of a test's own.
//! - [`browser`]: a real browser, to see pages as people do.
//! - [`certbot`]: certbot's files, as it leaves them.
//! - [`directory`]: a CA's directory that says what a test wants.
//! - [`golden`]: golden files, and how a difference is shown and accepted.
//! - [`lan`]: a DHCP server and a client that asks it.
//! - [`namespace`]: a network and a file system of a test's own.
//! - [`operators`]: an operator with curl.
//! - [`pages`]: the manual.
//! - [`patience`]: how long a test waits, and time on a machine that is crowded or stands still.
//! - [`pebble`]: a CA for tests, as a process, with a DNS of its own.
//! - [`pki`]: a factory CA like Polycom's, devices below it, server certificates.
//! - [`prometheus`]: which alerts fire.
//! - [`site`]: folders and `provost.json`; the server as a process that is killed and waited for.
//! - [`socket`]: a connection whose other end is waited for with patience.
//! - [`systemd`]: what a unit starts, as systemd would start it, and what it tells.
//! - [`tls`]: a client that speaks TLS and raw HTTP/1.1, to say exactly what a test wants to say.
//! - [`tool`]: other programs: the binary itself, curl, openssl.
//! - [`wishing`]: a stand-in for a CA that says when it wants to be asked, and offers profiles.

pub mod ari_proxy;
pub mod bind;
pub mod browser;
pub mod certbot;
pub mod directory;
pub mod golden;
pub mod knot;
pub mod lan;
pub mod namespace;
pub mod operators;
pub mod pages;
pub mod patience;
pub mod pebble;
pub mod pki;
pub mod prometheus;
pub mod site;
pub mod socket;
pub mod systemd;
pub mod tls;
pub mod tool;

pub use patience::{PATIENCE, Watch, eventually, within_a_second};

/// The three phones of the documentation range.
pub const VVX500: &str = "00005e00530c";
pub const VVX550: &str = "00005e0053c7";
pub const STRANGER: &str = "00005e0053aa";

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
