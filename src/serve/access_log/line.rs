//! Formats the lines of the access log, as text and as JSON. Pure.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rustls::ProtocolVersion;
use serde::Serialize;
use time::OffsetDateTime;

use super::{AccessRecord, LogFormat, ServedTls, TlsResult};
use crate::constituency::{ConstituencyName, MacAddress, TlsLevel};

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
    push_timestamp(record.time, line)?;
    write!(line, " {} ", record.address)?;
    or_dash(line, record.constituency.as_ref())?;
    or_dash(line, record.identity.mac())?;
    match &record.request {
        Some((method, target)) => {
            line.push('"');
            push_escaped(method.as_str().as_bytes(), line)?;
            line.push(' ');
            push_escaped(target.as_bytes(), line)?;
            line.push_str("\" ");
        }
        None => line.push_str("- "),
    }
    or_dash(line, record.status)?;
    let micros = record.duration.as_micros();
    write!(line, "{} {}.{:03}ms ", record.bytes, micros / 1000, micros % 1000)?;
    match &record.user_agent {
        Some(agent) => {
            line.push('"');
            push_escaped(agent, line)?;
            line.push_str("\" ");
        }
        None => line.push_str("- "),
    }
    match record.tls.and_then(TlsResult::agreed) {
        Some(tls) => write!(line, "{tls}")?,
        None => line.push('-'),
    }
    if let Some(lane) = record.tls.and_then(TlsResult::lane) {
        write!(line, " lane={lane}")?;
    }
    if let Some(reason) = &record.reason {
        push_reason(reason, line)?;
    }
    Ok(())
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
        #[serde(skip_serializing_if = "Option::is_none")]
        lane: Option<&'static str>,
    }
    let mut time = String::new();
    push_timestamp(record.time, &mut time)?;
    let line_of_record = Line {
        time,
        address: record.address,
        constituency: record.constituency.as_ref().map(ConstituencyName::as_str),
        mac: record.identity.mac(),
        method: record.request.as_ref().map(|(method, _)| method.as_str()),
        path: record.request.as_ref().map(|(_, target)| escaped(target.as_bytes()).to_string()),
        status: record.status,
        bytes: record.bytes,
        duration_ms: milliseconds(record.duration),
        user_agent: record.user_agent.as_ref().map(|agent| escaped(agent).to_string()),
        reason: record.reason.as_ref().map(|reason| without_controls(reason)),
        tls: record.tls.and_then(TlsResult::agreed).map(|tls| tls.to_string()),
        lane: record.tls.and_then(TlsResult::lane),
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
fn push_timestamp(time: SystemTime, line: &mut String) -> fmt::Result {
    let time = OffsetDateTime::from(time);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second, millisecond) = time.to_hms_milli();
    let month = u8::from(month);
    write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

/// Appends the result of [`escaped`]; faster if nothing needs escaping.
fn push_escaped(bytes: &[u8], line: &mut String) -> fmt::Result {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.iter().copied().all(is_plain) => {
            line.push_str(text);
            Ok(())
        }
        _ => write!(line, "{}", escaped(bytes)),
    }
}

/// Reasons quote settings, and a backslash in them usually begins an escape: both stay readable. The JSON format keeps
/// the exact text.
fn push_reason(reason: &str, line: &mut String) -> fmt::Result {
    line.push_str(" reason=\"");
    for (at, part) in reason.replace('"', "'").split('\\').enumerate() {
        if at > 0 {
            line.push('\\');
        }
        push_escaped(part.as_bytes(), line)?;
    }
    // Escape a final backslash: some readers would take it to escape the closing quote.
    line.push_str(if reason.ends_with('\\') { "x5C\"" } else { "\"" });
    Ok(())
}

/// Escapes control and non-ASCII characters. For our own text that may quote a client: quotes stay as in JSON.
#[must_use]
pub fn without_controls(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_graphic() || character == ' ';
    text.chars().flat_map(|c| if is_plain(c) { vec![c] } else { c.escape_unicode().collect() }).collect()
}

/// Whether a byte is harmless: it cannot break a line, close a quote or control a terminal.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// Escapes bytes of a client, so that they cannot break a line, close a quote or control a terminal.
#[must_use]
pub fn escaped(bytes: &[u8]) -> impl fmt::Display {
    struct Escaped<'a>(&'a [u8]);
    impl fmt::Display for Escaped<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut rest = self.0;
            loop {
                let plain = rest.iter().position(|byte| !is_plain(*byte)).unwrap_or(rest.len());
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

impl TlsResult {
    /// Version and cipher suite, if the handshake finished.
    #[must_use]
    pub fn agreed(self) -> Option<ServedTls> {
        match self {
            Self::Agreed(facts) => Some(facts),
            Self::OpensslFailed => None,
        }
    }

    /// The log's `lane`: `old` if OpenSSL handled the handshake.
    #[must_use]
    pub fn lane(self) -> Option<&'static str> {
        self.agreed().map_or(Some("old"), ServedTls::lane)
    }
}

impl ServedTls {
    /// The names of version and cipher suite.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str) {
        let version = match self.version {
            ProtocolVersion::TLSv1_0 => "TLSv1.0",
            ProtocolVersion::TLSv1_1 => "TLSv1.1",
            ProtocolVersion::TLSv1_2 if self.has_only_sha1 => TlsLevel::TLS12_WITH_SHA1,
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLS?",
        };
        (version, self.suite.as_str().unwrap_or("?"))
    }

    /// The log's `lane`: `old` if OpenSSL served the connection.
    #[must_use]
    pub fn lane(self) -> Option<&'static str> {
        let (version, suite) = self.names();
        (TlsLevel::of(version, suite) > TlsLevel::Modern).then_some("old")
    }
}

impl fmt::Display for ServedTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, suite) = self.names();
        write!(f, "{version}/{suite}{}", if self.is_tolerated { "/expired-certificate" } else { "" })
    }
}
