//! The registry: every constituency as one immutable snapshot. A reader holds one and sees one truth.
//!
//! Nothing here touches the disk; a [`Folder`] is where the files of a constituency are opened.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::folder::Folder;
use super::{ConstituencyName, Fingerprint, ListedPhones, MacAddress, Phones, Policy, ServerDenial, ServerDenials};

/// All constituencies that are served, at one moment.
#[derive(Debug, Default)]
pub struct Registry {
    pub(super) served: BTreeMap<ConstituencyName, Arc<Constituency>>,
    pub(super) aliases: BTreeMap<ConstituencyName, ConstituencyName>,
    pub(super) faults: Vec<Fault>,
    pub(super) listed: ListedPhones,
}

/// One constituency as it is now.
#[derive(Debug)]
pub struct Constituency {
    /// The folder's name and DNS label.
    pub name: ConstituencyName,
    /// What `constituency.json` says.
    pub policy: Arc<Policy>,
    /// Changes whenever the TLS part of the policy does, or the constituency was gone in the snapshot before; never reused.
    /// The folder may be another one: a constituency is its name.
    pub tls_generation: u64,
    /// Where its files are.
    pub folder: Arc<Folder>,
    pub(super) with_own_file: Arc<HashSet<MacAddress>>,
    /// As they are at each moment, not as they were when the snapshot was made.
    pub(super) denials: Arc<ServerDenials>,
}

/// Something in `constituencies` that is not served, or not as its author thinks, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The folder's name as it stands on disk, escaped where it is no text.
    pub subject: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Whether requests are refused because of it.
    pub severity: Severity,
}

/// How much a [`Fault`] costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is not served, or an old policy is still in force.
    Error,
    /// Everything is served, but not all that is written has an effect.
    Warning,
}

/// What a constituency thinks of a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhoneStanding {
    /// On the list, or admitted by `"any"`.
    Known,
    /// Not on the list.
    Unknown,
    /// Named in `denied`.
    Denied,
    /// Denied on the whole server.
    DeniedEverywhere,
}

impl PhoneStanding {
    /// What is said of a phone that is refused for this; nothing of one that is known.
    #[must_use]
    pub fn refusal(self, mac: MacAddress, constituency: &ConstituencyName) -> Option<String> {
        match self {
            Self::Known => None,
            Self::Unknown => Some(format!("{mac} is not known to {constituency}")),
            Self::Denied => Some(format!("{mac} is denied by {constituency}")),
            Self::DeniedEverywhere => Some(format!("{mac} is denied everywhere (provost undeny {mac} lifts it)")),
        }
    }
}

/// Replaces the lists of one constituency in `listed`: `before` by `after`. Gives the number of phones that changed.
pub(super) fn replace_lists(
    listed: &mut ListedPhones,
    before: Option<&Constituency>,
    after: Option<&Constituency>,
) -> usize {
    let has_same_lists = |(before, after): (&Constituency, &Constituency)| {
        Arc::ptr_eq(&before.policy, &after.policy) && Arc::ptr_eq(&before.with_own_file, &after.with_own_file)
    };
    if before.zip(after).is_some_and(has_same_lists) {
        return 0;
    }
    let lists = |constituency: Option<&Constituency>, mac| constituency.is_some_and(|it| it.lists(mac));
    let mut changed = 0;
    for mac in after.into_iter().flat_map(Constituency::listed_phones).filter(|mac| !lists(before, *mac)) {
        listed.add(mac);
        changed += 1;
    }
    for mac in before.into_iter().flat_map(Constituency::listed_phones).filter(|mac| !lists(after, *mac)) {
        listed.remove(mac);
        changed += 1;
    }
    changed
}

impl Registry {
    /// The constituency of this DNS label, by its own name first, else by an alias.
    #[must_use]
    pub fn find(&self, label: &str) -> Option<&Arc<Constituency>> {
        self.served.get(label).or_else(|| self.served.get(self.aliases.get(label)?))
    }

    /// Every constituency that is served, in the order of their names.
    pub fn served(&self) -> impl Iterator<Item = &Arc<Constituency>> {
        self.served.values()
    }

    /// Everything that is wrong with the folders.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Every phone on any list of this server.
    #[must_use]
    pub fn listed(&self) -> &ListedPhones {
        &self.listed
    }

    /// Another handle on the same snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        Self {
            served: self.served.clone(),
            aliases: self.aliases.clone(),
            faults: self.faults.clone(),
            listed: self.listed.clone(),
        }
    }

    /// Whether the two snapshots say the same.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.served.len() == other.served.len()
            && self.served.iter().zip(&other.served).all(|(mine, theirs)| Arc::ptr_eq(mine.1, theirs.1))
            && self.aliases == other.aliases
            && self.faults == other.faults
    }
}

impl Constituency {
    /// What this constituency thinks of `mac`: a denial beats everything, that of the whole server first.
    #[must_use]
    pub fn standing(&self, mac: MacAddress) -> PhoneStanding {
        if self.denials.has(mac) {
            return PhoneStanding::DeniedEverywhere;
        }
        if self.policy.denied.contains(&mac) {
            return PhoneStanding::Denied;
        }
        let is_known = match &self.policy.phones {
            Phones::Any => true,
            Phones::Listed(listed) => listed.contains_key(&mac) || self.with_own_file.contains(&mac),
        };
        if is_known { PhoneStanding::Known } else { PhoneStanding::Unknown }
    }

    /// Whether any list of this constituency names `mac`: known, pinned or denied.
    #[must_use]
    pub fn lists(&self, mac: MacAddress) -> bool {
        let is_named = match &self.policy.phones {
            Phones::Any => false,
            Phones::Listed(listed) => listed.contains_key(&mac),
        };
        is_named || self.with_own_file.contains(&mac) || self.policy.denied.contains(&mac)
    }

    /// Every phone that any list of this constituency names, each once.
    pub fn listed_phones(&self) -> impl Iterator<Item = MacAddress> {
        let named = match &self.policy.phones {
            Phones::Any => None,
            Phones::Listed(listed) => Some(listed),
        };
        let is_named = move |mac: &MacAddress| named.is_some_and(|named| named.contains_key(mac));
        let with_own_file = self.with_own_file.iter().copied().filter(move |mac| !is_named(mac));
        let denied = self.policy.denied.iter().copied();
        let denied = denied.filter(move |mac| !is_named(mac) && !self.with_own_file.contains(mac));
        named.into_iter().flat_map(|named| named.keys().copied()).chain(with_own_file).chain(denied)
    }

    /// Who denied `mac` on the whole server, if it is denied there.
    #[must_use]
    pub fn server_denial(&self, mac: MacAddress) -> Option<ServerDenial> {
        self.denials.get(mac)
    }

    /// Whether `certificate` counts here by itself for `mac`.
    #[must_use]
    pub fn is_pinned(&self, mac: MacAddress, certificate: Fingerprint) -> bool {
        self.policy.pins.get(&mac) == Some(&certificate)
    }

    /// How many phones are known by name or by their own file.
    #[must_use]
    pub fn count_known_phones(&self) -> usize {
        let Phones::Listed(listed) = &self.policy.phones else { return 0 };
        listed.len() + self.with_own_file.iter().filter(|mac| !listed.contains_key(*mac)).count()
    }

    /// The phones known by name or by their own file, in order; none when every phone is admitted.
    #[must_use]
    pub fn known_phones(&self) -> Vec<MacAddress> {
        let Phones::Listed(listed) = &self.policy.phones else { return Vec::new() };
        let mut all: Vec<_> = listed.keys().chain(self.with_own_file.iter()).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
