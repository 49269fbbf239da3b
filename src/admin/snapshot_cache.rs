//! One picture for all who look: taken anew when something has changed, by one reader at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::{AdminData, Snapshot};
use crate::clock;

/// How old a picture is at least before another is taken.
const FRESH: Duration = Duration::from_secs(1);
/// How old it may be although nothing has changed: phones fall silent by doing nothing.
const STALE: Duration = Duration::from_secs(10);
/// By how much longer it is kept than it took: those who look never use up more than a part of the machine.
const REST: u32 = 4;

/// A picture and its number.
#[derive(Debug, Clone)]
pub(super) struct NumberedSnapshot {
    /// Another one for each picture.
    pub(super) number: u64,
    pub(super) picture: Arc<Snapshot>,
}

/// The last picture that was taken.
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
        !self.is_outdated && (age < FRESH.max(self.took * REST) || (self.mark == mark && age < STALE))
    }
}

impl SnapshotCache {
    /// Lets nobody see the last picture any more: something that it shows was changed from here.
    pub(super) async fn outdate(&self) {
        if let Some(taken) = self.0.lock().await.as_mut() {
            taken.is_outdated = true;
        }
    }

    /// How things are, to the second.
    pub(super) async fn current(&self, knowledge: &Arc<dyn AdminData>) -> NumberedSnapshot {
        // Whoever comes while one is taken waits for that one.
        let mut last = self.0.lock().await;
        // Before it is taken: what changes meanwhile is not missed.
        let mark = knowledge.mark();
        let began = clock::monotonic();
        if let Some(taken) = last.as_ref().filter(|taken| taken.is_good(mark, began)) {
            return taken.numbered.clone();
        }
        let number = last.as_ref().map_or(1, |taken| taken.numbered.number + 1);
        let source = Arc::clone(knowledge);
        let picture = match tokio::task::spawn_blocking(move || source.snapshot()).await {
            Ok(picture) => Arc::new(picture),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let (numbered, at) = (NumberedSnapshot { number, picture }, clock::monotonic());
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
