//! What all tests use: a site in a temporary folder, the real binary serving it, and its clients.
//!
//! - [`ari_proxy`]: a proxy that adds renewal information and profiles to a CA.
//! - [`bind`], [`knot`]: name servers of a test.
//! - [`browser`]: a real browser.
//! - [`certbot`]: certbot's files.
//! - [`connect_proxy`]: an HTTP proxy with CONNECT.
//! - [`directory`]: an ACME directory with chosen content.
//! - [`golden`]: comparisons with golden files.
//! - [`internet`]: a root server and delegations.
//! - [`lan`]: a DHCP server and a client.
//! - [`namespace`]: a network and a file system of a test.
//! - [`operators`]: an operator with curl.
//! - [`pages`]: the manual.
//! - [`pdns`]: the server `PowerDNS`.
//! - [`pebble`]: a test CA as a process.
//! - [`pki`]: a factory CA like Polycom's, device certificates, server certificates.
//! - [`prometheus`]: which alerts fire.
//! - [`relay`]: a firewall, a load balancer or a forger before a name server.
//! - [`release`]: the files of a release.
//! - [`site`]: folders and `provost.json`; the server as a process.
//! - [`socket`]: a TCP connection with timeouts.
//! - [`systemd`]: a service started as its unit states, and its notifications.
//! - [`timing`]: timeouts, and time limits on a machine that is overloaded or suspended.
//! - [`tls`]: a client with full control of TLS and HTTP/1.1.
//! - [`tool`]: other programs: the binary itself, curl, openssl.
//! - [`unbound`]: a caching and validating resolver.

pub mod ari_proxy;
pub mod bind;
pub mod browser;
pub mod certbot;
pub mod connect_proxy;
pub mod directory;
pub mod golden;
pub mod internet;
pub mod knot;
pub mod lan;
pub mod namespace;
pub mod operators;
pub mod pages;
pub mod pdns;
pub mod pebble;
pub mod pki;
pub mod prometheus;
pub mod relay;
pub mod release;
pub mod site;
pub mod socket;
pub mod systemd;
pub mod timing;
pub mod tls;
pub mod tool;
pub mod unbound;

pub use timing::{Stopwatch, TIMEOUT, eventually, scaled_timeout, within_a_second};

/// Phones of the documentation range: the first two are listed in policies, the third is not.
pub const VVX500: &str = "00005e00530c";
pub const VVX550: &str = "00005e0053c7";
pub const STRANGER: &str = "00005e0053aa";

/// Reports that a test cannot run on this machine; `tests/run` counts these reports.
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

/// Whether `program` is installed; if not, `test` is reported as NOT RUN.
pub fn is_here(test: &str, program: &str) -> bool {
    let is_here = std::process::Command::new(program).arg("--version").output().is_ok();
    if !is_here {
        not_run(test, &format!("{program} is not installed"));
    }
    is_here
}
