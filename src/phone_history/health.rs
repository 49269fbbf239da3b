//! The health of the phone history, for logs, metrics and the status page.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::activity::ActivityCounts;
use super::queue::HistoryQueue;
use super::upkeep::Policies;
use crate::constituency::{Registry, ServerDenials};

/// The health of the phone history.
#[derive(Debug)]
pub struct HistoryHealth {
    queue: Arc<HistoryQueue>,
    generation: AtomicU64,
    failure: Mutex<Option<String>>,
    is_indexing: AtomicBool,
}

impl HistoryHealth {
    pub(super) fn new(queue: Arc<HistoryQueue>) -> Self {
        Self { queue, generation: AtomicU64::default(), failure: Mutex::default(), is_indexing: AtomicBool::default() }
    }

    /// Records the result of an attempt to write.
    pub(super) fn record_write(&self, failure: Option<&impl Display>) {
        *self.failure.lock() = failure.map(ToString::to_string);
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(super) fn set_indexing(&self, is_indexing: bool) {
        self.is_indexing.store(is_indexing, Ordering::Release);
    }

    /// Whether the list of phones is being made, after an update or the loss of it: it is not complete.
    #[must_use]
    pub fn is_indexing(&self) -> bool {
        self.is_indexing.load(Ordering::Acquire)
    }

    /// Replaces the policies by which the list of phones is kept. Never blocks.
    pub fn set_policies(&self, registry: Registry, denials: Arc<ServerDenials>) {
        self.queue.set_policies(Policies { registry: Arc::new(registry), denials });
    }

    /// A number that changes with each attempt to write.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Why writing fails at the moment. `None` if it does not.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// The activity of the last day at `now`, in Unix seconds: its begin, and steps of [`STEP_S`] seconds.
    ///
    /// [`STEP_S`]: super::STEP_S
    #[must_use]
    pub fn activity(&self, now: i64) -> (i64, Vec<ActivityCounts>) {
        self.queue.with_activity(|activity| activity.day(now))
    }

    /// Writes everything that is queued now. The receiver gets whether that succeeded, or an error after the end of the
    /// writer.
    #[must_use]
    pub fn flush(&self) -> oneshot::Receiver<bool> {
        self.queue.flush()
    }

    /// How many events of phones were dropped since the start, because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    /// How many claims were dropped. Any client can flood the server with claims.
    #[must_use]
    pub fn dropped_claims(&self) -> u64 {
        self.queue.dropped_claims()
    }
}
