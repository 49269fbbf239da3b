//! Summarizes repeated findings.

use std::fmt::Display;

use super::Finding;
use super::served_view::ServedView;

/// The most names in one line, and the most findings of one kind that are printed.
const NAMES: usize = 5;
const LINES: usize = 50;

/// The first few of `names`, and the number of the rest.
pub(super) fn some_of<T: Display>(names: &[T]) -> String {
    let mut shown: Vec<String> = names.iter().take(NAMES).map(ToString::to_string).collect();
    if names.len() > NAMES {
        shown.push(format!("{} more", names.len() - NAMES));
    }
    shown.join(", ")
}

/// Adds `all` to the findings: the first ones, and one finding with the number of the rest.
pub(super) fn report(view: &ServedView<'_>, mut all: Vec<Finding>, what: &str, findings: &mut Vec<Finding>) {
    all.sort();
    let more = all.len().saturating_sub(LINES);
    let level = all.get(LINES).map(|finding| finding.level);
    findings.extend(all.into_iter().take(LINES));
    if let Some(level) = level {
        findings.push(view.finding(level, "", format!("{more} more {what}")));
    }
}
