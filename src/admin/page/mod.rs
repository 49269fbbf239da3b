//! The operators' page: whether all is well, what needs somebody, and every phone. Pure: a picture in, HTML out.
//!
//! The server renders everything; the script only brings a newer rendering of the same page into the open one, so that
//! nothing needs it. There is no inline script or style, so that the policy of contents forbids them:
//! what has a size (a bar, a plot) has it as an SVG attribute.
//!
//! Words of others (notes, paths, reasons, what phones call themselves) come in through `text` alone: they drive
//! neither the page nor the direction of its writing.

mod activity;
mod approval;
mod assets;
mod certificates;
mod constituencies;
mod denied;
mod flash;
mod history;
mod layout;
mod link;
mod phone_list;
mod state;
mod summary;
#[cfg(test)]
mod tests;
mod text;
mod time_format;

use maud::html;

use super::snapshot::{Overview, PhoneHistoryView, PhonePage, PhoneQuery};
pub use assets::{Asset, asset};
pub use flash::Flash;

/// What is shown at `/`, and to whom.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The whole.
    pub overview: &'a Overview,
    /// The phones that were asked for.
    pub phones: &'a PhonePage,
    /// How they were asked for.
    pub query: &'a PhoneQuery,
    /// Whether it is for a session that can be ended.
    pub is_signed_in: bool,
    /// What came of what was just done.
    pub outcome: Option<&'a Flash>,
}

/// Everything on one page, at `/`.
#[must_use]
pub fn render(view: &View<'_>) -> String {
    let overview = view.overview;
    let main = html! {
        (summary::section(overview))
        (approval::section(overview))
        div class="side-by-side" {
            (activity::section(&overview.activity, overview.now))
            (certificates::section(overview))
        }
        (constituencies::section(overview))
        (phone_list::section(overview, view.phones, view.query))
        (denied::section(overview))
        (approval::unproven_section(&overview.unproven, overview.now))
    };
    layout::page(&overview.domain, overview, view.is_signed_in, view.outcome, &main)
}

/// What is known of one phone, at `/phones/CONSTITUENCY/MAC`.
#[must_use]
pub fn render_phone(overview: &Overview, history: &PhoneHistoryView, is_signed_in: bool) -> String {
    let title = format!("{} of {}", history.phone.mac, history.phone.constituency);
    layout::page(&title, overview, is_signed_in, None, &history::sections(overview, history))
}

/// The page that asks for the token, and says why it was not good enough.
#[must_use]
pub fn render_sign_in(failure: Option<&'static str>) -> String {
    let main = html! {
        p {
            "With the token of this server: in the file that " code { "token_file" } " of " code { "status" }
            " names in provost.json, or without a provost.json (local mode) in " code { "state/status-token" } "."
        }
        @if let Some(failure) = failure { p class="outcome bad" role="alert" { (failure) } }
        form class="sign-in" method="post" action="/sign-in" {
            // For those who let their browser keep it.
            input type="text" name="username" value="provost" autocomplete="username" hidden;
            label for="token" { "Token" }
            input id="token" name="token" type="password" autocomplete="current-password" required autofocus;
            button { "Sign in" }
        }
    };
    layout::bare_page("Sign in", &main)
}

/// A page that says why something was not done or is not there, and nothing of what is served.
#[must_use]
pub fn render_failure(title: &str, reason: &str) -> String {
    let main = html! {
        p class="outcome bad" { (text::foreign(reason)) }
        p { a href="/" { "To the overview" } }
    };
    layout::bare_page(title, &main)
}
