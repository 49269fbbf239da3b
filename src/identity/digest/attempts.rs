//! A rate limit on failed logins: counts the failures under each name within a minute. Pure.
//!
//! The table has a constant size, so made-up names cannot make it grow. Names without an account are counted too, so
//! that the limit does not show which names exist. Two names may share a slot by hash collision. The only effect is
//! that a failure gets no challenge, because a correct response is always accepted.

/// Failures per minute that still get another challenge. This does not limit guesses: every response is verified, and a
/// request without one gets a challenge. Above the limit, the server closes the connection, so each further guess costs
/// a handshake. The protection against guessing is that a password has 128 bits.
const ALLOWED: u32 = 10;
const SLOTS: usize = 4096;
const MINUTE: u64 = 60_000;

/// The failures under each name, by hash slot.
#[derive(Debug)]
pub(super) struct FailedAttempts(Box<[AttemptSlot]>);

#[derive(Debug, Clone, Copy, Default)]
struct AttemptSlot {
    minute: u64,
    failures: u32,
}

impl Default for FailedAttempts {
    fn default() -> Self {
        Self(vec![AttemptSlot::default(); SLOTS].into())
    }
}

impl FailedAttempts {
    /// Counts a failure at `now` (in milliseconds) under the name with this keyed `hash`. Returns whether it exceeds
    /// the limit.
    pub(super) fn fail(&mut self, hash: u64, now: u64) -> bool {
        let at = usize::try_from(hash % SLOTS as u64).unwrap_or(0);
        let Some(slot) = self.0.get_mut(at) else { return false };
        let minute = now / MINUTE;
        if slot.minute != minute {
            *slot = AttemptSlot { minute, failures: 0 };
        }
        slot.failures = slot.failures.saturating_add(1);
        slot.failures > ALLOWED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_name_and_minute() {
        let mut attempts = FailedAttempts::default();
        assert!((0..ALLOWED).all(|_| !attempts.fail(7, 59_999)));
        assert!(attempts.fail(7, 59_999));
        assert!(!attempts.fail(8, 59_999));
        assert!(!attempts.fail(7, 60_000));
    }
}
