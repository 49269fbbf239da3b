//! `"responder"` in `"dns"`: provost itself is the name server of the challenges' zone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::dns::name;
use crate::dns::settings::PORT;

/// The built-in DNS responder: the authoritative name server of the zone that holds the challenges, and of nothing else.
///
/// ```
/// let text = r#"{ "listen": ["192.0.2.10:53"] }"#;
/// let settings: provost::dns::ResponderSettings = serde_json::from_str(text)?;
/// assert_eq!(settings.public_addresses(), ["192.0.2.10".parse::<std::net::IpAddr>()?]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponderSettings {
    /// The addresses to listen on, UDP and TCP, each with its port, such as `192.0.2.10:53`. Not `0.0.0.0` or `[::]`:
    /// an answer must leave from the address that was asked, and systemd-resolved holds port 53 on others.
    #[serde(deserialize_with = "listen_addresses")]
    #[schemars(with = "Vec<String>")]
    pub listen: Vec<SocketAddr>,
    /// The host name of this name server, as the NS record at the registrar has it. It must have addresses, and no CNAME
    /// record. Default: `ns.` and `domain`, which the wildcard's address record covers.
    #[serde(default, deserialize_with = "host_name")]
    pub name_server: Option<String>,
    /// The public addresses of this name server. Default: those of `listen`.
    #[serde(default, deserialize_with = "host_addresses")]
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpAddr>,
}

/// The settings of a site that uses the responder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponderDns {
    pub responder: ResponderSettings,
    /// The zone; `None`: found by asking the parent's name servers.
    pub zone: Option<String>,
    /// The addresses of the resolvers; empty: the system's.
    pub resolvers: Vec<String>,
}

impl ResponderDns {
    /// The host name of the name server for the site `domain`.
    #[must_use]
    pub fn name_server(&self, domain: &str) -> String {
        let configured =
            self.responder.name_server.as_deref().map(|text| text.trim_end_matches('.').to_ascii_lowercase());
        configured.unwrap_or_else(|| format!("ns.{domain}"))
    }

    /// Checks the settings for the site `domain`.
    ///
    /// # Errors
    /// If the zone holds the domain: phones would not find their constituencies.
    pub fn check(&self, domain: &str) -> Result<(), String> {
        let Some(zone) = &self.zone else { return Ok(()) };
        let (apex, domain_name) = (name::parse(zone)?, name::parse(domain)?);
        if !apex.zone_of(&domain_name) {
            return Ok(());
        }
        Err(format!(
            "the DNS responder cannot serve the zone {zone}: it holds {domain}, and the responder has no addresses of phones' \
             names; set \"dns\".\"zone\" to a zone of its own, such as _acme-challenge.{domain}, or leave it out"
        ))
    }
}

impl ResponderSettings {
    /// The public addresses, each once.
    #[must_use]
    pub fn public_addresses(&self) -> Vec<IpAddr> {
        let listen = self.listen.iter().map(SocketAddr::ip);
        let addresses: BTreeSet<IpAddr> =
            if self.addresses.is_empty() { listen.collect() } else { self.addresses.iter().copied().collect() };
        addresses.into_iter().collect()
    }

    /// Where it listens for `address`, if that is not on the port that resolvers ask. Something in front of it may have the
    /// address.
    #[must_use]
    pub fn other_port(&self, address: IpAddr) -> Option<SocketAddr> {
        let has_it = self.listen.iter().any(|listen| listen.ip() == address);
        let mut listen = self.listen.iter().filter(|listen| !has_it || listen.ip() == address);
        let first = listen.clone().next().copied();
        if listen.any(|listen| listen.port() == PORT) { None } else { first }
    }
}

fn host_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    if let Some(address) = text.as_ref().filter(|text| text.trim_end_matches('.').parse::<IpAddr>().is_ok()) {
        return Err(D::Error::custom(format_args!(
            "{address:?} is an address; name_server is a host name, and \"addresses\" has its addresses"
        )));
    }
    text.iter().try_for_each(|text| name::parse(text).map(drop)).map_err(D::Error::custom)?;
    Ok(text)
}

fn listen_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let mut addresses = Vec::new();
    for text in &texts {
        let address: SocketAddr = text.parse().map_err(|_| {
            D::Error::custom(format_args!(
                "{text:?} is not an address with a port; write for example \"192.0.2.10:53\" or \"[2001:db8::10]:53\""
            ))
        })?;
        let with_port = |ip: IpAddr| SocketAddr::new(ip, address.port()).to_string();
        check_host_address(text, address.ip(), with_port, ", each with port 53").map_err(D::Error::custom)?;
        if address.port() != 0 && addresses.contains(&address) {
            return Err(D::Error::custom(format_args!("{text} is listed twice; remove one")));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        return Err(D::Error::custom("lists no address; name the public address of this server with port 53"));
    }
    Ok(addresses)
}

fn host_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    let addresses = Vec::<IpAddr>::deserialize(deserializer)?;
    for address in &addresses {
        let text = address.to_string();
        check_host_address(&text, *address, |ip| ip.to_string(), "").map_err(D::Error::custom)?;
    }
    Ok(addresses)
}

/// Fails if `ip`, written as `text`, is not the address of one host. The advice names addresses in
/// this `form`.
fn check_host_address(text: &str, ip: IpAddr, write: impl Fn(IpAddr) -> String, form: &str) -> Result<(), String> {
    // What an IPv4 address in IPv6 notation stands for is checked first: no advice is to name an address that is refused.
    let plain = ip.to_canonical();
    if plain.is_multicast() || plain == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(format!("{text} is an address of many hosts; name the public addresses of this server{form}"));
    }
    if plain.is_unspecified() {
        return Err(format!("{text} stands for all addresses; name the public addresses of this server{form}"));
    }
    let is_link_local = match plain {
        IpAddr::V4(it) => it.is_link_local(),
        IpAddr::V6(it) => it.is_unicast_link_local(),
    };
    if is_link_local {
        return Err(format!(
            "{text} is a link-local address, which only machines on the same link reach, so it cannot be that of a public name \
             server; name the public addresses of this server{form}"
        ));
    }
    if plain != ip {
        return Err(format!("{text} is an IPv4 address in IPv6 notation; write \"{}\"", write(plain)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ResponderSettings, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn only_concrete_addresses_are_accepted() {
        let good = read(r#"{ "listen": ["192.0.2.10:53", "[2001:db8::10]:53"], "name_server": "ns.example.net" }"#);
        assert_eq!(good.unwrap().public_addresses().len(), 2);
        for (wrong, reason) in [
            (r#"["0.0.0.0:53"]"#, "stands for all addresses"),
            (r#"["[::]:53"]"#, "stands for all addresses"),
            (r#"["[::ffff:0.0.0.0]:53"]"#, "stands for all addresses"),
            (r#"["[::ffff:224.0.0.251]:53"]"#, "address of many hosts"),
            (r#"["[::ffff:255.255.255.255]:53"]"#, "address of many hosts"),
            (r#"["[::ffff:192.0.2.10]:53"]"#, "write \"192.0.2.10:53\""),
            (r#"["224.0.0.251:53"]"#, "address of many hosts"),
            (r#"["[ff02::fb]:53"]"#, "address of many hosts"),
            (r#"["255.255.255.255:53"]"#, "address of many hosts"),
            (r#"["[fe80::1%2]:53"]"#, "is a link-local address"),
            (r#"["[fe80::1]:53"]"#, "is a link-local address"),
            (r#"["169.254.1.1:53"]"#, "is a link-local address"),
            (r#"["[::ffff:169.254.1.1]:53"]"#, "is a link-local address"),
            (r#"["192.0.2.10"]"#, "not an address with a port"),
            (r#"["ns.example.com:53"]"#, "not an address with a port"),
            (r#"["192.0.2.10:53", "192.0.2.10:53"]"#, "listed twice"),
            ("[]", "lists no address"),
        ] {
            let error = read(&format!(r#"{{ "listen": {wrong} }}"#)).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
            if let Some((_, advice)) = error.split_once("; write \"") {
                let (advice, _) = advice.split_once('"').unwrap();
                assert!(read(&format!(r#"{{ "listen": ["{advice}"] }}"#)).is_ok(), "{wrong}: {error}");
            }
        }
    }

    #[test]
    fn name_server_is_a_host_name() {
        for address in ["192.0.2.10", "192.0.2.10.", "2001:db8::10"] {
            let error = read(&format!(r#"{{ "listen": ["192.0.2.10:53"], "name_server": "{address}" }}"#)).unwrap_err();
            assert!(error.contains("is an address; name_server is a host name"), "{error}");
        }
    }

    #[test]
    fn public_addresses_are_those_of_hosts() {
        for (wrong, reason) in [
            ("0.0.0.0", "0.0.0.0 stands for all addresses; name the public addresses of this server"),
            ("::ffff:0.0.0.0", "stands for all addresses"),
            ("ff02::fb", "address of many hosts"),
            ("fe80::1", "is a link-local address, which only machines on the same link reach"),
            ("::ffff:192.0.2.10", "write \"192.0.2.10\""),
        ] {
            let error = read(&format!(r#"{{ "listen": ["10.0.0.2:53"], "addresses": ["{wrong}"] }}"#)).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }

    #[test]
    fn port_that_resolvers_do_not_ask_is_found_for_each_address() {
        let listen =
            read(r#"{ "listen": ["192.0.2.10:5353", "192.0.2.11:53", "[2001:db8::10]:53", "[2001:db8::10]:5353"] }"#);
        let port = |ip: &str| listen.as_ref().unwrap().other_port(ip.parse().unwrap()).map(|it| it.to_string());
        assert_eq!(port("192.0.2.10").as_deref(), Some("192.0.2.10:5353"));
        assert_eq!((port("192.0.2.11"), port("2001:db8::10"), port("198.51.100.1")), (None, None, None));
        let behind_nat = read(r#"{ "listen": ["10.0.0.2:5353"], "addresses": ["192.0.2.10"] }"#).unwrap();
        assert_eq!(behind_nat.other_port("192.0.2.10".parse().unwrap()), Some("10.0.0.2:5353".parse().unwrap()));
    }

    #[test]
    fn public_addresses_replace_the_listening_ones() {
        let behind_nat = read(r#"{ "listen": ["10.0.0.2:53"], "addresses": ["192.0.2.10", "192.0.2.10"] }"#).unwrap();
        assert_eq!(behind_nat.public_addresses(), ["192.0.2.10".parse::<IpAddr>().unwrap()]);
    }
}
