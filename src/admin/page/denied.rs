//! Phones that are denied server-wide: by whom, when, and why. Pure.

use maud::{Markup, html};

use super::text::{command, figure, foreign};
use super::time_format::when;
use crate::admin::snapshot::{DenialView, Overview};

/// The maximum of phones on the page.
const SHOWN: usize = 100;

pub(super) fn section(overview: &Overview) -> Markup {
    let denied = &overview.denied;
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
                        @for phone in denied.iter().take(SHOWN) {
                            tr id={ "denied-" (phone.mac) } {
                                th scope="row" { span class="mac" { (phone.mac) } }
                                td data-label="Denied" { (explained(&phone.denial, overview.now)) }
                            }
                        }
                    }
                }
                @if denied.len() > SHOWN {
                    p class="found" { "These are the first " (figure(SHOWN)) " of " (figure(denied.len())) "." }
                }
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
