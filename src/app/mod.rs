//! The application: wires nouns and verbs, keeps them running, and shuts them down in order. Only this module spawns
//! long tasks.
//!
//! [`App::start`] does everything that can fail. [`App::run`] then serves until shutdown.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::{AdminData, Endpoint};
use crate::background::BackgroundThread;
use crate::ca::{CaError, CertificateAuthority, KeyKind};
use crate::certificate::{ExactNames, LiveCertificates};
use crate::clock;
use crate::config::Config;
use crate::constituency::denials::{DenialsError, DenialsFile};
use crate::constituency::last_good::LastGood;
use crate::constituency::scan::Scanner;
use crate::constituency::watch::{WatcherHandle, spawn_watcher};
use crate::identity::digest::DigestAuthenticator;
use crate::identity::digest::passwords::Passwords;
use crate::identity::trust::{Bundle, BundleError};
use crate::metrics::Metrics;
use crate::notify::NotifyHealth;
use crate::phone_history::{self, PhoneHistory};
use crate::serve::Server;
use crate::serve::access_log::{AccessLog, LogFormat};
use crate::serve::connection_limits::ConnectionLimits;
use crate::serve::crypto_queue::CryptoQueue;
use crate::serve::shutdown::ShutdownPhase;
use crate::serve::site::{Site, TlsMaterial};
use crate::serve::upload::store::{self, UploadStore};
use crate::settings::SettingsError;
use crate::state::{StateDir, StateError, StateLock};

mod access_observer;
mod admin_data;
pub mod admin_thread;
mod audit;
mod certificate_source;
pub mod control;
mod denials;
pub mod file_limit;
pub mod named_files;
mod notify_thread;
pub mod permissions;
mod publisher;
mod reload_log;
mod reloader;
mod renewal_thread;
mod responder_thread;
mod signals;
pub mod socket_activation;
mod sockets;
mod state_entries;
pub mod state_faults;
mod watchdog;

use access_observer::AccessObserver;
use admin_data::LiveAdminData;
use audit::{AuditWriter, FileChanges};
use certificate_source::ActiveCertificateSource;
use control::Control;
use denials::DenialsThread;
use file_limit::FileLimit;
use notify_thread::NotifyThread;
use publisher::Publisher;
use reloader::{Reloader, ReloaderThread};
use renewal_thread::{RenewalHandle, RenewalThread};
use responder_thread::OpenResponder;
use socket_activation::{ActivatedSockets, SocketActivationError};
use sockets::Listeners;
use state_faults::StateFaults;
use watchdog::{MonitoredThread, ServiceState, Watchdog};

pub(crate) use renewal_thread::{Solver, exact_names, parts as renewal_parts};

/// The folder of the local device CA in the state directory.
pub const LOCAL_DEVICE_CA: &str = "local";
/// The folder of the local server CA in the state directory.
pub const LOCAL_SERVER_CA: &str = "server-ca";

/// The log target of the few events that appear whatever `PROVOST_LOG` filters out.
pub const ANNOUNCEMENT: &str = "provost::announcement";

/// How long shutdown waits until the access log is written, if its reader stalls.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long shutdown waits until the phone history, and then the last good policies, are written, if the disk hangs.
const DISK_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shutdown waits for the thread that runs the `notify` command.
const NOTIFY_STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the application cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A setting in `provost.json`.
    #[error("{0}")]
    Settings(#[from] SettingsError),
    /// The state directory.
    #[error("{0}")]
    State(#[from] StateError),
    /// The server-wide denials.
    #[error("{0}")]
    Denials(#[from] DenialsError),
    /// A local CA.
    #[error("{0}")]
    Ca(#[from] CaError),
    /// The trust bundle of a local CA.
    #[error("{0}")]
    Bundle(#[from] BundleError),
    /// The certificate source that `provost.json` configures.
    #[error("\"certificate\": {0}")]
    Acme(String),
    /// A listening address is unavailable.
    #[error("cannot listen on {address}: {source}{}", sockets::hint(.source))]
    Listen {
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
    /// A socket that systemd passed does not fit.
    #[error("{0}")]
    SocketActivation(#[from] SocketActivationError),
    /// A monitored thread has ended.
    #[error("the thread \"{0}\" ended with an internal error; please report it")]
    ThreadEnded(&'static str),
    /// A listener task has ended.
    #[error("a listener ended with an internal error; please report it")]
    ListenerEnded,
    /// The operators' listener.
    #[error("cannot listen on {endpoint} (\"status\"): {source}{}", sockets::hint(.source))]
    Status {
        endpoint: Endpoint,
        /// The error of the system.
        source: io::Error,
    },
    /// Threads or signals.
    #[error("cannot start a thread, or use a file or socket that the server needs: {0}{hint}", hint = sockets::hint(.0))]
    System(#[from] io::Error),
}

/// The running application.
#[derive(Debug)]
pub struct App {
    config: Config,
    server: Arc<Server>,
    publisher: Arc<Publisher>,
    state_faults: Arc<StateFaults>,
    listeners: Listeners,
    signals: signals::Signals,
    source: ActiveCertificateSource,
    responder: Option<OpenResponder>,
    watcher: WatcherHandle,
    log_writer: BackgroundThread,
    history_writer: BackgroundThread,
    last_good_writer: BackgroundThread,
    audit_writer: BackgroundThread,
    denials: DenialsThread,
    status: Option<(admin_thread::OpenAdminListener, Arc<dyn AdminData>)>,
    notify: Option<NotifyThread>,
    control: Option<(UnixListener, Control)>,
    stop: (watch::Sender<ShutdownPhase>, watch::Receiver<ShutdownPhase>),
    _lock: StateLock,
}

impl App {
    /// Opens everything, and listens. Needs a runtime. Connections are accepted once [`App::run`] runs. The access log
    /// goes to `output` in the format `log`, which the command line may have chosen. `activated` are the sockets from
    /// systemd.
    ///
    /// # Errors
    /// If the server cannot serve. A fault in a folder or a trust bundle is only logged.
    pub fn start(
        mut config: Config,
        log: LogFormat,
        output: impl io::Write + Send + 'static,
        mut activated: ActivatedSockets,
    ) -> Result<Self, AppError> {
        let files = FileLimit::raise();
        config.check_apart()?;
        let state = StateDir::open(&config.state)?;
        let lock = state.lock()?;
        let state_faults = Arc::new(StateFaults::default());
        state_faults.update(&config);
        permissions::warn_of_loose_permissions(&config);
        let certificates = Arc::new(LiveCertificates::default());
        let denials_file = DenialsFile::open(state.path())?;
        let denied = denials_file.denials();
        let (last_good, last_good_writer) = LastGood::start(state.path())?;
        let mut scanner = Scanner::new(config.constituencies.clone(), config.bundle_names())
            .with_denials(Arc::clone(&denied))
            .with_last_good(last_good)
            .keeping_open(files.open_folders());
        let first = scanner.scan(clock::now());
        let (wanted, exact) = watch::channel(Arc::new(ExactNames::of(&first, &config.domain)));
        let renewal = RenewalHandle::default();
        let mut source = ActiveCertificateSource::open(&config, &state, &certificates, exact, &renewal)?;
        source.refresh(&certificates);

        let (bundles, watched) = publisher::load_all(&config.trust);
        let material = TlsMaterial {
            certificates: Arc::clone(&certificates),
            bundles,
            always_trusted: local_device_trust(&config, &state)?,
            provider: TlsMaterial::provider(),
            level: config.tls,
        };
        material.bundles.iter().for_each(|(name, bundle)| reload_log::log_bundle(name, bundle, false));
        let uploads = UploadStore::new(state.folder(store::FOLDER), config.limits.free_space_bytes);
        // A process that reads that we listen may send a signal at once.
        let signals = signals::Signals::listen()?;
        let (admin_listener, operators) = admin_thread::open(&mut config, &state, &mut activated)?.unzip();
        // A process that reads that we listen may send commands at once.
        let control = control::listen(state.path());
        let listeners = Listeners::open(&config, &mut activated)?;
        let responder = source.responder().map(|it| OpenResponder::open(it, &config, &mut activated)).transpose()?;
        activated.ensure_all_claimed()?;
        let (history, history_writer) = PhoneHistory::start(&state.folder(phone_history::FOLDER))?;
        let health = history.health();
        let metrics = Arc::new(Metrics::default());
        if let Some(responder) = source.responder() {
            metrics.dns_queries.get_or_init(|| Arc::clone(responder.query_counts()));
        }
        let (access, log_writer) = AccessLog::start(log, output, AccessObserver::new(history, Arc::clone(&metrics)))?;
        let server = Arc::new(Server {
            authenticator: digest_authenticator(state.path())?,
            site: ArcSwap::from_pointee(Site::new(config.domain.clone(), config.no_sni.clone())),
            scanner: OnceLock::new(),
            certificates,
            uploads: Arc::new(uploads),
            access,
            handshakes: Arc::clone(&metrics.handshakes),
            crypto_queue: CryptoQueue::new(std::thread::available_parallelism().map_or(1, usize::from)),
            connection_limits: Arc::new(ConnectionLimits::new(config.limits.clone(), files.room())),
            limits: config.limits.clone(),
            load_balancers: config.load_balancers.clone(),
        });
        let (stop, stopped) = watch::channel(ShutdownPhase::default());
        let audit = Arc::new(AuditWriter::new(state.path()));
        let (file_changes, audit_writer) = FileChanges::start(Arc::clone(&audit))?;
        let publisher = Arc::new(Publisher::new(
            &server,
            config.clone(),
            material,
            wanted,
            watched,
            files,
            (Arc::clone(&health), Arc::clone(&denied)),
        ));
        publisher.publish_registry(first.snapshot());
        publisher.audit(file_changes.clone());
        let publishing = Arc::clone(&publisher);
        let watcher = spawn_watcher(scanner, first, move |folders| publishing.publish_registry(folders))?;
        server.scanner.get_or_init(|| watcher.clone());
        let denials = DenialsThread::start(denials_file, operators, file_changes)?;
        let control = control.map(|listener| {
            let (access, history) = (server.access.clone(), Arc::clone(&health));
            (listener, Control { renewal: renewal.clone(), responder: source.responder().cloned(), access, history })
        });
        let notify_health = Arc::new(NotifyHealth::default());
        let admin_data = || -> Arc<dyn AdminData> {
            Arc::new(LiveAdminData {
                server: Arc::downgrade(&server),
                certificates: Arc::clone(&server.certificates),
                renewal: renewal.clone(),
                health: Arc::clone(&health),
                metrics: Arc::clone(&metrics),
                config: config.clone(),
                publisher: Arc::clone(&publisher),
                stop: stopped.clone(),
                state: state.path().to_owned(),
                operators: admin_listener.as_ref().map(admin_thread::OpenAdminListener::operators),
                denials: Arc::clone(&denied),
                denials_thread: denials.clone(),
                state_faults: Arc::clone(&state_faults),
                addresses: listeners.addresses(),
                started: clock::unix_seconds(clock::now()),
                silences: admin_data::SilenceCache::default(),
                writable: admin_data::WritableFolders::default(),
                notify_health: Arc::clone(&notify_health),
                audit: Arc::clone(&audit),
            })
        };
        let admin_data = (admin_listener.is_some() || config.notify.is_some()).then(admin_data);
        let status = admin_listener.zip(admin_data.clone());
        let notify = config.notify.clone().zip(admin_data).map(|(settings, admin_data)| NotifyThread {
            settings,
            admin_data,
            health: notify_health,
            state: state.path().to_owned(),
            stop: stopped.clone(),
        });
        let stop = (stop, stopped);
        Ok(Self {
            config,
            server,
            publisher,
            state_faults,
            listeners,
            signals,
            source,
            responder,
            watcher,
            log_writer,
            history_writer,
            last_good_writer,
            audit_writer,
            denials,
            status,
            notify,
            control,
            stop,
            _lock: lock,
        })
    }

    /// The addresses on which phones are served over TLS.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.addresses()
    }

    /// The current site.
    #[must_use]
    pub fn site(&self) -> Arc<Site> {
        self.server.site.load_full()
    }

    /// The CA that clients must trust, if certificates come from a local CA.
    #[must_use]
    pub fn server_ca(&self) -> Option<CertificateDer<'static>> {
        self.source.server_ca()
    }

    /// Serves until `until` completes or a signal asks for shutdown. Then drains connections and flushes the logs.
    ///
    /// # Errors
    /// If the thread of the renewal or of the reloader cannot start, or a listener ends.
    pub async fn run(mut self, until: impl Future<Output = ()>) -> Result<(), AppError> {
        let (stop, stopped) = self.stop;
        let mut listeners = self.listeners.serve(&self.config, &self.server, &stopped);
        let mut source = self.source;
        // Before the renewal, whose challenges it serves.
        let responder = self.responder.map(OpenResponder::start).transpose()?;
        let renewal = source.start_renewal()?;
        let mut control = JoinSet::new();
        if let Some((listener, answers)) = self.control {
            control.spawn(control::serve(listener, answers));
        }
        let reloader = Reloader::start(ReloaderThread {
            source,
            certificates: Arc::clone(&self.server.certificates),
            publisher: self.publisher,
            state_faults: self.state_faults,
            config: self.config.clone(),
            watcher: self.watcher.clone(),
            operators: self.status.as_ref().map(|(opened, _)| opened.operators()),
        })?;
        let status = self.status.map(|(opened, admin_data)| opened.start(admin_data)).transpose()?;
        let notify = self.notify.map(NotifyThread::start).transpose()?;
        let mut monitored = vec![
            MonitoredThread::new("constituencies", self.watcher.heartbeat()),
            MonitoredThread::new("reloader", reloader.heartbeat()),
            MonitoredThread::new("denials", self.denials.heartbeat()),
        ];
        monitored.extend(responder.iter().map(|responder| MonitoredThread::new("dns", responder.heartbeat())));
        let (watchdog, mut ended_threads) = Watchdog::start(&self.server, monitored, stopped)?;
        watchdog.send(ServiceState::Ready);
        let stopped_by_signal = async {
            let (first, delay_s) =
                (self.signals.handle(&reloader, &watchdog).await, self.config.limits.shutdown_delay_s);
            let mut name = first;
            if delay_s > 0 {
                tracing::info!(
                    "{first}: /readyz is 503 from now on; connections are served as usual for {delay_s} s \
                     (limits.shutdown_delay_s); a second signal ends this"
                );
                watchdog.send(ServiceState::LameDuck(delay_s));
                let _ = stop.send(ShutdownPhase::LameDuck);
                let delay = self.config.limits.shutdown_delay();
                let second = tokio::time::timeout(delay, self.signals.handle(&reloader, &watchdog)).await;
                name = second.unwrap_or(first);
            }
            let drain_s = self.config.limits.drain_s;
            tracing::info!(
                "{name}: graceful shutdown: no new connections; requests in progress may finish within {drain_s} s"
            );
        };
        let result = tokio::select! {
            () = until => Ok(()),
            () = stopped_by_signal => Ok(()),
            Some(_) = listeners.join_next() => Err(AppError::ListenerEnded),
            Some(name) = ended_threads.recv() => {
                tracing::error!(
                    "watchdog: thread \"{name}\" has ended with an internal error; ending provost; please report it"
                );
                Err(AppError::ThreadEnded(name))
            }
        };
        watchdog.send(ServiceState::Stopping);
        // Without a receiver, there is nothing to stop.
        let _ = stop.send(ShutdownPhase::Drain);
        renewal.iter().for_each(RenewalThread::stop);
        let mut drained = std::pin::pin!(async { while listeners.join_next().await.is_some() {} });
        tokio::select! {
            () = &mut drained => {}
            name = self.signals.next_stop() => {
                tracing::warn!("second {name}: ending requests in progress");
                let _ = stop.send(ShutdownPhase::Now);
                drained.await;
            }
        }
        if let Some(renewal) = renewal {
            renewal.ended().await;
        }
        if let Some(responder) = responder {
            responder.end().await;
        }
        control.shutdown().await;
        control::unlink(&self.config.state);
        if let Some(status) = status {
            status.end().await;
        }
        if let Some(notify) = notify
            && !notify.end(NOTIFY_STOP_TIMEOUT)
        {
            tracing::warn!("the thread \"notify\" did not end in time (hung disk?)");
        }
        self.watcher.stop();
        drop((reloader, self.denials, self.server));
        if !self.log_writer.wait(LOG_FLUSH_TIMEOUT) {
            tracing::error!("the last access-log lines are lost: the reader of standard output has stopped reading");
        }
        if !self.history_writer.wait(DISK_FLUSH_TIMEOUT) {
            tracing::error!("the last phone events are lost: timeout while the phone history was written (hung disk?)");
        }
        if !self.last_good_writer.wait(DISK_FLUSH_TIMEOUT) {
            tracing::warn!("some last good policies are not stored: the disk of the state directory does not respond");
        }
        if !self.audit_writer.wait(DISK_FLUSH_TIMEOUT) {
            tracing::warn!(
                "the last changes of files are not in the audit log: the disk of the state directory does not respond"
            );
        }
        tracing::info!("stopped");
        result
    }
}

/// Reads the passwords in the state directory, and logs those that are unreadable.
fn digest_authenticator(state: &Path) -> Result<DigestAuthenticator, AppError> {
    let passwords = Passwords::of_state(state);
    reload_log::log_passwords(&passwords.refresh(), true);
    DigestAuthenticator::new(passwords)
        .map_err(|_| AppError::System(io::Error::other("the random number generator failed")))
}

/// In local mode only: trusts the CA of virtual phones in every constituency. Makes the CA on first use.
fn local_device_trust(config: &Config, state: &StateDir) -> Result<Vec<Arc<Bundle>>, AppError> {
    if config.is_local() {
        let folder = state.path().join(LOCAL_DEVICE_CA);
        CertificateAuthority::open_or_make(&folder, "provost local device CA", KeyKind::EcdsaP256, clock::now())?;
    }
    Ok(local_device_bundle(config)?.into_iter().map(Arc::new).collect())
}

/// The local device CA as a bundle: in local mode, if the CA exists.
///
/// # Errors
/// If the CA exists but cannot be read.
pub fn local_device_bundle(config: &Config) -> Result<Option<Bundle>, BundleError> {
    let file = config.state.join(LOCAL_DEVICE_CA).join("ca.pem");
    if config.is_local() && file.exists() { Bundle::load("local device CA", &[file]).map(Some) } else { Ok(None) }
}
