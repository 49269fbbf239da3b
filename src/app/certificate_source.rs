//! Where certificates come from, and the state of that source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::admin_thread::Boards;
use super::control::Commands;
use super::renewal_thread::{RenewalPlan, RenewalThread};
use super::{AppError, LOCAL_SERVER_CA};
use crate::acme::Renewer;
use crate::certificate::{Condition, ConditionLevel, ExactNames, FilesSource, LiveCertificates, LocalCa};
use crate::clock;
use crate::config::{CertificateSource, Config};
use crate::state::StateDir;

/// Where certificates come from.
#[derive(Debug)]
pub(super) struct ActiveCertificateSource {
    origin: SourceKind,
    domain: String,
    /// The exact names that constituencies want.
    exact: watch::Receiver<Arc<ExactNames>>,
    logged: LoggedProblems,
}

/// The level last logged for each certificate file. A condition is logged once when it begins and once when it ends.
#[derive(Debug, Default)]
struct LoggedProblems(BTreeMap<PathBuf, ConditionLevel>);

#[derive(Debug)]
enum SourceKind {
    Files(FilesSource),
    LocalCa(Box<LocalCa>),
    /// `None` once renewal has started.
    Acme(Option<Box<(RenewalPlan, Renewer)>>),
}

impl ActiveCertificateSource {
    /// Opens the source that `config` names. ACME publishes its stored certificates at once.
    pub(super) fn open(
        config: &Config,
        state: &StateDir,
        live: &Arc<LiveCertificates>,
        exact: watch::Receiver<Arc<ExactNames>>,
        renewal: (&Boards, &Commands),
    ) -> Result<Self, AppError> {
        let origin = match &config.certificate {
            CertificateSource::Files(pairs) => SourceKind::Files(FilesSource::new(pairs.clone())),
            CertificateSource::LocalCa(_) => SourceKind::LocalCa(Box::new(LocalCa::open(
                &state.path().join(LOCAL_SERVER_CA),
                &config.domain,
                clock::now(),
            )?)),
            CertificateSource::Acme(settings) => {
                let plan = RenewalPlan::new(settings, &config.domain, state.path(), live, &exact, renewal);
                let renewer = plan.open()?;
                SourceKind::Acme(Some(Box::new((plan, renewer))))
            }
        };
        Ok(Self { origin, domain: config.domain.clone(), exact, logged: LoggedProblems::default() })
    }

    /// The CA that clients must trust, if the source is a local CA.
    pub(super) fn server_ca(&self) -> Option<CertificateDer<'static>> {
        match &self.origin {
            SourceKind::LocalCa(local) => Some(local.certificate().clone()),
            SourceKind::Files(_) | SourceKind::Acme(_) => None,
        }
    }

    /// Starts renewal, if certificates come from ACME.
    pub(super) fn start_renewal(&mut self) -> Result<Option<RenewalThread>, AppError> {
        let SourceKind::Acme(renewal) = &mut self.origin else { return Ok(None) };
        renewal.take().map(|plan| plan.0.start(plan.1)).transpose()
    }

    /// Publishes new certificates, and logs the faults of those that cannot be used.
    pub(super) fn refresh(&mut self, certificates: &LiveCertificates) {
        // A copy: a borrow would block the sender while a key is made.
        let exact = Arc::clone(&self.exact.borrow());
        match &mut self.origin {
            SourceKind::Files(files) => {
                let refreshed = files.refresh(certificates, &exact);
                for error in &refreshed.errors {
                    tracing::error!("{error}; the last good pair stays in use, if there was one");
                }
                if refreshed.is_new {
                    tracing::info!("the certificate files were read");
                    files.misfits(&self.domain).iter().for_each(|misfit| tracing::error!("{misfit}"));
                }
                self.logged.log(files.conditions(clock::unix_seconds(clock::now())));
                refreshed.lacking.iter().for_each(|lacking| tracing::error!("{lacking}"));
            }
            SourceKind::LocalCa(local) => {
                if let Err(error) = local.refresh(certificates, &exact, clock::now()) {
                    tracing::error!("no certificate from the local CA: {error}");
                }
            }
            // The renewal thread publishes.
            SourceKind::Acme(_) => {}
        }
    }
}

impl LoggedProblems {
    fn log<'a>(&mut self, conditions: impl Iterator<Item = (&'a Path, Condition)>) {
        for (file, condition) in conditions {
            let (level, name) = (condition.level(), file.display());
            let before = self.0.insert(file.to_owned(), level).unwrap_or(ConditionLevel::Ok);
            match level {
                level if level == before => {}
                ConditionLevel::Ok => tracing::info!("{name} {condition}"),
                ConditionLevel::Warning => tracing::warn!("{name} {condition}"),
                ConditionLevel::Error => tracing::error!("{name} {condition}"),
            }
        }
    }
}
