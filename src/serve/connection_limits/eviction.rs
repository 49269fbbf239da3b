//! Selects the connection that is evicted when a limit is reached.
//!
//! Candidates are connections that wait for the rest of a ClientHello, refused ones that linger, and anonymous ones
//! that wait for a request. A prefix is an IPv4 address, or an IPv6 /48 and a /64 in it: a client with a /48 has 65,536
//! of those. The order of eviction:
//!
//! 1. Prefixes from which no known phone authenticated in the last 24 hours come first.
//! 2. Of those, the address or /48 with the most candidates, so that a client with a thousand idle connections makes
//!    room for one with a few.
//! 3. In a /48, the /64 with the most candidates; in that, the oldest candidate.
//!
//! Pure: time is an argument. Each step costs O(log n).

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};

use crate::serve::limits::client_prefix;

/// How long a candidate must have waited to be evicted under load. A client sends its ClientHello right after the last
/// packet of TCP's handshake. Without this grace period, clients that arrive faster than the server can serve them
/// would evict each other.
pub(super) const EVICTION_GRACE: Duration = Duration::from_millis(100);
/// How long a prefix is preferred after a known phone authenticated from it.
const AUTHENTICATED_FOR: Duration = Duration::from_hours(24);
/// How many such prefixes are kept. Beyond that, the one with the oldest authentication is dropped.
const MAX_AUTHENTICATED: usize = 1 << 16;

/// The connections that may be evicted. Their IDs grow from the oldest to the newest. `N` notifies one of them.
#[derive(Debug)]
pub(super) struct Candidates<N> {
    entries: HashMap<u64, Candidate<N>>,
    /// Candidates that may be in their grace period, the oldest first. Some may have been removed since.
    in_grace: VecDeque<(u64, Instant)>,
    rankings: [Ranking; 4],
    proven_prefixes: RecentPrefixes,
}

#[derive(Debug)]
struct Candidate<N> {
    prefix: Prefix,
    notice: N,
    rank: Rank,
}

/// The ranking that a candidate is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rank {
    /// Whether a known phone recently authenticated from the same prefix.
    is_proven: bool,
    /// Whether it is in its grace period.
    in_grace_period: bool,
}

#[derive(Debug)]
pub(super) struct Victim<N> {
    pub(super) notice: N,
    /// Its prefix, and how many candidates that prefix had.
    pub(super) prefix: IpNet,
    pub(super) weight: usize,
}

/// A client's prefix, for eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix {
    /// An IPv4 address or an IPv6 /48.
    outer: IpNet,
    /// An IPv4 address or an IPv6 /64.
    inner: IpNet,
}

impl Prefix {
    pub(super) fn of(address: IpAddr) -> Self {
        let inner = client_prefix(address);
        let outer = match inner {
            IpNet::V4(_) => inner,
            IpNet::V6(net) => Ipv6Net::new(net.addr(), 48).map_or(inner, |outer| outer.trunc().into()),
        };
        Self { outer, inner }
    }
}

impl<N> Default for Candidates<N> {
    fn default() -> Self {
        Self {
            entries: HashMap::default(),
            in_grace: VecDeque::default(),
            rankings: Default::default(),
            proven_prefixes: RecentPrefixes::default(),
        }
    }
}

impl<N> Candidates<N> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds connection `id`, which begins to wait at `now`.
    pub(super) fn add(&mut self, id: u64, prefix: Prefix, notice: N, now: Instant) {
        self.insert(id, prefix, notice, true);
        self.in_grace.push_back((id, now));
        self.end_grace_periods(now);
    }

    /// Adds connection `id`, which has no grace period.
    pub(super) fn add_eligible(&mut self, id: u64, prefix: Prefix, notice: N) {
        self.insert(id, prefix, notice, false);
    }

    /// Removes connection `id`; returns whether it was a candidate.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.take(id).is_some()
    }

    /// Notes that a known phone authenticated from `prefix`.
    pub(super) fn note_proven(&mut self, prefix: Prefix, now: Instant) {
        self.proven_prefixes.note(prefix.inner, now);
    }

    /// Removes the connection that is to be evicted next. Those in their grace period are spared if `has_grace` is set.
    pub(super) fn evict(&mut self, now: Instant, has_grace: bool) -> Option<Victim<N>> {
        self.proven_prefixes.forget_old(now);
        self.end_grace_periods(now);
        for is_proven in [false, true] {
            while let Some((rank, first)) = self.first(is_proven, has_grace) {
                // Whether its prefix is proven may have changed since it was ranked.
                if self.rank_again(first.id, rank.in_grace_period) == Some(rank) {
                    return self.take_victim(first);
                }
            }
        }
        None
    }

    fn first(&self, is_proven: bool, has_grace: bool) -> Option<(Rank, Ranked)> {
        let [in_grace, eligible] = [true, false].map(|in_grace_period| {
            let rank = Rank { is_proven, in_grace_period };
            Some((rank, self.ranking(rank).first()?))
        });
        let in_grace = in_grace.filter(|_| !has_grace);
        in_grace.into_iter().chain(eligible).max_by_key(|(_, first)| first.weight)
    }

    /// Removes the oldest connection from the same IPv4 address or IPv6 /64 that is past its grace period.
    pub(super) fn evict_from(&mut self, prefix: Prefix, now: Instant) -> Option<Victim<N>> {
        self.end_grace_periods(now);
        let eligible =
            [false, true].map(|is_proven| self.ranking(Rank { is_proven, in_grace_period: false }).oldest_of(prefix));
        let oldest = eligible.into_iter().flatten().min_by_key(|oldest| oldest.id)?;
        self.take_victim(oldest)
    }

    /// When the next grace period ends.
    pub(super) fn next_eligible(&self) -> Option<Instant> {
        self.in_grace.front().map(|(_, since)| *since + EVICTION_GRACE)
    }

    /// Whether no connection is left in any of the collections.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.in_grace.len() <= 1 && self.rankings.iter().all(|it| it.inner.is_empty())
    }

    fn end_grace_periods(&mut self, now: Instant) {
        while let Some((id, since)) = self.in_grace.front().copied() {
            let in_grace_period = self.entries.get(&id).is_some_and(|entry| entry.rank.in_grace_period);
            if in_grace_period && now.duration_since(since) < EVICTION_GRACE {
                return;
            }
            self.rank_again(id, false);
            self.in_grace.pop_front();
        }
    }

    fn insert(&mut self, id: u64, prefix: Prefix, notice: N, in_grace_period: bool) {
        let rank = Rank { in_grace_period, is_proven: self.proven_prefixes.contains(&prefix.inner) };
        self.entries.insert(id, Candidate { prefix, notice, rank });
        self.ranking_mut(rank).add(prefix, id);
    }

    /// Moves a connection to the ranking that it belongs to now.
    fn rank_again(&mut self, id: u64, in_grace_period: bool) -> Option<Rank> {
        let entry = self.entries.get_mut(&id)?;
        let rank = Rank { in_grace_period, is_proven: self.proven_prefixes.contains(&entry.prefix.inner) };
        let (prefix, before) = (entry.prefix, std::mem::replace(&mut entry.rank, rank));
        if rank != before {
            self.ranking_mut(before).remove(prefix, id);
            self.ranking_mut(rank).add(prefix, id);
        }
        Some(rank)
    }

    fn ranking(&self, rank: Rank) -> &Ranking {
        let [unproven_eligible, unproven_in_grace, proven_eligible, proven_in_grace] = &self.rankings;
        match (rank.is_proven, rank.in_grace_period) {
            (false, false) => unproven_eligible,
            (false, true) => unproven_in_grace,
            (true, false) => proven_eligible,
            (true, true) => proven_in_grace,
        }
    }

    fn ranking_mut(&mut self, rank: Rank) -> &mut Ranking {
        let [unproven_eligible, unproven_in_grace, proven_eligible, proven_in_grace] = &mut self.rankings;
        match (rank.is_proven, rank.in_grace_period) {
            (false, false) => unproven_eligible,
            (false, true) => unproven_in_grace,
            (true, false) => proven_eligible,
            (true, true) => proven_in_grace,
        }
    }

    fn take(&mut self, id: u64) -> Option<Candidate<N>> {
        let entry = self.entries.remove(&id)?;
        self.ranking_mut(entry.rank).remove(entry.prefix, id);
        Some(entry)
    }

    fn take_victim(&mut self, Ranked { id, prefix, .. }: Ranked) -> Option<Victim<N>> {
        let of = self.entries.get(&id)?.prefix;
        let weight = self.rankings.iter().map(|ranking| ranking.weight(prefix, of)).sum();
        self.take(id).map(|entry| Victim { notice: entry.notice, prefix, weight })
    }
}

/// Connections by prefix, ordered by the number of connections of the prefix.
#[derive(Debug, Default)]
struct Ranking {
    outer: Groups,
    /// The groups within each outer prefix.
    inner: HashMap<IpNet, Groups>,
}

/// A connection, with the prefix for which it was selected and how many connections are ranked in that prefix.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    id: u64,
    prefix: IpNet,
    weight: usize,
}

impl Ranking {
    fn add(&mut self, prefix: Prefix, id: u64) {
        self.outer.add(prefix.outer, id);
        self.inner.entry(prefix.outer).or_default().add(prefix.inner, id);
    }

    fn remove(&mut self, prefix: Prefix, id: u64) {
        self.outer.remove(prefix.outer, id);
        if let Some(groups) = self.inner.get_mut(&prefix.outer) {
            groups.remove(prefix.inner, id);
            if groups.members.is_empty() {
                self.inner.remove(&prefix.outer);
            }
        }
    }

    /// The oldest connection of the inner prefix with the most connections, in the outer prefix with the most.
    fn first(&self) -> Option<Ranked> {
        let (weight, _, outer) = self.outer.order.last()?;
        let groups = self.inner.get(outer)?;
        let (_, Reverse(id), _) = groups.order.last()?;
        Some(Ranked { id: *id, prefix: *outer, weight: *weight })
    }

    /// How many connections are ranked in `prefix`, which is the outer or the inner one of `of`.
    fn weight(&self, prefix: IpNet, of: Prefix) -> usize {
        let inner = self.inner.get(&of.outer);
        let groups = if prefix == of.outer { Some(&self.outer) } else { inner };
        groups.and_then(|groups| groups.members.get(&prefix)).map_or(0, BTreeSet::len)
    }

    fn oldest_of(&self, prefix: Prefix) -> Option<Ranked> {
        let members = self.inner.get(&prefix.outer)?.members.get(&prefix.inner)?;
        Some(Ranked { id: *members.first()?, prefix: prefix.inner, weight: members.len() })
    }
}

/// Groups of connections, ordered by size. Among groups of the same size, the one with the oldest connection is last.
#[derive(Debug, Default)]
struct Groups {
    members: HashMap<IpNet, BTreeSet<u64>>,
    order: BTreeSet<(usize, Reverse<u64>, IpNet)>,
}

impl Groups {
    fn add(&mut self, prefix: IpNet, id: u64) {
        self.change(prefix, |members| members.insert(id));
    }

    fn remove(&mut self, prefix: IpNet, id: u64) {
        self.change(prefix, |members| members.remove(&id));
    }

    fn change(&mut self, prefix: IpNet, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) {
        let members = self.members.entry(prefix).or_default();
        let order_key =
            |members: &BTreeSet<u64>| members.first().map(|oldest| (members.len(), Reverse(*oldest), prefix));
        order_key(members).inspect(|key| _ = self.order.remove(key));
        change(members);
        match order_key(members) {
            Some(key) => _ = self.order.insert(key),
            None => _ = self.members.remove(&prefix),
        }
    }
}

/// Prefixes, by the time when a known phone last authenticated from them.
#[derive(Debug, Default)]
struct RecentPrefixes {
    last: HashMap<IpNet, Instant>,
    by_time: BTreeSet<(Instant, IpNet)>,
}

impl RecentPrefixes {
    fn note(&mut self, prefix: IpNet, now: Instant) {
        if let Some(before) = self.last.insert(prefix, now) {
            self.by_time.remove(&(before, prefix));
        }
        self.by_time.insert((now, prefix));
        if self.last.len() > MAX_AUTHENTICATED {
            self.forget_first();
        }
        self.forget_old(now);
    }

    fn contains(&self, prefix: &IpNet) -> bool {
        self.last.contains_key(prefix)
    }

    fn forget_old(&mut self, now: Instant) {
        while self.by_time.first().is_some_and(|(last, _)| now.duration_since(*last) > AUTHENTICATED_FOR) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, prefix)) = self.by_time.pop_first() {
            self.last.remove(&prefix);
        }
    }
}
