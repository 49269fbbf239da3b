//! The main loop of a [`Renewer`]: waits for the next task, runs it, and answers commands meanwhile.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::failure::AcmeFailure;
use super::schedule::RenewalWindow;
use super::scheduler::Task;
use super::status::AcmeStatus;
use super::{Lineage, RenewalRequest, Renewer};
use crate::clock::rfc3339;
use crate::constituency::ConstituencyName;

/// In seconds. The time of day may jump, and the machine may suspend, so the loop rereads the clock at least this
/// often.
const LONGEST_SLEEP: i64 = 15 * 60;
/// The timeout of the last clean-up at shutdown; the next start does the rest.
const LAST_CLEAN_UP: Duration = Duration::from_secs(10);

/// A command to a running [`Renewer`].
#[derive(Debug)]
pub enum RenewalCommand {
    /// Returns the status.
    Status(oneshot::Sender<AcmeStatus>),
    /// Renews what is due, pause or not, and what the CA, asked again, wants renewed; or with `all` everything. A
    /// Retry-After and our rate limits still hold.
    Renew {
        /// Renews everything, due or not.
        all: bool,
        /// Renews only the certificate for the exact names of this constituency.
        only: Option<ConstituencyName>,
        /// Receives each step, and closes when all is done.
        progress: mpsc::UnboundedSender<String>,
    },
    /// Revokes the certificate in use, and obtains another.
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
        // Stores a pause that began at this start, so that it does not begin again at the next.
        self.remember();
        loop {
            let (at, task) = self.next(self.parts.env.now());
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(command) = commands.recv() => if !self.answer_unless(command, stop.as_mut()).await {
                    break;
                },
                Ok(()) = exact.changed() => {
                    self.take_over();
                    self.publish();
                }
                Ok(()) = fault.changed() => if fault.borrow_and_update().is_none() {
                    // Attempts failed for this reason: what is due need not wait any longer.
                    let now = self.parts.env.now();
                    let due: Vec<Lineage> = self.lineages().into_iter().filter(|it| self.is_due(it, now)).collect();
                    self.requests.extend(due.into_iter().map(|it| (it, RenewalRequest::Renew)));
                },
                is_time = wait_until(&self, at) => {
                    // A certificate for exact names may have expired meanwhile.
                    self.publish_exact();
                    if is_time && !self.perform(task, &mut commands, stop.as_mut()).await {
                        break;
                    }
                }
            }
            self.notify_waiters();
            self.board.publish(self.status());
        }
        // The journal keeps the records that this cannot remove.
        let _ = tokio::time::timeout(LAST_CLEAN_UP, self.clean_up()).await;
        self.remember_stop();
    }

    /// Runs `task`. Meanwhile, status requests are answered from the board, and other commands wait. False on `stop`.
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
                let answer = self.look(&lineage).await;
                if self.requests.get(&lineage) == Some(&RenewalRequest::AskCa) {
                    self.renew_if_due(&lineage, answer);
                }
            }
            Task::Renew(lineage) => self.attempt(&lineage).await,
        }
        self.tidy();
    }

    /// Answers a command. False on `stop`; then the requester's channel closes.
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
                let is_meant = |it: &Lineage| only.is_none() || it.constituency() == only.as_ref();
                let meant: Vec<Lineage> = self.lineages().into_iter().filter(is_meant).collect();
                for lineage in meant {
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

    /// Marks `lineage` for renewal if the CA's `answer` wants that, and otherwise reports why not.
    fn renew_if_due(&mut self, lineage: &Lineage, answer: Result<Option<RenewalWindow>, AcmeFailure>) {
        let now = self.parts.env.now();
        let is_open = answer.as_ref().is_ok_and(|window| window.is_some_and(|window| window.contains(now)));
        if is_open || self.is_due(lineage, now) {
            self.requests.insert(lineage.clone(), RenewalRequest::Renew);
            return;
        }
        self.requests.remove(lineage);
        let next = rfc3339(self.attempt_time(lineage, now));
        let message = match answer {
            Ok(Some(window)) => format!(
                "is not due; the CA, asked just now, wants it renewed from {} to {}; next attempt at {next}",
                rfc3339(window.start),
                rfc3339(window.end)
            ),
            Ok(None) => format!("is not due; the CA, asked just now, names no time; next attempt at {next}"),
            Err(failure) => format!(
                "failed: the CA does not say when to renew: {failure}; by its last answer it is not due; next attempt at {next}"
            ),
        };
        self.board.report_step(lineage, &message);
    }

    /// Reports and drops requests that may not run now, since a Retry-After may last for days. Closes the listeners
    /// when none is left.
    fn notify_waiters(&mut self) {
        let now = self.parts.env.now();
        for (lineage, request) in self.requests.clone() {
            let next = self.attempt_time(&lineage, now);
            let message = match (request, self.askable_from(&lineage, now)) {
                (RenewalRequest::Renew, _) if next <= now => continue,
                (RenewalRequest::Renew, _) => format!("may be tried only in {} s", next - now),
                (RenewalRequest::AskCa, Some(from)) if from <= now => continue,
                (RenewalRequest::AskCa, Some(from)) => {
                    format!("is not due by the CA's last answer; the CA takes no requests for {} s", from - now)
                }
                (RenewalRequest::AskCa, None) => {
                    format!("is not due; no CA can be asked about it; next attempt at {}", rfc3339(next))
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
                    "{name} has no certificate of its own; phones there are shown the wildcard's, which --key names"
                ),
            })
        };
        let stored = self.held.get(lineage).ok_or_else(missing)?;
        let ca = self.parts.cas.iter().find(|ca| ca.directory() == stored.meta.directory).map(Arc::clone);
        let ca = ca.ok_or_else(|| {
            AcmeFailure::action_required(format!("{} is not configured any more", stored.meta.directory))
        })?;
        ca.open().await?;
        ca.revoke(stored.checked.leaf()).await?;
        let attempts = self.memory.of_mut(lineage);
        attempts.revoked = true;
        // Our own limits keep one certificate back for this.
        attempts.waits.clear();
        self.remember();
        Ok(())
    }

    /// Clears `under_way`: a graceful shutdown is not a crash.
    fn remember_stop(&mut self) {
        self.memory.kept.certificates.values_mut().for_each(|attempts| attempts.under_way = false);
        self.remember();
    }
}

/// Sleeps until `at`, but at most [`LONGEST_SLEEP`]. True once `at` is reached.
async fn wait_until(renewer: &Renewer, at: i64) -> bool {
    let left = at - renewer.parts.env.now();
    if left <= 0 {
        return true;
    }
    sleep(Duration::from_secs(left.min(LONGEST_SLEEP).unsigned_abs())).await;
    renewer.parts.env.now() >= at
}
