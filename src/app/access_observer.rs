//! Passes access log records to the metrics and to the phone history. So `serve` does not depend on the database, and
//! `phone_history` does not depend on connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;

use crate::clock;
use crate::constituency::Fingerprint;
use crate::identity::ClientIdentity;
use crate::metrics::{Metrics, Observation, RefusalKind};
use crate::phone_history::{ActivityCounts, PhoneEvent, PhoneHistory, Proof, is_refusal};
use crate::serve::access_log::{AccessRecord, Observer, ServedTls, TlsResult};
use crate::serve::client_prefix;

/// Counts each access log record, and sends those about a phone to the phone history.
pub(super) struct AccessObserver {
    history: PhoneHistory,
    metrics: Arc<Metrics>,
    /// How many of the finished handshakes the history has counted.
    handshakes: AtomicU64,
}

impl AccessObserver {
    pub(super) fn new(history: PhoneHistory, metrics: Arc<Metrics>) -> Self {
        Self { history, metrics, handshakes: AtomicU64::default() }
    }

    fn count(&self, record: &AccessRecord) {
        let status = status(record);
        // A Digest challenge is neither served nor refused: the client repeats the request with credentials.
        let is_challenge = record.kind == Some(RefusalKind::Challenge);
        let is_refused = !is_challenge && is_refusal(status, record.request.is_some());
        self.metrics.observe(Observation {
            constituency: record.constituency.as_ref(),
            method: record.request.as_ref().map(|(method, _)| method),
            status: record.status,
            refusal: record.kind.filter(|_| is_refused),
            bytes: record.bytes,
        });
        let finished = self.metrics.handshakes.finished();
        let new = finished.saturating_sub(self.handshakes.swap(finished, Ordering::Relaxed));
        let is_handshake = status.is_none() && record.request.is_none();
        let counts = ActivityCounts {
            served: u64::from(status.is_some() && !is_refused && !is_challenge),
            refused: u64::from(is_refused),
            handshakes: new + u64::from(is_handshake),
        };
        self.history.add_activity(clock::unix_seconds(record.time), counts);
    }
}

impl Observer for AccessObserver {
    fn saw(&self, record: Box<AccessRecord>) {
        self.count(&record);
        if let Some(event) = phone_event(*record) {
            self.history.record(event);
        }
    }
}

fn status(record: &AccessRecord) -> Option<StatusCode> {
    record.status.and_then(|status| StatusCode::from_u16(status).ok())
}

/// The phone event in a record. `None` if the record has no identity and no claim of one, or no constituency.
fn phone_event(record: AccessRecord) -> Option<PhoneEvent> {
    let status = status(&record);
    let (mac, proof) = match record.identity {
        ClientIdentity::Plain | ClientIdentity::Anonymous => return None,
        ClientIdentity::Certificate(device) => {
            (device.mac().ok()?, Proof::Certificate { not_after: device.not_after() })
        }
        ClientIdentity::Password(mac) => (mac, Proof::Password),
        ClientIdentity::Claimed(claim) => {
            (claim.mac, Proof::Claimed { fingerprint: claim.fingerprint.map(Fingerprint::bytes) })
        }
    };
    Some(PhoneEvent {
        time: record.time,
        address: record.address.ip().to_canonical(),
        network: client_prefix(record.address.ip()),
        constituency: record.constituency?,
        mac,
        proof,
        request: record.request,
        status,
        bytes: record.bytes,
        duration: record.duration,
        user_agent: record.user_agent,
        reason: record.reason,
        tls: record.tls.and_then(TlsResult::agreed).map(ServedTls::names),
    })
}
