//! The page of the audit log: the last changes, the newest first. Pure.

use maud::{Markup, html};

use super::text::{command, foreign};
use crate::admin::snapshot::Overview;
use crate::audit::{AuditActor, AuditEntry, AuditReading, AuditSource};

pub(super) fn section(overview: &Overview, reading: &AuditReading) -> Markup {
    html! {
        section id="audit" aria-labelledby="audit-title" {
            h2 id="audit-title" { "Audit log" }
            p class="intro" { "The last changes, the newest first. Times are UTC. For older ones, and to search" }
            (command(overview, "audit --since 30d"))
            @for (file, lines) in &reading.damaged {
                p class="outcome bad" { (foreign(file)) ": lines that cannot be read: " (lines) }
            }
            @if reading.entries.is_empty() {
                p class="empty" { "No change has been logged yet." }
            } @else {
                table class="cards" {
                    thead {
                        tr {
                            th scope="col" { "Change" }
                            th scope="col" { "By" }
                            th scope="col" { "From" }
                            th scope="col" { "When" }
                        }
                    }
                    tbody { @for entry in reading.entries.iter().rev() { (row(entry)) } }
                }
            }
        }
    }
}

fn row(entry: &AuditEntry) -> Markup {
    let AuditEntry { time, action, actor, constituency, mac: _, macs: _, detail } = entry;
    html! {
        tr {
            th scope="row" {
                (action.words())
                @if let Some(phones) = entry.phones_text() { " " span class="mac" { (phones) } }
                @if let Some(name) = constituency { " in " (name) }
                @if !detail.is_empty() { span class="detail" { (foreign(detail)) } }
            }
            td data-label="By" { (by(actor)) }
            td data-label="From" class="address" {
                @if let Some(from) = &actor.from { (foreign(from)) }
                @if let Some(claimed) = &actor.claimed_from {
                    span class="detail" { "forwarded from (claimed) " (foreign(claimed)) }
                }
            }
            td data-label="When" { (foreign(time)) }
        }
    }
}

fn by(actor: &AuditActor) -> Markup {
    let way = match actor.by {
        AuditSource::Page => "the page",
        AuditSource::Api => "the API",
        AuditSource::Command => "a command",
        AuditSource::File => "another program",
    };
    html! {
        @if !actor.who.is_empty() { (foreign(&actor.who)) ", " }
        (way)
        @if let Some(user) = &actor.claimed_user { span class="detail" { "SUDO_USER (claimed) " (foreign(user)) } }
    }
}
