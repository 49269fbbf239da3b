//! Watches the server-wide denials and the operators, so that a change is in force within a second.
//!
//! It has its own thread: a lost phone and a removed operator are refused even while the disk of the constituencies,
//! certificates or trust bundles hangs. Both files are in the state directory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::audit::FileChanges;
use super::reload_log;
use crate::admin::operators::OperatorsWatcher;
use crate::background::{Heartbeat, HeartbeatMonitor};
use crate::clock;
use crate::constituency::denials::DenialsFile;

/// How often the files are checked for changes.
const PERIOD: Duration = Duration::from_millis(250);

/// The thread that watches both files. It ends when this handle and its clones are dropped.
#[derive(Debug, Clone)]
pub(super) struct DenialsThread {
    requests: Sender<Sender<()>>,
    heartbeat: HeartbeatMonitor,
}

impl DenialsThread {
    pub(super) fn start(
        mut file: DenialsFile,
        mut operators: Option<OperatorsWatcher>,
        audit: FileChanges,
    ) -> std::io::Result<Self> {
        let (requests, received) = channel::<Sender<()>>();
        let (heartbeat, monitor) = Heartbeat::start();
        std::thread::Builder::new().name("denials".to_owned()).spawn(move || {
            let (mut last_error, mut last_operators_error) = (None, None);
            loop {
                heartbeat.beat();
                let done = match received.recv_timeout(PERIOD) {
                    Ok(done) => Some(done),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let followed = catch_unwind(AssertUnwindSafe(|| {
                    let changes = file.refresh(clock::now());
                    reload_log::log_denials(&changes);
                    audit.observe_denials(&changes);
                    reload_log::log_denials_error(&mut last_error, file.error());
                }));
                if followed.is_err() {
                    tracing::error!(
                        "reloading the server-wide denials failed with an internal error (a panic); please report it"
                    );
                }
                drop(done);
                let followed = catch_unwind(AssertUnwindSafe(|| {
                    let Some(watcher) = &mut operators else { return };
                    let changes = watcher.refresh(clock::now());
                    reload_log::log_operators(&changes);
                    reload_log::log_operators_error(&mut last_operators_error, watcher.operators().error());
                }));
                if followed.is_err() {
                    tracing::error!(
                        "reloading the operators failed with an internal error (a panic); please report it"
                    );
                }
            }
        })?;
        Ok(Self { requests, heartbeat: monitor })
    }

    /// Checks the denials at once, and drops `done` afterwards.
    pub(super) fn refresh(&self, done: Sender<()>) {
        // If the thread has ended, this drops `done`.
        let _ = self.requests.send(done);
    }

    pub(super) fn heartbeat(&self) -> HeartbeatMonitor {
        self.heartbeat.clone()
    }
}
