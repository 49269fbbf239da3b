//! Converts domain names between text and hickory's form: absolute, lower case, A-labels only. Makes random names.

use hickory_net::proto::rr::Name;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Parses a name, with or without its last dot.
pub(super) fn parse(text: &str) -> Result<Name, String> {
    if !text.is_ascii() {
        return Err(format!("{text:?} is not ASCII; write international names with A-labels (xn--…)"));
    }
    let mut name = Name::from_ascii(text).map_err(|error| format!("{text:?} is no domain name: {error}"))?;
    if name.num_labels() == 0 {
        return Err(format!("{text:?} is no domain name: it is empty"));
    }
    name.set_fqdn(true);
    Ok(name.to_lowercase())
}

/// Deserializes a name, or none.
pub(super) fn deserialize_some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.iter().try_for_each(|text| parse(text).map(drop)).map_err(D::Error::custom)?;
    Ok(text)
}

/// The name as people write it: lower case, without the last dot.
pub(super) fn text(name: &Name) -> String {
    let mut text = name.to_lowercase().to_ascii();
    if text.ends_with('.') && text.len() > 1 {
        text.pop();
    }
    text
}

/// The name that was meant, if the name of `zone` stands at the end of `name` twice: many registrars' forms add it to a name
/// without the final dot.
pub(super) fn without_doubled_zone(name: &Name, zone: &Name) -> Option<Name> {
    if zone.is_root() || !zone.zone_of(name) {
        return None;
    }
    let mut meant = Name::from_labels(name.iter().take(name.iter().count() - zone.iter().count())).ok()?;
    meant.set_fqdn(true);
    zone.zone_of(&meant).then(|| meant.to_lowercase())
}

/// A random name below `parent`, which does not exist.
pub(super) fn random_below(parent: &Name) -> Option<Name> {
    parent.prepend_label(format!("provost-{}", random_word()?).as_str()).ok()
}

/// A random word that never repeats; `None` without randomness.
pub(super) fn random_word() -> Option<String> {
    let mut bytes = [0; 10];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_name_round_trips_through_text() {
        for (written, read) in [
            ("_acme-challenge.Phones.example.com", "_acme-challenge.phones.example.com"),
            ("example.com.", "example.com"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("localhost", "localhost"),
        ] {
            let name = parse(written).unwrap();
            assert!(name.is_fqdn());
            assert_eq!(text(&name), read);
            assert_eq!(parse(&text(&name)).unwrap(), name);
        }
        let odd = Name::from_labels([b"a.b".as_slice(), b"example"]).unwrap();
        assert_eq!(parse(&text(&odd)).unwrap(), odd, "what a CNAME may lead to");
    }

    #[test]
    fn invalid_dns_name_is_rejected() {
        let long = "a".repeat(64);
        for wrong in ["", ".", "bücher.example", "a..b", long.as_str(), "a b", "a/b"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn doubled_zone_is_found_only_where_it_stands_twice() {
        let zone = parse("example.com").unwrap();
        let meant = |name: &str| without_doubled_zone(&parse(name).unwrap(), &zone).map(|name| text(&name));
        assert_eq!(meant("ns.phones.Example.com.example.com").as_deref(), Some("ns.phones.example.com"));
        assert_eq!(meant("example.com.example.com").as_deref(), Some("example.com"));
        for good in ["example.com", "ns.example.com", "ns.com.example.com", "ns.example.com.example.net", "com"] {
            assert_eq!(meant(good), None, "{good}");
        }
        assert_eq!(without_doubled_zone(&zone, &Name::root()), None);
    }

    #[test]
    fn random_name_is_a_unique_child_of_its_parent() {
        let parent = parse("phones.example.com").unwrap();
        let name = random_below(&parent).unwrap();
        assert_eq!(name.base_name(), parent);
        assert_ne!(name, random_below(&parent).unwrap());
    }

    proptest::proptest! {
        #[test]
        fn name_parser_accepts_any_text_without_panic(text in ".{0,80}") {
            let _ = parse(&text);
        }
    }
}
