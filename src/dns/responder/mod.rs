//! The built-in responder: provost itself is the authoritative name server of one small zone, which holds the challenges.
//!
//! 1. [`answer`] turns the bytes of a query into those of its answer. It is pure.
//! 2. [`server`] does that on sockets, over UDP and TCP, with a rate limit.
//! 3. A [`Responder`] holds the [`zone`]. The renewal adds and removes values in memory, and the next answer has them.
//! 4. [`delegation`] asks the parent's name servers which zone leads to us. The [`memory`] keeps its name over a restart.
//! 5. [`proof`] shows from outside that the delegation leads to this server, before a CA is asked to validate.

mod answer;
mod client;
mod delegation;
mod memory;
mod proof;
mod query_counts;
mod rate_limit;
mod remedy;
mod server;
mod settings;
mod zone;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use hickory_net::proto::rr::{LowerName, Name};
use tokio::sync::watch;

pub use self::client::{Client, Transport};
pub use self::delegation::DelegationProblem;
pub use self::memory::FILE;
pub use self::proof::{DelegationReport, WildcardFaults, inspect_delegation};
pub use self::query_counts::QueryCounts;
pub use self::remedy::change_records;
pub use self::server::{ResponderSockets, serve};
pub use self::settings::{ResponderDns, ResponderSettings};

use self::answer::CookieKey;
use self::delegation::Delegation;
use self::memory::Memory;
use self::proof::Inspection;
use self::zone::{ProofKey, Zone};
use super::failure::DnsError;
use super::locate::RecordLocation;
use super::lookup::Lookup;
use super::resolve::Resolver;
use super::{name, wildcard};
use crate::clock;

/// The zone, and how it is found. Shared by the threads that serve it and the renewal.
#[derive(Debug)]
pub struct Responder {
    settings: ResponderDns,
    domain: String,
    memory: (PathBuf, Memory),
    zone: ArcSwap<Zone>,
    /// Whether the parent's name servers have delegated the zone, now or in an earlier run.
    was_delegated: AtomicBool,
    cookies: CookieKey,
    counts: Arc<QueryCounts>,
    /// Why the zone cannot be served, if so.
    fault: watch::Sender<Option<String>>,
}

impl Responder {
    /// Prepares the zone for `domain`. Its key and its name are kept in the state directory `state`.
    ///
    /// # Errors
    /// If the file there cannot be read, or the system gives no random numbers. A file that cannot be written is only
    /// logged: after a restart the zone is found again.
    pub fn open(settings: &ResponderDns, domain: &str, state: &Path) -> io::Result<Self> {
        let memory = Memory::open(state)?;
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let apex = settings.zone.clone().or(memory.zone.clone()).unwrap_or_else(|| challenge_name(domain));
        let apex = name::parse(&apex).map_err(invalid)?;
        let zone = Zone {
            apex,
            name_server: name::parse(&settings.name_server(domain)).map_err(invalid)?,
            addresses: settings.responder.public_addresses(),
            serial: unix_time(),
            proof_key: ProofKey::new(memory.proof_key.as_bytes()),
            challenges: BTreeMap::new(),
        };
        let responder = Self {
            settings: settings.clone(),
            domain: domain.to_owned(),
            was_delegated: AtomicBool::new(memory.zone.is_some()),
            memory: (state.to_owned(), memory),
            zone: ArcSwap::from_pointee(zone),
            cookies: CookieKey::new(&secret),
            counts: Arc::default(),
            fault: watch::Sender::new(None),
        };
        responder.adopt(&challenge_name(domain));
        Ok(responder)
    }

    /// The zone's name.
    #[must_use]
    pub fn zone(&self) -> String {
        name::text(&self.zone.load().apex)
    }

    /// Why the zone cannot be served, kept up to date.
    #[must_use]
    pub fn fault(&self) -> watch::Receiver<Option<String>> {
        self.fault.subscribe()
    }

    /// Sets why the zone cannot be served.
    pub fn set_fault(&self, fault: Option<String>) {
        self.fault.send_if_modified(|current| {
            let is_new = *current != fault;
            *current = fault;
            is_new
        });
    }

    /// Has the renewal tried at once, because an obstacle outside this server is gone.
    pub fn wake_renewal(&self) {
        self.fault.send_modify(|_| {});
    }

    /// Answers `query` by `client` from the zone as it is now. `None`: it gets no answer.
    #[must_use]
    pub fn answer(&self, query: &[u8], client: Client) -> Option<Vec<u8>> {
        let answer = answer::answer(query, client, &self.zone.load(), &self.cookies, unix_time());
        self.counts.count(client.transport, answer.outcome);
        answer.bytes
    }

    /// The queries by outcome.
    #[must_use]
    pub fn query_counts(&self) -> &Arc<QueryCounts> {
        &self.counts
    }

    /// Adds `values` at `location`. Existing ones stay.
    ///
    /// # Errors
    /// If the location is outside the zone.
    pub fn add(&self, location: &RecordLocation, values: &[String]) -> Result<(), DnsError> {
        let owner = name::parse(&location.name).map_err(DnsError::Setting)?;
        self.check_inside(&owner, &location.via)?;
        self.change(|zone| {
            let present = zone.challenges.entry(LowerName::new(&owner)).or_default();
            let new: Vec<String> = values.iter().filter(|value| !present.contains(value)).cloned().collect();
            present.extend(new);
        });
        Ok(())
    }

    /// Removes exactly `values` at `location`. Absent ones are ignored.
    ///
    /// # Errors
    /// If the location has no valid name.
    pub fn remove(&self, location: &RecordLocation, values: &[String]) -> Result<(), DnsError> {
        let owner = name::parse(&location.name).map_err(DnsError::Setting)?;
        self.change(|zone| {
            if let Some(present) = zone.challenges.get_mut(&LowerName::new(&owner)) {
                present.retain(|value| !values.contains(value));
            }
        });
        Ok(())
    }

    /// Finds the location for the values of the challenge at `challenge_name`: in the zone that the settings name, or in
    /// the one that the parent's name servers delegate. If these do not answer, the zone that was found before counts.
    ///
    /// # Errors
    /// If the name does not lead into the zone.
    pub async fn locate(&self, challenge_name: &str) -> Result<RecordLocation, DnsError> {
        let challenge = name::parse(challenge_name).map_err(DnsError::Setting)?;
        let apex = self.zone.load().apex.clone();
        if self.settings.zone.is_some() && apex.zone_of(&challenge) {
            return Ok(self.location(&challenge, Vec::new()));
        }
        let lookup = Lookup::new(&self.settings.resolvers, None)?;
        let inspection = self.inspection();
        let this = inspection.this_server().map_err(DnsError::Setting)?;
        let found = match delegation::find(&lookup, &challenge, &this).await {
            Ok(found) => found,
            Err(error) if !error.needs_human() && self.is_known(&challenge) => {
                tracing::warn!("{error}; going on with the zone {}, as before", name::text(&apex));
                return Ok(self.location(&challenge, Vec::new()));
            }
            Err(error) => return Err(error),
        };
        let via: Vec<String> = found.via.iter().map(name::text).collect();
        if let Some(problem) = inspection.lead_problem(&found).await {
            return Err(DnsError::NotDelegated { problem: problem.to_string() });
        }
        // Only the domain's own challenge decides which zone we serve: exact names lead into that one.
        if self.settings.zone.is_none()
            && challenge_name == self::challenge_name(&self.domain)
            && let Some(zone) = &found.zone
        {
            self.check_delegated(lookup.resolver(), zone, &found).await?;
            self.move_to(zone);
        }
        self.check_inside(&found.name, &via)?;
        Ok(self.location(&found.name, via))
    }

    /// The addresses of the configured resolvers; none: the system's.
    #[must_use]
    pub fn resolvers(&self) -> &[String] {
        &self.settings.resolvers
    }

    /// Checks that each name server to which the zone of `location` is delegated is this one, and that no DS record makes its
    /// answers invalid. Reports name servers that were passed over to `say`.
    ///
    /// # Errors
    /// If a validation would fail, or no name server proves to be this one.
    pub async fn prove_delegation(
        &self,
        location: &RecordLocation,
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), DnsError> {
        let report = self.inspection().run(host_of(location), false).await;
        report.warnings().iter().for_each(|problem| say(problem.to_string()));
        report.obstacle().map_or(Ok(()), Err)
    }

    /// Finds the zone of the challenge at `challenge_name`, as [`locate`](Self::locate) does, and checks its delegation.
    ///
    /// # Errors
    /// If no zone is found, or a record of the delegation makes validations fail. Servers that do not answer do not count:
    /// a renewal asks them again.
    pub async fn find_delegation(&self, challenge_name: &str) -> Result<(), DnsError> {
        let location = self.locate(challenge_name).await?;
        match self.prove_delegation(&location, &|_| ()).await {
            Err(error) if error.needs_human() => Err(error),
            _ => Ok(()),
        }
    }

    /// Why a CA may not reach us on its way to the values at `location`, with remedies. Empty if it should.
    pub async fn likely_causes(&self, location: &RecordLocation) -> Vec<String> {
        let report = self.inspection().run(host_of(location), true).await;
        report.errors().iter().chain(&report.warnings()).map(ToString::to_string).collect()
    }

    fn inspection(&self) -> Inspection<'_> {
        let zone = self.zone.load();
        let (key, apex) = (zone.proof_key.clone(), zone.apex.clone());
        Inspection { settings: &self.settings, domain: &self.domain, key, apex }
    }

    /// Checks that a challenge for `name` would hide no address: see [`DnsError::OnlyByWildcard`].
    ///
    /// # Errors
    /// If it would, or no resolver can say.
    pub async fn stands_alone(&self, name: &str) -> Result<(), DnsError> {
        wildcard::stands_alone(&Lookup::new(&self.settings.resolvers, None)?, name).await
    }

    /// Checks that one of the servers to which `zone` is delegated is this one, by its name or an address.
    async fn check_delegated(&self, resolver: &Resolver, zone: &Name, found: &Delegation) -> Result<(), DnsError> {
        let servers = &found.servers;
        let own = self.zone.load().name_server.clone();
        if servers.contains(&own) {
            return Ok(());
        }
        let addresses = self.settings.responder.public_addresses();
        for server in servers {
            // A name server that cannot be found now may be this one.
            let Ok(found) = resolver.addresses(server).await else { return Ok(()) };
            if found.iter().any(|address| addresses.contains(address)) {
                return Ok(());
            }
        }
        if let Some(doubled) = servers.iter().find_map(|server| found.doubled_name_server(server)) {
            return Err(DnsError::WrongDelegation { problems: vec![doubled.to_string()] });
        }
        let servers = servers.iter().map(name::text).collect();
        Err(DnsError::DelegatedElsewhere { zone: name::text(zone), servers, own: name::text(&own) })
    }

    /// Whether the values of `challenge` go to its own name in the zone.
    fn is_known(&self, challenge: &Name) -> bool {
        self.was_delegated.load(Ordering::Relaxed) && self.zone.load().apex.zone_of(challenge)
    }

    fn location(&self, owner: &Name, via: Vec<String>) -> RecordLocation {
        let owner = name::text(owner);
        self.adopt(&owner);
        RecordLocation { name: owner, zone: self.zone(), via }
    }

    /// Lets `challenge` exist from now on, if it is in the zone.
    fn adopt(&self, challenge: &str) {
        let Ok(challenge) = name::parse(challenge) else { return };
        let zone = self.zone.load();
        if zone.apex.zone_of(&challenge) && !zone.challenges.contains_key(&LowerName::new(&challenge)) {
            self.change(|zone| {
                zone.challenges.entry(LowerName::new(&challenge)).or_default();
            });
        }
    }

    /// Serves the zone under the name `apex`, which the parent delegates, from now on.
    fn move_to(&self, apex: &Name) {
        if self.zone.load().apex != *apex {
            tracing::info!("the DNS responder serves the zone {}, which is delegated to it", name::text(apex));
            self.change(|zone| {
                zone.apex = apex.clone();
                zone.challenges.retain(|challenge, _| apex.zone_of(challenge));
            });
        }
        self.was_delegated.store(true, Ordering::Relaxed);
        let (state, memory) = &self.memory;
        memory.keep_zone(state, &name::text(apex));
    }

    fn check_inside(&self, owner: &Name, via: &[String]) -> Result<(), DnsError> {
        let apex = self.zone.load().apex.clone();
        if apex.zone_of(owner) {
            return Ok(());
        }
        Err(DnsError::OutsideZone { name: name::text(owner), zone: name::text(&apex), via: via.to_vec() })
    }

    fn change(&self, edit: impl Fn(&mut Zone)) {
        self.zone.rcu(|zone| {
            let mut changed = Zone::clone(zone);
            edit(&mut changed);
            // RFC 1982 order: it only grows, also over restarts.
            changed.serial = changed.serial.wrapping_add(1).max(unix_time());
            changed
        });
    }
}

/// The domain or exact name whose challenge has its values at `location`.
fn host_of(location: &RecordLocation) -> &str {
    let challenge = location.via.first().unwrap_or(&location.name);
    challenge.strip_prefix("_acme-challenge.").unwrap_or(challenge)
}

/// The name of the challenge for `domain` (RFC 8555 §8.4).
#[must_use]
pub fn challenge_name(domain: &str) -> String {
    format!("_acme-challenge.{domain}")
}

/// The zone for `domain`: the one that the settings name, else the one that was found before and is kept in the state
/// directory `state`, else the default.
#[must_use]
pub fn known_zone(settings: &ResponderDns, domain: &str, state: &Path) -> String {
    let kept = || Memory::read(state).ok().flatten().and_then(|memory| memory.zone);
    let zone = settings.zone.clone().or_else(kept).unwrap_or_else(|| challenge_name(domain));
    zone.trim_end_matches('.').to_ascii_lowercase()
}

/// The record that leads the name `challenge` into `zone`, as in a zone file: the delegation for the zone's own name, a
/// CNAME record for others.
#[must_use]
pub fn lead_in(challenge: &str, zone: &str, name_server: &str) -> String {
    if challenge == zone {
        return format!("{zone}. NS {name_server}.");
    }
    let host = challenge.strip_prefix("_acme-challenge.").unwrap_or(challenge);
    let label = host.split('.').next().unwrap_or(host);
    format!("{challenge}. CNAME {label}.{zone}.")
}

fn unix_time() -> u32 {
    u32::try_from(clock::unix_seconds(clock::now())).unwrap_or(u32::MAX)
}
