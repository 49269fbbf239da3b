//! When to renew. Pure: the time and random numbers are arguments.
//!
//! 1. The CA may name a window (ARI, RFC 9773). A time in it is chosen once, and kept while the window stays the same.
//!    Let's Encrypt exempts a renewal inside the window from its rate limits, so it should happen there. A window makes a
//!    certificate due early at most once in [24 hours](ARI_INTERVAL): a CA whose windows are always past would otherwise
//!    be sent orders in a loop.
//! 2. Without a window: when a third of the lifetime is left, half if the lifetime is under ten days, a little earlier
//!    at random, so that a thousand servers do not come at once.
//! 3. After a failure: backoff of 1, 10, 100 minutes, then the shorter of a day and a twentieth of the lifetime, ±20 %.
//!    When only a twentieth of the lifetime is left, or there is no certificate, at least every hour.
//! 4. Never before a Retry-After, never beyond a [rate limit](super::rate_limit).
//!
//! Intervals on disk are [`Deadline`]s. They store when they were set, so that a wrong clock, then or now, cannot
//! stretch them.

use serde::{Deserialize, Serialize};

use crate::certificate::Validity;

pub(super) const MINUTE: i64 = 60;
pub(super) const HOUR: i64 = 60 * MINUTE;
pub(super) const DAY: i64 = 24 * HOUR;

/// A lifetime under this is short (Let's Encrypt's advice).
const SHORT_LIFETIME: i64 = 10 * DAY;
/// The longest Retry-After that we accept; no CA has a limit that long.
const LONGEST_WAIT: i64 = 30 * DAY;

/// The least time between two renewals of a certificate that only a window made due.
pub(super) const ARI_INTERVAL: i64 = DAY;

/// When a certificate is due, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: i64,
    pub(super) reason: DueReason,
}

/// Why a certificate is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DueReason {
    /// There is no valid one for the names: none at all, or it has expired or was revoked.
    Missing,
    /// The CA's window is before the time that its age calls for.
    Window,
    /// Its age.
    Age,
}

/// When a CA wants a certificate renewed, Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalWindow {
    /// Not before this.
    pub start: i64,
    /// Not after this.
    pub end: i64,
}

/// A window with the time chosen in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChosenWindow {
    pub(super) window: RenewalWindow,
    pub(super) chosen: i64,
}

/// An interval, with the time at which it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deadline {
    set: i64,
    until: i64,
}

/// When to renew if the CA names no window; `random` moves that up to 5 % of the lifetime earlier.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "seconds, not to the second")]
fn default_time(validity: &Validity, random: f64) -> i64 {
    let lifetime = validity.lifetime();
    let left = if lifetime < SHORT_LIFETIME { lifetime / 2 } else { lifetime / 3 };
    validity.not_after - left - (lifetime as f64 * 0.05 * random) as i64
}

impl RenewalWindow {
    /// Whether the CA wants the renewal at `now`.
    pub(super) fn contains(&self, now: i64) -> bool {
        (self.start..=self.end).contains(&now)
    }

    /// Chooses a time in it, or keeps the one that was chosen `before` for the same window.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "seconds, not to the second")]
    pub(super) fn choose(self, before: Option<&ChosenWindow>, random: f64) -> ChosenWindow {
        if let Some(before) = before.filter(|before| before.window == self) {
            return *before;
        }
        let length = (self.end - self.start).max(0);
        ChosenWindow { window: self, chosen: self.start + (length as f64 * random) as i64 }
    }
}

impl Deadline {
    pub(super) fn after(now: i64, seconds: i64) -> Self {
        Self { set: now, until: now + seconds.clamp(0, LONGEST_WAIT) }
    }

    /// When it ends, for a clock that says `now`. If it was set in the future, it starts now.
    pub(super) fn end(&self, now: i64) -> i64 {
        if self.set > now { now + (self.until - self.set).clamp(0, LONGEST_WAIT) } else { self.until }
    }
}

impl Due {
    pub(super) const MISSING: Self = Self { at: 0, reason: DueReason::Missing };

    /// When to renew a valid certificate. A window that comes before the time that its age calls for counts only from
    /// `ari_floor` on.
    pub(super) fn of(validity: &Validity, window: Option<&ChosenWindow>, ari_floor: Option<i64>, random: f64) -> Self {
        let by_age = default_time(validity, random);
        match window {
            None => Self { at: by_age, reason: DueReason::Age },
            Some(window) if window.chosen < by_age => {
                let at = ari_floor.map_or(window.chosen, |floor| window.chosen.max(floor).min(by_age));
                Self { at, reason: DueReason::Window }
            }
            // A late window must not let the certificate expire.
            Some(window) => {
                let latest = validity.not_after - validity.lifetime() / 10;
                Self { at: window.chosen.min(latest), reason: DueReason::Age }
            }
        }
    }
}

/// Whether to try the fallback CAs too, now that the first has failed.
pub(super) fn is_time_for_fallback(validity: Option<&Validity>, now: i64, failures: u32) -> bool {
    match validity {
        Some(validity) => failures > 0 && validity.left(now) < validity.lifetime() / 6,
        None => failures >= 4,
    }
}

/// The backoff in seconds after the `failures`-th failure in a row; `random` spreads it by ±20 %.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "seconds, not to the second")]
pub(super) fn backoff(failures: u32, validity: Option<&Validity>, now: i64, random: f64) -> i64 {
    let longest = validity.map_or(DAY, |validity| DAY.min(validity.lifetime() / 20));
    let normal = match failures {
        0 => 0,
        1 => MINUTE,
        2 => 10 * MINUTE,
        3 => 100 * MINUTE,
        _ => longest,
    };
    let urgent = validity.map_or(HOUR, |validity| HOUR.min(validity.lifetime() / 240).max(MINUTE));
    // A pause that began early must end when a twentieth of the lifetime is left.
    let calm = validity.map_or(0, |validity| validity.left(now) - validity.lifetime() / 20);
    let seconds = normal.min(longest).min(calm.max(urgent));
    (seconds as f64 * (0.8 + 0.4 * random)) as i64
}

/// In how many seconds to ask for the window again (RFC 9773 §4.3.2: between a minute and a day).
pub(super) fn recheck_after(retry_after: i64) -> i64 {
    retry_after.clamp(MINUTE, DAY)
}

/// Whether our clock and the CA's differ so much that one of them must be wrong.
pub(super) fn is_clock_wrong(skew: i64) -> bool {
    skew.abs() > HOUR
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lasting(days: i64) -> Validity {
        Validity { not_before: 0, not_after: days * DAY }
    }

    #[test]
    fn without_ari_renewal_is_at_a_third_or_half_of_lifetime() {
        for (days, left) in [(90, 30), (64, 21), (45, 15), (6, 3)] {
            let validity = lasting(days);
            let at = Due::of(&validity, None, None, 0.0).at;
            assert_eq!(validity.left(at) / DAY, left, "{days}");
            let early = Due::of(&validity, None, None, 0.999).at;
            assert!(early < at && at - early <= validity.lifetime() / 20);
        }
    }

    #[test]
    fn a_window_in_the_past_counts_only_from_its_floor() {
        let (validity, past) = (lasting(90), RenewalWindow { start: -9 * DAY, end: -8 * DAY }.choose(None, 0.5));
        let due = |floor| Due::of(&validity, Some(&past), floor, 0.0);
        assert_eq!(due(None), Due { at: past.chosen, reason: DueReason::Window });
        assert_eq!(due(Some(2 * DAY)), Due { at: 2 * DAY, reason: DueReason::Window });
        // The floor delays nothing that the certificate's age calls for.
        assert_eq!(due(Some(80 * DAY)).at, 60 * DAY);
        let in_time = RenewalWindow { start: 61 * DAY, end: 61 * DAY }.choose(None, 0.5);
        let due = Due::of(&validity, Some(&in_time), Some(80 * DAY), 0.0);
        assert_eq!(due, Due { at: 61 * DAY, reason: DueReason::Age });
    }

    #[test]
    fn renewal_time_changes_only_with_the_ari_window() {
        let window = RenewalWindow { start: 1000, end: 2000 };
        let chosen = window.choose(None, 0.25);
        assert_eq!(chosen.chosen, 1250);
        assert_eq!(window.choose(Some(&chosen), 0.9), chosen);
        let moved = RenewalWindow { start: 500, end: 600 };
        assert_eq!(moved.choose(Some(&chosen), 0.5).chosen, 550);
    }

    #[test]
    fn ari_window_after_expiry_is_capped_before_expiry() {
        let validity = lasting(90);
        let window = RenewalWindow { start: 200 * DAY, end: 201 * DAY }.choose(None, 0.5);
        assert_eq!(Due::of(&validity, Some(&window), None, 0.0).at, 81 * DAY);
    }

    #[test]
    fn backoff_grows_to_a_day_and_shrinks_close_to_expiry() {
        let middle = |failures, validity: &Validity, now| backoff(failures, Some(validity), now, 0.5);
        let long = lasting(90);
        let pauses: Vec<i64> = (0..6).map(|failures| middle(failures, &long, 60 * DAY)).collect();
        assert_eq!(pauses, [0, 60, 600, 6000, DAY, DAY]);
        assert_eq!(middle(4, &lasting(6), 3 * DAY), 6 * DAY / 20);
        assert_eq!(middle(9, &long, 89 * DAY), HOUR);
        assert_eq!(middle(9, &lasting(6), 6 * DAY), 36 * MINUTE);
        assert_eq!(backoff(9, None, 0, 0.5), HOUR);
        assert_eq!((backoff(1, None, 0, 0.0), backoff(1, None, 0, 1.0)), (48, 72));
    }

    #[test]
    fn fallback_directory_is_used_only_late_in_the_lifetime() {
        let validity = lasting(60);
        assert!(!is_time_for_fallback(Some(&validity), 49 * DAY, 7));
        assert!(is_time_for_fallback(Some(&validity), 51 * DAY, 1));
        assert!(!is_time_for_fallback(Some(&validity), 51 * DAY, 0));
        assert!(!is_time_for_fallback(None, 0, 3) && is_time_for_fallback(None, 0, 4));
    }

    #[test]
    fn deadline_is_shortened_after_the_clock_was_set_back() {
        let deadline = Deadline::after(1_000_000_000, HOUR);
        assert_eq!(deadline.end(1_000_000_010), 1_000_000_000 + HOUR);
        // Set by a clock that was years ahead.
        assert_eq!(deadline.end(10), 10 + HOUR);
        assert_eq!(Deadline::after(0, i64::MAX).end(0), LONGEST_WAIT);
    }

    proptest! {
        #[test]
        fn renewal_is_before_expiry_and_backoff_at_most_29_hours(
            days in 1i64..400, window in proptest::option::of((-400i64..800, 0i64..100)), random in 0.0..1.0f64,
            failures in 0u32..100, part in 0.0..1.2f64, floor in proptest::option::of(-400i64..800),
        ) {
            let validity = lasting(days);
            let window = window
                .map(|(start, length)| RenewalWindow { start: start * DAY, end: (start + length) * DAY }.choose(None, random));
            let at = Due::of(&validity, window.as_ref(), floor.map(|floor| floor * DAY), random).at;
            prop_assert!(at <= validity.not_after - validity.lifetime() / 10);
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]
            let now = (validity.lifetime() as f64 * part) as i64;
            let pause = backoff(failures, Some(&validity), now, random);
            prop_assert!((0..=DAY * 6 / 5).contains(&pause));
            if validity.left(now) < validity.lifetime() / 20 {
                prop_assert!(pause <= HOUR * 6 / 5);
            }
        }
    }
}
