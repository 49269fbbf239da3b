//! What systemd is told of us (`sd_notify(3)`), if it asked to be told: that we are ready, read everything again, end, live,
//! and how we are.
//!
//! A thread tells it, in the order in which it was said: a supervisor that does not listen holds nobody up.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// How much may wait to be told.
const QUEUE: usize = 64;
/// Who asks to be told.
const ASKS: &str = "NOTIFY_SOCKET";

/// A word to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notification {
    /// It listens, and the folders have been read.
    Ready,
    /// Everything is read again, until it is ready.
    Reloading,
    /// It ends.
    Stopping,
    /// It makes progress.
    Alive,
    /// It needs so long from now on, or says so again.
    Patience(Duration),
    /// How it is, in a line.
    Status(String),
}

/// The way to the supervisor. Without one, everything is said to nobody.
#[derive(Debug, Clone)]
pub(super) struct ServiceNotifier {
    words: Option<SyncSender<Vec<Notification>>>,
    /// Within what time it wants to hear that we live.
    pub(super) watchdog: Option<Duration>,
}

impl ServiceNotifier {
    /// The supervisor that started this process, if it is one.
    pub(super) fn from_environment() -> std::io::Result<Self> {
        if std::env::var_os(ASKS).is_none() {
            return Ok(Self { words: None, watchdog: None });
        }
        let (words, said) = sync_channel(QUEUE);
        std::thread::Builder::new().name("supervisor".to_owned()).spawn(move || send_all(&said))?;
        Ok(Self { words: Some(words), watchdog: sd_notify::watchdog_enabled() })
    }

    /// Whether anybody listens.
    pub(super) fn is_enabled(&self) -> bool {
        self.words.is_some()
    }

    /// Says it. What finds no place is lost: so much waits only for somebody who does not listen.
    pub(super) fn send(&self, words: Vec<Notification>) {
        if let Some(queue) = &self.words {
            let _ = queue.try_send(words);
        }
    }

    /// A supervisor that writes down what it is told.
    #[cfg(test)]
    pub(super) fn of_a_test(watchdog: Duration) -> (Self, Receiver<Vec<Notification>>) {
        let (words, said) = sync_channel(1000);
        (Self { words: Some(words), watchdog: Some(watchdog) }, said)
    }
}

fn send_all(said: &Receiver<Vec<Notification>>) {
    let mut is_heard = true;
    while let Ok(words) = said.recv() {
        let told = sd_notify::notify(&words.iter().flat_map(state).collect::<Vec<_>>());
        let was_heard = std::mem::replace(&mut is_heard, told.is_ok());
        if let (true, Err(error)) = (was_heard, told) {
            tracing::warn!("systemd cannot be told how this server is ({ASKS}): {error}");
        }
    }
}

/// How systemd calls it.
fn state(word: &Notification) -> Vec<NotifyState<'_>> {
    match word {
        Notification::Ready => vec![NotifyState::Ready],
        // Since when, as a unit of Type=notify-reload must be told.
        Notification::Reloading => {
            [Some(NotifyState::Reloading), NotifyState::monotonic_usec_now().ok()].into_iter().flatten().collect()
        }
        Notification::Stopping => vec![NotifyState::Stopping],
        Notification::Alive => vec![NotifyState::Watchdog],
        Notification::Patience(time) => {
            vec![NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]
        }
        Notification::Status(line) => vec![NotifyState::Status(line)],
    }
}
