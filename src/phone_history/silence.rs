//! Detects phones of one constituency that fell silent together, as when a customer's network or power fails. Pure.
//! Times are milliseconds.
//!
//! 1. Only phones with at least [`MIN_VISITS`] visits are considered: their usual pause is known.
//! 2. A phone is overdue when it has stayed away for 7/4 of its usual pause plus [`SHORTEST_PAUSE`], while the server
//!    listened. After [`SILENT_AFTER`], it does not matter whether the server listened: a restart must not hide an
//!    outage of days.
//! 3. An outage at a time T fits an overdue phone if the phone was last seen at or before T and its next visit was due
//!    at or after T. That visit is due after its usual pause, and not before [`SHORTEST_PAUSE`]: phones also visit out
//!    of turn.
//! 4. Phones fell silent together if one T fits at least [`MIN_SILENT`] of them, and more than half of the phones whose
//!    next visit was not due before T.

use super::summary::SILENT_AFTER;
use super::visits::Visits;

const MIN_VISITS: u64 = 5;
pub(super) const MIN_SILENT: usize = 3;
const SHORTEST_PAUSE: i64 = 1_800_000;

/// When a known phone was last seen, and how often it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisitPattern {
    pub last_seen: i64,
    pub visits: Visits,
}

/// Phones that fell silent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    pub silent: usize,
    /// How many came regularly until then.
    pub of: usize,
    /// When the last of the silent phones was seen.
    pub since: i64,
}

impl VisitPattern {
    /// A phone that comes regularly.
    #[must_use]
    pub(super) fn regular(last_seen: i64, usual_pause: i64) -> Self {
        Self { last_seen, visits: Visits { count: MIN_VISITS, usual_pause: Some(usual_pause) } }
    }

    /// The usual pause, if it is known.
    fn usual_pause(self) -> Option<i64> {
        self.visits.usual_pause.filter(|_| self.visits.count >= MIN_VISITS)
    }

    /// When the phone is overdue, if the server listens all the time. `None` if it does not come regularly.
    #[must_use]
    pub(super) fn overdue_at(self) -> Option<i64> {
        Some(self.last_seen.saturating_add(overdue_after(self.usual_pause()?)))
    }
}

fn overdue_after(usual_pause: i64) -> i64 {
    usual_pause.saturating_mul(7).saturating_div(4).saturating_add(SHORTEST_PAUSE)
}

/// The phones of one constituency that fell silent together, if any, at `now`. The server has listened since
/// `listening`.
#[must_use]
pub fn silent_together(phones: &[VisitPattern], now: i64, listening: i64) -> Option<Silence> {
    let (mut last_seen_overdue, mut due_overdue, mut due_all) = (Vec::new(), Vec::new(), Vec::new());
    for phone in phones {
        let Some(usual) = phone.usual_pause() else { continue };
        let is_long_silent = now.saturating_sub(phone.last_seen) >= SILENT_AFTER;
        // The phone may have come while the server was down.
        let waited_since = if is_long_silent { phone.last_seen } else { phone.last_seen.max(listening) };
        let due = waited_since.saturating_add(usual.max(SHORTEST_PAUSE));
        due_all.push(due);
        if now.saturating_sub(waited_since) >= overdue_after(usual) {
            last_seen_overdue.push(phone.last_seen);
            due_overdue.push(due);
        }
    }
    last_seen_overdue.sort_unstable();
    due_overdue.sort_unstable();
    due_all.sort_unstable();
    let before = |times: &[i64], time: i64| times.partition_point(|it| *it < time);
    let at = |time: i64| {
        let silent = last_seen_overdue.partition_point(|last_seen| *last_seen <= time) - before(&due_overdue, time);
        Silence { silent, of: due_all.len() - before(&due_all, time), since: time }
    };
    let candidates = last_seen_overdue.iter().map(|last_seen| at(*last_seen));
    let counts = candidates.filter(|it| it.silent >= MIN_SILENT && it.silent * 2 > it.of);
    counts.max_by_key(|silence| (silence.silent, silence.since))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000;
    const NOW: i64 = 1_800_000_000_000;
    const LONG_AGO: i64 = 0;

    /// Phones with the same usual pause, last seen `ago` before now.
    fn phones(usual: i64, ago: &[i64]) -> Vec<VisitPattern> {
        let visits = Visits { count: MIN_VISITS, usual_pause: Some(usual) };
        ago.iter().map(|ago| VisitPattern { last_seen: NOW - ago, visits }).collect()
    }

    fn silent(phones: &[VisitPattern]) -> Option<(usize, usize, i64)> {
        silent_together(phones, NOW, LONG_AGO).map(|it| (it.silent, it.of, NOW - it.since))
    }

    #[test]
    fn phones_silent_since_the_same_half_hour_are_together() {
        let (minute, alive) = (60_000, [10 * 60_000, 20 * 60_000]);
        let gone = [0, 10, 20, 29].map(|minutes| 5 * HOUR + minutes * minute);
        let all = [phones(HOUR / 2, &gone), phones(HOUR / 2, &alive)].concat();
        assert_eq!(silent(&all), Some((4, 6, 5 * HOUR)));
        // Within their usual pause they are not silent.
        assert_eq!(silent(&phones(5 * HOUR, &gone)), None);
        // Two are too few, and half is not a majority.
        assert_eq!(silent(&phones(HOUR, &gone[..2])), None);
        assert_eq!(silent(&[phones(HOUR, &gone[..3]), phones(HOUR, &[0, 1, 2])].concat()), None);
    }

    #[test]
    fn phones_that_poll_daily_are_silent_together_too() {
        let day = 24 * HOUR;
        // The network failed 50 hours ago; each phone had come within the day before.
        let gone: Vec<i64> = (0..20).map(|phone| 50 * HOUR + phone * HOUR).collect();
        assert_eq!(silent(&phones(day, &gone)), Some((20, 20, 50 * HOUR)));
        // While the network works, each phone comes within a day.
        let alive: Vec<i64> = (0..20).map(|phone| phone * HOUR).collect();
        assert_eq!(silent(&phones(day, &alive)), None);
    }

    #[test]
    fn phones_gone_one_by_one_are_not_silent_together() {
        let gone: Vec<i64> = (1..20).map(|month| month * 30 * 24 * HOUR).collect();
        assert_eq!(silent(&phones(HOUR, &gone)), None);
        // They do not hide others that fail together now.
        let together = [gone.clone(), vec![6 * HOUR; 3]].concat();
        assert_eq!(silent(&phones(HOUR, &together)), Some((3, 3, 6 * HOUR)));
    }

    #[test]
    fn after_downtime_phones_are_not_silent_at_once() {
        let gone = phones(HOUR, &[9 * HOUR; 10]);
        assert!(silent_together(&gone, NOW, NOW - 10 * HOUR).is_some());
        assert_eq!(silent_together(&gone, NOW, NOW - 2 * HOUR), None);
        assert!(silent_together(&gone, NOW, NOW - 3 * HOUR).is_some());
    }

    #[test]
    fn restart_does_not_hide_a_long_outage() {
        let day = 24 * HOUR;
        let daily = |ago| phones(day, &[ago; 10]);
        assert!(silent_together(&daily(2 * day), NOW, NOW - HOUR).is_some());
        assert_eq!(silent_together(&daily(2 * day - 1), NOW, NOW - HOUR), None, "it may have come meanwhile");
        // Within their usual pause they are not silent.
        assert_eq!(silent_together(&phones(3 * day, &[2 * day; 10]), NOW, NOW - HOUR), None);
    }

    #[test]
    fn phones_with_few_visits_are_ignored() {
        let mut few = phones(HOUR, &[9 * HOUR; 10]);
        for phone in &mut few {
            phone.visits.count = MIN_VISITS - 1;
        }
        assert_eq!(silent(&few), None);
    }

    fn visit_pattern() -> impl Strategy<Value = VisitPattern> {
        let usual = prop::option::weighted(0.9, 120_000..4 * 24 * HOUR);
        (0..90 * 24 * HOUR, 0..12_u64, usual).prop_map(|(ago, count, usual_pause)| VisitPattern {
            last_seen: NOW - ago,
            visits: Visits { count, usual_pause },
        })
    }

    proptest! {
        #[test]
        fn silence_needs_a_majority_and_ignores_order(
            mut phones in prop::collection::vec(visit_pattern(), 0..40), listening in 0..90 * 24 * HOUR,
        ) {
            let found = silent_together(&phones, NOW, NOW - listening);
            if let Some(silence) = found {
                prop_assert!(silence.silent >= MIN_SILENT && silence.silent <= silence.of && silence.of <= phones.len());
                prop_assert!(silence.silent * 2 > silence.of);
                prop_assert!(phones.iter().any(|phone| phone.last_seen == silence.since));
            }
            phones.reverse();
            prop_assert_eq!(silent_together(&phones, NOW, NOW - listening), found);
        }

        #[test]
        fn phones_within_their_usual_pause_are_never_silent(
            pauses in prop::collection::vec((120_000..4 * 24 * HOUR, 0..1000_i64), 0..40),
        ) {
            let on_time = |(usual, part): (i64, i64)| phones(usual, &[usual * part / 1000]);
            let all: Vec<VisitPattern> = pauses.into_iter().flat_map(on_time).collect();
            prop_assert_eq!(silent(&all), None);
        }

        #[test]
        fn outage_of_all_phones_is_found_at_any_visit_rate(
            usual in prop::collection::vec((120_000..4 * 24 * HOUR, 0..1000_i64), MIN_SILENT..40),
        ) {
            // The outage began so long ago that each phone is overdue.
            let outage = 8 * 24 * HOUR;
            let all: Vec<VisitPattern> =
                usual.iter().flat_map(|(usual, part)| phones(*usual, &[outage + usual * part / 1000])).collect();
            let found = silent(&all).map(|(silent, of, _)| (silent, of));
            prop_assert_eq!(found, Some((all.len(), all.len())));
        }

        #[test]
        fn extreme_times_do_not_overflow(last_seen: i64, now: i64, listening: i64, usual: i64) {
            let visits = Visits { count: 9, usual_pause: Some(usual) };
            let _ = silent_together(&[VisitPattern { last_seen, visits }; 4], now, listening);
        }
    }
}
