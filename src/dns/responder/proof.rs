//! Proves that the delegation of the zone leads to this server: each name server to which the parent delegates is asked, at
//! each address, for a one-time name, whose value only a server with our key knows.
//!
//! A CA's resolver may ask any of them. So an authoritative answer without the proof makes validations fail, whatever the
//! others answer. A name server that is silent or does not serve the zone is passed over, as resolvers pass over it, if
//! another one proves to be this server. If none does, a resolver is asked: this machine may not reach its own public
//! address (NAT).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;

use super::delegation::{self, Delegation, DelegationProblem, NameServer};
use super::memory::Memory;
use super::settings::ResponderDns;
use super::zone::{ProofKey, proof_label};
use super::{challenge_name, known_zone, lead_in};
use crate::dns::authority::{Authority, NoReply, Reply};
use crate::dns::failure::DnsError;
use crate::dns::lookup::{Lookup, mismatch};
use crate::dns::name;
use crate::dns::query::mnemonic;
use crate::dns::settings::PORT;

/// Where the delegation of the zone leads.
#[derive(Debug, Default)]
pub struct DelegationReport {
    /// The delegated zone, if there is one.
    pub zone: Option<String>,
    /// The name servers that proved to be this server, each with its address.
    pub proven: Vec<String>,
    /// These make validations fail.
    wrong: Vec<DelegationProblem>,
    /// Name servers whose names are aliases. Some resolvers follow these, and others reject them.
    aliases: Vec<DelegationProblem>,
    /// Name servers that resolvers pass over.
    passed_over: Vec<DelegationProblem>,
    /// Whether a resolver got the proof, if it was asked.
    resolver: Option<Result<(), DelegationProblem>>,
    /// How the parent's NS records differ from our own.
    mismatch: Option<String>,
}

impl DelegationReport {
    /// Why a CA's validation fails, or fails at some CAs.
    #[must_use]
    pub fn errors(&self) -> Vec<DelegationProblem> {
        let mut errors = [&self.wrong[..], &self.aliases].concat();
        if !self.is_proven() {
            errors.extend(self.passed_over.clone());
        }
        if let Some(Err(problem)) = &self.resolver
            && errors.is_empty()
        {
            errors.push(problem.clone());
        }
        errors
    }

    /// What a CA passes over.
    #[must_use]
    pub fn warnings(&self) -> Vec<DelegationProblem> {
        if !self.is_proven() {
            return Vec::new();
        }
        let mismatch = self.mismatch.iter().map(|problem| DelegationProblem { problem: problem.clone(), remedy: None });
        self.passed_over.iter().cloned().chain(mismatch).collect()
    }

    fn is_proven(&self) -> bool {
        !self.proven.is_empty() || matches!(self.resolver, Some(Ok(())))
    }

    /// Why the CA must not be asked to validate, if so.
    pub(super) fn obstacle(&self) -> Option<DnsError> {
        let texts = |problems: &[DelegationProblem]| problems.iter().map(ToString::to_string).collect();
        if !self.wrong.is_empty() {
            return Some(DnsError::WrongDelegation { problems: texts(&self.wrong) });
        }
        (!self.is_proven()).then(|| DnsError::NotProven {
            zone: self.zone.clone().unwrap_or_default(),
            problems: texts(&self.errors()),
        })
    }
}

/// Inspects the delegation of the challenge of `host`, the `domain` or a name below it, which must lead to the server whose
/// state directory is `state`. A resolver must get the proof, too.
///
/// # Errors
/// If the directory has no key of a responder.
pub async fn inspect_delegation(
    settings: &ResponderDns,
    domain: &str,
    host: &str,
    state: &Path,
) -> Result<DelegationReport, DelegationProblem> {
    let failed = |problem: String| DelegationProblem { problem, remedy: None };
    let memory = Memory::read(state).map_err(|error| failed(error.to_string()))?.ok_or_else(|| {
        let problem = format!("no server has run with the DNS responder on the state directory {}", state.display());
        DelegationProblem::new(problem, "start it: systemctl enable --now provost.socket provost.service")
    })?;
    let key = ProofKey::new(memory.proof_key.as_bytes());
    let apex = name::parse(&known_zone(settings, domain, state)).map_err(failed)?;
    Ok(Inspection { settings, domain, key, apex }.run(host, true).await)
}

/// Whose delegation is inspected.
pub(super) struct Inspection<'a> {
    pub(super) settings: &'a ResponderDns,
    pub(super) domain: &'a str,
    pub(super) key: ProofKey,
    /// The zone that this server serves.
    pub(super) apex: Name,
}

/// What a name server answers at one of its addresses.
enum ServerAnswer {
    Proof,
    /// An authoritative answer without the proof.
    Another(ResponseCode),
    Silent(String),
    /// It does not serve the zone, or cannot be reached from here at all.
    Useless(String),
}

impl Inspection<'_> {
    /// Inspects the delegation of the challenge of `host`. A resolver is asked if no server gives the proof, or if it
    /// `must_see` the proof.
    pub(super) async fn run(&self, host: &str, must_see: bool) -> DelegationReport {
        match self.try_run(host, must_see).await {
            Ok(report) => report,
            Err(problem) => DelegationReport { wrong: vec![problem], ..DelegationReport::default() },
        }
    }

    async fn try_run(&self, host: &str, must_see: bool) -> Result<DelegationReport, DelegationProblem> {
        let failed = |problem: String| DelegationProblem { problem, remedy: None };
        let lookup = Lookup::new(&self.settings.resolvers, None).map_err(|error| failed(error.to_string()))?;
        let own = name::parse(&self.settings.name_server(self.domain)).map_err(failed)?;
        let challenge = name::parse(&challenge_name(host)).map_err(failed)?;
        let domain = name::parse(self.domain).map_err(failed)?;
        let found = match delegation::find(&lookup, &challenge, &self.apex, &domain).await {
            Ok(found) => found,
            // Where the resolver shows no zones, a configured zone may be right.
            Err(error) if error.needs_human() && !(self.settings.zone.is_some() && is_no_zone(&error)) => {
                return Err(failed(error.to_string()));
            }
            // The parent's servers may be out of reach from here, and the resolver knows the way.
            Err(_) => Delegation::assumed(challenge.clone(), self.apex.clone(), own.clone()),
        };
        let Some(zone) = &found.zone else { return Err(self.not_delegated(&found).await) };
        if self.settings.zone.is_some() && *zone != self.apex {
            let problem = format!("{} leads to the zone {}", name::text(&challenge), name::text(zone));
            let remedy = "correct \"dns\".\"zone\", or leave it out so that the zone is found";
            return Err(DelegationProblem::new(problem, remedy));
        }
        let mut report = DelegationReport { zone: Some(name::text(zone)), ..DelegationReport::default() };
        if found.has_ds_records().await {
            report.wrong.push(ds_record(zone, &found.parent));
        }
        self.ask_servers(&lookup, &found, zone, &own, &mut report).await.map_err(failed)?;
        if report.wrong.is_empty() && (must_see || report.proven.is_empty()) {
            report.resolver = Some(self.ask_resolver(&lookup, zone).await.map_err(failed)?);
        }
        if report.errors().is_empty() && report.passed_over.is_empty() {
            report.mismatch = mismatch(zone, &[own], &found.servers);
        }
        Ok(report)
    }

    async fn not_delegated(&self, found: &Delegation) -> DelegationProblem {
        if let Some(problem) = found.doubled_record().await {
            return problem;
        }
        let lead = lead_in(&name::text(&found.name), &name::text(&self.apex), &self.settings.name_server(self.domain));
        let problem = format!(
            "{} is not delegated: the name servers of {} have no NS record for it, and no CNAME record",
            name::text(&found.name),
            name::text(&found.parent)
        );
        DelegationProblem::new(problem, format!("publish at the registrar: {lead}"))
    }

    /// Asks each name server of the delegation, at each of its addresses.
    async fn ask_servers(
        &self,
        lookup: &Lookup,
        found: &Delegation,
        zone: &Name,
        own: &Name,
        report: &mut DelegationReport,
    ) -> Result<(), String> {
        let mut queries = JoinSet::new();
        for (index, server) in found.servers.iter().enumerate() {
            let NameServer { addresses, is_alias, error } = found.name_server(lookup, server).await;
            if is_alias {
                report.aliases.push(self.alias(server, zone));
            }
            if addresses.is_empty() && !is_alias {
                let text = name::text(server);
                report.passed_over.push(match (found.doubled_name_server(server), error) {
                    (Some(doubled), _) => doubled,
                    (None, Some(error)) => DelegationProblem { problem: error.to_string(), remedy: None },
                    (None, None) => {
                        let problem = format!("{} is delegated to {text}, which has no address", name::text(zone));
                        DelegationProblem::new(problem, self.publish_addresses(&text))
                    }
                });
            }
            for address in addresses {
                let proof = Proof::new(&self.key, zone)?;
                queries.spawn(async move { (index, address, is_alias, proof.ask(address).await) });
            }
        }
        let mut answers = queries.join_all().await;
        answers.sort_by_key(|(index, address, _, _)| (*index, *address));
        for (index, address, is_alias, answer) in answers {
            let server = &found.servers[index];
            let is_wrong = matches!(answer, ServerAnswer::Another(_));
            let problem = match self.problem(zone, &found.parent, server, server == own, address, &answer) {
                // A resolver that rejects the alias does not get there.
                None if is_alias => continue,
                None => {
                    report.proven.push(format!("{} ({address})", name::text(server)));
                    continue;
                }
                Some(problem) => found.doubled_name_server(server).unwrap_or(problem),
            };
            let list = if is_wrong { &mut report.wrong } else { &mut report.passed_over };
            if !list.contains(&problem) {
                list.push(problem);
            }
        }
        Ok(())
    }

    /// What is wrong with the answer of `server` at `address`, if it is not the proof.
    fn problem(
        &self,
        zone: &Name,
        parent: &Name,
        server: &Name,
        is_own: bool,
        address: IpAddr,
        answer: &ServerAnswer,
    ) -> Option<DelegationProblem> {
        let (zone, server) = (name::text(zone), name::text(server));
        let is_here = self.settings.responder.public_addresses().contains(&address);
        let elsewhere = || {
            let publish = self.publish_addresses(&server);
            if is_own {
                format!("correct the address of {server}, {publish}")
            } else {
                format!(
                    "remove this NS record at the parent zone {}, or correct the address of {server}, {publish}",
                    name::text(parent)
                )
            }
        };
        Some(match answer {
            ServerAnswer::Proof => return None,
            ServerAnswer::Another(code) => DelegationProblem::new(
                format!(
                    "another server answers for {zone} at {server} ({address}, port {PORT}): {} without the proof that only \
                     this server can give",
                    mnemonic(*code)
                ),
                if is_here {
                    format!(
                        "stop the other DNS server on {address}: `ss -lnup sport = :{PORT}` shows it; a provost with another \
                         state directory counts as another server"
                    )
                } else {
                    elsewhere()
                },
            ),
            ServerAnswer::Silent(reason) => DelegationProblem::new(
                format!("port {PORT} of {server} ({address}) does not answer: {reason}"),
                if is_here || is_own {
                    "check that provost runs and listens there (`ss -lnup sport = :53`), and that the firewall allows port \
                     53, UDP and TCP"
                        .to_owned()
                } else {
                    elsewhere()
                },
            ),
            ServerAnswer::Useless(reason) => {
                DelegationProblem::new(format!("{server} ({address}) is passed over: {reason}"), elsewhere())
            }
        })
    }

    /// "The domain name used as the value of a NS resource record […] must not be an alias." (RFC 2181 §10.3)
    fn alias(&self, server: &Name, zone: &Name) -> DelegationProblem {
        let text = name::text(server);
        DelegationProblem::new(
            format!("{text}, the name server of {}, is an alias (CNAME)", name::text(zone)),
            format!("remove its CNAME record, and {}", self.publish_addresses(&text)),
        )
    }

    fn publish_addresses(&self, name: &str) -> String {
        let addresses = self.settings.responder.public_addresses();
        let records = addresses.iter().map(|ip| format!("{name}. {} {ip}", if ip.is_ipv4() { "A" } else { "AAAA" }));
        format!("publish: {}", records.collect::<Vec<_>>().join(" and "))
    }

    /// Whether the resolvers lead to this server.
    async fn ask_resolver(&self, lookup: &Lookup, zone: &Name) -> Result<Result<(), DelegationProblem>, String> {
        let proof = Proof::new(&self.key, zone)?;
        let said = match lookup.resolver().ask(&proof.name, RecordType::TXT).await {
            Ok(answer) if proof.is_in(&answer) => return Ok(Ok(())),
            Ok(answer) => {
                format!("the resolver answers {} for {}", mnemonic(answer.response_code), name::text(&proof.name))
            }
            Err(error) => error.to_string(),
        };
        Ok(Err(DelegationProblem::new(
            format!("this server answers for {}, but the resolver does not see it: {said}", name::text(zone)),
            "it may hold old records for as long as their TTL; try again later, or name another resolver in \
             \"dns\".\"resolvers\"",
        )))
    }
}

fn is_no_zone(error: &DnsError) -> bool {
    matches!(error, DnsError::NoZone { .. })
}

/// A validating resolver takes the zone's answers as bogus (RFC 4035 §5): by the DS record it expects signatures.
fn ds_record(zone: &Name, parent: &Name) -> DelegationProblem {
    let (zone, parent) = (name::text(zone), name::text(parent));
    DelegationProblem::new(
        format!(
            "{parent} has a DS record for {zone}, which promises that the zone is signed; this server does not sign it, so \
             validating resolvers, and CAs, reject its answers"
        ),
        format!("remove the DS record of {zone} at the parent zone {parent}"),
    )
}

/// A one-time name, and the value that only this server knows.
struct Proof {
    name: Name,
    value: String,
}

impl Proof {
    fn new(key: &ProofKey, zone: &Name) -> Result<Self, String> {
        let nonce = name::random_word().ok_or("the system gives no random numbers")?;
        let label = proof_label(&nonce);
        let name = zone.prepend_label(label.as_str()).map_err(|error| error.to_string())?;
        Ok(Self { name, value: key.proof(label.as_bytes()) })
    }

    /// Asks the name server at `address`.
    async fn ask(&self, address: IpAddr) -> ServerAnswer {
        let server = Authority { label: address.to_string(), address: Ok(SocketAddr::new(address, PORT)) };
        match server.ask(&self.name, RecordType::TXT).await {
            Ok(Reply::Authoritative(answer)) if self.is_in(&answer) => ServerAnswer::Proof,
            Ok(Reply::Authoritative(answer)) => ServerAnswer::Another(answer.response_code),
            Ok(Reply::Referral { zone, .. }) => {
                ServerAnswer::Useless(format!("it delegates {} to other servers", name::text(&zone)))
            }
            Err(NoReply::Silent(reason)) => ServerAnswer::Silent(reason),
            Err(NoReply::Useless(reason)) => ServerAnswer::Useless(reason),
        }
    }

    fn is_in(&self, answer: &Message) -> bool {
        let mut texts = answer.answers.iter().filter_map(|record| match &record.data {
            RData::TXT(text) => Some(text.txt_data.concat()),
            _ => None,
        });
        texts.any(|text| text == self.value.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> DelegationProblem {
        DelegationProblem::new(text, "remedy")
    }

    fn texts(problems: &[DelegationProblem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.problem.as_str()).collect()
    }

    fn report(change: impl FnOnce(&mut DelegationReport)) -> DelegationReport {
        let mut report = DelegationReport { zone: Some("acme.example.com".to_owned()), ..DelegationReport::default() };
        change(&mut report);
        report
    }

    #[test]
    fn wrong_name_server_blocks_beside_a_proven_one() {
        let report = report(|it| {
            it.proven = vec!["ns".to_owned()];
            it.wrong = vec![problem("wrong")];
            it.passed_over = vec![problem("silent")];
        });
        let Some(obstacle @ DnsError::WrongDelegation { .. }) = report.obstacle() else { panic!("{report:?}") };
        assert!(obstacle.needs_human() && obstacle.to_string().ends_with("would fail: wrong (remedy)"), "{obstacle}");
        assert_eq!((texts(&report.errors()), texts(&report.warnings())), (vec!["wrong"], vec!["silent"]));
    }

    #[test]
    fn resolver_that_gets_the_proof_stands_for_unreachable_servers() {
        let behind_nat = report(|it| {
            it.passed_over = vec![problem("silent")];
            it.resolver = Some(Ok(()));
        });
        assert!(behind_nat.obstacle().is_none() && behind_nat.errors().is_empty());
        assert_eq!(texts(&behind_nat.warnings()), ["silent"]);
        let alias = report(|it| {
            it.aliases = vec![problem("alias")];
            it.resolver = Some(Ok(()));
        });
        assert!(alias.obstacle().is_none());
        assert_eq!(texts(&alias.errors()), ["alias"], "other resolvers reject it");
    }

    #[test]
    fn servers_without_a_proof_block_until_one_answers() {
        let closed = report(|it| {
            it.passed_over = vec![problem("silent")];
            it.resolver = Some(Err(problem("unseen")));
        });
        let Some(obstacle @ DnsError::NotProven { .. }) = closed.obstacle() else { panic!("{closed:?}") };
        assert!(
            !obstacle.needs_human() && obstacle.to_string().ends_with("this server: silent (remedy)"),
            "{obstacle}"
        );
        assert_eq!((texts(&closed.errors()), closed.warnings().len()), (vec!["silent"], 0), "one cause");
        let unseen = report(|it| {
            it.proven = vec!["ns".to_owned()];
            it.resolver = Some(Err(problem("unseen")));
        });
        assert!(unseen.obstacle().is_none());
        assert_eq!(texts(&unseen.errors()), ["unseen"]);
    }
}
