//! Caches one snapshot for all clients. One client at a time makes a new one, if something has changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::{AdminData, Snapshot};
use crate::clock;

/// The least age of a snapshot before a new one is made.
const MIN_AGE: Duration = Duration::from_secs(1);
/// The maximum age of a snapshot even if nothing has changed: a phone falls silent without an event.
const MAX_AGE: Duration = Duration::from_secs(10);
/// A snapshot lives this many times as long as it took to make, so that clients use only part of the CPU.
const COST_FACTOR: u32 = 4;

#[derive(Debug, Clone)]
pub(super) struct NumberedSnapshot {
    /// A new number for each snapshot.
    pub(super) number: u64,
    pub(super) snapshot: Arc<Snapshot>,
}

#[derive(Debug, Default)]
pub(super) struct SnapshotCache(Mutex<Option<CachedSnapshot>>);

#[derive(Debug)]
struct CachedSnapshot {
    numbered: NumberedSnapshot,
    mark: u64,
    at: Instant,
    took: Duration,
    is_outdated: bool,
}

impl CachedSnapshot {
    fn is_good(&self, mark: u64, now: Instant) -> bool {
        let age = now.duration_since(self.at);
        !self.is_outdated && (age < MIN_AGE.max(self.took * COST_FACTOR) || (self.mark == mark && age < MAX_AGE))
    }
}

impl SnapshotCache {
    /// Invalidates the cached snapshot, after a change that was made here.
    pub(super) async fn outdate(&self) {
        if let Some(cached) = self.0.lock().await.as_mut() {
            cached.is_outdated = true;
        }
    }

    /// The cached snapshot, or a new one if it is outdated or too old.
    pub(super) async fn current(&self, admin_data: &Arc<dyn AdminData>) -> NumberedSnapshot {
        // Concurrent callers wait for the same snapshot.
        let mut last = self.0.lock().await;
        // Before the snapshot is made, so that no change is missed.
        let mark = admin_data.revision();
        let began = clock::monotonic();
        if let Some(cached) = last.as_ref().filter(|cached| cached.is_good(mark, began)) {
            return cached.numbered.clone();
        }
        let number = last.as_ref().map_or(1, |cached| cached.numbered.number + 1);
        let source = Arc::clone(admin_data);
        let snapshot = match tokio::task::spawn_blocking(move || source.snapshot()).await {
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
}
