//! Runs the `notify` command when the headlines change. On a thread of its own, so that a slow command delays nothing
//! else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::admin::AdminData;
use crate::admin::headlines::{Headline, HeadlineKind, headlines};
use crate::admin::operators::Scope;
use crate::background::BackgroundThread;
use crate::clock;
use crate::notify::{self, NotifyHeadline, NotifyHealth, NotifySettings, Report, TIME_LIMIT, Tracker};
use crate::serve::shutdown::ShutdownPhase;

/// How often the headlines are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// The longest time without a look if nothing has changed: a phone falls silent without an event.
const MAX_AGE: Duration = Duration::from_secs(30);
/// The share of the time that looks may take: one part in so many.
const COST_FACTOR: u32 = 20;

/// The thread's data.
#[derive(Debug)]
pub(super) struct NotifyThread {
    pub(super) settings: NotifySettings,
    pub(super) admin_data: Arc<dyn AdminData>,
    pub(super) health: Arc<NotifyHealth>,
    /// The state directory.
    pub(super) state: PathBuf,
    pub(super) stop: watch::Receiver<ShutdownPhase>,
}

/// The thread while it runs.
#[derive(Debug)]
pub(super) struct RunningNotify {
    /// Dropped to wake the thread.
    wake: Sender<()>,
    thread: BackgroundThread,
}

impl RunningNotify {
    /// Waits until the thread has ended, at most `timeout`. A command that runs is ended: its report is repeated at the
    /// next start. Returns whether the thread has ended.
    pub(super) fn end(self, timeout: Duration) -> bool {
        drop(self.wake);
        self.thread.wait(timeout)
    }
}

impl NotifyThread {
    pub(super) fn start(self) -> std::io::Result<RunningNotify> {
        let (wake, is_woken) = channel::<()>();
        let thread = BackgroundThread::start("notify", move || {
            // The command must not inherit the right to listen on ports below 1024. This process may have none.
            let _ = rustix::thread::clear_ambient_capability_set();
            let (mut tracker, unread) = Tracker::open(&self.state, clock::monotonic());
            if let Some(error) = unread {
                tracing::error!("notify: {error}; all headlines are reported again");
            }
            let mut next = Look::default();
            while !self.is_stopping() {
                if catch_unwind(AssertUnwindSafe(|| self.do_once(&mut tracker, &mut next))).is_err() {
                    tracing::error!("notify failed with an internal error (a panic); please report it");
                }
                // Nothing is sent: the channel closes at the shutdown.
                if is_woken.recv_timeout(PERIOD) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        })?;
        Ok(RunningNotify { wake, thread })
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow() > ShutdownPhase::NotYet
    }

    /// Looks at the headlines if that is due, and runs the command if that is due.
    fn do_once(&self, tracker: &mut Tracker, look: &mut Look) {
        let began = clock::monotonic();
        if look.not_before.is_some_and(|at| began < at) {
            return;
        }
        let revision = self.admin_data.revision();
        if look.revision != Some(revision) || look.at.is_none_or(|at| began.duration_since(at) >= MAX_AGE) {
            let overview = self.admin_data.snapshot(&Scope::All).overview;
            let all = headlines(&overview);
            // Its own failure is for the log and the page: the command cannot report it.
            let all = all.iter().filter(|headline| headline.kind != HeadlineKind::NotifyFailed);
            look.headlines = all.map(reported).collect();
            look.domain = overview.domain;
            (look.revision, look.at) = (Some(revision), Some(began));
            look.not_before = Some(clock::monotonic() + clock::monotonic().duration_since(began) * COST_FACTOR);
        }
        // The shutdown itself is not a headline.
        if self.is_stopping() {
            return;
        }
        let time = clock::unix_seconds(clock::now());
        if let Some(report) = tracker.observe(clock::monotonic(), time, look.headlines.clone()) {
            self.run(tracker, report, &look.domain, time);
        }
    }

    fn run(&self, tracker: &mut Tracker, report: Report, domain: &str, time: i64) {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let message = match report.message(&host, domain, time) {
            Ok(message) => message,
            Err(error) => return tracing::error!("notify: cannot write the headlines as JSON: {error}"),
        };
        let ran = notify::run(&self.settings, &message, TIME_LIMIT, &|| self.is_stopping());
        if let Err(error) = &ran {
            tracing::error!("notify: {error}; the command runs again later");
        }
        self.health.record(ran.as_ref().err().map(|error| format!("notify: {error}")));
        if let Err(error) = tracker.ended(clock::monotonic(), report, ran.is_ok()) {
            tracing::error!(
                "notify: cannot write {}: {error}; a restart reports the headlines again",
                self.state.join(notify::FILE).display()
            );
        }
    }
}

/// The last look at the headlines, and when the next one is due.
#[derive(Debug, Default)]
struct Look {
    headlines: Vec<NotifyHeadline>,
    domain: String,
    revision: Option<u64>,
    at: Option<Instant>,
    not_before: Option<Instant>,
}

fn reported(headline: &Headline) -> NotifyHeadline {
    NotifyHeadline {
        key: headline.key(),
        kind: headline.kind.name(),
        object: headline.object.clone(),
        level: headline.level.name().to_owned(),
        text: headline.text(),
        since: String::new(),
        needs_uptime: headline.kind == HeadlineKind::PhonesSilent,
    }
}
