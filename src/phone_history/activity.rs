//! The counts of the last day, in steps of equal length. Pure.

use std::collections::BTreeMap;

/// The length of a step, in seconds.
pub const STEP_S: i64 = 600;
/// The steps of a day.
const STEPS: i64 = 144;
/// The maximum of steps in memory, whatever a wrong clock does.
const MAX_STEPS: usize = 288;

/// The counts of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActivityCounts {
    /// Requests that were answered, including those for missing files.
    pub served: u64,
    /// Requests and handshakes that were refused.
    pub refused: u64,
    /// Handshakes, completed or refused.
    pub handshakes: u64,
}

/// The counts by step. The number of a step is its Unix time divided by [`STEP_S`].
#[derive(Debug, Default)]
pub(super) struct Activity {
    steps: BTreeMap<i64, ActivityStep>,
    has_unwritten: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct ActivityStep {
    counts: ActivityCounts,
    /// Whether its counts differ from the written ones.
    is_new: bool,
}

impl ActivityCounts {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            served: self.served.saturating_add(other.served),
            refused: self.refused.saturating_add(other.refused),
            handshakes: self.handshakes.saturating_add(other.handshakes),
        }
    }
}

impl Activity {
    /// Adds `counts` at `time`, in Unix seconds.
    pub(super) fn add(&mut self, time: i64, counts: ActivityCounts) {
        self.add_to_step(time.div_euclid(STEP_S), counts);
        self.has_unwritten = true;
    }

    /// Adds counts that an earlier process has written.
    pub(super) fn add_written(&mut self, written: &[(i64, ActivityCounts)]) {
        for (step, counts) in written {
            // A step with counts since the start is not written completely.
            let is_new = self.steps.contains_key(step);
            self.add_to_step(*step, *counts);
            if let Some(step) = self.steps.get_mut(step) {
                step.is_new = is_new;
            }
        }
    }

    fn add_to_step(&mut self, step: i64, counts: ActivityCounts) {
        let entry = self.steps.entry(step).or_default();
        *entry = ActivityStep { counts: entry.counts.plus(counts), is_new: true };
        if self.steps.len() > MAX_STEPS {
            self.steps.pop_first();
        }
    }

    /// Whether there is anything to write.
    pub(super) fn has_unwritten(&self) -> bool {
        self.has_unwritten
    }

    /// The steps to write, with their full counts. Marks them as written.
    pub(super) fn take_unwritten(&mut self) -> Vec<(i64, ActivityCounts)> {
        self.has_unwritten = false;
        let new = self.steps.iter_mut().filter(|(_, step)| step.is_new);
        new.map(|(number, step)| {
            step.is_new = false;
            (*number, step.counts)
        })
        .collect()
    }

    /// Marks steps as unwritten after a failure, or all of them (`None`) for a new database.
    pub(super) fn mark_unwritten(&mut self, which: Option<&[(i64, ActivityCounts)]>) {
        for (number, step) in &mut self.steps {
            step.is_new |= which.is_none_or(|which| which.iter().any(|(lost, _)| lost == number));
            self.has_unwritten |= step.is_new;
        }
    }

    /// The last day at `now`, in Unix seconds: its begin, and its steps, oldest first.
    pub(super) fn day(&self, now: i64) -> (i64, Vec<ActivityCounts>) {
        let last = now.div_euclid(STEP_S);
        let first = last - STEPS + 1;
        let counts = |step| self.steps.get(&step).map(|step| step.counts).unwrap_or_default();
        (first * STEP_S, (first..=last).map(counts).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn served(count: u64) -> ActivityCounts {
        ActivityCounts { served: count, ..ActivityCounts::default() }
    }

    #[test]
    fn day_has_ordered_steps_and_drops_older_ones() {
        let mut activity = Activity::default();
        activity.add(NOW - 86_400, served(9));
        activity.add(NOW - STEP_S, served(1));
        activity.add(NOW, served(2));
        activity.add(NOW + 1, served(3));
        let (since, day) = activity.day(NOW + 1);
        assert_eq!(since, NOW - 143 * STEP_S);
        assert_eq!(day.len(), 144);
        assert_eq!((day[142], day[143]), (served(1), served(5)));
        assert_eq!(day.iter().map(|step| step.served).sum::<u64>(), 6);
    }

    #[test]
    fn each_changed_step_is_written_once_with_its_total() {
        let mut activity = Activity::default();
        activity.add(NOW, served(1));
        activity.add_written(&[(NOW / STEP_S, served(10)), (NOW / STEP_S - 1, served(20))]);
        assert!(activity.has_unwritten());
        let unwritten = activity.take_unwritten();
        assert_eq!(unwritten, [(NOW / STEP_S, served(11))]);
        assert!(!activity.has_unwritten() && activity.take_unwritten().is_empty());
        activity.mark_unwritten(Some(&unwritten));
        assert!(activity.has_unwritten());
        assert_eq!(activity.take_unwritten(), unwritten);
        activity.mark_unwritten(None);
        assert!(activity.has_unwritten());
        assert_eq!(activity.take_unwritten().len(), 2);
    }

    #[test]
    fn clock_jumps_do_not_grow_the_number_of_steps() {
        let mut activity = Activity::default();
        for step in 0..10_000 {
            activity.add(step * STEP_S, served(1));
        }
        activity.add(i64::MAX, served(1));
        assert_eq!(activity.steps.len(), MAX_STEPS);
    }
}
