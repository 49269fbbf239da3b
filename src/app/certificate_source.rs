//! Where certificates come from, and the state of that source.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::renewal_thread::{RenewalHandle, RenewalPlan, RenewalThread};
use super::{AppError, LOCAL_SERVER_CA};
use crate::acme::Renewer;
use crate::certificate::{Condition, ConditionLevel, ExactNames, FilePair, FilesSource, LiveCertificates, LocalCa};
use crate::clock;
use crate::config::{CertificateSource, Config};
use crate::dns::Responder;
use crate::state::StateDir;

/// Where certificates come from.
#[derive(Debug)]
pub(super) struct ActiveCertificateSource {
    origin: SourceKind,
    /// The exact names that constituencies want.
    exact: watch::Receiver<Arc<ExactNames>>,
    logged: LoggedProblems,
}

/// The level and the state of each certificate from files, as they were logged: each change is logged once.
#[derive(Debug, Default)]
struct LoggedProblems(BTreeMap<PathBuf, (ConditionLevel, &'static str)>);

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
        renewal: &RenewalHandle,
    ) -> Result<Self, AppError> {
        let origin = match &config.certificate {
            CertificateSource::Files(pairs) => SourceKind::Files(FilesSource::new(pairs.clone(), &config.domain)),
            CertificateSource::LocalCa(_) => SourceKind::LocalCa(Box::new(LocalCa::open(
                &state.path().join(LOCAL_SERVER_CA),
                &config.domain,
                clock::now(),
            )?)),
            CertificateSource::Acme(settings) => {
                let plan = RenewalPlan::new(settings, &config.domain, state.path(), live, &exact, renewal)?;
                let renewer = plan.open()?;
                SourceKind::Acme(Some(Box::new((plan, renewer))))
            }
        };
        Ok(Self { origin, exact, logged: LoggedProblems::default() })
    }

    /// The built-in DNS responder, if challenges are published by it.
    pub(super) fn responder(&self) -> Option<&Arc<Responder>> {
        match &self.origin {
            SourceKind::Acme(Some(renewal)) => renewal.0.responder(),
            SourceKind::Acme(None) | SourceKind::Files(_) | SourceKind::LocalCa(_) => None,
        }
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
                    tracing::error!("{error}; the last valid pair stays in use, if there was one");
                }
                if refreshed.is_new {
                    tracing::info!("certificate files reloaded");
                }
                self.logged.log(&files.pairs(), clock::unix_seconds(clock::now()));
                refreshed.lacking.iter().for_each(|lacking| tracing::error!("{lacking}"));
            }
            SourceKind::LocalCa(local) => {
                if let Err(error) = local.refresh(certificates, &exact, clock::now()) {
                    tracing::error!("the local CA cannot issue a certificate: {error}");
                }
            }
            // The renewal thread publishes.
            SourceKind::Acme(_) => {}
        }
    }
}

impl LoggedProblems {
    /// The changes of state since the last call, each with its level.
    fn changes(&mut self, pairs: &[FilePair], now: i64) -> Vec<(ConditionLevel, String)> {
        let mut changes = Vec::new();
        for pair in pairs {
            let condition = pair.condition(now);
            let current = (condition.level(), condition.label());
            let before = self.0.insert(pair.files.chain.clone(), current).unwrap_or((ConditionLevel::Ok, "valid"));
            // Their reason was logged when the files were read.
            let is_logged = matches!(condition, Condition::FilesUnusable { .. } | Condition::Missing { .. });
            if current != before && !is_logged {
                changes.push((condition.level(), format!("{} {condition}", pair.files.chain.display())));
            }
        }
        changes
    }

    fn log(&mut self, pairs: &[FilePair], now: i64) {
        for (level, message) in self.changes(pairs, now) {
            match level {
                ConditionLevel::Ok => tracing::info!("{message}"),
                ConditionLevel::Warning => tracing::warn!("{message}"),
                ConditionLevel::Error => tracing::error!("{message}"),
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files of a test's own")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certificate::CertificateFiles;

    const DAY: i64 = 86_400;

    #[test]
    fn each_worse_certificate_state_is_logged_once() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("own.pem"), folder.path().join("own.key"));
        let mut params = rcgen::CertificateParams::new(vec!["*.phones.example.com".to_owned()]).unwrap();
        let now = clock::now();
        params.not_before = (now - Duration::from_mins(1)).into();
        params.not_after = (now + Duration::from_hours(24 * 90)).into();
        let pair = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&chain, params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();

        let files = CertificateFiles { chain: chain.clone(), key: key.clone() };
        let mut source = FilesSource::new(vec![files], "phones.example.com");
        let live = LiveCertificates::default();
        assert!(source.refresh(&live, &ExactNames::default()).errors.is_empty());
        let (mut logged, now) = (LoggedProblems::default(), clock::unix_seconds(now));
        let mut changes = |source: &FilesSource, day: i64| logged.changes(&source.pairs(), now + day * DAY);
        let mut lines = Vec::new();
        for day in [0, 1, 70, 71, 80, 81, 91, 92] {
            lines.extend(changes(&source, day));
        }
        let levels: Vec<ConditionLevel> = lines.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [ConditionLevel::Warning, ConditionLevel::Error, ConditionLevel::Error], "{lines:?}");
        assert!(lines[1].1.contains("has not been renewed") && lines[2].1.contains("expired at"), "{lines:?}");

        // The source reports the reason itself, once.
        std::fs::remove_file(&key).unwrap();
        let refresh_twice =
            |source: &mut FilesSource| [(); 2].map(|()| source.refresh(&live, &ExactNames::default()).errors.len());
        assert_eq!(refresh_twice(&mut source), [0, 1], "it may be about to be written");
        assert_eq!((source.pairs()[0].condition(now).label(), changes(&source, 1)), ("files_unusable", Vec::new()));
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        assert_eq!(refresh_twice(&mut source), [0, 0]);
        assert_eq!(changes(&source, 1), [(ConditionLevel::Ok, format!("{} is valid", chain.display()))]);
    }
}
