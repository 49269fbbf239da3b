//! Timeouts of a connection: no client keeps its permit by being slow.
//!
//! [`TimeoutStream`] lies between TCP and TLS, where every byte passes, and enforces the timeouts. [`RequestStream`]
//! lies above TLS and sees a request begin; the request's handler sets the later phases through [`TimeoutControl`]. A
//! timeout costs nothing while bytes flow: the one timer of a connection is polled only when the client keeps the
//! server waiting, and reset only when it fires.
//!
//! hyper's own `header_read_timeout` is not used. It begins when the connection becomes idle, so it cannot distinguish
//! the keep-alive timeout (`limits.idle_s`) from the header timeout (`limits.header_s`).

#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::limits::Limits;

mod request_stream;

pub use request_stream::RequestStream;

/// The window over which the minimum rate of a body is measured.
const RATE_WINDOW: Duration = Duration::from_mins(1);

const HANDSHAKE_TIMEOUT: &str = "the handshake took too long";

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The handshake. Its timeout counts from accept, whatever bytes arrive meanwhile.
    Handshake,
    /// The first byte of the first request. Its timeout is that of a header.
    FirstRequest,
    /// The first byte of a later request.
    Idle,
    /// The rest of a request's header.
    Header,
    /// The body of a request.
    Body,
    /// Nothing from the client: the server works or sends.
    Responding,
}

/// A part of a request.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Header,
    /// A body of which so many bytes are left.
    Body(u64),
    ChunkedBody,
}

/// The phase of a connection, shared between its handler and its streams.
#[derive(Debug, Clone)]
pub struct TimeoutControl(Arc<Mutex<TimeoutState>>);

#[derive(Debug)]
struct TimeoutState {
    phase: Phase,
    /// When the phase began. The phase [`Phase::Idle`] begins anew when the last response is sent completely.
    since: Instant,
    handshake_deadline: Instant,
    /// Whether data that was written for the client is not flushed yet.
    has_unsent: bool,
    /// Whether a body is read and discarded.
    is_discarding: bool,
    /// How many bytes of the current request's body were not read yet. `None` if that is unknown (chunked).
    unread_body: Option<u64>,
    abort_reason: Option<&'static str>,
}

impl TimeoutState {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }
}

impl TimeoutControl {
    fn new(handshake_deadline: Instant) -> Self {
        Self(Arc::new(Mutex::new(TimeoutState {
            phase: Phase::Handshake,
            since: Instant::now(),
            handshake_deadline,
            has_unsent: false,
            is_discarding: false,
            unread_body: Some(0),
            abort_reason: None,
        })))
    }

    /// When the handshake times out.
    #[must_use]
    pub fn handshake_deadline(&self) -> Instant {
        self.0.lock().handshake_deadline
    }

    /// Extends the handshake's deadline by `time`, during which the client waited for the server.
    pub fn extend_handshake(&self, time: Duration) {
        self.0.lock().handshake_deadline += time;
    }

    /// Notes that the connection has entered `phase`.
    pub fn enter(&self, phase: Phase) {
        self.0.lock().enter(phase);
    }

    /// Notes that the header of a request is complete. A body of `length` follows; `None` if its length is unknown.
    pub fn begin_request(&self, length: Option<u64>) {
        let mut state = self.0.lock();
        state.enter(Phase::Responding);
        state.unread_body = length;
    }

    /// Notes that the response to a request is complete, or was given up. If the body of the request is still being
    /// discarded, the connection waits for that body, and is not idle.
    pub fn end_request(&self) {
        let mut state = self.0.lock();
        let phase = if state.is_discarding { Phase::Body } else { Phase::Idle };
        state.enter(phase);
    }

    /// Notes that a body is read and discarded from now on.
    pub fn begin_discard(&self) {
        self.0.lock().is_discarding = true;
    }

    /// Notes that the body has ended, or is read no further.
    pub fn end_discard(&self) {
        let mut state = self.0.lock();
        state.is_discarding = false;
        if state.phase == Phase::Body {
            state.enter(Phase::Idle);
        }
    }

    /// Whether a body is read and discarded.
    #[must_use]
    pub fn is_discarding(&self) -> bool {
        self.0.lock().is_discarding
    }

    /// Notes why the server aborts the connection. Only the first reason is kept.
    pub fn abort(&self, why: &'static str) {
        self.0.lock().abort_reason.get_or_insert(why);
    }

    /// Why the server aborted the connection, if it did.
    #[must_use]
    pub fn abort_reason(&self) -> Option<&'static str> {
        self.0.lock().abort_reason
    }

    /// Whether a request has begun whose header is not complete, or was refused by hyper.
    #[must_use]
    pub fn is_in_header(&self) -> bool {
        self.phase() == Phase::Header
    }

    /// How long ago the current header began; zero outside of a header.
    #[must_use]
    pub fn header_lasted(&self) -> Duration {
        let state = self.0.lock();
        if state.phase == Phase::Header { state.since.elapsed() } else { Duration::ZERO }
    }

    /// Whether the connection has been idle between two requests for `time`, since the last response was sent completely.
    #[must_use]
    pub fn is_idle_for(&self, time: Duration) -> bool {
        let state = self.0.lock();
        state.phase == Phase::Idle && !state.has_unsent && state.since.elapsed() >= time
    }

    fn note_unsent(&self) {
        self.0.lock().has_unsent = true;
    }

    fn note_flushed(&self) {
        let mut state = self.0.lock();
        if std::mem::take(&mut state.has_unsent) && state.phase == Phase::Idle {
            state.since = Instant::now();
        }
    }

    fn phase(&self) -> Phase {
        self.0.lock().phase
    }

    /// What hyper expects to read.
    fn expected(&self) -> Expected {
        let state = self.0.lock();
        match (state.phase, state.unread_body) {
            (Phase::Body | Phase::Responding, Some(left @ 1..)) => Expected::Body(left),
            (Phase::Body | Phase::Responding, None) => Expected::ChunkedBody,
            // Also when hyper has read all of a body whose discarding has not noticed its end.
            _ => Expected::Header,
        }
    }

    fn note_body_read(&self, bytes: usize) {
        let mut state = self.0.lock();
        state.unread_body = state.unread_body.map(|left| left.saturating_sub(bytes as u64));
    }
}

/// The timeout of each phase, and the minimum bytes of a body in each `RATE_WINDOW`.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    handshake: Duration,
    idle: Duration,
    header: Duration,
    stall: Duration,
    least_bytes: u64,
}

impl From<&Limits> for Timeouts {
    fn from(limits: &Limits) -> Self {
        Self {
            handshake: limits.handshake_timeout(),
            idle: Duration::from_secs(limits.idle_s),
            header: Duration::from_secs(limits.header_s),
            stall: Duration::from_secs(limits.stall_s),
            least_bytes: limits.min_bytes_per_s.saturating_mul(RATE_WINDOW.as_secs()),
        }
    }
}

/// A stream whose reads and writes fail when the client exceeds a timeout.
#[derive(Debug)]
pub struct TimeoutStream<S> {
    inner: S,
    control: TimeoutControl,
    timeouts: Timeouts,
    reading: BodyProgress,
    writing: BodyProgress,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The progress of a body, or of a response, in one phase.
#[derive(Debug, Default)]
struct BodyProgress {
    /// When the phase began that this is about.
    phase_since: Option<Instant>,
    /// Since when the server has waited for the client.
    waiting_since: Option<Instant>,
    window_start: Option<Instant>,
    window_bytes: u64,
}

impl<S> TimeoutStream<S> {
    /// Wraps `inner`, which was accepted at `accepted` and is in [`Phase::Handshake`].
    pub fn new(inner: S, limits: &Limits, accepted: Instant) -> (Self, TimeoutControl) {
        let timeouts = Timeouts::from(limits);
        let control = TimeoutControl::new(accepted + timeouts.handshake);
        let (reading, writing) = Default::default();
        (Self { inner, control: control.clone(), timeouts, reading, writing, timer: None }, control)
    }

    /// Waits until a deadline of this direction has passed, and returns the error that names it.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, is_reading: bool) -> Poll<io::Error> {
        let now = Instant::now();
        let (deadline, why) = self.deadline(now, is_reading);
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.control.abort(why);
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        // Wake at the nearest possible deadline, because the phase may be another one by then.
        let nearest = now + self.timeouts.header.min(self.timeouts.stall).min(self.timeouts.idle);
        self.wake_at(deadline.map_or(nearest, |deadline| deadline.min(nearest)), cx);
        Poll::Pending
    }

    /// The deadline of this direction, with the reason when it has passed.
    fn deadline(&mut self, now: Instant, is_reading: bool) -> (Option<Instant>, &'static str) {
        const IDLE: &str = "idle for too long";
        let state = self.control.0.lock();
        let since = state.since;
        let progress = if is_reading { &mut self.reading } else { &mut self.writing };
        match state.phase {
            Phase::Handshake => (Some(state.handshake_deadline), HANDSHAKE_TIMEOUT),
            _ if !is_reading => progress.deadline(since, now, &self.timeouts),
            Phase::Body => progress.deadline(since, now, &self.timeouts),
            Phase::FirstRequest => (Some(since + self.timeouts.header), IDLE),
            Phase::Header => (Some(since + self.timeouts.header), "the request's header took too long"),
            Phase::Idle if !state.has_unsent => (Some(since + self.timeouts.idle), IDLE),
            // The client is reading a response: the deadline of writing applies.
            Phase::Idle | Phase::Responding => (None, IDLE),
        }
    }

    /// Wakes the task at `time` or earlier. A timer that is already set is reset only when it fires.
    fn wake_at(&mut self, time: Instant, cx: &mut Context<'_>) {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(time)));
        if timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(time);
            if timer.as_mut().poll(cx).is_ready() {
                // `time` has passed meanwhile.
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl BodyProgress {
    /// Notes that bytes have moved.
    fn moved(&mut self, bytes: usize) {
        self.waiting_since = None;
        self.window_bytes = self.window_bytes.saturating_add(bytes as u64);
    }

    /// When the body is too slow, in the phase that began at `phase_since`, with the reason.
    fn deadline(&mut self, phase_since: Instant, now: Instant, timeouts: &Timeouts) -> (Option<Instant>, &'static str) {
        if self.phase_since != Some(phase_since) {
            *self = Self { phase_since: Some(phase_since), ..Self::default() };
        }
        let window_start = *self.window_start.get_or_insert(now);
        if now.duration_since(window_start) >= RATE_WINDOW {
            self.window_start = Some(now);
            if std::mem::take(&mut self.window_bytes) < timeouts.least_bytes {
                return (Some(now), "below the minimum rate for too long (limits.min_bytes_per_s)");
            }
        }
        let waiting_since = *self.waiting_since.get_or_insert(now);
        (Some(waiting_since + timeouts.stall), "no progress for too long")
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimeoutStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buffer) {
            Poll::Pending => Poll::Ready(Err(ready!(this.poll_deadline(cx, true)))),
            Poll::Ready(result) => {
                this.reading.moved(buffer.filled().len() - before);
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> TimeoutStream<S> {
    fn after_write(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Pending => Poll::Ready(Err(ready!(self.poll_deadline(cx, false)))),
            Poll::Ready(result) => {
                self.writing.moved(*result.as_ref().unwrap_or(&0));
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimeoutStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.after_write(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.after_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
