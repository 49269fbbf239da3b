//! Diagnostics in systemd's journal: each entry has its level, and fields that can be queried, for example `journalctl
//! CONSTITUENCY=ote`.
//!
//! An entry uses the journal's native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>), one line per field. The
//! diagnostics thread sends it like any other line.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::wording::is_unseen;

/// The journal's socket.
const SOCKET: &str = "/run/systemd/journal/socket";
/// The send timeout if the journal does not accept an entry.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The field with the message.
const MESSAGE: &str = "MESSAGE";

/// Connects to the journal, if standard error leads there.
pub(super) fn connect() -> Option<UnixDatagram> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let stderr = rustix::fs::fstat(io::stderr()).ok()?;
    if stream != format!("{}:{}", stderr.st_dev, stderr.st_ino) {
        return None;
    }
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(SOCKET).ok()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT)).ok()?;
    Some(socket)
}

/// Sends `entry`. If that fails, writes it to standard error, which leads to the journal too.
pub(super) fn send(journal: &UnixDatagram, entry: &[u8]) {
    if journal.send(entry).is_err() {
        let text = String::from_utf8_lossy(entry);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let (level, message) = (field("PRIORITY").unwrap_or("6"), field(MESSAGE).unwrap_or_default());
        // Errors are ignored: standard error may be closed.
        let _ = io::stderr().write_all(format!("<{level}>{message}\n").as_bytes());
    }
}

/// Formats events as journal entries.
#[derive(Debug)]
pub(super) struct JournalFormat;

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut entry =
            JournalEntry(format!("SYSLOG_IDENTIFIER=provost\nPRIORITY={}\n", priority(*event.metadata().level())));
        event.record(&mut entry);
        writer.write_str(&entry.0)
    }
}

/// The syslog number of a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// An entry under construction.
struct JournalEntry(String);

impl JournalEntry {
    fn add(&mut self, name: &str, value: &dyn fmt::Display) {
        let name = if name == "message" { MESSAGE.to_owned() } else { name.to_ascii_uppercase() };
        // A line break would end the field.
        let value = value.to_string().replace(is_unseen, " ");
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{}={value}", name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
    }
}

impl Visit for JournalEntry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct JournalWriter(Arc<Mutex<Vec<u8>>>);

    impl io::Write for JournalWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn journal_fields_cannot_be_injected() {
        let paper = JournalWriter::default();
        let make = paper.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || make.clone()).event_format(JournalFormat).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(constituency = "ote", mac = %"00005e00530c", "two\nPRIORITY=0");
        });
        let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        let mut lines: Vec<&str> = written.lines().collect();
        lines.sort_unstable();
        let expected = [
            "CONSTITUENCY=ote",
            "MAC=00005e00530c",
            "MESSAGE=two PRIORITY=0",
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=provost",
        ];
        assert_eq!(lines, expected);
    }
}
