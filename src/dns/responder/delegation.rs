//! Asks the parent's name servers, without recursion, which zone a challenge's name leads to.
//!
//! No question about the name itself goes through a resolver: it would cache that the name does not exist, and the CA may
//! use the same one.

use std::net::SocketAddr;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};

use crate::dns::failure::DnsError;
use crate::dns::lookup::soa_owner;
use crate::dns::name;
use crate::dns::query::Question;
use crate::dns::resolve::Resolver;
use crate::dns::settings::PORT;

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

/// What a name server of the parent says about a name.
#[derive(Debug, PartialEq, Eq)]
enum Referral {
    Cname(Name),
    Zone {
        zone: Name,
        servers: Vec<Name>,
    },
    /// It holds the name itself, or the name does not exist.
    Nothing,
}

/// Follows `challenge` to the zone that holds its records. `own` is the zone that we serve: what its name servers say is
/// not asked, because they are us.
pub(super) async fn find(resolver: &Resolver, challenge: &Name, own: &Name) -> Result<Delegation, DnsError> {
    let mut name = challenge.clone();
    let mut via = Vec::new();
    loop {
        let parent = parent_zone(resolver, &name, own).await?;
        match ask_parent(resolver, &parent, &name).await? {
            Referral::Zone { zone, servers } => return Ok(Delegation { name, via, parent, zone: Some(zone), servers }),
            Referral::Nothing => return Ok(Delegation { name, via, parent, zone: None, servers: Vec::new() }),
            Referral::Cname(target) => {
                via.push(std::mem::replace(&mut name, target));
                if via.contains(&name) || via.len() > MAX_CNAMES {
                    via.push(name);
                    return Err(DnsError::CnameChain { chain: via.iter().map(name::text).collect() });
                }
            }
        }
    }
}

/// The innermost zone around `name` that is not ours. Its name is found through the resolvers, by the names above.
async fn parent_zone(resolver: &Resolver, name: &Name, own: &Name) -> Result<Name, DnsError> {
    let mut ancestor = name.base_name();
    let mut failure = DnsError::NoZone { name: name::text(name) };
    while !ancestor.is_root() {
        if !own.zone_of(&ancestor) {
            match resolver.ask(&ancestor, RecordType::SOA).await {
                Ok(answer) => match soa_owner(&answer, &ancestor) {
                    Some(zone) => return Ok(zone),
                    None => failure = DnsError::NoZone { name: name::text(name) },
                },
                // Its name servers may be unreachable; those above it are others.
                Err(error) => failure = error,
            }
        }
        ancestor = ancestor.base_name();
    }
    Err(failure)
}

async fn ask_parent(resolver: &Resolver, parent: &Name, name: &Name) -> Result<Referral, DnsError> {
    let mut reasons = Vec::new();
    for server in resolver.name_servers(parent).await? {
        let addresses = match resolver.addresses(&server).await {
            Ok(addresses) => addresses,
            Err(error) => {
                reasons.push(format!("{}: {error}", name::text(&server)));
                continue;
            }
        };
        for address in addresses {
            match ask(SocketAddr::new(address, PORT), name, RecordType::NS)
                .await
                .and_then(|it| referral(&it, parent, name))
            {
                Ok(referral) => return Ok(referral),
                Err(reason) => reasons.push(format!("{} ({address}): {reason}", name::text(&server))),
            }
        }
    }
    Err(DnsError::ParentSilent { parent: name::text(parent), name: name::text(name), reasons })
}

/// Asks an authoritative server, by UDP and, if that fails or does not suffice, by TCP.
pub(super) async fn ask(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, String> {
    Question::to_authority(name, kind).ask(server).await.map_err(|no_answer| no_answer.reason().to_owned())
}

/// Reads what a name server of the zone `parent` says about `name`.
fn referral(answer: &Message, parent: &Name, name: &Name) -> Result<Referral, String> {
    if !matches!(answer.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(format!("it answers {}", answer.response_code));
    }
    let own = || answer.answers.iter().filter(|record| record.name == *name);
    if let Some(target) = own().find_map(|it| if let RData::CNAME(cname) = &it.data { Some(&cname.0) } else { None }) {
        return Ok(Referral::Cname(target.to_lowercase()));
    }
    // The delegation is in the authority section, or in the answer if the server holds the child zone too.
    let sections = answer.authorities.iter().filter(|_| !answer.authoritative).chain(own());
    // A lame server may refer to the root.
    let is_below = |owner: &Name| parent.zone_of(owner) && owner != parent && owner.zone_of(name);
    let mut zone = None;
    let mut servers = Vec::new();
    for record in sections.filter(|record| is_below(&record.name)) {
        if let RData::NS(server) = &record.data {
            zone = Some(record.name.to_lowercase());
            servers.push(server.0.to_lowercase());
        }
    }
    match zone {
        Some(zone) => Ok(Referral::Zone { zone, servers }),
        None if answer.authoritative => Ok(Referral::Nothing),
        None => Err("it is not authoritative for the zone".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::rr::Record;
    use hickory_net::proto::rr::rdata::{CNAME, NS};

    use super::*;

    fn parsed(text: &str) -> Name {
        name::parse(text).unwrap()
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(parsed(owner), 60, data)
    }

    #[test]
    fn the_zone_cut_is_the_owner_of_the_referral() {
        let name = parsed("_acme-challenge.phones.example.com");
        let referral = |answer: &Message| referral(answer, &parsed("example.com"), &name);
        let mut answer = Message::query().into_response();
        assert!(referral(&answer).is_err(), "lame: neither a referral nor authoritative");
        let ns = || RData::NS(NS(parsed("ns.phones.example.com")));
        answer.authorities.push(record("_acme-challenge.PHONES.example.com", ns()));
        let zone = Referral::Zone { zone: name.clone(), servers: vec![parsed("ns.phones.example.com")] };
        assert_eq!(referral(&answer).as_ref(), Ok(&zone));
        answer.metadata.response_code = ResponseCode::Refused;
        assert!(referral(&answer).is_err());

        for upward in [".", "com", "example.com", "example.net"] {
            let mut answer = Message::query().into_response();
            let mut owner = Name::from_ascii(upward).unwrap();
            owner.set_fqdn(true);
            answer.authorities.push(Record::from_rdata(owner, 60, ns()));
            assert!(referral(&answer).is_err(), "{upward}: a referral to elsewhere");
        }
    }

    #[test]
    fn an_authoritative_answer_without_records_means_no_delegation() {
        let name = parsed("_acme-challenge.phones.example.com");
        let referral = |answer: &Message| referral(answer, &parsed("example.com"), &name);
        let mut answer = Message::query().into_response();
        answer.metadata.authoritative = true;
        answer.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(referral(&answer), Ok(Referral::Nothing));
        answer.metadata.response_code = ResponseCode::NoError;
        answer.answers.push(record("_acme-challenge.phones.example.com", RData::CNAME(CNAME(parsed("A.example.net")))));
        assert_eq!(referral(&answer), Ok(Referral::Cname(parsed("a.example.net"))));
    }
}
