//! The watchdog: pings systemd while the server is alive, and sends its status line.
//!
//! Each ping goes through the runtime that serves, as a new task. If the runtime is stuck, no ping is sent, and systemd
//! restarts the server. The same holds if a monitored thread has ended. A thread that is only late is logged and does
//! not stop the pings: it waits for a disk that hangs, a restart would not help, and the server goes on with the last
//! known state.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::denials::DenialsThread;
use super::reloader::Reloader;
use super::service_notify::{Notification, ServiceNotifier};
use crate::clock;
use crate::constituency::watch::WatcherHandle;
use crate::serve::Server;
use crate::serve::shutdown::ShutdownPhase;
use crate::wording::counted;

/// The longest time between two pings.
const MAX_PERIOD: Duration = Duration::from_secs(10);
/// Pings per watchdog timeout.
const PINGS_PER_TIMEOUT: u32 = 3;
/// How much time each ping asks for during a drain.
const DRAIN_EXTENSION: Duration = Duration::from_secs(40);
/// After how long without an answer a thread is late.
const LATE_AFTER: Duration = Duration::from_mins(1);
const DAY_S: i64 = 86_400;

/// A thread that must be alive.
struct MonitoredThread {
    /// What the thread does.
    name: &'static str,
    /// Asks the thread to answer in its next iteration. `None` if the thread has ended.
    probe: Box<dyn Fn() -> Option<Receiver<()>> + Send>,
    pending: Option<(Receiver<()>, Instant)>,
    is_late: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ThreadHealth {
    Good,
    Late,
    Dead,
}

pub(super) struct Watchdog {
    notifier: ServiceNotifier,
    threads: Vec<MonitoredThread>,
    /// The phase of the shutdown.
    stop: watch::Receiver<ShutdownPhase>,
    /// The status line.
    status: Box<dyn Fn() -> String + Send>,
}

impl MonitoredThread {
    fn new(name: &'static str, probe: impl Fn() -> Option<Receiver<()>> + Send + 'static) -> Self {
        Self { name, probe: Box::new(probe), pending: None, is_late: false }
    }

    /// Checks the thread. At most one question is pending at a time.
    fn examine(&mut self, now: Instant) -> ThreadHealth {
        let since = match self.pending.take() {
            Some((answer, since)) => match answer.try_recv() {
                Ok(()) => now,
                Err(TryRecvError::Empty) => {
                    self.pending = Some((answer, since));
                    since
                }
                Err(TryRecvError::Disconnected) => return ThreadHealth::Dead,
            },
            None => now,
        };
        if self.pending.is_none() {
            let Some(answer) = (self.probe)() else { return ThreadHealth::Dead };
            self.pending = Some((answer, now));
        }
        let is_late = now.duration_since(since) >= LATE_AFTER;
        match (std::mem::replace(&mut self.is_late, is_late), is_late) {
            (false, true) => tracing::error!(
                "watchdog: thread \"{}\" has not answered for {} s (hung disk?); still serving the last known state",
                self.name,
                LATE_AFTER.as_secs()
            ),
            (true, false) => tracing::info!("watchdog: thread \"{}\" answers again", self.name),
            _ => {}
        }
        if is_late { ThreadHealth::Late } else { ThreadHealth::Good }
    }
}

impl Watchdog {
    /// A watchdog of `server` that monitors the threads behind `watcher`, `reloader` and `denials`.
    pub(super) fn new(
        server: &Arc<Server>,
        (watcher, reloader, denials): (&WatcherHandle, &Reloader, &DenialsThread),
        notifier: &ServiceNotifier,
        stop: watch::Receiver<ShutdownPhase>,
    ) -> Self {
        let (watcher, reloader, denials, server) =
            (watcher.clone(), reloader.clone(), denials.clone(), Arc::clone(server));
        let threads = vec![
            MonitoredThread::new("constituencies", move || watcher.ping()),
            MonitoredThread::new("reloader", move || reloader.probe()),
            MonitoredThread::new("denials", move || denials.probe()),
        ];
        Self { notifier: notifier.clone(), threads, stop, status: Box::new(move || status(&server)) }
    }

    /// Pings until it is dropped or a monitored thread is dead.
    pub(super) async fn run(mut self) {
        let period = self.notifier.watchdog.map_or(MAX_PERIOD, |watchdog| watchdog / PINGS_PER_TIMEOUT).min(MAX_PERIOD);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_status = String::new();
        loop {
            ticks.tick().await;
            // A new task each time, which shows that the runtime still takes and completes work.
            let mut probe = JoinSet::new();
            probe.spawn(async {});
            probe.join_next().await;
            let now = clock::monotonic();
            let health: Vec<(&str, ThreadHealth)> =
                self.threads.iter_mut().map(|thread| (thread.name, thread.examine(now))).collect();
            if let Some((name, _)) = health.iter().find(|(_, health)| *health == ThreadHealth::Dead) {
                tracing::error!(
                    "watchdog: thread \"{name}\" has ended with an internal error; ending provost; please report it"
                );
                return;
            }
            let mut notifications = vec![Notification::Alive];
            if *self.stop.borrow() == ShutdownPhase::NotYet {
                let late = health.iter().filter(|(_, health)| *health == ThreadHealth::Late);
                let late = late.map(|(name, _)| format!("; thread \"{name}\" does not answer"));
                let status = (self.status)() + &late.collect::<String>();
                if status != last_status {
                    notifications.push(Notification::Status(status.clone()));
                    last_status = status;
                }
            } else {
                notifications.push(Notification::ExtendTimeout(DRAIN_EXTENSION));
            }
            self.notifier.send(notifications);
        }
    }
}

/// The status line of `server`.
fn status(server: &Arc<Server>) -> String {
    let constituencies = counted(server.site.load().registry().served().count(), "constituency");
    let last = server.certificates.current().iter().map(|certificate| certificate.not_after).min();
    let certificate = match last.map(|last| (last - clock::unix_seconds(clock::now())) / DAY_S) {
        None => "no certificate yet".to_owned(),
        Some(days) if days < 0 => "the certificate has expired".to_owned(),
        Some(days) => format!("the certificate ends in {}", counted(days, "day")),
    };
    format!("{constituencies}; {certificate}")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    const WATCHDOG: Duration = Duration::from_millis(30);
    /// How long a test waits for an expected notification.
    const SOON: Duration = Duration::from_secs(20);
    /// How long a test waits to see that no notification comes.
    const MANY_PERIODS: Duration = Duration::from_millis(300);

    /// A watchdog with one monitored thread, its notifications, and the sender of the shutdown.
    fn watchdog(
        probe: impl Fn() -> Option<Receiver<()>> + Send + 'static,
    ) -> (Watchdog, Receiver<Vec<Notification>>, watch::Sender<ShutdownPhase>) {
        let (notifier, received) = ServiceNotifier::of_a_test(WATCHDOG);
        let (stopping, stop) = watch::channel(ShutdownPhase::NotYet);
        let threads = vec![MonitoredThread::new("sings", probe)];
        (Watchdog { notifier, threads, stop, status: Box::new(|| "well".to_owned()) }, received, stopping)
    }

    /// A thread that answers at once.
    fn prompt() -> Option<Receiver<()>> {
        let (answer, answered) = channel();
        answer.send(()).ok()?;
        Some(answered)
    }

    fn one_worker() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    #[test]
    fn pings_status_once_and_timeout_extension_during_drain() {
        let (watchdog, received, stopping) = watchdog(prompt);
        let runtime = one_worker();
        runtime.spawn(watchdog.run());
        assert_eq!(
            received.recv_timeout(SOON).unwrap(),
            [Notification::Alive, Notification::Status("well".to_owned())]
        );
        assert_eq!(received.recv_timeout(SOON).unwrap(), [Notification::Alive]);
        stopping.send(ShutdownPhase::Drain).unwrap();
        let ending = [Notification::Alive, Notification::ExtendTimeout(DRAIN_EXTENSION)];
        assert!(
            std::iter::repeat_with(|| received.recv_timeout(SOON).unwrap())
                .take(1000)
                .any(|notifications| notifications == ending)
        );
    }

    #[test]
    fn no_ping_while_the_runtime_is_stuck() {
        let (watchdog, received, _stopping) = watchdog(prompt);
        let runtime = one_worker();
        runtime.spawn(watchdog.run());
        received.recv_timeout(SOON).unwrap();
        let (release, released) = channel::<()>();
        let (stuck, is_stuck) = channel();
        runtime.spawn(async move {
            stuck.send(()).unwrap();
            // Blocks the runtime, as a task must not.
            let _ = released.recv();
        });
        is_stuck.recv_timeout(SOON).unwrap();
        while received.try_recv().is_ok() {}
        assert!(received.recv_timeout(MANY_PERIODS).is_err());
        release.send(()).unwrap();
        received.recv_timeout(SOON).unwrap();
    }

    #[test]
    fn no_ping_after_a_thread_has_ended() {
        for probe in [|| None, || Some(channel().1)] {
            let (watchdog, received, _stopping) = watchdog(probe);
            let runtime = one_worker();
            let ended = runtime.spawn(watchdog.run());
            runtime.block_on(ended).unwrap();
            let pings = received.try_iter().count();
            assert!(pings <= 1, "{pings}");
        }
    }

    #[test]
    fn late_thread_is_in_the_status_until_it_answers() {
        let (answers, answer) = channel::<Sender<()>>();
        let mut thread = MonitoredThread::new("sings", move || {
            let (sender, receiver) = channel();
            answers.send(sender).ok()?;
            Some(receiver)
        });
        let start = clock::monotonic();
        assert_eq!(thread.examine(start), ThreadHealth::Good);
        assert_eq!(thread.examine(start + LATE_AFTER / 2), ThreadHealth::Good);
        assert_eq!(thread.examine(start + LATE_AFTER), ThreadHealth::Late);
        answer.recv().unwrap().send(()).unwrap();
        assert_eq!(thread.examine(start + LATE_AFTER * 2), ThreadHealth::Good);
        assert_eq!(answer.try_iter().count(), 1, "it is asked again");
    }
}
