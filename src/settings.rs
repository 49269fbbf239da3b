//! Reading JSON settings so that an error says where it stands and what was probably meant.
//!
//! Pure: text in, value or [`SettingsError`] out. `provost.json` and every `constituency.json` go through [`read`].

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// One thing that is wrong with a settings file: file, line, key, reason, and the nearest valid key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError {
    file: PathBuf,
    line: Option<usize>,
    key: Option<String>,
    reason: String,
    hint: Option<String>,
}

impl SettingsError {
    /// An error of `file` as a whole.
    pub fn of_file(file: &Path, reason: impl fmt::Display) -> Self {
        Self { file: file.to_owned(), line: None, key: None, reason: reason.to_string(), hint: None }
    }

    /// An error of the top-level `key`, whose line is looked up in the file's `text`.
    pub fn of_key(file: &Path, text: &str, key: &str, reason: impl fmt::Display) -> Self {
        Self {
            file: file.to_owned(),
            line: line_of_key(text, key),
            key: Some(key.to_owned()),
            reason: reason.to_string(),
            hint: None,
        }
    }

    /// The same error with a sentence that says what to write instead.
    #[must_use]
    pub fn with_hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Where it stands: file, and line if it is known.
    #[must_use]
    pub fn place(&self) -> String {
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        format!("{}{line}", self.file.display())
    }

    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The line in the file, if it is known.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// What is wrong: key and reason.
    #[must_use]
    pub fn problem(&self) -> String {
        let key = self.key.as_ref().map(|key| format!("\"{key}\": ")).unwrap_or_default();
        format!("{key}{}", self.reason)
    }

    /// What to write instead, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// What is wrong: key, reason, and what to write instead.
    #[must_use]
    pub fn message(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
        format!("{}{hint}", self.problem())
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.message())
    }
}

/// Reads a `T` from the JSON `text` of `file`; unknown keys are errors if `T` denies them.
///
/// # Errors
/// The first thing that is wrong, with its line, its key and, for an unknown key, the nearest known one.
pub fn read<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, SettingsError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        // "?" is what serde_path_to_error calls a place that it never came to.
        describe(file, Some(path).filter(|path| path != "." && path != "?"), &error.into_inner())
    })?;
    deserializer.end().map_err(|error| describe(file, None, &error))?;
    Ok(value)
}

/// Refuses control characters, such as an escaped newline, in every string of the JSON `text` of `file`: names and paths
/// go on into units, scripts and lines of logs, where they would be something else.
///
/// # Errors
/// The first string that has one, with its line and its key.
pub fn check_without_controls(file: &Path, text: &str) -> Result<(), SettingsError> {
    read::<WithoutControls>(file, text).map(|_| ())
}

/// Any JSON whose strings, keys too, have no control characters.
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

fn describe(file: &Path, path: Option<String>, error: &serde_json::Error) -> SettingsError {
    let line = Some(error.line()).filter(|line| *line > 0);
    let full = error.to_string();
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    let reason = full.strip_suffix(&suffix).unwrap_or(&full);
    let told = |key, reason: String, hint| SettingsError { file: file.to_owned(), line, key, reason, hint };
    if let Some((unknown, known)) = unknown(reason, "field") {
        told(Some(unknown.to_owned()), "is no known key".to_owned(), Some(hint("keys", unknown, &known)))
    } else if let Some((unknown, known)) = unknown(reason, "variant") {
        // A value ("xml") or a key ("fles") that chooses one of several forms: the key above it says where it stands.
        told(path, format!("\"{unknown}\" is not known here"), Some(hint("ones", unknown, &known)))
    } else {
        told(path, in_terms_of_json(reason), None)
    }
}

/// Says in JSON's words what serde says in Rust's: nobody who writes a configuration knows how our types are called.
fn in_terms_of_json(reason: &str) -> String {
    let Some((found, expected)) = reason.split_once(", expected ") else { return reason.to_owned() };
    let found = found.replace("type: map", "type: an object").replace("type: sequence", "type: an array");
    let expected = match expected {
        "a map" => "an object",
        "a sequence" => "an array",
        expected if expected.starts_with("struct ") => "an object",
        expected => expected,
    };
    format!("{found}, expected {expected}")
}

fn hint(what: &str, unknown: &str, known: &[&str]) -> String {
    match nearest(unknown, known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("known {what}: {}", known.join(", ")),
    }
}

/// Takes serde's sentence about an unknown `kind` (field or variant) apart: what it is, and what would have been known.
fn unknown<'a>(reason: &'a str, kind: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = reason.strip_prefix("unknown ")?.strip_prefix(kind)?.strip_prefix(" `")?;
    let (unknown, expected) = rest.split_once("`, ")?;
    Some((unknown, expected.split('`').skip(1).step_by(2).collect()))
}

/// The known key that `unknown` most resembles, if it resembles one.
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
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        client_auth: Option<u8>,
        #[serde(default)]
        uploads: Option<Inner>,
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
    fn a_good_text_is_read() {
        let sample: Sample =
            read(Path::new("c.json"), r#"{"client_auth": 1, "uploads": {"max_file_bytes": 7}}"#).unwrap();
        assert_eq!((sample.client_auth, sample.uploads.unwrap().max_file_bytes), (Some(1), 7));
    }

    #[test]
    fn a_value_of_another_type_is_told_in_the_words_of_json() {
        let told = |text: &str| error(text).rsplit_once(": ").unwrap().1.to_owned();
        assert_eq!(told(r#"{"uploads": true}"#), "boolean `true`, expected an object");
        assert_eq!(told(r#"{"client_auth": {}}"#), "an object, expected u8");
        assert_eq!(told(r#"{"client_auth": []}"#), "an array, expected u8");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
        assert_eq!(
            error("{\n \"clientauth\": 1}"),
            "c.json:2: \"clientauth\": is no known key; did you mean \"client_auth\"?"
        );
        assert_eq!(
            error("{\n\n \"uploads\": {\"max_file_byte\": 1}}"),
            "c.json:3: \"max_file_byte\": is no known key; did you mean \"max_file_bytes\"?"
        );
        assert!(error(r#"{"zzz": 1}"#).ends_with("known keys: client_auth, uploads"));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        let text = error("{\"client_auth\": 1,\n\"uploads\": {\"max_file_bytes\": \"big\"}}");
        assert!(text.starts_with("c.json:2: \"uploads.max_file_bytes\": invalid type: string \"big\""), "{text}");
        assert!(error("{\"client_auth\": 1} x").contains("trailing characters"));
        assert!(error("{").contains("EOF"));
    }

    #[test]
    fn the_line_of_a_key_is_where_it_is_a_key() {
        assert_eq!(line_of_key("{\n\"a\": \"phones\",\n\"phones\" : 1}", "phones"), Some(3));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = read::<Sample>(Path::new("c.json"), &text);
        }
    }
}
