//! `"status"` in `provost.json`: where operators are listened to, and how they prove that they are operators. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use crate::metrics::MetricsDetail;

/// The operators' listener.
///
/// ```
/// let text = r#"{ "listen": "127.0.0.1:8444", "token_file": "token", "hosts": ["provost.example.com"] }"#;
/// let settings: provost::admin::StatusSettings = serde_json::from_str(text)?;
/// assert!(settings.check().is_ok());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatusSettings {
    /// An address with a port, or `unix:` and the path of a socket. Default: `127.0.0.1:8444`.
    #[serde(default)]
    #[schemars(with = "String")]
    pub listen: Endpoint,
    /// A file with the administrator's token, at least 16 characters, not readable by all users. With it, or with an operator
    /// (`provost operator add`), reading needs a token too. Default: none: without an operator, this machine may read, and
    /// nothing can be changed; in local mode `state/status-token`.
    pub token_file: Option<PathBuf>,
    /// Further host names of the listener, such as that of a reverse proxy. It answers under no others. They need
    /// `token_file`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// What `/metrics` tells apart. Default: `constituencies`.
    #[serde(default)]
    pub metrics: MetricsDetail,
}

/// The address of the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// The default port.
    pub const PORT: u16 = 8444;

    /// Whether only this machine can connect.
    #[must_use]
    pub fn is_private(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl Default for Endpoint {
    fn default() -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], Self::PORT)))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("\"unix:\" needs a path, such as \"unix:/run/provost/status.sock\"".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                format!(
                    "invalid address {text:?}: use an IP address and a port, such as \"127.0.0.1:8444\", or \"unix:\" and a path"
                )
            }),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}/"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl StatusSettings {
    /// Checks the settings. A listener that other machines can reach needs a token.
    ///
    /// # Errors
    /// If a token is missing or a host name is invalid.
    pub fn check(&self) -> Result<(), String> {
        if !self.listen.is_private() && self.token_file.is_none() {
            let listen = &self.listen;
            return Err(format!("other machines can reach {listen}, so \"token_file\" must name a file with a token"));
        }
        if !self.hosts.is_empty() && self.token_file.is_none() {
            return Err(
                "\"hosts\" is for a proxy, by which other machines can reach this listener, so \"token_file\" must name a \
                 file with a token"
                    .to_owned(),
            );
        }
        let is_host = |host: &str| {
            let is_plain =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
            !host.is_empty() && host.bytes().all(is_plain)
        };
        match self.hosts.iter().find(|host| !is_host(host)) {
            Some(bad) => {
                Err(format!("\"hosts\": invalid host name {bad:?}; use a name such as \"provost.example.com\""))
            }
            None => Ok(()),
        }
    }

    /// Resolves relative paths against `base`.
    #[must_use]
    pub fn relative_to(mut self, base: &Path) -> Self {
        if let Endpoint::Unix(path) = &mut self.listen {
            *path = base.join(&*path);
        }
        self.token_file = self.token_file.map(|file| base.join(file));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<StatusSettings, String> {
        let settings: StatusSettings = serde_json::from_str(text).map_err(|error| error.to_string())?;
        settings.check().map(|()| settings)
    }

    #[test]
    fn listener_open_to_other_machines_needs_a_token() {
        for private in ["{}", r#"{"listen": "127.9.9.9:1"}"#, r#"{"listen": "[::1]:1"}"#, r#"{"listen": "unix:s"}"#] {
            assert!(settings(private).is_ok(), "{private}");
        }
        for open in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            let error = settings(&format!(r#"{{"listen": "{open}"}}"#)).unwrap_err();
            assert!(error.contains("\"token_file\" must name a file"), "{error}");
            assert!(settings(&format!(r#"{{"listen": "{open}", "token_file": "t"}}"#)).is_ok());
        }
        for listen in ["127.0.0.1:1", "unix:s"] {
            let error = settings(&format!(r#"{{"listen": "{listen}", "hosts": ["a.example"]}}"#)).unwrap_err();
            assert!(
                error.contains("\"hosts\" is for a proxy") && error.contains("\"token_file\" must name"),
                "{error}"
            );
            let hosts = r#""hosts": ["a.example"], "token_file": "t""#;
            assert!(settings(&format!(r#"{{"listen": "{listen}", {hosts}}}"#)).is_ok());
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let settings = settings(r#"{"listen": "unix:run/s", "token_file": "/etc/token"}"#).unwrap();
        let settings = settings.relative_to(Path::new("/etc/provost"));
        assert_eq!(settings.listen, Endpoint::Unix("/etc/provost/run/s".into()));
        assert_eq!(settings.token_file.as_deref(), Some(Path::new("/etc/token")));
    }

    #[test]
    fn invalid_settings_are_errors() {
        assert!(settings(r#"{"listen": "8444"}"#).unwrap_err().contains("use an IP address and a port"));
        assert!(settings(r#"{"listen": "unix:"}"#).unwrap_err().contains("needs a path"));
        assert!(settings(r#"{"hosts": ["http://a/"], "token_file": "t"}"#).unwrap_err().contains("invalid host name"));
    }
}
