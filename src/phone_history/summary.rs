//! Joins the phones that policies name with those that were seen. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{StoredClaim, StoredPhone};
use crate::constituency::{
    Constituency, ConstituencyName, Fingerprint, MacAddress, PhoneStanding, Registry, ServerDenial,
};

/// Every phone, by constituency and MAC address.
pub type PhoneSummaries = BTreeMap<(ConstituencyName, MacAddress), PhoneSummary>;

/// A phone, by its constituency's policy and the phone history.
#[derive(Debug)]
pub struct PhoneSummary {
    /// Its standing in the constituency. `None` if the constituency is not served.
    pub standing: Option<PhoneStanding>,
    /// The operator's note.
    pub note: String,
    /// The server-wide denial, if there is one.
    pub server_denial: Option<ServerDenial>,
    /// The pinned certificate.
    pub pin: Option<Fingerprint>,
    /// The data of the phone history, if it was seen.
    pub seen: Option<StoredPhone>,
    /// The last claim to be this phone.
    pub claim: Option<StoredClaim>,
}

/// After how long a phone is silent, and a claim no longer counts, in milliseconds.
pub const SILENT_AFTER: i64 = 2 * 86_400_000;

/// The phones that the policies of `registry` name, and those that were `seen`, with the `claims` to be one of them. A
/// claim alone adds no phone.
#[must_use]
pub fn summarize(registry: &Registry, seen: Vec<StoredPhone>, claims: &[StoredClaim]) -> PhoneSummaries {
    let mut all = PhoneSummaries::new();
    for phone in seen {
        let served = registry.by_folder(phone.constituency.as_str());
        let (key, mac) = ((phone.constituency.clone(), phone.mac), phone.mac);
        all.entry(key).or_insert_with(|| PhoneSummary::of(served.map(AsRef::as_ref), mac)).seen = Some(phone);
    }
    for claim in claims {
        let key = (claim.constituency.clone(), claim.mac);
        let known = match all.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => match registry.by_folder(claim.constituency.as_str()) {
                Some(served) if served.listing(claim.mac).is_some() => {
                    new.insert(PhoneSummary::of(Some(served), claim.mac))
                }
                _ => continue,
            },
        };
        if known.claim.as_ref().is_none_or(|other| other.last_seen <= claim.last_seen) {
            known.claim = Some(claim.clone());
        }
    }
    for constituency in registry.served() {
        for mac in constituency.known_phones().into_iter().chain(constituency.policy.denied.iter().copied()) {
            let key = (constituency.name.clone(), mac);
            all.entry(key).or_insert_with(|| PhoneSummary::of(Some(constituency), mac));
        }
    }
    all
}

impl PhoneSummary {
    /// A phone of which nothing is known but the policy; `None` if its constituency is not served.
    #[must_use]
    pub fn of(constituency: Option<&Constituency>, mac: MacAddress) -> Self {
        let note = constituency.map(|constituency| constituency.note(mac).to_owned()).unwrap_or_default();
        let pin = constituency.and_then(|constituency| constituency.policy.pins.get(&mac).copied());
        let server_denial = constituency.and_then(|constituency| constituency.server_denial(mac));
        let standing = constituency.map(|constituency| constituency.standing(mac));
        Self { standing, note, server_denial, pin, seen: None, claim: None }
    }

    /// Whether its last request was refused, and the next one would be, as far as is known.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.seen.as_ref().is_some_and(|phone| phone.is_refused) && !self.is_allowed_since()
    }

    /// The claim that suggests that the phone is locked out: recent, and after the phone was last accepted. It may come
    /// from the phone itself, with an expired, revoked or unknown certificate or a wrong password. It may also come
    /// from a stranger: a claim proves nothing.
    #[must_use]
    pub fn locked_out(&self, now: i64) -> Option<&StoredClaim> {
        let accepted = self.seen.as_ref().and_then(|phone| phone.last_accepted);
        self.claim.as_ref().filter(|claim| {
            self.standing == Some(PhoneStanding::Known)
                && accepted.is_none_or(|at| at < claim.last_seen)
                && now.saturating_sub(claim.last_seen) < SILENT_AFTER
        })
    }

    /// Whether its last request was refused because of the list, and the list has it now.
    #[must_use]
    pub fn is_allowed_since(&self) -> bool {
        let Some(phone) = self.seen.as_ref().filter(|phone| phone.is_refused) else { return false };
        let was_refused_for = |standing: &PhoneStanding| {
            let words = standing.refusal(phone.mac, &phone.constituency);
            words.is_some() && words.as_deref() == phone.refusal.as_ref().map(|refusal| refusal.what.as_str())
        };
        let refusals = [PhoneStanding::Unknown, PhoneStanding::Denied, PhoneStanding::DeniedEverywhere];
        self.standing == Some(PhoneStanding::Known) && refusals.iter().any(was_refused_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::constituency::VISITED;
    use crate::constituency::scan::Scanner;
    use crate::state;

    /// The constituencies and phones that are visited to summarize `count` constituencies with three phones each.
    fn visited_for(count: usize) -> usize {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..count {
            let own = folder.path().join(format!("c{number}"));
            std::fs::create_dir(&own).unwrap();
            let mac = |phone: usize| MacAddress::ZERO.plus(0x0004_f200_0000 + (3 * number + phone) as u64);
            let policy = format!(r#"{{ "phones": {{ "{}": "", "{}": "" }} }}"#, mac(0), mac(1));
            state::write_private(&own.join("constituency.json"), policy.as_bytes()).unwrap();
            state::write_private(&own.join("phones.csv"), format!("mac\n{}\n", mac(2)).as_bytes()).unwrap();
        }
        let registry = Scanner::new(folder.path().to_owned(), Vec::new()).scan(clock::now());
        let before = VISITED.get();
        assert_eq!(summarize(&registry, Vec::new(), &[]).len(), 3 * count);
        VISITED.get() - before
    }

    #[test]
    fn summary_visits_each_constituency_and_phone_once() {
        assert_eq!([10, 1000].map(visited_for), [40, 4000]);
    }
}
