//! `/events`: tells a page when there is something new, as server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::OwnedSemaphorePermit;

use super::AdminServer;

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(1);
/// How many times it is looked in vain before a word is said all the same, lest somebody between think us dead.
const HEARTBEAT: u32 = 15;

/// What is told to one page, without end.
pub(super) struct Events {
    next: Pin<Box<dyn Future<Output = (Bytes, EventState)> + Send>>,
}

/// What one page has been told so far.
struct EventState {
    status: Arc<AdminServer>,
    number: Option<u64>,
    _place: OwnedSemaphorePermit,
}

impl Events {
    pub(super) fn new(status: Arc<AdminServer>, place: OwnedSemaphorePermit) -> Self {
        Self { next: Box::pin(EventState { status, number: None, _place: place }.next()) }
    }
}

impl EventState {
    /// The next thing that is told.
    async fn next(mut self) -> (Bytes, Self) {
        for _ in 0..HEARTBEAT {
            let current = self.status.pictures.current(&self.status.knowledge).await.number;
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
        let (bytes, told) = ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(told.next());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
