//! What to change where a name server of the delegated zone does not prove to be this server. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::dns::failure::address_records;
use crate::dns::settings::PORT;

/// What a question for the proof finds at an address of a name server, if it is not the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// An answer without the proof, which resolvers take.
    WrongAnswer(String),
    /// An answer that resolvers pass over.
    Useless(String),
    Silent(String),
    /// This machine cannot send to the address.
    NoRoute(String),
}

/// The record that gives an address of a name server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressSource {
    /// A record in the zone that holds the server's name, or a wildcard record there.
    Zone,
    /// A resolver, because the servers of that zone do not answer.
    Resolver,
    /// Only the parent's glue.
    Glue,
    /// A record at the end of a CNAME record.
    Alias,
}

/// An address of a name server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServerAddress {
    pub(super) address: IpAddr,
    pub(super) source: AddressSource,
    /// Whether the settings name it as an address of this server.
    pub(super) is_ours: bool,
    /// Whether the same source gives an address of this server, too.
    pub(super) is_beside_ours: bool,
    /// Where this server listens for it, if that is not the port that resolvers ask.
    pub(super) other_port: Option<SocketAddr>,
}

/// The owner of a name server's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordOwner<'a> {
    /// The name server's own name, as far as it is known.
    Itself,
    /// The wildcard that leads the phones of the domain.
    PhonesWildcard,
    /// That wildcard would give it an address, and has none.
    MissingPhonesWildcard,
    OtherWildcard(&'a str),
}

/// A name server of the delegated zone. Names are without the final dot.
#[derive(Debug, Clone, Copy)]
pub(super) struct DelegatedServer<'a> {
    pub(super) zone: &'a str,
    pub(super) parent: &'a str,
    pub(super) name: &'a str,
    pub(super) owner: RecordOwner<'a>,
    /// The wildcard that leads the phones of the domain, such as `*.phones.example.com`.
    pub(super) phones_wildcard: &'a str,
    /// The name and the addresses of this server.
    pub(super) own_name: &'a str,
    pub(super) own_addresses: &'a [IpAddr],
    /// Whether it has this server's name, or one of its addresses.
    pub(super) is_this_server: bool,
    /// Whether another NS record leads to this server.
    pub(super) has_other: bool,
    /// Whether any NS record leads to an address of this server.
    pub(super) is_reached: bool,
}

impl DelegatedServer<'_> {
    /// What was found at `address`.
    pub(super) fn problem(&self, address: IpAddr, finding: &Finding) -> String {
        let Self { zone, name, .. } = self;
        match finding {
            Finding::WrongAnswer(said) => format!(
                "another server answers for {zone} at {name} ({address}, port {PORT}): {said} without the proof that only this \
                 server can give"
            ),
            Finding::Silent(reason) => format!("port {PORT} of {name} ({address}) does not answer: {reason}"),
            Finding::Useless(reason) => format!("{name} ({address}) does not serve {zone}: {reason}"),
            Finding::NoRoute(reason) => format!("{name} ({address}) cannot be reached from here: {reason}"),
        }
    }

    /// What to change so that `finding` ends.
    pub(super) fn remedy(&self, at: &ServerAddress, finding: &Finding) -> String {
        let address = at.address;
        let may_be_ours = matches!(finding, Finding::Silent(_) | Finding::NoRoute(_)) && !self.is_reached;
        match finding {
            Finding::WrongAnswer(_) | Finding::Useless(_) if at.is_ours => format!(
                "stop the other DNS server on {address}: `ss -lntup sport = :{PORT}` shows it; a provost with another state \
                 directory counts as another server"
            ),
            Finding::Silent(_) if at.is_ours => match at.other_port {
                Some(listen) => format!(
                    "this server listens on {listen}, and resolvers ask port {PORT}: name that port in \"listen\" of \
                     \"dns\".\"responder\", or forward port {PORT}, UDP and TCP, to it"
                ),
                None => format!(
                    "check that provost runs and listens there (`ss -lntup sport = :{PORT}`), and that the firewall allows port \
                     {PORT}, UDP and TCP"
                ),
            },
            Finding::NoRoute(_) if at.is_ours => {
                format!(
                    "give this machine a route to {address} (`ip route get {address}`), or test from another network"
                )
            }
            _ if may_be_ours => format!(
                "if {address} is a public address of this server, add it to \"dns\".\"responder\".\"addresses\"; otherwise {}",
                self.change(at)
            ),
            _ => format!(
                "{address} is not an address of this server by \"listen\" and \"addresses\" of \"dns\".\"responder\": {}",
                self.change(at)
            ),
        }
    }

    /// What to change so that the name server has an address, or is none.
    pub(super) fn remedy_without_address(&self) -> String {
        if !self.is_this_server {
            self.change_ns()
        } else if self.owner == RecordOwner::MissingPhonesWildcard {
            format!("publish: {} (phones need it too)", address_records(self.phones_wildcard, self.own_addresses))
        } else {
            self.publish_addresses()
        }
    }

    /// What to change where the name server's name is an alias.
    pub(super) fn remedy_for_alias(&self) -> String {
        match self.wildcard() {
            Some(wildcard) => format!(
                "give it an address record of its own, which keeps the CNAME record of {wildcard} from it; {}",
                self.publish_addresses()
            ),
            None => format!("remove the CNAME record of {}, and {}", self.name, self.publish_addresses()),
        }
    }

    /// The wildcard whose records it gets, if it has none of its own.
    fn wildcard(&self) -> Option<&str> {
        match self.owner {
            RecordOwner::Itself | RecordOwner::MissingPhonesWildcard => None,
            RecordOwner::PhonesWildcard => Some(self.phones_wildcard),
            RecordOwner::OtherWildcard(wildcard) => Some(wildcard),
        }
    }

    /// The record to change so that the delegation no longer leads to an address that is not ours.
    fn change(&self, at: &ServerAddress) -> String {
        if !self.is_this_server {
            return self.change_ns();
        }
        let record = |owner: &str| address_records(owner, &[at.address]);
        let record = match (at.source, self.owner) {
            (AddressSource::Alias, _) => return self.remedy_for_alias(),
            (AddressSource::Zone, RecordOwner::OtherWildcard(wildcard)) => {
                return format!(
                    "give it an address record of its own, which keeps the records of {wildcard} from it; {}",
                    self.publish_addresses()
                );
            }
            (AddressSource::Zone, RecordOwner::PhonesWildcard) => {
                let change = change_records(self.phones_wildcard, at.address, at.is_beside_ours, self.own_addresses);
                return format!("{change} (phones follow it too)");
            }
            (AddressSource::Zone, _) => format!("the record {}", record(self.name)),
            (AddressSource::Resolver, _) => {
                format!("the record {} (or the wildcard record that gives this address)", record(self.name))
            }
            (AddressSource::Glue, _) => {
                format!("the glue record {} at the parent zone {}", record(self.name), self.parent)
            }
        };
        if at.is_beside_ours {
            format!("remove {record}")
        } else {
            format!("replace {record} with: {}", address_records(self.name, self.own_addresses))
        }
    }

    fn change_ns(&self) -> String {
        let Self { zone, parent, own_name, .. } = self;
        let name = self.name.trim_end_matches('.');
        if self.has_other {
            format!("remove this NS record at the parent zone {parent}: {zone}. NS {name}.")
        } else {
            format!("change this NS record at the parent zone {parent}: {zone}. NS {name}. to: {zone}. NS {own_name}.")
        }
    }

    fn publish_addresses(&self) -> String {
        format!("publish: {}", address_records(self.name, self.own_addresses))
    }
}

/// What to change so that the records of `owner` no longer lead to `wrong`, an address that is not ours, but to `own` ones,
/// which are unknown if empty. `is_beside_ours`: they lead to an address of ours, too.
#[must_use]
pub fn change_records(owner: &str, wrong: IpAddr, is_beside_ours: bool, own: &[IpAddr]) -> String {
    let kind = if wrong.is_ipv4() { "A" } else { "AAAA" };
    let same: Vec<String> = own.iter().filter(|ip| ip.is_ipv4() == wrong.is_ipv4()).map(ToString::to_string).collect();
    if is_beside_ours {
        format!("remove the record {}", address_records(owner, &[wrong]))
    } else if own.is_empty() {
        format!("change the {kind} record of {owner} to the public address of this server")
    } else if same.is_empty() {
        format!("replace the record {} with: {}", address_records(owner, &[wrong]), address_records(owner, own))
    } else {
        format!("change the {kind} record of {owner} to {}", same.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "192.0.2.10";
    const OTHER: &str = "192.0.2.99";

    fn findings() -> [Finding; 4] {
        let reason = || "reason".to_owned();
        [
            Finding::WrongAnswer(reason()),
            Finding::Useless(reason()),
            Finding::Silent(reason()),
            Finding::NoRoute(reason()),
        ]
    }

    const WILDCARD: &str = "*.phones.example.com";

    /// Calls `see` with each name server: of this name or not, with another NS record or not, reached or not, with records of
    /// a wildcard or not.
    fn servers(mut see: impl FnMut(DelegatedServer<'_>)) {
        let own_addresses = [OURS.parse().unwrap()];
        for case in 0..16 {
            let is_this_server = case & 1 != 0;
            see(DelegatedServer {
                zone: "acme.example.com",
                parent: "example.com",
                name: if is_this_server { "ns.phones.example.com" } else { "old.example.com" },
                owner: if case & 8 != 0 { RecordOwner::PhonesWildcard } else { RecordOwner::Itself },
                phones_wildcard: WILDCARD,
                own_name: "ns.phones.example.com",
                own_addresses: &own_addresses,
                is_this_server,
                has_other: case & 2 != 0,
                is_reached: case & 4 != 0,
            });
        }
    }

    /// The end of the remedy at a foreign address that `source` gives.
    fn change(server: &DelegatedServer<'_>, source: AddressSource, is_beside_ours: bool) -> &'static str {
        match (source, server.owner != RecordOwner::Itself, is_beside_ours) {
            _ if !server.is_this_server && server.has_other => {
                "remove this NS record at the parent zone example.com: acme.example.com. NS old.example.com."
            }
            _ if !server.is_this_server => {
                "change this NS record at the parent zone example.com: acme.example.com. NS old.example.com. to: \
                 acme.example.com. NS ns.phones.example.com."
            }
            (AddressSource::Alias, false, _) => {
                "remove the CNAME record of ns.phones.example.com, and publish: ns.phones.example.com. A 192.0.2.10"
            }
            (AddressSource::Alias, true, _) => {
                "give it an address record of its own, which keeps the CNAME record of *.phones.example.com from it; publish: \
                 ns.phones.example.com. A 192.0.2.10"
            }
            (AddressSource::Zone, true, true) => {
                "remove the record *.phones.example.com. A 192.0.2.99 (phones follow it too)"
            }
            (AddressSource::Zone, true, false) => {
                "change the A record of *.phones.example.com to 192.0.2.10 (phones follow it too)"
            }
            (AddressSource::Zone, false, true) => "remove the record ns.phones.example.com. A 192.0.2.99",
            (AddressSource::Zone, false, false) => {
                "replace the record ns.phones.example.com. A 192.0.2.99 with: ns.phones.example.com. A 192.0.2.10"
            }
            (AddressSource::Resolver, _, true) => {
                "remove the record ns.phones.example.com. A 192.0.2.99 (or the wildcard record that gives this address)"
            }
            (AddressSource::Resolver, _, false) => {
                "replace the record ns.phones.example.com. A 192.0.2.99 (or the wildcard record that gives this address) with: \
                 ns.phones.example.com. A 192.0.2.10"
            }
            (AddressSource::Glue, _, true) => {
                "remove the glue record ns.phones.example.com. A 192.0.2.99 at the parent zone example.com"
            }
            (AddressSource::Glue, _, false) => {
                "replace the glue record ns.phones.example.com. A 192.0.2.99 at the parent zone example.com with: \
                 ns.phones.example.com. A 192.0.2.10"
            }
        }
    }

    #[test]
    fn remedy_at_a_foreign_address_names_the_record_that_leads_there() {
        let sources = [AddressSource::Zone, AddressSource::Resolver, AddressSource::Glue, AddressSource::Alias];
        let mut seen = 0;
        servers(|server| {
            for (finding, source) in findings().iter().flat_map(|finding| sources.map(|source| (finding, source))) {
                for is_beside_ours in [false, true] {
                    let address = OTHER.parse().unwrap();
                    let at = ServerAddress { address, source, is_ours: false, is_beside_ours, other_port: None };
                    let remedy = server.remedy(&at, finding);
                    let change = change(&server, source, is_beside_ours);
                    assert!(remedy.ends_with(change), "{server:?} {finding:?} {at:?}: {remedy}");
                    let may_be_ours = !server.is_reached && matches!(finding, Finding::Silent(_) | Finding::NoRoute(_));
                    assert_eq!(remedy.contains("add it to"), may_be_ours, "{server:?} {finding:?}: {remedy}");
                    assert!(!remedy.contains("listens there"), "{remedy}");
                    seen += 1;
                }
            }
        });
        assert_eq!(seen, 16 * 4 * 4 * 2);
    }

    #[test]
    fn wildcard_of_other_names_is_left_alone() {
        let mut seen = 0;
        servers(|server| {
            let server =
                DelegatedServer { owner: RecordOwner::OtherWildcard("*.example.com"), is_this_server: true, ..server };
            let at = ServerAddress {
                address: OTHER.parse().unwrap(),
                source: AddressSource::Zone,
                is_ours: false,
                is_beside_ours: false,
                other_port: None,
            };
            let remedy = server.remedy(&at, &Finding::WrongAnswer("reason".to_owned()));
            let own = format!("of *.example.com from it; publish: {}. A {OURS}", server.name);
            assert!(remedy.ends_with(&own) && !remedy.contains("change the"), "{remedy}");
            seen += 1;
        });
        assert_eq!(seen, 16);
    }

    #[test]
    fn wrong_record_is_changed_to_addresses_of_its_own_family() {
        let parsed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let (v4, v6) = (parsed(&["192.0.2.10", "192.0.2.11"]), parsed(&["2001:db8::10"]));
        let both = [v4.clone(), v6.clone()].concat();
        let change = |wrong: &str, own: &[IpAddr]| change_records(WILDCARD, wrong.parse().unwrap(), false, own);
        assert_eq!(change(OTHER, &both), "change the A record of *.phones.example.com to 192.0.2.10 and 192.0.2.11");
        assert_eq!(change("2001:db8::99", &both), "change the AAAA record of *.phones.example.com to 2001:db8::10");
        assert_eq!(
            change("2001:db8::99", &v4[..1]),
            "replace the record *.phones.example.com. AAAA 2001:db8::99 with: *.phones.example.com. A 192.0.2.10"
        );
        assert_eq!(
            change(OTHER, &[]),
            "change the A record of *.phones.example.com to the public address of this server"
        );
    }

    #[test]
    fn remedy_at_our_address_changes_no_record() {
        let mut seen = 0;
        servers(|server| {
            let at = ServerAddress {
                address: OURS.parse().unwrap(),
                source: AddressSource::Zone,
                is_ours: true,
                is_beside_ours: true,
                other_port: None,
            };
            for (finding, start) in
                findings().iter().zip(["stop the other", "stop the other", "check that", "give this"])
            {
                let remedy = server.remedy(&at, finding);
                assert!(remedy.starts_with(start) && !remedy.contains("record"), "{finding:?}: {remedy}");
                assert!(!remedy.contains("publish"), "{finding:?}: {remedy}");
                seen += 1;
            }
        });
        assert_eq!(seen, 16 * 4);
    }

    #[test]
    fn silence_at_our_address_names_the_port_where_we_listen() {
        let mut seen = 0;
        servers(|server| {
            let at = ServerAddress {
                address: OURS.parse().unwrap(),
                source: AddressSource::Zone,
                is_ours: true,
                is_beside_ours: true,
                other_port: Some("192.0.2.10:5353".parse().unwrap()),
            };
            let remedy = server.remedy(&at, &Finding::Silent("reason".to_owned()));
            assert!(
                remedy.starts_with("this server listens on 192.0.2.10:5353, and resolvers ask port 53"),
                "{remedy}"
            );
            seen += 1;
        });
        assert_eq!(seen, 16);
    }

    #[test]
    fn name_server_without_an_address_gets_one_only_if_it_is_ours() {
        let mut seen = 0;
        servers(|server| {
            let remedy = server.remedy_without_address();
            let start = match (server.is_this_server, server.has_other) {
                (true, _) => "publish: ns.phones.example.com. A 192.0.2.10",
                (false, true) => "remove this NS record",
                (false, false) => "change this NS record",
            };
            assert!(remedy.starts_with(start), "{server:?}: {remedy}");
            let covered = DelegatedServer { owner: RecordOwner::MissingPhonesWildcard, ..server };
            let of_wildcard = "publish: *.phones.example.com. A 192.0.2.10 (phones need it too)";
            assert_eq!(covered.remedy_without_address() == of_wildcard, server.is_this_server, "{covered:?}");
            let root = DelegatedServer { name: ".", is_this_server: false, ..server };
            assert!(root.remedy_without_address().contains("acme.example.com. NS ."), "{root:?}");
            assert!(!root.remedy_without_address().contains(".."), "{root:?}");
            seen += 1;
        });
        assert_eq!(seen, 16);
    }
}
