//! Whether there is room for an upload: budgets of a phone and of a constituency, what a phone may write in an hour, and the
//! disk's reserve.
//!
//! What a phone has is counted on the disk, and what is under way on top, as a [`SpaceReservation`], until it is on the disk
//! itself. A count is kept as long as it leaves room; before a phone is refused it is counted again, so that whoever
//! removes a file has made room.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::usage::{Usage, UsageAccount};
use super::write_quota::{self, WriteQuotas};
use crate::clock;
use crate::constituency::{ConstituencyName, MacAddress, UploadLimits};
use crate::serve::access_control::Denial;

/// How long a constituency's count is believed when it leaves no room: all its folders are walked for it.
const NO_ROOM_HOLDS: Duration = Duration::from_secs(1);
/// Of about how many folders that nobody stores into the count is kept.
const REMEMBERED: usize = 1024;
/// The least reserve of free space, in bytes.
const LEAST_RESERVE: u64 = 256 << 20;
/// The reserve as a part of the file system: one in fifty, 2 %.
const RESERVE_PART: u64 = 50;

/// What uploads take, and may take.
#[derive(Debug)]
pub struct Quotas {
    root: PathBuf,
    reserve: Option<u64>,
    /// By folder: of phones, and of constituencies that have a budget.
    books: Mutex<HashMap<PathBuf, Arc<UsageAccount>>>,
    /// Bytes that all uploads under way have yet to write; a replacement writes all of itself, however little it grows.
    unwritten: Mutex<u64>,
    /// What phones wrote lately.
    writes: Mutex<WriteQuotas>,
}

/// Which phone of which constituency uploads, under which limits.
#[derive(Debug, Clone)]
pub struct ConstituencyUsage {
    /// The constituency.
    pub constituency: ConstituencyName,
    /// The phone.
    pub mac: MacAddress,
    /// Its limits.
    pub limits: UploadLimits,
}

/// Room set aside for one upload; dropped, what is left of it is free again.
#[derive(Debug)]
pub struct SpaceReservation {
    budgets: Arc<Quotas>,
    account: ConstituencyUsage,
    phone: Arc<UsageAccount>,
    constituency: Option<(Arc<UsageAccount>, u64)>,
    growth: Usage,
    unwritten: u64,
    written: u64,
    /// What was taken of the phone's quota of writes.
    charged: u64,
}

impl Quotas {
    /// Budgets of the uploads below `root`; `reserve` bytes stay free, or the larger of 256 MiB and 2 %.
    #[must_use]
    pub fn new(root: PathBuf, reserve: Option<u64>) -> Self {
        let books = Mutex::new(HashMap::with_capacity(REMEMBERED));
        Self { root, reserve, books, unwritten: Mutex::default(), writes: Mutex::default() }
    }

    /// Sets room aside for an upload that writes `to_write` bytes, by which the phone's files grow by `growth`.
    ///
    /// # Errors
    /// The budget that does not allow it.
    pub fn reserve(
        self: &Arc<Self>,
        account: &ConstituencyUsage,
        growth: Usage,
        to_write: u64,
    ) -> Result<SpaceReservation, Denial> {
        let folder = self.root.join(account.constituency.as_str());
        let mut reservation = SpaceReservation {
            budgets: Arc::clone(self),
            account: account.clone(),
            phone: self.book(folder.join(account.mac.to_string())),
            constituency: account.limits.max_constituency_bytes.map(|allowed| (self.book(folder), allowed)),
            growth: Usage::default(),
            unwritten: 0,
            written: 0,
            charged: 0,
        };
        reservation.extend(growth, to_write)?;
        Ok(reservation)
    }

    /// The book of `folder`. Those that nobody uses are forgotten when there are many.
    fn book(&self, folder: PathBuf) -> Arc<UsageAccount> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if books.len() == books.capacity() {
            books.retain(|_, book| Arc::strong_count(book) > 1);
        }
        Arc::clone(books.entry(folder).or_insert_with_key(|folder| Arc::new(UsageAccount::new(folder.clone()))))
    }

    /// Certificates and the ledger need space too, and more than logs do.
    fn take_space(&self, more: u64) -> Result<(), Denial> {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        let stat = rustix::fs::statvfs(&self.root).map_err(|errno| {
            Denial::Failed(format!("the free space of {} is unknown: {errno}", self.root.display()))
        })?;
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve = self.reserve.unwrap_or_else(|| LEAST_RESERVE.max(size / RESERVE_PART));
        // Some file systems count no inodes; where they are counted, they run out too.
        let lacks_inodes = self.reserve.is_none() && stat.f_files > 0 && stat.f_favail < stat.f_files / RESERVE_PART;
        let to_write = unwritten.saturating_add(more);
        if lacks_inodes || free < reserve.saturating_add(to_write) {
            return Err(Denial::DiskFull { reserve });
        }
        *unwritten = to_write;
        Ok(())
    }

    fn writes(&self) -> MutexGuard<'_, WriteQuotas> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_space_back(&self, bytes: u64) {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        *unwritten = unwritten.saturating_sub(bytes);
    }
}

impl ConstituencyUsage {
    fn phone(&self) -> write_quota::QuotaKey {
        (self.constituency.clone(), self.mac)
    }
}

impl SpaceReservation {
    /// Sets more aside, for an upload that did not say how long it is.
    ///
    /// # Errors
    /// The budget that does not allow it.
    pub fn extend(&mut self, growth: Usage, to_write: u64) -> Result<(), Denial> {
        self.budgets.take_space(to_write)?;
        self.unwritten = self.unwritten.saturating_add(to_write);
        self.grow_phone(growth)?;
        self.grow_constituency(growth).inspect_err(|_| self.phone.give_back(growth))?;
        self.growth = self.growth.plus(growth);
        self.charge_writes()
    }

    /// Takes what this upload writes in all, as far as that is known, of what its phone may write in an hour.
    fn charge_writes(&mut self) -> Result<(), Denial> {
        let allowed = self.account.limits.write_bytes_per_hour();
        let cost = write_quota::cost(self.written.saturating_add(self.unwritten), allowed);
        let more = cost.saturating_sub(self.charged);
        let taken = self.budgets.writes().take(&self.account.phone(), more, allowed, clock::monotonic());
        taken.map_err(|retry_after| Denial::TooManyWrites { allowed, retry_after })?;
        self.charged = self.charged.saturating_add(more);
        Ok(())
    }

    fn grow_phone(&self, growth: Usage) -> Result<(), Denial> {
        let UploadLimits { max_phone_bytes, max_phone_files, .. } = self.account.limits;
        self.phone.reserve(growth, Duration::ZERO, |all| {
            if growth.files > 0 && all.files > max_phone_files {
                Err(Denial::OverBudget { budget: "max_phone_files", allowed: max_phone_files })
            } else if all.bytes > max_phone_bytes {
                Err(Denial::OverBudget { budget: "max_phone_bytes", allowed: max_phone_bytes })
            } else {
                Ok(())
            }
        })
    }

    fn grow_constituency(&self, growth: Usage) -> Result<(), Denial> {
        let Some((book, allowed)) = &self.constituency else { return Ok(()) };
        let over = Denial::OverBudget { budget: "max_constituency_bytes", allowed: *allowed };
        book.reserve(growth, NO_ROOM_HOLDS, |all| if all.bytes > *allowed { Err(over.clone()) } else { Ok(()) })
    }

    /// The books in which the growth stands.
    fn books(&self) -> impl Iterator<Item = &UsageAccount> {
        let constituency = self.constituency.iter().map(|(book, _)| book);
        std::iter::once(&self.phone).chain(constituency).map(AsRef::as_ref)
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
        self.written = self.written.saturating_add(bytes);
        self.budgets.give_space_back(bytes);
    }

    /// So much of the growth lies among the phone's files now, where it is counted from now on.
    pub fn stored(&mut self, growth: Usage) {
        self.growth = self.growth.minus(growth);
        self.books().for_each(|book| book.stored(growth));
    }
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        self.budgets.give_space_back(self.unwritten);
        let cost = write_quota::cost(self.written, self.account.limits.write_bytes_per_hour());
        let unused = self.charged.saturating_sub(cost);
        self.budgets.writes().give_back(&self.account.phone(), unused);
        self.books().for_each(|book| book.give_back(self.growth));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn account(limits: UploadLimits) -> ConstituencyUsage {
        ConstituencyUsage { constituency: "ote".parse().unwrap(), mac: "00005e00530c".parse().unwrap(), limits }
    }

    fn budgets(folder: &Path, reserve: u64) -> Arc<Quotas> {
        Arc::new(Quotas::new(folder.to_owned(), Some(reserve)))
    }

    fn over(denied: Result<SpaceReservation, Denial>) -> &'static str {
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
        let reserve = |bytes, files| budgets.reserve(&account, Usage { bytes, files }, bytes);
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
        let reserve = |bytes| budgets.reserve(&account(limits), Usage { bytes, files: 1 }, bytes);
        drop(reserve(10).unwrap());
        let mut append = reserve(10).unwrap();
        append.wrote(6);
        fs::File::create(phone.join("a")).unwrap().set_len(6).unwrap();
        append.stored(Usage { bytes: 6, files: 1 });
        assert_eq!(over(reserve(1)), "max_constituency_bytes", "the rest of it is still to come");
        drop(append);
        drop(reserve(4).unwrap());
        assert_eq!(over(reserve(5)), "max_constituency_bytes");
        assert_eq!(*budgets.unwritten.lock().unwrap(), 0);
    }

    #[test]
    fn the_disk_has_a_reserve() {
        let folder = tempfile::tempdir().unwrap();
        let denied = budgets(folder.path(), u64::MAX).reserve(&account(UploadLimits::default()), Usage::default(), 0);
        assert!(matches!(denied, Err(Denial::DiskFull { .. })));
    }

    #[test]
    fn no_phone_waits_for_anothers_files_to_be_counted() {
        let folder = tempfile::tempdir().unwrap();
        let budgets = budgets(folder.path(), 0);
        let reserve = |mac: &str| {
            let account = ConstituencyUsage { mac: mac.parse().unwrap(), ..account(UploadLimits::default()) };
            budgets.reserve(&account, Usage { bytes: 1, files: 1 }, 1)
        };
        let first = budgets.book(folder.path().join("ote/00005e00530c"));
        let counting = |_| {
            reserve("00005e0053c7").unwrap();
            Ok(())
        };
        first.reserve(Usage::default(), Duration::ZERO, counting).unwrap();
    }

    #[test]
    fn phones_that_store_nothing_are_forgotten_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let budgets = budgets(folder.path(), 0);
        let limits = UploadLimits { max_phone_bytes: 1, ..UploadLimits::default() };
        let reserve = |number: usize| {
            let mac = format!("{number:012x}").parse().unwrap();
            budgets.reserve(&ConstituencyUsage { mac, ..account(limits) }, Usage { bytes: 1, files: 1 }, 1)
        };
        let _under_way = reserve(1).unwrap();
        for number in 2..10_000 {
            drop(reserve(number).unwrap());
        }
        assert!(budgets.books.lock().unwrap().len() < 2 * REMEMBERED);
        assert_eq!(over(reserve(1)), "max_phone_bytes");
    }
}
