//! Detects parts of the state directory that cannot be written, and the functions that fail for it. Phones are still
//! served.
//!
//! One function decides, so that the log, the status page, `/readyz` and `check` agree.

use std::io;
use std::path::Path;

use arc_swap::ArcSwap;

use crate::config::{CertificateSource, Config};
use crate::constituency::last_good;
use crate::identity::digest::passwords;
use crate::phone_history;
use crate::serve::upload::store;
use crate::state;

/// A folder that cannot be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFault {
    /// The problem, what does not work, and the remedy.
    pub message: String,
    /// Whether permissions are the cause, so that another user may be able to write.
    pub is_permission: bool,
}

/// The current faults.
#[derive(Debug, Default)]
pub(super) struct StateFaults(ArcSwap<Vec<StateFault>>);

impl StateFaults {
    /// Checks the folders, and logs new faults.
    pub(super) fn update(&self, config: &Config) {
        let (before, now) = (self.0.load_full(), state_faults(config));
        if *before == now {
            return;
        }
        now.iter().filter(|fault| !before.contains(fault)).for_each(|fault| tracing::error!("{}", fault.message));
        if now.is_empty() {
            tracing::info!("the state directory {} can be written again", config.state.display());
        }
        self.0.store(now.into());
    }

    /// The messages for the operator.
    pub(super) fn messages(&self) -> Vec<String> {
        self.0.load().iter().map(|fault| fault.message.clone()).collect()
    }
}

/// The faults of the state directory that `config` names.
#[must_use]
pub fn state_faults(config: &Config) -> Vec<StateFault> {
    let uploads = "uploads are refused";
    let history = "the phone history is not kept";
    let policies = "the last good policies are not kept for the next start";
    let passwords_fixed = "passwords cannot be changed";
    let no_certificates = "no certificate is obtained or renewed";
    let obtains = matches!(config.certificate, CertificateSource::Acme(_));
    if let Some(error) = state::why_unwritable(&config.state) {
        let certificates = obtains.then_some(no_certificates);
        let effects: Vec<&str> = [uploads, history, policies].into_iter().chain(certificates).collect();
        return vec![fault(&config.state, &error, &effects.join(", "))];
    }
    let folders = [
        (store::FOLDER, uploads, true),
        (phone_history::FOLDER, history, true),
        (last_good::FOLDER, policies, true),
        (passwords::FOLDER, passwords_fixed, true),
        ("certs", no_certificates, obtains),
    ];
    let used = folders.into_iter().filter(|(.., is_used)| *is_used);
    let check = |(name, effect, _)| {
        let folder = config.state.join(name);
        state::why_unwritable(&folder).map(|error| fault(&folder, &error, effect))
    };
    used.filter_map(check).collect()
}

fn fault(folder: &Path, error: &io::Error, effect: &str) -> StateFault {
    let is_permission = error.kind() == io::ErrorKind::PermissionDenied;
    let user = if is_permission { " by this user" } else { "" };
    let (folder, remedy) = (folder.display(), state::remedy(error));
    StateFault { message: format!("{folder} cannot be written{user}: {error}; {effect}; {remedy}"), is_permission }
}
