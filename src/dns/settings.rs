//! `"dns"` in `provost.json`: where challenge records go, and which servers must have them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::name;

/// DNS's port.
pub(super) const PORT: u16 = 53;

/// The DNS primary that takes signed updates (RFC 2136), and the servers that are asked for the records.
///
/// ```
/// let text = r#"{ "primary": "ns1.example.com", "tsig_key_file": "provost.key" }"#;
/// let settings: provost::dns::DnsSettings = serde_json::from_str(text)?;
/// assert_eq!((settings.ttl_s, settings.propagation_timeout_s, settings.settle_s), (60, 120, 5));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsSettings {
    /// The zone's primary: a host name, an IPv4 address, or an IPv6 address in brackets; with a port if that is not 53.
    #[serde(deserialize_with = "server")]
    pub primary: String,
    /// The TSIG key file, as `tsig-keygen` writes it.
    pub tsig_key_file: PathBuf,
    /// The name of the key in the file. Default: the only one.
    #[serde(default, deserialize_with = "some_name")]
    pub tsig_key_name: Option<String>,
    /// The zone that is updated. Default: found by its SOA record.
    #[serde(default, deserialize_with = "some_name")]
    pub zone: Option<String>,
    /// Addresses of the resolvers that look up CNAME, SOA, NS, CAA and address records. Default: the system's.
    #[serde(default, deserialize_with = "addresses")]
    pub resolvers: Vec<String>,
    /// The servers that must have a record before the CA is asked to look. Default: the zone's name servers.
    #[serde(default, deserialize_with = "servers")]
    pub authorities: Vec<String>,
    /// The TTL of the records.
    #[serde(default = "default_ttl_s")]
    pub ttl_s: u32,
    /// How long to wait until all `authorities` have a record.
    #[serde(default = "default_propagation_timeout_s")]
    pub propagation_timeout_s: u64,
    /// How long to wait after that.
    #[serde(default = "default_settle_s")]
    pub settle_s: u64,
}

fn default_ttl_s() -> u32 {
    60
}

fn default_propagation_timeout_s() -> u64 {
    120
}

fn default_settle_s() -> u64 {
    5
}

/// A server as an operator writes it: host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostPort {
    pub(super) host: Host,
    pub(super) port: u16,
}

/// A server by address or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Address(IpAddr),
    Name(String),
}

impl HostPort {
    /// Reads `host`, `host:port`, an address, `address:port` or `[IPv6]:port`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let says = |reason: &str| format!("{text:?} {reason}; write a host or an address, with \":port\" if not 53");
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: Host::Address(address.ip()), port: address.port() });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self { host: Host::Address(address), port: PORT });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| says("has no valid port"))?),
            None => (text, PORT),
        };
        if host.is_empty() || name::parse(host).is_err() || host.ends_with(|last: char| last.is_ascii_digit()) {
            return Err(says("is neither a host nor an address"));
        }
        Ok(Self { host: Host::Name(host.to_owned()), port })
    }

    /// The same, but accepts only an address: a resolver cannot be found through a resolver.
    pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
        match Self::parse(text)? {
            Self { host: Host::Address(address), port } => Ok(SocketAddr::new(address, port)),
            Self { host: Host::Name(_), .. } => Err(format!("{text:?} is no address; a resolver is named by address")),
        }
    }
}

fn server<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    HostPort::parse(&text).map_err(D::Error::custom)?;
    Ok(text)
}

fn servers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().try_for_each(|text| HostPort::parse(text).map(drop)).map_err(D::Error::custom)?;
    Ok(texts)
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().try_for_each(|text| HostPort::address(text).map(drop)).map_err(D::Error::custom)?;
    Ok(texts)
}

fn some_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.iter().try_for_each(|text| name::parse(text).map(drop)).map_err(D::Error::custom)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_a_name_or_address_with_optional_port() {
        let read = |text: &str| HostPort::parse(text).map(|server| (server.host, server.port));
        let address = |text: &str| Host::Address(text.parse().unwrap());
        assert_eq!(read("192.0.2.1"), Ok((address("192.0.2.1"), 53)));
        assert_eq!(read("192.0.2.1:5300"), Ok((address("192.0.2.1"), 5300)));
        assert_eq!(read("2001:db8::1"), Ok((address("2001:db8::1"), 53)));
        assert_eq!(read("[2001:db8::1]"), Ok((address("2001:db8::1"), 53)));
        assert_eq!(read("[2001:db8::1]:5300"), Ok((address("2001:db8::1"), 5300)));
        assert_eq!(read("ns1.example.com"), Ok((Host::Name("ns1.example.com".to_owned()), 53)));
        assert_eq!(read("localhost:5300"), Ok((Host::Name("localhost".to_owned()), 5300)));
        for wrong in
            ["", ":53", "ns1:", "ns1:dns", "ns1:65536", "192.0.2", "192.0.2.300", "http://ns1", "a b", "ä.example"]
        {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn invalid_dns_settings_are_rejected_with_a_reason() {
        let read = |more: &str| {
            let text = format!(r#"{{ "primary": "ns1.example.com", "tsig_key_file": "k"{more} }}"#);
            serde_json::from_str::<DnsSettings>(&text).map_err(|error| error.to_string())
        };
        assert_eq!(read("").unwrap().authorities, Vec::<String>::new());
        let good = read(r#", "zone": "example.com", "resolvers": ["192.0.2.1"], "authorities": ["ns2.example.com"]"#);
        assert_eq!(good.unwrap().zone.as_deref(), Some("example.com"));
        for (wrong, reason) in [
            (r#", "resolvers": ["dns.example.com"]"#, "named by address"),
            (r#", "authorities": ["192.0.2"]"#, "neither a host nor an address"),
            (r#", "zone": "bücher.example""#, "A-labels"),
            (r#", "tsig_key": "k""#, "unknown field"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }
}
