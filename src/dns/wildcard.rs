//! The addresses that DNS gives to phones: of names below a domain, and of single names.
//!
//! Authoritative servers are asked, since a resolver would conclude from a negative answer about one of these names that a
//! challenge beside it does not exist: see [`lookup`](super::lookup).

use std::net::IpAddr;

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::{Name, RecordType};
use tokio::task::JoinSet;

use super::authority::{Authority, Reply, cname_target, first_reply};
use super::failure::DnsError;
use super::lookup::Lookup;
use super::name;
use super::settings::DnsSettings;

/// How many names are looked up at once.
const AT_ONCE: usize = 8;

/// The addresses of a host name, and the records that give them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddresses {
    /// Sorted.
    pub addresses: Vec<IpAddr>,
    /// The owner of the records: the name itself, or the wildcard above it, such as `*.phones.example.com`.
    pub owner: String,
    /// The target of the owner's CNAME record. Its address records give the addresses.
    pub alias: Option<String>,
}

/// What DNS gives to the phones of a domain.
#[derive(Debug)]
pub struct PhoneAddresses {
    /// What every name below the domain gets that has no records of its own, found through a random name.
    pub wildcard: HostAddresses,
    /// The hosts, in the order in which they were asked for.
    pub hosts: Vec<(String, Result<HostAddresses, DnsError>)>,
}

/// The addresses that phones find for `hosts`, which are names below `domain`, and for other names below it.
///
/// # Errors
/// If no server can say what other names get. No addresses is not an error.
pub async fn phone_addresses(
    resolvers: &[String],
    update: Option<&DnsSettings>,
    domain: &str,
    hosts: Vec<String>,
) -> Result<PhoneAddresses, DnsError> {
    let domain = name::parse(domain).map_err(DnsError::Setting)?;
    let lookup = Lookup::new(resolvers, update)?;
    let random = random_below(&domain)?;
    let (found, servers) = ask(&lookup, &random).await?;
    let owner = wildcard_owner(&lookup, &random, &found).await?.unwrap_or_else(|| below_star(&domain));
    let wildcard = HostAddresses { addresses: found.addresses, owner, alias: found.alias.as_ref().map(name::text) };
    let mut tasks = JoinSet::new();
    let (mut left, mut hosts_found) = (hosts.into_iter().enumerate(), Vec::new());
    loop {
        while tasks.len() < AT_ONCE
            && let Some((index, host)) = left.next()
        {
            let (lookup, servers) = (lookup.clone(), servers.clone());
            tasks.spawn(async move {
                let found = host_addresses(&lookup, &servers, &host).await;
                (index, host, found)
            });
        }
        match tasks.join_next().await {
            Some(Ok(found)) => hosts_found.push(found),
            Some(Err(_)) => {}
            None => break,
        }
    }
    hosts_found.sort_by_key(|(index, ..)| *index);
    let hosts = hosts_found.into_iter().map(|(_, host, found)| (host, found)).collect();
    Ok(PhoneAddresses { wildcard, hosts })
}

/// The addresses of `host`. `servers` probably hold its zone, and are asked first.
async fn host_addresses(lookup: &Lookup, servers: &[Authority], host: &str) -> Result<HostAddresses, DnsError> {
    let name = name::parse(host).map_err(DnsError::Setting)?;
    let mut messages = Vec::new();
    for kind in KINDS {
        if let Ok((_, Reply::Authoritative(message))) = first_reply(servers, &name, kind).await {
            messages.push(message);
        }
    }
    let found = if messages.len() == KINDS.len() {
        Records::of(lookup, &name, &messages).await?
    } else {
        ask(lookup, &name).await?.0
    };
    let alias = found.alias.as_ref().map(name::text);
    Ok(HostAddresses { addresses: found.addresses, owner: name::text(&name), alias })
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
    let is_above = !addresses.is_empty() && is_given_from_above(lookup, domain, &addresses).await?;
    Ok(if is_above { addresses } else { Vec::new() })
}

/// Whether a wildcard record above `domain` gives `addresses`, which names below `domain` have.
async fn is_given_from_above(lookup: &Lookup, domain: &Name, addresses: &[IpAddr]) -> Result<bool, DnsError> {
    if of(lookup, domain).await? != addresses {
        return Ok(false);
    }
    let sibling = random_below(&domain.base_name())?;
    // No resolver is asked about the sibling, which does not exist either.
    Ok(ask_below(lookup, &random_below(&sibling)?, &sibling).await?.0.addresses == addresses)
}

/// The wildcard whose records `name` seems to get, such as `*.phones.example.com`: a name beside it that does not exist gets the
/// same ones. `None` if `name` has no records, or records of its own.
///
/// # Errors
/// If no server can say.
pub(super) async fn wildcard_of(lookup: &Lookup, name: &Name) -> Result<Option<String>, DnsError> {
    let (found, _) = ask(lookup, name).await?;
    wildcard_owner(lookup, name, &found).await
}

/// The same for a `name` that has the records `found`.
async fn wildcard_owner(lookup: &Lookup, name: &Name, found: &Records) -> Result<Option<String>, DnsError> {
    let mut parent = name.base_name();
    if found.addresses.is_empty() && found.alias.is_none() || ask(lookup, &random_below(&parent)?).await?.0 != *found {
        return Ok(None);
    }
    // A top-level domain has no wildcard record for a customer.
    while parent.num_labels() > 2 && is_given_from_above(lookup, &parent, &found.addresses).await? {
        parent = parent.base_name();
    }
    Ok(Some(below_star(&parent)))
}

/// Whether names below `domain` that have no records of their own have no addresses.
///
/// # Errors
/// If no server can say.
pub(super) async fn is_missing(lookup: &Lookup, domain: &Name) -> Result<bool, DnsError> {
    Ok(below(lookup, domain).await?.is_empty())
}

/// The wildcard below `parent`.
pub(super) fn below_star(parent: &Name) -> String {
    format!("*.{}", name::text(parent))
}

/// The addresses of a random name below `parent`, which does not exist.
async fn below(lookup: &Lookup, parent: &Name) -> Result<Vec<IpAddr>, DnsError> {
    of(lookup, &random_below(parent)?).await
}

fn random_below(parent: &Name) -> Result<Name, DnsError> {
    name::random_below(parent)
        .ok_or_else(|| DnsError::Setting(format!("{} leaves no room for a label", name::text(parent))))
}

/// The addresses of `name`, also through a CNAME record, whose target the resolvers are asked for.
async fn of(lookup: &Lookup, name: &Name) -> Result<Vec<IpAddr>, DnsError> {
    Ok(ask(lookup, name).await?.0.addresses)
}

const KINDS: [RecordType; 2] = [RecordType::A, RecordType::AAAA];

/// The records of a name that lead to addresses.
#[derive(Debug, PartialEq, Eq)]
struct Records {
    /// Sorted: servers rotate addresses.
    addresses: Vec<IpAddr>,
    alias: Option<Name>,
}

impl Records {
    /// Those of `name` in `messages`. The resolvers are asked for the addresses of a CNAME record's target.
    async fn of(lookup: &Lookup, name: &Name, messages: &[Message]) -> Result<Self, DnsError> {
        let alias = messages.iter().find_map(|message| cname_target(message, name));
        let mut addresses = match &alias {
            Some(target) => lookup.resolver().addresses(target).await?,
            None => {
                let own = messages.iter().flat_map(|it| &it.answers).filter(|record| record.name == *name);
                own.filter_map(|record| record.data.ip_addr()).collect()
            }
        };
        addresses.sort();
        addresses.dedup();
        Ok(Self { addresses, alias })
    }
}

/// The records of `name`, and the server that gave them.
async fn ask(lookup: &Lookup, name: &Name) -> Result<(Records, Vec<Authority>), DnsError> {
    ask_below(lookup, name, name).await
}

/// The same for a name below `secret`, about which no resolver is asked.
async fn ask_below(lookup: &Lookup, name: &Name, secret: &Name) -> Result<(Records, Vec<Authority>), DnsError> {
    let (mut messages, mut servers) = (Vec::new(), Vec::new());
    for kind in KINDS {
        let answered = lookup.ask(name, kind, secret, |_| true).await?;
        messages.push(answered.message);
        servers = vec![answered.server];
    }
    Ok((Records::of(lookup, name, &messages).await?, servers))
}
