//! Bodies of answers. A file is sent in pieces, so that memory does not grow with its size; and in small ones to a peer
//! that is slow, or has not shown yet that it is not, because a piece is held for as long as it takes to send it.
//!
//! Pieces come out of the page cache without leaving the runtime's thread; only what is not there yet is read on a
//! thread that may block.

use std::fs::File;
use std::io;
use std::io::IoSliceMut;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::task::JoinHandle;

use crate::clock;

/// A piece for a peer that is fast, in bytes: measured as the cheapest per byte.
const PIECE: usize = 256 << 10;
/// A piece for a peer that is slow, or may be; smaller ones cost a fast peer more than they save with a slow one.
const SMALL_PIECE: usize = 32 << 10;
/// How much a peer must have taken without delay to be fast. The buffers of TCP swallow less before it shows that nobody
/// reads: Linux's for sending up to 4 MiB (`tcp_wmem`), beside the peer's for receiving, which grows only as it reads.
const FAST_AFTER: usize = 8 << 20;
/// A peer that takes longer for a piece is slow. Much more than a busy machine makes anybody wait, because small pieces
/// would make it busier.
const SLOW: Duration = Duration::from_millis(100);

/// A part of a file as a body.
#[derive(Debug)]
pub struct FileBody {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
    /// The piece that was sent last, to be used again once nobody holds it any more.
    last: Bytes,
    /// When it was sent.
    sent: Option<Instant>,
    /// How many bytes the peer has taken since it was last slow.
    taken: usize,
    reading: Option<JoinHandle<io::Result<BytesMut>>>,
}

impl FileBody {
    /// `length` bytes of `file` from `offset` on.
    #[must_use]
    pub fn new(file: impl Into<Arc<File>>, offset: u64, length: u64) -> Self {
        Self { file: file.into(), offset, remaining: length, last: Bytes::new(), sent: None, taken: 0, reading: None }
    }

    /// How large a piece this peer may have now.
    fn piece_len(&self) -> usize {
        if self.taken < FAST_AFTER { SMALL_PIECE } else { PIECE }
    }

    /// Notes how long the peer took for the last piece.
    fn note_pace(&mut self) {
        let Some(sent) = self.sent.take() else { return };
        if clock::monotonic().duration_since(sent) > SLOW {
            self.taken = 0;
        } else {
            self.taken = self.taken.saturating_add(self.last.len());
        }
    }

    /// A buffer for the next piece: the last one's memory if it is free and of the right size, else new.
    fn buffer(&mut self) -> BytesMut {
        let piece = self.piece_len();
        let length = usize::try_from(self.remaining).map_or(piece, |remaining| remaining.min(piece));
        match std::mem::take(&mut self.last).try_into_mut() {
            Ok(mut last) if (length..=piece).contains(&last.len()) => {
                last.truncate(length);
                last
            }
            _ => BytesMut::zeroed(length),
        }
    }

    fn finish(&mut self, mut piece: BytesMut, read: usize) -> io::Result<Bytes> {
        if read == 0 {
            // Whoever was promised these bytes must not take padding for them.
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was sent"));
        }
        piece.truncate(read);
        self.offset += read as u64;
        self.remaining -= read as u64;
        let piece = piece.freeze();
        self.last = piece.clone();
        self.sent = Some(clock::monotonic());
        Ok(piece)
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Some(reading) = &mut this.reading {
            let result = ready!(Pin::new(reading).poll(cx));
            this.reading = None;
            let piece = result.map_err(io::Error::other).and_then(|piece| piece);
            return Poll::Ready(Some(piece.and_then(|piece| {
                let read = piece.len();
                this.finish(piece, read).map(Frame::data)
            })));
        }
        if this.remaining == 0 {
            return Poll::Ready(None);
        }
        this.note_pace();
        let mut piece = this.buffer();
        match read_cached(&this.file, &mut piece, this.offset) {
            Ok(Some(read)) => Poll::Ready(Some(this.finish(piece, read).map(Frame::data))),
            Ok(None) => {
                let (file, offset) = (Arc::clone(&this.file), this.offset);
                this.reading = Some(tokio::task::spawn_blocking(move || read_from_disk(&file, piece, offset)));
                Pin::new(this).poll_frame(cx)
            }
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

/// Reads what is in the page cache; `None` if the disk would have to be waited for.
pub fn read_cached(file: &File, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(Some(read)),
        // Nothing cached, or a file system that cannot tell.
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads one piece, waiting for the disk.
fn read_from_disk(file: &File, mut piece: BytesMut, offset: u64) -> io::Result<BytesMut> {
    let read = std::os::unix::fs::FileExt::read_at(file, &mut piece, offset)?;
    piece.truncate(read);
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Write;

    fn file(size: usize) -> (File, Vec<u8>) {
        let content: Vec<u8> = (0..size).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        (file, content)
    }

    #[tokio::test]
    async fn a_part_of_a_file_is_sent_to_the_byte() {
        let (file, content) = file(3 * PIECE + 17);
        let body = FileBody::new(file.try_clone().unwrap(), 5, content.len() as u64 - 9);
        assert_eq!(body.size_hint().exact(), Some(content.len() as u64 - 9));
        let sent = body.collect().await.unwrap().to_bytes();
        assert_eq!(sent, content[5..content.len() - 4]);
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_an_error_and_never_padding() {
        let (file, _) = file(2 * SMALL_PIECE);
        let mut body = FileBody::new(file.try_clone().unwrap(), 0, 2 * SMALL_PIECE as u64);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), SMALL_PIECE);
        file.set_len(100).unwrap();
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("shrank"));
    }

    #[tokio::test]
    async fn pieces_share_memory_once_they_are_sent() {
        let (file, _) = file(4 * SMALL_PIECE);
        let mut body = FileBody::new(file, 0, 4 * SMALL_PIECE as u64);
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let address = first.as_ptr();
        drop(first);
        let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(second.as_ptr(), address);
        let third = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_ne!(third.as_ptr(), address, "the second is still held");
    }

    #[tokio::test]
    async fn pieces_are_large_once_the_peer_has_kept_up_and_small_again_when_it_is_slow() {
        let size = 16 * FAST_AFTER;
        let file = tempfile::tempfile().unwrap();
        file.set_len(size as u64).unwrap();
        let mut body = FileBody::new(file, 0, size as u64);
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        assert_eq!(next().await, SMALL_PIECE);
        let mut largest = 0;
        while largest < PIECE {
            largest = largest.max(next().await);
        }
        body.sent = body.sent.and_then(|sent| sent.checked_sub(2 * SLOW));
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        assert_eq!(next().await, SMALL_PIECE);
    }
}
