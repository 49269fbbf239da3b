//! Threads in the background: shutdown waits for them, the watchdog sees whether they run, and one writes lines without
//! blocking those who log.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock;

/// A thread whose end can be waited for.
#[derive(Debug)]
pub struct BackgroundThread(Receiver<()>);

impl BackgroundThread {
    /// Starts a thread that does `work`.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        // Nothing is sent: the channel closes when the thread ends, by a panic too.
        let (alive, ended) = channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _alive: Sender<()> = alive;
            work();
        })?;
        Ok(Self(ended))
    }

    /// Waits until the thread has ended, at most `timeout`. Returns whether it has.
    #[must_use]
    pub fn wait(self, timeout: Duration) -> bool {
        self.0.recv_timeout(timeout) != Err(RecvTimeoutError::Timeout)
    }
}

/// The sign of life of a thread, which it gives in each iteration.
#[derive(Debug)]
pub struct Heartbeat(Arc<Mutex<Instant>>);

/// Reads the [`Heartbeat`] of a thread.
#[derive(Debug, Clone)]
pub struct HeartbeatMonitor(Weak<Mutex<Instant>>);

impl Heartbeat {
    /// A heartbeat that beats now. The thread must own it, so that it is dropped when the thread ends.
    #[must_use]
    pub fn start() -> (Self, HeartbeatMonitor) {
        let last = Arc::new(Mutex::new(clock::monotonic()));
        let monitor = HeartbeatMonitor(Arc::downgrade(&last));
        (Self(last), monitor)
    }

    pub fn beat(&self) {
        *self.0.lock() = clock::monotonic();
    }
}

impl HeartbeatMonitor {
    /// When the thread last gave a sign of life. `None` if it has ended.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.0.upgrade().map(|last| *last.lock())
    }
}

/// A queue of lines that a thread writes, so that a slow reader blocks no other thread. When it is full, lines are
/// dropped and counted.
#[derive(Debug, Clone)]
pub struct LineQueue {
    /// `None` ends the thread.
    batches: Sender<Option<LineBatch>>,
    /// About how many bytes may wait to be written.
    limit: usize,
    counts: Arc<LineCounts>,
}

/// Lines that are written at once.
#[derive(Debug, Default)]
pub struct LineBatch {
    pub text: Vec<u8>,
    /// The number of lines.
    pub count: u64,
}

#[derive(Debug, Default)]
struct LineCounts {
    /// Bytes that wait to be written.
    waiting: AtomicUsize,
    /// Lines dropped since the last report.
    unreported: AtomicU64,
    /// Lines dropped since the start.
    dropped: AtomicU64,
}

impl LineQueue {
    /// Starts the thread that writes each batch by `write`, of which about `limit` bytes may wait. It calls `report` with
    /// the count of dropped lines as soon as it has caught up. It ends after [`LineQueue::close`], or when the queue and
    /// its clones are dropped.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(
        name: &str,
        limit: usize,
        mut write: impl FnMut(&[u8]) + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<(Self, BackgroundThread)> {
        let (batches, received) = channel::<Option<LineBatch>>();
        let counts = Arc::new(LineCounts::default());
        let shared = Arc::clone(&counts);
        let mut is_closed = false;
        let thread = BackgroundThread::start(name, move || {
            loop {
                let next = match received.try_recv() {
                    Ok(next) => next,
                    // Nothing waits now, so what `report` logs finds room, if it comes to this queue.
                    Err(_) => match shared.unreported.swap(0, Ordering::Relaxed) {
                        0 if is_closed => return,
                        0 => match received.recv() {
                            Ok(next) => next,
                            Err(_) => return,
                        },
                        count => {
                            report(count);
                            continue;
                        }
                    },
                };
                match next {
                    Some(batch) => {
                        write(&batch.text);
                        shared.waiting.fetch_sub(batch.text.len(), Ordering::Relaxed);
                    }
                    None => is_closed = true,
                }
            }
        })?;
        Ok((Self { batches, limit, counts }, thread))
    }

    /// Queues a batch, or drops it if too much waits. Never blocks.
    pub fn submit(&self, batch: LineBatch) {
        if self.counts.waiting.load(Ordering::Relaxed) >= self.limit {
            return self.count_dropped(batch.count);
        }
        self.counts.waiting.fetch_add(batch.text.len(), Ordering::Relaxed);
        // Fails only after `close`.
        let _ = self.batches.send(Some(batch));
    }

    /// Counts lines that were dropped before they came here.
    pub fn count_dropped(&self, count: u64) {
        self.counts.unreported.fetch_add(count, Ordering::Relaxed);
        self.counts.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// How many lines were dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// Whether lines were dropped since the last report.
    #[must_use]
    pub fn is_dropping(&self) -> bool {
        self.counts.unreported.load(Ordering::Relaxed) > 0
    }

    /// Ends the thread after what is queued now. Later lines are discarded.
    pub fn close(&self) {
        let _ = self.batches.send(None);
    }
}

/// Each write is a line.
impl Write for LineQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.submit(LineBatch { text: line.to_vec(), count: 1 });
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undelivered_lines_are_bounded_counted_and_reported() {
        let ((reader, unread), (reports, reported)) = (channel::<()>(), channel());
        let write = move |_: &[u8]| {
            // Blocks until the channel closes, as a reader that does not read.
            let _ = unread.recv();
        };
        let (queue, thread) =
            LineQueue::start("test", 1 << 20, write, move |count| reports.send(count).unwrap()).unwrap();
        let size = 64 << 10;
        (0..1000).for_each(|_| queue.submit(LineBatch { text: vec![b'x'; size], count: 7 }));
        let taken = (1 << 20) / size as u64;
        assert_eq!(queue.dropped(), 7 * (1000 - taken));
        assert!(queue.is_dropping());
        drop(reader);
        assert_eq!(reported.recv().unwrap(), queue.dropped());
        queue.close();
        assert!(thread.wait(Duration::from_mins(1)));
        assert_eq!((reported.iter().next(), queue.is_dropping()), (None, false));
    }

    #[test]
    fn background_thread_is_waited_for_until_the_timeout() {
        let (release, released) = channel::<()>();
        let thread = BackgroundThread::start("test", move || assert!(released.recv().is_err())).unwrap();
        assert!(!thread.wait(Duration::ZERO));
        let panicking = BackgroundThread::start("test", || panic!("as a defect does")).unwrap();
        assert!(panicking.wait(Duration::from_mins(1)));
        drop(release);
    }
}
