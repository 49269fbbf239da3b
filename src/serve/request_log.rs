//! One request and what came of it: its line in the access log is written when it is over, however it ends.

use std::time::Instant;

use super::access_log::{AccessLog, AccessRecord};
use super::timeouts::{Phase, TimeoutControl};
use crate::clock;
use crate::constituency::ConstituencyName;
use crate::identity::trust::ClaimedIdentity;
use crate::wording::counted;

/// A request under way. Dropped, it writes its line: answered, broken off, or given up by a defect of ours.
#[derive(Debug)]
pub struct RequestLog {
    record: Option<Box<AccessRecord>>,
    started: Instant,
    promised: Option<u64>,
    log: AccessLog,
    pace: TimeoutControl,
}

impl RequestLog {
    /// Begins with what is known of the request.
    #[must_use]
    pub fn begin(record: Box<AccessRecord>, log: &AccessLog, pace: &TimeoutControl) -> Self {
        pace.enter(Phase::Answering);
        let (log, pace) = (log.clone(), pace.clone());
        Self { record: Some(record), started: clock::monotonic(), promised: None, log, pace }
    }

    /// It is refused, for a reason of this kind; the first reason is the one that counts.
    pub fn refuse(&mut self, kind: &'static str, reason: &dyn std::fmt::Display) {
        if let Some(record) = &mut self.record {
            record.kind.get_or_insert(kind);
        }
        self.note(reason);
    }

    /// It went wrong; the first reason is the one that counts.
    pub fn note(&mut self, reason: &dyn std::fmt::Display) {
        if let Some(record) = &mut self.record {
            record.reason.get_or_insert_with(|| reason.to_string());
        }
    }

    /// It is for `constituency`, which its connection did not say.
    pub fn is_for(&mut self, constituency: &ConstituencyName) {
        if let Some(record) = &mut self.record {
            record.constituency = Some(constituency.clone());
        }
    }

    /// Who asks is not proven any more, and only claims to be that phone.
    pub fn disown(&mut self, claim: ClaimedIdentity) {
        if let Some(record) = &mut self.record {
            record.mac = None;
            record.certificate_not_after = None;
            record.claim = Some(Box::new(claim));
        }
    }

    /// It is answered with `status` and, if that is known, a body of `promised` bytes.
    pub fn answered(&mut self, status: u16, promised: Option<u64>) {
        self.promised = promised;
        if let Some(record) = &mut self.record {
            record.status = Some(status);
        }
    }

    /// Bytes of the answer's body are on their way.
    pub fn sent(&mut self, bytes: usize) {
        if let Some(record) = &mut self.record {
            record.bytes += bytes as u64;
        }
    }

    /// What ended it early, if anything did.
    fn cut_short(&self, record: &AccessRecord) -> Option<String> {
        let why = match self.pace.broken_off() {
            _ if std::thread::panicking() => "a defect of provost (a panic)",
            Some(why) => why,
            None => "the client hung up",
        };
        match (record.status, self.promised) {
            (None, _) => Some(format!("{why} before there was an answer")),
            (Some(_), Some(promised)) if record.bytes < promised => {
                Some(format!("{why} after {} of {}", record.bytes, counted(promised, "byte")))
            }
            _ => None,
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.pace.enter(Phase::Idle);
        let Some(mut record) = self.record.take() else { return };
        record.duration = clock::monotonic().duration_since(self.started);
        record.reason = record.reason.take().or_else(|| self.cut_short(&record));
        self.log.record(record);
    }
}
