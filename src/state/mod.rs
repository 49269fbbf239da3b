//! The state directory, where provost keeps its own data. Mode 0700, never served, used by one process at a time.
//!
//! Writes are atomic: temporary file, fsync, rename, fsync of the folder.
//!
//! The directory belongs to the user who runs the server, and root's commands work in it too. That user could create
//! symlinks through which root would show, change or give away other files. So all access to the directory uses the
//! functions below, which use [`FolderHandle`].

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

mod folder_handle;
pub mod lock;

pub use folder_handle::{Draft, Entry, FolderHandle, draft_name, is_private_hard_link, kind_of};

/// Why the state directory is not usable.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder or its lock file cannot be created or opened.
    #[error("cannot use the state directory {path}: {source}; {}", remedy(.source), path = .path.display())]
    Unusable {
        /// The path that failed.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// There is something else in place of the lock file.
    #[error("the state directory cannot be locked: {path} is {kind}, not a regular file; remove it, and start again", path = .path.display())]
    NotALock {
        /// The path of the lock file.
        path: PathBuf,
        /// The kind of the file there.
        kind: &'static str,
    },
    /// Another process holds the lock.
    #[error("another provost uses the state directory {path}; stop it, or set another \"state\"", path = .path.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
    },
}

/// The remedy for an error of the state directory.
#[must_use]
pub fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE) => "raise LimitNOFILE to 1024 or more (ulimit -n)",
        Some(Errno::NFILE) => "raise fs.file-max (sysctl)",
        Some(Errno::ROFS) => "mount its file system for writing, or set another folder in \"state\"",
        Some(Errno::NOSPC | Errno::DQUOT) => "free space on its file system, or set another folder in \"state\"",
        Some(Errno::NOTDIR | Errno::ISDIR) => "move away the file in its place, or set another folder in \"state\"",
        _ => "give the user that runs provost write access, or set another folder in \"state\"",
    }
}

/// The name of the lock file.
pub const LOCK: &str = "lock";

/// The state directory, opened.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// Proof that no other process uses the state directory. Dropping it releases the lock, and so does a crash.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateDir {
    /// Opens the state directory at `path`. Creates it with mode 0700 if it does not exist.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let unusable = |source| StateError::Unusable { path: path.to_owned(), source };
        private_folder(path).map_err(unusable)?;
        Ok(Self { path: path.canonicalize().map_err(unusable)? })
    }

    /// The canonical path, with symlinks resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the state directory. If the lock file cannot be created or written to, as on a read-only file system,
    /// locks the existing file, or else the folder itself.
    ///
    /// # Errors
    /// If another process holds the lock, something else stands in its place, or the folder cannot be opened.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.path.join(LOCK);
        let unusable = |source| StateError::Unusable { path: path.clone(), source };
        let found = FolderHandle::open(&self.path).and_then(|folder| folder.kind(LOCK)).map_err(unusable)?;
        if let Some(kind) = found.filter(|kind| *kind != FileType::RegularFile) {
            return Err(StateError::NotALock { path, kind: kind_of(kind) });
        }
        let open = |name: &str, flags: OFlags| -> io::Result<File> {
            // NONBLOCK: opening a FIFO must not wait for its reader.
            let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let folder = FolderHandle::open(&self.path)?;
            folder.act(|folder| Ok(rustix::fs::openat(folder, name, flags, mode)?.into()))
        };
        let file = match open(LOCK, OFlags::WRONLY | OFlags::CREATE) {
            Err(error) if is_unwritable(&error) => {
                open(LOCK, OFlags::RDONLY).or_else(|_| open(".", OFlags::RDONLY | OFlags::DIRECTORY)).map_err(|_| error)
            }
            opened => opened,
        };
        let file = file.map_err(unusable)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path: self.path.clone() }),
            Err(errno) => Err(unusable(errno.into())),
        }
    }

    /// The path of the folder `name` in the state directory. Creates it if it does not exist. If that fails, only gives
    /// the path, because the server can run without the folder.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        // The check of the state directory finds the error, and logs it.
        let _ = private_folder(&path);
        path
    }
}

/// Whether `error` prevents only writing, so that the server can still serve.
#[must_use]
pub fn is_unwritable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::NOSPC | Errno::DQUOT | Errno::NOTDIR | Errno::ISDIR)
    )
}

/// Why this process cannot create files in the folder `path`, or create the folder; `None` if it can. Changes nothing.
#[must_use]
pub fn why_unwritable(path: &Path) -> Option<io::Error> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    if !existing.is_dir() {
        return Some(Errno::NOTDIR.into());
    }
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, existing, wanted, AtFlags::EACCESS).err().map(io::Error::from)
}

/// Whether a regular file is at `path`. A symlink is none.
#[must_use]
pub fn is_regular_file(path: &Path) -> bool {
    let found = folder_of(path).and_then(|folder| folder.kind(path.file_name().unwrap_or_default()));
    matches!(found, Ok(Some(FileType::RegularFile)))
}

/// Renames the file at `path` to `aside`, a path in the same folder, or to `aside.2` and so on: earlier ones are kept.
/// Returns the new path.
pub fn put_aside(path: &Path, aside: &Path) -> io::Result<PathBuf> {
    let folder = folder_of(path)?;
    let name = |path: &Path| path.file_name().map(OsStr::to_owned).ok_or(io::ErrorKind::InvalidFilename);
    let (from, first) = (name(path)?, name(aside)?);
    for number in 1_u32.. {
        let mut to = first.clone();
        if number > 1 {
            to.push(format!(".{number}"));
        }
        match folder.rename_to_new(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            renamed => return renamed.and_then(|()| folder.sync()).map(|()| aside.with_file_name(to)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Creates `path` and its missing parents with mode 0700. Folders that root creates get the owner of the folder around
/// them.
pub fn private_folder(path: &Path) -> io::Result<()> {
    FolderHandle::open_or_make(path).map(drop)
}

/// Reads the regular file at `path`.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let (folder, name) = FolderHandle::of_file(path)?;
    folder.read(name)
}

/// Reads the regular file at `path`, which must be UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

/// Whether `path` exists.
pub fn exists(path: &Path) -> io::Result<bool> {
    let found = FolderHandle::of_file(path).and_then(|(folder, name)| folder.has(name));
    match found {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        found => found,
    }
}

/// Writes `bytes` to `path` atomically with mode 0600, and syncs file and folder.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, 0o600)
}

/// Writes `bytes` to `path` like [`write_private`], with mode 0644.
pub fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, 0o644)
}

/// Replaces a symlink at `path` instead of following it.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = folder_of(path)?;
    let draft = draft_of(&folder, bytes, mode)?;
    draft.put(path.file_name().ok_or(io::ErrorKind::InvalidFilename)?)
}

/// Opens the folder of `path`.
pub fn folder_of(path: &Path) -> io::Result<FolderHandle> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    FolderHandle::open(parent.unwrap_or(Path::new(".")))
}

/// Writes the draft of a file like [`write_private`], and syncs it. Only the rename is left for later, which rarely
/// fails.
pub fn draft_private<'a>(folder: &'a FolderHandle, bytes: &[u8]) -> io::Result<Draft<'a>> {
    let draft = draft_of(folder, bytes, 0o600)?;
    draft.file.sync_all()?;
    Ok(draft)
}

fn draft_of<'a>(folder: &'a FolderHandle, bytes: &[u8], mode: u32) -> io::Result<Draft<'a>> {
    let mut draft = Draft::new(folder, ".new-")?;
    draft.file.write_all(bytes)?;
    draft.set_mode(mode)?;
    Ok(draft)
}

/// Removes `path`, a file, symlink or folder, recursively, if it exists.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    match folder_of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        folder => folder?.remove_all(name),
    }
}

/// Syncs `folder`, so that created, renamed and removed entries survive a power failure.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    FOLDER_SYNCS.set(FOLDER_SYNCS.get() + 1);
    FolderHandle::open(folder)?.sync()
}

#[cfg(test)]
thread_local! {
    /// How often this thread has called [`sync_folder`]: tests count work by it.
    pub(crate) static FOLDER_SYNCS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::folder_handle::tests::{OWNER, as_root, owner};
    use super::*;

    #[test]
    fn private_file_is_owner_only_and_replaced_atomically() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_one_process_locks_the_state_directory() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        assert_eq!(std::fs::metadata(state.path()).unwrap().permissions().mode() & 0o777, 0o700);
        let held = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::Locked { .. })));
        drop(held);
        state.lock().unwrap();
    }

    #[test]
    fn lock_of_wrong_file_type_is_refused_with_its_remedy() {
        type Make = fn(&Path);
        let make: [(&str, Make); 3] = [
            ("a FIFO", |path| {
                let mode = Mode::RUSR | Mode::WUSR;
                rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).unwrap();
            }),
            ("a folder", |path| std::fs::create_dir(path).unwrap()),
            ("a symbolic link", |path| symlink("elsewhere", path).unwrap()),
        ];
        for (kind, make) in make {
            let folder = tempfile::tempdir().unwrap();
            let state = StateDir::open(folder.path()).unwrap();
            let path = state.path().join("lock");
            make(&path);
            let error = state.lock().unwrap_err().to_string();
            let expected = format!("{} is {kind}, not a regular file; remove it, and start again", path.display());
            assert!(error.ends_with(&expected), "{error}");
            remove_all(&path).unwrap();
            state.lock().unwrap();
        }
    }

    #[test]
    fn earlier_files_put_aside_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("a.json"), folder.path().join("a.damaged"));
        for (number, name) in [(1, "a.damaged"), (2, "a.damaged.2"), (3, "a.damaged.3")] {
            write_private(&path, &[number]).unwrap();
            assert_eq!(put_aside(&path, &aside).unwrap(), folder.path().join(name));
        }
        for (number, name) in [(1, "a.damaged"), (2, "a.damaged.2"), (3, "a.damaged.3")] {
            assert_eq!(read(&folder.path().join(name)).unwrap(), [number]);
        }
    }

    #[test]
    fn root_follows_no_symlink_of_the_state_directorys_owner() {
        as_root("root_follows_no_symlink_of_the_state_directorys_owner", |state, roots| {
            for (name, user) in [("digest", 65534), ("ca", 0)] {
                let link = state.join(name);
                symlink(roots, &link).unwrap();
                std::os::unix::fs::lchown(&link, Some(user), Some(user)).unwrap();
                let tries = [
                    private_folder(&link),
                    private_folder(&link.join("below")),
                    write_private(&link.join("ca.key"), b"key"),
                    write_public(&link.join("list.crl"), b"list"),
                ];
                for tried in tries {
                    let error = tried.unwrap_err().to_string();
                    assert!(error.contains(name) && error.contains("root does not follow"), "{error}");
                }
            }
            symlink(roots.join("made"), state.join("lock")).unwrap();
            assert!(StateDir::open(state).unwrap().lock().is_err());
            // A symlink in place of a file is replaced, not followed.
            symlink(roots.join("made"), state.join("token")).unwrap();
            write_private(&state.join("token"), b"token").unwrap();
            assert!(std::fs::symlink_metadata(state.join("token")).unwrap().is_file());
        });
    }

    #[test]
    fn root_gives_new_files_to_the_folders_owner() {
        as_root("root_gives_new_files_to_the_folders_owner", |state, roots| {
            std::fs::create_dir(state.join("kept")).unwrap();
            private_folder(&state.join("kept")).unwrap();
            assert_eq!(owner(&state.join("kept")), (0, 0));
            private_folder(&state.join("a/b")).unwrap();
            write_private(&state.join("a/b/key"), b"key").unwrap();
            for path in ["a", "a/b", "a/b/key"] {
                assert_eq!(owner(&state.join(path)), OWNER, "{path}");
            }
            // Root follows symlinks that root alone could have created.
            let link = roots.parent().unwrap().join("link");
            symlink("theirs", &link).unwrap();
            write_private(&link.join("file"), b"").unwrap();
            assert_eq!(owner(&state.join("file")), OWNER);
            std::os::unix::fs::lchown(&link, Some(OWNER.0), Some(OWNER.1)).unwrap();
            assert!(write_private(&link.join("file"), b"").is_err());
        });
    }

    #[test]
    fn unfinished_draft_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder");
        private_folder(&path.join("in it")).unwrap();
        assert!(write_private(&path, b"file").is_err());
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["folder"]);
    }
}
