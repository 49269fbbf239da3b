//! Notifies systemd (`sd_notify(3)`), if it set `NOTIFY_SOCKET`: ready, reloading, stopping, watchdog, and a status
//! line.
//!
//! A thread sends the notifications in order, so that a systemd that does not read does not block the server.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// How many batches of notifications may wait.
const QUEUE: usize = 64;
/// The environment variable with systemd's socket.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// A notification to systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notification {
    /// The server listens, and has read the folders.
    Ready,
    /// A reload is running. [`Notification::Ready`] ends it.
    Reloading,
    /// The server is shutting down.
    Stopping,
    /// The keep-alive ping of the watchdog.
    Alive,
    /// Extends the start or stop timeout to this long from now. Must be repeated before that.
    ExtendTimeout(Duration),
    /// The state of the server, in a line.
    Status(String),
}

/// Sends notifications to systemd. Does nothing if systemd did not ask for them.
#[derive(Debug, Clone)]
pub(super) struct ServiceNotifier {
    notifications: Option<SyncSender<Vec<Notification>>>,
    /// The watchdog timeout of the unit.
    pub(super) watchdog: Option<Duration>,
}

impl ServiceNotifier {
    /// Reads the environment that systemd sets.
    pub(super) fn from_environment() -> std::io::Result<Self> {
        if std::env::var_os(NOTIFY_SOCKET).is_none() {
            return Ok(Self { notifications: None, watchdog: None });
        }
        let (notifications, received) = sync_channel(QUEUE);
        std::thread::Builder::new().name("service-notify".to_owned()).spawn(move || send_all(&received))?;
        Ok(Self { notifications: Some(notifications), watchdog: sd_notify::watchdog_enabled() })
    }

    /// Whether systemd asked for notifications.
    pub(super) fn is_enabled(&self) -> bool {
        self.notifications.is_some()
    }

    /// Queues the notifications. Drops them if the queue is full: systemd is not reading then.
    pub(super) fn send(&self, notifications: Vec<Notification>) {
        if let Some(queue) = &self.notifications {
            let _ = queue.try_send(notifications);
        }
    }

    /// A notifier whose notifications the test receives.
    #[cfg(test)]
    pub(super) fn of_a_test(watchdog: Duration) -> (Self, Receiver<Vec<Notification>>) {
        let (notifications, received) = sync_channel(1000);
        (Self { notifications: Some(notifications), watchdog: Some(watchdog) }, received)
    }
}

fn send_all(received: &Receiver<Vec<Notification>>) {
    let mut is_delivered = true;
    while let Ok(notifications) = received.recv() {
        let sent = sd_notify::notify(&notifications.iter().flat_map(state).collect::<Vec<_>>());
        let was_delivered = std::mem::replace(&mut is_delivered, sent.is_ok());
        if let (true, Err(error)) = (was_delivered, sent) {
            tracing::warn!("cannot send the service status to systemd ({NOTIFY_SOCKET}): {error}");
        }
    }
}

/// The notification in terms of `sd_notify`.
fn state(notification: &Notification) -> Vec<NotifyState<'_>> {
    match notification {
        Notification::Ready => vec![NotifyState::Ready],
        // Type=notify-reload requires the time of the reload.
        Notification::Reloading => {
            [Some(NotifyState::Reloading), NotifyState::monotonic_usec_now().ok()].into_iter().flatten().collect()
        }
        Notification::Stopping => vec![NotifyState::Stopping],
        Notification::Alive => vec![NotifyState::Watchdog],
        Notification::ExtendTimeout(time) => {
            vec![NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]
        }
        Notification::Status(line) => vec![NotifyState::Status(line)],
    }
}
