//! The stream above TLS, where requests are read as plaintext.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, ReadBuf};

use super::{Phase, TimeoutControl};
use crate::serve::lingering_close::LingerControl;
use crate::serve::request_line::SHOWN;

/// A stream on which the first byte of a request ends the idle phase. Only above TLS is it known that a byte belongs to
/// a request: below, it may be any TLS message, and may have arrived during the handshake.
#[derive(Debug)]
pub struct RequestStream<S> {
    inner: S,
    control: TimeoutControl,
    linger: LingerControl,
    unread: Bytes,
    beginning: RequestBeginning,
}

/// The first bytes of the request whose header is being read, for the log if the request is refused.
///
/// hyper may have buffered a part of a request that arrived with the one before it. It has none if the data that it was
/// given ends in an empty line, because an incomplete request line and header contain no empty line.
#[derive(Debug)]
struct RequestBeginning {
    bytes: Vec<u8>,
    is_known: bool,
    /// The last bytes that hyper was given.
    last: [u8; 4],
}

impl Default for RequestBeginning {
    fn default() -> Self {
        Self { bytes: Vec::new(), is_known: true, last: *b"\r\n\r\n" }
    }
}

impl RequestBeginning {
    /// Begins another request, with the bytes that are read next.
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
    /// Reads requests from `inner`. If hyper refuses one in its header, the stream requests a lingering close.
    pub fn new(inner: S, control: TimeoutControl, linger: LingerControl) -> Self {
        Self { inner, control, linger, unread: Bytes::new(), beginning: RequestBeginning::default() }
    }

    /// The first bytes of the request whose header is being read, if they are known.
    pub fn request_start(&self) -> Option<&[u8]> {
        (self.beginning.is_known && self.control.is_in_header()).then_some(&self.beginning.bytes)
    }

    /// Puts back `bytes` that were read and not used; they are read again before anything else. Drops empty lines
    /// before a request, which have no meaning (RFC 9112 §2.2).
    pub fn unread(&mut self, bytes: &[u8]) {
        // A copy, because `bytes` is part of a buffer that is many times as large.
        self.unread = Bytes::copy_from_slice(without_empty_lines(bytes));
        self.beginning = RequestBeginning::default();
    }
}

fn without_empty_lines(bytes: &[u8]) -> &[u8] {
    let begins = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    bytes.get(begins..).unwrap_or_default()
}

impl<S: AsyncBufRead + Unpin> RequestStream<S> {
    /// Waits until there is data to read, without consuming it; `false` at the end of the stream.
    ///
    /// # Errors
    /// If the stream broke, or a timeout passed.
    pub async fn wait_readable(&mut self) -> io::Result<bool> {
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
        if !read.is_empty() && this.control.phase().is_idle() {
            this.control.enter(Phase::Header);
            this.beginning.begin();
        }
        this.beginning.read(read, this.control.is_in_header());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RequestStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.control.note_unsent(true);
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.control.note_unsent(true);
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        this.control.note_unsent(false);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The close is still to be sent, so the connection does not become idle and is not suspended.
        self.control.note_unsent(true);
        if self.control.is_in_header() {
            // hyper itself has refused this request in its header: the client may still be sending the rest.
            self.control.note_header();
            self.linger.request();
        }
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
