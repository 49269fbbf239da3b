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
use super::access_guard::Principal;
use super::operators::Scope;
use crate::clock;

/// How often a new snapshot is looked for.
const PERIOD: Duration = Duration::from_secs(1);
/// How often an operator with a scope reads again.
const SCOPED_PACE_S: u64 = 5;
/// After so many periods without an event, a comment is sent as keep-alive, so that proxies do not close the
/// connection.
const HEARTBEAT: u32 = 15;

/// The body for one page. It ends when the client may no longer read.
pub(super) struct Events {
    next: Option<NextChunk>,
}

/// Waits for the next chunk; `None` at the end.
type NextChunk = Pin<Box<dyn Future<Output = Option<(Bytes, EventState)>> + Send>>;

/// The state of one page's stream.
struct EventState {
    status: Arc<AdminServer>,
    /// The client, whose rights may end.
    principal: Principal,
    number: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Events {
    pub(super) fn new(status: Arc<AdminServer>, principal: Principal, permit: OwnedSemaphorePermit) -> Self {
        Self { next: Some(Box::pin(EventState { status, principal, number: None, _permit: permit }.next())) }
    }
}

impl EventState {
    /// The next chunk to send; `None` at the end.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        for _ in 0..HEARTBEAT {
            if !self.status.operators.still_accept(self.principal.operator.as_ref()) {
                return None;
            }
            let current = self.number().await;
            if self.number != Some(current) {
                self.number = Some(current);
                return Some((format!("data: {current}\n\n").into(), self));
            }
            tokio::time::sleep(PERIOD).await;
        }
        Some((Bytes::from_static(b":\n\n"), self))
    }

    /// A number that changes when the client should read again. For an operator with a scope it changes at a fixed pace,
    /// because what happens elsewhere must not show.
    async fn number(&self) -> u64 {
        match self.principal.scope() {
            Scope::All => self.status.snapshots.current(&self.status.admin_data, &Scope::All).await.number,
            Scope::Constituencies(_) => clock::unix_seconds(clock::now()).unsigned_abs() / SCOPED_PACE_S,
        }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let Some((bytes, state)) = ready!(next.as_mut().poll(cx)) else {
            self.next = None;
            return Poll::Ready(None);
        };
        self.next = Some(Box::pin(state.next()));
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
