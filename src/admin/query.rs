//! Parses the query of the page and of the API, and counts phones by state. Pure.

use super::snapshot::{PhoneCounts, PhoneQuery, PhoneSort, SectionQuery, StateFilter};
use crate::phone_history::PhoneState;

/// The default of phones in a response of the API, and on the page.
const API_LIMIT: usize = 100;
pub(super) const PAGE_LIMIT: usize = 50;
/// The maximum of phones in a response.
const MAX_LIMIT: usize = 1000;

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
    /// Parses the `query` of a URL of the API, which may be empty. Ignores unknown keys.
    ///
    /// # Errors
    /// The value that is invalid.
    pub fn parse(query: &str) -> Result<Self, String> {
        Self::with_limit(query, API_LIMIT)
    }

    /// Parses the `query` of the page's URL.
    ///
    /// # Errors
    /// The value that is invalid.
    pub fn of_page(query: &str) -> Result<Self, String> {
        Self::with_limit(query, PAGE_LIMIT)
    }

    fn with_limit(query: &str, limit: usize) -> Result<Self, String> {
        let mut parsed = Self { limit, ..Self::default() };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || number(&key, &value);
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
}

impl SectionQuery {
    /// Parses the `query` of the page's URL. Ignores unknown keys.
    ///
    /// # Errors
    /// The value that is invalid.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let number = || number(&key, &value);
            match &*key {
                "folder" => value.trim().clone_into(&mut parsed.folder),
                "folder_offset" => parsed.folder_offset = number()?,
                "unproven_offset" => parsed.unproven_offset = number()?,
                "denied_offset" => parsed.denied_offset = number()?,
                _ => {}
            }
        }
        Ok(parsed)
    }
}

fn number(key: &str, value: &str) -> Result<usize, String> {
    value.parse().map_err(|_| format!("invalid value {value:?} of \"{key}\": use a whole number"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_query_values_are_errors() {
        assert_eq!(PhoneQuery::parse("limit=99999").unwrap().limit, MAX_LIMIT);
        assert_eq!(PhoneQuery::parse("limit=0").unwrap().limit, 1);
        for bad in ["state=x", "sort=x", "offset=-1", "limit=a"] {
            assert!(PhoneQuery::parse(bad).is_err() && PhoneQuery::of_page(bad).is_err(), "{bad}");
        }
        for bad in ["folder_offset=x", "unproven_offset=-1", "denied_offset="] {
            assert!(SectionQuery::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_state_has_a_count_and_a_filter_of_its_name() {
        let mut counts = PhoneCounts::default();
        for (state, count) in PhoneState::ALL.into_iter().zip(1..) {
            counts.add(state, count);
        }
        let json = serde_json::to_value(counts).unwrap();
        let mut seen = 0;
        for filter in StateFilter::all() {
            assert_eq!(PhoneQuery::parse(&format!("state={}", filter.name())).unwrap().state, Some(filter));
            let taken = counts.by_state().filter(|(state, _)| filter.takes(*state)).map(|(_, count)| count);
            assert_eq!(json[filter.name()], taken.sum::<usize>(), "{}", filter.name());
            seen += 1;
        }
        assert_eq!((seen, json.as_object().unwrap().len()), (11, 11));
    }
}
