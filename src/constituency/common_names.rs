//! The `common` of a policy: files that every phone may read although their paths spell a MAC address.
//!
//! Each entry is a glob pattern for a whole path. `*` and `?` match neither `/` nor a digit of a MAC address. A pattern
//! must spell such digits literally, so that it cannot expose a phone's own file by accident. Pure.

use std::fmt;

use super::MacAddress;
use super::spelled_macs::{is_within, mac_spellings, other_shapes};

/// The patterns of `common`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommonNames(Vec<Vec<Part>>);

/// A pattern that is invalid, or has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InvalidPattern {
    pattern: String,
    reason: &'static str,
}

/// One element of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// This character.
    Literal(char),
    /// `?`: one character.
    One,
    /// `*`: any number of characters.
    Many,
}

impl CommonNames {
    /// Parses the patterns.
    pub(super) fn parse(patterns: &[String]) -> Result<Self, InvalidPattern> {
        patterns.iter().map(|pattern| parts_of(pattern)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a pattern matches all of `path`.
    #[must_use]
    pub fn match_path(&self, path: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let characters = guarded(path);
        self.0.iter().any(|pattern| matches(pattern, &characters))
    }

    /// The MAC addresses that the patterns contain literally.
    pub fn spelled(&self) -> impl Iterator<Item = MacAddress> {
        self.0.iter().flat_map(|pattern| spelled_literally(pattern))
    }

    /// A pattern that matches `path`, with `?` for special characters.
    #[must_use]
    pub fn pattern_for(path: &str) -> String {
        path.replace(['*', '[', ']', '{', '}', '\\'], "?")
    }
}

/// The characters of `path`, each with a flag: whether a wildcard must not match it, because it is `/` or belongs to a
/// MAC address.
fn guarded(path: &str) -> Vec<(char, bool)> {
    let mut characters = Vec::with_capacity(path.len());
    for segment in path.split('/') {
        let shapes = other_shapes(segment);
        let spellings = mac_spellings(segment);
        let macs = spellings.iter().filter(|it| !it.mac.has_zero_prefix() && !is_within(&it.span, &shapes));
        let macs: Vec<_> = macs.collect();
        let is_guarded = |at: usize| macs.iter().any(|spelling| spelling.span.contains(&at));
        characters.extend(segment.char_indices().map(|(at, character)| (character, is_guarded(at))));
        characters.push(('/', true));
    }
    characters.pop();
    characters
}

/// Whether `pattern` matches all of `text`. Tracks all possible positions in the pattern at once, so the time is linear
/// in the text.
fn matches(pattern: &[Part], text: &[(char, bool)]) -> bool {
    let mut at = vec![false; pattern.len() + 1];
    at[0] = true;
    skip_empty(pattern, &mut at);
    for (character, is_guarded) in text {
        let mut next = vec![false; pattern.len() + 1];
        for (index, part) in pattern.iter().enumerate().filter(|(index, _)| at[*index]) {
            match part {
                Part::Literal(literal) => next[index + 1] |= literal == character,
                Part::One => next[index + 1] |= !is_guarded,
                Part::Many => next[index] |= !is_guarded,
            }
        }
        skip_empty(pattern, &mut next);
        at = next;
    }
    at.last() == Some(&true)
}

/// Adds the positions behind each `*`, which may match nothing.
fn skip_empty(pattern: &[Part], at: &mut [bool]) {
    for (index, part) in pattern.iter().enumerate() {
        if at[index] && *part == Part::Many {
            at[index + 1] = true;
        }
    }
}

fn parts_of(pattern: &str) -> Result<Vec<Part>, InvalidPattern> {
    let invalid = |reason| InvalidPattern { pattern: pattern.to_owned(), reason };
    let path = pattern.strip_prefix('/').unwrap_or(pattern);
    if path.contains(['[', ']', '{', '}', '\\']) {
        return Err(invalid("only * and ? are wildcards; write ? for each of [ ] { } \\"));
    }
    if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(invalid("a path in the constituency's folder must not have an empty, \".\" or \"..\" segment"));
    }
    let part = |character| match character {
        '*' => Part::Many,
        '?' => Part::One,
        literal => Part::Literal(literal),
    };
    let parts: Vec<Part> = path.chars().map(part).collect();
    if spelled_literally(&parts).is_empty() {
        return Err(invalid(
            "it contains no MAC address, so it has no effect; write the digits of the MAC address, because wildcards never match one",
        ));
    }
    Ok(parts)
}

fn spelled_literally(pattern: &[Part]) -> Vec<MacAddress> {
    let literals = pattern.split(|part| matches!(part, Part::One | Part::Many | Part::Literal('/')));
    let text = |literal: &[Part]| -> String {
        literal
            .iter()
            .filter_map(|part| if let Part::Literal(character) = part { Some(*character) } else { None })
            .collect()
    };
    literals.flat_map(|literal| mac_spellings(&text(literal))).map(|spelling| spelling.mac).collect()
}

impl fmt::Display for InvalidPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid pattern {:?}: {}", self.pattern, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(patterns: &[&str]) -> CommonNames {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        CommonNames::parse(&patterns).unwrap()
    }

    fn error(pattern: &str) -> String {
        CommonNames::parse(&[pattern.to_owned()]).unwrap_err().to_string()
    }

    #[test]
    fn pattern_matches_only_literal_mac_digits() {
        let names = common(&["fw/00005e0053aa-*.ld", "/ring-00-00-5e-00-53-ab.wav", "y000000000028.cfg"]);
        for path in
            ["fw/00005e0053aa-.ld", "fw/00005e0053aa-5.9.7.ld", "ring-00-00-5e-00-53-ab.wav", "y000000000028.cfg"]
        {
            assert!(names.match_path(path), "{path}");
        }
        for path in [
            "fw/00005e0053ab-5.9.7.ld",
            "fw/00005E0053AA-5.9.7.ld",
            "fw/00005e0053aa-a/b.ld",
            "fw/00005e0053aa-00005e0053ab.ld",
            // The digits behind the hyphen form further MAC addresses with those before it.
            "fw/00005e0053aa-202611300630.ld",
            "x/fw/00005e0053aa-1.ld",
            "ring-00-00-5e-00-53-ab.wav/x",
            "",
        ] {
            assert!(!names.match_path(path), "{path}");
        }
    }

    #[test]
    fn wildcard_matches_dates_and_hashes_but_no_mac() {
        let names = common(&["*/00005e0053aa/?*.cfg"]);
        assert!(names.match_path("d-202611300630/00005e0053aa/1.cfg"));
        assert!(names.match_path("0123456789abcdef0123456789abcdef/00005e0053aa/1.cfg"));
        assert!(!names.match_path("d-00005e0053ab/00005e0053aa/1.cfg"));
        assert!(!names.match_path("d/00005e0053aa/.cfg"));
    }

    #[test]
    fn pattern_without_literal_mac_is_rejected() {
        for pattern in ["*", "*.cfg", "00005e0053??.cfg", "y0000000000*.cfg", "0000*5e0053aa.cfg", "site.cfg", "", "/"]
        {
            assert!(error(pattern).starts_with(&format!("invalid pattern {pattern:?}: ")), "{}", error(pattern));
        }
        assert!(error("[0]0005e0053aa.cfg").contains("only * and ? are wildcards"));
        assert!(error("a//00005e0053aa.cfg").contains("segment"));
        assert!(error("../00005e0053aa.cfg").contains("segment"));
    }

    proptest::proptest! {
        #[test]
        fn pattern_made_for_a_path_matches_it(path in "[a-z0-9*?\\[ ._-]{0,12}00005e0053aa[a-z.*]{0,8}(/[a-z]{1,3})?") {
            let names = common(&[&CommonNames::pattern_for(&path)]);
            proptest::prop_assert!(names.match_path(&path));
        }

        #[test]
        fn no_pattern_panics(pattern in "\\PC{0,30}", path in "\\PC{0,30}") {
            if let Ok(names) = CommonNames::parse(&[pattern]) {
                let _ = names.match_path(&path);
            }
        }
    }
}
