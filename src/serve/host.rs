//! The host that a request names, and the one rule by which names are compared.
//!
//! Pure. SNI, Host and the authority of an absolute-form target all use this rule, so that they cannot differ.

use std::borrow::Cow;
use std::net::IpAddr;

use hyper::header::{HOST, HeaderMap};
use hyper::{Uri, Version};

/// Why a request's Host is rejected (RFC 9112 §3.2: respond with 400).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    /// No Host header in HTTP/1.1.
    #[error("no Host header")]
    Missing,
    /// No Host header in HTTP/1.0, and no other way to find the constituency.
    #[error("no Host header, and \"no_sni\" of provost.json names no constituency that this connection may use")]
    NoDefault,
    /// More than one Host header.
    #[error("more than one Host header")]
    Several,
    /// Not a host name or address with an optional port.
    #[error("a malformed Host header")]
    Malformed,
    /// An absolute-form target that names another host than the header.
    #[error("the request target names another host than the Host header")]
    Mismatch,
}

/// The host in a Host header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedHost<'a> {
    /// A DNS name: lower case, without port and trailing dot.
    Name(Cow<'a, str>),
    /// An IP address literal.
    Address(IpAddr),
}

/// The host that a request names: exactly one Host header, which the target's authority must not contradict.
///
/// RFC 9112 §3.2: "A client MUST send a Host header field in all HTTP/1.1 request messages." An HTTP/1.0 client may
/// omit it; then the target's authority names the host, and without one the request names no host (`None`).
pub fn of_request<'a>(
    version: Version,
    target: &'a Uri,
    headers: &'a HeaderMap,
) -> Result<Option<NamedHost<'a>>, BadHost> {
    let of_target = || target.authority().map(|authority| parse(authority.as_str()));
    let mut values = headers.get_all(HOST).iter();
    let Some(value) = values.next() else {
        return match of_target() {
            _ if version > Version::HTTP_10 => Err(BadHost::Missing),
            Some(named) => named.map(Some).ok_or(BadHost::Malformed),
            None => Ok(None),
        };
    };
    if values.next().is_some() {
        return Err(BadHost::Several);
    }
    let named = parse(value.to_str().map_err(|_| BadHost::Malformed)?).ok_or(BadHost::Malformed)?;
    match of_target() {
        Some(target) if target.as_ref() != Some(&named) => Err(BadHost::Mismatch),
        _ => Ok(Some(named)),
    }
}

/// Parses `host[:port]`, where a host is a DNS name, an IPv4 address or an IPv6 address in brackets. The port may be
/// empty (RFC 3986 §3.2.3).
#[must_use]
pub fn parse(text: &str) -> Option<NamedHost<'_>> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port_is_good = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port_is_good.then(|| address.parse().ok().map(|address| NamedHost::Address(IpAddr::V6(address))))?;
    }
    let host = match text.split_once(':') {
        Some((host, port)) => is_port(port).then_some(host)?,
        None => text,
    };
    if let Ok(address) = host.parse() {
        return Some(NamedHost::Address(IpAddr::V4(address)));
    }
    normalize(host).map(NamedHost::Name)
}

/// Normalizes a DNS name for comparison: lower case, one trailing dot removed.
///
/// `None` if it has other characters than letters, digits, `-`, `_` and dots between labels, or if a label is empty, a
/// label is longer than 63 bytes, or the name is longer than 253.
#[must_use]
pub fn normalize(name: &str) -> Option<Cow<'_, str>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_lower_case = || !name.bytes().any(|byte| byte.is_ascii_uppercase());
    (name.len() <= 253 && name.split('.').all(is_label))
        .then(|| if is_lower_case() { Cow::Borrowed(name) } else { Cow::Owned(name.to_ascii_lowercase()) })
}

/// The label that `name` has in front of `domain`, if it is exactly one; both are normalized.
#[must_use]
pub fn label_under<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let label = name.strip_suffix(domain)?.strip_suffix('.')?;
    (!label.is_empty() && !label.contains('.')).then_some(label)
}

fn is_port(text: &str) -> bool {
    text.is_empty() || !text.starts_with('+') && text.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<String> {
        match parse(text)? {
            NamedHost::Name(name) => Some(name.into_owned()),
            NamedHost::Address(address) => Some(address.to_string()),
        }
    }

    #[test]
    fn all_spellings_of_a_host_are_equal() {
        for text in [
            "ote.phones.example.com",
            "OTE.Phones.Example.Com.",
            "ote.phones.example.com:8443",
            "ote.phones.example.com.:443",
            "ote.phones.example.com:",
        ] {
            assert_eq!(name(text).as_deref(), Some("ote.phones.example.com"), "{text}");
        }
        assert_eq!(name("127.0.0.1:8443").as_deref(), Some("127.0.0.1"));
        assert_eq!(name("[::1]:8443").as_deref(), Some("::1"));
        assert_eq!(name("[::1]").as_deref(), Some("::1"));
        assert_eq!(name("[::1]:").as_deref(), Some("::1"));
    }

    #[test]
    fn invalid_host_is_rejected() {
        for text in [
            "", ".", ":", "a..b", "a b", "a:0", "a:65536", "a:+1", "a::", "a:1:2", "[::1", "::1", "[x]", "a/b",
            "user@a", "a,b", "ä.b", "a.b..", "[::1]x", "[::1]::",
        ] {
            assert_eq!(name(text), None, "{text}");
        }
    }

    #[test]
    fn host_is_exactly_one_label_under_the_domain() {
        assert_eq!(label_under("ote.phones.example.com", "phones.example.com"), Some("ote"));
        for other in [
            "phones.example.com",
            ".phones.example.com",
            "a.ote.phones.example.com",
            "xphones.example.com",
            "example.com",
        ] {
            assert_eq!(label_under(other, "phones.example.com"), None, "{other}");
        }
    }

    #[test]
    fn host_header_is_single_and_matches_the_target() {
        let headers =
            |values: &[&str]| values.iter().map(|value| (HOST, value.parse().unwrap())).collect::<HeaderMap>();
        let check = |target: &str, values: &[&str]| {
            of_request(Version::HTTP_11, &target.parse().unwrap(), &headers(values)).map(drop)
        };
        assert_eq!(check("/", &[]), Err(BadHost::Missing));
        assert_eq!(check("/", &["a", "a"]), Err(BadHost::Several));
        assert_eq!(check("/", &["a b"]), Err(BadHost::Malformed));
        assert_eq!(check("https://b.example/", &["a.example"]), Err(BadHost::Mismatch));
        assert_eq!(check("https://A.example./", &["a.example"]), Ok(()));
        assert_eq!(check("/x", &["a.example"]), Ok(()));
    }

    #[test]
    fn http_1_0_may_omit_the_host() {
        let named = |target: &str, headers: &HeaderMap| {
            of_request(Version::HTTP_10, &target.parse().unwrap(), headers)
                .map(|host| host.map(|host| format!("{host:?}")))
        };
        let none = HeaderMap::new();
        assert_eq!(named("/x", &none), Ok(None));
        assert_eq!(named("https://A.example:/x", &none), Ok(Some("Name(\"a.example\")".to_owned())));
        assert_eq!(named("https://me@a.example/x", &none), Err(BadHost::Malformed));
        let elsewhere = HeaderMap::from_iter([(HOST, "b.example".parse().unwrap())]);
        assert_eq!(named("https://a.example/x", &elsewhere), Err(BadHost::Mismatch));
        assert_eq!(named("/x", &elsewhere), Ok(Some("Name(\"b.example\")".to_owned())));
    }

    proptest::proptest! {
        #[test]
        fn no_host_panics(text in "\\PC{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn normalizing_twice_changes_nothing(text in "[a-zA-Z0-9.-]{1,40}") {
            if let Some(once) = normalize(&text) {
                proptest::prop_assert_eq!(normalize(&once), Some(once.clone()));
            }
        }
    }
}
