//! `"dns"` in `provost.json`: how challenge records are published, by updates of a primary or by the built-in responder.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::name::deserialize_some;
use super::responder::{ResponderDns, ResponderSettings};
use super::settings::{DnsSettings, addresses, server, servers};

/// How challenge records are published: by signed updates (RFC 2136) of the zone's primary, or by the built-in responder.
///
/// ```
/// let text = r#"{ "primary": "ns1.example.com", "tsig_key_file": "provost.key" }"#;
/// let provost::dns::DnsMethod::Update(settings) = serde_json::from_str(text)? else { panic!() };
/// assert_eq!((settings.ttl_s, settings.propagation_timeout_s, settings.settle_s), (1, 120, 5));
/// let text = r#"{ "responder": { "listen": ["192.0.2.10:53"] } }"#;
/// assert!(matches!(serde_json::from_str(text)?, provost::dns::DnsMethod::Responder(_)));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "DnsKeys")]
pub enum DnsMethod {
    Update(DnsSettings),
    Responder(ResponderDns),
}

/// How the challenge records are published: by signed updates (RFC 2136) of a DNS primary, or by the built-in responder.
/// Either `primary` and `tsig_key_file` are required, or `responder`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct DnsKeys {
    /// The built-in DNS responder: provost itself is the name server of the challenges' zone. It excludes all other keys but
    /// `zone` and `resolvers`. Default: none.
    responder: Option<ResponderSettings>,
    /// The zone's primary: a host name, an IPv4 address, or an IPv6 address in brackets; with a port if that is not 53. It is
    /// updated by UDP, and by TCP if the update is larger than 512 bytes or UDP is not answered. Default: none.
    #[serde(deserialize_with = "some_server")]
    primary: Option<String>,
    /// The TSIG key file, as `tsig-keygen`, Knot's `keymgr -t` or `PowerDNS`'s `pdnsutil` writes it. Default: none.
    tsig_key_file: Option<PathBuf>,
    /// The name of the key in the file. Default: the only one.
    #[serde(deserialize_with = "deserialize_some")]
    tsig_key_name: Option<String>,
    /// The zone that is updated, or that the responder serves. Default: found by its SOA record; for the responder, by
    /// asking the name servers of the zone above.
    #[serde(deserialize_with = "deserialize_some")]
    zone: Option<String>,
    /// Addresses of the resolvers that find name servers and their addresses. A link-local address has a zone ID:
    /// `fe80::1%eth0`. Names of challenges are never asked of a resolver, only of the zone's name servers. Default: the
    /// system's.
    #[serde(deserialize_with = "addresses")]
    resolvers: Vec<String>,
    /// The servers that must have a record before the CA is asked to look. Default: the zone's name servers, and those to
    /// which the parent zone delegates.
    #[serde(deserialize_with = "some_servers")]
    authorities: Option<Vec<String>>,
    /// The TTL of the records. A resolver that the CA uses keeps them for as long, and does not see those of the next order.
    /// Default: `1`.
    ttl_s: Option<u32>,
    /// How long to wait until all `authorities` have a record. Default: `120`.
    propagation_timeout_s: Option<u64>,
    /// How long all `authorities` must go on having it. They are asked again and again, since several servers may share an
    /// address. Default: `5`.
    settle_s: Option<u64>,
}

impl TryFrom<DnsKeys> for DnsMethod {
    type Error = String;

    fn try_from(keys: DnsKeys) -> Result<Self, String> {
        let DnsKeys { responder, primary, tsig_key_file, tsig_key_name, zone, resolvers, authorities, .. } = keys;
        let Some(responder) = responder else {
            let missing = |key: &str| format!("the key \"{key}\" is missing (or \"responder\" in place of a primary)");
            return Ok(Self::Update(DnsSettings {
                primary: primary.ok_or_else(|| missing("primary"))?,
                tsig_key_file: tsig_key_file.ok_or_else(|| missing("tsig_key_file"))?,
                tsig_key_name,
                zone,
                resolvers,
                authorities: authorities.unwrap_or_default(),
                ttl_s: keys.ttl_s.unwrap_or(1),
                propagation_timeout_s: keys.propagation_timeout_s.unwrap_or(120),
                settle_s: keys.settle_s.unwrap_or(5),
            }));
        };
        let of_updates = [
            ("primary", primary.is_some()),
            ("tsig_key_file", tsig_key_file.is_some()),
            ("tsig_key_name", tsig_key_name.is_some()),
            ("authorities", authorities.is_some()),
            ("ttl_s", keys.ttl_s.is_some()),
            ("propagation_timeout_s", keys.propagation_timeout_s.is_some()),
            ("settle_s", keys.settle_s.is_some()),
        ];
        let beside: Vec<String> =
            of_updates.iter().filter(|(_, is_set)| *is_set).map(|(key, _)| format!("\"{key}\"")).collect();
        if beside.is_empty() {
            return Ok(Self::Responder(ResponderDns { responder, zone, resolvers }));
        }
        Err(format!(
            "\"responder\" excludes {}, which belongs to updates of a primary; remove one or the other",
            beside.join(", ")
        ))
    }
}

impl DnsMethod {
    /// The addresses of the resolvers; empty: the system's.
    #[must_use]
    pub fn resolvers(&self) -> &[String] {
        match self {
            Self::Update(settings) => &settings.resolvers,
            Self::Responder(settings) => &settings.resolvers,
        }
    }

    /// The settings of updates, if records are published by these.
    #[must_use]
    pub fn update(&self) -> Option<&DnsSettings> {
        match self {
            Self::Update(settings) => Some(settings),
            Self::Responder(_) => None,
        }
    }

    /// The settings of the responder, if there is one.
    #[must_use]
    pub fn responder(&self) -> Option<&ResponderDns> {
        match self {
            Self::Update(_) => None,
            Self::Responder(settings) => Some(settings),
        }
    }

    /// Resolves relative paths against `base`.
    pub fn resolve_paths(&mut self, base: &Path) {
        if let Self::Update(settings) = self {
            settings.tsig_key_file = base.join(&settings.tsig_key_file);
        }
    }

    /// The TSIG key file, if there is one.
    #[must_use]
    pub fn key_file(&self) -> Option<&Path> {
        self.update().map(|settings| settings.tsig_key_file.as_path())
    }
}

impl JsonSchema for DnsMethod {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DnsMethod".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        DnsKeys::json_schema(generator)
    }
}

fn some_server<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    server(deserializer).map(Some)
}

fn some_servers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    servers(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DnsMethod, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn invalid_dns_settings_are_rejected_with_a_reason() {
        let read = |more: &str| read(&format!(r#"{{ "primary": "ns1.example.com", "tsig_key_file": "k"{more} }}"#));
        let good = read(r#", "zone": "example.com", "resolvers": ["192.0.2.1"], "authorities": ["ns2.example.com"]"#);
        assert_eq!(good.unwrap().update().unwrap().zone.as_deref(), Some("example.com"));
        assert_eq!(read("").unwrap().update().unwrap().authorities, Vec::<String>::new());
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

    #[test]
    fn responder_and_each_key_of_updates_exclude_one_another() {
        let responder = r#""responder": { "listen": ["192.0.2.10:53"] }"#;
        let beside = [
            r#""primary": "ns1.example.com""#,
            r#""tsig_key_file": "k""#,
            r#""tsig_key_name": "provost.""#,
            r#""authorities": ["ns1.example.com"]"#,
            r#""authorities": []"#,
            r#""ttl_s": 60"#,
            r#""settle_s": 0"#,
            r#""propagation_timeout_s": 120"#,
        ];
        for key in beside {
            let error = read(&format!("{{ {responder}, {key} }}")).unwrap_err();
            let name = key.split(':').next().unwrap();
            assert!(error.starts_with(&format!("\"responder\" excludes {name}")), "{error}");
        }
        let both =
            read(&format!(r#"{{ {responder}, "zone": "acme.example.com", "resolvers": ["192.0.2.1"] }}"#)).unwrap();
        assert_eq!(both.responder().unwrap().zone.as_deref(), Some("acme.example.com"));
        for neither in ["{}", r#"{ "primary": "ns1.example.com" }"#, r#"{ "tsig_key_file": "k" }"#] {
            assert!(read(neither).unwrap_err().contains("is missing (or \"responder\""), "{neither}");
        }
    }
}
