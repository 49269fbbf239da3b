//! Errors and deviations of configuration files, with their positions.

use std::fmt;

/// The most characters of a name that an error shows.
const NAME: usize = 80;

/// The most levels of nested elements. No real configuration comes near it.
pub(super) const MAX_DEPTH: usize = 1000;
/// The remark on a file that strict XML readers refuse: it is not known whether phones accept it.
pub(super) const UNKNOWN: &str = "strict XML readers refuse such a file; what phones do with it is not known";

/// A line and a column, both counted from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextPosition {
    pub line: u32,
    pub column: u32,
}

/// Why a file cannot be read, or cannot be read to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableXml {
    /// Binary data instead of text.
    #[error("the file holds binary data; if it is encrypted for phones, nothing in it can be checked")]
    Binary,
    /// Only white space.
    #[error("the file is empty")]
    Empty,
    /// Text without an element.
    #[error("the file holds no XML element")]
    NoElement,
    /// A construct, such as a comment, is not closed.
    #[error("the file ends within {what} that begins at {place}")]
    EndsWithin {
        /// The construct.
        what: &'static str,
        /// Where it begins.
        place: TextPosition,
    },
    /// An element is not closed.
    #[error("the file ends before </{element}>, which {place} opens")]
    NotClosed {
        element: String,
        /// Where its start tag is.
        place: TextPosition,
    },
    /// Elements are nested deeper than `MAX_DEPTH`, as in a hostile file.
    #[error("elements are nested more than {MAX_DEPTH} deep at {0}")]
    TooDeep(TextPosition),
}

/// A deviation from strict XML, before its message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviationKind {
    /// Bytes that are not UTF-8, without a declared encoding.
    NotUtf8,
    /// UTF-16.
    Utf16,
    /// A document type declaration.
    Doctype,
}

/// A construct that strict XML readers refuse, and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// Its position.
    pub place: TextPosition,
    /// The construct, and what is known about phones that read it.
    pub message: String,
}

impl Deviation {
    pub(super) fn new(place: TextPosition, kind: DeviationKind) -> Self {
        let message = match kind {
            DeviationKind::NotUtf8 => {
                format!("the file is not UTF-8 and declares no other encoding: {UNKNOWN}; save it as UTF-8")
            }
            DeviationKind::Utf16 => {
                "the file is UTF-16; whether phones read that is not known; save it as UTF-8".to_owned()
            }
            DeviationKind::Doctype => {
                "a DOCTYPE: some XML readers refuse a file that has one, and what it declares is not \
                                  read here; what phones do with it is not known"
                    .to_owned()
            }
        };
        Self { place, message }
    }
}

impl fmt::Display for TextPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// `name` for an error message: shortened, with control characters replaced.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(NAME).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
