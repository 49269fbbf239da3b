//! A stream whose beginning was read already, and is read once more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives what was `read` of `inner` before anything else.
#[derive(Debug)]
pub(super) struct PrefixedStream<S> {
    inner: S,
    read: Vec<u8>,
    given: usize,
    is_shutting_down: bool,
}

impl<S> PrefixedStream<S> {
    pub(super) fn new(inner: S, read: Vec<u8>) -> Self {
        Self { inner, read, given: 0, is_shutting_down: false }
    }

    /// Whether the end was asked for, and with it everything said that is to be said above.
    pub(super) fn is_shutting_down(&self) -> bool {
        self.is_shutting_down
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefixedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = this.read.get(this.given..).unwrap_or_default();
        if left.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let given = left.get(..buffer.remaining()).unwrap_or(left);
        buffer.put_slice(given);
        this.given += given.len();
        if this.given == this.read.len() {
            this.read = Vec::new();
            this.given = 0;
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
    async fn what_was_read_comes_again_and_then_the_rest() {
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
