//! The access log: one line per request and per refused handshake, on standard output.
//!
//! A record is handed over whole and formatted by the thread that writes it; the request's path neither formats nor
//! waits. A record has its own copy of what the peer said, lest it hold on to the connection's buffer. If nobody takes
//! the lines, lines are dropped and counted.
//!
//! An [`Observer`] gets every record when the log has done with it, so that whatever else is made of records costs the
//! request's path nothing.

#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, SystemTime};

use hyper::{Method, Uri};
use rustls::{CipherSuite, ProtocolVersion};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::constituency::{ConstituencyName, MacAddress};
use crate::trust::Claim;

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

impl LogFormat {
    /// Appends the record's line to `lines`.
    pub fn line(self, record: &AccessRecord, lines: &mut String) {
        let written = match self {
            Self::Text => write_text(record, lines),
            Self::Json => write_json(record, lines),
        };
        // Writing to a String does not fail.
        debug_assert!(written.is_ok());
        lines.push('\n');
    }
}

fn write_text(record: &AccessRecord, line: &mut String) -> fmt::Result {
    write_timestamp(record.time, line)?;
    write!(line, " {} ", record.address)?;
    or_dash(line, record.constituency.as_ref())?;
    or_dash(line, record.mac)?;
    match &record.request {
        Some((method, target)) => {
            write!(line, "\"{} {}\" ", escaped(method.as_str().as_bytes()), escaped(target.as_bytes()))?;
        }
        None => line.push_str("- "),
    }
    or_dash(line, record.status)?;
    let micros = record.duration.as_micros();
    write!(line, "{} {}.{:03}ms ", record.bytes, micros / 1000, micros % 1000)?;
    match &record.user_agent {
        Some(agent) => write!(line, "\"{}\" ", escaped(agent))?,
        None => line.push_str("- "),
    }
    match record.tls {
        Some(tls) => write!(line, "{tls}")?,
        None => line.push('-'),
    }
    match &record.reason {
        Some(reason) => write!(line, " reason=\"{}\"", escaped(reason.as_bytes())),
        None => Ok(()),
    }
}

fn write_json(record: &AccessRecord, line: &mut String) -> fmt::Result {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        address: SocketAddr,
        constituency: Option<&'a str>,
        mac: Option<MacAddress>,
        method: Option<&'a str>,
        path: Option<String>,
        status: Option<u16>,
        bytes: u64,
        duration_ms: f64,
        user_agent: Option<String>,
        reason: Option<String>,
        tls: Option<String>,
    }
    let mut time = String::new();
    write_timestamp(record.time, &mut time)?;
    let line_of_record = Line {
        time,
        address: record.address,
        constituency: record.constituency.as_ref().map(ConstituencyName::as_str),
        mac: record.mac,
        method: record.request.as_ref().map(|(method, _)| method.as_str()),
        path: record.request.as_ref().map(|(_, target)| escaped(target.as_bytes()).to_string()),
        status: record.status,
        bytes: record.bytes,
        duration_ms: milliseconds(record.duration),
        user_agent: record.user_agent.as_ref().map(|agent| escaped(agent).to_string()),
        reason: record.reason.as_ref().map(|reason| without_controls(reason)),
        tls: record.tls.map(|tls| tls.to_string()),
    };
    let json = serde_json::to_string(&line_of_record).map_err(|_| fmt::Error)?;
    line.push_str(&json);
    Ok(())
}

fn or_dash(line: &mut String, value: Option<impl fmt::Display>) -> fmt::Result {
    match value {
        Some(value) => write!(line, "{value} "),
        None => line.write_str("- "),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// RFC 3339, in UTC, with milliseconds.
fn write_timestamp(time: SystemTime, line: &mut String) -> fmt::Result {
    let time = OffsetDateTime::from(time);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second, millisecond) = time.to_hms_milli();
    let month = u8::from(month);
    write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

/// Words of ours, perhaps around a stranger's: quotes stay as they are in JSON, what drives a terminal does not.
#[must_use]
pub fn without_controls(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_graphic() || character == ' ';
    text.chars().flat_map(|c| if is_plain(c) { vec![c] } else { c.escape_unicode().collect() }).collect()
}

/// Bytes of a stranger as text that cannot break a line, close a quote or drive a terminal.
#[must_use]
pub fn escaped(bytes: &[u8]) -> impl fmt::Display {
    struct Escaped<'a>(&'a [u8]);
    impl fmt::Display for Escaped<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
            let mut rest = self.0;
            loop {
                let plain = rest.iter().position(|byte| !is_plain(byte)).unwrap_or(rest.len());
                let (run, others) = rest.split_at(plain);
                f.write_str(std::str::from_utf8(run).unwrap_or_default())?;
                let Some((byte, after)) = others.split_first() else { return Ok(()) };
                write!(f, "\\x{byte:02X}")?;
                rest = after;
            }
        }
    }
    Escaped(bytes)
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl TlsFacts {
    /// The names of version and suite.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str) {
        let version = match self.version {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLS?",
        };
        (version, self.suite.as_str().unwrap_or("?"))
    }
}

impl fmt::Display for TlsFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, suite) = self.names();
        write!(f, "{version}/{suite}{}", if self.is_tolerated { "/expired-certificate" } else { "" })
    }
}
