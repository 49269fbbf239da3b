//! Asks the authoritative servers of a name, as a CA's resolver does: from a zone above, along its delegations.
//!
//! No question about a challenge's name, a CNAME target, or a name beside them reaches a cache. A resolver caches that a
//! name does not exist; from the proof of that in a signed zone, it concludes that names beside it do not exist either
//! (RFC 8198). A CA that shares the cache would not see the challenge. So a resolver is asked only for what exists: the
//! name servers of zones above the name, and their addresses. Authoritative servers are asked for the rest.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::authority::{Authority, Reply, first_reply};
use super::failure::DnsError;
use super::name;
use super::resolve::{Resolver, name_servers};
use super::settings::{DnsSettings, PORT};

/// The limit of what may be left out: the primary's own view of its zones, and the parent zone's delegation.
const EXTRA_TIMEOUT: Duration = Duration::from_secs(5);

/// How a site's names are looked up.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    resolver: Resolver,
    authorities: Vec<String>,
    primary: Option<String>,
}

/// An authoritative answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) message: Message,
    /// The server that gave it.
    pub(super) server: Authority,
    /// All servers of the zone that is asked, as far as the delegation names them.
    pub(super) servers: Vec<Authority>,
    /// The last delegation on the way.
    delegation: Option<Delegation>,
}

/// The servers of `zone` by its NS records.
#[derive(Debug)]
struct Delegation {
    zone: Name,
    servers: Vec<Name>,
    /// The parent zone's referral, with glue. `None` if a resolver gave the records, which may be the zone's own.
    referral: Option<Message>,
}

/// Where the delegations towards a name lead.
#[derive(Debug)]
pub(super) enum Lead {
    /// `servers`, which are those of `zone`, answer about the name.
    /// `delegation` is the last one on the way.
    Answer { zone: Name, servers: Vec<Authority>, message: Message, delegation: Option<Box<ParentReferral>> },
    /// A zone above delegates the zone that holds the name. Its servers were not asked, or do not answer.
    Delegation(ParentReferral),
}

/// A delegation, as the servers of the zone above give it.
#[derive(Debug)]
pub(super) struct ParentReferral {
    pub(super) parent: Name,
    /// The servers of `parent`.
    pub(super) parent_servers: Vec<Authority>,
    /// The delegated zone.
    pub(super) zone: Name,
    pub(super) message: Message,
}

/// The servers that a CA may ask about a zone.
#[derive(Debug)]
pub(super) struct ZoneServers {
    pub(super) servers: Vec<Authority>,
    /// How the parent's delegation differs from the zone's own NS records, if it does.
    pub(super) mismatch: Option<String>,
    /// Why the two were not compared, if so.
    pub(super) not_compared: Option<String>,
}

impl Lookup {
    /// Looks names up through `resolvers` or, if empty, the system's; with the servers that `update` names.
    pub(super) fn new(resolvers: &[String], update: Option<&DnsSettings>) -> Result<Self, DnsError> {
        Ok(Self {
            resolver: Resolver::new(resolvers)?,
            authorities: update.map_or_else(Vec::new, |settings| settings.authorities.clone()),
            primary: update.map(|settings| settings.primary.clone()),
        })
    }

    pub(super) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Asks the authoritative servers of `name` for its records of `kind`: the configured ones, else those that are found
    /// from above, else the primary. The first answer that is `enough` counts.
    ///
    /// No resolver is asked about `secret` or a name below it.
    pub(super) async fn ask(
        &self,
        name: &Name,
        kind: RecordType,
        secret: &Name,
        enough: impl Fn(&Message) -> bool,
    ) -> Result<Answered, DnsError> {
        let (mut silent, mut unresolved) = (None, None);
        let configured = self.configured().await;
        if let Ok(answered) = self.descend(None, configured, name, kind, secret).await
            && enough(&answered.message)
        {
            return Ok(answered);
        }
        for start in starts(name, secret) {
            // From there, the same silent servers would be found.
            if start.num_labels() == 1 && silent.is_some() {
                continue;
            }
            match self.resolver.name_servers(&start).await {
                Ok(servers) if servers.is_empty() => {}
                Ok(servers) => {
                    let delegation = Delegation { zone: start.clone(), servers, referral: None };
                    let servers = self.at(&delegation.servers, &[], secret).await;
                    match self.descend(Some(delegation), servers, name, kind, secret).await {
                        Ok(answered) if enough(&answered.message) => return Ok(answered),
                        Ok(_) => {}
                        Err((zone, reasons)) => {
                            let zone = name::text(&zone.unwrap_or(start));
                            silent = Some(DnsError::AuthoritiesSilent { zone, silent: reasons });
                        }
                    }
                }
                Err(error) => _ = unresolved.get_or_insert(error),
            }
        }
        if let Ok(answered) = self.descend(None, self.primary().await, name, kind, secret).await
            && enough(&answered.message)
        {
            return Ok(answered);
        }
        Err(silent.or(unresolved).unwrap_or_else(|| DnsError::NoZone { name: name::text(name) }))
    }

    /// Follows delegations from `servers` to an authoritative answer. Fails with the zone at which it ends, if a delegation
    /// names it, and the reasons of its servers.
    async fn descend(
        &self,
        mut delegation: Option<Delegation>,
        mut servers: Vec<Authority>,
        name: &Name,
        kind: RecordType,
        secret: &Name,
    ) -> Result<Answered, (Option<Name>, Vec<String>)> {
        loop {
            let end = || delegation.as_ref().map(|it| it.zone.clone());
            let (server, reply) = first_reply(&servers, name, kind).await.map_err(|reasons| (end(), reasons))?;
            let (zone, message) = match reply {
                Reply::Authoritative(message) => return Ok(Answered { message, server, servers, delegation }),
                Reply::Referral { zone, message } => (zone, message),
            };
            let is_progress = delegation.as_ref().is_none_or(|above| above.zone.num_labels() < zone.num_labels());
            if !is_progress {
                return Err((end(), vec![format!("{}: it delegates {} again", server.label, name::text(&zone))]));
            }
            let servers_of_zone = name_servers(&message.authorities, &zone);
            servers = self.at(&servers_of_zone, &[&message], secret).await;
            delegation = Some(Delegation { servers: servers_of_zone, zone, referral: Some(message) });
        }
    }

    /// Follows the delegations towards `name`, from the zones above: to an answer, to the zone that `is_end`, or to a zone
    /// whose servers do not answer, if that `may_end` the way.
    pub(super) async fn lead(
        &self,
        name: &Name,
        is_end: impl Fn(&Name) -> bool,
        may_end: impl Fn(&Name) -> bool,
    ) -> Result<Lead, DnsError> {
        let (mut silent, mut unresolved) = (None, None);
        for start in starts(name, name) {
            // From the top-level domain, the same silent servers would be found.
            if is_end(&start) || (start.num_labels() == 1 && silent.is_some()) {
                continue;
            }
            match self.resolver.name_servers(&start).await {
                Ok(servers) if servers.is_empty() => {}
                Ok(servers) => match self.follow(start, servers, name, &is_end, &may_end).await {
                    Ok(lead) => return Ok(lead),
                    Err(error) => silent = Some(error),
                },
                Err(error) => _ = unresolved.get_or_insert(error),
            }
        }
        Err(silent.or(unresolved).unwrap_or_else(|| DnsError::NoZone { name: name::text(name) }))
    }

    /// The same from the servers of `zone` on.
    async fn follow(
        &self,
        mut zone: Name,
        names: Vec<Name>,
        name: &Name,
        is_end: &impl Fn(&Name) -> bool,
        may_end: &impl Fn(&Name) -> bool,
    ) -> Result<Lead, DnsError> {
        let mut servers = self.at(&names, &[], name).await;
        let mut last: Option<ParentReferral> = None;
        loop {
            let (below, message) = match (first_reply(&servers, name, RecordType::NS).await, last) {
                (Ok((_, Reply::Authoritative(message))), delegation) => {
                    let delegation = delegation.map(Box::new);
                    return Ok(Lead::Answer { zone, servers, message, delegation });
                }
                (Ok((_, Reply::Referral { zone: below, message })), _) if below.num_labels() > zone.num_labels() => {
                    (below, message)
                }
                (_, Some(referral)) if may_end(&zone) => return Ok(Lead::Delegation(referral)),
                (Ok((server, Reply::Referral { zone: below, .. })), _) => {
                    let reasons = vec![format!("{}: it delegates {} again", server.label, name::text(&below))];
                    return Err(DnsError::ParentSilent { parent: name::text(&zone), name: name::text(name), reasons });
                }
                (Err(reasons), _) => {
                    return Err(DnsError::ParentSilent { parent: name::text(&zone), name: name::text(name), reasons });
                }
            };
            let names = name_servers(&message.authorities, &below);
            let next = if is_end(&below) { Vec::new() } else { self.at(&names, &[&message], name).await };
            let referral = ParentReferral {
                parent: std::mem::replace(&mut zone, below.clone()),
                parent_servers: std::mem::replace(&mut servers, next),
                zone: below,
                message,
            };
            if is_end(&zone) {
                return Ok(Lead::Delegation(referral));
            }
            last = Some(referral);
        }
    }

    /// The addresses of name servers: by the resolver, else from `messages`, which carry them as glue.
    async fn at(&self, servers: &[Name], messages: &[&Message], secret: &Name) -> Vec<Authority> {
        let mut found = JoinSet::new();
        for (index, server) in servers.iter().cloned().enumerate() {
            let glue: Vec<SocketAddr> = messages.iter().flat_map(|message| glue(message, &server)).collect();
            let is_secret = secret.zone_of(&server);
            let resolver = self.resolver.clone();
            found.spawn(async move {
                let resolved = if is_secret { Ok(Vec::new()) } else { resolver.addresses(&server).await };
                let resolved =
                    resolved.map(|it| it.into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect::<Vec<_>>());
                let addresses = match resolved {
                    Ok(none) if none.is_empty() => Ok(glue),
                    Err(_) if !glue.is_empty() => Ok(glue),
                    resolved => resolved,
                };
                (index, Authority::each(&name::text(&server), addresses))
            });
        }
        let mut found = found.join_all().await;
        found.sort_by_key(|(index, _)| *index);
        found.into_iter().flat_map(|(_, authorities)| authorities).collect()
    }

    /// The servers of the setting `authorities`.
    async fn configured(&self) -> Vec<Authority> {
        let mut found = Vec::new();
        for text in &self.authorities {
            found.extend(Authority::each(text, self.resolver.server(text, "authorities").await));
        }
        found
    }

    async fn primary(&self) -> Vec<Authority> {
        match &self.primary {
            Some(primary) => Authority::each(primary, self.resolver.server(primary, "primary").await),
            None => Vec::new(),
        }
    }

    /// The zone that holds `name` by an authoritative answer about it. A server that leaves the SOA record out of negative
    /// answers is asked for the SOA records of the names above.
    pub(super) async fn zone_of(&self, answered: &Answered, name: &Name) -> Option<Name> {
        if let Some(zone) = soa_owner(&answered.message, name) {
            return Some(zone);
        }
        let mut asked = name.clone();
        while !asked.is_root() {
            let reply = first_reply(&answered.servers, &asked, RecordType::SOA).await;
            if let Ok((_, Reply::Authoritative(message))) = reply
                && let Some(zone) = soa_owner(&message, name)
            {
                return Some(zone);
            }
            asked = asked.base_name();
        }
        None
    }

    /// The zone in which the primary holds `name`, if it says so within a short time.
    pub(super) async fn zone_at_primary(&self, name: &Name) -> Option<Name> {
        let asked = async {
            let (_, reply) = first_reply(&self.primary().await, name, RecordType::SOA).await.ok()?;
            if let Reply::Authoritative(message) = reply { soa_owner(&message, name) } else { None }
        };
        timeout(EXTRA_TIMEOUT, asked).await.ok().flatten()
    }

    /// The servers of `zone` that a CA may ask about `name` in it: the configured ones or, without those, the servers that
    /// the zone names itself and those to which its parent delegates. Beside configured ones, the delegation is compared only
    /// if the caller `compares` it.
    pub(super) async fn zone_servers(&self, zone: &Name, name: &Name, compares: bool) -> Result<ZoneServers, DnsError> {
        let is_named = |message: &Message| !name_servers(&message.answers, zone).is_empty();
        let configured = self.configured().await;
        if !configured.is_empty() {
            let (mismatch, not_compared) = if compares {
                match self.compare_delegation(zone, &configured).await {
                    Ok(mismatch) => (mismatch, None),
                    Err(reason) => (None, Some(not_compared(zone, &reason))),
                }
            } else {
                (None, None)
            };
            return usable(zone, ZoneServers { servers: configured, mismatch, not_compared });
        }
        let answered = match self.ask(zone, RecordType::NS, name, is_named).await {
            Err(DnsError::NoZone { .. }) => return Err(DnsError::NoAuthorities { zone: name::text(zone) }),
            answered => answered?,
        };
        let own = name_servers(&answered.message.answers, zone);
        let delegation = match answered.delegation.filter(|delegation| delegation.zone == *zone) {
            Some(Delegation { servers, referral: Some(referral), .. }) => Ok((servers, referral)),
            _ => self.delegated(zone).await,
        };
        let not_compared = delegation.as_ref().err().map(|reason| not_compared(zone, reason));
        let (delegated, referral) = delegation.ok().unzip();
        let delegated = delegated.unwrap_or_default();
        let only_delegated: Vec<Name> = delegated.iter().filter(|server| !own.contains(server)).cloned().collect();
        let mut servers = self.at(&own, &[&answered.message], name).await;
        let messages: Vec<&Message> = std::iter::once(&answered.message).chain(&referral).collect();
        servers.extend(self.at(&only_delegated, &messages, name).await);
        // Where the resolvers do not know the name servers, the server that answered stands for them.
        if servers.iter().all(|server| server.address.is_err()) {
            servers.push(answered.server);
        }
        usable(zone, ZoneServers { servers, mismatch: mismatch(zone, &own, &delegated), not_compared })
    }

    /// How the parent's delegation of `zone` differs from the NS records that `servers` have. Fails if it cannot be found out.
    async fn compare_delegation(&self, zone: &Name, servers: &[Authority]) -> Result<Option<String>, String> {
        let (reply, delegated) = tokio::join!(first_reply(servers, zone, RecordType::NS), self.delegated(zone));
        let own = match reply {
            Ok((_, Reply::Authoritative(message))) => name_servers(&message.answers, zone),
            Ok((server, Reply::Referral { .. })) => return Err(format!("{} does not hold the zone", server.label)),
            Err(reasons) => return Err(reasons.join("; ")),
        };
        Ok(mismatch(zone, &own, &delegated?.0))
    }

    /// The servers to which the parent of `zone` delegates, with the referral by one of the parent's servers. Fails with the
    /// reason if none gives it.
    async fn delegated(&self, zone: &Name) -> Result<(Vec<Name>, Message), String> {
        let lead = timeout(EXTRA_TIMEOUT, self.lead(zone, |found| found == zone, |_| false)).await;
        match lead.map_err(|_| format!("the zone above does not answer within {} s", EXTRA_TIMEOUT.as_secs()))? {
            Ok(Lead::Delegation(referral)) => Ok((name_servers(&referral.message.authorities, zone), referral.message)),
            Ok(Lead::Answer { zone: above, .. }) => {
                Err(format!("the name servers of {} hold this zone too, and show no delegation", name::text(&above)))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The zones above `secret` from which the servers of `name` can be found, in the order of use.
///
/// The zone nearest to the root comes first: it surely exists, so a resolver caches nothing negative about the names below.
/// The servers of a top-level domain are far away and asked last.
fn starts(name: &Name, secret: &Name) -> Vec<Name> {
    let mut above: Vec<Name> = Vec::new();
    let mut zone = name.clone();
    while !zone.is_root() {
        if *secret != zone && zone.zone_of(secret) {
            above.insert(0, zone.clone());
        }
        zone = zone.base_name();
    }
    if above.first().is_some_and(|zone| zone.num_labels() == 1) {
        above.rotate_left(1);
    }
    above
}

/// The addresses of `server` in the additional section.
pub(super) fn glue(message: &Message, server: &Name) -> Vec<SocketAddr> {
    let records = message.additionals.iter().filter(|record| record.name == *server);
    records.filter_map(|record| Some(SocketAddr::new(record.data.ip_addr()?, PORT))).collect()
}

/// The owner of the SOA record in an answer, if it can be the zone of `name`. The zone of a CNAME's target cannot.
/// Neither can the root: its SOA means that no ancestor of `name` exists.
pub(super) fn soa_owner(answer: &Message, name: &Name) -> Option<Name> {
    let records = answer.answers.iter().chain(&answer.authorities);
    let mut owners = records.filter(|record| matches!(record.data, RData::SOA(_))).map(|record| &record.name);
    owners.find(|owner| !owner.is_root() && owner.zone_of(name)).map(Name::to_lowercase)
}

/// Fails if no server has an address, since waiting does not change that.
fn usable(zone: &Name, found: ZoneServers) -> Result<ZoneServers, DnsError> {
    if found.servers.iter().any(|server| server.address.is_ok()) {
        return Ok(found);
    }
    let silent = found.servers.iter().map(|server| match &server.address {
        Err(reason) => format!("{}: {reason}", server.label),
        Ok(_) => server.label.clone(),
    });
    Err(DnsError::AuthoritiesSilent { zone: name::text(zone), silent: silent.collect() })
}

fn not_compared(zone: &Name, reason: &str) -> String {
    format!("{}: the parent's delegation was not compared with the zone's NS records: {reason}", name::text(zone))
}

/// How a delegation differs from the zone's `own` NS records. An unknown delegation does not.
pub(super) fn mismatch(zone: &Name, own: &[Name], delegated: &[Name]) -> Option<String> {
    let missing = |from: &[Name], among: &[Name]| {
        let missing = from.iter().filter(|server| !among.contains(server));
        missing.map(name::text).collect::<Vec<_>>().join(", ")
    };
    if delegated.is_empty() {
        return None;
    }
    let (only_parent, only_zone) = (missing(delegated, own), missing(own, delegated));
    let parts = [
        (!only_parent.is_empty()).then(|| {
            format!("the parent zone delegates to {only_parent}, which the zone's own NS records do not name")
        }),
        (!only_zone.is_empty())
            .then(|| format!("the zone's own NS records name {only_zone}, to which the parent zone does not delegate")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let remedy = "a CA asks the servers to which the parent delegates; correct the delegation at the registrar, or the NS records";
    (!parts.is_empty()).then(|| format!("{}: {}; {remedy}", name::text(zone), parts.join(", and ")))
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::rr::Record;
    use hickory_net::proto::rr::rdata::SOA;

    use super::*;

    fn parsed(text: &str) -> Name {
        name::parse(text).unwrap()
    }

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| parsed(text)).collect()
    }

    fn soa(owner: &Name) -> Record {
        Record::from_rdata(owner.clone(), 60, RData::SOA(SOA::new(owner.clone(), owner.clone(), 1, 1, 1, 1, 1)))
    }

    #[test]
    fn resolvers_are_asked_only_about_zones_above_the_challenge() {
        let challenge = parsed("_acme-challenge.phones.example.com");
        assert_eq!(starts(&challenge, &challenge), names(&["example.com", "phones.example.com", "com"]));
        assert_eq!(starts(&parsed("example.com"), &challenge), names(&["example.com", "com"]));
        assert_eq!(starts(&parsed("_acme-challenge.lan"), &parsed("_acme-challenge.lan")), names(&["lan"]));
        let sibling = parsed("provost-x.phones.example.com");
        assert_eq!(starts(&sibling, &challenge), names(&["example.com", "phones.example.com", "com"]));
        assert_eq!(starts(&parsed("com"), &parsed("com")), Vec::<Name>::new());
    }

    #[test]
    fn zone_is_the_owner_of_the_soa_record() {
        let name = parsed("_acme-challenge.phones.example.com");
        let mut answer = Message::query().into_response();
        assert_eq!(soa_owner(&answer, &name), None);
        answer.authorities.push(soa(&parsed("Example.com")));
        assert_eq!(soa_owner(&answer, &name), Some(parsed("example.com")));
        answer.answers.push(soa(&name));
        assert_eq!(soa_owner(&answer, &name), Some(name.clone()), "a zone of its own");
    }

    #[test]
    fn soa_of_an_unrelated_or_root_zone_is_ignored() {
        let name = parsed("_acme-challenge.phones.example.com");
        for other in [parsed("elsewhere.example"), parsed("phones.example.org"), Name::root()] {
            let mut answer = Message::query().into_response();
            answer.authorities.push(soa(&other));
            assert_eq!(soa_owner(&answer, &name), None, "{other}");
        }
    }

    #[test]
    fn delegation_is_compared_with_the_zones_ns_records() {
        let compare =
            |own: &[&str], delegated: &[&str]| mismatch(&parsed("example.com"), &names(own), &names(delegated));
        assert_eq!(compare(&["ns1.example.com"], &[]), None, "an unknown delegation");
        assert_eq!(compare(&["ns1.example.com", "ns2.example.com"], &["NS2.example.com", "ns1.example.com"]), None);
        let both = compare(&["ns1.example.com", "new.example.com"], &["ns1.example.com", "old.example.com"]).unwrap();
        assert!(both.starts_with("example.com: the parent zone delegates to old.example.com, which"), "{both}");
        assert!(both.contains("NS records name new.example.com, to which"), "{both}");
    }
}
