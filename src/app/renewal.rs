//! The renewal of certificates, on a thread of its own: it writes to the disk and makes keys while others serve.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::status::Boards;
use super::{AppError, control};
use crate::certificate::{ExactNames, LiveCertificates};
use crate::clock;
use crate::config::Config;
use crate::constituency::scan::Scanner;
use crate::dns::Dns;
use crate::renew::{AcmeSettings, Parts, Renewer};

/// How long to wait after a panic, which is a mistake of ours, before going on.
const AFTER_PANIC: Duration = Duration::from_mins(1);

/// What renewal needs, also to begin again.
#[derive(Debug)]
pub(super) struct Plan {
    settings: AcmeSettings,
    domain: String,
    state: PathBuf,
    live: Arc<LiveCertificates>,
    exact: watch::Receiver<Arc<ExactNames>>,
    boards: Boards,
    control: Option<UnixListener>,
}

/// A renewal that is running.
#[derive(Debug)]
pub(super) struct Renewal {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// The exact names that constituencies want, as their folders are now.
pub(crate) fn exact_names(config: &Config) -> ExactNames {
    let registry = Scanner::new(config.constituencies.clone(), config.bundle_names()).scan(clock::now());
    ExactNames::of(&registry, &config.domain)
}

/// What `settings` mean, from files that they name; warnings about these are only said.
pub(crate) fn parts(
    settings: &AcmeSettings,
    domain: &str,
    state: &Path,
    exact: watch::Receiver<Arc<ExactNames>>,
) -> Result<Parts, AppError> {
    let (dns, warnings) = Dns::open(&settings.dns).map_err(|error| AppError::Acme(error.to_string()))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Parts::real(settings, domain, state, exact, Arc::new(dns)).map_err(|error| AppError::Acme(error.to_string()))
}

impl Plan {
    /// Listens on the control socket at once: whoever reads that the server listens may command it.
    pub(super) fn new(
        settings: &AcmeSettings,
        domain: &str,
        state: &Path,
        live: &Arc<LiveCertificates>,
        exact: &watch::Receiver<Arc<ExactNames>>,
        boards: &Boards,
    ) -> Self {
        let (settings, domain, state) = (settings.clone(), domain.to_owned(), state.to_owned());
        let control = control::listen(&state);
        let (live, exact, boards) = (Arc::clone(live), exact.clone(), Arc::clone(boards));
        Self { settings, domain, state, live, exact, boards, control }
    }

    /// Publishes what is stored.
    pub(super) fn open(&self) -> Result<Renewer, AppError> {
        let parts = parts(&self.settings, &self.domain, &self.state, self.exact.clone())?;
        let renewer = Renewer::open(parts, &self.state, Arc::clone(&self.live))
            .map_err(|error| AppError::Acme(format!("{}: {error}", self.state.display())))?;
        self.boards.store(Some(renewer.board()));
        Ok(renewer)
    }

    /// Renews until it is [ended](Renewal::ended), and answers on the control socket.
    pub(super) fn start(self, renewer: Renewer) -> Result<Renewal, AppError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("renewal".to_owned())
            .spawn(move || runtime.block_on(self.keep_running(renewer, stopped)))?;
        Ok(Renewal { stop, thread })
    }

    async fn keep_running(mut self, mut renewer: Renewer, stopped: watch::Receiver<bool>) {
        let listener = Arc::new(self.control.take().and_then(control::within_runtime));
        loop {
            let mut life = JoinSet::new();
            life.spawn(live(renewer, Arc::clone(&listener), stopped.clone()));
            if let Some(Ok(())) = life.join_next().await {
                control::unlink(&self.state);
                return;
            }
            tracing::error!("the renewal of certificates failed by a mistake of ours; it begins again");
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

async fn live(renewer: Renewer, listener: Arc<Option<tokio::net::UnixListener>>, mut stopped: watch::Receiver<bool>) {
    let (commands, received) = mpsc::channel(8);
    let stop = async move {
        // Whoever could say "stop" has gone: that is as good.
        let _ = stopped.wait_for(|is_over| *is_over).await;
    };
    tokio::select! {
        () = renewer.run(received, stop) => {}
        () = control::serve(listener.as_ref().as_ref(), &commands) => {}
    }
}

impl Renewal {
    /// Asks it to end; DNS records that are published are removed first.
    pub(super) fn stop(&self) {
        // It may have ended.
        let _ = self.stop.send(true);
    }

    /// Waits until it has ended.
    pub(super) async fn ended(self) {
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}
