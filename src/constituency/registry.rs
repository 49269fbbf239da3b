//! The registry: all constituencies as one immutable snapshot, so that a reader sees consistent data.
//!
//! This module does no I/O. A [`Folder`] opens the files of a constituency.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::folder::Folder;
use super::{
    ConstituencyName, Fingerprint, ListedPhones, MacAddress, PHONES_FILE, POLICY_FILE, PhoneList, Phones, Policy,
    ServerDenial, ServerDenials,
};

/// The files by which phones without an entry in a list are known.
const OWN_FILES: &str = "<mac>.cfg";

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
    /// The phones of `phones.csv`.
    pub(super) list: Arc<PhoneList>,
    pub(super) with_own_file: Arc<HashSet<MacAddress>>,
    pub(super) counts: ListCounts,
    /// Live server-wide denials, not a snapshot.
    pub(super) denials: Arc<ServerDenials>,
}

/// What the lists of a constituency say about a phone, whatever the rest of the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// It is known: a list names it, or it has a `<mac>.cfg`.
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
    /// How many phones this thread has compared between two states of a constituency.
    static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
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
    pub(super) fn of(policy: &Policy, list: &PhoneList, with_own_file: &HashSet<MacAddress>) -> Self {
        let Phones::Listed(listed) = &policy.phones else { return Self { known: 0, known_and_denied: 0 } };
        let is_known =
            |mac: &&MacAddress| listed.contains_key(mac) || list.contains(**mac) || with_own_file.contains(mac);
        let only_listed = listed.keys().filter(|mac| !list.contains(**mac)).count();
        let is_only_file = |mac: &&MacAddress| !listed.contains_key(mac) && !list.contains(**mac);
        Self {
            known: list.len() + only_listed + with_own_file.iter().filter(is_only_file).count(),
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
    let both = before.zip(after);
    let has_same_policy = both.is_some_and(|(before, after)| {
        Arc::ptr_eq(&before.policy, &after.policy) && Arc::ptr_eq(&before.with_own_file, &after.with_own_file)
    });
    let has_same_list = both.is_some_and(|(before, after)| Arc::ptr_eq(&before.list, &after.list));
    let lists = |constituency: Option<&Constituency>, mac| constituency.is_some_and(|it| it.lists(mac));
    let mut changed = 0;
    let mut compare = |mac| {
        #[cfg(test)]
        COMPARED.set(COMPARED.get() + 1);
        match (lists(before, mac), lists(after, mac)) {
            (false, true) => listed.add(mac),
            (true, false) => listed.remove(mac),
            _ => return,
        }
        changed += 1;
    };
    let mut compared = HashSet::new();
    if !has_same_policy {
        compared.extend([before, after].into_iter().flatten().flat_map(Constituency::outside_phone_list));
        compared.iter().copied().for_each(&mut compare);
    }
    if !has_same_list {
        let empty = PhoneList::default();
        let [before, after] = [before, after].map(|constituency| constituency.map_or(&empty, |it| it.list.as_ref()));
        before.difference(after).filter(|mac| !compared.contains(mac)).for_each(&mut compare);
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
        let is_known = self.policy.phones == Phones::Any || self.names(mac);
        if is_known { PhoneStanding::Known } else { PhoneStanding::Unknown }
    }

    /// Whether the policy or `phones.csv` names `mac`, or it has a file of its own.
    fn names(&self, mac: MacAddress) -> bool {
        let is_in_policy = self.policy.phones.listed().is_some_and(|listed| listed.contains_key(&mac));
        is_in_policy || self.list.contains(mac) || self.with_own_file.contains(&mac)
    }

    /// Whether any list of this constituency names `mac`: known, with a file of its own, or denied.
    #[must_use]
    pub fn lists(&self, mac: MacAddress) -> bool {
        self.names(mac) || self.policy.denied.contains(&mac)
    }

    /// All phones that any list of this constituency names, without duplicates.
    pub fn listed_phones(&self) -> impl Iterator<Item = MacAddress> {
        let in_policy = self.policy.phones.listed();
        let is_in_policy = move |mac: &MacAddress| in_policy.is_some_and(|listed| listed.contains_key(mac));
        let in_list = self.list.phones().filter(move |mac| !is_in_policy(mac));
        let with_own_file = self.with_own_file.iter().copied();
        let with_own_file = with_own_file.filter(move |mac| !is_in_policy(mac) && !self.list.contains(*mac));
        let denied = self.policy.denied.iter().copied().filter(|mac| !self.names(*mac));
        in_policy
            .into_iter()
            .flat_map(|listed| listed.keys().copied())
            .chain(in_list)
            .chain(with_own_file)
            .chain(denied)
    }

    /// The phones that a list other than `phones.csv` names; some more than once.
    fn outside_phone_list(&self) -> impl Iterator<Item = MacAddress> {
        let in_policy = self.policy.phones.listed();
        let in_policy = in_policy.into_iter().flat_map(|listed| listed.keys());
        in_policy.chain(self.with_own_file.iter()).chain(&self.policy.denied).copied()
    }

    /// The phones of `phones.csv`.
    #[must_use]
    pub fn phone_list(&self) -> &Arc<PhoneList> {
        &self.list
    }

    /// The files that say something else in the state `other`, each with the phones that it lists, or denies, in one of the
    /// two states only.
    #[must_use]
    pub fn changed_files(&self, other: &Self) -> Vec<(&'static str, Vec<MacAddress>)> {
        let mut changed = Vec::new();
        if self.policy != other.policy {
            let mut phones: Vec<_> = self.policy.changed_phones(&other.policy).collect();
            phones.extend(other.policy.changed_phones(&self.policy));
            changed.push((POLICY_FILE, phones));
        }
        if self.list != other.list {
            changed.push((PHONES_FILE, self.list.difference(&other.list).collect()));
        }
        if self.with_own_file != other.with_own_file {
            changed.push((OWN_FILES, self.with_own_file.symmetric_difference(&other.with_own_file).copied().collect()));
        }
        changed
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

    /// The number of known phones; 0 with `"any"`.
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
        (self.policy.phones != Phones::Any && self.names(mac)).then_some(Listing::Known)
    }

    /// The number of phones with this listing.
    #[must_use]
    pub fn count_listed(&self, listing: Listing) -> usize {
        match listing {
            Listing::Known => self.counts.known - self.counts.known_and_denied,
            Listing::Denied => self.policy.denied.len(),
        }
    }

    /// The operator's note on `mac`: that of the policy, else that of `phones.csv`; empty if there is none.
    #[must_use]
    pub fn note(&self, mac: MacAddress) -> &str {
        let Phones::Listed(listed) = &self.policy.phones else { return "" };
        let note = listed.get(&mac).map(String::as_str).filter(|note| !note.is_empty());
        note.unwrap_or_else(|| self.list.note(mac))
    }

    /// The known phones, sorted: those of the policy, of `phones.csv`, and with a `<mac>.cfg`; none with `"any"`.
    #[must_use]
    pub fn known_phones(&self) -> Vec<MacAddress> {
        let Phones::Listed(listed) = &self.policy.phones else { return Vec::new() };
        let small = listed.keys().chain(self.with_own_file.iter()).copied();
        let mut all: Vec<_> = self.list.phones().chain(small).collect();
        all.sort_unstable();
        all.dedup();
        #[cfg(test)]
        VISITED.set(VISITED.get() + all.len());
        all
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test writes policies and lists")]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::constituency::scan::Scanner;
    use crate::constituency::{PHONES_FILE, POLICY_FILE};

    const FIRST: u64 = 0x0004_f200_0000;

    fn mac(number: usize) -> MacAddress {
        MacAddress::ZERO.plus(FIRST + number as u64)
    }

    /// The phones that are compared when one is added to a `phones.csv` of `count`, and when another is denied.
    fn compared_beside(count: usize) -> [usize; 2] {
        let folder = tempfile::tempdir().unwrap();
        let ote = folder.path().join("ote");
        std::fs::create_dir(&ote).unwrap();
        let write = |count: usize| {
            let lines: String = (0..count).map(|number| format!("{},a phone\n", mac(number))).collect();
            std::fs::write(ote.join(PHONES_FILE), format!("mac,note\n{lines}")).unwrap();
        };
        write(count);
        let mut scanner = Scanner::new(folder.path().to_owned(), Vec::new());
        let mut seconds = 0;
        // Two looks, because a changed list is read at the second.
        let mut scan = || {
            let before = COMPARED.get();
            for _ in 0..2 {
                seconds += 1;
                scanner.scan(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            }
            let registry = scanner.scan(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            (registry, COMPARED.get() - before)
        };
        let (first, compared) = scan();
        assert_eq!((first.find("ote").unwrap().known_phones().len(), compared), (count, count));
        write(count + 1);
        let (second, added) = scan();
        assert!(!first.listed().contains(mac(count)) && second.listed().contains(mac(count)));
        assert_eq!(second.find("ote").unwrap().standing(mac(count)), PhoneStanding::Known);
        std::fs::write(ote.join(POLICY_FILE), format!(r#"{{ "denied": ["{}"] }}"#, mac(0))).unwrap();
        let (third, denied) = scan();
        let ote = third.find("ote").unwrap();
        assert_eq!((ote.standing(mac(0)), ote.count_known_phones()), (PhoneStanding::Denied, count + 1));
        assert_eq!([Listing::Known, Listing::Denied].map(|listing| ote.count_listed(listing)), [count, 1]);
        [added, denied]
    }

    #[test]
    fn change_of_one_phone_compares_one_phone_of_10_or_10_000() {
        assert_eq!([10, 10_000].map(compared_beside), [[1, 1], [1, 1]]);
    }
}
