//! Finds out which zone a challenge's name leads to, from the parent's name servers, without recursion.
//!
//! No question about the name itself, or about a name beside it, goes through a resolver: it would cache that the name does
//! not exist, and the CA may use the same one. See [`lookup`](crate::dns::lookup).

use std::net::SocketAddr;

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::{Name, RecordType};

use crate::dns::failure::DnsError;
use crate::dns::locate::own_cname;
use crate::dns::lookup::{Lead, Lookup, soa_owner};
use crate::dns::name;
use crate::dns::query::Question;
use crate::dns::resolve::name_servers;

/// CAs follow at least as many.
const MAX_CNAMES: usize = 8;

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delegation {
    /// The name at the end of the CNAME records.
    pub(super) name: Name,
    /// The names whose CNAME records led there.
    pub(super) via: Vec<Name>,
    /// The zone whose name servers were asked.
    pub(super) parent: Name,
    /// The delegated zone that holds the name; `None` if the parent holds it itself.
    pub(super) zone: Option<Name>,
    /// The name servers of the delegated zone.
    pub(super) servers: Vec<Name>,
}

/// Follows `challenge` to the zone that holds its records. The servers of `own`, the zone that we serve, are not asked,
/// because they are us. The zone is never one that holds `domain`, which has phones.
pub(super) async fn find(lookup: &Lookup, challenge: &Name, own: &Name, domain: &Name) -> Result<Delegation, DnsError> {
    let mut name = challenge.clone();
    let mut via = Vec::new();
    loop {
        let lead = lookup.lead(&name, |zone| own.zone_of(zone) || *zone == name, |zone| !zone.zone_of(domain)).await?;
        let (zone, asked, message) = match lead {
            Lead::Delegation { parent, zone, servers } => {
                return Ok(Delegation { name, via, parent, zone: Some(zone), servers });
            }
            Lead::Answer { zone, servers, message } => (zone, servers, message),
        };
        let Some(target) = own_cname(&message, &asked, &name).await? else {
            let parent = soa_owner(&message, &name).filter(|parent| *parent != name).unwrap_or(zone);
            // A server that holds the delegated zone too gives that zone's own records.
            let servers = name_servers(&message.answers, &name);
            let zone = (!servers.is_empty()).then(|| name.clone());
            return Ok(Delegation { name, via, parent, zone, servers });
        };
        via.push(std::mem::replace(&mut name, target));
        if via.contains(&name) || via.len() > MAX_CNAMES {
            via.push(name);
            return Err(DnsError::CnameChain { chain: via.iter().map(name::text).collect() });
        }
    }
}

/// Asks an authoritative server, by UDP and, if that fails or does not suffice, by TCP.
pub(super) async fn ask(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, String> {
    Question::to_authority(name, kind).ask(server).await.map_err(|no_answer| no_answer.reason().to_owned())
}
