//! The addresses that DNS gives to phones: of names below a domain, and of single names.
//!
//! Authoritative servers are asked, since a resolver would conclude from a negative answer about one of these names that a
//! challenge beside it does not exist: see [`lookup`](super::lookup).

use std::net::IpAddr;

use hickory_net::proto::rr::{Name, RData, RecordType};

use super::failure::DnsError;
use super::lookup::Lookup;
use super::name;
use super::settings::DnsSettings;

/// The addresses of the wildcard record of `domain`, found through a random name below it.
///
/// # Errors
/// If no server can say whether there are any. No addresses is not an error.
pub async fn wildcard_addresses(
    resolvers: &[String],
    update: Option<&DnsSettings>,
    domain: &str,
) -> Result<Vec<IpAddr>, DnsError> {
    let domain = name::parse(domain).map_err(DnsError::Setting)?;
    below(&Lookup::new(resolvers, update)?, &domain).await
}

/// The addresses of `name` itself.
///
/// # Errors
/// If no server can say whether there are any. No addresses is not an error.
pub async fn addresses(
    resolvers: &[String],
    update: Option<&DnsSettings>,
    name: &str,
) -> Result<Vec<IpAddr>, DnsError> {
    of(&Lookup::new(resolvers, update)?, &name::parse(name).map_err(DnsError::Setting)?).await
}

/// Checks that records below `name` would hide nothing: it has no addresses, or has addresses of its own.
///
/// If `name` does not exist, a wildcard record above it answers for names below it too. If `name` exists, nothing
/// answers for names below it, since "the existence of the name" ends the search for a wildcard (RFC 4592 §3.3.1). So a
/// random name below `name` distinguishes the two cases.
///
/// # Errors
/// If its addresses are those of a wildcard record, or no server can say.
pub(super) async fn stands_alone(lookup: &Lookup, name: &str) -> Result<(), DnsError> {
    let addresses = below(lookup, &name::parse(name).map_err(DnsError::Setting)?).await?;
    if addresses.is_empty() { Ok(()) } else { Err(DnsError::OnlyByWildcard { name: name.to_owned(), addresses }) }
}

/// The addresses of the names below `domain`, if they can come from a wildcard record above `domain`. That record gives them to
/// `domain` too, and to names two labels below its parent.
pub(super) async fn from_above(lookup: &Lookup, domain: &Name) -> Result<Vec<IpAddr>, DnsError> {
    let addresses = below(lookup, domain).await?;
    if addresses.is_empty() || of(lookup, domain).await? != addresses {
        return Ok(Vec::new());
    }
    let Some(sibling) = name::random_below(&domain.base_name()) else { return Ok(Vec::new()) };
    let is_above = below(lookup, &sibling).await? == addresses;
    Ok(if is_above { addresses } else { Vec::new() })
}

/// The addresses of a random name below `parent`, which does not exist.
async fn below(lookup: &Lookup, parent: &Name) -> Result<Vec<IpAddr>, DnsError> {
    let name = name::random_below(parent)
        .ok_or_else(|| DnsError::Setting(format!("{} leaves no room for a label", name::text(parent))))?;
    of(lookup, &name).await
}

/// The addresses of `name`, also through a CNAME record, whose target the resolvers are asked for.
async fn of(lookup: &Lookup, name: &Name) -> Result<Vec<IpAddr>, DnsError> {
    let (mut addresses, mut target) = (Vec::new(), None);
    for kind in [RecordType::A, RecordType::AAAA] {
        let answer = lookup.ask(name, kind, name, |_| true).await?.message;
        let own = answer.answers.iter().filter(|record| record.name == *name);
        for record in own {
            match &record.data {
                RData::CNAME(cname) => target = Some(cname.0.clone()),
                data => addresses.extend(data.ip_addr()),
            }
        }
    }
    match target {
        Some(target) => Ok(sorted(lookup.resolver().addresses(&target).await?)),
        None => Ok(sorted(addresses)),
    }
}

/// Servers rotate addresses.
fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort();
    addresses
}
