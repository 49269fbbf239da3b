//! Explains JSON errors to people who write JSON. serde's messages name Rust types, and do not recognize common causes,
//! such as comments and trailing commas.

use serde_json::error::Category;

/// An error of a JSON text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JsonError {
    /// The line, from 1, if it is known.
    pub(super) line: Option<usize>,
    /// The column in characters, from 1, if it is known.
    pub(super) column: Option<usize>,
    /// The explanation.
    pub(super) reason: String,
}

impl JsonError {
    /// Explains `error` in `text`, which messages call `what` (such as "the file"). `locate` finds the value or key that
    /// has the wrong type.
    pub(super) fn of(
        text: &str,
        error: &serde_json::Error,
        what: &str,
        locate: impl FnOnce() -> Option<usize>,
    ) -> Self {
        let full = error.to_string();
        let suffix = format!(" at line {} column {}", error.line(), error.column());
        let message = full.strip_suffix(&suffix).unwrap_or(&full);
        let line = Some(error.line()).filter(|line| *line > 0);
        match error.classify() {
            Category::Eof => {
                // If the text ends with a newline, serde reports the empty line behind it. Report the last line
                // instead.
                let end = if error.column() == 0 { text.trim_end().len() } else { text.len() };
                let (line, column) = position(text, end.saturating_sub(1));
                Self { line: Some(line), column: Some(column), reason: unfinished(text, what) }
            }
            Category::Syntax => {
                let at = offset(text, error.line(), error.column());
                let (line, column) = position(text, at);
                Self { line: Some(line), column: Some(column), reason: misplaced(text, at, message) }
            }
            Category::Data | Category::Io => {
                let reason = in_terms_of_json(message);
                match locate().map(|at| position(text, at)) {
                    Some((line, column)) => Self { line: Some(line), column: Some(column), reason },
                    None => Self { line, column: None, reason },
                }
            }
        }
    }
}

/// The byte offset of serde's line and column, which count from 1, the column in bytes.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let begin: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    // Column 0 is the end of the previous line.
    let mut at = (begin + column).saturating_sub(1).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The line and column of the byte offset `at`, both from 1, the column in characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// Explains what is missing at the end of `text`.
fn unfinished(text: &str, what: &str) -> String {
    let mut open = Vec::new();
    let mut characters = text.chars();
    let mut is_string = false;
    while let Some(character) = characters.next() {
        match character {
            '"' => is_string = !is_string,
            '\\' if is_string => drop(characters.next()),
            '{' if !is_string => open.push('}'),
            '[' if !is_string => open.push(']'),
            '}' | ']' if !is_string => drop(open.pop()),
            _ => {}
        }
    }
    match open.last() {
        _ if is_string => format!("{what} ends within a string: its closing \" is missing"),
        Some(bracket) => format!("{what} ends before the closing {bracket}"),
        None if text.trim().is_empty() => format!("{what} is empty; it must hold at least {{}}"),
        None => format!("{what} ends where a value is expected"),
    }
}

/// Explains a syntax error at the byte offset `at`, for which serde has the message `message`.
fn misplaced(text: &str, at: usize, message: &str) -> String {
    let rest = text.get(at..).unwrap_or_default();
    let first = rest.chars().next().unwrap_or(' ');
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-')).take(40).collect();
    // These characters show the cause, whichever token serde expected.
    match first {
        '/' => return "a comment (// or /* */): JSON has no comments; remove it".to_owned(),
        '#' => return "# as the start of a comment: JSON has no comments; remove it".to_owned(),
        '\'' => return "single quotes: JSON needs double quotes (\")".to_owned(),
        '\u{201c}' | '\u{201d}' | '\u{201e}' => {
            return "typographic quotes: JSON needs plain double quotes (\")".to_owned();
        }
        '\u{feff}' => return "a byte order mark: save the file as UTF-8 without one".to_owned(),
        _ => {}
    }
    match message {
        "trailing comma" => format!("trailing comma: remove the comma before this {first}"),
        "expected `,` or `}`" | "expected `,` or `]`" => {
            let closing = if message.ends_with("`}`") { '}' } else { ']' };
            match first {
                '}' | ']' => format!("found {first} instead of a comma or the closing {closing}"),
                ':' => "found a colon instead of a comma".to_owned(),
                _ => format!("a comma is missing before this, or the closing {closing}"),
            }
        }
        "expected `:`" => "a colon is missing after the key".to_owned(),
        "key must be a string" | "expected `\"`" if word.is_empty() => {
            format!("found {first} instead of a key in double quotes")
        }
        "key must be a string" | "expected `\"`" => format!("a key needs double quotes: \"{word}\""),
        "expected value" | "expected ident" if word.is_empty() => format!("found {first} instead of a value"),
        "expected value" | "expected ident" => match word.to_ascii_lowercase().as_str() {
            known @ ("true" | "false" | "null") => format!("write {known} instead of {word}"),
            _ => {
                let value = "true, false, null, a number, or text in double quotes";
                format!("invalid JSON value: write {value}")
            }
        },
        "trailing characters" => match first {
            '}' | ']' => format!("one closing {first} too many"),
            _ => "unexpected text after the end of the object".to_owned(),
        },
        "invalid number" => "invalid JSON number".to_owned(),
        "number out of range" => "the number is too large".to_owned(),
        "invalid escape" => "invalid escape: remove the backslash, or write \\\\ for a backslash itself".to_owned(),
        "recursion limit exceeded" => "objects and lists are nested too deep".to_owned(),
        message if message.starts_with("control character") => {
            "a string contains a line end or another control character; its closing \" may be missing".to_owned()
        }
        message if message.contains("escape") || message.contains("unicode") => {
            "the escape \\u is not complete".to_owned()
        }
        message => message.to_owned(),
    }
}

/// Translates serde's message about a value from Rust types to JSON types.
fn in_terms_of_json(message: &str) -> String {
    let quoted = |prefix: &str| message.strip_prefix(prefix)?.split('`').nth(1);
    if let Some(key) = quoted("missing field ") {
        return format!("the key \"{key}\" is missing");
    }
    if let Some(key) = quoted("duplicate field ") {
        return format!("duplicate key \"{key}\"");
    }
    let is_of_kind = ["invalid type: ", "invalid value: "].iter().find_map(|kind| message.strip_prefix(kind));
    match is_of_kind.and_then(|rest| rest.split_once(", expected ")) {
        Some((found, expected)) => {
            let is_type = message.starts_with("invalid type: ");
            format!("must be {}, not {}", expected_value(expected), found_value(found, is_type))
        }
        None => message.to_owned(),
    }
}

/// What was found. A string of the wrong type is not shown: it can be a secret.
fn found_value(found: &str, is_type: bool) -> String {
    match found.split(' ').next().unwrap_or_default() {
        "boolean" | "integer" | "floating" => found.split('`').nth(1).unwrap_or_default().to_owned(),
        "string" if is_type => "a string".to_owned(),
        "string" => found.trim_start_matches("string ").to_owned(),
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        "unit" => "null".to_owned(),
        _ => found.to_owned(),
    }
}

fn expected_value(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "a borrowed string" | "string" => "a string",
        "path string" => "a string with a path",
        "a map" => "an object",
        "a sequence" => "a list",
        expected if expected.starts_with("a nonzero ") => "a whole number above 0",
        expected if expected.ends_with(" identifier") => "a string",
        expected => expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `LINE:COLUMN: REASON` for a text that is not JSON.
    fn explained(text: &str) -> String {
        let error = serde_json::from_str::<serde_json::Value>(text).unwrap_err();
        let error = JsonError::of(text, &error, "the file", || None);
        format!("{}:{}: {}", error.line.unwrap(), error.column.unwrap(), error.reason)
    }

    #[test]
    fn truncated_json_names_the_missing_bracket() {
        for (text, expected) in [
            ("{", "1:1: the file ends before the closing }"),
            ("{\n  \"phones\": {\n    \"00005e00530c\": \"kitchen\"\n  }", "4:3: the file ends before the closing }"),
            (
                "{\n  \"phones\": {\n    \"00005e00530c\": \"kitchen\"\n  }\n\n",
                "4:3: the file ends before the closing }",
            ),
            ("{\"a\": [1, 2", "1:11: the file ends before the closing ]"),
            ("{\"a\": [1, {\"b\": 2}", "1:18: the file ends before the closing ]"),
            ("{\"a\": ", "1:6: the file ends before the closing }"),
            ("{\"a\": 1,", "1:8: the file ends before the closing }"),
            ("{\"a}\": \"b{\\\"", "1:12: the file ends within a string: its closing \" is missing"),
            ("", "1:1: the file is empty; it must hold at least {}"),
            ("\n \n", "1:1: the file is empty; it must hold at least {}"),
        ] {
            assert_eq!(explained(text), expected, "{text:?}");
        }
    }

    #[test]
    fn comments_commas_and_quotes_have_their_own_errors() {
        let comment = "a comment (// or /* */): JSON has no comments; remove it";
        for (text, expected) in [
            ("// mine\n{}", format!("1:1: {comment}")),
            ("{\n  // mine\n  \"a\": 1\n}", format!("2:3: {comment}")),
            ("{\"a\": 1, // mine\n \"b\": 2}", format!("1:10: {comment}")),
            ("{\"a\": 1 // mine\n}", format!("1:9: {comment}")),
            ("{\"a\": // mine\n 1}", format!("1:7: {comment}")),
            ("{\"a\" // mine\n: 1}", format!("1:6: {comment}")),
            ("{\"a\": [1, /* mine */ 2]}", format!("1:11: {comment}")),
            ("{} // mine", format!("1:4: {comment}")),
            ("# mine\n{}", "1:1: # as the start of a comment: JSON has no comments; remove it".to_owned()),
            ("{\"a\": 1,}", "1:9: trailing comma: remove the comma before this }".to_owned()),
            ("{\n  \"a\": [\n    1,\n  ]\n}", "4:3: trailing comma: remove the comma before this ]".to_owned()),
            ("{\n  \"a\": 1\n  \"b\": 2\n}", "3:3: a comma is missing before this, or the closing }".to_owned()),
            ("[1 2]", "1:4: a comma is missing before this, or the closing ]".to_owned()),
            ("{\"a\": 1]", "1:8: found ] instead of a comma or the closing }".to_owned()),
            ("{\"a\" 1}", "1:6: a colon is missing after the key".to_owned()),
            ("{'a': 1}", "1:2: single quotes: JSON needs double quotes (\")".to_owned()),
            ("{\"a\": 'b'}", "1:7: single quotes: JSON needs double quotes (\")".to_owned()),
            ("{\"ä\": “b”}", "1:7: typographic quotes: JSON needs plain double quotes (\")".to_owned()),
            ("{a: 1}", "1:2: a key needs double quotes: \"a\"".to_owned()),
            ("{,}", "1:2: found , instead of a key in double quotes".to_owned()),
            ("{\"a\": }", "1:7: found } instead of a value".to_owned()),
            ("{\"a\": True}", "1:7: write true instead of True".to_owned()),
            (
                "{\"a\": \"b\nc\"}",
                "1:9: a string contains a line end or another control character; its closing \" may be missing"
                    .to_owned(),
            ),
            ("{\"a\": 1}}", "1:9: one closing } too many".to_owned()),
            ("{} x", "1:4: unexpected text after the end of the object".to_owned()),
            ("\u{feff}{}", "1:1: a byte order mark: save the file as UTF-8 without one".to_owned()),
        ] {
            assert_eq!(explained(text), expected, "{text:?}");
        }
    }

    /// A text for each of serde's own messages, to check that none of them is shown.
    #[test]
    fn every_syntax_error_of_serde_is_translated() {
        let texts = [
            "[",
            "{",
            "\"",
            "",
            "{\"a\" 1}",
            "[1 2]",
            "{\"a\":1 2}",
            "tru",
            "nulp",
            "x",
            "{\"a\":x}",
            "\"\\x\"",
            "1.",
            "1e999",
            "01",
            "\"\\ud800\"",
            "\"\\u12\"",
            "\"\\u12zz\"",
            "\"\\ud800\\u0041\"",
            "\"\n\"",
            "{1:2}",
            "[1,]",
            "{\"a\":1,}",
            "{} 1",
            "-",
            "{\"a\":--1}",
        ];
        let deep = "[".repeat(200);
        for text in texts.into_iter().chain([deep.as_str()]) {
            let Err(error) = serde_json::from_str::<serde_json::Value>(text) else { panic!("{text} is JSON") };
            let serdes = error.to_string();
            let serdes = serdes.split(" at line").next().unwrap();
            let reason = JsonError::of(text, &error, "the file", || None).reason;
            assert_ne!(reason, serdes, "{text:?}");
            assert!(
                !reason.contains("EOF") && !reason.contains("ident") && !reason.contains('`'),
                "{text:?}: {reason}"
            );
        }
        assert_eq!(texts.len(), 26);
    }

    #[test]
    fn type_errors_use_json_terms() {
        for (message, expected) in [
            ("missing field `domain`", "the key \"domain\" is missing"),
            ("duplicate field `domain`", "duplicate key \"domain\""),
            ("invalid type: boolean `true`, expected an object", "must be an object, not true"),
            ("invalid type: integer `443`, expected a list of them", "must be a list of them, not 443"),
            ("invalid value: integer `70000`, expected u16", "must be a whole number from 0 to 65535, not 70000"),
            ("invalid type: string \"big\", expected u64", "must be a whole number that is not negative, not a string"),
            ("invalid type: null, expected a boolean", "must be true or false, not null"),
            ("invalid type: map, expected a sequence", "must be a list, not an object"),
            (
                "invalid type: floating point `1.5`, expected usize",
                "must be a whole number that is not negative, not 1.5",
            ),
            ("something of our own", "something of our own"),
        ] {
            assert_eq!(in_terms_of_json(message), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[{}\\[\\]\":,'/#\\\\a-cé“\n0-9. -]{0,40}") {
            if let Err(error) = serde_json::from_str::<serde_json::Value>(&text) {
                let explained = JsonError::of(&text, &error, "the file", || None);
                proptest::prop_assert!(explained.line.is_some_and(|line| line <= text.matches('\n').count() + 1));
                proptest::prop_assert!(explained.column.is_some_and(|column| column <= text.len() + 1));
            }
        }
    }
}
