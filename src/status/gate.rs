//! Who may ask what: the rules of the operators' listener, as one pure function. The first that is broken says so.
//!
//! 1. Host must be one of ours: a page of a stranger whose name has come to lead here (DNS rebinding) names itself.
//! 2. What changes anything must not come from another site's page; nor may such a page ask for what is for operators, but a
//!    link may lead there.
//! 3. The token: for everything that changes anything; for all the rest too, unless it is plainly asked on this machine:
//!    where nobody else can connect, by a loopback name, and not through a proxy.

use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode, Version};

use super::settings::{Endpoint, StatusSettings};
use super::token::Token;

#[cfg(test)]
mod tests;

/// The cookie of somebody who has signed in.
pub(super) const COOKIE_NAME: &str = "provost_session";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
/// What proxies add; what ends with a dash is how many begin.
const OF_PROXIES: [&str; 5] = ["forwarded", "via", "x-real-ip", "x-forwarded-", "x-original-"];

/// What stands at the entrance.
#[derive(Debug)]
pub(super) struct Gate {
    /// Host names, without ports, lower case.
    names: Vec<String>,
    /// Whether it listens on every address: then it goes by any address, which no stranger's page can.
    has_any_address: bool,
    /// Whether only this machine can connect.
    is_private: bool,
}

/// What a path is to those who ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exposure {
    /// Anybody may have it: it says nothing.
    Public,
    /// For operators.
    Operators,
}

/// Why somebody may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Barred {
    pub(super) status: StatusCode,
    /// In words, for an operator who has lost the way.
    pub(super) reason: String,
}

/// Whether somebody is known to be an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Visitor {
    /// By the token or by a cookie.
    pub(super) is_signed_in: bool,
}

impl Gate {
    /// The gate of a listener that was made with `settings`, and listens on `endpoint`.
    pub(super) fn new(settings: &StatusSettings, endpoint: &Endpoint) -> Self {
        let own = match endpoint {
            Endpoint::Tcp(address) => Some(bracketed(address.ip())),
            Endpoint::Unix(_) => None,
        };
        let names = settings.hosts.iter().map(|host| without_port(host).to_ascii_lowercase()).chain(own);
        let has_any_address = matches!(endpoint, Endpoint::Tcp(address) if address.ip().is_unspecified());
        Self { names: names.collect(), has_any_address, is_private: endpoint.is_private() }
    }

    /// Whether `request` may pass at `now`, in Unix seconds.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(
        &self,
        request: &Parts,
        exposure: Exposure,
        token: &Token,
        now: i64,
    ) -> Result<Visitor, Barred> {
        let host = self.check_host(request)?;
        let is_change = !matches!(request.method, Method::GET | Method::HEAD);
        if is_change {
            check_site(&request.headers, &host)?;
        } else if exposure == Exposure::Operators && !is_of_our_site(&request.headers) && !is_link(request) {
            return Err(of_another_site());
        }
        let bearer = header(&request.headers, &AUTHORIZATION).and_then(bearer);
        if bearer.is_some_and(|shown| token.is(shown.as_bytes())) {
            return Ok(Visitor { is_signed_in: true });
        }
        let is_signed_in = bearer.is_none() && cookies(&request.headers).any(|it| token.is_session(it, now));
        match exposure {
            Exposure::Public => Ok(Visitor { is_signed_in }),
            Exposure::Operators if is_signed_in && is_change => {
                check_vouched(&request.headers).map(|()| Visitor { is_signed_in })
            }
            Exposure::Operators if is_signed_in => Ok(Visitor { is_signed_in }),
            // A token that is wrong is not as good as none.
            Exposure::Operators
                if self.is_private && !is_change && bearer.is_none() && is_asked_here(request, &host) =>
            {
                Ok(Visitor { is_signed_in })
            }
            Exposure::Operators => Err(without_token(token, is_change, bearer.is_some())),
        }
    }

    fn check_host(&self, request: &Parts) -> Result<Authority, Barred> {
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
fn check_site(headers: &HeaderMap, host: &Authority) -> Result<(), Barred> {
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

fn of_another_site() -> Barred {
    barred(StatusCode::FORBIDDEN, "this comes from the page of another site")
}

/// Whether somebody on this machine asks, not a proxy for somebody else: many a proxy says so, others hand on the name by
/// which they are asked themselves. A proxy that does neither talks HTTP/1.0 to us, as nginx does unless it is told
/// otherwise; nobody else does.
fn is_asked_here(request: &Parts, host: &Authority) -> bool {
    let is_of_proxies = |name: &HeaderName| {
        OF_PROXIES.iter().any(|it| if it.ends_with('-') { name.as_str().starts_with(it) } else { name == it })
    };
    is_loopback(host)
        && request.uri.authority().is_none_or(is_loopback)
        && request.version >= Version::HTTP_11
        && !request.headers.keys().any(is_of_proxies)
}

fn is_loopback(authority: &Authority) -> bool {
    let is_name = authority.host().eq_ignore_ascii_case("localhost");
    is_name || address(authority).is_some_and(|address| address.to_canonical().is_loopback())
}

fn address(authority: &Authority) -> Option<std::net::IpAddr> {
    authority.host().trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Why not, to somebody who has shown no token, or a wrong one.
fn without_token(token: &Token, is_change: bool, is_wrong: bool) -> Barred {
    let reason = match (token.is_configured(), is_change) {
        (false, true) => "nothing can be changed here, because \"status\" in provost.json names no \"token_file\"",
        (false, false) if is_wrong => {
            "there is no token here, because \"status\" in provost.json names no \"token_file\"; show none"
        }
        (false, false) => {
            "this came through a proxy; for that \"status\" in provost.json must name a \"token_file\" with a token to show"
        }
        _ if is_wrong => "this is not the token",
        (true, true) => "the token is needed for this",
        (true, false) => {
            "the token is needed for this: without it, only what is asked on this machine, by a loopback name and not \
             through a proxy, is answered"
        }
    };
    let status = if token.is_configured() { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
    barred(status, reason)
}

/// Who comes with a cookie is a browser, and must say where its page is from; [`check_site`] has looked at what it says.
fn check_vouched(headers: &HeaderMap) -> Result<(), Barred> {
    if headers.contains_key(ORIGIN) || headers.contains_key(SEC_FETCH_SITE) {
        Ok(())
    } else {
        Err(barred(StatusCode::FORBIDDEN, "a browser that does not say where its page is from may change nothing"))
    }
}

fn barred(status: StatusCode, reason: &str) -> Barred {
    Barred { status, reason: reason.to_owned() }
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let all = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let each = all.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    each.filter(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value)
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
