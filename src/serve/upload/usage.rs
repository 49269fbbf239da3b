//! What a folder of uploads holds, and what is on its way there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::serve::access_control::Denial;

/// How long a count is believed while it leaves room: somebody may have put files there by hand.
const ROOM_HOLDS: Duration = Duration::from_mins(1);

/// Bytes and files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of content.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
}

/// The account of one folder, with a lock of its own: nobody waits for another's folder to be walked.
#[derive(Debug)]
pub(super) struct UsageAccount {
    folder: PathBuf,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// What the folder held when it was last walked, and what was stored since.
    counted: Option<(Instant, Usage)>,
    /// By how much the uploads under way will let it grow.
    coming: Usage,
}

impl UsageAccount {
    /// The account of `folder`, of which nothing is known yet.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, entries: Mutex::default() }
    }

    /// Sets room aside for `more`, if `judge` allows what there will be then in all. A count that leaves no room is
    /// believed for `no_room_holds`: an operator may just have made some.
    pub(super) fn reserve(
        &self,
        more: Usage,
        no_room_holds: Duration,
        judge: impl Fn(Usage) -> Result<(), Denial>,
    ) -> Result<(), Denial> {
        let now = clock::monotonic();
        let mut entries = self.entries();
        let coming = entries.coming.plus(more);
        let mut judge = |holds| judge(entries.stored(&self.folder, now, holds).plus(coming));
        judge(ROOM_HOLDS).or_else(|_| judge(no_room_holds))?;
        entries.coming = coming;
        Ok(())
    }

    /// So much of what was set aside lies in the folder now.
    pub(super) fn stored(&self, growth: Usage) {
        let mut entries = self.entries();
        entries.coming = entries.coming.minus(growth);
        if let Some((_, stored)) = &mut entries.counted {
            *stored = stored.plus(growth);
        }
    }

    /// So much of what was set aside will not come.
    pub(super) fn give_back(&self, growth: Usage) {
        let mut entries = self.entries();
        entries.coming = entries.coming.minus(growth);
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// What `folder` holds, counted again if the last count is older than it `holds`.
    fn stored(&mut self, folder: &Path, now: Instant, holds: Duration) -> Usage {
        match self.counted {
            Some((counted, stored)) if now.duration_since(counted) <= holds => stored,
            _ => {
                let stored = Usage::of(folder);
                self.counted = Some((now, stored));
                stored
            }
        }
    }
}

impl Usage {
    /// What lies below `folder`. What cannot be read counts nothing: the next write will say why.
    fn of(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.fold(Self::default(), |usage, entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => usage.plus(Self::of(&entry.path())),
            Ok(metadata) => usage.plus(Self { bytes: metadata.len(), files: 1 }),
            Err(_) => usage,
        })
    }

    /// Both together.
    pub(super) fn plus(self, more: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(more.bytes), files: self.files.saturating_add(more.files) }
    }

    /// What is left of it without `less`.
    pub(super) fn minus(self, less: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(less.bytes), files: self.files.saturating_sub(less.files) }
    }
}
