//! The stream above TLS, where requests are read as plaintext.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Expected, Phase, TimeoutControl};
use crate::serve::lingering_close::LingerControl;
use crate::serve::request_line::SHOWN;

/// The preface of HTTP/2 (RFC 9113 §3.4). It has an empty line within, and hyper recognizes it only whole.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream on which the first byte of a request ends the idle phase. Only above TLS is it known that a byte belongs to
/// a request: below, it may be any TLS message, and may have arrived during the handshake.
///
/// The stream gives hyper one request at a time. A client may send the next request before it has the response
/// (pipelining); hyper would read it along with the current one, and wait for its rest as an idle connection. Here, it
/// is read when hyper asks for the next request, and the header timeout begins.
#[derive(Debug)]
pub struct RequestStream<S> {
    inner: S,
    control: TimeoutControl,
    linger: LingerControl,
    /// What was read behind the current request.
    pipelined: Bytes,
    /// The first bytes of the request whose header is being read, for the log if the request is refused. `None` if hyper
    /// read them behind a chunked body.
    beginning: Option<Vec<u8>>,
    /// Whether hyper has read behind a chunked body. Only hyper knows where that ends.
    has_read_ahead: bool,
    /// Whether the line that is being read is empty so far.
    is_line_empty: bool,
}

impl<S> RequestStream<S> {
    /// Reads requests from `inner`. If hyper refuses one in its header, the stream requests a lingering close.
    pub fn new(inner: S, control: TimeoutControl, linger: LingerControl) -> Self {
        Self {
            inner,
            control,
            linger,
            pipelined: Bytes::new(),
            beginning: None,
            has_read_ahead: false,
            is_line_empty: false,
        }
    }

    /// The first bytes of the request whose header is being read, if they are known.
    pub fn request_start(&self) -> Option<&[u8]> {
        self.beginning.as_deref().filter(|_| self.control.is_in_header())
    }

    /// How many of `bytes`, which were just read, belong to the current request.
    fn belonging(&mut self, bytes: &[u8]) -> usize {
        match self.control.expected() {
            Expected::Header => self.read_header(bytes),
            Expected::Body(left) => {
                let belonging = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.control.note_body_read(belonging);
                belonging
            }
            Expected::ChunkedBody => {
                // A chunked body ends in an empty line, and so does a header behind it that is complete.
                self.has_read_ahead = true;
                let mut rest = bytes;
                while let Some((_, behind)) = self.split_behind_empty_line(rest) {
                    self.has_read_ahead = !behind.is_empty();
                    rest = behind;
                }
                bytes.len()
            }
        }
    }

    /// How many of `bytes` belong to the header that hyper reads now. Its first byte begins the header phase.
    fn read_header(&mut self, bytes: &[u8]) -> usize {
        let header = match self.split_behind_empty_line(bytes) {
            Some((header, _)) if !bytes.starts_with(HTTP2_PREFACE) => header,
            _ => bytes,
        };
        let belonging = header.len();
        let is_begun = self.control.is_in_header();
        // Empty lines before a request have no meaning (RFC 9112 §2.2).
        let begins = if is_begun { Some(0) } else { header.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) };
        let Some(header) = begins.and_then(|begins| header.get(begins..)) else { return belonging };
        if !is_begun {
            self.control.enter(Phase::Header);
            self.beginning.get_or_insert_default().clear();
        }
        if let Some(beginning) = &mut self.beginning {
            let room = SHOWN.saturating_sub(beginning.len());
            beginning.extend_from_slice(header.get(..room).unwrap_or(header));
        }
        belonging
    }

    /// Splits `bytes`, the next ones, behind the first empty line, if there is one. Behind a header, it ends the header.
    fn split_behind_empty_line<'a>(&mut self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let is_blank = |line: &[u8]| line.iter().all(|byte| *byte == b'\r');
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let is_empty = self.is_line_empty && bytes.get(start..end).is_some_and(is_blank);
            self.is_line_empty = true;
            start = end + 1;
            if is_empty {
                return bytes.split_at_checked(start);
            }
        }
        self.is_line_empty &= bytes.get(start..).is_some_and(is_blank);
        None
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.control.phase() == Phase::Idle && std::mem::take(&mut this.has_read_ahead) {
            // hyper waits for the rest of a header.
            this.control.enter(Phase::Header);
            this.beginning = None;
        }
        if this.pipelined.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
            let read = buffer.filled().get(before..).unwrap_or_default();
            let belonging = this.belonging(read);
            if let Some(behind) = read.get(belonging..).filter(|behind| !behind.is_empty()) {
                this.pipelined = Bytes::copy_from_slice(behind);
                buffer.set_filled(before + belonging);
            }
        } else {
            let next = this.pipelined.slice(..this.pipelined.len().min(buffer.remaining()));
            let belonging = this.belonging(&next);
            buffer.put_slice(&this.pipelined.split_to(belonging));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RequestStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.control.note_unsent();
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.control.note_unsent();
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        this.control.note_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.control.is_in_header() {
            // hyper itself has refused this request in its header: the client may still be sending the rest.
            self.linger.request();
        }
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
