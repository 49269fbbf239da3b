//! Parses JSON settings, with errors that give the position and the probably intended key.
//!
//! Pure: text in, value or [`SettingsError`] out. [`read`] parses `provost.json` and each `constituency.json`,
//! [`read_body`] the bodies of requests.

mod json_error;
pub(crate) mod rfc3339;
mod strict;

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use json_error::JsonError;
use strict::Strict;

/// An error in a settings file: file, line, key, reason, and a hint such as the nearest valid key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError {
    file: Box<Path>,
    line: Option<usize>,
    /// The column in characters, from 1, if it is known.
    column: Option<usize>,
    key: Option<String>,
    reason: String,
    hint: Option<String>,
}

impl SettingsError {
    /// An error of `file` as a whole.
    pub fn of_file(file: &Path, reason: impl fmt::Display) -> Self {
        Self { file: file.into(), line: None, column: None, key: None, reason: reason.to_string(), hint: None }
    }

    /// An error of one line of `file`.
    pub fn of_line(file: &Path, line: usize, reason: impl fmt::Display) -> Self {
        Self { line: Some(line), ..Self::of_file(file, reason) }
    }

    /// An error of the top-level `key`. Searches the file's `text` for its line.
    pub fn of_key(file: &Path, text: &str, key: &str, reason: impl fmt::Display) -> Self {
        Self {
            file: file.into(),
            line: line_of_key(text, key),
            column: None,
            key: Some(key.to_owned()),
            reason: reason.to_string(),
            hint: None,
        }
    }

    /// Adds a remedy.
    #[must_use]
    pub fn with_hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The position: file, with line and column if known.
    #[must_use]
    pub fn location(&self) -> String {
        let numbers = [self.line, self.column].into_iter().flatten().map(|number| format!(":{number}"));
        format!("{}{}", self.file.display(), numbers.collect::<String>())
    }

    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The line, if it is known.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// The problem: key and reason.
    #[must_use]
    pub fn problem(&self) -> String {
        let key = self.key.as_ref().map(|key| format!("\"{key}\": ")).unwrap_or_default();
        format!("{key}{}", self.reason)
    }

    /// The remedy, if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The problem with its remedy.
    #[must_use]
    pub fn message(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
        format!("{}{hint}", self.problem())
    }
}

impl SettingsError {
    /// The error without the name of the file: line, column, message.
    #[must_use]
    pub fn without_file_name(&self) -> String {
        let numbers = [self.line, self.column].into_iter().flatten().map(|number| format!("{number}:"));
        let position: String = numbers.collect();
        if position.is_empty() { self.message() } else { format!("{position} {}", self.message()) }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location(), self.message())
    }
}

/// Parses the JSON `text` of `file`. Unknown keys are errors if `T` denies them.
///
/// # Errors
/// The first error, with its line, its key and, for an unknown key, the nearest known one.
pub fn read<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, SettingsError> {
    parse(text, "the file", |error| SettingsError { file: file.into(), ..error })
}

/// Parses the JSON body of a request.
///
/// # Errors
/// The first error, with its line and column in the body.
pub fn read_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the body is not UTF-8 text".to_owned())?;
    let named = |error: SettingsError| SettingsError { file: Path::new("body").into(), ..error };
    parse(text, "the body", named).map_err(|error| error.to_string())
}

/// Parses one line of a file of JSON lines.
///
/// # Errors
/// The first error, with `number` as its line, and its column.
pub fn read_line<T: DeserializeOwned>(file: &Path, number: usize, line: &str) -> Result<T, SettingsError> {
    parse(line, "the line", |error| SettingsError { file: file.into(), line: Some(number), ..error })
}

/// Parses the JSON `text`, which errors call `what`. `named` adds the file name to an error.
fn parse<T: DeserializeOwned>(
    text: &str,
    what: &str,
    named: impl Fn(SettingsError) -> SettingsError,
) -> Result<T, SettingsError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let locate = || strict::locate::<T>(text);
    let value = serde_path_to_error::deserialize(Strict::root(&mut deserializer)).map_err(|error| {
        let path = error.path().to_string();
        // serde_path_to_error uses "?" for an unknown path.
        let path = Some(path).filter(|path| path != "." && path != "?");
        named(describe(text, what, path, &error.into_inner(), locate))
    })?;
    deserializer.end().map_err(|error| named(describe(text, what, None, &error, locate)))?;
    Ok(value)
}

/// Rejects control characters, such as an escaped newline, in all strings of the JSON `text` of `file`. Names and paths
/// from it end up in systemd units, scripts and log lines, where control characters could inject text.
///
/// # Errors
/// The first string with a control character, with its line and key.
pub fn check_without_controls(file: &Path, text: &str) -> Result<(), SettingsError> {
    read::<WithoutControls>(file, text).map(|_| ())
}

/// Any JSON whose strings, including keys, have no control characters.
struct WithoutControls;

impl<'de> Deserialize<'de> for WithoutControls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Anything;
        impl<'de> Visitor<'de> for Anything {
            type Value = WithoutControls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<WithoutControls, E> {
                if text.chars().any(char::is_control) {
                    Err(E::custom(format_args!("{text:?} has a control character, which no name or path may have")))
                } else {
                    Ok(WithoutControls)
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<WithoutControls, A::Error> {
                while all.next_element::<WithoutControls>()?.is_some() {}
                Ok(WithoutControls)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<WithoutControls, A::Error> {
                while all.next_entry::<WithoutControls, WithoutControls>()?.is_some() {}
                Ok(WithoutControls)
            }

            fn visit_unit<E>(self) -> Result<WithoutControls, E> {
                Ok(WithoutControls)
            }

            fn visit_bool<E>(self, _: bool) -> Result<WithoutControls, E> {
                Ok(WithoutControls)
            }

            fn visit_u64<E>(self, _: u64) -> Result<WithoutControls, E> {
                Ok(WithoutControls)
            }

            fn visit_i64<E>(self, _: i64) -> Result<WithoutControls, E> {
                Ok(WithoutControls)
            }

            fn visit_f64<E>(self, _: f64) -> Result<WithoutControls, E> {
                Ok(WithoutControls)
            }
        }
        deserializer.deserialize_any(Anything)
    }
}

/// Converts an error of serde to an error without a file name.
fn describe(
    text: &str,
    what: &str,
    path: Option<String>,
    error: &serde_json::Error,
    locate: impl FnOnce() -> Option<usize>,
) -> SettingsError {
    let JsonError { line, column, reason } = JsonError::of(text, error, what, locate);
    let settings_error =
        |key, reason, hint| SettingsError { file: Path::new("").into(), line, column, key, reason, hint };
    if let Some((unknown, known)) = unknown(&reason, "field") {
        settings_error(Some(unknown.to_owned()), "unknown key".to_owned(), Some(hint(unknown, &known)))
    } else if let Some((unknown, known)) = unknown(&reason, "variant") {
        let near = nearest(unknown, &known).map(|near| format!("did you mean \"{near}\"?"));
        settings_error(path, format!("must be {}, not \"{unknown}\"", one_of(&known)), near)
    } else {
        // No key is to blame for a syntax error.
        settings_error(path.filter(|_| error.is_data()), reason, None)
    }
}

/// `one of "text", "json"`
fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!("one of {}", quoted.join(", "))
}

fn hint(unknown: &str, known: &[&str]) -> String {
    match nearest(unknown, known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None if known.is_empty() => "this object takes no keys: {}".to_owned(),
        None => format!("known keys: {}", known.join(", ")),
    }
}

/// Parses serde's message about an unknown `kind` (field or variant) into the unknown name and the known ones.
fn unknown<'a>(reason: &'a str, kind: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = reason.strip_prefix("unknown ")?.strip_prefix(kind)?.strip_prefix(" `")?;
    let (unknown, expected) = rest.split_once("`, ")?;
    Some((unknown, expected.split('`').skip(1).step_by(2).collect()))
}

/// The known key that is most similar to `unknown`, if any is similar enough.
#[must_use]
pub fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let lowered = unknown.to_ascii_lowercase().replace('-', "_");
    known
        .iter()
        .map(|key| (strsim::jaro_winkler(&lowered, key), *key))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, key)| key)
}

fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let quoted = format!("\"{key}\"");
    let is_key = |line: &str| {
        line.match_indices(&quoted)
            .any(|(at, found)| line.get(at + found.len()..).is_some_and(|rest| rest.trim_start().starts_with(':')))
    };
    text.lines().position(is_key).map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        client_auth: Option<u8>,
        #[serde(default)]
        uploads: Option<Inner>,
        #[serde(default)]
        #[expect(dead_code, reason = "only read from JSON")]
        mode: Mode,
        #[serde(default)]
        #[expect(dead_code, reason = "only read from JSON")]
        list: Vec<Inner>,
        #[serde(default)]
        #[expect(dead_code, reason = "only read from JSON")]
        map: BTreeMap<String, Named>,
    }

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        On,
        Off,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Named {
        #[expect(dead_code, reason = "only read from JSON")]
        mode: Mode,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(default)]
        max_file_bytes: u64,
    }

    fn error(text: &str) -> String {
        read::<Sample>(Path::new("c.json"), text).unwrap_err().to_string()
    }

    #[test]
    fn valid_text_is_parsed() {
        let sample: Sample =
            read(Path::new("c.json"), r#"{"client_auth": 1, "uploads": {"max_file_bytes": 7}}"#).unwrap();
        assert_eq!((sample.client_auth, sample.uploads.unwrap().max_file_bytes), (Some(1), 7));
    }

    #[test]
    fn type_error_has_line_column_and_key() {
        let table = [
            ("[1, null]", ":1:1: must be an object, not a list"),
            (" []", ":1:2: must be an object, not a list"),
            ("\"x\"", ":1:1: must be an object, not a string"),
            ("\n 7", ":2:2: must be an object, not 7"),
            (r#"{"client_auth": {}}"#, ":1:17: \"client_auth\": must be a whole number from 0 to 255, not an object"),
            (r#"{"client_auth":[]}"#, ":1:16: \"client_auth\": must be a whole number from 0 to 255, not a list"),
            (r#"{"client_auth": 256}"#, ":1:17: \"client_auth\": must be a whole number from 0 to 255, not 256"),
            ("{\"uploads\":\n\n [\n1]}", ":3:2: \"uploads\": must be an object, not a list"),
            (r#"{"uploads": true}"#, ":1:13: \"uploads\": must be an object, not true"),
            (
                r#"{"uploads": {"max_file_bytes": null}}"#,
                ":1:32: \"uploads.max_file_bytes\": must be a whole number that is not negative, not null",
            ),
            (r#"{"mode": true}"#, ":1:10: \"mode\": must be one of \"on\", \"off\", not true"),
            (r#"{"mode": null}"#, ":1:10: \"mode\": must be one of \"on\", \"off\", not null"),
            (r#"{"mode": 1.5}"#, ":1:10: \"mode\": must be one of \"on\", \"off\", not 1.5"),
            (r#"{"mode": {"on": null}}"#, ":1:10: \"mode\": must be one of \"on\", \"off\", not an object"),
            (r#"{"mode": ["on"]}"#, ":1:10: \"mode\": must be one of \"on\", \"off\", not a list"),
            (r#"{"mode": "zzz"}"#, ":1:10: \"mode\": must be one of \"on\", \"off\", not \"zzz\""),
            (
                r#"{"mode": "onn"}"#,
                ":1:10: \"mode\": must be one of \"on\", \"off\", not \"onn\"; did you mean \"on\"?",
            ),
            (r#"{"list": [{}, []]}"#, ":1:15: \"list[1]\": must be an object, not a list"),
            (r#"{"list": [{} , [7]]}"#, ":1:16: \"list[1]\": must be an object, not a list"),
            (r#"{"list": {}}"#, ":1:10: \"list\": must be a list, not an object"),
            (r#"{"map": {"ä" : {"mode": "on"}, "b": ["on"]}}"#, ":1:37: \"map.b\": must be an object, not a list"),
            (r#"{"map": {"b": {}}}"#, ":1:15: \"map.b\": the key \"mode\" is missing"),
            ("{\"list\": [],\n \"list\": []}", ":2:2: duplicate key \"list\""),
        ];
        for (text, expected) in table {
            assert_eq!(error(text), format!("c.json{expected}"), "{text}");
        }
        assert_eq!(table.len(), 23);
    }

    #[test]
    fn unknown_key_has_line_and_suggestion() {
        assert_eq!(
            error("{\n \"clientauth\": 1}"),
            "c.json:2:2: \"clientauth\": unknown key; did you mean \"client_auth\"?"
        );
        assert_eq!(
            error("{\n\n \"uploads\": {\"max_file_byte\": 1}}"),
            "c.json:3:14: \"max_file_byte\": unknown key; did you mean \"max_file_bytes\"?"
        );
        assert!(error(r#"{"zzz": 1}"#).ends_with("known keys: client_auth, uploads, mode, list, map"));
    }

    #[test]
    fn invalid_value_has_its_key() {
        let text = error("{\"client_auth\": 1,\n\"uploads\": {\"max_file_bytes\": \"big\"}}");
        assert!(
            text.starts_with(
                "c.json:2:31: \"uploads.max_file_bytes\": must be a whole number that is not negative, not a string"
            ),
            "{text}"
        );
        assert_eq!(error("{\"client_auth\": 1} x"), "c.json:1:20: unexpected text after the end of the object");
        assert_eq!(error("{\n"), "c.json:1:1: the file ends before the closing }");
        assert_eq!(
            error("{\"uploads\": {\n// x\n}}"),
            "c.json:2:1: a comment (// or /* */): JSON has no comments; remove it"
        );
    }

    #[test]
    fn body_errors_have_the_format_of_file_errors() {
        let error = |body: &[u8]| read_body::<Sample>(body).unwrap_err();
        assert_eq!(error(b"{\"client_auth\": 1"), "body:1:17: the body ends before the closing }");
        assert_eq!(error(b"{\"client_auth\": 1,}"), "body:1:19: trailing comma: remove the comma before this }");
        assert_eq!(
            error(b"{\"clientauth\": 1}"),
            "body:1:2: \"clientauth\": unknown key; did you mean \"client_auth\"?"
        );
        assert_eq!(error(b"\xff"), "the body is not UTF-8 text");
        assert_eq!(read_body::<Sample>(b"{\"client_auth\": 1}").unwrap().client_auth, Some(1));
    }

    #[test]
    fn line_of_key_ignores_values() {
        assert_eq!(line_of_key("{\n\"a\": \"phones\",\n\"phones\" : 1}", "phones"), Some(3));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = read::<Sample>(Path::new("c.json"), &text);
        }
    }
}
