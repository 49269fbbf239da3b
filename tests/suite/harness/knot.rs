//! Knot on a port of its own, whose updates and answers differ from BIND's.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use provost::dns::DnsSettings;

use super::bind::{dig, free_address, program, settings};
use super::site::Lines;
use super::{eventually, tool};

/// A running server. Dropped, it is killed and waited for.
pub struct Knot {
    folder: tempfile::TempDir,
    child: Child,
    pub address: SocketAddr,
}

/// Whether Knot is installed; if not, `test` is reported as NOT RUN.
pub fn is_here(test: &str) -> bool {
    let is_here = ["knotd", "tsig-keygen", "dig"].iter().all(|name| program(name).is_some());
    if !is_here {
        super::not_run(test, "knotd, tsig-keygen or dig is not installed (knot, bind9, bind9-dnsutils)");
    }
    is_here
}

impl Knot {
    /// A primary of `zone` with the key `key.`, and the further configuration `more`: its ACL.
    pub fn start(zone: &str, key: &str, more: &str) -> Self {
        // Another process may take the port before the server binds it.
        (0..5).find_map(|_| Self::try_at(free_address(), zone, key, more)).expect("knotd found no port")
    }

    fn try_at(address: SocketAddr, zone: &str, key: &str, more: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let made = tool::run(Command::new(program("tsig-keygen").unwrap()).arg(format!("{key}.")));
        std::fs::write(folder.path().join("knot.key"), &made.stdout).unwrap();
        std::fs::set_permissions(folder.path().join("knot.key"), Permissions::from_mode(0o600)).unwrap();
        let secret = made.stdout.split('"').nth(3).unwrap();
        let text = format!(
            "$TTL 300\n@ SOA ns1.{zone}. hostmaster.{zone}. 1 3600 600 86400 60\n@ NS ns1.{zone}.\nns1 A 127.0.0.1\n*.phones A 192.0.2.10\n"
        );
        std::fs::write(folder.path().join(format!("{zone}.zone")), text).unwrap();
        let path = folder.path().display();
        let config = format!(
            "server:\n  rundir: {path}\n  listen: {}@{}\n  tcp-workers: 1\n  udp-workers: 1\n  background-workers: 1\n\
             control:\n  listen: {path}/knot.sock\nlog:\n  - target: stderr\n    any: info\n\
             database:\n  storage: {path}\nkey:\n  - id: {key}\n    algorithm: hmac-sha256\n    secret: {secret}\n\
             template:\n  - id: default\n    storage: {path}\n    file: \"%s.zone\"\n{more}",
            address.ip(),
            address.port(),
        );
        std::fs::write(folder.path().join("knot.conf"), config).unwrap();
        let (child, log) = run(&folder.path().join("knot.conf"));
        // Dropped, it is killed.
        let mut knot = Self { folder, child, address };
        answers(address, zone, &mut knot.child, &log).then_some(knot)
    }

    /// Settings that send updates and queries only to this server.
    pub fn settings(&self) -> DnsSettings {
        settings(self.address, &self.folder.path().join("knot.key"))
    }
}

fn run(config: &std::path::Path) -> (Child, Lines) {
    let knotd: PathBuf = program("knotd").unwrap();
    let mut child = Command::new(knotd)
        .arg("-c")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Lines::default();
    log.follow(child.stderr.take().unwrap());
    (child, log)
}

/// Waits until it answers for `zone`; `false` if it ended because its port was taken.
fn answers(address: SocketAddr, zone: &str, child: &mut Child, log: &Lines) -> bool {
    eventually("knotd to answer", || {
        let all = || log.all().join("\n");
        if let Some(status) = child.try_wait().unwrap() {
            assert!(all().contains("already in use"), "knotd ended with {status}:\n{}", all());
            return Some(false);
        }
        dig(address, &[zone, "SOA"]).contains("ANSWER: 1").then_some(true)
    })
}

impl Drop for Knot {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
