//! The signals from an operator or from systemd.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::task::JoinSet;

use super::reloader::Reloader;
use super::watchdog::{ServiceState, Watchdog};

/// The action of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// Graceful shutdown. Has the signal's name.
    Stop(&'static str),
    /// Reload everything.
    Reload,
}

/// SIGTERM, SIGINT and SIGHUP.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hang_up: Stream,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }

    /// Reloads at each SIGHUP. Returns the name of the signal at SIGTERM or SIGINT.
    pub(super) async fn handle(&mut self, reloader: &Reloader, watchdog: &Watchdog) -> &'static str {
        let mut reloads = JoinSet::new();
        loop {
            tokio::select! {
                signal = self.next() => match signal {
                    Signal::Stop(name) => return name,
                    Signal::Reload => {
                        watchdog.send(ServiceState::Reloading);
                        reloads.spawn(reloader.reload());
                    }
                },
                Some(_) = reloads.join_next() => if reloads.is_empty() {
                    watchdog.send(ServiceState::Ready);
                },
            }
        }
    }

    /// Waits for SIGTERM or SIGINT, and ignores SIGHUP. Returns the name.
    pub(super) async fn next_stop(&mut self) -> &'static str {
        loop {
            if let Signal::Stop(name) = self.next().await {
                return name;
            }
        }
    }
}
