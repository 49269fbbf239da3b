//! What phones make the disk write: `max_phone_write_bytes_per_hour`. Pure; the time is an argument.
//!
//! Each phone has a leaky bucket. What it writes is poured in; what fits into an hour leaks out in an hour, evenly. A
//! phone whose bucket is empty is forgotten, so memory is bounded by the phones that lately wrote more than leaks out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::constituency::{ConstituencyName, MacAddress};

/// What an upload costs the disk at least, in bytes: a block of data, an inode, a directory entry and the journal.
const LEAST: u64 = 4096;
/// How many uploads fit into any quota, if they are small enough: a small quota must not end them all.
const UPLOADS: u64 = 256;
/// In what time a full bucket is empty again.
const HOUR: Duration = Duration::from_hours(1);
/// Of about how many phones an empty bucket is kept.
const REMEMBERED: usize = 1024;

/// A phone, as one constituency knows it.
pub(super) type QuotaKey = (ConstituencyName, MacAddress);

/// The buckets of all phones.
#[derive(Debug)]
pub(super) struct WriteQuotas(HashMap<QuotaKey, Bucket>);

#[derive(Debug)]
struct Bucket {
    level: u64,
    /// How much leaks out in an hour.
    per_hour: u64,
    /// When it last leaked.
    leaked: Instant,
}

/// What an upload that writes `bytes` of content takes of a quota of `per_hour`.
pub(super) fn cost(bytes: u64, per_hour: u64) -> u64 {
    bytes.max(LEAST.min(per_hour / UPLOADS))
}

impl WriteQuotas {
    /// Takes `bytes` of what `phone` may write; it may write `per_hour`.
    ///
    /// # Errors
    /// If it may not write so much now: how long until it may. A phone that never may hears how long a full bucket takes.
    pub(super) fn take(&mut self, phone: &QuotaKey, bytes: u64, per_hour: u64, now: Instant) -> Result<(), Duration> {
        if self.0.len() == self.0.capacity() {
            self.0.retain(|_, bucket| bucket.leak(now) > 0);
        }
        let empty = Bucket { level: 0, per_hour, leaked: now };
        let bucket = self.0.entry(phone.clone()).or_insert(empty);
        bucket.leak(now);
        bucket.per_hour = per_hour;
        let level = bucket.level.saturating_add(bytes);
        if level > per_hour {
            return Err(leaks_in(level - per_hour, per_hour).min(HOUR));
        }
        bucket.level = level;
        Ok(())
    }

    /// Gives back what was taken and not written.
    pub(super) fn give_back(&mut self, phone: &QuotaKey, bytes: u64) {
        if let Some(bucket) = self.0.get_mut(phone) {
            bucket.level = bucket.level.saturating_sub(bytes);
        }
    }
}

impl Default for WriteQuotas {
    fn default() -> Self {
        Self(HashMap::with_capacity(REMEMBERED))
    }
}

impl Bucket {
    /// Lets out what has leaked until `now`, and gives what is left.
    fn leak(&mut self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.leaked).min(HOUR);
        let leaked = u128::from(self.per_hour) * since.as_nanos() / HOUR.as_nanos();
        // Less than a byte leaks too, and counts later.
        if leaked > 0 || self.level == 0 {
            self.level = self.level.saturating_sub(u64::try_from(leaked).unwrap_or(u64::MAX));
            self.leaked = now;
        }
        self.level
    }
}

/// In what time `bytes` leak out of a bucket.
fn leaks_in(bytes: u64, per_hour: u64) -> Duration {
    let nanos = u128::from(bytes) * HOUR.as_nanos() / u128::from(per_hour.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn phone(number: usize) -> QuotaKey {
        ("ote".parse().unwrap(), format!("{number:012x}").parse().unwrap())
    }

    #[test]
    fn what_is_too_much_now_fits_after_the_time_that_was_told() {
        let (mut quotas, start) = (WriteQuotas::default(), crate::clock::monotonic());
        let mut take = |bytes, at| quotas.take(&phone(1), bytes, 3600, start + at);
        assert_eq!(take(3000, Duration::ZERO), Ok(()));
        assert_eq!(take(601, Duration::ZERO), Err(SECOND));
        assert_eq!(take(600, Duration::ZERO), Ok(()));
        assert_eq!(take(1800, SECOND * 10), Err(SECOND * 1790));
        assert_eq!(take(1800, SECOND * 1799), Err(SECOND));
        assert_eq!(take(1800, SECOND * 1800), Ok(()));
        // More than ever fits.
        assert_eq!(take(3601, SECOND * 9000), Err(SECOND));
        assert_eq!(take(u64::MAX, SECOND * 9000), Err(HOUR));
    }

    #[test]
    fn what_leaks_in_many_small_steps_is_not_lost() {
        let (mut quotas, start) = (WriteQuotas::default(), crate::clock::monotonic());
        let mut taken = 0;
        // A hundred times a second for two hours, of a quota of one byte in ten seconds.
        for step in 0..720_000 {
            taken += u64::from(quotas.take(&phone(1), 1, 360, start + Duration::from_millis(10) * step).is_ok());
        }
        assert_eq!(taken, 360 + 719);
    }

    #[test]
    fn an_upload_costs_4_kib_and_less_only_of_a_small_quota() {
        assert_eq!((cost(0, 640 << 20), cost(4097, 640 << 20)), (4096, 4097));
        assert_eq!((cost(0, 256 << 10), cost(0, 1000), cost(30, 1000), cost(0, 0)), (1024, 3, 30, 0));
    }

    #[test]
    fn each_phone_has_its_own_and_a_change_of_the_policy_counts() {
        let (mut quotas, now) = (WriteQuotas::default(), crate::clock::monotonic());
        assert_eq!(quotas.take(&phone(1), 100, 100, now), Ok(()));
        assert_eq!(quotas.take(&phone(2), 100, 100, now), Ok(()));
        assert!(quotas.take(&phone(1), 1, 100, now).is_err());
        assert_eq!(quotas.take(&phone(1), 50, 150, now), Ok(()));
        assert_eq!(quotas.take(&phone(1), 1, 0, now), Err(HOUR));
        quotas.give_back(&phone(1), 60);
        assert_eq!(quotas.take(&phone(1), 10, 100, now), Ok(()));
        assert!(quotas.take(&phone(1), 1, 100, now).is_err());
    }

    #[test]
    fn phones_whose_bucket_is_empty_are_forgotten() {
        let (mut quotas, start) = (WriteQuotas::default(), crate::clock::monotonic());
        quotas.take(&phone(0), 100, 100, start).unwrap();
        for number in 1..20_000 {
            let now = start + Duration::from_millis(1) * u32::try_from(number).unwrap();
            quotas.take(&phone(number), LEAST, 640 << 20, now).unwrap();
        }
        assert!(quotas.0.len() <= quotas.0.capacity() && quotas.0.capacity() < 4 * REMEMBERED, "{}", quotas.0.len());
        assert!(quotas.take(&phone(0), 2, 100, start + SECOND * 20).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_more_is_written_than_fits(steps in proptest::collection::vec((1u64..2000, 0u64..600, proptest::bool::ANY), 1..200)) {
            let (mut quotas, start) = (WriteQuotas::default(), crate::clock::monotonic());
            let (mut written, mut at) = (0, 0);
            for (bytes, wait, breaks_off) in steps {
                at += wait;
                if quotas.take(&phone(1), bytes, 3600, start + SECOND * u32::try_from(at).unwrap()).is_ok() {
                    let unwritten = if breaks_off { bytes / 2 } else { 0 };
                    quotas.give_back(&phone(1), unwritten);
                    written += bytes - unwritten;
                }
                proptest::prop_assert!(written <= 3600 + at);
            }
        }
    }
}
