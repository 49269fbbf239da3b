//! A day of 300 phones, whose requests must equal the phone history at its end: each simulated phone keeps its own
//! record, and every number is compared.
//!
//! The server is the real one with a simulated clock: libfaketime reads the time from a file, and the test advances it
//! by half an hour once all phones have finished their requests of that time. Timeouts, which are measured, use real
//! seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use provost::phone_history::{HistoryReader, StoredClaim, StoredPhone as Known, StoredRequest};
use provost::virtual_phone::{
    BootObserver, BootOrder, BootReport, BootTarget, DeviceCertificate, RequestReport, VirtualPhone, boot,
};
use rustls::RootCertStore;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::harness::eventually;
use crate::harness::pki::{FACTORY, Identity, SERVER_CA, device_params};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tool::provost;

/// The number of half hours.
const TICKS: u32 = 48;
/// The power cut: all phones of one constituency boot at once.
const POWER_CUT: u32 = 6;
/// When the operator acts.
const NOON: u32 = 24;
/// The phone that boots all the time.
const ALWAYS_BOOTING: u32 = 5;
/// The number of requests that the history keeps individually per phone: for an accepted one, and for an unknown one.
const HISTORY: usize = 200;
const HISTORY_OF_STRANGER: usize = 20;

const MASTER: &str = r#"<APPLICATION APP_FILE_PATH="sip.ld" CONFIG_FILES="[PHONE_MAC_ADDRESS]-user.cfg, site.cfg"
    LOG_FILE_DIRECTORY="logs" OVERRIDES_DIRECTORY="overrides"/>"#;

/// The role of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Listed by `ote`.
    Ote,
    /// Listed by `ucs` by a file of its own.
    Ucs,
    /// Accepted by `open`, like every phone, but without uploads.
    Anybody,
    /// Unlisted in `ote`.
    Stranger,
    /// Denied by `ucs`.
    Denied,
    /// Claims the MAC of a phone of `ote` with a self-made certificate.
    Impostor,
}

/// The number of phones per role.
const PHONES_PER_ROLE: [(Role, u32); 6] = [
    (Role::Ote, 110),
    (Role::Ucs, 90),
    (Role::Anybody, 50),
    (Role::Stranger, 30),
    (Role::Denied, 10),
    (Role::Impostor, 10),
];

/// A simulated phone with its record.
struct Member {
    role: Role,
    number: u32,
    phone: VirtualPhone,
    identity: Identity,
    record: Arc<Mutex<Record>>,
}

/// The record of a phone.
#[derive(Debug, Default)]
struct Record {
    entries: Vec<Entry>,
    /// The times of boots without any answer.
    shut_out: Vec<u32>,
    tls: Option<(String, String)>,
}

/// A request and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    tick: u32,
    method: String,
    path: String,
    status: u16,
    bytes: u64,
    /// The firmware version in the User-Agent.
    firmware: Option<String>,
}

impl Entry {
    fn is_refused(&self) -> bool {
        self.status == 403
    }

    fn is_configuration(&self) -> bool {
        self.method == "GET" && self.status == 200 && self.path.strip_suffix(".cfg").is_some()
    }

    fn is_upload(&self) -> bool {
        self.method == "PUT" && (200..300).contains(&self.status)
    }
}

/// Records the requests of a booting phone.
struct Recorder {
    tick: u32,
    phone: VirtualPhone,
    record: Arc<Mutex<Record>>,
}

impl BootObserver for Recorder {
    fn exchanged(&mut self, exchange: &RequestReport) {
        let Some(status) = exchange.status else { return };
        let is_updater = exchange.program == provost::virtual_phone::Program::Updater;
        self.record.lock().unwrap().entries.push(Entry {
            tick: self.tick,
            method: exchange.method.to_string(),
            path: exchange.path.clone(),
            status: status.as_u16(),
            bytes: exchange.received,
            // The updater sends another version.
            firmware: (!is_updater).then(|| self.phone.firmware.clone()),
        });
    }

    fn ended(&mut self, report: &BootReport) {
        let mut record = self.record.lock().unwrap();
        if report.exchanges.iter().all(|exchange| exchange.status.is_none()) {
            record.shut_out.push(self.tick);
        } else {
            let facts = report.tls.as_ref().unwrap();
            record.tls = Some((facts.version.replace('_', "."), facts.suite.clone()));
        }
    }
}

impl Member {
    fn new(role: Role, number: u32, mac: &str) -> Self {
        let mut phone = VirtualPhone::new(mac.parse().unwrap());
        if number.is_multiple_of(3) {
            phone =
                VirtualPhone { model: "SPIP_550".to_owned(), firmware: format!("4.0.15.{}", 1000 + number), ..phone };
        }
        let identity =
            if role == Role::Impostor { Identity::self_signed(&device_params(mac)) } else { FACTORY.device(mac) };
        Self { role, number, phone, identity, record: Arc::default() }
    }

    fn mac(&self) -> String {
        self.phone.mac.to_string()
    }

    fn constituency(&self) -> &'static str {
        match self.role {
            Role::Ote | Role::Stranger | Role::Impostor => "ote",
            Role::Ucs | Role::Denied => "ucs",
            Role::Anybody => "open",
        }
    }

    /// Whether it boots at this time: once or twice a day at fixed times, the first phone always.
    fn boots_at(&self, tick: u32) -> bool {
        let own = self.number.wrapping_mul(2_654_435_761) >> 16;
        let is_its_time = tick == own % TICKS || self.number.is_multiple_of(4) && tick == (own / TICKS) % TICKS;
        is_its_time || self.number == ALWAYS_BOOTING || tick == POWER_CUT && self.role == Role::Ote
    }

    /// Requests a file outside of a boot and records it; returns whether the answer is `status`.
    fn ask(&self, server: &Running, status: u16) -> bool {
        let answer = server.client("ote", &self.identity).get("/site.cfg").unwrap();
        self.record.lock().unwrap().entries.push(Entry {
            tick: NOON,
            method: "GET".to_owned(),
            path: "/site.cfg".to_owned(),
            status: answer.status,
            bytes: answer.body.len() as u64,
            firmware: None,
        });
        answer.status == status
    }

    async fn boot(&self, tick: u32, target: BootTarget) {
        let certificate = DeviceCertificate { chain: self.identity.chain.clone(), key: self.identity.key() };
        let mut writing = Recorder { tick, phone: self.phone.clone(), record: Arc::clone(&self.record) };
        let report = boot(&self.phone, &target, Some(&certificate), &mut writing).await;
        // An incomplete record is useless.
        let is_whole = |report: &BootReport| report.exchanges.iter().all(|exchange| exchange.status.is_some());
        assert!(self.role == Role::Impostor || is_whole(&report), "{:?}", report.exchanges);
    }
}

/// The phones, a site that lists some of them, and the time.
struct Day {
    site: Site,
    crew: Vec<Arc<Member>>,
    clock: PathBuf,
    begin: OffsetDateTime,
}

impl Day {
    fn new() -> Self {
        let crew: Vec<Arc<Member>> = members().map(Arc::new).collect();
        assert_eq!(crew.len(), 300);
        let site = Site::new();
        let of = |role: Role| crew.iter().filter(move |member| member.role == role);
        let notes: serde_json::Map<String, Value> =
            of(Role::Ote).map(|member| (member.mac(), format!("desk {}", member.number).into())).collect();
        site.constituency("ote", &json!({ "trust": ["factory"], "phones": notes }));
        let denied: Vec<String> = of(Role::Denied).map(|member| member.mac()).collect();
        site.constituency("ucs", &json!({ "trust": ["factory"], "denied": denied }));
        site.constituency("open", &json!({ "trust": ["factory"], "phones": "any" }));
        for name in ["ote", "ucs", "open"] {
            site.file(&format!("{name}/000000000000.cfg"), MASTER);
            site.file(&format!("{name}/site.cfg"), format!("<site name='{name}' filler='{}'/>", "x".repeat(3000)));
        }
        for member in of(Role::Ucs) {
            site.file(&format!("ucs/{}.cfg", member.mac()), MASTER);
        }
        let clock = site.path("clock");
        // Tomorrow, so that every certificate is valid all day.
        let begin = (OffsetDateTime::now_utc() + Duration::DAY).replace_time(time::Time::MIDNIGHT);
        Self { site, crew, clock, begin }
    }

    fn at(&self, tick: u32) -> OffsetDateTime {
        self.begin + Duration::minutes(30) * tick
    }

    /// In Unix milliseconds.
    fn milliseconds(&self, tick: u32) -> i64 {
        self.at(tick).unix_timestamp() * 1000
    }

    /// Sets the server's clock atomically.
    fn set_clock(&self, tick: u32) {
        let text = self.at(tick).format(&Rfc3339).unwrap().replace('T', " ").replace('Z', "\n");
        let new = self.clock.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &self.clock).unwrap();
    }

    fn start(&self) -> Running {
        self.set_clock(0);
        let mut command = self.site.command();
        command
            .env("LD_PRELOAD", libfaketime())
            .env("FAKETIME_TIMESTAMP_FILE", &self.clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("TZ", "UTC");
        Running::start(command, 1)
    }

    fn target(server: &Running, constituency: &str) -> BootTarget {
        let mut roots = RootCertStore::empty();
        roots.add(SERVER_CA.certificate.der().clone()).unwrap();
        let url = format!("https://{constituency}.{DOMAIN}:{}/", server.address().port());
        BootTarget {
            url: url.parse().unwrap(),
            server_roots: Arc::new(roots),
            resolve: Some(server.address()),
            password: None,
        }
    }

    /// Simulates the day; returns the number of boots.
    fn pass(&self, server: &Running) -> usize {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut boots = 0;
        for tick in 0..TICKS {
            self.set_clock(tick);
            if tick == NOON {
                self.operate(server);
            }
            let due: Vec<&Arc<Member>> = self.crew.iter().filter(|member| member.boots_at(tick)).collect();
            boots += due.len();
            runtime.block_on(async {
                let mut booting = tokio::task::JoinSet::new();
                for member in due {
                    let (member, target) = (Arc::clone(member), Self::target(server, member.constituency()));
                    booting.spawn(async move { member.boot(tick, target).await });
                    if booting.len() >= 24 {
                        booting.join_next().await.unwrap().unwrap();
                    }
                }
                while let Some(booted) = booting.join_next().await {
                    booted.unwrap();
                }
            });
        }
        boots
    }

    /// At noon the operator allows some unknown phones and denies some known ones, which they notice themselves.
    fn operate(&self, server: &Running) {
        let some = |role: Role| self.crew.iter().filter(move |member| member.role == role).take(4);
        for (role, command, status) in [(Role::Stranger, "allow", 200), (Role::Ote, "deny", 403)] {
            for member in some(role) {
                let done = provost(&self.site.path("."), &[command, &member.mac(), "--constituency", "ote"]);
                assert_eq!(done.code, 0, "{}", done.stderr);
            }
            for member in some(role) {
                eventually("the change to apply", || member.ask(server, status).then_some(()));
            }
        }
    }
}

/// All phones, numbered; impostors claim the MACs of the first phones.
fn members() -> impl Iterator<Item = Member> {
    let roles = PHONES_PER_ROLE.into_iter().flat_map(|(role, count)| (0..count).map(move |_| role));
    roles.zip(0..).map(|(role, number)| {
        let claimed = if role == Role::Impostor { number - 290 } else { number };
        Member::new(role, number, &format!("00005e02{claimed:04x}"))
    })
}

fn libfaketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let library = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists());
    library.expect("libfaketime, of the package faketime")
}

/// The expected history of a phone by its record.
fn check_phone(day: &Day, member: &Member, known: &Known, requests: &[StoredRequest]) {
    let record = member.record.lock().unwrap();
    let (mac, entries) = (member.mac(), &record.entries);
    let last = |is_one: fn(&Entry) -> bool| entries.iter().rev().find(|entry| is_one(entry));
    let count = |is_one: fn(&Entry) -> bool| entries.iter().filter(|entry| is_one(entry)).count() as u64;
    assert_eq!(known.requests, entries.len() as u64, "{mac}");
    assert_eq!(known.refusals, count(Entry::is_refused), "{mac}");
    assert_eq!(known.uploads, count(Entry::is_upload), "{mac}");
    assert_eq!(known.bytes, entries.iter().map(|entry| entry.bytes).sum::<u64>(), "{mac}");
    assert_eq!(known.first_seen, day.milliseconds(entries[0].tick), "{mac}");
    let at = |milliseconds: i64, entry: &Entry| {
        let late = milliseconds - day.milliseconds(entry.tick);
        assert!((0..60_000).contains(&late), "{mac}: {late} ms after {entry:?}");
    };
    at(known.last_seen, entries.last().unwrap());
    let accepted = last(|entry| !entry.is_refused());
    assert_eq!(known.last_accepted.is_some(), accepted.is_some(), "{mac}");
    known.last_accepted.into_iter().zip(accepted).for_each(|(time, entry)| at(time, entry));
    assert_eq!(known.is_refused, entries.last().unwrap().is_refused(), "{mac}");
    for (event, entry) in [
        (&known.configuration, last(Entry::is_configuration)),
        (&known.upload, last(Entry::is_upload)),
        (&known.refusal, last(Entry::is_refused)),
    ] {
        assert_eq!(event.is_some(), entry.is_some(), "{mac}");
        let Some((event, entry)) = event.as_ref().zip(entry) else { continue };
        at(event.at, entry);
        assert!(entry.is_refused() || event.what == entry.path, "{mac}: {event:?} {entry:?}");
    }
    if let Some(refusal) = &known.refusal {
        let reasons = match member.role {
            Role::Denied => vec![format!("{mac} is denied by ucs")],
            Role::Ote => vec![format!("{mac} is denied by ote")],
            Role::Anybody => vec!["uploads are off in open".to_owned()],
            _ => vec![format!("{mac} is not known to ote")],
        };
        assert!(reasons.iter().any(|reason| refusal.what.contains(reason)), "{mac}: {refusal:?} {reasons:?}");
    }
    assert_eq!(known.model.as_deref(), Some(member.phone.model.as_str()), "{mac}");
    assert_eq!(known.firmware, entries.iter().rev().find_map(|entry| entry.firmware.clone()), "{mac}");
    assert_eq!(known.tls, record.tls, "{mac}");
    assert_eq!(known.address, "127.0.0.1", "{mac}");
    let (_, certificate) = x509_parser::parse_x509_certificate(&member.identity.chain[0]).unwrap();
    assert_eq!(known.certificate_not_after, Some(certificate.validity().not_after.timestamp()), "{mac}");
    check_history(day, member, entries, accepted.is_some(), requests);
}

/// The last requests are stored individually.
fn check_history(day: &Day, member: &Member, entries: &[Entry], was_accepted: bool, requests: &[StoredRequest]) {
    let kept = if was_accepted { HISTORY } else { HISTORY_OF_STRANGER };
    let expected = &entries[entries.len().saturating_sub(kept)..];
    let reported: Vec<_> = expected
        .iter()
        .map(|entry| {
            let asked = Some((entry.method.clone(), entry.path.clone()));
            (day.milliseconds(entry.tick), asked, Some(entry.status), entry.bytes)
        })
        .collect();
    let found: Vec<_> = requests.iter().map(|it| (it.time, it.request.clone(), it.status, it.bytes)).collect();
    assert_eq!(found, reported, "{}", member.mac());
}

/// Impostors appear only as claims, one per certificate.
fn check_claims(day: &Day, claims: &[StoredClaim]) {
    let impostors: Vec<_> = day.crew.iter().filter(|member| member.role == Role::Impostor).collect();
    assert_eq!(claims.len(), impostors.len());
    for member in impostors {
        let record = member.record.lock().unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &member.identity.chain[0]);
        let claim =
            claims.iter().find(|claim| claim.fingerprint.is_some_and(|bytes| bytes == digest.as_ref())).unwrap();
        assert!(record.entries.is_empty() && !record.shut_out.is_empty(), "{record:?}");
        assert_eq!((claim.mac, claim.constituency.as_str()), (member.phone.mac, "ote"));
        assert_eq!(claim.count, record.shut_out.len() as u64, "{}", member.mac());
        assert_eq!(claim.first_seen, day.milliseconds(record.shut_out[0]), "{}", member.mac());
        assert!(claim.refusal.as_ref().unwrap().contains("self-signed"), "{claim:?}");
    }
}

/// Compares `provost phones --json` with the records.
fn check_command(day: &Day, folder: &Path) {
    let printed = provost(folder, &["phones", "--refused", "--json"]);
    let all = provost(folder, &["phones", "--json"]);
    assert_eq!((printed.code, all.code), (0, 0), "{}{}", printed.stderr, all.stderr);
    let lines = |text: &str| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let (refused, all) = (lines(&printed.stdout), lines(&all.stdout));
    assert_eq!(all.len(), 290, "each phone once, without impostors");
    for member in day.crew.iter().filter(|member| member.role != Role::Impostor) {
        let record = member.record.lock().unwrap();
        let line = all.iter().find(|line| line["mac"] == member.mac()).unwrap();
        let last = record.entries.last().unwrap();
        assert_eq!(line["requests"], record.entries.len(), "{line}");
        assert_eq!(line["bytes"], record.entries.iter().map(|entry| entry.bytes).sum::<u64>(), "{line}");
        assert_eq!(line["refused"], last.is_refused(), "{line}");
        assert_eq!(line["first_seen"], day.at(record.entries[0].tick).format(&Rfc3339).unwrap(), "{line}");
        assert_eq!(line["constituency"], member.constituency(), "{line}");
    }
    let is_refused = |member: &&Arc<Member>| {
        let record = member.record.lock().unwrap();
        record.entries.last().is_none_or(Entry::is_refused)
    };
    let expected: BTreeSet<(String, bool)> =
        day.crew.iter().filter(is_refused).map(|member| (member.mac(), member.role != Role::Impostor)).collect();
    let found: BTreeSet<(String, bool)> = refused
        .iter()
        .map(|line| (line["mac"].as_str().unwrap().to_owned(), line["proven"].as_bool().unwrap()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(refused.len(), expected.len());
}

/// Compares `provost phone-log` for the phone with the most requests, and for one that was denied.
fn check_log(day: &Day, folder: &Path) {
    let denied = day.crew.iter().find(|member| member.role == Role::Denied).unwrap();
    for member in [&day.crew[ALWAYS_BOOTING as usize], denied] {
        let printed = provost(folder, &["phone-log", &member.mac(), "--json"]);
        assert_eq!(printed.code, 0, "{}", printed.stderr);
        let lines: Vec<Value> = printed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (claims, requests): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line["proven"] == false);
        let record = member.record.lock().unwrap();
        let kept = if member.role == Role::Denied { HISTORY_OF_STRANGER } else { HISTORY };
        let expected = &record.entries[record.entries.len().saturating_sub(kept)..];
        assert_eq!(requests.len(), expected.len());
        for (line, entry) in requests.iter().zip(expected) {
            assert_eq!(
                (&line["method"], &line["path"], &line["status"]),
                (&json!(entry.method), &json!(entry.path), &json!(entry.status))
            );
            assert_eq!(line["time"], day.at(entry.tick).format(&Rfc3339).unwrap());
        }
        assert_eq!(claims.len(), usize::from(member.role == Role::Ote), "its impostor");
    }
}

/// Compares the database itself, read by another program: sums over all tables, and the activity in each step of the
/// day.
fn check_database(day: &Day, file: &Path) {
    let database = rusqlite::Connection::open_with_flags(file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let number = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let (mut requests, mut refusals, mut kept, mut shut_out) = (0, 0, 0, 0);
    let mut steps: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for member in &day.crew {
        let record = member.record.lock().unwrap();
        let was_accepted = record.entries.iter().any(|entry| !entry.is_refused());
        requests += record.entries.len();
        refusals += record.entries.iter().filter(|entry| entry.is_refused()).count();
        kept += record.entries.len().min(if was_accepted { HISTORY } else { HISTORY_OF_STRANGER });
        shut_out += record.shut_out.len();
        for (tick, is_refused) in record
            .entries
            .iter()
            .map(|entry| (entry.tick, entry.is_refused()))
            .chain(record.shut_out.iter().map(|tick| (*tick, true)))
        {
            let step = steps.entry(day.at(tick).unix_timestamp() / 600).or_default();
            *(if is_refused { &mut step.1 } else { &mut step.0 }) += 1;
        }
    }
    let count = |count: usize| i64::try_from(count).unwrap();
    assert_eq!(number("SELECT count(*) FROM phone"), 290);
    assert_eq!(number("SELECT sum(requests) FROM phone"), count(requests));
    assert_eq!(number("SELECT sum(refusals) FROM phone"), count(refusals));
    assert_eq!(number("SELECT count(*) FROM request"), count(kept));
    assert_eq!(number("SELECT sum(count) FROM claim"), count(shut_out));
    assert_eq!(number("SELECT count(*) FROM claim_address"), 10);
    let mut query = database.prepare("SELECT step, served, refused FROM activity ORDER BY step").unwrap();
    let found: BTreeMap<i64, (i64, i64)> =
        query.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap().map(Result::unwrap).collect();
    assert_eq!(found, steps);
    assert!(requests > 5000 && steps.len() == TICKS as usize, "{requests} requests at {} times", steps.len());
}

#[test]
fn phone_history_matches_a_day_of_300_phones() {
    let day = Day::new();
    let server = day.start();
    let boots = day.pass(&server);
    assert!(boots > 500, "{boots}");
    assert!(day.crew[ALWAYS_BOOTING as usize].record.lock().unwrap().entries.len() > 2 * HISTORY);
    assert!(day.crew.iter().any(|member| member.phone.boot_order() == BootOrder::UcSoftware4));
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());

    let folder = day.site.path(".");
    let ledger = HistoryReader::open(&day.site.path("state")).unwrap().unwrap();
    let phones = ledger.phones().unwrap();
    assert_eq!(phones.len(), 290);
    for member in day.crew.iter().filter(|member| member.role != Role::Impostor) {
        let known = phones.iter().find(|known| known.mac == member.phone.mac).unwrap();
        assert_eq!(known.constituency.as_str(), member.constituency());
        check_phone(&day, member, known, &ledger.requests(member.phone.mac).unwrap());
    }
    check_claims(&day, &ledger.claims().unwrap());
    check_command(&day, &folder);
    check_log(&day, &folder);
    check_database(&day, &day.site.path("state/ledger/ledger.sqlite"));
}
