//! Certificates from a real CA: Pebble. DNS is a double here, which puts records where Pebble looks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use provost::certificate::{LiveCertificates, ServerCertificate};
use provost::dns::Place;
use provost::renew::ports::{Answer, ChallengeDns, Say};
use provost::renew::{AcmeSettings, Command, Failure, Parts, Renewer, Status};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::harness::eventually;
use crate::harness::pebble::{Behaviour, Pebble};

const DOMAIN: &str = "phones.example.com";
const CHALLENGE: &str = "_acme-challenge.phones.example.com";

type Records = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// DNS whose updates are seen at once; or not at all, or never, as a test wants it.
#[derive(Clone, Default)]
struct Double {
    records: Records,
    updates: Arc<AtomicU32>,
    /// Says yes and publishes nothing.
    lies: Arc<AtomicBool>,
    /// Never gets there.
    hangs: Arc<AtomicBool>,
}

impl ChallengeDns for Double {
    fn locate<'a>(&'a self, challenge_name: &'a str) -> Answer<'a, Place> {
        let place = Place { name: challenge_name.to_owned(), zone: "example.com".to_owned(), via: Vec::new() };
        Box::pin(async { Ok(place) })
    }

    fn add<'a>(&'a self, place: &'a Place, values: &'a [String]) -> Answer<'a, ()> {
        self.updates.fetch_add(1, Ordering::SeqCst);
        if !self.lies.load(Ordering::SeqCst) {
            let mut records = self.records.lock().unwrap();
            records.entry(place.name.clone()).or_default().extend(values.iter().cloned());
        }
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, place: &'a Place, values: &'a [String]) -> Answer<'a, ()> {
        let mut records = self.records.lock().unwrap();
        records.entry(place.name.clone()).or_default().retain(|value| !values.contains(value));
        Box::pin(async { Ok(()) })
    }

    fn wait_until_visible<'a>(&'a self, _: &'a Place, _: &'a [String], _: Say<'a>) -> Answer<'a, ()> {
        let hangs = self.hangs.load(Ordering::SeqCst);
        Box::pin(async move { if hangs { std::future::pending().await } else { Ok::<(), Failure>(()) } })
    }
}

/// Settings, a state directory, and a DNS that outlives restarts.
struct Setup {
    state: tempfile::TempDir,
    settings: Value,
    dns: Double,
}

/// A renewer at work on a thread of its own. Dropped, it ends in order; `crash` ends it where it stands.
struct AtWork {
    live: Arc<LiveCertificates>,
    /// What was served before anything was asked of anybody.
    at_start: usize,
    commands: mpsc::Sender<Command>,
    stop: Option<oneshot::Sender<bool>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Setup {
    fn new(pebble: &Pebble) -> Self {
        let settings = json!({
            "directory": pebble.directory(),
            "directory_root": pebble.root_file(),
            "contact": ["mailto:hostmaster@example.com"],
            "terms_of_service_agreed": true,
            "keys": ["ecdsa-p256"],
            "dns": { "primary": "127.0.0.1", "tsig_key_file": "provost.key" },
        });
        let dns = Double { records: Arc::clone(&pebble.dns.records), ..Double::default() };
        Self { state: tempfile::tempdir().unwrap(), settings, dns }
    }

    fn start(&self) -> AtWork {
        let settings: AcmeSettings = serde_json::from_value(self.settings.clone()).unwrap();
        let parts = Parts::real(&settings, DOMAIN, self.state.path(), Arc::new(self.dns.clone())).unwrap();
        let live = Arc::new(LiveCertificates::default());
        let renewer = Renewer::open(parts, self.state.path(), Arc::clone(&live)).unwrap();
        let at_start = live.current().len();
        let (commands, received) = mpsc::channel(4);
        let (stop, stopped) = oneshot::channel::<bool>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (crash, crashed) = oneshot::channel::<()>();
                let stopped = async {
                    if stopped.await.unwrap_or(false) {
                        let _ = crash.send(());
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = renewer.run(received, stopped) => {}
                    Ok(()) = crashed => {}
                }
            });
        });
        AtWork { live, at_start, commands, stop: Some(stop), thread: Some(thread) }
    }

    /// The values that are in DNS now.
    fn published(&self) -> Vec<String> {
        self.dns.records.lock().unwrap().get(CHALLENGE).cloned().unwrap_or_default()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.state.path().join(name)
    }
}

impl AtWork {
    fn status(&self) -> Status {
        let (reply, status) = oneshot::channel();
        self.commands.blocking_send(Command::Status(reply)).unwrap();
        status.blocking_recv().unwrap()
    }

    /// Waits until it holds `count` certificates and nothing more is to be done.
    #[track_caller]
    fn settled(&self, count: usize) -> Vec<ServerCertificate> {
        eventually("certificates", || {
            let status = self.status();
            let is_done = |it: &provost::renew::CertificateStatus| it.held.is_some() && it.step.is_none();
            let done = status.certificates.iter().filter(|it| is_done(it)).count();
            (done == count && status.leftover_records == 0).then(|| self.live.current().to_vec())
        })
    }

    /// Renews everything; what was said meanwhile.
    fn renew(&self) -> Vec<String> {
        let (progress, mut said) = mpsc::unbounded_channel();
        self.commands.blocking_send(Command::Renew { all: true, progress }).unwrap();
        std::iter::from_fn(|| said.blocking_recv()).collect()
    }

    /// Waits for a failure; its reason must contain `text`.
    #[track_caller]
    fn fails(&self, text: &str) -> Status {
        let status = eventually("a failure", || {
            let status = self.status();
            status.certificates[0].last_error.is_some().then_some(status)
        });
        assert!(status.certificates[0].last_error.as_ref().unwrap().contains(text), "no {text:?} in {status:?}");
        status
    }

    fn crash(mut self) {
        self.end(true);
    }

    fn end(&mut self, crashes: bool) {
        let _ = self.stop.take().map(|stop| stop.send(crashes));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.end(false);
    }
}

fn serial(folder: &Path) -> String {
    let pem = std::fs::read(folder.join("chain.pem")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    X509Certificate::from_der(&pem.contents).unwrap().1.raw_serial_as_string()
}

/// Pebble, or the reason why not.
fn pebble(test: &str, behaviour: Behaviour) -> Option<Pebble> {
    Pebble::is_here(test).then(|| Pebble::start(behaviour))
}

#[test]
fn both_kinds_are_issued_and_a_restart_serves_them_and_orders_nothing() {
    let test = "both_kinds_are_issued_and_a_restart_serves_them_and_orders_nothing";
    let Some(mut pebble) = pebble(test, Behaviour::default()) else { return };
    let mut setup = Setup::new(&pebble);
    setup.settings["keys"] = json!(["rsa-2048", "ecdsa-p256"]);
    let at_work = setup.start();
    assert_eq!(at_work.at_start, 0);
    let certificates = at_work.settled(2);
    assert!(certificates.iter().all(|it| it.covers("ote.phones.example.com") && it.covers(DOMAIN)));
    assert_eq!(setup.published(), Vec::<String>::new());
    let now = at_work.status();
    assert!(now.certificates.iter().all(|it| it.next_attempt > now.now + 40 * 86_400 && it.failures == 0), "{now:?}");
    drop(at_work);

    let before = serial(&setup.path("certs/rsa-2048/current"));
    let updates = setup.dns.updates.load(Ordering::SeqCst);
    // Nobody is asked for what is stored: the CA is not even there.
    pebble.stop();
    let at_work = setup.start();
    assert_eq!(at_work.at_start, 2);
    at_work.settled(2);
    assert_eq!(serial(&setup.path("certs/rsa-2048/current")), before);
    assert_eq!(setup.dns.updates.load(Ordering::SeqCst), updates);
}

#[test]
fn a_renewal_replaces_the_certificate_and_keeps_the_last_three() {
    let Some(pebble) = pebble("a_renewal_replaces_the_certificate", Behaviour::default()) else { return };
    let setup = Setup::new(&pebble);
    let at_work = setup.start();
    at_work.settled(1);
    let folder = setup.path("certs/ecdsa-p256");
    let mut serials = vec![serial(&folder.join("current"))];
    for _ in 0..3 {
        let said = at_work.renew();
        assert!(said.last().unwrap().contains("a new certificate is in use"), "{said:?}");
        serials.push(serial(&folder.join("current")));
    }
    serials.dedup();
    assert_eq!(serials.len(), 4);
    let numbers = std::fs::read_dir(&folder).unwrap().filter_map(|it| it.unwrap().file_name().into_string().ok());
    let mut numbers: Vec<String> = numbers.filter(|name| name.parse::<u64>().is_ok()).collect();
    numbers.sort();
    assert_eq!(numbers, ["2", "3", "4"]);
    assert!(!folder.join("order.json").exists() && !folder.join("order.key").exists());
}

#[test]
fn an_external_account_is_bound_and_needed() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    let external_accounts = BTreeMap::from([("kid-1".to_owned(), key.to_owned())]);
    let behaviour = Behaviour { external_accounts, rejected_nonces: 30, ..Behaviour::default() };
    let Some(pebble) = pebble("an_external_account_is_bound_and_needed", behaviour) else { return };
    let mut setup = Setup::new(&pebble);
    let refused = setup.start();
    let status = refused.fails("externalAccountRequired");
    assert!(status.certificates[0].needs_human);
    drop(refused);
    std::fs::write(setup.path("eab.key"), format!("{key}\n")).unwrap();
    setup.settings["external_account"] = json!({ "key_id": "kid-1", "hmac_key_file": setup.path("eab.key") });
    // Other settings get an attempt at once, whatever failed before.
    setup.start().settled(1);
}

#[test]
fn the_preferred_chain_is_used_and_a_missing_one_is_no_obstacle() {
    let behaviour = Behaviour { alternate_roots: 2, ..Behaviour::default() };
    let Some(pebble) = pebble("the_preferred_chain_is_used", behaviour) else { return };
    for (preferred, expected) in [(pebble.issuing_root_name(2), 2), ("Nobody".to_owned(), 0)] {
        let mut setup = Setup::new(&pebble);
        setup.settings["preferred_chain"] = json!(preferred);
        let at_work = setup.start();
        at_work.settled(1);
        let held = at_work.status().certificates[0].held.clone().unwrap();
        assert_eq!(held.issuers.last(), Some(&pebble.issuing_root_name(expected)), "{held:?}");
    }
}

#[test]
fn three_nonces_in_ten_rejected_fail_no_renewal() {
    let behaviour = Behaviour { rejected_nonces: 30, ..Behaviour::default() };
    let Some(pebble) = pebble("three_nonces_in_ten_rejected_fail_no_renewal", behaviour) else { return };
    let setup = Setup::new(&pebble);
    let at_work = setup.start();
    at_work.settled(1);
    for _ in 0..4 {
        let said = at_work.renew();
        assert!(said.last().unwrap().contains("a new certificate is in use"), "{said:?}");
    }
    assert_eq!(at_work.status().certificates[0].failures, 0);
}

#[test]
fn authorizations_that_the_ca_still_has_need_no_records() {
    let behaviour = Behaviour { reused_authorizations: 100, ..Behaviour::default() };
    let Some(pebble) = pebble("authorizations_that_the_ca_still_has_need_no_records", behaviour) else { return };
    let setup = Setup::new(&pebble);
    let at_work = setup.start();
    at_work.settled(1);
    let updates = setup.dns.updates.load(Ordering::SeqCst);
    let said = at_work.renew();
    assert!(said.last().unwrap().contains("a new certificate is in use"), "{said:?}");
    assert_eq!(setup.dns.updates.load(Ordering::SeqCst), updates);
}

#[test]
fn a_ca_that_has_forgotten_us_gets_us_again_with_the_same_key() {
    let Some(mut pebble) = pebble("a_ca_that_has_forgotten_us_gets_us_again", Behaviour::default()) else { return };
    let setup = Setup::new(&pebble);
    let at_work = setup.start();
    at_work.settled(1);
    let account = std::fs::read_dir(setup.path("accounts")).unwrap().next().unwrap().unwrap().path();
    let key = std::fs::read(account.join("account.key")).unwrap();
    pebble.start_again();
    let said = at_work.renew();
    assert!(said.iter().any(|line| line.contains("does not know our account")), "{said:?}");
    assert!(said.last().unwrap().contains("a new certificate is in use"), "{said:?}");
    assert_eq!(std::fs::read(account.join("account.key")).unwrap(), key);
}

#[test]
fn an_order_is_taken_up_after_a_crash_and_its_records_are_removed() {
    let Some(pebble) = pebble("an_order_is_taken_up_after_a_crash", Behaviour::default()) else { return };
    let setup = Setup::new(&pebble);
    setup.dns.hangs.store(true, Ordering::SeqCst);
    let at_work = setup.start();
    let left = eventually("records", || Some(setup.published()).filter(|values| values.len() == 2));
    let order: Value =
        serde_json::from_slice(&std::fs::read(setup.path("certs/ecdsa-p256/order.json")).unwrap()).unwrap();
    assert!(order["url"].as_str().unwrap().starts_with("https://"), "{order}");
    at_work.crash();
    assert_eq!(setup.published(), left);

    let key = std::fs::read(setup.path("certs/ecdsa-p256/order.key")).unwrap();
    setup.dns.hangs.store(false, Ordering::SeqCst);
    let at_work = setup.start();
    at_work.settled(1);
    assert_eq!(setup.published(), Vec::<String>::new());
    // The key that was on the disk before the order: so it is that order's certificate.
    assert_eq!(std::fs::read(setup.path("certs/ecdsa-p256/current/key.pem")).unwrap(), key);
}

#[test]
fn the_cas_reason_is_told_whole_and_nothing_is_left_in_dns() {
    let Some(pebble) = pebble("the_cas_reason_is_told_whole", Behaviour::default()) else { return };
    let setup = Setup::new(&pebble);
    setup.dns.lies.store(true, Ordering::SeqCst);
    let at_work = setup.start();
    let status = at_work.fails("validation failed");
    let error = status.certificates[0].last_error.clone().unwrap();
    assert!(error.contains("No TXT records found") && error.contains("unauthorized"), "{error}");
    assert!(status.certificates[0].next_attempt > status.now, "no pause: {status:?}");
    assert!(!setup.path("certs/ecdsa-p256/order.json").exists());
    setup.dns.lies.store(false, Ordering::SeqCst);
    let said = at_work.renew();
    assert!(said.last().unwrap().contains("a new certificate is in use"), "{said:?}");
    assert_eq!(setup.published(), Vec::<String>::new());
}

#[test]
fn a_profile_that_is_not_offered_is_a_mistake_to_be_told() {
    let Some(pebble) = pebble("a_profile_that_is_not_offered_is_a_mistake", Behaviour::default()) else { return };
    let mut setup = Setup::new(&pebble);
    setup.settings["profile"] = json!("nonsense");
    let status = setup.start().fails("offers no profile \"nonsense\"");
    assert!(status.certificates[0].needs_human);
}

#[test]
fn a_revoked_certificate_is_replaced_at_once() {
    let Some(pebble) = pebble("a_revoked_certificate_is_replaced_at_once", Behaviour::default()) else { return };
    let setup = Setup::new(&pebble);
    let at_work = setup.start();
    at_work.settled(1);
    let before = serial(&setup.path("certs/ecdsa-p256/current"));
    let revoke = || {
        let (done, hears) = oneshot::channel();
        let kind = provost::ca::KeyKind::EcdsaP256;
        at_work.commands.blocking_send(Command::Revoke { kind, done }).unwrap();
        hears.blocking_recv().unwrap()
    };
    revoke().unwrap();
    eventually("another certificate", || {
        Some(()).filter(|()| serial(&setup.path("certs/ecdsa-p256/current")) != before)
    });
}
