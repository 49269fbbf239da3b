//! Makes sites out of folders, trust bundles and configuration, and publishes them one after the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::looks::{Look, Looks};
use super::news;
use crate::certificate::ExactNames;
use crate::config::Config;
use crate::constituency::{ConstituencyName, Registry};
use crate::files::Stamp;
use crate::serve::Server;
use crate::serve::site::TlsMaterial;
use crate::trust::{self, BundleFiles, Bundles};

/// Publishes sites.
#[derive(Debug)]
pub(super) struct Publisher {
    /// Not held, lest a thread that waits for a disk keep it from ending.
    server: Weak<Server>,
    /// Locked while a site is made: folders and SIGHUP may change it at once.
    in_use: Mutex<InUse>,
    /// The bundles' files, as one thread looks at them.
    looks: Mutex<Looks>,
}

/// What the next site is made of, besides the folders.
#[derive(Debug)]
struct InUse {
    /// As it was last read without an error.
    config: Config,
    material: TlsMaterial,
    /// Who wants a certificate of its own; those hear of it who see to certificates.
    wanted: watch::Sender<Arc<ExactNames>>,
}

impl Publisher {
    /// A publisher for `server`, which has published nothing yet.
    pub(super) fn new(
        server: &Arc<Server>,
        config: Config,
        material: TlsMaterial,
        wanted: watch::Sender<Arc<ExactNames>>,
        read: Look,
    ) -> Self {
        let looks = Mutex::new(Looks::of(read));
        Self { server: Arc::downgrade(server), in_use: Mutex::new(InUse { config, material, wanted }), looks }
    }

    /// Publishes what the folders have become.
    pub(super) fn publish_registry(&self, folders: Registry) {
        let in_use = self.in_use();
        let Some(server) = self.server.upgrade() else { return };
        let no_sni = server.site.load().no_sni().cloned();
        publish(&server, folders, no_sni, &in_use);
    }

    /// SIGHUP: reads trust bundles and what of `provost.json` can change while running; `started` is what it was at
    /// the start.
    pub(super) fn reload(&self, started: &Config) {
        // Read before anything is locked: a disk that does not answer must not keep the folders from being published.
        let in_use = self.in_use().config.clone();
        let config = match in_use.file.as_deref().map(Config::read) {
            None => in_use,
            Some(Ok(config)) => {
                news::tell_restart_needed(started, &config);
                config
            }
            Some(Err(error)) => {
                tracing::error!("{error}; the configuration that is in use stays");
                in_use
            }
        };
        *self.looks() = Looks::of(look(&config));
        let bundles = trust::load_all(&config.trust);
        let mut in_use = self.in_use();
        in_use.material.level = config.tls;
        in_use.config = config;
        drop(in_use);
        self.put_in_force(bundles);
        tracing::info!("SIGHUP: configuration, trust bundles and folders are read again");
    }

    /// Reads trust bundles again whose files have changed: what a CA revoked is to be refused at once.
    pub(super) fn follow_bundles(&self) {
        let config = self.in_use().config.clone();
        let due = self.looks().due(look(&config));
        if due.is_empty() {
            return;
        }
        tracing::info!("trust bundles are read again: {}", due.join(", "));
        let changed = config.trust.into_iter().filter(|(name, _)| due.contains(name)).collect();
        self.put_in_force(trust::load_all(&changed));
    }

    /// Publishes the site that `bundles` make; one that cannot be used does not replace a good one.
    fn put_in_force(&self, bundles: Bundles) {
        let mut in_use = self.in_use();
        for (name, bundle) in bundles {
            let is_kept = bundle.is_err() && matches!(in_use.material.bundles.get(&name), Some(Ok(_)));
            news::tell_bundle(&name, &bundle, is_kept);
            if !is_kept {
                in_use.material.bundles.insert(name, bundle);
            }
        }
        let Some(server) = self.server.upgrade() else { return };
        let folders = server.site.load().registry().snapshot();
        publish(&server, folders, in_use.config.no_sni.clone(), &in_use);
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads passwords again that have changed.
    pub(super) fn follow_passwords(&self) {
        if let Some(server) = self.server.upgrade() {
            news::tell_passwords(&server.gate.passwords().refresh());
        }
    }

    fn in_use(&self) -> MutexGuard<'_, InUse> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the files of the trust bundles look like now.
pub(super) fn look(config: &Config) -> Look {
    let stamps = |named: &BundleFiles| named.files.iter().map(|file| Stamp::of(file)).collect();
    config.trust.iter().map(|(name, named)| (name.clone(), stamps(named))).collect()
}

fn publish(server: &Server, folders: Registry, no_sni: Option<ConstituencyName>, in_use: &InUse) {
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
    // Whoever reads it may act on it at once, so it is told when it is so.
    news::tell_folders(current.registry(), next.registry());
    news::tell_unusable(&current, &next);
}
