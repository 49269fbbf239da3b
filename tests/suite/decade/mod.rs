//! Ten simulated years: the real flow, store and schedule with a scripted CA and DNS, on a virtual clock.
//!
//! The script contains outages of hours and days, 429 with Retry-After, windows moved forward, lost accounts, orders
//! without `replaces`, and kills at any step. The tests assert, on every change and at the end, that no limit of Let's
//! Encrypt is exceeded, that no record stays in DNS, and that there is a valid certificate whenever that was possible.

mod ca;
mod exact;
mod outages;
mod responder;
mod rules;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use provost::acme::ports::{ChallengeDns, Env};
use provost::acme::{Parts, Renewer};
use provost::ca::KeyKind;
use provost::certificate::{ExactNames, LiveCertificates};
use provost::constituency::ConstituencyName;
use rcgen::KeyPair;
use tokio::sync::{mpsc, watch};

use ca::{CaPort, ScriptedCa, ScriptedDns};
use outages::{DAY, HOUR, Outages, Random};
use responder::ServedDns;

const KINDS: [KeyKind; 2] = [KeyKind::Rsa2048, KeyKind::EcdsaP256];
const START: i64 = 1_800_000_000;
const DECADE: i64 = 3653 * DAY;

/// A few shared keys, because generating RSA keys is slow.
static KEYS: LazyLock<Vec<(KeyKind, Vec<String>)>> = LazyLock::new(|| {
    let some = |kind: KeyKind| (kind, (0..4).map(|_| kind.generate().unwrap().serialize_pem()).collect());
    KINDS.map(some).to_vec()
});

/// Virtual time, which advances when nothing else happens.
struct VirtualEnv {
    /// The start of the simulation on the runtime's clock.
    start: i64,
    began: tokio::time::Instant,
    random: Arc<Random>,
}

impl Env for VirtualEnv {
    fn now(&self) -> i64 {
        self.start + i64::try_from(self.began.elapsed().as_secs()).unwrap()
    }

    fn random(&self) -> f64 {
        self.random.fraction()
    }

    fn new_key(&self, kind: KeyKind) -> Result<KeyPair, rcgen::Error> {
        let pems = &KEYS.iter().find(|(of, _)| *of == kind).unwrap().1;
        KeyPair::from_pem(&pems[self.random.below(pems.len())])
    }
}

/// The labels of the constituencies that always have exact names.
const PERMANENT: [&[&str]; 2] = [&["ucs-3"], &["old", "older"]];
/// The constituency that is added and removed repeatedly.
const TEMPORARY: &[&str] = &["guest"];

/// The exact names, with or without those of the guest.
fn wanted(with_guest: bool) -> Arc<ExactNames> {
    let names = |labels: &&[&str]| {
        let names = labels.iter().map(|label| format!("{label}.phones.example.com")).collect();
        (labels[0].parse().unwrap(), names)
    };
    Arc::new(PERMANENT.iter().chain(with_guest.then_some(&TEMPORARY)).map(names).collect())
}

/// The result of ten years.
#[derive(Debug, Default)]
struct Figures {
    restarts: u32,
    kills: u32,
    gaps_excused: i64,
    /// For how long the wildcard was presented instead of a certificate for exact names.
    exact_missing: i64,
}

/// After everything has worked for this long, there must be a certificate for exact names, whose attempts are rarer.
const UNDISTURBED_FOR_EXACT: i64 = 3 * DAY;

#[test]
fn ten_simulated_years_leave_no_avoidable_certificate_gap() {
    let seeds: Vec<u64> = match std::env::var("PROVOST_DECADE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => vec![1, 2],
    };
    for seed in seeds {
        let began = std::time::Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let line = runtime.block_on(decade(seed, false));
        eprintln!("decade, seed {seed}: {line}; {:.1} s", began.elapsed().as_secs_f64());
    }
}

#[test]
fn ten_simulated_years_pass_with_the_dns_responder() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let line = runtime.block_on(decade(3, true));
    eprintln!("decade with the responder: {line}");
}

/// A decade in which challenges are published by updates of a primary, or by the built-in responder.
async fn decade(seed: u64, is_served: bool) -> String {
    let folder = scratch();
    let random = Arc::new(Random::new(seed));
    let began = tokio::time::Instant::now();
    let world = Arc::new(VirtualEnv { start: START, began, random: Arc::clone(&random) });
    let outages = Arc::new(Outages::generate(&random, START, DECADE));
    let now = Arc::new({
        let world = Arc::clone(&world);
        move || world.now()
    });
    let ca = Arc::new(ScriptedCa::new(Arc::clone(&outages), Arc::clone(&random), now.clone()));
    let dns = Arc::new(ScriptedDns::new(Arc::clone(&outages), Arc::clone(&random), now, Arc::clone(&ca)));
    let live = Arc::new(LiveCertificates::default());
    let (wanting, _) = watch::channel(wanted(false));
    let mut figures = Figures::default();
    while world.now() < START + DECADE {
        // A responder that starts again has nothing of the challenges of the one before.
        let solver: Arc<dyn ChallengeDns> =
            if is_served { Arc::new(ServedDns::start(&ca, folder.path())) } else { dns.clone() };
        let parts = parts(&ca, solver, &world, wanting.subscribe());
        let renewer = Renewer::open(parts, folder.path(), Arc::clone(&live)).unwrap();
        let (_keep, commands) = mpsc::channel(1);
        let span = Duration::from_secs(u64::try_from(random.between(HOUR, 60 * DAY)).unwrap());
        let is_orderly = random.chance(0.5);
        if is_orderly {
            renewer.run(commands, check_certificates(span, &world, &outages, &live, &wanting, &mut figures)).await;
        } else {
            // The process is killed at any point, also between two requests to CA or DNS.
            let run = renewer.run(commands, std::future::pending());
            let killed = ca.killed();
            tokio::select! {
                () = run => unreachable!("it runs until it is stopped"),
                () = check_certificates(span, &world, &outages, &live, &wanting, &mut figures) => {}
                () = killed => figures.kills += 1,
            }
        }
        figures.restarts += 1;
        // The supervisor restarts it after a moment.
        tokio::time::sleep(Duration::from_secs(u64::try_from(random.between(1, 300)).unwrap())).await;
    }
    assert_clean_end(&ca, &dns, &live, &world, folder.path());
    let made = |count: &std::sync::atomic::AtomicU32| count.load(Ordering::Relaxed);
    format!(
        "{} certificates, {} orders ({} wanted), {} validations of which {} failed, {} answers 429, {} outages, \
         {} restarts of which {} kills between two steps, {} s without a certificate, and {} s without one for exact \
         names, all excused; {} certificates for a temporary constituency",
        made(&ca.certificates),
        made(&ca.orders),
        made(&ca.wanted),
        made(&ca.validations),
        made(&ca.failed_validations),
        made(&ca.limited),
        outages.outages(),
        figures.restarts,
        figures.kills,
        figures.gaps_excused,
        figures.exact_missing,
        ca.issued_for("guest.phones.example.com"),
    )
}

fn parts(
    ca: &Arc<ScriptedCa>,
    dns: Arc<dyn ChallengeDns>,
    world: &Arc<VirtualEnv>,
    exact: watch::Receiver<Arc<ExactNames>>,
) -> Parts {
    Parts {
        domain: "phones.example.com".to_owned(),
        keys: KINDS.to_vec(),
        exact,
        preferred_chain: None,
        cas: vec![Arc::new(CaPort(Arc::clone(ca)))],
        dns,
        env: world.clone(),
        fingerprint: String::new(),
    }
}

/// Checks for `span` whether there is a valid certificate of each kind: at each expiry and every hour.
async fn check_certificates(
    span: Duration,
    world: &VirtualEnv,
    outages: &Outages,
    live: &LiveCertificates,
    wanting: &watch::Sender<Arc<ExactNames>>,
    figures: &mut Figures,
) {
    let end = tokio::time::Instant::now() + span;
    while tokio::time::Instant::now() < end {
        let now = world.now();
        let mut pause = HOUR;
        for certificate in live.current().iter() {
            let left = certificate.not_after + 1 - now;
            if left > 0 {
                pause = pause.min(left);
                continue;
            }
            // The same later on: after everything has worked for this long, there must be a certificate again.
            let calm = DAY.min((certificate.not_after - certificate.not_before) / 6);
            assert!(
                !outages.was_undisturbed(now - calm, now),
                "without a certificate for {} s, although everything has worked for {calm} s",
                -left
            );
            figures.gaps_excused += pause;
        }
        for labels in PERMANENT {
            let name: ConstituencyName = labels[0].parse().unwrap();
            let is_shown = live.exact().get(&name).is_some_and(|shown| shown[0].not_after >= now);
            let calm = UNDISTURBED_FOR_EXACT.min(now - START);
            let is_excused = calm < UNDISTURBED_FOR_EXACT || !outages.was_undisturbed(now - calm, now);
            assert!(is_shown || is_excused, "no certificate for {name}, although everything has worked for {calm} s");
            figures.exact_missing += if is_shown { 0 } else { pause };
        }
        if world.random.chance(0.01) {
            let is_here = wanting.borrow().iter().any(|(name, _)| name.as_str() == TEMPORARY[0]);
            wanting.send_replace(wanted(!is_here));
        }
        tokio::time::sleep(Duration::from_secs(pause.unsigned_abs())).await;
    }
}

fn assert_clean_end(ca: &ScriptedCa, dns: &ScriptedDns, live: &LiveCertificates, world: &VirtualEnv, state: &Path) {
    assert_eq!(live.current().len(), KINDS.len());
    for certificate in live.current().iter() {
        assert!(certificate.not_after > world.now() || !ca.works(), "an expired certificate at the end");
    }
    let journal = std::fs::read_to_string(state.join("dns-journal.json")).unwrap_or_default();
    let orphans: BTreeSet<String> = dns.records().into_iter().filter(|value| !journal.contains(value)).collect();
    assert!(orphans.is_empty(), "orphaned records: {orphans:?}");
    assert!(ca.certificates.load(Ordering::Relaxed) > 200, "too few certificates to prove anything");
    let (steady, guest) = (ca.issued_for("ucs-3.phones.example.com"), ca.issued_for("guest.phones.example.com"));
    assert!(steady > 50 && guest > 10, "too few for exact names to prove anything: {steady}, {guest}");
    assert!(
        guest <= steady,
        "a temporary constituency needs no more certificates than a permanent one: {guest}, {steady}"
    );
}

/// A folder in memory if possible, because ten years write a lot.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
}
