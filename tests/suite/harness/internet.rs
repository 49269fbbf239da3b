//! The DNS of a small internet, in a [namespace](super::namespace): a root server, which serves top-level domains too, and a
//! resolver that begins there.

use std::net::{Ipv4Addr, SocketAddr};

use provost::dns::DnsSettings;

use super::bind::{Bind, BindConfig, settings};
use super::unbound::Unbound;

/// The root server's address.
pub const ROOT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The root server, with these top-level domains, each with the delegations in it.
pub fn root(domains: &[(&str, &str)]) -> Bind {
    let start =
        |more: &str| format!("$TTL 300\n@ SOA ns.root. host.root. 1 3600 600 86400 60\n@ NS ns.root.\n{more}\n");
    let delegations: Vec<String> = domains.iter().map(|(domain, _)| format!("{domain}. NS ns.root.")).collect();
    let mut config =
        BindConfig::new().primary_from(".", &start(&format!("ns.root. A {ROOT}\n{}", delegations.join("\n"))), "");
    for (domain, records) in domains {
        config = config.primary_from(domain, &start(records), "");
    }
    config.start_at(SocketAddr::from((ROOT, 53)))
}

/// A resolver at 127.0.0.1:53 that begins at the root server. Zones with `anchors`, which are DNSKEY records, are validated.
pub fn resolver(anchors: &[String]) -> Unbound {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("anchors");
    // It wants at least one.
    let unused = format!("unused.test. DS 1 13 2 {}\n", "0".repeat(64));
    std::fs::write(&file, unused + &anchors.join("\n") + "\n").unwrap();
    Unbound::start(SocketAddr::from(([127, 0, 0, 1], 53)), &ROOT.to_string(), &file, &[])
}

/// The delegation of `zone` to `ns1` in it, at `address`.
pub fn delegation(zone: &str, address: &str) -> String {
    format!("{zone}. NS ns1.{zone}.\nns1.{zone}. A {address}")
}

/// A zone's file, with one name server `ns1` at `address`, and `records`.
pub fn zone_file(zone: &str, address: &str, records: &str) -> String {
    let start = format!("$TTL 300\n@ SOA ns1.{zone}. hostmaster.{zone}. 1 3600 600 86400 60\n@ NS ns1.{zone}.");
    format!("{start}\nns1 A {address}\n{records}\n")
}

/// The port of a name server at `address`.
pub fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 53)
}

/// Settings that update `primary`, and find everything else through `resolver`, as with a default configuration.
pub fn through(resolver: &Unbound, primary: &Bind) -> DnsSettings {
    DnsSettings {
        resolvers: vec![resolver.address.ip().to_string()],
        authorities: Vec::new(),
        ..settings(primary.address, &primary.key_file("provost."))
    }
}
