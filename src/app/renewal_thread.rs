//! The renewal of certificates, on a thread of its own, because it writes to the disk and makes keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::AppError;
use crate::acme::ports::ChallengeDns;
use crate::acme::{AcmeSettings, Parts, RenewalCommand, Renewer, StatusBoard};
use crate::certificate::{ExactNames, LiveCertificates};
use crate::clock;
use crate::config::Config;
use crate::constituency::scan::Scanner;
use crate::dns::{Dns, DnsMethod, Responder};

/// The pause between a panic and the restart of the renewal.
const AFTER_PANIC: Duration = Duration::from_mins(1);

/// What renewal needs, also for a restart.
#[derive(Debug)]
pub(super) struct RenewalPlan {
    settings: AcmeSettings,
    domain: String,
    state: PathBuf,
    solver: Solver,
    live: Arc<LiveCertificates>,
    exact: watch::Receiver<Arc<ExactNames>>,
    handle: RenewalHandle,
}

/// How other threads reach the renewal, also after a restart. Empty unless certificates come from ACME.
#[derive(Debug, Clone, Default)]
pub(super) struct RenewalHandle {
    pub(super) board: Arc<ArcSwapOption<StatusBoard>>,
    pub(super) commands: Arc<ArcSwapOption<mpsc::Sender<RenewalCommand>>>,
}

/// A renewal that is running.
#[derive(Debug)]
pub(super) struct RenewalThread {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// The exact names that constituencies want, by a scan of their folders.
pub(crate) fn exact_names(config: &Config) -> ExactNames {
    let registry = Scanner::new(config.constituencies.clone(), config.bundle_names()).scan(clock::now());
    ExactNames::of(&registry, &config.domain)
}

/// What publishes the challenges.
#[derive(Debug, Clone)]
pub(crate) enum Solver {
    /// Updates of a primary.
    Update(Arc<Dns>),
    /// The built-in responder. The server serves its zone; a command only looks at it.
    Responder(Arc<Responder>),
}

impl Solver {
    /// Opens what `settings` name for `domain`. The responder keeps its zone in the state directory `state`.
    pub(crate) fn open(settings: &AcmeSettings, domain: &str, state: &Path) -> Result<Self, AppError> {
        match &settings.dns {
            DnsMethod::Update(settings) => {
                let dns = Dns::open(settings).map_err(|error| AppError::Acme(error.to_string()))?;
                Ok(Self::Update(Arc::new(dns)))
            }
            DnsMethod::Responder(settings) => {
                let responder = Responder::open(settings, domain, state);
                responder.map(|responder| Self::Responder(Arc::new(responder))).map_err(AppError::System)
            }
        }
    }

    /// The responder, if that publishes the challenges.
    pub(crate) fn responder(&self) -> Option<&Arc<Responder>> {
        match self {
            Self::Update(_) => None,
            Self::Responder(responder) => Some(responder),
        }
    }

    fn port(&self) -> Arc<dyn ChallengeDns> {
        match self {
            Self::Update(dns) => Arc::clone(dns) as Arc<dyn ChallengeDns>,
            Self::Responder(responder) => Arc::clone(responder) as Arc<dyn ChallengeDns>,
        }
    }
}

/// The parts of a renewal by `settings`, with the files that they name. Warnings about these are only logged.
pub(crate) fn parts(
    settings: &AcmeSettings,
    domain: &str,
    state: &Path,
    exact: watch::Receiver<Arc<ExactNames>>,
    solver: &Solver,
) -> Result<Parts, AppError> {
    Parts::real(settings, domain, state, exact, solver.port()).map_err(|error| AppError::Acme(error.to_string()))
}

impl RenewalPlan {
    pub(super) fn new(
        settings: &AcmeSettings,
        domain: &str,
        state: &Path,
        live: &Arc<LiveCertificates>,
        exact: &watch::Receiver<Arc<ExactNames>>,
        handle: &RenewalHandle,
    ) -> Result<Self, AppError> {
        let solver = Solver::open(settings, domain, state)?;
        let (settings, domain, state) = (settings.clone(), domain.to_owned(), state.to_owned());
        let (live, exact, handle) = (Arc::clone(live), exact.clone(), handle.clone());
        Ok(Self { settings, domain, state, solver, live, exact, handle })
    }

    /// The built-in responder, if that publishes the challenges.
    pub(super) fn responder(&self) -> Option<&Arc<Responder>> {
        self.solver.responder()
    }

    /// Opens the renewer, which publishes the stored certificates.
    pub(super) fn open(&self) -> Result<Renewer, AppError> {
        let parts = parts(&self.settings, &self.domain, &self.state, self.exact.clone(), &self.solver)?;
        let renewer = Renewer::open(parts, &self.state, Arc::clone(&self.live))
            .map_err(|error| AppError::Acme(format!("{}: {error}", self.state.display())))?;
        self.handle.board.store(Some(renewer.board()));
        Ok(renewer)
    }

    /// Starts the thread. It takes commands at once, and renews until [`RenewalThread::stop`].
    pub(super) fn start(self, renewer: Renewer) -> Result<RenewalThread, AppError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let received = self.take_commands();
        let thread = std::thread::Builder::new()
            .name("renewal".to_owned())
            .spawn(move || runtime.block_on(self.keep_running(renewer, received, stopped)))?;
        Ok(RenewalThread { stop, thread })
    }

    /// Replaces the command channel, and returns its receiver.
    fn take_commands(&self) -> mpsc::Receiver<RenewalCommand> {
        let (commands, received) = mpsc::channel(8);
        self.handle.commands.store(Some(Arc::new(commands)));
        received
    }

    async fn keep_running(
        self,
        mut renewer: Renewer,
        mut received: mpsc::Receiver<RenewalCommand>,
        stopped: watch::Receiver<bool>,
    ) {
        loop {
            let mut run = JoinSet::new();
            let mut stop = stopped.clone();
            run.spawn(renewer.run(received, async move {
                // A dropped sender means shutdown, too.
                let _ = stop.wait_for(|is_over| *is_over).await;
            }));
            if let Some(Ok(())) = run.join_next().await {
                return;
            }
            received = self.take_commands();
            tracing::error!(
                "the renewal of certificates failed with an internal error (a panic); it starts again in a minute; please report it"
            );
            let mut stopped = stopped.clone();
            renewer = loop {
                tokio::select! {
                    _ = stopped.wait_for(|is_over| *is_over) => return,
                    () = tokio::time::sleep(AFTER_PANIC) => {}
                }
                match self.open() {
                    Ok(renewer) => break renewer,
                    Err(error) => tracing::error!("{error}"),
                }
            };
        }
    }
}

impl RenewalThread {
    /// Asks the thread to end. It removes published DNS records first.
    pub(super) fn stop(&self) {
        // The thread may have ended.
        let _ = self.stop.send(true);
    }

    /// Waits until the thread has ended.
    pub(super) async fn ended(self) {
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}
