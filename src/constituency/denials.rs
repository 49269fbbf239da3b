//! Server-wide denials: phones that this server refuses, whatever policies, pins and passwords allow.
//!
//! `STATE/denied.json` maps a MAC address to the author, time and reason of the denial. The file is not in
//! `constituencies`, so that a deploy cannot revert it. If it does not exist, no phone is denied. If it is unreadable
//! or invalid, the server does not start; a running server keeps the denials that it read last.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::MacAddress;
use super::absence::Absence;
use super::policy_file::{self, ReadingState};
use crate::clock;
use crate::files::FileStamp;
use crate::settings::{self, SettingsError};
use crate::state;
use crate::state::FolderHandle;
use crate::state::lock::LockError;

/// The name of the file in the state directory.
pub const FILE: &str = "denied.json";
/// The maximum length of a note, in bytes.
pub const MAX_NOTE: usize = 512;

/// The author, time and reason of a denial.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerDenial {
    /// The author.
    pub by: String,
    /// The time, in Unix seconds.
    #[serde(with = "settings::rfc3339", skip_serializing_if = "Option::is_none")]
    pub at: Option<i64>,
    /// The reason.
    pub note: String,
}

/// All denials, by MAC address.
pub type DeniedPhones = BTreeMap<MacAddress, ServerDenial>;

/// The live denials: all holders see each change.
#[derive(Debug, Default)]
pub struct ServerDenials {
    phones: ArcSwap<DeniedPhones>,
    generation: AtomicU64,
}

/// Reads the denials file again when it changes.
#[derive(Debug)]
pub struct DenialsFile {
    state: PathBuf,
    denials: Arc<ServerDenials>,
    seen: Option<FileStamp>,
    absence: Absence,
    /// The error in the current file, if there is one.
    error: Option<String>,
}

/// The difference that a refresh found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DenialChanges {
    /// Phones with a new or changed denial.
    pub denied: DeniedPhones,
    /// Phones whose denial was lifted.
    pub lifted: DeniedPhones,
    /// Whether the denials were lifted because the file was removed.
    pub is_removed: bool,
}

/// Why the denials cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DenialsError {
    /// The state directory cannot be opened, so it is unknown whether there are denials.
    #[error("the list of phones denied everywhere cannot be read: {path} cannot be opened: {source}; run this as the user that serves, or as root", path = .path.display())]
    Folder {
        /// The state directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file exists and cannot be read, or is invalid.
    #[error("{0}; repair or replace the file: provost never ignores an invalid one")]
    File(SettingsError),
    /// Another process holds the lock.
    #[error("{0}; nothing was changed")]
    Locked(LockError),
    /// The file cannot be written.
    #[error("{path} cannot be changed: {source}; run this as the user that serves, or as root", path = .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The address cannot be a phone's, or the note is too long or has control characters.
    #[error("{0}; nothing was changed")]
    Invalid(String),
}

impl ServerDenial {
    /// Author, time and reason, as the end of a sentence. Control characters are replaced, to protect terminals.
    #[must_use]
    pub fn explained(&self) -> String {
        let text = |text: &str| text.replace(char::is_control, "\u{fffd}");
        let by = if self.by.is_empty() { "an unknown user" } else { &self.by };
        let at = self.at.map(|at| format!(" at {}", clock::rfc3339(at))).unwrap_or_default();
        let note = if self.note.is_empty() { String::new() } else { format!(": {}", self.note) };
        text(&format!("by {by}{at}{note}"))
    }
}

impl ServerDenials {
    /// Reads the denials in the state directory `state`.
    ///
    /// # Errors
    /// If the file exists and cannot be read, or is invalid.
    pub fn read(state: &Path) -> Result<Self, DenialsError> {
        let phones = read(state)?.map(|(_, phones)| phones).unwrap_or_default();
        Ok(Self { phones: ArcSwap::from_pointee(phones), ..Self::default() })
    }

    #[must_use]
    pub fn phones(&self) -> Arc<DeniedPhones> {
        self.phones.load_full()
    }

    /// Whether `mac` is denied.
    #[must_use]
    pub fn has(&self, mac: MacAddress) -> bool {
        self.phones.load().contains_key(&mac)
    }

    /// The denial of `mac`, if it is denied.
    #[must_use]
    pub fn get(&self, mac: MacAddress) -> Option<ServerDenial> {
        self.phones.load().get(&mac).cloned()
    }

    /// A number that increases with each change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn publish(&self, phones: DeniedPhones) {
        self.phones.store(Arc::new(phones));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

impl DenialsFile {
    /// Reads the file in the state directory `state`.
    ///
    /// # Errors
    /// If the file exists and cannot be read, or is invalid.
    pub fn open(state: &Path) -> Result<Self, DenialsError> {
        let (seen, phones) = read(state)?.unwrap_or_default();
        let denials = Arc::new(ServerDenials::default());
        denials.publish(phones);
        Ok(Self { state: state.to_owned(), denials, seen, absence: Absence::default(), error: None })
    }

    /// The live denials.
    #[must_use]
    pub fn denials(&self) -> Arc<ServerDenials> {
        Arc::clone(&self.denials)
    }

    /// The error in the current file. While there is one, the denials that were read last stay in force.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Reads the file again at `now` if it changed. On an error, the denials that were read last stay in force.
    pub fn refresh(&mut self, now: SystemTime) -> DenialChanges {
        let reading =
            folder_of(&self.state).and_then(|folder| read_in(&folder, &self.state.join(FILE), self.seen, now));
        let phones = match reading {
            Ok(Read::Same) => return DenialChanges::default(),
            // The file may be missing only briefly: some editors rename it before they write a new one.
            Ok(Read::Absent) if !self.denials.phones.load().is_empty() && !self.absence.note_missing(now) => {
                return DenialChanges::default();
            }
            Ok(Read::Absent) => {
                self.seen = None;
                None
            }
            Ok(Read::Phones(stamp, phones)) => {
                self.seen = stamp;
                Some(phones)
            }
            Err(error) => {
                self.seen = None;
                self.error = Some(error.to_string());
                return DenialChanges::default();
            }
        };
        self.absence.note_present();
        self.error = None;
        let is_removed = phones.is_none();
        let (before, after) = (self.denials.phones(), phones.unwrap_or_default());
        if *before == after {
            return DenialChanges::default();
        }
        let is_new = |(mac, denial): &(&MacAddress, &ServerDenial)| before.get(mac) != Some(denial);
        let is_lifted = |(mac, _): &(&MacAddress, &ServerDenial)| !after.contains_key(mac);
        let copy = |(mac, denial): (&MacAddress, &ServerDenial)| (*mac, denial.clone());
        let changes = DenialChanges {
            denied: after.iter().filter(is_new).map(copy).collect(),
            lifted: before.iter().filter(is_lifted).map(copy).collect(),
            is_removed,
        };
        self.denials.publish(after);
        changes
    }
}

/// Denies `phones` on the whole server, all or none; returns those for which that changed anything, sorted. An empty note
/// keeps the existing one. If the lock is held by another command, `notify` gets a message.
///
/// # Errors
/// If this fails. Then nothing is changed.
pub fn deny(state: &Path, phones: DeniedPhones, notify: &dyn Fn(&str)) -> Result<Vec<MacAddress>, DenialsError> {
    for (mac, denial) in &phones {
        mac.check_phone().map_err(|error| DenialsError::Invalid(error.to_string()))?;
        if denial.note.len() > MAX_NOTE || denial.note.chars().any(char::is_control) {
            return Err(DenialsError::Invalid(format!("the note must be one line of at most {MAX_NOTE} bytes")));
        }
    }
    state::private_folder(state).map_err(|source| DenialsError::Folder { path: state.to_owned(), source })?;
    let mut denied = Vec::new();
    change(state, notify, |all| {
        for (mac, denial) in phones {
            match all.get(&mac) {
                Some(before) if denial.note.is_empty() || denial.note == before.note => {}
                _ => {
                    all.insert(mac, denial);
                    denied.push(mac);
                }
            }
        }
        !denied.is_empty()
    })?;
    Ok(denied)
}

/// Lifts the denials of `macs`, all or none, and returns them. If the lock is held by another command, `notify` gets a
/// message.
///
/// # Errors
/// If this fails. Then nothing is changed.
pub fn lift(state: &Path, macs: &[MacAddress], notify: &dyn Fn(&str)) -> Result<DeniedPhones, DenialsError> {
    let mut lifted = DeniedPhones::new();
    if read(state)?.is_none() {
        return Ok(lifted);
    }
    change(state, notify, |all| {
        lifted.extend(macs.iter().filter_map(|mac| all.remove_entry(mac)));
        !lifted.is_empty()
    })?;
    Ok(lifted)
}

/// Applies `change` to the stored denials, and writes them if it returns `true`.
fn change(
    state: &Path,
    notify: &dyn Fn(&str),
    change: impl FnOnce(&mut DeniedPhones) -> bool,
) -> Result<(), DenialsError> {
    let folder = folder_of(state)?;
    let path = state.join(FILE);
    // Lock the state directory, not the file, which each change replaces.
    let _lock = folder.lock(&path, notify).map_err(DenialsError::Locked)?;
    let mut phones = match read_in(&folder, &path, None, SystemTime::UNIX_EPOCH)? {
        Read::Phones(_, phones) => phones,
        Read::Absent | Read::Same => DeniedPhones::new(),
    };
    if !change(&mut phones) {
        return Ok(());
    }
    let unwritable = |source| DenialsError::Unwritable { path: path.clone(), source };
    let mut text = serde_json::to_vec_pretty(&phones).map_err(|error| unwritable(error.into()))?;
    text.push(b'\n');
    // The server would not start with a file that it does not read.
    policy_file::check_size(&text).map_err(|_| {
        DenialsError::Invalid(format!("{FILE} would be too large; deny these phones in their constituencies"))
    })?;
    state::write_private(&path, &text).map_err(unwritable)
}

/// The result of reading the file.
enum Read {
    Absent,
    Same,
    Phones(Option<FileStamp>, DeniedPhones),
}

/// The denials in the state directory `state`; `None` if the file does not exist.
fn read(state: &Path) -> Result<Option<(Option<FileStamp>, DeniedPhones)>, DenialsError> {
    let folder = match folder_of(state) {
        Err(DenialsError::Folder { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        folder => folder?,
    };
    Ok(match read_in(&folder, &state.join(FILE), None, clock::now())? {
        Read::Phones(stamp, phones) => Some((stamp, phones)),
        Read::Absent | Read::Same => None,
    })
}

fn folder_of(state: &Path) -> Result<FolderHandle, DenialsError> {
    state::folder_of(&state.join(FILE)).map_err(|source| DenialsError::Folder { path: state.to_owned(), source })
}

fn read_in(folder: &FolderHandle, path: &Path, seen: Option<FileStamp>, now: SystemTime) -> Result<Read, DenialsError> {
    let unusable = |error: &dyn fmt::Display| DenialsError::File(SettingsError::of_file(path, error));
    match policy_file::read_in(folder, FILE.as_ref(), seen, now).map_err(|error| unusable(&error))? {
        ReadingState::Absent => Ok(Read::Absent),
        ReadingState::Unchanged => Ok(Read::Same),
        ReadingState::Text(text, stamp) => {
            let phones = settings::read(path, &text).map_err(DenialsError::File)?;
            Ok(Read::Phones(stamp, phones))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    fn mac() -> MacAddress {
        "00005e00530c".parse().unwrap()
    }

    fn denial(note: &str) -> ServerDenial {
        ServerDenial { by: "alice".to_owned(), at: Some(1_796_076_845), note: note.to_owned() }
    }

    fn deny_one(state: &Path, mac: MacAddress, denial: ServerDenial) -> Result<bool, DenialsError> {
        Ok(deny(state, DeniedPhones::from([(mac, denial)]), &quiet)? == [mac])
    }

    fn lift_one(state: &Path) -> Result<Option<ServerDenial>, DenialsError> {
        Ok(lift(state, &[mac()], &quiet)?.remove(&mac()))
    }

    fn quiet(message: &str) {
        panic!("{message}");
    }

    #[test]
    fn denial_is_written_updated_and_lifted() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert_eq!(lift_one(&state).unwrap(), None);
        assert!(!state.exists(), "lifting makes nothing");
        assert!(deny_one(&state, mac(), denial("stolen")).unwrap());
        let file = state.join(FILE);
        let text = "{\n  \"00005e00530c\": {\n    \"by\": \"alice\",\n    \"at\": \"2026-11-30T22:14:05Z\",\n    \"note\": \"stolen\"\n  }\n}\n";
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let before = FileStamp::of(&file);
        // An equal or empty note does not rewrite the file; another note does.
        assert!(!deny_one(&state, mac(), denial("stolen")).unwrap() && !deny_one(&state, mac(), denial("")).unwrap());
        assert_eq!(FileStamp::of(&file), before);
        assert!(deny_one(&state, mac(), denial("sold")).unwrap());
        assert_eq!(ServerDenials::read(&state).unwrap().get(mac()), Some(denial("sold")));
        assert_eq!(lift_one(&state).unwrap(), Some(denial("sold")));
        assert_eq!(lift_one(&state).unwrap(), None);
        for (mac, note) in [("000000000000", ""), ("ffffffffffff", ""), ("00005e00530c", "two\nlines")] {
            let refused = deny_one(&state, mac.parse().unwrap(), denial(note));
            assert!(matches!(refused, Err(DenialsError::Invalid(_))), "{mac} {note:?}");
        }
    }

    #[test]
    fn several_phones_are_denied_and_lifted_by_one_write() {
        let state = tempfile::tempdir().unwrap();
        let [one, two, three]: [MacAddress; 3] =
            ["00005e005301", "00005e005302", "00005e005303"].map(|mac| mac.parse().unwrap());
        assert!(deny_one(state.path(), two, denial("lost")).unwrap());
        let all = |note: &str| DeniedPhones::from([one, two, three].map(|mac| (mac, denial(note))));
        assert_eq!(deny(state.path(), all(""), &quiet).unwrap(), [one, three]);
        assert_eq!(deny(state.path(), all(""), &quiet).unwrap(), []);
        assert_eq!(ServerDenials::read(state.path()).unwrap().get(two), Some(denial("lost")));
        let before = FileStamp::of(&state.path().join(FILE));
        let bad = DeniedPhones::from([(mac(), denial("")), ("ffffffffffff".parse().unwrap(), denial(""))]);
        assert!(matches!(deny(state.path(), bad, &quiet), Err(DenialsError::Invalid(_))));
        let many: DeniedPhones =
            (0..40_000).map(|number| (mac().plus(number), denial(&"x".repeat(MAX_NOTE)))).collect();
        let error = deny(state.path(), many, &quiet).unwrap_err().to_string();
        assert!(error.contains("denied.json would be too large"), "{error}");
        assert_eq!(FileStamp::of(&state.path().join(FILE)), before, "nothing was written");
        let lifted = lift(state.path(), &[mac(), one, two], &quiet).unwrap();
        assert_eq!(lifted.into_keys().collect::<Vec<_>>(), [one, two]);
        assert_eq!(ServerDenials::read(state.path()).unwrap().phones().len(), 1);
    }

    #[test]
    fn unusable_denials_file_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join(FILE);
        for (text, error) in [
            ("{", ":1: "),
            ("[]", ":1:1: must be an object, not a list"),
            ("{\n\"00005e00530c\": {\"when\": \"\"}}", ":2:18: \"when\": unknown key"),
            ("{\"00005e00530c\": \"stolen\"}", ":1:18: \"00005e00530c\": must be an object, not a string"),
            ("{\"00005e00530c\": [\"me\"]}", ":1:18: \"00005e00530c\": must be an object, not a list"),
            ("{\"phone\": {}}", "invalid MAC address \"phone\""),
            ("{\"00005e00530c\": {\"at\": \"yesterday\"}}", "not a time"),
        ] {
            state::write_private(&file, text.as_bytes()).unwrap();
            let read = ServerDenials::read(state.path()).unwrap_err().to_string();
            assert!(read.contains(error) && read.contains("denied.json"), "{text}: {read}");
            for tried in [deny_one(state.path(), mac(), denial("")).map(drop), lift_one(state.path()).map(drop)] {
                assert!(matches!(tried, Err(DenialsError::File(_))), "{text}");
            }
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        // A manual entry may omit all fields.
        state::write_private(&file, b"{\"00:00:5E:00:53:0C\": {}}").unwrap();
        assert_eq!(ServerDenials::read(state.path()).unwrap().get(mac()), Some(ServerDenial::default()));
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/null", &file).unwrap();
        assert!(ServerDenials::read(state.path()).unwrap_err().to_string().contains("regular file"));
    }

    #[test]
    fn last_valid_denials_stay_in_force() {
        let state = tempfile::tempdir().unwrap();
        let (path, file) = (state.path(), state.path().join(FILE));
        let mut followed = DenialsFile::open(path).unwrap();
        let at = |milliseconds: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000 + milliseconds);
        let denials = followed.denials();
        assert_eq!(followed.refresh(at(0)), DenialChanges::default());
        deny_one(path, mac(), denial("stolen")).unwrap();
        let changes = followed.refresh(at(1));
        assert_eq!((changes.denied.len(), changes.lifted.len(), denials.has(mac())), (1, 0, true));
        let generation = denials.generation();
        state::write_private(&file, b"{").unwrap();
        for _ in 0..2 {
            assert_eq!(followed.refresh(at(2)), DenialChanges::default());
            assert!(
                followed
                    .error()
                    .is_some_and(|error| error.contains("denied.json:1:1: the file ends before the closing }"))
                    && denials.has(mac())
            );
        }
        // A file that is missing briefly is not removed. If its folder is missing too, the denials are unknown.
        std::fs::remove_file(&file).unwrap();
        assert_eq!(followed.refresh(at(3)), DenialChanges::default());
        assert!(denials.has(mac()) && denials.generation() == generation);
        let (aside, here) = (tempfile::tempdir().unwrap(), path.to_owned());
        std::fs::rename(&here, aside.path().join("state")).unwrap();
        assert_eq!(followed.refresh(at(1000)), DenialChanges::default());
        assert!(followed.error().is_some() && denials.has(mac()));
        std::fs::rename(aside.path().join("state"), &here).unwrap();
        let changes = followed.refresh(at(1001));
        assert_eq!((changes.lifted.len(), changes.is_removed, denials.has(mac())), (1, true, false));
        assert!(followed.error().is_none() && denials.generation() > generation);
    }

    #[test]
    fn control_characters_in_denials_are_replaced() {
        let denial = ServerDenial { by: "a\u{1b}[2J".to_owned(), at: None, note: "x\r\ny".to_owned() };
        assert_eq!(denial.explained(), "by a\u{fffd}[2J: x\u{fffd}\u{fffd}y");
        assert_eq!(ServerDenial::default().explained(), "by an unknown user");
    }
}
