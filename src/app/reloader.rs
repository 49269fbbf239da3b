//! What is read while the server runs: certificates, trust bundles and passwords if they changed, looked at twice a
//! second, and everything at SIGHUP.
//!
//! It is done on a thread of its own, because files may lie on disks that do not answer: signals are heard all the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::certificate_source::ActiveCertificateSource;
use super::publisher::Publisher;
use super::reload_log;
use super::state_faults::StateFaults;
use crate::admin::token::OperatorToken;
use crate::certificate::LiveCertificates;
use crate::config::Config;
use crate::constituency::watch::WatcherHandle;

/// How often certificates, trust bundles and passwords are looked at: what changes counts within a second.
const PERIOD: Duration = Duration::from_millis(500);

/// The thread that reads; when this and its clones are dropped, it ends when it has read what it is reading.
#[derive(Debug, Clone)]
pub(super) struct Reloader(Sender<ReloadRequest>);

/// What the thread is asked for.
#[derive(Debug)]
enum ReloadRequest {
    /// To read everything again, and to say when that is done.
    Reload(oneshot::Sender<()>),
    /// To answer when it comes round.
    Answer(Sender<()>),
}

/// What the thread works on.
pub(super) struct ReloaderThread {
    pub(super) source: ActiveCertificateSource,
    pub(super) certificates: Arc<LiveCertificates>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) state_faults: Arc<StateFaults>,
    /// As it was at the start.
    pub(super) config: Config,
    pub(super) waker: WatcherHandle,
    /// Of operators.
    pub(super) token: Option<Arc<OperatorToken>>,
}

impl Reloader {
    /// Starts the thread.
    pub(super) fn start(mut work: ReloaderThread) -> std::io::Result<Self> {
        let (asks, asked) = channel();
        std::thread::Builder::new().name("upkeep".to_owned()).spawn(move || {
            loop {
                let reload = match asked.recv_timeout(PERIOD) {
                    Ok(ReloadRequest::Reload(done)) => Some(done),
                    Ok(ReloadRequest::Answer(answer)) => {
                        // Whoever asked may have gone.
                        let _ = answer.send(());
                        None
                    }
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                // Whoever waits for the reload hears of its end also when this panics.
                if catch_unwind(AssertUnwindSafe(|| work.do_once(reload))).is_err() {
                    tracing::error!("reading certificates or configuration failed by a defect of provost (a panic)");
                }
            }
        })?;
        Ok(Self(asks))
    }

    /// Asks for everything to be read again. What this gives ends when that is done.
    pub(super) fn reload(&self) -> oneshot::Receiver<()> {
        let (doing, done) = oneshot::channel();
        // The thread lives as long as this.
        let _ = self.0.send(ReloadRequest::Reload(doing));
        done
    }

    /// Asks the thread to answer when it comes round; `None` if it has ended.
    pub(super) fn ask(&self) -> Option<Receiver<()>> {
        let (answer, answered) = channel();
        self.0.send(ReloadRequest::Answer(answer)).ok().map(|()| answered)
    }
}

impl ReloaderThread {
    /// Looks at what may have changed, or reads everything again; `reload` is dropped when that is done.
    fn do_once(&mut self, reload: Option<oneshot::Sender<()>>) {
        self.source.refresh(&self.certificates);
        self.publisher.follow_passwords();
        self.state_faults.update(&self.config);
        let Some(reload) = reload else { return self.publisher.follow_bundles() };
        let read = self.publisher.reload(&self.config);
        self.read_token();
        // After the bundles themselves: a policy that names a new one finds it.
        self.waker.look_with(self.publisher.bundle_names(), move || {
            reload_log::log_reloaded(&read);
            drop(reload);
        });
    }

    fn read_token(&self) {
        match self.token.as_ref().map(|token| token.reload()) {
            Some(Ok(true)) => {
                tracing::info!("the status page has another token; who signed in with the old one is out");
            }
            Some(Err(error)) => {
                tracing::error!("\"token_file\" in \"status\": {error}; the last good token stays in force");
            }
            Some(Ok(false)) | None => {}
        }
    }
}
