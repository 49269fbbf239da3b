//! The queue for cryptography: as many steps of handshakes run at once as there are CPUs, the oldest handshake first.
//!
//! A handshake consists of steps. A step processes the data that the client has sent, until the client has to send
//! more. Each step needs a slot, and a handshake that waits for its client holds none. So a rush of clients does not
//! slow down all handshakes together until all of them time out: the first to arrive finish first, and requests on open
//! connections wait behind a few steps, not behind all. The time that a handshake waits for a slot does not count for
//! its timeout.

mod stream;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::timeouts::TimeoutControl;

pub use stream::TurnStream;

/// Slots, and the handshakes that wait for one.
#[derive(Debug)]
pub struct CryptoQueue(Mutex<SlotQueue>);

#[derive(Debug)]
struct SlotQueue {
    free: usize,
    /// How many handshakes ever entered the queue.
    handshakes: u64,
    /// By the number of the handshake, the oldest first.
    waiting: BTreeMap<u64, oneshot::Sender<Slot>>,
}

/// The right to run a step; passed to the next handshake when it is dropped.
#[derive(Debug)]
struct Slot(Option<Arc<CryptoQueue>>);

/// The position of one handshake in the queue.
#[derive(Debug, Clone)]
pub struct HandshakeTurn(Arc<QueuedHandshake>);

#[derive(Debug)]
struct QueuedHandshake {
    queue: Arc<CryptoQueue>,
    number: u64,
    /// Extended by the time that the handshake waits for slots.
    timeouts: TimeoutControl,
    step: Mutex<HandshakeStep>,
}

#[derive(Debug)]
enum HandshakeStep {
    /// The client has to send something.
    None,
    Queued(oneshot::Receiver<Slot>, Instant),
    Running {
        _slot: Slot,
    },
    /// The handshake is over.
    Finished,
}

impl CryptoQueue {
    /// A queue that runs `slots` steps at once, at least one.
    #[must_use]
    pub fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(SlotQueue { free: slots.max(1), handshakes: 0, waiting: BTreeMap::new() })))
    }

    /// Takes a number for a handshake whose ClientHello is complete.
    #[must_use]
    pub fn enter(self: &Arc<Self>, timeouts: TimeoutControl) -> HandshakeTurn {
        let mut queue = self.lock();
        queue.handshakes += 1;
        let (queue, number) = (Arc::clone(self), queue.handshakes);
        HandshakeTurn(Arc::new(QueuedHandshake { queue, number, timeouts, step: Mutex::new(HandshakeStep::None) }))
    }

    /// A slot, or a receiver that gets one later.
    fn request(self: &Arc<Self>, number: u64) -> Result<Slot, oneshot::Receiver<Slot>> {
        let mut queue = self.lock();
        if queue.free > 0 {
            queue.free -= 1;
            return Ok(Slot(Some(Arc::clone(self))));
        }
        let (sender, slot) = oneshot::channel();
        queue.waiting.insert(number, sender);
        Err(slot)
    }

    /// Gives a slot to the oldest handshake that waits for one.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let mut queue = self.lock();
            let Some((_, next)) = queue.waiting.pop_first() else {
                queue.free += 1;
                return;
            };
            drop(queue);
            match next.send(Slot(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // That handshake has ended: the next one gets the slot.
                Err(mut slot) => slot.0 = None,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, SlotQueue> {
        self.0.lock()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.pass_on();
        }
    }
}

impl HandshakeTurn {
    /// Waits for the slot of the first step. The caller must run the step without another wait.
    pub async fn begin(&self) {
        poll_fn(|cx| self.poll_begin(cx)).await;
    }

    /// Runs `handshake` step by step. The first step uses the slot of [`begin`](Self::begin). The handshake's stream
    /// must be a [`TurnStream`] of this turn, which waits for the slots of the later steps.
    pub async fn run<F: Future>(self, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        let output = poll_fn(|cx| self.poll_step(handshake.as_mut(), cx)).await;
        *self.step() = HandshakeStep::Finished;
        output
    }

    fn poll_step<F: Future>(&self, handshake: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = handshake.poll(cx);
        let mut step = self.step();
        if let HandshakeStep::Running { .. } = *step {
            *step = HandshakeStep::None;
        }
        polled
    }

    /// Waits for a slot, which is held until the end of the handshake's poll.
    fn poll_begin(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut step = self.step();
        if let HandshakeStep::None = *step {
            *step = match self.0.queue.request(self.0.number) {
                Ok(slot) => HandshakeStep::Running { _slot: slot },
                Err(slot) => HandshakeStep::Queued(slot, Instant::now()),
            };
        }
        if let HandshakeStep::Queued(slot, since) = &mut *step {
            // This cannot fail: the queue drops a sender only after it has sent a slot.
            let Ok(slot) = ready!(Pin::new(slot).poll(cx)) else { return Poll::Pending };
            self.0.timeouts.extend_handshake(since.elapsed());
            *step = HandshakeStep::Running { _slot: slot };
        }
        Poll::Ready(())
    }

    fn is_finished(&self) -> bool {
        matches!(*self.step(), HandshakeStep::Finished)
    }

    fn step(&self) -> MutexGuard<'_, HandshakeStep> {
        self.0.step.lock()
    }
}

#[cfg(test)]
mod tests;
