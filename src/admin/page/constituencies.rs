//! The constituencies, served or not. Pure.

use std::collections::HashSet;

use maud::{Markup, html};

use super::link::{to_constituency, to_state_of};
use super::pager::Part;
use super::state::mark;
use super::text::{Foreign, command, count, figure, foreign};
use crate::admin::snapshot::{ConstituencyView, Overview, SectionQuery, StateFilter};
use crate::phone_history::PhoneState;

/// The number of constituencies that are shown at once.
const SHOWN: usize = 15;
/// The number of warnings that are shown of each.
const WARNINGS_SHOWN: usize = 3;

pub(super) fn section(overview: &Overview, sections: &SectionQuery) -> Markup {
    let filter = sections.folder.to_lowercase();
    let is_wanted = |it: &&ConstituencyView| {
        filter.is_empty() || it.name.to_lowercase().contains(&filter) || it.description.to_lowercase().contains(&filter)
    };
    let mut found: Vec<&ConstituencyView> = overview.constituencies.iter().filter(is_wanted).collect();
    let silent: HashSet<&str> = overview.silent_together.iter().map(|it| it.constituency.as_str()).collect();
    // A stable sort: those in the same condition stay sorted by name.
    found.sort_by_key(|it| std::cmp::Reverse(severity(it, &silent)));
    let part = Part { offset: sections.folder_offset, size: SHOWN, of: found.len() };
    html! {
        section id="constituencies" aria-labelledby="constituencies-title" {
            h2 id="constituencies-title" { "Constituencies" }
            @if overview.constituencies.is_empty() {
                p class="empty" { "No constituency yet. A constituency is a folder; this command makes one:" }
                (command(overview, "constituency add NAME"))
            } @else {
                @if overview.constituencies.len() > SHOWN { (search(overview, sections, found.len())) }
                table class="cards" {
                    thead {
                        tr {
                            th scope="col" { "Constituency" }
                            th scope="col" { "State" }
                            th scope="col" class="number" { "Known phones" }
                            th scope="col" class="number" { "Well" }
                            th scope="col" class="number" { "Waiting" }
                            th scope="col" class="number" { "Refused" }
                        }
                    }
                    tbody { @for constituency in part.slice(&found) { (row(constituency)) } }
                }
                (part.links("constituencies", "folder_offset", &[("folder", &sections.folder)]))
            }
        }
    }
}

/// How much a constituency needs an operator.
fn severity(constituency: &ConstituencyView, silent: &HashSet<&str>) -> u8 {
    let counts = constituency.counts;
    match constituency {
        ConstituencyView { url: None, .. } => 5,
        ConstituencyView { problem: Some(_), .. } => 4,
        _ if silent.contains(constituency.name.as_str()) => 3,
        _ if counts.waiting + counts.refused + counts.locked_out > 0 => 2,
        _ => u8::from(!constituency.warnings.is_empty()),
    }
}

fn search(overview: &Overview, sections: &SectionQuery, found: usize) -> Markup {
    html! {
        form class="search" method="get" action="/#constituencies" role="search" {
            div class="field wide" {
                label for="folder" { "Search" }
                input id="folder" name="folder" type="search" value=(Foreign(&sections.folder)) autocomplete="off"
                    placeholder="name, description";
            }
            button { "Show" }
        }
        p class="found" {
            (count(found, "constituency", "constituencies"))
            @if !sections.folder.is_empty() {
                " of " (figure(overview.constituencies.len())) " " a href="/#constituencies" { "Show all" }
            } @else { ", those that need attention first" }
        }
    }
}

fn row(constituency: &ConstituencyView) -> Markup {
    html! {
        tr {
            th scope="row" {
                a href=(to_constituency(&constituency.name)) { (foreign(&constituency.name)) }
                @if !constituency.description.is_empty() { span class="detail" { (foreign(&constituency.description)) } }
            }
            td data-label="State" class="standing" {
                (health(constituency))
                @if let Some(problem) = &constituency.problem { span class="detail problem" { (foreign(problem)) } }
                @else if let Some(url) = &constituency.url { span class="detail address" { (foreign(url)) } }
                @for warning in constituency.warnings.iter().take(WARNINGS_SHOWN) {
                    span class="detail problem" { (foreign(warning)) }
                }
                @if constituency.warnings.len() > WARNINGS_SHOWN {
                    span class="detail problem" { "and " (figure(constituency.warnings.len() - WARNINGS_SHOWN)) " more warnings" }
                }
            }
            td data-label="Known phones" class="number" {
                @match constituency.known {
                    Some(known) => (linked(constituency, known, StateFilter::Known)),
                    None => span class="any" { "any" },
                }
            }
            (cell(constituency, "Well", constituency.counts.well, PhoneState::Well))
            (cell(constituency, "Waiting", constituency.counts.waiting, PhoneState::Waiting))
            (cell(constituency, "Refused", constituency.counts.refused, PhoneState::Refused))
        }
    }
}

fn cell(constituency: &ConstituencyView, label: &str, count: usize, state: PhoneState) -> Markup {
    let class = match state {
        PhoneState::Refused if count > 0 => "number bad",
        _ => "number",
    };
    html! { td data-label=(label) class=(class) { (linked(constituency, count, StateFilter::One(state))) } }
}

/// A count with a link to the phones that it counts.
fn linked(constituency: &ConstituencyView, count: usize, filter: StateFilter) -> Markup {
    html! { a href=(to_state_of(&constituency.name, filter)) { (figure(count)) } }
}

fn health(constituency: &ConstituencyView) -> Markup {
    match (&constituency.url, &constituency.problem) {
        (Some(_), None) => mark("good", "served"),
        (Some(_), Some(_)) => mark("fair", "last good policy"),
        (None, _) => mark("bad", "not served"),
    }
}
