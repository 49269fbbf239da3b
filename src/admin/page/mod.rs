//! The operators' page: the state of the server, the problems, and every phone. Pure: it renders a snapshot as HTML.
//!
//! Each list shows its first entries, those that need an operator first, and leads to the rest: the page stays small
//! however many phones and constituencies there are.
//!
//! The server renders everything. The script only replaces the open page with a newer rendering, so that the page works
//! without it. There is no inline script or style, so that the Content-Security-Policy can forbid them: sizes (of a
//! bar, a chart) are SVG attributes.
//!
//! Untrusted texts (notes, paths, reasons, models) pass through `text` only. They can change neither the markup nor the
//! direction of the page's text.

mod activity;
mod approval;
mod assets;
mod audit;
mod certificates;
mod constituencies;
mod denied;
mod flash;
mod history;
mod layout;
mod link;
mod pager;
mod phone_list;
mod state;
mod summary;
#[cfg(test)]
mod tests;
mod text;
mod time_format;

use maud::html;

use super::operators::Operator;
use super::snapshot::{Overview, PhoneHistoryView, PhonePage, PhoneQuery, SectionQuery};
use crate::audit::AuditReading;

pub use assets::{Asset, asset};
pub use flash::Flash;

/// The contents of the page at `/`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Everything but the list of phones.
    pub overview: &'a Overview,
    /// The phones that match the query.
    pub phones: &'a PhonePage,
    pub query: &'a PhoneQuery,
    pub sections: &'a SectionQuery,
    /// The operator for whom the page is rendered, if a token was shown.
    pub operator: Option<&'a Operator>,
    /// The change that was just made.
    pub flash: Option<&'a Flash>,
}

/// The page at `/`.
#[must_use]
pub fn render(view: &View<'_>) -> String {
    let overview = view.overview;
    let main = html! {
        (summary::section(overview))
        (approval::section(overview, view.operator))
        div class="side-by-side" {
            // It is counted for the whole server alone.
            @if view.operator.is_none_or(|operator| operator.scope.is_all()) { (activity::section(&overview.activity, overview.now)) }
            (certificates::section(overview))
        }
        (constituencies::section(overview, view.sections))
        (phone_list::section(overview, view.phones, view.query))
        (denied::section(overview, view.sections))
        (approval::unproven_section(&overview.unproven, view.sections, overview.now))
    };
    layout::page(&overview.domain, overview, view.operator, view.flash, &main)
}

/// The page of one phone, at `/phones/CONSTITUENCY/MAC`.
#[must_use]
pub fn render_phone(overview: &Overview, history: &PhoneHistoryView, operator: Option<&Operator>) -> String {
    let title = format!("{} of {}", history.phone.mac, history.phone.constituency);
    layout::page(&title, overview, operator, None, &history::sections(overview, history, operator))
}

/// The page of the audit log, at `/audit`.
#[must_use]
pub fn render_audit(overview: &Overview, reading: &AuditReading, operator: Option<&Operator>) -> String {
    layout::page("Audit log", overview, operator, None, &audit::section(overview, reading))
}

/// The sign-in page, with the reason why a token was refused.
#[must_use]
pub fn render_sign_in(failure: Option<&'static str>) -> String {
    let main = html! {
        p {
            "Enter your token. " code { "provost operator add" } " makes one. The administrator's token is in the file that "
            code { "token_file" } " of " code { "status" } " names in provost.json, or without a provost.json (local mode) in "
            code { "state/status-token" } "."
        }
        @if let Some(failure) = failure { p class="outcome bad" role="alert" { (failure) } }
        form class="sign-in" method="post" action="/sign-in" {
            // For password managers.
            input type="text" name="username" value="provost" autocomplete="username" hidden;
            label for="token" { "Token" }
            input id="token" name="token" type="password" autocomplete="current-password" required autofocus;
            button { "Sign in" }
        }
    };
    layout::bare_page("Sign in", &main)
}

/// A page with the reason of a failure, and no data of the server.
#[must_use]
pub fn render_failure(title: &str, reason: &str) -> String {
    let main = html! {
        p class="outcome bad" { (text::foreign(reason)) }
        p { a href="/" { "Back to the overview" } }
    };
    layout::bare_page(title, &main)
}
