//! The queue of events to write. It is bounded, and adding never blocks: if it is full, the oldest event is dropped.
//!
//! Claims have a limit of their own, so that a flood of them does not displace authenticated events.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::activity::{Activity, ActivityCounts};
use super::phone_event::{PhoneEvent, Proof};
use super::upkeep::Policies;

/// The maximum of queued events of authenticated phones.
pub(super) const MAX_PROVEN: usize = 16_384;
/// The maximum of queued claims.
pub(super) const MAX_CLAIMED: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct HistoryQueue {
    waiting: Mutex<QueueState>,
    changed: Condvar,
    dropped: AtomicU64,
    dropped_claims: AtomicU64,
}

#[derive(Debug, Default)]
struct QueueState {
    proven: VecDeque<PhoneEvent>,
    claimed: VecDeque<PhoneEvent>,
    activity: Activity,
    flushes: Vec<Flush>,
    /// New policies, which the writer does not know yet.
    policies: Option<Policies>,
    is_closed: bool,
}

/// Gets whether everything queued before it was written.
pub(super) type Flush = oneshot::Sender<bool>;

/// The contents of the queue, taken to be written.
#[derive(Debug, Default)]
pub(super) struct TakenBatch {
    pub(super) events: Vec<PhoneEvent>,
    /// Steps of the activity, with their full counts.
    pub(super) steps: Vec<(i64, ActivityCounts)>,
    pub(super) flushes: Vec<Flush>,
    pub(super) policies: Option<Policies>,
}

impl QueueState {
    fn is_empty(&self) -> bool {
        self.proven.is_empty()
            && self.claimed.is_empty()
            && !self.activity.has_unwritten()
            && self.flushes.is_empty()
            && self.policies.is_none()
    }

    /// The queue for events with `proof`, and its limit.
    fn queue(&mut self, proof: Proof) -> (&mut VecDeque<PhoneEvent>, usize) {
        match proof {
            Proof::Certificate { .. } | Proof::Password => (&mut self.proven, MAX_PROVEN),
            Proof::Claimed { .. } => (&mut self.claimed, MAX_CLAIMED),
        }
    }
}

impl HistoryQueue {
    /// Adds an event. Drops the oldest of its kind if the queue is full.
    pub(super) fn push(&self, event: PhoneEvent) {
        let mut waiting = self.waiting.lock();
        let was_empty = waiting.is_empty();
        let (queue, room) = waiting.queue(event.proof);
        if queue.len() >= room {
            queue.pop_front();
            self.count_dropped(event.proof);
        }
        queue.push_back(event);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// Adds `counts` at `time`, in Unix seconds.
    pub(super) fn add_activity(&self, time: i64, counts: ActivityCounts) {
        let mut waiting = self.waiting.lock();
        let was_empty = waiting.is_empty();
        waiting.activity.add(time, counts);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// Requests a write of everything that is queued. The receiver gets the result, or an error after the end of the
    /// writer.
    pub(super) fn flush(&self) -> oneshot::Receiver<bool> {
        let (flushed, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if !waiting.is_closed {
            waiting.flushes.push(flushed);
            self.changed.notify_all();
        }
        answer
    }

    /// Replaces the policies that decide the states of phones.
    pub(super) fn set_policies(&self, policies: Policies) {
        self.waiting.lock().policies = Some(policies);
        self.changed.notify_all();
    }

    /// Runs `work` on the activity.
    pub(super) fn with_activity<T>(&self, work: impl FnOnce(&mut Activity) -> T) -> T {
        work(&mut self.waiting.lock().activity)
    }

    /// Puts back events after a failed write. If there is not enough room, the oldest are dropped.
    pub(super) fn requeue(&self, taken: TakenBatch) {
        let mut waiting = self.waiting.lock();
        waiting.activity.mark_unwritten(Some(&taken.steps));
        waiting.policies = waiting.policies.take().or(taken.policies);
        for event in taken.events.into_iter().rev() {
            let (queue, room) = waiting.queue(event.proof);
            if queue.len() < room {
                queue.push_front(event);
            } else {
                self.count_dropped(event.proof);
            }
        }
    }

    /// Waits for something to write, at most `timeout`. Returns whether [`HistoryQueue::take`] will return at once or
    /// after gathering.
    pub(super) fn wait_for_any(&self, timeout: Duration) -> bool {
        let mut waiting = self.waiting.lock();
        self.changed.wait_while_for(&mut waiting, |waiting| waiting.is_empty() && !waiting.is_closed, timeout);
        !waiting.is_empty() || waiting.is_closed
    }

    /// Waits for the first event, then up to `gathering` for more, and takes everything. `None` if the queue is empty
    /// and closed.
    pub(super) fn take(&self, gathering: Duration) -> Option<TakenBatch> {
        let mut waiting = self.waiting.lock();
        self.changed.wait_while(&mut waiting, |waiting| waiting.is_empty() && !waiting.is_closed);
        self.wait(&mut waiting, gathering);
        if waiting.is_empty() {
            return None;
        }
        let (proven, claimed) = (std::mem::take(&mut waiting.proven), std::mem::take(&mut waiting.claimed));
        let events = proven.into_iter().chain(claimed).collect();
        let flushes = std::mem::take(&mut waiting.flushes);
        let policies = waiting.policies.take();
        Some(TakenBatch { events, steps: waiting.activity.take_unwritten(), flushes, policies })
    }

    /// Waits for `pause`, or until the queue is closed or flushed. Returns whether it is closed.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let mut waiting = self.waiting.lock();
        self.wait(&mut waiting, pause);
        waiting.is_closed
    }

    fn wait(&self, waiting: &mut MutexGuard<'_, QueueState>, pause: Duration) {
        let is_patient =
            |waiting: &mut QueueState| !waiting.is_closed && waiting.flushes.is_empty() && waiting.policies.is_none();
        self.changed.wait_while_for(waiting, is_patient, pause);
    }

    /// Closes the queue: no more events will come.
    pub(super) fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn count_dropped(&self, proof: Proof) {
        let dropped = match proof {
            Proof::Certificate { .. } | Proof::Password => &self.dropped,
            Proof::Claimed { .. } => &self.dropped_claims,
        };
        dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// How many events of authenticated phones were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How many claims were dropped. Any client can make any number of claims.
    pub(super) fn dropped_claims(&self) -> u64 {
        self.dropped_claims.load(Ordering::Relaxed)
    }
}
