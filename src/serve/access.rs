//! The access log: one line per request and per refused handshake, on standard output.
//!
//! A record is handed over whole and formatted by the thread that writes it; the request's path neither formats nor
//! waits. A record has its own copy of what the peer said, lest it hold on to the connection's buffer. If nobody takes
//! the lines, lines are dropped and counted.
//!
//! An [`Observer`] gets every record when the log has done with it, so that whatever else is made of records costs the
//! request's path nothing.

mod line;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, SystemTime};

use hyper::{Method, Uri};
use rustls::{CipherSuite, ProtocolVersion};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::constituency::{ConstituencyName, MacAddress};
use crate::trust::Claim;

pub use line::{escaped, without_controls};

/// How many records may wait for the writer.
const QUEUE: usize = 16_384;
/// How long the writer lets records gather: waking it for each one would cost more than serving a small file.
const GATHERING: Duration = Duration::from_millis(10);
/// How many bytes of lines are written at once.
const WRITE: usize = 64 << 10;

/// The longest reason that is kept, in bytes.
const REASON: usize = 1024;

/// The form of the log's lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people: one line of words.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// TLS version and cipher suite of a connection, and whether its device certificate counts beyond its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsFacts {
    /// The version.
    pub version: ProtocolVersion,
    /// The suite.
    pub suite: CipherSuite,
    /// Whether the device certificate has expired, which the policy tolerates.
    pub is_tolerated: bool,
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
    /// Version, suite, and a mark on an expired device certificate that is tolerated.
    pub tls: Option<TlsFacts>,
    /// When the certificate that proved the phone expires, in Unix seconds.
    pub certificate_not_after: Option<i64>,
    /// Who a certificate that was refused says it is: never to be taken for `mac`.
    pub claim: Option<Box<Claim>>,
}

/// Whoever wants to know of each record too. It must not wait.
pub trait Observer: Send + Sync {
    /// A record that the log has done with.
    fn saw(&self, record: Box<AccessRecord>);
}

/// Nobody.
impl Observer for () {
    fn saw(&self, _: Box<AccessRecord>) {}
}

/// Where records go.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Boxed: they pass through many hands.
    queue: SyncSender<Box<AccessRecord>>,
    beside: Arc<Beside>,
}

/// What there is beside the lines.
struct Beside {
    /// How many lines were lost since that was last said.
    lost: AtomicU64,
    observer: Box<dyn Observer>,
}

/// The thread that writes; waited for to be sure that everything is written. Nothing is ever sent: it hangs up.
#[derive(Debug)]
pub struct Writer(Receiver<()>);

impl AccessRecord {
    /// Notes what is asked: the target as it was sent, query included, because a log is for what came in.
    pub fn ask(&mut self, method: &Method, target: &Uri, user_agent: Option<&[u8]>) {
        let path = target.path_and_query().map_or("", |path| path.as_str());
        self.request = Some((method.clone(), path.into()));
        self.user_agent = user_agent.map(Into::into);
    }
}

impl AccessLog {
    /// Starts the thread that writes lines of `format` to `output` and hands the records on to `observer`.
    ///
    /// # Errors
    /// If the system has no thread to spare.
    pub fn start(
        format: LogFormat,
        output: impl Write + Send + 'static,
        observer: impl Observer + 'static,
    ) -> std::io::Result<(Self, Writer)> {
        let (queue, records) = sync_channel(QUEUE);
        let beside = Arc::new(Beside { lost: AtomicU64::new(0), observer: Box::new(observer) });
        let beside_too = Arc::clone(&beside);
        let (alive, writer) = channel();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(&records, format, output, &beside_too, alive))?;
        Ok((Self { queue, beside }, Writer(writer)))
    }

    /// Hands a record over. Never waits.
    pub fn record(&self, mut record: Box<AccessRecord>) {
        if let Some(reason) = &mut record.reason {
            cut(reason);
        }
        if let Err(TrySendError::Full(record)) = self.queue.try_send(record) {
            if self.beside.lost.fetch_add(1, Ordering::Relaxed) == 0 {
                say_that_lines_are_lost();
            }
            self.beside.observer.saw(record);
        }
    }
}

/// On a thread of its own: whoever does not read the log may not read diagnostics either, and requests wait for neither.
fn say_that_lines_are_lost() {
    let say = || tracing::warn!("access-log lines are being lost: standard output is not read fast enough");
    // Without a thread to spare, the count at the end must do.
    let _ = std::thread::Builder::new().name("access-log-loss".to_owned()).spawn(say);
}

/// Cuts a reason that is too long: names out of a stranger's certificate are in it, and many wait in the queue.
fn cut(reason: &mut String) {
    if reason.len() > REASON {
        reason.truncate(reason.floor_char_boundary(REASON));
        reason.push_str("...");
        reason.shrink_to_fit();
    }
}

impl Writer {
    /// Waits until everything is written; every [`AccessLog`] must have been dropped. Whoever does not read the log
    /// cannot put this off for longer than `patience`.
    pub fn finish(self, patience: Duration) {
        if self.0.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the last access-log lines are lost: nobody reads standard output");
        }
    }
}

fn write_all(
    records: &Receiver<Box<AccessRecord>>,
    format: LogFormat,
    mut output: impl Write,
    beside: &Beside,
    _alive: Sender<()>,
) {
    let mut lines = String::with_capacity(WRITE);
    let mut is_broken = false;
    while let Ok(first) = records.recv() {
        std::thread::sleep(GATHERING);
        let mut next = Some(first);
        while let Some(record) = next {
            format.line(&record, &mut lines);
            beside.observer.saw(record);
            next = records.try_recv().ok();
            if next.is_some() && lines.len() < WRITE {
                continue;
            }
            match output.write_all(lines.as_bytes()).and_then(|()| output.flush()) {
                Ok(()) => is_broken = false,
                // Once, not for each line.
                Err(error) if !std::mem::replace(&mut is_broken, true) => {
                    tracing::error!("the access log cannot be written: {error}");
                }
                Err(_) => {}
            }
            lines.clear();
        }
        match beside.lost.swap(0, Ordering::Relaxed) {
            0 => {}
            count => tracing::warn!("{count} access-log lines were lost"),
        }
    }
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").field("lost", &self.lost).finish_non_exhaustive()
    }
}
