//! The only module that reads the clock. All other code takes the time as an argument.

use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The wall-clock time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The monotonic clock, for deadlines and durations.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// `time` as Unix seconds; a time before 1970 gives 0.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Formats Unix seconds for people, to the minute: `2026-11-30 22:14 UTC`.
#[must_use]
pub fn utc_minute(seconds: i64) -> String {
    let time = rfc3339(seconds);
    match time.get(..16).and_then(|minute| minute.split_once('T')) {
        Some((date, minute)) => format!("{date} {minute} UTC"),
        None => time,
    }
}

/// Formats Unix seconds as RFC 3339, such as `2026-11-30T22:14:05Z`.
#[must_use]
pub fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_for_people_ends_with_the_minute() {
        assert_eq!(utc_minute(1_796_083_979), "2026-12-01 00:12 UTC");
        assert_eq!(utc_minute(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc_minute(i64::MAX), rfc3339(i64::MAX));
    }
}
