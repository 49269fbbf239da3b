//! The HTTP proxy through which a CA is reached (CONNECT, RFC 9110 §9.3.6), from the environment as curl reads it:
//! `https_proxy` or `HTTPS_PROXY`, else `all_proxy` or `ALL_PROXY`, and none for the hosts in `no_proxy` or `NO_PROXY`.
//!
//! The URL of a proxy may hold a password. Messages name its host and port only.

use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

/// The timeout for the connection to the proxy and its answer to CONNECT. The proxy connects to the CA meanwhile.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(30);

/// The proxy that the environment names, if any.
pub(super) struct ProxySettings {
    matcher: Matcher,
    /// The name of the variable that names the proxy, if one does.
    variable: Option<&'static str>,
    /// Whether its value is the URL of a proxy.
    is_usable: bool,
}

impl ProxySettings {
    pub(super) fn from_environment() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    fn new(variable: impl Fn(&'static str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| Some((name, variable(name).filter(|value| !value.trim().is_empty())?)))
        };
        let proxy = first(["https_proxy", "HTTPS_PROXY"]).or_else(|| first(["all_proxy", "ALL_PROXY"]));
        let except = first(["no_proxy", "NO_PROXY"]).map_or_else(String::new, |(_, hosts)| hosts);
        let variable = proxy.as_ref().map(|(name, _)| *name);
        let url = proxy.map_or_else(String::new, |(_, url)| url.trim().to_owned());
        let anywhere = Uri::from_static("https://ca.example");
        let is_usable = Matcher::builder().https(url.as_str()).build().intercept(&anywhere).is_some();
        // The matcher takes `*` for names only; to curl it means every host.
        if except.split(',').any(|host| host.trim() == "*") {
            return Self { matcher: Matcher::builder().build(), variable: None, is_usable };
        }
        // Hosts that need no proxy are the same whatever the proxy is.
        let url = if is_usable || variable.is_none() { url } else { "http://proxy.example".to_owned() };
        Self { matcher: Matcher::builder().https(url).no(except).build(), variable, is_usable }
    }

    /// The proxy for `uri`, and the variable that names it; `None`: connect directly.
    pub(super) fn for_uri(&self, uri: &Uri) -> Option<Result<(Intercept, &'static str), String>> {
        let (proxy, variable) = (self.matcher.intercept(uri)?, self.variable?);
        let unusable =
            || format!("the environment variable {variable} is not the URL of a proxy, such as http://HOST:PORT");
        Some(if self.is_usable { Ok((proxy, variable)) } else { Err(unusable()) })
    }
}

/// Connects to the host of `uri` through `proxy`.
pub(super) async fn connect(uri: &Uri, (proxy, variable): (Intercept, &'static str)) -> Result<TcpStream, String> {
    let shown = proxy.uri().authority().map_or("", |authority| authority.as_str());
    let failed = |reason: &str| format!("the proxy {shown} ({variable}): {reason}");
    if proxy.uri().scheme_str() != Some("http") {
        return Err(failed("only proxies with an http:// URL are supported"));
    }
    let mut tunnel = Tunnel::new(proxy.uri().clone(), HttpConnector::new());
    if let Some(password) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(password.clone());
    }
    let late = |_| failed(&format!("no tunnel to the CA within {} s", TUNNEL_TIMEOUT.as_secs()));
    let stream = timeout(TUNNEL_TIMEOUT, tunnel.call(uri.clone())).await.map_err(late)?;
    let host = uri.authority().map_or("", |authority| authority.as_str());
    stream.map(hyper_util::rt::TokioIo::into_inner).map_err(|error| failed(&refusal(&root_cause(&error), host)))
}

/// A failure of the tunnel to `host`, in words. The library gives no status of the proxy's answer.
fn refusal(cause: &str, host: &str) -> String {
    match cause {
        "tunnel error: unsuccessful" => format!(
            "it refused the tunnel to {host}, or is not an HTTP proxy; allow CONNECT to {host} there, or except the CA by \
             no_proxy; `curl -v https://{host}` shows its answer"
        ),
        "tunnel error: proxy authorization required" => {
            "it requires a user and a password; put them into the URL, as in http://USER:PASSWORD@HOST:PORT".to_owned()
        }
        "tunnel error: unexpected end of file" => {
            format!("it closed the connection without an answer to CONNECT {host}; is it an HTTP proxy?")
        }
        other => other.to_owned(),
    }
}

/// The last error of the chain: the error of the system, if there is one.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&'static str, &str)]) -> ProxySettings {
        let value = |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        ProxySettings::new(value)
    }

    fn proxy_for(url: &str, variables: &[(&'static str, &str)]) -> Option<(String, &'static str)> {
        let (proxy, variable) = settings(variables).for_uri(&url.parse().unwrap())?.unwrap();
        Some((proxy.uri().to_string(), variable))
    }

    #[test]
    fn the_environment_is_read_as_curl_reads_it() {
        let ca = "https://ca.example/dir";
        let found = |variables: &[(&'static str, &str)]| proxy_for(ca, variables);
        let at = |port: u16, variable| Some((format!("http://proxy.example:{port}/"), variable));
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("http_proxy", "http://proxy.example:1")]), None);
        assert_eq!(found(&[("HTTPS_PROXY", "http://proxy.example:1")]), at(1, "HTTPS_PROXY"));
        assert_eq!(found(&[("HTTPS_PROXY", "proxy.example:1")]), at(1, "HTTPS_PROXY"));
        assert_eq!(found(&[("ALL_PROXY", "http://proxy.example:1/")]), at(1, "ALL_PROXY"));
        let both = [("https_proxy", "http://proxy.example:2"), ("HTTPS_PROXY", "http://proxy.example:1")];
        assert_eq!(found(&both), at(2, "https_proxy"));
        let empty = [("https_proxy", " "), ("all_proxy", "http://proxy.example:3")];
        assert_eq!(found(&empty), at(3, "all_proxy"));
        for except in ["*", "example", "other.test, ca.example", ".example"] {
            assert_eq!(found(&[("HTTPS_PROXY", "http://proxy.example:1"), ("NO_PROXY", except)]), None, "{except}");
        }
        let all = [("HTTPS_PROXY", "http://proxy.example:1"), ("NO_PROXY", "a.example, *")];
        assert_eq!(proxy_for("https://127.0.0.1:14000/dir", &all), None);
        let except = [("HTTPS_PROXY", "http://proxy.example:1"), ("no_proxy", "192.0.2.0/24,a.example")];
        assert!(found(&except).is_some() && proxy_for("https://192.0.2.7:14000/dir", &except).is_none());
        for wrong in ["http://user:pa55@", "ftp://user:pa55@proxy.example", "://"] {
            let settings = settings(&[("HTTPS_PROXY", wrong), ("NO_PROXY", "a.example")]);
            let error = settings.for_uri(&ca.parse().unwrap()).unwrap().err().unwrap();
            assert!(error.contains("HTTPS_PROXY is not the URL of a proxy") && !error.contains("pa55"), "{error}");
            assert!(settings.for_uri(&"https://a.example".parse().unwrap()).is_none());
        }
    }

    #[tokio::test]
    async fn a_password_of_the_proxy_is_in_no_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let refuses = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut client, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").unwrap();
            String::from_utf8(request).unwrap()
        });
        let uri: Uri = "https://ca.example:14000/dir".parse().unwrap();
        let through = |url: &str| settings(&[("HTTPS_PROXY", url)]).for_uri(&uri).unwrap().unwrap();
        let refused = connect(&uri, through(&format!("http://user:pa55@{address}"))).await.unwrap_err();
        assert_eq!(
            refused,
            format!(
                "the proxy {address} (HTTPS_PROXY): it requires a user and a password; put them into the URL, as in http://USER:PASSWORD@HOST:PORT"
            )
        );
        let request = refuses.join().unwrap();
        assert!(request.starts_with("CONNECT ca.example:14000 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("Proxy-Authorization: Basic dXNlcjpwYTU1\r\n"), "{request}");
        let socks = connect(&uri, through("socks5://user:pa55@proxy.example:1080")).await.unwrap_err();
        assert_eq!(socks, "the proxy proxy.example:1080 (HTTPS_PROXY): only proxies with an http:// URL are supported");
    }
}
