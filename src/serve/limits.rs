//! Limits on one client and on all clients together: `"limits"` in `provost.json`.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};
use schemars::JsonSchema;
use serde::Deserialize;

/// What one peer, or all of them together, may take. Times are in seconds, sizes in bytes.
///
/// ```
/// let limits: provost::serve::Limits = serde_json::from_str(r#"{ "connections_per_address": 64 }"#)?;
/// assert_eq!((limits.connections_per_address, limits.header_s), (64, 10));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of known phones, all together.
    pub connections: usize,
    /// Connections that have not proved a known phone, all together: of constituencies without client authentication, and
    /// of phones that are not on the list.
    pub anonymous_connections: usize,
    /// Handshakes in progress, and refused clients until they have closed, all together. Beyond this, a connection without
    /// a whole ClientHello is evicted for each new one.
    pub unfinished_handshakes: usize,
    /// Connections of one IPv4 address or one IPv6 /64; 0 is unlimited.
    pub connections_per_address: usize,
    /// Connections of one phone in one constituency; 0 is unlimited.
    pub connections_per_phone: usize,
    /// Networks to which `connections_per_address` does not apply, and whose connections are never evicted.
    #[schemars(with = "Vec<String>")]
    pub unlimited_networks: Vec<IpNet>,
    /// Handshake timeout: how long a TLS handshake may take, from accept on. The time in the server's own queue does not
    /// count.
    pub handshake_s: u64,
    /// Header timeout: how long a request's header may take from its first byte on, and how long a new connection may wait
    /// before its first request.
    pub header_s: u64,
    /// Keep-alive timeout: how long a connection may be idle between two requests.
    pub idle_s: u64,
    /// A body, of a request or a response, that makes no progress for this time is aborted.
    pub stall_s: u64,
    /// A body slower than this over a minute is aborted.
    pub min_bytes_per_s: u64,
    /// How long the server still serves as usual after SIGTERM, while `/readyz` is 503, so that a load balancer notices
    /// before connections are refused. A second SIGTERM ends this.
    pub shutdown_delay_s: u64,
    /// How long a graceful shutdown waits for requests in progress.
    pub drain_s: u64,
    /// Free space that uploads leave on the state directory's file system, for certificates and phone history. Default: the
    /// larger of 256 MiB and 2 %.
    pub free_space_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            anonymous_connections: 4_096,
            unfinished_handshakes: 8_192,
            connections_per_address: 1_024,
            connections_per_phone: 64,
            unlimited_networks: Vec::new(),
            handshake_s: 10,
            header_s: 10,
            idle_s: 60,
            stall_s: 30,
            min_bytes_per_s: 256,
            shutdown_delay_s: 0,
            drain_s: 30,
            free_space_bytes: None,
        }
    }
}

/// The shortest and the longest timeout, in seconds. With 0, every client would time out.
const TIMEOUT_RANGE: std::ops::RangeInclusive<u64> = 1..=86_400;

impl Limits {
    /// Checks that the values are possible.
    ///
    /// # Errors
    /// The first limit that is not, and its allowed values.
    pub fn check(&self) -> Result<(), String> {
        let timeouts = [
            ("handshake_s", self.handshake_s),
            ("header_s", self.header_s),
            ("idle_s", self.idle_s),
            ("stall_s", self.stall_s),
        ];
        if self.unfinished_handshakes == 0 {
            return Err("unfinished_handshakes is 0, so no connection would be accepted; write 1 or more".to_owned());
        }
        match timeouts.iter().find(|(_, seconds)| !TIMEOUT_RANGE.contains(seconds)) {
            Some((key, seconds)) => {
                Err(format!("{key} is {seconds}; write {} to {} seconds", TIMEOUT_RANGE.start(), TIMEOUT_RANGE.end()))
            }
            None => Ok(()),
        }
    }

    /// The handshake timeout (`handshake_s`).
    #[must_use]
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_s)
    }

    /// How long the server still serves as usual after a stop signal.
    #[must_use]
    pub fn shutdown_delay(&self) -> Duration {
        Duration::from_secs(self.shutdown_delay_s)
    }

    /// How long a graceful shutdown waits for requests in progress.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }

    /// The prefix by which connections of `address` are counted; `None` if `connections_per_address` does not apply.
    #[must_use]
    pub fn counted_as(&self, address: IpAddr) -> Option<IpNet> {
        (self.connections_per_address > 0 && !self.is_unlimited(address)).then(|| client_prefix(address))
    }

    /// Whether `address` is in one of `unlimited_networks`.
    #[must_use]
    pub fn is_unlimited(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.unlimited_networks.iter().any(|net| net.contains(&address))
    }
}

/// The prefix that counts as one client: an IPv4 address, or an IPv6 /64.
#[must_use]
pub fn client_prefix(address: IpAddr) -> IpNet {
    match address.to_canonical() {
        IpAddr::V4(address) => IpNet::V4(address.into()),
        IpAddr::V6(address) => IpNet::V6(Ipv6Net::new(address, 64).unwrap_or_else(|_| address.into()).trunc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_by_client_prefix() {
        let limits = Limits { unlimited_networks: vec!["192.0.2.0/24".parse().unwrap()], ..Limits::default() };
        let unit = |text: &str| limits.counted_as(text.parse().unwrap()).map(|net| net.to_string());
        assert_eq!(unit("198.51.100.7").as_deref(), Some("198.51.100.7/32"));
        assert_eq!(unit("::ffff:198.51.100.7").as_deref(), Some("198.51.100.7/32"));
        assert_eq!(unit("2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1:2::/64"));
        assert_eq!(unit("192.0.2.9"), None);
        assert_eq!(Limits { connections_per_address: 0, ..Limits::default() }.counted_as([1, 2, 3, 4].into()), None);
    }
}
