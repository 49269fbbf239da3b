//! Warnings of `allow` about certificates that prove nothing, before an operator pins one.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

use super::phones::time;
use super::{replace_controls, server, warn};
use crate::clock;
use crate::config::Config;
use crate::constituency::scan::Scanner;
use crate::constituency::{ConstituencyName, Fingerprint, MacAddress};
use crate::phone_history::{HistoryReader, ReadError, StoredClaim, StoredPhone};

/// Warns about reasons against accepting `certificate` for `mac`.
pub(super) fn warn_of_pin(config: &Config, mac: MacAddress, certificate: Fingerprint) -> Result<(), ReadError> {
    let claims = server::phone_history(config)?.map_or(Ok(BTreeSet::new()), |history| claims_of(&history, mac))?;
    if !claims.contains(&certificate) {
        warn(&format_args!(
            "this certificate was never seen with {mac}; compare the fingerprint with the one on the phone's own screen or web \
             page"
        ));
    }
    let others = claims.iter().filter(|claim| **claim != certificate).count();
    if others > 0 {
        warn(&format_args!(
            "other certificates also claimed to be {mac}: {others}; a client may be posing as this phone. Compare the fingerprint with \
             the one on the phone's own screen or web page; see provost phone-log {mac}"
        ));
    }
    Ok(())
}

/// Warns if `mac` will still be refused, because all its certificates so far prove nothing, or its latest ones do. `own` is
/// its pin in `constituency`.
pub(super) fn warn_of_unproven(
    config: &Config,
    constituency: &ConstituencyName,
    mac: MacAddress,
    own: Option<Fingerprint>,
) -> Result<(), ReadError> {
    let Some(history) = server::phone_history(config)? else { return Ok(()) };
    let mut phones = history.phones_of(mac)?;
    let mut claims = history.claims_of(mac)?;
    claims.retain(|claim| claim.fingerprint.is_some());
    // Scanned only if the phone was seen elsewhere alone: that reads every policy.
    let registry =
        LazyCell::new(|| Scanner::new(config.constituencies.clone(), config.bundle_names()).scan(clock::now()));
    let pin_elsewhere = |name: &ConstituencyName| registry.by_folder(name.as_str())?.policy.pins.get(&mac).copied();
    let is_here = |name: &ConstituencyName| name == constituency;
    if let Some(pin) = own
        && (phones.iter().any(|phone| is_here(&phone.constituency)) || claims.iter().any(|claim| is_of(claim, pin)))
    {
        return Ok(());
    }
    // What was seen in this constituency decides. If nothing was, what was seen elsewhere does; but a pin is valid only
    // in its own constituency.
    let mut came_here =
        phones.iter().map(|phone| &phone.constituency).chain(claims.iter().map(|claim| &claim.constituency));
    if came_here.any(is_here) {
        phones.retain(|phone| is_here(&phone.constituency));
        claims.retain(|claim| is_here(&claim.constituency));
    } else {
        phones.retain(|phone| pin_elsewhere(&phone.constituency).is_none());
    }
    let proven = phones.iter().map(proven_at).max();
    claims.retain(|claim| proven.is_none_or(|at| claim.last_seen >= at));
    if !claims.is_empty() {
        warn_of_claims(constituency, mac, &claims, proven);
    }
    Ok(())
}

/// When a phone last proved its identity in a way that would be accepted again. A refused request counts only if the
/// phone was never accepted: on a session that began with a pin, requests are refused too after the pin is removed.
fn proven_at(phone: &StoredPhone) -> i64 {
    phone.last_accepted.unwrap_or(phone.last_seen)
}

fn is_of(claim: &StoredClaim, certificate: Fingerprint) -> bool {
    claim.fingerprint.is_some_and(|bytes| Fingerprint::from(bytes) == certificate)
}

fn warn_of_claims(constituency: &ConstituencyName, mac: MacAddress, claims: &[StoredClaim], proven: Option<i64>) {
    let seen = claims.iter().filter_map(|claim| {
        let reason = replace_controls(claim.refusal.as_deref().unwrap_or_default());
        Some((Fingerprint::from(claim.fingerprint?), reason))
    });
    // The same certificate in several constituencies is listed once.
    let seen: BTreeMap<Fingerprint, String> = seen.collect();
    let seen: Vec<String> = seen.iter().map(|(claim, reason)| format!("SHA-256 {claim}, refused: {reason}")).collect();
    let (unless, since) = proven.map_or_else(Default::default, |at| {
        (format!(" unless it proves its MAC address, as it last did at {}", time(at)), "since then ")
    });
    warn(&format_args!(
        "{mac} IS STILL REFUSED{unless}: {since}it sent a certificate that proves nothing ({}). If that is the phone's own, \
         as its screen or web page shows, pin exactly that one: provost allow {mac} --constituency {constituency} \
         --certificate-sha256 FINGERPRINT",
        seen.join("; ")
    ));
}

/// The certificates that claimed to be that phone's, in any constituency.
fn claims_of(history: &HistoryReader, mac: MacAddress) -> Result<BTreeSet<Fingerprint>, ReadError> {
    let claims = history.claims_of(mac)?.into_iter();
    Ok(claims.filter_map(|claim| claim.fingerprint.map(Fingerprint::from)).collect())
}
