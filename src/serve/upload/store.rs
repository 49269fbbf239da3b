//! The uploads on disk: `state/uploads/<constituency>/<mac>/<path as sent>`.
//!
//! An upload in progress is an [`IncomingUpload`]. Each of its parts releases its resource on drop: the
//! [sink](UploadSink) its temporary file, the [reservation](SpaceReservation) its space, the [lock](WriteLock) its
//! file.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{FileType, ResolveFlags};

use super::quotas::{ConstituencyUsage, Quotas, SpaceReservation};
use super::sink::{Append, TempReplace, UploadSink, failed};
use super::usage::Usage;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::serve::access_control::content_range::{BadContentRange, ContentRange};
use crate::serve::access_control::upload_name::UploadName;
use crate::serve::access_control::{Denial, WriteGrant};
use crate::serve::open_beneath::{self, OpenFile};
use crate::state::{self, Entry, FolderHandle, kind_of};

/// The folder of all uploads, in the state directory.
pub const FOLDER: &str = "uploads";
/// The folder of incomplete bodies. A constituency cannot have this name.
const INCOMING: &str = ".incoming";
/// The limit of concurrent uploads per phone. Each holds memory, a file, and a thread during disk access.
const MAX_CONCURRENT: usize = 8;

/// All uploads.
#[derive(Debug)]
pub struct UploadStore {
    root: PathBuf,
    handle: OnceLock<FolderHandle>,
    /// The folder for incomplete bodies of this run, once it is created.
    incoming: Mutex<Option<PathBuf>>,
    quotas: Arc<Quotas>,
    /// The files that are being written, by their phone's folder.
    locked: Mutex<HashMap<PathBuf, Vec<PathBuf>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadResult {
    /// A new file.
    Created,
    /// An existing file.
    Changed,
}

/// An upload whose body is being received.
#[derive(Debug)]
pub struct IncomingUpload {
    sink: UploadSink,
    reservation: SpaceReservation,
    lock: WriteLock,
    old_size: Option<u64>,
    /// The offset of the body in the file.
    first: u64,
    received: u64,
    expected: Option<u64>,
    is_range: bool,
    max_file_bytes: u64,
}

/// Locks a file below the phone's folder `folder` for one writer; dropping it unlocks the file.
#[derive(Debug)]
struct WriteLock {
    store: Arc<UploadStore>,
    folder: PathBuf,
    target: PathBuf,
}

impl UploadStore {
    /// Opens the store in the folder `root`, and removes incomplete uploads of an earlier run. While the disk is not
    /// writable, the store serves uploads and accepts none.
    #[must_use]
    pub fn new(root: PathBuf, reserve: Option<u64>) -> Self {
        let quotas = Arc::new(Quotas::new(root.clone(), reserve));
        let (handle, incoming) = (OnceLock::new(), Mutex::default());
        let store = Self { root, handle, incoming, quotas, locked: Mutex::default() };
        // Ignore errors here: the next upload retries, and reports the error.
        let _ = store.prepare();
        store
    }

    /// Creates an empty folder for incomplete bodies, once per run.
    fn prepare(&self) -> io::Result<PathBuf> {
        let mut incoming = self.incoming.lock();
        if let Some(ready) = &*incoming {
            return Ok(ready.clone());
        }
        state::private_folder(&self.root)?;
        let folder = self.root.join(INCOMING);
        // Only this server uses it, so it may be of any type.
        state::remove_all(&folder)?;
        state::private_folder(&folder)?;
        Ok(incoming.insert(folder).clone())
    }

    /// A handle of the folder of all uploads.
    fn handle(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(handle) = self.handle.get() {
            return Ok(handle.as_fd());
        }
        let opened = state::folder_of(&self.root.join(INCOMING))?;
        Ok(self.handle.get_or_init(|| opened).as_fd())
    }

    /// Opens an upload for reading.
    ///
    /// # Errors
    /// [`Denial::NotFound`] if it does not exist.
    pub fn open(
        &self,
        constituency: &ConstituencyName,
        mac: MacAddress,
        name: &UploadName,
    ) -> Result<OpenFile, Denial> {
        let path = format!("{constituency}/{mac}/{}", name.as_str());
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let root = self.handle().map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Denial::NotFound,
            _ => Denial::Failed(format!("the uploads in {} cannot be read: {error}", self.root.display())),
        })?;
        open_beneath::opened(
            open_beneath::open(root, &path, open_beneath::READ_FLAGS, resolve).map_err(open_beneath::denial)?,
        )
    }

    /// Prepares for a body of `length` bytes (if known) at `range`. Blocks on the disk.
    ///
    /// # Errors
    /// Every denial that does not depend on the body.
    pub fn begin(
        self: &Arc<Self>,
        grant: &WriteGrant,
        constituency: &ConstituencyName,
        range: Option<ContentRange>,
        length: Option<u64>,
    ) -> Result<IncomingUpload, Denial> {
        let expected = match (range, length) {
            (Some(range), Some(length)) if range.length() != length => return Err(BadContentRange::Length.into()),
            (Some(range), _) => Some(range.length()),
            (None, length) => length,
        };
        let first = range.map_or(0, ContentRange::first);
        let account =
            ConstituencyUsage { constituency: constituency.clone(), mac: grant.mac(), limits: *grant.limits() };
        let max_file_bytes = account.limits.max_file_bytes;

        let incoming = self
            .prepare()
            .map_err(|error| Denial::Failed(format!("uploads in {} cannot be stored: {error}", self.root.display())))?;
        let folder = self.root.join(constituency.as_str()).join(account.mac.to_string());
        let lock = WriteLock::take(self, folder, grant.name())?;
        let old_size = size_of(&lock.target)?;
        let size = old_size.unwrap_or(0);
        if first > size {
            return Err(Denial::Gap { first, size });
        }
        let end = checked_end(first, expected.unwrap_or(0), max_file_bytes)?;
        let growth = Usage { bytes: end.saturating_sub(size), files: u64::from(old_size.is_none()) };
        // A prefix of a file that phones read back would be served; a prefix of a log is valid.
        let is_append = range.is_some() && first == size && !grant.name().overrides_folder();
        let to_write = if is_append { end - first } else { end };
        let mut reservation = self.quotas.reserve(&account, growth, to_write)?;
        let sink = if is_append {
            let append = Append::open(&self.root, &lock.target, old_size)?;
            reservation.stored(Usage { bytes: 0, files: growth.files });
            UploadSink::Append(append)
        } else {
            let replace = TempReplace::create(&incoming, &lock.target, first)?;
            reservation.wrote(first);
            UploadSink::Replace(replace)
        };
        let is_range = range.is_some();
        Ok(IncomingUpload { sink, reservation, lock, old_size, first, received: 0, expected, is_range, max_file_bytes })
    }
}

/// Lists what is in `root` in place of constituencies' folders, or cannot be renamed into from the folder of incomplete
/// bodies: each path with its problem and remedy.
#[must_use]
pub fn misplaced(root: &Path) -> Vec<(PathBuf, String)> {
    let Ok(folder) = FolderHandle::open(root) else { return Vec::new() };
    let Ok(device) = rustix::fs::fstat(&folder).map(|root| root.st_dev) else { return Vec::new() };
    let describe = |Entry { name, kind }: Entry| {
        let path = root.join(&name);
        let shown = path.display();
        let message = match kind {
            FileType::Directory if folder.stat(&name).is_ok_and(|stat| stat.st_dev == device) => return None,
            FileType::Directory | FileType::Symlink => format!(
                "{shown} is a link or a mount of its own, so uploads cannot be moved into it; link or mount {} as a whole",
                root.display()
            ),
            kind => format!(
                "{shown} is {}, not a folder; uploads to a constituency of this name are refused; remove it",
                kind_of(kind)
            ),
        };
        Some((path, message))
    };
    let entries = folder.entries().unwrap_or_default().into_iter();
    // A constituency's name does not begin with a dot.
    entries.filter(|entry| !entry.name.as_bytes().starts_with(b".")).filter_map(describe).collect()
}

impl WriteLock {
    fn take(store: &Arc<UploadStore>, folder: PathBuf, name: &UploadName) -> Result<Self, Denial> {
        let target = folder.join(name.as_str());
        let mut locked = store.locked.lock();
        let targets = locked.entry(folder.clone()).or_default();
        if targets.contains(&target) {
            return Err(Denial::Busy);
        }
        if targets.len() >= MAX_CONCURRENT {
            return Err(Denial::TooManyUploads { allowed: MAX_CONCURRENT });
        }
        targets.push(target.clone());
        Ok(Self { store: Arc::clone(store), folder, target })
    }
}

impl Drop for WriteLock {
    fn drop(&mut self) {
        let mut locked = self.store.locked.lock();
        if let Some(targets) = locked.get_mut(&self.folder) {
            targets.retain(|target| *target != self.target);
            if targets.is_empty() {
                locked.remove(&self.folder);
            }
        }
    }
}

impl IncomingUpload {
    /// Writes a part of the body. Blocks on the disk.
    ///
    /// # Errors
    /// If the body is too long, or the disk fails. The upload is then rolled back.
    pub fn write(mut self, bytes: &[u8]) -> Result<Self, Denial> {
        match self.try_write(bytes) {
            Ok(()) => Ok(self),
            Err(denial) => {
                self.sink.roll_back();
                Err(denial)
            }
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Result<(), Denial> {
        let count = bytes.len() as u64;
        let received = self.received.saturating_add(count);
        if self.is_range && self.expected.is_some_and(|expected| received > expected) {
            return Err(BadContentRange::Length.into());
        }
        let end = checked_end(self.first, received, self.max_file_bytes)?;
        if self.expected.is_none() {
            let growth = end.saturating_sub(self.old_size.unwrap_or(0));
            let more = growth.saturating_sub(self.reservation.growth().bytes);
            self.reservation.extend(Usage { bytes: more, files: 0 }, count)?;
        }
        self.sink.write(bytes)?;
        self.reservation.wrote(count);
        if matches!(self.sink, UploadSink::Append(_)) {
            self.reservation.stored(Usage { bytes: count, files: 0 });
        }
        self.received = received;
        Ok(())
    }

    /// Makes the received body durable, and visible as the file. Blocks on the disk.
    ///
    /// # Errors
    /// If the body is shorter than its range, or the disk fails. The upload is then rolled back.
    pub fn finish(mut self) -> Result<UploadResult, Denial> {
        if self.is_range && self.expected != Some(self.received) {
            self.sink.roll_back();
            return Err(BadContentRange::Length.into());
        }
        self.sink.finish(&self.lock.store.root, &self.lock.target)?;
        self.reservation.stored(self.reservation.growth());
        Ok(if self.old_size.is_some() { UploadResult::Changed } else { UploadResult::Created })
    }

    /// Ends an upload whose connection broke off. An append keeps the received prefix; anything else is rolled back.
    pub fn abort(self) {
        if self.received > 0 {
            self.sink.keep_prefix();
        } else {
            self.sink.roll_back();
        }
    }
}

/// The end of a part of `length` bytes at offset `first`, if files may be that long.
fn checked_end(first: u64, length: u64, allowed: u64) -> Result<u64, Denial> {
    first.checked_add(length).filter(|end| *end <= allowed).ok_or(Denial::FileTooLarge { allowed })
}

fn size_of(target: &Path) -> Result<Option<u64>, Denial> {
    match fs::symlink_metadata(target) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Err(Denial::NameConflict),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("the file", &error)),
    }
}
