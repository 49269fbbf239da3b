//! Plain HTTP on a trusted LAN, for firmware that is too old for any TLS: `"plain_http"` in `provost.json`.
//!
//! Plain HTTP authenticates no client, and anyone on the network path can read and change the traffic. So it serves
//! only the networks that the operator names, in constituencies whose policy allows it, and only reads without a MAC
//! address.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::access_control::HostDenial;
use super::addresses::{OneOrSeveral, one_or_several};
use super::host::{BadHost, NamedHost};
use super::site::{Current, Site};

/// Plain HTTP, for clients of these networks alone.
///
/// ```
/// let text = r#"{ "listen": "192.168.1.5:80", "networks": ["192.168.0.0/16", "fd00::/8"] }"#;
/// let plain: provost::serve::PlainHttp = serde_json::from_str(text)?;
/// assert!(plain.allows([192, 168, 7, 9].into()) && !plain.allows([203, 0, 113, 9].into()));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlainHttp {
    /// One address or a list of addresses to listen on, each with its port, such as `192.168.1.5:80`.
    #[serde(deserialize_with = "one_or_several")]
    #[schemars(with = "OneOrSeveral")]
    pub listen: Vec<SocketAddr>,
    /// The networks whose clients are served, such as `["192.168.0.0/16"]`.
    #[schemars(with = "Vec<String>")]
    pub networks: Vec<IpNet>,
}

/// Networks that the internet cannot reach: RFC 1918, RFC 4193, link-local and loopback.
const PRIVATE: [&str; 8] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "127.0.0.0/8",
    "fc00::/7",
    "fe80::/10",
    "::1/128",
];

impl PlainHttp {
    /// Checks the settings. `others` are the listen addresses of TLS.
    ///
    /// # Errors
    /// If there is no address or no network, a network is the whole internet, or an address is already in use.
    pub fn check(&self, others: &[SocketAddr]) -> Result<(), String> {
        if self.listen.is_empty() {
            return Err("\"listen\" is empty; name an address to listen on".to_owned());
        }
        if self.networks.is_empty() {
            return Err("\"networks\" is empty, so no client could connect; name the networks of your LAN".to_owned());
        }
        let mut seen: BTreeSet<&SocketAddr> = others.iter().collect();
        if let Some(twice) = self.listen.iter().find(|address| address.port() != 0 && !seen.insert(address)) {
            return Err(format!("{twice} is already listened on; name each address and port once"));
        }
        match self.networks.iter().find(|network| network.prefix_len() == 0) {
            Some(all) => Err(format!(
                "{all} is the whole internet, where anyone on the path can read and change plain HTTP; name the networks of your LAN"
            )),
            None => Ok(()),
        }
    }

    /// Whether a client at `address` is served.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The networks that the internet can reach.
    pub fn public_networks(&self) -> impl Iterator<Item = &IpNet> {
        let private: Vec<IpNet> = PRIVATE.iter().filter_map(|network| network.parse().ok()).collect();
        self.networks.iter().filter(move |network| !private.iter().any(|private| private.contains(*network)))
    }
}

/// The constituency that a request over plain HTTP is for. One that does not allow plain HTTP gives the same denial as
/// an unknown one. A request for an IP address or, in HTTP/1.0, for no host goes to the constituency of clients without
/// SNI, as over TLS.
pub(super) fn constituency_of<'a>(host: Option<&NamedHost<'_>>, site: &'a Site) -> Result<Current<'a>, HostDenial> {
    let name = match host {
        Some(NamedHost::Name(name)) => site.by_host(name).map(|found| &found.name),
        Some(NamedHost::Address(_)) | None => site.no_sni(),
    };
    let current = name.and_then(|name| site.get(name)).filter(|(found, _)| found.policy.plain_http);
    current.ok_or_else(|| match host {
        Some(NamedHost::Name(name)) => HostDenial::Elsewhere(name.to_string()),
        Some(NamedHost::Address(address)) => HostDenial::Elsewhere(address.to_string()),
        None => HostDenial::Bad(BadHost::NoDefault),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(networks: &[&str]) -> PlainHttp {
        let text = serde_json::json!({ "listen": ["127.0.0.1:80", "[::1]:80"], "networks": networks }).to_string();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn only_configured_networks_are_allowed() {
        let lan = plain(&["192.168.0.0/16", "fd00::/8"]);
        assert_eq!((lan.listen.len(), lan.check(&[])), (2, Ok(())));
        for (address, is_in) in [
            ("192.168.255.1", true),
            ("::ffff:192.168.0.1", true),
            ("fd12::1", true),
            ("192.169.0.1", false),
            ("127.0.0.1", false),
            ("2001:db8::1", false),
            ("::192.168.0.1", false),
        ] {
            assert_eq!(lan.allows(address.parse().unwrap()), is_in, "{address}");
        }
    }

    #[test]
    fn whole_internet_is_rejected_as_network() {
        for all in ["0.0.0.0/0", "::/0", "10.0.0.0/0"] {
            assert!(plain(&["10.0.0.0/8", all]).check(&[]).unwrap_err().contains("is the whole internet"), "{all}");
        }
        assert!(plain(&[]).check(&[]).unwrap_err().contains("\"networks\" is empty"));
        let lan = || plain(&["10.0.0.0/8"]);
        let there: Vec<SocketAddr> = vec!["[::1]:80".parse().unwrap()];
        assert_eq!(
            lan().check(&there).unwrap_err(),
            "[::1]:80 is already listened on; name each address and port once"
        );
        let twice = PlainHttp { listen: [there.clone(), there].concat(), ..lan() };
        assert!(twice.check(&[]).is_err());
        let nowhere = PlainHttp { listen: Vec::new(), ..lan() };
        assert!(nowhere.check(&[]).unwrap_err().contains("\"listen\" is empty"));
        let private = plain(&[
            "10.1.0.0/16",
            "172.16.0.0/12",
            "192.168.1.0/24",
            "169.254.0.0/16",
            "127.0.0.1/32",
            "fd00::/8",
            "fe80::/64",
            "::1/128",
        ]);
        assert_eq!((private.check(&[]), private.public_networks().count()), (Ok(()), 0));
        let public =
            plain(&["0.0.0.0/1", "172.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "10.0.0.0/7", "100.64.0.0/10"]);
        assert_eq!((public.check(&[]), public.public_networks().count()), (Ok(()), 6));
    }
}
