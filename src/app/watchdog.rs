//! The heart: tells the supervisor that we live, as long as that is so, and how we are.
//!
//! A beat goes through the runtime that serves, as a task of its own: if that makes no progress, none is told, and the
//! supervisor starts us again. So it is when a thread that must be there has ended. A thread that does not come round is
//! told, but no reason to end: it reads from a disk that does not answer, a restart would not mend the disk, and what is
//! served from elsewhere goes on.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::denials::DenialsFollower;
use super::reloader::Reloader;
use super::service_notify::{Notification, ServiceNotifier};
use crate::clock;
use crate::constituency::watch::WatcherHandle;
use crate::serve::Server;
use crate::serve::shutdown::ShutdownPhase;
use crate::wording::counted;

/// The longest time between two beats.
const LONGEST_PERIOD: Duration = Duration::from_secs(10);
/// How many times in the time that a watchdog waits.
const BEATS: u32 = 3;
/// A drain asks for so much more time at each beat.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long a thread may take to come round before that is told.
const LONG: Duration = Duration::from_mins(1);
const DAY_S: i64 = 86_400;

/// A thread that must be there.
struct MonitoredThread {
    /// What it does.
    name: &'static str,
    /// Asks it to answer when it comes round; `None` if it has ended.
    ask: Box<dyn Fn() -> Option<Receiver<()>> + Send>,
    asked: Option<(Receiver<()>, Instant)>,
    is_late: bool,
}

/// How an organ is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ThreadHealth {
    Good,
    Late,
    Dead,
}

/// What beats.
pub(super) struct Watchdog {
    supervisor: ServiceNotifier,
    organs: Vec<MonitoredThread>,
    /// Whether it is being stopped.
    stop: watch::Receiver<ShutdownPhase>,
    /// How the server is, in a line.
    status: Box<dyn Fn() -> String + Send>,
}

impl MonitoredThread {
    fn new(name: &'static str, ask: impl Fn() -> Option<Receiver<()>> + Send + 'static) -> Self {
        Self { name, ask: Box::new(ask), asked: None, is_late: false }
    }

    /// Asks once at a time.
    fn examine(&mut self, now: Instant) -> ThreadHealth {
        let since = match self.asked.take() {
            Some((answer, since)) => match answer.try_recv() {
                Ok(()) => now,
                Err(TryRecvError::Empty) => {
                    self.asked = Some((answer, since));
                    since
                }
                Err(TryRecvError::Disconnected) => return ThreadHealth::Dead,
            },
            None => now,
        };
        if self.asked.is_none() {
            let Some(answer) = (self.ask)() else { return ThreadHealth::Dead };
            self.asked = Some((answer, now));
        }
        let is_late = now.duration_since(since) >= LONG;
        match (std::mem::replace(&mut self.is_late, is_late), is_late) {
            (false, true) => tracing::error!(
                "the thread that {} has not come round for {} s: does a disk not answer? What is served stays as it was",
                self.name,
                LONG.as_secs()
            ),
            (true, false) => tracing::info!("the thread that {} has come round again", self.name),
            _ => {}
        }
        if is_late { ThreadHealth::Late } else { ThreadHealth::Good }
    }
}

impl Watchdog {
    /// The heart of `server`, which cannot do without the threads behind `waker`, `upkeep` and `denials`.
    pub(super) fn new(
        server: &Arc<Server>,
        (waker, upkeep, denials): (&WatcherHandle, &Reloader, &DenialsFollower),
        supervisor: &ServiceNotifier,
        stop: watch::Receiver<ShutdownPhase>,
    ) -> Self {
        let (waker, upkeep, denials, server) = (waker.clone(), upkeep.clone(), denials.clone(), Arc::clone(server));
        let organs = vec![
            MonitoredThread::new("follows the constituencies", move || waker.ask()),
            MonitoredThread::new("follows certificates", move || upkeep.ask()),
            MonitoredThread::new("follows the server-wide denials", move || denials.ask()),
        ];
        Self { supervisor: supervisor.clone(), organs, stop, status: Box::new(move || status(&server)) }
    }

    /// Beats until it is dropped, or an organ is dead.
    pub(super) async fn run(mut self) {
        let period = self.supervisor.watchdog.map_or(LONGEST_PERIOD, |watchdog| watchdog / BEATS).min(LONGEST_PERIOD);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = String::new();
        loop {
            ticks.tick().await;
            // A new task each time: the runtime must still take on work, and get it done.
            let mut errand = JoinSet::new();
            errand.spawn(async {});
            errand.join_next().await;
            let now = clock::monotonic();
            let health: Vec<(&str, ThreadHealth)> =
                self.organs.iter_mut().map(|organ| (organ.name, organ.examine(now))).collect();
            if let Some((name, _)) = health.iter().find(|(_, health)| *health == ThreadHealth::Dead) {
                tracing::error!("the thread that {name} has ended by a defect of provost; provost must be restarted");
                return;
            }
            let mut words = vec![Notification::Alive];
            if *self.stop.borrow() == ShutdownPhase::NotYet {
                let late = health.iter().filter(|(_, health)| *health == ThreadHealth::Late);
                let late = late.map(|(name, _)| format!("; the thread that {name} does not come round"));
                let status = (self.status)() + &late.collect::<String>();
                if status != told {
                    words.push(Notification::Status(status.clone()));
                    told = status;
                }
            } else {
                words.push(Notification::Patience(PATIENCE));
            }
            self.supervisor.send(words);
        }
    }
}

/// How `server` is, in a line.
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
    /// How long a test waits for what must come.
    const SOON: Duration = Duration::from_secs(20);
    /// How long a test waits for what must not come.
    const MANY_BEATS: Duration = Duration::from_millis(300);

    /// A heart with one organ, what it says, the word by which it is told to stop, and the organ's way to be asked.
    fn heart(
        ask: impl Fn() -> Option<Receiver<()>> + Send + 'static,
    ) -> (Watchdog, Receiver<Vec<Notification>>, watch::Sender<ShutdownPhase>) {
        let (supervisor, said) = ServiceNotifier::of_a_test(WATCHDOG);
        let (stopping, stop) = watch::channel(ShutdownPhase::NotYet);
        let organs = vec![MonitoredThread::new("sings", ask)];
        (Watchdog { supervisor, organs, stop, status: Box::new(|| "well".to_owned()) }, said, stopping)
    }

    /// An organ that comes round at once.
    fn prompt() -> Option<Receiver<()>> {
        let (answer, answered) = channel();
        answer.send(()).ok()?;
        Some(answered)
    }

    fn one_worker() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    #[test]
    fn it_beats_and_says_once_how_it_is_and_asks_for_time_while_it_ends() {
        let (heart, said, stopping) = heart(prompt);
        let runtime = one_worker();
        runtime.spawn(heart.run());
        assert_eq!(said.recv_timeout(SOON).unwrap(), [Notification::Alive, Notification::Status("well".to_owned())]);
        assert_eq!(said.recv_timeout(SOON).unwrap(), [Notification::Alive]);
        stopping.send(ShutdownPhase::Drain).unwrap();
        let ending = [Notification::Alive, Notification::Patience(PATIENCE)];
        assert!(std::iter::repeat_with(|| said.recv_timeout(SOON).unwrap()).take(1000).any(|words| words == ending));
    }

    #[test]
    fn it_does_not_beat_while_the_runtime_is_stuck() {
        let (heart, said, _stopping) = heart(prompt);
        let runtime = one_worker();
        runtime.spawn(heart.run());
        said.recv_timeout(SOON).unwrap();
        let (release, released) = channel::<()>();
        let (stuck, is_stuck) = channel();
        runtime.spawn(async move {
            stuck.send(()).unwrap();
            // What a task must not do.
            let _ = released.recv();
        });
        is_stuck.recv_timeout(SOON).unwrap();
        while said.try_recv().is_ok() {}
        assert!(said.recv_timeout(MANY_BEATS).is_err());
        release.send(()).unwrap();
        said.recv_timeout(SOON).unwrap();
    }

    #[test]
    fn it_does_not_beat_when_a_thread_has_ended() {
        for ask in [|| None, || Some(channel().1)] {
            let (heart, said, _stopping) = heart(ask);
            let runtime = one_worker();
            let ended = runtime.spawn(heart.run());
            runtime.block_on(ended).unwrap();
            let beats = said.try_iter().count();
            assert!(beats <= 1, "{beats}");
        }
    }

    #[test]
    fn a_thread_that_does_not_come_round_is_told_once_it_is_late_and_not_when_it_is_back() {
        let (answers, answer) = channel::<Sender<()>>();
        let mut organ = MonitoredThread::new("sings", move || {
            let (sender, receiver) = channel();
            answers.send(sender).ok()?;
            Some(receiver)
        });
        let start = clock::monotonic();
        assert_eq!(organ.examine(start), ThreadHealth::Good);
        assert_eq!(organ.examine(start + LONG / 2), ThreadHealth::Good);
        assert_eq!(organ.examine(start + LONG), ThreadHealth::Late);
        answer.recv().unwrap().send(()).unwrap();
        assert_eq!(organ.examine(start + LONG * 2), ThreadHealth::Good);
        assert_eq!(answer.try_iter().count(), 1, "it is asked again");
    }
}
