//! Safe access for root's commands to folders that another user may own.
//!
//! The owner of a folder can create symlinks in it, add hard links to files of other users, and replace its content at
//! any moment. A process of root would follow those links with root's rights. So:
//!
//! 1. A path is resolved to a [`FolderHandle`], an open file descriptor, only through symlinks that root alone could
//!    have created.
//! 2. Operations in a folder take a name in it, and follow no symlink.
//! 3. Root performs them as the folder's owner. So the kernel checks the owner's permissions, and new files belong to
//!    the owner.
//!
//! For other users the kernel's permission checks suffice. They follow all symlinks on the path to a folder.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{Access, AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Uid};

use super::lock::{self, LockError};

/// The largest file that [`FolderHandle::read`] accepts, in bytes. Files of provost are far smaller.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The age after which a draft's process must have ended. A running process with its PID is then another one.
const ABANDONED_AFTER: Duration = Duration::from_hours(1);
/// The maximum number of symlinks in a path, as in Linux.
const MAX_LINKS: u32 = 40;

/// An open folder. Root acts as its owner in it.
#[derive(Debug)]
pub struct FolderHandle {
    handle: OwnedFd,
    /// The user that root acts as; `None`: the process's own user.
    owner: Option<User>,
    /// Whether `owner` is the owner of a symlink on the path, instead of the folder's owner.
    is_linked: bool,
    /// Whether root acts as itself in a folder that its group or others may write to.
    is_shared: bool,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: OsString,
    pub kind: FileType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    user: Uid,
    group: Gid,
}

impl FolderHandle {
    /// Opens the folder at `path`. Root follows only symlinks that root alone could have created.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(walk(path, End::Folder)?.0)
    }

    /// Opens the folder at `path` through any symlinks. From the first symlink on that another user may have created,
    /// root acts as that user, in the folder too. So the symlink gives access only to what its owner may access.
    pub fn open_through_links(path: &Path) -> io::Result<Self> {
        let (handle, _, linked_by) = walk_by(path, End::Folder, Links::ActAsOwner)?;
        Self::of(handle).map(|folder| folder.linked_by(linked_by))
    }

    /// Opens the folder at `path`. Creates it and its missing parents with mode 0700 and the owner of the folder around
    /// them.
    pub fn open_or_make(path: &Path) -> io::Result<Self> {
        Self::of(walk(path, End::NewFolder)?.0)
    }

    /// Opens the folder of the existing or future file `path`; gives it with the file's name. If `path` itself is a
    /// symlink, it is followed under the same rules.
    pub fn of_file(path: &Path) -> io::Result<(Self, OsString)> {
        let (folder, name) = walk(path, End::File)?;
        Ok((Self::of(folder)?, name))
    }

    /// A handle for the open folder `handle`.
    pub fn of(handle: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&handle)?;
        let is_root = rustix::process::geteuid().is_root();
        let owner = Some(User::owner(&stat)).filter(|owner| is_root && !owner.user.is_root());
        let is_shared = is_root && owner.is_none() && stat.st_mode & 0o022 != 0;
        Ok(Self { handle, owner, is_linked: false, is_shared })
    }

    fn linked_by(self, user: Option<User>) -> Self {
        if user.is_none() { self } else { Self { owner: user, is_linked: true, is_shared: false, ..self } }
    }

    /// Opens the subfolder `name`.
    pub fn folder(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = self.open_at(name.as_ref(), flags).and_then(Self::of)?;
        Ok(folder.linked_by(self.owner.filter(|_| self.is_linked)))
    }

    /// Creates the subfolder `name` with mode 0700.
    pub fn make_folder(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = single(name.as_ref())?;
        self.act(|folder| Ok(rustix::fs::mkdirat(folder, name, Mode::RWXU)?))?;
        self.folder(name)
    }

    /// Calls `act` with the folder's file descriptor, as the folder's owner. Only this thread changes its user. `act`
    /// must not use another [`FolderHandle`]: without root's rights, the thread cannot become its owner.
    pub fn act<T>(&self, act: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        act_as(self.owner, || act(self.handle.as_fd()))
    }

    /// The entries of the folder, sorted by name.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let handle = self.readable()?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&handle)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not return the type in the listing.
                FileType::Unknown => {
                    self.stat(&name).map_or(FileType::Unknown, |it| FileType::from_raw_mode(it.st_mode))
                }
                kind => kind,
            };
            entries.push(Entry { name, kind });
        }
        entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// The folder of the file at the relative `path`, with the file's name.
    pub fn of_file_beneath(&self, path: &Path) -> io::Result<(Self, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        Ok((self.beneath(path.parent().unwrap_or(Path::new("")))?, name.to_owned()))
    }

    /// The folder at the relative `path`; this folder if it is empty.
    pub fn beneath(&self, path: &Path) -> io::Result<Self> {
        let this = Self::of(self.handle.try_clone()?)?.linked_by(self.owner.filter(|_| self.is_linked));
        path.components().try_fold(this, |folder, step| folder.folder(step))
    }

    /// The relative paths of everything beneath this folder that is not a folder, in order.
    pub fn files_beneath(&self) -> io::Result<Vec<(PathBuf, FileType)>> {
        let mut files = Vec::new();
        for Entry { name, kind } in self.entries()? {
            if kind == FileType::Directory {
                let beneath = self.folder(&name)?.files_beneath()?;
                files.extend(beneath.into_iter().map(|(path, kind)| (Path::new(&name).join(path), kind)));
            } else {
                files.push((name.into(), kind));
            }
        }
        Ok(files)
    }

    /// The metadata of `name`. A symlink is not followed.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Stat> {
        let name = single(name.as_ref())?;
        self.act(|folder| Ok(rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Whether `name` exists.
    pub fn has(&self, name: impl AsRef<OsStr>) -> io::Result<bool> {
        match self.stat(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// The kind of `name`; `None` if it does not exist. A symlink is not followed.
    pub fn kind(&self, name: impl AsRef<OsStr>) -> io::Result<Option<FileType>> {
        match self.stat(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(|stat| Some(FileType::from_raw_mode(stat.st_mode))),
        }
    }

    /// Checks that `name` is a regular file, if it exists.
    pub fn check_regular(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        match self.kind(name)? {
            None | Some(FileType::RegularFile) => Ok(()),
            Some(FileType::Symlink) => Err(io::Error::other("a symbolic link, which is not followed")),
            Some(kind) => Err(io::Error::other(format!("{}, not a regular file; remove it", kind_of(kind)))),
        }
    }

    /// Opens the regular file `name` for reading.
    pub fn open_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let name = name.as_ref();
        // NONBLOCK: opening a FIFO must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match self.open_at(name, flags) {
            Ok(file) => File::from(file),
            // The system's error for a socket is "No such device or address".
            Err(error) => return self.check_regular(name).and(Err(error)),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return self.check_regular(name).and_then(|()| Err(io::Error::other("not a regular file")));
        }
        if self.is_shared && metadata.nlink() > 1 {
            let reason = "a hard link in a folder that other users may write: it may be another user's file";
            return Err(io::Error::other(reason));
        }
        Ok(file)
    }

    /// Opens the regular file `name` for reading, and for writing at its end. Creates it with mode 0600.
    pub fn open_to_append(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let name = single(name.as_ref())?;
        self.check_regular(name)?;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW;
        // NONBLOCK: opening a FIFO must not wait for its writer.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(self.act(|folder| Ok(rustix::fs::openat(folder, name, flags, mode)?))?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        if self.is_shared && metadata.nlink() > 1 {
            return Err(io::Error::other("a hard link in a folder that other users may write"));
        }
        Ok(file)
    }

    /// The error of accessing `name` as the user who accesses it here, if there is one. A symlink is not followed.
    pub fn why_inaccessible(&self, name: impl AsRef<OsStr>, access: Access) -> Option<io::Error> {
        let flags = AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW;
        let name = name.as_ref();
        self.act(|folder| Ok(rustix::fs::accessat(folder, name, access, flags)?)).err()
    }

    /// The ID of the user who acts in this folder.
    #[must_use]
    pub fn user(&self) -> u32 {
        self.owner.map_or_else(rustix::process::geteuid, |owner| owner.user).as_raw()
    }

    /// Reads the regular file `name`, up to 64 MiB.
    pub fn read(&self, name: impl AsRef<OsStr>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(name)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE_BYTES >> 20)));
        }
        Ok(bytes)
    }

    /// The target of the symlink `name`.
    pub fn link_target(&self, name: impl AsRef<OsStr>) -> io::Result<PathBuf> {
        let name = single(name.as_ref())?;
        let target = self.act(|folder| Ok(rustix::fs::readlinkat(folder, name, Vec::new())?))?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// Creates the symlink `name` to `target`; replaces an existing `name` atomically.
    pub fn put_link(&self, target: impl AsRef<Path>, name: impl AsRef<OsStr>) -> io::Result<()> {
        let draft = draft_name(".new-");
        self.act(|folder| Ok(rustix::fs::symlinkat(target.as_ref(), folder, &draft)?))?;
        self.rename(&draft, name).inspect_err(|_| drop(self.remove(&draft)))
    }

    /// Removes the file or symlink `name`.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = single(name.as_ref())?;
        self.act(|folder| Ok(rustix::fs::unlinkat(folder, name, AtFlags::empty())?))
    }

    /// Removes the folder `name`, which must be empty.
    pub fn remove_empty_folder(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = single(name.as_ref())?;
        self.act(|folder| Ok(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?))
    }

    /// Removes `name` recursively, if it exists.
    pub fn remove_all(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        let removed = match self.stat(name) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let folder = self.folder(name)?;
                folder.entries()?.iter().try_for_each(|entry| folder.remove_all(&entry.name))?;
                self.remove_empty_folder(name)
            }
            Ok(_) => self.remove(name),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Removes the drafts with a [`draft_name`] of `prefix` that killed processes left. Ignores errors.
    pub fn sweep(&self, prefix: &str, now: SystemTime) {
        for Entry { name, .. } in self.entries().unwrap_or_default() {
            let draft = name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(process_of);
            if draft.is_some_and(|process| !is_running(process) || self.is_abandoned(&name, now)) {
                let _ = self.remove_all(&name);
            }
        }
    }

    /// Whether the draft `name` is so old that its process must have ended, although its PID is in use again.
    fn is_abandoned(&self, name: &OsStr, now: SystemTime) -> bool {
        let Ok(seconds) = self.stat(name).and_then(|stat| u64::try_from(stat.st_mtime).map_err(io::Error::other))
        else {
            return false;
        };
        let age = now.duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        age.is_ok_and(|age| age > ABANDONED_AFTER)
    }

    /// Renames `from` to `to`; replaces an existing `to`.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        let (from, to) = (single(from.as_ref())?, single(to.as_ref())?);
        self.act(|folder| Ok(rustix::fs::renameat(folder, from, folder, to)?))
    }

    /// Renames `from` to `to`, unless `to` exists.
    pub fn rename_to_new(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        let (from, to) = (single(from.as_ref())?, single(to.as_ref())?);
        self.act(|folder| Ok(rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE)?))
    }

    /// Moves `name` to the folder `other`, unless it exists there. Root acts as the owner of this folder.
    pub fn move_to(&self, name: impl AsRef<OsStr>, other: &Self) -> io::Result<()> {
        let name = single(name.as_ref())?;
        self.act(|folder| Ok(rustix::fs::renameat_with(folder, name, other, name, RenameFlags::NOREPLACE)?))
    }

    /// The mode of the folder itself.
    pub fn mode(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&self.handle)?.st_mode & 0o7777)
    }

    /// Sets the mode of the folder itself.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        let handle = self.readable()?;
        self.act(|_| Ok(rustix::fs::fchmod(&handle, Mode::from_raw_mode(mode))?))
    }

    /// Syncs the folder, so that created, renamed and removed entries survive a power failure.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.readable()?)?)
    }

    /// Locks this folder until the returned file descriptor is dropped. `path` is the path for messages. `notify` gets
    /// a message if that takes more than a second.
    pub fn lock(&self, path: &Path, notify: &dyn Fn(&str)) -> Result<OwnedFd, LockError> {
        let handle = self.readable().map_err(|source| LockError::Io { path: path.to_owned(), source })?;
        lock::exclusive(&handle, path, notify)?;
        Ok(handle)
    }

    /// Calls `connect` with a path to the Unix socket `name`.
    pub fn at_socket<T>(&self, name: impl AsRef<OsStr>, connect: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let name = single(name.as_ref())?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.act(|folder| {
            let socket = rustix::fs::openat(folder, name, flags, Mode::empty())?;
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode);
            if kind != FileType::Socket {
                let reason = format!("{}, not a socket; remove it, and restart provost", kind_of(kind));
                return Err(io::Error::other(reason));
            }
            // The path of the file descriptor, so that the checked socket is the one that is connected to.
            connect(Path::new(&format!("/proc/self/fd/{}", socket.as_raw_fd())))
        })
    }

    fn open_at(&self, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
        let name = single(name)?;
        let opened = self.act(|folder| Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?));
        let is_link = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        match opened {
            Err(_) if self.stat(name).is_ok_and(is_link) => {
                Err(io::Error::other("a symbolic link, which is not followed"))
            }
            opened => opened,
        }
    }

    /// A file descriptor of the folder itself, for reading, syncing or locking it.
    pub fn readable(&self) -> io::Result<OwnedFd> {
        self.act(|folder| Ok(rustix::fs::openat(folder, ".", FOLDER, Mode::empty())?))
    }
}

impl AsFd for FolderHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// The words for a kind of file.
#[must_use]
pub fn kind_of(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of an unknown kind",
    }
}

/// A temporary file that gets its name when it is complete, and is removed if that does not happen.
#[derive(Debug)]
pub struct Draft<'a> {
    folder: &'a FolderHandle,
    name: String,
    /// The open file, for writing.
    pub file: File,
}

/// A unique name with `prefix`, the PID and a counter. [`FolderHandle::sweep`] recognizes it.
pub fn draft_name(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

impl<'a> Draft<'a> {
    /// Creates one in `folder` with mode 0600. Its name begins with `prefix`.
    pub fn new(folder: &'a FolderHandle, prefix: &str) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let name = draft_name(prefix);
            match folder.act(|handle| Ok(rustix::fs::openat(handle, &name, flags, Mode::RUSR | Mode::WUSR)?)) {
                // The name is in use: a crashed process with the same PID left it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => return Ok(Self { folder, name, file: file?.into() }),
            }
        }
    }

    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.folder.act(|_| self.file.set_permissions(Permissions::from_mode(mode)))
    }

    /// Syncs the file, renames it to `name`, which it replaces, and syncs the folder.
    pub fn put(mut self, name: impl AsRef<OsStr>) -> io::Result<()> {
        self.file.sync_all()?;
        self.folder.rename(&self.name, name)?;
        self.name.clear();
        self.folder.sync()
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _ = self.folder.remove(&self.name);
        }
    }
}

impl User {
    fn owner(stat: &Stat) -> Self {
        Self { user: Uid::from_raw(stat.st_uid), group: Gid::from_raw(stat.st_gid) }
    }

    /// The owner of the symlink or of the folder around it: the first who is not root.
    fn other_than_root(link: &Stat, around: &Stat) -> Option<Self> {
        [link, around].map(Self::owner).into_iter().find(|owner| !owner.user.is_root())
    }
}

/// Whether only root can read `file` on behalf of the owner of `folder`: it is a hard link to a private file of another
/// user.
pub fn is_private_hard_link(file: &Stat, folder: BorrowedFd<'_>) -> io::Result<bool> {
    let owner = rustix::fs::fstat(folder)?.st_uid;
    Ok(file.st_nlink > 1 && file.st_uid != owner && file.st_mode & 0o044 == 0)
}

fn act_as<T>(user: Option<User>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match user {
        None => act(),
        Some(user) => AssumedUser::assume(user)?.run(act),
    }
}

/// The IDs of a thread that acts as another user. Only the effective IDs change. The real ones stay root's, so that
/// root's rights can be restored, and processes of the user cannot trace this one.
struct AssumedUser {
    group: Gid,
    groups: Vec<Gid>,
}

impl AssumedUser {
    fn assume(User { user, group }: User) -> io::Result<Self> {
        let assumed = Self { group: rustix::process::getegid(), groups: rustix::process::getgroups()? };
        // Set the user last: without root's rights, the group and groups cannot be set.
        let started = rustix::thread::set_thread_groups(&[])
            .and_then(|()| rustix::thread::set_thread_res_gid(None, Some(group), None))
            .and_then(|()| rustix::thread::set_thread_res_uid(None, Some(user), None));
        match started {
            Ok(()) => Ok(assumed),
            Err(errno) => {
                assert!(assumed.end().is_ok(), "{RIGHTS_LOST}");
                let user = user.as_raw();
                Err(io::Error::other(format!(
                    "root cannot act as the owner, user {user} ({errno}): run this as that user"
                )))
            }
        }
    }

    /// Runs `act`, and restores root's rights, also after a panic.
    ///
    /// This is not done in a destructor: if the rights are not restored, the thread must not continue, and a panic in a
    /// destructor during another panic aborts the process.
    fn run<T>(self, act: impl FnOnce() -> T) -> T {
        let acted = catch_unwind(AssertUnwindSafe(act));
        let ended = self.end();
        match acted {
            Ok(result) => {
                // The kernel allows this to a thread whose real user is root.
                assert!(ended.is_ok(), "{RIGHTS_LOST}");
                result
            }
            Err(panic) => resume_unwind(panic),
        }
    }

    fn end(&self) -> rustix::io::Result<()> {
        rustix::thread::set_thread_res_uid(None, Some(Uid::ROOT), None)
            .and_then(|()| rustix::thread::set_thread_res_gid(None, Some(self.group), None))
            .and_then(|()| rustix::thread::set_thread_groups(&self.groups))
    }
}

const RIGHTS_LOST: &str = "root's rights cannot be restored";

/// The flags to open a folder for reading, without following a symlink.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The kind of target that a path must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Folder,
    /// A folder. It and its missing parents are created.
    NewFolder,
    /// A file that exists or may be created.
    File,
}

/// How to handle a symlink that a user other than root may have created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Links {
    Refuse,
    ActAsOwner,
}

fn walk(path: &Path, end: End) -> io::Result<(OwnedFd, OsString)> {
    walk_by(path, end, Links::Refuse).map(|(folder, name, _)| (folder, name))
}

/// Resolves `path` component by component. Gives the folder, or for a file its folder and name, and the owner of the
/// first followed symlink that is not root's.
fn walk_by(path: &Path, end: End, links: Links) -> io::Result<(OwnedFd, OsString, Option<User>)> {
    const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    let (mut at, mut follows, mut count) = (rustix::fs::open(".", STEP, Mode::empty())?, true, 0);
    let mut linked_by = None;
    let mut steps = steps_of(path);
    while let Some(step) = steps.pop() {
        if step == "/" {
            at = rustix::fs::open("/", STEP, Mode::empty())?;
            continue;
        }
        let around = rustix::fs::fstat(&at)?;
        follows &= is_trusted(&around);
        let is_last_of_file = end == End::File && steps.is_empty();
        let open = || act_as(linked_by, || Ok(rustix::fs::openat(&at, &step, STEP, Mode::empty())));
        let next = match open()? {
            Err(Errno::NOENT) if is_last_of_file => return Ok((at, step, linked_by)),
            Err(Errno::NOENT) if end == End::NewFolder => {
                make_folder(at.try_clone()?, &step)?;
                open()??
            }
            next => next?,
        };
        let stat = rustix::fs::fstat(&next)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                if !(follows && is_trusted(&stat)) {
                    match links {
                        Links::Refuse => return Err(refused_link(path, &step)),
                        Links::ActAsOwner => linked_by = linked_by.or(User::other_than_root(&stat, &around)),
                    }
                }
                count += 1;
                if count > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
                steps.extend(steps_of(Path::new(&OsString::from_vec(target.into_bytes()))));
            }
            _ if is_last_of_file => return Ok((at, step, linked_by)),
            FileType::Directory => at = next,
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    if end == End::File { Err(io::ErrorKind::InvalidFilename.into()) } else { Ok((at, OsString::new(), linked_by)) }
}

fn refused_link(path: &Path, step: &OsStr) -> io::Error {
    io::Error::other(format!(
        "{step} in {path} is a symbolic link that another user may have made, and root does not follow these; put a folder in its \
         place, or run this as that user",
        step = step.display(),
        path = path.display()
    ))
}

/// The components of `path` in reverse order.
fn steps_of(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|step| step.as_os_str().to_owned()).collect()
}

/// Whether a symlink with this owner, or in a folder with this owner, may be followed on the path to a folder.
fn is_trusted(stat: &Stat) -> bool {
    !rustix::process::geteuid().is_root() || stat.st_uid == 0
}

fn make_folder(around: OwnedFd, name: &OsStr) -> io::Result<()> {
    match FolderHandle::of(around)?.act(|folder| Ok(rustix::fs::mkdirat(folder, name, Mode::RWXU)?)) {
        // Another process has just created it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The PID in `PID-NUMBER`, the end of a draft's name.
fn process_of(name: &str) -> Option<Pid> {
    let (process, number) = name.split_once('-')?;
    number.parse::<u64>().ok()?;
    Pid::from_raw(process.parse().ok()?)
}

fn is_running(process: Pid) -> bool {
    !matches!(rustix::process::test_kill_process(process), Err(Errno::SRCH))
}

/// Checks that `name` is a single component that stays in the folder.
fn single(name: &OsStr) -> io::Result<&OsStr> {
    let mut steps = Path::new(name).components();
    match (steps.next(), steps.next()) {
        (Some(Component::Normal(step)), None) if step == name => Ok(name),
        _ => Err(io::ErrorKind::InvalidFilename.into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::{chown, lchown, symlink};
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::AtomicBool;

    use super::*;

    pub(in crate::state) const OWNER: (u32, u32) = (65534, 65533);

    /// Runs a test that needs root, with a folder of another user and a folder of root with a secret.
    pub(in crate::state) fn as_root(test: &str, run: impl FnOnce(&Path, &Path)) {
        if !rustix::process::geteuid().is_root() {
            println!("NOT RUN {test}: only root can be root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let [theirs, roots] = ["theirs", "roots"].map(|name| folder.path().join(name));
        std::fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(OWNER.0), Some(OWNER.1)).unwrap();
        std::fs::create_dir(&roots).unwrap();
        write(&roots.join("secret"), "secret", 0o600);
        run(&theirs, &roots);
        assert_eq!(std::fs::read(roots.join("secret")).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(&roots).unwrap().count(), 1, "nothing is made, nothing is removed");
        assert_eq!([&roots, &roots.join("secret")].map(|path| owner(path)), [(0, 0), (0, 0)]);
    }

    fn write(path: &Path, text: &str, mode: u32) {
        use std::io::Write;
        let mut file = File::create(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
    }

    pub(in crate::state) fn owner(path: &Path) -> (u32, u32) {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.gid())
    }

    fn ids() -> (Uid, Gid, Vec<Gid>) {
        let groups = rustix::process::getgroups().unwrap();
        (rustix::process::geteuid(), rustix::process::getegid(), groups)
    }

    #[test]
    fn root_appends_as_the_owner_and_follows_no_link() {
        use std::io::Write;
        as_root("root_appends_as_the_owner_and_follows_no_link", |theirs, roots| {
            let folder = FolderHandle::open(theirs).unwrap();
            for line in ["one\n", "two\n"] {
                folder.open_to_append("log").unwrap().write_all(line.as_bytes()).unwrap();
            }
            assert_eq!(std::fs::read_to_string(theirs.join("log")).unwrap(), "one\ntwo\n");
            assert_eq!(owner(&theirs.join("log")), OWNER);
            symlink(roots.join("secret"), theirs.join("link")).unwrap();
            std::fs::hard_link(roots.join("secret"), theirs.join("hard")).unwrap();
            write(&theirs.join("roots"), "", 0o600);
            std::fs::create_dir(theirs.join("folder")).unwrap();
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, theirs.join("fifo"), FileType::Fifo, mode, 0).unwrap();
            for name in ["link", "hard", "roots", "folder", "fifo", "../roots/secret"] {
                assert!(folder.open_to_append(name).is_err(), "{name}");
            }
        });
    }

    #[test]
    fn root_does_not_read_planted_files() {
        as_root("root_does_not_read_planted_files", |theirs, roots| {
            let secret = roots.join("secret");
            for (name, user) in [("link", OWNER.0), ("roots-link", 0)] {
                symlink(&secret, theirs.join(name)).unwrap();
                lchown(theirs.join(name), Some(user), Some(user)).unwrap();
            }
            symlink("../roots/secret", theirs.join("relative")).unwrap();
            symlink("/proc/self/root", theirs.join("magic")).unwrap();
            symlink(roots, theirs.join("folder")).unwrap();
            std::fs::hard_link(&secret, theirs.join("hard")).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, theirs.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0)
                .unwrap();
            let _socket = UnixListener::bind(theirs.join("socket")).unwrap();
            let planted = ["link", "roots-link", "relative", "magic", "folder", "hard", "fifo", "socket"];
            let folder = FolderHandle::open(theirs).unwrap();
            for name in planted {
                let error = folder.read(name).unwrap_err().to_string();
                let reason = match name {
                    "hard" => "Permission denied",
                    "fifo" => "not a regular file",
                    "socket" => "a socket, not a regular file",
                    _ => "a symbolic link",
                };
                assert!(error.contains(reason), "{name}: {error}");
                assert!(folder.folder(name).is_err() && folder.make_folder(name).is_err(), "{name}");
            }
            for path in ["folder/secret", "magic/etc/passwd", "link", "relative"] {
                let error = super::super::read(&theirs.join(path)).unwrap_err().to_string();
                assert!(error.contains("root does not follow these"), "{path}: {error}");
            }
            assert!(super::super::read(&theirs.join("hard")).is_err());
            let entries = folder.entries().unwrap();
            assert_eq!(entries.len(), planted.len());
            for Entry { name, .. } in entries {
                folder.remove_all(name).unwrap();
            }
            assert!(folder.entries().unwrap().is_empty());
        });
    }

    #[test]
    fn root_acts_as_the_folders_owner() {
        as_root("root_acts_as_the_folders_owner", |theirs, roots| {
            let before = ids();
            let folder = FolderHandle::open(theirs).unwrap();
            let mut draft = Draft::new(&folder, ".new-").unwrap();
            std::io::Write::write_all(&mut draft.file, b"content").unwrap();
            draft.put("file").unwrap();
            folder.make_folder("inner").unwrap().make_folder("most").unwrap();
            for path in ["file", "inner", "inner/most"] {
                assert_eq!(owner(&theirs.join(path)), OWNER, "{path}");
            }
            assert_eq!(folder.read("file").unwrap(), b"content");
            folder.rename("file", "other").unwrap();
            assert_eq!((folder.has("file").unwrap(), folder.has("other").unwrap()), (false, true));
            assert_eq!(ids(), before);
            // A file that belongs to root stays root's: the owner cannot read it either.
            write(&theirs.join("roots"), "of root", 0o600);
            assert_eq!(folder.read("roots").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            let as_whom = folder.act(|_| Ok(ids())).unwrap();
            assert_eq!((as_whom.0.as_raw(), as_whom.1.as_raw(), as_whom.2), (OWNER.0, OWNER.1, Vec::new()));
            assert!(std::panic::catch_unwind(|| folder.act(|_| -> io::Result<()> { panic!("as the owner") })).is_err());
            assert_eq!(ids(), before, "also after a panic");
            assert!(FolderHandle::open(roots).unwrap().act(|_| Ok(ids())).unwrap() == before);
        });
    }

    #[test]
    fn failed_restore_of_rights_during_a_panic_does_not_abort() {
        let message = |panic: Box<dyn std::any::Any + Send>| {
            let literal = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            panic.downcast_ref::<String>().cloned().or(literal)
        };
        // In a thread of its own, which may lose its rights. The kernel allows 65,536 groups.
        let thread = move || {
            let lost = || AssumedUser { group: rustix::process::getegid(), groups: vec![Gid::ROOT; 65_537] };
            let [inner, outer] = [true, false].map(|panics| {
                let act = || assert!(!panics, "while assumed");
                catch_unwind(AssertUnwindSafe(|| lost().run(act))).err().and_then(message)
            });
            assert_eq!((inner.as_deref(), outer.as_deref()), (Some("while assumed"), Some(RIGHTS_LOST)));
        };
        std::thread::spawn(thread).join().unwrap();
    }

    #[test]
    fn move_replaces_nothing_and_needs_the_owners_permission() {
        as_root("move_replaces_nothing_and_needs_the_owners_permission", |theirs, roots| {
            let [from, to, of_root] = [theirs, theirs, roots].map(|path| FolderHandle::open(path).unwrap());
            let to = to.make_folder("to").unwrap();
            write(&theirs.join("file"), "new", 0o600);
            let kind = |error: io::Error| error.kind();
            assert_eq!(from.move_to("file", &of_root).map_err(kind), Err(io::ErrorKind::PermissionDenied));
            symlink(roots.join("secret"), theirs.join("to/file")).unwrap();
            assert_eq!(from.move_to("file", &to).map_err(kind), Err(io::ErrorKind::AlreadyExists));
            to.remove("file").unwrap();
            from.move_to("file", &to).unwrap();
            assert_eq!((from.has("file").unwrap(), to.has("file").unwrap()), (false, true));
        });
    }

    #[test]
    fn other_threads_stay_root() {
        as_root("other_threads_stay_root", |theirs, _| {
            let folder = FolderHandle::open(theirs).unwrap();
            let other = folder.act(|_| Ok(std::thread::scope(|scope| scope.spawn(ids).join().unwrap()))).unwrap();
            assert_eq!(other.0.as_raw(), OWNER.0, "a thread that begins in it is the owner's too");
            let (go, going) = std::sync::mpsc::channel::<()>();
            let (sender, receiver) = std::sync::mpsc::channel();
            let thread = std::thread::spawn(move || {
                going.recv().unwrap();
                sender.send(ids()).unwrap();
            });
            let other = folder.act(|_| {
                go.send(()).unwrap();
                Ok(receiver.recv().unwrap())
            });
            assert!(other.unwrap().0.is_root());
            thread.join().unwrap();
        });
    }

    #[test]
    fn folder_swapped_for_a_symlink_is_not_followed() {
        as_root("folder_swapped_for_a_symlink_is_not_followed", |theirs, roots| {
            let [inner, aside] = ["inner", "aside"].map(|name| theirs.join(name));
            std::fs::create_dir(&inner).unwrap();
            write(&inner.join("secret"), "harmless", 0o644);
            chown(&inner, Some(OWNER.0), Some(OWNER.1)).unwrap();
            let is_done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        std::fs::rename(&inner, &aside).unwrap();
                        symlink(roots, &inner).unwrap();
                        std::fs::remove_file(&inner).unwrap();
                        std::fs::rename(&aside, &inner).unwrap();
                    }
                });
                let folder = FolderHandle::open(theirs).unwrap();
                let (mut read, mut missed) = (0, 0);
                while read < 20 || missed < 20 {
                    let found = folder.folder("inner").and_then(|inner| inner.read("secret"));
                    for found in [found, super::super::read(&inner.join("secret"))] {
                        match found {
                            Ok(bytes) => {
                                assert_eq!(bytes, b"harmless");
                                read += 1;
                            }
                            Err(_) => missed += 1,
                        }
                    }
                    // The owner may remove its own files, never root's.
                    let _ = folder.remove_all("inner/secret");
                    let _ = super::super::write_private(&inner.join("new"), b"new");
                }
                is_done.store(true, Ordering::Relaxed);
            });
        });
    }

    #[test]
    fn hard_link_in_group_writable_folder_is_not_read() {
        as_root("hard_link_in_group_writable_folder_is_not_read", |theirs, roots| {
            let shared = theirs.parent().unwrap().join("shared");
            std::fs::create_dir(&shared).unwrap();
            write(&shared.join("own"), "own", 0o600);
            std::fs::hard_link(roots.join("secret"), shared.join("hard")).unwrap();
            for (mode, is_read) in [(0o700, true), (0o755, true), (0o775, false), (0o1777, false)] {
                std::fs::set_permissions(&shared, Permissions::from_mode(mode)).unwrap();
                let folder = FolderHandle::open(&shared).unwrap();
                assert_eq!(folder.read("hard").is_ok(), is_read, "{mode:o}");
                assert_eq!(folder.read("own").unwrap(), b"own", "{mode:o}");
            }
        });
    }

    #[test]
    fn symlinks_to_a_folder_are_followed_as_their_owner() {
        as_root("symlinks_to_a_folder_are_followed_as_their_owner", |theirs, roots| {
            let around = theirs.parent().unwrap();
            std::fs::set_permissions(around, Permissions::from_mode(0o711)).unwrap();
            std::fs::set_permissions(roots, Permissions::from_mode(0o711)).unwrap();
            std::fs::create_dir(theirs.join("release")).unwrap();
            write(&theirs.join("release/file"), "content", 0o644);
            symlink("release", theirs.join("current")).unwrap();
            symlink(roots, theirs.join("outside")).unwrap();
            symlink("..", theirs.join("to-around")).unwrap();
            symlink("theirs/current", around.join("by-root")).unwrap();
            let open = |path: PathBuf| FolderHandle::open_through_links(&path).unwrap();
            assert_eq!(open(theirs.join("current")).read("file").unwrap(), b"content");
            assert_eq!(open(around.join("by-root")).read("file").unwrap(), b"content");
            assert_eq!(
                open(theirs.join("outside")).read("secret").unwrap_err().kind(),
                io::ErrorKind::PermissionDenied
            );
            assert!(open(theirs.join("outside")).make_folder("made").is_err());
            assert!(
                open(theirs.join("to-around")).folder("roots").unwrap().read("secret").is_err(),
                "in what is in it too"
            );
            assert_eq!(open(roots.to_owned()).read("secret").unwrap(), b"secret");
            // Root must not pass folders that the owner of the symlink cannot pass.
            std::fs::set_permissions(around, Permissions::from_mode(0o700)).unwrap();
            assert!(FolderHandle::open_through_links(&theirs.join("outside")).is_err());
            assert_eq!(open(theirs.join("current")).read("file").unwrap(), b"content", "a link within needs none");
        });
    }

    #[test]
    fn names_with_separators_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        write(&folder.path().join("a/file"), "content", 0o600);
        let folder = FolderHandle::open(folder.path()).unwrap();
        for name in ["", ".", "..", "/", "a/file", "a/", "./a", "../x", "/etc/passwd"] {
            let kind = |error: io::Error| error.kind();
            assert_eq!(folder.read(name).map_err(kind), Err(io::ErrorKind::InvalidFilename), "{name:?}");
            assert_eq!(folder.remove(name).map_err(kind), Err(io::ErrorKind::InvalidFilename), "{name:?}");
            assert_eq!(folder.rename("a", name).map_err(kind), Err(io::ErrorKind::InvalidFilename), "{name:?}");
        }
        assert_eq!(folder.folder("a").unwrap().read("file").unwrap(), b"content");
    }

    #[test]
    fn oversized_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("sparse")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        let error = FolderHandle::open(folder.path()).unwrap().read("sparse").unwrap_err().to_string();
        assert_eq!(error, "larger than 64 MiB");
    }

    #[test]
    fn only_stale_drafts_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        // PIDs in Linux are at most 2^22.
        let (ended, running) = (4_194_305, std::process::id());
        let stays = [
            format!(".constituency-{running}-0"),
            format!(".constituency-{ended}"),
            format!(".constituency-{ended}-x"),
            ".constituency--1-0".to_owned(),
            ".constituency-x-0".to_owned(),
            format!(".other-{ended}-0"),
            "constituency.json".to_owned(),
        ];
        for name in &stays {
            write(&folder.path().join(name), "", 0o600);
        }
        let outside = folder.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        write(&outside.join("precious"), "", 0o600);
        write(&folder.path().join(format!(".constituency-{ended}-0")), "", 0o600);
        symlink(&outside, folder.path().join(format!(".constituency-{ended}-1"))).unwrap();
        std::fs::create_dir(folder.path().join(format!(".constituency-{ended}-2"))).unwrap();
        write(&folder.path().join(format!(".constituency-{ended}-2/file")), "", 0o600);
        let now = crate::clock::now();
        let names = || {
            let entries = FolderHandle::open(folder.path()).unwrap().entries().unwrap();
            entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect::<Vec<_>>()
        };
        FolderHandle::open(folder.path()).unwrap().sweep(".constituency-", now);
        let mut expected = stays.to_vec();
        expected.push("outside".to_owned());
        expected.sort();
        assert_eq!(names(), expected);
        assert!(outside.join("precious").exists());
        FolderHandle::open(folder.path())
            .unwrap()
            .sweep(".constituency-", now + ABANDONED_AFTER + Duration::from_secs(2));
        expected.retain(|name| *name != stays[0]);
        assert_eq!(names(), expected);
    }
}
