//! DNS errors: what failed, where, why, and what to change.

use std::net::IpAddr;

use hickory_net::proto::op::ResponseCode;

use super::grant::UpdateGrant;
use super::tsig_key::FUDGE_S;
use super::update::Refusal;
use crate::clock::rfc3339;

/// Why the records could not be located, changed or seen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    #[error("{0}")]
    Setting(String),
    #[error("no resolver says which {kind} records {name} has: {}; others can be named in \"dns\".\"resolvers\"", .reasons.join("; "))]
    Resolve { name: String, kind: String, reasons: Vec<String> },
    #[error("the CNAME records of {} lead nowhere: {}", .chain.first().map_or("the challenge", String::as_str), .chain.join(" → "))]
    CnameChain { chain: Vec<String> },
    #[error(
        "no zone was found that holds {name}: is the domain registered and delegated? If the resolvers cannot see it, name the zone in \"dns\".\"zone\" or other resolvers in \"dns\".\"resolvers\""
    )]
    NoZone { name: String },
    #[error("{name} is not in the zone {zone}{}; correct \"dns\".\"zone\", or leave it out so that the zone is found", cname_note(.via))]
    OutsideZone { name: String, zone: String, via: Vec<String> },
    #[error("the address of {host} (\"dns\".\"{key}\") was not found: {reason}")]
    NoAddress { host: String, key: &'static str, reason: String },
    #[error("the DNS primary {primary} does not answer an update of {zone}: {}; is it running, and may this machine reach it by TCP?", .reasons.join("; "))]
    PrimaryUnreachable { primary: String, zone: String, reasons: Vec<String> },
    #[error(
        "{name} has no address of its own, only that of a wildcard record, which any record below it hides (RFC 4592 §2.2.2): \
         while _acme-challenge.{name} was there, or a CNAME record in its place, phones would not find {name}; publish first: \
         {}", records(.name, .addresses)
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
    #[error("after {waited_s} s the TXT records of {name} are not everywhere: {}; is NOTIFY allowed to reach these servers, or their refresh interval longer than \"dns\".\"propagation_timeout_s\"?", .lagging.join("; "))]
    NotVisible { name: String, waited_s: u64, lagging: Vec<String> },
    #[error("after {waited_s} s the TXT records of {name}, removed at the primary, are not gone everywhere: {}; is NOTIFY allowed to reach these servers?", .lagging.join("; "))]
    NotGone { name: String, waited_s: u64, lagging: Vec<String> },
    #[error("the name servers of {parent} do not lead {name} to the DNS responder; publish there: {records}")]
    NotDelegated { name: String, parent: String, records: String },
    #[error(
        "the zone {zone} is delegated to {}, not to this server: change its NS record to {own}., or name this server's public \
         addresses in \"dns\".\"responder\".\"addresses\"", .servers.join(", ")
    )]
    DelegatedElsewhere { zone: String, servers: Vec<String>, own: String },
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
            | Self::DelegatedElsewhere { .. } => true,
            Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::PrimaryUnreachable { .. }
            | Self::AuthoritiesSilent { .. }
            | Self::NotVisible { .. }
            | Self::NotGone { .. }
            | Self::ParentSilent { .. }
            | Self::Stopped { .. }
            | Self::ProbeLeft { .. } => false,
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
fn records(name: &str, addresses: &[IpAddr]) -> String {
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
    fn why(&self) -> String {
        let Self { zone, key, algorithm, .. } = self;
        let grant = UpdateGrant::new(key, &self.name, zone);
        match self.refusal {
            Refusal::BadSig => format!(
                "BADSIG, the secret of the key {key} is another one there; copy the key file from the primary again (\"tsig_key_file\")"
            ),
            Refusal::BadKey => format!(
                "BADKEY, it has no key {key} with {algorithm}, or (Knot) its acl does not allow this update; compare name and algorithm with the key in its configuration, reload it, and grant the update: {grant}"
            ),
            Refusal::BadTime { ours, theirs } => bad_time(ours, theirs),
            Refusal::OtherTsig(code) => format!("TSIG error {code}; see the primary's log"),
            Refusal::Code(ResponseCode::Refused) => {
                format!(
                    "REFUSED, its policy does not let the key {key} do this; add: {grant} (if it is there, then this is a secondary: \"dns\".\"primary\" must name the primary)"
                )
            }
            Refusal::Unsigned(ResponseCode::Refused) => format!(
                "REFUSED without looking at the key; is this the primary of {zone} (\"dns\".\"primary\"), and does it take updates from this address and by this key? {grant}"
            ),
            Refusal::Code(ResponseCode::NotAuth) | Refusal::Unsigned(ResponseCode::NotAuth) => format!(
                "NOTAUTH, it is not the primary of a zone {zone}; correct \"dns\".\"primary\" or \"dns\".\"zone\" (if it is, then its policy: {grant})"
            ),
            Refusal::Code(ResponseCode::NotZone) | Refusal::Unsigned(ResponseCode::NotZone) => {
                format!(
                    "NOTZONE, the name is not in {zone}; correct \"dns\".\"zone\", or leave it out so that the zone is found"
                )
            }
            Refusal::Code(ResponseCode::ServFail) | Refusal::Unsigned(ResponseCode::ServFail) => {
                "SERVFAIL; often it may not write the zone's file or journal: see its log".to_owned()
            }
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
    fn temporary_dns_failure_needs_no_operator() {
        for refusal in [Refusal::Code(ResponseCode::ServFail), Refusal::Forged, Refusal::Garbled] {
            assert!(!refused(refusal).needs_human(), "{refusal:?}");
        }
    }
}
