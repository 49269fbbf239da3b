//! The status for `provost certificate status`, and the board that publishes status and progress.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use super::lineage::Lineage;
use super::schedule::RenewalWindow;
use crate::ca::KeyKind;
use crate::certificate::{CertificateFacts, Condition, Intermediate, RenewalSchedule, Validity};
use crate::constituency::ConstituencyName;

/// Everything about the certificates and their renewal. Times are Unix time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AcmeStatus {
    /// When the status was taken.
    pub now: i64,
    /// One for each kind of key, and one for each constituency that wants its exact names.
    pub certificates: Vec<CertificateStatus>,
    /// How many of our DNS records could not be removed yet.
    pub leftover_records: usize,
    /// How many seconds the CA's clock is ahead of ours, if that is significant.
    pub clock_skew_s: Option<i64>,
}

/// One certificate and its renewal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The kind of its key.
    pub key: KeyKind,
    /// The constituency whose exact names it is for; `None` for the wildcard.
    pub constituency: Option<ConstituencyName>,
    /// The names that it must cover.
    pub names: Vec<String>,
    /// The certificate in use, if there is one.
    pub held: Option<HeldStatus>,
    /// The current step of an attempt.
    pub step: Option<String>,
    /// When it was due, regardless of pauses and limits; `None`: at once.
    #[serde(default)]
    pub planned: Option<i64>,
    /// When the next attempt is made.
    pub next_attempt: i64,
    /// The directory of the CA that will be asked.
    pub directory: String,
    /// The window in which the CA wants it renewed.
    pub window: Option<RenewalWindow>,
    /// Failures in a row.
    pub failures: u32,
    /// When the last failed attempt was.
    #[serde(default)]
    pub last_failure: Option<i64>,
    /// The reason of the last failure.
    pub last_error: Option<String>,
    /// Whether an operator must change something.
    #[serde(rename = "needs_human")]
    pub action_required: bool,
    /// When a renewal last succeeded.
    pub last_success: Option<i64>,
}

impl CertificateStatus {
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.constituency.clone().map_or(Lineage::Wildcard(self.key), Lineage::Exact)
    }

    /// Its condition at `now`, in Unix seconds.
    #[must_use]
    pub fn condition(&self, now: i64) -> Condition {
        let (held, lineage) = (self.held.as_ref(), self.lineage());
        let facts = CertificateFacts {
            validity: held.map(|held| Validity { not_before: held.not_before, not_after: held.not_after }),
            intermediates: held.map(|held| held.intermediates.as_slice()).unwrap_or_default(),
            wrong_names: held.and_then(|held| wrong_names(&lineage, &held.names, &self.names)),
            files_error: None,
        };
        let plan = RenewalSchedule {
            renewal: self.planned.unwrap_or(now),
            // New settings reset `failures`; an error from before does not apply to them.
            failure: self.last_error.as_deref().filter(|_| self.failures > 0),
            action_required: self.action_required,
        };
        Condition::of(now, &facts, Some(plan))
    }
}

/// The names of a certificate, and the one that it should cover, where the domain has changed since it was issued. One for
/// exact names is presented to clients that ask for these alone.
pub(super) fn wrong_names<'a>(
    lineage: &Lineage,
    names: &'a [String],
    wanted: &'a [String],
) -> Option<(&'a [String], &'a str)> {
    let wildcard = wanted.first().filter(|wildcard| lineage.constituency().is_none() && !names.contains(wildcard))?;
    Some((names, wildcard))
}

/// A certificate in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStatus {
    /// Its DNS names.
    pub names: Vec<String>,
    /// Its issuer, the issuer of that, and so on.
    pub issuers: Vec<String>,
    /// Its first second.
    pub not_before: i64,
    /// Its last second.
    pub not_after: i64,
    /// Full days left; negative once it has expired.
    pub days_left: i64,
    /// The directory of the CA that issued it.
    pub directory: String,
    /// The intermediates of its chain that are not valid for as long as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intermediates: Vec<Intermediate>,
}

/// How many attempts there were since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttemptCounts {
    pub begun: u64,
    pub failed: u64,
}

/// Publishes the status and the progress while work is under way.
#[derive(Debug, Default)]
pub struct StatusBoard {
    status: Mutex<AcmeStatus>,
    attempts: Mutex<BTreeMap<Lineage, AttemptCounts>>,
    generation: AtomicU64,
    listeners: Mutex<Vec<UnboundedSender<String>>>,
}

impl StatusBoard {
    pub(super) fn publish(&self, status: AcmeStatus) {
        *self.status.lock() = status;
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The status as last published.
    #[must_use]
    pub fn status(&self) -> AcmeStatus {
        self.status.lock().clone()
    }

    /// How many attempts there were since the start.
    #[must_use]
    pub fn attempts(&self, lineage: &Lineage) -> AttemptCounts {
        self.attempts.lock().get(lineage).copied().unwrap_or_default()
    }

    pub(super) fn count_attempt(&self, lineage: &Lineage) {
        self.attempts.lock().entry(lineage.clone()).or_default().begun += 1;
    }

    pub(super) fn count_failure(&self, lineage: &Lineage) {
        self.attempts.lock().entry(lineage.clone()).or_default().failed += 1;
    }

    /// A number that changes with each new status or step.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sends every step from now on to `listener`.
    pub(super) fn listen(&self, listener: UnboundedSender<String>) {
        self.listeners.lock().push(listener);
    }

    /// Drops all listeners, which closes their channels.
    pub(super) fn close(&self) {
        self.listeners.lock().clear();
    }

    /// Reports a step for `lineage` to the log, the status and the listeners.
    pub(super) fn report_step(&self, lineage: &Lineage, step: &str) {
        tracing::info!("certificate ({lineage}): {step}");
        if let Some(status) = self.status.lock().certificates.iter_mut().find(|status| status.lineage() == *lineage) {
            status.step = Some(step.to_owned());
        }
        self.generation.fetch_add(1, Ordering::Release);
        self.listeners.lock().retain(|listener| listener.send(format!("{lineage}: {step}")).is_ok());
    }
}
