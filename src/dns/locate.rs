//! Finds where a challenge's TXT records go: follows CNAME records, then finds the zone of their target.

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::{Name, RData, RecordType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::failure::DnsError;
use super::name;
use super::resolve::Resolver;

/// CAs follow at least as many. A longer chain is a mistake.
const MOST_CNAMES: usize = 8;

/// Where values go. Names are lower case, without the last dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordLocation {
    /// The records' owner.
    pub name: String,
    /// The zone that holds it.
    pub zone: String,
    /// The names whose CNAME records led there, from the challenge's own on.
    #[serde(default)]
    pub via: Vec<String>,
}

/// Finds the location of `challenge`. A `configured` zone takes precedence over the zone that DNS shows.
pub(super) async fn locate(
    resolver: &Resolver,
    challenge: &Name,
    configured: Option<&Name>,
) -> Result<RecordLocation, DnsError> {
    let (name, via) = follow(resolver, challenge).await?;
    let zone = match configured {
        Some(zone) if zone.zone_of(&name) => zone.clone(),
        Some(zone) => {
            return Err(DnsError::OutsideZone { name: name::text(&name), zone: name::text(zone), via });
        }
        None => zone_of(resolver, &name).await?,
    };
    Ok(RecordLocation { name: name::text(&name), zone: name::text(&zone), via })
}

/// Follows CNAME records from `start`. Returns the last name, and the names on the way.
async fn follow(resolver: &Resolver, start: &Name) -> Result<(Name, Vec<String>), DnsError> {
    let mut name = start.clone();
    let mut via = Vec::new();
    while let Some(target) = own_cname(resolver, &name).await? {
        via.push(name::text(&name));
        let is_ring = via.contains(&name::text(&target));
        if is_ring || via.len() > MOST_CNAMES {
            via.push(name::text(&target));
            return Err(DnsError::CnameChain { chain: via });
        }
        name = target;
    }
    Ok((name, via))
}

/// The target of the CNAME record that `name` itself has.
///
/// A wildcard CNAME answers for every name that does not exist. A TXT record at `name` makes the name exist, and the
/// wildcard no longer answers for it. Following the wildcard would lead to an unrelated zone. So a random sibling,
/// which does not exist, is queried too. If it has the same CNAME, that is a wildcard's.
async fn own_cname(resolver: &Resolver, name: &Name) -> Result<Option<Name>, DnsError> {
    let Some(target) = cname_in(&resolver.ask(name, RecordType::CNAME).await?, name) else { return Ok(None) };
    let Some(sibling) = name::random_below(&name.base_name()) else { return Ok(Some(target)) };
    let wildcard = cname_in(&resolver.ask(&sibling, RecordType::CNAME).await?, &sibling);
    Ok(Some(target).filter(|target| wildcard.as_ref() != Some(target)))
}

fn cname_in(answer: &Message, name: &Name) -> Option<Name> {
    answer.answers.iter().filter(|record| record.name == *name).find_map(|record| match &record.data {
        RData::CNAME(target) => Some(target.0.to_lowercase()),
        _ => None,
    })
}

/// The zone that holds `name`. A negative answer for SOA carries the SOA of its zone. Some resolvers strip that, so the
/// ancestors are queried too.
async fn zone_of(resolver: &Resolver, name: &Name) -> Result<Name, DnsError> {
    let mut asked = name.clone();
    while !asked.is_root() {
        if let Some(zone) = zone_in(&resolver.ask(&asked, RecordType::SOA).await?, &asked) {
            return Ok(zone);
        }
        asked = asked.base_name();
    }
    Err(DnsError::NoZone { name: name::text(name) })
}

/// The owner of the SOA record in an answer, if it can be the zone of `name`. The zone of a CNAME's target cannot.
/// Neither can the root: its SOA means that no ancestor of `name` exists.
pub(super) fn zone_in(answer: &Message, name: &Name) -> Option<Name> {
    let records = answer.answers.iter().chain(&answer.authorities);
    let mut owners = records.filter(|record| matches!(record.data, RData::SOA(_))).map(|record| &record.name);
    owners.find(|owner| !owner.is_root() && owner.zone_of(name)).map(Name::to_lowercase)
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::rr::Record;
    use hickory_net::proto::rr::rdata::{self, SOA};

    use super::super::resolve::question;
    use super::*;

    fn parsed(text: &str) -> Name {
        name::parse(text).unwrap()
    }

    fn soa(owner: &Name) -> Record {
        Record::from_rdata(owner.clone(), 60, RData::SOA(SOA::new(owner.clone(), owner.clone(), 1, 1, 1, 1, 1)))
    }

    #[test]
    fn zone_is_the_owner_of_the_soa_record() {
        let name = parsed("_acme-challenge.phones.example.com");
        let mut answer = question(&name, RecordType::SOA, true).into_response();
        assert_eq!(zone_in(&answer, &name), None);
        answer.authorities.push(soa(&parsed("Example.com")));
        assert_eq!(zone_in(&answer, &name), Some(parsed("example.com")));
        answer.answers.push(soa(&name));
        assert_eq!(zone_in(&answer, &name), Some(name.clone()), "a zone of its own");
    }

    #[test]
    fn soa_of_an_unrelated_or_root_zone_is_ignored() {
        let name = parsed("_acme-challenge.phones.example.com");
        for other in [parsed("elsewhere.example"), parsed("phones.example.org"), Name::root()] {
            let mut answer = question(&name, RecordType::SOA, true).into_response();
            answer.authorities.push(soa(&other));
            assert_eq!(zone_in(&answer, &name), None, "{other}");
        }
    }

    #[test]
    fn only_a_cname_owned_by_the_queried_name_is_followed() {
        let (a, b, c) = (parsed("a.example"), parsed("b.example"), parsed("c.example"));
        let mut answer = question(&a, RecordType::CNAME, true).into_response();
        answer.answers.push(Record::from_rdata(b.clone(), 60, RData::CNAME(rdata::CNAME(c))));
        assert_eq!(cname_in(&answer, &a), None);
        answer.answers.push(Record::from_rdata(a.clone(), 60, RData::CNAME(rdata::CNAME(b.clone()))));
        assert_eq!(cname_in(&answer, &a), Some(b));
    }
}
