//! The access log: one line per request and per rejected handshake, on standard output.
//!
//! The request path hands a record over whole; another thread formats it. The request path never formats and never
//! waits. A record owns a copy of the client's strings, so that it does not pin the connection's buffer. There is no
//! backpressure on requests: if standard output is read too slowly, lines are dropped and counted.
//!
//! An [`Observer`] gets every record after its line is formatted, so that further processing costs the request path
//! nothing. A separate thread writes the lines, so that a slow reader of the log does not delay the observer.

mod line;
#[cfg(test)]
mod tests;
mod writer;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use hyper::{Method, Uri};
use rustls::{CipherSuite, ProtocolVersion};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::background::{BackgroundThread, LineQueue};
use crate::constituency::ConstituencyName;
use crate::identity::ClientIdentity;
use crate::metrics::RefusalKind;

pub use line::{escaped, without_controls};

/// The limit of records that wait to be formatted.
const QUEUE: usize = 16_384;
/// About how many bytes of lines may wait to be written.
const MAX_WAITING: usize = 4 << 20;
/// The maximum length of a stored reason, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// The format of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of words per event.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// TLS version and cipher suite of a connection, with marks for an expired certificate and for SHA-1 signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedTls {
    pub version: ProtocolVersion,
    pub suite: CipherSuite,
    /// Whether the device certificate has expired, which the policy tolerates.
    pub is_tolerated: bool,
    /// Whether SHA-1 signatures are the best that the client supports in TLS 1.2.
    pub has_only_sha1: bool,
}

/// The result of a TLS handshake, as far as it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsResult {
    /// A finished handshake.
    Agreed(ServedTls),
    /// A failed handshake of the OpenSSL backend.
    OpensslFailed,
}

/// One request, or one rejected handshake.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    /// When it began.
    pub time: SystemTime,
    /// The client's address.
    pub address: SocketAddr,
    /// The constituency, if it was found.
    pub constituency: Option<ConstituencyName>,
    /// Who the client is.
    pub identity: ClientIdentity,
    /// The method, and the target's path and query as sent, if a request was read.
    pub request: Option<(Method, Box<str>)>,
    /// The status of the response.
    pub status: Option<u16>,
    /// How many body bytes were sent.
    pub bytes: u64,
    pub duration: Duration,
    /// The User-Agent header; unverified.
    pub user_agent: Option<Box<[u8]>>,
    /// Why it was denied or broke off.
    pub reason: Option<String>,
    /// The kind of the reason, if it was refused.
    pub kind: Option<RefusalKind>,
    /// The TLS of the connection, as far as it got.
    pub tls: Option<TlsResult>,
}

/// Receives each record as well. Must not block.
pub trait Observer: Send {
    /// Called with each record after its line is formatted.
    fn saw(&self, record: Box<AccessRecord>);
}

/// Discards the records.
impl Observer for () {
    fn saw(&self, _: Box<AccessRecord>) {}
}

#[derive(Debug)]
enum QueuedEntry {
    /// Boxed, because it is moved often.
    Record(Box<AccessRecord>),
    /// Answered after the observer has seen every record before it.
    Flush(oneshot::Sender<()>),
}

/// The handle for writing records.
#[derive(Debug, Clone)]
pub struct AccessLog {
    queue: SyncSender<QueuedEntry>,
    /// Behind an `Arc`, because each request clones the log.
    lines: Arc<LineQueue>,
}

impl AccessRecord {
    /// Records the request: the target as sent, query included, because the log shows what arrived.
    pub fn set_request(&mut self, method: &Method, target: &Uri, user_agent: Option<&[u8]>) {
        let path = target.path_and_query().map_or("", |path| path.as_str());
        self.request = Some((method.clone(), path.into()));
        self.user_agent = user_agent.map(Into::into);
    }
}

impl AccessLog {
    /// Starts the threads that format lines as `format`, pass records to `observer`, and write to `output`. The thread
    /// that is returned ends when the log and its clones are dropped and everything is written.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(
        format: LogFormat,
        output: impl Write + Send + 'static,
        observer: impl Observer + 'static,
    ) -> std::io::Result<(Self, BackgroundThread)> {
        let (queue, records) = sync_channel(QUEUE);
        let (lines, thread) =
            LineQueue::start("access-log-write", MAX_WAITING, writer::write_to(output), writer::report_dropped)?;
        let lines = Arc::new(lines);
        let collected = Arc::clone(&lines);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            writer::collect(&records, format, &observer, &collected);
            collected.close();
        })?;
        Ok((Self { queue, lines }, thread))
    }

    /// How many lines were dropped since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lines.dropped()
    }

    /// Submits a record. Never blocks.
    pub fn record(&self, mut record: Box<AccessRecord>) {
        if let Some(reason) = &mut record.reason {
            cut(reason);
        }
        if let Err(TrySendError::Full(_)) = self.queue.try_send(QueuedEntry::Record(record)) {
            self.lines.count_dropped(1);
        }
    }

    /// The returned receiver completes after the observer has seen every record submitted before. It fails if the queue
    /// is full.
    #[must_use]
    pub fn flush(&self) -> oneshot::Receiver<()> {
        let (flushed, answer) = oneshot::channel();
        // If the queue is full, this drops the sender.
        let _ = self.queue.try_send(QueuedEntry::Flush(flushed));
        answer
    }
}

/// Cuts a long reason: it may contain names from an untrusted certificate, and many records may wait in the queue.
fn cut(reason: &mut String) {
    if reason.len() > MAX_REASON_BYTES {
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        reason.push_str("...");
        reason.shrink_to_fit();
    }
}
