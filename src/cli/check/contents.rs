//! What is in the files: XML that phones can read, nothing in a common file that one phone alone should know, and no file
//! that nobody gets.

use std::collections::BTreeMap;

use super::few::{report, some_of};
use super::masters::Read;
use super::secrets::{Secret, private_key, secret};
use super::shelf::{Content, Found, LARGEST, Shelf, read};
use super::{Finding, Level};
use crate::constituency::{ClientAuth, MacAddress, Phones, Standing};
use crate::phone::master::{self, MasterError};
use crate::serve::path::{self, ServedPath};

/// How many secrets of one file are named one by one.
const SECRETS: usize = 10;
/// The longest name of a parameter that is shown, in characters.
const NAME: usize = 80;

/// Looks into `files`, all that lie in the folder.
pub(super) fn check(shelf: &Shelf<'_>, files: &[String], named: &Read, findings: &mut Vec<Finding>) {
    let mut found = Vec::new();
    let mut nobodys: BTreeMap<MacAddress, Vec<&str>> = BTreeMap::new();
    for file in files {
        match reader(shelf, file) {
            Ok(reader) if is_read(file, named) => look_into(shelf, file, reader, named, &mut found),
            Ok(reader) => look_for_key(shelf, file, reader, &mut found),
            Err(mac) => nobodys.entry(mac).or_default().push(file),
        }
    }
    report(shelf, found, "findings about files", findings);
    let nobodys = nobodys.into_iter().map(|(mac, files)| of_nobody(shelf, mac, &files)).collect();
    report(shelf, nobodys, "phones with files that they do not get", findings);
}

/// Who reads `file`: anybody who is let in, or one phone; or the phone that does not get it.
fn reader(shelf: &Shelf<'_>, file: &str) -> Result<Option<MacAddress>, MacAddress> {
    let mut macs = path::macs_in(file);
    let Some(first) = macs.next() else { return Ok(None) };
    let constituency = shelf.constituency;
    let is_served = constituency.policy.tls.client_auth != ClientAuth::None
        && constituency.standing(first) == Standing::Known
        && macs.all(|other| other == first);
    if is_served { Ok(Some(first)) } else { Err(first) }
}

fn of_nobody(shelf: &Shelf<'_>, mac: MacAddress, files: &[&str]) -> Finding {
    let constituency = shelf.constituency;
    let name = &constituency.name;
    let (level, why) = match (constituency.policy.tls.client_auth, constituency.standing(mac)) {
        (ClientAuth::None, _) => (
            Level::Warning,
            "names that hold a MAC address are never served where nobody is asked who they are".to_owned(),
        ),
        (_, Standing::Denied) => (Level::Note, format!("{mac} is denied")),
        (asks, Standing::Unknown) => {
            let digest = if asks == ClientAuth::Digest { " --digest" } else { "" };
            let command = format!("provost allow {mac} --constituency {name}{digest}");
            (Level::Warning, format!("{mac} is not known here; {command} lets it in, else remove them"))
        }
        (_, Standing::Known) => (Level::Warning, "their names hold several MAC addresses".to_owned()),
    };
    shelf.finding(level, "", format!("nobody gets {}: {why}", some_of(files)))
}

fn is_read(file: &str, named: &Read) -> bool {
    let extension = file.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    matches!(extension.as_deref(), Some("cfg" | "xml")) || named.named.contains(file)
}

fn look_into(shelf: &Shelf<'_>, file: &str, reader: Option<MacAddress>, named: &Read, found: &mut Vec<Finding>) {
    let Ok(path) = ServedPath::parse(&format!("/{}", file.replace('%', "%25"))) else {
        found.push(shelf.finding(Level::Warning, file, "no phone can ask for a file of this name"));
        return;
    };
    let opened = match shelf.find(&path, reader) {
        Found::Regular(opened) => opened,
        Found::NotServed(reason) => return found.push(shelf.finding(Level::Warning, file, reason)),
        // It has just been removed.
        Found::Absent => return,
    };
    let bytes = match read(opened) {
        Content::Bytes(bytes) => bytes,
        Content::TooLarge => {
            let message = format!("is larger than {} MiB and was not looked into", LARGEST >> 20);
            return found.push(shelf.finding(Level::Note, file, message));
        }
        Content::Unreadable(error) => {
            return found.push(shelf.finding(Level::Warning, file, format!("cannot be read: {error}")));
        }
    };
    let mut secrets = Vec::new();
    let is_common = reader.is_none();
    let parsed = master::each_parameter(&bytes, |name, value, line| {
        if let Some(kind) = secret(name, value).filter(|_| is_common) {
            // The line is looked for only where it is shown.
            let line = if secrets.len() < SECRETS { line() } else { 0 };
            secrets.push((name.chars().take(NAME).collect::<String>(), kind, line));
        }
    });
    if parsed.is_err() || secrets.is_empty() {
        found.extend(key_to_be_read(shelf, file, reader, &bytes));
    }
    match parsed {
        Err(error) if !named.masters.contains(file) => found.push(unreadable(shelf, file, &error, named)),
        _ => found.extend(readable_by_others(shelf, file, &secrets)),
    }
}

/// Looks into a file that phones do not take for a configuration, unless it is too large to be a key's.
fn look_for_key(shelf: &Shelf<'_>, file: &str, reader: Option<MacAddress>, found: &mut Vec<Finding>) {
    const LARGEST_WITH_KEY: u64 = 1 << 20;
    let Ok(path) = ServedPath::parse(&format!("/{}", file.replace('%', "%25"))) else { return };
    let Found::Regular(opened) = shelf.find(&path, reader) else { return };
    if opened.metadata().is_ok_and(|metadata| metadata.len() <= LARGEST_WITH_KEY)
        && let Content::Bytes(bytes) = read(opened)
    {
        found.extend(key_to_be_read(shelf, file, reader, &bytes));
    }
}

/// What it means that a private key stands in a file that is served.
fn key_to_be_read(shelf: &Shelf<'_>, file: &str, reader: Option<MacAddress>, bytes: &[u8]) -> Option<Finding> {
    let line = private_key(bytes)?;
    let (level, who) = match reader {
        None => others(shelf),
        Some(_) => (Level::Note, "its phone"),
    };
    let advice = "move it out of the folder, and replace it if others may have read it";
    Some(shelf.finding(level, &format!("{file}:{line}"), format!("holds a private key that {who} can read; {advice}")))
}

/// Who can read a file that is not one phone's own, and how bad it is if that holds a secret.
fn others(shelf: &Shelf<'_>) -> (Level, &'static str) {
    let policy = &shelf.constituency.policy;
    match (policy.tls.client_auth, &policy.phones) {
        (ClientAuth::None, _) => (Level::Error, "anybody"),
        _ if shelf.over_plain_http => (Level::Error, "anybody in the networks of \"plain_http\""),
        (_, Phones::Any) => (Level::Warning, "every phone with a valid certificate"),
        (_, Phones::Listed(_)) => (Level::Warning, "every phone of the constituency"),
    }
}

/// A phone passes over the whole of a file that is no XML.
fn unreadable(shelf: &Shelf<'_>, file: &str, error: &MasterError, named: &Read) -> Finding {
    let is_named = named.named.contains(file) && !matches!(error, MasterError::NotText(_));
    let level = if is_named { Level::Error } else { Level::Warning };
    shelf.finding(level, file, format!("{error}; a phone passes over the whole file"))
}

/// What it means that `secrets` stand in a file that is not one phone's own. Values are not shown.
fn readable_by_others(shelf: &Shelf<'_>, file: &str, secrets: &[(String, Secret, u32)]) -> Vec<Finding> {
    let (level, who) = others(shelf);
    let advice = "a file with a phone's MAC address in its name is for that phone alone";
    let one = |(name, kind, line): &(String, Secret, u32)| {
        let what = match kind {
            Secret::Value => format!("{name} holds a secret"),
            Secret::InUrl => format!("{name} holds a URL with a password"),
        };
        shelf.finding(level, &format!("{file}:{line}"), format!("{what} that {who} can read; {advice}"))
    };
    let mut all: Vec<Finding> = secrets.iter().take(SECRETS).map(one).collect();
    if secrets.len() > SECRETS {
        let message = format!("{} more secrets that {who} can read", secrets.len() - SECRETS);
        all.push(shelf.finding(level, file, message));
    }
    all
}
