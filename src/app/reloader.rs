//! Reloads files at runtime: certificates, trust bundles and passwords when they change, checked twice a second, and
//! everything at SIGHUP.
//!
//! It has its own thread, so that the server handles signals even while a disk hangs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::certificate_source::ActiveCertificateSource;
use super::publisher::Publisher;
use super::reload_log;
use super::state_faults::StateFaults;
use crate::admin::operators::Operators;
use crate::background::{Heartbeat, HeartbeatMonitor};
use crate::certificate::LiveCertificates;
use crate::config::Config;
use crate::constituency::watch::WatcherHandle;

/// How often certificates, trust bundles and passwords are checked. A change is in force within a second.
const PERIOD: Duration = Duration::from_millis(500);

/// The handle of the thread. When it and its clones are dropped, the thread finishes its current read and ends.
#[derive(Debug, Clone)]
pub(super) struct Reloader {
    /// Requests to reload everything. The sender in it is dropped at the end.
    requests: Sender<oneshot::Sender<()>>,
    heartbeat: HeartbeatMonitor,
}

/// The thread's data.
pub(super) struct ReloaderThread {
    pub(super) source: ActiveCertificateSource,
    pub(super) certificates: Arc<LiveCertificates>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) state_faults: Arc<StateFaults>,
    /// The configuration at the start.
    pub(super) config: Config,
    pub(super) watcher: WatcherHandle,
    pub(super) operators: Option<Arc<Operators>>,
}

impl Reloader {
    pub(super) fn start(mut thread: ReloaderThread) -> std::io::Result<Self> {
        let (requests, received) = channel();
        let (heartbeat, monitor) = Heartbeat::start();
        std::thread::Builder::new().name("reloader".to_owned()).spawn(move || {
            loop {
                heartbeat.beat();
                let reload = match received.recv_timeout(PERIOD) {
                    Ok(done) => Some(done),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                // A panic drops the sender, so that the caller of the reload does not wait forever.
                if catch_unwind(AssertUnwindSafe(|| thread.do_once(reload))).is_err() {
                    tracing::error!("reloading certificates or configuration failed with an internal error (a panic); please report it");
                }
            }
        })?;
        Ok(Self { requests, heartbeat: monitor })
    }

    /// Starts a reload of everything. The receiver completes when it ends.
    pub(super) fn reload(&self) -> oneshot::Receiver<()> {
        let (doing, done) = oneshot::channel();
        // The thread lives as long as this handle.
        let _ = self.requests.send(doing);
        done
    }

    pub(super) fn heartbeat(&self) -> HeartbeatMonitor {
        self.heartbeat.clone()
    }
}

impl ReloaderThread {
    /// Reads changed files, or everything if `reload` is given. Drops `reload` at the end.
    fn do_once(&mut self, reload: Option<oneshot::Sender<()>>) {
        self.source.refresh(&self.certificates);
        self.publisher.reload_passwords();
        self.state_faults.update(&self.config);
        let Some(reload) = reload else { return self.publisher.reload_bundles() };
        let read = self.publisher.reload(&self.config);
        self.read_token_file();
        // After the bundles: a policy may name a new bundle.
        self.watcher.rescan_with(self.publisher.bundle_names(), move || {
            reload_log::log_reloaded(&read);
            drop(reload);
        });
    }

    fn read_token_file(&self) {
        match self.operators.as_ref().map(|operators| operators.reload_token_file()) {
            Some(Ok(true)) => {
                tracing::info!("the token of the status page changed; sessions with the old token have ended");
            }
            Some(Err(error)) => {
                tracing::error!("\"token_file\" in \"status\": {error}; the last valid token stays in force");
            }
            Some(Ok(false)) | None => {}
        }
    }
}
