//! What can be wrong with a file, and where.

use std::fmt;

/// The longest name in an error, in characters.
const NAME: usize = 80;

/// Elements nested deeper than any configuration's.
pub(super) const MOST_DEPTH: usize = 1000;
/// What is known of how phones take a departure.
pub(super) const UNKNOWN: &str = "strict XML readers refuse such a file; what phones do with it is not known";

/// A line and a column, both counted from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextPosition {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// Why a file cannot be read, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableXml {
    /// No text at all.
    #[error("the file holds binary data; if it is encrypted for phones, nothing in it can be checked")]
    Binary,
    /// No element.
    #[error("the file is empty")]
    Empty,
    /// No element.
    #[error("the file holds no XML element")]
    NoElement,
    /// Something is not closed.
    #[error("the file ends within {what} that begins at {place}")]
    EndsWithin {
        /// What is not closed.
        what: &'static str,
        /// Where that begins.
        place: TextPosition,
    },
    /// An element is not closed.
    #[error("the file ends before </{element}>, which {place} opens")]
    NotClosed {
        /// The element.
        element: String,
        /// Where it is opened.
        place: TextPosition,
    },
    /// Hostile nesting.
    #[error("elements are nested more than {MOST_DEPTH} deep at {0}")]
    TooDeep(TextPosition),
}

/// Something that departs from what strict readers take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departed {
    /// Bytes that are no UTF-8, without a declared encoding.
    NotUtf8,
    /// UTF-16.
    Utf16,
    /// A document type declaration.
    Doctype,
}

/// Something that strict XML readers refuse, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// Where it stands.
    pub place: TextPosition,
    /// What it is, and what is known of it.
    pub message: String,
}

impl Departure {
    pub(super) fn new(place: TextPosition, departed: Departed) -> Self {
        let message = match departed {
            Departed::NotUtf8 => {
                format!("the file is not UTF-8 and declares no other encoding: {UNKNOWN}; save it as UTF-8")
            }
            Departed::Utf16 => "the file is UTF-16; whether phones read that is not known; save it as UTF-8".to_owned(),
            Departed::Doctype => "a DOCTYPE: some XML readers refuse a file that has one, and what it declares is not \
                                  read here; what phones do with it is not known"
                .to_owned(),
        };
        Self { place, message }
    }
}

impl fmt::Display for TextPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// `name` as it is shown: not too long, and nothing that drives a terminal.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(NAME).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
