//! Lingering close: closes on a client that is still sending in such a way that it can read the last response.
//!
//! RFC 9112 §9.6: "If a server performs an immediate close of a TCP connection, there is a significant risk that the
//! client will not be able to read the last HTTP response." So the server closes its sending half, and reads and
//! discards until the client closes too. A TLS alert needs the same: data of a refused client must not meet a closed
//! socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a lingering close lasts at most.
const LINGER: Duration = Duration::from_secs(5);
/// How much a lingering close reads, in bytes. After that it waits without reading: the client can still read the
/// response, and closing could send a reset that discards it.
const MAX_READ: u64 = 1 << 20;

/// Whether a connection's close lingers, because its client may still be sending, and how many bytes it reads. Shared
/// between handler and stream.
#[derive(Debug, Clone, Default)]
pub struct LingerControl(Arc<LingerState>);

#[derive(Debug, Default)]
struct LingerState {
    is_requested: AtomicBool,
    /// How many more bytes are read.
    left: AtomicU64,
    /// Whether the connection closes as soon as these are read.
    closes_at_limit: AtomicBool,
}

/// A stream whose shutdown lingers if its [`LingerControl`] requests it.
#[derive(Debug)]
pub struct LingeringStream<S> {
    inner: S,
    linger: LingerControl,
    until: Option<Pin<Box<Sleep>>>,
}

impl LingerControl {
    /// Requests a lingering close: the next response is the last, and the client may still be sending. The first
    /// request of a connection stands.
    pub fn request(&self) {
        self.request_with(MAX_READ, false);
    }

    /// Requests a lingering close that ends as soon as `bytes` were read.
    pub fn request_within(&self, bytes: u64) {
        self.request_with(bytes, true);
    }

    fn request_with(&self, bytes: u64, closes_at_limit: bool) {
        // A second request must not grant the client more to send: a shutdown can be polled many times.
        if self.is_requested() {
            return;
        }
        self.0.left.store(bytes, Ordering::Relaxed);
        self.0.closes_at_limit.store(closes_at_limit, Ordering::Relaxed);
        self.0.is_requested.store(true, Ordering::Relaxed);
    }

    /// Whether a lingering close is requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.is_requested.load(Ordering::Relaxed)
    }

    fn note_read(&self, bytes: usize) {
        let left = self.0.left.load(Ordering::Relaxed).saturating_sub(bytes as u64);
        self.0.left.store(left, Ordering::Relaxed);
    }

    /// Whether as many bytes were read as the request allows.
    fn is_at_limit(&self) -> bool {
        self.0.left.load(Ordering::Relaxed) == 0
    }
}

impl<S> LingeringStream<S> {
    /// Wraps `inner`; the control requests a lingering close of it.
    pub fn new(inner: S) -> (Self, LingerControl) {
        let linger = LingerControl::default();
        (Self { inner, linger: linger.clone(), until: None }, linger)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LingeringStream<S> {
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.until.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        if !this.linger.is_requested() {
            return Poll::Ready(Ok(()));
        }
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut discarded = [0; 8192];
        while !this.linger.is_at_limit() {
            let mut buffer = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => this.linger.note_read(buffer.filled().len()),
                // The client has closed, or the connection has failed.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
        // At the read limit, only the timer wakes this task.
        if this.linger.0.closes_at_limit.load(Ordering::Relaxed) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LingeringStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    /// How many seconds a stream lingers whose client sends for `seconds`, after `request` on its control.
    async fn lingers(request: impl FnOnce(&LingerControl), seconds: u64) -> u64 {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut stream, linger) = LingeringStream::new(ours);
        request(&linger);
        let start = Instant::now();
        let send = async {
            for _ in 0..seconds {
                theirs.write_all(&[0; 64]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            drop(theirs);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            closed = stream.shutdown() => closed.unwrap(),
            () = send => {}
        }
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn lingering_close_reads_for_five_seconds() {
        assert_eq!(lingers(LingerControl::request, 2).await, 2);
        assert_eq!(lingers(LingerControl::request, 600).await, 5);
        assert_eq!(lingers(|_| {}, 600).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn lingering_close_ends_at_the_byte_limit() {
        let within = |bytes| move |linger: &LingerControl| linger.request_within(bytes);
        assert_eq!(lingers(within(0), 600).await, 0);
        assert_eq!(lingers(within(64), 600).await, 0);
        assert_eq!(lingers(within(65), 600).await, 1);
        assert_eq!(lingers(within(64 * 3), 600).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn flood_is_read_up_to_the_limit_even_if_requested_again() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut stream, linger) = LingeringStream::new(ours);
        linger.request();
        let start = Instant::now();
        let mut sent = 0;
        let flood = async {
            while sent < 4 * MAX_READ && theirs.write_all(&[0; 64]).await.is_ok() {
                sent += 64;
                linger.request();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            closed = stream.shutdown() => closed.unwrap(),
            () = flood => {}
        }
        assert_eq!(start.elapsed().as_secs(), 5);
        assert!((MAX_READ..=MAX_READ + 128).contains(&sent), "{sent}");
    }
}
