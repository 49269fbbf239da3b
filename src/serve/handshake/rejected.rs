//! Rejected handshakes.

use std::fmt;
use std::pin::Pin;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::constituency::ConstituencyName;
use crate::identity::trust::ClaimedIdentity;
use crate::metrics::RefusalKind;

/// A rejected or failed handshake, with the reason.
#[derive(Debug)]
pub struct RejectedHandshake {
    /// The constituency, if it was found.
    pub constituency: Option<ConstituencyName>,
    pub kind: RefusalKind,
    /// The reason, for the operator.
    pub reason: String,
    /// The identity in the rejected certificate.
    pub claim: Option<ClaimedIdentity>,
    /// Whether OpenSSL ran the handshake.
    pub is_openssl: bool,
    /// Whether the client closed the connection before it sent anything.
    pub sent_nothing: bool,
    /// Closes the connection gracefully, if we sent something; `None` closes it at once.
    pub close: Option<Close>,
}

/// A pending close of a connection.
pub struct Close(Pin<Box<dyn Future<Output = ()> + Send>>);

impl RejectedHandshake {
    /// A rejection before the client has claimed an identity.
    pub(in crate::serve) fn because(constituency: Option<ConstituencyName>, kind: RefusalKind, reason: String) -> Self {
        Self { constituency, kind, reason, claim: None, is_openssl: false, sent_nothing: false, close: None }
    }

    /// Adds a graceful close of `stream`, to which the alert was written. Does nothing if the client ended the
    /// connection.
    pub(super) fn with_close<S: AsyncWrite + Unpin + Send + 'static>(self, mut stream: S) -> Self {
        if matches!(self.kind, RefusalKind::ClientAlert | RefusalKind::Disconnected) {
            return self;
        }
        let close = async move {
            // Ignore errors: the client may be gone.
            let _ = stream.shutdown().await;
        };
        Self { close: Some(Close(Box::pin(close))), ..self }
    }
}

impl Close {
    /// Closes the connection, and waits until it is closed.
    pub async fn finish(self) {
        self.0.await;
    }
}

impl fmt::Debug for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Close")
    }
}
