//! Outages of CA and DNS, by a seeded random generator.

use std::sync::atomic::{AtomicU64, Ordering};

pub const HOUR: i64 = 3600;
pub const DAY: i64 = 24 * HOUR;

/// A seeded random generator (splitmix64).
pub struct Random(AtomicU64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    fn next(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, but not including, 1.
    pub fn fraction(&self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap()) / 4_294_967_296.0
    }

    pub fn chance(&self, likely: f64) -> bool {
        self.fraction() < likely
    }

    pub fn below(&self, count: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(count).unwrap()).unwrap()
    }

    pub fn between(&self, from: i64, to: i64) -> i64 {
        from + i64::try_from(self.next() % u64::try_from(to - from).unwrap()).unwrap()
    }
}

/// The start and end of an outage.
#[derive(Debug, Clone, Copy)]
struct Outage {
    from: i64,
    to: i64,
}

/// The outages of CA, DNS or both.
pub struct Outages {
    ca: Vec<Outage>,
    dns: Vec<Outage>,
    /// When the CA forbade attempts by Retry-After.
    forbidden: std::sync::Mutex<Vec<Outage>>,
}

impl Outages {
    pub fn generate(random: &Random, start: i64, length: i64) -> Self {
        Self {
            ca: outages(random, start, length),
            dns: outages(random, start, length),
            forbidden: std::sync::Mutex::default(),
        }
    }

    pub fn ca_is_up(&self, now: i64) -> bool {
        is_up(&self.ca, now)
    }

    pub fn dns_is_up(&self, now: i64) -> bool {
        is_up(&self.dns, now)
    }

    pub fn forbid(&self, from: i64, to: i64) {
        self.forbidden.lock().unwrap().push(Outage { from, to });
    }

    /// Whether everything worked and nothing was forbidden from `from` to `to`.
    pub fn was_undisturbed(&self, from: i64, to: i64) -> bool {
        let touches = |outage: &Outage| outage.from < to && outage.to > from;
        let forbidden = self.forbidden.lock().unwrap();
        !self.ca.iter().chain(&self.dns).chain(forbidden.iter()).any(touches)
    }

    pub fn outages(&self) -> usize {
        self.ca.len() + self.dns.len()
    }
}

fn is_up(outages: &[Outage], now: i64) -> bool {
    !outages.iter().any(|outage| (outage.from..outage.to).contains(&now))
}

/// Minutes or hours often, days sometimes, three weeks rarely.
fn outages(random: &Random, start: i64, length: i64) -> Vec<Outage> {
    let mut all = Vec::new();
    let mut at = start;
    while at < start + length {
        at += random.between(HOUR, 20 * DAY);
        let lasts = match random.below(20) {
            0..=11 => random.between(60, 2 * HOUR),
            12..=18 => random.between(2 * HOUR, 4 * DAY),
            _ => random.between(4 * DAY, 22 * DAY),
        };
        all.push(Outage { from: at, to: at + lasts });
        at += lasts;
    }
    all
}
