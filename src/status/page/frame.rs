//! What stands around every page: head, header, what came of an action, footer. Pure.

use maud::{DOCTYPE, Markup, html};

use super::assets::{ICON, SCRIPT, STYLE};
use super::moment::{span, when};
use super::outcome::{Outcome, said};
use super::text::{Foreign, foreign};
use crate::status::picture::Overview;

/// Who reads the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// Somebody who may look; nothing can be changed from here, as no token is configured.
    Visitor,
    /// Somebody who may look, and may do more with the token.
    SignedOut,
    /// Somebody who has the token.
    SignedIn,
}

impl Reader {
    pub(super) fn new(is_signed_in: bool, has_token: bool) -> Self {
        match (is_signed_in, has_token) {
            (true, _) => Self::SignedIn,
            (false, true) => Self::SignedOut,
            (false, false) => Self::Visitor,
        }
    }
}

/// A page of the overview: its `title` and main part.
pub(super) fn page(
    title: &str,
    overview: &Overview,
    reader: Reader,
    outcome: Option<&Outcome>,
    main: &Markup,
) -> String {
    let body = html! {
        body data-events="/events" {
            a class="skip" href="#main" { "To the content" }
            (header(overview, reader))
            main id="main" {
                div id="outcome" role="status" { @if let Some(outcome) = outcome { (said(outcome)) } }
                (main)
            }
            (footer(overview))
        }
    };
    document(title, &body)
}

/// A page that knows nothing of what is served, for those who may not know it.
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

fn header(overview: &Overview, reader: Reader) -> Markup {
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
            }
            p class="live" id="live" { "Updated " (when(overview.now, overview.now)) }
            (signing(reader))
        }
    }
}

fn signing(reader: Reader) -> Markup {
    html! {
        @match reader {
            Reader::Visitor => {}
            Reader::SignedOut => { a class="sign" href="/sign-in" { "Sign in" } }
            Reader::SignedIn => {
                form class="sign" method="post" action="/sign-out" { button class="quiet-button" { "Sign out" } }
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
