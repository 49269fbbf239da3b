//! Whether there is room for an upload: budgets of a phone and of a constituency, and the disk's reserve.
//!
//! What a phone has is counted on the disk each time, so that whoever removes a file has made room. What is under way
//! is counted on top.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::constituency::{ConstituencyName, MacAddress, UploadLimits};
use crate::serve::decision::Denial;

/// How long a constituency's total is believed before it is counted again.
const TOTAL_HOLDS: Duration = Duration::from_mins(1);
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
    under_way: Mutex<HashMap<(ConstituencyName, MacAddress), Usage>>,
    totals: Mutex<HashMap<ConstituencyName, (Instant, u64)>>,
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

impl Budgets {
    /// Budgets of the uploads below `root`; `reserve` bytes stay free, or the larger of 256 MiB and 2 %.
    #[must_use]
    pub fn new(root: PathBuf, reserve: Option<u64>) -> Self {
        Self { root, reserve, under_way: Mutex::default(), totals: Mutex::default() }
    }

    /// Sets `more` aside for an upload. Must be given back with [`Budgets::release`].
    ///
    /// # Errors
    /// The budget that does not allow it.
    pub fn reserve(&self, account: &Account, more: Usage) -> Result<(), Denial> {
        self.check_disk(more.bytes)?;
        let key = (account.constituency.clone(), account.mac);
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = under_way.get(&key).copied().unwrap_or_default();
        let stored = usage_of(&self.root.join(account.constituency.as_str()).join(account.mac.to_string()));
        let limits = &account.limits;
        let exceeds = |stored: u64, reserved: u64, more: u64, allowed: u64| {
            stored.saturating_add(reserved).saturating_add(more) > allowed
        };
        if exceeds(stored.files, reserved.files, more.files, limits.max_phone_files) && more.files > 0 {
            return Err(Denial::OverBudget { budget: "max_phone_files", allowed: limits.max_phone_files });
        }
        if exceeds(stored.bytes, reserved.bytes, more.bytes, limits.max_phone_bytes) {
            return Err(Denial::OverBudget { budget: "max_phone_bytes", allowed: limits.max_phone_bytes });
        }
        if let Some(allowed) = limits.max_constituency_bytes {
            let reserved = under_way
                .iter()
                .filter(|((name, _), _)| *name == account.constituency)
                .map(|(_, usage)| usage.bytes)
                .sum();
            if exceeds(self.total(&account.constituency), reserved, more.bytes, allowed) {
                return Err(Denial::OverBudget { budget: "max_constituency_bytes", allowed });
            }
        }
        let entry = under_way.entry(key).or_default();
        entry.bytes = entry.bytes.saturating_add(more.bytes);
        entry.files = entry.files.saturating_add(more.files);
        Ok(())
    }

    /// Gives back what was set aside, because it is stored now, or never will be. `stored` bytes were added.
    pub fn release(&self, account: &Account, reserved: Usage, stored: u64) {
        let key = (account.constituency.clone(), account.mac);
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = under_way.get_mut(&key) {
            usage.bytes = usage.bytes.saturating_sub(reserved.bytes);
            usage.files = usage.files.saturating_sub(reserved.files);
            if *usage == Usage::default() {
                under_way.remove(&key);
            }
        }
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, total)) = totals.get_mut(&account.constituency) {
            *total = total.saturating_add(stored);
        }
    }

    /// Certificates and the ledger need space too, and more than logs do.
    fn check_disk(&self, more: u64) -> Result<(), Denial> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|errno| {
            Denial::Failed(format!("the free space of {} is unknown: {errno}", self.root.display()))
        })?;
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve = self.reserve.unwrap_or_else(|| LEAST_RESERVE.max(size / RESERVE_PART));
        if free < reserve.saturating_add(more) { Err(Denial::DiskFull { reserve }) } else { Ok(()) }
    }

    fn total(&self, constituency: &ConstituencyName) -> u64 {
        let now = clock::monotonic();
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        match totals.get(constituency) {
            Some((counted, total)) if now.duration_since(*counted) < TOTAL_HOLDS => *total,
            _ => {
                let total = usage_of(&self.root.join(constituency.as_str())).bytes;
                totals.insert(constituency.clone(), (now, total));
                total
            }
        }
    }
}

/// What lies below `folder`. What cannot be read counts nothing: the next write will say why.
fn usage_of(folder: &Path) -> Usage {
    let mut usage = Usage::default();
    let Ok(entries) = fs::read_dir(folder) else { return usage };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                let below = usage_of(&entry.path());
                usage.bytes = usage.bytes.saturating_add(below.bytes);
                usage.files = usage.files.saturating_add(below.files);
            }
            Ok(metadata) => {
                usage.bytes = usage.bytes.saturating_add(metadata.len());
                usage.files = usage.files.saturating_add(1);
            }
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

    #[test]
    fn what_is_stored_and_what_is_under_way_count_together() {
        let folder = tempfile::tempdir().unwrap();
        let phone = folder.path().join("ote/00005e00530c/logs");
        fs::create_dir_all(&phone).unwrap();
        fs::File::create(phone.join("a")).unwrap().set_len(60).unwrap();
        let budgets = Budgets::new(folder.path().to_owned(), Some(0));
        let account = account(UploadLimits { max_phone_bytes: 100, max_phone_files: 2, ..UploadLimits::default() });
        let one = Usage { bytes: 30, files: 1 };
        budgets.reserve(&account, one).unwrap();
        let over = |more| match budgets.reserve(&account, more) {
            Err(Denial::OverBudget { budget, .. }) => budget,
            other => panic!("{other:?}"),
        };
        assert_eq!(over(Usage { bytes: 1, files: 1 }), "max_phone_files");
        assert_eq!(over(Usage { bytes: 11, files: 0 }), "max_phone_bytes");
        budgets.release(&account, one, 0);
        budgets.reserve(&account, one).unwrap();
        fs::remove_file(phone.join("a")).unwrap();
        budgets.reserve(&account, Usage { bytes: 70, files: 1 }).unwrap();
    }

    #[test]
    fn a_constituency_has_a_budget_too_and_the_disk_a_reserve() {
        let folder = tempfile::tempdir().unwrap();
        let limited = account(UploadLimits { max_constituency_bytes: Some(10), ..UploadLimits::default() });
        let budgets = Budgets::new(folder.path().to_owned(), Some(0));
        budgets.reserve(&limited, Usage { bytes: 10, files: 1 }).unwrap();
        assert!(budgets.reserve(&limited, Usage { bytes: 1, files: 0 }).is_err());
        budgets.release(&limited, Usage { bytes: 10, files: 1 }, 10);
        assert!(budgets.reserve(&limited, Usage { bytes: 1, files: 0 }).is_err(), "now it is stored");
        let careful = Budgets::new(folder.path().to_owned(), Some(u64::MAX));
        let denial = careful.reserve(&account(UploadLimits::default()), Usage::default()).unwrap_err();
        assert!(matches!(denial, Denial::DiskFull { .. }));
    }
}
