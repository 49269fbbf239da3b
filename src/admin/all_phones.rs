//! Every phone of a snapshot. Pure.
//!
//! A policy may list a million phones that were never seen. They have no [`PhoneView`]: their number is known from the
//! policy, and they are read from its list only when a query may match them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::snapshot::{PhoneCounts, PhoneState, PhoneView};
use crate::constituency::{Constituency, ConstituencyName, Listing, MacAddress};

/// Every phone that a list, the phone history or a server-wide denial names.
#[derive(Debug, Default)]
pub struct AllPhones {
    /// The phones of which more is known than their list says, sorted by constituency and MAC address.
    views: Vec<PhoneView>,
    /// The constituencies that list the other phones, sorted by name.
    lists: Vec<Arc<Constituency>>,
}

/// One of [`AllPhones`].
#[derive(Debug, Clone, Copy)]
pub(super) enum PhoneEntry<'a> {
    View(&'a PhoneView),
    /// A phone of which only its list is known.
    Listed(&'a Constituency, MacAddress, Listing),
}

impl AllPhones {
    /// The phones of `views`, and the others that `lists` name.
    #[must_use]
    pub fn new(mut views: Vec<PhoneView>, lists: impl IntoIterator<Item = Arc<Constituency>>) -> Self {
        views.sort_by(|one, other| (&one.constituency, one.mac).cmp(&(&other.constituency, other.mac)));
        let mut lists: Vec<_> = lists.into_iter().collect();
        lists.sort_by(|one, other| one.name.cmp(&other.name));
        Self { views, lists }
    }

    /// The phones that were seen or claimed, or that are denied server-wide, sorted by constituency and MAC address.
    #[must_use]
    pub fn views(&self) -> &[PhoneView] {
        &self.views
    }

    /// The number of phones in each state, by constituency. Visits the views alone.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&ConstituencyName, PhoneCounts> {
        let mut counts: BTreeMap<&ConstituencyName, PhoneCounts> = BTreeMap::new();
        for list in &self.lists {
            let all = counts.entry(&list.name).or_default();
            for listing in [Listing::Known, Listing::Denied] {
                all.add(PhoneState::of_unseen(listing), list.count_listed(listing));
            }
        }
        for view in &self.views {
            let all = counts.entry(&view.constituency).or_default();
            if let Some(listing) = self.list(&view.constituency).and_then(|list| list.listing(view.mac)) {
                all.remove_one(PhoneState::of_unseen(listing));
            }
            all.add(view.state, 1);
        }
        counts
    }

    /// The number of all phones.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counts().into_values().flat_map(PhoneCounts::by_state).map(|(_, count)| count).sum()
    }

    /// The phone `mac` of `constituency`.
    #[must_use]
    pub fn find(&self, constituency: &ConstituencyName, mac: MacAddress) -> Option<PhoneView> {
        let key = (constituency, mac);
        match self.views.binary_search_by(|view| (&view.constituency, view.mac).cmp(&key)) {
            Ok(index) => self.views.get(index).cloned(),
            Err(_) => {
                let list = self.list(constituency)?;
                Some(PhoneEntry::Listed(list, mac, list.listing(mac)?).view())
            }
        }
    }

    /// The phones that may match a query for `constituency` (`None`: all) and for the states that `takes` takes, sorted by
    /// constituency and MAC address.
    pub(super) fn candidates(
        &self,
        constituency: Option<&str>,
        takes: impl Fn(PhoneState) -> bool,
    ) -> Vec<PhoneEntry<'_>> {
        let is_wanted = |name: &ConstituencyName| constituency.is_none_or(|wanted| name.as_str() == wanted);
        let views = self.views.iter().filter(|view| is_wanted(&view.constituency) && takes(view.state));
        let mut found: Vec<PhoneEntry<'_>> = views.map(PhoneEntry::View).collect();
        let listings = [Listing::Known, Listing::Denied].into_iter();
        let listings: Vec<Listing> = listings.filter(|listing| takes(PhoneState::of_unseen(*listing))).collect();
        if !listings.is_empty() {
            for list in self.lists.iter().filter(|list| is_wanted(&list.name)) {
                self.add_listed(list, &listings, &mut found);
            }
            // A stable sort merges the two sorted parts in linear time.
            found.sort_by(|one, other| one.key().cmp(&other.key()));
        }
        found
    }

    /// Adds the phones that `list` names in one of `listings`, and that have no view.
    fn add_listed<'a>(&'a self, list: &'a Constituency, listings: &[Listing], found: &mut Vec<PhoneEntry<'a>>) {
        let from = self.views.partition_point(|view| view.constituency < list.name);
        let own = self.views.get(from..).unwrap_or_default();
        let own = own.get(..own.partition_point(|view| view.constituency == list.name)).unwrap_or_default();
        let mut phones = list.known_phones();
        phones.extend(&list.policy.denied);
        phones.sort_unstable();
        phones.dedup();
        for mac in phones {
            if let Some(listing) = list.listing(mac).filter(|listing| listings.contains(listing))
                && own.binary_search_by_key(&mac, |view| view.mac).is_err()
            {
                found.push(PhoneEntry::Listed(list, mac, listing));
            }
        }
    }

    fn list(&self, constituency: &ConstituencyName) -> Option<&Constituency> {
        let index = self.lists.binary_search_by(|list| list.name.cmp(constituency)).ok()?;
        self.lists.get(index).map(AsRef::as_ref)
    }
}

impl<'a> PhoneEntry<'a> {
    pub(super) fn key(&self) -> (&'a ConstituencyName, MacAddress) {
        match *self {
            Self::View(view) => (&view.constituency, view.mac),
            Self::Listed(list, mac, _) => (&list.name, mac),
        }
    }

    pub(super) fn state(&self) -> PhoneState {
        match *self {
            Self::View(view) => view.state,
            Self::Listed(_, _, listing) => PhoneState::of_unseen(listing),
        }
    }

    pub(super) fn note(&self) -> &'a str {
        match *self {
            Self::View(view) => &view.note,
            Self::Listed(list, mac, _) => list.note(mac),
        }
    }

    /// The view, if there is one: of the others, nothing more is known.
    pub(super) fn seen(&self) -> Option<&'a PhoneView> {
        match *self {
            Self::View(view) => Some(view),
            Self::Listed(..) => None,
        }
    }

    pub(super) fn view(&self) -> PhoneView {
        match *self {
            Self::View(view) => view.clone(),
            Self::Listed(list, mac, _) => {
                PhoneView::unseen(list.name.clone(), mac, self.state(), self.note().to_owned())
            }
        }
    }
}
