//! End-to-end tests: `provost serve` with `"acme"`, a real CA (Pebble) and a real primary (BIND, Knot).
//!
//! [`ca`] is about the CA's errors, [`dns`] about DNS failures, [`crash_recovery`] about recovery after kill -9, [`exact`] about
//! certificates for exact names, [`ari`] about renewal information and profiles, [`ca_states`] about
//! orders, accounts and terms of service that the CA refuses, and about a proxy on the way to the CA.

mod ari;
mod ca;
mod ca_states;
mod crash_recovery;
mod dns;
mod exact;

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use crate::harness::bind::{self, Bind, BindConfig};
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Client;
use crate::harness::{eventually, tool};

const CHALLENGE: &str = "_acme-challenge.phones.example.com";
const POLICY: &str = "grant provost. name _acme-challenge.phones.example.com. TXT;";

/// A site that gets its certificates from Pebble.
pub struct Public {
    pub site: Site,
    pebble: Pebble,
}

/// The usual primary.
fn primary() -> BindConfig {
    let records = "*.phones A 127.0.0.1\nphones A 127.0.0.1";
    BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", records, POLICY)
}

/// A site with the usual primary; `None`, after NOT RUN, if a program is missing.
pub fn usual(test: &str, behavior: Behavior) -> Option<(Bind, Public)> {
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return None;
    }
    let bind = primary().start();
    let pebble = Pebble::start(behavior, bind.address);
    let public = Public::new(pebble, bind.address, &bind.key_file("provost."));
    Some((bind, public))
}

impl Public {
    /// A site with one key type and one name server, which accepts updates signed with this key.
    fn new(pebble: Pebble, server: SocketAddr, key_file: &Path) -> Self {
        let mut site = Site::new();
        site.constituency("ote", &json!({ "client_auth": "none" }));
        site.file("ote/site.cfg", "<site/>");
        let server = server.to_string();
        site.config["certificate"] = json!({ "acme": {
            "directory": pebble.directory(),
            "directory_root": pebble.root_file(),
            "terms_of_service_agreed": true,
            "keys": ["ecdsa-p256"],
            "dns": { "primary": server, "tsig_key_file": key_file,
                     "resolvers": [server], "authorities": [server], "settle_s": 0 },
        } });
        Self { site, pebble }
    }

    /// The settings of `"acme"`.
    pub fn acme(&mut self) -> &mut Value {
        &mut self.site.config["certificate"]["acme"]
    }

    /// Starts the server and waits until it accepts commands, too.
    pub fn start(&self) -> Running {
        let server = self.site.start();
        let socket = self.site.path("state/control.sock");
        UnixStream::connect(&socket).expect("commands are accepted once the server has logged its address");
        server
    }

    /// A client that trusts one of Pebble's roots.
    fn client_of(&self, server: &Running, root: u32) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pebble.issuing_root(root).as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut client = Client::new(server.address(), Some(&format!("ote.{DOMAIN}")));
        *client.config() = config.with_root_certificates(roots).with_no_client_auth();
        client
    }

    pub fn pebble(&self) -> &Pebble {
        &self.pebble
    }

    pub fn client(&self, server: &Running) -> Client {
        self.client_of(server, 0)
    }

    /// Runs `provost certificate`, for a minute at most.
    fn certificate(&self, args: &[&str]) -> tool::Ended {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_provost"), "certificate"]).args(args);
        tool::run(command.arg("--config").arg(self.site.write_config()))
    }

    pub fn status(&self) -> Value {
        let status = self.certificate(&["status", "--json"]);
        serde_json::from_str(&status.stdout).unwrap_or_else(|error| panic!("{error}: {status:?}"))
    }

    /// Waits until all configured certificates are obtained and their DNS records are removed.
    #[track_caller]
    pub fn obtains(&self) -> Value {
        eventually("the certificates", || {
            let status = self.status();
            let is_done = |it: &Value| it["held"].is_object() && it["step"].is_null();
            let is_complete = status["certificates"].as_array()?.iter().all(is_done);
            (is_complete && status["leftover_records"] == 0).then_some(status)
        })
    }

    /// Renews all certificates, which must succeed; returns the output.
    #[track_caller]
    fn renew(&self) -> String {
        let renewed = self.certificate(&["renew", "--now"]);
        assert!(renewed.code == 0 && renewed.stdout.contains("a new certificate is in use"), "{renewed:?}");
        renewed.stdout
    }

    /// Renews all certificates, which must fail with this reason; returns the output.
    #[track_caller]
    fn fails(&self, reason: &str) -> String {
        let renewed = self.certificate(&["renew", "--now"]);
        assert!(renewed.code == 1 && renewed.stdout.contains(reason), "no {reason:?} in {renewed:?}");
        renewed.stdout
    }

    fn chain(&self, kind: &str) -> PathBuf {
        self.site.path("state/certs").join(kind).join("current/chain.pem")
    }

    /// The serial number of the certificate in use, in hexadecimal.
    fn serial(&self) -> String {
        let mut command = Command::new("openssl");
        command.args(["x509", "-noout", "-serial", "-in"]).arg(self.chain("ecdsa-p256"));
        tool::run(&mut command).stdout.trim().trim_start_matches("serial=").to_ascii_lowercase()
    }

    /// The stored record of attempts and budgets.
    fn memory(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.site.path("state/renewal.json")).unwrap()).unwrap()
    }

    /// Whether failed validations were counted against the budget, which is limited like the CA's.
    fn has_spent_validations(&self) -> bool {
        let memory = self.memory();
        let account = &memory["directories"][self.pebble.directory()];
        let spent = account["budget"]["validations"].as_i64();
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        spent.is_some_and(|full_at| full_at > now)
    }
}

#[test]
fn certificates_are_obtained_and_kept_across_a_restart() {
    let test = "acme_e2e::certificates_are_obtained_and_kept_across_a_restart";
    let Some((bind, mut public)) = usual(test, Behavior::default()) else { return };
    public.acme()["keys"] = json!(["rsa-2048", "ecdsa-p256"]);
    let server = public.start();
    public.obtains();
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().text(), "<site/>");
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
    let shown = public.certificate(&["status"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("*.phones.example.com, phones.example.com"), "{}", shown.stdout);
    let read = || ["rsa-2048", "ecdsa-p256"].map(|kind| std::fs::read(public.chain(kind)).unwrap());
    let (before, orders) = (read(), public.pebble.logged("Added order"));
    assert_eq!(orders, 2);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    assert!(!public.site.path("state/control.sock").exists());

    let server = public.start();
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().text(), "<site/>");
    public.obtains();
    assert_eq!((read(), public.pebble.logged("Added order")), (before, orders));
    let second = tool::run(&mut public.site.command());
    assert!(second.code != 0 && second.stderr.contains("another provost uses the state directory"), "{second:?}");
}

/// Stops the fetching threads when dropped, so that a failing test ends.
struct Load<'a>(&'a AtomicBool);

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn renewal_under_load_fails_no_handshake() {
    let test = "acme_e2e::renewal_under_load_fails_no_handshake";
    let Some((_bind, mut public)) = usual(test, Behavior::default()) else { return };
    public.acme()["keys"] = json!(["rsa-2048", "ecdsa-p256"]);
    let server = public.start();
    public.obtains();
    let client = public.client(&server);
    let before = std::fs::read(public.chain("ecdsa-p256")).unwrap();
    let is_over = AtomicBool::new(false);
    let (said, load) = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            let mut answers = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                answers.push(client.get("/site.cfg").map(|response| response.status));
            }
            answers
        });
        let load = Load(&is_over);
        let said = public.renew();
        drop(load);
        (said, fetching.join().unwrap())
    });
    for kind in ["rsa-2048", "ecdsa-p256"] {
        assert!(said.contains(&format!("{kind}: a new certificate is in use")), "{kind}: {said}");
    }
    assert_ne!(std::fs::read(public.chain("ecdsa-p256")).unwrap(), before);
    let bad: Vec<_> = load.iter().filter(|answer| !matches!(answer, Ok(200))).collect();
    assert!(load.len() > 10 && bad.is_empty(), "{} answers, of which {bad:?}", load.len());
    let not_due = public.certificate(&["renew"]);
    assert!(not_due.stdout.contains("rsa-2048: not due"), "{not_due:?}");
}

#[test]
fn three_generations_and_no_finished_order_are_kept() {
    let test = "acme_e2e::three_generations_and_no_finished_order_are_kept";
    let Some((_bind, public)) = usual(test, Behavior::default()) else { return };
    let _server = public.start();
    public.obtains();
    for _ in 0..3 {
        public.renew();
    }
    let folder = std::fs::read_dir(public.site.path("state/certs/ecdsa-p256")).unwrap();
    let mut names: Vec<String> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["2", "3", "4", "current"]);
}

#[test]
fn revoked_certificate_is_replaced_at_once() {
    let test = "acme_e2e::revoked_certificate_is_replaced_at_once";
    let Some((_bind, public)) = usual(test, Behavior::default()) else { return };
    let server = public.start();
    public.obtains();
    let serial = public.serial();
    assert_eq!(public.pebble.verdict(&serial), "Valid");
    let revoked = public.certificate(&["revoke", "--key", "ecdsa-p256"]);
    assert_eq!(revoked.code, 0, "{revoked:?}");
    assert!(revoked.stdout.starts_with("ecdsa-p256: revoked; ordering a new one"), "{revoked:?}");
    let other = public.certificate(&["revoke", "--constituency", "ote"]);
    assert!(other.code == 1 && other.stderr.contains("ote has no certificate of its own; its phones"), "{other:?}");
    assert_eq!(public.pebble.verdict(&serial), "Revoked");
    eventually("another certificate", || (public.serial() != serial).then_some(()));
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn dry_run_gets_a_certificate_and_keeps_only_its_account() {
    let test = "acme_e2e::dry_run_gets_a_certificate_and_keeps_only_its_account";
    let Some((bind, public)) = usual(test, Behavior::default()) else { return };
    let state = public.site.path("state");
    std::fs::create_dir(&state).unwrap();
    let root = public.pebble.root_file();
    let directory = public.pebble.directory();
    let args = ["renew", "--dry-run", "--directory", &directory, "--directory-root", root.to_str().unwrap()];
    let tried = public.certificate(&args);
    assert_eq!(tried.code, 0, "{tried:?}");
    assert!(tried.stdout.contains("dry run successful: 1 certificate, issued by "), "{tried:?}");
    let said: Vec<&str> = tried.stdout.lines().filter(|line| line.contains("a certificate was issued by ")).collect();
    assert!(matches!(said[..], [line] if line.ends_with(", and is thrown away")), "{tried:?}");
    assert!(!tried.stdout.contains("in use"), "{tried:?}");
    assert!(!state.join("certs").exists() && !state.join("rehearsal/certs").exists());
    assert!(state.join("rehearsal/accounts").exists());
    assert_eq!(bind.txt(CHALLENGE), Vec::<String>::new());
}
