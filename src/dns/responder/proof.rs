//! Proves from outside that the zone is delegated to this server: a resolver is asked for a one-time name, whose value only
//! a server with our key knows. If the proof fails, each server on the way is asked, to find the cause.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name, RData, RecordType};

use super::delegation::{self, Delegation};
use super::memory::Memory;
use super::settings::ResponderDns;
use super::zone::{ProofKey, proof_label};
use super::{challenge_name, known_zone, lead_in};
use crate::dns::lookup::{Lookup, mismatch};
use crate::dns::name;
use crate::dns::resolve::Resolver;
use crate::dns::settings::PORT;

/// Why the proof fails, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegationProblem {
    pub problem: String,
    pub remedy: Option<String>,
}

/// A delegation that leads to this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The delegated zone.
    pub zone: String,
    /// How the parent's NS records differ from our own, if they do.
    pub mismatch: Option<String>,
}

impl std::fmt::Display for DelegationProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(f, "{} ({remedy})", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl DelegationProblem {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: Some(remedy.into()) }
    }
}

/// Whether the resolvers lead from the challenge of `host`, the `domain` or a name below it, to the server whose state
/// directory is `state`.
///
/// # Errors
/// If they lead elsewhere or nowhere: the likely causes.
pub async fn prove_delegation(
    settings: &ResponderDns,
    domain: &str,
    host: &str,
    state: &Path,
) -> Result<Proven, Vec<DelegationProblem>> {
    let one = |problem: DelegationProblem| vec![problem];
    let failed = |error: &dyn ToString| one(DelegationProblem { problem: error.to_string(), remedy: None });
    let memory = Memory::read(state).map_err(|error| failed(&error))?.ok_or_else(|| {
        let problem = format!("no server has run with the DNS responder on the state directory {}", state.display());
        one(DelegationProblem::new(problem, "start it: systemctl enable --now provost.socket provost.service"))
    })?;
    let lookup = Lookup::new(&settings.resolvers, None).map_err(|error| failed(&error))?;
    let resolver = lookup.resolver();
    let key = ProofKey::new(memory.proof_key.as_bytes());
    let challenge = name::parse(&challenge_name(host)).map_err(|error| failed(&error))?;
    let assumed = known_zone(settings, domain, state);
    let assumed = name::parse(&assumed).map_err(|error| failed(&error))?;
    let site = name::parse(domain).map_err(|error| failed(&error))?;
    let found = match (&settings.zone, delegation::find(&lookup, &challenge, &assumed, &site).await) {
        (_, Ok(found)) => found,
        // The parent's servers may be out of reach from here, and the resolver knows the way.
        (_, Err(error)) if error.needs_human() => return Err(failed(&error)),
        (_, Err(_)) => Delegation {
            name: challenge.clone(),
            via: Vec::new(),
            parent: assumed.base_name(),
            zone: Some(assumed.clone()),
            servers: Vec::new(),
        },
    };
    let server = settings.name_server(domain);
    let Some(zone) = &found.zone else {
        let lead = lead_in(&name::text(&found.name), &name::text(&assumed), &server);
        let problem = format!(
            "{} is not delegated: the name servers of {} have no NS record for it, and no CNAME record",
            name::text(&found.name),
            name::text(&found.parent)
        );
        return Err(one(DelegationProblem::new(problem, format!("publish at the registrar: {lead}"))));
    };
    if settings.zone.is_some() && *zone != assumed {
        let problem = format!("{} leads to the zone {}", name::text(&challenge), name::text(zone));
        let remedy = "correct \"dns\".\"zone\", or leave it out so that the zone is found";
        return Err(one(DelegationProblem::new(problem, remedy)));
    }
    let proof = Proof::new(&key, zone).map_err(|error| failed(&error))?;
    match resolver.ask(&proof.name, RecordType::TXT).await {
        // Some resolvers follow an alias that others reject.
        Ok(answer) if proof.is_in(&answer) => match aliases(resolver, &found, settings).await {
            aliases if aliases.is_empty() => {
                let own = name::parse(&server).map_err(|error| failed(&error))?;
                Ok(Proven { zone: name::text(zone), mismatch: mismatch(zone, &[own], &found.servers) })
            }
            aliases => Err(aliases),
        },
        asked => {
            let mut causes = causes(resolver, &found, &key, zone, settings, domain).await;
            if causes.is_empty() {
                let said = match asked {
                    Err(error) => error.to_string(),
                    Ok(answer) => {
                        format!("the resolver answers {} for {}", answer.response_code, name::text(&proof.name))
                    }
                };
                let remedy = "it may hold old records for as long as their TTL; try again later, or name another resolver \
                              in \"dns\".\"resolvers\"";
                causes.push(DelegationProblem::new(
                    format!("this server answers for {}, but the resolver does not see it: {said}", name::text(zone)),
                    remedy,
                ));
            }
            Err(causes)
        }
    }
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

    fn is_in(&self, answer: &Message) -> bool {
        let texts = answer.answers.iter().filter_map(|record| match &record.data {
            RData::TXT(text) => Some(text.txt_data.concat()),
            _ => None,
        });
        texts.into_iter().any(|text| text == self.value.as_bytes())
    }
}

/// Why a resolver that follows `found` does not reach this server. Empty if it should.
async fn causes(
    resolver: &Resolver,
    found: &Delegation,
    key: &ProofKey,
    zone: &Name,
    settings: &ResponderDns,
    domain: &str,
) -> Vec<DelegationProblem> {
    let mut problems = aliases(resolver, found, settings).await;
    if !problems.is_empty() {
        return problems;
    }
    let servers = if found.servers.is_empty() {
        name::parse(&settings.name_server(domain)).into_iter().collect()
    } else {
        found.servers.clone()
    };
    for server in &servers {
        let text = name::text(server);
        let addresses = resolver.addresses(server).await;
        match addresses {
            Ok(addresses) if addresses.is_empty() => {
                let problem = format!("{} is delegated to {text}, which has no address", name::text(zone));
                problems.push(DelegationProblem::new(problem, publish_addresses(&text, settings)));
            }
            Ok(addresses) => {
                for address in addresses {
                    problems.extend(ask_directly(key, zone, &text, address, settings).await);
                }
            }
            Err(error) => problems.push(DelegationProblem { problem: error.to_string(), remedy: None }),
        }
    }
    problems
}

/// The name servers of `found` whose names are aliases. "The domain name used as the value of a NS resource record […] must
/// not be an alias." (RFC 2181 §10.3)
async fn aliases(resolver: &Resolver, found: &Delegation, settings: &ResponderDns) -> Vec<DelegationProblem> {
    let mut problems = Vec::new();
    for server in &found.servers {
        let Ok(answer) = resolver.ask(server, RecordType::A).await else { continue };
        if answer.answers.iter().any(|record| record.record_type() == RecordType::CNAME) {
            let text = name::text(server);
            let zone = found.zone.as_ref().map(name::text).unwrap_or_default();
            problems.push(DelegationProblem::new(
                format!("{text}, the name server of {zone}, is an alias (CNAME)"),
                format!("remove its CNAME record, and {}", publish_addresses(&text, settings)),
            ));
        }
    }
    problems
}

fn publish_addresses(name: &str, settings: &ResponderDns) -> String {
    let records: Vec<String> = settings
        .responder
        .public_addresses()
        .iter()
        .map(|ip| format!("{name}. {} {ip}", if ip.is_ipv4() { "A" } else { "AAAA" }))
        .collect();
    format!("publish: {}", records.join(" and "))
}

/// Why the name server at `address` gives no proof, if so.
async fn ask_directly(
    key: &ProofKey,
    zone: &Name,
    server: &str,
    address: IpAddr,
    settings: &ResponderDns,
) -> Option<DelegationProblem> {
    let proof = match Proof::new(key, zone) {
        Ok(proof) => proof,
        Err(problem) => return Some(DelegationProblem { problem, remedy: None }),
    };
    match delegation::ask(SocketAddr::new(address, PORT), &proof.name, RecordType::TXT).await {
        Ok(answer) if proof.is_in(&answer) => None,
        Ok(answer) => {
            let listen: Vec<String> = settings.responder.listen.iter().map(ToString::to_string).collect();
            let said = match answer.response_code {
                ResponseCode::NoError => "another answer than this server's".to_owned(),
                code => code.to_string(),
            };
            Some(DelegationProblem::new(
                format!("another server answers for {} at {server} ({address}, port {PORT}): {said}", name::text(zone)),
                format!(
                    "let {server} lead to this server (\"listen\": {}), or stop the other: `ss -lnup sport = :53` shows it; \
                     a provost with another state directory counts as another server",
                    listen.join(", ")
                ),
            ))
        }
        Err(reason) => Some(DelegationProblem::new(
            format!("port {PORT} of {server} ({address}) does not answer: {reason}"),
            "check that provost runs and listens there (`ss -lnup sport = :53`), and that the firewall allows port 53, \
             UDP and TCP",
        )),
    }
}
