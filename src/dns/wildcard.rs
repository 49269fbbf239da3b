//! Where phones are led: the addresses of the names below a domain.

use std::net::IpAddr;

use super::failure::DnsError;
use super::name;
use super::resolve::Resolver;

/// The addresses that a name below `domain` has which nobody has made: those of the wildcard record. `resolvers` are asked,
/// or, if that is empty, the system's.
///
/// # Errors
/// If no resolver knows whether there are any; that there are none is no error.
pub async fn wildcard_addresses(resolvers: &[String], domain: &str) -> Result<Vec<IpAddr>, DnsError> {
    let domain = name::parse(domain).map_err(DnsError::Setting)?;
    let name = name::random_below(&domain)
        .ok_or_else(|| DnsError::Setting(format!("{} leaves no room for a label", name::text(&domain))))?;
    Resolver::new(resolvers)?.addresses(&name).await
}
