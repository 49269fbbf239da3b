//! Who may ask what: the rules of the operators' listener, as one pure function. The first that is broken says so.
//!
//! 1. Host must be one of ours: a page of a stranger whose name has come to lead here (DNS rebinding) names itself.
//! 2. What changes anything must not come from another site's page.
//! 3. The token: for everything that changes anything; where others than this machine can connect, for all the rest too.

use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};

use super::settings::{Endpoint, StatusSettings};
use super::token::Token;

/// The cookie of somebody who has signed in.
pub(super) const COOKIE_NAME: &str = "provost_session";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

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
            Exposure::Operators if self.is_private && !is_change && bearer.is_none() => Ok(Visitor { is_signed_in }),
            Exposure::Operators if !token.is_configured() => Err(barred(
                StatusCode::FORBIDDEN,
                "nothing can be changed here, because \"status\" in provost.json names no \"token_file\"",
            )),
            Exposure::Operators if bearer.is_some() => Err(barred(StatusCode::UNAUTHORIZED, "this is not the token")),
            Exposure::Operators => Err(barred(StatusCode::UNAUTHORIZED, "the token is needed for this")),
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
            let name = authority.host().to_ascii_lowercase();
            let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
            name == "localhost"
                || address.is_ok_and(|address| self.has_any_address || address.to_canonical().is_loopback())
                || self.names.contains(&name)
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
    let site_is_good = headers.get(SEC_FETCH_SITE).is_none_or(|site| site == "same-origin" || site == "none");
    let origin_is_good = headers.get(ORIGIN).is_none_or(|origin| origin.to_str().is_ok_and(is_ours));
    if site_is_good && origin_is_good {
        Ok(())
    } else {
        Err(barred(StatusCode::FORBIDDEN, "this comes from the page of another site"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    const NOW: i64 = 1_800_000_000;
    const TOKEN: &str = "0123456789abcdef";

    fn token() -> (tempfile::NamedTempFile, Token) {
        use std::io::Write;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(TOKEN.as_bytes()).unwrap();
        let token = Token::open(Some(file.path())).unwrap();
        (file, token)
    }

    fn gate(listen: &str, hosts: &[&str]) -> Gate {
        let listen: Endpoint = listen.parse().unwrap();
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let settings = StatusSettings { listen: listen.clone(), token_file: None, hosts };
        Gate::new(&settings, &listen)
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/api/phones");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// The status with which `headers` are barred from something for operators; 0 if they are not.
    fn barred(gate: &Gate, token: &Token, method: &str, headers: &[(&str, &str)]) -> u16 {
        let checked = gate.check(&request(method, headers), Exposure::Operators, token, NOW);
        checked.err().map_or(0, |barred| barred.status.as_u16())
    }

    #[test]
    fn only_our_own_names_are_hosts() {
        let none = Token::open(None).unwrap();
        let at = |gate: &Gate, host: &str| barred(gate, &none, "GET", &[("Host", host)]);
        let loopback = gate("127.0.0.1:8444", &["Provost.Example.com", "other.example.com:99"]);
        for ours in [
            "localhost",
            "LOCALHOST:8444",
            "127.0.0.1:8444",
            "127.8.8.8",
            "[::1]:8444",
            "provost.example.com",
            "provost.example.com:443",
            "other.example.com",
        ] {
            assert_eq!(at(&loopback, ours), 0, "{ours}");
        }
        for strange in
            ["evil.example.com", "localhost.evil.example.com", "192.0.2.1", "", "a b", "0.0.0.0", "evil.localhost"]
        {
            assert_eq!(at(&loopback, strange), 421, "{strange}");
        }
        assert_eq!(barred(&loopback, &none, "GET", &[]), 421);
        assert_eq!(barred(&loopback, &none, "GET", &[("Host", "localhost"), ("Host", "localhost")]), 421);
        // A page whose host is an address is of whoever has that address: no name leads astray.
        let (_file, token) = token();
        let bearer = ("Authorization", "Bearer 0123456789abcdef");
        let open = gate("0.0.0.0:8444", &[]);
        assert_eq!(barred(&open, &token, "GET", &[("Host", "192.0.2.1:8444"), bearer]), 0);
        assert_eq!(barred(&open, &token, "GET", &[("Host", "evil.example.com"), bearer]), 421);
        assert_eq!(barred(&gate("192.0.2.1:1", &[]), &token, "GET", &[("Host", "192.0.2.1:1"), bearer]), 0);
        assert_eq!(barred(&gate("[2001:db8::1]:1", &[]), &token, "GET", &[("Host", "[2001:db8::1]:1"), bearer]), 0);
    }

    #[test]
    fn the_targets_own_authority_must_be_ours_too() {
        let (gate, none) = (gate("127.0.0.1:8444", &[]), Token::open(None).unwrap());
        let at = |uri: &str| {
            let request = Request::builder().uri(uri).header("Host", "localhost").body(()).unwrap();
            gate.check(&request.into_parts().0, Exposure::Public, &none, NOW).is_ok()
        };
        assert!(at("http://localhost/") && !at("http://evil.example.com/"));
    }

    #[test]
    fn whatever_changes_anything_needs_the_token_and_no_other_site() {
        let (_file, token) = token();
        let gate = gate("127.0.0.1:8444", &[]);
        let host = ("Host", "localhost:8444");
        let bearer = ("Authorization", "Bearer 0123456789abcdef");
        let session = format!("x=1; {COOKIE_NAME}={}", token.session(NOW).unwrap());
        let cookie = ("Cookie", session.as_str());
        let post = |headers: &[(&str, &str)]| barred(&gate, &token, "POST", &[&[host], headers].concat());
        assert_eq!(post(&[]), 401);
        assert_eq!(post(&[("Authorization", "Bearer 0123456789abcdeg")]), 401);
        assert_eq!(post(&[("Authorization", "Basic 0123456789abcdef")]), 401);
        assert_eq!(post(&[bearer]), 0);
        assert_eq!(post(&[("Authorization", "bearer  0123456789abcdef ")]), 0);
        assert_eq!(post(&[cookie]), 403, "a browser says where its page is from");
        for same in [("Sec-Fetch-Site", "same-origin"), ("Origin", "http://localhost:8444")] {
            assert_eq!(post(&[cookie, same]), 0, "{same:?}");
        }
        for other in [
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Site", "same-site"),
            ("Origin", "http://evil.example.com"),
            ("Origin", "http://localhost:9999"),
            ("Origin", "null"),
        ] {
            assert_eq!(post(&[cookie, other]), 403, "{other:?}");
            assert_eq!(post(&[bearer, other]), 403, "{other:?}");
        }
        assert_eq!(post(&[cookie, ("Sec-Fetch-Site", "same-origin"), ("Authorization", "Bearer wrong")]), 401);
        let none = Token::open(None).unwrap();
        assert_eq!(barred(&gate, &none, "POST", &[host, ("Authorization", "Bearer ")]), 403);
    }

    #[test]
    fn where_others_can_connect_everything_needs_the_token() {
        let (_file, token) = token();
        let open = gate("0.0.0.0:8444", &[]);
        let host = ("Host", "127.0.0.1:8444");
        assert_eq!(barred(&open, &token, "GET", &[host]), 401);
        assert_eq!(barred(&open, &token, "GET", &[host, ("Authorization", "Bearer 0123456789abcdef")]), 0);
        assert!(open.check(&request("GET", &[host]), Exposure::Public, &token, NOW).is_ok());
        let private = gate("127.0.0.1:8444", &[]);
        assert_eq!(barred(&private, &token, "GET", &[host]), 0);
        assert_eq!(barred(&private, &token, "GET", &[host, ("Authorization", "Bearer wrong")]), 401);
    }
}
