//! The watchdog: a thread that pings systemd while the server is alive, and sends its state (`sd_notify(3)`).
//!
//! Each ping goes through the runtime that serves, as a new task. If the runtime is stuck, no ping is sent, and systemd
//! restarts the server. If a monitored thread has ended, the server ends. A thread that is only late is logged: it waits
//! for a disk that hangs, a restart would not help, and the server goes on with the last known state.
//!
//! Only this thread sends to systemd, so a systemd that does not read blocks nothing else.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use crate::background::HeartbeatMonitor;
use crate::clock;
use crate::serve::Server;
use crate::serve::shutdown::ShutdownPhase;
use crate::wording::counted;

/// The longest time between two pings.
const MAX_PERIOD: Duration = Duration::from_secs(10);
/// Pings per watchdog timeout.
const PINGS_PER_TIMEOUT: u32 = 3;
/// How much time each ping asks for during a shutdown.
const DRAIN_EXTENSION: Duration = Duration::from_secs(40);
/// After how long without a heartbeat a thread is late.
const LATE_AFTER: Duration = Duration::from_mins(1);
/// How many changes of the state may wait.
const QUEUE: usize = 64;
const DAY_S: i64 = 86_400;

/// What the server does, for systemd.
#[derive(Debug, Clone, Copy)]
pub(super) enum ServiceState {
    /// It listens, and has read the folders.
    Ready,
    /// A reload is running. [`ServiceState::Ready`] ends it.
    Reloading,
    /// It still serves as usual for this many seconds (`limits.shutdown_delay_s`), and then shuts down.
    LameDuck(u64),
    Stopping,
}

/// The handle of the thread, which ends when this and its clones are dropped.
#[derive(Debug, Clone)]
pub(super) struct Watchdog(SyncSender<ServiceState>);

/// A thread that must be alive.
#[derive(Debug)]
pub(super) struct MonitoredThread {
    /// What the thread does.
    name: &'static str,
    heartbeat: HeartbeatMonitor,
    is_late: bool,
}

/// The thread's data.
struct WatchdogThread<N> {
    states: Receiver<ServiceState>,
    period: Duration,
    /// The runtime that serves.
    runtime: Handle,
    threads: Vec<MonitoredThread>,
    /// Receives the name of each monitored thread that has ended.
    ended: UnboundedSender<&'static str>,
    stop: watch::Receiver<ShutdownPhase>,
    /// The status line.
    status: Box<dyn Fn() -> String + Send>,
    last_status: String,
    notify: N,
}

impl Watchdog {
    /// Starts the thread. It needs the runtime of the caller, and works without systemd too: the receiver gets the name
    /// of each of `threads` that ends before shutdown.
    ///
    /// # Errors
    /// If the thread cannot start.
    pub(super) fn start(
        server: &Arc<Server>,
        threads: Vec<MonitoredThread>,
        stop: watch::Receiver<ShutdownPhase>,
    ) -> io::Result<(Self, UnboundedReceiver<&'static str>)> {
        // Weak, so that the server can be dropped at shutdown.
        let server = Arc::downgrade(server);
        let status = Box::new(move || status(&server));
        let timeout = sd_notify::watchdog_enabled();
        Self::start_with(timeout, threads, stop, status, notify_systemd())
    }

    fn start_with(
        timeout: Option<Duration>,
        threads: Vec<MonitoredThread>,
        stop: watch::Receiver<ShutdownPhase>,
        status: Box<dyn Fn() -> String + Send>,
        notify: impl FnMut(&[NotifyState<'_>]) + Send + 'static,
    ) -> io::Result<(Self, UnboundedReceiver<&'static str>)> {
        let (sender, states) = sync_channel(QUEUE);
        let (ended, has_ended) = unbounded_channel();
        let period = timeout.map_or(MAX_PERIOD, |timeout| timeout / PINGS_PER_TIMEOUT).min(MAX_PERIOD);
        let (runtime, last_status) = (Handle::current(), String::new());
        let thread = WatchdogThread { states, period, runtime, threads, ended, stop, status, last_status, notify };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || thread.run())?;
        Ok((Self(sender), has_ended))
    }

    /// Queues `state`. Drops it if the queue is full: systemd is not reading then.
    pub(super) fn send(&self, state: ServiceState) {
        let _ = self.0.try_send(state);
    }
}

impl MonitoredThread {
    pub(super) fn new(name: &'static str, heartbeat: HeartbeatMonitor) -> Self {
        Self { name, heartbeat, is_late: false }
    }

    /// Whether the thread is late at `now`. `None` if it has ended.
    fn examine(&mut self, now: Instant) -> Option<bool> {
        let is_late = now.saturating_duration_since(self.heartbeat.last()?) >= LATE_AFTER;
        match (std::mem::replace(&mut self.is_late, is_late), is_late) {
            (false, true) => tracing::error!(
                "watchdog: thread \"{}\" has not answered for {} s (hung disk?); still serving the last known state",
                self.name,
                LATE_AFTER.as_secs()
            ),
            (true, false) => tracing::info!("watchdog: thread \"{}\" answers again", self.name),
            _ => {}
        }
        Some(is_late)
    }
}

impl<N: FnMut(&[NotifyState<'_>])> WatchdogThread<N> {
    fn run(mut self) {
        let mut next_ping = clock::monotonic();
        loop {
            match self.states.recv_timeout(next_ping.saturating_duration_since(clock::monotonic())) {
                Ok(ServiceState::Ready) => (self.notify)(&[NotifyState::Ready]),
                Ok(ServiceState::Reloading) => {
                    // Type=notify-reload requires the time of the reload.
                    let time = NotifyState::monotonic_usec_now();
                    (self.notify)(&std::iter::once(NotifyState::Reloading).chain(time).collect::<Vec<_>>());
                }
                Ok(ServiceState::LameDuck(seconds)) => {
                    let status = format!("/readyz is 503 from now on; connections are served as usual for {seconds} s");
                    // The unit's timeout may be shorter than the period.
                    (self.notify)(&[NotifyState::Stopping, extension(), NotifyState::Status(&status)]);
                }
                Ok(ServiceState::Stopping) => (self.notify)(&[
                    NotifyState::Stopping,
                    NotifyState::Status("graceful shutdown: waiting for requests in progress"),
                ]),
                Err(RecvTimeoutError::Timeout) => {
                    self.ping();
                    next_ping = clock::monotonic() + self.period;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn ping(&mut self) {
        // A new task each time, which shows that the runtime still takes and completes work.
        let (done, is_done) = channel();
        self.runtime.spawn(async move { done.send(()) });
        if is_done.recv_timeout(self.period).is_err() {
            return;
        }
        if *self.stop.borrow() != ShutdownPhase::NotYet {
            return (self.notify)(&[NotifyState::Watchdog, extension()]);
        }
        let (now, mut late) = (clock::monotonic(), String::new());
        self.threads.retain_mut(|thread| match thread.examine(now) {
            Some(is_late) => {
                if is_late {
                    late.extend(["; thread \"", thread.name, "\" does not answer"]);
                }
                true
            }
            None => {
                // The receiver is gone during shutdown.
                let _ = self.ended.send(thread.name);
                false
            }
        });
        let status = (self.status)() + &late;
        if status == self.last_status {
            (self.notify)(&[NotifyState::Watchdog]);
        } else {
            (self.notify)(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
            self.last_status = status;
        }
    }
}

/// Asks systemd to wait longer for the end of the shutdown.
fn extension() -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(DRAIN_EXTENSION.as_micros()).unwrap_or(u32::MAX))
}

/// Sends to systemd, if it set `NOTIFY_SOCKET`. A failure is logged once.
fn notify_systemd() -> impl FnMut(&[NotifyState<'_>]) {
    let mut is_delivered = true;
    move |states| {
        let sent = sd_notify::notify(states);
        let was_delivered = std::mem::replace(&mut is_delivered, sent.is_ok());
        if let (true, Err(error)) = (was_delivered, sent) {
            tracing::warn!("cannot send the service status to systemd (NOTIFY_SOCKET): {error}");
        }
    }
}

/// The status line of `server`.
fn status(server: &Weak<Server>) -> String {
    let Some(server) = server.upgrade() else { return String::new() };
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
    use super::*;
    use crate::background::Heartbeat;

    const WATCHDOG: Duration = Duration::from_millis(30);
    /// How long a test waits for an expected notification.
    const SOON: Duration = Duration::from_secs(20);
    /// How long a test waits to see that no notification comes.
    const MANY_PERIODS: Duration = Duration::from_millis(300);

    /// A runtime with one worker, and a watchdog of `threads` on it with what it sends.
    struct Watched {
        runtime: tokio::runtime::Runtime,
        _watchdog: Watchdog,
        ended: UnboundedReceiver<&'static str>,
        stop: watch::Sender<ShutdownPhase>,
        sent: Receiver<Vec<String>>,
    }

    fn watched(threads: Vec<MonitoredThread>) -> Watched {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        let (stop, stopping) = watch::channel(ShutdownPhase::NotYet);
        let (sender, sent) = channel();
        // The send fails at the end of the test.
        let notify =
            move |states: &[NotifyState<'_>]| drop(sender.send(states.iter().map(ToString::to_string).collect()));
        let status = Box::new(|| "well".to_owned());
        let (watchdog, ended) = Watchdog::start_with(Some(WATCHDOG), threads, stopping, status, notify).unwrap();
        drop(entered);
        Watched { runtime, _watchdog: watchdog, ended, stop, sent }
    }

    #[test]
    fn pings_status_once_and_timeout_extension_during_drain() {
        let watched = watched(Vec::new());
        assert_eq!(watched.sent.recv_timeout(SOON).unwrap(), ["WATCHDOG=1", "STATUS=well"]);
        assert_eq!(watched.sent.recv_timeout(SOON).unwrap(), ["WATCHDOG=1"]);
        watched.stop.send(ShutdownPhase::Drain).unwrap();
        let mut later = std::iter::repeat_with(|| watched.sent.recv_timeout(SOON).unwrap()).take(1000);
        assert!(later.any(|sent| sent == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=40000000"]));
    }

    #[test]
    fn no_ping_while_the_runtime_is_stuck() {
        let watched = watched(Vec::new());
        watched.sent.recv_timeout(SOON).unwrap();
        let (release, released) = channel::<()>();
        let (stuck, is_stuck) = channel();
        watched.runtime.spawn(async move {
            stuck.send(()).unwrap();
            // Blocks the runtime, as a task must not.
            let _ = released.recv();
        });
        is_stuck.recv_timeout(SOON).unwrap();
        // One ping may have passed the runtime before it was stuck.
        let _ = watched.sent.recv_timeout(MANY_PERIODS);
        while watched.sent.try_recv().is_ok() {}
        assert!(watched.sent.recv_timeout(MANY_PERIODS).is_err());
        release.send(()).unwrap();
        watched.sent.recv_timeout(SOON).unwrap();
    }

    #[test]
    fn ended_thread_is_reported_by_its_name() {
        let (heartbeat, monitor) = Heartbeat::start();
        let mut watched = watched(vec![MonitoredThread::new("sings", monitor)]);
        watched.sent.recv_timeout(SOON).unwrap();
        assert!(watched.ended.try_recv().is_err());
        drop(heartbeat);
        assert_eq!(watched.ended.blocking_recv(), Some("sings"));
    }

    #[test]
    fn late_thread_is_late_until_its_next_heartbeat() {
        let (heartbeat, monitor) = Heartbeat::start();
        let mut thread = MonitoredThread::new("sings", monitor);
        let start = thread.heartbeat.last().unwrap();
        assert_eq!(thread.examine(start + LATE_AFTER / 2), Some(false));
        assert_eq!(thread.examine(start + LATE_AFTER), Some(true));
        heartbeat.beat();
        assert_eq!(thread.examine(thread.heartbeat.last().unwrap()), Some(false));
        drop(heartbeat);
        assert_eq!(thread.examine(start), None);
    }
}
