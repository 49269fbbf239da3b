//! What is in the files: XML that phones can read, no secret of one phone in a common file, and no file that no phone gets.

use std::collections::{BTreeMap, BTreeSet};

use super::few::report;
use super::masters::Read;
use super::secrets::{Secret, private_key, secret};
use super::shelf::{Content, Found, LARGEST, Shelf, read};
use super::{Finding, Level};
use crate::constituency::file_names::{ForeignMac, spelled_in};
use crate::constituency::{ClientAuth, CommonNames, MacAddress, POLICY_FILE, Phones, Standing};
use crate::phone::master::{self, MasterError};
use crate::serve::path::ServedPath;
use crate::wording::counted;

/// How many secrets of one file are named one by one.
const SECRETS: usize = 10;
/// The longest name of a parameter that is shown, in characters.
const NAME: usize = 80;

/// Looks into `files`, all that lie in the folder.
pub(super) fn check(shelf: &Shelf<'_>, files: &[String], named: &Read, findings: &mut Vec<Finding>) {
    let mut found = Vec::new();
    let mut unread: BTreeMap<MacAddress, Vec<&str>> = BTreeMap::new();
    for file in files {
        match reader(shelf, file) {
            Ok(reader) if is_read(file, named) => look_into(shelf, file, reader, named, &mut found),
            Ok(reader) => look_for_key(shelf, file, reader, &mut found),
            Err(foreign) => unread.entry(foreign.mac()).or_default().push(file),
        }
    }
    report(shelf, found, "findings about files", findings);
    findings.extend(unread.into_iter().map(|(mac, files)| not_served(shelf, mac, &files)));
    findings.extend(ineffective_common(shelf));
}

/// Who reads `file`: every phone, or the one whose MAC address the path spells. The error is that address where no phone
/// reads the file.
fn reader(shelf: &Shelf<'_>, file: &str) -> Result<Option<MacAddress>, ForeignMac> {
    let constituency = shelf.constituency;
    let rules = shelf.rules();
    let Err(foreign) = rules.check(file, None) else { return Ok(None) };
    if constituency.policy.tls.client_auth == ClientAuth::None {
        return Err(foreign);
    }
    let is_reader =
        |mac: &MacAddress| constituency.standing(*mac) == Standing::Known && rules.check(file, Some(*mac)).is_ok();
    let spelled = file.split('/').flat_map(spelled_in).map(|spelling| spelling.mac);
    spelled.filter(is_reader).map(Some).next().ok_or(foreign)
}

/// What it means that `files`, which spell `mac`, are served to no phone.
fn not_served(shelf: &Shelf<'_>, mac: MacAddress, files: &[&str]) -> Finding {
    let constituency = shelf.constituency;
    let name = &constituency.name;
    let asks = constituency.policy.tls.client_auth;
    let elsewhere = || shelf.registry.served().find(|other| other.lists(mac)).map(|other| &other.name);
    let digest = if asks == ClientAuth::Digest { " --digest" } else { "" };
    let allow = format!("provost allow {mac} --constituency {name}{digest}");
    let patterns: Vec<String> = files.iter().map(|file| format!("{:?}", CommonNames::pattern_for(file))).collect();
    let (them, belong) = if files.len() == 1 { ("it", "it belongs") } else { ("them", "they belong") };
    let for_all = format!("to serve {them} to every client, add {} to \"common\"", patterns.join(", "));
    let (level, why) = match constituency.standing(mac) {
        Standing::Denied => (Level::Note, format!("{mac} is denied")),
        _ if asks == ClientAuth::None && constituency.lists(mac) => {
            (Level::Warning, format!("{belong} to {mac}, and \"client_auth\" is \"none\""))
        }
        Standing::Known if constituency.lists(mac) => {
            (Level::Warning, format!("{belong} to {mac}, and the path holds another MAC address too"))
        }
        _ => match elsewhere() {
            Some(other) if asks == ClientAuth::None => {
                (Level::Warning, format!("{mac} is a phone of {other}; {for_all}"))
            }
            Some(other) => (
                Level::Warning,
                format!("{mac} is a phone of {other}; to serve {them} to it here too, {allow}; {for_all}"),
            ),
            None if asks != ClientAuth::None && is_phones(mac, files) => {
                (Level::Warning, format!("{mac} is on no list; if it is a phone, {allow}; {for_all}"))
            }
            None => (Level::Warning, format!("the path holds {mac}, a MAC address on no list; {for_all}")),
        },
    };
    shelf.finding(level, "", format!("served to no phone: {}: {why}", files.join(", ")))
}

/// Whether `mac` can be a phone's and stands alone in the first of `files`, so that its digits are not a guess.
fn is_phones(mac: MacAddress, files: &[&str]) -> bool {
    let spelled: BTreeSet<_> =
        files.iter().flat_map(|file| file.split('/').flat_map(spelled_in)).map(|it| it.mac).collect();
    mac.check_phone().is_ok() && spelled.len() == 1
}

/// Entries of the policy that mean less than they seem to.
fn ineffective_common<'a>(shelf: &'a Shelf<'_>) -> impl Iterator<Item = Finding> + 'a {
    let constituency = shelf.constituency;
    let of_phones = constituency.policy.common.spelled().filter(|mac| constituency.lists(*mac));
    let of_phones = of_phones.map(|mac| {
        let message = format!("\"common\": {mac} is on a list, so its files stay its own; remove the pattern");
        shelf.finding(Level::Warning, POLICY_FILE, message)
    });
    let unassigned = constituency.listed_phones().filter(|mac| mac.has_zero_prefix()).map(|mac| {
        let message = format!(
            "{mac} is on a list, but no phone has a MAC address that begins with 000000, and files of that name are common; remove the line"
        );
        shelf.finding(Level::Warning, POLICY_FILE, message)
    });
    of_phones.chain(unassigned)
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
        let message = format!("{} that {who} can read", counted(secrets.len() - SECRETS, "more secret"));
        all.push(shelf.finding(level, file, message));
    }
    all
}
