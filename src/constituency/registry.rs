//! The registry: all constituencies as one immutable snapshot, so that a reader sees consistent data.
//!
//! This module does no I/O. A [`Folder`] opens the files of a constituency.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::folder::Folder;
use super::{ConstituencyName, Fingerprint, ListedPhones, MacAddress, Phones, Policy, ServerDenial, ServerDenials};

/// All constituencies that are served, as of one scan.
#[derive(Debug, Default)]
pub struct Registry {
    pub(super) served: BTreeMap<ConstituencyName, Arc<Constituency>>,
    pub(super) aliases: BTreeMap<ConstituencyName, ConstituencyName>,
    pub(super) faults: Vec<Fault>,
    pub(super) listed: ListedPhones,
}

/// One constituency, as of one scan.
#[derive(Debug)]
pub struct Constituency {
    /// The name of the folder, which is also the DNS label.
    pub name: ConstituencyName,
    /// The policy from `constituency.json`, or the default.
    pub policy: Arc<Policy>,
    /// A number that is never reused. It changes when the TLS part of the policy changes, or when the constituency was
    /// missing from the previous snapshot. A replaced folder alone does not change it: the name identifies the
    /// constituency.
    pub tls_generation: u64,
    /// The folder with its files.
    pub folder: Arc<Folder>,
    pub(super) with_own_file: Arc<HashSet<MacAddress>>,
    pub(super) counts: ListCounts,
    /// Live server-wide denials, not a snapshot.
    pub(super) denials: Arc<ServerDenials>,
}

/// What the lists of a constituency say about a phone, whatever the rest of the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// It is known: the list names it, or it has a `<mac>.cfg`.
    Known,
    /// The policy denies it, whether or not it is known too.
    Denied,
}

/// The sizes of a constituency's lists. They change only with the lists.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListCounts {
    known: usize,
    known_and_denied: usize,
}

/// A problem in `constituencies`: something is not served, or does not have the effect that its author expects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The folder's name on disk, with unprintable characters escaped.
    pub subject: String,
    /// The problem and its remedy.
    pub message: String,
    /// Whether requests are refused because of it.
    pub severity: Severity,
}

/// The effect of a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is not served, or an older policy is still in force.
    Error,
    /// Everything is served, but a part of the settings has no effect.
    Warning,
}

/// The standing of a phone in a constituency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhoneStanding {
    /// Listed, or admitted by `"any"`.
    Known,
    /// Not listed.
    Unknown,
    /// Denied by this constituency.
    Denied,
    /// Denied on the whole server.
    DeniedEverywhere,
}

#[cfg(test)]
thread_local! {
    /// How many constituencies this thread has visited by [`Registry::served`], and how many phones by
    /// [`Constituency::known_phones`]: tests count work by it.
    pub(crate) static VISITED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl PhoneStanding {
    /// The reason for refusing a phone with this standing; `None` for a known phone.
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

impl ListCounts {
    pub(super) fn of(policy: &Policy, with_own_file: &HashSet<MacAddress>) -> Self {
        let Phones::Listed(listed) = &policy.phones else { return Self { known: 0, known_and_denied: 0 } };
        let is_known = |mac: &&MacAddress| listed.contains_key(mac) || with_own_file.contains(mac);
        Self {
            known: listed.len() + with_own_file.iter().filter(|mac| !listed.contains_key(*mac)).count(),
            known_and_denied: policy.denied.iter().filter(is_known).count(),
        }
    }
}

/// Updates `listed` from the lists of `before` to those of `after`, two states of one constituency. Returns the number
/// of phones that were added or removed.
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
    /// The constituency with this DNS label: its own name has precedence over an alias.
    #[must_use]
    pub fn find(&self, label: &str) -> Option<&Arc<Constituency>> {
        self.served.get(label).or_else(|| self.served.get(self.aliases.get(label)?))
    }

    /// The constituency whose folder has this name. Unlike [`Registry::find`], ignores aliases.
    #[must_use]
    pub fn by_folder(&self, name: &str) -> Option<&Arc<Constituency>> {
        self.served.get(name)
    }

    /// All constituencies that are served, sorted by name.
    pub fn served(&self) -> impl Iterator<Item = &Arc<Constituency>> {
        let served = self.served.values();
        #[cfg(test)]
        let served = served.inspect(|_| VISITED.set(VISITED.get() + 1));
        served
    }

    /// All problems in the folders.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// All phones that any list of this server names.
    #[must_use]
    pub fn listed(&self) -> &ListedPhones {
        &self.listed
    }

    /// A copy that shares the data.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        Self {
            served: self.served.clone(),
            aliases: self.aliases.clone(),
            faults: self.faults.clone(),
            listed: self.listed.clone(),
        }
    }

    /// Whether both snapshots are equal.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.served.len() == other.served.len()
            && self.served.iter().zip(&other.served).all(|(mine, theirs)| Arc::ptr_eq(mine.1, theirs.1))
            && self.aliases == other.aliases
            && self.faults == other.faults
    }
}

impl Constituency {
    /// The standing of `mac`: a server-wide denial comes first, then one of the policy, then the list.
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

    /// Whether any list of this constituency names `mac`: known, with a file of its own, or denied.
    #[must_use]
    pub fn lists(&self, mac: MacAddress) -> bool {
        let is_named = match &self.policy.phones {
            Phones::Any => false,
            Phones::Listed(listed) => listed.contains_key(&mac),
        };
        is_named || self.with_own_file.contains(&mac) || self.policy.denied.contains(&mac)
    }

    /// All phones that any list of this constituency names, without duplicates.
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

    /// The server-wide denial of `mac`, if there is one.
    #[must_use]
    pub fn server_denial(&self, mac: MacAddress) -> Option<ServerDenial> {
        self.denials.get(mac)
    }

    /// Whether `certificate` is pinned here for `mac`.
    #[must_use]
    pub fn is_pinned(&self, mac: MacAddress, certificate: Fingerprint) -> bool {
        self.policy.pins.get(&mac) == Some(&certificate)
    }

    /// The number of phones that are listed or have a `<mac>.cfg`; 0 with `"any"`.
    #[must_use]
    pub fn count_known_phones(&self) -> usize {
        self.counts.known
    }

    /// What the lists say about `mac`. `None` if no list names it, also with `"any"`.
    #[must_use]
    pub fn listing(&self, mac: MacAddress) -> Option<Listing> {
        if self.policy.denied.contains(&mac) {
            return Some(Listing::Denied);
        }
        let Phones::Listed(listed) = &self.policy.phones else { return None };
        (listed.contains_key(&mac) || self.with_own_file.contains(&mac)).then_some(Listing::Known)
    }

    /// The number of phones with this listing.
    #[must_use]
    pub fn count_listed(&self, listing: Listing) -> usize {
        match listing {
            Listing::Known => self.counts.known - self.counts.known_and_denied,
            Listing::Denied => self.policy.denied.len(),
        }
    }

    /// The operator's note on `mac`; empty if there is none.
    #[must_use]
    pub fn note(&self, mac: MacAddress) -> &str {
        match &self.policy.phones {
            Phones::Any => "",
            Phones::Listed(listed) => listed.get(&mac).map_or("", String::as_str),
        }
    }

    /// The phones that are listed or have a `<mac>.cfg`, sorted; none with `"any"`.
    #[must_use]
    pub fn known_phones(&self) -> Vec<MacAddress> {
        let Phones::Listed(listed) = &self.policy.phones else { return Vec::new() };
        let mut all: Vec<_> = listed.keys().chain(self.with_own_file.iter()).copied().collect();
        all.sort_unstable();
        all.dedup();
        #[cfg(test)]
        VISITED.set(VISITED.get() + all.len());
        all
    }
}
