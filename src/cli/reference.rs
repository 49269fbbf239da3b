//! Documents the keys of both configuration files from their JSON Schemas: as Markdown tables for `docs/reference.md`,
//! and as manual pages of section 5.

use std::fmt::Write as _;

use roff::{Inline, Roff, bold, roman};
use serde_json::{Map, Value};

/// The text before the default value in a description.
const DEFAULT: &str = "Default: ";

/// An object of a configuration file.
pub(super) struct Section {
    /// Its path in the file, such as `certificate.acme.dns`; empty for the file itself.
    path: String,
    about: String,
    keys: Vec<Key>,
}

struct Key {
    name: String,
    /// The possible values, in Markdown.
    value: String,
    /// The section that describes the value's own keys.
    section: Option<String>,
    meaning: String,
    /// The words that are valid values, each with its meaning.
    words: Vec<(String, String)>,
    default: String,
}

/// All objects of the file that `schema` describes, outer ones first.
pub(super) fn sections(schema: &Value) -> Vec<Section> {
    let mut reader = SchemaReader { root: schema, sections: Vec::new() };
    reader.visit("", schema);
    reader.sections
}

/// The tables of all sections in Markdown, each except the first with a heading.
pub(super) fn markdown(sections: &[Section]) -> String {
    let mut text = String::new();
    for Section { path, about, keys } in sections {
        let heading = if path.is_empty() { String::new() } else { format!("### `{path}`\n\n{about}\n\n") };
        let rows: String = keys.iter().map(Key::row).collect();
        let _ = write!(text, "{heading}| key | value | meaning | default |\n|---|---|---|---|\n{rows}\n");
    }
    text.trim_end().to_owned() + "\n"
}

/// The manual page of `file`, in roff.
pub(super) fn manual_page(file: &str, sections: &[Section]) -> std::io::Result<String> {
    let mut roff = Roff::new();
    roff.control("TH", [file, "5", "", "", "provost"]);
    for (index, Section { path, about, keys }) in sections.iter().enumerate() {
        if index == 0 {
            roff.control("SH", ["NAME"]).text([roman(format!("{file} - {}", first_sentence(about)))]);
            roff.control("SH", ["DESCRIPTION"]).text([roman(about.as_str())]);
            roff.control("SH", ["KEYS"]);
        } else {
            roff.control("SH", [path.as_str()]).text([roman(about.as_str())]);
        }
        for key in keys {
            key.write_roff(&mut roff);
        }
    }
    roff.control("SH", ["SEE ALSO"]).text([bold("provost"), roman("(1)")]);
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The first sentence without its period, starting in lower case, for a NAME section.
fn first_sentence(text: &str) -> String {
    let sentence = text.split(". ").next().unwrap_or(text).trim_end_matches('.');
    let mut letters = sentence.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

impl Key {
    fn row(&self) -> String {
        let value = match &self.section {
            Some(section) => format!("[{}](#{})", self.value, anchor(section)),
            None => self.value.clone(),
        };
        let words: String = self.words.iter().map(|(word, meaning)| format!("<br>`{word}`: {meaning}")).collect();
        let cells = [format!("`{}`", self.name), value, format!("{}{words}", self.meaning), self.default.clone()];
        format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
    }

    fn write_roff(&self, roff: &mut Roff) {
        roff.control("TP", []).text([bold(self.name.as_str()), roman(format!(" ({})", plain(&self.value)))]);
        let default = match self.default.as_str() {
            "required" => "Required.".to_owned(),
            default => format!("{DEFAULT}{}.", plain(default)),
        };
        roff.text([roman(format!("{} {default}", plain(&self.meaning)))]);
        for (word, meaning) in &self.words {
            let line: [Inline; 2] = [bold(word.as_str()), roman(format!(": {}", plain(meaning)))];
            roff.control("br", []).text(line);
        }
    }
}

/// Removes Markdown's code marks, which a manual page does not render.
fn plain(text: &str) -> String {
    text.replace('`', "")
}

/// The anchor that Markdown renderers make for a heading.
fn anchor(heading: &str) -> String {
    heading.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_')).collect()
}

struct SchemaReader<'a> {
    root: &'a Value,
    sections: Vec<Section>,
}

impl<'a> SchemaReader<'a> {
    /// Adds the sections of `schema` at `path`.
    fn visit(&mut self, path: &str, schema: &'a Value) {
        let schema = self.resolved(schema);
        let keys = keys(schema);
        if !keys.is_empty() {
            let described = keys.iter().map(|(name, key, about)| self.key(path, name, key, about, schema)).collect();
            self.sections.push(Section { path: path.to_owned(), about: description(schema), keys: described });
            for (name, key, _) in keys {
                self.visit(&joined(path, name), key);
            }
            return;
        }
        if let Some(items) = schema.get("items") {
            self.visit(&format!("{path}[]"), items);
        }
        if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
            self.visit(&joined(path, "*"), values);
        }
        for alternative in alternatives(schema) {
            self.visit(path, alternative);
        }
    }

    fn key(&self, path: &str, name: &str, schema: &'a Value, about: &str, object: &Value) -> Key {
        let of_type = self.resolved(schema);
        let (meaning, default) = about.split_once(DEFAULT).unwrap_or((about, ""));
        let is_required = object["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
        let default = match schema.get("default").or_else(|| of_type.get("default")) {
            _ if !default.is_empty() => default.trim_end_matches('.').to_owned(),
            Some(value) if !value.is_null() => format!("`{}`", spaced(value)),
            _ if is_required => "required".to_owned(),
            _ => "none".to_owned(),
        };
        let words = alternatives(of_type).iter().filter_map(|one| Some((one["const"].as_str()?, description(one))));
        let mut inner = SchemaReader { root: self.root, sections: Vec::new() };
        inner.visit(&joined(path, name), schema);
        Key {
            name: name.to_owned(),
            value: self.value(of_type),
            section: inner.sections.into_iter().next().map(|section| section.path),
            meaning: meaning.trim_end().to_owned(),
            words: words.map(|(word, meaning)| (word.to_owned(), meaning)).collect(),
            default,
        }
    }

    /// The possible values.
    fn value(&self, schema: &'a Value) -> String {
        let schema = self.resolved(schema);
        let quoted = |word: &Value| format!("`{}`", word.as_str().unwrap_or_default());
        if let Some(word) = schema.get("const") {
            return quoted(word);
        }
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            return words.iter().map(quoted).collect::<Vec<String>>().join(", ");
        }
        let kinds = [&schema["type"]].into_iter().chain(schema["type"].as_array().into_iter().flatten());
        match kinds.filter_map(Value::as_str).find(|kind| *kind != "null") {
            Some("string") => "text".to_owned(),
            Some("integer") => "number".to_owned(),
            Some("boolean") => "`true`, `false`".to_owned(),
            Some("array") => "list".to_owned(),
            Some(kind) => kind.to_owned(),
            None => {
                let mut all: Vec<String> = alternatives(schema).iter().map(|one| self.value(one)).collect();
                let is_words = all.iter().all(|one| one.starts_with('`'));
                all.dedup();
                all.join(if is_words { ", " } else { " or " })
            }
        }
    }

    /// The schema that `schema` refers to. For an optional one, the alternative that is not null.
    fn resolved(&self, schema: &'a Value) -> &'a Value {
        let reference = schema.get("$ref").and_then(|reference| reference.as_str()?.strip_prefix('#'));
        if let Some(target) = reference.and_then(|pointer| self.root.pointer(pointer)) {
            return self.resolved(target);
        }
        let mut real = alternatives(schema).iter().filter(|one| one["type"] != "null");
        match (alternatives(schema).len(), real.next(), real.next()) {
            (2, Some(only), None) => self.resolved(only),
            _ => schema,
        }
    }
}

/// The keys of an object, or of all its object alternatives: name, schema, description.
fn keys(schema: &Value) -> Vec<(&String, &Value, String)> {
    if let Some(properties) = properties(schema) {
        return properties.iter().map(|(name, key)| (name, key, description(key))).collect();
    }
    let objects = alternatives(schema).iter().map(|one| Some((description(one), properties(one)?)));
    let Some(objects) = objects.collect::<Option<Vec<_>>>() else { return Vec::new() };
    objects
        .into_iter()
        .flat_map(|(about, keys)| keys.iter().map(move |(name, key)| (name, key, about.clone())))
        .collect()
}

fn alternatives(schema: &Value) -> &[Value] {
    let all = schema.get("anyOf").or_else(|| schema.get("oneOf"));
    all.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// JSON with a space after each comma of a list.
fn spaced(value: &Value) -> String {
    match value.as_array() {
        Some(items) => format!("[{}]", items.iter().map(Value::to_string).collect::<Vec<String>>().join(", ")),
        None => value.to_string(),
    }
}
