//! Finds where a challenge's TXT records go: follows CNAME records, then finds the zone of their target.

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::{Name, RData, RecordType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::authority::{Authority, Reply, cname_target, first_reply};
use super::failure::DnsError;
use super::lookup::{Answered, Lookup};
use super::name;

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
    lookup: &Lookup,
    challenge: &Name,
    configured: Option<&Name>,
) -> Result<RecordLocation, DnsError> {
    let (name, answered, via) = follow(lookup, challenge).await?;
    let zone = match configured {
        Some(zone) if zone.zone_of(&name) => zone.clone(),
        Some(zone) => {
            return Err(DnsError::OutsideZone { name: name::text(&name), zone: name::text(zone), via });
        }
        None => zone_of(lookup, &answered, &name).await?,
    };
    Ok(RecordLocation { name: name::text(&name), zone: name::text(&zone), via })
}

/// Follows CNAME records from `start`. Returns the last name, the answer about it, and the names on the way.
async fn follow(lookup: &Lookup, start: &Name) -> Result<(Name, Answered, Vec<String>), DnsError> {
    let mut name = start.clone();
    let mut via = Vec::new();
    loop {
        let is_known = |answer: &Message| cname_target(answer, &name).is_some() || !is_from_root(answer);
        let answered = lookup.ask(&name, RecordType::CNAME, &name, is_known).await?;
        let Some(target) = own_cname(&answered.message, &answered.servers, &name).await? else {
            return Ok((name, answered, via));
        };
        via.push(name::text(&name));
        let is_ring = via.contains(&name::text(&target));
        if is_ring || via.len() > MOST_CNAMES {
            via.push(name::text(&target));
            return Err(DnsError::CnameChain { chain: via });
        }
        name = target;
    }
}

/// The target of the CNAME record that `name` itself has, by an `answer` of one of `servers`.
///
/// A wildcard CNAME answers for every name that does not exist. A TXT record at `name`, or a delegation of it, makes the
/// name exist, and the wildcard no longer answers for it. Following the wildcard would lead to an unrelated zone. So the
/// same servers are asked about a random sibling, which does not exist. If it has the same CNAME, that is a wildcard's.
pub(super) async fn own_cname(answer: &Message, servers: &[Authority], name: &Name) -> Result<Option<Name>, DnsError> {
    let Some(target) = cname_target(answer, name) else { return Ok(None) };
    let Some(sibling) = name::random_below(&name.base_name()) else { return Ok(Some(target)) };
    let reply = first_reply(servers, &sibling, RecordType::CNAME).await;
    let (_, reply) =
        reply.map_err(|silent| DnsError::AuthoritiesSilent { zone: name::text(&name.base_name()), silent })?;
    let wildcard = match &reply {
        Reply::Authoritative(message) => cname_target(message, &sibling),
        Reply::Referral { .. } => None,
    };
    Ok(Some(target).filter(|target| wildcard.as_ref() != Some(target)))
}

/// Whether the root zone answers that the name does not exist.
fn is_from_root(answer: &Message) -> bool {
    let mut records = answer.authorities.iter();
    records.any(|record| matches!(record.data, RData::SOA(_)) && record.name.is_root())
}

/// The zone that holds `name`. If the primary holds the name in a zone further down, that is the zone: inside a network,
/// there may be zones that are not delegated in public.
async fn zone_of(lookup: &Lookup, answered: &Answered, name: &Name) -> Result<Name, DnsError> {
    let (found, at_primary) = tokio::join!(lookup.zone_of(answered, name), lookup.zone_at_primary(name));
    let deepest = found.into_iter().chain(at_primary).max_by_key(Name::num_labels);
    deepest.ok_or_else(|| DnsError::NoZone { name: name::text(name) })
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::rr::Record;
    use hickory_net::proto::rr::rdata;

    use super::*;

    #[test]
    fn only_a_cname_owned_by_the_queried_name_is_followed() {
        let [a, b, c] = ["a.example", "b.example", "c.example"].map(|text| name::parse(text).unwrap());
        let mut answer = Message::query().into_response();
        answer.answers.push(Record::from_rdata(b.clone(), 60, RData::CNAME(rdata::CNAME(c))));
        assert_eq!(cname_target(&answer, &a), None);
        answer.answers.push(Record::from_rdata(a.clone(), 60, RData::CNAME(rdata::CNAME(b.clone()))));
        assert_eq!(cname_target(&answer, &a), Some(b));
    }
}
