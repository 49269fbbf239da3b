//! Caches one snapshot for all clients of the same scope. One client at a time makes a new one, if something has changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::operators::Scope;
use super::{AdminData, Snapshot};
use crate::clock;

/// The least age of a snapshot before a new one is made.
const MIN_AGE: Duration = Duration::from_secs(1);
/// The maximum age of a snapshot even if nothing has changed: a phone falls silent without an event.
const MAX_AGE: Duration = Duration::from_secs(10);
/// The age at which a snapshot of some constituencies is replaced, whether or not something has changed: what happens
/// elsewhere must not show in its time.
const SCOPED_AGE: Duration = Duration::from_secs(2);
/// A snapshot lives this many times as long as it took to make, so that clients use only part of the CPU.
const COST_FACTOR: u32 = 4;

#[derive(Debug, Clone)]
pub(super) struct NumberedSnapshot {
    /// A new number for each snapshot.
    pub(super) number: u64,
    pub(super) snapshot: Arc<Snapshot>,
}

/// The last snapshot of one scope.
type Slot = Arc<Mutex<Option<CachedSnapshot>>>;

#[derive(Debug, Default)]
pub(super) struct SnapshotCache(parking_lot::Mutex<BTreeMap<Scope, Slot>>);

#[derive(Debug)]
struct CachedSnapshot {
    numbered: NumberedSnapshot,
    mark: u64,
    at: Instant,
    took: Duration,
    is_outdated: bool,
}

impl CachedSnapshot {
    fn is_good(&self, scope: &Scope, mark: u64, now: Instant) -> bool {
        let age = now.duration_since(self.at);
        let cost = self.took * COST_FACTOR;
        let is_new = match scope {
            Scope::All => age < MIN_AGE.max(cost) || (self.mark == mark && age < MAX_AGE),
            Scope::Constituencies(_) => age < SCOPED_AGE.max(cost),
        };
        !self.is_outdated && is_new
    }
}

impl SnapshotCache {
    /// Invalidates the cached snapshot of `scope`.
    pub(super) async fn outdate(&self, scope: &Scope) {
        let slot = self.0.lock().get(scope).cloned();
        let Some(slot) = slot else { return };
        if let Some(cached) = slot.lock().await.as_mut() {
            cached.is_outdated = true;
        }
    }

    /// Invalidates the cached snapshots of an operator with `scope`, who made a change, and of administrators.
    pub(super) async fn outdate_for(&self, scope: &Scope) {
        self.outdate(scope).await;
        self.outdate(&Scope::All).await;
    }

    /// The cached snapshot of `scope`, or a new one if it is outdated or too old.
    pub(super) async fn current(&self, admin_data: &Arc<dyn AdminData>, scope: &Scope) -> NumberedSnapshot {
        let slot = self.slot(scope);
        // Concurrent callers wait for the same snapshot.
        let mut last = slot.lock().await;
        // Before the snapshot is made, so that no change is missed.
        let mark = admin_data.revision();
        let began = clock::monotonic();
        if let Some(cached) = last.as_ref().filter(|cached| cached.is_good(scope, mark, began)) {
            return cached.numbered.clone();
        }
        let number = last.as_ref().map_or(1, |cached| cached.numbered.number + 1);
        let (source, wanted) = (Arc::clone(admin_data), scope.clone());
        let snapshot = match tokio::task::spawn_blocking(move || source.snapshot(&wanted)).await {
            Ok(snapshot) => Arc::new(snapshot),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let (numbered, at) = (NumberedSnapshot { number, snapshot }, clock::monotonic());
        *last = Some(CachedSnapshot {
            numbered: numbered.clone(),
            mark,
            at,
            took: at.duration_since(began),
            is_outdated: false,
        });
        numbered
    }

    fn slot(&self, scope: &Scope) -> Slot {
        let mut slots = self.0.lock();
        if let Some(slot) = slots.get(scope) {
            return Arc::clone(slot);
        }
        // A new scope is rare. Those of removed operators go; one in use is locked, or is made again.
        let now = clock::monotonic();
        slots.retain(|scope, slot| {
            let is_old = |cached: &CachedSnapshot| now.duration_since(cached.at) >= MAX_AGE;
            scope.is_all() || slot.try_lock().is_ok_and(|cached| !cached.as_ref().is_none_or(is_old))
        });
        Arc::clone(slots.entry(scope.clone()).or_default())
    }
}
