//! The addresses that DNS gives to phones: of names below a domain, and of single names.

use std::net::IpAddr;

use super::failure::DnsError;
use super::name;
use super::resolve::Resolver;

/// The addresses of the wildcard record of `domain`, found through a random name below it. Queries `resolvers` or, if
/// empty, the system's resolvers.
///
/// # Errors
/// If no resolver can say whether there are any. No addresses is not an error.
pub async fn wildcard_addresses(resolvers: &[String], domain: &str) -> Result<Vec<IpAddr>, DnsError> {
    let domain = name::parse(domain).map_err(DnsError::Setting)?;
    let name = name::random_below(&domain)
        .ok_or_else(|| DnsError::Setting(format!("{} leaves no room for a label", name::text(&domain))))?;
    Resolver::new(resolvers)?.addresses(&name).await
}

/// The addresses of `name` itself.
///
/// # Errors
/// If no resolver can say whether there are any. No addresses is not an error.
pub async fn addresses(resolvers: &[String], name: &str) -> Result<Vec<IpAddr>, DnsError> {
    Resolver::new(resolvers)?.addresses(&name::parse(name).map_err(DnsError::Setting)?).await
}

/// Checks that records below `name` would hide nothing: it has no addresses, or has addresses of its own.
///
/// If `name` does not exist, a wildcard record above it answers for names below it too. If `name` exists, nothing
/// answers for names below it, since "the existence of the name" ends the search for a wildcard (RFC 4592 §3.3.1). So a
/// random name below `name` distinguishes the two cases.
///
/// # Errors
/// If its addresses are those of a wildcard record, or no resolver can say.
pub(super) async fn stands_alone(resolvers: &[String], name: &str) -> Result<(), DnsError> {
    let addresses = wildcard_addresses(resolvers, name).await?;
    if addresses.is_empty() { Ok(()) } else { Err(DnsError::OnlyByWildcard { name: name.to_owned(), addresses }) }
}
