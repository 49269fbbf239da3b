//! The frame of every page: head, header, flash message, footer. Pure.

use maud::{DOCTYPE, Markup, html};

use super::assets::{ICON, SCRIPT, STYLE};
use super::flash::{Flash, message};
use super::text::{Foreign, foreign};
use super::time_format::{span, when};
use crate::admin::operators::Operator;
use crate::admin::snapshot::Overview;

/// A page with the state of the server: its `title` and main part.
pub(super) fn page(
    title: &str,
    overview: &Overview,
    operator: Option<&Operator>,
    outcome: Option<&Flash>,
    main: &Markup,
) -> String {
    let body = html! {
        body data-events="/events" {
            a class="skip" href="#main" { "Skip to content" }
            (header(overview, operator))
            main id="main" {
                div id="outcome" role="status" { @if let Some(outcome) = outcome { (message(outcome)) } }
                (main)
            }
            (footer(overview))
        }
    };
    document(title, &body)
}

/// A page without data, for clients that may not read them.
pub(super) fn bare_page(title: &str, main: &Markup) -> String {
    let body = html! {
        body class="bare" {
            header class="top" { a class="name" href="/" { span class="house" { "provost" } } }
            main id="main" { h1 { (title) } (main) }
        }
    };
    document(title, &body)
}

fn document(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (Foreign(title)) " · provost" }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                link rel="icon" type="image/svg+xml" href=(ICON.path);
                link rel="stylesheet" href=(STYLE.path);
                script src=(SCRIPT.path) defer {}
            }
            (body)
        }
    };
    page.into_string()
}

fn header(overview: &Overview, operator: Option<&Operator>) -> Markup {
    html! {
        header class="top" {
            a class="name" href="/" {
                span class="house" { "provost" }
                " "
                span class="domain" { (foreign(&overview.domain)) }
            }
            nav aria-label="Sections" {
                a href="/#waiting" { "Waiting" }
                a href="/#activity" { "Activity" }
                a href="/#certificates" { "Certificates" }
                a href="/#constituencies" { "Constituencies" }
                a href="/#phones" { "Phones" }
                a href="/audit" { "Audit" }
            }
            p class="live" id="live" { "Updated " (when(overview.now, overview.now)) }
            @if let Some(operator) = operator {
                form class="sign" method="post" action="/sign-out" {
                    span class="quiet" { (operator.name) @if operator.is_read_only { " (read-only)" } " " }
                    button class="quiet-button" { "Sign out" }
                }
            }
        }
    }
}

fn footer(overview: &Overview) -> Markup {
    html! {
        footer {
            p { "provost " (overview.version) ", running for " (span(overview.now.saturating_sub(overview.started))) }
            nav aria-label="For programs" {
                a href="/metrics" { "Metrics" }
                a href="/api/overview" { "JSON" }
                a href="/healthz" { "Health" }
            }
        }
    }
}
