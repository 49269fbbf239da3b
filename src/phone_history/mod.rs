//! What happened: every phone that was seen, what it last did, and why it was refused. SQLite, in the state directory.
//!
//! 1. Whoever sees something makes a [`PhoneEvent`] of it and [notes](PhoneHistory::note) it: it waits in a bounded queue, and
//!    nobody waits for it. If there is too much, the oldest goes, and is counted.
//! 2. One thread ([`writer`]) folds what has gathered into one [`batch`], per phone, and
//! 3. [writes](store) it in one transaction. What cannot be written, because the disk is full, is tried again.
//! 4. [`HistoryReader`] reads it, also while the server runs, and needs no lock.
//!
//! Phones that were let in once are kept. Those that never were are bounded, in all and per network. A mere
//! [claim](Proof::Claimed) to be a phone never touches what is known of that phone, nor takes its place: claims have a
//! queue and a table of their own.

mod activity;
mod batch;
mod health;
mod phone_event;
mod queue;
mod reader;
mod schema;
mod silence;
mod store;
pub mod summary;
#[cfg(test)]
mod tests;
mod user_agent;
mod visits;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use activity::{ActivityCounts, STEP_S};
pub use health::HistoryHealth;
pub use phone_event::{PhoneEvent, Proof, is_refusal};
pub use reader::{ClaimAddress, HistoryReader, ReadError, StoredClaim, StoredEvent, StoredPhone, StoredRequest};
pub use silence::{Rhythm, Silence, silent_together};
pub use user_agent::UserAgent;
pub use visits::Visits;
pub use writer::HistoryWriter;

use queue::HistoryQueue;

/// The ledger's folder in the state directory.
pub const FOLDER: &str = "ledger";

/// Where sightings are noted. Dropped, the keeper writes what is left and ends.
#[derive(Debug)]
pub struct PhoneHistory {
    queue: Arc<HistoryQueue>,
    health: Arc<HistoryHealth>,
}

/// The database's file in the ledger's `folder`.
fn database(folder: &Path) -> PathBuf {
    folder.join("ledger.sqlite")
}

impl PhoneHistory {
    /// Starts the thread that keeps the ledger in `folder`, which exists.
    ///
    /// # Errors
    /// If the system has no thread to spare. What is wrong with the disk is said, and tried again.
    pub fn start(folder: &Path) -> io::Result<(Self, HistoryWriter)> {
        let queue = Arc::new(HistoryQueue::default());
        let health = Arc::new(HistoryHealth::new(Arc::clone(&queue)));
        let keeper = HistoryWriter::start(Arc::clone(&queue), Arc::clone(&health), database(folder))?;
        Ok((Self { queue, health }, keeper))
    }

    /// Notes a sighting. Never waits.
    pub fn note(&self, sighting: PhoneEvent) {
        self.queue.push(sighting);
    }

    /// Counts what happened at `time`, in Unix seconds. Never waits.
    pub fn count(&self, time: i64, counts: ActivityCounts) {
        self.queue.count(time, counts);
    }

    /// How it is doing.
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
