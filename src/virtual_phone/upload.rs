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

/// The timeout for `100 Continue`. RFC 9110 §10.1.1: "SHOULD NOT wait for an indefinite period"; libcurl waits one
/// second.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

type ContinueGate = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A request body: empty, or bytes that wait until the server asks for them.
pub(super) struct PutBody {
    bytes: Option<Bytes>,
    gate: Option<ContinueGate>,
    sent: Arc<AtomicBool>,
}

/// The handle of a [`PutBody`]: opens its gate, and reports whether its bytes were sent.
pub(super) struct UploadHandle {
    go_on: Arc<Notify>,
    sent: Arc<AtomicBool>,
}

impl PutBody {
    /// An empty body.
    pub(super) fn none() -> Self {
        Self { bytes: None, gate: None, sent: Arc::new(AtomicBool::new(true)) }
    }

    /// A body of `bytes` that waits for `100 Continue`, for at most one second.
    pub(super) fn expecting_continue(bytes: Bytes) -> (Self, UploadHandle) {
        let go_on = Arc::new(Notify::new());
        let sent = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&go_on);
        let gate = async move {
            // After the timeout the body is sent as well.
            let _ = tokio::time::timeout(CONTINUE_TIMEOUT, asked.notified()).await;
        };
        let upload = Self { bytes: Some(bytes), gate: Some(Box::pin(gate)), sent: Arc::clone(&sent) };
        (upload, UploadHandle { go_on, sent })
    }
}

impl UploadHandle {
    /// The callback that the HTTP client calls for each 1xx response.
    pub(super) fn opener(&self) -> impl Fn() + Send + Sync + 'static {
        let go_on = Arc::clone(&self.go_on);
        move || go_on.notify_one()
    }

    /// Whether the body was sent. If the server refuses at once, it was not, and the connection cannot be reused.
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
