//! The constituencies, served or not. Pure.

use maud::{Markup, html};

use super::link::to_constituency;
use super::state::mark;
use super::text::{command, figure, foreign};
use crate::status::picture::{Constituency, Overview};

pub(super) fn section(overview: &Overview) -> Markup {
    html! {
        section id="constituencies" aria-labelledby="constituencies-title" {
            h2 id="constituencies-title" { "Constituencies" }
            @if overview.constituencies.is_empty() {
                p class="empty" { "There is none yet. A constituency is a folder; this makes one:" }
                (command(overview, "constituency add NAME"))
            } @else {
                table class="cards" {
                    thead {
                        tr {
                            th scope="col" { "Constituency" }
                            th scope="col" { "State" }
                            th scope="col" class="number" { "Known phones" }
                            th scope="col" class="number" { "Seen today" }
                            th scope="col" class="number" { "Refused" }
                        }
                    }
                    tbody { @for constituency in &overview.constituencies { (row(constituency)) } }
                }
            }
        }
    }
}

fn row(constituency: &Constituency) -> Markup {
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
            }
            td data-label="Known phones" class="number" {
                @match constituency.known {
                    Some(known) => (figure(known)),
                    None => span class="any" { "any" },
                }
            }
            td data-label="Seen today" class="number" { (figure(constituency.seen_lately)) }
            td data-label="Refused" class={ "number" @if constituency.refused > 0 { " bad" } } { (figure(constituency.refused)) }
        }
    }
}

fn health(constituency: &Constituency) -> Markup {
    match (&constituency.url, &constituency.problem) {
        (Some(_), None) => mark("good", "served"),
        (Some(_), Some(_)) => mark("fair", "last good policy"),
        (None, _) => mark("bad", "not served"),
    }
}
