//! Limits how many answers a network gets: over UDP, so that forged queries do not direct many answers at it; over TCP,
//! so that no network occupies the thread.
//!
//! A network is an IPv4 /24 or an IPv6 /56. Each has a bucket (GCRA, ITU-T I.371). The table has a fixed size: networks
//! whose keyed hashes collide share a bucket, and no flood makes it grow.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The mean time between two answers to one network: 50 a second.
pub(super) const INTERVAL: Duration = Duration::from_millis(20);
/// How many answers may come at once.
const BURST: u32 = 200;
const BUCKETS: u16 = 16_384;

/// The state of all networks.
#[derive(Debug)]
pub(super) struct RateLimit {
    /// When each bucket is empty again, since `start`.
    empty_at: Vec<Duration>,
    /// Its keys are random, so that an attacker cannot choose networks that share a victim's bucket.
    hasher: RandomState,
    start: Instant,
}

impl RateLimit {
    pub(super) fn new(start: Instant) -> Self {
        Self { empty_at: vec![Duration::ZERO; usize::from(BUCKETS)], hasher: RandomState::new(), start }
    }

    /// Counts an answer to `address`. False if its network has had its share.
    pub(super) fn allows(&mut self, address: IpAddr, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.start);
        let index = self.hasher.hash_one(Network::of(address)) % u64::from(BUCKETS);
        let Some(empty_at) = usize::try_from(index).ok().and_then(|index| self.empty_at.get_mut(index)) else {
            return false;
        };
        let filled = empty_at.saturating_sub(now);
        let is_allowed = filled <= INTERVAL * (BURST - 1);
        if is_allowed {
            *empty_at = now + filled + INTERVAL;
        }
        is_allowed
    }
}

/// The network of a client: an IPv4 /24 or an IPv6 /56.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Network {
    V4(u32),
    V6(u128),
}

impl Network {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(u32::from(address) >> 8),
            IpAddr::V6(address) => Self::V6(u128::from(address) >> 72),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_network_gets_a_burst_and_then_its_rate() {
        let start = clock::monotonic();
        let mut limit = RateLimit::new(start);
        let mut count = |from: &str, after: Duration| {
            let address = from.parse().unwrap();
            (0..1000).filter(|_| limit.allows(address, start + after)).count()
        };
        let burst = BURST as usize;
        assert_eq!(count("192.0.2.1", Duration::ZERO), burst);
        assert_eq!(count("192.0.2.254", Duration::ZERO), 0, "the same /24");
        assert_eq!(count("::ffff:192.0.2.1", Duration::ZERO), 0, "the same address");
        assert_eq!(count("192.0.2.1", Duration::from_secs(1)), 50);
        assert_eq!(count("192.0.2.1", Duration::from_hours(1)), burst);
    }

    #[test]
    fn other_networks_have_buckets_of_their_own() {
        let start = clock::monotonic();
        let mut limit = RateLimit::new(start);
        let exhausted = |limit: &mut RateLimit, address: &str| {
            assert!((0..BURST).all(|_| limit.allows(address.parse().unwrap(), start)));
            !limit.allows(address.parse().unwrap(), start)
        };
        assert!(exhausted(&mut limit, "2001:db8:0:100::1"));
        assert!(!limit.allows("2001:db8:0:1ff::1".parse().unwrap(), start), "the same /56");
        // Two networks share a bucket by chance, rarely.
        let others = (0..100_u8).map(|index| IpAddr::from([198, 51, index, 1]));
        let served = others.filter(|address| limit.allows(*address, start)).count();
        assert!(served >= 95, "{served}");
    }
}
