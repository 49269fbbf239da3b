//! The access log: one line per request and per refused handshake, on standard output.
//!
//! A record is handed over whole and becomes a line on another thread; the request's path neither formats nor waits. A
//! record has its own copy of what the peer said, lest it hold on to the connection's buffer. If nobody takes the lines,
//! lines are dropped and counted.
//!
//! An [`Observer`] gets every record once it is a line, so that whatever else is made of it costs the request's path
//! nothing. A thread of its own writes the lines: whoever does not read them keeps nothing from the observer.

mod line;
#[cfg(test)]
mod tests;
mod writer;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, SystemTime};

use hyper::{Method, Uri};
use rustls::{CipherSuite, ProtocolVersion};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::constituency::{ConstituencyName, MacAddress};
use crate::identity::trust::ClaimedIdentity;
use writer::DroppedLines;

pub use line::{escaped, without_controls};
pub use writer::Writer;

/// How many records may wait to become lines.
const QUEUE: usize = 16_384;
/// The longest reason that is kept, in bytes.
const REASON: usize = 1024;

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

/// TLS version and cipher suite of a connection, and whether its device certificate counts beyond its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedTls {
    /// The version.
    pub version: ProtocolVersion,
    /// The suite.
    pub suite: CipherSuite,
    /// Whether the device certificate has expired, which the policy tolerates.
    pub is_tolerated: bool,
    /// Whether the client knows no better signature of TLS 1.2 than one with SHA-1.
    pub has_only_sha1: bool,
}

/// The TLS of a connection, as far as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsResult {
    /// Version, suite, and a mark on an expired device certificate that is tolerated.
    Agreed(ServedTls),
    /// A handshake of the old lane that led to nothing.
    OldLane,
}

/// What happened to one request, or to one handshake that was refused.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    /// When it began.
    pub time: SystemTime,
    /// The peer.
    pub address: SocketAddr,
    /// The constituency, if it came so far.
    pub constituency: Option<ConstituencyName>,
    /// The phone, if it proved who it is.
    pub mac: Option<MacAddress>,
    /// The method, and the target's path and query as sent, if a request was read.
    pub request: Option<(Method, Box<str>)>,
    /// The answer's status.
    pub status: Option<u16>,
    /// How many bytes of body were sent.
    pub bytes: u64,
    /// How long it took.
    pub duration: Duration,
    /// What the peer calls itself: information only.
    pub user_agent: Option<Box<[u8]>>,
    /// Why it was refused or broke off.
    pub reason: Option<String>,
    /// Of which kind the reason is, if it was refused: one of a few words.
    pub kind: Option<&'static str>,
    /// What was spoken, if it came so far.
    pub tls: Option<TlsResult>,
    /// When the certificate that proved the phone expires, in Unix seconds.
    pub certificate_not_after: Option<i64>,
    /// Whether a password proved the phone.
    pub is_by_password: bool,
    /// Who a certificate that was refused says it is: never to be taken for `mac`.
    pub claim: Option<Box<ClaimedIdentity>>,
}

/// Whoever wants to know of each record too. It must not wait.
pub trait Observer: Send {
    /// A record that has become a line.
    fn saw(&self, record: Box<AccessRecord>);
}

/// Nobody.
impl Observer for () {
    fn saw(&self, _: Box<AccessRecord>) {}
}

/// What waits to become a line.
#[derive(Debug)]
enum QueuedEntry {
    /// Boxed: they pass through many hands.
    Record(Box<AccessRecord>),
    /// Answered once the observer has seen every record before it.
    Flush(oneshot::Sender<()>),
}

/// Where records go.
#[derive(Debug, Clone)]
pub struct AccessLog {
    queue: SyncSender<QueuedEntry>,
    tally: Arc<DroppedLines>,
}

impl AccessRecord {
    /// Notes what is asked: the target as it was sent, query included, because a log is for what came in.
    pub fn ask(&mut self, method: &Method, target: &Uri, user_agent: Option<&[u8]>) {
        let path = target.path_and_query().map_or("", |path| path.as_str());
        self.request = Some((method.clone(), path.into()));
        self.user_agent = user_agent.map(Into::into);
    }
}

impl AccessLog {
    /// Starts the threads that make lines of `format`, hand the records on to `observer`, and write to `output`.
    ///
    /// # Errors
    /// If the system has no threads to spare.
    pub fn start(
        format: LogFormat,
        output: impl Write + Send + 'static,
        observer: impl Observer + 'static,
    ) -> std::io::Result<(Self, Writer)> {
        let (queue, records) = sync_channel(QUEUE);
        let (pages, written) = channel();
        let (alive, writer) = channel();
        let tally = Arc::new(DroppedLines::default());
        let (collecting, writing) = (Arc::clone(&tally), Arc::clone(&tally));
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        spawn("access-log").spawn(move || writer::collect(&records, format, &observer, &collecting, &pages))?;
        spawn("access-log-write").spawn(move || writer::write_all(&written, output, &writing, alive))?;
        Ok((Self { queue, tally }, Writer(writer)))
    }

    /// How many lines were lost because nobody took them, since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.tally.lost_in_all.load(Ordering::Relaxed)
    }

    /// Hands a record over. Never waits.
    pub fn record(&self, mut record: Box<AccessRecord>) {
        if let Some(reason) = &mut record.reason {
            cut(reason);
        }
        if let Err(TrySendError::Full(_)) = self.queue.try_send(QueuedEntry::Record(record)) {
            self.tally.record_dropped(1);
        }
    }

    /// What this gives is answered once the observer has seen every record that was handed over before, or ends without an
    /// answer if too many wait.
    #[must_use]
    pub fn flush(&self) -> oneshot::Receiver<()> {
        let (flushed, answer) = oneshot::channel();
        // Dropped where the queue is full.
        let _ = self.queue.try_send(QueuedEntry::Flush(flushed));
        answer
    }
}

/// Cuts a reason that is too long: names out of a stranger's certificate are in it, and many wait in the queue.
fn cut(reason: &mut String) {
    if reason.len() > REASON {
        reason.truncate(reason.floor_char_boundary(REASON));
        reason.push_str("...");
        reason.shrink_to_fit();
    }
}
