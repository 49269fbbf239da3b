//! The history of phones: every phone that was seen, its last actions, and why it was refused. SQLite, in the state
//! directory.
//!
//! 1. The access log's observer makes a [`PhoneEvent`], and [queues](PhoneHistory::record) it. The queue is bounded and
//!    never blocks. If it is full, the oldest event is dropped and counted.
//! 2. One thread ([`writer`]) aggregates the queued events per phone into a [`batch`].
//! 3. It [writes](store) the batch in one transaction. If that fails, as with a full disk, it retries.
//! 4. It keeps an [index] of the phones for the operators' page, by the policies that it is given, and does other
//!    [upkeep] in slices between the batches.
//! 5. [`HistoryReader`] reads the database, also while the server runs, without a lock.
//!
//! Phones that were accepted once are kept. Those that never were are limited, in all and per network. A
//! [claim](Proof::Claimed) to be a phone never changes the data of that phone, and never displaces it: claims have a
//! queue and a table of their own.

mod activity;
mod batch;
mod health;
mod index;
mod index_reader;
mod phone_event;
mod phone_state;
mod queue;
mod reader;
mod schema;
mod silence;
mod store;
pub mod summary;
#[cfg(test)]
mod tests;
mod upkeep;
mod user_agent;
mod visits;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use activity::{ActivityCounts, STEP_S};
pub use health::HistoryHealth;
pub use index_reader::{IndexCount, IndexFilter, IndexKey, IndexMatch, IndexOrder};
pub use phone_event::{PhoneEvent, Proof, is_refusal};
pub use phone_state::PhoneState;
#[cfg(test)]
pub(crate) use reader::STEPS;
pub use reader::{ClaimAddress, HistoryReader, ReadError, StoredClaim, StoredEvent, StoredPhone, StoredRequest};
pub use silence::{Silence, VisitPattern, silent_together};
pub use user_agent::UserAgent;
pub use visits::Visits;

use crate::background::BackgroundThread;
use queue::HistoryQueue;

/// The folder in the state directory.
pub const FOLDER: &str = "ledger";

/// The sender of events. When it is dropped, the writer writes the rest and ends.
#[derive(Debug)]
pub struct PhoneHistory {
    queue: Arc<HistoryQueue>,
    health: Arc<HistoryHealth>,
}

/// The path of the database in `folder`.
fn database(folder: &Path) -> PathBuf {
    folder.join("ledger.sqlite")
}

impl PhoneHistory {
    /// Starts the thread that writes the history into `folder`, which exists. The thread ends when this value is dropped
    /// and everything is written.
    ///
    /// # Errors
    /// If the thread cannot start. A disk error is only logged, and retried.
    pub fn start(folder: &Path) -> io::Result<(Self, BackgroundThread)> {
        let queue = Arc::new(HistoryQueue::default());
        let health = Arc::new(HistoryHealth::new(Arc::clone(&queue)));
        let writer = writer::start(Arc::clone(&queue), Arc::clone(&health), database(folder))?;
        Ok((Self { queue, health }, writer))
    }

    /// Queues an event. Never blocks.
    pub fn record(&self, event: PhoneEvent) {
        self.queue.push(event);
    }

    /// Adds `counts` at `time`, in Unix seconds. Never blocks.
    pub fn add_activity(&self, time: i64, counts: ActivityCounts) {
        self.queue.add_activity(time, counts);
    }

    #[must_use]
    pub fn health(&self) -> Arc<HistoryHealth> {
        Arc::clone(&self.health)
    }
}

impl Drop for PhoneHistory {
    fn drop(&mut self) {
        self.queue.close();
    }
}
