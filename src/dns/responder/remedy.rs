//! What to change where a name server of the delegated zone does not prove to be this server. Pure.

use std::net::IpAddr;

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
    /// A record in the zone that holds the server's name, perhaps a wildcard record.
    Zone,
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
}

/// A name server of the delegated zone. Names are without the final dot.
#[derive(Debug, Clone, Copy)]
pub(super) struct DelegatedServer<'a> {
    pub(super) zone: &'a str,
    pub(super) parent: &'a str,
    pub(super) name: &'a str,
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
            Finding::Useless(reason) => format!("{name} ({address}) is passed over: {reason}"),
            Finding::NoRoute(reason) => format!("{name} ({address}) cannot be reached from here: {reason}"),
        }
    }

    /// What to change so that `finding` ends.
    pub(super) fn remedy(&self, at: &ServerAddress, finding: &Finding) -> String {
        let address = at.address;
        let may_be_ours = matches!(finding, Finding::Silent(_) | Finding::NoRoute(_)) && !self.is_reached;
        match finding {
            Finding::WrongAnswer(_) | Finding::Useless(_) if at.is_ours => format!(
                "stop the other DNS server on {address}: `ss -lnup sport = :{PORT}` shows it; a provost with another state \
                 directory counts as another server"
            ),
            Finding::Silent(_) if at.is_ours => format!(
                "check that provost runs and listens there (`ss -lnup sport = :{PORT}`), and that the firewall allows port \
                 {PORT}, UDP and TCP"
            ),
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
        if self.is_this_server { self.publish_addresses() } else { self.change_ns() }
    }

    /// What to change where the name server's name is an alias.
    pub(super) fn remedy_for_alias(&self) -> String {
        format!("remove the CNAME record of {}, and {}", self.name, self.publish_addresses())
    }

    /// The record to change so that the delegation no longer leads to an address that is not ours.
    fn change(&self, at: &ServerAddress) -> String {
        if !self.is_this_server {
            return self.change_ns();
        }
        let record = address_records(self.name, &[at.address]);
        let record = match at.source {
            AddressSource::Alias => return self.remedy_for_alias(),
            AddressSource::Zone => format!("the record {record} (or the wildcard record that gives this address)"),
            AddressSource::Glue => format!("the glue record {record} at the parent zone {}", self.parent),
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

    /// Calls `see` with each name server: of this name or not, with another NS record or not, reached or not.
    fn servers(mut see: impl FnMut(DelegatedServer<'_>)) {
        let own_addresses = [OURS.parse().unwrap()];
        for case in 0..8 {
            let is_this_server = case & 1 != 0;
            see(DelegatedServer {
                zone: "acme.example.com",
                parent: "example.com",
                name: if is_this_server { "ns.example.com" } else { "old.example.com" },
                own_name: "ns.example.com",
                own_addresses: &own_addresses,
                is_this_server,
                has_other: case & 2 != 0,
                is_reached: case & 4 != 0,
            });
        }
    }

    #[test]
    fn remedy_at_a_foreign_address_names_the_record_that_leads_there() {
        let mut seen = 0;
        servers(|server| {
            for finding in findings() {
                for source in [AddressSource::Zone, AddressSource::Glue, AddressSource::Alias] {
                    for is_beside_ours in [false, true] {
                        let address = OTHER.parse().unwrap();
                        let at = ServerAddress { address, source, is_ours: false, is_beside_ours };
                        let remedy = server.remedy(&at, &finding);
                        let change = match (server.is_this_server, server.has_other, source, is_beside_ours) {
                            (false, true, ..) => {
                                "remove this NS record at the parent zone example.com: acme.example.com. NS old.example.com."
                            }
                            (false, false, ..) => {
                                "change this NS record at the parent zone example.com: acme.example.com. NS old.example.com. to: \
                                 acme.example.com. NS ns.example.com."
                            }
                            (true, _, AddressSource::Alias, _) => {
                                "remove the CNAME record of ns.example.com, and publish: ns.example.com. A 192.0.2.10"
                            }
                            (true, _, AddressSource::Zone, true) => {
                                "remove the record ns.example.com. A 192.0.2.99 (or the wildcard record that gives this address)"
                            }
                            (true, _, AddressSource::Zone, false) => {
                                "replace the record ns.example.com. A 192.0.2.99 (or the wildcard record that gives this \
                                 address) with: ns.example.com. A 192.0.2.10"
                            }
                            (true, _, AddressSource::Glue, true) => {
                                "remove the glue record ns.example.com. A 192.0.2.99 at the parent zone example.com"
                            }
                            (true, _, AddressSource::Glue, false) => {
                                "replace the glue record ns.example.com. A 192.0.2.99 at the parent zone example.com with: \
                                 ns.example.com. A 192.0.2.10"
                            }
                        };
                        assert!(remedy.ends_with(change), "{server:?} {finding:?} {at:?}: {remedy}");
                        let may_be_ours =
                            !server.is_reached && matches!(finding, Finding::Silent(_) | Finding::NoRoute(_));
                        assert_eq!(remedy.contains("add it to"), may_be_ours, "{server:?} {finding:?}: {remedy}");
                        assert!(!remedy.contains("listens there"), "{remedy}");
                        seen += 1;
                    }
                }
            }
        });
        assert_eq!(seen, 8 * 4 * 3 * 2);
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
        assert_eq!(seen, 8 * 4);
    }

    #[test]
    fn name_server_without_an_address_gets_one_only_if_it_is_ours() {
        let mut seen = 0;
        servers(|server| {
            let remedy = server.remedy_without_address();
            let start = match (server.is_this_server, server.has_other) {
                (true, _) => "publish: ns.example.com. A 192.0.2.10",
                (false, true) => "remove this NS record",
                (false, false) => "change this NS record",
            };
            assert!(remedy.starts_with(start), "{server:?}: {remedy}");
            let root = DelegatedServer { name: ".", is_this_server: false, ..server };
            assert!(root.remedy_without_address().contains("acme.example.com. NS ."), "{root:?}");
            assert!(!root.remedy_without_address().contains(".."), "{root:?}");
            seen += 1;
        });
        assert_eq!(seen, 8);
    }
}
