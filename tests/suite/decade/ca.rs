//! A scripted CA and DNS with Let's Encrypt's limits as token buckets, and with every kind of failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use provost::acme::ports::{
    Ca, ChallengeDns, Order, OrderStatus, PendingChallenge, PortFuture, RenewalAdvice, StepReporter,
};
use provost::acme::{AcmeFailure, FailureKind, RenewalWindow};
use provost::dns::{RecordLocation, Responder};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::Notify;

use super::outages::{DAY, HOUR, Outages, Random};
use super::responder;
use super::{START, system_time};

type Now = Arc<dyn Fn() -> i64 + Send + Sync>;

/// A limit like Let's Encrypt's: a burst, and one more every so many seconds.
struct Bucket {
    capacity: f64,
    period: f64,
    tokens: f64,
    seen: i64,
}

impl Bucket {
    fn new(capacity: f64, period: f64) -> Self {
        Self { capacity, period, tokens: capacity, seen: START }
    }

    fn fill(&mut self, now: i64) {
        let filled = f64::from(i32::try_from(now - self.seen).unwrap()) / self.period;
        self.tokens = (self.tokens + filled).min(self.capacity);
        self.seen = now;
    }

    #[track_caller]
    fn take(&mut self, what: &str, now: i64) {
        self.fill(now);
        assert!(self.tokens >= 1.0, "over Let's Encrypt's limit of {what}");
        self.tokens -= 1.0;
    }
}

struct Limits {
    accounts: Bucket,
    orders: Bucket,
    /// By set of names.
    certificates: BTreeMap<Vec<String>, Bucket>,
    /// For all names of the registered domain.
    registered_domain: Bucket,
    /// By name.
    failed_validations: BTreeMap<String, Bucket>,
}

struct Placed {
    names: Vec<String>,
    status: OrderStatus,
    is_exempt: bool,
    challenges: Vec<PendingChallenge>,
    chain: Option<String>,
    born: i64,
}

pub struct ScriptedCa {
    directory: String,
    outages: Arc<Outages>,
    random: Arc<Random>,
    now: Now,
    issuer: Issuer<'static, KeyPair>,
    has_account: Mutex<bool>,
    limits: Mutex<Limits>,
    blocked_until: Mutex<i64>,
    placed: Mutex<BTreeMap<String, Placed>>,
    replaced: Mutex<BTreeSet<Vec<u8>>>,
    moved: Mutex<BTreeMap<Vec<u8>, RenewalWindow>>,
    published: Arc<Mutex<BTreeSet<String>>>,
    /// The built-in responder that answers for the challenges, where a test has one.
    pub responder: Mutex<Option<Arc<Responder>>>,
    issued: Mutex<BTreeMap<String, u32>>,
    kill: Arc<Notify>,
    pub certificates: AtomicU32,
    pub orders: AtomicU32,
    pub wanted: AtomicU32,
    pub validations: AtomicU32,
    pub failed_validations: AtomicU32,
    pub limited: AtomicU32,
}

impl ScriptedCa {
    pub fn new(outages: Arc<Outages>, random: Arc<Random>, now: Now) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = system_time(START - DAY).into();
        params.not_after = system_time(START + 9000 * DAY).into();
        let key = KeyPair::generate().unwrap();
        Self {
            directory: "https://scripted.example/directory".to_owned(),
            outages,
            random,
            now,
            issuer: Issuer::new(params, key),
            has_account: Mutex::new(false),
            limits: Mutex::new(Limits {
                accounts: Bucket::new(10.0, 1080.0),
                orders: Bucket::new(300.0, 36.0),
                certificates: BTreeMap::new(),
                registered_domain: Bucket::new(50.0, 12_096.0),
                failed_validations: BTreeMap::new(),
            }),
            blocked_until: Mutex::new(0),
            placed: Mutex::default(),
            replaced: Mutex::default(),
            moved: Mutex::default(),
            published: Arc::default(),
            responder: Mutex::default(),
            issued: Mutex::default(),
            kill: Arc::default(),
            certificates: AtomicU32::new(0),
            orders: AtomicU32::new(0),
            wanted: AtomicU32::new(0),
            validations: AtomicU32::new(0),
            failed_validations: AtomicU32::new(0),
            limited: AtomicU32::new(0),
        }
    }

    /// How many certificates were issued for this name.
    pub fn issued_for(&self, name: &str) -> u32 {
        self.issued.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    /// Waits until the script kills the process.
    pub async fn killed(&self) {
        self.kill.notified().await;
    }

    /// Whether CA and DNS have worked recently.
    pub fn works(&self) -> bool {
        let now = (self.now)();
        self.outages.was_undisturbed(now - 2 * DAY, now)
    }

    /// The lifetimes that Let's Encrypt has announced: 90, 64, 45, 6 days.
    fn lifetime(&self) -> i64 {
        let years = ((self.now)() - START) / (365 * DAY);
        match years {
            0..=2 => 90 * DAY,
            3..=4 => 64 * DAY,
            5..=6 => 45 * DAY,
            _ => 160 * HOUR,
        }
    }

    /// Any request: it takes time, and it may find the CA down, be rate-limited, or be where the process dies.
    async fn request(&self) -> Result<(), AcmeFailure> {
        let wait = self.random.between(1, 20);
        tokio::time::sleep(Duration::from_secs(wait.unsigned_abs())).await;
        self.maybe_die().await;
        let now = (self.now)();
        let blocked = *self.blocked_until.lock().unwrap();
        assert!(now >= blocked, "asked {} s before the Retry-After was over", blocked - now);
        if !self.outages.ca_is_up(now) {
            return Err(AcmeFailure::retry("the CA is down"));
        }
        if self.random.chance(0.002) {
            return Err(self.too_many(now));
        }
        Ok(())
    }

    fn too_many(&self, now: i64) -> AcmeFailure {
        let wait = self.random.between(60, 2 * DAY);
        *self.blocked_until.lock().unwrap() = now + wait;
        self.outages.forbid(now, now + wait);
        self.limited.fetch_add(1, Ordering::Relaxed);
        AcmeFailure::retry("too many").after(Some(wait))
    }

    pub async fn maybe_die(&self) {
        if self.random.chance(0.004) {
            self.kill.notify_waiters();
            // If the process is not being awaited, it does not die.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn take(&self, what: &str, bucket: impl Fn(&mut Limits) -> &mut Bucket) {
        bucket(&mut self.limits.lock().unwrap()).take(what, (self.now)());
    }

    /// The window by the certificate's own dates (RFC 9773), unless the script moved it forward.
    fn window_of(&self, leaf: &CertificateDer<'static>) -> RenewalWindow {
        if let Some(moved) = self.moved.lock().unwrap().get(&leaf.to_vec()) {
            return *moved;
        }
        let (from, to) = dates(leaf);
        let lifetime = to - from;
        let left = if lifetime < 10 * DAY { lifetime / 2 } else { lifetime / 3 };
        RenewalWindow { start: to - left - lifetime / 100, end: to - left + lifetime / 100 }
    }

    async fn place(
        self: &Arc<Self>,
        names: &[String],
        replaces: Option<&CertificateDer<'static>>,
    ) -> Result<Box<dyn Order>, AcmeFailure> {
        self.request().await?;
        if !*self.has_account.lock().unwrap() {
            return Err(AcmeFailure::retry("no such account").with_kind(FailureKind::AccountUnknown));
        }
        let now = (self.now)();
        let mut is_exempt = false;
        if let Some(leaf) = replaces {
            if self.replaced.lock().unwrap().contains(&leaf.to_vec()) {
                return Err(AcmeFailure::retry("already replaced").with_kind(FailureKind::Refused));
            }
            is_exempt = self.window_of(leaf).contains_time(now);
        }
        if is_exempt {
            self.wanted.fetch_add(1, Ordering::Relaxed);
            self.replaced.lock().unwrap().insert(replaces.unwrap().to_vec());
        } else {
            self.take("orders", |limits| &mut limits.orders);
        }
        let number = self.orders.fetch_add(1, Ordering::Relaxed);
        let is_known = self.random.chance(0.2);
        let challenges = names.iter().enumerate().filter(|_| !is_known).map(|(index, name)| PendingChallenge {
            domain: name.trim_start_matches("*.").to_owned(),
            value: format!("value-{number}-{index}"),
        });
        let status = if is_known { OrderStatus::Ready } else { OrderStatus::Pending };
        let placed = Placed {
            names: names.to_vec(),
            status,
            is_exempt,
            challenges: challenges.collect(),
            chain: None,
            born: now,
        };
        let url = format!("order-{number}");
        self.placed.lock().unwrap().insert(url.clone(), placed);
        // The answer may get lost after the order was created.
        self.maybe_die().await;
        if self.random.chance(0.01) {
            return Err(AcmeFailure::retry("the connection broke"));
        }
        Ok(Box::new(ScriptedOrder { url, ca: Arc::clone(self) }))
    }

    fn issue(&self, csr: &[u8]) -> String {
        let now = (self.now)();
        let der = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&der).unwrap();
        request.params.not_before = system_time(now - HOUR).into();
        request.params.not_after = system_time(now - HOUR + self.lifetime()).into();
        self.certificates.fetch_add(1, Ordering::Relaxed);
        request.signed_by(&self.issuer).unwrap().pem()
    }
}

trait ContainsTime {
    fn contains_time(&self, now: i64) -> bool;
}

impl ContainsTime for RenewalWindow {
    fn contains_time(&self, now: i64) -> bool {
        (self.start..=self.end).contains(&now)
    }
}

fn dates(leaf: &CertificateDer<'static>) -> (i64, i64) {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
    (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp())
}

/// The CA's interface to the flow; orders keep a reference to it.
pub struct CaPort(pub Arc<ScriptedCa>);

impl Ca for CaPort {
    fn directory(&self) -> &str {
        &self.0.directory
    }

    fn open(&self) -> PortFuture<'_, bool> {
        Box::pin(async {
            self.0.request().await?;
            if self.0.random.chance(0.001) {
                *self.0.has_account.lock().unwrap() = false;
            }
            Ok(*self.0.has_account.lock().unwrap())
        })
    }

    fn register(&self) -> PortFuture<'_, ()> {
        Box::pin(async {
            self.0.request().await?;
            self.0.take("accounts", |limits| &mut limits.accounts);
            *self.0.has_account.lock().unwrap() = true;
            Ok(())
        })
    }

    fn account_url(&self) -> Result<Option<String>, AcmeFailure> {
        Ok(Some("https://scripted.example/account".to_owned()))
    }

    fn put_account_aside(&self) -> Result<PathBuf, AcmeFailure> {
        Ok("account.key.deactivated".into())
    }

    fn clock_skew(&self) -> Option<i64> {
        None
    }

    fn renewal_window<'a>(&'a self, leaf: &'a CertificateDer<'static>) -> PortFuture<'a, Option<RenewalAdvice>> {
        Box::pin(async {
            self.0.request().await?;
            let now = (self.0.now)();
            if self.0.random.chance(0.002) {
                // An incident: this certificate is to be replaced soon.
                let soon = RenewalWindow { start: now - DAY, end: now + self.0.random.between(-HOUR, 2 * DAY) };
                self.0.moved.lock().unwrap().insert(leaf.to_vec(), soon);
            }
            let (window, again) = (self.0.window_of(leaf), self.0.random.between(4 * HOUR, 8 * HOUR));
            Ok(Some(RenewalAdvice { window, recheck_after_s: again, explanation: None }))
        })
    }

    fn order<'a>(
        &'a self,
        names: &'a [String],
        replaces: Option<&'a CertificateDer<'static>>,
    ) -> PortFuture<'a, Box<dyn Order>> {
        Box::pin(self.0.place(names, replaces))
    }

    fn order_at<'a>(&'a self, url: &'a str) -> PortFuture<'a, Box<dyn Order>> {
        Box::pin(async move {
            self.0.request().await?;
            let now = (self.0.now)();
            let mut placed = self.0.placed.lock().unwrap();
            let order =
                placed.get_mut(url).ok_or_else(|| AcmeFailure::retry("no order").with_kind(FailureKind::Refused))?;
            if order.chain.is_none() && now > order.born + 7 * DAY {
                order.status = OrderStatus::Invalid;
            }
            Ok(Box::new(ScriptedOrder { url: url.to_owned(), ca: Arc::clone(&self.0) }) as Box<dyn Order>)
        })
    }

    fn revoke<'a>(&'a self, _: &'a CertificateDer<'static>) -> PortFuture<'a, ()> {
        Box::pin(self.0.request())
    }
}

impl ScriptedCa {
    /// Whether DNS has the value of a challenge.
    fn sees(&self, challenge: &PendingChallenge) -> bool {
        match &*self.responder.lock().unwrap() {
            Some(responder) => responder::texts(responder, &challenge.domain).contains(&challenge.value),
            None => self.published.lock().unwrap().contains(&challenge.value),
        }
    }
}

struct ScriptedOrder {
    url: String,
    ca: Arc<ScriptedCa>,
}

impl ScriptedOrder {
    fn with<T>(&self, change: impl FnOnce(&mut Placed) -> T) -> T {
        change(self.ca.placed.lock().unwrap().get_mut(&self.url).unwrap())
    }
}

impl Order for ScriptedOrder {
    fn url(&self) -> &str {
        &self.url
    }

    fn status(&mut self) -> OrderStatus {
        self.with(|order| order.status)
    }

    fn challenges<'a>(&'a mut self, _method: &'a str) -> PortFuture<'a, Vec<PendingChallenge>> {
        Box::pin(async {
            self.ca.request().await?;
            Ok(self.with(|order| order.challenges.clone()))
        })
    }

    fn validate<'a>(&'a mut self, _method: &'a str) -> PortFuture<'a, ()> {
        Box::pin(async {
            self.ca.request().await?;
            for challenge in self.with(|order| order.challenges.clone()) {
                self.ca.validations.fetch_add(1, Ordering::Relaxed);
                // The CA may get other DNS answers than the server.
                if !self.ca.sees(&challenge) || self.ca.random.chance(0.03) {
                    self.ca.failed_validations.fetch_add(1, Ordering::Relaxed);
                    self.ca.take("failed validations", |limits| {
                        let of_name = limits.failed_validations.entry(challenge.domain.clone());
                        of_name.or_insert_with(|| Bucket::new(5.0, 720.0))
                    });
                    self.with(|order| order.status = OrderStatus::Invalid);
                    return Err(AcmeFailure::retry("no TXT record found").with_kind(FailureKind::Refused));
                }
            }
            self.with(|order| order.status = OrderStatus::Ready);
            self.ca.request().await
        })
    }

    fn finalize<'a>(&'a mut self, csr: &'a [u8]) -> PortFuture<'a, ()> {
        Box::pin(async {
            self.ca.request().await?;
            if self.with(|order| order.status) != OrderStatus::Ready {
                return Err(AcmeFailure::retry("not ready").with_kind(FailureKind::Refused));
            }
            if !self.with(|order| order.is_exempt) {
                let names = self.with(|order| order.names.clone());
                self.ca.take("certificates for the same names", |limits| {
                    limits.certificates.entry(names.clone()).or_insert_with(|| Bucket::new(5.0, 120_960.0))
                });
                self.ca.take("certificates for a registered domain", |limits| &mut limits.registered_domain);
            }
            for name in self.with(|order| order.names.clone()) {
                *self.ca.issued.lock().unwrap().entry(name).or_default() += 1;
            }
            let chain = self.ca.issue(csr);
            self.with(|order| {
                order.chain = Some(chain);
                order.status = OrderStatus::Valid;
            });
            self.ca.request().await
        })
    }

    fn chains(&mut self, _: bool) -> PortFuture<'_, Vec<String>> {
        Box::pin(async {
            self.ca.request().await?;
            Ok(self.with(|order| order.chain.clone()).into_iter().collect())
        })
    }
}

pub struct ScriptedDns {
    outages: Arc<Outages>,
    random: Arc<Random>,
    now: Now,
    ca: Arc<ScriptedCa>,
}

impl ScriptedDns {
    pub fn new(outages: Arc<Outages>, random: Arc<Random>, now: Now, ca: Arc<ScriptedCa>) -> Self {
        Self { outages, random, now, ca }
    }

    /// The values that are published in DNS.
    pub fn records(&self) -> BTreeSet<String> {
        self.ca.published.lock().unwrap().clone()
    }

    async fn exchange(&self) -> Result<(), AcmeFailure> {
        tokio::time::sleep(Duration::from_secs(self.random.between(1, 30).unsigned_abs())).await;
        self.ca.maybe_die().await;
        if self.outages.dns_is_up((self.now)()) { Ok(()) } else { Err(AcmeFailure::retry("DNS is down")) }
    }
}

impl ChallengeDns for ScriptedDns {
    fn locate<'a>(&'a self, challenge_name: &'a str) -> PortFuture<'a, RecordLocation> {
        Box::pin(async move {
            self.exchange().await?;
            let (name, zone) = (challenge_name.to_owned(), "example.com".to_owned());
            Ok(RecordLocation { name, zone, via: Vec::new() })
        })
    }

    fn stands_alone<'a>(&'a self, _: &'a str) -> PortFuture<'a, ()> {
        Box::pin(self.exchange())
    }

    fn account_binding<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> PortFuture<'a, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn add<'a>(&'a self, _: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async move {
            self.exchange().await?;
            self.ca.published.lock().unwrap().extend(values.iter().cloned());
            // Published, although the answer may get lost.
            self.exchange().await
        })
    }

    fn remove<'a>(&'a self, _: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async move {
            self.exchange().await?;
            self.ca.published.lock().unwrap().retain(|value| !values.contains(value));
            self.exchange().await
        })
    }

    fn wait_until_visible<'a>(
        &'a self,
        _: &'a RecordLocation,
        values: &'a [String],
        _: StepReporter<'a>,
    ) -> PortFuture<'a, ()> {
        Box::pin(async move {
            self.exchange().await?;
            let published = self.ca.published.lock().unwrap().clone();
            if values.iter().all(|value| published.contains(value)) && !self.random.chance(0.02) {
                return Ok(());
            }
            Err(AcmeFailure::retry("a secondary does not have it"))
        })
    }
}
