//! Bodies that nothing takes in: of requests that are refused, and of those that need none.
//!
//! The answer is sent at once. If no more than [`LIMIT`] bytes of the body follow, they are read and thrown away, and the
//! connection goes on; a longer body ends it. So it does where the client may not send the body at all, because it waits for
//! `100 Continue`: the server could not tell the next request from it. A connection that ends so is closed
//! [with patience](super::lingering_close), so that the client gets to read the answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Incoming};
use hyper::header::{EXPECT, HeaderMap};

use super::lingering_close::LingerControl;
use super::timeouts::TimeoutControl;

/// How much of a body is read and thrown away, in bytes.
const LIMIT: u64 = 1 << 20;

/// A request's body, or what is left of it.
#[derive(Debug)]
pub struct RequestBody {
    pub(super) incoming: Incoming,
    /// The client waits for `100 Continue`, which hyper sends when the body is first asked for.
    pub(super) is_held_back: bool,
}

/// The unwanted body that a connection reads.
#[derive(Debug, Default)]
pub(super) struct Discard(Mutex<Option<Reading>>);

#[derive(Debug)]
struct Reading {
    incoming: Incoming,
    left: u64,
}

impl RequestBody {
    /// The body that `incoming` brings, of a request with these `headers`.
    #[must_use]
    pub fn new(incoming: Incoming, headers: &HeaderMap) -> Self {
        let is_held_back = !incoming.is_end_stream() && headers.contains_key(EXPECT);
        Self { incoming, is_held_back }
    }

    /// Whether all of it has come.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// Whether the connection cannot go on if nothing takes it in.
    #[must_use]
    pub fn ends_connection(&self) -> bool {
        self.is_held_back || self.incoming.size_hint().lower() > LIMIT
    }
}

impl Discard {
    /// Reads `body` from now on, while the answer to its request is sent.
    pub(super) fn begin(&self, body: RequestBody, pace: &TimeoutControl) {
        *self.reading() = Some(Reading { incoming: body.incoming, left: LIMIT });
        pace.begin_discard();
    }

    /// Reads what comes. Never ends: the connection does.
    pub(super) async fn run(&self, pace: &TimeoutControl, farewell: &LingerControl) -> Infallible {
        std::future::poll_fn(|cx| {
            if pace.is_discarding()
                && let Poll::Ready(has_ended) = self.poll_to_end(cx)
            {
                // Dropped, it makes hyper close the connection if there is more of it.
                *self.reading() = None;
                pace.end_discard();
                if !has_ended {
                    farewell.say();
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Reads up to the limit, and says whether that was all.
    fn poll_to_end(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut reading = self.reading();
        let Some(Reading { incoming, left }) = reading.as_mut() else { return Poll::Ready(true) };
        loop {
            // One that breaks off has ended too: hyper closes then.
            let Some(Ok(frame)) = ready!(Pin::new(&mut *incoming).poll_frame(cx)) else { return Poll::Ready(true) };
            match left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64)) {
                Some(rest) => *left = rest,
                None => return Poll::Ready(false),
            }
        }
    }

    fn reading(&self) -> MutexGuard<'_, Option<Reading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
