//! Parses the query of the page and of the API, and selects phones by it. Pure.

use std::cmp::Reverse;

use super::all_phones::{AllPhones, PhoneEntry};
use super::snapshot::{PhoneCounts, PhonePage, PhoneQuery, PhoneSort, PhoneState, StateFilter};

/// The default and the maximum of phones in a response.
pub(super) const LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

impl PhoneState {
    /// Every state, in the order of lists: those that need an operator first.
    pub const ALL: [Self; 10] = [
        Self::Refused,
        Self::LockedOut,
        Self::Waiting,
        Self::Silent,
        Self::Never,
        Self::Allowed,
        Self::Well,
        Self::Denied,
        Self::Removed,
        Self::Gone,
    ];

    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Silent => "silent",
            Self::Never => "never",
            Self::Allowed => "allowed",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::LockedOut => "locked_out",
            Self::Denied => "denied",
            Self::Removed => "removed",
            Self::Gone => "gone",
        }
    }

    /// Whether the phone is known in a constituency that is served.
    #[must_use]
    pub fn is_known(self) -> bool {
        matches!(self, Self::Well | Self::Silent | Self::Never | Self::Allowed | Self::Refused | Self::LockedOut)
    }

    fn rank(self) -> Option<usize> {
        Self::ALL.iter().position(|state| *state == self)
    }
}

impl StateFilter {
    /// Every filter, in the order of the menu.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Known).chain(PhoneState::ALL.map(Self::One))
    }

    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::One(state) => state.name(),
            Self::Known => "known",
        }
    }

    /// Whether the filter matches `state`.
    #[must_use]
    pub fn takes(self, state: PhoneState) -> bool {
        match self {
            Self::One(one) => one == state,
            Self::Known => state.is_known(),
        }
    }
}

impl PhoneCounts {
    /// Adds `count` phones in `state`.
    pub fn add(&mut self, state: PhoneState, count: usize) {
        *self.slot(state) += count;
        self.known += if state.is_known() { count } else { 0 };
    }

    /// Removes one phone in `state`, which was added before.
    pub(super) fn remove_one(&mut self, state: PhoneState) {
        *self.slot(state) -= 1;
        self.known -= usize::from(state.is_known());
    }

    /// Adds all phones of `other`.
    pub fn add_all(&mut self, mut other: Self) {
        for state in PhoneState::ALL {
            let count = *other.slot(state);
            self.add(state, count);
        }
    }

    /// The number of phones in each state.
    pub fn by_state(mut self) -> impl Iterator<Item = (PhoneState, usize)> {
        PhoneState::ALL.into_iter().map(move |state| (state, *self.slot(state)))
    }

    fn slot(&mut self, state: PhoneState) -> &mut usize {
        match state {
            PhoneState::Well => &mut self.well,
            PhoneState::Silent => &mut self.silent,
            PhoneState::Never => &mut self.never,
            PhoneState::Allowed => &mut self.allowed,
            PhoneState::Waiting => &mut self.waiting,
            PhoneState::Refused => &mut self.refused,
            PhoneState::LockedOut => &mut self.locked_out,
            PhoneState::Denied => &mut self.denied,
            PhoneState::Removed => &mut self.removed,
            PhoneState::Gone => &mut self.gone,
        }
    }
}

impl PhoneQuery {
    /// Parses the `query` of a URL, which may be empty. Ignores unknown keys.
    ///
    /// # Errors
    /// The value that is invalid.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self { limit: LIMIT, ..Self::default() };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let number =
                || value.parse().map_err(|_| format!("invalid value {value:?} of \"{key}\": use a whole number"));
            match &*key {
                "search" => value.trim().clone_into(&mut parsed.search),
                "constituency" => parsed.constituency = Some(value.into_owned()).filter(|name| !name.is_empty()),
                "state" if value.is_empty() => parsed.state = None,
                "state" => parsed.state = Some(state(&value)?),
                "sort" => parsed.sort = sort(&value)?,
                "reverse" => parsed.is_reversed = matches!(&*value, "1" | "true" | "on" | "yes"),
                "offset" => parsed.offset = number()?,
                "limit" => parsed.limit = number()?.clamp(1, MAX_LIMIT),
                _ => {}
            }
        }
        Ok(parsed)
    }

    /// The page of `phones` that match.
    #[must_use]
    pub fn select(&self, phones: &AllPhones) -> PhonePage {
        let search = Search::new(&self.search);
        let takes = |state| self.state.is_none_or(|filter| filter.takes(state));
        let mut matched = phones.candidates(self.constituency.as_deref(), takes);
        matched.retain(|phone| search.finds(phone));
        self.order(&mut matched);
        let matching = matched.len();
        let page = matched.iter().skip(self.offset).take(self.limit);
        PhonePage { total: phones.total(), matching, phones: page.map(PhoneEntry::view).collect() }
    }

    /// Sorts stably. The phones come in sorted by name.
    fn order(&self, phones: &mut [PhoneEntry<'_>]) {
        let last_seen = |phone: &PhoneEntry<'_>| Reverse(phone.seen().and_then(|seen| seen.last_seen));
        match self.sort {
            PhoneSort::State => phones.sort_by_key(|phone| (phone.state().rank(), last_seen(phone))),
            PhoneSort::LastSeen => phones.sort_by_key(last_seen),
            PhoneSort::Name => {}
            PhoneSort::Model => {
                // Phones without a model come last.
                phones.sort_by_key(|phone| {
                    let (model, firmware) =
                        phone.seen().map_or((None, None), |seen| (seen.model.as_deref(), seen.firmware.as_deref()));
                    (model.is_none(), model, firmware)
                });
            }
        }
        if self.is_reversed {
            phones.reverse();
        }
    }
}

fn state(value: &str) -> Result<StateFilter, String> {
    StateFilter::all().find(|filter| filter.name() == value).ok_or_else(|| {
        let names: Vec<&str> = StateFilter::all().map(StateFilter::name).collect();
        format!("invalid value {value:?} of \"state\": use one of {}", names.join(", "))
    })
}

fn sort(value: &str) -> Result<PhoneSort, String> {
    match value {
        "" | "state" => Ok(PhoneSort::State),
        "last_seen" => Ok(PhoneSort::LastSeen),
        "name" => Ok(PhoneSort::Name),
        "model" => Ok(PhoneSort::Model),
        other => Err(format!("invalid value {other:?} of \"sort\": use one of state, last_seen, name, model")),
    }
}

/// A search text.
struct Search {
    text: String,
    /// A MAC address or a part of one, without separators.
    digits: Option<String>,
}

impl Search {
    fn new(text: &str) -> Self {
        let text = text.to_lowercase();
        let digits: String = text.chars().filter(|it| !matches!(it, ':' | '-' | '.' | ' ')).collect();
        let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        Self { digits: is_hex.then_some(digits), text }
    }

    fn finds(&self, phone: &PhoneEntry<'_>) -> bool {
        let has = |text: &str| text.to_lowercase().contains(&self.text);
        let (constituency, mac) = phone.key();
        self.text.is_empty()
            || self.digits.as_ref().is_some_and(|digits| mac.to_string().contains(digits))
            || has(phone.note())
            || has(constituency.as_str())
            || phone.seen().is_some_and(|seen| {
                [&seen.address, &seen.model, &seen.firmware].into_iter().flatten().any(|text| has(text))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::snapshot::PhoneView;

    fn phone(constituency: &str, mac: &str, state: PhoneState, last_seen: Option<i64>) -> PhoneView {
        let (constituency, mac) = (constituency.parse().unwrap(), mac.parse().unwrap());
        PhoneView { last_seen, ..PhoneView::unseen(constituency, mac, state, String::new()) }
    }

    /// Sorted by name, as in a snapshot.
    fn phones() -> AllPhones {
        let mut phones = vec![
            phone("home", "00005e005301", PhoneState::Well, Some(500)),
            phone("home", "00005e005302", PhoneState::Silent, Some(100)),
            phone("home", "00005e005303", PhoneState::Waiting, Some(300)),
            phone("ote", "00005e005304", PhoneState::Refused, Some(200)),
            phone("ote", "00005e005305", PhoneState::Waiting, Some(400)),
            phone("ote", "00005e005306", PhoneState::Never, None),
        ];
        phones[0].note = "The Küche".to_owned();
        phones[0].model = Some("VVX_500".to_owned());
        phones[3].model = Some("VVX_411".to_owned());
        phones[3].address = Some("192.0.2.7".to_owned());
        AllPhones::new(phones, [])
    }

    /// The last digits of the phones that a query returns, and how many match.
    fn selected(query: &str) -> (String, usize) {
        let page = PhoneQuery::parse(query).unwrap().select(&phones());
        assert_eq!(page.total, 6);
        (page.phones.iter().map(|phone| phone.mac.to_string().pop().unwrap()).collect(), page.matching)
    }

    #[test]
    fn problem_states_sort_first() {
        assert_eq!(selected(""), ("453261".to_owned(), 6));
        assert_eq!(selected("reverse=1"), ("162354".to_owned(), 6));
        assert_eq!(selected("sort=last_seen"), ("153426".to_owned(), 6));
        assert_eq!(selected("sort=name"), ("123456".to_owned(), 6));
        assert_eq!(selected("sort=model").0.get(..2), Some("41"));
    }

    #[test]
    fn search_ignores_case_and_separators() {
        for (search, found) in [
            ("küche", "1"),
            ("vvx", "14"),
            ("192.0.2.7", "4"),
            ("00:00:5E:00:53:03", "3"),
            ("5305", "5"),
            ("OTE", "456"),
            ("nothing like it", ""),
        ] {
            let query: String = form_urlencoded::byte_serialize(search.as_bytes()).collect();
            assert_eq!(selected(&format!("sort=name&search={query}")), (found.to_owned(), found.len()), "{search}");
        }
    }

    #[test]
    fn filters_and_paging_combine() {
        assert_eq!(selected("state=waiting"), ("53".to_owned(), 2));
        assert_eq!(selected("state=waiting&constituency=ote"), ("5".to_owned(), 1));
        assert_eq!(selected("sort=name&offset=2&limit=3"), ("345".to_owned(), 6));
        assert_eq!(selected("offset=99"), (String::new(), 6));
        assert_eq!(selected("constituency=&state=&sort=&search=").1, 6);
    }

    #[test]
    fn each_count_equals_the_size_of_its_filter() {
        let macs = (0..).map(|number| format!("00005e00{number:04x}"));
        // One phone of the first state, two of the second, and so on.
        let states = PhoneState::ALL.into_iter().zip(1..).flat_map(|(state, count)| std::iter::repeat_n(state, count));
        let phones: Vec<PhoneView> = states.zip(macs).map(|(state, mac)| phone("ote", &mac, state, None)).collect();
        let mut counts = PhoneCounts::default();
        for phone in &phones {
            counts.add(phone.state, 1);
        }
        let phones = AllPhones::new(phones, []);
        assert_eq!(phones.counts().into_values().collect::<Vec<_>>(), [counts]);
        let counts = serde_json::to_value(counts).unwrap();
        let mut seen = 0;
        for filter in StateFilter::all() {
            let query = PhoneQuery::parse(&format!("state={}", filter.name())).unwrap();
            assert_eq!(query.state, Some(filter));
            assert_eq!(counts[filter.name()], query.select(&phones).matching, "{}", filter.name());
            seen += 1;
        }
        assert_eq!((seen, counts.as_object().unwrap().len()), (11, 11));
    }

    #[test]
    fn invalid_query_values_are_errors() {
        assert_eq!(PhoneQuery::parse("limit=99999").unwrap().limit, MAX_LIMIT);
        assert_eq!(PhoneQuery::parse("limit=0").unwrap().limit, 1);
        for bad in ["state=x", "sort=x", "offset=-1", "limit=a"] {
            assert!(PhoneQuery::parse(bad).is_err(), "{bad}");
        }
    }
}
