//! Views of the certificates. Pure.

use rustls::SignatureAlgorithm;

use crate::acme::CertificateStatus;
use crate::admin::snapshot::CertificateView;
use crate::ca::KeyKind;
use crate::certificate::{
    CertificateFacts, Condition, ConditionLevel, FilePair, LocalCa, RenewalSchedule, ServerCertificate,
};

/// The key kind of a certificate that could not be read.
const UNKNOWN_KEY: &str = "unknown";

pub(super) fn key_name(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Rsa2048 => "RSA",
        KeyKind::EcdsaP256 => "ECDSA",
    }
}

/// The view of a certificate from ACME.
pub(super) fn from_acme(status: CertificateStatus, now: i64) -> CertificateView {
    let condition = status.condition(now);
    let held = status.held.as_ref();
    CertificateView {
        key: key_name(status.key).to_owned(),
        names: held.map_or(status.names, |held| held.names.clone()),
        issuer: held.and_then(|held| held.issuers.first().cloned()),
        not_before: held.map(|held| held.not_before),
        not_after: held.map(|held| held.not_after),
        source: "acme",
        level: condition.level(),
        state: condition.label(),
        problem: condition.problem(),
        next_attempt: Some(status.next_attempt),
        step: status.step,
        last_error: status.last_error,
        action_required: status.action_required,
    }
}

/// The view of a pair of files that another program writes.
pub(super) fn from_files(pair: &FilePair, now: i64) -> CertificateView {
    let condition = pair.condition(now);
    match &pair.certificate {
        Some(certificate) => {
            CertificateView { last_error: pair.error.clone(), ..presented(certificate, "files", &condition) }
        }
        // The files were never valid, so their names and key are unknown.
        None => CertificateView {
            names: vec![pair.files.chain.display().to_string()],
            last_error: pair.error.clone(),
            ..view_of_condition("files", &condition)
        },
    }
}

/// The view of a certificate from the local CA.
pub(super) fn from_local_ca(certificate: &ServerCertificate, now: i64) -> CertificateView {
    let renewal = LocalCa::renewal(certificate.not_after);
    let plan = RenewalSchedule { renewal, failure: None, action_required: false };
    let facts = CertificateFacts { validity: Some(certificate.validity()), ..Default::default() };
    presented(certificate, "local_ca", &Condition::of(now, &facts, Some(plan)))
}

fn presented(certificate: &ServerCertificate, source: &'static str, condition: &Condition) -> CertificateView {
    let is_rsa = certificate.algorithm() == SignatureAlgorithm::RSA;
    CertificateView {
        key: if is_rsa { "RSA" } else { "ECDSA" }.to_owned(),
        names: certificate.names.clone(),
        issuer: certificate.issuer(),
        not_before: Some(certificate.not_before),
        not_after: Some(certificate.not_after),
        ..view_of_condition(source, condition)
    }
}

/// The view of a certificate of which only the condition is known.
fn view_of_condition(source: &'static str, condition: &Condition) -> CertificateView {
    CertificateView {
        key: UNKNOWN_KEY.to_owned(),
        names: Vec::new(),
        issuer: None,
        not_before: None,
        not_after: None,
        source,
        level: condition.level(),
        state: condition.label(),
        problem: condition.problem(),
        next_attempt: None,
        step: None,
        last_error: None,
        action_required: false,
    }
}

/// The problems of the certificates, the worst first, a line each. A line begins with its level.
pub(super) fn warnings(certificates: &[CertificateView]) -> Vec<String> {
    // If no pair of files was ever valid, the server is not ready, and that reason is reported instead.
    let is_any_valid = certificates.iter().any(|it| it.not_after.is_some());
    let has_problem = |it: &&CertificateView| it.level > ConditionLevel::Ok && (is_any_valid || it.key != UNKNOWN_KEY);
    let mut with_problem: Vec<&CertificateView> = certificates.iter().filter(has_problem).collect();
    with_problem.sort_by_key(|certificate| std::cmp::Reverse(certificate.level));
    let line = |it: &&CertificateView| {
        let problem = it.problem.as_deref().unwrap_or_default();
        let (level, names) = (it.level.as_str(), it.names.join(", "));
        match it.key.as_str() {
            UNKNOWN_KEY => format!("{level}: the certificate in {names} {problem}"),
            key => format!("{level}: the {key} certificate for {names} {problem}"),
        }
    };
    with_problem.iter().map(line).collect()
}
