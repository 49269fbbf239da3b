//! Sightings folded per phone, so that a phone that asks a thousand times a second costs one row. Pure.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::phone_event::{PhoneEvent, Proof, milliseconds};
use super::user_agent::UserAgent;
use super::visits::Visits;
use crate::constituency::{ConstituencyName, MacAddress};

/// A phone of a constituency.
pub(super) type DeltaKey<'a> = (&'a ConstituencyName, MacAddress);

/// What is new, of phones and of those that claim to be phones.
#[derive(Debug, Default)]
pub(super) struct Batch<'a> {
    pub(super) phones: HashMap<DeltaKey<'a>, Delta<'a>>,
    pub(super) claims: HashMap<(DeltaKey<'a>, Option<[u8; 32]>), Claims<'a>>,
}

/// What is new of one phone.
#[derive(Debug)]
pub(super) struct Delta<'a> {
    pub(super) first: &'a PhoneEvent,
    pub(super) last: &'a PhoneEvent,
    /// When its certificate expires, in Unix seconds.
    pub(super) not_after: Option<i64>,
    pub(super) let_in: Option<&'a PhoneEvent>,
    /// Whether it was refused when it last asked.
    pub(super) is_refused: Option<bool>,
    pub(super) configuration: Option<&'a PhoneEvent>,
    pub(super) upload: Option<&'a PhoneEvent>,
    pub(super) refusal: Option<&'a PhoneEvent>,
    /// The TLS that its application last spoke, and its updater.
    pub(super) tls: Option<(&'static str, &'static str)>,
    pub(super) updater_tls: Option<(&'static str, &'static str)>,
    pub(super) model: Option<&'a str>,
    pub(super) firmware: Option<&'a str>,
    pub(super) count: u64,
    pub(super) refusals: u64,
    pub(super) uploads: u64,
    pub(super) bytes: u64,
    /// The pauses between the visits that it made, in milliseconds.
    pub(super) pauses: Vec<i64>,
    /// The newest, oldest first.
    pub(super) history: VecDeque<&'a PhoneEvent>,
    user_agent: Option<&'a [u8]>,
}

/// What is new of one certificate, or of wrong passwords, claimed to be a phone's.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    pub(super) first: &'a PhoneEvent,
    pub(super) last: &'a PhoneEvent,
    pub(super) count: u64,
    /// From each address the first and the last.
    pub(super) addresses: HashMap<IpAddr, (&'a PhoneEvent, &'a PhoneEvent)>,
}

impl<'a> Batch<'a> {
    /// Folds `sightings`, which are in the order of their ends, and keeps the newest `history` of each phone one by one.
    pub(super) fn of(sightings: &'a [PhoneEvent], history: usize) -> Self {
        let mut batch = Self::default();
        for sighting in sightings {
            let key = (&sighting.constituency, sighting.mac);
            match sighting.proof {
                Proof::Certificate { .. } | Proof::Password => {
                    let news = batch.phones.entry(key).or_insert_with(|| Delta::new(sighting));
                    news.add(sighting, history);
                }
                Proof::Claimed { fingerprint } => {
                    let new = || Claims { first: sighting, last: sighting, count: 0, addresses: HashMap::new() };
                    let claims = batch.claims.entry((key, fingerprint)).or_insert_with(new);
                    claims.count += 1;
                    claims.last = sighting;
                    claims.addresses.entry(sighting.address).or_insert((sighting, sighting)).1 = sighting;
                }
            }
        }
        batch
    }
}

impl<'a> Delta<'a> {
    fn new(first: &'a PhoneEvent) -> Self {
        Self {
            first,
            last: first,
            not_after: None,
            let_in: None,
            is_refused: None,
            configuration: None,
            upload: None,
            refusal: None,
            tls: None,
            updater_tls: None,
            model: None,
            firmware: None,
            count: 0,
            refusals: 0,
            uploads: 0,
            bytes: 0,
            pauses: Vec::new(),
            history: VecDeque::new(),
            user_agent: None,
        }
    }

    fn add(&mut self, sighting: &'a PhoneEvent, history: usize) {
        // The first of all comes after itself.
        let pause = milliseconds(sighting.time) - milliseconds(self.last.end());
        self.pauses.extend(Some(pause).filter(|pause| Visits::is_pause(*pause)));
        self.last = sighting;
        self.not_after = match sighting.proof {
            Proof::Certificate { not_after } => Some(not_after),
            Proof::Password | Proof::Claimed { .. } => None,
        };
        let newest = |slot: &mut Option<&'a PhoneEvent>, is_one: bool| {
            *slot = if is_one { Some(sighting) } else { *slot };
            u64::from(is_one)
        };
        newest(&mut self.let_in, sighting.is_let_in());
        self.is_refused = match (sighting.is_let_in(), sighting.refusal()) {
            (true, _) => Some(false),
            (false, Some(_)) => Some(true),
            (false, None) => self.is_refused,
        };
        newest(&mut self.configuration, sighting.configuration().is_some());
        self.uploads += newest(&mut self.upload, sighting.upload().is_some());
        self.refusals += newest(&mut self.refusal, sighting.refusal().is_some());
        self.count += 1;
        self.bytes = self.bytes.saturating_add(sighting.bytes);
        let is_of_updater = sighting.user_agent.as_deref().is_some_and(UserAgent::is_of_updater);
        let tls = if is_of_updater { &mut self.updater_tls } else { &mut self.tls };
        *tls = sighting.tls.or(*tls);
        self.read(sighting.user_agent.as_deref());
        if self.history.len() >= history {
            self.history.pop_front();
        }
        self.history.push_back(sighting);
    }

    /// A phone mostly says the same as before.
    fn read(&mut self, user_agent: Option<&'a [u8]>) {
        if user_agent.is_none() || self.user_agent == user_agent {
            return;
        }
        self.user_agent = user_agent;
        if let Some(agent) = user_agent.and_then(UserAgent::parse) {
            self.model = Some(agent.model);
            self.firmware = agent.firmware.or(self.firmware);
        }
    }
}
