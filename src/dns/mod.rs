//! What we say to DNS: where a challenge's values go, putting them there, seeing them everywhere, taking them away.
//!
//! 1. [`Dns::locate`] follows the CNAME records of the challenge's name, through resolvers, and finds the zone.
//! 2. [`Dns::add`] tells the zone's primary to add all values, in one UPDATE (RFC 2136) signed with our key (RFC 8945);
//!    [`Dns::remove`] takes exactly these away. Values of others at the same name are never touched.
//! 3. [`Dns::wait_until_visible`] asks every address of every authority until all have the values,
//!    [`Dns::wait_until_gone`] until none has them any more.
//!
//! Nothing is believed that the primary has not signed. [`DnsError`] says what failed, where, why, and what to change;
//! [`UpdateGrant`] is the line that lets our key do this and nothing else; [`probe`] tries the whole way out. What all the
//! world sees of a domain is asked by [`wildcard_addresses`] and [`CaaRecords`].

mod caa;
mod exchange;
mod failure;
mod grant;
mod key_file;
mod locate;
mod name;
mod probe;
mod propagation;
mod resolve;
mod settings;
mod tsig_key;
mod update;
mod wildcard;

use std::time::{Duration, SystemTime};

use hickory_net::proto::rr::Name;

pub use self::caa::{CaaRecords, CaaRefusal, Issuer};
pub use self::failure::{DnsError, RefusedUpdate};
pub use self::grant::UpdateGrant;
pub use self::locate::RecordLocation;
pub use self::probe::{Probe, probe};
pub use self::propagation::PropagationTimeouts;
pub use self::settings::DnsSettings;
pub use self::tsig_key::{TsigKey, TsigKeyError, TsigKeyProblem};
pub use self::update::Refusal;
pub use self::wildcard::{addresses, wildcard_addresses};

use self::propagation::{Goal, Sought};
use self::resolve::Resolver;
use self::update::RecordChange;
use crate::clock;

/// A connection that broke, or never stood, is tried once more.
const ROUNDS: usize = 2;
/// How long those are waited for that do not answer, unless the authorities get less time altogether.
const LONGEST_FOR_SILENT: Duration = Duration::from_secs(30);

/// The DNS side of a site: its primary, its key, its authorities.
#[derive(Debug, Clone)]
pub struct Dns {
    settings: DnsSettings,
    key: TsigKey,
    patience: PropagationTimeouts,
    clock: fn() -> SystemTime,
}

impl Dns {
    /// Reads the key.
    pub fn open(settings: &DnsSettings) -> Result<Self, TsigKeyError> {
        let key = key_file::read(&settings.tsig_key_file, settings.tsig_key_name.as_deref())?;
        let patience = PropagationTimeouts {
            between_looks: Duration::from_secs(2),
            for_lagging: Duration::from_secs(settings.propagation_timeout_s),
            for_silent: Duration::from_secs(settings.propagation_timeout_s).min(LONGEST_FOR_SILENT),
            to_settle: Duration::from_secs(settings.settle_s),
        };
        Ok(Self { settings: settings.clone(), key, patience, clock: clock::now })
    }

    /// Whether a challenge for `name` hides no address: see [`DnsError::OnlyByWildcard`].
    ///
    /// # Errors
    /// If it would, or nobody knows.
    pub async fn stands_alone(&self, name: &str) -> Result<(), DnsError> {
        wildcard::stands_alone(&self.settings.resolvers, name).await
    }

    /// The same with another patience.
    #[must_use]
    pub fn with_patience(self, patience: PropagationTimeouts) -> Self {
        Self { patience, ..self }
    }

    /// The same with another clock, by which updates are dated.
    #[must_use]
    pub fn with_clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// The key that updates are signed with.
    #[must_use]
    pub fn key(&self) -> &TsigKey {
        &self.key
    }

    /// How long authorities are waited for.
    #[must_use]
    pub fn patience(&self) -> PropagationTimeouts {
        self.patience
    }

    /// Finds out where the values of the challenge at `challenge_name` go: `_acme-challenge.phones.example.com`.
    pub async fn locate(&self, challenge_name: &str) -> Result<RecordLocation, DnsError> {
        let challenge = name::parse(challenge_name).map_err(DnsError::Setting)?;
        let zone = self.settings.zone.as_deref().map(name::parse).transpose().map_err(DnsError::Setting)?;
        locate::locate(&self.resolver()?, &challenge, zone.as_ref()).await
    }

    /// Adds `values` to what is at `place`, all in one update. Those that are there already stay as they are.
    pub async fn add(&self, place: &RecordLocation, values: &[String]) -> Result<(), DnsError> {
        self.update(place, values, RecordChange::Add { ttl_s: self.settings.ttl_s }).await
    }

    /// Removes exactly `values` from what is at `place`. Those that are not there are no error.
    pub async fn remove(&self, place: &RecordLocation, values: &[String]) -> Result<(), DnsError> {
        self.update(place, values, RecordChange::Remove).await
    }

    /// Waits until every address of every authority has `values` at `place`; says on the way who has them and who not.
    /// Gives those that did not answer, which were waited for only for a while once the others had agreed.
    pub async fn wait_until_visible(
        &self,
        place: &RecordLocation,
        values: &[String],
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Vec<String>, DnsError> {
        self.wait(place, values, Goal::Published, say).await
    }

    /// The same, until none of `values` is there any more.
    pub async fn wait_until_gone(
        &self,
        place: &RecordLocation,
        values: &[String],
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), DnsError> {
        self.wait(place, values, Goal::Removed, say).await.map(drop)
    }

    async fn wait(
        &self,
        place: &RecordLocation,
        values: &[String],
        goal: Goal,
        say: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Vec<String>, DnsError> {
        let (name, zone) = names(place)?;
        let authorities = propagation::authorities(&self.resolver()?, &zone, &self.settings.authorities).await?;
        let sought = Sought { name, zone, values: values.to_vec(), goal };
        propagation::wait(authorities, sought, self.patience, say).await
    }

    fn resolver(&self) -> Result<Resolver, DnsError> {
        Resolver::new(&self.settings.resolvers)
    }

    /// Sends one update to the primary: to each of its addresses until one answers, and all of them a second time.
    async fn update(&self, place: &RecordLocation, values: &[String], change: RecordChange) -> Result<(), DnsError> {
        if values.is_empty() {
            return Ok(());
        }
        let (name, zone) = names(place)?;
        let primary = &self.settings.primary;
        let addresses = self.resolver()?.server(primary, "primary").await?;
        let mut reasons = Vec::new();
        for address in std::iter::repeat_n(&addresses, ROUNDS).flatten() {
            let message = update::message(change, &zone, &name, values);
            let now = u64::try_from(clock::unix_seconds((self.clock)())).unwrap_or_default();
            let signed = update::sign(message, self.key.signer(), now);
            let (bytes, verifier) = signed.map_err(|error| DnsError::Values(error.to_string()))?;
            match exchange::over_tcp(*address, &bytes).await {
                Ok(answer) => return verifier.judge(&answer).map_err(|refusal| self.refused(place, refusal)),
                Err(error) => reasons.push(format!("{address}: {}", exchange::reason(&error))),
            }
        }
        reasons.sort();
        reasons.dedup();
        Err(DnsError::PrimaryUnreachable { primary: primary.clone(), zone: place.zone.clone(), reasons })
    }

    fn refused(&self, place: &RecordLocation, refusal: Refusal) -> DnsError {
        DnsError::Refused(Box::new(RefusedUpdate {
            primary: self.settings.primary.clone(),
            zone: place.zone.clone(),
            name: place.name.clone(),
            key: self.key.name(),
            algorithm: self.key.algorithm(),
            refusal,
        }))
    }
}

/// The names of a place; nothing is sent about a name that its zone does not hold.
fn names(place: &RecordLocation) -> Result<(Name, Name), DnsError> {
    let name = name::parse(&place.name).map_err(DnsError::Setting)?;
    let zone = name::parse(&place.zone).map_err(DnsError::Setting)?;
    if zone.zone_of(&name) {
        return Ok((name, zone));
    }
    Err(DnsError::OutsideZone { name: place.name.clone(), zone: place.zone.clone(), via: place.via.clone() })
}
