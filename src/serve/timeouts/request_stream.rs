//! The side of a connection where requests are read in clear.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};

use super::{Phase, TimeoutControl};
use crate::serve::lingering_close::LingerControl;
use crate::serve::request_line::SHOWN;

/// A stream on which the first byte of a request ends the idleness. Only here is a byte one of a request: below TLS it
/// may be anything, and may have come while the handshake was still under way.
#[derive(Debug)]
pub struct RequestStream<S> {
    inner: S,
    pace: TimeoutControl,
    farewell: LingerControl,
    unread: Bytes,
    beginning: RequestBeginning,
}

/// The first bytes of the request whose header is read, to be logged if it is refused.
///
/// HTTP may hold a part of a request that came with the one before it. It holds none if all that it was given ends in an
/// empty line: a request line and header of which it does not yet have everything contain none.
#[derive(Debug)]
struct RequestBeginning {
    bytes: Vec<u8>,
    is_known: bool,
    /// The last bytes that HTTP was given.
    last: [u8; 4],
}

impl Default for RequestBeginning {
    fn default() -> Self {
        Self { bytes: Vec::new(), is_known: true, last: *b"\r\n\r\n" }
    }
}

impl RequestBeginning {
    /// Another request begins with what is read next.
    fn begin(&mut self) {
        self.bytes.clear();
        self.is_known = self.last == *b"\r\n\r\n";
    }

    fn read(&mut self, bytes: &[u8], is_in_header: bool) {
        let room = SHOWN.saturating_sub(self.bytes.len());
        if is_in_header && self.is_known && room > 0 {
            let begins = if self.bytes.is_empty() { without_empty_lines(bytes) } else { bytes };
            self.bytes.extend_from_slice(begins.get(..room).unwrap_or(begins));
        }
        match bytes.last_chunk() {
            Some(last) => self.last = *last,
            None => {
                self.last.rotate_left(bytes.len());
                let kept = self.last.len() - bytes.len();
                self.last[kept..].copy_from_slice(bytes);
            }
        }
    }
}

impl<S> RequestStream<S> {
    /// Reads requests from `inner`; whoever is refused in the middle of one hears it by way of `farewell`.
    pub fn new(inner: S, pace: TimeoutControl, farewell: LingerControl) -> Self {
        Self { inner, pace, farewell, unread: Bytes::new(), beginning: RequestBeginning::default() }
    }

    /// The first bytes of the request whose header is read, where they are known.
    pub fn beginning(&self) -> Option<&[u8]> {
        (self.beginning.is_known && self.pace.is_in_header()).then_some(&self.beginning.bytes)
    }

    /// Takes back what was read and not used; it comes again before anything else. Empty lines before a request mean
    /// nothing (RFC 9112 §2.2) and do not come again.
    pub fn unread(&mut self, bytes: &[u8]) {
        // A copy: what was read lies in a buffer that is many times as large.
        self.unread = Bytes::copy_from_slice(without_empty_lines(bytes));
        self.beginning = RequestBeginning::default();
    }
}

fn without_empty_lines(bytes: &[u8]) -> &[u8] {
    let begins = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    bytes.get(begins..).unwrap_or_default()
}

impl<S: AsyncBufRead + Unpin> RequestStream<S> {
    /// Waits until there is something to read, and leaves it there; `false` if there will be nothing more.
    ///
    /// # Errors
    /// If the stream broke, or a deadline passed.
    pub async fn spoken(&mut self) -> io::Result<bool> {
        Ok(!self.unread.is_empty() || !self.inner.fill_buf().await?.is_empty())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.unread.is_empty() {
            ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        } else {
            buffer.put_slice(&this.unread.split_to(this.unread.len().min(buffer.remaining())));
        }
        let read = buffer.filled().get(before..).unwrap_or_default();
        if !read.is_empty() && this.pace.phase() == Phase::Idle {
            this.pace.enter(Phase::Header);
            this.beginning.begin();
        }
        this.beginning.read(read, this.pace.is_in_header());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RequestStream<S> {
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
