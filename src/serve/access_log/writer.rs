//! Turns records into written lines: one thread formats them, another writes them.

use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use super::{LogFormat, Observer, QueuedEntry};

use crate::wording::counted_were;

/// How long the formatter batches records: waking it for each one would cost more than serving a small file.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
/// About how many bytes are written at once.
pub(super) const WRITE_SIZE: usize = 64 << 10;
/// About how many bytes may wait to be written.
pub(super) const MAX_QUEUED: usize = 4 << 20;

/// Waits for the writer thread. The thread sends nothing; the channel closes when it has written everything.
#[derive(Debug)]
pub struct Writer(pub(super) Receiver<()>);

/// The counters that the log's threads share.
#[derive(Debug, Default)]
pub(super) struct DroppedLines {
    /// Lines dropped since the last report.
    pub(super) lost: AtomicU64,
    /// Lines dropped since the start.
    pub(super) total_lost: AtomicU64,
    /// Bytes that wait to be written.
    waiting: AtomicUsize,
}

/// Lines to be written at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) lines: String,
    pub(super) count: u64,
}

impl Writer {
    /// Waits until everything is written, at most `timeout`. Every [`AccessLog`](super::AccessLog) must have been
    /// dropped. The timeout covers a standard output that is not read.
    pub fn finish(self, timeout: Duration) {
        if self.0.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the last access-log lines are lost: the reader of standard output has stopped reading");
        }
    }
}

impl DroppedLines {
    pub(super) fn record_dropped(&self, count: u64) {
        self.total_lost.fetch_add(count, Ordering::Relaxed);
        if self.lost.fetch_add(count, Ordering::Relaxed) == 0 {
            warn_of_dropped_lines();
        }
    }

    /// Submits a batch to the writer thread, or drops it if too many bytes wait.
    pub(super) fn submit(&self, batch: Batch, batches: &Sender<Batch>) {
        if self.waiting.load(Ordering::Relaxed) >= MAX_QUEUED {
            self.record_dropped(batch.count);
        } else {
            self.waiting.fetch_add(batch.lines.len(), Ordering::Relaxed);
            // Cannot fail: the writer thread ends only after the last batch.
            let _ = batches.send(batch);
        }
    }
}

/// Warns on a separate thread: a blocked reader of the log may block diagnostics too, and requests must wait for
/// neither.
fn warn_of_dropped_lines() {
    let warn = || tracing::warn!("access-log lines are being lost: standard output is not read fast enough");
    // If no thread can start, the later count of dropped lines must suffice.
    let _ = std::thread::Builder::new().name("access-log-loss".to_owned()).spawn(warn);
}

/// Formats records and passes them to the observer. Never waits for a reader of the log.
pub(super) fn collect(
    entries: &Receiver<QueuedEntry>,
    format: LogFormat,
    observer: &dyn Observer,
    dropped: &DroppedLines,
    batches: &Sender<Batch>,
) {
    while let Ok(first) = entries.recv() {
        std::thread::sleep(FLUSH_INTERVAL);
        let mut batch = Batch::default();
        for entry in std::iter::once(first).chain(entries.try_iter()) {
            let record = match entry {
                QueuedEntry::Record(record) => record,
                QueuedEntry::Flush(flushed) => {
                    // Ignore errors: the caller may be gone.
                    let _ = flushed.send(());
                    continue;
                }
            };
            format.line(&record, &mut batch.lines);
            batch.count += 1;
            observer.saw(record);
            if batch.lines.len() >= WRITE_SIZE {
                dropped.submit(std::mem::take(&mut batch), batches);
            }
        }
        dropped.submit(batch, batches);
    }
}

pub(super) fn write_all(batches: &Receiver<Batch>, mut output: impl Write, dropped: &DroppedLines, _alive: Sender<()>) {
    let mut is_broken = false;
    for batch in batches {
        match output.write_all(batch.lines.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => is_broken = false,
            // Report once, not for each line.
            Err(error) if !std::mem::replace(&mut is_broken, true) => {
                tracing::error!("the access log cannot be written: {error}");
            }
            Err(_) => {}
        }
        dropped.waiting.fetch_sub(batch.lines.len(), Ordering::Relaxed);
        match dropped.lost.swap(0, Ordering::Relaxed) {
            0 => {}
            count => tracing::warn!("{} lost", counted_were(count, "access-log line")),
        }
    }
}
