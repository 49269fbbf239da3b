//! Diagnostic messages on standard error. `PROVOST_LOG` sets the level, for example `debug`. If standard error is
//! systemd's journal, messages become [journal entries](super::journal).
//!
//! A thread writes the lines, so that a stalled reader blocks no other thread. If the queue is full, lines are dropped
//! and counted.

use std::fmt;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::UtcTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::escaped_json;
use super::journal::{self, JournalFormat};
use crate::app::ANNOUNCEMENT;
use crate::background::{BackgroundThread, LineQueue};
use crate::serve::access_log::LogFormat;
use crate::wording::{counted_were, is_unseen};

/// About how many bytes of lines may wait to be written.
const MAX_WAITING: usize = 1 << 20;
/// The longest time that a stalled reader delays the exit.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The diagnostics in use. Dropping it waits until all lines are written; later lines are discarded.
#[derive(Debug)]
#[must_use]
pub(super) struct Diagnostics {
    lines: LineQueue,
    writer: Option<BackgroundThread>,
}

/// Starts diagnostics. They last until the returned value is dropped.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn start(format: LogFormat) -> io::Result<Diagnostics> {
    let journal = journal::connect();
    let is_journal = journal.is_some();
    let is_json = format == LogFormat::Json;
    let write = move |line: &[u8]| match &journal {
        Some(journal) => journal::send(journal, line),
        // JSON may hold letters that reorder others. Errors are ignored: standard error may be closed.
        None if is_json && !line.is_ascii() => {
            drop(io::stderr().write_all(escaped_json(&String::from_utf8_lossy(line)).as_bytes()));
        }
        None => drop(io::stderr().write_all(line)),
    };
    let (lines, writer) = LineQueue::start("diagnostics", MAX_WAITING, write, |lost| {
        tracing::warn!("{} lost: standard error was not read fast enough", counted_were(lost, "line of diagnostics"));
    })?;

    let filter = filter(&std::env::var("PROVOST_LOG").unwrap_or_default());
    let make = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(move || make.clone())
        .with_timer(UtcTime::rfc_3339())
        .with_target(false);
    // Only tests install a subscriber earlier.
    let _ = match format {
        _ if is_journal => subscriber.event_format(JournalFormat).finish().with(filter).try_init(),
        LogFormat::Text => {
            let is_terminal = io::stderr().is_terminal();
            subscriber.with_ansi(is_terminal).fmt_fields(PlainFields).finish().with(filter).try_init()
        }
        LogFormat::Json => subscriber.json().flatten_event(true).finish().with(filter).try_init(),
    };
    Ok(Diagnostics { lines, writer: Some(writer) })
}

/// The `directives` of `PROVOST_LOG`, and announcements at every level. Without directives, or with invalid ones: `info`.
fn filter(directives: &str) -> Targets {
    let directives = with_present_modules(directives);
    let announcements = |targets: Targets| targets.with_target(ANNOUNCEMENT, LevelFilter::INFO);
    let default = || Targets::new().with_default(LevelFilter::INFO);
    if directives.is_empty() { default() } else { directives.parse().map_or_else(|_| default(), announcements) }
}

/// `PROVOST_LOG` names modules. Directives that were written for 0.1 go on working: the modules have other names now.
fn with_present_modules(directives: &str) -> String {
    const RENAMED: [(&str, &str); 6] = [
        ("renew", "acme"),
        ("status", "admin"),
        ("ledger", "phone_history"),
        ("phone", "virtual_phone"),
        ("trust", "identity::trust"),
        ("digest", "identity::digest"),
    ];
    let renamed = |directive: &str| {
        RENAMED.iter().find_map(|(old, new)| {
            let rest = directive.strip_prefix("provost::")?.strip_prefix(old)?;
            let is_whole = rest.is_empty() || rest.starts_with(['=', ':']);
            is_whole.then(|| format!("provost::{new}{rest}"))
        })
    };
    let present: Vec<String> =
        directives.split(',').map(|directive| renamed(directive).unwrap_or_else(|| directive.to_owned())).collect();
    present.join(",")
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        self.lines.close();
        // After the timeout, the rest is lost: the reader of standard error has stopped reading.
        let _ = self.writer.take().map(|writer| writer.wait(DRAIN_TIMEOUT));
    }
}

/// Formats an event's fields for people: the message, then the fields whose values the message does not contain.
#[derive(Debug)]
struct PlainFields;

#[derive(Default)]
struct FieldText {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl<'writer> FormatFields<'writer> for PlainFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut found = FieldText::default();
        fields.record(&mut found);
        write_escaped(&mut writer, &found.message)?;
        let extra = found.others.iter().filter(|(_, value)| !found.message.contains(value));
        for (name, value) in extra {
            write!(writer, " {name}=")?;
            write_escaped(&mut writer, value)?;
        }
        Ok(())
    }
}

/// Writes `text` as one line that can neither control a terminal nor hide or reorder its letters: it may quote a CA, a DNS server or a phone.
fn write_escaped(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    for character in text.chars() {
        if is_unseen(character) {
            write!(writer, "{}", character.escape_default())?;
        } else {
            writer.write_char(character)?;
        }
    }
    Ok(())
}

impl Visit for FieldText {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

impl FieldText {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.others.push((name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_module_names_select_the_same_modules() {
        for (written, meant) in [
            ("info,provost::renew=debug", "info,provost::acme=debug"),
            ("provost::trust::verifier=trace", "provost::identity::trust::verifier=trace"),
            ("provost::phone", "provost::virtual_phone"),
            ("provost::phone_config=debug,provost::serve", "provost::phone_config=debug,provost::serve"),
        ] {
            assert_eq!(with_present_modules(written), meant);
        }
    }

    #[test]
    fn directives_select_levels_and_announcements_stay() {
        use tracing::Level;
        let shown = |directives: &str, target: &str| {
            let filter = filter(directives);
            let levels = [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];
            levels.into_iter().find(|level| filter.would_enable(target, level))
        };
        for (directives, dns, acme) in [
            ("", Some(Level::INFO), Some(Level::INFO)),
            ("debug", Some(Level::DEBUG), Some(Level::DEBUG)),
            ("off", None, None),
            ("warn,provost::dns=trace", Some(Level::TRACE), Some(Level::WARN)),
            ("provost::renew=debug", None, Some(Level::DEBUG)),
            ("provost::dns=loud", Some(Level::INFO), Some(Level::INFO)),
        ] {
            assert_eq!(
                (shown(directives, "provost::dns"), shown(directives, "provost::acme")),
                (dns, acme),
                "{directives}"
            );
            assert!(shown(directives, ANNOUNCEMENT) >= Some(Level::INFO), "{directives}");
        }
    }

    #[test]
    fn control_characters_of_others_are_escaped() {
        let mut text = String::new();
        write_escaped(&mut Writer::new(&mut text), "detail \"x\u{1b}[31mred\nline2\u{9b}\" für alle").unwrap();
        assert_eq!(text, r#"detail "x\u{1b}[31mred\nline2\u{9b}" für alle"#);
    }
}
