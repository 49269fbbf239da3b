//! The quota of disk writes per phone: `max_phone_write_bytes_per_hour`. Pure; the time is an argument.
//!
//! Each phone has a leaky bucket. Written bytes fill it; a full bucket drains evenly in one hour. Empty buckets are
//! removed, so memory is bounded by the phones that recently wrote faster than their bucket drains.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::constituency::{ConstituencyName, MacAddress};

/// The least cost of an upload, in bytes: a block of data, an inode, a directory entry and the journal.
const MIN_COST: u64 = 4096;
/// How many small uploads fit into any quota, so that a small quota still permits some.
const MIN_UPLOADS: u64 = 256;
/// How long a full bucket takes to drain.
const HOUR: Duration = Duration::from_hours(1);
/// About how many buckets are kept before empty ones are removed.
const MAX_BUCKETS: usize = 1024;

/// A phone, within one constituency.
pub(super) type QuotaKey = (ConstituencyName, MacAddress);

/// The buckets of all phones.
#[derive(Debug)]
pub(super) struct WriteQuotas(HashMap<QuotaKey, Bucket>);

#[derive(Debug)]
struct Bucket {
    level: u64,
    /// How much drains in an hour, in bytes.
    per_hour: u64,
    /// When it was last drained.
    drained: Instant,
}

/// The cost of an upload that writes `bytes`, for a quota of `per_hour`.
pub(super) fn cost(bytes: u64, per_hour: u64) -> u64 {
    bytes.max(MIN_COST.min(per_hour / MIN_UPLOADS))
}

impl WriteQuotas {
    /// Charges `bytes` to `phone`, whose quota is `per_hour`.
    ///
    /// # Errors
    /// If the quota is exceeded: the time until this charge fits. For a charge that never fits, this is at most one
    /// hour.
    pub(super) fn take(&mut self, phone: &QuotaKey, bytes: u64, per_hour: u64, now: Instant) -> Result<(), Duration> {
        if self.0.len() == self.0.capacity() {
            self.0.retain(|_, bucket| bucket.drain(now) > 0);
        }
        let empty = Bucket { level: 0, per_hour, drained: now };
        let bucket = self.0.entry(phone.clone()).or_insert(empty);
        bucket.drain(now);
        bucket.per_hour = per_hour;
        let level = bucket.level.saturating_add(bytes);
        if level > per_hour {
            return Err(drain_time(level - per_hour, per_hour).min(HOUR));
        }
        bucket.level = level;
        Ok(())
    }

    /// Refunds bytes that were charged and not written.
    pub(super) fn give_back(&mut self, phone: &QuotaKey, bytes: u64) {
        if let Some(bucket) = self.0.get_mut(phone) {
            bucket.level = bucket.level.saturating_sub(bytes);
        }
    }
}

impl Default for WriteQuotas {
    fn default() -> Self {
        Self(HashMap::with_capacity(MAX_BUCKETS))
    }
}

impl Bucket {
    /// Drains the bucket up to `now`, and returns its level.
    fn drain(&mut self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.drained).min(HOUR);
        let leaked = u128::from(self.per_hour) * since.as_nanos() / HOUR.as_nanos();
        // Keep a fraction of a byte for the next time.
        if leaked > 0 || self.level == 0 {
            self.level = self.level.saturating_sub(u64::try_from(leaked).unwrap_or(u64::MAX));
            self.drained = now;
        }
        self.level
    }
}

/// How long `bytes` take to drain.
fn drain_time(bytes: u64, per_hour: u64) -> Duration {
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
    fn retry_after_is_long_enough() {
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
    fn frequent_refills_lose_no_credit() {
        let (mut quotas, start) = (WriteQuotas::default(), crate::clock::monotonic());
        let mut taken = 0;
        // A hundred times a second for two hours, with a quota of one byte in ten seconds.
        for step in 0..720_000 {
            taken += u64::from(quotas.take(&phone(1), 1, 360, start + Duration::from_millis(10) * step).is_ok());
        }
        assert_eq!(taken, 360 + 719);
    }

    #[test]
    fn upload_costs_at_least_4_kib_unless_quota_is_small() {
        assert_eq!((cost(0, 640 << 20), cost(4097, 640 << 20)), (4096, 4097));
        assert_eq!((cost(0, 256 << 10), cost(0, 1000), cost(30, 1000), cost(0, 0)), (1024, 3, 30, 0));
    }

    #[test]
    fn write_quota_is_per_phone_and_follows_the_policy() {
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
    fn empty_buckets_are_dropped() {
        let (mut quotas, start) = (WriteQuotas::default(), crate::clock::monotonic());
        quotas.take(&phone(0), 100, 100, start).unwrap();
        for number in 1..20_000 {
            let now = start + Duration::from_millis(1) * u32::try_from(number).unwrap();
            quotas.take(&phone(number), MIN_COST, 640 << 20, now).unwrap();
        }
        assert!(quotas.0.len() <= quotas.0.capacity() && quotas.0.capacity() < 4 * MAX_BUCKETS, "{}", quotas.0.len());
        assert!(quotas.take(&phone(0), 2, 100, start + SECOND * 20).is_err());
    }

    proptest::proptest! {
        #[test]
        fn write_quota_is_never_exceeded(steps in proptest::collection::vec((1u64..2000, 0u64..600, proptest::bool::ANY), 1..200)) {
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
