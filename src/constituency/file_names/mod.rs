//! Decides which phone may access a file, by the MAC addresses that its path spells.
//!
//! 1. [`mac_spellings`] finds every part of a path segment that reads as a MAC address.
//! 2. [`NameRules`] classifies them. A *listed* address is on a list of this server, or is the requesting phone's own.
//! 3. A file whose path spells a listed address belongs to that phone alone. An unlisted address belongs to no phone,
//!    so every phone is refused the file, unless the digits are a date, a hash or a UUID, or the policy's `common`
//!    matches the path.
//!
//! Every access to a path goes through [`NameRules::check`]: reads, uploads, symlinks, shared folders, plain HTTP,
//! copies of a constituency, `provost check`. The cost is one lookup in [`ListedPhones`] for each MAC address that a
//! segment spells.

use std::fmt;
use std::ops::Range;

use super::spelled_macs::{DIGITS, hex_runs, is_separator, is_within, other_shapes};
pub use super::spelled_macs::{Spelling, mac_spellings};
use super::{CommonNames, Constituency, ListedPhones, MacAddress};

/// A MAC address in a path that makes the path inaccessible to the phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignMac {
    /// The address is on a list of this server: the file is that phone's.
    Listed(MacAddress),
    /// The address is on no list: the file is refused to every phone.
    Unlisted(MacAddress),
}

/// The data that decides about a path.
#[derive(Debug, Clone, Copy)]
pub struct NameRules<'a> {
    /// The lists of the whole server.
    pub listed: &'a ListedPhones,
    /// The constituency that the phone requests.
    pub asking: &'a Constituency,
    /// The constituency whose folder contains the file.
    pub owning: &'a Constituency,
    /// Patterns of common files; `None` if none apply, as for uploads.
    pub common: Option<&'a CommonNames>,
}

impl<'a> NameRules<'a> {
    /// The rules for reading a path in the folder of `constituency`.
    #[must_use]
    pub fn reading(listed: &'a ListedPhones, constituency: &'a Constituency) -> Self {
        Self { listed, asking: constituency, owning: constituency, common: Some(&constituency.policy.common) }
    }

    /// The rules for an upload: `common` does not apply.
    #[must_use]
    pub fn writing(listed: &'a ListedPhones, constituency: &'a Constituency) -> Self {
        Self { common: None, ..Self::reading(listed, constituency) }
    }

    /// The rules for a file of `owning` that a symlink in the folder of `asking` leads to.
    #[must_use]
    pub fn linked(listed: &'a ListedPhones, asking: &'a Constituency, owning: &'a Constituency) -> Self {
        Self { asking, ..Self::reading(listed, owning) }
    }

    /// Checks whether the phone `own` may access `path`; `None` is a client without a proven MAC address.
    ///
    /// # Errors
    /// The first MAC address in the path that is not the phone's own: a listed one if there is any, else an unlisted
    /// one.
    pub fn check(&self, path: &str, own: Option<MacAddress>) -> Result<(), ForeignMac> {
        let mut unlisted = Ok(());
        let mut is_common = None;
        for segment in path.split('/') {
            let spellings = mac_spellings(segment);
            if spellings.is_empty() {
                continue;
            }
            let is_common = *is_common.get_or_insert_with(|| self.common.is_some_and(|common| common.match_path(path)));
            match self.check_segment(segment, &spellings, own, is_common) {
                Err(ForeignMac::Unlisted(mac)) => unlisted = unlisted.and(Err(ForeignMac::Unlisted(mac))),
                listed => listed?,
            }
        }
        unlisted
    }

    fn check_segment(
        &self,
        segment: &str,
        spellings: &[Spelling],
        own: Option<MacAddress>,
        is_common: bool,
    ) -> Result<(), ForeignMac> {
        let shapes = other_shapes(segment);
        let mut listed = Vec::new();
        let mut unlisted = Vec::new();
        for spelling in spellings.iter().filter(|spelling| !spelling.mac.has_zero_prefix()) {
            let mac = spelling.mac;
            let is_excused = is_common || is_within(&spelling.span, &shapes);
            let is_listed =
                if is_excused { self.asking.lists(mac) || self.owning.lists(mac) } else { self.listed.contains(mac) };
            if is_listed || Some(mac) == own {
                listed.push(spelling);
            } else if !is_excused {
                unlisted.push(spelling);
            }
        }
        if let Some(other) = listed.iter().find(|spelling| Some(spelling.mac) != own) {
            return Err(ForeignMac::Listed(other.mac));
        }
        // If the segment begins with the phone's own address, as in `<mac>-20261130063015.log`, unlisted addresses in
        // it are ignored.
        let begins_with_own =
            |own: &&Spelling| own.span.start == 0 && matches!(segment.as_bytes().get(own.span.end), Some(b'-' | b'.'));
        if listed.iter().any(begins_with_own) {
            return Ok(());
        }
        let mut runs = runs(segment.as_bytes());
        runs.retain(|run| is_of_listed_alone(segment.as_bytes(), run, &listed));
        match unlisted.iter().find(|spelling| !is_within(&spelling.span, &runs)) {
            Some(spelling) => Err(ForeignMac::Unlisted(spelling.mac)),
            None => Ok(()),
        }
    }
}

impl ForeignMac {
    #[must_use]
    pub fn mac(self) -> MacAddress {
        match self {
            Self::Listed(mac) | Self::Unlisted(mac) => mac,
        }
    }
}

impl fmt::Display for ForeignMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listed(mac) => write!(f, "the path holds {mac}, the MAC address of another phone"),
            Self::Unlisted(mac) => write!(
                f,
                "the path holds {mac}, a MAC address on no list, so the file is served to no phone unless \"common\" names it"
            ),
        }
    }
}

/// Maximal runs of hex digits with at most one separator between two digits.
fn runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for digits in hex_runs(bytes) {
        match runs.last_mut() {
            Some(run) if digits.start == run.end + 1 && bytes.get(run.end).copied().is_some_and(is_separator) => {
                run.end = digits.end;
            }
            _ => runs.push(digits),
        }
    }
    runs
}

/// Whether a run belongs only to the `listed` addresses in it: it has fewer than 12 other digits, too few for another
/// address. `listed` is in the order of the text.
fn is_of_listed_alone(bytes: &[u8], run: &Range<usize>, listed: &[&Spelling]) -> bool {
    let digits =
        |range: Range<usize>| bytes.get(range).unwrap_or_default().iter().filter(|it| it.is_ascii_hexdigit()).count();
    let mut spans = listed.iter().map(|spelling| &spelling.span).filter(|span| run.contains(&span.start)).peekable();
    if spans.peek().is_none() {
        return false;
    }
    let mut beside = 0;
    let mut at = run.start;
    for span in spans {
        beside += digits(at..span.start.max(at));
        at = span.end.max(at);
    }
    beside + digits(at..run.end) < DIGITS
}

#[cfg(test)]
mod tests;
