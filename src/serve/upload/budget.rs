//! Whether there is room for an upload: budgets of a phone and of a constituency, and the disk's reserve.
//!
//! What a phone has is counted on the disk each time, so that whoever removes a file has made room. What is under way
//! is counted on top, as a [`Reservation`], until it is on the disk itself.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::constituency::{ConstituencyName, MacAddress, UploadLimits};
use crate::serve::decision::Denial;

/// How long a constituency's total is believed while it leaves room.
const ROOM_HOLDS: Duration = Duration::from_mins(1);
/// How long it is believed when it leaves none: an operator may just have made some.
const NO_ROOM_HOLDS: Duration = Duration::from_secs(1);
/// The least reserve of free space, in bytes.
const LEAST_RESERVE: u64 = 256 << 20;
/// The reserve as a part of the file system: one in fifty, 2 %.
const RESERVE_PART: u64 = 50;

/// Bytes and files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of content.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
}

/// What uploads take, and may take.
#[derive(Debug)]
pub struct Budgets {
    root: PathBuf,
    reserve: Option<u64>,
    books: Mutex<Books>,
}

/// What is under way, and what was counted: under one lock, so that nothing slips through between the two.
#[derive(Debug, Default)]
struct Books {
    /// By how much the uploads under way will let each phone's files grow.
    growth: HashMap<(ConstituencyName, MacAddress), Usage>,
    /// Bytes that all of them together have yet to write; a replacement writes all of itself, however little it grows.
    unwritten: u64,
    /// The bytes of each constituency when they were last counted, and what was stored since.
    totals: HashMap<ConstituencyName, (Instant, u64)>,
}

/// Which phone of which constituency uploads, under which limits.
#[derive(Debug, Clone)]
pub struct Account {
    /// The constituency.
    pub constituency: ConstituencyName,
    /// The phone.
    pub mac: MacAddress,
    /// Its limits.
    pub limits: UploadLimits,
}

/// Room set aside for one upload; dropped, what is left of it is free again.
#[derive(Debug)]
pub struct Reservation {
    budgets: Arc<Budgets>,
    account: Account,
    growth: Usage,
    unwritten: u64,
}

impl Budgets {
    /// Budgets of the uploads below `root`; `reserve` bytes stay free, or the larger of 256 MiB and 2 %.
    #[must_use]
    pub fn new(root: PathBuf, reserve: Option<u64>) -> Self {
        Self { root, reserve, books: Mutex::default() }
    }

    /// Sets room aside for an upload that writes `to_write` bytes, by which the phone's files grow by `growth`.
    ///
    /// # Errors
    /// The budget that does not allow it.
    pub fn reserve(self: &Arc<Self>, account: Account, growth: Usage, to_write: u64) -> Result<Reservation, Denial> {
        let mut reservation =
            Reservation { budgets: Arc::clone(self), account, growth: Usage::default(), unwritten: 0 };
        reservation.extend(growth, to_write)?;
        Ok(reservation)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_phone(&self, books: &Books, account: &Account, more: Usage) -> Result<(), Denial> {
        let stored = usage_of(&self.root.join(account.constituency.as_str()).join(account.mac.to_string()));
        let coming = books.growth.get(&account.key()).copied().unwrap_or_default();
        let UploadLimits { max_phone_bytes, max_phone_files, .. } = account.limits;
        if more.files > 0 && sum(stored.files, coming.files, more.files) > max_phone_files {
            return Err(Denial::OverBudget { budget: "max_phone_files", allowed: max_phone_files });
        }
        if sum(stored.bytes, coming.bytes, more.bytes) > max_phone_bytes {
            return Err(Denial::OverBudget { budget: "max_phone_bytes", allowed: max_phone_bytes });
        }
        Ok(())
    }

    fn check_constituency(&self, books: &mut Books, account: &Account, more: u64) -> Result<(), Denial> {
        let Some(allowed) = account.limits.max_constituency_bytes else { return Ok(()) };
        let name = &account.constituency;
        let coming = books.growth.iter().filter(|((owner, _), _)| owner == name).map(|(_, usage)| usage.bytes).sum();
        let mut has_room = |holds| sum(self.total(books, name, holds), coming, more) <= allowed;
        if has_room(ROOM_HOLDS) || has_room(NO_ROOM_HOLDS) {
            Ok(())
        } else {
            Err(Denial::OverBudget { budget: "max_constituency_bytes", allowed })
        }
    }

    /// Certificates and the ledger need space too, and more than logs do.
    fn check_disk(&self, books: &Books, more: u64) -> Result<(), Denial> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|errno| {
            Denial::Failed(format!("the free space of {} is unknown: {errno}", self.root.display()))
        })?;
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve = self.reserve.unwrap_or_else(|| LEAST_RESERVE.max(size / RESERVE_PART));
        // Some file systems count no inodes; where they are counted, they run out too.
        let lacks_inodes = self.reserve.is_none() && stat.f_files > 0 && stat.f_favail < stat.f_files / RESERVE_PART;
        if lacks_inodes || free < sum(reserve, books.unwritten, more) {
            Err(Denial::DiskFull { reserve })
        } else {
            Ok(())
        }
    }

    /// The bytes stored for a constituency, counted again if the last count is older than it `holds`.
    fn total(&self, books: &mut Books, constituency: &ConstituencyName, holds: Duration) -> u64 {
        let now = clock::monotonic();
        match books.totals.get(constituency) {
            Some((counted, total)) if now.duration_since(*counted) < holds => *total,
            _ => {
                let total = usage_of(&self.root.join(constituency.as_str())).bytes;
                books.totals.insert(constituency.clone(), (now, total));
                total
            }
        }
    }
}

impl Account {
    fn key(&self) -> (ConstituencyName, MacAddress) {
        (self.constituency.clone(), self.mac)
    }
}

impl Reservation {
    /// Sets more aside, for an upload that did not say how long it is.
    ///
    /// # Errors
    /// The budget that does not allow it; what was set aside before stays so.
    pub fn extend(&mut self, growth: Usage, to_write: u64) -> Result<(), Denial> {
        let budgets = Arc::clone(&self.budgets);
        let mut books = budgets.books();
        budgets.check_disk(&books, to_write)?;
        budgets.check_phone(&books, &self.account, growth)?;
        budgets.check_constituency(&mut books, &self.account, growth.bytes)?;
        books.growth.entry(self.account.key()).or_default().add(growth);
        books.unwritten = books.unwritten.saturating_add(to_write);
        self.growth.add(growth);
        self.unwritten = self.unwritten.saturating_add(to_write);
        Ok(())
    }

    /// How much growth is set aside.
    #[must_use]
    pub fn growth(&self) -> Usage {
        self.growth
    }

    /// So many bytes are written: they take space from now on, wherever that is.
    pub fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        let mut books = self.budgets.books();
        books.unwritten = books.unwritten.saturating_sub(bytes);
    }

    /// So much of the growth lies among the phone's files now, where it is counted from now on.
    pub fn stored(&mut self, growth: Usage) {
        let budgets = Arc::clone(&self.budgets);
        let mut books = budgets.books();
        self.give_back(&mut books, growth);
        if let Some((_, total)) = books.totals.get_mut(&self.account.constituency) {
            *total = total.saturating_add(growth.bytes);
        }
    }

    fn give_back(&mut self, books: &mut Books, growth: Usage) {
        self.growth.subtract(growth);
        let key = self.account.key();
        if let Some(usage) = books.growth.get_mut(&key) {
            usage.subtract(growth);
            if *usage == Usage::default() {
                books.growth.remove(&key);
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.wrote(self.unwritten);
        let budgets = Arc::clone(&self.budgets);
        self.give_back(&mut budgets.books(), self.growth);
    }
}

impl Usage {
    fn add(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.files = self.files.saturating_add(more.files);
    }

    fn subtract(&mut self, less: Self) {
        self.bytes = self.bytes.saturating_sub(less.bytes);
        self.files = self.files.saturating_sub(less.files);
    }
}

fn sum(one: u64, two: u64, three: u64) -> u64 {
    one.saturating_add(two).saturating_add(three)
}

/// What lies below `folder`. What cannot be read counts nothing: the next write will say why.
fn usage_of(folder: &Path) -> Usage {
    let mut usage = Usage::default();
    let Ok(entries) = fs::read_dir(folder) else { return usage };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => usage.add(usage_of(&entry.path())),
            Ok(metadata) => usage.add(Usage { bytes: metadata.len(), files: 1 }),
            Err(_) => {}
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(limits: UploadLimits) -> Account {
        Account { constituency: "ote".parse().unwrap(), mac: "00005e00530c".parse().unwrap(), limits }
    }

    fn budgets(folder: &Path, reserve: u64) -> Arc<Budgets> {
        Arc::new(Budgets::new(folder.to_owned(), Some(reserve)))
    }

    fn over(denied: Result<Reservation, Denial>) -> &'static str {
        match denied {
            Err(Denial::OverBudget { budget, .. }) => budget,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_stored_and_what_is_under_way_count_together() {
        let folder = tempfile::tempdir().unwrap();
        let phone = folder.path().join("ote/00005e00530c/logs");
        fs::create_dir_all(&phone).unwrap();
        fs::File::create(phone.join("a")).unwrap().set_len(60).unwrap();
        let budgets = budgets(folder.path(), 0);
        let account = account(UploadLimits { max_phone_bytes: 100, max_phone_files: 2, ..UploadLimits::default() });
        let reserve = |bytes, files| budgets.reserve(account.clone(), Usage { bytes, files }, bytes);
        let first = reserve(30, 1).unwrap();
        assert_eq!(over(reserve(1, 1)), "max_phone_files");
        assert_eq!(over(reserve(11, 0)), "max_phone_bytes");
        drop(first);
        let _first = reserve(30, 1).unwrap();
        fs::remove_file(phone.join("a")).unwrap();
        let _second = reserve(70, 1).unwrap();
    }

    #[test]
    fn what_is_stored_counts_once_and_what_broke_off_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let phone = folder.path().join("ote/00005e00530c");
        fs::create_dir_all(&phone).unwrap();
        let budgets = budgets(folder.path(), 0);
        let limits = UploadLimits { max_constituency_bytes: Some(10), ..UploadLimits::default() };
        let reserve = |bytes| budgets.reserve(account(limits), Usage { bytes, files: 1 }, bytes);
        drop(reserve(10).unwrap());
        let mut append = reserve(10).unwrap();
        append.wrote(6);
        fs::File::create(phone.join("a")).unwrap().set_len(6).unwrap();
        append.stored(Usage { bytes: 6, files: 1 });
        assert_eq!(over(reserve(1)), "max_constituency_bytes", "the rest of it is still to come");
        drop(append);
        drop(reserve(4).unwrap());
        assert_eq!(over(reserve(5)), "max_constituency_bytes");
        let books = budgets.books();
        assert_eq!((books.growth.len(), books.unwritten), (0, 0));
    }

    #[test]
    fn the_disk_has_a_reserve() {
        let folder = tempfile::tempdir().unwrap();
        let denied = budgets(folder.path(), u64::MAX).reserve(account(UploadLimits::default()), Usage::default(), 0);
        assert!(matches!(denied, Err(Denial::DiskFull { .. })));
    }
}
