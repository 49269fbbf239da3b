//! The settings of signed updates, and servers as operators write them.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::name;
use super::scoped::ScopedAddress;

/// DNS's port.
pub(super) const PORT: u16 = 53;

/// Signed updates (RFC 2136): the zone's primary, the key, and the servers that must have a record. [`DnsMethod`] has the
/// documentation of each key.
///
/// [`DnsMethod`]: super::DnsMethod
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    pub primary: String,
    pub tsig_key_file: PathBuf,
    pub tsig_key_name: Option<String>,
    pub zone: Option<String>,
    pub resolvers: Vec<String>,
    pub authorities: Vec<String>,
    pub ttl_s: u32,
    pub propagation_timeout_s: u64,
    pub settle_s: u64,
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
    Address(ScopedAddress),
    Name(String),
}

impl HostPort {
    /// Reads `host`, `host:port`, an address, `address:port` or `[IPv6]:port`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let says = |reason: &str| format!("{text:?} {reason}; write a host or an address, with \":port\" if not 53");
        let (bracketed, after) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((inside, after)) => (inside, after),
            None => (text, ""),
        };
        if let Some(address) = ScopedAddress::parse(bracketed) {
            let port = match after.strip_prefix(':') {
                Some(port) => port.parse().map_err(|_| says("has no valid port"))?,
                None if after.is_empty() => PORT,
                None => return Err(says("is neither a host nor an address")),
            };
            return Ok(Self { host: Host::Address(address), port });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| says("has no valid port"))?),
            None => (text, PORT),
        };
        if let Some(address) = ScopedAddress::parse(host) {
            return Ok(Self { host: Host::Address(address), port });
        }
        if host.is_empty() || name::parse(host).is_err() || host.ends_with(|last: char| last.is_ascii_digit()) {
            return Err(says("is neither a host nor an address"));
        }
        Ok(Self { host: Host::Name(host.to_owned()), port })
    }

    /// The same, but accepts only an address: a resolver cannot be found through a resolver. The inner error is that its
    /// interface is missing now.
    pub(super) fn address(text: &str) -> Result<Result<SocketAddr, String>, String> {
        match Self::parse(text)? {
            Self { host: Host::Address(address), port } => Ok(address.at(port)),
            Self { host: Host::Name(_), .. } => {
                Err(format!("{text:?} is not an address; a resolver is named by address"))
            }
        }
    }
}

pub(super) fn server<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    HostPort::parse(&text).map_err(D::Error::custom)?;
    Ok(text)
}

pub(super) fn servers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().try_for_each(|text| HostPort::parse(text).map(drop)).map_err(D::Error::custom)?;
    Ok(texts)
}

pub(super) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().try_for_each(|text| HostPort::address(text).map(drop)).map_err(D::Error::custom)?;
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_a_name_or_address_with_optional_port() {
        let read = |text: &str| HostPort::parse(text).map(|server| (server.host, server.port));
        let address = |text: &str| Host::Address(ScopedAddress::parse(text).unwrap());
        assert_eq!(read("192.0.2.1"), Ok((address("192.0.2.1"), 53)));
        assert_eq!(read("192.0.2.1:5300"), Ok((address("192.0.2.1"), 5300)));
        assert_eq!(read("2001:db8::1"), Ok((address("2001:db8::1"), 53)));
        assert_eq!(read("[2001:db8::1]"), Ok((address("2001:db8::1"), 53)));
        assert_eq!(read("[2001:db8::1]:5300"), Ok((address("2001:db8::1"), 5300)));
        assert_eq!(read("fe80::1%eth0"), Ok((address("fe80::1%eth0"), 53)));
        assert_eq!(read("[fe80::1%eth0]:5300"), Ok((address("fe80::1%eth0"), 5300)));
        assert_eq!(read("ns1.example.com"), Ok((Host::Name("ns1.example.com".to_owned()), 53)));
        assert_eq!(read("localhost:5300"), Ok((Host::Name("localhost".to_owned()), 5300)));
        for wrong in [
            "",
            ":53",
            "ns1:",
            "ns1:dns",
            "ns1:65536",
            "192.0.2",
            "192.0.2.300",
            "http://ns1",
            "a b",
            "ä.example",
            "[::1]53",
            "[::1]:",
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
