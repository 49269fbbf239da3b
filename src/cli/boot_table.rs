//! Prints boots: as a table on a terminal or in a file, or as one JSON object per line.
//!
//! Several phones can print at once. Each line is written in one piece and carries the phone's address. If the reader
//! closes the pipe (`| head`), the boots continue.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::constituency::MacAddress;
use crate::virtual_phone::{BootObserver, BootOutcome, BootReport, FleetSummary, Remark, RequestReport, VirtualPhone};
use crate::wording::counted;

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// A table for people.
    Table,
    /// JSON for programs.
    Json,
}

/// Prints boots. Clones share the output.
#[derive(Clone)]
pub struct BootTable {
    format: OutputFormat,
    out: Arc<Mutex<Box<dyn Write + Send>>>,
}

/// Prints the boot of one phone.
pub struct BootTableRows {
    printer: BootTable,
    mac: MacAddress,
    alone: bool,
    heading_due: bool,
    bar: Option<ProgressBar>,
}

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const FAINT: Style = Style::new().dimmed();
const PLAIN: Style = Style::new();

impl BootTable {
    /// Prints to standard output, with colors only on a terminal.
    #[must_use]
    pub fn new(format: OutputFormat) -> Self {
        Self::to(Box::new(anstream::stdout()), format)
    }

    /// Prints to `out`.
    #[must_use]
    pub fn to(out: Box<dyn Write + Send>, format: OutputFormat) -> Self {
        Self { format, out: Arc::new(Mutex::new(out)) }
    }

    /// The observer of a single phone: with a heading, and on a terminal a progress bar for the firmware.
    #[must_use]
    pub fn for_one_phone(&self, phone: &VirtualPhone) -> BootTableRows {
        BootTableRows { printer: self.clone(), mac: phone.mac, alone: true, heading_due: true, bar: None }
    }

    /// The observer of one of several phones. Its lines begin with the phone's address.
    #[must_use]
    pub fn for_phone_of_many(&self, phone: &VirtualPhone) -> BootTableRows {
        BootTableRows { printer: self.clone(), mac: phone.mac, alone: false, heading_due: false, bar: None }
    }

    /// Prints the last line of a fleet boot.
    pub fn summary(&self, summary: &FleetSummary) {
        let FleetSummary { phones, provisioned, incomplete, requests, sent, received, slowest, duration } = summary;
        if self.format == OutputFormat::Json {
            let slowest = slowest.map(|(mac, took)| json!({ "mac": mac, "duration_ms": milliseconds(took) }));
            return self.line(&json!({
                "event": "summary", "phones": phones, "provisioned": provisioned, "incomplete": incomplete,
                "requests": requests, "sent": sent, "received": received, "slowest": slowest, "duration_ms": milliseconds(*duration),
            }));
        }
        let style = if summary.all_provisioned() { GOOD } else { BAD };
        let slowest = slowest.map(|(mac, took)| format!(", the slowest {mac} in {}", format_duration(took)));
        let incomplete = match incomplete {
            0 => String::new(),
            1 => ", 1 of them with missing files".to_owned(),
            many => format!(", {many} of them with missing files"),
        };
        self.line(&format!(
            "{style}{provisioned} of {phones} provisioned{incomplete}{style:#} in {}: {}, {} sent, {received} received{}",
            format_duration(*duration),
            counted(*requests, "request"),
            counted(*sent, "byte"),
            slowest.unwrap_or_default()
        ));
    }

    /// Writes one line in one piece. Errors are ignored: the reader may have closed the pipe.
    fn line(&self, line: &dyn Display) {
        let mut out = self.out.lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

impl BootTableRows {
    fn prefix(&self) -> String {
        if self.alone { String::new() } else { format!("{}  ", self.mac) }
    }

    fn heading(&mut self) {
        if std::mem::take(&mut self.heading_due) && self.printer.format == OutputFormat::Table {
            let style = FAINT;
            let columns = format!("{:<20}  {:<48} {:>6} {:>11} {:>9}", "STEP", "REQUEST", "STATUS", "BYTES", "TIME");
            self.printer.line(&format!("{style}{columns}{style:#}"));
        }
    }
}

impl BootObserver for BootTableRows {
    fn progress(&mut self, received: u64, expected: Option<u64>) {
        let for_a_person = self.alone && self.printer.format == OutputFormat::Table && io::stderr().is_terminal();
        if for_a_person {
            let bar = self.bar.get_or_insert_with(|| firmware_bar(expected));
            bar.set_position(received);
        }
    }

    fn exchanged(&mut self, exchange: &RequestReport) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.heading();
        match self.printer.format {
            OutputFormat::Table => self.printer.line(&format!("{}{}", self.prefix(), row(exchange))),
            OutputFormat::Json => self.printer.line(&exchange_json(self.mac, exchange)),
        }
    }

    fn ended(&mut self, report: &BootReport) {
        match self.printer.format {
            OutputFormat::Table => self.printer.line(&format!("{}{}", self.prefix(), verdict(report))),
            OutputFormat::Json => self.printer.line(&report_json(report)),
        }
    }
}

fn row(exchange: &RequestReport) -> String {
    let RequestReport { step, method, path, status, sent, received, duration, remark, .. } = exchange;
    let style = match status.map(|status| status.as_u16()) {
        Some(200..=299) => GOOD,
        Some(404) if *remark != Some(Remark::Missing) => FAINT,
        Some(409) => PLAIN,
        _ => BAD,
    };
    let status = status.map_or("-".to_owned(), |status| status.as_u16().to_string());
    let bytes = sent + received;
    // The last line says why the request failed.
    let remark = remark.as_ref().filter(|remark| !matches!(remark, Remark::Failed(_)));
    let remark = remark.map(|remark| format!("  {FAINT}{remark}{FAINT:#}")).unwrap_or_default();
    let request = format!("{:<4} {path}", method.as_str());
    format!(
        "{:<20}  {request:<48} {style}{status:>6}{style:#} {bytes:>11} {:>9}{remark}",
        step.name(),
        format_duration(*duration)
    )
}

fn verdict(report: &BootReport) -> String {
    let style = if report.is_complete() { GOOD } else { BAD };
    let tls = report.tls.as_ref().map(|tls| format!(", {} {}", tls.version, tls.suite)).unwrap_or_default();
    let BootReport { outcome, exchanges, duration, .. } = report;
    let requests = counted(exchanges.len(), "request");
    format!("{style}{outcome}{style:#} ({requests} in {}{tls})", format_duration(*duration))
}

fn exchange_json(mac: MacAddress, exchange: &RequestReport) -> Value {
    json!({
        "event": "request",
        "mac": mac,
        "step": exchange.step.name(),
        "method": exchange.method.as_str(),
        "path": exchange.path,
        "program": exchange.program.name(),
        "status": exchange.status.map(|status| status.as_u16()),
        "sent": exchange.sent,
        "received": exchange.received,
        "duration_ms": milliseconds(exchange.duration),
        "remark": exchange.remark.as_ref().map(Remark::to_string),
    })
}

fn report_json(report: &BootReport) -> Value {
    let (reason, lacking) = match &report.outcome {
        BootOutcome::Provisioned(lacking) => (None, Some(lacking)),
        BootOutcome::NotProvisioned(reason) => (Some(reason.to_string()), None),
    };
    let (sent, received) = report.bytes();
    json!({
        "event": "outcome",
        "mac": report.phone.mac,
        "provisioned": report.is_provisioned(),
        "reason": reason,
        "missing": lacking.map(|lacking| &lacking.missing),
        "unreadable": lacking.map(|lacking| &lacking.unreadable),
        "requests": report.exchanges.len(),
        "sent": sent,
        "received": received,
        "duration_ms": milliseconds(report.duration),
        "tls": report.tls.as_ref().map(|tls| json!({ "version": tls.version, "suite": tls.suite })),
    })
}

fn firmware_bar(expected: Option<u64>) -> ProgressBar {
    let template = "firmware {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    match expected {
        Some(expected) => ProgressBar::new(expected)
            .with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())),
        None => ProgressBar::new_spinner(),
    }
}

fn format_duration(duration: Duration) -> String {
    match duration.as_millis() {
        milliseconds @ 0..10_000 => format!("{milliseconds} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// Milliseconds with three decimals, because a fast server answers in less than a millisecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};

    use super::*;
    use crate::virtual_phone::{BootStep, IncompleteFiles, Program};

    #[derive(Clone, Default)]
    struct SharedOutput(Arc<Mutex<Vec<u8>>>);

    impl Write for SharedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A reader that has closed the pipe.
    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn phone() -> VirtualPhone {
        VirtualPhone::new("00005e00530c".parse().unwrap())
    }

    fn show(watch: &mut BootTableRows, lacking: IncompleteFiles) {
        let exchange = RequestReport {
            step: BootStep::Master,
            method: Method::GET,
            path: "/00005e00530c.cfg".to_owned(),
            program: Program::Application,
            status: Some(StatusCode::NOT_FOUND),
            sent: 0,
            received: 10,
            duration: Duration::from_micros(1500),
            remark: Some(Remark::Skipped),
        };
        watch.exchanged(&exchange);
        let (exchanges, outcome) = (vec![exchange], BootOutcome::Provisioned(lacking));
        watch.ended(&BootReport { phone: phone(), exchanges, tls: None, duration: Duration::from_millis(2), outcome });
    }

    fn printed(format: OutputFormat, missing: &[&str], watch: impl Fn(&BootTable) -> BootTableRows) -> String {
        let paper = SharedOutput::default();
        let lacking = IncompleteFiles {
            missing: missing.iter().map(|file| (*file).to_owned()).collect(),
            ..IncompleteFiles::default()
        };
        show(&mut watch(&BootTable::to(Box::new(paper.clone()), format)), lacking);
        let bytes = paper.0.lock().clone();
        anstream::adapter::strip_bytes(&bytes).into_vec().try_into().unwrap()
    }

    #[test]
    fn table_has_heading_rows_and_result() {
        let text = printed(OutputFormat::Table, &[], |printer| printer.for_one_phone(&phone()));
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("STEP") && lines[0].ends_with("TIME"), "{text}");
        assert!(lines[1].starts_with("master configuration  GET  /00005e00530c.cfg"), "{text}");
        assert!(lines[1].contains(" 404 ") && lines[1].ends_with("1 ms  not there, skipped"), "{text}");
        assert_eq!(lines[2], "provisioned (1 request in 2 ms)");
    }

    #[test]
    fn missing_named_files_are_in_the_result() {
        let verdict = |missing: &[&str]| {
            let text = printed(OutputFormat::Table, missing, |printer| printer.for_one_phone(&phone()));
            text.lines().last().unwrap().to_owned()
        };
        assert_eq!(verdict(&["a.cfg"]), "provisioned, 1 named file missing: a.cfg (1 request in 2 ms)");
        assert_eq!(
            verdict(&["a\x1b[2J", "b"]),
            "provisioned, 2 named files missing: a\u{fffd}[2J, b (1 request in 2 ms)"
        );
        assert!(verdict(&["a"; 7]).starts_with("provisioned, 7 named files missing: a, a, a, a, a, 2 more ("));
    }

    #[test]
    fn lines_of_a_fleet_begin_with_the_mac_address() {
        let text = printed(OutputFormat::Table, &[], |printer| printer.for_phone_of_many(&phone()));
        assert_eq!(text.lines().filter(|line| line.starts_with("00005e00530c  ")).count(), 2, "{text}");
    }

    #[test]
    fn json_has_one_object_per_line() {
        let text = printed(OutputFormat::Json, &["site.cfg"], |printer| printer.for_phone_of_many(&phone()));
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["status"], &lines[0]["mac"]), (&json!(404), &json!("00005e00530c")));
        assert_eq!((&lines[1]["event"], &lines[1]["provisioned"]), (&json!("outcome"), &json!(true)));
        assert_eq!((&lines[1]["missing"], &lines[1]["unreadable"]), (&json!(["site.cfg"]), &json!([])));
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn closed_pipe_is_ignored() {
        show(
            &mut BootTable::to(Box::new(Gone), OutputFormat::Table).for_one_phone(&phone()),
            IncompleteFiles::default(),
        );
    }
}
