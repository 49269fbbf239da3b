//! Single rules of the flow on the virtual clock: which CA to use, when to wait, which certificates to reject.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use provost::acme::ports::{
    Ca, ChallengeDns, Env, Order, OrderStatus, PendingChallenge, PortFuture, RenewalAdvice, StepReporter,
};
use provost::acme::{AcmeFailure, AcmeStatus, Lineage, Parts, RenewalCommand, RenewalWindow, Renewer};
use provost::ca::KeyKind;
use provost::certificate::{ExactNames, LiveCertificates};
use provost::dns::RecordLocation;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::{mpsc, oneshot, watch};

use super::outages::{DAY, HOUR, Random};
use super::{KINDS, START, VirtualEnv, scratch, system_time};

const KIND: KeyKind = KeyKind::EcdsaP256;

/// A CA controlled by the test, without validation.
pub(super) struct Stub {
    directory: String,
    world: Arc<VirtualEnv>,
    issuer: Issuer<'static, KeyPair>,
    /// The error of every request, if any.
    refusal: Mutex<Option<AcmeFailure>>,
    /// The error of every order for this name.
    pub(super) refused_name: Mutex<Option<(String, AcmeFailure)>>,
    /// The names of all orders.
    pub(super) ordered: Mutex<Vec<Vec<String>>>,
    skew: AtomicI64,
    /// A certificate request never ends, and the process is killed.
    hangs: AtomicBool,
    names_are_wrong: AtomicBool,
    /// A revocation is never answered.
    ignores_revocations: AtomicBool,
    /// Orders need a validation, which the CA refuses so.
    refused_validation: Mutex<Option<AcmeFailure>>,
    /// Every window of renewal (ARI) is past, also that of a new certificate.
    windows_are_past: AtomicBool,
    requests: AtomicU32,
    orders: AtomicU32,
    finalized: AtomicU32,
}

impl Stub {
    fn new(directory: &str, world: &Arc<VirtualEnv>) -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Arc::new(Self {
            directory: directory.to_owned(),
            world: Arc::clone(world),
            issuer: Issuer::new(params, KeyPair::generate().unwrap()),
            refusal: Mutex::default(),
            refused_name: Mutex::default(),
            ordered: Mutex::default(),
            skew: AtomicI64::new(0),
            hangs: AtomicBool::default(),
            names_are_wrong: AtomicBool::default(),
            ignores_revocations: AtomicBool::default(),
            refused_validation: Mutex::default(),
            windows_are_past: AtomicBool::default(),
            requests: AtomicU32::default(),
            orders: AtomicU32::default(),
            finalized: AtomicU32::default(),
        })
    }

    fn refuse(&self, with: Option<AcmeFailure>) {
        *self.refusal.lock().unwrap() = with;
    }

    async fn request(&self) -> Result<(), AcmeFailure> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.requests.fetch_add(1, Ordering::SeqCst);
        self.refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn issue(&self, csr: &[u8]) -> String {
        let der = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&der).unwrap();
        let now = self.world.now();
        request.params.not_before = system_time(now - HOUR).into();
        request.params.not_after = system_time(now - HOUR + 90 * DAY).into();
        if self.names_are_wrong.load(Ordering::SeqCst) {
            request.params.subject_alt_names = vec![SanType::DnsName("other.example".try_into().unwrap())];
        }
        request.signed_by(&self.issuer).unwrap().pem()
    }
}

/// The stub's interface to the flow.
struct Port(Arc<Stub>);

impl Ca for Port {
    fn directory(&self) -> &str {
        &self.0.directory
    }

    fn open(&self) -> PortFuture<'_, bool> {
        Box::pin(async { self.0.request().await.map(|()| true) })
    }

    fn register(&self) -> PortFuture<'_, ()> {
        Box::pin(self.0.request())
    }

    fn account_url(&self) -> Result<Option<String>, AcmeFailure> {
        Ok(Some("https://scripted.example/account".to_owned()))
    }

    fn put_account_aside(&self) -> Result<PathBuf, AcmeFailure> {
        Ok("account.key.deactivated".into())
    }

    fn clock_skew(&self) -> Option<i64> {
        Some(self.0.skew.load(Ordering::SeqCst))
    }

    fn renewal_window<'a>(&'a self, _: &'a CertificateDer<'static>) -> PortFuture<'a, Option<RenewalAdvice>> {
        Box::pin(async {
            self.0.request().await?;
            let (from, to) = (self.0.world.now() - 9 * DAY, self.0.world.now() - 8 * DAY);
            let past = RenewalWindow { start: from, end: to };
            let advice = RenewalAdvice { window: past, recheck_after_s: 6 * HOUR, explanation: None };
            Ok(self.0.windows_are_past.load(Ordering::SeqCst).then_some(advice))
        })
    }

    fn order<'a>(
        &'a self,
        names: &'a [String],
        _: Option<&'a CertificateDer<'static>>,
    ) -> PortFuture<'a, Box<dyn Order>> {
        Box::pin(async {
            self.0.request().await?;
            let refused = self.0.refused_name.lock().unwrap().clone();
            if let Some((_, failure)) = refused.filter(|(name, _)| names.contains(name)) {
                return Err(failure);
            }
            self.0.ordered.lock().unwrap().push(names.to_vec());
            let number = self.0.orders.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(StubOrder { url: number.to_string(), ca: Arc::clone(&self.0), chain: None }) as Box<dyn Order>)
        })
    }

    fn order_at<'a>(&'a self, _: &'a str) -> PortFuture<'a, Box<dyn Order>> {
        // It does not know old orders, which is the worst case for budgets.
        Box::pin(async {
            self.0.request().await?;
            Err(AcmeFailure::retry("no such order").with_kind(provost::acme::FailureKind::Refused))
        })
    }

    fn revoke<'a>(&'a self, _: &'a CertificateDer<'static>) -> PortFuture<'a, ()> {
        Box::pin(async {
            if self.0.ignores_revocations.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            self.0.request().await
        })
    }
}

struct StubOrder {
    url: String,
    ca: Arc<Stub>,
    chain: Option<String>,
}

impl Order for StubOrder {
    fn url(&self) -> &str {
        &self.url
    }

    fn status(&mut self) -> OrderStatus {
        match &self.chain {
            Some(_) => OrderStatus::Valid,
            None if self.ca.refused_validation.lock().unwrap().is_some() => OrderStatus::Pending,
            None => OrderStatus::Ready,
        }
    }

    fn challenges<'a>(&'a mut self, _method: &'a str) -> PortFuture<'a, Vec<PendingChallenge>> {
        let challenge = || PendingChallenge { domain: "phones.example.com".to_owned(), value: "value".to_owned() };
        Box::pin(async move { Ok(vec![challenge()]) })
    }

    fn validate<'a>(&'a mut self, _method: &'a str) -> PortFuture<'a, ()> {
        Box::pin(async {
            self.ca.request().await?;
            self.ca.refused_validation.lock().unwrap().clone().map_or(Ok(()), Err)
        })
    }

    fn finalize<'a>(&'a mut self, csr: &'a [u8]) -> PortFuture<'a, ()> {
        Box::pin(async {
            self.ca.request().await?;
            self.ca.finalized.fetch_add(1, Ordering::SeqCst);
            if self.ca.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            self.chain = Some(self.ca.issue(csr));
            Ok(())
        })
    }

    fn chains(&mut self, _: bool) -> PortFuture<'_, Vec<String>> {
        Box::pin(async { Ok(self.chain.clone().into_iter().collect()) })
    }
}

/// DNS without any effect, because no CA looks at it here.
#[derive(Default)]
struct NoDns {
    /// No removal of a record ends.
    removal_hangs: AtomicBool,
}

impl ChallengeDns for NoDns {
    fn locate<'a>(&'a self, name: &'a str) -> PortFuture<'a, RecordLocation> {
        let zone = "phones.example.com".to_owned();
        Box::pin(async move { Ok(RecordLocation { name: name.to_owned(), zone, via: Vec::new() }) })
    }

    fn stands_alone<'a>(&'a self, _: &'a str) -> PortFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn account_binding<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> PortFuture<'a, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn add<'a>(&'a self, _: &'a RecordLocation, _: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, _: &'a RecordLocation, _: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async {
            if self.removal_hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }

    fn wait_until_visible<'a>(
        &'a self,
        _: &'a RecordLocation,
        _: &'a [String],
        _: StepReporter<'a>,
    ) -> PortFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// A site on the virtual clock, with its CAs.
pub(super) struct Simulated {
    pub(super) folder: tempfile::TempDir,
    pub(super) world: Arc<VirtualEnv>,
    pub(super) live: Arc<LiveCertificates>,
    pub(super) cas: Vec<Arc<Stub>>,
    pub(super) wanted: watch::Sender<Arc<ExactNames>>,
    dns: Arc<NoDns>,
    domain: &'static str,
    keys: Vec<KeyKind>,
}

impl Simulated {
    pub(super) fn new(directories: &[&str]) -> Self {
        let random = Arc::new(Random::new(7));
        let world = Arc::new(VirtualEnv { start: START, began: tokio::time::Instant::now(), random });
        let cas = directories.iter().map(|directory| Stub::new(directory, &world)).collect();
        let (wanted, _) = watch::channel(Arc::default());
        Self {
            folder: scratch(),
            world,
            live: Arc::default(),
            cas,
            wanted,
            dns: Arc::default(),
            domain: "phones.example.com",
            keys: vec![KIND],
        }
    }

    fn open(&self) -> Renewer {
        let parts = Parts {
            domain: self.domain.to_owned(),
            keys: self.keys.clone(),
            exact: self.wanted.subscribe(),
            preferred_chain: None,
            cas: self.cas.iter().map(|ca| Arc::new(Port(Arc::clone(ca))) as Arc<dyn Ca>).collect(),
            dns: Arc::clone(&self.dns) as Arc<dyn ChallengeDns>,
            env: self.world.clone(),
            fingerprint: String::new(),
        };
        Renewer::open(parts, self.folder.path(), Arc::clone(&self.live)).unwrap()
    }

    /// Runs for a while and is then killed; returns the last status.
    pub(super) async fn live_for(&self, seconds: i64) -> AcmeStatus {
        let (commands, received) = mpsc::channel(1);
        let end = Duration::from_secs(seconds.unsigned_abs());
        let asking = async {
            tokio::time::sleep(end).await;
            let (reply, status) = oneshot::channel();
            commands.send(RenewalCommand::Status(reply)).await.unwrap();
            status.await.unwrap()
        };
        tokio::select! {
            () = self.open().run(received, std::future::pending()) => unreachable!("it runs until it is stopped"),
            status = asking => status,
        }
    }

    pub(super) fn not_after(&self) -> i64 {
        self.live.current()[0].not_after
    }

    fn memory(&self) -> serde_json::Value {
        serde_json::from_slice(&read(&self.folder.path().join("renewal.json"))).unwrap()
    }

    fn meta(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("certs/ecdsa-p256/current/meta.json")).unwrap()
    }
}

pub(super) fn on_virtual_time(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test);
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn fallback_directory_is_used_late_and_then_the_first_again() {
    on_virtual_time(async {
        let site = Simulated::new(&["https://first.example", "https://second.example"]);
        site.live_for(HOUR).await;
        site.cas[0].refuse(Some(AcmeFailure::retry("down for weeks")));
        // The fallback is used after a sixth of 90 days, which is 15.
        site.live_for(site.not_after() - 16 * DAY - site.world.now()).await;
        assert!(site.cas[0].requests.load(Ordering::SeqCst) > 10);
        assert_eq!(site.cas[1].requests.load(Ordering::SeqCst), 0);
        site.live_for(3 * DAY).await;
        assert!(site.meta().contains("second.example"), "{}", site.meta());
        site.cas[0].refuse(None);
        site.live_for(70 * DAY).await;
        assert!(site.meta().contains("first.example"), "{}", site.meta());
    });
}

#[test]
fn retry_after_is_obeyed_across_restarts() {
    on_virtual_time(async {
        let site = Simulated::new(&["https://first.example"]);
        site.cas[0].refuse(Some(AcmeFailure::retry("too many").after(Some(3 * DAY))));
        site.live_for(HOUR).await;
        assert_eq!(site.cas[0].requests.load(Ordering::SeqCst), 1);
        site.cas[0].refuse(None);
        for _ in 0..20 {
            let status = site.live_for(3 * HOUR).await;
            assert!(status.certificates[0].next_attempt > site.world.now());
        }
        assert_eq!(site.cas[0].requests.load(Ordering::SeqCst), 1);
        site.live_for(DAY).await;
        assert_eq!(site.live.current().len(), 1);
    });
}

#[test]
fn retry_after_survives_a_kill_during_the_clean_up() {
    on_virtual_time(async {
        let site = Simulated::new(&["https://first.example"]);
        let limited = AcmeFailure::retry("too many").after(Some(3 * DAY));
        *site.cas[0].refused_validation.lock().unwrap() = Some(limited);
        site.dns.removal_hangs.store(true, Ordering::SeqCst);
        // The process is killed while it removes its record.
        site.live_for(HOUR).await;
        let requests = || site.cas[0].requests.load(Ordering::SeqCst);
        let before = requests();
        assert!(before > 0);
        *site.cas[0].refused_validation.lock().unwrap() = None;
        site.dns.removal_hangs.store(false, Ordering::SeqCst);
        site.live_for(2 * DAY).await;
        assert_eq!(requests(), before, "the CA was asked before its Retry-After");
        site.live_for(2 * DAY).await;
        assert_eq!(site.live.current().len(), 1);
    });
}

#[test]
fn crash_loop_stays_below_the_ca_rate_limits() {
    on_virtual_time(async {
        let site = Simulated::new(&["https://first.example"]);
        site.cas[0].hangs.store(true, Ordering::SeqCst);
        // A supervisor restarts it every ten seconds, for two days.
        for _ in 0..2 * 8640 {
            site.live_for(10).await;
        }
        let (orders, finalized) =
            (site.cas[0].orders.load(Ordering::SeqCst), site.cas[0].finalized.load(Ordering::SeqCst));
        // The attempts continue within Let's Encrypt's limit: a burst of five, and one more in 34 hours.
        assert!((5..=6).contains(&finalized), "{finalized} certificates asked for, by {orders} orders");
        assert!((5..=100).contains(&orders), "{orders} orders");
    });
}

#[test]
fn clock_a_year_ahead_orders_and_overwrites_nothing() {
    on_virtual_time(async {
        let site = Simulated::new(&["https://first.example"]);
        site.live_for(HOUR).await;
        let chain = site.folder.path().join("certs/ecdsa-p256/current/chain.pem");
        let (before, orders) = (read(&chain), site.cas[0].orders.load(Ordering::SeqCst));
        // By the local clock the certificate is due, but that clock is a year ahead.
        site.cas[0].skew.store(-365 * DAY, Ordering::SeqCst);
        let status = site.live_for(80 * DAY).await;
        let error = status.certificates[0].last_error.clone().unwrap();
        assert!(error.contains("the clock of this machine is 31536000 s ahead of"), "{error}");
        assert!(status.certificates[0].action_required && status.clock_skew_s == Some(-365 * DAY));
        assert_eq!((read(&chain), site.cas[0].orders.load(Ordering::SeqCst)), (before, orders));
    });
}

#[test]
fn certificate_for_other_names_is_neither_used_nor_stored() {
    on_virtual_time(async {
        let site = Simulated::new(&["https://first.example"]);
        site.live_for(HOUR).await;
        let chain = site.folder.path().join("certs/ecdsa-p256/current/chain.pem");
        let before = read(&chain);
        site.cas[0].names_are_wrong.store(true, Ordering::SeqCst);
        let status = site.live_for(70 * DAY).await;
        let error = status.certificates[0].last_error.clone().unwrap();
        assert!(error.contains("is for other.example, not for *.phones.example.com"), "{error}");
        assert_eq!(read(&chain), before);
        assert!(site.live.current()[0].covers("ote.phones.example.com"));
    });
}

#[test]
fn changed_domain_is_ordered_at_once_while_the_old_serves() {
    on_virtual_time(async {
        let mut site = Simulated::new(&["https://first.example"]);
        site.live_for(HOUR).await;
        site.domain = "other.example.com";
        drop(site.open());
        assert!(site.live.current()[0].covers("ote.phones.example.com"));
        site.live_for(HOUR).await;
        assert!(site.live.current()[0].covers("ote.other.example.com"));
    });
}

#[test]
fn unanswered_revocation_does_not_delay_shutdown() {
    on_virtual_time(async {
        let site = Simulated::new(&["https://first.example"]);
        site.cas[0].ignores_revocations.store(true, Ordering::SeqCst);
        // Revocation requests during the first order, and while idle.
        for moment in [Duration::from_millis(500), Duration::from_mins(30)] {
            let (commands, received) = mpsc::channel(1);
            let (done, answer) = oneshot::channel();
            let asking = async {
                tokio::time::sleep(moment).await;
                commands.send(RenewalCommand::Revoke { lineage: Lineage::Wildcard(KIND), done }).await.unwrap();
            };
            let running = site.open().run(received, tokio::time::sleep(Duration::from_hours(1)));
            let lived = async { tokio::join!(running, asking) };
            assert!(tokio::time::timeout(Duration::from_hours(2), lived).await.is_ok(), "requested after {moment:?}");
            assert!(answer.await.is_err(), "its result is unknown");
            assert!(site.not_after() > site.world.now());
        }
    });
}

#[test]
fn windows_in_the_past_cause_one_order_a_day_and_key() {
    on_virtual_time(async {
        let mut site = Simulated::new(&["https://first.example"]);
        site.keys = KINDS.to_vec();
        site.cas[0].windows_are_past.store(true, Ordering::SeqCst);
        site.live_for(60).await;
        assert_eq!(site.live.current().len(), 2, "each kind of key has its first certificate");
        let orders = || site.cas[0].orders.load(Ordering::SeqCst);
        // The first of each kind, and one that the CA asked for; restarts change nothing.
        for _ in 0..20 {
            site.live_for(HOUR).await;
        }
        assert_eq!(orders(), 4);
        // Windows that are over exempt from no limit of the CA: one certificate is kept back.
        site.live_for(4 * DAY).await;
        assert!((5..=7).contains(&orders()), "{} orders", orders());
        let account = site.memory()["directories"]["https://first.example"]["budget"].clone();
        let full = account["certificates"].as_i64().unwrap();
        assert!(full - site.world.now() <= 4 * (7 * DAY / 5 + HOUR / 3), "nothing is kept back: {account}");
    });
}

#[test]
fn revoked_certificate_is_replaced_when_the_limit_is_used_up() {
    on_virtual_time(async {
        let mut site = Simulated::new(&["https://first.example"]);
        site.keys = KINDS.to_vec();
        site.cas[0].windows_are_past.store(true, Ordering::SeqCst);
        site.live_for(3 * DAY).await;
        let before = site.cas[0].orders.load(Ordering::SeqCst);
        let (commands, received) = mpsc::channel(1);
        let (done, revoked) = oneshot::channel();
        let lineage = Lineage::Wildcard(KIND);
        commands.send(RenewalCommand::Revoke { lineage, done }).await.unwrap();
        site.open().run(received, tokio::time::sleep(Duration::from_mins(1))).await;
        revoked.await.unwrap().unwrap();
        assert_eq!(site.cas[0].orders.load(Ordering::SeqCst), before + 1);
    });
}
