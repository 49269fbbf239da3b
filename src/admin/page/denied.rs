//! Phones that are denied server-wide: by whom, when, and why. Pure.

use maud::{Markup, html};

use super::pager::Part;
use super::text::{command, foreign};
use super::time_format::when;
use crate::admin::snapshot::{DenialView, Overview, SectionQuery};

/// The number of phones that are shown at once.
const SHOWN: usize = 20;

pub(super) fn section(overview: &Overview, sections: &SectionQuery) -> Markup {
    let denied = &overview.denied;
    let part = Part { offset: sections.denied_offset, size: SHOWN, of: denied.len() };
    html! {
        @if !denied.is_empty() {
            section id="denied" aria-labelledby="denied-title" {
                h2 id="denied-title" { "Denied everywhere" }
                p class="intro" {
                    "These phones are refused by every constituency that authenticates its phones, whatever its policy, pins and passwords."
                }
                table class="cards" {
                    thead {
                        tr {
                            th scope="col" { "Phone" }
                            th scope="col" { "Denied" }
                        }
                    }
                    tbody {
                        @for phone in part.slice(denied) {
                            tr id={ "denied-" (phone.mac) } {
                                th scope="row" { span class="mac" { (phone.mac) } }
                                td data-label="Denied" { (explained(&phone.denial, overview.now)) }
                            }
                        }
                    }
                }
                (part.links("denied", "denied_offset", &[]))
                p class="instead" { "To lift a denial" }
                (command(overview, "undeny MAC"))
            }
        }
    }
}

/// By whom, when, and why.
pub(super) fn explained(denial: &DenialView, now: i64) -> Markup {
    html! {
        "by " @if denial.by.is_empty() { "unknown" } @else { (foreign(&denial.by)) }
        @if let Some(at) = denial.at { " " (when(now, at)) }
        @if !denial.note.is_empty() { ": " (foreign(&denial.note)) }
    }
}
