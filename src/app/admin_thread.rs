//! The operators' listener, on a thread and a runtime of its own, so that a failure or a hang there does not affect
//! phones.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::socket_activation::{ActivatedSockets, STATUS};
use super::{ANNOUNCEMENT, AppError};
use crate::admin::listener::AdminListener;
use crate::admin::operators::{Operators, OperatorsWatcher, token_file};
use crate::admin::{AdminData, AdminServer, Endpoint, StatusSettings};
use crate::clock;
use crate::config::Config;
use crate::settings::SettingsError;
use crate::state::{self, StateDir};

/// The maximum of threads for blocking disk access.
const DISK_THREADS: usize = 4;
/// How many ports are tried in local mode, where the operator chose none.
const PORTS: u16 = 20;
/// The file of local mode's token in the state directory.
pub const LOCAL_TOKEN: &str = "status-token";

/// The listener before it serves.
#[derive(Debug)]
pub(super) struct OpenAdminListener {
    listener: AdminListener,
    settings: StatusSettings,
    operators: Arc<Operators>,
}

/// The listener while it serves.
#[derive(Debug)]
pub(super) struct AdminThread {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// Opens the listener that `config` names, if any, and the file of its operators. In local mode, sets the token file in `config`, and an address that
/// is unavailable is only a warning.
pub(super) fn open(
    config: &mut Config,
    state: &StateDir,
    activated: &mut ActivatedSockets,
) -> Result<Option<(OpenAdminListener, OperatorsWatcher)>, AppError> {
    if config.is_local() {
        make_local_token(config, state)?;
    }
    let Some(settings) = config.status.clone() else { return Ok(None) };
    let opened = Operators::open(settings.token_file.as_deref(), state.path(), clock::now());
    let watcher = opened.map_err(|error| {
        let file = settings.token_file.as_deref().unwrap_or(state.path());
        SettingsError::of_file(file, error)
    })?;
    let bound = match activated_listener(&settings.listen, activated)? {
        Some(activated_listener) => Ok(activated_listener),
        None if config.is_local() => bind_next_free(&settings.listen),
        None => AdminListener::bind(&settings.listen),
    };
    let listener = match bound {
        Ok(listener) => listener,
        Err(error) if config.is_local() => {
            tracing::warn!("status page disabled: cannot listen on {}: {error}", settings.listen);
            return Ok(None);
        }
        Err(source) => return Err(AppError::Status { endpoint: settings.listen, source }),
    };
    let token_hint = match &settings.token_file {
        Some(file) => format!(" (token: {})", file.display()),
        None => String::new(),
    };
    tracing::info!(target: ANNOUNCEMENT, "status page at {}{token_hint}", listener.endpoint);
    let operators = watcher.operators();
    Ok(Some((OpenAdminListener { listener, settings, operators }, watcher)))
}

/// The listener at `endpoint` by the socket that systemd passed, if any.
fn activated_listener(
    endpoint: &Endpoint,
    activated: &mut ActivatedSockets,
) -> Result<Option<AdminListener>, AppError> {
    Ok(match endpoint {
        Endpoint::Tcp(address) => activated.tcp(STATUS, *address)?.map(AdminListener::of_tcp).transpose()?,
        Endpoint::Unix(path) => activated.unix(STATUS, path).map(|socket| AdminListener::of_unix(socket, path.clone())),
    })
}

/// Makes a token for local mode on first use, so that every function can be tried.
fn make_local_token(config: &mut Config, state: &StateDir) -> Result<(), AppError> {
    let file = state.path().join(LOCAL_TOKEN);
    if !file.exists() {
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| io::Error::other("the system's random number generator failed"))?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        if let Err(error) = state::write_private(&file, format!("{token}\n").as_bytes()) {
            tracing::warn!("status page disabled: cannot write its token to {}: {error}", file.display());
            return Ok(());
        }
    }
    if let Err(error) = token_file::read(&file) {
        tracing::warn!("no token for the status page: {}: {error}", file.display());
        return Ok(());
    }
    config.status = config.status.take().map(|status| StatusSettings { token_file: Some(file), ..status });
    Ok(())
}

/// Binds the first free port from that of `endpoint` on.
fn bind_next_free(endpoint: &Endpoint) -> io::Result<AdminListener> {
    let Endpoint::Tcp(address) = endpoint else { return AdminListener::bind(endpoint) };
    let ports = (0..PORTS).filter_map(|step| address.port().checked_add(step));
    let addresses = ports.map(|port| Endpoint::Tcp(SocketAddr::new(address.ip(), port)));
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for endpoint in addresses {
        match AdminListener::bind(&endpoint) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            bound => return bound,
        }
    }
    Err(last)
}

impl OpenAdminListener {
    /// The operators.
    pub(super) fn operators(&self) -> Arc<Operators> {
        Arc::clone(&self.operators)
    }

    /// Serves `admin_data` until [`AdminThread::end`].
    pub(super) fn start(self, admin_data: Arc<dyn AdminData>) -> io::Result<AdminThread> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(DISK_THREADS).build()?;
        let Self { listener, settings, operators } = self;
        let status = Arc::new(AdminServer::new(&settings, &listener.endpoint, operators, admin_data));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("status".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    Err(error) = listener.serve(status) => {
                        tracing::error!("status page disabled: {error}");
                    }
                    _ = stopped => {}
                }
            });
            // Do not wait for a disk that hangs.
            runtime.shutdown_background();
        })?;
        Ok(AdminThread { stop, thread })
    }
}

impl AdminThread {
    /// Stops the thread, and waits until its socket is closed.
    pub(super) async fn end(self) {
        // The thread may have ended.
        let _ = self.stop.send(());
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}
