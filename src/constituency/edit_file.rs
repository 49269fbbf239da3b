//! Replaces a policy's file atomically, keeps its owner and mode, and does not overwrite concurrent changes.
//!
//! Where there is a `phones.csv`, a phone that the policy does not name is put on that list.

use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FileType;

use super::edit::{self, PolicyChange};
use super::excerpt::Excerpt;
use super::phone_list::{self, ListError, PHONES_FILE, Splice};
use super::phone_list_file;
use super::policy::POLICY_FILE;
use super::policy_file::{self, ReadingState};
use super::{ClientAuth, ConstituencyName, Fingerprint, MacAddress, Phones, Policy};
use crate::clock;
use crate::settings::SettingsError;
use crate::state::lock::LockError;
use crate::state::{Draft, FolderHandle};

/// The prefix of the temporary file that replaces the policy.
const DRAFT: &str = ".constituency-";

/// A change, and what the policy says of the phone after it.
#[derive(Debug)]
pub struct Edited {
    pub result: EditResult,
    pub client_auth: ClientAuth,
    /// The pinned certificate of the phone, before and after the change.
    pub pin_before: Option<Fingerprint>,
    pub pin: Option<Fingerprint>,
}

/// The result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditResult {
    /// The file was changed.
    Now,
    /// The policy already had this content.
    Already,
    /// The constituency does not authenticate clients, so it cannot deny a phone.
    NoClientAuth,
}

/// Why a policy was not changed. The file is untouched.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// There is no such folder.
    #[error("there is no constituency {name}: {path} is not a folder", path = .path.display())]
    Absent {
        /// The name.
        name: ConstituencyName,
        /// The path of the missing folder.
        path: PathBuf,
    },
    /// The policy is invalid before the change, or would be after it.
    #[error("{0}; nothing was changed")]
    Policy(#[from] SettingsError),
    /// Another process holds the lock on the folder.
    #[error("{0}; nothing was changed")]
    Locked(LockError),
    /// An I/O error.
    #[error("{path} cannot be changed: {source}; run this as its owner, or as root", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Changes the policy of the constituency `name` in the folder `constituencies`. `bundles` are the names of the trust
/// bundles. If the lock is held by another command, `notify` gets a message.
///
/// # Errors
/// If the file cannot be read or written, or the policy is invalid before or after the change.
pub fn change(
    constituencies: &Path,
    name: &ConstituencyName,
    change: PolicyChange<'_>,
    bundles: &[&str],
    notify: &dyn Fn(&str),
) -> Result<Edited, EditError> {
    let path = constituencies.join(name.as_str());
    let (file, list_file) = (path.join(POLICY_FILE), path.join(PHONES_FILE));
    let failed = |source| EditError::Io { path: file.clone(), source };
    let list_failed = |source| EditError::Io { path: list_file.clone(), source };
    let absent = || EditError::Absent { name: name.clone(), path: path.clone() };
    let folder = match FolderHandle::open_through_links(constituencies).and_then(|all| all.folder(name.as_str())) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(absent());
        }
        folder => folder.map_err(failed)?,
    };
    // Serializes with other commands that change this policy.
    let _lock = folder.lock(&path, notify).map_err(EditError::Locked)?;
    folder.sweep(DRAFT, clock::now());
    loop {
        let before = read(&folder, &file)?;
        let text = before.as_deref().unwrap_or(edit::EMPTY_POLICY);
        let mac = change.mac();
        let edited = |result, pin_before, policy: &Policy| Edited {
            result,
            client_auth: policy.tls.client_auth,
            pin_before,
            pin: policy.pins.get(&mac).copied(),
        };
        let excerpt = Excerpt::of(text, change.mac());
        // The whole text gives an error its line.
        let parse = |excerpt: &str, whole: &str| {
            Policy::parse(&file, excerpt, bundles).or_else(|_| Policy::parse(&file, whole, bundles))
        };
        let policy = parse(excerpt.as_str(), text)?;
        let pin_before = policy.pins.get(&mac).copied();
        if policy.tls.client_auth == ClientAuth::None && matches!(change, PolicyChange::Deny { .. }) {
            return Ok(edited(EditResult::NoClientAuth, pin_before, &policy));
        }
        let invalid = |reason| SettingsError::of_file(&file, reason);
        let list = match change {
            PolicyChange::Allow { mac, note } if !is_named(&policy, mac) => {
                mac.check_phone().map_err(|error| invalid(error.to_string()))?;
                ListEdit::of(&folder, mac, note).map_err(|error| error.in_file(&list_file))?
            }
            _ => None,
        };
        let change = if list.is_some() { PolicyChange::RemoveDenial { mac: change.mac() } } else { change };
        let short = change.edit(excerpt.as_str()).map_err(invalid)?;
        let (new, policy) = if short == excerpt.as_str() {
            (None, policy)
        } else {
            let after = match excerpt.expand(&short) {
                Some(after) => after,
                None => change.edit(text).map_err(invalid)?,
            };
            let policy = parse(&short, &after)?;
            (Some(prepare(&folder, POLICY_FILE, &[after.as_bytes()]).map_err(failed)?), policy)
        };
        let list = list.filter(ListEdit::is_change);
        let new_list = list.as_ref().map(|list| list.prepare(&folder)).transpose().map_err(list_failed)?;
        if new.is_none() && new_list.is_none() {
            return Ok(edited(EditResult::Already, pin_before, &policy));
        }
        // If an editor saved a file in the meantime, start again, so that its change is kept.
        if list.as_ref().is_none_or(|list| list.is_current(&folder)) && read(&folder, &file)? == before {
            // The denial goes last: until then the phone is refused, as before.
            new_list.map(|new| new.put(PHONES_FILE)).transpose().map_err(list_failed)?;
            new.map(|new| new.put(POLICY_FILE)).transpose().map_err(failed)?;
            return Ok(edited(EditResult::Now, pin_before, &policy));
        }
    }
}

/// Whether the policy itself names `mac`, or accepts phones without a list.
fn is_named(policy: &Policy, mac: MacAddress) -> bool {
    match &policy.phones {
        Phones::Any => true,
        Phones::Listed(listed) => listed.contains_key(&mac) || policy.tls.client_auth == ClientAuth::None,
    }
}

/// The text of `phones.csv`, and a change of it.
struct ListEdit {
    text: Vec<u8>,
    splice: Option<Splice>,
}

impl ListEdit {
    /// The change that allows `mac` in the list of `folder`; `None` if there is no list.
    fn of(folder: &FolderHandle, mac: MacAddress, note: Option<&str>) -> Result<Option<Self>, ListError> {
        let Some(text) = Self::read(folder)? else { return Ok(None) };
        let splice = phone_list::allow(&text, mac, note)?;
        Ok(Some(Self { text, splice }))
    }

    fn read(folder: &FolderHandle) -> Result<Option<Vec<u8>>, ListError> {
        let opened = folder.act(|folder| Ok(phone_list_file::open(folder)))??;
        let Some(mut opened) = opened else { return Ok(None) };
        let mut text = Vec::with_capacity(usize::try_from(opened.size).unwrap_or(0));
        opened.file.read_to_end(&mut text)?;
        Ok(Some(text))
    }

    fn is_change(&self) -> bool {
        self.splice.is_some()
    }

    /// Writes a temporary file with the changed list.
    fn prepare<'a>(&self, folder: &'a FolderHandle) -> io::Result<Draft<'a>> {
        let (at, with) = self.splice.as_ref().map_or((0..0, &[][..]), |splice| (splice.at.clone(), &splice.with));
        let [before, after] = [self.text.get(..at.start), self.text.get(at.end..)].map(Option::unwrap_or_default);
        prepare(folder, PHONES_FILE, &[before, with, after])
    }

    /// Whether the file still has the text.
    fn is_current(&self, folder: &FolderHandle) -> bool {
        matches!(Self::read(folder), Ok(Some(now)) if now == self.text)
    }
}

fn read(folder: &FolderHandle, file: &Path) -> Result<Option<String>, EditError> {
    // The time serves only to detect later changes, which this caller does not do.
    match policy_file::read_in(folder, POLICY_FILE.as_ref(), None, SystemTime::UNIX_EPOCH) {
        Ok(ReadingState::Text(text, _)) => Ok(Some(text)),
        Ok(ReadingState::Absent | ReadingState::Unchanged) => Ok(None),
        Err(error) => Err(SettingsError::of_file(file, error).into()),
    }
}

/// Writes a temporary file of these `parts` that can replace the file `name` in `folder`: with its owner and mode, or those
/// of the folder if the file is new.
fn prepare<'a>(folder: &'a FolderHandle, name: &str, parts: &[&[u8]]) -> io::Result<Draft<'a>> {
    let (like, mask) = match folder.stat(name) {
        Ok(old) if FileType::from_raw_mode(old.st_mode) == FileType::RegularFile => (old, 0o777),
        _ => (rustix::fs::fstat(folder)?, 0o666),
    };
    let mut new = Draft::new(folder, DRAFT)?;
    parts.iter().try_for_each(|part| new.file.write_all(part))?;
    let created = new.file.metadata()?;
    if (created.uid(), created.gid()) != (like.st_uid, like.st_gid) {
        fchown(&new.file, Some(like.st_uid), Some(like.st_gid))?;
    }
    new.file.set_permissions(std::fs::Permissions::from_mode(like.st_mode & mask))?;
    Ok(new)
}
