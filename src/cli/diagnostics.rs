//! Diagnostics: what provost says of itself, on standard error. `PROVOST_LOG` sets what is said, for example `debug`.
//! Where standard error leads into systemd's journal, they are its [entries](super::journal).
//!
//! A thread writes the lines, so that a reader that has stopped holds nobody up. What finds no place in the queue is lost,
//! and counted.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::UtcTime;

use super::journal::{self, JournalFormat};
use super::plain_fields::PlainFields;
use crate::app::ANNOUNCEMENT;
use crate::serve::access_log::LogFormat;
use crate::wording::counted_were;

/// How many lines may wait for the writer.
const QUEUE: usize = 16_384;
/// How long a reader that has stopped may put off the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Diagnostics under way. Dropped, it waits until everything is written; what is said after that is written at once.
#[derive(Debug)]
#[must_use]
pub(super) struct Diagnostics {
    lines: Lines,
    /// Nothing is ever sent: the writer hangs up.
    writer: Receiver<()>,
}

/// Where lines go. Each event is one write.
#[derive(Debug, Clone)]
struct Lines(Arc<DiagnosticsQueue>);

#[derive(Debug)]
struct DiagnosticsQueue {
    /// `None` at the end, when there is nobody left whom a slow reader could hold up.
    queue: Mutex<Option<SyncSender<Vec<u8>>>>,
    lost: AtomicU64,
    /// Where lines are entries that go there.
    journal: Option<UnixDatagram>,
}

/// Sends diagnostics to standard error from now on, until what this gives is dropped.
///
/// # Errors
/// If the system has no thread to spare.
pub(super) fn start(format: LogFormat) -> io::Result<Diagnostics> {
    let (queue, waiting) = sync_channel(QUEUE);
    let journal = journal::connect();
    let is_journal = journal.is_some();
    let lines = Lines(Arc::new(DiagnosticsQueue { queue: Mutex::new(Some(queue)), lost: AtomicU64::new(0), journal }));
    let (alive, writer) = channel();
    let shared = Arc::clone(&lines.0);
    std::thread::Builder::new().name("diagnostics".to_owned()).spawn(move || write_all(&waiting, &shared, &alive))?;

    let make = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(move || make.clone())
        .with_timer(UtcTime::rfc_3339())
        .with_target(false);
    // Somebody has started them before only in tests.
    let _ = match format {
        _ if is_journal => subscriber.event_format(JournalFormat).try_init(),
        LogFormat::Text => subscriber.with_ansi(io::stderr().is_terminal()).fmt_fields(PlainFields).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    Ok(Diagnostics { lines, writer })
}

/// What `PROVOST_LOG` asks for, and what is announced whatever it asks for.
fn filter() -> EnvFilter {
    let asked = std::env::var("PROVOST_LOG").unwrap_or_default();
    let with_announcements = |asked: &str| EnvFilter::try_new(format!("{asked},{ANNOUNCEMENT}=info"));
    let usual = || EnvFilter::new("info");
    if asked.is_empty() { usual() } else { with_announcements(&asked).unwrap_or_else(|_| usual()) }
}

/// Writes lines until nobody can say anything more.
fn write_all(waiting: &Receiver<Vec<u8>>, shared: &DiagnosticsQueue, _alive: &Sender<()>) {
    loop {
        let next = waiting.try_recv().ok().or_else(|| {
            // There is room now to say it.
            let lost = shared.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                tracing::warn!(
                    "{} lost: standard error was not read fast enough",
                    counted_were(lost, "line of diagnostics")
                );
            }
            waiting.recv().ok()
        });
        let Some(line) = next else { return };
        shared.write(&line);
    }
}

impl DiagnosticsQueue {
    fn write(&self, line: &[u8]) {
        match &self.journal {
            Some(journal) => journal::send(journal, line),
            // Whoever has closed standard error does not want to know.
            None => drop(io::stderr().write_all(line)),
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match queue {
            Some(queue) if queue.try_send(line.to_vec()).is_err() => {
                self.0.lost.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) => {}
            None => self.0.write(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        drop(self.lines.0.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        // The writer hangs up when it has written everything.
        let _ = self.writer.recv_timeout(PATIENCE);
    }
}
