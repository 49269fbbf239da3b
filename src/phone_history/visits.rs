//! The usual pause of a phone, by which its silence is measured. Pure. Times are milliseconds.
//!
//! A visit is a series of requests without a long pause: a boot, or a poll. The usual pause is a decaying maximum of
//! the pauses between visits. So a phone that comes hourly but is off at night or over the weekend is known to pause
//! that long.

/// The shortest pause between two visits.
const MIN_PAUSE: i64 = 120_000;
const DAY: i64 = 86_400_000;
/// The half-life of the maximum. A weekend is remembered until the next one.
const HALF_LIFE: i64 = 7 * DAY;
/// The longest pause that is counted: a holiday is not usual.
const MAX_PAUSE: i64 = 4 * DAY;

/// How often a phone came, and its usual pause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Visits {
    pub count: u64,
    /// `None` before the second visit.
    pub usual_pause: Option<i64>,
}

impl Visits {
    pub(super) const FIRST: Self = Self { count: 1, usual_pause: None };

    /// Whether `pause` separates two visits.
    pub(super) fn is_pause(pause: i64) -> bool {
        pause >= MIN_PAUSE
    }

    /// The visits after another one, if `pause` separates two visits.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "milliseconds, not to the last")]
    pub(super) fn after(self, pause: i64) -> Self {
        if !Self::is_pause(pause) {
            return self;
        }
        let pause = pause.min(MAX_PAUSE);
        let decay = (-(pause as f64) / HALF_LIFE as f64).exp2();
        let usual = self.usual_pause.map_or(0, |usual| (usual as f64 * decay) as i64);
        Self { count: self.count.saturating_add(1), usual_pause: Some(pause.max(usual)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000;

    fn after(pauses: impl IntoIterator<Item = i64>) -> Visits {
        pauses.into_iter().fold(Visits::FIRST, Visits::after)
    }

    #[test]
    fn requests_of_one_boot_are_one_visit() {
        assert_eq!(after([0, 100, -5, MIN_PAUSE - 1]), Visits::FIRST);
        assert_eq!(after([0, MIN_PAUSE, 100, MIN_PAUSE]), Visits { count: 3, usual_pause: Some(MIN_PAUSE) });
    }

    #[test]
    fn usual_pause_remembers_nights_and_weekends() {
        let day = || std::iter::repeat_n(HOUR, 10).chain([14 * HOUR]);
        let week = || (0..4).flat_map(|_| day()).chain(std::iter::repeat_n(HOUR, 10)).chain([62 * HOUR]);
        let before_the_weekend = after(week().chain((0..4).flat_map(|_| day())).chain(std::iter::repeat_n(HOUR, 10)));
        let usual = before_the_weekend.usual_pause.unwrap();
        assert!((38 * HOUR..42 * HOUR).contains(&usual), "{usual}");
        let always_on = after(std::iter::repeat_n(HOUR, 50)).usual_pause.unwrap();
        assert_eq!(always_on, HOUR);
        // An outage is forgotten within weeks.
        let outage = after([3 * DAY].into_iter().chain(std::iter::repeat_n(HOUR, 24 * 28))).usual_pause.unwrap();
        assert!(outage < 5 * HOUR, "{outage}");
    }

    proptest! {
        #[test]
        fn usual_pause_lies_within_the_pauses(pauses in prop::collection::vec(any::<i64>(), 0..60)) {
            let visits = after(pauses.clone());
            let real: Vec<i64> = pauses.into_iter().filter(|pause| *pause >= MIN_PAUSE).map(|it| it.min(MAX_PAUSE)).collect();
            prop_assert_eq!(visits.count, 1 + real.len() as u64);
            prop_assert_eq!(visits.usual_pause.is_some(), !real.is_empty());
            if let Some(usual) = visits.usual_pause {
                prop_assert!(*real.last().unwrap() <= usual && usual <= *real.iter().max().unwrap());
            }
        }
    }
}
