//! Views of the certificates. Pure.

use rustls::SignatureAlgorithm;

use crate::acme::CertificateStatus;
use crate::admin::snapshot::CertificateView;
use crate::ca::KeyKind;
use crate::certificate::{Condition, ConditionLevel, LocalCa, RenewalSchedule, ServerCertificate};

/// The name of a kind of key.
pub(super) fn key(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Rsa2048 => "RSA",
        KeyKind::EcdsaP256 => "ECDSA",
    }
}

/// A certificate from ACME.
pub(super) fn renewed(status: CertificateStatus, now: i64) -> CertificateView {
    let condition = status.condition(now);
    let held = status.held.as_ref();
    CertificateView {
        key: key(status.key).to_owned(),
        names: held.map_or(status.names, |held| held.names.clone()),
        issuer: held.and_then(|held| held.issuers.first().cloned()),
        not_before: held.map(|held| held.not_before),
        not_after: held.map(|held| held.not_after),
        source: "acme",
        level: condition.level(),
        state: condition.word(),
        problem: condition.problem(),
        next_attempt: Some(status.next_attempt),
        step: status.step,
        last_error: status.last_error,
        needs_human: status.needs_human,
    }
}

/// A certificate from files, which another program writes.
pub(super) fn from_files(certificate: &ServerCertificate, now: i64) -> CertificateView {
    let condition = Condition::of(now, Some(certificate.validity()), None);
    presented(certificate, "files", &condition)
}

/// A certificate from the local CA.
pub(super) fn from_local_ca(certificate: &ServerCertificate, now: i64) -> CertificateView {
    let renewal = LocalCa::renewal(certificate.not_after);
    let plan = RenewalSchedule { renewal, failure: None, action_required: false };
    presented(certificate, "local_ca", &Condition::of(now, Some(certificate.validity()), Some(plan)))
}

fn presented(certificate: &ServerCertificate, source: &'static str, condition: &Condition) -> CertificateView {
    let is_rsa = certificate.algorithm() == SignatureAlgorithm::RSA;
    CertificateView {
        key: if is_rsa { "RSA" } else { "ECDSA" }.to_owned(),
        names: certificate.names.clone(),
        issuer: certificate.issuer(),
        not_before: Some(certificate.not_before),
        not_after: Some(certificate.not_after),
        source,
        level: condition.level(),
        state: condition.word(),
        problem: condition.problem(),
        next_attempt: None,
        step: None,
        last_error: None,
        needs_human: false,
    }
}

/// The problems of the certificates, the worst first, a line each. A line begins with its level.
pub(super) fn warnings(certificates: &[CertificateView]) -> Vec<String> {
    let mut ill: Vec<&CertificateView> = certificates.iter().filter(|it| it.level > ConditionLevel::Ok).collect();
    ill.sort_by_key(|certificate| std::cmp::Reverse(certificate.level));
    let line = |it: &&CertificateView| {
        let problem = it.problem.as_deref().unwrap_or_default();
        format!("{}: the {} certificate for {} {problem}", it.level.as_str(), it.key, it.names.join(", "))
    };
    ill.iter().map(line).collect()
}
