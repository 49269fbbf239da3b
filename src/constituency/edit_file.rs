//! Changing a policy's file: whole or not at all, with its owner and mode, and nobody else's change is lost.

use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FileType;

use super::edit::{self, PolicyChange};
use super::policy::POLICY_FILE;
use super::policy_file::{self, ReadingState};
use super::{ClientAuth, ConstituencyName, Policy};
use crate::clock;
use crate::settings::SettingsError;
use crate::state::lock::LockError;
use crate::state::{Draft, FolderHandle};

/// How the name of a new policy begins until it is whole.
const DRAFT: &str = ".constituency-";

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// The policy says so now.
    Now,
    /// It said so already.
    Already,
    /// This constituency asks nobody who they are, so that no list can keep anybody out.
    AsksNobody,
}

/// Why a policy was not changed. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// No such folder.
    #[error("there is no constituency {name}: {path} is no folder", path = .path.display())]
    Absent {
        /// The name.
        name: ConstituencyName,
        /// Where it would be.
        path: PathBuf,
    },
    /// The policy is broken, or would be.
    #[error("{0}; nothing was changed")]
    Policy(#[from] SettingsError),
    /// Another process holds its lock.
    #[error("{0}; nothing was changed")]
    Locked(LockError),
    /// The system.
    #[error("{path} cannot be changed: {source}; run this as its owner, or as root", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Changes the policy of the constituency `name` in the folder `constituencies`. `bundles` are the trust bundles that
/// there are. Waiting for another command that changes the same policy is told to `tell`.
///
/// # Errors
/// If it cannot be changed, or was no good policy before or would be none afterwards.
pub fn change(
    constituencies: &Path,
    name: &ConstituencyName,
    change: PolicyChange<'_>,
    bundles: &[&str],
    tell: &dyn Fn(&str),
) -> Result<Changed, EditError> {
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
    // Another command that changes this policy comes before or after, not between.
    let _lock = folder.lock(&path, tell).map_err(EditError::Locked)?;
    folder.sweep(DRAFT, clock::now());
    loop {
        let before = read(&folder, &file)?;
        let text = before.as_deref().unwrap_or(edit::EMPTY);
        let policy = Policy::parse(&file, text, bundles)?;
        if policy.tls.client_auth == ClientAuth::None && matches!(change, PolicyChange::Deny { .. }) {
            return Ok(Changed::AsksNobody);
        }
        let after = change.apply(text).map_err(|reason| SettingsError::of_file(&file, reason))?;
        if after == text {
            return Ok(Changed::Already);
        }
        Policy::parse(&file, &after, bundles)?;
        let new = prepare(&folder, &after).map_err(failed)?;
        // Whoever saved it meanwhile in an editor shall find that again.
        if read(&folder, &file)? == before {
            new.put(POLICY_FILE).map_err(failed)?;
            return Ok(Changed::Now);
        }
    }
}

fn read(folder: &FolderHandle, file: &Path) -> Result<Option<String>, EditError> {
    // The time only says whether a file is settled, which matters to those who read it again.
    match policy_file::read_in(folder, POLICY_FILE.as_ref(), None, SystemTime::UNIX_EPOCH) {
        Ok(ReadingState::Text(text, _)) => Ok(Some(text)),
        Ok(ReadingState::Absent | ReadingState::Unchanged) => Ok(None),
        Err(error) => Err(SettingsError::of_file(file, error).into()),
    }
}

/// A file that may take the place of the policy in `folder`: with its owner and mode, or the folder's where it is new.
fn prepare<'a>(folder: &'a FolderHandle, text: &str) -> io::Result<Draft<'a>> {
    let (like, mask) = match folder.stat(POLICY_FILE) {
        Ok(old) if FileType::from_raw_mode(old.st_mode) == FileType::RegularFile => (old, 0o777),
        _ => (rustix::fs::fstat(folder)?, 0o666),
    };
    let mut new = Draft::new(folder, DRAFT)?;
    new.file.write_all(text.as_bytes())?;
    let ours = new.file.metadata()?;
    if (ours.uid(), ours.gid()) != (like.st_uid, like.st_gid) {
        fchown(&new.file, Some(like.st_uid), Some(like.st_gid))?;
    }
    new.file.set_permissions(std::fs::Permissions::from_mode(like.st_mode & mask))?;
    Ok(new)
}
