//! What waits to be written: bounded, and whoever adds to it never waits. If there is too much, the oldest goes.
//!
//! Claims have a bound of their own: whoever floods the server with them pushes out nothing that was proven.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::activity::{Activity, ActivityCounts};
use super::phone_event::{PhoneEvent, Proof};

/// How many sightings of proven phones may wait.
pub(super) const PROVEN: usize = 16_384;
/// How many claims may wait.
pub(super) const CLAIMED: usize = 1_024;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct HistoryQueue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    dropped: AtomicU64,
    dropped_claims: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    proven: VecDeque<PhoneEvent>,
    claimed: VecDeque<PhoneEvent>,
    activity: Activity,
    flushes: Vec<Flush>,
    is_closed: bool,
}

/// Answered once all that waited before it is written, with whether it is.
pub(super) type Flush = oneshot::Sender<bool>;

/// What was taken to be written.
#[derive(Debug, Default)]
pub(super) struct TakenBatch {
    pub(super) sightings: Vec<PhoneEvent>,
    /// Steps of the activity, each whole.
    pub(super) steps: Vec<(i64, ActivityCounts)>,
    pub(super) flushes: Vec<Flush>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.proven.is_empty() && self.claimed.is_empty() && !self.activity.has_news() && self.flushes.is_empty()
    }

    /// Where a sighting waits, and with how many.
    fn line(&mut self, proof: Proof) -> (&mut VecDeque<PhoneEvent>, usize) {
        match proof {
            Proof::Certificate { .. } | Proof::Password => (&mut self.proven, PROVEN),
            Proof::Claimed { .. } => (&mut self.claimed, CLAIMED),
        }
    }
}

impl HistoryQueue {
    /// Adds a sighting; the oldest of its kind goes if there is no room.
    pub(super) fn push(&self, sighting: PhoneEvent) {
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        let (line, room) = waiting.line(sighting.proof);
        if line.len() >= room {
            line.pop_front();
            self.note_dropped(sighting.proof);
        }
        line.push_back(sighting);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// Counts what happened at `time`, in Unix seconds.
    pub(super) fn count(&self, time: i64, counts: ActivityCounts) {
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        waiting.activity.add(time, counts);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// Has all that waits written at once; what this gives is answered then. After the end there is no answer.
    pub(super) fn flush(&self) -> oneshot::Receiver<bool> {
        let (flushed, answer) = oneshot::channel();
        let mut waiting = self.lock();
        if !waiting.is_closed {
            waiting.flushes.push(flushed);
            self.changed.notify_all();
        }
        answer
    }

    /// Works on what was counted.
    pub(super) fn with_activity<T>(&self, work: impl FnOnce(&mut Activity) -> T) -> T {
        work(&mut self.lock().activity)
    }

    /// Puts back what could not be written, the newest of it as far as there is room.
    pub(super) fn give_back(&self, taken: TakenBatch) {
        let mut waiting = self.lock();
        waiting.activity.forget_written(Some(&taken.steps));
        for sighting in taken.sightings.into_iter().rev() {
            let (line, room) = waiting.line(sighting.proof);
            if line.len() < room {
                line.push_front(sighting);
            } else {
                self.note_dropped(sighting.proof);
            }
        }
    }

    /// Waits until there is something and lets more of it gather, but for no longer than `gathering`; then takes it all.
    /// `None`: there is nothing, and nothing will come.
    pub(super) fn take(&self, gathering: Duration) -> Option<TakenBatch> {
        let is_idle = |waiting: &mut Waiting| waiting.is_empty() && !waiting.is_closed;
        let waiting = self.changed.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let mut waiting = self.rest(waiting, gathering);
        if waiting.is_empty() {
            return None;
        }
        let (proven, claimed) = (std::mem::take(&mut waiting.proven), std::mem::take(&mut waiting.claimed));
        let sightings = proven.into_iter().chain(claimed).collect();
        let flushes = std::mem::take(&mut waiting.flushes);
        Some(TakenBatch { sightings, steps: waiting.activity.take_news(), flushes })
    }

    /// Lets `pause` pass, unless the end or a flush comes first. Whether it was the end.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        self.rest(self.lock(), pause).is_closed
    }

    fn rest<'a>(&self, waiting: MutexGuard<'a, Waiting>, pause: Duration) -> MutexGuard<'a, Waiting> {
        let may_wait = |waiting: &mut Waiting| !waiting.is_closed && waiting.flushes.is_empty();
        self.changed.wait_timeout_while(waiting, pause, may_wait).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Nothing more will come.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn note_dropped(&self, proof: Proof) {
        let dropped = match proof {
            Proof::Certificate { .. } | Proof::Password => &self.dropped,
            Proof::Claimed { .. } => &self.dropped_claims,
        };
        dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// How many sightings of phones went unwritten.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How many claims went unwritten: strangers can have as many as they like.
    pub(super) fn dropped_claims(&self) -> u64 {
        self.dropped_claims.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
