//! Links to lists of phones. Pure.

use form_urlencoded::Serializer;

use crate::admin::query::PAGE_LIMIT;
use crate::admin::snapshot::{PhoneQuery, PhoneSort, StateFilter};

/// The list for `query`.
pub(super) fn to_list(query: &PhoneQuery) -> String {
    match parameters(query) {
        query if query.is_empty() => "/#phones".to_owned(),
        query => format!("/?{query}#phones"),
    }
}

/// The values that differ from the defaults, as the query of a URL.
fn parameters(query: &PhoneQuery) -> String {
    let number = |number: usize, default: usize| Some(number.to_string()).filter(|_| number != default);
    let given = [
        ("search", Some(query.search.clone()).filter(|search| !search.is_empty())),
        ("constituency", query.constituency.clone()),
        ("state", query.state.map(|filter| filter.name().to_owned())),
        ("sort", Some(sort_name(query.sort).to_owned()).filter(|_| query.sort != PhoneSort::default())),
        ("reverse", query.is_reversed.then(|| "1".to_owned())),
        ("offset", number(query.offset, 0)),
        ("limit", number(query.limit, PAGE_LIMIT)),
    ];
    let given = given.into_iter().filter_map(|(key, value)| Some((key, value?)));
    Serializer::new(String::new()).extend_pairs(given).finish()
}

/// The name in a query.
pub(super) fn sort_name(sort: PhoneSort) -> &'static str {
    match sort {
        PhoneSort::State => "state",
        PhoneSort::LastSeen => "last_seen",
        PhoneSort::Name => "name",
        PhoneSort::Model => "model",
    }
}

/// The list of the phones that match `filter`.
pub(super) fn to_state(filter: StateFilter) -> String {
    to_list(&PhoneQuery { state: Some(filter), ..default_query() })
}

/// The list of the phones of one constituency that match `filter`.
pub(super) fn to_state_of(name: &str, filter: StateFilter) -> String {
    to_list(&PhoneQuery { constituency: Some(name.to_owned()), state: Some(filter), ..default_query() })
}

/// The list of the phones of one constituency.
pub(super) fn to_constituency(name: &str) -> String {
    to_list(&PhoneQuery { constituency: Some(name.to_owned()), ..default_query() })
}

fn default_query() -> PhoneQuery {
    PhoneQuery { limit: PAGE_LIMIT, ..PhoneQuery::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::phone_history::PhoneState;

    #[test]
    fn link_parses_back_to_its_query() {
        let sorts = [PhoneSort::State, PhoneSort::LastSeen, PhoneSort::Name, PhoneSort::Model];
        for (sort, is_reversed) in sorts.into_iter().flat_map(|sort| [(sort, false), (sort, true)]) {
            let query = PhoneQuery {
                search: "<a&b> \" é".to_owned(),
                constituency: Some("ote".to_owned()),
                state: Some(StateFilter::One(PhoneState::Never)),
                sort,
                is_reversed,
                offset: 50,
                limit: 7,
            };
            let link = to_list(&query);
            let text = link.strip_prefix("/?").unwrap().strip_suffix("#phones").unwrap();
            assert_eq!(PhoneQuery::of_page(text), Ok(query), "{link}");
        }
        assert_eq!(to_list(&default_query()), "/#phones");
        assert_eq!(to_state(StateFilter::One(PhoneState::Well)), "/?state=well#phones");
        assert_eq!(to_state_of("ote", StateFilter::Known), "/?constituency=ote&state=known#phones");
    }
}
