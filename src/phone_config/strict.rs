//! Reports what strict XML readers refuse in a file that the lenient reader accepted.
//!
//! Phones' own readers are lenient, and only the vendor knows what each of them accepts. So a report says only what is
//! known about a deviation, and makes no claim about phones.

use std::ops::Range;

use roxmltree::Error;

use super::faults::{Deviation, TextPosition, UNKNOWN, shown};

/// Limits above which the strict reader is not run: attributes in one element, and namespaces in one file. The strict
/// reader compares each with all others, so its time is quadratic. Real configurations stay far below.
const MOST_ATTRIBUTES: usize = 10_000;
const MOST_NAMESPACES: usize = 100;

/// The strict reader's error for `text`, ignoring its `doctypes`; `None` also if the text exceeds the limits.
pub(super) fn refusal(text: &str, doctypes: &[Range<usize>]) -> Option<Deviation> {
    if is_extreme(text) {
        return None;
    }
    let error = match without(text, doctypes) {
        Some(text) => roxmltree::Document::parse(&text).err(),
        None => roxmltree::Document::parse(text).err(),
    }?;
    let position = error.pos();
    let place = TextPosition { line: position.row, column: position.col };
    Some(Deviation { place, message: format!("{}: {UNKNOWN}", reason(&error)) })
}

/// Whether `text` exceeds the limits, so that the strict reader would be slow.
fn is_extreme(text: &str) -> bool {
    // A tag cannot contain `<`, so each part between two of them has at most one tag.
    let attributes = |tag: &str| tag.bytes().filter(|byte| *byte == b'=').count();
    text.matches("xmlns").count() > MOST_NAMESPACES || text.split('<').any(|tag| attributes(tag) > MOST_ATTRIBUTES)
}

/// `text` with `parts` replaced by spaces, so that positions stay the same; `None` if there are no parts.
fn without(text: &str, parts: &[Range<usize>]) -> Option<String> {
    if parts.is_empty() {
        return None;
    }
    let mut blanked = text.to_owned();
    for part in parts {
        let spaces: String =
            text.get(part.clone())?.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
        blanked.replace_range(part.clone(), &spaces);
    }
    Some(blanked)
}

/// The strict reader's error in words for operators.
fn reason(error: &Error) -> String {
    match error {
        Error::DuplicatedAttribute(name, _) => format!("the attribute {} is repeated in one element", shown(name)),
        Error::DuplicatedNamespace(prefix, _) => {
            format!("the prefix {} is declared twice in one element", shown(prefix))
        }
        Error::UnknownNamespace(prefix, _) => format!("the prefix {}: is not declared", shown(prefix)),
        Error::UnexpectedCloseTag(expected, found, _) => {
            format!("found </{}> instead of </{}>", shown(found), shown(expected))
        }
        Error::UnknownEntityReference(name, _) => format!("the entity &{}; is not predefined in XML", shown(name)),
        Error::MalformedEntityReference(_) => "an & without an entity name; write &amp;".to_owned(),
        Error::InvalidAttributeValue(_) | Error::InvalidChar(b'"' | b'\'', b'<', _) => {
            "a < in an attribute's value; write &lt;".to_owned()
        }
        Error::UnexpectedDeclaration(_) => "the XML declaration (<?xml …?>) is not at the start of the file".to_owned(),
        Error::InvalidComment(_) => "a comment contains --".to_owned(),
        Error::NonXmlChar(character, _) => format!("U+{:04X} is not a character of XML", u32::from(*character)),
        Error::InvalidName(_) => "a name starts with an invalid character".to_owned(),
        Error::InvalidChar(expected, found, _) => {
            format!("found {} instead of {}", character(*found), character(*expected))
        }
        Error::InvalidChar2(expected, found, _) => format!("found {} instead of {expected}", character(*found)),
        Error::InvalidString(expected, _) => format!("{expected} is expected here"),
        Error::UnknownToken(_) => "text or markup is not allowed here (perhaps after the root element)".to_owned(),
        _ => "the file is not well-formed XML".to_owned(),
    }
}

fn character(byte: u8) -> String {
    match byte {
        b'\n' | b'\r' => "the end of the line".to_owned(),
        b'!'..=b'~' => char::from(byte).to_string(),
        _ => format!("the byte {byte:#04x}"),
    }
}
