//! The Content-Range of a PUT (RFC 9110 §14.5: partial PUT by private agreement, which this server supports). Pure.

use hyper::header::{CONTENT_RANGE, HeaderMap};

/// A Content-Range that is invalid for an upload. The upload changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadContentRange {
    /// Several headers; choosing one would be a guess.
    #[error("more than one Content-Range")]
    Several,
    /// Not `bytes a-b/n` or `bytes a-b/*`.
    #[error("a Content-Range that is not \"bytes FIRST-LAST/SIZE\"")]
    Malformed,
    /// `bytes */n`, which has no range.
    #[error("a Content-Range without a range")]
    NoRange,
    /// The last byte is before the first, or beyond the size.
    #[error("a Content-Range that contradicts itself")]
    Contradiction,
    /// The body and the range differ in length.
    #[error("a body that is not as long as its Content-Range")]
    Length,
}

/// The range of a file that a body fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    first: u64,
    length: u64,
}

impl ContentRange {
    /// Parses the header, if there is one.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, BadContentRange> {
        let mut values = headers.get_all(CONTENT_RANGE).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(BadContentRange::Several);
        }
        value.to_str().map_err(|_| BadContentRange::Malformed).and_then(Self::parse).map(Some)
    }

    /// The offset of the body in the file, in bytes.
    #[must_use]
    pub fn first(self) -> u64 {
        self.first
    }

    /// The required length of the body, in bytes; at least 1.
    #[must_use]
    pub fn length(self) -> u64 {
        self.length
    }

    fn parse(text: &str) -> Result<Self, BadContentRange> {
        let (unit, rest) = text.trim().split_once(' ').ok_or(BadContentRange::Malformed)?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return Err(BadContentRange::Malformed);
        }
        let (range, size) = rest.trim_start().split_once('/').ok_or(BadContentRange::Malformed)?;
        if range == "*" {
            return Err(BadContentRange::NoRange);
        }
        let (first, last) = range.split_once('-').ok_or(BadContentRange::Malformed)?;
        let (first, last) = (number(first)?, number(last)?);
        let length =
            last.checked_sub(first).and_then(|length| length.checked_add(1)).ok_or(BadContentRange::Contradiction)?;
        if size != "*" && last >= number(size)? {
            return Err(BadContentRange::Contradiction);
        }
        Ok(Self { first, length })
    }
}

/// Accepts digits only: no sign, no white space, no overflow.
fn number(text: &str) -> Result<u64, BadContentRange> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadContentRange::Malformed);
    }
    text.parse().map_err(|_| BadContentRange::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libcurl_resume_is_understood() {
        assert_eq!(ContentRange::parse("bytes 400-999/1000"), Ok(ContentRange { first: 400, length: 600 }));
        assert_eq!(ContentRange::parse("bytes 0-0/*"), Ok(ContentRange { first: 0, length: 1 }));
        assert_eq!(ContentRange::parse("Bytes 5-6/100"), Ok(ContentRange { first: 5, length: 2 }));
    }

    #[test]
    fn other_content_ranges_are_rejected() {
        use BadContentRange as B;
        let cases = [
            ("bytes 9-8/10", B::Contradiction),
            ("bytes 0-10/10", B::Contradiction),
            ("bytes */10", B::NoRange),
            ("bytes 0-18446744073709551615/*", B::Contradiction),
            ("bytes 0-18446744073709551616/*", B::Malformed),
            ("bytes -1-5/10", B::Malformed),
            ("bytes +1-5/10", B::Malformed),
            ("bytes 1-/10", B::Malformed),
            ("bytes 1-5", B::Malformed),
            ("bytes 1-5/", B::Malformed),
            ("bytes 1-5/x", B::Malformed),
            ("bytes=1-5/10", B::Malformed),
            ("lines 1-5/10", B::Malformed),
            ("", B::Malformed),
        ];
        for (text, error) in cases {
            assert_eq!(ContentRange::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn repeated_content_range_is_rejected() {
        let headers =
            |count: usize| (0..count).map(|_| (CONTENT_RANGE, "bytes 0-1/2".parse().unwrap())).collect::<HeaderMap>();
        assert_eq!(ContentRange::of(&headers(0)), Ok(None));
        assert!(ContentRange::of(&headers(1)).unwrap().is_some());
        assert_eq!(ContentRange::of(&headers(2)), Err(BadContentRange::Several));
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics(text in "(bytes )?[0-9*/ -]{0,50}") {
            let _ = ContentRange::parse(&text);
        }

        #[test]
        fn every_valid_range_is_understood(first in 0u64..1 << 40, length in 1u64..1 << 30, beyond in 0u64..1000) {
            let last = first + length - 1;
            let text = format!("bytes {first}-{last}/{}", last + 1 + beyond);
            proptest::prop_assert_eq!(ContentRange::parse(&text), Ok(ContentRange { first, length }));
        }
    }
}
