//! Golden files: what a test finds, compared line by line with a text file in `tests/suite/outputs`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::Stopwatch;
use super::tool::run;

/// If this variable is 1, the files are written instead of compared.
const ACCEPT: &str = "PROVOST_ACCEPT_OUTPUTS";
/// When the files are written: how many times in a row the same lines must be found.
const STABLE_LOOKS: usize = 5;
/// The time between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Lines in any order, each once.
pub type Lines = BTreeSet<String>;

/// The comparisons of one test. All are made before the test fails.
#[derive(Default)]
pub struct Golden {
    differences: Vec<String>,
}

impl Golden {
    pub fn check(&mut self, name: &str, lines: impl IntoIterator<Item = String>) {
        let (file, found) = (file_of(name), text(lines));
        if is_accepted() {
            std::fs::write(&file, found).unwrap();
        } else if found != expected(&file) {
            self.differences.push(difference(&file, &found));
        }
    }

    /// The same, where logs, metrics and the phone history lag behind the requests that they are about: `find` is
    /// repeated until its lines equal the file's.
    pub fn check_eventually<T: IntoIterator<Item = String>>(&mut self, name: &str, mut find: impl FnMut() -> T) {
        let expected = expected(&file_of(name));
        let (mut last, mut stable, watch) = (None, 0, Stopwatch::start());
        let lines = loop {
            let found: Vec<String> = find().into_iter().collect();
            stable = if last.as_ref() == Some(&found) { stable + 1 } else { 0 };
            let is_done = if is_accepted() { stable >= STABLE_LOOKS } else { text(found.clone()) == expected };
            if is_done || watch.is_over() {
                break found;
            }
            last = Some(found);
            std::thread::sleep(PAUSE);
        };
        self.check(name, lines);
    }

    /// Fails the test if any comparison failed.
    #[track_caller]
    pub fn finish(self) {
        let differences = self.differences.join("\n");
        assert!(
            differences.is_empty(),
            "outputs or inputs that other programs rely on have changed:\n{differences}\n\
             If the change is intended, accept it and commit the files:\n    \
             {ACCEPT}=1 cargo test --test suite outputs::"
        );
    }
}

fn file_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/outputs").join(name)
}

/// Whether the files are written instead of compared.
fn is_accepted() -> bool {
    std::env::var_os(ACCEPT).is_some_and(|accept| accept == "1")
}

fn text(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().map(|line| line + "\n").collect()
}

/// The content of a file; empty if it does not exist.
fn expected(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// A unified diff from `file` to what was `found`, which is kept in cargo's folder for tests.
fn difference(file: &Path, found: &str) -> String {
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file.file_name().unwrap());
    std::fs::write(&kept, found).unwrap();
    run(Command::new("diff").args(["-N", "-u"]).arg(file).arg(kept)).stdout
}

/// The paths of all values in `value`, each with its type: `phones[].last_seen: number`.
///
/// - A key in `enumerated` gives the quoted value instead of the type.
/// - A key that is data, such as a MAC address, becomes a placeholder.
/// - A value that is always null has the type `null`. A key in `changing`, whose value is null only at times, has the
///   type `?`.
pub fn paths<'a>(values: impl IntoIterator<Item = &'a Value>, enumerated: &[&str], changing: &[&str]) -> Lines {
    let mut found = BTreeSet::new();
    for value in values {
        walk(value, String::new(), "", (enumerated, changing), &mut found);
    }
    let is_more =
        |other: &str, path: &str| other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let has_other = |path: &str| found.iter().any(|(other, kind)| kind != "null" && is_more(other, path));
    let is_shown = |(path, kind): &&(String, String)| kind != "null" || !has_other(path);
    found.iter().filter(is_shown).map(|(path, kind)| format!("{path}: {kind}")).collect()
}

fn walk(
    value: &Value,
    path: String,
    key: &str,
    (enumerated, changing): (&[&str], &[&str]),
    found: &mut BTreeSet<(String, String)>,
) {
    let kind = match value {
        Value::Object(object) => {
            for (key, inner) in object {
                let name = placeholder(key);
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                walk(inner, path, key, (enumerated, changing), found);
            }
            return;
        }
        Value::Array(array) => {
            for inner in array {
                walk(inner, format!("{path}[]"), key, (enumerated, changing), found);
            }
            "array".to_owned()
        }
        _ if changing.contains(&key) => "?".to_owned(),
        Value::String(text) if enumerated.contains(&key) => format!("{text:?}"),
        Value::String(_) => "string".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Null => "null".to_owned(),
    };
    found.insert((path, kind));
}

/// A key, or the placeholder of a key that is data: a MAC address, a digest, a serial number, a URL.
pub fn placeholder(name: &str) -> String {
    let is_hex = name.len() >= 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    match name {
        _ if is_hex && name.len() == 12 => "MAC".to_owned(),
        _ if is_hex => "DIGEST".to_owned(),
        _ if name.contains("://") || name.contains("127.0.0.1") => "URL".to_owned(),
        _ if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) => "N".to_owned(),
        _ => name.to_owned(),
    }
}
