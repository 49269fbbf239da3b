//! The disk usage of a folder of uploads, with the reservations of uploads in progress.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock;
use crate::serve::access_control::Denial;

/// How long a measured usage is cached while it leaves room: an operator may add files by hand.
const MAX_AGE: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of content.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
}

/// The usage of one folder. It has its own lock, so that no upload waits while another folder is measured.
#[derive(Debug)]
pub(super) struct UsageAccount {
    folder: PathBuf,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// The usage as last measured, plus the files stored since; with the time of the measurement.
    measured: Option<(Instant, Usage)>,
    /// The growth reserved by uploads in progress.
    reserved: Usage,
}

impl UsageAccount {
    /// The account of `folder`, not measured yet.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, entries: Mutex::default() }
    }

    /// Reserves `more`, if `check` allows the resulting total. A usage that leaves no room is measured again when it is
    /// older than `full_max_age`, because an operator may have removed files.
    pub(super) fn reserve(
        &self,
        more: Usage,
        full_max_age: Duration,
        check: impl Fn(Usage) -> Result<(), Denial>,
    ) -> Result<(), Denial> {
        let now = clock::monotonic();
        let mut entries = self.entries.lock();
        let reserved = entries.reserved.plus(more);
        let mut check = |max_age| check(entries.stored(&self.folder, now, max_age).plus(reserved));
        check(MAX_AGE).or_else(|_| check(full_max_age))?;
        entries.reserved = reserved;
        Ok(())
    }

    /// Turns a part of the reservation into stored usage.
    pub(super) fn stored(&self, growth: Usage) {
        let mut entries = self.entries.lock();
        entries.reserved = entries.reserved.minus(growth);
        if let Some((_, stored)) = &mut entries.measured {
            *stored = stored.plus(growth);
        }
    }

    /// Releases a part of the reservation.
    pub(super) fn give_back(&self, growth: Usage) {
        let mut entries = self.entries.lock();
        entries.reserved = entries.reserved.minus(growth);
    }
}

impl Entries {
    /// The usage of `folder`, measured again if the last measurement is older than `max_age`.
    fn stored(&mut self, folder: &Path, now: Instant, max_age: Duration) -> Usage {
        match self.measured {
            Some((measured, stored)) if now.duration_since(measured) <= max_age => stored,
            _ => {
                let stored = Usage::of(folder);
                self.measured = Some((now, stored));
                stored
            }
        }
    }
}

impl Usage {
    /// Measures `folder` recursively. Skips unreadable entries: the next write reports the error.
    fn of(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.fold(Self::default(), |usage, entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => usage.plus(Self::of(&entry.path())),
            Ok(metadata) => usage.plus(Self { bytes: metadata.len(), files: 1 }),
            Err(_) => usage,
        })
    }

    /// The sum.
    pub(super) fn plus(self, more: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(more.bytes), files: self.files.saturating_add(more.files) }
    }

    /// The difference, at least zero.
    pub(super) fn minus(self, less: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(less.bytes), files: self.files.saturating_sub(less.files) }
    }
}
