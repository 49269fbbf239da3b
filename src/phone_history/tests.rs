//! The phone history as a whole: aggregation, storage, limits, and damaged files.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use ipnet::IpNet;
use proptest::prelude::*;
use rusqlite::config::DbConfig;

use super::queue::{HistoryQueue, MAX_CLAIMED, MAX_PROVEN, TakenBatch};
use super::store::{HISTORY, HistoryStore};
use super::upkeep::{Policies, SLICE, Slice};
use super::*;
use crate::clock;
use crate::constituency::scan::Scanner;
use crate::constituency::{MacAddress, ServerDenials, TlsLevel};
use crate::state;

/// A phone history in a folder of its own.
struct Bench {
    folder: tempfile::TempDir,
    store: HistoryStore,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = HistoryStore::open(&database(&folder.path().join(FOLDER))).unwrap();
        Self { folder, store }
    }

    fn write(&mut self, events: &[PhoneEvent]) {
        let taken = TakenBatch { events: events.to_vec(), ..TakenBatch::default() };
        self.store.write(&taken, at(0)).unwrap();
    }

    /// Does all the upkeep that is due at `at(seconds)`. Returns its slices.
    fn keep_up(&mut self, seconds: u64) -> Vec<Slice> {
        let mut slices = Vec::new();
        loop {
            slices.push(self.store.run_slice(at(seconds)).unwrap());
            if !slices.last().unwrap().has_more {
                return slices;
            }
        }
    }

    fn reader(&self) -> HistoryReader {
        HistoryReader::open(self.folder.path()).unwrap().unwrap()
    }

    fn phones(&self) -> Vec<StoredPhone> {
        self.reader().phones().unwrap()
    }
}

/// A fixed time plus `seconds`.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds)
}

fn mac(number: u64) -> MacAddress {
    "00005e005300".parse::<MacAddress>().unwrap().plus(number)
}

/// A phone that fetches its configuration at `at(seconds)`.
fn event(phone: u64, seconds: u64) -> PhoneEvent {
    PhoneEvent {
        time: at(seconds),
        address: [192, 0, 2, 1].into(),
        network: IpAddr::from([192, 0, 2, 1]).into(),
        constituency: "ote".parse().unwrap(),
        mac: mac(phone),
        proof: Proof::Certificate { not_after: 2_000_000_000 },
        request: Some((Method::GET, format!("/{}.cfg?a=b", mac(phone)).into())),
        status: Some(StatusCode::OK),
        bytes: 100,
        duration: Duration::from_micros(500),
        user_agent: Some((*b"FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application").into()),
        reason: None,
        tls: Some(("TLSv1.3", "TLS13_AES_128_GCM_SHA256")),
    }
}

fn refused(phone: u64, seconds: u64) -> PhoneEvent {
    let reason = Some(format!("{} is not known to ote", mac(phone)));
    PhoneEvent { status: Some(StatusCode::FORBIDDEN), reason, ..event(phone, seconds) }
}

fn claimed(phone: u64, fingerprint: u64, seconds: u64) -> PhoneEvent {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&fingerprint.to_be_bytes());
    PhoneEvent {
        proof: Proof::Claimed { fingerprint: Some(bytes) },
        request: None,
        status: None,
        reason: Some("the device certificate is self-signed".to_owned()),
        ..event(phone, seconds)
    }
}

fn from(network: u32, event: PhoneEvent) -> PhoneEvent {
    let address = IpAddr::from(network.to_be_bytes());
    PhoneEvent { address, network: IpNet::from(address), ..event }
}

#[test]
fn phone_row_has_what_its_events_show() {
    let mut bench = Bench::new();
    let log = format!("/logs/{}-app.log", mac(1));
    let put = |seconds, status, reason: Option<&str>| PhoneEvent {
        request: Some((Method::PUT, log.as_str().into())),
        status: Some(status),
        reason: reason.map(str::to_owned),
        bytes: 0,
        ..event(1, seconds)
    };
    let updater = b"FileTransport PolycomVVX-VVX_500-UA/5.9.7.47435 Type/Updater";
    let absent = Some("no such file".to_owned());
    bench.write(&[
        PhoneEvent { user_agent: Some((*updater).into()), ..event(1, 10) },
        PhoneEvent { status: Some(StatusCode::NOT_FOUND), reason: absent, user_agent: None, ..event(1, 11) },
    ]);
    assert_eq!((bench.phones()[0].firmware.as_deref(), &bench.phones()[0].refusal), (None, &None));
    bench.write(&[
        event(1, 12),
        put(13, StatusCode::CREATED, None),
        put(14, StatusCode::INSUFFICIENT_STORAGE, Some("max_phone_bytes is used up (1)")),
    ]);
    let phones = bench.phones();
    let [phone] = phones.as_slice() else { panic!("{phones:?}") };
    let ms = |seconds: i64| 1_767_225_600_000 + seconds * 1000;
    let stored = |what: &str, seconds| Some(StoredEvent { what: what.to_owned(), at: ms(seconds) });
    assert_eq!((phone.first_seen, phone.last_seen, phone.last_accepted), (ms(10), ms(14), Some(ms(14))));
    assert_eq!((phone.model.as_deref(), phone.firmware.as_deref()), (Some("VVX_500"), Some("5.9.7.4477")));
    assert_eq!(phone.configuration, stored(&format!("/{}.cfg", mac(1)), 12));
    assert_eq!(phone.upload, stored(&log, 13));
    assert_eq!(phone.refusal, stored("max_phone_bytes is used up (1)", 14));
    assert!(!phone.is_refused, "a phone whose upload is refused is let in");
    assert_eq!((phone.requests, phone.refusals, phone.uploads, phone.bytes), (5, 1, 1, 300));
    assert_eq!((phone.address.as_str(), phone.certificate_not_after), ("192.0.2.1", Some(2_000_000_000)));
    let times: Vec<i64> = bench.reader().requests(mac(1)).unwrap().iter().map(|request| request.time).collect();
    assert_eq!(times, [10, 11, 12, 13, 14].map(ms));
}

#[test]
fn firmware_of_another_model_is_not_kept() {
    let agent = |text: &str, second| PhoneEvent { user_agent: Some(text.as_bytes().into()), ..event(1, second) };
    let known = "FileTransport PolycomCCX-CCX_500-UA/8.0.0.16068";
    let unreadable = format!("FileTransport PolycomVVX-VVX_500-UA/{}", "5".repeat(300));
    for is_one_batch in [true, false] {
        let mut bench = Bench::new();
        let events = [agent(known, 10), agent(&unreadable, 20)];
        if is_one_batch {
            bench.write(&events);
        } else {
            for event in events {
                bench.write(&[event]);
            }
        }
        let phone = bench.phones().remove(0);
        assert_eq!((phone.model.as_deref(), phone.firmware.as_deref()), (Some("VVX_500"), None), "{is_one_batch}");
        // The same model without a readable version keeps the version.
        bench.write(&[agent("FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477", 30), agent(&unreadable, 40)]);
        assert_eq!(bench.phones()[0].firmware.as_deref(), Some("5.9.7.4477"), "{is_one_batch}");
    }
}

#[test]
fn phone_is_refused_until_it_is_accepted_again() {
    let mut bench = Bench::new();
    bench.write(&[refused(1, 1)]);
    assert!(bench.phones()[0].is_refused);
    bench.write(&[event(1, 2)]);
    assert!(!bench.phones()[0].is_refused);
    bench.write(&[refused(1, 3)]);
    assert!(bench.phones()[0].is_refused);
}

#[test]
fn wrong_clock_has_no_lasting_effect() {
    let mut bench = Bench::new();
    let century = 100 * 365 * 86_400;
    bench.write(&[event(1, 10), refused(1, century), claimed(1, 1, century)]);
    bench.write(&[event(1, 20), claimed(1, 1, 20)]);
    let phone = bench.phones().remove(0);
    assert_eq!(phone.last_seen / 1000 - 1_767_225_600, 20);
    assert_eq!((phone.last_accepted, phone.is_refused), (Some(phone.last_seen), false));
    assert_eq!(bench.reader().claims().unwrap()[0].last_seen, phone.last_seen);
}

#[test]
fn refused_phones_are_limited_per_network_and_in_total() {
    let mut bench = Bench::new();
    let known: Vec<PhoneEvent> = (0..300).map(|phone| from(1, event(phone, 0))).collect();
    bench.write(&known);
    let flood: Vec<PhoneEvent> = (1000..2000).map(|phone| from(1, refused(phone, phone))).collect();
    flood.chunks(170).for_each(|some| bench.write(some));
    let phones = bench.phones();
    assert_eq!(phones.len(), 300 + 64);
    assert_eq!(phones.iter().filter(|phone| phone.is_refused).map(|phone| phone.mac).min(), Some(mac(1936)));

    // From many networks in one batch: the last ones stay, and all that were accepted.
    let flood: Vec<PhoneEvent> =
        (10_000..15_400).map(|phone| from(u32::try_from(phone / 60).unwrap(), refused(phone, phone))).collect();
    bench.write(&flood);
    let phones = bench.phones();
    assert_eq!(phones.len(), 300 + 5000);
    assert!(phones.iter().filter(|phone| phone.is_refused).all(|phone| phone.mac >= mac(10_400)));
    assert_eq!(bench.reader().requests(mac(1999)).unwrap(), [], "their requests went with them");
}

#[test]
fn claims_are_limited_and_change_no_proven_phone() {
    let mut bench = Bench::new();
    bench.write(&[event(1, 1), refused(2, 1)]);
    let proven = bench.phones();
    let flood: Vec<PhoneEvent> = (0..3000)
        .flat_map(|number| {
            let network = u32::try_from(number / 20).unwrap();
            [1, 2, 3].map(|phone| from(network, claimed(phone, number, 100 + number)))
        })
        .collect();
    flood.chunks(1000).for_each(|some| bench.write(some));
    assert_eq!(bench.phones(), proven);
    let claims = bench.reader().claims().unwrap();
    assert_eq!(claims.len(), 2000);
    let mut networks: Vec<&str> = claims.iter().map(|claim| claim.address.as_str()).collect();
    networks.sort_unstable();
    assert!(networks.chunk_by(|a, b| a == b).all(|one| one.len() <= 16), "{networks:?}");
    bench.write(&vec![claimed(7, 7, 9000); 5]);
    let again = bench.reader().claims().unwrap().into_iter().find(|claim| claim.mac == mac(7)).unwrap();
    assert_eq!(
        (again.count, again.fingerprint.unwrap()[7], again.refusal.as_deref()),
        (5, 7, claimed(7, 7, 0).reason.as_deref())
    );
}

#[test]
fn claim_keeps_its_latest_addresses() {
    let mut bench = Bench::new();
    let of = |bench: &Bench| {
        let claim = bench.reader().claims().unwrap().remove(0);
        claim
            .addresses
            .into_iter()
            .map(|it| (it.address, it.first_seen / 1000, it.last_seen / 1000))
            .collect::<Vec<_>>()
    };
    let seconds = |second: i64| 1_767_225_600 + second;
    bench.write(&[from(1, claimed(1, 1, 0)), from(2, claimed(1, 1, 1)), from(1, claimed(1, 1, 2))]);
    bench.write(&[from(2, claimed(1, 1, 3))]);
    let both = [("0.0.0.2".to_owned(), seconds(1), seconds(3)), ("0.0.0.1".to_owned(), seconds(0), seconds(2))];
    assert_eq!(of(&bench), both);
    // Repeating a claim from many addresses does not raise the limit.
    bench.write(&(3..500).map(|number| from(number, claimed(1, 1, number.into()))).collect::<Vec<_>>());
    let kept = of(&bench);
    assert_eq!((kept.len(), kept[0].0.as_str(), kept[7].2), (8, "0.0.1.243", seconds(492)));
    // The addresses are deleted with their claim.
    bench.write(&(0..20).map(|number| from(499, claimed(2, number, 1000 + number))).collect::<Vec<_>>());
    assert_eq!(bench.reader().claims().unwrap().iter().map(|claim| claim.addresses.len()).sum::<usize>(), 16);
}

#[test]
fn phone_has_the_older_tls_of_application_and_updater() {
    let mut bench = Bench::new();
    let by = |program: &str, tls, seconds| PhoneEvent {
        user_agent: Some(format!("FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/{program}").into_bytes().into()),
        tls: Some(tls),
        ..event(1, seconds)
    };
    let old = ("TLSv1.0", "TLS_RSA_WITH_AES_128_CBC_SHA");
    let modern = ("TLSv1.3", "TLS13_AES_128_GCM_SHA256");
    let level = |bench: &Bench| bench.phones()[0].tls_level().unwrap();
    // The phone boots: the updater first, then the application, in one batch or in two.
    bench.write(&[by("Updater", old, 0), by("Application", modern, 1)]);
    assert_eq!(level(&bench), TlsLevel::Legacy);
    bench.write(&[by("Application", modern, 2)]);
    assert_eq!((level(&bench), bench.phones()[0].tls.as_ref().unwrap().0.as_str()), (TlsLevel::Legacy, "TLSv1.0"));
    bench.write(&[by("Updater", modern, 3)]);
    assert_eq!(level(&bench), TlsLevel::Modern);
    bench.write(&[by("Application", old, 4), by("Updater", modern, 5)]);
    assert_eq!(level(&bench), TlsLevel::Legacy);
}

#[test]
fn database_of_version_1_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder.path().join(FOLDER));
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(super::schema::MIGRATIONS[0]).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    let insert = "INSERT INTO claim VALUES ('ote', '00005e005301', zeroblob(32), 1000, 2000, '192.0.2.7', '192.0.2.7/32', 3, 'r')";
    old.execute_batch(insert).unwrap();
    drop(old);
    drop(HistoryStore::open(&path).unwrap());
    let claim = HistoryReader::open(folder.path()).unwrap().unwrap().claims().unwrap().remove(0);
    let address = ClaimAddress { address: "192.0.2.7".to_owned(), first_seen: 2000, last_seen: 2000 };
    assert_eq!((claim.count, claim.addresses), (3, vec![address]));
}

#[test]
fn newest_requests_are_kept_for_30_days() {
    let mut bench = Bench::new();
    let many: Vec<PhoneEvent> = (0..1000).map(|second| event(1, second)).collect();
    many.chunks(300).for_each(|some| bench.write(some));
    bench.write(&(0..1000).map(|second| refused(2, second)).collect::<Vec<_>>());
    let first_and_count = |bench: &Bench, phone| {
        let requests = bench.reader().requests(mac(phone)).unwrap();
        (requests.first().map(|request| request.time / 1000 - 1_767_225_600), requests.len())
    };
    assert_eq!(first_and_count(&bench, 1), (Some(800), usize::from(HISTORY)));
    assert_eq!(first_and_count(&bench, 2), (Some(980), 20));
    assert_eq!(bench.phones()[0].requests, 1000);
    let month = 30 * 86_400;
    bench.keep_up(month + 900);
    assert_eq!(first_and_count(&bench, 1), (Some(900), 100));
}

#[test]
fn foreign_text_is_truncated() {
    let mut bench = Bench::new();
    let long = "ä".repeat(5000);
    let request = Some((Method::GET, format!("/{long}.cfg").into()));
    bench.write(&[PhoneEvent { request, reason: Some(long), status: Some(StatusCode::FORBIDDEN), ..event(1, 1) }]);
    let request = bench.reader().requests(mac(1)).unwrap().remove(0);
    assert!(request.request.unwrap().1.len() <= 512);
    assert!(request.reason.unwrap().len() <= 512);
    assert!(bench.phones().remove(0).refusal.unwrap().what.len() <= 512);
}

#[test]
fn full_queue_drops_the_oldest_of_its_kind_and_counts() {
    let queue = HistoryQueue::default();
    let numbers = |events: &[PhoneEvent]| events.iter().map(|it| it.bytes).collect::<Vec<_>>();
    let numbered =
        |count: usize, event: PhoneEvent| (0..count as u64).map(move |bytes| PhoneEvent { bytes, ..event.clone() });
    numbered(MAX_PROVEN + 3, event(1, 0)).for_each(|it| queue.push(it));
    numbered(10 * MAX_CLAIMED, claimed(1, 1, 0)).for_each(|it| queue.push(it));
    assert_eq!((queue.dropped(), queue.dropped_claims()), (3, 9 * MAX_CLAIMED as u64));
    let taken = queue.take(Duration::ZERO).unwrap();
    assert_eq!(taken.events.len(), MAX_PROVEN + MAX_CLAIMED);
    assert_eq!(numbers(&taken.events[..2]), [3, 4], "of what was proven, the claims cost nothing");

    // Events that are put back precede newer ones, and are dropped if there is no room for both.
    numbered(MAX_PROVEN - 1, event(2, 0)).for_each(|it| queue.push(it));
    let before = queue.dropped();
    queue.requeue(taken);
    assert_eq!((queue.dropped() - before, queue.dropped_claims()), (MAX_PROVEN as u64 - 1, 9 * MAX_CLAIMED as u64));
    let taken = queue.take(Duration::ZERO).unwrap();
    assert_eq!(numbers(&taken.events[..2]), [MAX_PROVEN as u64 + 2, 0]);
    queue.close();
    assert!(queue.take(Duration::from_hours(1)).is_none());
}

#[test]
fn activity_is_written_again_after_a_failed_write() {
    let queue = HistoryQueue::default();
    let counts = ActivityCounts { refused: 1, ..ActivityCounts::default() };
    queue.add_activity(STEP_S, counts);
    let taken = queue.take(Duration::ZERO).unwrap();
    assert!(taken.events.is_empty());
    queue.requeue(taken);
    queue.close();
    assert_eq!(queue.take(Duration::ZERO).map(|taken| taken.steps), Some(vec![(1, counts)]));
    assert!(queue.take(Duration::ZERO).is_none());
}

#[test]
fn activity_survives_a_restart_and_a_deleted_file() {
    let folder = tempfile::tempdir().unwrap();
    let now = clock::unix_seconds(clock::now());
    let counts = |served: u64| ActivityCounts { served, refused: 2, handshakes: 3 };
    let served = |history: &PhoneHistory| history.health().activity(now).1.last().unwrap().served;
    let run = |count: u64| {
        let (history, writer) = PhoneHistory::start(folder.path()).unwrap();
        history.add_activity(now, counts(count));
        drop(history);
        assert!(writer.wait(Duration::from_mins(1)));
    };
    run(1);
    run(10);
    let (history, writer) = PhoneHistory::start(folder.path()).unwrap();
    let deadline = std::iter::repeat_with(|| std::thread::sleep(Duration::from_millis(5))).take(4000);
    assert!(deadline.into_iter().any(|()| served(&history) == 11));
    assert_eq!(
        *history.health().activity(now).1.last().unwrap(),
        ActivityCounts { served: 11, refused: 4, handshakes: 6 }
    );
    // If the file is deleted, a new one is made, and the counts are written again.
    std::fs::remove_file(database(folder.path())).unwrap();
    history.add_activity(now, counts(100));
    drop(history);
    assert!(writer.wait(Duration::from_mins(1)));
    let store = HistoryStore::open(&database(folder.path())).unwrap();
    assert_eq!(store.steps().unwrap(), [(now / STEP_S, ActivityCounts { served: 111, refused: 6, handshakes: 9 })]);
}

#[test]
fn hourly_visits_are_counted() {
    let mut bench = Bench::new();
    let visits = |bench: &Bench| bench.phones()[0].visits;
    bench.write(&[event(1, 0), event(1, 1)]);
    assert_eq!(visits(&bench), Visits { count: 1, usual_pause: None });
    // Two requests each, in separate batches or in one.
    let hours: Vec<PhoneEvent> = (1..10).flat_map(|hour| [0, 1].map(|second| event(1, hour * 3600 + second))).collect();
    hours[..6].iter().for_each(|one| bench.write(std::slice::from_ref(one)));
    bench.write(&hours[6..]);
    let known = visits(&bench);
    assert_eq!(known.count, 10);
    assert!((3_590_000..3_600_000).contains(&known.usual_pause.unwrap()), "{known:?}");
    // Claims are not visits.
    bench.write(&[claimed(1, 1, 20 * 3600)]);
    assert_eq!(visits(&bench), known);
}

#[test]
fn flush_completes_after_all_earlier_events_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let (history, writer) = PhoneHistory::start(folder.path()).unwrap();
    let health = history.health();
    for second in 0..20 {
        history.record(event(1, second));
        assert_eq!(health.flush().blocking_recv(), Ok(true));
        let store = rusqlite::Connection::open(database(folder.path())).unwrap();
        let requests: u64 = store.query_row("SELECT requests FROM phone", [], |row| row.get(0)).unwrap();
        assert_eq!(requests, second + 1);
    }
    // Without new events, a flush is answered, too.
    assert_eq!(health.flush().blocking_recv(), Ok(true));
    drop(history);
    assert!(writer.wait(Duration::from_mins(1)));
    assert!(health.flush().blocking_recv().is_err(), "nothing writes after the end");
}

#[test]
fn failed_flush_reports_failure() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(database(folder.path())).unwrap();
    let (history, _writer) = PhoneHistory::start(folder.path()).unwrap();
    history.record(event(1, 1));
    assert_eq!(history.health().flush().blocking_recv(), Ok(false));
    std::fs::remove_dir(database(folder.path())).unwrap();
    assert_eq!(history.health().flush().blocking_recv(), Ok(true), "it is tried again at once");
}

#[test]
fn damaged_file_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path());
    #[expect(clippy::disallowed_methods, reason = "damage is not written whole or not at all")]
    std::fs::write(&path, "no database, but long enough to be taken for one ".repeat(100)).unwrap();
    let error = HistoryStore::open(&path).unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    let aside = HistoryStore::move_aside(&path).unwrap();
    assert!(aside.exists() && !path.exists());
    drop(HistoryStore::open(&path).unwrap());
}

#[test]
fn file_of_a_newer_version_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path());
    drop(HistoryStore::open(&path).unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    // As after a crash: the last transaction is in the WAL.
    newer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let files = || ["sqlite", "sqlite-wal"].map(|extension| std::fs::read(path.with_extension(extension)).unwrap());
    let before = files();
    assert!(before.iter().all(|bytes| !bytes.is_empty()));
    let error = HistoryStore::open(&path).unwrap_err();
    assert!(!error.is_corrupt() && error.to_string().contains("version 99 of the phone history"), "{error}");
    assert!(files() == before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn totals_do_not_depend_on_batch_boundaries(
        kinds in prop::collection::vec((0_u64..4, 0_u8..4), 1..120),
        batch in 1_usize..40,
    ) {
        let events: Vec<PhoneEvent> = kinds.iter().zip((0..).step_by(97)).map(|((phone, kind), second)| match kind {
            0 => refused(*phone, second),
            1 => claimed(*phone, *phone, second),
            _ => event(*phone, second),
        }).collect();
        let (mut one, mut many) = (Bench::new(), Bench::new());
        one.write(&events);
        events.chunks(batch).for_each(|some| many.write(some));
        prop_assert_eq!(one.phones(), many.phones());
        prop_assert_eq!(one.reader().claims().unwrap(), many.reader().claims().unwrap());
        let proven = events.iter().filter(|it| matches!(it.proof, Proof::Certificate { .. })).count() as u64;
        prop_assert_eq!(one.phones().iter().map(|phone| phone.requests).sum::<u64>(), proven);
    }
}

#[test]
fn one_phone_is_read_by_index_among_many() {
    /// The steps of SQLite for the phone 1 and its claims, among `phones` others with a claim each.
    fn steps(phones: u64) -> i32 {
        let mut bench = Bench::new();
        let of = |number: u64| {
            let network = u32::try_from(number).unwrap() << 8;
            [
                event(number, 10),
                from(network, claimed(number, number, 20)),
                from(network + 1, claimed(number, number, 30)),
            ]
        };
        bench.write(&(1..=phones).flat_map(of).collect::<Vec<_>>());
        let reader = bench.reader();
        assert_eq!(reader.phones().unwrap().len(), usize::try_from(phones).unwrap());
        let before = reader::STEPS.get();
        let (seen, claims) = (reader.phones_of(mac(1)).unwrap(), reader.claims_of(mac(1)).unwrap());
        let requests = reader.requests(mac(1)).unwrap();
        let steps = reader::STEPS.get() - before;
        assert_eq!((seen.len(), claims.len(), requests.len()), (1, 1, 1));
        assert_eq!((seen[0].mac, claims[0].mac), (mac(1), mac(1)));
        assert_eq!(claims[0].addresses.len(), 2);
        assert_eq!(
            claims,
            reader.claims().unwrap().into_iter().filter(|claim| claim.mac == mac(1)).collect::<Vec<_>>()
        );
        steps
    }
    let (few, many) = (steps(10), steps(1000));
    // The order in which a batch is written varies, and so do a few steps.
    assert!(few > 0 && many <= few + few / 10, "{few} steps among 10 phones, {many} among 1000");
}

/// The policies of one constituency `ote` that lists `phones`.
fn policies(folder: &std::path::Path, phones: std::ops::Range<u64>) -> Policies {
    let listed: serde_json::Map<String, serde_json::Value> =
        phones.map(|number| (mac(number).to_string(), "".into())).collect();
    let ote = folder.join("constituencies/ote");
    std::fs::create_dir_all(&ote).unwrap();
    let policy = serde_json::json!({ "phones": listed }).to_string();
    state::write_private(&ote.join("constituency.json"), policy.as_bytes()).unwrap();
    let denials = Arc::new(ServerDenials::default());
    let scanner = Scanner::new(folder.join("constituencies"), Vec::new()).with_denials(Arc::clone(&denials));
    Policies { registry: Arc::new({ scanner }.scan(at(0))), denials }
}

/// All rows of the tables of the index, as text.
fn index_tables(bench: &Bench) -> Vec<String> {
    let connection = rusqlite::Connection::open(database(&bench.folder.path().join(FOLDER))).unwrap();
    let mut rows = Vec::new();
    for table in ["phone_index", "phone_count", "tls_count"] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            (0..columns).map(|column| Ok(format!("{:?}", row.get_ref(column)?))).collect::<rusqlite::Result<Vec<_>>>()
        };
        let of_table = statement.query_map([], row).unwrap().map(|row| format!("{table} {}", row.unwrap().join(" ")));
        rows.extend(of_table);
    }
    rows
}

fn states(bench: &Bench) -> Vec<(PhoneState, usize)> {
    let counts = bench.reader().index_counts().unwrap();
    counts.into_iter().map(|count| (count.state, count.phones)).collect()
}

#[test]
fn index_follows_events_policies_and_the_time() {
    let mut bench = Bench::new();
    bench.store.follow(policies(bench.folder.path(), 0..3));
    bench.write(&[event(0, 0), event(1, 0), refused(5, 0)]);
    assert_eq!(states(&bench), [(PhoneState::Waiting, 1), (PhoneState::Well, 2)]);
    // One is allowed, one is removed from the list, and one that was never seen is listed.
    bench.store.follow(policies(bench.folder.path(), 1..7));
    let slices = bench.keep_up(60);
    assert_eq!(slices.iter().map(|slice| slice.changed).sum::<usize>(), 2, "{slices:?}");
    assert_eq!(states(&bench), [(PhoneState::Allowed, 1), (PhoneState::Well, 1), (PhoneState::Removed, 1)]);
    // After a day they are no longer recent, and after two silent, without an event.
    let recent = |bench: &Bench| bench.reader().index_counts().unwrap().iter().map(|it| it.recent).sum::<usize>();
    assert_eq!(recent(&bench), 3);
    bench.keep_up(86_400 + 60);
    assert_eq!((recent(&bench), states(&bench).len()), (0, 3));
    bench.keep_up(2 * 86_400 + 60);
    assert_eq!(states(&bench), [(PhoneState::Silent, 2), (PhoneState::Removed, 1)]);
    // A clock that was wrong does no lasting harm.
    bench.keep_up(60);
    assert_eq!(states(&bench), [(PhoneState::Allowed, 1), (PhoneState::Well, 1), (PhoneState::Removed, 1)]);
    // An unchanged policy changes nothing.
    bench.store.follow(policies(bench.folder.path(), 1..7));
    assert_eq!(bench.keep_up(61).iter().map(|slice| slice.changed).sum::<usize>(), 0);
}

#[test]
fn index_has_listed_phones_that_a_claim_names_until_it_expires() {
    let mut bench = Bench::new();
    bench.store.follow(policies(bench.folder.path(), 0..3));
    bench.write(&[claimed(1, 1, 0), claimed(9, 1, 0)]);
    assert_eq!(states(&bench), [(PhoneState::LockedOut, 1)]);
    bench.keep_up(86_400);
    assert_eq!(states(&bench), [(PhoneState::LockedOut, 1)]);
    bench.keep_up(2 * 86_400 + 1);
    assert_eq!(states(&bench), []);
}

#[test]
fn forgotten_strangers_leave_the_index() {
    let mut bench = Bench::new();
    bench.store.follow(policies(bench.folder.path(), 0..3));
    let flood: Vec<PhoneEvent> = (1000..1200).map(|phone| from(1, refused(phone, phone))).collect();
    flood.chunks(50).for_each(|some| bench.write(some));
    bench.keep_up(1300);
    assert_eq!(states(&bench), [(PhoneState::Waiting, 64)]);
}

#[test]
fn lost_index_is_made_again_in_slices() {
    let mut bench = Bench::new();
    let count = 2 * SLICE as u64 + 10;
    let policies = policies(bench.folder.path(), 0..count);
    bench.store.follow(policies.clone());
    bench.write(&(0..count).map(|phone| event(phone, 0)).chain([claimed(1, 1, 0)]).collect::<Vec<_>>());
    bench.keep_up(0);
    let whole = index_tables(&bench);
    assert!(whole.len() > 2 * SLICE);
    let database = rusqlite::Connection::open(database(&bench.folder.path().join(FOLDER))).unwrap();
    for loss in [
        "DELETE FROM phone_index",
        "DELETE FROM phone_index WHERE mac LIKE '%7'",
        "UPDATE phone_index SET state = 9, text = '' WHERE mac LIKE '%3'",
        "INSERT INTO phone_index SELECT 'lost', mac, state, 0, 0, 5, NULL, NULL, 1, NULL, 0, NULL, '' FROM phone_index",
    ] {
        assert!(database.execute(loss, []).unwrap() > 100, "{loss}");
        assert_ne!(index_tables(&bench), whole);
        bench.store = HistoryStore::open(&super::database(&bench.folder.path().join(FOLDER))).unwrap();
        bench.store.follow(policies.clone());
        let slices = bench.keep_up(0);
        assert!(slices.len() > 3 && slices.iter().all(|slice| slice.changed <= SLICE), "{slices:?}");
        assert!(index_tables(&bench) == whole, "{loss}");
    }
}

#[test]
fn counts_and_pages_cost_the_same_among_many_phones() {
    /// The steps of SQLite for the counts and for the first page in each order, among `phones`.
    fn steps(phones: u64) -> Vec<i32> {
        let mut bench = Bench::new();
        bench.store.follow(policies(bench.folder.path(), 0..phones));
        bench.write(&(0..phones).map(|phone| event(phone, phone)).collect::<Vec<_>>());
        let reader = bench.reader();
        let measured = |work: &dyn Fn() -> usize| {
            let before = reader::STEPS.get();
            assert!(work() > 0);
            reader::STEPS.get() - before
        };
        let mut all = vec![measured(&|| reader.index_counts().unwrap().len())];
        all.push(measured(&|| reader.tls_counts().unwrap().len()));
        let well: &[PhoneState] = &[PhoneState::Well];
        let known: Vec<PhoneState> = PhoneState::ALL.into_iter().filter(|state| state.is_known()).collect();
        for order in [IndexOrder::LastSeen, IndexOrder::Name, IndexOrder::Model] {
            for states in [None, Some(well), Some(known.as_slice())] {
                for is_reversed in [false, true] {
                    let filter = IndexFilter { states, matching: usize::MAX, ..IndexFilter::default() };
                    let page = || reader.index_page(&filter, order, is_reversed, (0, 10)).unwrap().len();
                    all.push(measured(&page));
                }
            }
        }
        all.push(measured(&|| reader.index_counts().unwrap().len()));
        assert_eq!(all.len(), 2 + 9 * 2 + 1);
        all
    }
    let (few, many) = (steps(100), steps(3000));
    for (few, many) in few.iter().zip(&many) {
        assert!(*few > 0 && *many <= few + few / 5, "{few:?} steps among 100 phones, {many:?} among 3000");
    }
}

#[test]
fn expired_requests_are_deleted_in_slices_beside_new_events() {
    let mut bench = Bench::new();
    let phones = 60;
    let old: Vec<PhoneEvent> = (0..phones).flat_map(|phone| (0..200).map(move |second| event(phone, second))).collect();
    old.chunks(3000).for_each(|some| bench.write(some));
    let rows = |bench: &Bench| {
        let count = "SELECT count(*) FROM request";
        let connection = rusqlite::Connection::open(database(&bench.folder.path().join(FOLDER))).unwrap();
        connection.query_row(count, [], |row| row.get::<_, usize>(0)).unwrap()
    };
    assert_eq!(rows(&bench), 12_000);
    let month = 31 * 86_400;
    let mut deleted = Vec::new();
    let mut new = 0;
    loop {
        let slice = bench.store.run_slice(at(month)).unwrap();
        if !slice.has_more {
            break;
        }
        deleted.push(slice.changed);
        bench.write(&[event(1000 + new, month)]);
        new += 1;
    }
    deleted.retain(|count| *count > 0);
    assert_eq!(deleted, [SLICE; 6]);
    assert_eq!(rows(&bench), usize::try_from(new).unwrap(), "each event between the slices was written");
}

#[test]
fn file_shrinks_after_rows_are_deleted() {
    let mut bench = Bench::new();
    let long = "x".repeat(400);
    let event = |phone, second| {
        let request = Some((Method::GET, format!("/{long}.cfg").into()));
        PhoneEvent { request, ..event(phone, second) }
    };
    let old: Vec<PhoneEvent> = (0..100)
        .flat_map(|phone| (0..200).map(move |second| (phone, second)))
        .map(|(phone, second)| event(phone, second))
        .collect();
    old.chunks(5000).for_each(|some| bench.write(some));
    let file = database(&bench.folder.path().join(FOLDER));
    let checkpointed = || {
        let connection = rusqlite::Connection::open(&file).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        std::fs::metadata(&file).unwrap().len()
    };
    let full = checkpointed();
    assert!(full > 10 << 20, "{full}");
    let slices = bench.keep_up(31 * 86_400);
    assert!(slices.len() > 12, "{slices:?}");
    let left = checkpointed();
    assert!(left < full / 2 && left < 6 << 20, "{left} of {full} bytes are left");
}

/// A database of provost 0.1, whose schema had the version 5, with `phones` that were seen at `at(0)`.
fn database_of_0_1(folder: &std::path::Path, phones: u64) {
    let path = database(&folder.join(FOLDER));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut old = rusqlite::Connection::open(&path).unwrap();
    old.pragma_update(None, "journal_mode", "WAL").unwrap();
    super::schema::MIGRATIONS[..5].iter().for_each(|migration| old.execute_batch(migration).unwrap());
    old.pragma_update(None, "user_version", 5).unwrap();
    let transaction = old.transaction().unwrap();
    for number in 0..phones {
        let sql =
            "INSERT INTO phone (constituency, mac, first_seen, last_seen, last_let_in, is_refused, address, network,
                       certificate_not_after, requests, refusals, uploads, bytes)
                   VALUES ('ote', ?1, ?2, ?2, ?2, 0, '192.0.2.1', '192.0.2.1/32', 2000000000, 1, 0, 0, 0)";
        transaction.execute(sql, rusqlite::params![mac(number).to_string(), 1_767_225_600_000_i64]).unwrap();
        let sql = "INSERT INTO request VALUES (last_insert_rowid(), 1, ?1, '192.0.2.1', 'GET', '/', 200, 1, 1, NULL)";
        transaction.execute(sql, [1_767_225_600_000_i64]).unwrap();
    }
    transaction.commit().unwrap();
}

#[test]
fn database_of_0_1_is_written_and_read_while_its_phones_are_indexed() {
    let count = 3 * SLICE as u64 + 10;
    let folder = tempfile::tempdir().unwrap();
    database_of_0_1(folder.path(), count);
    let path = database(&folder.path().join(FOLDER));
    let store = HistoryStore::open(&path).unwrap();
    let mut bench = Bench { folder, store };
    bench.store.follow(policies(bench.folder.path(), 0..count));
    let mut slices = Vec::new();
    let mut indexed = Vec::new();
    loop {
        let slice = bench.store.run_slice(at(0)).unwrap();
        slices.push(slice);
        // A new event is written, and the page is read, between any two slices.
        let phone = count - 1 - slices.len() as u64;
        bench.write(&[event(phone, 60)]);
        assert_eq!(bench.reader().requests(mac(phone)).unwrap().len(), 2);
        indexed.push(states(&bench).iter().map(|(_, phones)| phones).sum::<usize>());
        if !slice.has_more {
            break;
        }
    }
    assert!(slices.iter().all(|slice| slice.changed <= SLICE), "{slices:?}");
    assert!(indexed.iter().filter(|phones| **phones < usize::try_from(count).unwrap()).count() >= 3, "{indexed:?}");
    assert_eq!(states(&bench), [(PhoneState::Well, usize::try_from(count).unwrap())]);
}

#[test]
fn migration_writes_no_more_for_many_phones() {
    /// The size of the log after the migration: what it wrote.
    fn written(phones: u64) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        database_of_0_1(folder.path(), phones);
        let path = database(&folder.path().join(FOLDER));
        let mut connection = rusqlite::Connection::open(&path).unwrap();
        assert_eq!(super::store::prepare(&mut connection).unwrap(), super::schema::version());
        std::fs::metadata(path.with_extension("sqlite-wal")).unwrap().len()
    }
    let (few, many) = (written(10), written(5000));
    assert!(few > 0 && many < few + 64_000, "{few} bytes for 10 phones, {many} for 5000");
}
