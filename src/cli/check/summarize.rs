//! What is found many times over, in few words.

use std::fmt::Display;

use super::Finding;
use super::served_view::ServedView;

/// How many names stand in one line, and how many lines of one kind are printed.
const NAMES: usize = 5;
const LINES: usize = 50;

/// The first few of `names`, and how many more there are.
pub(super) fn some_of<T: Display>(names: &[T]) -> String {
    let mut shown: Vec<String> = names.iter().take(NAMES).map(ToString::to_string).collect();
    if names.len() > NAMES {
        shown.push(format!("{} more", names.len() - NAMES));
    }
    shown.join(", ")
}

/// Adds `all` to the findings, or the first of them and a word on how many more there are.
pub(super) fn report(shelf: &ServedView<'_>, mut all: Vec<Finding>, what: &str, findings: &mut Vec<Finding>) {
    all.sort();
    let more = all.len().saturating_sub(LINES);
    let level = all.get(LINES).map(|finding| finding.level);
    findings.extend(all.into_iter().take(LINES));
    if let Some(level) = level {
        findings.push(shelf.finding(level, "", format!("{more} more {what}")));
    }
}
