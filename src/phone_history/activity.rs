//! How much went on during the last day, in steps of equal length. Pure.

use std::collections::BTreeMap;

/// The length of a step, in seconds.
pub const STEP_S: i64 = 600;
/// How many steps a day has.
const STEPS: i64 = 144;
/// How many are kept; whatever a wrong clock makes of them.
const KEPT: usize = 288;

/// What was counted in one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActivityCounts {
    /// Requests that were answered with what was asked, or that it is not there.
    pub served: u64,
    /// Requests and handshakes that were refused.
    pub refused: u64,
    /// Handshakes, finished or refused.
    pub handshakes: u64,
}

/// The counts by step: Unix time, divided by [`STEP_S`].
#[derive(Debug, Default)]
pub(super) struct Activity {
    steps: BTreeMap<i64, ActivityStep>,
    has_news: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct ActivityStep {
    counts: ActivityCounts,
    /// Whether it is not written as it is.
    is_new: bool,
}

impl ActivityCounts {
    /// Both together.
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
    /// Counts what happened at `time`, in Unix seconds.
    pub(super) fn add(&mut self, time: i64, counts: ActivityCounts) {
        self.add_to_step(time.div_euclid(STEP_S), counts);
        self.has_news = true;
    }

    /// Counts what was written by those before us.
    pub(super) fn remember(&mut self, written: &[(i64, ActivityCounts)]) {
        for (step, counts) in written {
            // What is counted already since the start is not written yet.
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
        if self.steps.len() > KEPT {
            self.steps.pop_first();
        }
    }

    /// Whether something is to be written.
    pub(super) fn has_news(&self) -> bool {
        self.has_news
    }

    /// The steps that are to be written, whole; they count as written then.
    pub(super) fn take_news(&mut self) -> Vec<(i64, ActivityCounts)> {
        self.has_news = false;
        let new = self.steps.iter_mut().filter(|(_, step)| step.is_new);
        new.map(|(number, step)| {
            step.is_new = false;
            (*number, step.counts)
        })
        .collect()
    }

    /// Some steps were not written after all; or all of them, because the database is a new one.
    pub(super) fn forget_written(&mut self, which: Option<&[(i64, ActivityCounts)]>) {
        for (number, step) in &mut self.steps {
            step.is_new |= which.is_none_or(|which| which.iter().any(|(lost, _)| lost == number));
            self.has_news |= step.is_new;
        }
    }

    /// The last day at `now`, in Unix seconds, oldest first: when it began, and its steps.
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
    fn a_day_has_its_steps_in_order_and_forgets_the_day_before() {
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
    fn each_step_is_written_whole_and_only_when_it_is_new() {
        let mut activity = Activity::default();
        activity.add(NOW, served(1));
        activity.remember(&[(NOW / STEP_S, served(10)), (NOW / STEP_S - 1, served(20))]);
        assert!(activity.has_news());
        let news = activity.take_news();
        assert_eq!(news, [(NOW / STEP_S, served(11))]);
        assert!(!activity.has_news() && activity.take_news().is_empty());
        activity.forget_written(Some(&news));
        assert!(activity.has_news());
        assert_eq!(activity.take_news(), news);
        activity.forget_written(None);
        assert!(activity.has_news());
        assert_eq!(activity.take_news().len(), 2);
    }

    #[test]
    fn a_clock_that_leaps_about_leaves_only_so_much() {
        let mut activity = Activity::default();
        for step in 0..10_000 {
            activity.add(step * STEP_S, served(1));
        }
        activity.add(i64::MAX, served(1));
        assert_eq!(activity.steps.len(), KEPT);
    }
}
