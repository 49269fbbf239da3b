//! Graceful shutdown: the phases that connections go through, and how connections end.

use tokio::sync::watch;

/// The phase of the shutdown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownPhase {
    /// The server runs.
    #[default]
    NotYet,
    /// The server serves as before, but `/readyz` says that it is about to stop (`limits.shutdown_delay_s`).
    LameDuck,
    /// Requests in progress may finish, within the drain time (`limits.drain_s`). All other connections close.
    Drain,
    /// All connections are cut off.
    Now,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// By either end, cleanly or not.
    Closed,
    /// By the server, because the drain time was over or a second signal came.
    CutOff,
}

/// Waits until the shutdown reaches `phase` or a later one. Returns at once if the sender is gone.
pub async fn wait_for(shutdown: &mut watch::Receiver<ShutdownPhase>, phase: ShutdownPhase) {
    let _ = shutdown.wait_for(|current| *current >= phase).await;
}
