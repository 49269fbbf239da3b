//! Tells a removal from a replacement by two renames. Pure.
//!
//! `mv ote old && mv new ote` leaves a moment without `ote`, and so does an editor that renames a file before it writes
//! another. A name counts as removed only after it has been missing for a while; until then, what it led to stays.

use std::time::{Duration, SystemTime};

/// How long a name must be missing before that counts as a removal.
pub(super) const REMOVED_AFTER: Duration = Duration::from_millis(200);

/// Since when a name has been missing, if it is.
#[derive(Debug, Default)]
pub(super) struct Absence {
    since: Option<SystemTime>,
}

impl Absence {
    /// Notes that the name is missing at `now`, and says whether that counts as a removal.
    pub(super) fn note_missing(&mut self, now: SystemTime) -> bool {
        let since = *self.since.get_or_insert(now);
        // A clock that was set back cannot tell how long: better a removal too early than one that never counts.
        !now.duration_since(since).is_ok_and(|missing| missing < REMOVED_AFTER)
    }

    /// Notes that the name is there.
    pub(super) fn note_present(&mut self) {
        self.since = None;
    }

    /// Whether the name is missing, and that does not count as a removal yet.
    pub(super) fn is_pending(&self) -> bool {
        self.since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lasting_absence_is_a_removal() {
        let at = |milliseconds: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000 + milliseconds);
        let mut absence = Absence::default();
        assert!(!absence.note_missing(at(0)) && !absence.note_missing(at(199)) && absence.is_pending());
        absence.note_present();
        assert!(!absence.is_pending());
        assert!(!absence.note_missing(at(300)) && !absence.note_missing(at(499)) && absence.note_missing(at(500)));
        absence.note_present();
        assert!(!absence.note_missing(at(600)) && absence.note_missing(at(0)), "the clock was set back");
    }
}
