//! Deadlines of a connection: no peer holds a place by being slow.
//!
//! [`TimeoutStream`] lies between TCP and TLS, where every byte passes, and keeps the deadlines. [`RequestStream`] lies above TLS and
//! sees a request begin; the request's handler says through [`TimeoutControl`] what comes after that. A deadline costs nothing
//! while bytes flow: one timer per connection is looked at only when the peer keeps us waiting, and moved only when it
//! fires.

#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::limits::Limits;

mod request_stream;

pub use request_stream::RequestStream;

/// Over how long the least rate of a body is measured.
const RATE_WINDOW: Duration = Duration::from_mins(1);

const HANDSHAKE_TOOK_TOO_LONG: &str = "the handshake took too long";

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// The handshake. Its deadline counts from accept, whatever comes meanwhile.
    Handshake = 0,
    /// The first byte of a request.
    Idle = 1,
    /// The rest of a request's header.
    Header = 2,
    /// Nothing from the peer: we are at work or sending.
    Answering = 3,
    /// The body of a request.
    Body = 4,
}

/// The phase of a connection, shared between its handler and its stream.
#[derive(Debug, Clone)]
pub struct TimeoutControl(Arc<TimeoutState>);

#[derive(Debug)]
struct TimeoutState {
    /// The phase, in the lowest [`PHASE_BITS`], and above it how many were entered before.
    stage: AtomicU32,
    /// Whether something of ours is still on its way to the peer.
    has_unsent: AtomicBool,
    /// Whether a body is read that nothing takes in.
    is_discarding: AtomicBool,
    broken_off: OnceLock<&'static str>,
    /// The last header that did not come at once, and when it began.
    header: Mutex<Option<(PackedPhase, Instant)>>,
    handshake_deadline: Mutex<Instant>,
}

/// How many bits a phase takes.
const PHASE_BITS: u32 = 3;

/// A phase, told apart from the same phase at another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PackedPhase(u32);

impl PackedPhase {
    fn phase(self) -> Phase {
        match self.0 & ((1 << PHASE_BITS) - 1) {
            1 => Phase::Idle,
            2 => Phase::Header,
            3 => Phase::Answering,
            4 => Phase::Body,
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

    /// When the peer has used up the time of its handshake.
    #[must_use]
    pub fn handshake_deadline(&self) -> Instant {
        *self.0.handshake_deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the peer `time` more for its handshake, for which it was we who kept it waiting.
    pub fn extend_handshake(&self, time: Duration) {
        *self.0.handshake_deadline.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }

    /// Says that the connection has entered `phase`. Where an unwanted body is still read when its request is over, the
    /// connection waits for that, and not for another request.
    pub fn enter(&self, phase: Phase) {
        let phase = if phase == Phase::Idle && self.is_discarding() { Phase::Body } else { phase };
        let earlier = self.0.stage.load(Ordering::Relaxed) >> PHASE_BITS;
        self.0.stage.store((earlier.wrapping_add(1) << PHASE_BITS) | phase as u32, Ordering::Relaxed);
    }

    /// Says that a body is read from now on that nothing takes in.
    pub fn begin_discard(&self) {
        self.0.is_discarding.store(true, Ordering::Relaxed);
    }

    /// Says that it is read no more.
    pub fn end_discard(&self) {
        self.0.is_discarding.store(false, Ordering::Relaxed);
        if self.phase() == Phase::Body {
            self.enter(Phase::Idle);
        }
    }

    /// Whether a body is read that nothing takes in.
    #[must_use]
    pub fn is_discarding(&self) -> bool {
        self.0.is_discarding.load(Ordering::Relaxed)
    }

    /// Says why it is we who break the connection off.
    pub fn break_off(&self, why: &'static str) {
        // The first reason is the one that counts.
        let _ = self.0.broken_off.set(why);
    }

    /// Why we broke the connection off, if we did.
    #[must_use]
    pub fn broken_off(&self) -> Option<&'static str> {
        self.0.broken_off.get().copied()
    }

    /// Whether a request has begun and is not yet one that is answered.
    #[must_use]
    pub fn is_in_header(&self) -> bool {
        self.phase() == Phase::Header
    }

    /// How long it is since the header began that is no request yet.
    #[must_use]
    pub fn header_lasted(&self) -> Duration {
        let header = self.header().filter(|(stage, _)| *stage == self.stage());
        header.map_or(Duration::ZERO, |(_, began)| began.elapsed())
    }

    /// Notes that there is a header now that is no request yet. One that comes at once never needs this.
    fn note_header(&self) {
        let stage = self.stage();
        let mut header = self.header();
        if header.is_none_or(|(noted, _)| noted != stage) {
            *header = Some((stage, Instant::now()));
        }
    }

    fn header(&self) -> MutexGuard<'_, Option<(PackedPhase, Instant)>> {
        self.0.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody has said anything for `moment`, or for up to twice as long, and nothing is on its way.
    pub async fn wait_idle(&self, moment: Duration) {
        loop {
            let before = self.stage();
            tokio::time::sleep(moment).await;
            if before.phase() == Phase::Idle && self.stage() == before && !self.has_unsent() {
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

/// How patient to be.
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
            handshake: limits.handshake(),
            idle: Duration::from_secs(limits.idle_s),
            header: Duration::from_secs(limits.header_s),
            stall: Duration::from_secs(limits.stall_s),
            least_bytes: limits.min_bytes_per_s.saturating_mul(RATE_WINDOW.as_secs()),
        }
    }
}

/// A stream whose peer must keep moving.
#[derive(Debug)]
pub struct TimeoutStream<S> {
    inner: S,
    pace: TimeoutControl,
    patience: Timeouts,
    reading: DeadlineTimer,
    writing: DeadlineTimer,
    timer: Option<Pin<Box<Sleep>>>,
}

/// When one direction last moved, and how much it moved in this window.
#[derive(Debug)]
struct DeadlineTimer {
    stage: Option<PackedPhase>,
    /// Since when the peer has kept us waiting, in this stage.
    waiting_since: Option<Instant>,
    window_start: Option<Instant>,
    window_bytes: u64,
}

impl<S> TimeoutStream<S> {
    /// Watches over `inner`, which was accepted at `accepted` and is in [`Phase::Handshake`].
    pub fn new(inner: S, limits: &Limits, accepted: Instant) -> (Self, TimeoutControl) {
        let patience = Timeouts::from(limits);
        let pace = TimeoutControl::new(accepted + patience.handshake);
        let paced = Self {
            inner,
            pace: pace.clone(),
            patience,
            reading: DeadlineTimer::new(),
            writing: DeadlineTimer::new(),
            timer: None,
        };
        (paced, pace)
    }

    /// Waits until the deadline of a direction has passed; an error then says which.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, is_reading: bool) -> Poll<io::Error> {
        let stage = self.pace.stage();
        let phase = stage.phase();
        if phase == Phase::Handshake {
            return self.poll_handshake_deadline(cx);
        }
        if phase == Phase::Header && is_reading && self.reading.stage != Some(stage) {
            self.pace.note_header();
        }
        let now = Instant::now();
        let clock = if is_reading { &mut self.reading } else { &mut self.writing };
        let limit = match phase {
            _ if !is_reading => Some(self.patience.stall),
            Phase::Idle => Some(self.patience.idle),
            Phase::Header => Some(self.patience.header),
            Phase::Body => Some(self.patience.stall),
            Phase::Answering | Phase::Handshake => None,
        };
        let counts_rate = !is_reading || phase == Phase::Body;
        let overdue = clock.overdue(stage, now, limit, counts_rate.then_some(self.patience.least_bytes));
        if let Some(why) = overdue {
            self.pace.break_off(why);
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        // Wake to look again: at the nearest deadline that is possible, whatever phase it will be then.
        let soonest =
            now + self.patience.header.min(self.patience.stall).min(self.patience.idle).max(Duration::from_millis(10));
        let wake =
            clock.deadline(limit).map_or(soonest, |deadline| deadline.min(soonest)).max(now + Duration::from_millis(1));
        self.wake_at(wake, cx);
        Poll::Pending
    }

    fn poll_handshake_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = self.pace.handshake_deadline();
        if Instant::now() >= deadline {
            self.pace.break_off(HANDSHAKE_TOOK_TOO_LONG);
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, HANDSHAKE_TOOK_TOO_LONG));
        }
        self.wake_at(deadline, cx);
        Poll::Pending
    }

    /// Has the task woken at `time` or before. A timer that is set already is moved only when it fires.
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

    /// Bytes have moved. Only of a body that is progress: neither a header nor a wait for one is given more time for
    /// each byte.
    fn moved(&mut self, bytes: usize, phase: Phase) {
        if matches!(phase, Phase::Body | Phase::Answering) {
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
                Phase::Idle => "idle for too long",
                Phase::Header => "the request's header took too long",
                _ => "no progress for too long",
            });
        }
        let window_start = *self.window_start.get_or_insert(now);
        if now.duration_since(window_start) >= RATE_WINDOW {
            let bytes = std::mem::take(&mut self.window_bytes);
            self.window_start = Some(now);
            if least_bytes.is_some_and(|least| bytes < least) {
                return Some("too slow for too long");
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
                this.reading.moved(buffer.filled().len() - before, this.pace.phase());
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
                self.writing.moved(*result.as_ref().unwrap_or(&0), Phase::Answering);
                if self.pace.phase() == Phase::Idle && self.pace.has_unsent() {
                    // The end of an answer is still on its way: the peer is busy reading it, not idle. What TLS says by
                    // itself is no answer.
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
