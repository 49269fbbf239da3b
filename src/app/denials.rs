//! Watches the server-wide denials, so that a new one is in force within a second.
//!
//! It has its own thread: a lost phone is refused even while the disk of the constituencies, certificates or trust
//! bundles hangs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::reload_log;
use crate::clock;
use crate::constituency::denials::DenialsFile;

/// How often the file is checked for changes.
const PERIOD: Duration = Duration::from_millis(250);

/// The thread that watches the denials. It ends when this handle and its clones are dropped.
#[derive(Debug, Clone)]
pub(super) struct DenialsThread(Sender<Sender<()>>);

impl DenialsThread {
    pub(super) fn start(mut file: DenialsFile) -> std::io::Result<Self> {
        let (requests, received) = channel::<Sender<()>>();
        std::thread::Builder::new().name("denials".to_owned()).spawn(move || {
            let mut last_error = None;
            loop {
                let done = match received.recv_timeout(PERIOD) {
                    Ok(done) => Some(done),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let followed = catch_unwind(AssertUnwindSafe(|| {
                    let changes = file.refresh(clock::now());
                    reload_log::log_denials(&changes);
                    reload_log::log_denials_error(&mut last_error, file.error());
                }));
                if followed.is_err() {
                    tracing::error!(
                        "reloading the server-wide denials failed with an internal error (a panic); please report it"
                    );
                }
                // The receiver may be gone.
                let _ = done.map(|done| done.send(()));
            }
        })?;
        Ok(Self(requests))
    }

    /// Checks the file at once, and drops `done` afterwards.
    pub(super) fn refresh(&self, done: Sender<()>) {
        // If the thread has ended, this drops `done`.
        let _ = self.0.send(done);
    }

    /// Asks the thread to answer in its next iteration. `None` if the thread has ended.
    pub(super) fn probe(&self) -> Option<Receiver<()>> {
        let (answer, answered) = channel();
        self.0.send(answer).ok().map(|()| answered)
    }
}
