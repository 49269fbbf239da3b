//! Who may ask what: the rules of the operators' listener, as one pure function. The first that is broken says so.
//!
//! 1. Host must be one of ours: a page of a stranger whose name has come to lead here (DNS rebinding) names itself.
//! 2. What changes anything must not come from another site's page; nor may such a page ask for what is for operators, but a
//!    link may lead there.
//! 3. What is for operators needs the token. Where no token is configured, peers on this machine that ask by a loopback name
//!    may read, and nothing can be changed.
//!
//! A reverse proxy cannot be told from a direct client: what it adds to a request, and which HTTP version it speaks, is its
//! own choice. So neither decides anything here. Without a token, a proxy on this machine that sends a loopback Host lets all
//! its clients read.

use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};

use super::settings::{Endpoint, StatusSettings};
use super::token::OperatorToken;

#[cfg(test)]
mod tests;

/// The name of the session cookie, and the one that it has over HTTPS: browsers take a cookie with this prefix only if it is
/// `Secure` and from this very host (RFC 6265bis §4.1.3.2).
pub(super) const COOKIE_NAME: &str = "provost_session";
const SECURE_COOKIE_NAME: &str = "__Host-provost_session";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// What stands at the entrance.
#[derive(Debug)]
pub(super) struct AccessGuard {
    /// Host names, without ports, lower case.
    names: Vec<String>,
    /// Whether it listens on every address: then it goes by any address, which no stranger's page can.
    has_any_address: bool,
    /// Where it listens: a session is valid there alone.
    endpoint: String,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientLocation {
    /// This machine: a loopback address, or a Unix socket.
    Local,
    /// Any other address.
    Remote,
}

/// What a path is to those who ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteAccess {
    /// Anybody may have it: it says nothing.
    Public,
    /// For operators.
    Operators,
}

/// Why somebody may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forbidden {
    pub(super) status: StatusCode,
    /// In words, for an operator who has lost the way.
    pub(super) reason: String,
}

/// What a client has shown, and may therefore see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Principal {
    /// It has shown the token, or the cookie of a session.
    pub(super) is_signed_in: bool,
    /// It may read what is for operators.
    pub(super) may_read: bool,
}

/// The cookie that holds a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionCookie {
    pub(super) name: &'static str,
    /// What the session's value is signed for: this name and this listener.
    pub(super) scope: String,
    /// Whether browsers may send it over HTTPS alone.
    pub(super) is_secure: bool,
}

impl AccessGuard {
    /// The gate of a listener that was made with `settings`, and listens on `endpoint`.
    pub(super) fn new(settings: &StatusSettings, endpoint: &Endpoint) -> Self {
        let own = match endpoint {
            Endpoint::Tcp(address) => Some(bracketed(address.ip())),
            Endpoint::Unix(_) => None,
        };
        let names = settings.hosts.iter().map(|host| without_port(host).to_ascii_lowercase()).chain(own);
        let has_any_address = matches!(endpoint, Endpoint::Tcp(address) if address.ip().is_unspecified());
        Self { names: names.collect(), has_any_address, endpoint: endpoint.to_string() }
    }

    /// Whether `request` that comes `from` may pass at `now`, in Unix seconds.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(
        &self,
        request: &Parts,
        from: ClientLocation,
        exposure: RouteAccess,
        token: &OperatorToken,
        now: i64,
    ) -> Result<Principal, Forbidden> {
        let host = self.check_host(request)?;
        let is_change = !matches!(request.method, Method::GET | Method::HEAD);
        let is_of_another_site = !is_of_our_site(&request.headers) && !is_link(request);
        if is_change {
            check_site(&request.headers, &host)?;
        } else if exposure == RouteAccess::Operators && is_of_another_site {
            return Err(of_another_site());
        }
        let bearer = header(&request.headers, &AUTHORIZATION).and_then(bearer);
        let has_token = bearer.is_some_and(|shown| token.is(shown.as_bytes()));
        // A wrong token is refused, also beside a good session.
        let has_session = bearer.is_none() && self.has_session(&request.headers, token, now);
        let is_signed_in = has_token || has_session;
        let is_loopback = is_loopback(&host) && request.uri.authority().is_none_or(is_loopback);
        let is_open = !token.is_configured() && bearer.is_none() && from == ClientLocation::Local && is_loopback;
        let visitor = Principal { is_signed_in, may_read: (is_signed_in || is_open) && !is_of_another_site };
        match exposure {
            RouteAccess::Public => Ok(visitor),
            RouteAccess::Operators if is_change && !is_signed_in => Err(without_token(token, true, bearer.is_some())),
            RouteAccess::Operators if is_change && has_session => check_vouched(&request.headers).map(|()| visitor),
            RouteAccess::Operators if visitor.may_read => Ok(visitor),
            RouteAccess::Operators => Err(without_token(token, false, bearer.is_some())),
        }
    }

    /// The cookie for a session that begins, or ends, by `request`. The page that asks is of our own site: its origin says
    /// whether the browser speaks HTTPS, to a proxy then.
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
            cookies(headers).any(|(name, value)| name == cookie.name && token.is_session(&cookie.scope, value, now))
        })
    }

    fn check_host(&self, request: &Parts) -> Result<Authority, Forbidden> {
        let bad = |reason: &str| barred(StatusCode::MISDIRECTED_REQUEST, reason);
        let mut hosts = request.headers.get_all(HOST).iter();
        let (host, another) = (hosts.next(), hosts.next());
        let host = host.filter(|_| another.is_none()).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
        let host = host.ok_or_else(|| bad("Host is missing, or is none"))?;
        // The target's own authority would beat Host (RFC 9112 §3.2.2).
        let is_ours = |authority: &Authority| {
            is_loopback(authority)
                || (self.has_any_address && address(authority).is_some())
                || self.names.contains(&authority.host().to_ascii_lowercase())
        };
        if is_ours(&host) && request.uri.authority().is_none_or(is_ours) {
            Ok(host)
        } else {
            Err(bad("this listener does not go by this name; add it to \"hosts\" in \"status\""))
        }
    }
}

/// A browser says from which site a request comes; other programs say nothing, and follow no stranger's links.
fn check_site(headers: &HeaderMap, host: &Authority) -> Result<(), Forbidden> {
    let is_ours = |origin: &str| {
        let origin = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_str()))
    };
    let origin_is_good = headers.get(ORIGIN).is_none_or(|origin| origin.to_str().is_ok_and(is_ours));
    if is_of_our_site(headers) && origin_is_good { Ok(()) } else { Err(of_another_site()) }
}

/// Whether no browser says that another site's page asks.
fn is_of_our_site(headers: &HeaderMap) -> bool {
    headers.get_all(SEC_FETCH_SITE).iter().all(|site| site == "same-origin" || site == "none")
}

/// Whether a browser goes where a link leads, to show it by itself.
fn is_link(request: &Parts) -> bool {
    let says = |name: HeaderName, expected: &str| request.headers.get(name).is_some_and(|value| value == expected);
    request.method == Method::GET && says(SEC_FETCH_MODE, "navigate") && says(SEC_FETCH_DEST, "document")
}

fn of_another_site() -> Forbidden {
    barred(StatusCode::FORBIDDEN, "this comes from the page of another site")
}

fn is_loopback(authority: &Authority) -> bool {
    let is_name = authority.host().eq_ignore_ascii_case("localhost");
    is_name || address(authority).is_some_and(|address| address.to_canonical().is_loopback())
}

fn address(authority: &Authority) -> Option<std::net::IpAddr> {
    authority.host().trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Why a request without the token, or with a wrong one, is refused.
fn without_token(token: &OperatorToken, is_change: bool, is_wrong: bool) -> Forbidden {
    const NO_TOKEN_FILE: &str = "\"status\" in provost.json names no \"token_file\"";
    let reason = match (token.is_configured(), is_change) {
        (false, true) => format!("nothing can be changed here, because {NO_TOKEN_FILE}"),
        (false, false) if is_wrong => format!("there is no token here, because {NO_TOKEN_FILE}; show none"),
        (false, false) => format!(
            "{NO_TOKEN_FILE}: without a token, only requests from this machine to a loopback name such as localhost are \
             answered"
        ),
        (true, _) if is_wrong => "this is not the token".to_owned(),
        (true, _) => "the token is needed for this: sign in, or send \"Authorization: Bearer TOKEN\"".to_owned(),
    };
    let status = if token.is_configured() { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
    Forbidden { status, reason }
}

/// Who comes with a cookie is a browser, and must say where its page is from; [`check_site`] has looked at what it says.
fn check_vouched(headers: &HeaderMap) -> Result<(), Forbidden> {
    if headers.contains_key(ORIGIN) || headers.contains_key(SEC_FETCH_SITE) {
        Ok(())
    } else {
        Err(barred(StatusCode::FORBIDDEN, "a browser that does not say where its page is from may change nothing"))
    }
}

fn barred(status: StatusCode, reason: &str) -> Forbidden {
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
