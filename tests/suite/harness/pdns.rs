//! `PowerDNS` on a port of its own: a primary whose refusals are all the same.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::bind::{dig, free_address, program};
use super::site::Lines;
use super::{eventually, tool};

const SCHEMA: &str = "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql";

/// A server that answers. Dropped, it is killed and waited for.
pub struct PowerDns {
    folder: tempfile::TempDir,
    child: Child,
    pub address: SocketAddr,
}

/// Whether the programs are here; without them the test says NOT RUN.
pub fn is_here(test: &str) -> bool {
    let is_here =
        ["pdns_server", "pdnsutil", "dig"].iter().all(|name| program(name).is_some()) && Path::new(SCHEMA).exists();
    if !is_here {
        super::not_run(test, "PowerDNS is not installed (pdns-server, pdns-backend-sqlite3, bind9-dnsutils)");
    }
    is_here
}

impl PowerDns {
    /// A primary of `zone` that takes updates with the key `key.`, hmac-sha256.
    pub fn start(zone: &str, key: &str) -> Self {
        // Between finding a free port and listening on it, somebody else may take it.
        (0..5).find_map(|_| Self::try_at(free_address(), zone, key)).expect("pdns_server found no port")
    }

    fn try_at(address: SocketAddr, zone: &str, key: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let database = folder.path().join("pdns.sqlite3");
        let schema = std::fs::read_to_string(SCHEMA).unwrap();
        rusqlite::Connection::open(&database).unwrap().execute_batch(&schema).unwrap();
        let config = format!(
            "launch=gsqlite3\ngsqlite3-database={}\nlocal-address={}\nlocal-port={}\nsocket-dir={path}\n\
             dnsupdate=yes\nallow-dnsupdate-from=127.0.0.0/8\ndisable-syslog=yes\nloglevel=6\n",
            database.display(),
            address.ip(),
            address.port(),
        );
        std::fs::write(folder.path().join("pdns.conf"), config).unwrap();
        let name_server = format!("ns1.{zone}");
        pdnsutil(folder.path(), &["create-zone", zone, &name_server]);
        pdnsutil(folder.path(), &["add-record", zone, "ns1", "A", "127.0.0.1"]);
        std::fs::write(folder.path().join("made"), pdnsutil(folder.path(), &["generate-tsig-key", key, "hmac-sha256"]))
            .unwrap();
        pdnsutil(folder.path(), &["set-meta", zone, "TSIG-ALLOW-DNSUPDATE", key]);
        let (child, log) = run(folder.path());
        // Dropped, it is ended.
        let mut server = Self { folder, child, address };
        answers(address, zone, &mut server.child, &log).then_some(server)
    }

    /// What `pdnsutil generate-tsig-key` printed.
    pub fn made_key(&self) -> PathBuf {
        self.folder.path().join("made")
    }

    /// Runs `pdnsutil`; what it prints.
    pub fn pdnsutil(&self, args: &[&str]) -> String {
        pdnsutil(self.folder.path(), args)
    }
}

fn pdnsutil(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new(program("pdnsutil").unwrap());
    let ended = tool::run(command.arg(format!("--config-dir={}", folder.display())).args(args));
    assert_eq!(ended.code, 0, "{args:?}: {}{}", ended.stdout, ended.stderr);
    ended.stdout
}

fn run(folder: &Path) -> (Child, Lines) {
    let mut child = Command::new(program("pdns_server").unwrap())
        .arg(format!("--config-dir={}", folder.display()))
        .args(["--daemon=no", "--guardian=no"])
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
    eventually("pdns_server to answer", || {
        let all = || log.all().join("\n");
        if let Some(status) = child.try_wait().unwrap() {
            assert!(all().contains("in use"), "pdns_server ended with {status}:\n{}", all());
            return Some(false);
        }
        dig(address, &[zone, "SOA"]).contains("ANSWER: 1").then_some(true)
    })
}

impl Drop for PowerDns {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
