//! Queries resolvers: each in turn, twice. Never for TXT, since the resolver would cache a negative answer.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hickory_net::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};

use super::exchange::{self, over_tcp, over_udp};
use super::failure::DnsError;
use super::name;
use super::settings::{Host, HostPort, PORT};

const SYSTEM_RESOLVERS: &str = "/etc/resolv.conf";
/// How often each resolver is tried. It may lose a datagram, or restart.
const ROUNDS: usize = 2;

/// The resolvers, in the order of use.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    servers: Vec<SocketAddr>,
    is_configured: bool,
}

impl Resolver {
    /// The `configured` resolvers, or the system's current ones.
    pub(super) fn new(configured: &[String]) -> Result<Self, DnsError> {
        if !configured.is_empty() {
            let servers = configured.iter().map(|text| HostPort::address(text)).collect::<Result<_, _>>();
            return Ok(Self { servers: servers.map_err(DnsError::Setting)?, is_configured: true });
        }
        // A missing file is the same as an empty one, as for the system.
        let text = fs::read_to_string(SYSTEM_RESOLVERS).unwrap_or_default();
        Ok(Self { servers: system_resolvers(&text), is_configured: false })
    }

    /// Queries for the records of `kind` that `name` has. The answer lists them, or says that there are none.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, DnsError> {
        let mut reasons = Vec::new();
        for server in std::iter::repeat_n(&self.servers, ROUNDS).flatten() {
            match self.ask_one(*server, name, kind).await {
                Ok(answer) => return Ok(answer),
                Err(reason) => reasons.push(format!("{server}: {reason}")),
            }
        }
        reasons.sort();
        reasons.dedup();
        Err(DnsError::Resolve { name: name::text(name), kind: kind.to_string(), reasons })
    }

    async fn ask_one(&self, server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, String> {
        let question = question(name, kind, true);
        let bytes = question.to_vec().map_err(|error| error.to_string())?;
        let answer = over_udp(server, &bytes).await.map_err(|error| exchange::reason(&error))?;
        let mut answer = answer_to(&question, &answer)?;
        if answer.truncation {
            let whole = over_tcp(server, &bytes).await.map_err(|error| exchange::reason(&error))?;
            answer = answer_to(&question, &whole)?;
        }
        match answer.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
            code => Err(format!("it answers {code}")),
        }
    }

    /// All addresses of the host `name`. If the query for one family fails, the other's addresses are returned.
    pub(super) async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, DnsError> {
        let (mut addresses, mut failure) = (Vec::new(), None);
        for kind in [RecordType::A, RecordType::AAAA] {
            match self.ask(name, kind).await {
                // Of any owner: the resolver has followed CNAMEs.
                Ok(answer) => addresses.extend(answer.answers.iter().filter_map(|record| record.data.ip_addr())),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if addresses.is_empty() => Err(error),
            _ => Ok(addresses),
        }
    }

    /// The name servers of `zone`.
    pub(super) async fn name_servers(&self, zone: &Name) -> Result<Vec<Name>, DnsError> {
        let answer = self.ask(zone, RecordType::NS).await?;
        let mut servers: Vec<Name> = answer
            .answers
            .iter()
            .filter(|record| record.name == *zone)
            .filter_map(|record| if let RData::NS(server) = &record.data { Some(server.0.clone()) } else { None })
            .collect();
        servers.sort();
        servers.dedup();
        Ok(servers)
    }

    /// The addresses of a server that the setting `key` names. Without configured resolvers the system resolves the
    /// name, /etc/hosts included.
    pub(super) async fn server(&self, text: &str, key: &'static str) -> Result<Vec<SocketAddr>, DnsError> {
        let HostPort { host, port } = HostPort::parse(text).map_err(DnsError::Setting)?;
        let host = match host {
            Host::Address(address) => return Ok(vec![SocketAddr::new(address, port)]),
            Host::Name(host) => host,
        };
        let not_found = |reason: String| DnsError::NoAddress { host: host.clone(), key, reason };
        let found: Vec<SocketAddr> = if self.is_configured {
            let name = name::parse(&host).map_err(DnsError::Setting)?;
            let found = self.addresses(&name).await.map_err(|error| not_found(error.to_string()))?;
            found.into_iter().map(|address| SocketAddr::new(address, port)).collect()
        } else {
            let look_up = tokio::net::lookup_host((host.as_str(), port));
            let found = tokio::time::timeout(2 * exchange::PATIENCE, look_up).await;
            let found = found.map_err(|_| not_found("the system's resolver takes too long".to_owned()))?;
            found.map_err(|error| not_found(error.to_string()))?.collect()
        };
        if found.is_empty() { Err(not_found("it has neither A nor AAAA records".to_owned())) } else { Ok(found) }
    }
}

/// A query for the records of `kind` that `name` has.
pub(super) fn question(name: &Name, kind: RecordType, is_recursive: bool) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = is_recursive;
    message.add_query(Query::query(name.clone(), kind));
    message
}

/// Parses `bytes` as the answer to `question`.
pub(super) fn answer_to(question: &Message, bytes: &[u8]) -> Result<Message, String> {
    let answer = Message::from_vec(bytes).map_err(|_| "its answer cannot be read".to_owned())?;
    let is_answer =
        answer.id == question.id && answer.message_type == MessageType::Response && answer.op_code == OpCode::Query;
    // Some servers leave the question out of an error.
    let is_ours = answer.queries == question.queries
        || (answer.queries.is_empty() && answer.response_code != ResponseCode::NoError);
    if is_answer && is_ours { Ok(answer) } else { Err("its answer is to another question".to_owned()) }
}

/// The servers in `/etc/resolv.conf`. "If no nameserver entries are present, the default is to use the name server on
/// the local machine." (resolv.conf(5))
fn system_resolvers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| words.next())?
    });
    let mut servers: Vec<SocketAddr> =
        addresses.filter_map(|address| Some(SocketAddr::new(address.parse().ok()?, PORT))).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_resolvers_are_read_from_resolv_conf() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # home\nnameserver\noptions x";
        let found: Vec<String> = system_resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(system_resolvers("search example.com"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn answer_must_match_the_id_and_question_of_its_query() {
        let (a, b) = (name::parse("a.example").unwrap(), name::parse("b.example").unwrap());
        let asked = question(&a, RecordType::SOA, true);
        let answer = |change: &dyn Fn(&mut Message)| {
            let mut answer = asked.clone().into_response();
            change(&mut answer);
            answer_to(&asked, &answer.to_vec().unwrap())
        };
        assert!(answer(&|_| ()).is_ok());
        assert!(answer(&|it| it.metadata.id ^= 1).is_err());
        assert!(answer(&|it| it.metadata.message_type = MessageType::Query).is_err());
        assert!(answer(&|it| it.queries = question(&b, RecordType::SOA, true).queries).is_err());
        assert!(answer(&|it| it.queries.clear()).is_err());
        let refuse = |it: &mut Message| {
            it.queries.clear();
            it.metadata.response_code = ResponseCode::Refused;
        };
        assert!(answer(&refuse).is_ok());
        assert!(answer_to(&asked, &[0; 11]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn response_parser_accepts_any_bytes_without_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let asked = question(&name::parse("a.example").unwrap(), RecordType::SOA, true);
            let _ = answer_to(&asked, &bytes);
        }
    }
}
