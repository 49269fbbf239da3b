//! Places for connections: how many in all, of each kind, of one address and of one phone. A place is given back when
//! dropped.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use super::limits::Limits;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::wording::counted;

/// Which part of the room is for handshakes under way, and which for anonymous connections: a quarter for each, so that
/// half of it is left to proven phones whatever strangers do.
const STRANGERS_PART: usize = 4;

/// Counts connections against the limits.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    /// How many the limit of open files leaves room for.
    room: usize,
    taken: [AtomicUsize; 3],
    taken_in_all: AtomicUsize,
    by_address: Tally<IpNet>,
    by_phone: Tally<Phone>,
}

/// A phone, as one constituency knows it.
pub type Phone = (ConstituencyName, MacAddress);

/// Counts how many each has.
#[derive(Debug)]
struct Tally<K>(Mutex<HashMap<K, usize>>);

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
    /// All places are taken that strangers may have of those that the limit of open files leaves room for.
    #[error(
        "all {allowed} places for {kind} are taken that the limit of open files leaves room for (ulimit -n, LimitNOFILE)"
    )]
    Share {
        /// In words.
        kind: &'static str,
        /// How many.
        allowed: usize,
    },
    /// The system would not let us open what more connections need.
    #[error("all {room} connections are taken that the limit of open files leaves room for (ulimit -n, LimitNOFILE)")]
    Files {
        /// How many there is room for.
        room: usize,
    },
    /// This address has too many.
    #[error("{address} has {} already (limits.connections_per_address)", counted(*.allowed, "connection"))]
    Address {
        /// The IPv4 address or IPv6 network.
        address: IpNet,
        /// The limit.
        allowed: usize,
    },
    /// This phone has too many.
    #[error("{mac} has {} already (limits.connections_per_phone)", counted(*.allowed, "connection"))]
    Phone {
        /// The phone.
        mac: MacAddress,
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
    phone: Option<Phone>,
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
            by_address: Tally::default(),
            by_phone: Tally::default(),
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
        let allowed = self.limits.connections_per_address;
        if let Some(address) = unit
            && !self.by_address.take(address, allowed)
        {
            return Err(Full::Address { address, allowed });
        }
        match self.take_room().and_then(|()| self.take(Kind::Unfinished).inspect_err(|_| self.leave_room())) {
            Ok(()) => Ok(Place { admission: Arc::clone(self), kind: Kind::Unfinished, address: unit, phone: None }),
            Err(full) => {
                self.by_address.give_back(unit.as_ref());
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
        let share = if kind == Kind::Proven { self.room } else { (self.room / STRANGERS_PART).max(1) };
        if self.taken.get(kind as usize).is_some_and(|taken| take_below(taken, allowed.min(share))) {
            Ok(())
        } else if share < allowed {
            Err(Full::Share { kind: words, allowed: share })
        } else {
            Err(Full::Kind { kind: words, allowed, key })
        }
    }

    fn leave(&self, kind: Kind) {
        if let Some(taken) = self.taken.get(kind as usize) {
            taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// Counts one more of `key`, unless it has as many as are `allowed`; says whether it did.
    fn take(&self, key: K, allowed: usize) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_insert(0);
        let is_free = *count < allowed;
        *count += usize::from(is_free);
        is_free
    }

    /// Counts one less of `key`, if it was counted.
    fn give_back(&self, key: Option<&K>) {
        let Some(key) = key else { return };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(key);
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
    /// What the connection is so far.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Moves on from the handshake to a place of `kind`, for the `phone` that proved to be at the other end; the place
    /// among the unfinished is free again.
    ///
    /// # Errors
    /// If no such place is free, or the phone has too many; this one is then kept until it is dropped.
    pub fn become_kind(&mut self, kind: Kind, phone: Option<Phone>) -> Result<(), Full> {
        let allowed = self.admission.limits.connections_per_phone;
        if let Some(phone) = phone.filter(|_| allowed > 0) {
            if !self.admission.by_phone.take(phone.clone(), allowed) {
                return Err(Full::Phone { mac: phone.1, allowed });
            }
            self.phone = Some(phone);
        }
        self.admission.take(kind)?;
        self.admission.leave(std::mem::replace(&mut self.kind, kind));
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.leave(self.kind);
        self.admission.leave_room();
        self.admission.by_address.give_back(self.address.as_ref());
        self.admission.by_phone.give_back(self.phone.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(limits: Limits) -> Arc<Admission> {
        Arc::new(Admission::new(limits, 12))
    }

    #[test]
    fn strangers_do_not_use_up_the_places_of_phones() {
        let admission = admission(Limits { unfinished_handshakes: 2, connections: 1, ..Limits::default() });
        let mut phone = admission.enter([192, 0, 2, 1].into()).unwrap();
        let _stranger = admission.enter([192, 0, 2, 2].into()).unwrap();
        assert!(admission.enter([192, 0, 2, 3].into()).is_err());
        phone.become_kind(Kind::Proven, None).unwrap();
        let mut second = admission.enter([192, 0, 2, 3].into()).unwrap();
        assert!(second.become_kind(Kind::Proven, None).unwrap_err().to_string().contains("limits.connections"));
        drop(phone);
        second.become_kind(Kind::Proven, None).unwrap();
        assert_eq!((admission.count(Kind::Proven), admission.count(Kind::Unfinished)), (1, 1));
    }

    #[test]
    fn there_are_never_more_than_the_system_has_room_for() {
        let admission = admission(Limits { connections_per_address: 0, ..Limits::default() });
        let enter = || admission.enter([192, 0, 2, 1].into());
        let mut places: Vec<Place> = (0..3).map(|_| enter().unwrap()).collect();
        assert!(enter().unwrap_err().to_string().starts_with("all 3 places for unfinished handshakes are taken that"));
        for place in &mut places {
            place.become_kind(Kind::Anonymous, None).unwrap();
        }
        let mut stranger = enter().unwrap();
        assert_eq!(
            stranger.become_kind(Kind::Anonymous, None).unwrap_err(),
            Full::Share { kind: "anonymous connections", allowed: 3 }
        );
        // What strangers cannot have is there for phones.
        places.push(stranger);
        while places.len() < 12 {
            let mut phone = enter().unwrap();
            phone.become_kind(Kind::Proven, None).unwrap();
            places.push(phone);
        }
        assert_eq!(enter().unwrap_err(), Full::Files { room: 12 });
        places.pop();
        enter().unwrap();
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
        assert!(admission.by_address.0.lock().unwrap().is_empty());
        assert_eq!(admission.count(Kind::Unfinished), 0);
    }

    #[test]
    fn one_phone_has_its_own_limit_in_each_constituency_and_gives_places_back() {
        let admission = admission(Limits { connections_per_phone: 1, ..Limits::default() });
        let place = |constituency: &str| {
            let mut place = admission.enter([192, 0, 2, 1].into()).unwrap();
            let phone = (constituency.parse().unwrap(), "00005e00530c".parse().unwrap());
            place.become_kind(Kind::Anonymous, Some(phone)).map(|()| place)
        };
        let one = place("ote").unwrap();
        assert!(matches!(place("ote"), Err(Full::Phone { allowed: 1, .. })));
        let _other = place("other").unwrap();
        drop(one);
        drop(place("ote").unwrap());
        assert_eq!(admission.by_phone.0.lock().unwrap().len(), 1);
        assert_eq!(admission.count(Kind::Unfinished), 0);
    }
}
