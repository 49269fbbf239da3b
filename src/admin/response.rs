//! What is answered: pages, JSON, texts, all with the headers that keep them where they belong. Pure.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    REFERRER_POLICY, SET_COOKIE, VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::access_guard::{Forbidden, SessionCookie};
use super::token::SESSION_S;

/// An answer's body.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
/// An answer.
pub(super) type Answer = Response<Body>;

/// Nothing but what we serve ourselves is run, shown or asked, and nobody frames us.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// An answer with these bytes.
pub(super) fn of(status: StatusCode, media_type: &'static str, content: impl Into<Bytes>) -> Answer {
    with_body(status, media_type, Full::new(content.into()).boxed_unsync())
}

/// An answer whose body comes by and by.
pub(super) fn with_body(status: StatusCode, media_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, media_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`: with that, browsers call the origin of our own forms null.
        (REFERRER_POLICY, "same-origin"),
        (CACHE_CONTROL, "no-store"),
        (VARY, "Accept, Authorization, Cookie"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

pub(super) fn page(status: StatusCode, html: String) -> Answer {
    of(status, "text/html; charset=utf-8", html)
}

/// A file that never changes under its name.
pub(super) fn for_good(media_type: &'static str, content: &'static str) -> Answer {
    let mut answer = of(StatusCode::OK, media_type, content);
    let kept = HeaderValue::from_static("public, max-age=31536000, immutable");
    answer.headers_mut().insert(CACHE_CONTROL, kept);
    answer
}

pub(super) fn text(status: StatusCode, line: &str) -> Answer {
    of(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => of(status, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("this cannot be told as JSON: {error}")),
    }
}

/// Something that went another way than it should have, as JSON.
pub(super) fn problem(status: StatusCode, reason: &str) -> Answer {
    json(status, &serde_json::json!({ "error": reason }))
}

/// `answer` to somebody who may not, and who does not keep a place by what else there is to come.
pub(super) fn forbidden(barred: &Forbidden, mut answer: Answer) -> Answer {
    *answer.status_mut() = barred.status;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    if barred.status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"provost\""));
    }
    answer
}

/// Only these methods.
pub(super) fn method_not_allowed(allow: &'static str) -> Answer {
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, &format!("only {allow}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

/// The answer is to be had at `path`, which is one of ours.
pub(super) fn see(path: &str) -> Answer {
    let mut answer = text(StatusCode::SEE_OTHER, "see there");
    answer.headers_mut().insert(LOCATION, HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/")));
    answer
}

/// Gives the browser a session in `cookie`, or takes it back.
pub(super) fn with_session(mut answer: Answer, cookie: &SessionCookie, session: Option<&str>) -> Answer {
    let (value, age) = session.map_or(("", 0), |session| (session, SESSION_S));
    let secure = if cookie.is_secure { "; Secure" } else { "" };
    let cookie = format!("{}={value}; Max-Age={age}; Path=/; HttpOnly; SameSite=Strict{secure}", cookie.name);
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    answer
}

/// A status and nothing else.
pub(super) fn empty(status: StatusCode) -> Answer {
    of(status, "text/plain; charset=utf-8", "")
}
