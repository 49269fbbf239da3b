//! Response bodies. A file is sent in chunks, so that memory does not grow with its size. A client gets small chunks
//! until it has shown that it reads fast, because each chunk is pinned until it is sent.
//!
//! Chunks are read from the page cache on the runtime's thread; only uncached data is read on a blocking thread.

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

/// The chunk size for a fast client, in bytes; measured as the cheapest per byte.
const CHUNK: usize = 256 << 10;
/// The chunk size for other clients. Chunks of 64 KiB for all would cost the same per byte, but a download that stands still
/// would hold 216 KiB.
const SMALL_CHUNK: usize = 32 << 10;
/// How much a client must read without backpressure to be fast. TCP buffers hide a stalled client before that: Linux's
/// send buffer holds up to 4 MiB (`tcp_wmem`), beside the client's receive buffer, which grows only as it reads.
const FAST_AFTER: usize = 8 << 20;
/// A client that takes longer than this for a chunk is slow. A busy machine delays a client much less; small chunks
/// would make it busier.
const SLOW: Duration = Duration::from_millis(100);

/// A part of a file, as a response body.
#[derive(Debug)]
pub struct FileBody {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
    /// The chunk sent last; its memory is reused after the connection has released it.
    last: Bytes,
    /// When the last chunk was sent.
    sent: Option<Instant>,
    /// How many bytes the client has read since it was last slow.
    taken: usize,
    reading: Option<JoinHandle<io::Result<BytesMut>>>,
}

impl FileBody {
    /// `length` bytes of `file` from `offset` on.
    #[must_use]
    pub fn new(file: impl Into<Arc<File>>, offset: u64, length: u64) -> Self {
        Self { file: file.into(), offset, remaining: length, last: Bytes::new(), sent: None, taken: 0, reading: None }
    }

    /// The current chunk size for this client.
    fn chunk_len(&self) -> usize {
        if self.taken < FAST_AFTER { SMALL_CHUNK } else { CHUNK }
    }

    /// Measures how long the client took for the last chunk.
    fn measure_backpressure(&mut self) {
        let Some(sent) = self.sent.take() else { return };
        if clock::monotonic().duration_since(sent) > SLOW {
            self.taken = 0;
        } else {
            self.taken = self.taken.saturating_add(self.last.len());
        }
    }

    /// A buffer for the next chunk: the memory of the last one if it is free and of the right size, else a new one.
    fn buffer(&mut self) -> BytesMut {
        let chunk = self.chunk_len();
        let length = usize::try_from(self.remaining).map_or(chunk, |remaining| remaining.min(chunk));
        match std::mem::take(&mut self.last).try_into_mut() {
            Ok(mut last) if (length..=chunk).contains(&last.len()) => {
                last.truncate(length);
                last
            }
            _ => BytesMut::zeroed(length),
        }
    }

    fn finish(&mut self, mut chunk: BytesMut, read: usize) -> io::Result<Bytes> {
        if read == 0 {
            // The length is already announced, and the client must not take padding for content.
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was sent"));
        }
        chunk.truncate(read);
        self.offset += read as u64;
        self.remaining -= read as u64;
        let chunk = chunk.freeze();
        self.last = chunk.clone();
        self.sent = Some(clock::monotonic());
        Ok(chunk)
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
            let chunk = result.map_err(io::Error::other).and_then(|chunk| chunk);
            return Poll::Ready(Some(chunk.and_then(|chunk| {
                let read = chunk.len();
                this.finish(chunk, read).map(Frame::data)
            })));
        }
        if this.remaining == 0 {
            return Poll::Ready(None);
        }
        this.measure_backpressure();
        let mut chunk = this.buffer();
        match read_cached(&this.file, &mut chunk, this.offset) {
            Ok(Some(read)) => Poll::Ready(Some(this.finish(chunk, read).map(Frame::data))),
            Ok(None) => {
                let (file, offset) = (Arc::clone(&this.file), this.offset);
                this.reading = Some(tokio::task::spawn_blocking(move || read_from_disk(&file, chunk, offset)));
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

/// Reads from the page cache; `None` if that would wait for the disk.
pub fn read_cached(file: &File, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(Some(read)),
        // Nothing is cached, or the file system does not support `RWF_NOWAIT`.
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads one chunk, waiting for the disk.
fn read_from_disk(file: &File, mut chunk: BytesMut, offset: u64) -> io::Result<BytesMut> {
    let read = std::os::unix::fs::FileExt::read_at(file, &mut chunk, offset)?;
    chunk.truncate(read);
    Ok(chunk)
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
    async fn range_is_sent_to_the_byte() {
        let (file, content) = file(3 * CHUNK + 17);
        let body = FileBody::new(file.try_clone().unwrap(), 5, content.len() as u64 - 9);
        assert_eq!(body.size_hint().exact(), Some(content.len() as u64 - 9));
        let sent = body.collect().await.unwrap().to_bytes();
        assert_eq!(sent, content[5..content.len() - 4]);
    }

    #[tokio::test]
    async fn shrinking_file_is_an_error_and_not_padded() {
        let (file, _) = file(2 * SMALL_CHUNK);
        let mut body = FileBody::new(file.try_clone().unwrap(), 0, 2 * SMALL_CHUNK as u64);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), SMALL_CHUNK);
        file.set_len(100).unwrap();
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("shrank"));
    }

    #[tokio::test]
    async fn chunks_reuse_memory_after_sending() {
        let (file, _) = file(4 * SMALL_CHUNK);
        let mut body = FileBody::new(file, 0, 4 * SMALL_CHUNK as u64);
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let address = first.as_ptr();
        drop(first);
        let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(second.as_ptr(), address);
        let third = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_ne!(third.as_ptr(), address, "the second is still held");
    }

    #[tokio::test]
    async fn chunk_size_follows_the_speed_of_the_client() {
        let size = 16 * FAST_AFTER;
        let file = tempfile::tempfile().unwrap();
        file.set_len(size as u64).unwrap();
        let mut body = FileBody::new(file, 0, size as u64);
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        assert_eq!(next().await, SMALL_CHUNK);
        let mut largest = 0;
        while largest < CHUNK {
            largest = largest.max(next().await);
        }
        body.sent = body.sent.and_then(|sent| sent.checked_sub(2 * SLOW));
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        assert_eq!(next().await, SMALL_CHUNK);
    }
}
