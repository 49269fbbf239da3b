//! What is read while the server runs: certificates every second, and everything at SIGHUP.
//!
//! It is done on a thread of its own, because files may lie on disks that do not answer: signals are heard all the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::sync::watch;

use super::Source;
use super::publisher::Publisher;
use crate::certificate::{ExactNames, LiveCertificates};
use crate::config::Config;
use crate::constituency::watch::Waker;

/// How often certificates are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// The thread that reads; dropped, it ends when it has read what it is reading.
#[derive(Debug)]
pub(super) struct Upkeep(Sender<()>);

/// What the thread works on.
pub(super) struct Work {
    pub(super) source: Source,
    /// The exact names that constituencies want.
    pub(super) exact: watch::Receiver<Arc<ExactNames>>,
    pub(super) certificates: Arc<LiveCertificates>,
    pub(super) publisher: Arc<Publisher>,
    /// As it was at the start.
    pub(super) config: Config,
    pub(super) waker: Waker,
}

impl Upkeep {
    /// Starts the thread.
    pub(super) fn start(mut work: Work) -> std::io::Result<Self> {
        let (asks, asked) = channel();
        std::thread::Builder::new().name("upkeep".to_owned()).spawn(move || {
            loop {
                let is_reload = match asked.recv_timeout(PERIOD) {
                    Ok(()) => true,
                    Err(RecvTimeoutError::Timeout) => false,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                if catch_unwind(AssertUnwindSafe(|| work.do_once(is_reload))).is_err() {
                    tracing::error!("reading certificates or configuration failed by a defect of provost (a panic)");
                }
            }
        })?;
        Ok(Self(asks))
    }

    /// Asks for everything to be read again.
    pub(super) fn reload(&self) {
        // The thread lives as long as this.
        let _ = self.0.send(());
    }
}

impl Work {
    fn do_once(&mut self, is_reload: bool) {
        // Whoever has others to tell must not wait while a key is made.
        let exact = Arc::clone(&self.exact.borrow());
        self.source.refresh(&self.certificates, &self.config.domain, &exact);
        if is_reload {
            self.publisher.reload(&self.config);
            self.waker.wake();
        }
    }
}
