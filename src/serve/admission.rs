//! Places for connections: how many in all, of each kind, and of one address. A place is given back when dropped.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use super::limits::Limits;

/// Counts connections against the limits.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    /// How many the limit of open files leaves room for.
    room: usize,
    taken: [AtomicUsize; 3],
    taken_in_all: AtomicUsize,
    by_address: Mutex<HashMap<IpNet, usize>>,
}

/// What a connection is so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its handshake is under way.
    Unfinished,
    /// Its constituency asks nobody who they are, or does not know the phone: any owner of any phone can prove one.
    Anonymous,
    /// It proved to be a phone that its constituency knows.
    Proven,
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All places of this kind are taken.
    #[error("all {allowed} places for {kind} are taken (limits.{key})")]
    Kind {
        /// In words.
        kind: &'static str,
        /// The limit.
        allowed: usize,
        /// The limit's key in `provost.json`.
        key: &'static str,
    },
    /// The system would not let us open what more connections need.
    #[error("all {room} connections are taken that the limit of open files leaves room for (ulimit -n, LimitNOFILE)")]
    Files {
        /// How many there is room for.
        room: usize,
    },
    /// This address has too many.
    #[error("{address} has {allowed} connections already (limits.connections_per_address)")]
    Address {
        /// The IPv4 address or IPv6 network.
        address: IpNet,
        /// The limit.
        allowed: usize,
    },
}

/// A connection's place; dropped with it.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    kind: Kind,
    address: Option<IpNet>,
}

impl Admission {
    /// No connections yet, and never more than there is `room` for.
    #[must_use]
    pub fn new(limits: Limits, room: usize) -> Self {
        Self {
            limits,
            room,
            taken: Default::default(),
            taken_in_all: AtomicUsize::default(),
            by_address: Mutex::default(),
        }
    }

    /// How many connections of `kind` there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.taken.get(kind as usize).map_or(0, |taken| taken.load(Ordering::Relaxed))
    }

    /// A place for a new connection from `address`, whose handshake begins.
    ///
    /// # Errors
    /// If the address has too many, too many handshakes are under way, or there is no room at all.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let unit = self.limits.counted_as(address);
        if let Some(unit) = unit {
            let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(unit).or_insert(0);
            if *count >= self.limits.connections_per_address {
                return Err(Full::Address { address: unit, allowed: *count });
            }
            *count += 1;
        }
        match self.take_room().and_then(|()| self.take(Kind::Unfinished).inspect_err(|_| self.leave_room())) {
            Ok(()) => Ok(Place { admission: Arc::clone(self), kind: Kind::Unfinished, address: unit }),
            Err(full) => {
                self.leave_address(unit);
                Err(full)
            }
        }
    }

    fn take_room(&self) -> Result<(), Full> {
        if take_below(&self.taken_in_all, self.room) { Ok(()) } else { Err(Full::Files { room: self.room }) }
    }

    fn leave_room(&self) {
        self.taken_in_all.fetch_sub(1, Ordering::Relaxed);
    }

    fn take(&self, kind: Kind) -> Result<(), Full> {
        let (allowed, key, words) = match kind {
            Kind::Unfinished => (self.limits.unfinished_handshakes, "unfinished_handshakes", "unfinished handshakes"),
            Kind::Anonymous => (self.limits.anonymous_connections, "anonymous_connections", "anonymous connections"),
            Kind::Proven => (self.limits.connections, "connections", "phones' connections"),
        };
        if self.taken.get(kind as usize).is_some_and(|taken| take_below(taken, allowed)) {
            Ok(())
        } else {
            Err(Full::Kind { kind: words, allowed, key })
        }
    }

    fn leave(&self, kind: Kind) {
        if let Some(taken) = self.taken.get(kind as usize) {
            taken.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn leave_address(&self, unit: Option<IpNet>) {
        let Some(unit) = unit else { return };
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&unit) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&unit);
            }
        }
    }
}

/// Counts one more, unless `allowed` are taken already.
fn take_below(taken: &AtomicUsize, allowed: usize) -> bool {
    let one_more = |taken: usize| (taken < allowed).then_some(taken + 1);
    taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

impl Place {
    /// Moves on from the handshake to a place of `kind`; the place among the unfinished is free again.
    ///
    /// # Errors
    /// If no such place is free; this one is then kept until it is dropped.
    pub fn become_kind(&mut self, kind: Kind) -> Result<(), Full> {
        self.admission.take(kind)?;
        self.admission.leave(std::mem::replace(&mut self.kind, kind));
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.leave(self.kind);
        self.admission.leave_room();
        self.admission.leave_address(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(limits: Limits) -> Arc<Admission> {
        Arc::new(Admission::new(limits, 3))
    }

    #[test]
    fn strangers_do_not_use_up_the_places_of_phones() {
        let admission = admission(Limits { unfinished_handshakes: 2, connections: 1, ..Limits::default() });
        let mut phone = admission.enter([192, 0, 2, 1].into()).unwrap();
        let _stranger = admission.enter([192, 0, 2, 2].into()).unwrap();
        assert!(admission.enter([192, 0, 2, 3].into()).is_err());
        phone.become_kind(Kind::Proven).unwrap();
        let mut second = admission.enter([192, 0, 2, 3].into()).unwrap();
        assert!(second.become_kind(Kind::Proven).unwrap_err().to_string().contains("limits.connections"));
        drop(phone);
        second.become_kind(Kind::Proven).unwrap();
        assert_eq!((admission.count(Kind::Proven), admission.count(Kind::Unfinished)), (1, 1));
    }

    #[test]
    fn there_are_never_more_than_the_system_has_room_for() {
        let admission = admission(Limits { connections_per_address: 0, ..Limits::default() });
        let mut places: Vec<Place> = (0..3).map(|_| admission.enter([192, 0, 2, 1].into()).unwrap()).collect();
        assert_eq!(admission.enter([192, 0, 2, 1].into()).unwrap_err(), Full::Files { room: 3 });
        places[0].become_kind(Kind::Proven).unwrap();
        assert!(admission.enter([192, 0, 2, 1].into()).is_err());
        places.pop();
        admission.enter([192, 0, 2, 1].into()).unwrap();
        drop(places);
        assert_eq!(admission.taken_in_all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_address_has_its_own_limit_and_gives_places_back() {
        let admission = admission(Limits { connections_per_address: 1, ..Limits::default() });
        let one = admission.enter("2001:db8::1".parse().unwrap()).unwrap();
        assert!(matches!(admission.enter("2001:db8::2".parse().unwrap()), Err(Full::Address { .. })));
        admission.enter("2001:db8:0:1::1".parse().unwrap()).unwrap();
        drop(one);
        admission.enter("2001:db8::2".parse().unwrap()).unwrap();
        assert!(admission.by_address.lock().unwrap().is_empty());
        assert_eq!(admission.count(Kind::Unfinished), 0);
    }
}
