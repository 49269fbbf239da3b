//! The phones as they are shown. Pure.

use crate::constituency::denials::DeniedPhones;
use crate::constituency::{ConstituencyName, Fingerprint, MacAddress, ServerDenial, Standing, TlsLevel};
use crate::ledger::roster::Known;
use crate::ledger::{Claim, ClaimAddress, Event, Request};
use crate::status::picture::{Counts, Denial, DeniedPhone, Phone, PhoneRequest, PhoneState, Place, Unproven};

const DAY: i64 = 86_400;
/// How long a phone may be silent.
const SILENT_AFTER: i64 = 2 * DAY;
/// How many phones that wait, and how many certificates that prove nothing, are shown at once.
const SHOWN: usize = 100;

/// A phone as it is shown.
pub(super) fn phone((constituency, mac): (ConstituencyName, MacAddress), known: Known, now: i64) -> Phone {
    let state = state(&known, now);
    let denied_everywhere = known.server_denial.as_ref().map(denial);
    let Known { note, seen, .. } = known;
    let mut phone = Phone {
        constituency,
        mac,
        state,
        note,
        first_seen: None,
        last_seen: None,
        address: None,
        model: None,
        firmware: None,
        tls: None,
        tls_level: None,
        certificate_not_after: None,
        configuration: None,
        upload: None,
        refusal: None,
        requests: 0,
        refusals: 0,
        denied_everywhere,
    };
    if let Some(seen) = seen {
        let event = |event: Event| (event.what, seconds(event.at));
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

fn state(known: &Known, now: i64) -> PhoneState {
    match (known.standing, &known.seen) {
        (None, _) => PhoneState::Gone,
        (Some(Standing::Denied | Standing::DeniedEverywhere), _) => PhoneState::Denied,
        // A phone that was accepted once and has not been refused since was taken off the list meanwhile.
        (Some(Standing::Unknown), Some(seen)) if !seen.is_refused && seen.last_let_in.is_some() => PhoneState::Removed,
        (Some(Standing::Unknown), _) => PhoneState::Waiting,
        (Some(Standing::Known), None) => PhoneState::Never,
        (Some(Standing::Known), Some(_)) if known.is_refused() => PhoneState::Refused,
        (Some(Standing::Known), Some(seen)) if now - seconds(seen.last_seen) >= SILENT_AFTER => PhoneState::Silent,
        (Some(Standing::Known), Some(_)) if known.is_allowed_since() => PhoneState::Allowed,
        (Some(Standing::Known), Some(_)) => PhoneState::Well,
    }
}

/// Whether it was seen during the last day.
pub(super) fn is_seen_lately(phone: &Phone, now: i64) -> bool {
    phone.last_seen.is_some_and(|seen| now - seen < DAY)
}

/// Whether it is known, let in, and was seen during the last day.
pub(super) fn is_well_today(phone: &Phone, now: i64) -> bool {
    phone.state == PhoneState::Well && is_seen_lately(phone, now)
}

/// How many phones there are, by their state.
pub(super) fn counts(phones: &[Phone]) -> Counts {
    let mut counts = Counts::default();
    phones.iter().for_each(|phone| counts.add(phone.state));
    counts
}

/// The phones that wait for approval, the newest first.
pub(super) fn waiting(phones: &[Phone]) -> Vec<Phone> {
    let mut waiting: Vec<&Phone> = phones.iter().filter(|it| it.state == PhoneState::Waiting).collect();
    waiting.sort_by_key(|phone| std::cmp::Reverse(phone.last_seen));
    waiting.into_iter().take(SHOWN).cloned().collect()
}

/// The phones that are denied on the whole server.
pub(super) fn denied(phones: &DeniedPhones) -> Vec<DeniedPhone> {
    phones.iter().map(|(mac, by)| DeniedPhone { mac: *mac, denial: denial(by) }).collect()
}

fn denial(denial: &ServerDenial) -> Denial {
    Denial { by: denial.by.clone(), at: denial.at, note: denial.note.clone() }
}

/// What proves nothing, the newest first.
pub(super) fn unproven(mut claims: Vec<Claim>) -> Vec<Unproven> {
    claims.sort_by_key(|claim| std::cmp::Reverse(claim.last_seen));
    let unproven = claims.into_iter().take(SHOWN).map(|claim| Unproven {
        constituency: claim.constituency,
        mac: claim.mac,
        certificate_sha256: claim.fingerprint.map(|bytes| Fingerprint::from(bytes).to_string()),
        address: claim.address,
        addresses: claim.addresses.into_iter().map(place).collect(),
        first_seen: seconds(claim.first_seen),
        last_seen: seconds(claim.last_seen),
        count: claim.count,
        reason: claim.refusal.unwrap_or_default(),
    });
    unproven.collect()
}

fn place(from: ClaimAddress) -> Place {
    let (first_seen, last_seen) = (seconds(from.first_seen), seconds(from.last_seen));
    Place { address: from.address, first_seen, last_seen }
}

/// A request as it is shown.
pub(super) fn request(request: Request) -> PhoneRequest {
    let (method, target) = request.asked.unzip();
    PhoneRequest {
        time_ms: request.time,
        address: request.address,
        method,
        target,
        status: request.status,
        bytes: request.bytes,
        duration_ms: request.duration.as_secs_f64() * 1000.0,
        reason: request.reason,
    }
}

/// The ledger's milliseconds.
fn seconds(milliseconds: i64) -> i64 {
    milliseconds.div_euclid(1000)
}
