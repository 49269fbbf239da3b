//! Access control of the operators' listener, as one pure function. The first rule that a request breaks refuses it.
//!
//! 1. Host must be one of ours. This stops DNS rebinding: the page of an attacker sends its own host name. Health checks
//!    may send any Host, because their response is a status code that reveals no more.
//! 2. A change must not come from a page of another origin. Nor may such a page fetch an operators' route, but a link
//!    may lead there.
//! 3. An operators' route needs the token. If no token is configured, local clients that use a loopback name may read,
//!    and nothing can be changed.
//!
//! A reverse proxy cannot be distinguished from a direct client: it chooses its headers and its HTTP version. So
//! neither has an effect here. Without a token, a proxy on this machine that sends a loopback Host lets all its clients
//! read.

use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};

use super::settings::{Endpoint, StatusSettings};
use super::token::OperatorToken;

#[cfg(test)]
mod tests;

/// The session cookie over HTTP, and over HTTPS. Browsers accept a cookie with the prefix `__Host-` only if it is
/// `Secure` and from this host (RFC 6265bis §4.1.3.2).
pub(super) const COOKIE_NAME: &str = "provost_session";
const SECURE_COOKIE_NAME: &str = "__Host-provost_session";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// The access rules of one listener.
#[derive(Debug)]
pub(super) struct AccessGuard {
    /// Host names, without ports, in lower case.
    names: Vec<String>,
    /// Whether the listener is bound to the unspecified address. Then any IP address is valid as Host: DNS rebinding
    /// needs a name.
    has_any_address: bool,
    /// The listener's address, to which sessions are bound.
    endpoint: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientLocation {
    /// This machine: a loopback address, or a Unix socket.
    Local,
    /// Any other address.
    Remote,
}

/// Who may access a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteAccess {
    /// Any client. The response reveals nothing.
    Public,
    /// The same for a health check, which may send any Host or none.
    Probe,
    /// Operators only.
    Operators,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forbidden {
    pub(super) status: StatusCode,
    /// The reason, for an operator.
    pub(super) reason: String,
}

/// The rights of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Principal {
    /// The client has shown the token or a session cookie.
    pub(super) is_signed_in: bool,
    /// The client may read operators' routes.
    pub(super) may_read: bool,
}

/// The cookie of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionCookie {
    pub(super) name: &'static str,
    /// The scope that the session's value signs: this name and this listener.
    pub(super) scope: String,
    /// Whether browsers may send it only over HTTPS.
    pub(super) is_secure: bool,
}

impl AccessGuard {
    /// The rules for a listener with `settings` at `endpoint`.
    pub(super) fn new(settings: &StatusSettings, endpoint: &Endpoint) -> Self {
        let own = match endpoint {
            Endpoint::Tcp(address) => Some(bracketed(address.ip())),
            Endpoint::Unix(_) => None,
        };
        let names = settings.hosts.iter().map(|host| without_port(host).to_ascii_lowercase()).chain(own);
        let has_any_address = matches!(endpoint, Endpoint::Tcp(address) if address.ip().is_unspecified());
        Self { names: names.collect(), has_any_address, endpoint: endpoint.to_string() }
    }

    /// Checks `request` from `from` at `now`, in Unix seconds.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn check(
        &self,
        request: &Parts,
        from: ClientLocation,
        access: RouteAccess,
        token: &OperatorToken,
        now: i64,
    ) -> Result<Principal, Forbidden> {
        let is_change = !matches!(request.method, Method::GET | Method::HEAD);
        let host = match self.check_host(request) {
            Ok(host) => host,
            Err(_) if access == RouteAccess::Probe && !is_change => {
                return Ok(Principal { is_signed_in: false, may_read: false });
            }
            Err(refused) => return Err(refused),
        };
        let is_cross_origin = !is_same_origin(&request.headers) && !is_link(request);
        if is_change {
            check_site(&request.headers, &host)?;
        } else if access == RouteAccess::Operators && is_cross_origin {
            return Err(cross_origin());
        }
        let bearer = header(&request.headers, &AUTHORIZATION).and_then(bearer);
        let has_token = bearer.is_some_and(|shown| token.matches(shown.as_bytes()));
        // A wrong token is refused even with a valid session.
        let has_session = bearer.is_none() && self.has_session(&request.headers, token, now);
        let is_signed_in = has_token || has_session;
        let is_loopback = is_loopback(&host) && request.uri.authority().is_none_or(is_loopback);
        let is_open = !token.is_configured() && bearer.is_none() && from == ClientLocation::Local && is_loopback;
        let principal = Principal { is_signed_in, may_read: (is_signed_in || is_open) && !is_cross_origin };
        match access {
            RouteAccess::Public | RouteAccess::Probe => Ok(principal),
            RouteAccess::Operators if is_change && !is_signed_in => Err(without_token(token, true, bearer.is_some())),
            RouteAccess::Operators if is_change && has_session => require_origin(&request.headers).map(|()| principal),
            RouteAccess::Operators if principal.may_read => Ok(principal),
            RouteAccess::Operators => Err(without_token(token, false, bearer.is_some())),
        }
    }

    /// The cookie for a session that `request` begins or ends. The request is same-origin, so its Origin shows whether
    /// the browser uses HTTPS (through a proxy).
    pub(super) fn session_cookie(&self, request: &Parts) -> SessionCookie {
        let is_https = header(&request.headers, &ORIGIN).is_some_and(|origin| origin.starts_with("https://"));
        self.cookie(is_https)
    }

    fn cookie(&self, is_secure: bool) -> SessionCookie {
        let name = if is_secure { SECURE_COOKIE_NAME } else { COOKIE_NAME };
        SessionCookie { name, scope: format!("{name} {}", self.endpoint), is_secure }
    }

    fn has_session(&self, headers: &HeaderMap, token: &OperatorToken, now: i64) -> bool {
        [false, true].map(|is_secure| self.cookie(is_secure)).iter().any(|cookie| {
            cookies(headers).any(|(name, value)| name == cookie.name && token.verify_session(&cookie.scope, value, now))
        })
    }

    fn check_host(&self, request: &Parts) -> Result<Authority, Forbidden> {
        let bad = |reason: &str| forbidden(StatusCode::MISDIRECTED_REQUEST, reason);
        let mut hosts = request.headers.get_all(HOST).iter();
        let (host, another) = (hosts.next(), hosts.next());
        let host = host.filter(|_| another.is_none()).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
        let host = host.ok_or_else(|| bad("the header Host is missing or invalid"))?;
        // An authority in the target overrides Host (RFC 9112 §3.2.2).
        let is_ours = |authority: &Authority| {
            is_loopback(authority)
                || (self.has_any_address && address(authority).is_some())
                || self.names.contains(&authority.host().to_ascii_lowercase())
        };
        if is_ours(&host) && request.uri.authority().is_none_or(is_ours) {
            Ok(host)
        } else {
            Err(bad("unknown host name for this listener; add it to \"hosts\" in \"status\""))
        }
    }
}

/// Refuses a request from a page of another origin. Browsers send the origin; other programs send none, and follow
/// no links of attackers.
fn check_site(headers: &HeaderMap, host: &Authority) -> Result<(), Forbidden> {
    let is_ours = |origin: &str| {
        let origin = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_str()))
    };
    let origin_is_good = headers.get(ORIGIN).is_none_or(|origin| origin.to_str().is_ok_and(is_ours));
    if is_same_origin(headers) && origin_is_good { Ok(()) } else { Err(cross_origin()) }
}

/// Whether no header says that the request comes from another origin.
fn is_same_origin(headers: &HeaderMap) -> bool {
    headers.get_all(SEC_FETCH_SITE).iter().all(|site| site == "same-origin" || site == "none")
}

/// Whether a browser follows a link as a top-level navigation.
fn is_link(request: &Parts) -> bool {
    let says = |name: HeaderName, expected: &str| request.headers.get(name).is_some_and(|value| value == expected);
    request.method == Method::GET && says(SEC_FETCH_MODE, "navigate") && says(SEC_FETCH_DEST, "document")
}

fn cross_origin() -> Forbidden {
    forbidden(StatusCode::FORBIDDEN, "cross-origin request refused: it comes from a page of another site")
}

fn is_loopback(authority: &Authority) -> bool {
    let is_name = authority.host().eq_ignore_ascii_case("localhost");
    is_name || address(authority).is_some_and(|address| address.to_canonical().is_loopback())
}

fn address(authority: &Authority) -> Option<std::net::IpAddr> {
    authority.host().trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The refusal of a request without a valid token.
fn without_token(token: &OperatorToken, is_change: bool, is_wrong: bool) -> Forbidden {
    const NO_TOKEN_FILE: &str = "\"token_file\" is not set in \"status\" of provost.json";
    let reason = match (token.is_configured(), is_change) {
        (false, true) => format!("changes need a token, and {NO_TOKEN_FILE}"),
        (false, false) if is_wrong => format!("the request has a token, but {NO_TOKEN_FILE}; send it without one"),
        (false, false) => format!(
            "{NO_TOKEN_FILE}; without a token, only requests from this machine to a loopback name such as localhost are \
             accepted"
        ),
        (true, _) if is_wrong => "wrong token".to_owned(),
        (true, _) => "this request needs the token: sign in, or send \"Authorization: Bearer TOKEN\"".to_owned(),
    };
    let status = if token.is_configured() { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
    Forbidden { status, reason }
}

/// A request with a cookie comes from a browser, and must have Origin or Sec-Fetch-Site. [`check_site`] has checked
/// their values.
fn require_origin(headers: &HeaderMap) -> Result<(), Forbidden> {
    if headers.contains_key(ORIGIN) || headers.contains_key(SEC_FETCH_SITE) {
        Ok(())
    } else {
        Err(forbidden(
            StatusCode::FORBIDDEN,
            "a change with a session cookie needs the header Origin or Sec-Fetch-Site",
        ))
    }
}

fn forbidden(status: StatusCode, reason: &str) -> Forbidden {
    Forbidden { status, reason: reason.to_owned() }
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let all = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    all.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| cookie.trim().split_once('='))
}

fn bracketed(address: std::net::IpAddr) -> String {
    match address {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}
