//! A stream that passes bytes to TLS when the handshake has its turn.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::HandshakeTurn;

/// How much of a handshake is read at once, in bytes.
const READ_SIZE: usize = 4096;

/// A stream that reads at once, and passes on the data when the handshake has a slot. After the handshake, it reads
/// from `S` directly.
#[derive(Debug)]
pub struct TurnStream<S> {
    inner: S,
    turn: Option<HandshakeTurn>,
    /// Data that was read ahead, of which `given` bytes are passed on.
    ahead: Vec<u8>,
    given: usize,
}

impl<S> TurnStream<S> {
    /// Passes on `ahead` first, and then data from `inner`.
    pub fn new(inner: S, ahead: Vec<u8>, turn: HandshakeTurn) -> Self {
        Self { inner, turn: Some(turn), ahead, given: 0 }
    }

    fn is_ahead(&self) -> bool {
        self.given < self.ahead.len()
    }

    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let left = self.ahead.get(self.given..).unwrap_or_default();
        let given = left.get(..buffer.remaining()).unwrap_or(left);
        buffer.put_slice(given);
        self.given += given.len();
        if !self.is_ahead() {
            self.ahead = Vec::new();
            self.given = 0;
        }
    }
}

impl<S: AsyncRead + Unpin> TurnStream<S> {
    /// Whether the client has closed the connection, so that no work need be spent on its handshake.
    pub async fn is_closed(&mut self) -> bool {
        poll_fn(|cx| {
            let is_open = self.is_ahead() || !matches!(self.poll_ahead(cx), Poll::Ready(Ok(0) | Err(_)));
            Poll::Ready(!is_open)
        })
        .await
    }

    /// Reads ahead once, and returns how many bytes.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [0; READ_SIZE];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer))?;
        self.ahead = buffer.filled().to_vec();
        Poll::Ready(Ok(self.ahead.len()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TurnStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.turn.as_ref().is_some_and(HandshakeTurn::is_finished) {
            this.turn = None;
        }
        if this.turn.is_none() && !this.is_ahead() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        if !this.is_ahead() && ready!(this.poll_ahead(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(turn) = &this.turn {
            ready!(turn.poll_begin(cx));
        }
        this.give(buffer);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TurnStream<S> {
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

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
