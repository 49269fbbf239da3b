//! Domain names between text and hickory's form: absolute, lower case, A-labels only.

use hickory_net::proto::rr::Name;

/// Reads a name, with or without its last dot.
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

/// The name as people write it: lower case, without the last dot.
pub(super) fn text(name: &Name) -> String {
    let mut text = name.to_lowercase().to_ascii();
    if text.ends_with('.') && text.len() > 1 {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_people_write_them() {
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
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(64);
        for wrong in ["", ".", "bücher.example", "a..b", long.as_str(), "a b", "a/b"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = parse(&text);
        }
    }
}
