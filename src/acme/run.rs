//! The main loop of a [`Renewer`]: waits for the next task, runs it, and answers commands meanwhile.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::failure::AcmeFailure;
use super::schedule::RenewalWindow;
use super::scheduler::{Task, next_attempt};
use super::status::AcmeStatus;
use super::{Lineage, RenewalRequest, Renewer};
use crate::clock::rfc3339;
use crate::constituency::ConstituencyName;
use crate::wording::span;

/// The longest sleep of the loop, in seconds. The wall clock may jump, and the machine may suspend: the loop rereads the
/// clock at least this often.
const LONGEST_SLEEP: i64 = 15 * 60;
/// The timeout of the clean-up of DNS records at shutdown. The next start cleans up what remains.
const SHUTDOWN_CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// A command to a running [`Renewer`].
#[derive(Debug)]
pub enum RenewalCommand {
    /// Sends the status.
    Status(oneshot::Sender<AcmeStatus>),
    /// Renews every certificate that is due, without waiting for a backoff to end. Queries the renewal information (ARI)
    /// of the others, and renews those whose window is open. Retry-After and our rate limits still apply.
    Renew {
        /// Renews all certificates, due or not.
        all: bool,
        /// Renews only the certificate for the exact names of this constituency.
        only: Option<ConstituencyName>,
        /// Receives each step, and closes when all is done.
        progress: mpsc::UnboundedSender<String>,
    },
    /// Revokes the certificate in use, and orders a new one.
    Revoke {
        lineage: Lineage,
        /// Receives the result.
        done: oneshot::Sender<Result<(), AcmeFailure>>,
    },
}

impl Renewer {
    /// Keeps the certificates renewed until `stop` completes. Needs a thread of its own: it blocks while it writes to
    /// disk and generates keys.
    pub async fn run(mut self, mut commands: mpsc::Receiver<RenewalCommand>, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut exact = self.parts.exact.clone();
        let mut fault = self.parts.dns.fault();
        // Stores a backoff that began at this start. Otherwise it would begin again at the next start.
        self.save_state();
        loop {
            let (at, task) = self.next(self.parts.env.now());
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(command) = commands.recv() => if !self.answer_unless(command, stop.as_mut()).await {
                    break;
                },
                Ok(()) = exact.changed() => {
                    self.adopt_exact_names();
                    self.publish();
                }
                Ok(()) = fault.changed() => if fault.borrow_and_update().is_none() {
                    // The attempts failed because of this fault, so their backoff ends with it.
                    let now = self.parts.env.now();
                    let due: Vec<Lineage> = self.lineages().into_iter().filter(|it| self.is_due(it, now)).collect();
                    self.requests.extend(due.into_iter().map(|it| (it, RenewalRequest::Renew)));
                },
                is_time = wait_until(&self, at) => {
                    // A certificate for exact names may have expired during the wait.
                    self.publish_exact();
                    if is_time && !self.perform(task, &mut commands, stop.as_mut()).await {
                        break;
                    }
                }
            }
            self.notify_waiters();
            self.board.publish(self.status());
        }
        // Records that cannot be removed stay in the journal.
        let _ = tokio::time::timeout(SHUTDOWN_CLEAN_UP_TIMEOUT, self.clean_up()).await;
        self.clear_under_way();
    }

    /// Runs `task`. Answers status requests from the board meanwhile, and defers other commands. Returns false on `stop`.
    async fn perform(
        &mut self,
        task: Task,
        commands: &mut mpsc::Receiver<RenewalCommand>,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> bool {
        let board = Arc::clone(&self.board);
        let mut deferred = Vec::new();
        {
            let mut work = pin!(self.work(task));
            loop {
                tokio::select! {
                    biased;
                    () = &mut stop => return false,
                    () = &mut work => break,
                    Some(command) = commands.recv() => match command {
                        // Fails only if the requester is gone.
                        RenewalCommand::Status(reply) => drop(reply.send(board.status())),
                        other => deferred.push(other),
                    },
                }
            }
        }
        for command in deferred {
            if !self.answer_unless(command, stop.as_mut()).await {
                return false;
            }
        }
        true
    }

    async fn work(&mut self, task: Task) {
        match task {
            Task::CleanUp => self.clean_up().await,
            Task::CheckAri(lineage) => {
                let renewal_info = self.fetch_renewal_info(&lineage).await;
                if self.requests.get(&lineage) == Some(&RenewalRequest::AskCa) {
                    self.renew_if_due(&lineage, renewal_info);
                }
            }
            Task::Renew(lineage) => self.attempt(&lineage).await,
        }
        self.remove_leftovers();
    }

    /// Answers a command. Returns false on `stop`, which closes the requester's channel.
    async fn answer_unless(&mut self, command: RenewalCommand, stop: Pin<&mut impl Future<Output = ()>>) -> bool {
        tokio::select! {
            biased;
            () = stop => false,
            () = self.answer(command) => true,
        }
    }

    async fn answer(&mut self, command: RenewalCommand) {
        let now = self.parts.env.now();
        match command {
            RenewalCommand::Status(reply) => drop(reply.send(self.status())),
            RenewalCommand::Renew { all, only, progress } => {
                let is_selected = |it: &Lineage| only.is_none() || it.constituency() == only.as_ref();
                let selected: Vec<Lineage> = self.lineages().into_iter().filter(is_selected).collect();
                for lineage in selected {
                    if all || self.is_due(&lineage, now) {
                        self.requests.insert(lineage, RenewalRequest::Renew);
                    } else {
                        self.requests.entry(lineage).or_insert(RenewalRequest::AskCa);
                    }
                }
                self.board.listen(progress);
            }
            RenewalCommand::Revoke { lineage, done } => drop(done.send(self.revoke(&lineage).await)),
        }
    }

    /// Requests a renewal of `lineage` if it is due or the CA's renewal window is open. Otherwise reports why not.
    fn renew_if_due(&mut self, lineage: &Lineage, renewal_info: Result<Option<RenewalWindow>, AcmeFailure>) {
        let now = self.parts.env.now();
        let is_open = renewal_info.as_ref().is_ok_and(|window| window.is_some_and(|window| window.contains(now)));
        if is_open || self.is_due(lineage, now) {
            self.requests.insert(lineage.clone(), RenewalRequest::Renew);
            return;
        }
        self.requests.remove(lineage);
        let next = rfc3339(self.attempt_time(lineage, now));
        let message = match renewal_info {
            Ok(Some(window)) => format!(
                "not due: the CA's renewal window (ARI) is {} to {}; next attempt at {next}",
                rfc3339(window.start),
                rfc3339(window.end)
            ),
            Ok(None) => format!("not due: the CA has no renewal window (ARI) for it; next attempt at {next}"),
            Err(failure) => format!(
                "failed: cannot fetch the CA's renewal window (ARI): {failure}; not due by the last known one; next attempt at {next}"
            ),
        };
        self.board.report_step(lineage, &message);
    }

    /// Reports and drops requests that must wait: a Retry-After may last for days. Closes the listeners when no request
    /// is left.
    fn notify_waiters(&mut self) {
        let now = self.parts.env.now();
        for (lineage, request) in self.requests.clone() {
            let next = self.attempt_time(&lineage, now);
            let message = match (request, self.askable_from(&lineage, now)) {
                (RenewalRequest::Renew, _) if next <= now => continue,
                (RenewalRequest::Renew, _) => {
                    format!("failed: {}; {}", self.limited_by(&lineage, now), next_attempt(next, now))
                }
                (RenewalRequest::AskCa, Some(from)) if from <= now => continue,
                (RenewalRequest::AskCa, Some(from)) => {
                    format!(
                        "not due by the last known renewal window (ARI); the CA asked to wait (Retry-After) for another {}",
                        span(from - now)
                    )
                }
                (RenewalRequest::AskCa, None) => {
                    format!(
                        "not due: no configured CA issued it, so none is queried; next attempt at {}",
                        rfc3339(next)
                    )
                }
            };
            self.board.report_step(&lineage, &message);
            self.requests.remove(&lineage);
        }
        if self.requests.is_empty() {
            self.board.close();
        }
    }

    async fn revoke(&mut self, lineage: &Lineage) -> Result<(), AcmeFailure> {
        let missing = || {
            AcmeFailure::action_required(match lineage.constituency() {
                None => format!("there is no {lineage} certificate"),
                Some(name) => format!(
                    "{name} has no certificate of its own; its phones get the wildcard certificate; to revoke that one, use --key"
                ),
            })
        };
        let stored = self.held.get(lineage).ok_or_else(missing)?;
        let ca = self.parts.cas.iter().find(|ca| ca.directory() == stored.meta.directory).map(Arc::clone);
        let ca = ca.ok_or_else(|| {
            AcmeFailure::action_required(format!(
                "the CA that issued the certificate is not configured: {}; add it to \"certificate\"",
                stored.meta.directory
            ))
        })?;
        ca.open().await?;
        ca.revoke(stored.checked.leaf()).await?;
        let attempts = self.memory.of_mut(lineage);
        attempts.revoked = true;
        // Our own rate limits reserve one certificate for this case.
        attempts.waits.clear();
        self.save_state();
        Ok(())
    }

    /// Notes that no attempt is in progress: a graceful shutdown is not a crash.
    fn clear_under_way(&mut self) {
        self.memory.kept.certificates.values_mut().for_each(|attempts| attempts.under_way = false);
        self.save_state();
    }
}

/// Sleeps until `at`, but at most [`LONGEST_SLEEP`]. Returns whether `at` is reached.
async fn wait_until(renewer: &Renewer, at: i64) -> bool {
    let left = at - renewer.parts.env.now();
    if left <= 0 {
        return true;
    }
    sleep(Duration::from_secs(left.min(LONGEST_SLEEP).unsigned_abs())).await;
    renewer.parts.env.now() >= at
}
