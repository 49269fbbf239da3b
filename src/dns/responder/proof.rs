//! Proves that the delegation of the zone leads to this server: each name server to which the parent delegates is asked, at
//! each address, for a one-time name, whose value only a server with our key knows.
//!
//! A CA's resolver may ask any of them. So an answer without the proof, NXDOMAIN or no records, makes validations fail,
//! whatever the others answer. A name server that is silent or refuses is passed over if another one proves to be this server:
//! resolvers pass over it too, mostly, at the cost of time. If none does, a resolver is asked: this machine may not reach its own public
//! address (NAT).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;

use super::delegation::{self, Delegation, DelegationProblem, NameServer, ThisServer};
use super::memory::Memory;
use super::remedy::{AddressSource, DelegatedServer, Finding, RecordOwner, ServerAddress};
use super::settings::ResponderDns;
use super::zone::{ProofKey, proof_label};
use super::{challenge_name, known_zone, lead_in};
use crate::dns::authority::{Reply, judge};
use crate::dns::failure::{DnsError, MAY_TIME_OUT};
use crate::dns::lookup::{Lookup, mismatch};
use crate::dns::name;
use crate::dns::query::{NoAnswer, Question, mnemonic};
use crate::dns::settings::PORT;
use crate::dns::wildcard;

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
    passed_over: Vec<PassedOver>,
    /// What is named as wrong about the wildcard record of the domain.
    wildcard_faults: WildcardFaults,
    /// Whether a resolver got the proof, if it was asked.
    resolver: Option<Result<(), DelegationProblem>>,
    /// How the parent's NS records differ from our own.
    mismatch: Option<String>,
}

/// A name server that does not help, and makes no validation fail for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PassedOver {
    problem: DelegationProblem,
    /// Whether a resolver may lose time with it.
    costs_time: bool,
}

/// What the problems of a delegation already say about the wildcard record of the domain, which phones follow too.
#[derive(Debug, Default)]
pub struct WildcardFaults {
    /// Its addresses that are not this server's.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether it is absent.
    pub is_missing: bool,
}

impl DelegationReport {
    /// What the errors and warnings say about the wildcard record of the domain.
    #[must_use]
    pub fn wildcard_faults(&self) -> &WildcardFaults {
        &self.wildcard_faults
    }

    /// Why a CA's validation fails, or fails at some CAs.
    #[must_use]
    pub fn errors(&self) -> Vec<DelegationProblem> {
        let mut errors = [&self.wrong[..], &self.aliases].concat();
        if !self.is_proven() {
            errors.extend(self.passed_over.iter().map(|it| it.problem.clone()));
        }
        if let Some(Err(problem)) = &self.resolver
            && errors.is_empty()
        {
            errors.push(problem.clone());
        }
        errors
    }

    /// What a CA passes over, at the cost of time.
    #[must_use]
    pub fn warnings(&self) -> Vec<DelegationProblem> {
        if !self.is_proven() {
            return Vec::new();
        }
        let mismatch = self.mismatch.iter().map(|problem| DelegationProblem { problem: problem.clone(), remedy: None });
        let passed_over = self.passed_over.iter().map(|PassedOver { problem, costs_time }| {
            let note = if *costs_time { MAY_TIME_OUT } else { "" };
            DelegationProblem { problem: format!("{}{note}", problem.problem), ..problem.clone() }
        });
        passed_over.chain(mismatch).collect()
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

impl Inspection<'_> {
    /// Inspects the delegation of the challenge of `host`. A resolver is asked if no server gives the proof, or if it
    /// `must_see` the proof.
    pub(super) async fn run(&self, host: &str, must_see: bool) -> DelegationReport {
        match self.try_run(host, must_see).await {
            Ok(report) => report,
            Err(problem) => DelegationReport { wrong: vec![problem], ..DelegationReport::default() },
        }
    }

    /// What tells this server and its zone from others.
    pub(super) fn this_server(&self) -> Result<ThisServer, String> {
        let responder = &self.settings.responder;
        Ok(ThisServer {
            apex: self.apex.clone(),
            domain: name::parse(self.domain)?,
            name: name::parse(&self.settings.name_server(self.domain))?,
            addresses: responder.listen.iter().map(SocketAddr::ip).chain(responder.public_addresses()).collect(),
        })
    }

    async fn try_run(&self, host: &str, must_see: bool) -> Result<DelegationReport, DelegationProblem> {
        let failed = |problem: String| DelegationProblem { problem, remedy: None };
        let lookup = Lookup::new(&self.settings.resolvers, None).map_err(|error| failed(error.to_string()))?;
        let this = self.this_server().map_err(failed)?;
        let challenge = name::parse(&challenge_name(host)).map_err(failed)?;
        let found = match delegation::find(&lookup, &challenge, &this).await {
            Ok(found) => found,
            // Where the resolver shows no zones, a configured zone may be right.
            Err(error) if error.needs_human() && !(self.settings.zone.is_some() && is_no_zone(&error)) => {
                return Err(failed(error.to_string()));
            }
            // The parent's servers may be out of reach from here, and the resolver knows the way.
            Err(_) => Delegation::assumed(challenge, self.apex.clone(), this.name.clone()),
        };
        if let Some(problem) = self.lead_problem(&found).await {
            return Err(problem);
        }
        let Some(zone) = &found.zone else { return Ok(DelegationReport::default()) };
        let mut report = DelegationReport { zone: Some(name::text(zone)), ..DelegationReport::default() };
        if found.has_ds_records().await {
            report.wrong.push(ds_record(zone, &found.parent));
        }
        self.ask_servers(&lookup, &found, zone, &this, &mut report).await.map_err(failed)?;
        if report.wrong.is_empty() && (must_see || report.proven.is_empty()) {
            report.resolver = Some(self.ask_resolver(&lookup, zone).await.map_err(failed)?);
        }
        if report.errors().is_empty() && report.passed_over.is_empty() {
            report.mismatch = mismatch(zone, &[this.name], &found.servers);
        }
        Ok(report)
    }

    /// Why the records lead the challenge into no zone that this server serves. The domain's own challenge decides which zone
    /// that is, unless the settings name it.
    pub(super) async fn lead_problem(&self, found: &Delegation) -> Option<DelegationProblem> {
        let Some(zone) = &found.zone else { return Some(self.not_delegated(found).await) };
        let is_own = self.is_own_challenge(found);
        if *zone == self.apex || (is_own && self.settings.zone.is_none()) {
            return None;
        }
        let challenge = name::text(found.challenge());
        let (text, parent, apex) = (name::text(zone), name::text(&found.parent), name::text(&self.apex));
        if is_own {
            let remedy = "correct \"dns\".\"zone\", or leave it out so that the zone is found";
            return Some(DelegationProblem::new(format!("{challenge} leads to the zone {text}"), remedy));
        }
        let lead = lead_in(&challenge, &apex, &self.settings.name_server(self.domain));
        let remedy = if self.apex.zone_of(zone) {
            format!("remove the NS records of {text}")
        } else if !found.via.is_empty() {
            format!("replace the CNAME record of {challenge} with: {lead}")
        } else if *zone == found.name {
            format!("replace the NS records of {challenge} at the parent zone {parent} with: {lead}")
        } else {
            format!("publish in the zone {text}: {lead}")
        };
        let problem = format!("{challenge} leads to the zone {text}, and this server serves only the zone {apex}");
        Some(DelegationProblem::new(problem, remedy))
    }

    fn is_own_challenge(&self, found: &Delegation) -> bool {
        name::text(found.challenge()) == challenge_name(self.domain).to_ascii_lowercase()
    }

    async fn not_delegated(&self, found: &Delegation) -> DelegationProblem {
        if let Some(problem) = found.doubled_record().await {
            return problem;
        }
        let own = self.settings.name_server(self.domain);
        let (text, parent, apex) = (name::text(&found.name), name::text(&found.parent), name::text(&self.apex));
        let challenge = name::text(found.challenge());
        let Some(owner) = found.via.last() else {
            let problem = format!(
                "the name servers of {parent} do not lead {challenge} to the DNS responder: they have no NS record for it, and \
                 no CNAME record"
            );
            let lead = lead_in(&challenge, &apex, &own);
            return DelegationProblem::new(problem, format!("publish in the zone {parent}: {lead}"));
        };
        let problem = format!(
            "the CNAME record of {} leads to {text}, and the name servers of {parent} do not lead {text} to the DNS responder: \
             they have no NS record for it, and no CNAME record",
            name::text(owner)
        );
        // A record at the target itself can only be an NS record: a CNAME record would lead on, or back.
        let remedy = if self.settings.zone.is_some() || !self.is_own_challenge(found) {
            if self.apex.zone_of(&found.name) && found.is_alias(&self.apex).await {
                // An alias has no names below it (RFC 1034 §3.6.2), and no NS record beside it.
                format!(
                    "{apex} is an alias (CNAME), below which nothing can be: mend the records of {} first; then `provost print \
                     dns-records` prints the record of {challenge}",
                    challenge_name(self.domain)
                )
            } else if self.apex.zone_of(&found.name) {
                format!("publish in the zone {parent}: {apex}. NS {own}.")
            } else {
                format!("replace the CNAME record of {challenge} with: {}", lead_in(&challenge, &apex, &own))
            }
        } else {
            let replace = format!("replace the CNAME record of {challenge} with: {challenge}. NS {own}.");
            match name::parse(self.domain).ok().and_then(|domain| found.delegable(&domain)) {
                Some(zone) => format!("publish in the zone {parent}: {}. NS {own}.; or {replace}", name::text(&zone)),
                None => replace,
            }
        };
        DelegationProblem::new(problem, remedy)
    }

    /// Asks each name server of the delegation, at each of its addresses.
    async fn ask_servers(
        &self,
        lookup: &Lookup,
        found: &Delegation,
        zone: &Name,
        this: &ThisServer,
        report: &mut DelegationReport,
    ) -> Result<(), String> {
        let mut servers = Vec::new();
        for server in &found.servers {
            servers.push((server, found.name_server(lookup, server).await));
        }
        let has_address = |server: &NameServer| server.addresses.keys().any(|ip| this.addresses.contains(ip));
        let is_this_server: Vec<bool> =
            servers.iter().map(|(name, server)| **name == this.name || has_address(server)).collect();
        let is_reached = servers.iter().any(|(_, server)| has_address(server));
        let mut queries = JoinSet::new();
        for (index, (_, server)) in servers.iter().enumerate() {
            for address in server.addresses.keys().copied() {
                let proof = Proof::new(&self.key, zone)?;
                queries.spawn(async move { (index, address, proof.ask(address).await) });
            }
        }
        let mut answers = queries.join_all().await;
        answers.sort_by_key(|(index, address, _)| (*index, *address));

        let own_addresses = self.settings.responder.public_addresses();
        let texts = [zone, &found.parent, &this.name].map(name::text);
        let [zone_text, parent, own_name] = texts.each_ref().map(String::as_str);
        let phones_wildcard = wildcard::below_star(&this.domain);
        let is_foreign = |index: usize| {
            let mut others = answers.iter().filter(|(at, _, finding)| *at == index && finding.is_err());
            others.any(|(_, address, _)| !this.addresses.contains(address))
        };
        let mut wildcards = Vec::new();
        let mut missing = Vec::new();
        for (index, (name, server)) in servers.iter().enumerate() {
            let is_asked = is_this_server[index] && (server.is_alias || is_foreign(index));
            // Where no server can say, the name server's own record is named.
            wildcards.push(if is_asked { wildcard::wildcard_of(lookup, name).await.ok().flatten() } else { None });
            let is_covered = name.base_name() == this.domain && server.addresses.is_empty() && server.error.is_none();
            missing.push(is_covered && matches!(wildcard::is_missing(lookup, &this.domain).await, Ok(true)));
        }
        let owner = |index: usize| match wildcards[index].as_deref() {
            Some(wildcard) if wildcard == phones_wildcard => RecordOwner::PhonesWildcard,
            Some(wildcard) => RecordOwner::OtherWildcard(wildcard),
            None if missing[index] => RecordOwner::MissingPhonesWildcard,
            None => RecordOwner::Itself,
        };
        let names: Vec<String> = servers.iter().map(|(name, _)| name::text(name)).collect();
        let delegated = |index: usize| DelegatedServer {
            zone: zone_text,
            parent,
            name: &names[index],
            owner: owner(index),
            phones_wildcard: &phones_wildcard,
            own_name,
            own_addresses: &own_addresses,
            is_this_server: is_this_server[index],
            has_other: is_this_server.iter().enumerate().any(|(other, is_this)| other != index && *is_this),
            is_reached,
        };
        for (index, (name, server)) in servers.iter().enumerate() {
            let text = &names[index];
            if server.is_alias {
                // "The domain name used as the value of a NS resource record […] must not be an alias." (RFC 2181 §10.3)
                let problem = format!("{text}, the name server of {zone_text}, is an alias (CNAME)");
                report.aliases.push(DelegationProblem::new(problem, delegated(index).remedy_for_alias()));
            } else if server.addresses.is_empty() {
                let problem = match (found.doubled_name_server(name), &server.error) {
                    (Some(doubled), _) => doubled,
                    (None, Some(error)) => DelegationProblem { problem: error.to_string(), remedy: None },
                    (None, None) => {
                        let problem = format!("{zone_text} is delegated to {text}, which has no address");
                        report.wildcard_faults.is_missing |= is_this_server[index] && missing[index];
                        DelegationProblem::new(problem, delegated(index).remedy_without_address())
                    }
                };
                report.passed_over.push(PassedOver { problem, costs_time: false });
            }
        }
        for (index, address, finding) in answers {
            let (name, server) = &servers[index];
            let Err(finding) = finding else {
                // A resolver that rejects the alias does not get there.
                if !server.is_alias {
                    report.proven.push(format!("{} ({address})", names[index]));
                }
                continue;
            };
            let source = server.addresses[&address];
            let mut same = server.addresses.iter().filter(|(_, it)| **it == source);
            let at = ServerAddress {
                address,
                source,
                is_ours: this.addresses.contains(&address),
                is_beside_ours: same.any(|(ip, _)| this.addresses.contains(ip)),
                other_port: self.settings.responder.other_port(address),
            };
            let delegated = delegated(index);
            let is_refusal = matches!(finding, Finding::WrongAnswer(_) | Finding::Useless(_));
            let remedy = if at.is_ours && is_refusal && *zone != this.apex {
                let apex = name::text(&this.apex);
                format!("this server serves {apex} until a renewal finds this zone: `provost certificate renew --now`")
            } else {
                delegated.remedy(&at, &finding)
            };
            let problem = DelegationProblem::new(delegated.problem(address, &finding), remedy);
            let problem = match found.doubled_name_server(name) {
                Some(doubled) => doubled,
                None => {
                    if source == AddressSource::Zone && !at.is_ours && delegated.owner == RecordOwner::PhonesWildcard {
                        report.wildcard_faults.addresses.insert(address);
                    }
                    problem
                }
            };
            if matches!(finding, Finding::WrongAnswer(_)) {
                if !report.wrong.contains(&problem) {
                    report.wrong.push(problem);
                }
            } else if !report.passed_over.iter().any(|it| it.problem == problem) {
                // From behind NAT, this server's own public address may be silent.
                let costs_time = !at.is_ours && !matches!(finding, Finding::NoRoute(_));
                report.passed_over.push(PassedOver { problem, costs_time });
            }
        }
        Ok(())
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
    async fn ask(&self, address: IpAddr) -> Result<(), Finding> {
        let question = Question::to_authority(&self.name, RecordType::TXT);
        match question.ask(SocketAddr::new(address, PORT)).await {
            Ok(answer) => self.judge(answer),
            Err(NoAnswer::NoRoute(reason)) => Err(Finding::NoRoute(reason)),
            Err(NoAnswer::Silent(reason) | NoAnswer::Truncated(reason)) => Err(Finding::Silent(reason)),
        }
    }

    fn judge(&self, answer: Message) -> Result<(), Finding> {
        let code = answer.response_code;
        let is_proof = self.is_in(&answer);
        let is_referral = answer.authorities.iter().any(|record| record.record_type() == RecordType::NS);
        match judge(answer, &self.name) {
            Ok(Reply::Authoritative(_)) if is_proof => Ok(()),
            Ok(Reply::Authoritative(_)) => Err(Finding::WrongAnswer(mnemonic(code).into_owned())),
            Ok(Reply::Referral { zone, .. }) => {
                Err(Finding::Useless(format!("it delegates {} to other servers", name::text(&zone))))
            }
            // Some resolvers, such as unbound, believe a negative answer without AA.
            Err(_)
                if code == ResponseCode::NXDomain || (code == ResponseCode::NoError && !is_proof && !is_referral) =>
            {
                Err(Finding::WrongAnswer(format!("{}, not authoritative (no AA),", mnemonic(code))))
            }
            Err(reason) => Err(Finding::Useless(reason)),
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
    use hickory_net::proto::rr::{Record, rdata};

    use super::*;

    fn problem(text: &str) -> DelegationProblem {
        DelegationProblem::new(text, "remedy")
    }

    fn passed_over(text: &str, costs_time: bool) -> PassedOver {
        PassedOver { problem: problem(text), costs_time }
    }

    fn texts(problems: &[DelegationProblem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.problem.as_str()).collect()
    }

    fn report(change: impl FnOnce(&mut DelegationReport)) -> DelegationReport {
        let mut report = DelegationReport { zone: Some("acme.example.com".to_owned()), ..DelegationReport::default() };
        change(&mut report);
        report
    }

    /// What the proof's server finds in an answer of this code, with AA or without, that this changes.
    fn judged(
        code: ResponseCode,
        is_authoritative: bool,
        change: impl FnOnce(&mut Message, &Proof),
    ) -> Result<(), Finding> {
        let zone = name::parse("acme.example.com").unwrap();
        let proof = Proof::new(&ProofKey::new(b"key"), &zone).unwrap();
        let mut answer = Message::query().into_response();
        answer.metadata.response_code = code;
        answer.metadata.authoritative = is_authoritative;
        change(&mut answer, &proof);
        proof.judge(answer)
    }

    #[test]
    fn answer_that_some_resolvers_believe_is_wrong_without_the_proof() {
        let (no_error, nothing) = (ResponseCode::NoError, ResponseCode::NXDomain);
        for (code, is_authoritative, said) in [
            (nothing, true, "NXDOMAIN"),
            (no_error, true, "NOERROR"),
            (nothing, false, "NXDOMAIN, not authoritative (no AA),"),
            (no_error, false, "NOERROR, not authoritative (no AA),"),
        ] {
            let found = judged(code, is_authoritative, |_, _| ());
            assert_eq!(found, Err(Finding::WrongAnswer(said.to_owned())), "{code} {is_authoritative}");
        }
        for code in [ResponseCode::Refused, ResponseCode::ServFail, ResponseCode::NotAuth, ResponseCode::YXDomain] {
            for is_authoritative in [true, false] {
                let found = judged(code, is_authoritative, |_, _| ());
                assert_eq!(found, Err(Finding::Useless(format!("it answers {}", mnemonic(code)))));
            }
        }
        for owner in ["acme.example.com", "example.com", "com", "example.net"] {
            let found = judged(no_error, false, |answer, _| {
                let server = RData::NS(rdata::NS(name::parse("ns.example.net").unwrap()));
                answer.authorities.push(Record::from_rdata(name::parse(owner).unwrap(), 60, server));
            });
            assert!(matches!(found, Err(Finding::Useless(_))), "{owner}: {found:?}");
        }
        let with_proof = |answer: &mut Message, proof: &Proof| {
            let text = RData::TXT(rdata::TXT::new(vec![proof.value.clone()]));
            answer.answers.push(Record::from_rdata(proof.name.clone(), 1, text));
        };
        assert_eq!(judged(no_error, true, with_proof), Ok(()));
        assert!(matches!(judged(no_error, false, with_proof), Err(Finding::Useless(_))), "from a cache");
    }

    #[test]
    fn wrong_name_server_blocks_beside_a_proven_one() {
        let report = report(|it| {
            it.proven = vec!["ns".to_owned()];
            it.wrong = vec![problem("wrong")];
            it.passed_over = vec![passed_over("silent", false)];
        });
        let Some(obstacle @ DnsError::WrongDelegation { .. }) = report.obstacle() else { panic!("{report:?}") };
        assert!(obstacle.needs_human() && obstacle.to_string().ends_with("would fail: wrong (remedy)"), "{obstacle}");
        assert_eq!((texts(&report.errors()), texts(&report.warnings())), (vec!["wrong"], vec!["silent"]));
    }

    #[test]
    fn silent_server_is_said_to_fail_validations_at_times() {
        let report = report(|it| {
            it.proven = vec!["ns".to_owned()];
            it.passed_over = vec![passed_over("silent", true), passed_over("without address", false)];
        });
        let warnings = report.warnings();
        assert!(report.errors().is_empty() && report.obstacle().is_none());
        assert_eq!(warnings.len(), 2);
        assert_eq!(warnings[0].problem, format!("silent{MAY_TIME_OUT}"));
        assert!(MAY_TIME_OUT.contains("validations fail at times") && MAY_TIME_OUT.contains("use-caps-for-id"));
        assert_eq!((warnings[1].problem.as_str(), warnings[0].remedy.as_deref()), ("without address", Some("remedy")));
    }

    #[test]
    fn resolver_that_gets_the_proof_stands_for_unreachable_servers() {
        let behind_nat = report(|it| {
            it.passed_over = vec![passed_over("silent", false)];
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
            it.passed_over = vec![passed_over("silent", false)];
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
