//! The part of a policy that the edit of some phones can concern. Pure.
//!
//! A list may have a million phones, and an edit that keeps the spelling of a JSON text costs much memory per entry. So
//! the excerpt has one stand-in for each run of other entries. After the edit, the runs are put back as they were.
//!
//! Only entries that are certainly valid are left out: unique MAC addresses, with plain notes. So the excerpt is valid if
//! and only if the policy is. If anything in a list is unusual, the list stays whole.

use std::borrow::Cow;
use std::ops::Range;

use jsonc_parser::tokens::Token;
use jsonc_parser::{Scanner, ScannerOptions};

use super::MacAddress;

/// The policy, with a stand-in for each run of entries that an edit does not concern.
#[derive(Debug)]
pub(super) struct Excerpt<'a> {
    text: Cow<'a, str>,
    /// In the order of the text.
    runs: Vec<Run<'a>>,
}

/// Adjacent entries of a list, without the comma behind the last one.
#[derive(Debug)]
struct Run<'a> {
    /// An entry with a MAC address that the policy does not have.
    stand_in: String,
    entries: &'a str,
}

/// A list in the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    /// The map `phones`.
    Phones,
    /// The array `denied`.
    Denied,
}

/// An entry of a list.
struct Entry {
    span: Range<usize>,
    mac: Option<MacAddress>,
    /// Whether it is a MAC address, in `phones` with a note, without escapes.
    is_plain: bool,
}

impl<'a> Excerpt<'a> {
    /// The excerpt of the policy `text` for an edit of the phones `macs`, which are sorted. An invalid text stays whole.
    pub(super) fn of(text: &'a str, macs: &[MacAddress]) -> Self {
        Self::shorten(text, macs).unwrap_or(Self { text: Cow::Borrowed(text), runs: Vec::new() })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    fn shorten(text: &'a str, macs: &[MacAddress]) -> Option<Self> {
        let prefix = unused_prefix(text, macs)?;
        let mut found = Vec::new();
        Lists::of(text)
            .visit(|lists, list| {
                found.extend(lists.runs(list, macs, prefix)?);
                Ok(())
            })
            .ok()?;
        let (mut short, mut runs, mut at) = (String::new(), Vec::new(), 0);
        for (number, (list, span)) in found.into_iter().enumerate() {
            let stand_in = format!("\"{prefix:08x}{:04x}\"", u16::try_from(number).ok()?);
            let stand_in = if list == List::Phones { format!("{stand_in}:\"\"") } else { stand_in };
            short.push_str(text.get(at..span.start)?);
            short.push_str(&stand_in);
            at = span.end;
            runs.push(Run { stand_in, entries: text.get(span)? });
        }
        short.push_str(text.get(at..)?);
        Some(Self { text: Cow::Owned(short), runs })
    }

    /// Puts the runs back into `edited`, the excerpt after an edit. `None` if a stand-in is missing.
    pub(super) fn expand(&self, edited: &str) -> Option<String> {
        let left_out: usize = self.runs.iter().map(|run| run.entries.len()).sum();
        let mut whole = String::with_capacity(edited.len() + left_out);
        let mut rest = edited;
        for run in &self.runs {
            let (before, after) = rest.split_once(&run.stand_in)?;
            whole.push_str(before);
            whole.push_str(run.entries);
            rest = after;
        }
        whole.push_str(rest);
        Some(whole)
    }
}

/// The policy `text` without the elements of `denied` that are in `macs`, which are sorted. `None` if it is not JSON.
pub(super) fn without_denials(text: &str, macs: &[MacAddress]) -> Option<String> {
    let mut cuts = Vec::new();
    Lists::of(text)
        .visit(|lists, list| {
            let start = lists.scanner.token_end();
            let mut remaining = Remaining { macs, cuts: Vec::new(), first_removed: None, last: None };
            let (mut is_end, mut is_first) = (false, true);
            while !is_end {
                if let Some(entry) = lists.entry(list, &mut is_end, is_first)? {
                    remaining.take(&entry);
                }
                is_first = false;
            }
            if list == List::Denied {
                cuts.extend(remaining.finish(start..lists.scanner.token_start()));
            }
            Ok(())
        })
        .ok()?;
    let (mut rest, mut at) = (String::with_capacity(text.len()), 0);
    for cut in cuts {
        rest.push_str(text.get(at..cut.start)?);
        at = cut.end;
    }
    rest.push_str(text.get(at..)?);
    Some(rest)
}

/// The cuts that remove elements from a list, each with the comma and the white space on one side.
struct Remaining<'a> {
    macs: &'a [MacAddress],
    cuts: Vec<Range<usize>>,
    /// The start of the removed elements before the first one that stays.
    first_removed: Option<usize>,
    /// The end of the last element, once one stays.
    last: Option<usize>,
}

impl Remaining<'_> {
    fn take(&mut self, entry: &Entry) {
        let Range { start, end } = entry.span;
        let is_removed = entry.mac.is_some_and(|mac| self.macs.binary_search(&mac).is_ok());
        match (is_removed, self.last) {
            (true, None) => {
                self.first_removed.get_or_insert(start);
            }
            (true, Some(before)) => {
                self.cuts.push(before..end);
                self.last = Some(end);
            }
            (false, before) => {
                let first = self.first_removed.filter(|_| before.is_none());
                self.cuts.extend(first.map(|first| first..start));
                self.last = Some(end);
            }
        }
    }

    /// The cuts of a list whose `content` lies between the brackets.
    fn finish(mut self, content: Range<usize>) -> Vec<Range<usize>> {
        let is_emptied = self.last.is_none() && self.first_removed.is_some();
        self.cuts.extend(is_emptied.then_some(content));
        self.cuts
    }
}

/// RFC 8259 and nothing else, as the policy itself is parsed.
const STRICT: ScannerOptions = ScannerOptions {
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// The first four octets of the stand-ins, which neither the text nor `macs` have.
fn unused_prefix(text: &str, macs: &[MacAddress]) -> Option<u32> {
    let is_unused =
        |prefix: &u32| !macs.iter().any(|mac| prefix_of(*mac) == *prefix) && !text.contains(&format!("{prefix:08x}"));
    // Locally administered addresses, which phones do not have.
    (0x02e1_1d00..0x02e1_1d10).find(is_unused)
}

fn prefix_of(mac: MacAddress) -> u32 {
    let [first, second, third, fourth, ..] = mac.octets();
    u32::from_be_bytes([first, second, third, fourth])
}

/// The text is not JSON. So the policy is invalid.
struct NotJson;

/// Finds the lists of a policy, and their entries.
struct Lists<'a> {
    text: &'a str,
    scanner: Scanner<'a>,
}

impl<'a> Lists<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, scanner: Scanner::new(text, &STRICT) }
    }

    /// Calls `visit` behind the opening bracket of each list. It reads up to the closing one.
    fn visit(mut self, mut visit: impl FnMut(&mut Self, List) -> Result<(), NotJson>) -> Result<(), NotJson> {
        let mut depth = 0_usize;
        let (mut string, mut key): (Option<Cow<'a, str>>, Option<Cow<'a, str>>) = (None, None);
        while let Some(token) = self.token()? {
            let list = match (&token, depth, key.as_deref()) {
                (Token::OpenBrace, 1, Some("phones")) => Some(List::Phones),
                (Token::OpenBracket, 1, Some("denied")) => Some(List::Denied),
                _ => None,
            };
            if let Some(list) = list {
                visit(&mut self, list)?;
                continue;
            }
            match (token, depth) {
                (Token::OpenBrace | Token::OpenBracket, _) => depth += 1,
                (Token::CloseBrace | Token::CloseBracket, _) => depth = depth.checked_sub(1).ok_or(NotJson)?,
                (Token::String(text), 1) => string = Some(text),
                (Token::Colon, 1) => key = string.take(),
                (Token::Comma, 1) => key = None,
                _ => {}
            }
        }
        Ok(())
    }

    /// The next token. JSON has no comments.
    fn token(&mut self) -> Result<Option<Token<'a>>, NotJson> {
        match self.scanner.scan() {
            Ok(Some(Token::CommentLine(_) | Token::CommentBlock(_))) | Err(_) => Err(NotJson),
            Ok(token) => Ok(token),
        }
    }

    /// The runs of a list, whose opening bracket was read, without the entries of `concerned`.
    fn runs(
        &mut self,
        list: List,
        concerned: &[MacAddress],
        prefix: u32,
    ) -> Result<Vec<(List, Range<usize>)>, NotJson> {
        let is_concerned = |mac: Option<MacAddress>| mac.is_some_and(|mac| concerned.binary_search(&mac).is_ok());
        let (mut runs, mut macs) = (Vec::new(), Vec::new());
        let mut run: Option<Range<usize>> = None;
        // The first and the last entry stay: their white space is that of a new entry. So an entry is left out when the
        // next one follows.
        let mut last: Option<Entry> = None;
        let mut is_end = false;
        for number in 0_usize.. {
            let next = if is_end { None } else { self.entry(list, &mut is_end, number == 0)? };
            macs.extend(next.as_ref().and_then(|entry| entry.mac));
            if let (Some(entry), Some(_)) = (&last, &next) {
                let can_go = number > 1 && entry.is_plain && !is_concerned(entry.mac);
                run = match run.take() {
                    Some(run) if can_go && self.is_blank(run.end..entry.span.start, b',') => {
                        Some(run.start..entry.span.end)
                    }
                    ended => {
                        runs.extend(ended.map(|ended| (list, ended)));
                        can_go.then(|| entry.span.clone())
                    }
                };
            }
            let is_last = next.is_none();
            last = next;
            if is_last {
                break;
            }
        }
        runs.extend(run.map(|run| (list, run)));
        let is_taken = |mac: &MacAddress| prefix_of(*mac) == prefix || *mac == MacAddress::ZERO;
        macs.sort_unstable();
        let is_unusual = macs.iter().any(is_taken) || macs.windows(2).any(|pair| pair.first() == pair.last());
        Ok(if is_unusual { Vec::new() } else { runs })
    }

    /// The next entry of a list, and the comma or bracket behind it. `None` at the end of an empty list.
    fn entry(&mut self, list: List, is_end: &mut bool, is_first: bool) -> Result<Option<Entry>, NotJson> {
        let mut entry = Entry { span: 0..0, mac: None, is_plain: true };
        let (mut depth, mut number) = (0_usize, 0_usize);
        loop {
            let token = self.token()?.ok_or(NotJson)?;
            let span = self.scanner.token_start()..self.scanner.token_end();
            match (&token, depth) {
                (Token::Comma, 0) if number > 0 => break,
                (Token::CloseBrace | Token::CloseBracket, 0) if number > 0 || is_first => {
                    *is_end = true;
                    break;
                }
                (Token::Comma | Token::CloseBrace | Token::CloseBracket, 0) => return Err(NotJson),
                (Token::OpenBrace | Token::OpenBracket, _) => depth += 1,
                (Token::CloseBrace | Token::CloseBracket, _) => depth -= 1,
                _ => {}
            }
            match (list, number, &token) {
                (_, 0, Token::String(text)) => {
                    entry.mac = text.parse().ok();
                    entry.is_plain = entry.mac.is_some() && self.is_plain(&span);
                    entry.span.start = span.start;
                }
                (List::Phones, 1, Token::Colon) => {}
                (List::Phones, 2, Token::String(_)) => {
                    entry.is_plain &= self.is_plain(&span) && self.is_blank(entry.span.end..span.start, b':');
                }
                (_, 0, _) => {
                    entry.is_plain = false;
                    entry.span.start = span.start;
                }
                _ => entry.is_plain = false,
            }
            // The blank between key and value is checked with the value.
            if !(list == List::Phones && number == 1) {
                entry.span.end = span.end;
            }
            number += 1;
        }
        // An entry needs a value after its key.
        entry.is_plain &= number == if list == List::Phones { 3 } else { 1 };
        Ok((number > 0).then_some(entry))
    }

    /// Whether the string at `span` has neither escapes nor control characters.
    fn is_plain(&self, span: &Range<usize>) -> bool {
        let bytes = self.text.as_bytes().get(span.clone()).unwrap_or_default();
        bytes.iter().all(|byte| *byte >= b' ' && *byte != b'\\')
    }

    /// Whether `span` has only JSON's white space and the token `between`.
    fn is_blank(&self, span: Range<usize>, between: u8) -> bool {
        let bytes = self.text.as_bytes().get(span).unwrap_or_default();
        bytes.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n') || *byte == between)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u64) -> MacAddress {
        "00005e005300".parse::<MacAddress>().unwrap().plus(number)
    }

    /// The number of the first denied phone.
    const DENIED: u64 = 1 << 24;

    /// A policy of phones 0 to `count` - 1, and as many denials of others.
    fn policy(count: u64) -> String {
        let phones: serde_json::Map<String, serde_json::Value> =
            (0..count).map(|number| (mac(number).to_string(), format!("Room {number:06}").into())).collect();
        let denied: Vec<String> = (0..count).map(|number| mac(DENIED + number).to_string()).collect();
        serde_json::to_string_pretty(&serde_json::json!({ "phones": phones, "denied": denied })).unwrap()
    }

    #[test]
    fn excerpt_is_as_long_for_10_000_phones_as_for_100() {
        for concerned in [mac(50), mac(DENIED + 50), mac(1 << 30)] {
            let lengths = [100, 10_000].map(|count| {
                let text = policy(count);
                let excerpt = Excerpt::of(&text, &[concerned]);
                assert_eq!(excerpt.expand(excerpt.as_str()).as_ref(), Some(&text));
                excerpt.as_str().len()
            });
            assert_eq!(lengths[0], lengths[1], "{concerned}");
            assert!(lengths[0] < 600, "{lengths:?}");
        }
    }

    #[test]
    fn unusual_entries_are_not_left_out() {
        let around = |entry: &str| {
            format!("{{\"phones\": {{\"00005e005301\": \"\", {entry}, \"00005e005302\": \"\"}}, \"denied\": []}}")
        };
        let plain = around("\"00005e005303\": \"a\"");
        assert!(!Excerpt::of(&plain, &[mac(99)]).as_str().contains("00005e005303"));
        for entry in [
            // The concerned phone itself, in another spelling.
            "\"00:00:5E:00:53:63\": \"\"",
            // A pin, an escape, a control character, wrong types, no address, twice the same, the fallback name.
            "\"00005e005303\": {\"note\": \"a\"}",
            "\"00005e005303\": \"a\\u0041\"",
            "\"00005e005303\": \"a\u{1}\"",
            "\"00005e005303\": 7",
            "\"00005e0053\": \"a\"",
            "\"00005e005301\": \"a\"",
            "\"000000000000\": \"a\"",
            "\"00005e005303\":\u{a0}\"a\"",
            "\"00005e005303\"",
            "\"00005e005303\": \"a\" \"b\"",
            "/* a */ \"00005e005303\": \"a\"",
            // An address that could be a stand-in's.
            "\"02:e1:1d:00:00:00\": \"a\"",
        ] {
            let text = around(entry);
            assert_eq!(Excerpt::of(&text, &[mac(99)]).as_str(), text);
        }
    }
}
