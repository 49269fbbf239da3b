//! Edits the JSON text of a policy and preserves order, indentation and spelling elsewhere. Pure.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstArray, CstInputValue, CstNode, CstObject, CstObjectProp, CstRootNode};

use super::excerpt::Excerpt;
use super::{Fingerprint, MacAddress};

/// The text that stands for a missing policy file.
pub(super) const EMPTY_POLICY: &str = "{\n}\n";

/// The keys of a phone's object.
const NOTE: &str = "note";
const PIN: &str = "certificate_sha256";

/// A change of a policy.
#[derive(Debug, Clone, Copy)]
pub enum PolicyChange<'a> {
    /// Lists a phone, and removes it from `denied`.
    Allow {
        /// The phone.
        mac: MacAddress,
        /// The new note; `None` keeps the existing one.
        note: Option<&'a str>,
    },
    /// Lists a phone with a pinned certificate, and removes it from `denied`.
    Pin {
        /// The phone.
        mac: MacAddress,
        /// The new note; `None` keeps the existing one.
        note: Option<&'a str>,
        /// The fingerprint of the certificate.
        certificate: Fingerprint,
    },
    /// Denies a phone, and removes its pin.
    Deny {
        /// The phone.
        mac: MacAddress,
    },
    /// Removes a phone from `denied`.
    RemoveDenial {
        /// The phone.
        mac: MacAddress,
    },
}

impl PolicyChange<'_> {
    /// Applies this change to the valid policy `text`. Gives `text` unchanged if the change is already there.
    ///
    /// # Errors
    /// If the text is not a JSON object, a value has the wrong type, or the MAC address cannot be a phone's.
    pub fn apply(&self, text: &str) -> Result<String, String> {
        let excerpt = Excerpt::of(text, self.mac());
        let edited = self.edit(excerpt.as_str())?;
        excerpt.expand(&edited).map_or_else(|| self.edit(text), Ok)
    }

    /// The phone that it concerns.
    pub(super) fn mac(&self) -> MacAddress {
        match self {
            Self::Allow { mac, .. } | Self::Pin { mac, .. } | Self::Deny { mac } | Self::RemoveDenial { mac } => *mac,
        }
    }

    /// Applies this change to `text`: a policy, or an excerpt of one. Costs much memory per entry.
    pub(super) fn edit(&self, text: &str) -> Result<String, String> {
        if let Self::Allow { mac, .. } | Self::Pin { mac, .. } = self {
            mac.check_phone().map_err(|error| error.to_string())?;
        }
        let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| error.to_string())?;
        let policy = root.object_value().ok_or("is not a JSON object")?;
        match self {
            Self::Allow { mac, note } => allow(&policy, *mac, *note)?,
            Self::Pin { mac, note, certificate } => pin(&policy, *mac, *note, *certificate)?,
            Self::Deny { mac } => deny(&policy, *mac)?,
            Self::RemoveDenial { mac } => remove_denial(&policy, *mac)?,
        }
        Ok(root.to_string())
    }
}

/// Turns the valid policy `text` into a template for other phones: without description, phones, denials, aliases and
/// shared folders.
///
/// # Errors
/// If the text is not a JSON object.
pub fn template(text: &str) -> Result<String, String> {
    let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| error.to_string())?;
    let policy = root.object_value().ok_or("is not a JSON object")?;
    for key in ["description", "denied", "aliases", "shared"] {
        policy.get(key).into_iter().for_each(CstObjectProp::remove);
    }
    if let Some(phones) = policy.get("phones").filter(|phones| !is_any(phones)) {
        phones.set_value(CstInputValue::Object(Vec::new()));
    }
    Ok(root.to_string())
}

fn allow(policy: &CstObject, mac: MacAddress, note: Option<&str>) -> Result<(), String> {
    remove_denial(policy, mac)?;
    let phones = match policy.get("phones") {
        Some(phones) if is_any(&phones) => return Ok(()),
        Some(phones) => phones.object_value().ok_or("\"phones\" is neither an object nor \"any\"")?,
        None => policy.object_value_or_set("phones"),
    };
    match (entry(&phones, mac), note) {
        (Some(phone), Some(note)) => match phone.object_value() {
            Some(entry) => set(&entry, NOTE, note),
            None => phone.set_value(text(note)),
        },
        (Some(_), None) => {}
        (None, note) => {
            phones.append(&mac.to_string(), text(note.unwrap_or_default()));
        }
    }
    Ok(())
}

fn pin(policy: &CstObject, mac: MacAddress, note: Option<&str>, certificate: Fingerprint) -> Result<(), String> {
    if policy.get("phones").is_some_and(|phones| is_any(&phones)) {
        return Err(
            "\"phones\" is \"any\", so no phone can have a pinned certificate; list the phones instead".to_owned()
        );
    }
    allow(policy, mac, note)?;
    let phone =
        policy.object_value("phones").and_then(|phones| entry(&phones, mac)).ok_or("\"phones\" is not an object")?;
    match phone.object_value() {
        Some(entry) => {
            let is_it = |pinned: CstObjectProp| text_of(&pinned.value()?)?.parse().ok();
            if entry.get(PIN).and_then(is_it) != Some(certificate) {
                set(&entry, PIN, &certificate.to_string());
            }
        }
        None => {
            let note = phone.value().and_then(|value| text_of(&value)).unwrap_or_default();
            let entry = [(NOTE.to_owned(), text(&note)), (PIN.to_owned(), text(&certificate.to_string()))];
            phone.set_value(CstInputValue::Object(entry.into()));
        }
    }
    Ok(())
}

fn remove_denial(policy: &CstObject, mac: MacAddress) -> Result<(), String> {
    if let Some(denied) = array(policy, "denied")? {
        denied.elements().into_iter().filter(|element| is_address(element, mac)).for_each(CstNode::remove);
    }
    Ok(())
}

/// Removes the pin of a phone and keeps its note.
fn unpin(policy: &CstObject, mac: MacAddress) {
    let Some(phone) = policy.object_value("phones").and_then(|phones| entry(&phones, mac)) else { return };
    let Some(entry) = phone.object_value().filter(|entry| entry.get(PIN).is_some()) else { return };
    let note = entry.get(NOTE).and_then(|note| text_of(&note.value()?)).unwrap_or_default();
    phone.set_value(text(&note));
}

/// The entry of a phone in the map, in any spelling of the MAC address.
fn entry(phones: &CstObject, mac: MacAddress) -> Option<CstObjectProp> {
    let is_it = |phone: &CstObjectProp| phone.decoded_name().is_some_and(|name| name.parse() == Ok(mac));
    phones.properties().into_iter().find(is_it)
}

fn set(object: &CstObject, key: &str, value: &str) {
    match object.get(key) {
        Some(property) => property.set_value(text(value)),
        None => {
            object.append(key, text(value));
        }
    }
}

fn text(text: &str) -> CstInputValue {
    CstInputValue::String(text.to_owned())
}

fn deny(policy: &CstObject, mac: MacAddress) -> Result<(), String> {
    unpin(policy, mac);
    let denied = match array(policy, "denied")? {
        Some(denied) => denied,
        None => policy.array_value_or_set("denied"),
    };
    if !denied.elements().iter().any(|element| is_address(element, mac)) {
        denied.append(CstInputValue::String(mac.to_string()));
    }
    Ok(())
}

fn array(policy: &CstObject, key: &str) -> Result<Option<CstArray>, String> {
    let array = |value: CstObjectProp| value.array_value().ok_or_else(|| format!("\"{key}\" is not a list"));
    policy.get(key).map(array).transpose()
}

fn text_of(node: &CstNode) -> Option<String> {
    node.as_string_lit()?.decoded_value().ok()
}

fn is_any(phones: &CstObjectProp) -> bool {
    phones.value().and_then(|value| text_of(&value)).as_deref() == Some("any")
}

/// Whether a list element is this MAC address, in any spelling.
fn is_address(element: &CstNode, mac: MacAddress) -> bool {
    text_of(element).is_some_and(|text| text.parse() == Ok(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddress {
        "00005e00530c".parse().unwrap()
    }

    fn allow(text: &str, note: Option<&str>) -> String {
        PolicyChange::Allow { mac: mac(), note }.apply(text).unwrap()
    }

    fn deny(text: &str) -> String {
        PolicyChange::Deny { mac: mac() }.apply(text).unwrap()
    }

    #[test]
    fn allow_adds_first_phone_to_empty_policy() {
        let expected = "{\n  \"phones\": {\n    \"00005e00530c\": \"the kitchen\"\n  }\n}\n";
        assert_eq!(allow(EMPTY_POLICY, Some("the kitchen")), expected);
        assert_eq!(deny(EMPTY_POLICY), "{\n  \"denied\": [\"00005e00530c\"]\n}\n");
        assert_eq!(
            allow("{}", Some("a \"quoted\" ä\\")).parse::<serde_json::Value>().unwrap()["phones"]["00005e00530c"],
            "a \"quoted\" ä\\"
        );
    }

    #[test]
    fn edit_preserves_the_rest_of_the_file() {
        let before = "{\r\n\t\"uploads\" : {\"max_phone_files\":3},\r\n\t\"phones\": {\r\n\t\t\"00:00:5E:00:53:C7\":   \"b\"\r\n\t},\r\n\t\"denied\": [\"00-00-5E-00-53-0C\", \"00005e0053ff\"]\r\n}";
        let after = "{\r\n\t\"uploads\" : {\"max_phone_files\":3},\r\n\t\"phones\": {\r\n\t\t\"00:00:5E:00:53:C7\":   \"b\",\r\n\t\t\"00005e00530c\": \"a\"\r\n\t},\r\n\t\"denied\": [ \"00005e0053ff\"]\r\n}";
        assert_eq!(allow(before, Some("a")), after);
        // A map on one line is split into one line per phone.
        let one_line = r#"{ "phones": { "00005e0053c7": "b" }, "denied": [] }"#;
        let lines = "{ \"phones\": {\n    \"00005e0053c7\": \"b\",\n    \"00005e00530c\": \"a\"\n  }, \"denied\": [] }";
        assert_eq!(allow(one_line, Some("a")), lines);
        assert_eq!(deny(one_line), r#"{ "phones": { "00005e0053c7": "b" }, "denied": ["00005e00530c"] }"#);
    }

    #[test]
    fn edit_without_effect_changes_nothing() {
        let spelled = r#"{"phones": {"00:00:5E:00:53:0C": "old"}, "denied": ["0000.5e00.530d"]}"#;
        assert_eq!(allow(spelled, None), spelled);
        assert_eq!(allow(spelled, Some("new")), spelled.replace("old", "new"));
        let denied = r#"{"denied": ["00:00:5E:00:53:0C"]}"#;
        assert_eq!(deny(denied), denied);
        let any = r#"{"phones": "any", "denied": ["00005E00530C"]}"#;
        assert_eq!(allow(any, Some("a")), r#"{"phones": "any", "denied": []}"#);
    }

    #[test]
    fn pin_is_added_and_removed_without_the_note() {
        let certificate = Fingerprint::of(b"");
        let pin = |text: &str, note| PolicyChange::Pin { mac: mac(), note, certificate }.apply(text);
        let value = |text: &str| text.parse::<serde_json::Value>().unwrap();
        let hex = certificate.to_string();
        let plain = "{\n  \"phones\": {\n    \"00:00:5E:00:53:0C\": \"a\",\n    \"00005e0053c7\": \"b\"\n  },\n  \"denied\": []\n}\n";
        let pinned = pin(plain, None).unwrap();
        let mut expected = value(plain);
        expected["phones"]["00:00:5E:00:53:0C"] = serde_json::json!({ "note": "a", "certificate_sha256": hex });
        assert_eq!(value(&pinned), expected);
        assert!(pinned.contains("    \"00005e0053c7\": \"b\"\n  },\n  \"denied\": []\n}\n"), "{pinned}");
        // Pinning again changes nothing, in another spelling either.
        assert_eq!(pin(&pinned, Some("a")).unwrap(), pinned);
        let upper = pinned.replace(&hex, &hex.to_uppercase());
        assert_eq!(pin(&upper, None).unwrap(), upper);
        // Another certificate or note replaces the old one. Allowing the phone keeps the pin.
        assert_eq!(pin(&pinned.replace(&hex, &"0".repeat(64)), None).unwrap(), pinned);
        assert_eq!(allow(&pinned, None), pinned);
        assert_eq!(value(&allow(&pinned, Some("c")))["phones"]["00:00:5E:00:53:0C"]["note"], "c");
        assert_eq!(value(&allow(&pinned, Some("c")))["phones"]["00:00:5E:00:53:0C"]["certificate_sha256"], hex);
        // A denial removes the pin, and lifting the denial does not restore it.
        let denied = plain.replace("[]", "[\"00005e00530c\"]");
        assert_eq!(deny(&pinned), denied);
        assert_eq!(allow(&deny(&pinned), None), plain);
        assert_eq!(value(&pin(&denied, None).unwrap()), expected);
        assert_eq!(value(&pin(EMPTY_POLICY, Some("x")).unwrap())["phones"]["00005e00530c"]["note"], "x");
        assert!(pin(r#"{"phones": "any"}"#, None).unwrap_err().contains("list the phones"));
    }

    #[test]
    fn template_drops_phones_and_names() {
        let text = "{\n  \"description\": \"d\",\n  \"trust\": [\"acme\"],\n  \"phones\": { \"00005e00530c\": \"a\" },\n  \"aliases\": [\"b\"]\n}\n";
        assert_eq!(template(text).unwrap(), "{\n  \"trust\": [\"acme\"],\n  \"phones\": {}\n}\n");
        assert_eq!(template(r#"{"phones": "any", "denied": []}"#).unwrap(), r#"{"phones": "any"}"#);
    }

    #[test]
    fn invalid_policy_is_not_edited() {
        for text in ["", "[]", "{", "{\"phones\": []}", "{\"phones\": \"all\"}", "{\"denied\": {}}"] {
            assert!(PolicyChange::Allow { mac: mac(), note: None }.apply(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn edit_changes_only_the_phone(
            phones in proptest::collection::btree_map("[0-9a-f]{12}", "\\PC{0,8}", 0..6),
            denied in proptest::collection::btree_set("[0-9a-f]{12}", 0..4),
            note in "\\PC{0,12}",
            is_pretty: bool,
        ) {
            let before = serde_json::json!({ "description": "d", "phones": phones, "denied": denied });
            let text = if is_pretty { serde_json::to_string_pretty(&before) } else { serde_json::to_string(&before) };
            let text = text.unwrap();
            let parse = |text: &str| text.parse::<serde_json::Value>().unwrap();
            let denied = deny(&text);
            let allowed = allow(&denied, Some(&note));
            let mut expected = before;
            expected["denied"].as_array_mut().unwrap().retain(|it| it != "00005e00530c");
            expected["phones"]["00005e00530c"] = note.as_str().into();
            proptest::prop_assert_eq!(parse(&allowed), expected);
            proptest::prop_assert_eq!(deny(&denied), denied.as_str());
            if is_pretty {
                let change = PolicyChange::Allow { mac: mac(), note: Some(&note) };
                proptest::prop_assert_eq!(change.edit(&denied).unwrap(), allowed, "as without an excerpt");
            }
        }
    }
}
