//! The stored certificates and their condition, for `check`. Changes nothing, and works even if the settings of CA and
//! DNS are wrong.

use std::io;
use std::path::Path;

use super::persistent_state::{OrderAttempts, PersistentState, StoredState};
use super::schedule::Deadline;
use super::scheduler::planned;
use super::status::wrong_names;
use super::store::CertificateStore;
use super::{Lineage, wildcard_names};
use crate::ca::KeyKind;
use crate::certificate::{CertificateFacts, Condition, ExactNames, LeafFacts, RenewalSchedule, ServerCertificate};
use crate::state::FolderHandle;

/// A wanted certificate, as it is stored.
#[derive(Debug)]
pub struct StoredCertificate {
    pub lineage: Lineage,
    /// The names that are wanted.
    pub names: Vec<String>,
    pub condition: Condition,
    /// Whether a certificate is stored and lists all these names.
    pub is_for_names: bool,
    /// The key of the stored certificate: the `SubjectPublicKeyInfo`, DER.
    pub public_key: Option<Vec<u8>>,
    /// The attempt that failed last, if the condition names its reason.
    pub failed: Option<FailedAttempt>,
}

/// A failed attempt. Times are Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAttempt {
    pub at: i64,
    /// When the next one is made, as far as the state says.
    pub next: i64,
}

/// Each wanted certificate, as it is stored in the state directory `state`.
///
/// # Errors
/// If the directory cannot be read.
pub fn stored_certificates(
    state: &Path,
    domain: &str,
    keys: &[KeyKind],
    exact: &ExactNames,
    now: i64,
) -> io::Result<Vec<StoredCertificate>> {
    let certificates = state.join("certs");
    match FolderHandle::open(&certificates) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let store = CertificateStore::new(certificates);
    let kept = PersistentState::peek(&state.join("renewal.json"))?;
    let wildcards = keys.iter().map(|kind| (Lineage::Wildcard(*kind), wildcard_names(domain)));
    let exact = exact.iter().map(|(name, names)| (Lineage::Exact(name.clone()), names.to_vec()));
    let read = |(lineage, names): (Lineage, Vec<String>)| {
        let stored = store.load(&lineage).0;
        let attempts = kept.certificates.get(&lineage).cloned().unwrap_or_default();
        let plan = RenewalSchedule {
            renewal: planned(stored.as_ref(), &names, &attempts, now).unwrap_or(now),
            failure: attempts.last_error.as_deref().filter(|_| attempts.failures > 0),
            action_required: attempts.action_required,
        };
        let certificate = stored.as_ref().map(|stored| &stored.checked.certificate);
        let facts = CertificateFacts {
            validity: certificate.map(ServerCertificate::validity),
            intermediates: certificate.map(|it| it.intermediates.as_slice()).unwrap_or_default(),
            wrong_names: certificate.and_then(|it| wrong_names(&lineage, &it.names, &names)),
            files_error: None,
        };
        let condition = Condition::of(now, &facts, Some(plan));
        let is_for_names = stored.as_ref().is_some_and(|stored| stored.checked.is_for(&names));
        let leaf = stored.as_ref().and_then(|stored| LeafFacts::of(stored.checked.leaf()));
        let failed = attempts.last_failure.filter(|_| condition.failure().is_some());
        let failed =
            failed.map(|at| FailedAttempt { at, next: plan.renewal.max(allowed(&attempts, &kept, now)).max(now) });
        let public_key = leaf.map(|leaf| leaf.public_key);
        StoredCertificate { lineage, names, condition, is_for_names, public_key, failed }
    };
    Ok(wildcards.chain(exact).map(read).collect())
}

/// When backoff and rate limits allow another attempt, at the first CA that does.
fn allowed(attempts: &OrderAttempts, kept: &StoredState, now: i64) -> i64 {
    let first = |deadlines: &mut dyn Iterator<Item = Deadline>| deadlines.map(|it| it.end(now)).min();
    let waits = first(&mut attempts.waits.values().copied());
    let retry_after = first(&mut kept.directories.values().filter_map(|it| it.retry_after));
    [first(&mut attempts.pause.into_iter()), waits, retry_after].into_iter().flatten().max().unwrap_or(now)
}
