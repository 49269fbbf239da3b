//! Formats texts and numbers. Pure.

use std::fmt::{self, Write};

use maud::{Escaper, Markup, Render, html};

use crate::admin::snapshot::Overview;
use crate::wording::is_unseen;

/// An untrusted text: escaped, without control characters and bidirectional marks. Also valid in attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Foreign<'a>(pub(super) &'a str);

impl Render for Foreign<'_> {
    fn render_to(&self, buffer: &mut String) {
        // Writing to a string cannot fail.
        let _ = self.write(&mut Escaper::new(buffer));
    }
}

impl Foreign<'_> {
    fn write(self, escaper: &mut Escaper<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| escaper.write_char(harmless(letter)))
    }
}

fn harmless(letter: char) -> char {
    match letter {
        '\t' | '\n' | '\r' => ' ',
        letter if is_unseen(letter) => '\u{fffd}',
        letter => letter,
    }
}

/// An untrusted text as an element that isolates its direction (`bdi`).
pub(super) fn foreign(text: &str) -> Markup {
    html! { bdi { (Foreign(text)) } }
}

/// A number with grouped thousands: `12 345`.
pub(super) fn figure(number: impl TryInto<u64>) -> String {
    let digits = number.try_into().unwrap_or(u64::MAX).to_string();
    let mut figure = String::with_capacity(digits.len() + 6);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            figure.push('\u{202f}');
        }
        figure.push(digit);
    }
    figure
}

/// `1 phone`, `3 phones`.
pub(super) fn count(number: impl TryInto<u64>, one: &str, many: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{}\u{a0}{}", figure(number), if number == 1 { one } else { many })
}

/// A size in a readable unit.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes}\u{a0}B");
    }
    let (mut tenths, mut unit) = (bytes / 100, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if tenths < 100 {
        format!("{}.{}\u{a0}{name}", tenths / 10, tenths % 10)
    } else {
        format!("{}\u{a0}{name}", figure(tenths / 10))
    }
}

pub(super) fn duration(milliseconds: f64) -> String {
    match milliseconds {
        ..0.1 => "under\u{a0}0.1\u{a0}ms".to_owned(),
        0.1..10.0 => format!("{milliseconds:.1}\u{a0}ms"),
        10.0..1000.0 => format!("{milliseconds:.0}\u{a0}ms"),
        _ => format!("{:.1}\u{a0}s", milliseconds / 1000.0),
    }
}

/// A model as people write it: `VVX 500`.
pub(super) fn model(name: &str) -> Markup {
    foreign(&name.replace('_', " "))
}

/// A provost command about this server that works in any folder.
pub(super) fn command(overview: &Overview, what: &str) -> Markup {
    // A path that cannot be quoted contains NUL, which paths cannot.
    let config = overview.config.as_deref().and_then(|file| shlex::try_quote(file).ok());
    copyable(&match config {
        Some(file) => format!("provost {what} --config {file}"),
        None => format!("provost {what}"),
    })
}

/// A command with a button that copies it, if there is a script.
fn copyable(line: &str) -> Markup {
    html! {
        span class="command" {
            code { @for word in line.split_inclusive(' ') { span { (Foreign(word)) } } }
            button type="button" class="copy" data-copy=(Foreign(line)) { "Copy" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_escaped() {
        let hostile = "<b title='x' y=\"z\">&amp;\u{202e}\u{1b}[2J\u{0}\u{2066}\u{200f}\u{feff}line\nnext";
        let shown = foreign(hostile).into_string();
        let wanted = "<bdi>&lt;b title='x' y=&quot;z&quot;&gt;&amp;amp;\u{fffd}\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}\u{fffd}line next</bdi>";
        assert_eq!(shown, wanted);
        let attribute = html! { i title=(Foreign("\" onclick=\"x")) {} }.into_string();
        assert_eq!(attribute, "<i title=\"&quot; onclick=&quot;x\"></i>");
        assert_eq!(foreign("Küche – שלום 電話").into_string(), "<bdi>Küche – שלום 電話</bdi>");
    }

    #[test]
    fn numbers_are_grouped_and_sizes_have_units() {
        let figures: Vec<String> = [0_u64, 999, 1000, 12_345, 1_234_567].map(figure).to_vec();
        assert_eq!(figures, ["0", "999", "1\u{202f}000", "12\u{202f}345", "1\u{202f}234\u{202f}567"]);
        let sizes = [0, 999, 1000, 1840, 9_999, 10_000, 999_999, 1_500_000, 104_857_600, 5_000_000_000_000].map(size);
        let wanted = ["0 B", "999 B", "1.0 kB", "1.8 kB", "9.9 kB", "10 kB", "999 kB", "1.5 MB", "104 MB", "5.0 TB"];
        assert_eq!(sizes.map(|size| size.replace('\u{a0}', " ")), wanted);
        assert_eq!([1, 2].map(|n: u64| count(n, "phone", "phones").replace('\u{a0}', " ")), ["1 phone", "2 phones"]);
        let durations = [0.02, 0.42, 12.3, 1990.0].map(|ms| duration(ms).replace('\u{a0}', " "));
        assert_eq!(durations, ["under 0.1 ms", "0.4 ms", "12 ms", "2.0 s"]);
    }
}
