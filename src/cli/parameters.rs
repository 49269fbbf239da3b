//! Writes parameter files for phones.
//!
//! A phone reads parameters from the attributes of any element. The element's name has no meaning, and unknown
//! attributes are skipped. A device parameter (`device.…`) is applied only if `device.set` and its own `….set` are 1:
//! [`Group::device`] writes both parameters.

use std::fmt::Write;

/// Parameters that belong together.
#[derive(Debug)]
pub(super) struct Group {
    /// The name of the element that holds them.
    element: &'static str,
    /// Their purpose.
    comment: String,
    /// Names and values, in order.
    parameters: Vec<(String, String)>,
}

impl Group {
    pub(super) fn new(element: &'static str, comment: &str) -> Self {
        Self { element, comment: comment.to_owned(), parameters: Vec::new() }
    }

    pub(super) fn plain(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A device parameter with its `.set`.
    pub(super) fn device(self, name: &str, value: &str) -> Self {
        self.plain(&format!("{name}.set"), "1").plain(name, value)
    }
}

/// The whole file. `heading` is its first comment.
pub(super) fn parameter_file(heading: &str, groups: &[Group]) -> String {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n".to_owned();
    // Writing to a String does not fail.
    let _ = writeln!(text, "<!-- {} -->\n<provost>", comment(heading, "     "));
    for group in groups {
        let _ = write!(text, "\n  <!-- {} -->\n  <{}", comment(&group.comment, "       "), group.element);
        for (name, value) in &group.parameters {
            let _ = write!(text, "\n    {name}=\"{}\"", attribute(value));
        }
        text.push_str("/>\n");
    }
    text.push_str("\n</provost>\n");
    text
}

/// Text for a comment, wrapped into lines that begin with `indent`.
///
/// XML 1.0 §2.5: "For compatibility, the string `--` (double-hyphen) MUST NOT occur within comments". Names may have it.
fn comment(text: &str, indent: &str) -> String {
    const WIDTH: usize = 110;
    // Twice, because after the first pass one pair can remain between two others.
    let text = text.replace("--", "- -").replace("--", "- -");
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < WIDTH => line.extend([" ", word]),
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join(&format!("\n{indent}"))
}

/// The value of an attribute, escaped. Line breaks become character references, because literal ones are read as spaces
/// (XML 1.0 §3.3.3).
fn attribute(value: &str) -> String {
    let escaped = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\n' | '\r' | '\t' => format!("&#{};", u32::from(c)),
        c => c.to_string(),
    };
    value.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_escaping_round_trips() {
        let value = "a\"b<c>&'d\n-----BEGIN\r\tä";
        let xml = format!("<x a=\"{}\"/>", attribute(value));
        let document = roxmltree::Document::parse(&xml).unwrap();
        assert_eq!(document.root_element().attribute("a"), Some(value));
        let xml = format!("<x><!-- {} --></x>", comment("xn--a---b----", ""));
        assert!(roxmltree::Document::parse(&xml).is_ok(), "{xml}");
    }
}
