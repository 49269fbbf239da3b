//! Times relative to now, with the exact time as title. Pure.
//!
//! The script updates them while the page is open, by the same rules as [`relative`].

use maud::{Markup, html};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::clock::rfc3339;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// The time `at`, relative to `now`.
pub(super) fn when(now: i64, at: i64) -> Markup {
    html! { time datetime=(rfc3339(at)) title=(exactly(at)) data-relative { (relative(at.saturating_sub(now))) } }
}

/// The exact time, to the second.
pub(super) fn stamp(at: i64) -> Markup {
    html! { time datetime=(rfc3339(at)) { (exactly(at)) } }
}

/// The day of `at`.
pub(super) fn day(at: i64) -> Markup {
    let day = formatted(at, format_description!("[day padding:none] [month repr:short] [year]"));
    html! { time datetime=(rfc3339(at)) title=(exactly(at)) { (day) } }
}

/// The time of day of `at`, in UTC. The script converts it to local time.
pub(super) fn clock_time(at: i64) -> String {
    formatted(at, format_description!("[hour]:[minute]"))
}

/// `24 Nov 2026, 20:31:07 UTC`.
pub(super) fn exactly(at: i64) -> String {
    let format = format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute]:[second] UTC");
    formatted(at, format)
}

fn formatted(at: i64, format: &[time::format_description::BorrowedFormatItem<'_>]) -> String {
    let time = OffsetDateTime::from_unix_timestamp(at).ok().and_then(|time| time.format(format).ok());
    time.unwrap_or_else(|| rfc3339(at))
}

/// `3 min ago`, `in 12 days`.
pub(super) fn relative(seconds: i64) -> String {
    match seconds {
        ..=-5 => format!("{} ago", span(-seconds.max(-i64::MAX))),
        -4..5 => "just now".to_owned(),
        5.. => format!("in {}", span(seconds)),
    }
}

/// A duration in one unit: `42 s`, `3 min`, `5 h`, `12 days`.
pub(super) fn span(seconds: i64) -> String {
    match seconds {
        ..MINUTE => format!("{seconds}\u{a0}s"),
        MINUTE..HOUR => format!("{}\u{a0}min", seconds / MINUTE),
        HOUR..DAY => format!("{}\u{a0}h", seconds / HOUR),
        _ if seconds < 2 * DAY => "1\u{a0}day".to_owned(),
        _ => format!("{}\u{a0}days", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_times_use_the_largest_unit() {
        let formatted = |seconds| relative(seconds).replace('\u{a0}', " ");
        let cases = [
            (0, "just now"),
            (-4, "just now"),
            (-5, "5 s ago"),
            (-59, "59 s ago"),
            (-60, "1 min ago"),
            (-3599, "59 min ago"),
            (-3600, "1 h ago"),
            (-86_399, "23 h ago"),
            (-86_400, "1 day ago"),
            (-30 * DAY, "30 days ago"),
            (90, "in 1 min"),
            (14 * DAY + HOUR, "in 14 days"),
        ];
        for (seconds, wanted) in cases {
            assert_eq!(formatted(seconds), wanted);
        }
        assert!(formatted(i64::MIN).ends_with("days ago"));
    }

    #[test]
    fn exact_time_is_in_the_title() {
        let moment = when(1_795_552_267, 1_795_552_087).into_string();
        assert_eq!(
            moment,
            "<time datetime=\"2026-11-24T20:28:07Z\" title=\"24 Nov 2026, 20:28:07 UTC\" data-relative>3\u{a0}min ago</time>"
        );
        assert_eq!(exactly(i64::MAX), format!("{} s after 1970", i64::MAX));
    }
}
