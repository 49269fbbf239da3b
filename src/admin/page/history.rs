//! The page of one phone: its state and its requests. Pure.

use maud::{Markup, html};

use super::approval::{action, unproven_table};
use super::denied::explained;
use super::link::to_constituency;
use super::state::{meaning, of_phone, old_tls};
use super::text::{command, count, duration, figure, foreign, model, size};
use super::time_format::{day, stamp, when};
use crate::admin::operators::Operator;
use crate::admin::snapshot::{NamedFiles, Overview, PhoneHistoryView, PhoneRequestView, PhoneView, UnprovenView};
use crate::phone_history::PhoneState;

pub(super) fn sections(overview: &Overview, history: &PhoneHistoryView, operator: Option<&Operator>) -> Markup {
    let phone = &history.phone;
    html! {
        section id="phone" aria-labelledby="phone-title" {
            p class="up" { a href="/#phones" { "Phones" } " / " a href=(to_constituency(phone.constituency.as_str())) { (phone.constituency) } }
            h1 id="phone-title" {
                span class="mac" { (phone.mac) }
                @if !phone.note.is_empty() { " " span class="note" { (foreign(&phone.note)) } }
            }
            p class="meaning" { (of_phone(phone.state)) " " (meaning(phone.state)) }
            @if let Some(denial) = &phone.denied_everywhere {
                p class="problem" { "It is denied everywhere " (explained(denial, overview.now)) }
            }
            @if let Some((reason, at)) = phone.refusal.as_ref().filter(|_| is_out(phone)) {
                p class="problem" { "Refused " (when(overview.now, *at)) ": " (foreign(reason)) }
            }
            @if let Some((reason, at)) = &phone.claimed {
                p class="problem" { "Refused " (when(overview.now, *at)) ", unproven claim: " (foreign(reason)) }
            }
            @if let Some(missing) = history.named.as_ref().and_then(NamedFiles::text) {
                p class="problem" { "Missing files: " (foreign(&missing)) }
            }
            (what_to_do(overview, phone, operator))
            (facts(phone, overview.now))
        }
        (requests(&history.requests, overview.now))
        (claims(overview, phone))
    }
}

fn claims(overview: &Overview, phone: &PhoneView) -> Markup {
    let is_of = |claim: &&UnprovenView| claim.mac == phone.mac && claim.constituency == phone.constituency;
    let claims: Vec<&UnprovenView> = overview.unproven.iter().filter(is_of).collect();
    html! {
        @if !claims.is_empty() {
            section id="claims" aria-labelledby="claims-title" {
                h2 id="claims-title" { "Unproven claims to be this phone" }
                p class="intro" {
                    "Any client can make a certificate with this MAC address, or copy the phone's own. These certificates and "
                    "passwords proved nothing, and were refused for the reasons shown."
                 }
                (unproven_table(&claims, overview.now))
            }
        }
    }
}

fn is_out(phone: &PhoneView) -> bool {
    matches!(phone.state, PhoneState::Waiting | PhoneState::Refused | PhoneState::Denied)
}

fn what_to_do(overview: &Overview, phone: &PhoneView, operator: Option<&Operator>) -> Markup {
    let (constituency, mac) = (&phone.constituency, phone.mac);
    html! {
        @match phone.state {
            PhoneState::Waiting => (action(constituency, mac, overview, operator)),
            PhoneState::Denied if phone.denied_everywhere.is_some() => {
                p class="instead" { "To lift the denial on the whole server:" }
                (command(overview, &format!("undeny {mac}")))
            }
            PhoneState::Denied => {
                p class="instead" { "To allow it again:" }
                (command(overview, &format!("allow {mac} --constituency {constituency}")))
            }
            PhoneState::Gone => {}
            _ => {
                details class="more" {
                    summary { "Deny this phone" }
                    p class="instead" { "If it is lost or sold: this takes effect within a second, also on open connections, and no deploy reverts it." }
                    (command(overview, &format!("deny {mac} --note \"…\"")))
                    p class="instead" { "To deny it in this constituency only:" }
                    (command(overview, &format!("deny {mac} --constituency {constituency}")))
                }
            }
        }
    }
}

fn facts(phone: &PhoneView, now: i64) -> Markup {
    html! {
        dl class="facts" {
            (fact("Last seen", &phone.last_seen.map_or_else(|| html! { "never" }, |at| when(now, at))))
            (fact("First seen", &phone.first_seen.map_or_else(|| html! { "never" }, |at| when(now, at))))
            (fact("Address", &optional(phone.address.as_deref())))
            (fact("Model", &phone.model.as_deref().map_or_else(|| html! { "unknown" }, model)))
            (fact("Firmware", &optional(phone.firmware.as_deref())))
            (fact("TLS", &tls(phone)))
            (fact("Certificate expires", &phone.certificate_not_after.map_or_else(|| html! { "unknown" }, day)))
            (fact("Requests", &html! { (figure(phone.requests)) ", " (count(phone.refusals, "refusal", "refusals")) }))
            (fact("Last configuration", &event(phone.configuration.as_ref(), now)))
            (fact("Last upload", &event(phone.upload.as_ref(), now)))
        }
    }
}

fn fact(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn optional(text: Option<&str>) -> Markup {
    html! { @if let Some(text) = text { (foreign(text)) } @else { "unknown" } }
}

/// Version and suite, which the history stores as `TLSv1.3/TLS13_AES_128_GCM_SHA256`, and a mark for legacy TLS.
fn tls(phone: &PhoneView) -> Markup {
    let text = phone.tls.as_deref();
    html! {
        @match text.and_then(|text| text.split_once('/')) {
            Some((version, suite)) => { (foreign(version)) (old_tls(phone)) span class="detail" { (foreign(suite)) } }
            None => (optional(text)),
        }
    }
}

fn event(event: Option<&(String, i64)>, now: i64) -> Markup {
    html! {
        @if let Some((what, at)) = event { code { (foreign(what)) } " " span class="quiet" { (when(now, *at)) } }
        @else { "none" }
    }
}

fn requests(requests: &[PhoneRequestView], now: i64) -> Markup {
    html! {
        section id="requests" aria-labelledby="requests-title" {
            h2 id="requests-title" { "Requests" }
            @if requests.is_empty() {
                p class="empty" { "None. provost keeps a phone's last 200 requests for 30 days." }
            } @else {
                table class="cards requests" {
                    thead {
                        tr {
                            th scope="col" { "Request" }
                            th scope="col" { "AdminResponse" }
                            th scope="col" class="number" { "Size" }
                            th scope="col" class="number" { "Took" }
                            th scope="col" { "From" }
                            th scope="col" class="number" { "When" }
                        }
                    }
                    tbody { @for request in requests { (request_row(request, now)) } }
                }
            }
        }
    }
}

fn request_row(request: &PhoneRequestView, now: i64) -> Markup {
    let is_absent = request.status == Some(404);
    // Phones request many optional files.
    let class = match (is_absent, request.is_named) {
        (true, true) => Some("refused"),
        (true, false) => Some("expected"),
        _ => request.reason.as_ref().map(|_| "refused"),
    };
    let detail = if class == Some("refused") { "detail problem" } else { "detail" };
    let time = request.time_ms.div_euclid(1000);
    html! {
        tr class=[class] {
            th scope="row" {
                @if let (Some(method), Some(target)) = (&request.method, &request.target) {
                    code { (foreign(method)) " " (foreign(target)) }
                } @else { "Handshake" }
            }
            td data-label="AdminResponse" class="standing" {
                span class="status" { @if let Some(status) = request.status { (status) } @else { "refused" } }
                @if let Some(reason) = &request.reason { span class=(detail) { (foreign(reason)) } }
                @if is_absent && request.is_named { span class="detail problem" { "its master configuration names this file" } }
            }
            td data-label="Size" class="number" { (size(request.bytes)) }
            td data-label="Took" class="number" { (duration(request.duration_ms)) }
            td data-label="From" class="address" { (foreign(&request.address)) }
            td data-label="When" class="number" { (when(now, time)) " " span class="detail" { (stamp(time)) } }
        }
    }
}
