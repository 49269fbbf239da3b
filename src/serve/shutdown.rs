//! How connections are told that the server stops, and how they end.

use tokio::sync::watch;

/// What connections are told about the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownPhase {
    /// Nothing yet.
    #[default]
    NotYet,
    /// What is under way may end, for as long as a drain may take.
    Drain,
    /// Nothing may.
    Now,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// By either end, in order or not.
    Closed,
    /// By us, because the drain was over.
    CutOff,
}

/// Waits until `what` is told, or more; if nobody is left to tell, that is told too.
pub async fn told(stop: &mut watch::Receiver<ShutdownPhase>, what: ShutdownPhase) {
    let _ = stop.wait_for(|told| *told >= what).await;
}
