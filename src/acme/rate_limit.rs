//! Our own rate limits for requests to a CA: below Let's Encrypt's, and kept on disk.
//!
//! A limit is charged, on disk, *before* the request. So even a process that crashes and restarts all day cannot exceed
//! the CA's limit. Each is a token bucket that refills at a fixed rate, as the CA's own are (generic cell rate
//! algorithm: the only state is the time at which the bucket is full again). Ours refill a little slower.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::schedule::{DAY, HOUR, MINUTE};

/// What a CA limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Limit {
    /// New accounts (Let's Encrypt: 10 per IP address in 3 hours).
    Accounts,
    /// New orders (300 per account in 3 hours).
    Orders,
    /// Validations that may fail (5 per name in an hour).
    Validations,
    /// The same, per day: after many failures in a row the CA pauses a name until an operator acts.
    DailyValidations,
    /// Certificates for the same names (5 in 7 days), unless the CA asked for the renewal. A renewal leaves one for a
    /// certificate that is missing or revoked.
    Certificates,
    /// Certificates that the CA asked for. Its own limits exempt them; this one stops a loop.
    WantedCertificates,
    /// New orders for exact names. They have their own limit, so that the wildcard never waits for them.
    ExactOrders,
    /// New certificates for exact names, of all constituencies together (50 per registered domain in 7 days). A third
    /// remains for the wildcard, and for other users of that domain.
    ExactCertificates,
}

impl Limit {
    /// Whether a CA applies this limit per name or set of names.
    pub(super) fn is_by_name(self) -> bool {
        match self {
            Self::Validations | Self::DailyValidations | Self::Certificates | Self::WantedCertificates => true,
            Self::Accounts | Self::Orders | Self::ExactOrders | Self::ExactCertificates => false,
        }
    }

    /// The capacity, and the seconds until one token returns.
    fn rate(self) -> (i64, i64) {
        match self {
            Self::Accounts => (3, HOUR),
            Self::Orders => (20, 15 * MINUTE),
            Self::Validations => (4, 15 * MINUTE),
            Self::DailyValidations => (16, 90 * MINUTE),
            Self::Certificates => (5, 7 * DAY / 5 + 20 * MINUTE),
            Self::WantedCertificates => (10, 12 * HOUR),
            Self::ExactOrders => (30, 15 * MINUTE),
            Self::ExactCertificates => (20, 5 * HOUR),
        }
    }
}

/// For each limit of a CA, when its bucket is full again, Unix time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RateLimit(BTreeMap<Limit, i64>);

impl RateLimit {
    /// In how many seconds `count` can be spent; 0 is now.
    pub(super) fn wait(&self, limit: Limit, count: i64, now: i64) -> i64 {
        let (capacity, period) = limit.rate();
        (self.full(limit, now) + (count.min(capacity) - capacity) * period - now).max(0)
    }

    /// Spends `count` if available; otherwise returns in how many seconds it will be.
    pub(super) fn spend(&mut self, limit: Limit, count: i64, now: i64) -> Result<(), i64> {
        match self.wait(limit, count, now) {
            0 => {
                let (_, period) = limit.rate();
                self.0.insert(limit, self.full(limit, now) + count * period);
                Ok(())
            }
            wait => Err(wait),
        }
    }

    /// Refunds what was spent but not used.
    pub(super) fn give_back(&mut self, limit: Limit, count: i64) {
        let (_, period) = limit.rate();
        if let Some(full) = self.0.get_mut(&limit) {
            *full -= count * period;
        }
    }

    /// Whether every bucket is full.
    pub(super) fn is_full(&self, now: i64) -> bool {
        self.0.keys().all(|limit| self.full(*limit, now) <= now)
    }

    /// When the bucket will be full. Clamped: after a clock was set back, the wait is at most that of an empty bucket.
    fn full(&self, limit: Limit, now: i64) -> i64 {
        let (capacity, period) = limit.rate();
        self.0.get(&limit).copied().unwrap_or(now).clamp(now, now + capacity * period)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn five_certificates_per_week_then_one_every_34_hours() {
        let mut budget = RateLimit::default();
        for _ in 0..5 {
            budget.spend(Limit::Certificates, 1, 100).unwrap();
        }
        let wait = budget.spend(Limit::Certificates, 1, 100).unwrap_err();
        assert_eq!(wait, 7 * DAY / 5 + 20 * MINUTE);
        assert!(budget.spend(Limit::Certificates, 1, 100 + wait - 1).is_err());
        budget.spend(Limit::Certificates, 1, 100 + wait).unwrap();
        budget.give_back(Limit::Certificates, 1);
        budget.spend(Limit::Certificates, 1, 100 + wait).unwrap();
    }

    #[test]
    fn clock_set_back_by_years_waits_at_most_an_hour() {
        let mut budget = RateLimit::default();
        (0..4).for_each(|_| budget.spend(Limit::Validations, 1, 5_000_000_000).unwrap());
        assert!(budget.wait(Limit::Validations, 1, 1_700_000_000) <= HOUR);
    }

    #[test]
    fn exact_names_use_two_thirds_of_the_weekly_domain_limit() {
        let (mut budget, mut spent) = (RateLimit::default(), 0);
        let (week, mut now) = (7 * DAY, 1_700_000_000);
        let end = now + week;
        while now < end {
            match budget.spend(Limit::ExactCertificates, 1, now) {
                Ok(()) => spent += 1,
                Err(wait) => now += wait,
            }
        }
        // The CA's bucket of 50 regains 50 in a week. Ours holds 20, and regains one in 5 hours.
        assert_eq!(spent, 20 + week / (5 * HOUR));
        assert!(week / (5 * HOUR) <= 50 * 2 / 3 + 1);
        assert!(!budget.is_full(end) && budget.is_full(end + week));
    }

    proptest! {
        /// Let's Encrypt: 5 failed validations in an hour, by a bucket that regains one in 12 minutes.
        #[test]
        fn no_pattern_of_attempts_exceeds_the_ca_validation_limit(pauses in proptest::collection::vec(0i64..2000, 1..200)) {
            let (mut budget, mut now) = (RateLimit::default(), 1_700_000_000);
            let (mut tokens, mut seen) = (5.0f64, now);
            for pause in pauses {
                now += pause;
                if budget.spend(Limit::Validations, 2, now).is_ok() {
                    #[expect(clippy::cast_precision_loss, reason = "a test")]
                    let filled = (now - seen) as f64 / 720.0;
                    tokens = (tokens + filled).min(5.0) - 2.0;
                    seen = now;
                    prop_assert!(tokens >= 0.0);
                }
            }
        }
    }
}
