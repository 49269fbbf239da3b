//! Asks resolvers, each in turn, for name servers and their addresses.
//!
//! A resolver caches what it is asked, negative answers too, and a CA may share its cache. Thus names of challenges are
//! asked of authoritative servers alone: see [`lookup`](super::lookup).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name, RData, Record, RecordType};

use super::failure::DnsError;
use super::name;
use super::query::{Attempt, Question, mnemonic};
use super::scoped::ScopedAddress;
use super::settings::{Host, HostPort, PORT};

const SYSTEM_RESOLVERS: &str = "/etc/resolv.conf";
/// How long the system's resolver may take, which asks several servers in turn.
const SYSTEM_TIMEOUT: Duration = Duration::from_secs(10);

/// The resolvers, in the order of use.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    servers: Vec<ResolverAddress>,
    is_configured: bool,
}

/// A resolver as the operator or `/etc/resolv.conf` writes it, and its address, or why it has none now.
#[derive(Debug, Clone)]
struct ResolverAddress {
    label: String,
    address: Result<SocketAddr, String>,
}

impl Resolver {
    /// The `configured` resolvers, or the system's current ones.
    pub(super) fn new(configured: &[String]) -> Result<Self, DnsError> {
        if configured.is_empty() {
            // A missing file is the same as an empty one, as for the system.
            let text = fs::read_to_string(SYSTEM_RESOLVERS).unwrap_or_default();
            return Ok(Self { servers: system_resolvers(&text), is_configured: false });
        }
        let address = |text: &String| HostPort::address(text).map(|address| ResolverAddress::new(text, address));
        let servers = configured.iter().map(address).collect::<Result<_, _>>().map_err(DnsError::Setting)?;
        Ok(Self { servers, is_configured: true })
    }

    /// Queries for the records of `kind` that `name` has. The answer lists them, or says that there are none.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, DnsError> {
        let question = Question::to_resolver(name, kind);
        let mut reasons = Vec::new();
        for attempt in Attempt::ORDER {
            for ResolverAddress { label, address } in &self.servers {
                let answer = match address {
                    Ok(address) => question.ask_by(attempt, *address).await.map_err(|it| it.reason().to_owned()),
                    Err(reason) => Err(reason.clone()),
                };
                match answer {
                    Ok(answer) if matches!(answer.response_code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                        return Ok(answer);
                    }
                    Ok(answer) => reasons.push(format!("{label}: it answers {}", mnemonic(answer.response_code))),
                    Err(reason) => reasons.push(format!("{label}: {reason}")),
                }
            }
        }
        reasons.sort();
        reasons.dedup();
        Err(DnsError::Resolve { name: name::text(name), kind: kind.to_string(), reasons })
    }

    /// All addresses of the host `name`. If the query for one family fails, the other's addresses are returned.
    pub(super) async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, DnsError> {
        let (mut addresses, mut failure) = (Vec::new(), None);
        let (v4, v6) = tokio::join!(self.ask(name, RecordType::A), self.ask(name, RecordType::AAAA));
        for answer in [v4, v6] {
            match answer {
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

    /// The name servers of `zone`; none if it is not a zone.
    pub(super) async fn name_servers(&self, zone: &Name) -> Result<Vec<Name>, DnsError> {
        Ok(name_servers(&self.ask(zone, RecordType::NS).await?.answers, zone))
    }

    /// The addresses of a server that the setting `key` names. Without configured resolvers the system resolves the
    /// name, /etc/hosts included.
    pub(super) async fn server(&self, text: &str, key: &'static str) -> Result<Vec<SocketAddr>, DnsError> {
        let HostPort { host, port } = HostPort::parse(text).map_err(DnsError::Setting)?;
        let not_found = |host: &str, reason: String| DnsError::NoAddress { host: host.to_owned(), key, reason };
        let host = match host {
            Host::Address(address) => {
                let address = address.at(port).map_err(|reason| not_found(text, reason))?;
                return Ok(vec![address]);
            }
            Host::Name(host) => host,
        };
        let found: Vec<SocketAddr> = if self.is_configured {
            let name = name::parse(&host).map_err(DnsError::Setting)?;
            let found = self.addresses(&name).await.map_err(|error| not_found(&host, error.to_string()))?;
            found.into_iter().map(|address| SocketAddr::new(address, port)).collect()
        } else {
            let look_up = tokio::net::lookup_host((host.as_str(), port));
            let found = tokio::time::timeout(SYSTEM_TIMEOUT, look_up).await;
            let found = found.map_err(|_| not_found(&host, "the system's resolver takes too long".to_owned()))?;
            found.map_err(|error| not_found(&host, error.to_string()))?.collect()
        };
        if found.is_empty() {
            return Err(not_found(&host, "it has neither A nor AAAA records".to_owned()));
        }
        Ok(found)
    }
}

impl ResolverAddress {
    fn new(text: &str, address: Result<SocketAddr, String>) -> Self {
        let label = address.as_ref().map_or_else(|_| text.to_owned(), ToString::to_string);
        Self { label, address }
    }
}

/// The servers in the NS records of `zone` among `records`, each once.
pub(super) fn name_servers<'a>(records: impl IntoIterator<Item = &'a Record>, zone: &Name) -> Vec<Name> {
    let of_zone = records.into_iter().filter(|record| record.name == *zone);
    let mut servers: Vec<Name> = of_zone
        .filter_map(|record| if let RData::NS(server) = &record.data { Some(server.0.to_lowercase()) } else { None })
        .collect();
    servers.sort();
    servers.dedup();
    servers
}

/// The servers in `/etc/resolv.conf`. "If no nameserver entries are present, the default is to use the name server on
/// the local machine." (resolv.conf(5))
fn system_resolvers(text: &str) -> Vec<ResolverAddress> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| words.next())?
    });
    let server = |text| Some(ResolverAddress::new(text, ScopedAddress::parse(text)?.at(PORT)));
    let mut servers: Vec<ResolverAddress> = addresses.filter_map(server).collect();
    if servers.is_empty() {
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
        servers.push(ResolverAddress { label: local.to_string(), address: Ok(local) });
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<String> {
        system_resolvers(text).into_iter().map(|server| server.label).collect()
    }

    #[test]
    fn system_resolvers_are_read_from_resolv_conf() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # home\nnameserver\noptions x";
        assert_eq!(labels(text), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(labels("search example.com"), ["127.0.0.1:53"]);
    }

    #[test]
    fn link_local_resolver_keeps_its_interface() {
        assert_eq!(labels("nameserver fe80::1%lo"), ["[fe80::1%1]:53"]);
        let absent = system_resolvers("nameserver fe80::1%absent0");
        assert_eq!(absent.len(), 1, "another resolver does not take its place");
        assert_eq!((absent[0].label.as_str(), absent[0].address.is_err()), ("fe80::1%absent0", true));
    }
}
