//! Access control of the operators' listener, as one pure function. The first rule that a request breaks refuses it.
//!
//! 1. Host must be one of ours. This stops DNS rebinding: the page of an attacker sends its own host name. Health checks
//!    may send any Host, because their response is a status code that reveals no more.
//! 2. A change must not come from a page of another origin. Nor may such a page fetch an operators' route, but a link
//!    may lead there.
//! 3. An operators' route needs a token. If there is no operator, local clients that use a loopback name may read, and
//!    nothing can be changed.
//! 4. A read-only operator changes nothing.
//!
//! A reverse proxy cannot be distinguished from a direct client: it chooses its headers and its HTTP version. So
//! neither has an effect here. Without a token, a proxy on this machine that sends a loopback Host lets all its clients
//! read.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};

use super::operators::{Operator, Operators, Scope};
use super::settings::{Endpoint, StatusSettings};

#[cfg(test)]
mod tests;

/// The session cookie over HTTP, and over HTTPS. Browsers accept a cookie with the prefix `__Host-` only if it is
/// `Secure` and from this host (RFC 6265bis §4.1.3.2).
pub(super) const COOKIE_NAME: &str = "provost_session";
const SECURE_COOKIE_NAME: &str = "__Host-provost_session";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Why there is no token yet, and the remedy.
pub(super) const NO_OPERATOR: &str = "\"token_file\" is not set in \"status\" of provost.json, and there is no operator; run \
                                      provost operator add NAME";

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

impl ClientLocation {
    /// The location of a peer; `None` is a Unix socket.
    pub(super) fn of(peer: Option<IpAddr>) -> Self {
        let is_local = peer.is_none_or(|address| address.to_canonical().is_loopback());
        if is_local { Self::Local } else { Self::Remote }
    }
}

/// Who may access a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteAccess {
    /// Any client. The response reveals nothing.
    Public,
    /// The same for a health check, which may send any Host or none.
    Probe,
    /// Operators only. The response holds what is within the operator's scope, and so does a change. A read-only operator
    /// may only read.
    Operators,
    /// Every operator, also to end the own session.
    Session,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forbidden {
    pub(super) status: StatusCode,
    /// The reason, for an operator.
    pub(super) reason: String,
}

/// The rights of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Principal {
    /// The operator whose token or session cookie the client has shown.
    pub(super) operator: Option<Arc<Operator>>,
    /// The client may read operators' routes.
    pub(super) may_read: bool,
}

impl Principal {
    /// What the client may see and change. Without an operator, all that a client on this machine may read.
    pub(super) fn scope(&self) -> &Scope {
        self.operator.as_ref().map_or(&Scope::All, |operator| &operator.scope)
    }
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

impl Forbidden {
    /// The refusal of a request whose operator was removed, or got another token or rights, while it was received.
    pub(super) fn ended() -> Self {
        forbidden(StatusCode::UNAUTHORIZED, "the token or its rights changed during the request; nothing was changed")
    }
}

impl RouteAccess {
    /// Whether a client must prove to be an operator.
    pub(super) fn is_restricted(self) -> bool {
        match self {
            Self::Public | Self::Probe => false,
            Self::Operators | Self::Session => true,
        }
    }
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
        operators: &Operators,
        now: i64,
    ) -> Result<Principal, Forbidden> {
        let is_change = !matches!(request.method, Method::GET | Method::HEAD);
        let host = match self.check_host(request) {
            Ok(host) => host,
            Err(_) if access == RouteAccess::Probe && !is_change => {
                return Ok(Principal::default());
            }
            Err(refused) => return Err(refused),
        };
        let is_cross_origin = !is_same_origin(&request.headers) && !is_link(request);
        if is_change {
            check_site(&request.headers, &host)?;
        } else if access.is_restricted() && is_cross_origin {
            return Err(cross_origin());
        }
        let bearer = header(&request.headers, &AUTHORIZATION).and_then(bearer);
        // A wrong token is refused even with a valid session.
        let operator = match bearer {
            Some(shown) => operators.authenticate(shown.as_bytes()),
            None => self.operator_of_session(&request.headers, operators, now),
        };
        let is_loopback = is_loopback(&host) && request.uri.authority().is_none_or(is_loopback);
        let is_open = !operators.are_required() && bearer.is_none() && from == ClientLocation::Local && is_loopback;
        let may_read = (operator.is_some() || is_open) && !is_cross_origin;
        let principal = Principal { operator, may_read };
        let unproven = || without_token(operators, is_change, bearer.is_some());
        match &principal.operator {
            _ if !access.is_restricted() => {}
            None if is_change || !may_read => return Err(unproven()),
            Some(_) if !is_change && !may_read => return Err(unproven()),
            Some(operator) if is_change => {
                if bearer.is_none() {
                    require_origin(&request.headers)?;
                }
                if operator.is_read_only && access != RouteAccess::Session {
                    return Err(read_only(operator));
                }
            }
            _ => {}
        }
        Ok(principal)
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

    fn operator_of_session(&self, headers: &HeaderMap, operators: &Operators, now: i64) -> Option<Arc<Operator>> {
        [false, true].map(|is_secure| self.cookie(is_secure)).iter().find_map(|cookie| {
            let mut values = cookies(headers).filter(|(name, _)| *name == cookie.name);
            values.find_map(|(_, value)| operators.verify_session(&cookie.scope, value, now))
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

fn address(authority: &Authority) -> Option<IpAddr> {
    authority.host().trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The refusal of a request without a valid token.
fn without_token(operators: &Operators, is_change: bool, is_wrong: bool) -> Forbidden {
    let reason = match (operators.are_required(), is_change) {
        (false, true) => format!("changes need a token, and {NO_OPERATOR}"),
        (false, false) if is_wrong => format!("the request has a token, but {NO_OPERATOR}, or send it without a token"),
        (false, false) => format!(
            "only requests from this machine to a loopback name such as localhost are accepted without a token, and \
             {NO_OPERATOR}"
        ),
        (true, _) if is_wrong => "wrong token".to_owned(),
        (true, _) => "this request needs a token: sign in, or send \"Authorization: Bearer TOKEN\"".to_owned(),
    };
    let status = if operators.are_required() { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
    Forbidden { status, reason }
}

fn read_only(operator: &Operator) -> Forbidden {
    let name = &operator.name;
    forbidden(StatusCode::FORBIDDEN, &format!("operator {name} is read-only, and cannot change anything"))
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

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}
