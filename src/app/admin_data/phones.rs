//! Views of the phones.

use std::path::Path;

use parking_lot::Mutex;

use crate::admin::AllNumbers;
use crate::admin::snapshot::{
    DenialView, DeniedPhone, NetworkView, PhoneHistoryView, PhoneNumbers, PhoneRequestView, PhoneView, SilentTogether,
    UnprovenView,
};
use crate::app::named_files;
use crate::constituency::denials::DeniedPhones;
use crate::constituency::{
    Constituency, ConstituencyName, Fingerprint, Listing, MacAddress, Registry, ServerDenial, TlsLevel,
};
use crate::phone_history::summary::PhoneSummary;
use crate::phone_history::{
    ClaimAddress, HistoryReader, IndexCount, PhoneState, ReadError, StoredClaim, StoredEvent, StoredRequest,
    VisitPattern, silent_together,
};

/// The maximum of waiting phones, and of unproven claims, in a view.
pub(super) const SHOWN: usize = 100;

/// A phone as it is shown.
pub(super) fn phone((constituency, mac): (ConstituencyName, MacAddress), known: PhoneSummary, now: i64) -> PhoneView {
    let milliseconds = now.saturating_mul(1000);
    let state = PhoneState::of(&known, milliseconds);
    let claim = known.locked_out(milliseconds).filter(|_| state == PhoneState::LockedOut);
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

/// The numbers of phones, by constituency: the index `counts` those that it has, the policies name the others.
pub(super) fn numbers(registry: &Registry, counts: &[IndexCount]) -> AllNumbers {
    let mut own: Vec<(ConstituencyName, PhoneNumbers)> = Vec::new();
    let mut served = registry.served().peekable();
    for of_one in counts.chunk_by(|one, other| one.constituency == other.constituency) {
        let Some(name) = of_one.first().map(|count| &count.constituency) else { continue };
        // Both are sorted by name.
        while let Some(unseen) = served.next_if(|it| it.name < *name) {
            own.push((unseen.name.clone(), numbers_of(Some(unseen), &[])));
        }
        let served = served.next_if(|it| it.name == *name);
        own.push((name.clone(), numbers_of(served.map(AsRef::as_ref), of_one)));
    }
    own.extend(served.map(|unseen| (unseen.name.clone(), numbers_of(Some(unseen), &[]))));
    own.into_iter().collect()
}

/// The numbers of one constituency, of which the index has `counts`.
fn numbers_of(served: Option<&Constituency>, counts: &[IndexCount]) -> PhoneNumbers {
    let listed = |listing| served.map_or(0, |served| served.count_listed(listing));
    let mut own = PhoneNumbers {
        unseen_known: listed(Listing::Known),
        unseen_denied: listed(Listing::Denied),
        ..PhoneNumbers::default()
    };
    for count in counts {
        own.counts.add(count.state, count.phones);
        own.seen_lately += count.recent;
        own.well_lately += if count.state == PhoneState::Well { count.recent } else { 0 };
        // For a moment after a change of a policy, the index is older than the policy.
        match count.listing {
            Some(Listing::Known) => own.unseen_known = own.unseen_known.saturating_sub(count.phones),
            Some(Listing::Denied) => own.unseen_denied = own.unseen_denied.saturating_sub(count.phones),
            None => {}
        }
    }
    own.counts.add(PhoneState::of_unseen(Listing::Known), own.unseen_known);
    own.counts.add(PhoneState::of_unseen(Listing::Denied), own.unseen_denied);
    own
}

/// The silences of constituencies, which are found again after a while: an outage takes half an hour to show.
#[derive(Debug, Default)]
pub(in crate::app) struct SilenceCache(Mutex<Option<(i64, Vec<SilentTogether>)>>);

impl SilenceCache {
    /// For how long silences are kept, in seconds.
    const MAX_AGE: i64 = 30;

    /// The silences at `now`, in Unix seconds; `find` finds them.
    pub(super) fn current<E>(
        &self,
        now: i64,
        find: impl FnOnce() -> Result<Vec<SilentTogether>, E>,
    ) -> Result<Vec<SilentTogether>, E> {
        let mut kept = self.0.lock();
        if let Some((at, silences)) = &*kept
            && (0..Self::MAX_AGE).contains(&now.saturating_sub(*at))
        {
            return Ok(silences.clone());
        }
        let silences = find()?;
        *kept = Some((now, silences.clone()));
        Ok(silences)
    }
}

/// The constituencies most of whose phones fell silent together. The server has listened since `started`.
pub(super) fn silences(reader: &HistoryReader, now: i64, started: i64) -> Result<Vec<SilentTogether>, ReadError> {
    let milliseconds = |seconds: i64| seconds.saturating_mul(1000);
    let silence = |(constituency, visits): (ConstituencyName, Vec<VisitPattern>)| {
        let silence = silent_together(&visits, milliseconds(now), milliseconds(started))?;
        let (silent, of, since) = (silence.silent, silence.of, seconds(silence.since));
        Some(SilentTogether { constituency, silent, of, since })
    };
    Ok(reader.visits_where_overdue()?.into_iter().filter_map(silence).collect())
}

/// The phones that are denied server-wide.
pub(super) fn denied(phones: &DeniedPhones) -> Vec<DeniedPhone> {
    phones.iter().map(|(mac, by)| DeniedPhone { mac: *mac, denial: denial(by) }).collect()
}

fn denial(denial: &ServerDenial) -> DenialView {
    DenialView { by: denial.by.clone(), at: denial.at, note: denial.note.clone() }
}

/// Unproven claims, the newest first.
pub(super) fn unproven(claims: Vec<StoredClaim>) -> Vec<UnprovenView> {
    let unproven = claims.into_iter().map(|claim| UnprovenView {
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
