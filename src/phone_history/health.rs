//! How the ledger is doing, for whoever looks after it.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::activity::ActivityCounts;
use super::queue::HistoryQueue;

/// How the ledger is doing.
#[derive(Debug)]
pub struct HistoryHealth {
    queue: Arc<HistoryQueue>,
    generation: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl HistoryHealth {
    pub(super) fn new(queue: Arc<HistoryQueue>) -> Self {
        Self { queue, generation: AtomicU64::default(), failure: Mutex::default() }
    }

    /// An attempt to write came to this.
    pub(super) fn wrote(&self, failure: Option<&impl Display>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure.map(ToString::to_string);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Another number whenever something was written, or could not be.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Why nothing is written at the moment; `None` if all is well.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How much went on during the last day at `now`, in Unix seconds: when that began, and steps of [`STEP_S`] seconds.
    ///
    /// [`STEP_S`]: super::STEP_S
    #[must_use]
    pub fn activity(&self, now: i64) -> (i64, Vec<ActivityCounts>) {
        self.queue.with_activity(|activity| activity.day(now))
    }

    /// Has all that waits written at once. What this gives is answered then, with whether it is; after the end there is no
    /// answer.
    #[must_use]
    pub fn flush(&self) -> oneshot::Receiver<bool> {
        self.queue.flush()
    }

    /// How many sightings of phones were dropped because there were too many, since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    /// The same of claims, of which anybody can make too many.
    #[must_use]
    pub fn dropped_claims(&self) -> u64 {
        self.queue.dropped_claims()
    }
}
