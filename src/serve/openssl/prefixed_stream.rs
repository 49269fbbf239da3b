//! A stream that replays bytes which were already read from it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Yields `prefix`, then the bytes of `inner`.
#[derive(Debug)]
pub(super) struct PrefixedStream<S> {
    inner: S,
    prefix: Vec<u8>,
    consumed: usize,
    is_shutting_down: bool,
}

impl<S> PrefixedStream<S> {
    pub(super) fn new(inner: S, prefix: Vec<u8>) -> Self {
        Self { inner, prefix, consumed: 0, is_shutting_down: false }
    }

    /// Whether a shutdown has begun, so that the layer above has nothing more to write.
    pub(super) fn is_shutting_down(&self) -> bool {
        self.is_shutting_down
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefixedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = this.prefix.get(this.consumed..).unwrap_or_default();
        if left.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let given = left.get(..buffer.remaining()).unwrap_or(left);
        buffer.put_slice(given);
        this.consumed += given.len();
        if this.consumed == this.prefix.len() {
            this.prefix = Vec::new();
            this.consumed = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PrefixedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_shutting_down = true;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn prefix_is_read_before_the_rest() {
        let (mut peer, ours) = tokio::io::duplex(64);
        peer.write_all(b" and the rest").await.unwrap();
        drop(peer);
        let mut stream = PrefixedStream::new(ours, b"the beginning".to_vec());
        let mut first = [0; 4];
        stream.read_exact(&mut first).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&first, rest.as_str()), (b"the ", "beginning and the rest"));
    }
}
