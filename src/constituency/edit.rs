//! Edits the JSON text of a policy and preserves order, indentation and spelling elsewhere. Pure.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstNode, CstObject, CstObjectProp, CstRootNode};

use super::excerpt::{Excerpt, without_denials};
use super::{Fingerprint, MacAddress, Phones, Policy};

/// The text that stands for a missing policy file.
pub(super) const EMPTY_POLICY: &str = "{\n}\n";

/// The keys of a phone's object.
const NOTE: &str = "note";
const PIN: &str = "certificate_sha256";

/// A change of a policy.
#[derive(Debug, Clone, Copy)]
pub enum PolicyChange<'a> {
    /// Lists phones, and removes them from `denied`.
    Allow(&'a [AllowedPhone<'a>]),
    /// Lists a phone with a pinned certificate, and removes it from `denied`.
    Pin {
        phone: AllowedPhone<'a>,
        /// The fingerprint of the certificate.
        certificate: Fingerprint,
    },
    /// Denies phones, and removes their pins.
    Deny(&'a [MacAddress]),
}

/// A phone to put on a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedPhone<'a> {
    pub mac: MacAddress,
    /// The new note; `None` keeps the existing one.
    pub note: Option<&'a str>,
}

/// What a change does to one phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhoneDiff {
    pub mac: MacAddress,
    pub effect: PhoneEffect,
    /// Whether the policy denied it before.
    pub was_denied: bool,
}

/// The effect of a change on one phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PhoneEffect {
    Unchanged,
    Added,
    /// It was listed with this other note.
    Noted {
        before: String,
    },
    /// It was listed, and denied.
    DenialLifted,
    Pinned,
    Denied,
}

/// The edits of a policy's text that a change needs.
#[derive(Debug, Default)]
pub(super) struct Edits<'a> {
    /// To add, or to give this note.
    allowed: Vec<AllowedPhone<'a>>,
    pinned: Option<(AllowedPhone<'a>, Fingerprint)>,
    /// To add to `denied`.
    denied: Vec<MacAddress>,
    /// To remove from `denied`, sorted.
    undenied: Vec<MacAddress>,
    unpinned: Vec<MacAddress>,
}

#[cfg(test)]
thread_local! {
    /// The length of the text that this thread last had in a syntax tree: tests count work by it.
    static IN_TREE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl PolicyChange<'_> {
    /// The phones that it concerns, sorted.
    pub(super) fn macs(&self) -> Vec<MacAddress> {
        let mut macs = match self {
            Self::Allow(phones) => phones.iter().map(|phone| phone.mac).collect(),
            Self::Pin { phone, .. } => vec![phone.mac],
            Self::Deny(macs) => macs.to_vec(),
        };
        macs.sort_unstable();
        macs
    }
}

impl<'a> Edits<'a> {
    /// Plans `change` of `policy`: the edits, and the effect on each phone.
    ///
    /// # Errors
    /// If a MAC address cannot be a phone's, or a pin cannot be valid.
    pub(super) fn plan(change: PolicyChange<'a>, policy: &Policy) -> Result<(Self, Vec<PhoneDiff>), String> {
        let mut edits = Self::default();
        let mut diffs = match change {
            PolicyChange::Allow(phones) => {
                phones.iter().map(|phone| edits.allow(*phone, policy)).collect::<Result<_, _>>()?
            }
            PolicyChange::Pin { phone, certificate } => vec![edits.pin(phone, certificate, policy)?],
            PolicyChange::Deny(macs) => macs.iter().map(|mac| edits.deny(*mac, policy)).collect::<Vec<_>>(),
        };
        edits.undenied.sort_unstable();
        diffs.sort_by_key(|diff| diff.mac);
        Ok((edits, diffs))
    }

    fn allow(&mut self, phone: AllowedPhone<'a>, policy: &Policy) -> Result<PhoneDiff, String> {
        let was_denied = self.lift_denial(phone.mac, policy)?;
        let effect = match &policy.phones {
            Phones::Any => PhoneEffect::Unchanged,
            Phones::Listed(listed) => match (listed.get(&phone.mac), phone.note) {
                (None, _) => PhoneEffect::Added,
                (Some(before), Some(note)) if before != note => PhoneEffect::Noted { before: before.clone() },
                (Some(_), _) => PhoneEffect::Unchanged,
            },
        };
        if effect != PhoneEffect::Unchanged {
            self.allowed.push(phone);
        }
        Ok(PhoneDiff { mac: phone.mac, effect: effect.or_lifted(was_denied), was_denied })
    }

    /// Removes the denial of `mac` if `policy` has one; returns whether it has.
    ///
    /// # Errors
    /// If the address cannot be a phone's.
    pub(super) fn lift_denial(&mut self, mac: MacAddress, policy: &Policy) -> Result<bool, String> {
        mac.check_phone().map_err(|error| error.to_string())?;
        let was_denied = policy.denied.contains(&mac);
        self.undenied.extend(was_denied.then_some(mac));
        Ok(was_denied)
    }

    fn pin(&mut self, phone: AllowedPhone<'a>, certificate: Fingerprint, policy: &Policy) -> Result<PhoneDiff, String> {
        let PhoneDiff { mac, effect, was_denied } = self.allow(phone, policy)?;
        self.allowed.clear();
        if policy.phones == Phones::Any {
            return Err(
                "\"phones\" is \"any\", so no phone can have a pinned certificate; list the phones instead".to_owned()
            );
        }
        let is_pinned = policy.pins.get(&mac) == Some(&certificate);
        if is_pinned && matches!(effect, PhoneEffect::Unchanged | PhoneEffect::DenialLifted) {
            return Ok(PhoneDiff { mac, effect, was_denied });
        }
        self.pinned = Some((phone, certificate));
        Ok(PhoneDiff { mac, effect: PhoneEffect::Pinned, was_denied })
    }

    fn deny(&mut self, mac: MacAddress, policy: &Policy) -> PhoneDiff {
        let was_denied = policy.denied.contains(&mac);
        let is_pinned = policy.pins.contains_key(&mac);
        self.denied.extend((!was_denied).then_some(mac));
        self.unpinned.extend(is_pinned.then_some(mac));
        let effect = if was_denied && !is_pinned { PhoneEffect::Unchanged } else { PhoneEffect::Denied };
        PhoneDiff { mac, effect, was_denied }
    }

    /// A key that neither `text` nor a new note is.
    fn unused_key(&self, text: &str) -> String {
        let is_unused =
            |key: &String| !text.contains(key) && !self.allowed.iter().any(|phone| phone.note == Some(key.as_str()));
        // There are more of these keys than text.
        let mut keys = (0..=text.len() + self.allowed.len()).map(|number| format!("provost-{number}"));
        keys.find(is_unused).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        let Self { allowed, pinned, denied, undenied, unpinned } = self;
        allowed.is_empty() && pinned.is_none() && denied.is_empty() && undenied.is_empty() && unpinned.is_empty()
    }

    /// Applies the edits to `text`: the policy that they were planned for, or an excerpt of it.
    ///
    /// # Errors
    /// If the text is not a JSON object, or a value has the wrong type.
    pub(super) fn apply(&self, text: &str) -> Result<String, String> {
        let text = match self.undenied.as_slice() {
            [] => Cow::Borrowed(text),
            macs => Cow::Owned(without_denials(text, macs).ok_or("is not a JSON object")?),
        };
        // The phones whose entries change. A syntax tree costs much memory per entry.
        let mut macs: Vec<MacAddress> = self.allowed.iter().map(|phone| phone.mac).collect();
        macs.extend(self.pinned.iter().map(|(phone, _)| phone.mac));
        macs.extend(&self.unpinned);
        macs.sort_unstable();
        let excerpt = Excerpt::of(&text, &macs);
        let edited = self.edit(excerpt.as_str())?;
        excerpt.expand(&edited).map_or_else(|| self.edit(&text), Ok)
    }

    fn edit(&self, text: &str) -> Result<String, String> {
        let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| error.to_string())?;
        let policy = root.object_value().ok_or("is not a JSON object")?;
        let stand_in = self.unused_key(text);
        let mut more = Vec::new();
        if !self.allowed.is_empty() {
            more = allow(&policy, &self.allowed, &stand_in)?;
        }
        if let Some((phone, certificate)) = self.pinned {
            pin(&policy, phone, certificate)?;
        }
        if !self.unpinned.is_empty() {
            unpin(&policy, &self.unpinned);
        }
        if !self.denied.is_empty() {
            more = deny(&policy, &self.denied, &stand_in)?;
        }
        let edited = root.to_string();
        #[cfg(test)]
        IN_TREE.set(edited.len());
        if more.is_empty() {
            Ok(edited)
        } else {
            insert(&edited, &stand_in, &more).ok_or("cannot be edited".to_owned())
        }
    }
}

impl PhoneEffect {
    /// The effect on a phone whose denial is lifted too, if `is_lifted`.
    pub(super) fn or_lifted(self, is_lifted: bool) -> Self {
        match self {
            Self::Unchanged if is_lifted => Self::DenialLifted,
            effect => effect,
        }
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

/// An entry to insert into the text: its key, and its value if it is a property.
type NewEntry = (MacAddress, Option<String>);

/// Adds `phones`, or gives them their notes. Of several new ones, only the first gets into the tree, then `stand_in`: an
/// insertion into the tree visits all entries behind it. Returns those that `stand_in` stands for.
fn allow(policy: &CstObject, phones: &[AllowedPhone<'_>], stand_in: &str) -> Result<Vec<NewEntry>, String> {
    let listed = match policy.get("phones") {
        Some(listed) => listed.object_value().ok_or("\"phones\" is not an object")?,
        None => policy.object_value_or_set("phones"),
    };
    let by_mac = entries(&listed);
    let mut new = Vec::new();
    for AllowedPhone { mac, note } in phones {
        match (by_mac.get(mac), note) {
            (Some(phone), Some(note)) => match phone.object_value() {
                Some(entry) => set(&entry, NOTE, note),
                None => phone.set_value(text(note)),
            },
            (Some(_), None) => {}
            (None, note) => new.push((*mac, note.unwrap_or_default())),
        }
    }
    let Some(((mac, note), more)) = new.split_first() else { return Ok(Vec::new()) };
    listed.append(&mac.to_string(), text(note));
    if !more.is_empty() {
        listed.append(stand_in, text(""));
    }
    more.iter().map(|(mac, note)| Ok((*mac, Some(json(note)?)))).collect()
}

fn pin(policy: &CstObject, phone: AllowedPhone<'_>, certificate: Fingerprint) -> Result<(), String> {
    allow(policy, &[phone], "")?;
    let listed = policy.object_value("phones").ok_or("\"phones\" is not an object")?;
    let phone = entries(&listed).remove(&phone.mac).ok_or("cannot be edited")?;
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

/// Removes the pins of phones and keeps their notes.
fn unpin(policy: &CstObject, macs: &[MacAddress]) {
    let Some(listed) = policy.object_value("phones") else { return };
    let by_mac = entries(&listed);
    for phone in macs.iter().filter_map(|mac| by_mac.get(mac)) {
        let Some(entry) = phone.object_value() else { continue };
        let note = entry.get(NOTE).and_then(|note| text_of(&note.value()?)).unwrap_or_default();
        phone.set_value(text(&note));
    }
}

/// Adds `macs` to `denied`, as [`allow`] does.
fn deny(policy: &CstObject, macs: &[MacAddress], stand_in: &str) -> Result<Vec<NewEntry>, String> {
    let denied = match policy.get("denied") {
        Some(denied) => denied.array_value().ok_or("\"denied\" is not a list")?,
        None => policy.array_value_or_set("denied"),
    };
    let Some((mac, more)) = macs.split_first() else { return Ok(Vec::new()) };
    denied.append(CstInputValue::String(mac.to_string()));
    if !more.is_empty() {
        denied.append(text(stand_in));
    }
    Ok(more.iter().map(|mac| (*mac, None)).collect())
}

/// Puts `entries` in the place of the entry `stand_in` of `text`, each on a line of its own if that entry has one.
fn insert(edited: &str, stand_in: &str, entries: &[NewEntry]) -> Option<String> {
    let (before, behind) = edited.split_once(&format!("\"{stand_in}\""))?;
    let is_property = entries.iter().any(|(_, value)| value.is_some());
    let (colon, behind) = if is_property { behind.split_once("\"\"")? } else { ("", behind) };
    let line = before.rfind('\n').map(|at| before.split_at(at + 1));
    let separator = match line {
        Some((above, indent)) if indent.trim().is_empty() => {
            let line_end = if above.ends_with("\r\n") { "\r\n" } else { "\n" };
            format!(",{line_end}{indent}")
        }
        _ => ", ".to_owned(),
    };
    let mut whole = String::with_capacity(edited.len() + entries.len() * 40);
    whole.push_str(before);
    for (number, (mac, value)) in entries.iter().enumerate() {
        let separator = if number == 0 { "" } else { &separator };
        let value = value.as_deref().unwrap_or_default();
        // Writing to a String does not fail.
        let _ = write!(whole, "{separator}\"{mac}\"{colon}{value}");
    }
    whole.push_str(behind);
    Some(whole)
}

/// `note` as a JSON string.
fn json(note: &str) -> Result<String, String> {
    serde_json::to_string(note).map_err(|error| error.to_string())
}

/// The entries of the map by phone, in any spelling of the MAC address.
fn entries(phones: &CstObject) -> HashMap<MacAddress, CstObjectProp> {
    let entry = |phone: CstObjectProp| Some((phone.decoded_name()?.parse().ok()?, phone));
    phones.properties().into_iter().filter_map(entry).collect()
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

fn text_of(node: &CstNode) -> Option<String> {
    node.as_string_lit()?.decoded_value().ok()
}

fn is_any(phones: &CstObjectProp) -> bool {
    phones.value().and_then(|value| text_of(&value)).as_deref() == Some("any")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddress {
        "00005e00530c".parse().unwrap()
    }

    fn apply(change: PolicyChange<'_>, text: &str) -> Result<String, String> {
        let policy =
            Policy::parse("constituency.json".as_ref(), text, &["polycom"]).map_err(|error| error.to_string())?;
        Edits::plan(change, &policy)?.0.apply(text)
    }

    fn allow(text: &str, note: Option<&str>) -> String {
        apply(PolicyChange::Allow(&[AllowedPhone { mac: mac(), note }]), text).unwrap()
    }

    fn deny(text: &str) -> String {
        apply(PolicyChange::Deny(&[mac()]), text).unwrap()
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
        let after = "{\r\n\t\"uploads\" : {\"max_phone_files\":3},\r\n\t\"phones\": {\r\n\t\t\"00:00:5E:00:53:C7\":   \"b\",\r\n\t\t\"00005e00530c\": \"a\"\r\n\t},\r\n\t\"denied\": [\"00005e0053ff\"]\r\n}";
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
        let pin =
            |text: &str, note| apply(PolicyChange::Pin { phone: AllowedPhone { mac: mac(), note }, certificate }, text);
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
            assert!(apply(PolicyChange::Deny(&[mac()]), text).is_err(), "{text}");
        }
    }

    /// The policy after the change of these phones, as JSON.
    fn changed(change: PolicyChange<'_>, text: &str) -> serde_json::Value {
        apply(change, text).unwrap().parse().unwrap()
    }

    #[test]
    fn several_phones_are_edited_in_the_style_of_the_file() {
        let macs: [MacAddress; 3] = ["00005e005301", "00005e005302", "00005e005303"].map(|mac| mac.parse().unwrap());
        let phones = macs.map(|mac| AllowedPhone { mac, note: Some("a \"b\"\\") });
        let allow = PolicyChange::Allow(&phones);
        let text = "{\r\n\t\"phones\": {\r\n\t\t\"00:00:5E:00:53:01\": \"b\"\r\n\t},\r\n\t\"denied\": [\r\n\t\t\"00005E005303\",\r\n\t\t\"00005e0053ff\",\r\n\t\t\"00005e005302\"\r\n\t]\r\n}\r\n";
        let note = "\"a \\\"b\\\"\\\\\"";
        let after = format!(
            "{{\r\n\t\"phones\": {{\r\n\t\t\"00:00:5E:00:53:01\": {note},\r\n\t\t\"00005e005302\": {note},\r\n\t\t\"00005e005303\": {note}\r\n\t}},\r\n\t\"denied\": [\r\n\t\t\"00005e0053ff\"\r\n\t]\r\n}}\r\n"
        );
        assert_eq!(apply(allow, text).unwrap(), after);
        assert_eq!(apply(allow, &after).unwrap(), after, "again");
        let denied = apply(PolicyChange::Deny(&macs), &after).unwrap();
        let list = "[\r\n\t\t\"00005e0053ff\",\r\n\t\t\"00005e005301\",\r\n\t\t\"00005e005302\",\r\n\t\t\"00005e005303\"\r\n\t]";
        assert_eq!(denied, after.replace("[\r\n\t\t\"00005e0053ff\"\r\n\t]", list));
        assert_eq!(apply(allow, &denied).unwrap(), after);
        // Into an empty policy, a list on one line, and back.
        let denied = apply(PolicyChange::Deny(&macs), EMPTY_POLICY).unwrap();
        assert_eq!(denied, "{\n  \"denied\": [\"00005e005301\", \"00005e005302\", \"00005e005303\"]\n}\n");
        let both = changed(allow, &denied);
        assert_eq!((both["phones"].as_object().unwrap().len(), &both["denied"]), (3, &serde_json::json!([])));
        let first = apply(PolicyChange::Allow(&phones[..1]), &denied).unwrap();
        assert!(first.contains("\"denied\": [\"00005e005302\", \"00005e005303\"]"), "{first}");
        let last = apply(PolicyChange::Allow(&phones[1..]), &denied).unwrap();
        assert!(last.contains("\"denied\": [\"00005e005301\"]"), "{last}");
    }

    /// The lengths of the texts in the syntax tree, when `count` phones are added beside as many, denied, and allowed again.
    fn in_tree(count: u64) -> [usize; 3] {
        let phones = |from: u64| -> Vec<MacAddress> { (0..count).map(|number| mac().plus(from + number)).collect() };
        let allowed = |macs: &[MacAddress]| -> Vec<AllowedPhone<'static>> {
            macs.iter().map(|mac| AllowedPhone { mac: *mac, note: Some("a phone") }).collect()
        };
        let apply = |change, text: &str| (apply(change, text).unwrap(), IN_TREE.replace(0));
        let (old, new) = (phones(0), phones(1 << 20));
        let (allowed_old, allowed_new) = (allowed(&old), allowed(&new));
        let (text, _) = apply(PolicyChange::Allow(&allowed_old), EMPTY_POLICY);
        let (text, added) = apply(PolicyChange::Allow(&allowed_new), &text);
        let (text, denied) = apply(PolicyChange::Deny(&new), &text);
        let (text, lifted) = apply(PolicyChange::Allow(&allowed_new), &text);
        let policy: serde_json::Value = text.parse().unwrap();
        let listed = policy["phones"].as_object().unwrap().len() as u64;
        assert_eq!((listed, &policy["denied"]), (2 * count, &serde_json::json!([])));
        [added, denied, lifted]
    }

    #[test]
    fn syntax_tree_is_as_large_for_10_000_new_phones_as_for_10() {
        let sizes = in_tree(10);
        assert_eq!(in_tree(10_000), sizes);
        assert!(sizes.iter().all(|size| *size < 1000), "{sizes:?}");
    }

    #[test]
    fn effects_say_what_a_change_does_to_each_phone() {
        let text =
            r#"{"phones": {"00005e005301": "a", "00005e005302": "b", "00005e005303": ""}, "denied": ["00005e005303"]}"#;
        let policy = Policy::parse("constituency.json".as_ref(), text, &["polycom"]).unwrap();
        let phone = |mac: &str, note| AllowedPhone { mac: mac.parse().unwrap(), note };
        let phones = [
            phone("00005e005304", None),
            phone("00005e005301", None),
            phone("00005e005302", Some("c")),
            phone("00005e005303", None),
        ];
        let (_, diffs) = Edits::plan(PolicyChange::Allow(&phones), &policy).unwrap();
        let effects: Vec<&PhoneEffect> = diffs.iter().map(|diff| &diff.effect).collect();
        let noted = PhoneEffect::Noted { before: "b".to_owned() };
        assert_eq!(effects, [&PhoneEffect::Unchanged, &noted, &PhoneEffect::DenialLifted, &PhoneEffect::Added]);
        let macs = ["00005e005303", "00005e005301"].map(|mac| mac.parse().unwrap());
        let (edits, diffs) = Edits::plan(PolicyChange::Deny(&macs), &policy).unwrap();
        let effects: Vec<&PhoneEffect> = diffs.iter().map(|diff| &diff.effect).collect();
        assert_eq!((effects, edits.denied.len()), (vec![&PhoneEffect::Denied, &PhoneEffect::Unchanged], 1));
        assert!(Edits::plan(PolicyChange::Deny(&macs[..1]), &policy).unwrap().0.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn edit_of_several_phones_equals_single_edits(
            phones in proptest::collection::btree_map("0000[0-9a-f]{8}", "\\PC{0,8}", 0..6),
            denied in proptest::collection::btree_set("0000[0-9a-f]{8}", 0..4),
            more in proptest::collection::btree_map("0000[0-9a-f]{8}", "\\PC{0,8}", 1..6),
            is_pretty: bool,
        ) {
            let before = serde_json::json!({ "phones": phones, "denied": denied });
            let text = if is_pretty { serde_json::to_string_pretty(&before) } else { serde_json::to_string(&before) };
            let text = text.unwrap();
            let of_both: Vec<MacAddress> = more.keys().chain(&denied).map(|mac| mac.parse().unwrap()).collect();
            let of_both: Vec<MacAddress> = std::collections::BTreeSet::from_iter(of_both).into_iter().collect();
            proptest::prop_assume!(!of_both.contains(&MacAddress::ZERO) && !phones.contains_key("000000000000"));
            let allowed: Vec<AllowedPhone> =
                more.iter().map(|(mac, note)| AllowedPhone { mac: mac.parse().unwrap(), note: Some(note) }).collect();
            let allow = PolicyChange::Allow(&allowed);
            let each = allowed.iter().fold(text.clone(), |text, phone| {
                apply(PolicyChange::Allow(&[*phone]), &text).unwrap()
            });
            proptest::prop_assert_eq!(changed(allow, &text), each.parse::<serde_json::Value>().unwrap());
            let deny = PolicyChange::Deny(&of_both);
            let each = of_both.iter().fold(text.clone(), |text, mac| apply(PolicyChange::Deny(&[*mac]), &text).unwrap());
            proptest::prop_assert_eq!(apply(deny, &text).unwrap(), each);
        }

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
                let edits = Edits { allowed: vec![AllowedPhone { mac: mac(), note: Some(&note) }], ..Edits::default() };
                let text = without_denials(&denied, &[mac()]).unwrap();
                proptest::prop_assert_eq!(edits.edit(&text).unwrap(), allowed, "as without an excerpt");
            }
        }
    }
}
