//! Timeouts of a connection: no client keeps its permit by being slow.
//!
//! [`TimeoutStream`] lies between TCP and TLS, where every byte passes, and enforces the timeouts. [`RequestStream`]
//! lies above TLS and sees a request begin; the request's handler sets the later phases through [`TimeoutControl`]. A
//! timeout costs nothing while bytes flow: the one timer of a connection is polled only when the client keeps the
//! server waiting, and reset only when it fires.

#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
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

const HANDSHAKE_TOOK_TOO_LONG: &str = "the handshake took too long";

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// The handshake. Its timeout counts from accept, whatever bytes arrive meanwhile.
    Handshake = 0,
    /// The first byte of a request that is not the first.
    Idle = 1,
    /// The rest of a request's header.
    Header = 2,
    /// Nothing from the client: the server works or sends.
    Responding = 3,
    /// The body of a request.
    Body = 4,
    /// The first byte of the first request. Its timeout is that of a header.
    FirstRequest = 5,
}

impl Phase {
    fn is_idle(self) -> bool {
        matches!(self, Self::Idle | Self::FirstRequest)
    }
}

/// The phase of a connection, shared between its handler and its streams.
#[derive(Debug, Clone)]
pub struct TimeoutControl(Arc<TimeoutState>);

#[derive(Debug)]
struct TimeoutState {
    /// The phase in the lowest [`PHASE_BITS`], and above it a counter of the phases entered before.
    stage: AtomicU32,
    /// Whether data that was written for the client is not flushed yet.
    has_unsent: AtomicBool,
    /// Whether a body is read and discarded.
    is_discarding: AtomicBool,
    broken_off: OnceLock<&'static str>,
    /// The last header that did not arrive at once, and since when the server has waited for the rest.
    header: Mutex<Option<(PackedPhase, Instant)>>,
    handshake_deadline: Mutex<Instant>,
}

/// How many bits a phase takes.
const PHASE_BITS: u32 = 3;

/// A phase with its counter, which distinguishes it from the same phase at another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PackedPhase(u32);

impl PackedPhase {
    fn phase(self) -> Phase {
        match self.0 & ((1 << PHASE_BITS) - 1) {
            1 => Phase::Idle,
            2 => Phase::Header,
            3 => Phase::Responding,
            4 => Phase::Body,
            5 => Phase::FirstRequest,
            _ => Phase::Handshake,
        }
    }
}

impl TimeoutControl {
    fn new(handshake_deadline: Instant) -> Self {
        Self(Arc::new(TimeoutState {
            stage: AtomicU32::new(Phase::Handshake as u32),
            has_unsent: AtomicBool::new(false),
            is_discarding: AtomicBool::new(false),
            broken_off: OnceLock::new(),
            header: Mutex::default(),
            handshake_deadline: Mutex::new(handshake_deadline),
        }))
    }

    /// When the handshake times out.
    #[must_use]
    pub fn handshake_deadline(&self) -> Instant {
        *self.0.handshake_deadline.lock()
    }

    /// Extends the handshake's deadline by `time`, during which the client waited for the server.
    pub fn extend_handshake(&self, time: Duration) {
        *self.0.handshake_deadline.lock() += time;
    }

    /// Notes that the connection has entered `phase`. If a body is still being discarded when its request is over, the
    /// connection waits for that body, and is not idle.
    pub fn enter(&self, phase: Phase) {
        let phase = if phase == Phase::Idle && self.is_discarding() { Phase::Body } else { phase };
        let earlier = self.0.stage.load(Ordering::Relaxed) >> PHASE_BITS;
        self.0.stage.store((earlier.wrapping_add(1) << PHASE_BITS) | phase as u32, Ordering::Relaxed);
    }

    /// Notes that a body is read and discarded from now on.
    pub fn begin_discard(&self) {
        self.0.is_discarding.store(true, Ordering::Relaxed);
    }

    /// Notes that the body has ended, or is read no further.
    pub fn end_discard(&self) {
        self.0.is_discarding.store(false, Ordering::Relaxed);
        if self.phase() == Phase::Body {
            self.enter(Phase::Idle);
        }
    }

    /// Whether a body is read and discarded.
    #[must_use]
    pub fn is_discarding(&self) -> bool {
        self.0.is_discarding.load(Ordering::Relaxed)
    }

    /// Notes why the server aborts the connection. Only the first reason is kept.
    pub fn abort(&self, why: &'static str) {
        let _ = self.0.broken_off.set(why);
    }

    /// Why the server aborted the connection, if it did.
    #[must_use]
    pub fn abort_reason(&self) -> Option<&'static str> {
        self.0.broken_off.get().copied()
    }

    /// Whether a request has begun whose header is not complete, or was refused by hyper.
    #[must_use]
    pub fn is_in_header(&self) -> bool {
        self.phase() == Phase::Header
    }

    /// How long the server has waited for the rest of the current header; zero if it arrived at once.
    #[must_use]
    pub fn header_lasted(&self) -> Duration {
        let header = self.0.header.lock().filter(|(stage, _)| *stage == self.stage());
        header.map_or(Duration::ZERO, |(_, began)| began.elapsed())
    }

    /// Notes that the server waits for the rest of the current header, or that hyper has refused the header.
    fn note_header(&self) {
        let stage = self.stage();
        let mut header = self.0.header.lock();
        if header.is_none_or(|(noted, _)| noted != stage) {
            *header = Some((stage, Instant::now()));
        }
    }

    /// Waits until the connection has been idle, with all data flushed, for `moment` to twice `moment`.
    pub async fn wait_idle(&self, moment: Duration) {
        loop {
            let before = self.stage();
            tokio::time::sleep(moment).await;
            if before.phase().is_idle() && self.stage() == before && !self.has_unsent() {
                return;
            }
        }
    }

    fn has_unsent(&self) -> bool {
        self.0.has_unsent.load(Ordering::Relaxed)
    }

    fn note_unsent(&self, has_unsent: bool) {
        self.0.has_unsent.store(has_unsent, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        self.stage().phase()
    }

    fn stage(&self) -> PackedPhase {
        PackedPhase(self.0.stage.load(Ordering::Relaxed))
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
    reading: DeadlineTimer,
    writing: DeadlineTimer,
    timer: Option<Pin<Box<Sleep>>>,
}

/// When one direction last made progress, and how many bytes it moved in the current window.
#[derive(Debug)]
struct DeadlineTimer {
    stage: Option<PackedPhase>,
    /// Since when the server has waited for the client, in this stage.
    waiting_since: Option<Instant>,
    window_start: Option<Instant>,
    window_bytes: u64,
}

impl<S> TimeoutStream<S> {
    /// Wraps `inner`, which was accepted at `accepted` and is in [`Phase::Handshake`].
    pub fn new(inner: S, limits: &Limits, accepted: Instant) -> (Self, TimeoutControl) {
        let timeouts = Timeouts::from(limits);
        let control = TimeoutControl::new(accepted + timeouts.handshake);
        let stream = Self {
            inner,
            control: control.clone(),
            timeouts,
            reading: DeadlineTimer::new(),
            writing: DeadlineTimer::new(),
            timer: None,
        };
        (stream, control)
    }

    /// Waits until a deadline of this direction has passed, and returns the error that names it.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, is_reading: bool) -> Poll<io::Error> {
        let stage = self.control.stage();
        let phase = stage.phase();
        if phase == Phase::Handshake {
            return self.poll_handshake_deadline(cx);
        }
        if phase == Phase::Header && is_reading && self.reading.stage != Some(stage) {
            self.control.note_header();
        }
        let now = Instant::now();
        let clock = if is_reading { &mut self.reading } else { &mut self.writing };
        let limit = match phase {
            _ if !is_reading => Some(self.timeouts.stall),
            Phase::Idle => Some(self.timeouts.idle),
            Phase::Header | Phase::FirstRequest => Some(self.timeouts.header),
            Phase::Body => Some(self.timeouts.stall),
            Phase::Responding | Phase::Handshake => None,
        };
        let counts_rate = !is_reading || phase == Phase::Body;
        let overdue = clock.overdue(stage, now, limit, counts_rate.then_some(self.timeouts.least_bytes));
        if let Some(why) = overdue {
            self.control.abort(why);
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        // Wake at the nearest possible deadline, because the phase may be another one by then.
        let soonest =
            now + self.timeouts.header.min(self.timeouts.stall).min(self.timeouts.idle).max(Duration::from_millis(10));
        let wake =
            clock.deadline(limit).map_or(soonest, |deadline| deadline.min(soonest)).max(now + Duration::from_millis(1));
        self.wake_at(wake, cx);
        Poll::Pending
    }

    fn poll_handshake_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = self.control.handshake_deadline();
        if Instant::now() >= deadline {
            self.control.abort(HANDSHAKE_TOOK_TOO_LONG);
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, HANDSHAKE_TOOK_TOO_LONG));
        }
        self.wake_at(deadline, cx);
        Poll::Pending
    }

    /// Wakes the task at `time` or earlier. A timer that is already set is reset only when it fires.
    fn wake_at(&mut self, time: Instant, cx: &mut Context<'_>) {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(time)));
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(time);
        }
    }
}

impl DeadlineTimer {
    fn new() -> Self {
        Self { stage: None, waiting_since: None, window_start: None, window_bytes: 0 }
    }

    /// Notes that bytes have moved. This is progress only in the body of a request or response: bytes do not extend the
    /// header timeout or the idle timeout.
    fn moved(&mut self, bytes: usize, phase: Phase) {
        if matches!(phase, Phase::Body | Phase::Responding) {
            self.waiting_since = None;
        }
        self.window_bytes = self.window_bytes.saturating_add(bytes as u64);
    }

    fn overdue(
        &mut self,
        stage: PackedPhase,
        now: Instant,
        limit: Option<Duration>,
        least_bytes: Option<u64>,
    ) -> Option<&'static str> {
        if self.stage != Some(stage) {
            *self = Self { stage: Some(stage), waiting_since: Some(now), window_start: Some(now), window_bytes: 0 };
        }
        let since = *self.waiting_since.get_or_insert(now);
        if limit.is_some_and(|limit| now.duration_since(since) >= limit) {
            return Some(match stage.phase() {
                Phase::Idle | Phase::FirstRequest => "idle for too long",
                Phase::Header => "the request's header took too long",
                _ => "no progress for too long",
            });
        }
        let window_start = *self.window_start.get_or_insert(now);
        if now.duration_since(window_start) >= RATE_WINDOW {
            let bytes = std::mem::take(&mut self.window_bytes);
            self.window_start = Some(now);
            if least_bytes.is_some_and(|least| bytes < least) {
                return Some("below the minimum rate for too long (limits.min_bytes_per_s)");
            }
        }
        None
    }

    fn deadline(&self, limit: Option<Duration>) -> Option<Instant> {
        Some(self.waiting_since? + limit?)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimeoutStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buffer) {
            Poll::Pending => Poll::Ready(Err(ready!(this.poll_deadline(cx, true)))),
            Poll::Ready(result) => {
                this.reading.moved(buffer.filled().len() - before, this.control.phase());
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
                self.writing.moved(*result.as_ref().unwrap_or(&0), Phase::Responding);
                if self.control.phase().is_idle() && self.control.has_unsent() {
                    // The end of a response is not flushed yet: the client is reading it, not idle. Messages that TLS
                    // sends by itself are not a response.
                    self.reading.waiting_since = None;
                }
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
