//! Decodes the text of a file.

use std::borrow::Cow;

use super::faults::{DeviationKind, UnreadableXml};

/// The length of the text in which an XML declaration is searched.
const DECLARATION: usize = 1024;

#[derive(Debug)]
pub struct Text<'a> {
    text: Cow<'a, str>,
    /// The deviation in the encoding, and its byte in the text.
    pub(super) deviation: Option<(usize, DeviationKind)>,
}

impl<'a> Text<'a> {
    /// Decodes `bytes`: UTF-8 or UTF-16 with or without a byte order mark, else ISO-8859-1. Parameter names are ASCII,
    /// so they are right in any single-byte encoding.
    ///
    /// # Errors
    /// If `bytes` are binary data.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, UnreadableXml> {
        let (text, deviation) = match bytes {
            [0xef, 0xbb, 0xbf, rest @ ..] => utf8_or_latin1(rest),
            [0xfe, 0xff, rest @ ..] => (utf16(rest, u16::from_be_bytes), Some((0, DeviationKind::Utf16))),
            [0xff, 0xfe, rest @ ..] => (utf16(rest, u16::from_le_bytes), Some((0, DeviationKind::Utf16))),
            [0, b'<', ..] => (utf16(bytes, u16::from_be_bytes), Some((0, DeviationKind::Utf16))),
            [b'<', 0, ..] => (utf16(bytes, u16::from_le_bytes), Some((0, DeviationKind::Utf16))),
            _ => utf8_or_latin1(bytes),
        };
        if text.contains('\0') { Err(UnreadableXml::Binary) } else { Ok(Self { text, deviation }) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Cow<'_, str> {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>().into()
}

fn utf8_or_latin1(bytes: &[u8]) -> (Cow<'_, str>, Option<(usize, DeviationKind)>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.into(), None),
        Err(error) => {
            let text: String = bytes.iter().copied().map(char::from).collect();
            // The bytes before the first invalid one can take more room in the text than in the file.
            let at = bytes.iter().take(error.valid_up_to()).map(|byte| char::from(*byte).len_utf8()).sum();
            let deviation = (!declares_another_encoding(&text)).then_some((at, DeviationKind::NotUtf8));
            (text.into(), deviation)
        }
    }
}

/// Whether the XML declaration names an encoding other than UTF-8.
fn declares_another_encoding(text: &str) -> bool {
    let head = text.trim_start().get(..DECLARATION).unwrap_or(text.trim_start());
    let declared = head.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")).and_then(|(declaration, _)| {
        let (_, value) = declaration.split_once("encoding")?;
        let value = value.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        value.get(1..)?.split(quote).next()
    });
    declared.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("utf-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> (String, Option<(usize, DeviationKind)>) {
        let text = Text::decode(bytes).unwrap();
        (text.as_str().to_owned(), text.deviation)
    }

    #[test]
    fn each_encoding_is_read() {
        let latin1 = b"<?xml version='1.0' encoding = \"ISO-8859-1\"?><a b='\xe4'/>";
        assert_eq!(decoded(latin1).1, None, "declared");
        assert!(decoded(latin1).0.ends_with("<a b='\u{e4}'/>"));
        assert_eq!(decoded(b"\xef\xbb\xbf<a/>"), ("<a/>".to_owned(), None));
        assert_eq!(decoded("<a b='\u{e4}'/>".as_bytes()), ("<a b='\u{e4}'/>".to_owned(), None));
        assert_eq!(decoded(b"<a b='\xe4'/>").1, Some((6, DeviationKind::NotUtf8)), "not declared");
        assert_eq!(decoded(b"<?xml encoding='UTF-8'?><a b='\xe4'/>").1, Some((30, DeviationKind::NotUtf8)));
        let utf16: Vec<u8> = "<a b='\u{e4}'/>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [[&[0xff, 0xfe], utf16.as_slice()].concat(), utf16] {
            assert_eq!(decoded(&bytes), ("<a b='\u{e4}'/>".to_owned(), Some((0, DeviationKind::Utf16))));
        }
    }

    #[test]
    fn binary_data_is_rejected_as_text() {
        for bytes in [&b"<a \0/>"[..], b"\x7fELF\x02\x01\x01\0", b"\x89PNG\r\n\x1a\n\0"] {
            assert_eq!(Text::decode(bytes).unwrap_err(), UnreadableXml::Binary);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Text::decode(&bytes);
        }

        #[test]
        fn deviation_lies_inside_the_text(bytes: Vec<u8>) {
            if let Ok(text) = Text::decode(&bytes) && let Some((at, _)) = text.deviation {
                proptest::prop_assert!(text.as_str().is_char_boundary(at));
            }
        }
    }
}
