//! Changing a policy's text where it must change and nowhere else: order, indentation and spelling stay. Pure.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstArray, CstInputValue, CstNode, CstObject, CstObjectProp, CstRootNode};

use super::MacAddress;

/// What a policy without a file says.
pub(super) const EMPTY: &str = "{\n}\n";

/// A change of a policy.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Puts a phone on the list, and takes it off those that are denied.
    Allow {
        /// The phone.
        mac: MacAddress,
        /// What stands beside it; `None` leaves the note that it has.
        note: Option<&'a str>,
    },
    /// Keeps a phone out, whatever else is said.
    Deny {
        /// The phone.
        mac: MacAddress,
    },
}

impl Change<'_> {
    /// The policy `text`, which is good, with this change; `text` itself if it says so already.
    ///
    /// # Errors
    /// If the text is no JSON object, or a key has a value of another kind than it must have.
    pub fn apply(&self, text: &str) -> Result<String, String> {
        let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| error.to_string())?;
        let policy = root.object_value().ok_or("is no JSON object")?;
        match self {
            Self::Allow { mac, note } => allow(&policy, *mac, *note)?,
            Self::Deny { mac } => deny(&policy, *mac)?,
        }
        Ok(root.to_string())
    }
}

/// The policy `text`, which is good, as one for other phones: without names, and without what only one can have or share.
///
/// # Errors
/// If the text is no JSON object.
pub fn for_others(text: &str) -> Result<String, String> {
    let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| error.to_string())?;
    let policy = root.object_value().ok_or("is no JSON object")?;
    for key in ["description", "denied", "aliases", "shared"] {
        policy.get(key).into_iter().for_each(CstObjectProp::remove);
    }
    if let Some(phones) = policy.get("phones").filter(|phones| !is_any(phones)) {
        phones.set_value(CstInputValue::Object(Vec::new()));
    }
    Ok(root.to_string())
}

fn allow(policy: &CstObject, mac: MacAddress, note: Option<&str>) -> Result<(), String> {
    if let Some(denied) = array(policy, "denied")? {
        denied.elements().into_iter().filter(|element| is_address(element, mac)).for_each(CstNode::remove);
    }
    let value = |note: &str| CstInputValue::String(note.to_owned());
    let phones = match policy.get("phones") {
        Some(phones) if is_any(&phones) => return Ok(()),
        Some(phones) => phones.object_value().ok_or("\"phones\" is neither a map nor \"any\"")?,
        None => policy.object_value_or_set("phones"),
    };
    let is_it = |phone: &CstObjectProp| phone.decoded_name().is_some_and(|name| name.parse() == Ok(mac));
    match (phones.properties().into_iter().find(is_it), note) {
        (Some(phone), Some(note)) => phone.set_value(value(note)),
        (Some(_), None) => {}
        (None, note) => {
            phones.append(&mac.to_string(), value(note.unwrap_or_default()));
        }
    }
    Ok(())
}

fn deny(policy: &CstObject, mac: MacAddress) -> Result<(), String> {
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
    let array = |value: CstObjectProp| value.array_value().ok_or_else(|| format!("\"{key}\" is no list"));
    policy.get(key).map(array).transpose()
}

fn text_of(node: &CstNode) -> Option<String> {
    node.as_string_lit()?.decoded_value().ok()
}

fn is_any(phones: &CstObjectProp) -> bool {
    phones.value().and_then(|value| text_of(&value)).as_deref() == Some("any")
}

/// Whether an element of a list is this address, in whatever spelling.
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
        Change::Allow { mac: mac(), note }.apply(text).unwrap()
    }

    fn deny(text: &str) -> String {
        Change::Deny { mac: mac() }.apply(text).unwrap()
    }

    #[test]
    fn an_empty_policy_gets_its_first_phone() {
        let expected = "{\n  \"phones\": {\n    \"00005e00530c\": \"the kitchen\"\n  }\n}\n";
        assert_eq!(allow(EMPTY, Some("the kitchen")), expected);
        assert_eq!(deny(EMPTY), "{\n  \"denied\": [\"00005e00530c\"]\n}\n");
        assert_eq!(
            allow("{}", Some("a \"quoted\" ä\\")).parse::<serde_json::Value>().unwrap()["phones"]["00005e00530c"],
            "a \"quoted\" ä\\"
        );
    }

    #[test]
    fn everything_else_stays_as_it_was_typed() {
        let before = "{\r\n\t\"uploads\" : {\"max_phone_files\":3},\r\n\t\"phones\": {\r\n\t\t\"00:00:5E:00:53:C7\":   \"b\"\r\n\t},\r\n\t\"denied\": [\"00-00-5E-00-53-0C\", \"00005e0053ff\"]\r\n}";
        let after = "{\r\n\t\"uploads\" : {\"max_phone_files\":3},\r\n\t\"phones\": {\r\n\t\t\"00:00:5E:00:53:C7\":   \"b\",\r\n\t\t\"00005e00530c\": \"a\"\r\n\t},\r\n\t\"denied\": [ \"00005e0053ff\"]\r\n}";
        assert_eq!(allow(before, Some("a")), after);
        // A map on one line gets a line for each phone.
        let one_line = r#"{ "phones": { "00005e0053c7": "b" }, "denied": [] }"#;
        let lines = "{ \"phones\": {\n    \"00005e0053c7\": \"b\",\n    \"00005e00530c\": \"a\"\n  }, \"denied\": [] }";
        assert_eq!(allow(one_line, Some("a")), lines);
        assert_eq!(deny(one_line), r#"{ "phones": { "00005e0053c7": "b" }, "denied": ["00005e00530c"] }"#);
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        let spelled = r#"{"phones": {"00:00:5E:00:53:0C": "old"}, "denied": ["0000.5e00.530d"]}"#;
        assert_eq!(allow(spelled, None), spelled);
        assert_eq!(allow(spelled, Some("new")), spelled.replace("old", "new"));
        let denied = r#"{"denied": ["00:00:5E:00:53:0C"]}"#;
        assert_eq!(deny(denied), denied);
        let any = r#"{"phones": "any", "denied": ["00005E00530C"]}"#;
        assert_eq!(allow(any, Some("a")), r#"{"phones": "any", "denied": []}"#);
    }

    #[test]
    fn a_policy_for_others_has_none_of_its_phones_and_names() {
        let text = "{\n  \"description\": \"d\",\n  \"trust\": [\"acme\"],\n  \"phones\": { \"00005e00530c\": \"a\" },\n  \"aliases\": [\"b\"]\n}\n";
        assert_eq!(for_others(text).unwrap(), "{\n  \"trust\": [\"acme\"],\n  \"phones\": {}\n}\n");
        assert_eq!(for_others(r#"{"phones": "any", "denied": []}"#).unwrap(), r#"{"phones": "any"}"#);
    }

    #[test]
    fn what_is_no_policy_is_not_touched() {
        for text in ["", "[]", "{", "{\"phones\": []}", "{\"phones\": \"all\"}", "{\"denied\": {}}"] {
            assert!(Change::Allow { mac: mac(), note: None }.apply(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn only_the_phone_changes(
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
            expected["phones"]["00005e00530c"] = note.into();
            proptest::prop_assert_eq!(parse(&allowed), expected);
            proptest::prop_assert_eq!(deny(&denied), denied);
        }
    }
}
