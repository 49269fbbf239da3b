//! DNS errors: what failed, where, why, and what to change.

use std::net::IpAddr;

use hickory_net::proto::op::ResponseCode;

use super::grant::UpdateGrant;
use super::query::mnemonic;
use super::settings::{Host, HostPort, PORT};
use super::tsig_key::FUDGE_S;
use super::update::Refusal;
use crate::clock::rfc3339;

/// What a silent or refusing name server does to validations, although resolvers pass over it.
pub(super) const MAY_TIME_OUT: &str = "; resolvers pass over it, but validations fail at times because of it: a resolver that mixes the case \
                            of names (Unbound's use-caps-for-id) may ask it alone until the CA's time is up";

/// Why the records could not be located, changed or seen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    #[error("{0}")]
    Setting(String),
    #[error("no resolver says which {kind} records {name} has: {}; others can be named in \"dns\".\"resolvers\"{}", .reasons.join("; "), servfail_note(.name, .reasons))]
    Resolve { name: String, kind: String, reasons: Vec<String> },
    #[error("the CNAME records of {} lead nowhere: {}; {}", .chain.first().map_or("the challenge", String::as_str), .chain.join(" → "), chain_remedy(.chain))]
    CnameChain { chain: Vec<String> },
    #[error(
        "no zone was found that holds {name}: is the domain registered and delegated? If the resolvers cannot see it, name the zone in \"dns\".\"zone\" or other resolvers in \"dns\".\"resolvers\""
    )]
    NoZone { name: String },
    #[error("{name} is not in the zone {zone}{}; correct \"dns\".\"zone\", or leave it out so that the zone is found", cname_note(.via))]
    OutsideZone { name: String, zone: String, via: Vec<String> },
    #[error("the address of {host} (\"dns\".\"{key}\") was not found: {reason}")]
    NoAddress { host: String, key: &'static str, reason: String },
    #[error("the DNS primary {primary} does not answer an update of {zone}: {}; is it running, and may this machine reach its port by UDP or TCP?", .reasons.join("; "))]
    PrimaryUnreachable { primary: String, zone: String, reasons: Vec<String> },
    #[error(
        "{name} has no address of its own, only that of a wildcard record, which any record below it hides (RFC 4592 §2.2.2): \
         while _acme-challenge.{name} was there, or a CNAME record in its place, phones would not find {name}; publish first: \
         {}", address_records(.name, .addresses)
    )]
    OnlyByWildcard { name: String, addresses: Vec<IpAddr> },
    #[error("these values cannot be put into a TXT record: {0}")]
    Values(String),
    #[error("{0}")]
    Refused(Box<RefusedUpdate>),
    #[error("the zone {zone} has no name server that could be asked; name some in \"dns\".\"authorities\"")]
    NoAuthorities { zone: String },
    #[error("no name server of {zone} answers: {}; if others are asked by the CA, name them in \"dns\".\"authorities\"", .silent.join("; "))]
    AuthoritiesSilent { zone: String, silent: Vec<String> },
    #[error("{}", causes(&format!("after {waited_s} s the TXT records of {name} are not everywhere: {}", .lagging.join("; ")), &lagging_causes(.name)))]
    NotVisible { name: String, waited_s: u64, lagging: Vec<String> },
    #[error("{}", causes(&format!("after {waited_s} s the TXT records of {name}, removed at the primary, are not gone everywhere: {}", .lagging.join("; ")), &lagging_causes(.name)))]
    NotGone { name: String, waited_s: u64, lagging: Vec<String> },
    #[error("{problem}")]
    NotDelegated { problem: String },
    #[error(
        "the zone {zone} is delegated to {}, not to this server: change its NS record to {own}., or name this server's public \
         addresses in \"dns\".\"responder\".\"addresses\"", .servers.join(", ")
    )]
    DelegatedElsewhere { zone: String, servers: Vec<String>, own: String },
    #[error("the CA is not asked to validate, because that would fail: {}", .problems.join("; "))]
    WrongDelegation { problems: Vec<String> },
    #[error("the CA is not asked to validate yet, because no name server of {zone} proves to be this server: {}", .problems.join("; "))]
    NotProven { zone: String, problems: Vec<String> },
    #[error("no name server of {parent} says which zone {name} is in: {}", .reasons.join("; "))]
    ParentSilent { parent: String, name: String, reasons: Vec<String> },
    #[error("stopped before the probe record of {name} had come and gone on every authority")]
    Stopped { name: String },
    #[error(
        "the TXT record {value:?} of {name}, a probe, could not be removed and is left over: {reason}; remove it by hand"
    )]
    ProbeLeft { name: String, value: String, reason: String },
}

/// An update that the primary did not apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedUpdate {
    /// The primary that answered.
    pub primary: String,
    /// The zone that the update was for.
    pub zone: String,
    /// The owner name of the records.
    pub name: String,
    /// The key's name.
    pub key: String,
    /// The key's algorithm.
    pub algorithm: String,
    /// Its answer.
    pub refusal: Refusal,
}

impl DnsError {
    /// Whether a retry cannot help until an operator has changed something.
    #[must_use]
    pub fn needs_human(&self) -> bool {
        match self {
            Self::Refused(refused) => !matches!(
                refused.refusal,
                Refusal::Code(ResponseCode::ServFail)
                    | Refusal::Unsigned(ResponseCode::ServFail)
                    | Refusal::Forged
                    | Refusal::Garbled
            ),
            Self::Setting(_)
            | Self::CnameChain { .. }
            | Self::NoZone { .. }
            | Self::OutsideZone { .. }
            | Self::OnlyByWildcard { .. }
            | Self::Values(_)
            | Self::NoAuthorities { .. }
            | Self::NotDelegated { .. }
            | Self::DelegatedElsewhere { .. }
            | Self::WrongDelegation { .. } => true,
            Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::PrimaryUnreachable { .. }
            | Self::AuthoritiesSilent { .. }
            | Self::NotVisible { .. }
            | Self::NotGone { .. }
            | Self::ParentSilent { .. }
            | Self::NotProven { .. }
            | Self::Stopped { .. }
            | Self::ProbeLeft { .. } => false,
        }
    }

    /// Whether an update that failed with this error has surely changed nothing: it was not sent, or the primary refused it. An
    /// answer that may be forged, or that the primary could not write the change, proves nothing.
    #[must_use]
    pub fn proves_no_change(&self) -> bool {
        match self {
            Self::Refused(refused) => !matches!(
                refused.refusal,
                Refusal::Forged
                    | Refusal::Garbled
                    | Refusal::Unsigned(ResponseCode::NoError | ResponseCode::ServFail)
                    | Refusal::Code(ResponseCode::ServFail)
            ),
            Self::Setting(_)
            | Self::NoAddress { .. }
            | Self::Values(_)
            | Self::OutsideZone { .. }
            | Self::NotDelegated { .. } => true,
            _ => false,
        }
    }

    /// The primary's clock, in seconds since 1970, if an authentic answer says that ours is wrong.
    #[must_use]
    pub fn server_time(&self) -> Option<i64> {
        match self {
            Self::Refused(refused) => match refused.refusal {
                Refusal::BadTime { theirs, .. } => theirs,
                _ => None,
            },
            _ => None,
        }
    }
}

/// Address records as in a zone file.
#[must_use]
pub fn address_records(name: &str, addresses: &[IpAddr]) -> String {
    let record = |address: &IpAddr| format!("{name}. {} {address}", if address.is_ipv4() { "A" } else { "AAAA" });
    addresses.iter().map(record).collect::<Vec<_>>().join(" and ")
}

impl std::fmt::Display for RefusedUpdate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { primary, zone, name, .. } = self;
        write!(
            f,
            "the DNS primary {primary} refuses to change the TXT records of {name} in zone {zone}: {}",
            self.why()
        )
    }
}

impl RefusedUpdate {
    /// The answer, and its likely causes. An answer is the same for several causes, and only the primary's operator can
    /// tell them apart.
    fn why(&self) -> String {
        let Self { primary, zone, key, algorithm, name, .. } = self;
        let grant = UpdateGrant::new(key, name, zone);
        let frozen = format!(
            "the zone is frozen (BIND: `rndc zonestatus {zone}` shows \"frozen: yes\", and `rndc thaw {zone}` ends that; Knot: \
             `knotc zone-status {zone} +freeze`, `knotc zone-thaw {zone}`)"
        );
        let powerdns_key = format!(
            "PowerDNS answers so to an unknown key, a wrong secret and a wrong algorithm (`pdnsutil list-tsig-keys` must show \
             {key} with {algorithm} and the secret of \"tsig_key_file\"; the log of pdns_server says which of them differs)"
        );
        match self.refusal {
            Refusal::BadSig => format!(
                "BADSIG, the secret of the key {key} is another one there; copy the key file from the primary again (\"tsig_key_file\")"
            ),
            Refusal::BadKey => format!(
                "BADKEY, it has no key {key} with {algorithm}, or (Knot) its acl does not allow this update; compare name and algorithm with the key in its configuration, reload it, and grant the update: {grant}"
            ),
            Refusal::BadTime { ours, theirs } => bad_time(ours, theirs),
            Refusal::OtherTsig(code) => format!("TSIG error {code}; see the primary's log"),
            Refusal::Code(ResponseCode::Refused) => causes(
                &format!("REFUSED, signed with the key {key}, so the key is valid there"),
                &[
                    format!("its policy does not permit this key to do this; add: {grant}"),
                    frozen,
                    format!(
                        "this is a secondary (`dig SOA {zone}` shows the primary first; \"dns\".\"primary\" must name that)"
                    ),
                ],
            ),
            Refusal::Unsigned(ResponseCode::Refused) => causes(
                "REFUSED, not signed, so the key was not used",
                &[
                    format!(
                        "it is not the primary of {zone} (\"dns\".\"primary\"), or takes no updates by this key from this address: {grant}"
                    ),
                    powerdns_key,
                ],
            ),
            Refusal::Code(ResponseCode::NotAuth) | Refusal::Unsigned(ResponseCode::NotAuth) => format!(
                "NOTAUTH, it is not the primary of a zone {zone}; correct \"dns\".\"primary\" or \"dns\".\"zone\" (if it is, then its policy: {grant})"
            ),
            Refusal::Code(ResponseCode::NotZone) | Refusal::Unsigned(ResponseCode::NotZone) => {
                format!(
                    "NOTZONE, the name is not in {zone}; correct \"dns\".\"zone\", or leave it out so that the zone is found"
                )
            }
            Refusal::Code(ResponseCode::ServFail) | Refusal::Unsigned(ResponseCode::ServFail) => causes(
                "SERVFAIL",
                &[
                    "it cannot write the zone's file or journal (its log: \"permission denied\", or a full disk)"
                        .to_owned(),
                    format!(
                        "the name has too many TXT records, BIND accepts 100 (`dig +short TXT {name} @{} | wc -l` counts them; \
                         remove stale ones)",
                        dig_server(primary)
                    ),
                    format!(
                        "the zone is not loaded, because its journal does not fit its file (BIND: `rndc zonestatus {zone}`; its \
                         log: \"journal out of sync\"; after a backup, remove the .jnl file and `rndc reload {zone}`)"
                    ),
                ],
            ),
            Refusal::Code(ResponseCode::NotImp) | Refusal::Unsigned(ResponseCode::NotImp) => {
                "NOTIMP, it takes no updates at all (RFC 2136); name another in \"dns\".\"primary\"".to_owned()
            }
            Refusal::Unsigned(ResponseCode::NoError) => {
                format!("it said that it did, but did not sign that; does it know the key {key}?")
            }
            Refusal::Code(code) | Refusal::Unsigned(code) => format!("{code}; see its log"),
            Refusal::Forged => format!(
                "its answer is not signed with the key {key}; something between here and there changes messages, or answers in its place"
            ),
            Refusal::Garbled => {
                "what came back is no answer to an update; is there a DNS server on this port?".to_owned()
            }
        }
    }
}

/// What was observed, and its likely causes, each with what tells it from the others.
fn causes(observed: &str, causes: &[String]) -> String {
    let causes: Vec<String> = causes.iter().enumerate().map(|(at, cause)| format!("({}) {cause}", at + 1)).collect();
    format!("{observed}; likely causes: {}", causes.join("; "))
}

/// Why servers do not have the change that the primary has applied.
fn lagging_causes(name: &str) -> [String; 2] {
    [
        "these servers copy the zone too late: NOTIFY does not reach them, or their refresh interval is longer than \
         \"dns\".\"propagation_timeout_s\" (`dig +short SOA ZONE @SERVER` shows a lower serial there than at the primary)"
            .to_owned(),
        format!(
            "the primary has views, and the key or this host's address selects another one for the update than for the \
             question (`dig TXT {name} @PRIMARY` shows the records only with `-k` and the key file): let the update reach the \
             public's view, or name in \"dns\".\"authorities\" servers that show the updated one to the CA"
        ),
    ]
}

/// What else SERVFAIL may mean.
fn servfail_note(name: &str, reasons: &[String]) -> String {
    if !reasons.iter().any(|reason| reason.contains(&*mnemonic(ResponseCode::ServFail))) {
        return String::new();
    }
    causes(
        "; the resolver tried and failed",
        &[
            "the primary has not loaded the zone (BIND: `rndc zonestatus ZONE` says so, and its log why, such as \"journal out \
             of sync\"; then, after a backup, remove the .jnl file and `rndc reload ZONE`)"
                .to_owned(),
            format!("the zone's DNSSEC signatures are wrong (`dig +cd SOA {name}` answers then, and `delv SOA {name}` says why)"),
            format!("no name server of the zone answers the resolver (`dig +trace SOA {name}` names those that do not)"),
        ],
    )
}

/// A server as dig takes it after `@`.
fn dig_server(server: &str) -> String {
    HostPort::parse(server).map_or_else(
        |_| server.to_owned(),
        |HostPort { host, port }| {
            let host = match host {
                Host::Address(address) => address.to_string(),
                Host::Name(name) => name,
            };
            if port == PORT { host } else { format!("{host} -p {port}") }
        },
    )
}

fn bad_time(ours: i64, theirs: Option<i64>) -> String {
    let here = rfc3339(ours);
    match theirs {
        Some(theirs) => format!(
            "BADTIME, the clocks are {} s apart ({FUDGE_S} s are allowed): here it is {here}, there it is {}; set the one that is wrong, and keep both by NTP",
            theirs.abs_diff(ours),
            rfc3339(theirs)
        ),
        None => {
            format!("BADTIME, the clocks are more than {FUDGE_S} s apart; here it is {here}: set the one that is wrong")
        }
    }
}

/// The record to change in CNAME records that lead back to one of their names, or are too many.
fn chain_remedy(chain: &[String]) -> String {
    let (Some(first), Some(last)) = (chain.first(), chain.last()) else { return String::new() };
    let print = format!("`provost print dns-records` prints what {first} needs");
    match chain.iter().take(chain.len() - 1).rev().collect::<Vec<_>>()[..] {
        [owner, ..] if chain.iter().filter(|name| *name == last).count() > 1 => {
            format!("this is a ring: remove the CNAME record of {owner}; {print}")
        }
        _ => format!("these are more than CAs follow: let {first} lead to the last name at once; {print}"),
    }
}

fn cname_note(chain: &[String]) -> String {
    if chain.is_empty() { String::new() } else { format!(" (where CNAMEs lead: {})", chain.join(" → ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(refusal: Refusal) -> DnsError {
        DnsError::Refused(Box::new(RefusedUpdate {
            primary: "ns1.example.com:53".to_owned(),
            zone: "example.com".to_owned(),
            name: "_acme-challenge.phones.example.com".to_owned(),
            key: "provost.".to_owned(),
            algorithm: "hmac-sha256".to_owned(),
            refusal,
        }))
    }

    #[test]
    fn update_refusal_names_the_grant_line_to_add() {
        let line = "grant provost. name _acme-challenge.phones.example.com. TXT;";
        let refusals = [
            Refusal::BadKey,
            Refusal::Code(ResponseCode::Refused),
            Refusal::Unsigned(ResponseCode::Refused),
            Refusal::Code(ResponseCode::NotAuth),
            Refusal::Unsigned(ResponseCode::NotAuth),
        ];
        for refusal in refusals {
            let error = refused(refusal);
            assert!(error.to_string().contains(line), "{error}");
            assert!(error.needs_human());
        }
    }

    #[test]
    fn badtime_error_states_both_clocks() {
        let error = refused(Refusal::BadTime { ours: 1_790_000_000, theirs: Some(1_790_003_600) });
        let text = error.to_string();
        assert!(text.contains("3600 s apart (300 s are allowed): here it is 2026-09-21T14:13:20Z"), "{text}");
        assert!(text.contains("there it is 2026-09-21T15:13:20Z"), "{text}");
        assert_eq!(error.server_time(), Some(1_790_003_600));
        assert_eq!(refused(Refusal::BadTime { ours: 1, theirs: None }).server_time(), None);
    }

    #[test]
    fn only_a_refusal_proves_that_nothing_was_added() {
        for refusal in [Refusal::BadKey, Refusal::BadSig, Refusal::Code(ResponseCode::Refused)] {
            assert!(refused(refusal).proves_no_change(), "{refusal:?}");
        }
        for refusal in [Refusal::Forged, Refusal::Garbled, Refusal::Code(ResponseCode::ServFail)] {
            assert!(!refused(refusal).proves_no_change(), "{refusal:?}");
        }
        let lost = DnsError::PrimaryUnreachable { primary: "a".into(), zone: "b".into(), reasons: Vec::new() };
        assert!(!lost.proves_no_change());
    }

    #[test]
    fn temporary_dns_failure_needs_no_operator() {
        for refusal in [Refusal::Code(ResponseCode::ServFail), Refusal::Forged, Refusal::Garbled] {
            assert!(!refused(refusal).needs_human(), "{refusal:?}");
        }
    }
}
