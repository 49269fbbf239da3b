//! Limits on connections: in total, of each kind, of one client prefix and of one phone.
//!
//! A connection has a [`ConnectionPermit`] from accept to close. It begins as a handshake in progress, and may become a
//! known phone's or an anonymous one. When a limit is reached, a connection that waits for the rest of a ClientHello is
//! evicted for the new one ([`eviction`]); if there is none, accepting pauses. When the limit of anonymous connections
//! is reached, one that has not sent a request is evicted for a new one, or else one that is idle between requests.

mod eviction;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::hash::Hash;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use self::eviction::{Candidates, Prefix, Victim};
use super::limits::Limits;
use crate::clock;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::wording::counted;

/// The share of `room` for handshakes in progress and anonymous connections together, and how much of it the anonymous
/// ones may take. A quarter remains for known phones, whatever unauthenticated clients do. Handshakes may take all that
/// anonymous connections leave, because after a power cut nearly all connections are handshakes of known phones.
const UNAUTHENTICATED_SHARE: (usize, usize) = (3, 4);
const ANONYMOUS_SHARE: (usize, usize) = (1, 4);

/// Counts connections, and compares them with the limits.
#[derive(Debug)]
pub struct ConnectionLimits {
    limits: Limits,
    /// How many connections the limit of open files allows.
    room: usize,
    state: Mutex<State>,
    /// Notifies every listener when a permit is released or changes its kind, and when a connection is read for the
    /// first time or becomes a candidate for eviction.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// How many connections were ever accepted.
    accepted: u64,
    taken: [usize; 3],
    /// Connections whose socket was not read yet. Their ClientHello may have arrived.
    unread: usize,
    by_address: KeyedCounter<IpNet>,
    by_phone: KeyedCounter<PhoneKey>,
    /// Handshakes that may be evicted.
    without_hello: Pool,
    /// Connections of load balancers that may be evicted after those. They are counted for no address yet.
    without_header: Pool,
    /// Anonymous connections that may be evicted.
    without_request: Pool,
    between_requests: Pool,
}

type Pool = Candidates<oneshot::Sender<Notice>>;

/// What a connection that may be evicted waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Header,
    Hello,
    FirstRequest,
    NextRequest,
}

/// A phone in one constituency.
pub type PhoneKey = (ConstituencyName, MacAddress);

/// Where a new connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionSource {
    /// From the client.
    Client(IpAddr),
    /// From a load balancer, which names the client in a moment ([`ConnectionPermit::set_client`]).
    LoadBalancer(IpAddr),
}

impl ConnectionSource {
    /// The address at the other end.
    #[must_use]
    pub fn address(self) -> IpAddr {
        match self {
            Self::Client(address) | Self::LoadBalancer(address) => address,
        }
    }
}

/// What is known of a connection so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKind {
    /// Its handshake is in progress, or was refused and the connection lingers.
    Unfinished,
    /// It has no device certificate, or that of a phone that its constituency does not know. Every owner of any phone
    /// has such a certificate.
    Anonymous,
    /// Its device certificate is that of a phone that its constituency knows.
    Proven,
}

/// The limit that is reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// The limit of this kind.
    #[error("all {allowed} permits for {kind} are in use (limits.{key})")]
    Kind {
        /// The kind, in words.
        kind: &'static str,
        /// The limit.
        allowed: usize,
        /// The limit's key in `provost.json`.
        key: &'static str,
    },
    /// This kind's share of the limit of open files.
    #[error("all {allowed} permits for {kind} that the limit of open files allows are in use (ulimit -n, LimitNOFILE)")]
    Share {
        /// The kind, in words.
        kind: &'static str,
        /// The share.
        allowed: usize,
    },
    /// The limit of open files.
    #[error("all {room} connections that the limit of open files allows are in use (ulimit -n, LimitNOFILE)")]
    Files {
        /// How many connections it allows.
        room: usize,
    },
    /// The limit of one address.
    #[error("{address} already has {} (limits.connections_per_address)", counted(*.allowed, "connection"))]
    Address {
        /// The IPv4 address or IPv6 network.
        address: IpNet,
        /// The limit.
        allowed: usize,
    },
    /// The limit of one phone.
    #[error("{mac} already has {} (limits.connections_per_phone)", counted(*.allowed, "connection"))]
    Phone {
        /// The phone.
        mac: MacAddress,
        /// The limit.
        allowed: usize,
    },
}

/// Why a client that a load balancer named is refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientRefused {
    /// The connection was evicted just before.
    #[error("{0}")]
    Evicted(#[from] Eviction),
    /// The limit of the client's address.
    #[error("{0}")]
    Full(#[from] LimitReached),
}

/// Why a connection is closed for a newer one.
#[derive(Debug, thiserror::Error)]
#[error("evicted {}: {full}; {prefix} has the most {} ({weight})", .awaited.stage(), .awaited.connections())]
pub struct Eviction {
    awaited: Awaited,
    full: LimitReached,
    prefix: IpNet,
    weight: usize,
}

impl Awaited {
    /// When a connection is evicted that waits for this.
    fn stage(self) -> &'static str {
        match self {
            Self::Header => "before its PROXY header was complete",
            Self::Hello => "before its ClientHello was complete",
            Self::FirstRequest => "before its first request was complete",
            Self::NextRequest => "while it was idle between requests",
        }
    }

    /// Connections that wait for this, behind the words of [`Awaited::stage`].
    fn connections(self) -> &'static str {
        match self {
            Self::Header | Self::Hello | Self::FirstRequest => "connections without one",
            Self::NextRequest => "idle connections",
        }
    }
}

/// Notifies a connection of its eviction; it drops the sender when it has closed.
type Notice = (Eviction, oneshot::Sender<Infallible>);

/// The permit of a connection; released when it is dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    limits: Arc<ConnectionLimits>,
    id: u64,
    kind: ConnectionKind,
    /// The prefix by which the connection is counted; `None` if it is not counted.
    counted_as: Option<IpNet>,
    prefix: Prefix,
    is_unlimited: bool,
    /// Whether a load balancer has not named the client yet.
    awaits_header: bool,
    stage: PermitStage,
    phone: Option<PhoneKey>,
    /// Dropped with the permit, which the new connection waits for.
    gone: Option<oneshot::Sender<Infallible>>,
}

/// Whether a connection can be evicted.
#[derive(Debug)]
enum PermitStage {
    /// The server has not tried to read from it.
    Unread,
    /// It waits for the rest of its ClientHello or for a request, or lingers.
    Candidate(Awaited, oneshot::Receiver<Notice>),
    /// It cannot be evicted.
    Safe,
}

/// The result of a new connection's attempt to get a permit.
enum LimitEntry {
    Admitted(ConnectionPermit),
    Refused(LimitReached),
    /// Another connection is being evicted, and has closed when the sender of this is dropped.
    Evicting(oneshot::Receiver<Infallible>),
    /// Try again when the counts or candidates change, or at this time.
    Waiting(Option<Instant>),
    /// Try again when they change. No connection can be evicted until then.
    Paused(LimitReached),
}

impl ConnectionLimits {
    /// Starts with no connections, and allows `room` at most, whatever the limits say.
    #[must_use]
    pub fn new(limits: Limits, room: usize) -> Self {
        Self { limits, room, state: Mutex::default(), changed: Notify::new() }
    }

    /// How many connections of `kind` there are.
    #[must_use]
    pub fn count(&self, kind: ConnectionKind) -> usize {
        self.state.lock().taken(kind)
    }

    /// Waits for a permit for a new connection from `source`, whose handshake begins. Calls `paused` with the limit
    /// that is reached, when no connection can be evicted.
    ///
    /// # Errors
    /// If the client's address has too many connections that cannot be evicted.
    pub async fn enter(
        self: &Arc<Self>,
        source: ConnectionSource,
        mut paused: impl FnMut(&LimitReached),
    ) -> Result<ConnectionPermit, LimitReached> {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Registered before the limits are checked, so that no change after the check is missed.
            changed.as_mut().enable();
            match self.try_enter(source, clock::monotonic()) {
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

    fn try_enter(self: &Arc<Self>, source: ConnectionSource, now: Instant) -> LimitEntry {
        let mut state = self.state.lock();
        let prefix = Prefix::of(source.address());
        let (counted_as, is_unlimited) = match source {
            ConnectionSource::Client(address) => (self.limits.counted_as(address), self.limits.is_unlimited(address)),
            ConnectionSource::LoadBalancer(_) => (None, false),
        };
        let allowed = self.limits.connections_per_address;
        if let Some(address) = counted_as.filter(|address| state.by_address.count(address) >= allowed) {
            let full = LimitReached::Address { address, allowed };
            // Phones may share their address with an idle client.
            return match state.evict_from(prefix, now) {
                Some((awaited, victim)) => LimitEntry::Evicting(evict(victim, awaited, full)),
                None => LimitEntry::Refused(full),
            };
        }
        if let Err(full) = self.check_room(&state).and_then(|()| self.check(&state, ConnectionKind::Unfinished)) {
            if state.unread > 0 {
                return LimitEntry::Waiting(None);
            }
            // If most handshakes have their ClientHello, this is load. Otherwise, idle clients hold the permits.
            let idle = state.without_hello.len() + state.without_header.len();
            let is_load = idle * 2 < state.taken(ConnectionKind::Unfinished);
            // Those without a PROXY header come last, because the header of a phone's connection follows in a moment.
            let mut victim = [Awaited::Hello, Awaited::Header]
                .into_iter()
                .find_map(|awaited| Some((awaited, state.pool(awaited).evict(now, is_load)?)));
            if victim.is_none() && matches!(full, LimitReached::Files { .. }) {
                victim = state.evict_anonymous(now);
            }
            let next =
                state.without_hello.next_eligible().into_iter().chain(state.without_header.next_eligible()).min();
            return match (victim, next) {
                (Some((awaited, victim)), _) => LimitEntry::Evicting(evict(victim, awaited, full)),
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
            is_unlimited,
            awaits_header: matches!(source, ConnectionSource::LoadBalancer(_)),
            stage: PermitStage::Unread,
            phone: None,
            gone: None,
        })
    }

    fn check_room(&self, state: &State) -> Result<(), LimitReached> {
        let room = self.room;
        if state.taken.iter().sum::<usize>() < room { Ok(()) } else { Err(LimitReached::Files { room }) }
    }

    fn check(&self, state: &State, kind: ConnectionKind) -> Result<(), LimitReached> {
        let share_of = |(part, of): (usize, usize)| (self.room / of * part).max(1);
        let limits = &self.limits;
        let (words, key, allowed, share) = match kind {
            ConnectionKind::Unfinished => {
                let share =
                    share_of(UNAUTHENTICATED_SHARE).saturating_sub(state.taken(ConnectionKind::Anonymous)).max(1);
                ("unfinished handshakes", "unfinished_handshakes", limits.unfinished_handshakes, share)
            }
            ConnectionKind::Anonymous => {
                let share = share_of(ANONYMOUS_SHARE);
                ("anonymous connections", "anonymous_connections", limits.anonymous_connections, share)
            }
            ConnectionKind::Proven => ("phones' connections", "connections", limits.connections, self.room),
        };
        if state.taken(kind) < allowed.min(share) {
            Ok(())
        } else if share < allowed {
            Err(LimitReached::Share { kind: words, allowed: share })
        } else {
            Err(LimitReached::Kind { kind: words, allowed, key })
        }
    }
}

/// Evicts `victim`, because `full` is reached. The other end of the returned channel is dropped when it has closed.
fn evict(
    victim: Victim<oneshot::Sender<Notice>>,
    awaited: Awaited,
    full: LimitReached,
) -> oneshot::Receiver<Infallible> {
    let Victim { notice, prefix, weight } = victim;
    let (sender, gone) = oneshot::channel();
    // Fails if the connection has ended by itself meanwhile.
    let _ = notice.send((Eviction { awaited, full, prefix, weight }, sender));
    gone
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

    /// Moves connection `id` from `stage` to `next`, and returns the previous stage.
    fn leave(&mut self, id: u64, stage: &mut PermitStage, next: PermitStage) -> PermitStage {
        match (&stage, &next) {
            (PermitStage::Unread, _) => self.unread -= 1,
            (PermitStage::Candidate(awaited, _), _) => _ = self.pool(*awaited).remove(id),
            (PermitStage::Safe, _) => {}
        }
        std::mem::replace(stage, next)
    }

    fn pool(&mut self, awaited: Awaited) -> &mut Pool {
        match awaited {
            Awaited::Header => &mut self.without_header,
            Awaited::Hello => &mut self.without_hello,
            Awaited::FirstRequest => &mut self.without_request,
            Awaited::NextRequest => &mut self.between_requests,
        }
    }

    /// Removes the anonymous connection that is evicted next: one without a request before one that is idle between two.
    fn evict_anonymous(&mut self, now: Instant) -> Option<(Awaited, Victim<oneshot::Sender<Notice>>)> {
        [Awaited::FirstRequest, Awaited::NextRequest]
            .into_iter()
            .find_map(|awaited| Some((awaited, self.pool(awaited).evict(now, false)?)))
    }

    /// Removes the connection from `prefix` that is evicted next.
    fn evict_from(&mut self, prefix: Prefix, now: Instant) -> Option<(Awaited, Victim<oneshot::Sender<Notice>>)> {
        [Awaited::Hello, Awaited::FirstRequest, Awaited::NextRequest]
            .into_iter()
            .find_map(|awaited| Some((awaited, self.pool(awaited).evict_from(prefix, now)?)))
    }
}

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
    #[must_use]
    pub fn kind(&self) -> ConnectionKind {
        self.kind
    }

    /// Waits until the connection is evicted. During the handshake it is a candidate from the first poll on. The caller
    /// reads first, so a client whose ClientHello has arrived by then is never a candidate.
    pub async fn evicted(&mut self) -> Eviction {
        poll_fn(|cx| self.poll_evicted(cx)).await
    }

    /// Polls for the eviction; see [`ConnectionPermit::evicted`].
    pub fn poll_evicted(&mut self, cx: &mut Context<'_>) -> Poll<Eviction> {
        if self.kind == ConnectionKind::Unfinished {
            self.become_candidate(if self.awaits_header { Awaited::Header } else { Awaited::Hello });
        }
        let PermitStage::Candidate(_, notice) = &mut self.stage else { return Poll::Pending };
        match ready!(Pin::new(notice).poll(cx)) {
            Ok(notice) => Poll::Ready(self.take_notice(notice)),
            Err(_) => Poll::Pending,
        }
    }

    fn become_candidate(&mut self, awaited: Awaited) {
        if matches!(self.stage, PermitStage::Candidate(..)) {
            return;
        }
        let mut state = self.limits.state.lock();
        if self.is_unlimited {
            state.leave(self.id, &mut self.stage, PermitStage::Safe);
        } else {
            let (sender, notice) = oneshot::channel();
            match state.leave(self.id, &mut self.stage, PermitStage::Candidate(awaited, notice)) {
                PermitStage::Unread => state.pool(awaited).add(self.id, self.prefix, sender, clock::monotonic()),
                PermitStage::Candidate(..) | PermitStage::Safe => {
                    state.pool(awaited).add_eligible(self.id, self.prefix, sender);
                }
            }
        }
        drop(state);
        self.limits.changed.notify_waiters();
    }

    /// Notes that the ClientHello is complete: the connection cannot be evicted until its handshake has ended.
    ///
    /// # Errors
    /// If it was evicted just before.
    pub fn note_hello(&mut self) -> Result<(), Eviction> {
        self.become_safe()
    }

    fn become_safe(&mut self) -> Result<(), Eviction> {
        let stage = self.limits.state.lock().leave(self.id, &mut self.stage, PermitStage::Safe);
        self.limits.changed.notify_waiters();
        match stage {
            PermitStage::Candidate(_, mut notice) => {
                notice.try_recv().map_or(Ok(()), |notice| Err(self.take_notice(notice)))
            }
            PermitStage::Unread | PermitStage::Safe => Ok(()),
        }
    }

    /// Counts the connection from a load balancer as one of its client at `address` from now on. If that address has too
    /// many, another connection from there is evicted for it. Until that one has closed, there is one more than the limit.
    ///
    /// # Errors
    /// If the address has too many connections that cannot be evicted, or this one was evicted just before.
    pub fn set_client(&mut self, address: IpAddr) -> Result<(), ClientRefused> {
        self.set_client_at(address, clock::monotonic())
    }

    fn set_client_at(&mut self, address: IpAddr, now: Instant) -> Result<(), ClientRefused> {
        self.become_safe()?;
        let limits = Arc::clone(&self.limits);
        let mut state = limits.state.lock();
        let (counted_as, prefix) = (limits.limits.counted_as(address), Prefix::of(address));
        let allowed = limits.limits.connections_per_address;
        if let Some(address) = counted_as.filter(|address| state.by_address.count(address) >= allowed) {
            let full = LimitReached::Address { address, allowed };
            let Some((awaited, victim)) = state.evict_from(prefix, now) else { return Err(full.into()) };
            // Not waited for: its task ends as soon as it runs.
            drop(evict(victim, awaited, full));
        }
        counted_as.inspect(|address| state.by_address.add(*address));
        self.counted_as = counted_as;
        self.prefix = prefix;
        self.is_unlimited = limits.limits.is_unlimited(address);
        self.awaits_header = false;
        // As a new connection of the client.
        self.stage = PermitStage::Unread;
        state.unread += 1;
        Ok(())
    }

    /// Notes that a request's header is complete: the connection cannot be evicted until it is idle. An eviction just
    /// before stands.
    pub fn note_request(&mut self) {
        if let PermitStage::Candidate(awaited, _) = self.stage
            && self.limits.state.lock().pool(awaited).remove(self.id)
        {
            self.stage = PermitStage::Safe;
        }
    }

    /// Whether the connection may be evicted once it is idle after a request, and that was not noted yet.
    #[must_use]
    pub fn is_evictable_when_idle(&self) -> bool {
        self.kind == ConnectionKind::Anonymous && !self.is_unlimited && matches!(self.stage, PermitStage::Safe)
    }

    /// Notes that the connection is idle after a request: an anonymous one may be evicted from now on.
    pub fn note_idle(&mut self) {
        if self.is_evictable_when_idle() {
            self.become_candidate(Awaited::NextRequest);
        }
    }

    fn take_notice(&mut self, (eviction, gone): Notice) -> Eviction {
        self.stage = PermitStage::Safe;
        self.gone = Some(gone);
        eviction
    }

    /// Changes the permit from a handshake's to one of `kind`, for the authenticated `phone`. This releases its place
    /// among the unfinished handshakes.
    ///
    /// An anonymous connection can be evicted from now on, until its first request is complete. If the limit is reached,
    /// another anonymous connection is evicted for it. Until that one has closed, there is one more than the limit.
    ///
    /// # Errors
    /// If the limit of this kind is reached and no connection can be evicted, or the limit of the phone is reached. The
    /// permit is then unchanged.
    pub fn set_kind(&mut self, kind: ConnectionKind, phone: Option<PhoneKey>) -> Result<(), LimitReached> {
        let mut state = self.limits.state.lock();
        let allowed = self.limits.limits.connections_per_phone;
        let phone = phone.filter(|_| allowed > 0);
        if let Some(phone) = phone.as_ref().filter(|phone| state.by_phone.count(phone) >= allowed) {
            return Err(LimitReached::Phone { mac: phone.1, allowed });
        }
        if let Err(full) = self.limits.check(&state, kind) {
            let victim = (kind == ConnectionKind::Anonymous).then(|| state.evict_anonymous(clock::monotonic()));
            let Some((awaited, victim)) = victim.flatten() else { return Err(full) };
            // Not waited for: its task ends as soon as it runs.
            drop(evict(victim, awaited, full));
        }
        if let Some(phone) = phone {
            state.by_phone.add(phone.clone());
            self.phone.replace(phone).inspect(|before| state.by_phone.remove(before));
        }
        state.leave(self.id, &mut self.stage, PermitStage::Safe);
        if kind == ConnectionKind::Proven {
            let now = clock::monotonic();
            for awaited in [Awaited::Hello, Awaited::FirstRequest, Awaited::NextRequest] {
                state.pool(awaited).note_proven(self.prefix, now);
            }
        }
        state.remove(self.kind);
        state.add(kind);
        self.kind = kind;
        drop(state);
        self.limits.changed.notify_waiters();
        if kind == ConnectionKind::Anonymous {
            self.become_candidate(Awaited::FirstRequest);
        }
        Ok(())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut state = self.limits.state.lock();
        state.leave(self.id, &mut self.stage, PermitStage::Safe);
        state.remove(self.kind);
        self.counted_as.inspect(|address| state.by_address.remove(address));
        self.phone.as_ref().inspect(|phone| state.by_phone.remove(phone));
        drop(state);
        self.limits.changed.notify_waiters();
    }
}
