//! The state directory: what provost itself keeps. 0700, never served, held by one process at a time.
//!
//! Whatever is stored here is stored whole or not at all: temporary file, fsync, rename, fsync of the folder.
//!
//! It belongs to the user who runs the server, and root's commands work in it too. That user could set links, and root
//! would make or give away what they point to. So root goes from folder to folder by handles here, and follows links
//! only where root alone could set them.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Access, AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

pub mod lock;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder or the lock in it cannot be made or opened.
    #[error("the state directory {path} cannot be used: {source}; {}", remedy(.source), path = .path.display())]
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

/// What to do about an error of the state directory.
#[must_use]
pub fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE) => "raise LimitNOFILE to 1024 or more (ulimit -n)",
        Some(Errno::NFILE) => "raise fs.file-max (sysctl)",
        Some(Errno::ROFS) => "mount its file system for writing, or name another folder in \"state\"",
        Some(Errno::NOSPC | Errno::DQUOT) => "make room on its file system, or name another folder in \"state\"",
        Some(Errno::NOTDIR | Errno::ISDIR) => "a file and a folder of one name exclude each other: move the one away",
        _ => "give the user that runs provost write access, or name another folder in \"state\"",
    }
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

    /// Takes the lock. Where the lock file cannot be made or written to, as on a file system that is mounted read-only, the
    /// file as it is serves for a lock, or else the folder.
    ///
    /// # Errors
    /// If another process has it, or the folder cannot be opened.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.path.join("lock");
        let unusable = |source| StateError::Unusable { path: path.clone(), source };
        let open = |name: &str, flags: OFlags| -> io::Result<File> {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let folder = walk(&self.path, false)?;
            Ok(rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into())
        };
        let file = match open("lock", OFlags::WRONLY | OFlags::CREATE) {
            Err(error) if is_unwritable(&error) => open("lock", OFlags::RDONLY)
                .or_else(|_| open(".", OFlags::RDONLY | OFlags::DIRECTORY))
                .map_err(|_| error),
            opened => opened,
        };
        let file = file.map_err(unusable)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path: self.path.clone() }),
            Err(errno) => Err(unusable(errno.into())),
        }
    }

    /// The folder `name` in the state directory. It is made if it is not there and can be: the server serves without.
    ///
    /// # Errors
    /// If it must not be used.
    pub fn folder(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.path.join(name);
        match private_folder(&path) {
            Err(source) if !is_unwritable(&source) => Err(StateError::Unusable { path, source }),
            _ => Ok(path),
        }
    }
}

/// Whether `error` keeps the server from writing and not from reading, so that it can serve.
#[must_use]
pub fn is_unwritable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::NOSPC | Errno::DQUOT | Errno::NOTDIR | Errno::ISDIR)
    )
}

/// Why this process cannot make files in the folder `path`, or make the folder; `None` if it can. Nothing is changed.
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

/// Makes `path` and what is missing above it, for the owner alone. What root makes belongs to whose folder it is in.
pub fn private_folder(path: &Path) -> io::Result<()> {
    walk(path, true).map(drop)
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
    let folder = folder_of(path)?;
    let draft = draft_of(folder.as_fd(), bytes, mode)?;
    draft.put(path.file_name().ok_or(io::ErrorKind::InvalidFilename)?)
}

/// Opens the folder that `path` is to lie in.
pub fn folder_of(path: &Path) -> io::Result<OwnedFd> {
    let folder = path.parent().unwrap_or(Path::new("."));
    Ok(rustix::fs::openat(walk(folder, false)?, ".", FOLDER, Mode::empty())?)
}

/// What [`write_private`] writes, whole and on the disk in `folder`, to be given its name later: little can fail then.
pub fn draft_private<'a>(folder: BorrowedFd<'a>, bytes: &[u8]) -> io::Result<Draft<'a>> {
    let draft = draft_of(folder, bytes, 0o600)?;
    draft.file.sync_all()?;
    Ok(draft)
}

fn draft_of<'a>(folder: BorrowedFd<'a>, bytes: &[u8], mode: u32) -> io::Result<Draft<'a>> {
    let mut draft = Draft::new(folder, ".new-")?;
    draft.file.write_all(bytes)?;
    give_to_owner_of(folder, &draft.file)?;
    draft.file.set_permissions(Permissions::from_mode(mode))?;
    Ok(draft)
}

/// A new file in a folder, ours alone, which has its name once it is whole; removed if it never is.
#[derive(Debug)]
pub struct Draft<'a> {
    folder: BorrowedFd<'a>,
    name: String,
    /// To be written to.
    pub file: File,
}

impl<'a> Draft<'a> {
    /// Makes one in `folder`, whose name starts with `prefix` until then.
    pub fn new(folder: BorrowedFd<'a>, prefix: &str) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let name = format!("{prefix}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            match rustix::fs::openat(folder, &name, flags, Mode::RUSR | Mode::WUSR) {
                // One that a crash left.
                Err(Errno::EXIST) => {}
                file => return Ok(Self { folder, name, file: file?.into() }),
            }
        }
    }

    /// Gives it the name `name`, in place of what has it, and returns when that is on the disk.
    pub fn put(mut self, name: &OsStr) -> io::Result<()> {
        self.file.sync_all()?;
        rustix::fs::renameat(self.folder, &self.name, self.folder, name)?;
        self.name.clear();
        Ok(rustix::fs::fsync(self.folder)?)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _ = rustix::fs::unlinkat(self.folder, &self.name, AtFlags::empty());
        }
    }
}

/// How a folder is opened that is read or synced, and is no link.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the folder `path` step by step, and makes what is missing if `makes`.
fn walk(path: &Path, makes: bool) -> io::Result<OwnedFd> {
    const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    let (mut at, mut follows, mut links) = (rustix::fs::open(".", STEP, Mode::empty())?, true, 0);
    let mut steps = steps_of(path);
    while let Some(step) = steps.pop() {
        if step == "/" {
            at = rustix::fs::open("/", STEP, Mode::empty())?;
            continue;
        }
        follows &= is_trusted(&rustix::fs::fstat(&at)?);
        let next = match rustix::fs::openat(&at, &step, STEP, Mode::empty()) {
            Err(Errno::NOENT) if makes => {
                make_folder(at.as_fd(), &step)?;
                rustix::fs::openat(&at, &step, STEP, Mode::empty())?
            }
            next => next?,
        };
        let stat = rustix::fs::fstat(&next)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => at = next,
            FileType::Symlink if follows && is_trusted(&stat) => {
                links += 1;
                if links > 40 {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
                steps.extend(steps_of(Path::new(&OsString::from_vec(target.into_bytes()))));
            }
            FileType::Symlink => {
                let step = step.display();
                return Err(io::Error::other(format!(
                    "{step} in {path} is a link that another user may have set, and root follows none of these; \
                     put a folder in its place, or run this as that user",
                    path = path.display()
                )));
            }
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    Ok(at)
}

/// The steps of `path`, the last one first.
fn steps_of(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|step| step.as_os_str().to_owned()).collect()
}

/// Whether root may follow links in this folder, or this link: whoever is not root can do no more than they may anyway.
fn is_trusted(stat: &Stat) -> bool {
    !rustix::process::geteuid().is_root() || stat.st_uid == 0
}

fn make_folder(above: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::mkdirat(above, name, Mode::RWXU) {
        // Somebody else has just made it.
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let made = File::from(rustix::fs::openat(above, name, FOLDER, Mode::empty())?);
    // Another may have been put in its place. An empty one may be given away: who can do that could make it just so.
    let mut entries = Dir::read_from(&made)?;
    if entries.all(|entry| entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."))) {
        give_to_owner_of(above, &made)?;
    }
    Ok(())
}

/// What root makes in the folder of another user, who runs the server, that user must be able to read.
fn give_to_owner_of(folder: BorrowedFd<'_>, new: &File) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let owner = rustix::fs::fstat(folder)?;
        // Where this cannot be, as within containers, the user may be the same all the same; else the server says so.
        let _ = std::os::unix::fs::fchown(new, Some(owner.st_uid), Some(owner.st_gid));
    }
    Ok(())
}

/// Makes what was created, renamed or removed in `folder` survive a power cut.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};

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

    /// What only root can try, in a state directory of another user, with a folder of root's beside it.
    fn as_root(test: &str, run: impl FnOnce(&Path, &Path)) {
        if !rustix::process::geteuid().is_root() {
            println!("NOT RUN {test}: only root can be root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let [state, roots] = ["state", "roots"].map(|name| folder.path().join(name));
        for path in [&state, &roots] {
            std::fs::create_dir(path).unwrap();
        }
        chown(&state, Some(65534), Some(65533)).unwrap();
        run(&state, &roots);
    }

    fn owner(path: &Path) -> (u32, u32) {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.gid())
    }

    #[test]
    fn root_follows_no_link_that_the_owner_of_the_state_directory_could_have_set() {
        as_root("root_follows_no_link_that_the_owner_of_the_state_directory_could_have_set", |state, roots| {
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
                    assert!(error.contains(name) && error.contains("root follows none"), "{error}");
                }
            }
            symlink(roots.join("made"), state.join("lock")).unwrap();
            assert!(StateDir::open(state).unwrap().lock().is_err());
            // A link that is a file's is replaced, not followed.
            symlink(roots.join("made"), state.join("token")).unwrap();
            write_private(&state.join("token"), b"token").unwrap();
            assert!(std::fs::symlink_metadata(state.join("token")).unwrap().is_file());
            assert_eq!(std::fs::read_dir(roots).unwrap().count(), 0);
            assert_eq!(owner(roots), (0, 0));
        });
    }

    #[test]
    fn root_gives_the_owner_what_it_makes_and_nothing_else() {
        as_root("root_gives_the_owner_what_it_makes_and_nothing_else", |state, roots| {
            std::fs::create_dir(state.join("kept")).unwrap();
            private_folder(&state.join("kept")).unwrap();
            assert_eq!(owner(&state.join("kept")), (0, 0));
            private_folder(&state.join("a/b")).unwrap();
            write_private(&state.join("a/b/key"), b"key").unwrap();
            for path in ["a", "a/b", "a/b/key"] {
                assert_eq!(owner(&state.join(path)), (65534, 65533), "{path}");
            }
            // Links that root alone could set are root's business.
            symlink("../state", roots.join("link")).unwrap();
            write_private(&roots.join("link/file"), b"").unwrap();
            assert_eq!(owner(&state.join("file")), (65534, 65533));
        });
    }

    #[test]
    fn what_is_not_put_in_place_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder");
        private_folder(&path.join("in it")).unwrap();
        assert!(write_private(&path, b"file").is_err());
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["folder"]);
    }
}
