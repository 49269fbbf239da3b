//! Conditional and range requests for GET and HEAD (RFC 9110 §13 and §14), decided from headers and file metadata.
//! Pure.

use std::time::{Duration, SystemTime};

use hyper::Method;
use hyper::header::{
    HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};

/// The metadata of a file that conditions refer to.
#[derive(Debug, Clone, Copy)]
pub struct Representation<'a> {
    /// The strong entity tag, with its quotes.
    pub etag: &'a str,
    pub modified: SystemTime,
    /// Size in bytes.
    pub size: u64,
}

/// The part of the file to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// 200 with the whole file.
    Whole,
    /// 206 with `length` bytes from `first` on.
    Part {
        /// The offset of the first byte.
        first: u64,
        /// The number of bytes; at least 1.
        length: u64,
    },
    /// 304: the client has a current copy.
    NotModified,
    /// 412: a precondition of the client failed.
    PreconditionFailed,
    /// 416: the range is outside of the file.
    Unsatisfiable,
}

/// Evaluates the request's conditions, in the order of RFC 9110 §13.2.2, then its Range.
#[must_use]
pub fn select(method: &Method, headers: &HeaderMap, file: &Representation<'_>) -> Selection {
    let unmodified_since = |time: SystemTime| whole_seconds(file.modified) <= time;
    // RFC 9110 §13.2.2 (1, 2): If-Match; without it If-Unmodified-Since.
    let precondition_holds = match list(headers, &IF_MATCH) {
        Some(tags) => tags.trim() == "*" || tags_of(&tags).any(|tag| tag == file.etag),
        None => date(headers, &IF_UNMODIFIED_SINCE).is_none_or(unmodified_since),
    };
    if !precondition_holds {
        return Selection::PreconditionFailed;
    }
    // (3, 4): If-None-Match, by weak comparison; without it If-Modified-Since.
    let has_it = match list(headers, &IF_NONE_MATCH) {
        Some(tags) => tags.trim() == "*" || tags_of(&tags).any(|tag| tag.trim_start_matches("W/") == file.etag),
        None => date(headers, &IF_MODIFIED_SINCE).is_some_and(unmodified_since),
    };
    if has_it {
        return Selection::NotModified;
    }
    // (5): Range applies only to GET (RFC 9110 §14.2), and only if If-Range matches this file.
    if *method != Method::GET || !if_range_holds(headers, file) {
        return Selection::Whole;
    }
    single(headers, &RANGE).map_or(Selection::Whole, |range| part(range, file.size))
}

/// Drops fractions of a second, which HTTP dates do not have.
#[must_use]
pub fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// RFC 9110 §13.1.5: strong comparison of the tag, or an exact match of the date.
fn if_range_holds(headers: &HeaderMap, file: &Representation<'_>) -> bool {
    let Some(value) = headers.get(IF_RANGE) else { return true };
    let Ok(text) = value.to_str() else { return false };
    if text.starts_with('"') || text.starts_with("W/") {
        return text == file.etag;
    }
    httpdate::parse_http_date(text).is_ok_and(|time| time == whole_seconds(file.modified))
}

/// Selects one byte range of a file of `size` bytes. Ignores a malformed range, and a list of several.
fn part(range: &str, size: u64) -> Selection {
    let Some(spec) = range.trim().strip_prefix("bytes=") else { return Selection::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Selection::Whole };
    let bounds = match (number(first), number(last)) {
        _ if first.contains(',') || last.contains(',') => return Selection::Whole,
        (Some(first), Some(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
        (Some(first), None) if last.is_empty() => (first, size.saturating_sub(1)),
        (None, Some(suffix)) if first.is_empty() => {
            if suffix == 0 {
                return Selection::Unsatisfiable;
            }
            (size.saturating_sub(suffix), size.saturating_sub(1))
        }
        _ => return Selection::Whole,
    };
    let (first, last) = bounds;
    if first >= size { Selection::Unsatisfiable } else { Selection::Part { first, length: last - first + 1 } }
}

/// Parses digits. An overflow becomes the largest number.
fn number(text: &str) -> Option<u64> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

fn list(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn tags_of(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim)
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    single(headers, name).and_then(|text| httpdate::parse_http_date(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
    const LATER: &str = "Thu, 01 Jan 2026 00:00:01 GMT";
    const EARLIER: &str = "Wed, 31 Dec 2025 23:59:59 GMT";

    fn choose(headers: &[(HeaderName, &str)]) -> Selection {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let modified = httpdate::parse_http_date(THEN).unwrap() + Duration::from_millis(700);
        select(&Method::GET, &headers, &Representation { etag: "\"abc\"", modified, size: 1000 })
    }

    #[test]
    fn matching_validator_gives_304() {
        for tags in ["\"abc\"", "\"x\", \"abc\"", "W/\"abc\"", "*"] {
            assert_eq!(choose(&[(IF_NONE_MATCH, tags)]), Selection::NotModified, "{tags}");
        }
        assert_eq!(choose(&[(IF_NONE_MATCH, "\"x\"")]), Selection::Whole);
        assert_eq!(choose(&[(IF_MODIFIED_SINCE, THEN)]), Selection::NotModified);
        assert_eq!(choose(&[(IF_MODIFIED_SINCE, LATER)]), Selection::NotModified);
        assert_eq!(choose(&[(IF_MODIFIED_SINCE, EARLIER)]), Selection::Whole);
        assert_eq!(choose(&[(IF_MODIFIED_SINCE, "yesterday")]), Selection::Whole);
        assert_eq!(choose(&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, LATER)]), Selection::Whole, "the tag wins");
    }

    #[test]
    fn failed_precondition_gives_412() {
        assert_eq!(choose(&[(IF_MATCH, "\"x\"")]), Selection::PreconditionFailed);
        assert_eq!(choose(&[(IF_MATCH, "W/\"abc\"")]), Selection::PreconditionFailed, "strong comparison");
        assert_eq!(choose(&[(IF_MATCH, "\"abc\"")]), Selection::Whole);
        assert_eq!(choose(&[(IF_UNMODIFIED_SINCE, EARLIER)]), Selection::PreconditionFailed);
        assert_eq!(choose(&[(IF_UNMODIFIED_SINCE, THEN)]), Selection::Whole);
    }

    #[test]
    fn single_range_is_served_and_several_give_the_file() {
        let part = |first, length| Selection::Part { first, length };
        let cases = [
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-", part(0, 1000)),
            ("bytes=500-599", part(500, 100)),
            ("bytes=900-2000", part(900, 100)),
            ("bytes=-1", part(999, 1)),
            ("bytes=-5000", part(0, 1000)),
            ("bytes=999-99999999999999999999999", part(999, 1)),
            ("bytes=1000-", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=0-1,5-6", Selection::Whole),
            ("bytes=5-4", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("lines=0-1", Selection::Whole),
        ];
        for (range, expected) in cases {
            assert_eq!(choose(&[(RANGE, range)]), expected, "{range}");
        }
    }

    #[test]
    fn range_of_an_empty_file_is_unsatisfiable() {
        let headers = [(RANGE, "bytes=0-".parse().unwrap())].into_iter().collect();
        let empty = Representation { etag: "\"e\"", modified: SystemTime::UNIX_EPOCH, size: 0 };
        assert_eq!(select(&Method::GET, &headers, &empty), Selection::Unsatisfiable);
        assert_eq!(select(&Method::HEAD, &headers, &empty), Selection::Whole, "a range is for GET alone");
    }

    #[test]
    fn if_range_needs_the_same_file() {
        let ranged = |condition: &str| choose(&[(RANGE, "bytes=0-9"), (IF_RANGE, condition)]);
        assert_eq!(ranged("\"abc\""), Selection::Part { first: 0, length: 10 });
        assert_eq!(ranged(THEN), Selection::Part { first: 0, length: 10 });
        for stale in ["\"x\"", "W/\"abc\"", LATER, EARLIER, "nonsense"] {
            assert_eq!(ranged(stale), Selection::Whole, "{stale}");
        }
    }

    proptest::proptest! {
        #[test]
        fn selected_range_lies_inside_the_file(range in "bytes=[0-9]{0,21}-[0-9]{0,21}", size in 0u64..2000) {
            if let Selection::Part { first, length } = part(&range, size) {
                proptest::prop_assert!(length >= 1 && first + length <= size);
            }
        }
    }
}
