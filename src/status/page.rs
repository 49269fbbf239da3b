//! The page, for people.

use super::picture::{Overview, PhoneHistory, PhonePage, PhoneQuery};

/// `/style.css`.
pub const STYLE: &str = "";
/// `/script.js`.
pub const SCRIPT: &str = "";

/// What is shown at `/`, and to whom.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The whole.
    pub overview: &'a Overview,
    /// The phones that were asked for.
    pub phones: &'a PhonePage,
    /// How they were asked for.
    pub query: &'a PhoneQuery,
    /// Whether the visitor may change something.
    pub is_signed_in: bool,
    /// Whether there is a token to sign in with.
    pub has_token: bool,
}

/// The page at `/`.
#[must_use]
pub fn render(view: &View<'_>) -> String {
    format!("<!doctype html>\n<title>provost</title>\n<p>{} phones</p>\n", view.phones.total)
}

/// The page at `/phones/CONSTITUENCY/MAC`.
#[must_use]
pub fn render_phone(_: &Overview, history: &PhoneHistory, _is_signed_in: bool) -> String {
    format!("<!doctype html>\n<title>{}</title>\n<p>{} requests</p>\n", history.phone.mac, history.requests.len())
}

/// The form that posts `token` to `/sign-in`; `wrong` is what was wrong before.
#[must_use]
pub fn render_sign_in(wrong: Option<&'static str>) -> String {
    let wrong = wrong.map(|wrong| format!("<p>{wrong}</p>\n")).unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<title>provost: sign in</title>\n{wrong}\
         <form method=\"post\" action=\"/sign-in\">\n<label>Token <input type=\"password\" name=\"token\" autofocus></label>\n\
         <button>Sign in</button>\n</form>\n"
    )
}
