//! Debounces the absence of a name, to distinguish a removal from a replacement by two renames. Pure.
//!
//! Between the commands of `mv ote old && mv new ote`, `ote` does not exist; likewise when an editor renames a file
//! before it writes the new one. A name counts as removed only after it has been missing for [`REMOVED_AFTER`]. Until
//! then, its last known content stays in use.

use std::time::{Duration, SystemTime};

/// How long a name must be missing before it counts as removed.
pub(super) const REMOVED_AFTER: Duration = Duration::from_millis(200);

/// The time since which a name has been missing, if it is.
#[derive(Debug, Default)]
pub(super) struct Absence {
    since: Option<SystemTime>,
}

impl Absence {
    /// Records that the name is missing at `now`. Returns whether it counts as removed.
    pub(super) fn note_missing(&mut self, now: SystemTime) -> bool {
        let since = *self.since.get_or_insert(now);
        // If the clock was set back, the duration is unknown. Then the name counts as removed: early is better than
        // never.
        !now.duration_since(since).is_ok_and(|missing| missing < REMOVED_AFTER)
    }

    /// Records that the name exists.
    pub(super) fn note_present(&mut self) {
        self.since = None;
    }

    /// Whether the name is missing, but not long enough to count as removed.
    pub(super) fn is_pending(&self) -> bool {
        self.since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_absence_is_not_a_removal() {
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
