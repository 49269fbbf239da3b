//! Where phones are led: the addresses of the names below a domain, and of single ones.

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

/// The addresses of `name` itself.
///
/// # Errors
/// If no resolver knows whether there are any; that there are none is no error.
pub async fn addresses(resolvers: &[String], name: &str) -> Result<Vec<IpAddr>, DnsError> {
    Resolver::new(resolvers)?.addresses(&name::parse(name).map_err(DnsError::Setting)?).await
}

/// Whether records below `name` hide nothing: it has no addresses, or has them by itself.
///
/// Where `name` is not there itself, a wildcard record above it answers for whatever is below it too; where it is there,
/// nothing answers for what is below it, as "the existence of the name" ends the search for a wildcard (RFC 4592 §3.3.1).
/// So a name below it that nobody has made tells the one from the other.
///
/// # Errors
/// If its addresses are those of a wildcard record, or nobody knows.
pub(super) async fn stands_alone(resolvers: &[String], name: &str) -> Result<(), DnsError> {
    let addresses = wildcard_addresses(resolvers, name).await?;
    if addresses.is_empty() { Ok(()) } else { Err(DnsError::OnlyByWildcard { name: name.to_owned(), addresses }) }
}
