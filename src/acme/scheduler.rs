//! Chooses the next task, and stores the result of each attempt.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::failure::{AcmeFailure, FailureKind, Retry};
use super::persistent_state::{OrderAttempts, StoredState};
use super::ports::{Ca, RenewalAdvice};
use super::rate_limit::Limit;
use super::schedule::{
    DAY, Deadline, Due, DueReason, HOUR, MINUTE, RenewalWindow, backoff, is_time_for_fallback, recheck_after,
};
use super::status::{AcmeStatus, CertificateStatus, HeldStatus};
use super::store::StoredLineage;
use super::{Lineage, RenewalRequest, Renewer};
use crate::certificate::Validity;
use crate::clock::{rfc3339, utc_minute};
use crate::wording::{counted, span};

/// How many seconds clocks may differ without a warning.
const TOLERATED_SKEW: i64 = MINUTE;

/// A task. If several are due, they run in the order of the variants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Task {
    /// Remove DNS records that could not be removed before.
    CleanUp,
    /// Ask the CA when it wants a certificate renewed (ARI).
    CheckAri(Lineage),
    /// Renew it.
    Renew(Lineage),
}

/// At start: an attempt that a crash cut off is resumed at once, but with backoff if that happens repeatedly. A new
/// configuration clears failures and pauses.
pub(super) fn recover(
    kept: &mut StoredState,
    print: &str,
    held: &BTreeMap<Lineage, StoredLineage>,
    now: i64,
    random: f64,
) {
    let is_new = kept.fingerprint != print;
    print.clone_into(&mut kept.fingerprint);
    for (lineage, attempts) in &mut kept.certificates {
        if std::mem::take(&mut attempts.under_way) {
            attempts.cut_off += 1;
            let validity = held.get(lineage).map(|stored| stored.checked.validity());
            let pause = backoff(attempts.cut_off - 1, validity.as_ref(), now, random);
            attempts.pause = Some(Deadline::after(now, pause));
        } else if is_new {
            attempts.pause = None;
            attempts.failures = 0;
        }
    }
}

impl Renewer {
    pub(super) fn validity(&self, lineage: &Lineage) -> Option<Validity> {
        self.held.get(lineage).map(|stored| stored.checked.validity())
    }

    /// The next task, and when it is due.
    pub(super) fn next(&self, now: i64) -> (i64, Task) {
        let clean_up = (!self.journal.entries().is_empty()).then_some((self.clean_up_at, Task::CleanUp));
        let lineages = self.lineages();
        let ari_checks =
            lineages.iter().filter_map(|it| Some((self.ari_check_time(it, now)?, Task::CheckAri(it.clone()))));
        let renewals = lineages.iter().map(|it| (self.attempt_time(it, now), Task::Renew(it.clone())));
        let tasks = clean_up.into_iter().chain(ari_checks).chain(renewals);
        let tasks = tasks.map(|(at, task)| ((at.max(now), self.priority(at, &task, now)), task));
        tasks.min().map_or((now + DAY, Task::CleanUp), |((at, _), task)| (at, task))
    }

    /// The rank of a task among those that are due now. A missing wildcard comes before the renewal of another one, so
    /// that each kind of key has its first certificate soon. Exact names come last, and among them the one that has
    /// waited longest, so that one that keeps failing does not block the others.
    fn priority(&self, at: i64, task: &Task, now: i64) -> (u8, i64) {
        match task {
            Task::CleanUp => (0, 0),
            Task::CheckAri(Lineage::Exact(_)) | Task::Renew(Lineage::Exact(_)) => (3, at),
            Task::Renew(lineage) if self.due(lineage, now).reason == DueReason::Missing => (1, 0),
            Task::CheckAri(_) | Task::Renew(_) => (2, 0),
        }
    }

    /// When the next attempt for `lineage` is both due and allowed.
    pub(super) fn attempt_time(&self, lineage: &Lineage, now: i64) -> i64 {
        let (index, ready) = self.choose_ca(lineage, now);
        let ready = ready.max(self.affordable(lineage, self.parts.cas[index].directory(), now));
        if self.requests.get(lineage) == Some(&RenewalRequest::Renew) {
            return ready;
        }
        let attempts = self.memory.of(lineage);
        // A failure for other names does not delay these.
        let pause = attempts.pause.filter(|_| self.is_about(attempts, lineage)).map_or(0, |pause| pause.end(now));
        self.due(lineage, now).at.max(pause).max(ready)
    }

    /// When the rate limits that all exact names share allow one more; the CA is not contacted before. A pending order
    /// may be delayed by that too, which is harmless.
    fn affordable(&self, lineage: &Lineage, directory: &str, now: i64) -> i64 {
        if lineage.constituency().is_none() || self.wants_renewal(lineage, directory) {
            return now;
        }
        let budget = &self.memory.at(directory).budget;
        now + [Limit::ExactOrders, Limit::ExactCertificates]
            .map(|limit| budget.wait(limit, 1, now))
            .into_iter()
            .max()
            .unwrap_or(0)
    }

    /// Whether `attempts` were made for the names that are wanted now.
    fn is_about(&self, attempts: &OrderAttempts, lineage: &Lineage) -> bool {
        lineage.constituency().is_none() || attempts.names == self.names(lineage)
    }

    /// When and why `lineage` is due, by what is known without asking the CA, regardless of pauses and limits.
    pub(super) fn due(&self, lineage: &Lineage, now: i64) -> Due {
        due(self.held.get(lineage), self.names(lineage), self.memory.of(lineage), now).unwrap_or(Due::MISSING)
    }

    pub(super) fn is_due(&self, lineage: &Lineage, now: i64) -> bool {
        self.due(lineage, now).at <= now
    }

    /// From when the CA may be asked for a window; `None` without an unexpired certificate from a configured CA.
    pub(super) fn askable_from(&self, lineage: &Lineage, now: i64) -> Option<i64> {
        let stored = self.held.get(lineage).filter(|stored| now < stored.checked.validity().not_after)?;
        self.parts.cas.iter().find(|ca| ca.directory() == stored.meta.directory)?;
        Some(self.blocked_until(&stored.meta.directory, now))
    }

    /// When to ask the CA for a window. An operator's request does not wait for the regular time.
    fn ari_check_time(&self, lineage: &Lineage, now: i64) -> Option<i64> {
        let askable_from = self.askable_from(lineage, now)?;
        if self.requests.get(lineage) == Some(&RenewalRequest::AskCa) {
            return Some(askable_from);
        }
        let recheck = self.memory.of(lineage).recheck.map_or(0, |recheck| recheck.end(now));
        Some(recheck.max(askable_from))
    }

    /// What forbids an attempt for `lineage` now, other than the backoff.
    pub(super) fn limited_by(&self, lineage: &Lineage, now: i64) -> &'static str {
        let directory = self.parts.cas[self.choose_ca(lineage, now).0].directory();
        if self.blocked_until(directory, now) > now {
            "the CA asked to wait (Retry-After)"
        } else if lineage.constituency().is_none() || self.affordable(lineage, directory, now) > now {
            "provost's own rate limit is reached, not the CA's"
        } else {
            "a rate limit for these names is reached"
        }
    }

    /// Until when the CA's Retry-After forbids requests.
    fn blocked_until(&self, directory: &str, now: i64) -> i64 {
        self.memory.at(directory).retry_after.map_or(0, |deadline| deadline.end(now))
    }

    pub(super) fn ca_for(&self, lineage: &Lineage) -> Arc<dyn Ca> {
        let (index, _) = self.choose_ca(lineage, self.parts.env.now());
        Arc::clone(&self.parts.cas[index])
    }

    /// The index of the CA to ask, and from when. That is the first CA. Late in a certificate's life all CAs take
    /// turns, and one that may be asked sooner goes first.
    fn choose_ca(&self, lineage: &Lineage, now: i64) -> (usize, i64) {
        let attempts = self.memory.of(lineage);
        let count = self.parts.cas.len();
        let ready = |index: usize| {
            let directory = self.parts.cas[index].directory();
            let wait = attempts.waits.get(directory).map_or(0, |deadline| deadline.end(now));
            wait.max(self.blocked_until(directory, now))
        };
        if !is_time_for_fallback(self.validity(lineage).as_ref(), now, attempts.failures) {
            return (0, ready(0));
        }
        let turn = attempts.failures as usize;
        let in_turn = (0..count).map(|index| (turn + index) % count).map(|index| (index, ready(index)));
        in_turn.min_by_key(|(_, ready)| (*ready).max(now)).unwrap_or((0, now))
    }

    /// Whether the CA wants this certificate replaced now. Such an order is exempt from its rate limits.
    pub(super) fn wants_renewal(&self, lineage: &Lineage, directory: &str) -> bool {
        let is_theirs = self.held.get(lineage).is_some_and(|stored| stored.meta.directory == directory);
        let now = self.parts.env.now();
        is_theirs && self.memory.of(lineage).window.is_some_and(|window| window.window.contains(now))
    }

    /// Stores that an attempt begins, so that one that crashes is not repeated without backoff.
    pub(super) fn begin(&mut self, lineage: &Lineage) -> Result<(), AcmeFailure> {
        let names = if lineage.constituency().is_some() { self.names(lineage).to_vec() } else { Vec::new() };
        let attempts = self.memory.of_mut(lineage);
        if attempts.names != names {
            attempts.failures = 0;
            attempts.names = names;
        }
        attempts.under_way = true;
        self.memory.keep().map_err(|error| AcmeFailure::disk("renewal.json", &error))
    }

    /// Stores the result of an attempt.
    pub(super) fn conclude(&mut self, lineage: &Lineage, directory: &str, result: Result<(), AcmeFailure>) {
        let now = self.parts.env.now();
        let random = self.parts.env.random();
        let presented_validity = self.presented_validity(lineage);
        if self.requests.get(lineage) == Some(&RenewalRequest::Renew) {
            self.requests.remove(lineage);
        }
        if result.is_ok() {
            self.memory.at_mut(directory).replaced_account = false;
        }
        let attempts = self.memory.of_mut(lineage);
        attempts.under_way = false;
        attempts.cut_off = 0;
        // Reports and counts only after the state is stored: a listener may ask for the status at once.
        let mut waits = None;
        let mut failed = None;
        match result {
            Ok(()) => *attempts = OrderAttempts { last_success: Some(now), early: random, ..OrderAttempts::default() },
            Err(AcmeFailure { kind: FailureKind::OwnRateLimit, retry: Retry::After(seconds), message }) => {
                waits = Some(format!("{message}; {}", next_attempt(now.saturating_add(seconds), now)));
            }
            Err(failure) => {
                if attempts.failures == 0 {
                    attempts.failing_since = Some(now);
                }
                attempts.failures = attempts.failures.saturating_add(1);
                attempts.last_failure = Some(now);
                attempts.last_error = Some(failure.message.clone());
                attempts.action_required = failure.retry == Retry::ActionRequired;
                let pause = backoff(attempts.failures, presented_validity.as_ref(), now, random);
                attempts.pause = Some(Deadline::after(now, pause));
                failed = Some(failure);
            }
        }
        self.save_state();
        if let Some(waits) = waits {
            self.board.report_step(lineage, &waits);
        }
        if let Some(failure) = failed {
            self.board.count_failure(lineage);
            self.report_failure(lineage, &failure, now);
        }
    }

    /// Stores on disk how long the CA, or our own rate limit, forbids another attempt. The CA's limit for exact names, and
    /// our own limits, hold for this certificate alone.
    pub(super) fn store_wait(&mut self, lineage: &Lineage, directory: &str, failure: &AcmeFailure) {
        let Retry::After(seconds) = failure.retry else { return };
        let now = self.parts.env.now();
        let is_alone = match failure.kind {
            FailureKind::OwnRateLimit => true,
            FailureKind::RateLimited => lineage.constituency().is_some(),
            _ => false,
        };
        if is_alone {
            let waits = &mut self.memory.of_mut(lineage).waits;
            waits.insert(directory.to_owned(), Deadline::after(now, seconds));
        } else {
            self.store_retry_after(directory, failure.retry, now);
        }
        self.save_state();
    }

    /// A Retry-After holds for all requests to that CA.
    fn store_retry_after(&mut self, directory: &str, retry: Retry, now: i64) {
        if let Retry::After(seconds) = retry {
            self.memory.at_mut(directory).retry_after = Some(Deadline::after(now, seconds));
        }
    }

    fn report_failure(&self, lineage: &Lineage, failure: &AcmeFailure, now: i64) {
        let next = next_attempt(self.attempt_time(lineage, now), now);
        let hint = if failure.retry == Retry::ActionRequired { "; action required" } else { "" };
        self.board.report_step(lineage, &format!("failed: {failure}{hint}; {next}"));
        let days = self.validity(lineage).map(|validity| validity.left(now) / DAY);
        let left = match days {
            Some(days) => format!("the one in use has {} left", counted(days, "day")),
            None if lineage.constituency().is_some() => "phones get the wildcard certificate meanwhile".to_owned(),
            None => "there is none yet".to_owned(),
        };
        tracing::error!("no new certificate ({lineage}): {failure}{hint}; {left}; {next}");
    }

    /// Stores the state. A failed write is only logged, since the next one includes it; rate limits have writes of
    /// their own.
    pub(super) fn save_state(&self) {
        if let Err(error) = self.memory.keep() {
            tracing::error!("{}", AcmeFailure::disk("renewal.json", &error));
        }
        self.board.publish(self.status());
    }

    pub(super) fn plan_clean_up(&mut self, is_clean: bool) {
        self.clean_up_failures = if is_clean { 0 } else { self.clean_up_failures.saturating_add(1) };
        let pause = backoff(self.clean_up_failures.min(3), None, 0, self.parts.env.random());
        self.clean_up_at = self.parts.env.now() + pause.max(MINUTE);
    }

    /// Fetches the renewal information (ARI) of the certificate of `lineage` from its CA, and stores the window.
    pub(super) async fn fetch_renewal_info(&mut self, lineage: &Lineage) -> Result<Option<RenewalWindow>, AcmeFailure> {
        let Some(stored) = self.held.get(lineage) else { return Ok(None) };
        let (directory, leaf) = (stored.meta.directory.clone(), stored.checked.leaf().clone());
        let ca = self.parts.cas.iter().find(|ca| ca.directory() == directory).map(Arc::clone);
        let Some(ca) = ca else { return Ok(None) };
        let answer = match ca.open().await {
            Ok(true) => ca.renewal_window(&leaf).await,
            Ok(false) => Ok(None),
            Err(failure) => Err(failure),
        };
        warn_of_skew(&*ca);
        let (now, random) = (self.parts.env.now(), self.parts.env.random());
        let attempts = self.memory.of_mut(lineage);
        let (again, answer) = match answer {
            Ok(Some(RenewalAdvice { window, recheck_after_s, explanation })) => {
                let chosen = window.choose(attempts.window.as_ref(), random);
                let is_new = attempts.window.replace(chosen) != Some(chosen);
                let due = self.due(lineage, now);
                if is_new {
                    let (planned, at) = (rfc3339(chosen.chosen), rfc3339(due.at));
                    // "Conforming clients SHOULD provide this URL to their operator, if present." (RFC 9773 §4.2)
                    let why = explanation.map(|url| format!("; the CA explains this at {url}")).unwrap_or_default();
                    tracing::info!(
                        "certificate ({lineage}): renewal time in the CA's window (ARI): {planned}; planned for {at}{why}"
                    );
                }
                (recheck_after(recheck_after_s), Ok(Some(window)))
            }
            Ok(None) => (DAY, Ok(None)),
            Err(failure) => {
                tracing::warn!("certificate ({lineage}): cannot fetch the CA's renewal window (ARI): {failure}");
                self.store_retry_after(&directory, failure.retry, now);
                (HOUR, Err(failure))
            }
        };
        self.memory.of_mut(lineage).recheck = Some(Deadline::after(now, again));
        self.save_state();
        answer
    }

    /// Reports a clock that is behind: the newest certificate is not valid yet.
    pub(super) fn warn_of_clock(&self, now: i64) {
        let newest = self.held.values().map(|stored| stored.checked.validity().not_before).max();
        if let Some(ahead) = newest.map(|newest| newest - now).filter(|ahead| *ahead > HOUR) {
            tracing::error!("the clock of this machine is behind: the newest certificate is valid only in {ahead} s");
        }
    }

    pub(super) fn status(&self) -> AcmeStatus {
        let now = self.parts.env.now();
        let skew = self.parts.cas.iter().filter_map(|ca| ca.clock_skew()).max_by_key(|skew| skew.abs());
        let certificates = self.lineages().into_iter().map(|lineage| self.certificate_status(&lineage, now));
        let mut certificates: Vec<CertificateStatus> = certificates.collect();
        certificates.sort_by_key(|status| (status.constituency.is_some(), Reverse(status.held.is_none())));
        AcmeStatus {
            now,
            certificates,
            leftover_records: self.journal.entries().iter().map(|entry| entry.values.len()).sum(),
            clock_skew_s: skew.filter(|skew| skew.abs() > TOLERATED_SKEW),
        }
    }

    fn certificate_status(&self, lineage: &Lineage, now: i64) -> CertificateStatus {
        let attempts = self.memory.of(lineage);
        // A fault of this machine is known before an attempt fails for it.
        let fault = self.parts.dns.fault().borrow().clone();
        let is_faulty = fault.is_some();
        let held = self.held.get(lineage).map(|stored| HeldStatus {
            names: stored.checked.certificate.names.clone(),
            issuers: stored.checked.issuers.clone(),
            not_before: stored.checked.validity().not_before,
            not_after: stored.checked.validity().not_after,
            days_left: stored.checked.validity().left(now).div_euclid(DAY),
            directory: stored.meta.directory.clone(),
            intermediates: stored.checked.certificate.intermediates.clone(),
        });
        CertificateStatus {
            key: lineage.key(),
            constituency: lineage.constituency().cloned(),
            names: self.names(lineage).to_vec(),
            held,
            step: None,
            planned: planned(self.held.get(lineage), self.names(lineage), attempts, now),
            next_attempt: self.attempt_time(lineage, now),
            directory: self.parts.cas[self.choose_ca(lineage, now).0].directory().to_owned(),
            window: attempts.window.map(|window| window.window),
            failures: attempts.failures.max(u32::from(is_faulty)),
            // A fault of this machine is one of now, and not of the last attempt.
            last_failure: attempts.last_failure.filter(|_| !is_faulty),
            last_error: fault.or_else(|| attempts.last_error.clone()),
            action_required: attempts.action_required || is_faulty,
            last_success: attempts.last_success,
        }
    }
}

/// When the next attempt is made, as text.
pub(super) fn next_attempt(at: i64, now: i64) -> String {
    format!("next attempt in {} ({})", span((at - now).max(0)), utc_minute(at.max(now)))
}

/// When and why a certificate for `names` is due, regardless of pauses and limits; `None`: at once, it is missing.
fn due(stored: Option<&StoredLineage>, names: &[String], attempts: &OrderAttempts, now: i64) -> Option<Due> {
    // The names differ after the domain or the aliases changed.
    let stored = stored.filter(|stored| !attempts.revoked && stored.checked.is_for(names))?;
    let (validity, floor) = (stored.checked.validity(), stored.meta.ari_floor.map(|floor| floor.end(now)));
    let due = Due::of(&validity, attempts.window.as_ref(), floor, attempts.early);
    let has_expired = validity.not_after <= now;
    Some(if has_expired { Due { reason: DueReason::Missing, ..due } } else { due })
}

/// When it is due. A certificate that is due at once has been due at least since its first failure.
pub(super) fn planned(
    stored: Option<&StoredLineage>,
    names: &[String],
    attempts: &OrderAttempts,
    now: i64,
) -> Option<i64> {
    due(stored, names, attempts, now).map(|due| due.at).or(attempts.failing_since)
}

fn warn_of_skew(ca: &dyn Ca) {
    if let Some(skew) = ca.clock_skew().filter(|skew| skew.abs() > TOLERATED_SKEW) {
        tracing::warn!("the clock of this machine and that of {} are {} s apart", ca.directory(), skew.abs());
    }
}
