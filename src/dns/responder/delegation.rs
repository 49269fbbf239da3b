//! Finds out which zone a challenge's name leads to, and by which name servers, from the parent's name servers, without
//! recursion.
//!
//! No question about the name itself, or about a name beside it, goes through a resolver: it would cache that the name does
//! not exist, and the CA may use the same one. See [`lookup`](crate::dns::lookup).

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::{Name, RData, RecordType};

use super::remedy::AddressSource;
use crate::dns::authority::{Authority, Reply, first_reply};
use crate::dns::failure::DnsError;
use crate::dns::locate::own_cname;
use crate::dns::lookup::{Lead, Lookup, ParentReferral, glue, soa_owner};
use crate::dns::name;
use crate::dns::resolve::name_servers;

/// CAs follow at least as many.
const MAX_CNAMES: usize = 8;

/// Where a name leads.
#[derive(Debug, Clone)]
pub(super) struct Delegation {
    /// The name at the end of the CNAME records.
    pub(super) name: Name,
    /// The names whose CNAME records led there.
    pub(super) via: Vec<Name>,
    /// The zone whose name servers were asked.
    pub(super) parent: Name,
    /// The name servers of the parent; empty if they could not be asked.
    parent_servers: Vec<Authority>,
    /// The delegated zone that holds the name; `None` if the parent holds it itself.
    pub(super) zone: Option<Name>,
    /// The name servers of the delegated zone.
    pub(super) servers: Vec<Name>,
    /// The parent's answer, which has the addresses of some name servers.
    message: Message,
}

/// What tells this server and its zone from others.
#[derive(Debug)]
pub(super) struct ThisServer {
    /// The zone that it serves. Its servers are not asked about the way to it, because they are us.
    pub(super) apex: Name,
    /// The domain of the site, which has phones.
    pub(super) domain: Name,
    /// The name that an NS record should have.
    pub(super) name: Name,
    pub(super) addresses: Vec<IpAddr>,
}

impl ThisServer {
    /// Whether the delegation names this server, or one of its `servers` has an address of it.
    fn is_in(&self, delegation: &ParentReferral, servers: &[Authority]) -> bool {
        let mut addresses = servers.iter().filter_map(|server| server.address.as_ref().ok());
        name_servers(&delegation.message.authorities, &delegation.zone).contains(&self.name)
            || addresses.any(|address| self.addresses.contains(&address.ip()))
    }
}

/// A name server of the delegated zone.
#[derive(Debug)]
pub(super) struct NameServer {
    /// By the parent's glue, and by the zone that holds the server's name.
    pub(super) addresses: BTreeMap<IpAddr, AddressSource>,
    pub(super) is_alias: bool,
    /// Why no server says which addresses it has.
    pub(super) error: Option<DnsError>,
}

/// What is wrong with a delegation, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegationProblem {
    pub problem: String,
    pub remedy: Option<String>,
}

impl std::fmt::Display for DelegationProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(f, "{} ({remedy})", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl DelegationProblem {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: Some(remedy.into()) }
    }
}

impl Delegation {
    fn by(delegation: ParentReferral, name: Name, via: Vec<Name>) -> Self {
        let ParentReferral { parent, parent_servers, zone, message } = delegation;
        let servers = name_servers(&message.authorities, &zone);
        Self { name, via, parent, parent_servers, zone: Some(zone), servers, message }
    }

    /// The delegation of `zone` to `server`, where the parent's servers do not say another.
    pub(super) fn assumed(challenge: Name, zone: Name, server: Name) -> Self {
        Self {
            name: challenge,
            via: Vec::new(),
            parent: zone.base_name(),
            parent_servers: Vec::new(),
            zone: Some(zone),
            servers: vec![server],
            message: Message::query(),
        }
    }

    /// The challenge's name.
    pub(super) fn challenge(&self) -> &Name {
        self.via.first().unwrap_or(&self.name)
    }

    /// The zone that an NS record of the parent can delegate so that it holds the name, and not `domain`: the one above the
    /// name if there is one below the parent, else the name itself.
    pub(super) fn delegable(&self, domain: &Name) -> Option<Name> {
        let is_free = |zone: &Name| self.parent.zone_of(zone) && *zone != self.parent && !zone.zone_of(domain);
        let is_registered = self.parent.num_labels() > 0;
        [self.name.base_name(), self.name.clone()].into_iter().find(is_free).filter(|_| is_registered)
    }

    /// Whether the parent has DS records for the delegated zone.
    pub(super) async fn has_ds_records(&self) -> bool {
        let Some(zone) = &self.zone else { return false };
        let reply = first_reply(&self.parent_servers, zone, RecordType::DS).await;
        let Ok((_, Reply::Authoritative(message))) = reply else { return false };
        message.answers.iter().any(|record| record.name == *zone && record.record_type() == RecordType::DS)
    }

    /// Whether `name` has a CNAME record by the parent's name servers.
    pub(super) async fn is_alias(&self, name: &Name) -> bool {
        let reply = first_reply(&self.parent_servers, name, RecordType::CNAME).await;
        let Ok((_, Reply::Authoritative(message))) = reply else { return false };
        matches!(own_cname(&message, &self.parent_servers, name).await, Ok(Some(_)))
    }

    /// Finds the addresses of `server`, as a CA's resolver does. The resolvers, whose answers may be old, are asked only if no
    /// authoritative server answers, and for the target of an alias.
    pub(super) async fn name_server(&self, lookup: &Lookup, server: &Name) -> NameServer {
        let glue = glue(&self.message, server);
        let mut addresses: BTreeMap<IpAddr, AddressSource> =
            glue.iter().map(|address| (address.ip(), AddressSource::Glue)).collect();
        let (mut is_alias, mut error) = (false, None);
        let ask = |kind| lookup.ask(server, kind, server, |_: &Message| true);
        let (v4, v6) = tokio::join!(ask(RecordType::A), ask(RecordType::AAAA));
        for answered in [v4, v6] {
            match answered {
                Ok(answered) => {
                    let own = answered.message.answers.iter().filter(|record| record.name == *server);
                    for record in own {
                        is_alias |= matches!(record.data, RData::CNAME(_));
                        addresses.extend(record.data.ip_addr().map(|ip| (ip, AddressSource::Zone)));
                    }
                }
                Err(failure) => error = Some(failure),
            }
        }
        if is_alias || error.is_some() {
            match lookup.resolver().addresses(server).await {
                Ok(found) => {
                    let source = if is_alias { AddressSource::Alias } else { AddressSource::Resolver };
                    for address in found {
                        addresses.entry(address).or_insert(source);
                    }
                    error = None;
                }
                Err(failure) => error = Some(failure),
            }
        }
        NameServer { addresses, is_alias, error }
    }

    /// If the parent's name stands twice at the end of `server`: why.
    pub(super) fn doubled_name_server(&self, server: &Name) -> Option<DelegationProblem> {
        let zone = self.zone.as_ref()?;
        let meant = name::without_doubled_zone(server, &self.parent)?;
        let record = format!("the NS record of {} names {}", name::text(zone), name::text(server));
        Some(self.doubled(&record, &meant))
    }

    /// Why the name is not delegated, if the parent's name stands twice in a record: at the end of a CNAME record's target, or
    /// of the name at which a record was entered.
    pub(super) async fn doubled_record(&self) -> Option<DelegationProblem> {
        if let Some(owner) = self.via.last()
            && let Some(meant) = name::without_doubled_zone(&self.name, &self.parent)
        {
            let record = format!("the CNAME record of {} leads to {}", name::text(owner), name::text(&self.name));
            return Some(self.doubled(&record, &meant));
        }
        let doubled = self.name.clone().append_domain(&self.parent).ok()?;
        let kind = match first_reply(&self.parent_servers, &doubled, RecordType::NS).await {
            Ok((_, Reply::Referral { zone, .. })) if zone == doubled => "NS",
            Ok((_, Reply::Authoritative(_))) if self.is_alias(&doubled).await => "CNAME",
            _ => return None,
        };
        let record = format!("the {kind} record of {} was entered at {}", name::text(&self.name), name::text(&doubled));
        Some(self.doubled(&record, &self.name))
    }

    /// What a registrar's form makes of a full name without the final dot.
    fn doubled(&self, record: &str, meant: &Name) -> DelegationProblem {
        let (parent, meant) = (name::text(&self.parent), name::text(meant));
        let relative = meant.strip_suffix(&parent).map(|it| it.trim_end_matches('.')).filter(|it| !it.is_empty());
        DelegationProblem::new(
            format!("{record}: {parent} stands there twice, because the form adds it to a name without the final dot"),
            format!("enter \"{meant}.\" with the final dot, or only \"{}\"", relative.unwrap_or("@")),
        )
    }
}

/// Follows `challenge` to the zone that holds its records. The zone is never one that holds the domain of `this` server.
pub(super) async fn find(lookup: &Lookup, challenge: &Name, this: &ThisServer) -> Result<Delegation, DnsError> {
    let ThisServer { apex, domain, .. } = this;
    let mut name = challenge.clone();
    let mut via = Vec::new();
    loop {
        let lead = lookup.lead(&name, |zone| apex.zone_of(zone) || *zone == name, |zone| !zone.zone_of(domain)).await;
        let (zone, parent_servers, message, delegation) = match lead {
            Ok(Lead::Delegation(delegation)) => return Ok(Delegation::by(delegation, name, via)),
            Ok(Lead::Answer { zone, servers, message, delegation }) => (zone, servers, message, delegation),
            // A CNAME record leads out of every zone.
            Err(DnsError::NoZone { .. }) if !via.is_empty() && !apex.zone_of(&name) => {
                (Name::root(), Vec::new(), Message::query(), None)
            }
            Err(error) => return Err(error),
        };
        let Some(target) = own_cname(&message, &parent_servers, &name).await? else {
            // A server that holds the delegated zone too gives that zone's own records.
            let servers = name_servers(&message.answers, &name);
            // Beside this server, a wrong one may be named, which denies the name.
            if servers.is_empty()
                && let Some(delegation) = delegation
                && !delegation.zone.zone_of(domain)
                && this.is_in(&delegation, &parent_servers)
            {
                return Ok(Delegation::by(*delegation, name, via));
            }
            let parent = soa_owner(&message, &name).filter(|parent| *parent != name).unwrap_or(zone);
            let zone = (!servers.is_empty()).then(|| name.clone());
            return Ok(Delegation { name, via, parent, parent_servers, zone, servers, message });
        };
        via.push(std::mem::replace(&mut name, target));
        if via.contains(&name) || via.len() > MAX_CNAMES {
            via.push(name);
            return Err(DnsError::CnameChain { chain: via.iter().map(name::text).collect() });
        }
    }
}
