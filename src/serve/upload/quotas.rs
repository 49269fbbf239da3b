//! Quotas of uploads: per phone and per constituency, a phone's writes per hour, and the free space to keep on the
//! disk.
//!
//! The usage of a phone is measured on the disk, plus a [`SpaceReservation`] per upload in progress until its bytes are
//! on the disk. A measurement is cached while it leaves room. Before a denial the phone's folder is measured again, so
//! that removing a file makes room at once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::usage::{Usage, UsageAccount};
use super::write_quota::{self, WriteQuotas};
use crate::clock;
use crate::constituency::{ConstituencyName, MacAddress, UploadLimits};
use crate::serve::access_control::Denial;

/// How long a constituency's usage is cached when it leaves no room: measuring it walks all its folders.
const FULL_MAX_AGE: Duration = Duration::from_secs(1);
/// About how many accounts are kept before unused ones are removed.
const MAX_ACCOUNTS: usize = 1024;
/// The least free space to keep, in bytes.
const MIN_RESERVE: u64 = 256 << 20;
/// The free space to keep, as a fraction of the file system: one in fifty, 2 %.
const RESERVE_FRACTION: u64 = 50;

/// The quotas of all uploads, and their current usage.
#[derive(Debug)]
pub struct Quotas {
    root: PathBuf,
    reserve: Option<u64>,
    /// By folder: phones, and constituencies with a quota.
    accounts: Mutex<HashMap<PathBuf, Arc<UsageAccount>>>,
    /// Bytes that uploads in progress have yet to write. A replacement writes all its bytes, however little the file
    /// grows.
    unwritten: Mutex<u64>,
    /// Recent writes per phone.
    writes: Mutex<WriteQuotas>,
}

/// The phone that uploads, its constituency, and its limits.
#[derive(Debug, Clone)]
pub struct ConstituencyUsage {
    pub constituency: ConstituencyName,
    pub mac: MacAddress,
    pub limits: UploadLimits,
}

/// Space reserved for one upload; dropping it releases the unused rest.
#[derive(Debug)]
pub struct SpaceReservation {
    quotas: Arc<Quotas>,
    account: ConstituencyUsage,
    phone: Arc<UsageAccount>,
    constituency: Option<(Arc<UsageAccount>, u64)>,
    growth: Usage,
    unwritten: u64,
    written: u64,
    /// The bytes charged to the phone's write quota.
    charged: u64,
}

impl Quotas {
    /// Quotas of the uploads below `root`. Keeps `reserve` bytes free, by default the larger of 256 MiB and 2 %.
    #[must_use]
    pub fn new(root: PathBuf, reserve: Option<u64>) -> Self {
        let accounts = Mutex::new(HashMap::with_capacity(MAX_ACCOUNTS));
        Self { root, reserve, accounts, unwritten: Mutex::default(), writes: Mutex::default() }
    }

    /// Reserves space for an upload that writes `to_write` bytes and lets the phone's files grow by `growth`.
    ///
    /// # Errors
    /// The exceeded quota.
    pub fn reserve(
        self: &Arc<Self>,
        account: &ConstituencyUsage,
        growth: Usage,
        to_write: u64,
    ) -> Result<SpaceReservation, Denial> {
        let folder = self.root.join(account.constituency.as_str());
        let mut reservation = SpaceReservation {
            quotas: Arc::clone(self),
            account: account.clone(),
            phone: self.usage_account(folder.join(account.mac.to_string())),
            constituency: account.limits.max_constituency_bytes.map(|allowed| (self.usage_account(folder), allowed)),
            growth: Usage::default(),
            unwritten: 0,
            written: 0,
            charged: 0,
        };
        reservation.extend(growth, to_write)?;
        Ok(reservation)
    }

    /// The account of `folder`. Removes unused accounts when there are many.
    fn usage_account(&self, folder: PathBuf) -> Arc<UsageAccount> {
        let mut accounts = self.accounts.lock();
        if accounts.len() == accounts.capacity() {
            accounts.retain(|_, account| Arc::strong_count(account) > 1);
        }
        Arc::clone(accounts.entry(folder).or_insert_with_key(|folder| Arc::new(UsageAccount::new(folder.clone()))))
    }

    /// Reserves disk space. Keeps the reserve free, because certificates and the phone history need space more than
    /// logs do.
    fn take_space(&self, more: u64) -> Result<(), Denial> {
        let mut unwritten = self.unwritten.lock();
        let stat = rustix::fs::statvfs(&self.root).map_err(|errno| {
            Denial::Failed(format!("the free space of {} is unknown: {errno}", self.root.display()))
        })?;
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve = self.reserve.unwrap_or_else(|| MIN_RESERVE.max(size / RESERVE_FRACTION));
        // Some file systems report no inodes. If inodes are reported, they can run out too.
        let lacks_inodes =
            self.reserve.is_none() && stat.f_files > 0 && stat.f_favail < stat.f_files / RESERVE_FRACTION;
        let to_write = unwritten.saturating_add(more);
        if lacks_inodes || free < reserve.saturating_add(to_write) {
            return Err(Denial::DiskFull { reserve });
        }
        *unwritten = to_write;
        Ok(())
    }

    fn give_space_back(&self, bytes: u64) {
        let mut unwritten = self.unwritten.lock();
        *unwritten = unwritten.saturating_sub(bytes);
    }
}

impl ConstituencyUsage {
    fn phone(&self) -> write_quota::QuotaKey {
        (self.constituency.clone(), self.mac)
    }
}

impl SpaceReservation {
    /// Reserves more, for an upload of unknown length.
    ///
    /// # Errors
    /// The exceeded quota.
    pub fn extend(&mut self, growth: Usage, to_write: u64) -> Result<(), Denial> {
        self.quotas.take_space(to_write)?;
        self.unwritten = self.unwritten.saturating_add(to_write);
        self.grow_phone(growth)?;
        self.grow_constituency(growth).inspect_err(|_| self.phone.give_back(growth))?;
        self.growth = self.growth.plus(growth);
        self.charge_writes()
    }

    /// Charges all known writes of this upload to the phone's quota of writes per hour.
    fn charge_writes(&mut self) -> Result<(), Denial> {
        let allowed = self.account.limits.write_bytes_per_hour();
        let cost = write_quota::cost(self.written.saturating_add(self.unwritten), allowed);
        let more = cost.saturating_sub(self.charged);
        let taken = self.quotas.writes.lock().take(&self.account.phone(), more, allowed, clock::monotonic());
        taken.map_err(|retry_after| Denial::WriteQuotaExceeded { allowed, retry_after })?;
        self.charged = self.charged.saturating_add(more);
        Ok(())
    }

    fn grow_phone(&self, growth: Usage) -> Result<(), Denial> {
        let UploadLimits { max_phone_bytes, max_phone_files, .. } = self.account.limits;
        self.phone.reserve(growth, Duration::ZERO, |all| {
            if growth.files > 0 && all.files > max_phone_files {
                Err(Denial::QuotaExceeded { quota: "max_phone_files", allowed: max_phone_files })
            } else if all.bytes > max_phone_bytes {
                Err(Denial::QuotaExceeded { quota: "max_phone_bytes", allowed: max_phone_bytes })
            } else {
                Ok(())
            }
        })
    }

    fn grow_constituency(&self, growth: Usage) -> Result<(), Denial> {
        let Some((account, allowed)) = &self.constituency else { return Ok(()) };
        let over = Denial::QuotaExceeded { quota: "max_constituency_bytes", allowed: *allowed };
        account.reserve(growth, FULL_MAX_AGE, |all| if all.bytes > *allowed { Err(over.clone()) } else { Ok(()) })
    }

    /// The accounts that hold this growth.
    fn accounts(&self) -> impl Iterator<Item = &UsageAccount> {
        let constituency = self.constituency.iter().map(|(account, _)| account);
        std::iter::once(&self.phone).chain(constituency).map(AsRef::as_ref)
    }

    /// The reserved growth.
    #[must_use]
    pub fn growth(&self) -> Usage {
        self.growth
    }

    /// Records written bytes: from now on the file system's free space reflects them.
    pub fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        self.written = self.written.saturating_add(bytes);
        self.quotas.give_space_back(bytes);
    }

    /// Records stored growth: from now on the measured usage includes it.
    pub fn stored(&mut self, growth: Usage) {
        self.growth = self.growth.minus(growth);
        self.accounts().for_each(|account| account.stored(growth));
    }
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        self.quotas.give_space_back(self.unwritten);
        let cost = write_quota::cost(self.written, self.account.limits.write_bytes_per_hour());
        let unused = self.charged.saturating_sub(cost);
        self.quotas.writes.lock().give_back(&self.account.phone(), unused);
        self.accounts().for_each(|account| account.give_back(self.growth));
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

    fn quotas(folder: &Path, reserve: u64) -> Arc<Quotas> {
        Arc::new(Quotas::new(folder.to_owned(), Some(reserve)))
    }

    fn over(denied: Result<SpaceReservation, Denial>) -> &'static str {
        match denied {
            Err(Denial::QuotaExceeded { quota, .. }) => quota,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn quota_counts_stored_and_running_uploads() {
        let folder = tempfile::tempdir().unwrap();
        let phone = folder.path().join("ote/00005e00530c/logs");
        fs::create_dir_all(&phone).unwrap();
        fs::File::create(phone.join("a")).unwrap().set_len(60).unwrap();
        let quotas = quotas(folder.path(), 0);
        let account = account(UploadLimits { max_phone_bytes: 100, max_phone_files: 2, ..UploadLimits::default() });
        let reserve = |bytes, files| quotas.reserve(&account, Usage { bytes, files }, bytes);
        let first = reserve(30, 1).unwrap();
        assert_eq!(over(reserve(1, 1)), "max_phone_files");
        assert_eq!(over(reserve(11, 0)), "max_phone_bytes");
        drop(first);
        let _first = reserve(30, 1).unwrap();
        fs::remove_file(phone.join("a")).unwrap();
        let _second = reserve(70, 1).unwrap();
    }

    #[test]
    fn quota_counts_stored_once_and_aborted_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let phone = folder.path().join("ote/00005e00530c");
        fs::create_dir_all(&phone).unwrap();
        let quotas = quotas(folder.path(), 0);
        let limits = UploadLimits { max_constituency_bytes: Some(10), ..UploadLimits::default() };
        let reserve = |bytes| quotas.reserve(&account(limits), Usage { bytes, files: 1 }, bytes);
        drop(reserve(10).unwrap());
        let mut append = reserve(10).unwrap();
        append.wrote(6);
        fs::File::create(phone.join("a")).unwrap().set_len(6).unwrap();
        append.stored(Usage { bytes: 6, files: 1 });
        assert_eq!(over(reserve(1)), "max_constituency_bytes", "the rest of it is still to come");
        drop(append);
        drop(reserve(4).unwrap());
        assert_eq!(over(reserve(5)), "max_constituency_bytes");
        assert_eq!(*quotas.unwritten.lock(), 0);
    }

    #[test]
    fn disk_reserve_stays_free() {
        let folder = tempfile::tempdir().unwrap();
        let denied = quotas(folder.path(), u64::MAX).reserve(&account(UploadLimits::default()), Usage::default(), 0);
        assert!(matches!(denied, Err(Denial::DiskFull { .. })));
    }

    #[test]
    fn counting_one_phone_does_not_block_others() {
        let folder = tempfile::tempdir().unwrap();
        let quotas = quotas(folder.path(), 0);
        let reserve = |mac: &str| {
            let account = ConstituencyUsage { mac: mac.parse().unwrap(), ..account(UploadLimits::default()) };
            quotas.reserve(&account, Usage { bytes: 1, files: 1 }, 1)
        };
        let first = quotas.usage_account(folder.path().join("ote/00005e00530c"));
        let counting = |_| {
            reserve("00005e0053c7").unwrap();
            Ok(())
        };
        first.reserve(Usage::default(), Duration::ZERO, counting).unwrap();
    }

    #[test]
    fn accounts_without_files_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let quotas = quotas(folder.path(), 0);
        let limits = UploadLimits { max_phone_bytes: 1, ..UploadLimits::default() };
        let reserve = |number: usize| {
            let mac = format!("{number:012x}").parse().unwrap();
            quotas.reserve(&ConstituencyUsage { mac, ..account(limits) }, Usage { bytes: 1, files: 1 }, 1)
        };
        let _under_way = reserve(1).unwrap();
        for number in 2..10_000 {
            drop(reserve(number).unwrap());
        }
        assert!(quotas.accounts.lock().len() < 2 * MAX_ACCOUNTS);
        assert_eq!(over(reserve(1)), "max_phone_bytes");
    }
}
