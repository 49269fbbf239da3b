//! The body of a PUT that waits for `100 Continue`, as the HTTP library in phones does.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

/// RFC 9110 §10.1.1: "SHOULD NOT wait for an indefinite period"; libcurl waits one second.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

type ContinueGate = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A request's body: nothing, or bytes that wait until the server wants them.
pub(super) struct PutBody {
    bytes: Option<Bytes>,
    gate: Option<ContinueGate>,
    sent: Arc<AtomicBool>,
}

/// The other ends of an [`PutBody`]: opens its gate, and tells whether its bytes went out.
pub(super) struct UploadHandle {
    go_on: Arc<Notify>,
    sent: Arc<AtomicBool>,
}

impl PutBody {
    /// The body of a request that has none.
    pub(super) fn none() -> Self {
        Self { bytes: None, gate: None, sent: Arc::new(AtomicBool::new(true)) }
    }

    /// `bytes`, held back until the server says `100 Continue` or keeps silent for a second.
    pub(super) fn expecting_continue(bytes: Bytes) -> (Self, UploadHandle) {
        let go_on = Arc::new(Notify::new());
        let sent = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&go_on);
        let gate = async move {
            // Silence is leave, too: then the time is simply up.
            let _ = tokio::time::timeout(CONTINUE_TIMEOUT, asked.notified()).await;
        };
        let upload = Self { bytes: Some(bytes), gate: Some(Box::pin(gate)), sent: Arc::clone(&sent) };
        (upload, UploadHandle { go_on, sent })
    }
}

impl UploadHandle {
    /// What the HTTP client calls for each 1xx answer.
    pub(super) fn opener(&self) -> impl Fn() + Send + Sync + 'static {
        let go_on = Arc::clone(&self.go_on);
        move || go_on.notify_one()
    }

    /// Whether the body went out; a server that refuses at once never gets it, and the connection is of no more use.
    pub(super) fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Acquire)
    }
}

impl Body for PutBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            ready!(gate.as_mut().poll(cx));
            this.gate = None;
        }
        let bytes = this.bytes.take();
        this.sent.store(true, Ordering::Release);
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
