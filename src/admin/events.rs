//! `/events`: notifies a page of new snapshots, by server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::OwnedSemaphorePermit;

use super::AdminServer;

/// How often a new snapshot is looked for.
const PERIOD: Duration = Duration::from_secs(1);
/// After so many periods without an event, a comment is sent as keep-alive, so that proxies do not close the
/// connection.
const HEARTBEAT: u32 = 15;

/// The endless body for one page.
pub(super) struct Events {
    next: Pin<Box<dyn Future<Output = (Bytes, EventState)> + Send>>,
}

/// The state of one page's stream.
struct EventState {
    status: Arc<AdminServer>,
    number: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Events {
    pub(super) fn new(status: Arc<AdminServer>, permit: OwnedSemaphorePermit) -> Self {
        Self { next: Box::pin(EventState { status, number: None, _permit: permit }.next()) }
    }
}

impl EventState {
    /// The next chunk to send.
    async fn next(mut self) -> (Bytes, Self) {
        for _ in 0..HEARTBEAT {
            let current = self.status.snapshots.current(&self.status.admin_data).await.number;
            if self.number != Some(current) {
                self.number = Some(current);
                return (format!("data: {current}\n\n").into(), self);
            }
            tokio::time::sleep(PERIOD).await;
        }
        (Bytes::from_static(b":\n\n"), self)
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (bytes, state) = ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(state.next());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
