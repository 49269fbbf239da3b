//! Replaces a policy's file atomically, keeps its owner and mode, and does not overwrite concurrent changes.

use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FileType;

use super::edit::{self, PolicyChange};
use super::excerpt::Excerpt;
use super::policy::POLICY_FILE;
use super::policy_file::{self, ReadingState};
use super::{ClientAuth, ConstituencyName, Fingerprint, Policy};
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
    /// The pinned certificate of the phone.
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
    let file = path.join(POLICY_FILE);
    let failed = |source| EditError::Io { path: file.clone(), source };
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
        let edited = |result, policy: &Policy| Edited {
            result,
            client_auth: policy.tls.client_auth,
            pin: policy.pins.get(&change.mac()).copied(),
        };
        let excerpt = Excerpt::of(text, change.mac());
        // The whole text gives an error its line.
        let parse = |excerpt: &str, whole: &str| {
            Policy::parse(&file, excerpt, bundles).or_else(|_| Policy::parse(&file, whole, bundles))
        };
        let policy = parse(excerpt.as_str(), text)?;
        if policy.tls.client_auth == ClientAuth::None && matches!(change, PolicyChange::Deny { .. }) {
            return Ok(edited(EditResult::NoClientAuth, &policy));
        }
        let invalid = |reason| SettingsError::of_file(&file, reason);
        let short = change.edit(excerpt.as_str()).map_err(invalid)?;
        if short == excerpt.as_str() {
            return Ok(edited(EditResult::Already, &policy));
        }
        let after = match excerpt.expand(&short) {
            Some(after) => after,
            None => change.edit(text).map_err(invalid)?,
        };
        let policy = parse(&short, &after)?;
        let new = prepare(&folder, &after).map_err(failed)?;
        // The file is read again: at most two copies of it are held.
        drop(after);
        // If an editor saved the file in the meantime, start again, so that its change is kept.
        if read(&folder, &file)? == before {
            new.put(POLICY_FILE).map_err(failed)?;
            return Ok(edited(EditResult::Now, &policy));
        }
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

/// Writes a temporary file that can replace the policy in `folder`: with its owner and mode, or those of the folder if
/// the policy is new.
fn prepare<'a>(folder: &'a FolderHandle, text: &str) -> io::Result<Draft<'a>> {
    let (like, mask) = match folder.stat(POLICY_FILE) {
        Ok(old) if FileType::from_raw_mode(old.st_mode) == FileType::RegularFile => (old, 0o777),
        _ => (rustix::fs::fstat(folder)?, 0o666),
    };
    let mut new = Draft::new(folder, DRAFT)?;
    new.file.write_all(text.as_bytes())?;
    let created = new.file.metadata()?;
    if (created.uid(), created.gid()) != (like.st_uid, like.st_gid) {
        fchown(&new.file, Some(like.st_uid), Some(like.st_gid))?;
    }
    new.file.set_permissions(std::fs::Permissions::from_mode(like.st_mode & mask))?;
    Ok(new)
}
