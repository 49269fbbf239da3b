//! The uploads on disk: `state/uploads/<constituency>/<mac>/<path as sent>`.
//!
//! A file is replaced as a whole or not at all. Only a true append grows it in place, because there a prefix is as good
//! as it was; and an append whose body turns out wrong is taken back.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, ResolveFlags};
use tempfile::NamedTempFile;

use super::budget::{Account, Budgets, Usage};
use crate::constituency::{ConstituencyName, MacAddress};
use crate::serve::beneath::{self, Opened};
use crate::serve::decision::content_range::{BadContentRange, ContentRange};
use crate::serve::decision::upload_name::UploadName;
use crate::serve::decision::{Denial, WriteGrant};
use crate::state;

/// Where bodies wait until they are complete; no constituency can have this name.
const INCOMING: &str = ".incoming";

/// All uploads.
#[derive(Debug)]
pub struct UploadStore {
    root: PathBuf,
    handle: OwnedFd,
    budgets: Budgets,
    busy: Mutex<HashSet<PathBuf>>,
}

/// What was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// A file that was not there before.
    Created,
    /// A file that was.
    Changed,
}

/// An upload whose body is being received. Dropped before [`Receiving::finish`], it leaves what the contract says.
#[derive(Debug)]
pub struct Receiving {
    store: Arc<UploadStore>,
    account: Account,
    reserved: Usage,
    target: PathBuf,
    sink: Sink,
    old_size: Option<u64>,
    first: u64,
    expected: Option<u64>,
    received: u64,
    is_range: bool,
}

#[derive(Debug)]
enum Sink {
    /// The file itself, at its end.
    Append(File),
    /// A file beside it, which takes its place when it is complete.
    Beside(NamedTempFile),
}

impl UploadStore {
    /// Opens the uploads in the folder `root`, which exists; what an earlier run left half-received is removed.
    pub fn open_at(root: PathBuf, reserve: Option<u64>) -> io::Result<Self> {
        let incoming = root.join(INCOMING);
        match fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => state::private_folder(&incoming)?,
        }
        let handle = File::open(&root)?.into();
        Ok(Self { budgets: Budgets::new(root.clone(), reserve), root, handle, busy: Mutex::default() })
    }

    /// Opens an upload for reading.
    ///
    /// # Errors
    /// [`Denial::NotFound`] if there is none.
    pub fn open(&self, constituency: &ConstituencyName, mac: MacAddress, name: &UploadName) -> Result<Opened, Denial> {
        let path = format!("{constituency}/{mac}/{}", name.as_str());
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let handle = beneath::open(self.handle.as_fd(), &path, beneath::READ, resolve).map_err(beneath::denial)?;
        beneath::opened(handle)
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
    ) -> Result<Receiving, Denial> {
        let account = Account { constituency: constituency.clone(), mac: grant.mac(), limits: *grant.limits() };
        let expected = match (range, length) {
            (Some(range), Some(length)) if range.length() != length => return Err(BadContentRange::Length.into()),
            (Some(range), _) => Some(range.length()),
            (None, length) => length,
        };
        let first = range.map_or(0, ContentRange::first);
        check_size(first, expected.unwrap_or(0), &account)?;

        let target = self.root.join(constituency.as_str()).join(account.mac.to_string()).join(grant.name().as_str());
        let claim = Claim::take(self, &target)?;
        let old_size = size_of(&target)?;
        let size = old_size.unwrap_or(0);
        if first > size {
            return Err(Denial::Gap { first, size });
        }
        let more = Usage {
            bytes: first.saturating_add(expected.unwrap_or(0)).saturating_sub(size),
            files: u64::from(old_size.is_none()),
        };
        self.budgets.reserve(&account, more)?;
        let mut receiving = Receiving {
            store: Arc::clone(self),
            account,
            reserved: more,
            sink: Sink::Beside(NamedTempFile::new_in(self.root.join(INCOMING)).map_err(|error| {
                self.budgets.release(
                    &Account { constituency: constituency.clone(), mac: grant.mac(), limits: *grant.limits() },
                    more,
                    0,
                );
                failed("a temporary file", &error)
            })?),
            target,
            old_size,
            first,
            expected,
            received: 0,
            is_range: range.is_some(),
        };
        claim.hand_over();
        receiving.prepare()?;
        Ok(receiving)
    }
}

/// Holds a file for one writer until a [`Receiving`] takes over.
struct Claim<'a> {
    store: &'a UploadStore,
    target: Option<PathBuf>,
}

impl<'a> Claim<'a> {
    fn take(store: &'a UploadStore, target: &Path) -> Result<Self, Denial> {
        if store.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(target.to_owned()) {
            Ok(Self { store, target: Some(target.to_owned()) })
        } else {
            Err(Denial::Busy)
        }
    }

    fn hand_over(mut self) {
        self.target = None;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(target) = &self.target {
            self.store.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(target);
        }
    }
}

impl Receiving {
    /// Makes the folders, and chooses the sink: the file itself for an append, else the kept prefix beside it.
    fn prepare(&mut self) -> Result<(), Denial> {
        let folder = self.target.parent().unwrap_or(&self.store.root).to_owned();
        make_folders(&self.store.root, &folder).map_err(|error| failed("the folder", &error))?;
        let is_append = self.is_range && self.first == self.old_size.unwrap_or(0);
        if is_append {
            let file = private_options().append(true).open(&self.target).map_err(|error| failed("the file", &error))?;
            state::sync_folder(&folder).map_err(|error| failed("the folder", &error))?;
            self.sink = Sink::Append(file);
        } else if self.first > 0
            && let Sink::Beside(beside) = &mut self.sink
        {
            let old = File::open(&self.target).map_err(|error| failed("the file", &error))?;
            io::copy(&mut old.take(self.first), beside).map_err(|error| failed("the kept part", &error))?;
        }
        Ok(())
    }

    /// Takes some of the body. Blocks on the disk.
    ///
    /// # Errors
    /// If the body is longer than it may be, or the disk fails; nothing but an append's prefix is then left.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Denial> {
        let received = self.received.saturating_add(bytes.len() as u64);
        if self.is_range && self.expected.is_some_and(|expected| received > expected) {
            self.take_back();
            return Err(BadContentRange::Length.into());
        }
        check_size(self.first, received, &self.account)?;
        if self.expected.is_none() {
            let more = Usage { bytes: bytes.len() as u64, files: 0 };
            self.store.budgets.reserve(&self.account, more)?;
            self.reserved.bytes = self.reserved.bytes.saturating_add(more.bytes);
        }
        let written = match &mut self.sink {
            Sink::Append(file) => file.write_all(bytes),
            Sink::Beside(file) => file.write_all(bytes),
        };
        written.map_err(|error| failed("the upload", &error))?;
        self.received = received;
        Ok(())
    }

    /// Makes what was received durable, and visible as the file. Blocks on the disk.
    ///
    /// # Errors
    /// If the body was shorter than its range, or the disk fails.
    pub fn finish(mut self) -> Result<Stored, Denial> {
        if self.is_range && self.expected != Some(self.received) {
            self.take_back();
            return Err(BadContentRange::Length.into());
        }
        let folder = self.target.parent().unwrap_or(&self.store.root).to_owned();
        let broken = |error: &io::Error| failed("the upload", error);
        match std::mem::replace(&mut self.sink, Sink::Append(File::open(&folder).map_err(|error| broken(&error))?)) {
            Sink::Append(file) => file.sync_all().map_err(|error| broken(&error))?,
            Sink::Beside(file) => {
                file.as_file().sync_all().map_err(|error| broken(&error))?;
                file.persist(&self.target).map_err(|error| broken(&error.error))?;
                state::sync_folder(&folder).map_err(|error| broken(&error))?;
            }
        }
        Ok(if self.old_size.is_some() { Stored::Changed } else { Stored::Created })
    }

    /// Ends an upload whose connection broke off. An append keeps the prefix that came; anything else leaves no trace.
    pub fn abandon(self) {
        if let Sink::Append(file) = &self.sink
            && let Err(error) = file.sync_all()
        {
            tracing::error!("{}: what was received cannot be made durable: {error}", self.target.display());
        }
    }

    /// Undoes an append whose body was not what its range said.
    fn take_back(&self) {
        let Sink::Append(file) = &self.sink else { return };
        let undone = match self.old_size {
            Some(size) => file.set_len(size),
            None => fs::remove_file(&self.target),
        };
        if let Err(error) = undone.and_then(|()| file.sync_all()) {
            tracing::error!("{}: a wrong append cannot be taken back: {error}", self.target.display());
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.store.budgets.release(&self.account, self.reserved, self.reserved.bytes);
        self.store.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.target);
    }
}

fn check_size(first: u64, length: u64, account: &Account) -> Result<(), Denial> {
    let allowed = account.limits.max_file_bytes;
    match first.checked_add(length) {
        Some(size) if size <= allowed => Ok(()),
        _ => Err(Denial::FileTooLarge { allowed }),
    }
}

fn size_of(target: &Path) -> Result<Option<u64>, Denial> {
    match fs::symlink_metadata(target) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Err(Denial::Clash),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("the file", &error)),
    }
}

/// Makes `folder` and what is missing between it and `root`, each durable in the one above it.
fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder == root || folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(root);
    make_folders(root, above)?;
    state::private_folder(folder)?;
    state::sync_folder(above)
}

fn private_options() -> fs::OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.create(true).mode(Mode::from_raw_mode(0o600).as_raw_mode());
    options
}

fn failed(what: &str, error: &io::Error) -> Denial {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Denial::DiskFull { reserve: 0 },
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists => Denial::Clash,
        _ => Denial::Failed(format!("{what} cannot be stored: {error}")),
    }
}
