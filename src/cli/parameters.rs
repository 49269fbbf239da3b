//! Parameter files, as phones read them.
//!
//! A phone takes parameters from the attributes of any element of a parameter file; what an element is called means
//! nothing to it, and what it does not know it passes over. Parameters of the device itself (`device.…`) it takes only
//! where `device.set` and its own `….set` say so: [`Group::device`] writes both.

use std::fmt::Write;

/// Parameters that belong together.
#[derive(Debug)]
pub(super) struct Group {
    /// The element that holds them.
    element: &'static str,
    /// What they are for.
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

    /// A parameter of the device itself: it counts only if its `.set` says so.
    pub(super) fn device(self, name: &str, value: &str) -> Self {
        self.plain(&format!("{name}.set"), "1").plain(name, value)
    }
}

/// The whole file; `heading` is a comment that says what it is for.
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

/// The text of a comment, in lines that begin with `indent`.
///
/// XML 1.0 §2.5: "For compatibility, the string `--` (double-hyphen) MUST NOT occur within comments". Names may have it.
fn comment(text: &str, indent: &str) -> String {
    const WIDTH: usize = 110;
    // Twice: the first time parts pairs, and leaves one between two of them.
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

/// An attribute's value. Line ends are written as references: those that stand for themselves become spaces when read
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
    fn a_value_comes_back_as_it_was() {
        let value = "a\"b<c>&'d\n-----BEGIN\r\tä";
        let xml = format!("<x a=\"{}\"/>", attribute(value));
        let document = roxmltree::Document::parse(&xml).unwrap();
        assert_eq!(document.root_element().attribute("a"), Some(value));
        let xml = format!("<x><!-- {} --></x>", comment("xn--a---b----", ""));
        assert!(roxmltree::Document::parse(&xml).is_ok(), "{xml}");
    }
}
