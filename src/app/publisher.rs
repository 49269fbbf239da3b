//! Makes sites from folders, trust bundles and configuration, and publishes them one after the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::audit::FileChanges;
use super::file_limit::FileLimit;
use super::reload_log;
use crate::certificate::ExactNames;
use crate::config::Config;
use crate::constituency::{ConstituencyName, Registry, ServerDenials};
use crate::files::WatchedFiles;
use crate::identity::trust::{self, Bundle, BundleError, BundleFiles, Bundles};
use crate::phone_history::HistoryHealth;
use crate::serve::Server;
use crate::serve::site::TlsMaterial;
use crate::settings::SettingsError;

#[derive(Debug)]
pub(super) struct Publisher {
    /// Weak, so that a thread that waits for a disk does not delay shutdown.
    server: Weak<Server>,
    /// Locked while a site is made: the watcher and a reload may change it at the same time.
    in_use: Mutex<InUse>,
    /// The files of the trust bundles. One thread reads them.
    watched: Mutex<WatchedBundles>,
}

/// The files of each trust bundle.
pub(super) type WatchedBundles = BTreeMap<String, WatchedFiles>;

/// The inputs of the next site, besides the folders.
#[derive(Debug)]
struct InUse {
    /// The configuration that was last read without an error.
    config: Config,
    material: TlsMaterial,
    /// The exact names that constituencies want. The certificate source receives them.
    wanted: watch::Sender<Arc<ExactNames>>,
    files: FileLimit,
    history: Arc<HistoryHealth>,
    denials: Arc<ServerDenials>,
    /// The current problem and remedy, if the limit of open files is too low.
    file_shortage: Option<String>,
    /// The audit log; `None` for the first site, which changes nothing.
    file_changes: Option<FileChanges>,
}

impl Publisher {
    pub(super) fn new(
        server: &Arc<Server>,
        config: Config,
        material: TlsMaterial,
        wanted: watch::Sender<Arc<ExactNames>>,
        watched: WatchedBundles,
        files: FileLimit,
        (history, denials): (Arc<HistoryHealth>, Arc<ServerDenials>),
    ) -> Self {
        let in_use =
            InUse { config, material, wanted, files, history, denials, file_shortage: None, file_changes: None };
        let in_use = Mutex::new(in_use);
        Self { server: Arc::downgrade(server), in_use, watched: Mutex::new(watched) }
    }

    /// Logs later changes of policies in the audit log.
    pub(super) fn audit(&self, file_changes: FileChanges) {
        self.in_use.lock().file_changes = Some(file_changes);
    }

    /// Publishes a site with the folders of `folders`.
    pub(super) fn publish_registry(&self, folders: Registry) {
        let mut in_use = self.in_use.lock();
        let Some(server) = self.server.upgrade() else { return };
        let no_sni = server.site.load().no_sni().cloned();
        publish(&server, folders, no_sni, &mut in_use);
    }

    /// SIGHUP: reads the trust bundles, and the settings of `provost.json` that can change at runtime. `started` is the
    /// configuration at the start.
    ///
    /// # Errors
    /// If `provost.json` cannot be read. The current configuration stays in force.
    pub(super) fn reload(&self, started: &Config) -> Result<(), SettingsError> {
        // Read before locking, so that a disk that hangs does not keep the watcher from publishing folders.
        let in_use = self.in_use.lock().config.clone();
        let read = in_use.file.as_deref().map(Config::read).transpose();
        let (config, read) = match read {
            Ok(Some(mut config)) => {
                reload_log::log_restart_needed(started, &config);
                reload_log::log_bundles_gone(&in_use, &config);
                // Policies may still use them.
                for (name, files) in in_use.trust {
                    config.trust.entry(name).or_insert(files);
                }
                (config, Ok(()))
            }
            Ok(None) => (in_use, Ok(())),
            Err(error) => (in_use, Err(error)),
        };
        // An explicit reload reads everything, and logs every error again.
        let (bundles, watched) = load_all(&config.trust);
        *self.watched.lock() = watched;
        let mut in_use = self.in_use.lock();
        in_use.material.level = config.tls;
        in_use.config = config;
        drop(in_use);
        self.apply_bundles(bundles);
        read
    }

    /// The names of the trust bundles that policies may use.
    pub(super) fn bundle_names(&self) -> Vec<String> {
        self.in_use.lock().config.bundle_names()
    }

    /// Reads the trust bundles again that have changed or could not be read, so that a revocation is in force at once.
    pub(super) fn reload_bundles(&self) {
        let mut changed = self.in_use.lock().config.trust.clone();
        let mut watched = self.watched.lock();
        changed.retain(|name, named| watched.entry(name.clone()).or_default().is_due(&named.files));
        if changed.is_empty() {
            return;
        }
        let mut bundles = trust::load_all(&changed);
        bundles.retain(|name, bundle| {
            watched
                .get_mut(name)
                .filter(|_| changed.contains_key(name))
                .is_some_and(|it| it.note_read(why_unread(bundle)))
        });
        drop(watched);
        let read = bundles.iter().filter(|(_, bundle)| bundle.is_ok()).map(|(name, _)| name.as_str());
        let read = read.collect::<Vec<_>>().join(", ");
        if !bundles.is_empty() {
            self.apply_bundles(bundles);
        }
        if !read.is_empty() {
            tracing::info!("trust bundles reloaded: {read}");
        }
    }

    /// Publishes a site with `bundles`. A bundle that cannot be used does not replace a valid one.
    fn apply_bundles(&self, bundles: Bundles) {
        let mut in_use = self.in_use.lock();
        for (name, bundle) in bundles {
            let is_kept = bundle.is_err() && matches!(in_use.material.bundles.get(&name), Some(Ok(_)));
            reload_log::log_bundle(&name, &bundle, is_kept);
            if !is_kept {
                in_use.material.bundles.insert(name, bundle);
            }
        }
        let Some(server) = self.server.upgrade() else { return };
        let folders = server.site.load().registry().snapshot();
        let no_sni = in_use.config.no_sni.clone();
        publish(&server, folders, no_sni, &mut in_use);
    }

    /// Reads the passwords again that have changed.
    pub(super) fn reload_passwords(&self) {
        if let Some(server) = self.server.upgrade() {
            reload_log::log_passwords(&server.authenticator.passwords().refresh(), false);
        }
    }
}

/// Loads all bundles in `files` and the built-in one, and watches the files from before they are read.
pub(super) fn load_all(files: &BTreeMap<String, BundleFiles>) -> (Bundles, WatchedBundles) {
    let mut watched = WatchedBundles::new();
    for (name, named) in files {
        watched.entry(name.clone()).or_default().is_due(&named.files);
    }
    let bundles = trust::load_all(files);
    for (name, watched) in &mut watched {
        watched.note_read(bundles.get(name).and_then(why_unread));
    }
    (bundles, watched)
}

/// Why a bundle could not be read. A bundle that was read and is invalid is not read again until it changes.
fn why_unread(bundle: &Result<Arc<Bundle>, Arc<BundleError>>) -> Option<String> {
    let error = bundle.as_ref().err().filter(|error| matches!(***error, BundleError::File { .. }))?;
    Some(error.to_string())
}

fn publish(server: &Server, folders: Registry, no_sni: Option<ConstituencyName>, in_use: &mut InUse) {
    let current = server.site.load_full();
    let next = Arc::new(current.with(folders, no_sni, &in_use.material));
    let wanted = ExactNames::of(next.registry(), next.domain());
    server.site.store(Arc::clone(&next));
    in_use.wanted.send_if_modified(|before| {
        let is_new = **before != wanted;
        if is_new {
            *before = Arc::new(wanted);
        }
        is_new
    });
    in_use.history.set_policies(next.registry().snapshot(), Arc::clone(&in_use.denials));
    // After the site is in force: a reader of the log may act on it at once.
    reload_log::log_folders(&current, &next);
    reload_log::log_unusable(&current, &next);
    if let Some(audit) = &in_use.file_changes {
        audit.observe(current.registry(), next.registry());
    }
    let file_shortage = in_use.files.shortage(next.registry(), server.limits.connections);
    reload_log::log_file_shortage(in_use.file_shortage.as_deref(), file_shortage.as_deref());
    in_use.file_shortage = file_shortage;
}
