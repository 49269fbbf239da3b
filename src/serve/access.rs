//! The access log: one line per request and per refused handshake, on standard output.
//!
//! A record is handed over whole and formatted by the thread that writes it; the request's path neither formats nor
//! waits. A record has its own copy of what the peer said, lest it hold on to the connection's buffer. If nobody takes
//! the lines, lines are dropped and counted.
//!
//! An [`Observer`] gets every record once it is a line, so that whatever else is made of it costs the request's path
//! nothing. A thread of its own writes the lines: whoever does not read them keeps nothing from the observer.

#[cfg(test)]
mod tests;
mod writing;

use std::fmt::{self, Write as _};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, SystemTime};

use hyper::{Method, Uri};
use rustls::{CipherSuite, ProtocolVersion};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::constituency::{ConstituencyName, MacAddress};
use crate::trust::Claim;
use writing::Tally;

pub use writing::Writer;

/// How many records may wait to become lines.
const QUEUE: usize = 16_384;
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
pub trait Observer: Send {
    /// A record that has become a line.
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
    tally: Arc<Tally>,
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
        let tally = Arc::new(Tally::default());
        let (collecting, writing) = (Arc::clone(&tally), Arc::clone(&tally));
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        spawn("access-log").spawn(move || writing::collect(&records, format, &observer, &collecting, &pages))?;
        spawn("access-log-write").spawn(move || writing::write_all(&written, output, &writing, alive))?;
        Ok((Self { queue, tally }, Writer(writer)))
    }

    /// Hands a record over. Never waits.
    pub fn record(&self, mut record: Box<AccessRecord>) {
        if let Some(reason) = &mut record.reason {
            cut(reason);
        }
        if let Err(TrySendError::Full(_)) = self.queue.try_send(record) {
            self.tally.lose(1);
        }
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
