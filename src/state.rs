//! The state directory: what provost itself keeps. 0700, never served, held by one process at a time.
//!
//! Whatever is stored here is stored whole or not at all: temporary file, fsync, rename, fsync of the folder.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder or the lock in it cannot be made or opened.
    #[error("the state directory {path} cannot be used: {source}; give the user that runs provost write access, or name another in \"state\"", path = .path.display())]
    Unusable {
        /// What was tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("the state directory {path} is in use by another provost; stop that one, or give each its own \"state\"", path = .path.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
    },
}

/// The state directory, opened.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// Proof that this process alone works on the state directory; released when dropped, also by a crash.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateDir {
    /// Opens the state directory at `path`; makes it, 0700, if it is not there.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let unusable = |source| StateError::Unusable { path: path.to_owned(), source };
        private_folder(path).map_err(unusable)?;
        Ok(Self { path: path.canonicalize().map_err(unusable)? })
    }

    /// Where it is, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock, or says who cannot.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.path.join("lock");
        let unusable = |source| StateError::Unusable { path: path.clone(), source };
        let mut options = File::options();
        let options = options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).map_err(unusable)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path: self.path.clone() }),
            Err(errno) => Err(unusable(errno.into())),
        }
    }

    /// The folder `name` in the state directory, made if it is not there.
    pub fn folder(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.path.join(name);
        private_folder(&path).map_err(|source| StateError::Unusable { path: path.clone(), source })?;
        Ok(path)
    }
}

/// Whether this user could use `path` as a state directory, or make it; nothing is changed.
pub fn can_use(path: &Path) -> Result<(), String> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).map_err(|errno| {
        format!("this user may not write to the state directory {} ({}: {errno})", path.display(), existing.display())
    })
}

/// Makes `path` and what is missing above it, for the owner alone. What root makes belongs to whose folder it is in.
pub fn private_folder(path: &Path) -> io::Result<()> {
    let is_new = !path.exists();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if is_new {
        give_to_owner_of(&folder_of(path), &File::open(path)?);
    }
    Ok(())
}

/// Stores `bytes` as `path`, readable by the owner alone, whole or not at all, and on the disk when this returns.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, 0o600)
}

/// Stores `bytes` as `path` in the same way, for everybody to read who may enter the folder.
pub fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, 0o644)
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = folder_of(path);
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&folder)?;
    file.write_all(bytes)?;
    give_to_owner_of(&folder, file.as_file());
    file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(&folder)
}

/// The folder that `path` is in.
fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// What root makes in the folder of another user, who runs the server, that user must be able to read.
fn give_to_owner_of(folder: &Path, new: &File) {
    if let (true, Ok(owner)) = (rustix::process::geteuid().is_root(), std::fs::metadata(folder)) {
        // Where this cannot be, as within containers, the user may be the same all the same; else the server says so.
        let _ = std::os::unix::fs::fchown(new, Some(owner.uid()), Some(owner.gid()));
    }
}

/// Makes what was created, renamed or removed in `folder` survive a power cut.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_the_owners_alone_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_process_holds_the_state_directory() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        assert_eq!(std::fs::metadata(state.path()).unwrap().permissions().mode() & 0o777, 0o700);
        let held = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::Locked { .. })));
        drop(held);
        state.lock().unwrap();
    }
}
