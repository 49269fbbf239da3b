//! The DNS client for challenges: finds where a challenge's records go, adds them, waits until they are visible
//! everywhere, and removes them.
//!
//! 1. [`Dns::locate`] follows the CNAME records of the challenge's name and finds the zone.
//! 2. [`Dns::add`] sends all values to the zone's primary in one UPDATE (RFC 2136), signed with our TSIG key (RFC
//!    8945). [`Dns::remove`] removes exactly these. Other values at the same name are never touched.
//! 3. [`Dns::wait_until_visible`] queries every address of every authoritative server until all have the values,
//!    [`Dns::wait_until_gone`] until none has them any more.
//!
//! Questions about these names go to authoritative servers, never to a resolver: a CA may share the resolver's cache
//! ([`lookup`]).
//!
//! A success is trusted only if the primary signed it. [`DnsError`] says what failed, where, why, and what to change.
//! [`responder`] is the other way: it serves the zone itself. [`DnsMethod`] has the settings of both.
//! [`UpdateGrant`] is the configuration that permits our key these updates and no others. [`probe`] tests the whole
//! flow. [`phone_addresses`] and [`CaaRecords`] query what the public sees of a domain.

mod authority;
mod caa;
mod exchange;
mod failure;
mod grant;
mod key_file;
mod key_formats;
mod key_syntax;
mod locate;
mod lookup;
mod method;
mod name;
mod probe;
mod propagation;
mod query;
mod resolve;
pub mod responder;
mod scoped;
mod settings;
mod stored_key;
mod tsig_key;
mod update;
mod wildcard;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::Name;

pub use self::caa::{CaaRecords, CaaRefusal, Issuer};
pub use self::failure::{DnsError, RefusedUpdate, address_records};
pub use self::grant::UpdateGrant;
pub use self::locate::RecordLocation;
pub use self::method::DnsMethod;
pub use self::probe::{Probe, probe};
pub use self::propagation::PropagationTimeouts;
pub use self::responder::{Responder, ResponderDns, ResponderSettings};
pub use self::settings::DnsSettings;
pub use self::stored_key::TsigKeyProblem;
pub use self::tsig_key::{TsigKey, TsigKeyError};
pub use self::update::Refusal;
pub use self::wildcard::{HostAddresses, PhoneAddresses, phone_addresses};

use self::lookup::Lookup;
use self::propagation::{Goal, Sought};
use self::update::{NotUpdated, RecordChange, Update};
use crate::clock;

/// How often each address of the primary is tried, since a datagram may be lost and a connection may break.
const ROUNDS: usize = 2;
/// How long to wait for silent servers, unless the timeout for all servers is shorter.
const LONGEST_FOR_SILENT: Duration = Duration::from_secs(30);

/// The DNS client of a site: settings, key, timeouts.
#[derive(Debug, Clone)]
pub struct Dns {
    settings: DnsSettings,
    key: TsigKey,
    timeouts: PropagationTimeouts,
    clock: fn() -> SystemTime,
}

impl Dns {
    /// Reads the TSIG key file.
    pub fn open(settings: &DnsSettings) -> Result<Self, TsigKeyError> {
        let key = key_file::read(&settings.tsig_key_file, settings.tsig_key_name.as_deref())?;
        let timeouts = PropagationTimeouts {
            between_looks: Duration::from_secs(2),
            for_lagging: Duration::from_secs(settings.propagation_timeout_s),
            for_silent: Duration::from_secs(settings.propagation_timeout_s).min(LONGEST_FOR_SILENT),
            to_settle: Duration::from_secs(settings.settle_s),
        };
        Ok(Self { settings: settings.clone(), key, timeouts, clock: clock::now })
    }

    /// Checks that a challenge for `name` would hide no address: see [`DnsError::OnlyByWildcard`].
    ///
    /// # Errors
    /// If it would, or no resolver can say.
    pub async fn stands_alone(&self, name: &str) -> Result<(), DnsError> {
        wildcard::stands_alone(&self.lookup()?, name).await
    }

    /// The addresses of the names below `domain`, if a wildcard record further up gives them, and so a challenge of `domain`
    /// hides them: then `domain` exists, and "the existence of the name" ends the search for a wildcard (RFC 4592 §3.3.1).
    /// Empty if not.
    ///
    /// # Errors
    /// If no server can say.
    pub async fn hidden_by_challenge(&self, domain: &str) -> Result<Vec<IpAddr>, DnsError> {
        let challenge = self.locate(&format!("_acme-challenge.{domain}")).await?;
        // The challenge's name is a CNAME record, so `domain` exists already. Or `domain` is the zone.
        if !challenge.via.is_empty() || challenge.zone == domain {
            return Ok(Vec::new());
        }
        let found = wildcard::from_above(&self.lookup()?, &name::parse(domain).map_err(DnsError::Setting)?).await?;
        // The same addresses may stand at both wildcards and at `domain`. Only the primary knows.
        if !found.is_empty() && self.has_records(&format!("*.{domain}"), &challenge.zone).await {
            return Ok(Vec::new());
        }
        Ok(found)
    }

    /// Whether the primary says that `name` itself has records. False if it does not say.
    async fn has_records(&self, name: &str, zone: &str) -> bool {
        let location = RecordLocation { name: name.to_owned(), zone: zone.to_owned(), via: Vec::new() };
        let Ok((name, zone)) = names(&location) else { return false };
        self.send(&location, update::existence(&zone, &name)).await.is_ok()
    }

    /// Replaces the timeouts.
    #[must_use]
    pub fn with_patience(self, timeouts: PropagationTimeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Replaces the clock, by which updates are dated.
    #[must_use]
    pub fn with_clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// The key that updates are signed with.
    #[must_use]
    pub fn key(&self) -> &TsigKey {
        &self.key
    }

    /// The addresses of the configured resolvers; none: the system's.
    #[must_use]
    pub fn resolvers(&self) -> &[String] {
        &self.settings.resolvers
    }

    #[must_use]
    pub fn settings(&self) -> &DnsSettings {
        &self.settings
    }

    /// The timeouts of the wait for authoritative servers.
    #[must_use]
    pub fn patience(&self) -> PropagationTimeouts {
        self.timeouts
    }

    /// Finds the location for the values of the challenge at `challenge_name`, such as
    /// `_acme-challenge.phones.example.com`.
    pub async fn locate(&self, challenge_name: &str) -> Result<RecordLocation, DnsError> {
        let challenge = name::parse(challenge_name).map_err(DnsError::Setting)?;
        let zone = self.settings.zone.as_deref().map(name::parse).transpose().map_err(DnsError::Setting)?;
        locate::locate(&self.lookup()?, &challenge, zone.as_ref()).await
    }

    /// Adds `values` at `location`, all in one update. Existing ones stay as they are.
    pub async fn add(&self, location: &RecordLocation, values: &[String]) -> Result<(), DnsError> {
        self.update(location, values, RecordChange::Add { ttl_s: self.settings.ttl_s }).await
    }

    /// Removes exactly `values` at `location`. Absent ones are ignored.
    pub async fn remove(&self, location: &RecordLocation, values: &[String]) -> Result<(), DnsError> {
        self.update(location, values, RecordChange::Remove).await
    }

    /// Waits until every address of every authoritative server has `values` at `location`, and goes on having them; reports
    /// progress to `say`. Returns what may still fail at a CA: servers that were passed over, and a wrong delegation.
    pub async fn wait_until_visible(
        &self,
        location: &RecordLocation,
        values: &[String],
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Vec<String>, DnsError> {
        self.wait(location, values, Goal::Published, say).await
    }

    /// The same, until none of `values` is there any more.
    pub async fn wait_until_gone(
        &self,
        location: &RecordLocation,
        values: &[String],
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), DnsError> {
        self.wait(location, values, Goal::Removed, say).await.map(drop)
    }

    /// What a CA that asks about `values` at `location` may find wrong now: servers without them, and a delegation that
    /// differs from the zone.
    pub async fn likely_causes(&self, location: &RecordLocation, values: &[String]) -> Result<Vec<String>, DnsError> {
        let (name, zone) = names(location)?;
        let servers = self.lookup()?.zone_servers(&zone, &name, true).await?;
        let sought = Sought { name, zone, values: values.to_vec(), goal: Goal::Published };
        Ok(propagation::disagreements(servers, sought).await)
    }

    async fn wait(
        &self,
        location: &RecordLocation,
        values: &[String],
        goal: Goal,
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Vec<String>, DnsError> {
        let (name, zone) = names(location)?;
        let servers = self.lookup()?.zone_servers(&zone, &name, goal == Goal::Published).await?;
        let sought = Sought { name, zone, values: values.to_vec(), goal };
        propagation::wait(servers, sought, self.timeouts, say).await
    }

    fn lookup(&self) -> Result<Lookup, DnsError> {
        Lookup::new(&self.settings.resolvers, Some(&self.settings))
    }

    /// Sends one update to the primary.
    async fn update(&self, location: &RecordLocation, values: &[String], change: RecordChange) -> Result<(), DnsError> {
        if values.is_empty() {
            return Ok(());
        }
        let (name, zone) = names(location)?;
        self.send(location, update::message(change, &zone, &name, values)).await
    }

    /// Sends `message` to the primary: to each of its addresses until one answers, and to all a second time.
    async fn send(&self, location: &RecordLocation, message: Message) -> Result<(), DnsError> {
        let primary = &self.settings.primary;
        let addresses = self.lookup()?.resolver().server(primary, "primary").await?;
        let update = Update { message, key: &self.key };
        let mut reasons = Vec::new();
        for address in std::iter::repeat_n(&addresses, ROUNDS).flatten() {
            let now = u64::try_from(clock::unix_seconds((self.clock)())).unwrap_or_default();
            let reason = match update.send(*address, now).await {
                Ok(()) => return Ok(()),
                Err(NotUpdated::Refused(refusal)) => return Err(self.refused(location, refusal)),
                Err(NotUpdated::Message(error)) => return Err(DnsError::Values(error)),
                Err(NotUpdated::NoRoute(reason) | NotUpdated::Silent(reason)) => reason,
                Err(NotUpdated::TooLarge) => continue,
            };
            reasons.push(format!("{address}: {reason}"));
        }
        reasons.sort();
        reasons.dedup();
        Err(DnsError::PrimaryUnreachable { primary: primary.clone(), zone: location.zone.clone(), reasons })
    }

    fn refused(&self, location: &RecordLocation, refusal: Refusal) -> DnsError {
        DnsError::Refused(Box::new(RefusedUpdate {
            primary: self.settings.primary.clone(),
            zone: location.zone.clone(),
            name: location.name.clone(),
            key: self.key.name(),
            algorithm: self.key.algorithm(),
            refusal,
        }))
    }
}

/// Parses a location. Fails if the name is outside its zone, so that nothing is sent about it.
fn names(location: &RecordLocation) -> Result<(Name, Name), DnsError> {
    let name = name::parse(&location.name).map_err(DnsError::Setting)?;
    let zone = name::parse(&location.zone).map_err(DnsError::Setting)?;
    if zone.zone_of(&name) {
        return Ok((name, zone));
    }
    Err(DnsError::OutsideZone { name: location.name.clone(), zone: location.zone.clone(), via: location.via.clone() })
}
