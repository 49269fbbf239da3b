//! The log of one request: writes its access-log line when the request ends, however it ends.

use std::time::Instant;

use super::access_log::{AccessLog, AccessRecord};
use super::timeouts::TimeoutControl;
use crate::clock;
use crate::constituency::ConstituencyName;
use crate::identity::ClientIdentity;
use crate::identity::trust::ClaimedIdentity;
use crate::metrics::RefusalKind;
use crate::wording::counted;

/// A request in progress. Dropping it writes the line, whether the request was answered, broken off or ended by a
/// panic.
#[derive(Debug)]
pub struct RequestLog {
    record: Option<Box<AccessRecord>>,
    started: Instant,
    announced: Option<u64>,
    log: AccessLog,
    timeouts: TimeoutControl,
}

impl RequestLog {
    /// Starts with the known facts of the request. Its body has `length` bytes; `None` if that is unknown.
    #[must_use]
    pub fn begin(record: Box<AccessRecord>, length: Option<u64>, log: &AccessLog, timeouts: &TimeoutControl) -> Self {
        timeouts.begin_request(length);
        let (log, timeouts) = (log.clone(), timeouts.clone());
        Self { record: Some(record), started: clock::monotonic(), announced: None, log, timeouts }
    }

    /// Records a denial of this kind. Only the first reason is kept.
    pub fn refuse(&mut self, kind: RefusalKind, reason: &dyn std::fmt::Display) {
        if let Some(record) = &mut self.record {
            record.kind.get_or_insert(kind);
        }
        self.note(reason);
    }

    /// Records an error. Only the first reason is kept.
    pub fn note(&mut self, reason: &dyn std::fmt::Display) {
        if let Some(record) = &mut self.record {
            record.reason.get_or_insert_with(|| reason.to_string());
        }
    }

    /// Sets the constituency, if the connection did not determine it.
    pub fn set_constituency(&mut self, constituency: &ConstituencyName) {
        if let Some(record) = &mut self.record {
            record.constituency = Some(constituency.clone());
        }
    }

    /// Withdraws the client's authentication: it only claims to be that phone.
    pub fn set_claim(&mut self, claim: ClaimedIdentity) {
        if let Some(record) = &mut self.record {
            record.identity = ClientIdentity::Claimed(claim);
        }
    }

    /// Records the response: its `status` and, if known, the `announced` length of its body.
    pub fn set_response(&mut self, status: u16, announced: Option<u64>) {
        self.announced = announced;
        if let Some(record) = &mut self.record {
            record.status = Some(status);
        }
    }

    /// Counts sent body bytes.
    pub fn sent(&mut self, bytes: usize) {
        if let Some(record) = &mut self.record {
            record.bytes += bytes as u64;
        }
    }

    /// Why the request ended early, if it did.
    fn cut_short(&self, record: &AccessRecord) -> Option<String> {
        let why = match self.timeouts.abort_reason() {
            _ if std::thread::panicking() => "a bug in provost (panic)",
            Some(why) => why,
            None => "the client disconnected",
        };
        match (record.status, self.announced) {
            (None, _) => Some(format!("{why} before the response was ready")),
            (Some(_), Some(announced)) if record.bytes < announced => {
                Some(format!("{why} after {} of {}", record.bytes, counted(announced, "byte")))
            }
            _ => None,
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.timeouts.end_request();
        let Some(mut record) = self.record.take() else { return };
        record.duration = clock::monotonic().duration_since(self.started);
        record.reason = record.reason.take().or_else(|| self.cut_short(&record));
        self.log.record(record);
    }
}
