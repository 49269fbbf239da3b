//! Builds responses: pages, JSON and texts, with security headers. Pure.

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
use super::operators::SESSION_S;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(super) type AdminResponse = Response<Body>;

/// Only our own resources are loaded, and framing is forbidden.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A response with `content`.
pub(super) fn of(status: StatusCode, media_type: &'static str, content: impl Into<Bytes>) -> AdminResponse {
    with_body(status, media_type, Full::new(content.into()).boxed_unsync())
}

/// A response with a streaming body.
pub(super) fn with_body(status: StatusCode, media_type: &'static str, body: Body) -> AdminResponse {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, media_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`: with that, browsers send `Origin: null` with our own forms.
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

pub(super) fn page(status: StatusCode, html: String) -> AdminResponse {
    of(status, "text/html; charset=utf-8", html)
}

/// An immutable file. Its content never changes under its name.
pub(super) fn immutable(media_type: &'static str, content: &'static str) -> AdminResponse {
    let mut answer = of(StatusCode::OK, media_type, content);
    let immutable = HeaderValue::from_static("public, max-age=31536000, immutable");
    answer.headers_mut().insert(CACHE_CONTROL, immutable);
    answer
}

pub(super) fn text(status: StatusCode, line: &str) -> AdminResponse {
    of(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> AdminResponse {
    match serde_json::to_vec(value) {
        Ok(bytes) => of(status, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot encode the response as JSON: {error}")),
    }
}

/// An error, as JSON.
pub(super) fn problem(status: StatusCode, reason: &str) -> AdminResponse {
    json(status, &serde_json::json!({ "error": reason }))
}

/// Makes `answer` a refusal. Closes the connection, so that the client does not keep its slot.
pub(super) fn forbidden(forbidden: &Forbidden, mut answer: AdminResponse) -> AdminResponse {
    *answer.status_mut() = forbidden.status;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    if forbidden.status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"provost\""));
    }
    answer
}

pub(super) fn method_not_allowed(allow: &'static str) -> AdminResponse {
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, &format!("method not allowed; use {allow}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

/// Redirects to `path` on this listener.
pub(super) fn redirect(path: &str) -> AdminResponse {
    let mut answer = text(StatusCode::SEE_OTHER, "see the Location header");
    answer.headers_mut().insert(LOCATION, HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/")));
    answer
}

/// Sets the session in `cookie`, or removes it.
pub(super) fn with_session(mut answer: AdminResponse, cookie: &SessionCookie, session: Option<&str>) -> AdminResponse {
    let (value, age) = session.map_or(("", 0), |session| (session, SESSION_S));
    let secure = if cookie.is_secure { "; Secure" } else { "" };
    let cookie = format!("{}={value}; Max-Age={age}; Path=/; HttpOnly; SameSite=Strict{secure}", cookie.name);
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    answer
}

/// A status with an empty body.
pub(super) fn empty(status: StatusCode) -> AdminResponse {
    of(status, "text/plain; charset=utf-8", "")
}
