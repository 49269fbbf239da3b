//! What the access log tells, as the ledger knows it: serving knows no database, and the ledger no connections.

use hyper::StatusCode;

use crate::ledger::{Ledger, Proof, Sighting};
use crate::serve::access::{AccessRecord, Observer, TlsFacts};
use crate::serve::household;

/// Notes in the ledger what the access log tells of phones.
pub(super) struct Sightings(pub(super) Ledger);

impl Observer for Sightings {
    fn saw(&self, record: Box<AccessRecord>) {
        if let Some(sighting) = sighting(*record) {
            self.0.note(sighting);
        }
    }
}

/// What a record says of a phone; `None` if it is about nobody, or asked nobody.
fn sighting(record: AccessRecord) -> Option<Sighting> {
    let (mac, proof) = match (record.mac, record.certificate_not_after, record.claim) {
        (Some(mac), Some(not_after), _) => (mac, Proof::Certificate { not_after }),
        (_, _, Some(claim)) => (claim.mac, Proof::Claimed { fingerprint: claim.fingerprint.bytes() }),
        _ => return None,
    };
    Some(Sighting {
        time: record.time,
        address: record.address.ip().to_canonical(),
        network: household(record.address.ip()),
        constituency: record.constituency?,
        mac,
        proof,
        request: record.request,
        status: record.status.and_then(|status| StatusCode::from_u16(status).ok()),
        bytes: record.bytes,
        duration: record.duration,
        user_agent: record.user_agent,
        reason: record.reason,
        tls: record.tls.map(TlsFacts::names),
    })
}
