//! Aggregates events per phone, so that a phone with a thousand requests a second costs one row. Pure.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::phone_event::{PhoneEvent, Proof, milliseconds};
use super::user_agent::UserAgent;
use super::visits::Visits;
use crate::constituency::{ConstituencyName, MacAddress};

/// A phone of a constituency.
pub(super) type DeltaKey<'a> = (&'a ConstituencyName, MacAddress);

/// Aggregated events of phones, and of claims.
#[derive(Debug, Default)]
pub(super) struct Batch<'a> {
    pub(super) phones: HashMap<DeltaKey<'a>, Delta<'a>>,
    pub(super) claims: HashMap<(DeltaKey<'a>, Option<[u8; 32]>), Claims<'a>>,
}

/// The changes of one phone.
#[derive(Debug)]
pub(super) struct Delta<'a> {
    pub(super) first: &'a PhoneEvent,
    pub(super) last: &'a PhoneEvent,
    /// When its certificate expires, in Unix seconds.
    pub(super) not_after: Option<i64>,
    pub(super) accepted: Option<&'a PhoneEvent>,
    /// Whether its last request was refused.
    pub(super) is_refused: Option<bool>,
    pub(super) configuration: Option<&'a PhoneEvent>,
    pub(super) upload: Option<&'a PhoneEvent>,
    pub(super) refusal: Option<&'a PhoneEvent>,
    /// The last TLS of its application, and of its updater.
    pub(super) tls: Option<(&'static str, &'static str)>,
    pub(super) updater_tls: Option<(&'static str, &'static str)>,
    pub(super) model: Option<&'a str>,
    pub(super) firmware: Option<&'a str>,
    pub(super) count: u64,
    pub(super) refusals: u64,
    pub(super) uploads: u64,
    pub(super) bytes: u64,
    /// The pauses between its visits, in milliseconds.
    pub(super) pauses: Vec<i64>,
    /// The newest events, oldest first.
    pub(super) history: VecDeque<&'a PhoneEvent>,
    user_agent: Option<&'a [u8]>,
}

/// The changes of one claim: a certificate or wrong passwords, claimed to be a phone's.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    pub(super) first: &'a PhoneEvent,
    pub(super) last: &'a PhoneEvent,
    pub(super) count: u64,
    /// The first and the last event from each address.
    pub(super) addresses: HashMap<IpAddr, (&'a PhoneEvent, &'a PhoneEvent)>,
}

impl<'a> Batch<'a> {
    /// Aggregates `events`, which are sorted by their ends. Keeps the newest `history` events of each phone.
    pub(super) fn of(events: &'a [PhoneEvent], history: usize) -> Self {
        let mut batch = Self::default();
        for event in events {
            let key = (&event.constituency, event.mac);
            match event.proof {
                Proof::Certificate { .. } | Proof::Password => {
                    let delta = batch.phones.entry(key).or_insert_with(|| Delta::new(event));
                    delta.add(event, history);
                }
                Proof::Claimed { fingerprint } => {
                    let new = || Claims { first: event, last: event, count: 0, addresses: HashMap::new() };
                    let claims = batch.claims.entry((key, fingerprint)).or_insert_with(new);
                    claims.count += 1;
                    claims.last = event;
                    claims.addresses.entry(event.address).or_insert((event, event)).1 = event;
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
            accepted: None,
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

    fn add(&mut self, event: &'a PhoneEvent, history: usize) {
        // For the first event, `last` is the event itself.
        let pause = milliseconds(event.time) - milliseconds(self.last.end());
        self.pauses.extend(Some(pause).filter(|pause| Visits::is_pause(*pause)));
        self.last = event;
        self.not_after = match event.proof {
            Proof::Certificate { not_after } => Some(not_after),
            Proof::Password | Proof::Claimed { .. } => None,
        };
        let newest = |slot: &mut Option<&'a PhoneEvent>, is_one: bool| {
            *slot = if is_one { Some(event) } else { *slot };
            u64::from(is_one)
        };
        newest(&mut self.accepted, event.is_accepted());
        self.is_refused = match (event.is_accepted(), event.refusal()) {
            (true, _) => Some(false),
            (false, Some(_)) => Some(true),
            (false, None) => self.is_refused,
        };
        newest(&mut self.configuration, event.configuration().is_some());
        self.uploads += newest(&mut self.upload, event.upload().is_some());
        self.refusals += newest(&mut self.refusal, event.refusal().is_some());
        self.count += 1;
        self.bytes = self.bytes.saturating_add(event.bytes);
        let is_of_updater = event.user_agent.as_deref().is_some_and(UserAgent::is_of_updater);
        let tls = if is_of_updater { &mut self.updater_tls } else { &mut self.tls };
        *tls = event.tls.or(*tls);
        self.read(event.user_agent.as_deref());
        if self.history.len() >= history {
            self.history.pop_front();
        }
        self.history.push_back(event);
    }

    /// Parses the User-Agent, unless it is the same as before.
    fn read(&mut self, user_agent: Option<&'a [u8]>) {
        if user_agent.is_none() || self.user_agent == user_agent {
            return;
        }
        self.user_agent = user_agent;
        if let Some(agent) = user_agent.and_then(UserAgent::parse) {
            // A firmware version belongs to its model.
            let earlier = self.firmware.filter(|_| self.model == Some(agent.model));
            self.firmware = agent.firmware.or(earlier);
            self.model = Some(agent.model);
        }
    }
}
