//! Closing on a peer that still talks, so that it gets to read what it was told.
//!
//! RFC 9112 §9.6: "If a server performs an immediate close of a TCP connection, there is a significant risk that the
//! client will not be able to read the last HTTP response." So we close our half, and read on, into nowhere, until the
//! peer closes too. It is the same with a TLS alert: what a refused client had still to say must not meet a closed socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a peer may talk on that has its last answer.
const LINGER: Duration = Duration::from_secs(5);

/// Whether a connection's last answer is given while its peer still talks, and how many bytes it may still say; shared
/// between handler and stream.
#[derive(Debug, Clone, Default)]
pub struct Farewell(Arc<AtomicU64>);

/// A stream that, after such a farewell, does not close before its peer does.
#[derive(Debug)]
pub struct Lingering<S> {
    inner: S,
    farewell: Farewell,
    until: Option<Pin<Box<Sleep>>>,
}

impl Farewell {
    /// Says that the next answer is the last, and that the peer may still talk.
    pub fn say(&self) {
        self.say_within(u64::MAX);
    }

    /// The same, to a peer of which at most `bytes` are read after it.
    pub fn say_within(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    /// Whether that was said.
    #[must_use]
    pub fn is_said(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Hears `bytes`, and gives whether there may be more.
    fn hear(&self, bytes: usize) -> bool {
        let left = self.0.load(Ordering::Relaxed).saturating_sub(bytes as u64);
        self.0.store(left, Ordering::Relaxed);
        left > 0
    }
}

impl<S> Lingering<S> {
    /// Closes `inner` in this way.
    pub fn new(inner: S) -> (Self, Farewell) {
        let farewell = Farewell::default();
        (Self { inner, farewell: farewell.clone(), until: None }, farewell)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
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
        loop {
            let mut buffer = ReadBuf::new(&mut nowhere);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && this.farewell.hear(buffer.filled().len()) => {}
                // It has closed, whatever went wrong, or does not listen.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
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

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    /// For how many seconds a stream lingers whose peer talks for `seconds`.
    async fn lingers(farewell_bytes: u64, seconds: u64) -> u64 {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let (mut stream, farewell) = Lingering::new(ours);
        farewell.say_within(farewell_bytes);
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
        assert_eq!(lingers(u64::MAX, 2).await, 2);
        assert_eq!(lingers(u64::MAX, 600).await, 5);
        assert_eq!(lingers(0, 600).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn or_for_as_many_bytes_as_were_granted() {
        assert_eq!(lingers(64, 600).await, 0);
        assert_eq!(lingers(65, 600).await, 1);
        assert_eq!(lingers(64 * 3, 600).await, 2);
    }
}
