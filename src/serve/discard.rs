//! Discards the bodies of requests that are refused, and of those that need none.
//!
//! The response is sent at once. If no more than [`LIMIT`] bytes of the body follow, they are read and discarded, and
//! the connection is kept alive; a longer body ends it. So does a client that waits for `100 Continue`: it may not send
//! the body at all, and the server could not distinguish the body from the next request. Such a connection ends with a
//! [lingering close](super::lingering_close), so that the client can read the response.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Incoming};
use hyper::header::{EXPECT, HeaderMap};
use parking_lot::Mutex;

use super::lingering_close::LingerControl;
use super::timeouts::TimeoutControl;

/// How much of a body is read and discarded, in bytes.
const LIMIT: u64 = 1 << 20;

/// A request's body, or the rest of it.
#[derive(Debug)]
pub struct RequestBody {
    pub(super) incoming: Incoming,
    /// The client waits for `100 Continue`, which hyper sends when the body is first polled.
    pub(super) is_held_back: bool,
}

/// The body that a connection reads and discards.
#[derive(Debug, Default)]
pub(super) struct Discard(Mutex<Option<Reading>>);

#[derive(Debug)]
struct Reading {
    incoming: Incoming,
    left: u64,
}

impl RequestBody {
    /// The body `incoming` of a request with these `headers`.
    #[must_use]
    pub fn new(incoming: Incoming, headers: &HeaderMap) -> Self {
        let is_held_back = !incoming.is_end_stream() && headers.contains_key(EXPECT);
        Self { incoming, is_held_back }
    }

    /// Whether the body has been received completely.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// Whether the connection must end if the request's handler does not read the body.
    #[must_use]
    pub fn ends_connection(&self) -> bool {
        self.is_held_back || self.incoming.size_hint().lower() > LIMIT
    }
}

impl Discard {
    /// Discards `body` from now on, while the response to its request is sent.
    pub(super) fn begin(&self, body: RequestBody, timeouts: &TimeoutControl) {
        *self.0.lock() = Some(Reading { incoming: body.incoming, left: LIMIT });
        timeouts.begin_discard();
    }

    /// Reads and discards bodies. Never returns; the connection drops it when it ends.
    pub(super) async fn run(&self, timeouts: &TimeoutControl, linger: &LingerControl) -> Infallible {
        std::future::poll_fn(|cx| {
            if timeouts.is_discarding()
                && let Poll::Ready(has_ended) = self.poll_to_end(cx)
            {
                // If there is more of the body, dropping it makes hyper close the connection.
                *self.0.lock() = None;
                timeouts.end_discard();
                if !has_ended {
                    linger.request();
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Reads up to the limit. Returns whether that was the whole body.
    fn poll_to_end(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut reading = self.0.lock();
        let Some(Reading { incoming, left }) = reading.as_mut() else { return Poll::Ready(true) };
        loop {
            // A body that fails has ended too: hyper closes the connection then.
            let Some(Ok(frame)) = ready!(Pin::new(&mut *incoming).poll_frame(cx)) else { return Poll::Ready(true) };
            match left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64)) {
                Some(rest) => *left = rest,
                None => return Poll::Ready(false),
            }
        }
    }
}
