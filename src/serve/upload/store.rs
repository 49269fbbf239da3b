//! The uploads on disk: `state/uploads/<constituency>/<mac>/<path as sent>`.
//!
//! An upload under way is a [`IncomingUpload`]. Its parts give back, each when it is dropped, what it holds: the [sink](UploadSink)
//! its temporary file, the [reservation](SpaceReservation) its room, the [claim](WriteLock) its name.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FileType, ResolveFlags};

use super::quotas::{ConstituencyUsage, Quotas, SpaceReservation};
use super::sink::{Append, TempReplace, UploadSink, failed};
use super::usage::Usage;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::serve::access_control::content_range::{BadContentRange, ContentRange};
use crate::serve::access_control::upload_name::UploadName;
use crate::serve::access_control::{Denial, WriteGrant};
use crate::serve::open_beneath::{self, OpenFile};
use crate::state::{self, Entry, FolderHandle};

/// The folder of all uploads in the state directory.
pub const FOLDER: &str = "uploads";
/// Where bodies wait until they are complete; no constituency can have this name.
const INCOMING: &str = ".incoming";
/// How many uploads of one phone may be under way; each holds memory, a file, and a thread while the disk works.
const AT_ONCE: usize = 8;

/// All uploads.
#[derive(Debug)]
pub struct UploadStore {
    root: PathBuf,
    handle: OnceLock<FolderHandle>,
    /// Where the bodies of this run wait, once that is made.
    incoming: Mutex<Option<PathBuf>>,
    budgets: Arc<Quotas>,
    /// The files that are being written, by the folder of their phone.
    claimed: Mutex<HashMap<PathBuf, Vec<PathBuf>>>,
}

/// What was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadResult {
    /// A file that was not there before.
    Created,
    /// A file that was.
    Changed,
}

/// An upload whose body is being received.
#[derive(Debug)]
pub struct IncomingUpload {
    sink: UploadSink,
    reservation: SpaceReservation,
    claim: WriteLock,
    old_size: Option<u64>,
    /// Where the body starts in the file.
    first: u64,
    received: u64,
    expected: Option<u64>,
    is_range: bool,
    max_file_bytes: u64,
}

/// Holds a file of the phone whose folder that is for one writer, until it is dropped.
#[derive(Debug)]
struct WriteLock {
    store: Arc<UploadStore>,
    folder: PathBuf,
    target: PathBuf,
}

impl UploadStore {
    /// The uploads in the folder `root`; what an earlier run left half-received is removed. As long as the disk cannot be
    /// written to, uploads are read and none is received.
    #[must_use]
    pub fn new(root: PathBuf, reserve: Option<u64>) -> Self {
        let budgets = Arc::new(Quotas::new(root.clone(), reserve));
        let (handle, incoming) = (OnceLock::new(), Mutex::default());
        let store = Self { root, handle, incoming, budgets, claimed: Mutex::default() };
        // What fails now is tried again with the next upload, which says why.
        let _ = store.prepare();
        store
    }

    /// Makes an empty folder for the bodies of this run.
    fn prepare(&self) -> io::Result<PathBuf> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ready) = &*incoming {
            return Ok(ready.clone());
        }
        state::private_folder(&self.root)?;
        let folder = self.root.join(INCOMING);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => state::private_folder(&folder)?,
        }
        Ok(incoming.insert(folder).clone())
    }

    /// The folder of all uploads.
    fn handle(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(handle) = self.handle.get() {
            return Ok(handle.as_fd());
        }
        let opened = state::folder_of(&self.root.join(INCOMING))?;
        Ok(self.handle.get_or_init(|| opened).as_fd())
    }

    fn claimed(&self) -> MutexGuard<'_, HashMap<PathBuf, Vec<PathBuf>>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an upload for reading.
    ///
    /// # Errors
    /// [`Denial::NotFound`] if there is none.
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
            open_beneath::open(root, &path, open_beneath::READ, resolve).map_err(open_beneath::denial)?,
        )
    }

    /// Makes ready for a body of `length` bytes (if that is known) at the place that `range` says. Blocks on the disk.
    ///
    /// # Errors
    /// Whatever can be known to be wrong before the body is read.
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
        let claim = WriteLock::take(self, folder, grant.name())?;
        let old_size = size_of(&claim.target)?;
        let size = old_size.unwrap_or(0);
        if first > size {
            return Err(Denial::Gap { first, size });
        }
        let end = checked_end(first, expected.unwrap_or(0), max_file_bytes)?;
        let growth = Usage { bytes: end.saturating_sub(size), files: u64::from(old_size.is_none()) };
        // A prefix of what phones read back would be served; a prefix of a log is as good as it was.
        let is_append = range.is_some() && first == size && !grant.name().lies_over_the_folder();
        let to_write = if is_append { end - first } else { end };
        let mut reservation = self.budgets.reserve(&account, growth, to_write)?;
        let sink = if is_append {
            let append = Append::open(&self.root, &claim.target, old_size)?;
            reservation.stored(Usage { bytes: 0, files: growth.files });
            UploadSink::Append(append)
        } else {
            let beside = TempReplace::create(&incoming, &claim.target, first)?;
            reservation.wrote(first);
            UploadSink::Beside(beside)
        };
        let is_range = range.is_some();
        Ok(IncomingUpload {
            sink,
            reservation,
            claim,
            old_size,
            first,
            received: 0,
            expected,
            is_range,
            max_file_bytes,
        })
    }
}

/// The folders of constituencies in `root` into which no upload can be moved from where it is received, each with what
/// to do about it.
#[must_use]
pub fn misplaced(root: &Path) -> Vec<String> {
    let Ok(folder) = FolderHandle::open(root) else { return Vec::new() };
    let Ok(device) = rustix::fs::fstat(&folder).map(|root| root.st_dev) else { return Vec::new() };
    let is_elsewhere = |entry: &Entry| {
        entry.kind == FileType::Symlink || folder.stat(&entry.name).is_ok_and(|stat| stat.st_dev != device)
    };
    let tell = |entry: Entry| {
        format!(
            "{} does not lie where the other uploads do (it is a link or a mount), and none can be moved into it; \
             make {} as a whole the link or the mount",
            root.join(entry.name).display(),
            root.display()
        )
    };
    folder.entries().unwrap_or_default().into_iter().filter(is_elsewhere).map(tell).collect()
}

impl WriteLock {
    fn take(store: &Arc<UploadStore>, folder: PathBuf, name: &UploadName) -> Result<Self, Denial> {
        let target = folder.join(name.as_str());
        let mut claimed = store.claimed();
        let targets = claimed.entry(folder.clone()).or_default();
        if targets.contains(&target) {
            return Err(Denial::Busy);
        }
        if targets.len() >= AT_ONCE {
            return Err(Denial::TooManyUploads { allowed: AT_ONCE });
        }
        targets.push(target.clone());
        Ok(Self { store: Arc::clone(store), folder, target })
    }
}

impl Drop for WriteLock {
    fn drop(&mut self) {
        let mut claimed = self.store.claimed();
        if let Some(targets) = claimed.get_mut(&self.folder) {
            targets.retain(|target| *target != self.target);
            if targets.is_empty() {
                claimed.remove(&self.folder);
            }
        }
    }
}

impl IncomingUpload {
    /// Takes some of the body. Blocks on the disk.
    ///
    /// # Errors
    /// If the body is longer than it may be, or the disk fails; nothing of it is left then.
    pub fn write(mut self, bytes: &[u8]) -> Result<Self, Denial> {
        match self.try_write(bytes) {
            Ok(()) => Ok(self),
            Err(denial) => {
                self.sink.take_back();
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

    /// Makes what was received durable, and visible as the file. Blocks on the disk.
    ///
    /// # Errors
    /// If the body was shorter than its range, or the disk fails; nothing of it is left then.
    pub fn finish(mut self) -> Result<UploadResult, Denial> {
        if self.is_range && self.expected != Some(self.received) {
            self.sink.take_back();
            return Err(BadContentRange::Length.into());
        }
        self.sink.finish(&self.claim.store.root, &self.claim.target)?;
        self.reservation.stored(self.reservation.growth());
        Ok(if self.old_size.is_some() { UploadResult::Changed } else { UploadResult::Created })
    }

    /// Ends an upload whose connection broke off. An append keeps the prefix that came; anything else leaves no trace.
    pub fn break_off(self) {
        if self.received > 0 {
            self.sink.keep_prefix();
        } else {
            self.sink.take_back();
        }
    }
}

/// Where a part of `length` bytes ends that starts at `first`, if a file may be so long.
fn checked_end(first: u64, length: u64, allowed: u64) -> Result<u64, Denial> {
    first.checked_add(length).filter(|end| *end <= allowed).ok_or(Denial::FileTooLarge { allowed })
}

fn size_of(target: &Path) -> Result<Option<u64>, Denial> {
    match fs::symlink_metadata(target) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Err(Denial::Clash),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("the file", &error)),
    }
}
