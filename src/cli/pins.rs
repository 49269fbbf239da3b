//! What `allow` says of certificates that prove nothing: what was seen of them, before somebody takes one for a phone's.

use std::collections::BTreeMap;

use super::{shown, warn};
use crate::clock;
use crate::config::Config;
use crate::constituency::scan::Scanner;
use crate::constituency::{ConstituencyName, Fingerprint, MacAddress};
use crate::ledger::{ReadError, Reader};

/// Says what speaks against taking `certificate` for that of `mac`.
pub(super) fn warn_of_pin(config: &Config, mac: MacAddress, certificate: Fingerprint) -> Result<(), ReadError> {
    let claims = Reader::open(&config.state)?.map_or(Ok(BTreeMap::new()), |ledger| claims_of(&ledger, mac))?;
    if !claims.contains_key(&certificate) {
        warn(&format_args!(
            "this certificate has never been seen of {mac}. Compare the fingerprint with the one that the phone shows on its \
             own screen or web page"
        ));
    }
    let others = claims.keys().filter(|claim| **claim != certificate).count();
    if others > 0 {
        warn(&format_args!(
            "certificates that came for {mac} besides this one: {others}. Somebody may be posing as it: compare the fingerprint with the one that \
             the phone shows on its own screen or web page; see provost phone-log {mac}"
        ));
    }
    Ok(())
}

/// Says so if `mac` will stay out, because all that was seen of it proves nothing.
pub(super) fn warn_of_unproven(
    config: &Config,
    constituency: &ConstituencyName,
    mac: MacAddress,
) -> Result<(), ReadError> {
    let Some(ledger) = Reader::open(&config.state)? else { return Ok(()) };
    let claims = claims_of(&ledger, mac)?;
    if claims.is_empty() || ledger.phones()?.iter().any(|phone| phone.mac == mac) {
        return Ok(());
    }
    let registry = Scanner::new(config.constituencies.clone(), config.bundle_names()).scan(clock::now());
    let is_pinned = |claim: &Fingerprint| {
        let served = registry.served().find(|served| served.name == *constituency);
        served.is_some_and(|served| served.is_pinned(mac, *claim))
    };
    if !claims.keys().any(is_pinned) {
        let seen = claims.iter().map(|(claim, reason)| format!("SHA-256 {claim}, refused: {}", shown(reason)));
        let seen: Vec<String> = seen.collect();
        warn(&format_args!(
            "{mac} STAYS OUT: it came with a certificate that proves nothing ({}). If that is the phone's own, as its \
             screen or web page shows, let in exactly that one: provost allow {mac} --constituency {constituency} \
             --certificate-sha256 FINGERPRINT",
            seen.join("; ")
        ));
    }
    Ok(())
}

/// The certificates that claimed to be that phone's, wherever, and why they were refused.
fn claims_of(ledger: &Reader, mac: MacAddress) -> Result<BTreeMap<Fingerprint, String>, ReadError> {
    let claims = ledger.claims()?.into_iter().filter(|claim| claim.mac == mac);
    Ok(claims.filter_map(|claim| Some((claim.fingerprint?.into(), claim.refusal.unwrap_or_default()))).collect())
}
