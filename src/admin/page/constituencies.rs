//! The constituencies, served or not. Pure.

use maud::{Markup, html};

use super::link::{to_constituency, to_state_of};
use super::state::mark;
use super::text::{command, figure, foreign};
use crate::admin::snapshot::{ConstituencyView, Overview, PhoneState, StateFilter};

pub(super) fn section(overview: &Overview) -> Markup {
    html! {
        section id="constituencies" aria-labelledby="constituencies-title" {
            h2 id="constituencies-title" { "Constituencies" }
            @if overview.constituencies.is_empty() {
                p class="empty" { "No constituency yet. A constituency is a folder; this command makes one:" }
                (command(overview, "constituency add NAME"))
            } @else {
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
                    tbody { @for constituency in &overview.constituencies { (row(constituency)) } }
                }
            }
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
                @for warning in &constituency.warnings { span class="detail problem" { (foreign(warning)) } }
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
