//! One authoritative server, and what its answers are worth.

use std::net::SocketAddr;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;

use super::failure::DnsError;
use super::name;
use super::query::{NoAnswer, Question, mnemonic};

/// One address of an authoritative server, or a server without an address.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    pub(super) label: String,
    pub(super) address: Result<SocketAddr, String>,
}

/// What a server says about a name.
#[derive(Debug)]
pub(super) enum Reply {
    /// The server holds the name's zone.
    Authoritative(Message),
    /// The server holds a zone above it, and delegates `zone`, which holds the name.
    Referral { zone: Name, message: Message },
}

/// Why a server says nothing about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoReply {
    /// It did not answer. It may be starting, or the network may be broken.
    Silent(String),
    /// It does not serve the zone. Resolvers mostly pass over such a server at once.
    Useless(String),
    /// It has no address, or cannot be reached from here at all.
    Unreachable(String),
}

impl NoReply {
    pub(super) fn reason(&self) -> &str {
        let (Self::Silent(reason) | Self::Useless(reason) | Self::Unreachable(reason)) = self;
        reason
    }
}

impl Authority {
    /// One authority for each of the `addresses` of a server.
    pub(super) fn each(named: &str, addresses: Result<Vec<SocketAddr>, DnsError>) -> Vec<Self> {
        let nowhere = |reason: String| vec![Self { label: named.to_owned(), address: Err(reason) }];
        match addresses {
            Ok(addresses) if addresses.is_empty() => nowhere("it has no address".to_owned()),
            Ok(addresses) => addresses.into_iter().map(|address| Self::at(named, address)).collect(),
            Err(error) => nowhere(error.to_string()),
        }
    }

    fn at(named: &str, address: SocketAddr) -> Self {
        let is_same = named == address.to_string() || named == address.ip().to_string();
        let label = if is_same { address.to_string() } else { format!("{named} ({address})") };
        Self { label, address: Ok(address) }
    }

    /// Asks for the records of `kind` that `name` has.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Reply, NoReply> {
        let address = self.address.clone().map_err(NoReply::Unreachable)?;
        let question = Question::to_authority(name, kind);
        match question.ask(address).await {
            Ok(answer) => judge(answer, question.name()).map_err(NoReply::Useless),
            Err(NoAnswer::NoRoute(reason)) => Err(NoReply::Unreachable(reason)),
            Err(NoAnswer::Silent(reason) | NoAnswer::Truncated(reason)) => Err(NoReply::Silent(reason)),
        }
    }

    /// The serial number of its copy of `zone`.
    pub(super) async fn serial(&self, zone: &Name) -> Option<u32> {
        let Ok(Reply::Authoritative(answer)) = self.ask(zone, RecordType::SOA).await else { return None };
        answer
            .answers
            .iter()
            .find_map(|record| if let RData::SOA(soa) = &record.data { Some(soa.serial) } else { None })
    }
}

/// Asks all `servers` at once, and returns the first reply with its server. Fails with each server's reason.
pub(super) async fn first_reply(
    servers: &[Authority],
    name: &Name,
    kind: RecordType,
) -> Result<(Authority, Reply), Vec<String>> {
    // Aborts its tasks when it is dropped.
    let mut queries = JoinSet::new();
    for server in servers.iter().cloned() {
        let name = name.clone();
        queries.spawn(async move {
            let reply = server.ask(&name, kind).await;
            (server, reply)
        });
    }
    let mut reasons = Vec::new();
    while let Some(done) = queries.join_next().await {
        match done {
            Ok((server, Ok(reply))) => return Ok((server, reply)),
            Ok((server, Err(no_reply))) => reasons.push(format!("{}: {}", server.label, no_reply.reason())),
            Err(_) => {}
        }
    }
    reasons.sort();
    Err(reasons)
}

/// The target of the CNAME record that `name` has in `answer`.
pub(super) fn cname_target(answer: &Message, name: &Name) -> Option<Name> {
    let mut own = answer.answers.iter().filter(|record| record.name == *name);
    own.find_map(|it| if let RData::CNAME(target) = &it.data { Some(target.0.to_lowercase()) } else { None })
}

/// Whether the CNAME records in `answer` lead from `name` back to one of their names.
fn has_cname_ring(answer: &Message, name: &Name) -> bool {
    let mut chain = vec![name.clone()];
    while let Some(target) = chain.last().and_then(|last| cname_target(answer, last)) {
        if chain.contains(&target) {
            return true;
        }
        chain.push(target);
    }
    false
}

/// What an answer about `asked` says. As a resolver, accepts only what is authoritative or leads towards the name.
pub(super) fn judge(answer: Message, asked: &Name) -> Result<Reply, String> {
    match answer.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain if answer.authoritative => Ok(Reply::Authoritative(answer)),
        // BIND answers so to a ring, and shows it.
        ResponseCode::ServFail if answer.authoritative && has_cname_ring(&answer, asked) => {
            Ok(Reply::Authoritative(answer))
        }
        ResponseCode::NoError if answer.answers.is_empty() => {
            let owners = answer.authorities.iter().filter(|record| record.record_type() == RecordType::NS);
            let mut owners = owners.map(|record| record.name.to_lowercase());
            match owners.find(|owner| !owner.is_root() && owner.zone_of(asked)) {
                Some(zone) => Ok(Reply::Referral { zone, message: answer }),
                None => Err(not_authoritative(asked)),
            }
        }
        ResponseCode::NoError | ResponseCode::NXDomain => Err(not_authoritative(asked)),
        code => Err(format!("it answers {}", mnemonic(code))),
    }
}

fn not_authoritative(asked: &Name) -> String {
    format!("its answer about {} is not authoritative (no AA)", name::text(asked))
}

#[cfg(test)]
mod tests {
    use hickory_net::proto::rr::Record;
    use hickory_net::proto::rr::rdata;

    use super::*;

    fn parsed(text: &str) -> Name {
        name::parse(text).unwrap()
    }

    fn answer(change: impl FnOnce(&mut Message)) -> Result<Reply, String> {
        let mut answer = Message::query().into_response();
        change(&mut answer);
        judge(answer, &parsed("_acme-challenge.phones.example.com"))
    }

    fn delegates(zone: &str) -> Result<Reply, String> {
        let owner = if zone == "." { Name::root() } else { parsed(zone) };
        let server = RData::NS(rdata::NS(parsed("ns.example.net")));
        answer(|it| it.authorities.push(Record::from_rdata(owner, 60, server)))
    }

    #[test]
    fn answer_without_aa_is_no_answer() {
        assert!(matches!(answer(|it| it.metadata.authoritative = true), Ok(Reply::Authoritative(_))));
        let from_cache = answer(|_| ()).unwrap_err();
        assert!(from_cache.ends_with("is not authoritative (no AA)"), "{from_cache}");
        assert!(answer(|it| it.metadata.response_code = ResponseCode::NXDomain).is_err());
    }

    #[test]
    fn servfail_that_shows_a_ring_of_aliases_is_an_answer() {
        let [asked, other, end] = ["_acme-challenge.phones.example.com", "other.example.com", "end.example.com"];
        let cname = |owner: &str, target: &str| {
            Record::from_rdata(parsed(owner), 60, RData::CNAME(rdata::CNAME(parsed(target))))
        };
        let failed = |records: Vec<Record>| {
            answer(|it| {
                it.metadata.authoritative = true;
                it.metadata.response_code = ResponseCode::ServFail;
                it.answers = records;
            })
        };
        assert!(matches!(failed(vec![cname(asked, asked)]), Ok(Reply::Authoritative(_))));
        assert!(matches!(failed(vec![cname(asked, other), cname(other, asked)]), Ok(Reply::Authoritative(_))));
        for records in [vec![], vec![cname(asked, other), cname(other, end)], vec![cname(other, other)]] {
            assert_eq!(failed(records).unwrap_err(), "it answers SERVFAIL");
        }
    }

    #[test]
    fn referral_must_lead_towards_the_name() {
        for zone in ["com", "Example.com", "phones.example.com", "_acme-challenge.phones.example.com"] {
            let Ok(Reply::Referral { zone: found, .. }) = delegates(zone) else { panic!("{zone}") };
            assert_eq!(found, parsed(zone));
        }
        for zone in [".", "example.net", "other.example.com", "below._acme-challenge.phones.example.com"] {
            assert!(delegates(zone).is_err(), "{zone}");
        }
    }

    #[test]
    fn error_is_named_as_dig_names_it() {
        for (code, mnemonic) in [
            (ResponseCode::Refused, "REFUSED"),
            (ResponseCode::ServFail, "SERVFAIL"),
            (ResponseCode::NotAuth, "NOTAUTH"),
        ] {
            let reason = answer(|it| {
                it.metadata.authoritative = true;
                it.metadata.response_code = code;
            });
            assert_eq!(reason.unwrap_err(), format!("it answers {mnemonic}"));
        }
    }
}
