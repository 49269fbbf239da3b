//! IP addresses with a zone ID (RFC 4007 §11): `fe80::1%eth0`. A link-local address means nothing without its interface.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// An address as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ScopedAddress {
    address: IpAddr,
    /// The name or the index of an interface.
    zone: Option<String>,
}

impl ScopedAddress {
    /// Parses an address with or without a zone ID; `None` if it is not an address.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let Some((address, zone)) = text.split_once('%') else {
            return Some(Self { address: text.parse().ok()?, zone: None });
        };
        let address: Ipv6Addr = address.parse().ok()?;
        let is_zone = !zone.is_empty() && !zone.contains(|it: char| it == '/' || it.is_whitespace() || it.is_control());
        is_zone.then(|| Self { address: address.into(), zone: Some(zone.to_owned()) })
    }

    /// The socket address. Fails if this machine has no such interface now.
    pub(super) fn at(&self, port: u16) -> Result<SocketAddr, String> {
        match (self.address, &self.zone) {
            (IpAddr::V6(address), Some(zone)) => Ok(SocketAddrV6::new(address, port, 0, index(zone)?).into()),
            (address, _) => Ok(SocketAddr::new(address, port)),
        }
    }
}

impl fmt::Display for ScopedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.iter().map(|zone| format!("%{zone}")).collect::<String>();
        write!(f, "{}{zone}", self.address)
    }
}

fn index(zone: &str) -> Result<u32, String> {
    let found = socket(AddressFamily::INET, SocketType::DGRAM, None)
        .or_else(|_| socket(AddressFamily::INET6, SocketType::DGRAM, None))
        .and_then(|socket| netdevice::name_to_index(socket, zone));
    // As getaddrinfo(3): a name first, then a number.
    match (found, zone.parse()) {
        (Ok(index), _) | (Err(_), Ok(index)) => Ok(index),
        (Err(_), Err(_)) => Err(format!("this machine has no network interface {zone:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_id_names_an_interface() {
        let at = |text: &str| ScopedAddress::parse(text).map(|address| address.at(53));
        assert_eq!(at("192.0.2.1"), Some(Ok("192.0.2.1:53".parse().unwrap())));
        assert_eq!(at("2001:db8::1"), Some(Ok("[2001:db8::1]:53".parse().unwrap())));
        // Linux numbers the loopback first.
        assert_eq!(at("fe80::1%lo"), Some(Ok("[fe80::1%1]:53".parse().unwrap())));
        assert_eq!(at("fe80::1%7"), Some(Ok("[fe80::1%7]:53".parse().unwrap())));
        assert_eq!(at("fe80::1%absent0"), Some(Err("this machine has no network interface \"absent0\"".to_owned())));
        for text in ["", "fe80::1%", "192.0.2.1%lo", "ns1.example.com%lo", "fe80::1%a/b", "fe80::1%a b"] {
            assert_eq!(at(text), None, "{text:?}");
        }
    }
}
