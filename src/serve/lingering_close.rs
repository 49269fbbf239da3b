//! Closing on a peer that still talks, so that it gets to read what it was told.
//!
//! RFC 9112 §9.6: "If a server performs an immediate close of a TCP connection, there is a significant risk that the
//! client will not be able to read the last HTTP response." So we close our half, and read on, into nowhere, until the
//! peer closes too. It is the same with a TLS alert: what a refused client had still to say must not meet a closed socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a peer may talk on that has its last answer.
const LINGER: Duration = Duration::from_secs(5);
/// How much is read of it, in bytes. After that it is waited for without reading: it can still read the answer, and a reset
/// could take that away from it.
const READ: u64 = 1 << 20;

/// Whether a connection's last answer is given while its peer still talks, and how many bytes it may still say; shared
/// between handler and stream.
#[derive(Debug, Clone, Default)]
pub struct LingerControl(Arc<LingerState>);

#[derive(Debug, Default)]
struct LingerState {
    is_said: AtomicBool,
    /// How many bytes are still read.
    left: AtomicU64,
    /// Whether the connection is closed as soon as they are read.
    closes_at_limit: AtomicBool,
}

/// A stream that, after such a farewell, does not close before its peer does.
#[derive(Debug)]
pub struct LingeringStream<S> {
    inner: S,
    farewell: LingerControl,
    until: Option<Pin<Box<Sleep>>>,
}

impl LingerControl {
    /// Says that the next answer is the last, and that the peer may still talk.
    pub fn say(&self) {
        self.say_to(READ, false);
    }

    /// The same, to a peer that is closed on when `bytes` were read after it.
    pub fn say_within(&self, bytes: u64) {
        self.say_to(bytes, true);
    }

    fn say_to(&self, bytes: u64, closes_at_limit: bool) {
        self.0.left.store(bytes, Ordering::Relaxed);
        self.0.closes_at_limit.store(closes_at_limit, Ordering::Relaxed);
        self.0.is_said.store(true, Ordering::Relaxed);
    }

    /// Whether that was said.
    #[must_use]
    pub fn is_said(&self) -> bool {
        self.0.is_said.load(Ordering::Relaxed)
    }

    /// Notes that `bytes` were read.
    fn hear(&self, bytes: usize) {
        let left = self.0.left.load(Ordering::Relaxed).saturating_sub(bytes as u64);
        self.0.left.store(left, Ordering::Relaxed);
    }

    /// Whether as much was read as may be.
    fn is_at_limit(&self) -> bool {
        self.0.left.load(Ordering::Relaxed) == 0
    }
}

impl<S> LingeringStream<S> {
    /// Closes `inner` in this way.
    pub fn new(inner: S) -> (Self, LingerControl) {
        let farewell = LingerControl::default();
        (Self { inner, farewell: farewell.clone(), until: None }, farewell)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LingeringStream<S> {
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.until.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        if !this.farewell.is_said() {
            return Poll::Ready(Ok(()));
        }
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut nowhere = [0; 8192];
        while !this.farewell.is_at_limit() {
            let mut buffer = ReadBuf::new(&mut nowhere);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => this.farewell.hear(buffer.filled().len()),
                // It has closed, whatever went wrong.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
        // The timer wakes this.
        if this.farewell.0.closes_at_limit.load(Ordering::Relaxed) { Poll::Ready(Ok(())) } else { Poll::Pending }
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

    /// For how many seconds a stream lingers whose peer talks for `seconds`, after what `say` says.
    async fn lingers(say: impl FnOnce(&LingerControl), seconds: u64) -> u64 {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut stream, farewell) = LingeringStream::new(ours);
        say(&farewell);
        let start = Instant::now();
        let talk = async {
            for _ in 0..seconds {
                theirs.write_all(&[0; 64]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            drop(theirs);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            closed = stream.shutdown() => closed.unwrap(),
            () = talk => {}
        }
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_talks_on_is_heard_out_for_five_seconds() {
        assert_eq!(lingers(LingerControl::say, 2).await, 2);
        assert_eq!(lingers(LingerControl::say, 600).await, 5);
        assert_eq!(lingers(|_| {}, 600).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn or_for_as_many_bytes_as_were_granted() {
        let within = |bytes| move |farewell: &LingerControl| farewell.say_within(bytes);
        assert_eq!(lingers(within(0), 600).await, 0);
        assert_eq!(lingers(within(64), 600).await, 0);
        assert_eq!(lingers(within(65), 600).await, 1);
        assert_eq!(lingers(within(64 * 3), 600).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_read_up_to_the_limit_and_then_only_waited_for() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut stream, farewell) = LingeringStream::new(ours);
        farewell.say();
        let start = Instant::now();
        let mut sent = 0;
        let flood = async {
            while theirs.write_all(&[0; 64]).await.is_ok() {
                sent += 64;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            closed = stream.shutdown() => closed.unwrap(),
            () = flood => {}
        }
        assert_eq!(start.elapsed().as_secs(), 5);
        assert!((READ..=READ + 128).contains(&sent), "{sent}");
    }
}
