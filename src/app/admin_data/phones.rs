//! Views of the phones.

use std::collections::BTreeMap;
use std::path::Path;

use crate::admin::all_phones::AllPhones;
use crate::admin::snapshot::{
    DenialView, DeniedPhone, NetworkView, PhoneCounts, PhoneHistoryView, PhoneRequestView, PhoneState, PhoneView,
    SilentTogether, UnprovenView,
};
use crate::app::named_files;
use crate::constituency::denials::DeniedPhones;
use crate::constituency::{ConstituencyName, Fingerprint, MacAddress, PhoneStanding, ServerDenial, TlsLevel};
use crate::phone_history::summary::{PhoneSummaries, PhoneSummary, SILENT_AFTER};
use crate::phone_history::{ClaimAddress, StoredClaim, StoredEvent, StoredRequest, VisitPattern, silent_together};

const DAY: i64 = 86_400;
/// The maximum of waiting phones, and of unproven claims, in a view.
const SHOWN: usize = 100;

/// A phone as it is shown.
pub(super) fn phone((constituency, mac): (ConstituencyName, MacAddress), known: PhoneSummary, now: i64) -> PhoneView {
    let state = state(&known, now);
    let claim = known.locked_out(now.saturating_mul(1000)).filter(|_| state == PhoneState::LockedOut);
    let claimed = claim.map(|claim| (claim.refusal.clone().unwrap_or_default(), seconds(claim.last_seen)));
    let denied_everywhere = known.server_denial.as_ref().map(denial);
    let PhoneSummary { note, seen, .. } = known;
    let mut phone = PhoneView { claimed, denied_everywhere, ..PhoneView::unseen(constituency, mac, state, note) };
    if let Some(seen) = seen {
        let event = |event: StoredEvent| (event.what, seconds(event.at));
        phone.tls_level = seen.tls_level().map(TlsLevel::as_str);
        phone.first_seen = Some(seconds(seen.first_seen));
        phone.last_seen = Some(seconds(seen.last_seen));
        phone.address = Some(seen.address);
        phone.model = seen.model;
        phone.firmware = seen.firmware;
        phone.tls = seen.tls.map(|(version, suite)| format!("{version}/{suite}"));
        phone.certificate_not_after = seen.certificate_not_after;
        phone.configuration = seen.configuration.map(event);
        phone.upload = seen.upload.map(event);
        phone.refusal = seen.refusal.map(event);
        phone.requests = seen.requests;
        phone.refusals = seen.refusals;
    }
    phone
}

fn state(known: &PhoneSummary, now: i64) -> PhoneState {
    match (known.standing, &known.seen) {
        (None, _) => PhoneState::Gone,
        (Some(PhoneStanding::Denied | PhoneStanding::DeniedEverywhere), _) => PhoneState::Denied,
        // Accepted at its last request, and not on the list now: it was removed from the list since.
        (Some(PhoneStanding::Unknown), Some(seen)) if !seen.is_refused && seen.last_accepted.is_some() => {
            PhoneState::Removed
        }
        (Some(PhoneStanding::Unknown), _) => PhoneState::Waiting,
        (Some(PhoneStanding::Known), Some(_)) if known.is_refused() => PhoneState::Refused,
        (Some(PhoneStanding::Known), _) if known.locked_out(now.saturating_mul(1000)).is_some() => {
            PhoneState::LockedOut
        }
        (Some(PhoneStanding::Known), None) => PhoneState::Never,
        (Some(PhoneStanding::Known), Some(seen)) if now - seconds(seen.last_seen) >= SILENT_AFTER / 1000 => {
            PhoneState::Silent
        }
        (Some(PhoneStanding::Known), Some(_)) if known.is_allowed_since() => PhoneState::Allowed,
        (Some(PhoneStanding::Known), Some(_)) => PhoneState::Well,
    }
}

/// Whether it was seen during the last day.
pub(super) fn is_seen_lately(phone: &PhoneView, now: i64) -> bool {
    phone.last_seen.is_some_and(|seen| now - seen < DAY)
}

/// Whether the phone is known, accepted, and was seen during the last day.
pub(super) fn is_well_today(phone: &PhoneView, now: i64) -> bool {
    phone.state == PhoneState::Well && is_seen_lately(phone, now)
}

pub(super) fn counts(phones: &AllPhones) -> PhoneCounts {
    let mut counts = PhoneCounts::default();
    for own in phones.counts().into_values() {
        counts.add_all(own);
    }
    counts
}

/// The constituencies most of whose phones fell silent together. The server has listened since `started`.
pub(super) fn silences(summary: &PhoneSummaries, now: i64, started: i64) -> Vec<SilentTogether> {
    let mut patterns: BTreeMap<&ConstituencyName, Vec<VisitPattern>> = BTreeMap::new();
    for ((constituency, _), known) in summary {
        if let (Some(PhoneStanding::Known), Some(seen)) = (known.standing, &known.seen) {
            let rhythm = VisitPattern { last_seen: seen.last_seen, visits: seen.visits };
            patterns.entry(constituency).or_default().push(rhythm);
        }
    }
    let milliseconds = |seconds: i64| seconds.saturating_mul(1000);
    let silence = |(constituency, patterns): (&ConstituencyName, Vec<VisitPattern>)| {
        let silence = silent_together(&patterns, milliseconds(now), milliseconds(started))?;
        let (silent, of, since) = (silence.silent, silence.of, seconds(silence.since));
        Some(SilentTogether { constituency: constituency.clone(), silent, of, since })
    };
    patterns.into_iter().filter_map(silence).collect()
}

/// The phones that wait for approval, the newest first.
pub(super) fn waiting(phones: &[PhoneView]) -> Vec<PhoneView> {
    let mut waiting: Vec<&PhoneView> = phones.iter().filter(|it| it.state == PhoneState::Waiting).collect();
    waiting.sort_by_key(|phone| std::cmp::Reverse(phone.last_seen));
    waiting.into_iter().take(SHOWN).cloned().collect()
}

/// The phones that are denied server-wide.
pub(super) fn denied(phones: &DeniedPhones) -> Vec<DeniedPhone> {
    phones.iter().map(|(mac, by)| DeniedPhone { mac: *mac, denial: denial(by) }).collect()
}

fn denial(denial: &ServerDenial) -> DenialView {
    DenialView { by: denial.by.clone(), at: denial.at, note: denial.note.clone() }
}

/// Unproven claims, the newest first.
pub(super) fn unproven(mut claims: Vec<StoredClaim>) -> Vec<UnprovenView> {
    claims.sort_by_key(|claim| std::cmp::Reverse(claim.last_seen));
    let unproven = claims.into_iter().take(SHOWN).map(|claim| UnprovenView {
        constituency: claim.constituency,
        mac: claim.mac,
        certificate_sha256: claim.fingerprint.map(|bytes| Fingerprint::from(bytes).to_string()),
        address: claim.address,
        addresses: claim.addresses.into_iter().map(network).collect(),
        first_seen: seconds(claim.first_seen),
        last_seen: seconds(claim.last_seen),
        count: claim.count,
        reason: claim.refusal.unwrap_or_default(),
    });
    unproven.collect()
}

fn network(from: ClaimAddress) -> NetworkView {
    let (first_seen, last_seen) = (seconds(from.first_seen), seconds(from.last_seen));
    NetworkView { address: from.address, first_seen, last_seen }
}

/// A view of a request.
pub(super) fn request(request: StoredRequest) -> PhoneRequestView {
    let (method, target) = request.request.unzip();
    PhoneRequestView {
        time_ms: request.time,
        address: request.address,
        method,
        target,
        status: request.status,
        bytes: request.bytes,
        duration_ms: request.duration.as_secs_f64() * 1000.0,
        reason: request.reason,
        is_named: false,
    }
}

/// A phone with its requests, the newest first, and the files that its master configuration in `constituencies` names.
pub(super) fn history(
    phone: PhoneView,
    mut requests: Vec<PhoneRequestView>,
    constituencies: &Path,
) -> PhoneHistoryView {
    let paths: Vec<Option<String>> =
        requests.iter().map(|request| named_files::served_path(request.target.as_deref()?)).collect();
    let (constituency, mac, model) = (&phone.constituency, phone.mac, phone.model.as_deref());
    let directory = named_files::directory(paths.iter().flatten().map(String::as_str), mac).unwrap_or_default();
    let named = named_files::Phone { constituency, mac, model, directory }.named_files(constituencies);
    for (request, path) in requests.iter_mut().zip(&paths) {
        let is_path = |file: &String| path.as_ref().is_some_and(|path| path.eq_ignore_ascii_case(file));
        request.is_named = named.as_ref().is_some_and(|named| named.files.iter().any(is_path));
    }
    PhoneHistoryView { phone, named, requests }
}

/// Seconds from the milliseconds of the phone history.
fn seconds(milliseconds: i64) -> i64 {
    milliseconds.div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::admin::snapshot::PhoneQuery;
    use crate::clock;
    use crate::constituency::scan::Scanner;
    use crate::constituency::{Registry, ServerDenials, VISITED, denials};
    use crate::phone_history::summary::{summarize, summarize_active};
    use crate::phone_history::{self, StoredPhone, Visits};
    use crate::state;

    const NOW: i64 = 1_800_000_000;
    const HOUR: i64 = 3600;

    /// A phone that comes hourly, last seen and accepted `ago` seconds before now.
    fn hourly(
        constituency: &str,
        number: u8,
        ago: i64,
        standing: PhoneStanding,
    ) -> ((ConstituencyName, MacAddress), PhoneSummary) {
        let key: (ConstituencyName, MacAddress) =
            (constituency.parse().unwrap(), format!("00005e0053{number:02x}").parse().unwrap());
        let last_seen = (NOW - ago) * 1000;
        let seen = phone_history::StoredPhone {
            constituency: key.0.clone(),
            mac: key.1,
            first_seen: 0,
            last_seen,
            last_accepted: Some(last_seen),
            is_refused: false,
            address: "192.0.2.1".to_owned(),
            model: None,
            firmware: None,
            tls: None,
            certificate_not_after: None,
            configuration: None,
            upload: None,
            refusal: None,
            requests: 100,
            refusals: 0,
            uploads: 0,
            bytes: 0,
            visits: Visits { count: 100, usual_pause: Some(HOUR * 1000) },
        };
        let known = PhoneSummary {
            standing: Some(standing),
            note: String::new(),
            server_denial: None,
            pin: None,
            seen: Some(seen),
            claim: None,
        };
        (key, known)
    }

    /// A claim to be that phone, refused `ago` seconds before now.
    fn claim(constituency: &str, number: u8, ago: i64) -> StoredClaim {
        let ((constituency, mac), _) = hourly(constituency, number, 0, PhoneStanding::Known);
        let last_seen = (NOW - ago) * 1000;
        StoredClaim {
            constituency,
            mac,
            fingerprint: None,
            first_seen: last_seen,
            last_seen,
            address: "192.0.2.66".to_owned(),
            addresses: Vec::new(),
            count: 1,
            refusal: Some("the password is wrong".to_owned()),
        }
    }

    fn mac(number: u8) -> MacAddress {
        hourly("ote", number, 0, PhoneStanding::Known).0.1
    }

    fn seen(constituency: &str, number: u8) -> StoredPhone {
        hourly(constituency, number, HOUR, PhoneStanding::Known).1.seen.unwrap()
    }

    fn registry(folder: &Path, policies: &[(&str, serde_json::Value)], denials: Arc<ServerDenials>) -> Registry {
        for (name, policy) in policies {
            std::fs::create_dir_all(folder.join(name)).unwrap();
            state::write_private(&folder.join(name).join("constituency.json"), policy.to_string().as_bytes()).unwrap();
        }
        Scanner::new(folder.to_owned(), Vec::new()).with_denials(denials).scan(clock::now())
    }

    fn views(summary: PhoneSummaries) -> Vec<PhoneView> {
        summary.into_iter().map(|(key, known)| phone(key, known, NOW)).collect()
    }

    #[test]
    fn phones_without_a_view_are_counted_listed_and_found() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let denial = ServerDenial { by: "a test".to_owned(), at: None, note: String::new() };
        denials::deny(&state, [(mac(2), denial)].into(), &|_| ()).unwrap();
        let denials = Arc::new(ServerDenials::read(&state).unwrap());
        let listed: serde_json::Map<String, serde_json::Value> =
            (0..6).map(|number| (mac(number).to_string(), format!("Room {number}").into())).collect();
        let root = folder.path().join("constituencies");
        std::fs::create_dir_all(root.join("ote")).unwrap();
        state::write_private(&root.join("ote").join(format!("{}.cfg", mac(7))), b"").unwrap();
        let ote = json!({ "phones": listed, "denied": [mac(5).to_string(), mac(6).to_string()] });
        let any = json!({ "phones": "any", "denied": [mac(1).to_string(), mac(3).to_string()] });
        let registry = registry(&root, &[("any", any), ("ote", ote)], denials);
        assert_eq!(registry.served().count(), 2);

        let seen = || {
            let phones = [("any", 1), ("any", 9), ("gone", 0), ("ote", 0), ("ote", 5), ("ote", 8)];
            phones.map(|(name, number)| seen(name, number)).to_vec()
        };
        // Of a phone that was never seen, of one that is denied, of one that no list names, and of one that `any` accepts.
        let claims = [claim("ote", 1, 60), claim("ote", 6, 60), claim("ote", 10, 60), claim("any", 3, 60)];
        let whole = AllPhones::new(views(summarize(&registry, seen(), &claims)), []);
        let active = summarize_active(&registry, seen(), &claims, &[mac(2)]);
        let active = AllPhones::new(views(active), registry.served().cloned());
        let named = |phones: &[PhoneView]| phones.iter().map(|it| format!("{} {}", it.constituency, it.mac)).collect();
        let (all, own): (Vec<String>, Vec<String>) = (named(whole.views()), named(active.views()));
        assert_eq!((all.len(), own.len()), (13, 10), "{all:#?} {own:#?}");

        assert_eq!(counts(&active), counts(&whole));
        for (name, own) in whole.counts() {
            assert_eq!(active.counts().get(name), Some(&own), "{name}");
        }
        let pages = [
            "",
            "reverse=1",
            "sort=name",
            "sort=model",
            "sort=last_seen",
            "offset=3&limit=4",
            "state=known",
            "state=never",
            "state=denied",
            "state=locked_out",
            "state=gone",
            "constituency=ote",
            "constituency=any",
            "constituency=gone",
            "search=room+4",
            "search=5e:00:53:03",
            "search=OTE",
        ];
        for text in pages {
            let query = PhoneQuery::parse(text).unwrap();
            let page = |phones| serde_json::to_value(query.select(phones)).unwrap();
            assert_eq!(page(&active), page(&whole), "{text}");
            assert_ne!(page(&active)["matching"], 0, "{text}");
        }
        for phone in whole.views() {
            let found = active.find(&phone.constituency, phone.mac);
            assert_eq!(serde_json::to_value(found).unwrap(), serde_json::to_value(phone).unwrap());
        }
        assert!(active.find(&"ote".parse().unwrap(), mac(99)).is_none());
    }

    #[test]
    fn counting_visits_no_phone_that_was_never_seen() {
        /// How many phones and constituencies are visited to count `listed` phones, of which one was seen.
        fn visited(listed: u64) -> usize {
            let folder = tempfile::tempdir().unwrap();
            let phones: serde_json::Map<String, serde_json::Value> =
                (0..listed).map(|number| (mac(0).plus(number).to_string(), "".into())).collect();
            let registry = registry(folder.path(), &[("ote", json!({ "phones": phones }))], Arc::default());
            let before = VISITED.get();
            let summary = summarize_active(&registry, vec![seen("ote", 3)], &[claim("ote", 4, 60)], &[]);
            let all = AllPhones::new(views(summary), registry.served().cloned());
            let counted = counts(&all);
            let visited = VISITED.get() - before;
            assert_eq!((counted.known, counted.well, counted.locked_out), (usize::try_from(listed).unwrap(), 1, 1));
            let page = PhoneQuery::parse("state=never").unwrap().select(&all);
            assert_eq!(page.matching, counted.never);
            assert!(VISITED.get() - before > visited + counted.never, "the list visits them");
            visited
        }
        assert_eq!(visited(10), visited(5000));
    }

    #[test]
    fn silence_is_per_constituency_and_counts_known_phones() {
        let of = |name: &'static str, ago: i64, standing| (0..5).map(move |number| hourly(name, number, ago, standing));
        let summary: PhoneSummaries = of("gone", 5 * HOUR, PhoneStanding::Known)
            .chain(of("here", HOUR / 2, PhoneStanding::Known))
            .chain(of("strangers", 5 * HOUR, PhoneStanding::Unknown))
            .chain(of("denied", 5 * HOUR, PhoneStanding::Denied))
            .collect();
        let found = silences(&summary, NOW, 0);
        let found: Vec<_> = found.iter().map(|it| (it.constituency.as_str(), it.silent, it.of, it.since)).collect();
        assert_eq!(found, [("gone", 5, 5, NOW - 5 * HOUR)]);
        assert!(silences(&summary, NOW, NOW - HOUR).is_empty(), "the server was down");
    }

    #[test]
    fn claim_expires_after_two_days_or_when_phone_is_accepted() {
        use PhoneState::{Denied, LockedOut, Silent, Well};
        let state_with = |ago: i64, claimed: Option<i64>, standing| {
            let (key, mut known) = hourly("ote", 1, ago, standing);
            known.claim = claimed.map(|ago| claim("ote", 1, ago));
            let phone = phone(key, known, NOW);
            (phone.state, phone.claimed.is_some())
        };
        assert_eq!(state_with(HOUR, None, PhoneStanding::Known), (Well, false));
        assert_eq!(state_with(HOUR, Some(60), PhoneStanding::Known), (LockedOut, true));
        assert_eq!(state_with(HOUR, Some(2 * HOUR), PhoneStanding::Known), (Well, false), "accepted since");
        assert_eq!(state_with(30 * 24 * HOUR, Some(60), PhoneStanding::Known), (LockedOut, true));
        assert_eq!(state_with(30 * 24 * HOUR, Some(49 * HOUR), PhoneStanding::Known), (Silent, false));
        assert_eq!(state_with(HOUR, Some(60), PhoneStanding::Denied), (Denied, false));
        let (key, mut refused) = hourly("ote", 1, HOUR, PhoneStanding::Known);
        refused.claim = Some(claim("ote", 1, 60));
        refused.seen.as_mut().unwrap().is_refused = true;
        assert_eq!(phone(key, refused, NOW).state, PhoneState::Refused, "a fact comes before a claim");
    }

    #[test]
    fn removed_phone_waits_only_after_a_refusal() {
        let (key, known) = hourly("ote", 1, HOUR, PhoneStanding::Unknown);
        assert_eq!(phone(key.clone(), known, NOW).state, PhoneState::Removed);
        let (_, mut refused) = hourly("ote", 1, HOUR, PhoneStanding::Unknown);
        refused.seen.as_mut().unwrap().is_refused = true;
        assert_eq!(phone(key.clone(), refused, NOW).state, PhoneState::Waiting);
        let (_, mut broken_off) = hourly("ote", 1, HOUR, PhoneStanding::Unknown);
        broken_off.seen.as_mut().unwrap().last_accepted = None;
        assert_eq!(phone(key, broken_off, NOW).state, PhoneState::Waiting, "it was never accepted");
    }
}
