//! How often somebody failed under a name within a minute. Pure.
//!
//! A table of constant size: whatever names a stranger makes up, it does not grow. Names that nobody has are counted like
//! others, lest the counting tell which exist. Two names may share a place; all that this costs is a refusal in other
//! words, because a right response is never held back.

/// How many failures a minute are answered with another challenge. This bounds no guesses: each is judged, since nobody
/// can tell before whether it is right, and who asks without a guess is challenged. It makes each cost a handshake, for
/// the connection is closed. What keeps guesses out is that a password has 128 bits.
const ALLOWED: u32 = 10;
const PLACES: usize = 4096;
const MINUTE: u64 = 60_000;

/// The failures under each name.
#[derive(Debug)]
pub(super) struct FailedAttempts(Box<[AttemptSlot]>);

#[derive(Debug, Clone, Copy, Default)]
struct AttemptSlot {
    minute: u64,
    failures: u32,
}

impl Default for FailedAttempts {
    fn default() -> Self {
        Self(vec![AttemptSlot::default(); PLACES].into())
    }
}

impl FailedAttempts {
    /// Notes a failure under the name of this keyed `hash` at `now` (milliseconds); says whether there are too many.
    pub(super) fn fail(&mut self, hash: u64, now: u64) -> bool {
        let at = usize::try_from(hash % PLACES as u64).unwrap_or(0);
        let Some(place) = self.0.get_mut(at) else { return false };
        let minute = now / MINUTE;
        if place.minute != minute {
            *place = AttemptSlot { minute, failures: 0 };
        }
        place.failures = place.failures.saturating_add(1);
        place.failures > ALLOWED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_name_and_by_minute() {
        let mut attempts = FailedAttempts::default();
        assert!((0..ALLOWED).all(|_| !attempts.fail(7, 59_999)));
        assert!(attempts.fail(7, 59_999));
        assert!(!attempts.fail(8, 59_999));
        assert!(!attempts.fail(7, 60_000));
    }
}
