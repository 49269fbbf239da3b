//! From records to lines on the disk or the screen: one thread makes lines, another writes them.

use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use super::{LogFormat, Observer, QueuedEntry};

use crate::wording::counted_were;

/// How long the writer lets records gather: waking it for each one would cost more than serving a small file.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
/// About how many bytes of lines are written at once.
pub(super) const WRITE: usize = 64 << 10;
/// About how many bytes of lines may wait to be written.
pub(super) const WAITING: usize = 4 << 20;

/// The thread that writes; waited for to be sure that everything is written. Nothing is ever sent: it hangs up.
#[derive(Debug)]
pub struct Writer(pub(super) Receiver<()>);

/// What the log's threads tell one another.
#[derive(Debug, Default)]
pub(super) struct DroppedLines {
    /// Lines that were lost since that was last said.
    pub(super) lost: AtomicU64,
    /// Lines that were lost since the start.
    pub(super) lost_in_all: AtomicU64,
    /// Bytes of lines that wait to be written.
    waiting: AtomicUsize,
}

/// Lines that are written at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) lines: String,
    pub(super) count: u64,
}

impl Writer {
    /// Waits until everything is written; every [`AccessLog`](super::AccessLog) must have been dropped. Whoever does
    /// not read the log cannot put this off for longer than `patience`.
    pub fn finish(self, patience: Duration) {
        if self.0.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the last access-log lines are lost: nobody reads standard output");
        }
    }
}

impl DroppedLines {
    pub(super) fn record_dropped(&self, count: u64) {
        self.lost_in_all.fetch_add(count, Ordering::Relaxed);
        if self.lost.fetch_add(count, Ordering::Relaxed) == 0 {
            say_that_lines_are_lost();
        }
    }

    /// Gives a page to the thread that writes, unless too much waits for it already.
    pub(super) fn submit(&self, page: Batch, pages: &Sender<Batch>) {
        if self.waiting.load(Ordering::Relaxed) >= WAITING {
            self.record_dropped(page.count);
        } else {
            self.waiting.fetch_add(page.lines.len(), Ordering::Relaxed);
            // It does not end before there are no more pages.
            let _ = pages.send(page);
        }
    }
}

/// On a thread of its own: whoever does not read the log may not read diagnostics either, and requests wait for neither.
fn say_that_lines_are_lost() {
    let say = || tracing::warn!("access-log lines are being lost: standard output is not read fast enough");
    // Without a thread to spare, the count at the end must do.
    let _ = std::thread::Builder::new().name("access-log-loss".to_owned()).spawn(say);
}

/// Makes lines of records, and hands the records on. Never waits for anybody who reads.
pub(super) fn collect(
    entries: &Receiver<QueuedEntry>,
    format: LogFormat,
    observer: &dyn Observer,
    tally: &DroppedLines,
    pages: &Sender<Batch>,
) {
    while let Ok(first) = entries.recv() {
        std::thread::sleep(FLUSH_INTERVAL);
        let mut page = Batch::default();
        for entry in std::iter::once(first).chain(entries.try_iter()) {
            let record = match entry {
                QueuedEntry::Record(record) => record,
                QueuedEntry::Flush(flushed) => {
                    // The one that asked may have gone.
                    let _ = flushed.send(());
                    continue;
                }
            };
            format.line(&record, &mut page.lines);
            page.count += 1;
            observer.saw(record);
            if page.lines.len() >= WRITE {
                tally.submit(std::mem::take(&mut page), pages);
            }
        }
        tally.submit(page, pages);
    }
}

pub(super) fn write_all(pages: &Receiver<Batch>, mut output: impl Write, tally: &DroppedLines, _alive: Sender<()>) {
    let mut is_broken = false;
    for page in pages {
        match output.write_all(page.lines.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => is_broken = false,
            // Once, not for each line.
            Err(error) if !std::mem::replace(&mut is_broken, true) => {
                tracing::error!("the access log cannot be written: {error}");
            }
            Err(_) => {}
        }
        tally.waiting.fetch_sub(page.lines.len(), Ordering::Relaxed);
        match tally.lost.swap(0, Ordering::Relaxed) {
            0 => {}
            count => tracing::warn!("{} lost", counted_were(count, "access-log line")),
        }
    }
}
