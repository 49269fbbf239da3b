//! Limits on connections: in all, of each kind, of one client prefix and of one phone.
//!
//! A connection has a [`ConnectionPermit`] from accept to close. It begins as a handshake under way, and may become a
//! known phone's or an anonymous one. When there is no place for a new connection, one that waits for the rest of a
//! ClientHello is closed for it ([`eviction`]); if there is none, accepting waits.

mod eviction;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::hash::Hash;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use tokio::sync::{Notify, oneshot};

use self::eviction::{Candidates, Prefix, Victim};
use super::limits::Limits;
use crate::clock;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::wording::counted;

/// Which part of the room is for handshakes under way, and which for anonymous connections. A quarter is left for known
/// phones, whatever strangers do.
const HANDSHAKES_PART: (usize, usize) = (1, 2);
const ANONYMOUS_PART: (usize, usize) = (1, 4);

/// Counts connections against the limits.
#[derive(Debug)]
pub struct ConnectionLimits {
    limits: Limits,
    /// How many the limit of open files leaves room for.
    room: usize,
    state: Mutex<State>,
    /// Notifies every listener when a place becomes free, and when a connection was read for the first time or becomes a
    /// candidate.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// How many connections there were ever.
    accepted: u64,
    taken: [usize; 3],
    /// Those whose socket was not read yet. Their hello may be there.
    unread: usize,
    by_address: KeyedCounter<IpNet>,
    by_phone: KeyedCounter<PhoneKey>,
    candidates: Candidates<oneshot::Sender<Notice>>,
}

/// A phone, as one constituency knows it.
pub type PhoneKey = (ConstituencyName, MacAddress);

/// What a connection is so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKind {
    /// Its handshake is under way, or was refused and the connection lingers.
    Unfinished,
    /// Its constituency asks for no proof, or does not know the phone: any owner of any phone can prove one.
    Anonymous,
    /// It proved to be a phone that its constituency knows.
    Proven,
}

/// Which limit leaves no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The limit of this kind.
    #[error("all {allowed} places for {kind} are taken (limits.{key})")]
    Kind {
        /// In words.
        kind: &'static str,
        /// The limit.
        allowed: usize,
        /// The limit's key in `provost.json`.
        key: &'static str,
    },
    /// The limit of open files, of which this kind may use a part.
    #[error(
        "all {allowed} places for {kind} are taken that the limit of open files leaves room for (ulimit -n, LimitNOFILE)"
    )]
    Share {
        /// In words.
        kind: &'static str,
        /// How many.
        allowed: usize,
    },
    /// The limit of open files.
    #[error("all {room} connections are taken that the limit of open files leaves room for (ulimit -n, LimitNOFILE)")]
    Files {
        /// How many there is room for.
        room: usize,
    },
    /// The limit of one address.
    #[error("{address} has {} already (limits.connections_per_address)", counted(*.allowed, "connection"))]
    Address {
        /// The IPv4 address or IPv6 network.
        address: IpNet,
        /// The limit.
        allowed: usize,
    },
    /// The limit of one phone.
    #[error("{mac} has {} already (limits.connections_per_phone)", counted(*.allowed, "connection"))]
    Phone {
        /// The phone.
        mac: MacAddress,
        /// The limit.
        allowed: usize,
    },
}

/// Why a connection is closed for a newer one.
#[derive(Debug, thiserror::Error)]
#[error(
    "evicted before its ClientHello was complete: {full}; {prefix} has the most connections without one ({weight})"
)]
pub struct Eviction {
    full: Full,
    prefix: IpNet,
    weight: usize,
}

/// Tells a connection to go; the second part is dropped when it has gone.
type Notice = (Eviction, oneshot::Sender<Infallible>);

/// A connection's place; dropped with it.
#[derive(Debug)]
pub struct ConnectionPermit {
    limits: Arc<ConnectionLimits>,
    id: u64,
    kind: ConnectionKind,
    /// As it is counted; `None` if it is not.
    counted_as: Option<IpNet>,
    prefix: Prefix,
    is_unlimited: bool,
    stage: PermitStage,
    phone: Option<PhoneKey>,
    /// For the connection that waits for this place.
    gone: Option<oneshot::Sender<Infallible>>,
}

/// How far a connection is, for its eviction.
#[derive(Debug)]
enum PermitStage {
    /// The server has not tried to read from it.
    Unread,
    /// It waits for the rest of its hello, or lingers.
    Candidate(oneshot::Receiver<Notice>),
    /// It is not evicted.
    Safe,
}

/// What comes of a connection that wants a place.
enum LimitEntry {
    Admitted(ConnectionPermit),
    Refused(Full),
    /// A connection makes room for it, and is gone when this is dropped.
    Evicting(oneshot::Receiver<Infallible>),
    /// Until a place is free or more is known of a connection, or at that time.
    Waiting(Option<Instant>),
    /// Until a place is free: nothing can be evicted.
    Paused(Full),
}

impl ConnectionLimits {
    /// No connections yet, and never more than there is `room` for.
    #[must_use]
    pub fn new(limits: Limits, room: usize) -> Self {
        Self { limits, room, state: Mutex::default(), changed: Notify::new() }
    }

    /// How many connections of `kind` there are.
    #[must_use]
    pub fn count(&self, kind: ConnectionKind) -> usize {
        self.state().taken(kind)
    }

    /// Waits for a place for a new connection from `address`, whose handshake begins. `paused` is called when nothing can
    /// be evicted, with the limit that is reached.
    ///
    /// # Errors
    /// If the address has too many connections that cannot be evicted.
    pub async fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        mut paused: impl FnMut(&Full),
    ) -> Result<ConnectionPermit, Full> {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Before the look at the places, so that no change is missed that comes behind it.
            changed.as_mut().enable();
            match self.try_enter(address, clock::monotonic()) {
                LimitEntry::Admitted(permit) => return Ok(permit),
                LimitEntry::Refused(full) => return Err(full),
                LimitEntry::Evicting(gone) => _ = gone.await,
                LimitEntry::Waiting(until) => tokio::select! {
                    () = changed => {}
                    () = wait_until(until) => {}
                },
                LimitEntry::Paused(full) => {
                    paused(&full);
                    changed.await;
                }
            }
        }
    }

    fn try_enter(self: &Arc<Self>, address: IpAddr, now: Instant) -> LimitEntry {
        let mut state = self.state();
        let (counted_as, prefix) = (self.limits.counted_as(address), Prefix::of(address));
        let allowed = self.limits.connections_per_address;
        if let Some(address) = counted_as.filter(|address| state.by_address.count(address) >= allowed) {
            let full = Full::Address { address, allowed };
            // An idle client shares its address with phones, perhaps.
            return match state.candidates.evict_from(prefix, now) {
                Some(victim) => evict(victim, full),
                None => LimitEntry::Refused(full),
            };
        }
        if let Err(full) = self.check_room(&state).and_then(|()| self.check(&state, ConnectionKind::Unfinished)) {
            if state.unread > 0 {
                return LimitEntry::Waiting(None);
            }
            // Most handshakes have a hello: that is load. Else it is idle clients that take the places.
            let is_load = state.candidates.len() * 2 < state.taken(ConnectionKind::Unfinished);
            return match (state.candidates.evict(now, is_load), state.candidates.next_grown()) {
                (Some(victim), _) => evict(victim, full),
                (None, None) => LimitEntry::Paused(full),
                (None, next) => LimitEntry::Waiting(next),
            };
        }
        state.accepted += 1;
        state.unread += 1;
        state.add(ConnectionKind::Unfinished);
        counted_as.inspect(|address| state.by_address.add(*address));
        LimitEntry::Admitted(ConnectionPermit {
            limits: Arc::clone(self),
            id: state.accepted,
            kind: ConnectionKind::Unfinished,
            counted_as,
            prefix,
            is_unlimited: self.limits.is_unlimited(address),
            stage: PermitStage::Unread,
            phone: None,
            gone: None,
        })
    }

    fn check_room(&self, state: &State) -> Result<(), Full> {
        let room = self.room;
        if state.taken.iter().sum::<usize>() < room { Ok(()) } else { Err(Full::Files { room }) }
    }

    fn check(&self, state: &State, kind: ConnectionKind) -> Result<(), Full> {
        let part = |(part, of): (usize, usize)| (self.room / of * part).max(1);
        let limits = &self.limits;
        let (words, key, allowed, share) = match kind {
            ConnectionKind::Unfinished => {
                let share = part(HANDSHAKES_PART);
                ("unfinished handshakes", "unfinished_handshakes", limits.unfinished_handshakes, share)
            }
            ConnectionKind::Anonymous => {
                let share = part(ANONYMOUS_PART);
                ("anonymous connections", "anonymous_connections", limits.anonymous_connections, share)
            }
            ConnectionKind::Proven => ("phones' connections", "connections", limits.connections, self.room),
        };
        if state.taken(kind) < allowed.min(share) {
            Ok(())
        } else if share < allowed {
            Err(Full::Share { kind: words, allowed: share })
        } else {
            Err(Full::Kind { kind: words, allowed, key })
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells `victim` to go.
fn evict(victim: Victim<oneshot::Sender<Notice>>, full: Full) -> LimitEntry {
    let Victim { notice, prefix, weight } = victim;
    let (sender, gone) = oneshot::channel();
    // A connection that ended by itself meanwhile is gone as well.
    let _ = notice.send((Eviction { full, prefix, weight }, sender));
    LimitEntry::Evicting(gone)
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => pending().await,
    }
}

impl State {
    fn taken(&self, kind: ConnectionKind) -> usize {
        self.taken.get(kind as usize).copied().unwrap_or_default()
    }

    fn add(&mut self, kind: ConnectionKind) {
        if let Some(taken) = self.taken.get_mut(kind as usize) {
            *taken += 1;
        }
    }

    fn remove(&mut self, kind: ConnectionKind) {
        if let Some(taken) = self.taken.get_mut(kind as usize) {
            *taken -= 1;
        }
    }

    /// Moves connection `id` from `stage` to `next`, and returns what it was.
    fn leave(&mut self, id: u64, stage: &mut PermitStage, next: PermitStage) -> PermitStage {
        match (&stage, &next) {
            (PermitStage::Unread, _) => self.unread -= 1,
            (PermitStage::Candidate(_), PermitStage::Unread | PermitStage::Safe) => _ = self.candidates.remove(id),
            (PermitStage::Candidate(_), PermitStage::Candidate(_)) | (PermitStage::Safe, _) => {}
        }
        std::mem::replace(stage, next)
    }
}

/// Counts by key.
#[derive(Debug)]
struct KeyedCounter<K>(HashMap<K, usize>);

impl<K> Default for KeyedCounter<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> KeyedCounter<K> {
    fn count(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or_default()
    }

    fn add(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    fn remove(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }
}

impl ConnectionPermit {
    /// What the connection is so far.
    #[must_use]
    pub fn kind(&self) -> ConnectionKind {
        self.kind
    }

    /// Waits until the connection is evicted. It is a candidate from the first poll on: a client whose hello is there when
    /// the server first reads never is one.
    pub async fn evicted(&mut self) -> Eviction {
        self.become_candidate();
        let PermitStage::Candidate(notice) = &mut self.stage else { return pending().await };
        match notice.await {
            Ok(notice) => self.take_notice(notice),
            Err(_) => pending().await,
        }
    }

    fn become_candidate(&mut self) {
        let mut state = self.limits.state();
        if matches!(self.stage, PermitStage::Candidate(_)) {
            return;
        }
        if self.is_unlimited {
            state.leave(self.id, &mut self.stage, PermitStage::Safe);
        } else {
            let (sender, notice) = oneshot::channel();
            match state.leave(self.id, &mut self.stage, PermitStage::Candidate(notice)) {
                PermitStage::Unread => state.candidates.add(self.id, self.prefix, sender, clock::monotonic()),
                PermitStage::Candidate(_) | PermitStage::Safe => {
                    state.candidates.add_grown(self.id, self.prefix, sender);
                }
            }
        }
        drop(state);
        self.limits.changed.notify_waiters();
    }

    /// Notes that the ClientHello is complete: from now on the connection is not evicted.
    ///
    /// # Errors
    /// If it was evicted just before.
    pub fn note_hello(&mut self) -> Result<(), Eviction> {
        let stage = self.limits.state().leave(self.id, &mut self.stage, PermitStage::Safe);
        self.limits.changed.notify_waiters();
        match stage {
            PermitStage::Candidate(mut notice) => {
                notice.try_recv().map_or(Ok(()), |notice| Err(self.take_notice(notice)))
            }
            PermitStage::Unread | PermitStage::Safe => Ok(()),
        }
    }

    fn take_notice(&mut self, (eviction, gone): Notice) -> Eviction {
        self.stage = PermitStage::Safe;
        self.gone = Some(gone);
        eviction
    }

    /// Moves on from the handshake to a place of `kind`, for the `phone` that proved to be at the other end. The place
    /// among the unfinished handshakes is free again.
    ///
    /// # Errors
    /// If no such place is free, or the phone has too many; this one is then kept until it is dropped.
    pub fn become_kind(&mut self, kind: ConnectionKind, phone: Option<PhoneKey>) -> Result<(), Full> {
        let mut state = self.limits.state();
        let allowed = self.limits.limits.connections_per_phone;
        let phone = phone.filter(|_| allowed > 0);
        if let Some(phone) = phone.as_ref().filter(|phone| state.by_phone.count(phone) >= allowed) {
            return Err(Full::Phone { mac: phone.1, allowed });
        }
        self.limits.check(&state, kind)?;
        if let Some(phone) = phone {
            state.by_phone.add(phone.clone());
            self.phone.replace(phone).inspect(|before| state.by_phone.remove(before));
        }
        state.leave(self.id, &mut self.stage, PermitStage::Safe);
        if kind == ConnectionKind::Proven {
            state.candidates.note_proven(self.prefix, clock::monotonic());
        }
        state.remove(self.kind);
        state.add(kind);
        self.kind = kind;
        drop(state);
        self.limits.changed.notify_waiters();
        Ok(())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut state = self.limits.state();
        state.leave(self.id, &mut self.stage, PermitStage::Safe);
        state.remove(self.kind);
        self.counted_as.inspect(|address| state.by_address.remove(address));
        self.phone.as_ref().inspect(|phone| state.by_phone.remove(phone));
        drop(state);
        self.limits.changed.notify_waiters();
    }
}
