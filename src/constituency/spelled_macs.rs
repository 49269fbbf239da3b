//! Finds MAC addresses in text, and digits that are not MAC addresses. Pure.

use std::ops::Range;

use time::{Date, Month, Time};

use super::MacAddress;

/// The number of hex digits in a MAC address.
pub(super) const DIGITS: usize = 12;

/// The group sizes of a spelling; 12 is a spelling without separators.
pub(super) const GROUPS: [usize; 4] = [12, 6, 4, 2];

/// The lengths of hex runs that are taken for hashes: MD5, SHA-1, SHA-224, SHA-256, SHA-384, SHA-512.
const HASH_DIGITS: [usize; 6] = [32, 40, 56, 64, 96, 128];

/// A part of a segment that reads as a MAC address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spelling {
    /// Its byte range in the segment.
    pub span: Range<usize>,
    /// The address.
    pub mac: MacAddress,
}

/// Every part of `segment` that reads as a MAC address: 12 hex digits, or equal groups of 2, 4 or 6 digits, separated
/// by one `-`, `:`, `.`, `_` or space. Parts may overlap, and other hex digits may precede or follow.
#[must_use]
pub fn mac_spellings(segment: &str) -> Vec<Spelling> {
    let bytes = segment.as_bytes();
    if bytes.iter().filter(|byte| byte.is_ascii_hexdigit()).count() < DIGITS {
        return Vec::new();
    }
    let at = |start: usize| GROUPS.into_iter().filter_map(move |group| spelling_at(bytes, start, group));
    (0..bytes.len()).flat_map(at).collect()
}

/// The MAC address that begins at `start`, with a separator after each `group` digits.
fn spelling_at(bytes: &[u8], start: usize, group: usize) -> Option<Spelling> {
    let mut digits = [0; DIGITS];
    let mut at = start;
    for (index, digit) in digits.iter_mut().enumerate() {
        if index > 0 && index % group == 0 {
            bytes.get(at).filter(|byte| is_separator(**byte))?;
            at += 1;
        }
        *digit = *bytes.get(at).filter(|byte| byte.is_ascii_hexdigit())?;
        at += 1;
    }
    Some(Spelling { span: start..at, mac: MacAddress::from_hex(&digits)? })
}

pub(super) fn is_separator(byte: u8) -> bool {
    matches!(byte, b'-' | b':' | b'.' | b'_' | b' ')
}

/// The parts of `segment` whose digits are not a MAC address: UUIDs, hashes, dates with a time.
pub(super) fn other_shapes(segment: &str) -> Vec<Range<usize>> {
    let runs = hex_runs(segment.as_bytes());
    let is_shape = |run: &&Range<usize>| {
        let digits = segment.get((*run).clone()).unwrap_or_default();
        HASH_DIGITS.contains(&digits.len()) || is_date(digits)
    };
    let uuids = runs.windows(5).filter(|five| is_uuid(segment.as_bytes(), five));
    let uuids = uuids.filter_map(|five| Some(five.first()?.start..five.last()?.end));
    runs.iter().filter(is_shape).cloned().chain(uuids).collect()
}

/// Maximal runs of hex digits.
pub(super) fn hex_runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| byte.is_ascii_hexdigit()) {
        match runs.last_mut() {
            Some(run) if run.end == at => run.end += 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

/// RFC 9562 §4: the form 8-4-4-4-12.
fn is_uuid(bytes: &[u8], five: &[Range<usize>]) -> bool {
    five.iter().map(Range::len).eq([8, 4, 4, 4, 12])
        && five.windows(2).all(|two| match two {
            [one, next] => next.start == one.end + 1 && bytes.get(one.end) == Some(&b'-'),
            _ => false,
        })
}

/// `YYYYMMDDhhmm` or `YYYYMMDDhhmmss` in the years 2000 to 2099, with a valid date and time.
fn is_date(digits: &str) -> bool {
    let number = |range: Range<usize>| digits.get(range)?.parse::<u16>().ok();
    let small = |range| number(range).and_then(|number| u8::try_from(number).ok());
    let read = || {
        let year = number(0..4).filter(|year| (2000..2100).contains(year))?;
        let month = Month::try_from(small(4..6)?).ok()?;
        let second = if digits.len() == 12 { 0 } else { small(12..14)? };
        Date::from_calendar_date(year.into(), month, small(6..8)?).ok()?;
        Time::from_hms(small(8..10)?, small(10..12)?, second).ok()
    };
    matches!(digits.len(), 12 | 14) && read().is_some()
}

pub(super) fn is_within(span: &Range<usize>, shapes: &[Range<usize>]) -> bool {
    shapes.iter().any(|shape| shape.start <= span.start && span.end <= shape.end)
}
