//! Turns records into written lines: one thread formats them, another writes them.

use std::io::Write;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::{LogFormat, Observer, QueuedEntry};
use crate::background::{LineBatch, LineQueue};
use crate::wording::counted_were;

/// How long the formatter batches records: waking it for each one would cost more than serving a small file.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
/// About how many bytes are written at once.
const WRITE_SIZE: usize = 64 << 10;

/// Formats records and passes them to the observer. Never waits for a reader of the log.
pub(super) fn collect(entries: &Receiver<QueuedEntry>, format: LogFormat, observer: &dyn Observer, lines: &LineQueue) {
    let mut was_dropping = false;
    while let Ok(first) = entries.recv() {
        std::thread::sleep(FLUSH_INTERVAL);
        let (mut text, mut count) = (String::new(), 0);
        let submit = |text: &mut String, count: &mut u64| {
            lines.submit(LineBatch { text: std::mem::take(text).into_bytes(), count: std::mem::take(count) });
        };
        for entry in std::iter::once(first).chain(entries.try_iter()) {
            let record = match entry {
                QueuedEntry::Record(record) => record,
                QueuedEntry::Flush(flushed) => {
                    // Ignore errors: the caller may be gone.
                    let _ = flushed.send(());
                    continue;
                }
            };
            format.line(&record, &mut text);
            count += 1;
            observer.saw(record);
            if text.len() >= WRITE_SIZE {
                submit(&mut text, &mut count);
            }
        }
        submit(&mut text, &mut count);
        // Here and not where a record is dropped: the request path writes no diagnostics.
        if !std::mem::replace(&mut was_dropping, lines.is_dropping()) && was_dropping {
            tracing::warn!("access-log lines are being lost: standard output is not read fast enough");
        }
    }
}

/// Writes batches to `output`. A failure is reported once, not for each batch.
pub(super) fn write_to(mut output: impl Write + Send) -> impl FnMut(&[u8]) + Send {
    let mut is_broken = false;
    move |text| match output.write_all(text).and_then(|()| output.flush()) {
        Ok(()) => is_broken = false,
        Err(error) if !std::mem::replace(&mut is_broken, true) => {
            tracing::error!("the access log cannot be written: {error}");
        }
        Err(_) => {}
    }
}

pub(super) fn report_dropped(count: u64) {
    tracing::warn!("{} lost", counted_were(count, "access-log line"));
}
