//! The thread that writes the phone history. A failing disk does not affect serving.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::health::HistoryHealth;
use super::queue::{HistoryQueue, TakenBatch};
use super::store::{HistoryStore, StoreError};
use super::upkeep::Policies;
use crate::background::BackgroundThread;
use crate::clock;

/// How long events gather before they are written, because each transaction has a cost.
const BATCH_INTERVAL: Duration = Duration::from_millis(500);
/// The longest sleep: states change with the time too.
const IDLE: Duration = Duration::from_secs(1);
/// The pause between two slices of upkeep, so that it uses only part of the disk's time.
const SLICE_PAUSE: Duration = Duration::from_millis(20);
/// The pause before a retry after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Starts the thread that writes the events of `queue` into the database at `path`.
pub(super) fn start(
    queue: Arc<HistoryQueue>,
    health: Arc<HistoryHealth>,
    path: PathBuf,
) -> io::Result<BackgroundThread> {
    let thread = WriterThread {
        queue,
        health,
        path,
        store: None,
        policies: None,
        has_loaded: false,
        is_failing: false,
        is_upkeep_failing: false,
        logged_dropped: 0,
    };
    BackgroundThread::start("phone-history", move || thread.run())
}

/// The thread's data.
struct WriterThread {
    queue: Arc<HistoryQueue>,
    health: Arc<HistoryHealth>,
    path: PathBuf,
    store: Option<HistoryStore>,
    /// The policies for the store, also for one that is opened later.
    policies: Option<Policies>,
    /// Whether the counts of an earlier process are loaded.
    has_loaded: bool,
    is_failing: bool,
    is_upkeep_failing: bool,
    logged_dropped: u64,
}

impl WriterThread {
    fn run(mut self) {
        // Write at once, so that the database exists as soon as the server runs, and errors are logged at the start.
        let opened = self.write(&TakenBatch::default());
        self.report(opened.as_ref().err());
        let mut has_more = false;
        loop {
            if !self.queue.wait_for_any(if has_more { SLICE_PAUSE } else { IDLE }) {
                has_more = self.keep_up();
                continue;
            }
            let Some(mut taken) = self.queue.take(BATCH_INTERVAL) else { return };
            if let Some(policies) = &taken.policies {
                self.policies = Some(policies.clone());
                if let Some(store) = &mut self.store {
                    store.follow(policies.clone());
                }
            }
            let written = self.write(&taken);
            self.report(written.as_ref().err());
            if written.is_ok() {
                // Before a flush is answered, so that a change of a policy is in the index then.
                has_more = self.keep_up();
            }
            for flush in taken.flushes.drain(..) {
                // The receiver may be gone.
                let _ = flush.send(written.is_ok());
            }
            if written.is_err() {
                self.queue.requeue(taken);
                if self.queue.pause(RETRY) && self.write_last().is_err() {
                    tracing::error!("the last phone events are lost");
                    return;
                }
            }
        }
    }

    /// Does a slice of the upkeep. Returns whether there is more to do now. A failure is retried later.
    fn keep_up(&mut self) -> bool {
        let Some(store) = &mut self.store else { return false };
        match store.run_slice(clock::now()) {
            Ok(slice) => {
                self.health.set_indexing(store.is_indexing());
                self.is_upkeep_failing = false;
                if slice.changed > 0 {
                    self.report(None);
                }
                slice.has_more
            }
            // Events may be written nevertheless, as on a disk that is almost full.
            Err(error) => {
                if !std::mem::replace(&mut self.is_upkeep_failing, true) {
                    let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    tracing::warn!("the phone history is not kept in order: {reason}; tried again each second");
                }
                false
            }
        }
    }

    /// Makes a last attempt at shutdown.
    fn write_last(&mut self) -> Result<(), StoreError> {
        self.queue.take(Duration::ZERO).map_or(Ok(()), |taken| self.write(&taken))
    }

    fn write(&mut self, taken: &TakenBatch) -> Result<(), StoreError> {
        match self.try_write(taken) {
            Err(error) if error.is_corrupt() => {
                self.store = None;
                let aside = HistoryStore::move_aside(&self.path)?;
                let (path, aside) = (self.path.display(), aside.display());
                tracing::error!("{error}; moved it to {aside}, and started an empty {path}");
                self.try_write(taken)
            }
            other => other,
        }
    }

    fn try_write(&mut self, taken: &TakenBatch) -> Result<(), StoreError> {
        // If the file was deleted, make a new one.
        let mut store = match self.store.take().filter(HistoryStore::is_in_place) {
            Some(store) => store,
            None => self.open()?,
        };
        let written = store.write(taken, clock::now());
        self.store = Some(store);
        written
    }

    fn open(&mut self) -> Result<HistoryStore, StoreError> {
        let mut store = HistoryStore::open(&self.path)?;
        if let Some(policies) = &self.policies {
            store.follow(policies.clone());
        }
        if self.has_loaded {
            // A new file, which lacks the counts so far.
            self.queue.with_activity(|activity| activity.mark_unwritten(None));
        } else {
            let written = store.steps()?;
            self.queue.with_activity(|activity| activity.add_written(&written));
            self.has_loaded = true;
        }
        Ok(store)
    }

    /// Logs a failure once when it begins, and once when it ends.
    fn report(&mut self, error: Option<&StoreError>) {
        self.health.record_write(error);
        match error {
            Some(error) if !std::mem::replace(&mut self.is_failing, true) => {
                tracing::error!("{error}; phones are served; next attempt every {} s", RETRY.as_secs());
            }
            None if std::mem::take(&mut self.is_failing) => tracing::info!("the phone history is written again"),
            _ => {}
        }
        let dropped = self.queue.dropped();
        if error.is_none() && dropped > self.logged_dropped {
            tracing::warn!(
                "{} phone events are missing in the phone history: the queue was full",
                dropped - self.logged_dropped
            );
            self.logged_dropped = dropped;
        }
    }
}
