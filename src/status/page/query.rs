//! The query of the list of phones as a link. Pure.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::status::picture::{PhoneQuery, PhoneSort};

/// How a sort is spelled in a query.
pub(super) fn sort_name(sort: PhoneSort) -> &'static str {
    match sort {
        PhoneSort::State => "state",
        PhoneSort::LastSeen => "last_seen",
        PhoneSort::Name => "name",
        PhoneSort::Model => "model",
    }
}

/// The list as `query` wants it; what is usual is left out.
pub(super) fn link(query: &PhoneQuery) -> String {
    let sort = Some(sort_name(query.sort)).filter(|_| query.sort != PhoneSort::default());
    let offset = Some(query.offset.to_string()).filter(|_| query.offset > 0);
    let parameters = [
        ("search", Some(query.search.as_str()).filter(|search| !search.is_empty())),
        ("constituency", query.constituency.as_deref()),
        ("state", query.state.as_deref()),
        ("sort", sort),
        ("reverse", Some("1").filter(|_| query.is_reversed)),
        ("offset", offset.as_deref()),
    ];
    let given = parameters.iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded((*value)?))));
    let query = given.collect::<Vec<String>>().join("&");
    if query.is_empty() { "/#phones".to_owned() } else { format!("/?{query}#phones") }
}

/// The list of one state.
pub(super) fn of_state(state: &str) -> String {
    link(&PhoneQuery { state: Some(state.to_owned()), ..PhoneQuery::default() })
}

/// The list of one constituency.
pub(super) fn of_constituency(name: &str) -> String {
    link(&PhoneQuery { constituency: Some(name.to_owned()), ..PhoneQuery::default() })
}

fn encoded(value: &str) -> impl std::fmt::Display {
    utf8_percent_encode(value, NON_ALPHANUMERIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_says_only_what_differs_from_the_usual() {
        assert_eq!(link(&PhoneQuery::default()), "/#phones");
        let query = PhoneQuery {
            search: "<a&b> \"".to_owned(),
            constituency: Some("ote".to_owned()),
            state: Some("well".to_owned()),
            sort: PhoneSort::LastSeen,
            is_reversed: true,
            offset: 50,
            limit: 50,
        };
        let wanted =
            "/?search=%3Ca%26b%3E%20%22&constituency=ote&state=well&sort=last%5Fseen&reverse=1&offset=50#phones";
        assert_eq!(link(&query), wanted);
    }
}
