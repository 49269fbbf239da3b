//! How long a phone usually stays away: what its silence is measured by. Pure. Times are milliseconds.
//!
//! A visit is what a phone asks without a long pause: a boot, or one look for changes. Kept is a maximum of the pauses
//! between visits that decays: a phone that asks each hour and is switched off at night, or over the weekend, is known to
//! stay away so long.

/// The shortest pause between two visits.
const PAUSE: i64 = 120_000;
const DAY: i64 = 86_400_000;
/// In this time half of a longest pause is forgotten: a weekend is remembered until the next one.
const HALF_LIFE: i64 = 7 * DAY;
/// A holiday is no habit.
const LONGEST: i64 = 4 * DAY;

/// How often a phone came, and how long it usually stays away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Visits {
    pub count: u64,
    /// `None` before the second visit.
    pub usual_pause: Option<i64>,
}

impl Visits {
    /// The first visit.
    pub(super) const FIRST: Self = Self { count: 1, usual_pause: None };

    /// Whether a pause is that between two visits.
    pub(super) fn is_pause(pause: i64) -> bool {
        pause >= PAUSE
    }

    /// The same after another visit, if `pause` is one between visits.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "milliseconds, not to the last")]
    pub(super) fn after(self, pause: i64) -> Self {
        if !Self::is_pause(pause) {
            return self;
        }
        let pause = pause.min(LONGEST);
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
        assert_eq!(after([0, 100, -5, PAUSE - 1]), Visits::FIRST);
        assert_eq!(after([0, PAUSE, 100, PAUSE]), Visits { count: 3, usual_pause: Some(PAUSE) });
    }

    #[test]
    fn nights_and_weekends_are_remembered_until_the_next() {
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
            let real: Vec<i64> = pauses.into_iter().filter(|pause| *pause >= PAUSE).map(|it| it.min(LONGEST)).collect();
            prop_assert_eq!(visits.count, 1 + real.len() as u64);
            prop_assert_eq!(visits.usual_pause.is_some(), !real.is_empty());
            if let Some(usual) = visits.usual_pause {
                prop_assert!(*real.last().unwrap() <= usual && usual <= *real.iter().max().unwrap());
            }
        }
    }
}
