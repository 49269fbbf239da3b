//! The side of a connection where requests are read in clear.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};

use super::{Pace, Phase};
use crate::serve::linger::Farewell;

/// A stream on which the first byte of a request ends the idleness. Only here is a byte one of a request: below TLS it
/// may be anything, and may have come while the handshake was still under way.
#[derive(Debug)]
pub struct Requests<S> {
    inner: S,
    pace: Pace,
    farewell: Farewell,
    unread: Bytes,
}

impl<S> Requests<S> {
    /// Reads requests from `inner`; whoever is refused in the middle of one hears it by way of `farewell`.
    pub fn new(inner: S, pace: Pace, farewell: Farewell) -> Self {
        Self { inner, pace, farewell, unread: Bytes::new() }
    }

    /// Takes back what was read and not used; it comes again before anything else. Empty lines before a request mean
    /// nothing (RFC 9112 §2.2) and do not come again.
    pub fn unread(&mut self, bytes: &[u8]) {
        let begins = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
        // A copy: what was read lies in a buffer that is many times as large.
        self.unread = Bytes::copy_from_slice(&bytes[begins..]);
    }
}

impl<S: AsyncBufRead + Unpin> Requests<S> {
    /// Waits until there is something to read, and leaves it there; `false` if there will be nothing more.
    ///
    /// # Errors
    /// If the stream broke, or a deadline passed.
    pub async fn spoken(&mut self) -> io::Result<bool> {
        Ok(!self.unread.is_empty() || !self.inner.fill_buf().await?.is_empty())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Requests<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.unread.is_empty() {
            ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        } else {
            buffer.put_slice(&this.unread.split_to(this.unread.len().min(buffer.remaining())));
        }
        if buffer.filled().len() > before && this.pace.phase() == Phase::Idle {
            this.pace.enter(Phase::Header);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Requests<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.pace.note_unsent(true);
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.pace.note_unsent(true);
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        this.pace.note_unsent(false);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It has still to end, and is never at rest.
        self.pace.note_unsent(true);
        if self.pace.is_in_header() {
            // What began is no request, and was refused as such by HTTP itself: the peer may be far from its end.
            self.pace.note_header();
            self.farewell.say();
        }
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
