//! URLs that a phone fetches from: the server's URL, and entries of a master configuration. Pure.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// Characters to escape in a request path. A `%` is kept, because it is already part of an escape.
const NOT_IN_A_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A server: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlOrigin {
    /// `https` rather than `http`.
    pub secure: bool,
    /// The host as written. An IPv6 address is in brackets.
    pub host: String,
    /// The port, by default that of the scheme.
    pub port: u16,
}

/// The provisioning server's URL, as DHCP option 160 gives it to a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    origin: UrlOrigin,
    folder: String,
}

/// The URL of one file: server and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The server.
    pub origin: UrlOrigin,
    /// The request path, already escaped.
    pub path: String,
}

/// A URL that this phone cannot use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// Not a URL.
    #[error("invalid URL {0:?}: write https://HOST/ or https://HOST:PORT/")]
    NotAUrl(String),
    /// `ftp`, `tftp` and the like.
    #[error("unsupported scheme in {0:?}: use https or http")]
    Scheme(String),
    /// A name and password in the URL.
    #[error("the URL contains a user name; remove it")]
    UserName,
}

impl UrlOrigin {
    /// The value of the `Host` header. It includes the port only if that is not the scheme's default.
    #[must_use]
    pub fn authority(&self) -> String {
        let default_port = if self.secure { 443 } else { 80 };
        if self.port == default_port { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The host without the brackets of an IPv6 address and without a trailing dot.
    #[must_use]
    pub fn bare_host(&self) -> &str {
        let unbracketed = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        unbracketed.unwrap_or_else(|| self.host.strip_suffix('.').unwrap_or(&self.host))
    }

    /// Whether the host is `localhost` or below it. Such names resolve to the loopback address without a lookup (RFC
    /// 6761 §6.3).
    #[must_use]
    pub fn is_localhost(&self) -> bool {
        let host = self.bare_host().to_ascii_lowercase();
        host == "localhost" || host.ends_with(".localhost")
    }
}

impl ServerUrl {
    #[must_use]
    pub fn origin(&self) -> &UrlOrigin {
        &self.origin
    }

    /// The location of `entry` of a master configuration. A full URL is used as it is; any other entry is appended to
    /// the server's URL.
    ///
    /// As on real phones, an entry that begins with a slash follows the URL's own slash: `//logs/x`.
    pub fn locate(&self, entry: &str) -> Result<Location, InvalidUrl> {
        if entry.contains("://") {
            let (origin, path) = parse(entry)?;
            return Ok(Location { origin, path });
        }
        let path = format!("{}{}", self.folder, utf8_percent_encode(entry, NOT_IN_A_PATH));
        Ok(Location { origin: self.origin.clone(), path })
    }
}

impl FromStr for ServerUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (origin, mut folder) = parse(text)?;
        if !folder.ends_with('/') {
            folder.push('/');
        }
        Ok(Self { origin, folder })
    }
}

fn parse(text: &str) -> Result<(UrlOrigin, String), InvalidUrl> {
    let not_a_url = || InvalidUrl::NotAUrl(text.chars().take(128).collect());
    let escaped = utf8_percent_encode(text, NOT_IN_A_PATH).to_string();
    let url: http::Uri = escaped.parse().map_err(|_| not_a_url())?;
    let authority = url.authority().ok_or_else(not_a_url)?;
    let secure = match url.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        Some(other) => return Err(InvalidUrl::Scheme(other.chars().take(16).collect())),
        None => return Err(not_a_url()),
    };
    if authority.as_str().contains('@') {
        return Err(InvalidUrl::UserName);
    }
    if authority.host().is_empty() {
        return Err(not_a_url());
    }
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let origin = UrlOrigin { secure, host: authority.host().to_owned(), port };
    Ok((origin, url.path().to_owned()))
}

impl fmt::Display for UrlOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.authority())
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.folder)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ServerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn entries_are_appended_to_the_server_url() {
        for (server, entry, expected) in [
            ("https://ote.phones.example.com", "site.cfg", "https://ote.phones.example.com/site.cfg"),
            ("https://h:8443/a", "./logs/x", "https://h:8443/a/./logs/x"),
            ("https://h/", "/logs/x", "https://h//logs/x"),
            ("https://h/", "two words.cfg", "https://h/two%20words.cfg"),
            ("https://h/", "http://fw.example:81/a b/sip.ld", "http://fw.example:81/a%20b/sip.ld"),
            ("https://[::1]:443/", "x", "https://[::1]/x"),
        ] {
            assert_eq!(url(server).locate(entry).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn invalid_url_is_rejected_with_reason() {
        assert!(matches!("phones.example.com".parse::<ServerUrl>(), Err(InvalidUrl::NotAUrl(_))));
        assert_eq!("tftp://h/".parse::<ServerUrl>(), Err(InvalidUrl::Scheme("tftp".to_owned())));
        assert_eq!("https://a:b@h/".parse::<ServerUrl>(), Err(InvalidUrl::UserName));
        assert_eq!(url("https://h/").locate("ftp://h/x"), Err(InvalidUrl::Scheme("ftp".to_owned())));
    }

    #[test]
    fn localhost_is_recognized_in_every_spelling() {
        for (text, expected) in [
            ("https://ote.phones.localhost:8443/", true),
            ("https://LOCALHOST./", true),
            ("https://notlocalhost/", false),
            ("https://localhost.example/", false),
        ] {
            assert_eq!(url(text).origin().is_localhost(), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(server in ".{0,40}", entry in ".{0,40}") {
            let _ = server.parse::<ServerUrl>();
            let _ = url("https://h/").locate(&entry);
        }

        #[test]
        fn every_location_is_a_valid_request_target(entry in ".{0,40}") {
            if let Ok(location) = url("https://h/").locate(&entry) {
                proptest::prop_assert!(location.path.parse::<http::uri::PathAndQuery>().is_ok());
            }
        }
    }
}
