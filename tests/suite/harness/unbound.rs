//! Unbound, a validating resolver as CAs run it, from a test's own configuration.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::bind::{dig, program};
use super::site::Lines;
use super::{eventually, not_run};

/// A resolver that answers. Dropped, it is killed and waited for.
pub struct Unbound {
    child: Child,
    pub address: SocketAddr,
    log: Lines,
    _folder: tempfile::TempDir,
}

/// Whether it is installed; without it the test says NOT RUN.
pub fn is_here(test: &str) -> bool {
    let is_here = program("unbound").is_some();
    if !is_here {
        not_run(test, "unbound is not installed");
    }
    is_here
}

impl Unbound {
    /// Starts a resolver at `address` that begins at the root server `root`, and trusts the keys in `anchor`. It
    /// validates, minimizes names strictly, mixes their case, and takes nothing that is not proven, unless the `options`,
    /// lines of its configuration, say else.
    pub fn start(address: SocketAddr, root: &str, anchor: &Path, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hints = folder.path().join("hints");
        std::fs::write(&hints, format!(". 3600 NS a.root-servers.net.\na.root-servers.net. 3600 A {root}\n")).unwrap();
        let config = folder.path().join("unbound.conf");
        let yes = [
            "qname-minimisation",
            "qname-minimisation-strict",
            "use-caps-for-id",
            "harden-glue",
            "harden-dnssec-stripped",
            "harden-below-nxdomain",
            "harden-referral-path",
            "harden-algo-downgrade",
            "harden-large-queries",
            "aggressive-nsec",
        ];
        let yes: String = yes.iter().map(|option| format!("  {option}: yes\n")).collect();
        let options: String = options.iter().map(|option| format!("  {option}\n")).collect();
        let text = format!(
            "server:\n  interface: {}@{}\n  username: \"\"\n  chroot: \"\"\n  directory: \"{}\"\n  pidfile: \"\"\n  \
             use-syslog: no\n  logfile: \"\"\n  verbosity: 1\n  do-daemonize: no\n  do-ip6: no\n  \
             do-not-query-localhost: no\n  access-control: 127.0.0.0/8 allow\n  access-control: 192.0.2.0/24 allow\n  \
             root-hints: \"{}\"\n  trust-anchor-file: \"{}\"\n  module-config: \"validator iterator\"\n  \
             log-servfail: yes\n  log-queries: yes\n{yes}{options}remote-control:\n  control-enable: no\n",
            address.ip(),
            address.port(),
            folder.path().display(),
            hints.display(),
            anchor.display(),
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(program("unbound").unwrap())
            .args(["-d", "-d", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Lines::default();
        log.follow(child.stderr.take().unwrap());
        // Dropped, it is ended.
        let mut unbound = Self { child, address, log, _folder: folder };
        eventually("Unbound to answer", || {
            if let Some(status) = unbound.child.try_wait().unwrap() {
                panic!("Unbound ended with {status}:\n{}", unbound.log());
            }
            dig(address, &[".", "SOA"]).contains("status: NOERROR").then_some(())
        });
        unbound
    }

    /// The names that clients at 127.0.0.1 have asked for, in lower case, without the last dot.
    pub fn asked(&self) -> Vec<String> {
        // … info: 127.0.0.1 example.com. NS IN
        let name = |line: &String| {
            let (_, query) = line.split_once(" info: 127.0.0.1 ")?;
            Some(query.split(' ').next()?.trim_end_matches('.').to_ascii_lowercase())
        };
        self.log.all().iter().filter_map(name).collect()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.all().join("\n")
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
