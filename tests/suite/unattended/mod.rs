//! All of it together: `provost serve` with nothing but `"acme"`, a real CA (Pebble) and a real primary (BIND).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use crate::harness::bind::{self, Bind, BindConfig};
use crate::harness::pebble::{Behaviour, Pebble};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::{self, Ended};
use crate::harness::{eventually, not_run};

const CHALLENGE: &str = "_acme-challenge.phones.example.com";
const POLICY: &str = "grant provost. name _acme-challenge.phones.example.com. TXT;";

/// A site that gets its certificates from Pebble, through BIND.
struct Public {
    site: Site,
    bind: Bind,
    pebble: Pebble,
}

impl Public {
    /// `None` if this machine lacks what it takes.
    fn new(test: &str) -> Option<Self> {
        if !bind::is_here(test) {
            return None;
        }
        if !Pebble::is_here() {
            not_run(test, "pebble is not installed");
            return None;
        }
        let records = "*.phones A 127.0.0.1\nphones A 127.0.0.1";
        let bind = BindConfig::new().key("provost.", "hmac-sha256").primary("example.com", records, POLICY).start();
        let pebble = Pebble::start_with_dns(Behaviour::default(), bind.address);
        let mut site = Site::new();
        site.constituency("ote", &json!({ "client_auth": "none" }));
        site.file("ote/site.cfg", "<site/>");
        let server = bind.address.to_string();
        site.config["certificate"] = json!({ "acme": {
            "directory": pebble.directory(),
            "directory_root": pebble.root_file(),
            "terms_of_service_agreed": true,
            "dns": { "primary": server, "tsig_key_file": bind.key_file("provost."),
                     "resolvers": [server], "authorities": [server], "settle_s": 0 },
        } });
        Some(Self { site, bind, pebble })
    }

    /// A client that trusts what Pebble issues.
    fn client(&self, server: &Running) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pebble.issuing_root(0).as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut client = Client::new(server.address(), Some(&format!("ote.{DOMAIN}")));
        *client.config() = config.with_root_certificates(roots).with_no_client_auth();
        client
    }

    fn certificate(&self, args: &[&str]) -> Ended {
        let config = self.site.write_config();
        let all: Vec<&str> = ["certificate"].iter().chain(args).copied().chain(["--config"]).collect();
        tool::provost(&self.site.path("."), &[&all[..], &[config.to_str().unwrap()]].concat())
    }

    fn status(&self) -> Value {
        let status = self.certificate(&["status", "--json"]);
        serde_json::from_str(&status.stdout).unwrap_or_else(|error| panic!("{error}: {status:?}"))
    }

    #[track_caller]
    fn has_both(&self) -> Value {
        eventually("both certificates", || {
            let status = self.status();
            let certificates = status["certificates"].as_array()?;
            let is_done = |it: &Value| it["held"]["days_left"].as_i64().is_some_and(|days| days > 80);
            (certificates.len() == 2 && certificates.iter().all(is_done)).then_some(status)
        })
    }

    fn chain(&self, kind: &str) -> PathBuf {
        self.site.path("state/certs").join(kind).join("current/chain.pem")
    }
}

#[test]
fn a_server_gets_its_certificates_by_itself_and_keeps_them_over_a_restart() {
    let test = "a_server_gets_its_certificates_by_itself_and_keeps_them_over_a_restart";
    let Some(public) = Public::new(test) else { return };
    let server = public.site.start();
    public.has_both();
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().text(), "<site/>");
    assert_eq!(public.bind.txt(CHALLENGE), Vec::<String>::new());
    let shown = public.certificate(&["status"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("*.phones.example.com, phones.example.com"), "{}", shown.stdout);
    let before = std::fs::read(public.chain("rsa-2048")).unwrap();
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    assert!(!public.site.path("state/control.sock").exists());

    let server = public.site.start();
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().text(), "<site/>");
    assert_eq!(std::fs::read(public.chain("rsa-2048")).unwrap(), before);
    let second = tool::run(&mut public.site.command());
    assert!(second.code != 0 && second.stderr.contains("in use by another provost"), "{second:?}");
}

#[test]
fn a_renewal_under_load_fails_no_handshake() {
    let Some(public) = Public::new("a_renewal_under_load_fails_no_handshake") else { return };
    let server = public.site.start();
    public.has_both();
    let client = public.client(&server);
    let before = std::fs::read(public.chain("ecdsa-p256")).unwrap();
    let is_over = AtomicBool::new(false);
    let (renewed, load) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut answers = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                answers.push(client.get("/site.cfg").map(|response| response.status));
            }
            answers
        });
        let renewed = public.certificate(&["renew", "--now"]);
        is_over.store(true, Ordering::SeqCst);
        (renewed, load.join().unwrap())
    });
    assert_eq!(renewed.code, 0, "{renewed:?}");
    for step in ["rsa-2048: publishing 2 records", "ecdsa-p256: a new certificate is in use"] {
        assert!(renewed.stdout.contains(step), "{step}: {}", renewed.stdout);
    }
    assert_ne!(std::fs::read(public.chain("ecdsa-p256")).unwrap(), before);
    let bad: Vec<_> = load.iter().filter(|answer| !matches!(answer, Ok(200))).collect();
    assert!(load.len() > 10 && bad.is_empty(), "{} answers, of which {bad:?}", load.len());
    let not_due = public.certificate(&["renew"]);
    assert!(not_due.stdout.contains("rsa-2048: is not due"), "{not_due:?}");
}

#[test]
fn a_server_killed_with_records_in_dns_takes_up_its_order_and_removes_them() {
    let test = "a_server_killed_with_records_in_dns_takes_up_its_order_and_removes_them";
    let Some(mut public) = Public::new(test) else { return };
    // Long enough to be met with its records published.
    public.site.config["certificate"]["acme"]["dns"]["settle_s"] = json!(30);
    let server = public.site.start();
    eventually("records in DNS", || Some(()).filter(|()| public.bind.txt(CHALLENGE).len() == 2));
    server.kill();
    assert_eq!(public.bind.txt(CHALLENGE).len(), 2);
    public.site.config["certificate"]["acme"]["dns"]["settle_s"] = json!(0);
    let server = public.site.start();
    server.says("taking up the order that was under way");
    public.has_both();
    assert_eq!(public.bind.txt(CHALLENGE), Vec::<String>::new());
    assert_eq!(public.client(&server).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn without_a_ca_it_serves_what_is_stored_and_says_what_is_wrong() {
    let test = "without_a_ca_it_serves_what_is_stored_and_says_what_is_wrong";
    let Some(mut public) = Public::new(test) else { return };
    let server = public.site.start();
    public.has_both();
    let client = public.client(&server);
    server.kill();
    public.pebble.stop();
    let server = public.site.start();
    let mut again = Client::new(server.address(), Some(&format!("ote.{DOMAIN}")));
    *again.config() = client.clone().config().clone();
    assert_eq!(again.get("/site.cfg").unwrap().status, 200);
    let renewed = public.certificate(&["renew", "--now"]);
    assert_eq!(renewed.code, 1, "{renewed:?}");
    assert!(renewed.stdout.contains("refused"), "{renewed:?}");
    assert!(public.status()["certificates"][0]["last_error"].as_str().unwrap().contains("refused"));
}

#[test]
fn a_rehearsal_goes_the_whole_way_and_keeps_only_its_account() {
    let Some(public) = Public::new("a_rehearsal_goes_the_whole_way_and_keeps_only_its_account") else { return };
    let state = public.site.path("state");
    std::fs::create_dir(&state).unwrap();
    let root = public.pebble.root_file();
    let directory = public.pebble.directory();
    let args = ["rehearse", "--directory", &directory, "--directory-root", root.to_str().unwrap()];
    let rehearsed = public.certificate(&args);
    assert_eq!(rehearsed.code, 0, "{rehearsed:?}");
    assert!(rehearsed.stdout.contains("all went well: 2 certificates"), "{rehearsed:?}");
    assert!(!state.join("certs").exists() && !state.join("rehearsal/certs").exists());
    assert!(state.join("rehearsal/accounts").exists());
    assert_eq!(public.bind.txt(CHALLENGE), Vec::<String>::new());
}

#[test]
fn a_wrong_key_of_the_primary_is_told_and_costs_no_validation() {
    let Some(mut public) = Public::new("a_wrong_key_of_the_primary_is_told_and_costs_no_validation") else { return };
    let other = BindConfig::new().key("provost.", "hmac-sha256").primary("example.net", "", "").start();
    public.site.config["certificate"]["acme"]["dns"]["tsig_key_file"] = json!(other.key_file("provost."));
    let server = public.site.start();
    let line = server.says("no new certificate (rsa-2048)");
    assert!(line.contains("BADSIG") && line.contains("needs somebody"), "{line}");
    let status = public.certificate(&["status"]);
    assert_eq!(status.code, 1, "{status:?}");
    assert!(status.stdout.contains("none yet") && status.stdout.contains("BADSIG"), "{status:?}");
    let memory = std::fs::read_to_string(public.site.path("state/renewal.json")).unwrap();
    assert!(!memory.contains("\"validations\""), "{memory}");
}
