//! The thread that writes the ledger. Whatever happens to the disk, serving goes on.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::health::HistoryHealth;
use super::queue::{HistoryQueue, TakenBatch};
use super::store::{HistoryStore, StoreError};
use crate::clock;

/// How long sightings gather before they are written: each transaction has its price.
const BATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How long to wait before a disk that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The thread that writes; waited for to be sure that everything is written. Nothing is ever sent: it hangs up.
#[derive(Debug)]
pub struct HistoryWriter(Receiver<()>);

impl HistoryWriter {
    pub(super) fn start(queue: Arc<HistoryQueue>, health: Arc<HistoryHealth>, path: PathBuf) -> io::Result<Self> {
        let (alive, keeper) = channel();
        let work = WriterThread {
            queue,
            health,
            path,
            store: None,
            remembers: false,
            is_failing: false,
            told_dropped: 0,
            _alive: alive,
        };
        std::thread::Builder::new().name("ledger".to_owned()).spawn(move || work.run())?;
        Ok(Self(keeper))
    }

    /// Waits until everything is written; the [`Ledger`](super::PhoneHistory) must have been dropped. A disk that hangs
    /// cannot put this off for longer than `patience`.
    pub fn finish(self, patience: Duration) {
        if self.0.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the last of the ledger is lost: its disk does not answer");
        }
    }
}

/// What the thread works on.
struct WriterThread {
    queue: Arc<HistoryQueue>,
    health: Arc<HistoryHealth>,
    path: PathBuf,
    store: Option<HistoryStore>,
    /// Whether it is known what was counted before us.
    remembers: bool,
    is_failing: bool,
    told_dropped: u64,
    /// Dropped last, when the database is closed.
    _alive: Sender<()>,
}

impl WriterThread {
    fn run(mut self) {
        // At once, so that commands find a ledger as soon as there is a server, and errors are said at the start.
        let opened = self.write(&TakenBatch::default());
        self.tell(opened.as_ref().err());
        while let Some(mut taken) = self.queue.take(BATCH_INTERVAL) {
            let written = self.write(&taken);
            self.tell(written.as_ref().err());
            for flush in taken.flushes.drain(..) {
                // The one that asked may have gone.
                let _ = flush.send(written.is_ok());
            }
            if written.is_err() {
                self.queue.give_back(taken);
                if self.queue.pause(RETRY) && self.write_last().is_err() {
                    tracing::error!("the last of the ledger is lost");
                    return;
                }
            }
        }
    }

    /// One last attempt at the end.
    fn write_last(&mut self) -> Result<(), StoreError> {
        self.queue.take(Duration::ZERO).map_or(Ok(()), |taken| self.write(&taken))
    }

    fn write(&mut self, taken: &TakenBatch) -> Result<(), StoreError> {
        match self.try_write(taken) {
            Err(error) if error.is_corrupt() => {
                self.store = None;
                let aside = HistoryStore::move_aside(&self.path)?;
                let (path, aside) = (self.path.display(), aside.display());
                tracing::error!("{error}; moved aside to {aside}, and {path} begins anew");
                self.try_write(taken)
            }
            other => other,
        }
    }

    fn try_write(&mut self, taken: &TakenBatch) -> Result<(), StoreError> {
        // Whoever removed the file wants a new one.
        let mut store = match self.store.take().filter(HistoryStore::is_in_place) {
            Some(store) => store,
            None => self.open()?,
        };
        let written = store.write(taken, clock::now());
        self.store = Some(store);
        written
    }

    fn open(&mut self) -> Result<HistoryStore, StoreError> {
        let store = HistoryStore::open(&self.path)?;
        if self.remembers {
            // Another file than before, which knows nothing of what was counted.
            self.queue.with_activity(|activity| activity.forget_written(None));
        } else {
            let written = store.steps()?;
            self.queue.with_activity(|activity| activity.remember(&written));
            self.remembers = true;
        }
        Ok(store)
    }

    /// What fails is said once, and so is its end.
    fn tell(&mut self, error: Option<&StoreError>) {
        self.health.wrote(error);
        match error {
            Some(error) if !std::mem::replace(&mut self.is_failing, true) => tracing::error!(
                "{error}; phones are served all the same, and it is tried again every {} s",
                RETRY.as_secs()
            ),
            None if std::mem::take(&mut self.is_failing) => tracing::info!("the ledger is written again"),
            _ => {}
        }
        let dropped = self.queue.dropped();
        if error.is_none() && dropped > self.told_dropped {
            tracing::warn!("{} sightings of phones are missing in the ledger", dropped - self.told_dropped);
            self.told_dropped = dropped;
        }
    }
}
