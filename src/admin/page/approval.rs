//! Phones that wait for approval, and unproven claims. Pure.
//!
//! A waiting phone has authenticated, so that one action allows it. Any client can make an unproven claim: it has no
//! button, and its fingerprint must be typed.

use maud::{Markup, html};

use super::link::to_state;
use super::pager::Part;
use super::text::{Foreign, command, count, figure, foreign, model as model_name};
use super::time_format::when;
use crate::admin::operators::Operator;
use crate::admin::snapshot::{Overview, PhoneView, SectionQuery, StateFilter, UnprovenView};
use crate::constituency::{ConstituencyName, MacAddress};
use crate::phone_history::PhoneState;

/// The number of waiting phones that have a card, and of unproven claims that are shown at once.
const WAITING_SHOWN: usize = 10;
const UNPROVEN_SHOWN: usize = 5;

pub(super) fn section(overview: &Overview, operator: Option<&Operator>) -> Markup {
    html! {
        section id="waiting" aria-labelledby="waiting-title" {
            h2 id="waiting-title" { "Waiting for approval" }
            @if overview.waiting.is_empty() {
                p class="empty" { "No phone is waiting. A phone that proves its MAC address and is on no list appears here after its first request." }
            } @else {
                @let shown = overview.waiting.iter().take(WAITING_SHOWN);
                ul class="waiting" { @for phone in shown.clone() { (waiting(phone, overview, operator)) } }
                @if overview.counts.waiting > shown.len() {
                    p class="found" {
                        "These are the last " (figure(shown.len())) " of " (figure(overview.counts.waiting)) ". "
                        a href=(to_state(StateFilter::One(PhoneState::Waiting))) { "Show all in the list" }
                    }
                }
            }
        }
    }
}

fn waiting(phone: &PhoneView, overview: &Overview, operator: Option<&Operator>) -> Markup {
    let (constituency, mac) = (&phone.constituency, phone.mac);
    html! {
        li id={ "waiting-" (constituency) "-" (mac) } class="card" {
            h3 { a class="mac" href={ "/phones/" (constituency) "/" (mac) } { (mac) } " requests " strong { (constituency) } }
            p class="quiet" {
                @if let Some(model) = &phone.model { (model_name(model)) " " @if let Some(firmware) = &phone.firmware { (foreign(firmware)) } ", " }
                @if let Some(address) = &phone.address { "from " (foreign(address)) ", " }
                @if let Some(last) = phone.last_seen { "last seen " (when(overview.now, last)) ", " }
                (count(phone.refusals, "refusal", "refusals"))
            }
            (action(constituency, mac, overview, operator))
        }
    }
}

/// The form that allows a phone, or the command that does, if the page cannot.
pub(super) fn action(
    constituency: &ConstituencyName,
    mac: MacAddress,
    overview: &Overview,
    operator: Option<&Operator>,
) -> Markup {
    let found = overview.constituencies.iter().find(|it| it.name == constituency.as_str());
    let obstacle = match found {
        Some(_) if operator.is_some_and(|operator| operator.is_read_only) => Some("your token is read-only"),
        Some(constituency) => constituency.not_allowable.as_deref(),
        None => Some("its constituency is not served"),
    };
    html! {
        @if let Some(obstacle) = obstacle {
            p class="instead" { "To allow it, run this command (the page cannot do it: " (foreign(obstacle)) ")" }
            (allow_command(constituency, mac, overview))
        } @else {
            (form(constituency, mac))
        }
    }
}

fn form(constituency: &ConstituencyName, mac: MacAddress) -> Markup {
    let id = format!("note-{constituency}-{mac}");
    html! {
        form class="allow" method="post" action="/allow" {
            input type="hidden" name="constituency" value=(constituency);
            input type="hidden" name="mac" value=(mac);
            label for=(id) { "Note" }
            input id=(id) name="note" type="text" autocomplete="off" maxlength="200" placeholder="owner and place";
            button { "Allow" span class="unseen" { " " (mac) " in " (constituency) } }
        }
    }
}

fn allow_command(constituency: &ConstituencyName, mac: MacAddress, overview: &Overview) -> Markup {
    command(overview, &format!("allow {mac} --constituency {constituency} --note \"…\""))
}

/// The unproven claims, apart from the waiting phones.
pub(super) fn unproven_section(unproven: &[UnprovenView], sections: &SectionQuery, now: i64) -> Markup {
    let part = Part { offset: sections.unproven_offset, size: UNPROVEN_SHOWN, of: unproven.len() };
    html! {
        section id="unproven" aria-labelledby="unproven-title" {
            h2 id="unproven-title" { "Unproven" }
            p class="intro" {
                "Invalid certificates, most of them signed by a CA that is not trusted here, and wrong passwords. "
                "Any client can send such a certificate or password with any MAC address, so an entry proves nothing about "
                "the phone that it names. The reason of the refusal may help."
            }
            @if unproven.is_empty() {
                p class="empty" { "None." }
            } @else {
                (unproven_table(&part.slice(unproven).iter().collect::<Vec<_>>(), now))
                (part.links("unproven", "unproven_offset", &[]))
            }
        }
    }
}

pub(super) fn unproven_table(unproven: &[&UnprovenView], now: i64) -> Markup {
    html! {
        table class="cards" {
            thead {
                tr {
                    th scope="col" { "Claims to be" }
                    th scope="col" { "Refused because" }
                    th scope="col" { "From" }
                    th scope="col" class="number" { "Times" }
                    th scope="col" class="number" { "Last" }
                }
            }
            tbody {
                @for claim in unproven {
                    tr {
                        th scope="row" {
                            span class="mac" { (claim.mac) } " of " (claim.constituency)
                            @match &claim.certificate_sha256 {
                                Some(certificate) => { span class="detail fingerprint" { "SHA-256 " (Foreign(certificate)) } }
                                None => { span class="detail" { "with a password" } }
                            }
                        }
                        td data-label="Because" class="bad" { (foreign(&claim.reason)) }
                        td data-label="From" class="address" {
                            (foreign(&claim.address))
                            @for network in claim.addresses.iter().filter(|network| network.address != claim.address) {
                                span class="detail" { (foreign(&network.address)) " " (when(now, network.last_seen)) }
                            }
                        }
                        td data-label="Times" class="number" { (claim.count) }
                        td data-label="Last" class="number" { (when(now, claim.last_seen)) }
                    }
                }
            }
        }
    }
}
