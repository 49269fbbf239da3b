//! Handshakes that led to nothing.

use std::fmt;
use std::pin::Pin;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::constituency::ConstituencyName;
use crate::identity::trust::ClaimedIdentity;

/// A handshake that led to nothing, and why.
#[derive(Debug)]
pub struct RejectedHandshake {
    /// The constituency, if it came so far.
    pub constituency: Option<ConstituencyName>,
    /// Of which kind the reason is: one of a few words.
    pub kind: &'static str,
    /// For the operator.
    pub reason: String,
    /// Who the refused certificate says it is.
    pub claim: Option<ClaimedIdentity>,
    /// Whether it came so far as the old lane.
    pub is_of_old_lane: bool,
    /// The close of its connection, where the client was told something; without one it is closed at once.
    pub close: Option<Close>,
}

/// The close of a connection, however long that takes.
pub struct Close(Pin<Box<dyn Future<Output = ()> + Send>>);

impl RejectedHandshake {
    /// Refused before anybody had said who they are.
    pub(in crate::serve) fn because(
        constituency: Option<ConstituencyName>,
        kind: &'static str,
        reason: String,
    ) -> Self {
        Self { constituency, kind, reason, claim: None, is_of_old_lane: false, close: None }
    }

    /// The same, whose alert has been written to `stream`; unless it was the client that ended it, who waits for nothing.
    pub(super) fn told_on<S: AsyncWrite + Unpin + Send + 'static>(self, mut stream: S) -> Self {
        if [super::CLIENT_ALERT, super::BROKEN_OFF].contains(&self.kind) {
            return self;
        }
        let close = async move {
            // A client that is gone needs none.
            let _ = stream.shutdown().await;
        };
        Self { close: Some(Close(Box::pin(close))), ..self }
    }
}

impl Close {
    /// Closes.
    pub async fn finish(self) {
        self.0.await;
    }
}

impl fmt::Debug for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Close")
    }
}
