//! Replay protection: records which counts of which nonces a phone has used. Pure.
//!
//! It stores only nonces of responses with a correct password, and a few per phone. So unauthenticated clients cannot
//! make it grow.

use super::nonce::{LIFETIME, Nonce};

/// The number of nonces that are stored for a phone: more than it has simultaneous connections.
const REMEMBERED: usize = 16;

/// The used nonces of one phone.
#[derive(Debug, Default)]
pub(super) struct UsedNonces {
    nonces: Vec<NonceCounts>,
    /// The newest nonce that was dropped. Nonces up to it are refused.
    forgotten: Option<Nonce>,
}

/// The highest used count of a nonce, and a bitmap of the 64 counts up to it: requests on different connections may
/// arrive out of order.
#[derive(Debug)]
struct NonceCounts {
    nonce: Nonce,
    highest: u32,
    used: u64,
}

impl UsedNonces {
    /// Marks `count` of `nonce` as used at `now`; returns whether it was still unused.
    pub(super) fn take(&mut self, nonce: Nonce, count: u32, now: u64) -> bool {
        self.nonces.retain(|counts| now.saturating_sub(counts.nonce.issued) <= LIFETIME);
        if let Some(counts) = self.nonces.iter_mut().find(|counts| counts.nonce == nonce) {
            return counts.take(count);
        }
        if count == 0 || self.forgotten.is_some_and(|forgotten| nonce <= forgotten) {
            return false;
        }
        if self.nonces.len() >= REMEMBERED {
            self.forget_oldest();
        }
        // The nonce may be older than the one that was just dropped.
        if self.forgotten.is_some_and(|forgotten| nonce <= forgotten) {
            return false;
        }
        self.nonces.push(NonceCounts { nonce, highest: count, used: 1 });
        true
    }

    fn forget_oldest(&mut self) {
        let Some(at) = (0..self.nonces.len()).min_by_key(|at| self.nonces.get(*at).map(|counts| counts.nonce)) else {
            return;
        };
        let oldest = self.nonces.swap_remove(at).nonce;
        self.forgotten = self.forgotten.max(Some(oldest));
    }
}

impl NonceCounts {
    fn take(&mut self, count: u32) -> bool {
        if count > self.highest {
            self.used = self.used.checked_shl(count - self.highest).unwrap_or(0) | 1;
            self.highest = count;
            return true;
        }
        let age = self.highest - count;
        let bit = 1_u64.checked_shl(age).unwrap_or(0);
        let is_free = count > 0 && bit != 0 && self.used & bit == 0;
        self.used |= bit;
        is_free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(issued: u64) -> Nonce {
        Nonce { issued, number: 0 }
    }

    #[test]
    fn nonce_count_is_accepted_once_even_if_late() {
        let mut used = UsedNonces::default();
        let mut take = |count: u32| used.take(nonce(1), count, 1);
        assert!(!take(0));
        assert!(take(1) && take(2) && take(5));
        assert!(!take(1) && !take(2) && !take(5) && !take(0));
        assert!(take(3) && take(4) && !take(3));
        assert!(take(68), "far ahead");
        assert!(take(6) && !take(6) && !take(5), "the oldest that is remembered");
        assert!(take(1000) && !take(68) && !take(936) && take(937));
        assert!(take(u32::MAX) && !take(u32::MAX) && !take(1));
    }

    #[test]
    fn evicted_nonce_is_rejected_and_memory_is_bounded() {
        let mut used = UsedNonces::default();
        for issued in 1..=100 {
            assert!(used.take(nonce(issued), 1, 100));
        }
        assert_eq!(used.nonces.len(), REMEMBERED);
        assert!((1..=100).all(|issued| !used.take(nonce(issued), 1, 100)));
        assert!((1..=84).all(|issued| !used.take(nonce(issued), 2, 100)));
        assert!((85..=100).all(|issued| used.take(nonce(issued), 2, 100)));
        used.take(nonce(LIFETIME + 200), 1, LIFETIME + 200);
        assert_eq!(used.nonces.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_nonce_count_is_accepted_twice(uses in proptest::collection::vec((1_u64..40, 0_u32..200), 0..400)) {
            let mut used = UsedNonces::default();
            let mut seen = std::collections::HashSet::new();
            for (issued, count) in uses {
                if used.take(nonce(issued), count, 40) {
                    proptest::prop_assert!(seen.insert((issued, count)));
                }
            }
        }
    }
}
