//! Checks the certificates that ACME has obtained so far, and reports the last failed attempt.

use std::collections::BTreeMap;

use super::live::LiveResult;
use super::{CERTIFICATE, DNS, Finding, FindingLevel};
use crate::acme::{AcmeSettings, FailedAttempt, StoredCertificate, stored_certificates};
use crate::app::exact_names;
use crate::certificate::Condition;
use crate::clock::{self, utc_minute};
use crate::config::Config;
use crate::wording::span;

/// Reports certificates that are missing, expire, or could not be renewed. Certificates that fail for one reason are one
/// finding. What `--live` has found decides whether the reason still holds.
pub(super) fn check(config: &Config, settings: &AcmeSettings, live: &LiveResult, findings: &mut Vec<Finding>) {
    let now = clock::unix_seconds(clock::now());
    let stored = stored_certificates(&config.state, &config.domain, &settings.keys, &exact_names(config), now);
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) => {
            let message = format!("cannot read the certificates in {}: {error}", config.state.display());
            return findings.push(Finding::new(FindingLevel::Warning, CERTIFICATE, message));
        }
    };
    // Those that are missing for one reason, by that reason.
    let mut missing: BTreeMap<&str, Vec<&StoredCertificate>> = BTreeMap::new();
    let mut reported: Vec<Finding> = Vec::new();
    for certificate in &stored {
        let (lineage, condition) = (&certificate.lineage, &certificate.condition);
        if let Some(constituency) = lineage.constituency().filter(|_| !certificate.is_for_names) {
            let message = format!(
                "\"certificate_names\" is \"exact\", but there is no certificate for {} yet, so phones get the wildcard \
                 certificate; provost serve orders it, and provost certificate status shows what prevents it",
                certificate.names.join(", ")
            );
            reported.push(Finding::new(FindingLevel::Warning, constituency, message));
        }
        let Some(level) = FindingLevel::of(condition) else { continue };
        match (condition, condition.failure()) {
            (Condition::Missing { .. }, Some(failure)) => missing.entry(failure).or_default().push(certificate),
            (_, Some(failure)) => {
                let condition = condition.clone().with_failure(&reason(failure, findings));
                reported.push(failed(
                    level,
                    format!("the {lineage} certificate {condition}"),
                    &[certificate],
                    live,
                    now,
                ));
            }
            (_, None) => {
                reported.push(Finding::new(level, CERTIFICATE, format!("the {lineage} certificate {condition}")));
            }
        }
    }
    for (failure, certificates) in missing {
        let Some(condition) = certificates.first().map(|first| &first.condition) else { continue };
        let level = FindingLevel::of(condition).unwrap_or(FindingLevel::Error);
        let lineages: Vec<String> = certificates.iter().map(|it| it.lineage.to_string()).collect();
        let noun = if lineages.len() == 1 { "certificate" } else { "certificates" };
        let condition = condition.clone().with_failure(&reason(failure, findings));
        let message = format!("the {} {noun} {condition}", lineages.join(" and "));
        reported.push(failed(level, message, &certificates, live, now));
    }
    findings.extend(reported);
}

/// The reason of a failure. One that `--live` has found, too, is printed once.
fn reason(failure: &str, findings: &[Finding]) -> String {
    let same = findings.iter().find(|finding| {
        let is_live = finding.level == FindingLevel::Error && [DNS, CERTIFICATE].contains(&finding.subject.as_str());
        is_live && failure.contains(finding.message.as_str())
    });
    match same.map(|finding| finding.subject.as_str()) {
        Some(DNS) => "the error of \"dns\" says why".to_owned(),
        Some(_) => "the other error of \"certificate\" says why".to_owned(),
        None => failure.to_owned(),
    }
}

/// The finding that an attempt has failed for `certificates`, with its time.
fn failed(
    level: FindingLevel,
    message: String,
    certificates: &[&StoredCertificate],
    live: &LiveResult,
    now: i64,
) -> Finding {
    let attempts = || certificates.iter().filter_map(|certificate| certificate.failed);
    let Some(last) = attempts().map(|it: FailedAttempt| it.at).max() else {
        return Finding::new(level, CERTIFICATE, message);
    };
    let next = attempts().map(|it| it.next).min().unwrap_or(now);
    let next = if next <= now { "now".to_owned() } else { format!("in {} ({})", span(next - now), utc_minute(next)) };
    let message = format!("{message} (attempt of {}; next attempt {next})", utc_minute(last));
    let finding = Finding::new(level, CERTIFICATE, message);
    let mut names = certificates.iter().flat_map(|certificate| &certificate.names);
    if live.is_good && names.all(|name| live.good_challenges.contains(name.trim_start_matches("*."))) {
        let remedy = "the way of the challenge is right now: `provost certificate renew --now` tries again at once";
        return finding.with_remedy(remedy);
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_that_live_found_too_is_printed_once() {
        let error = |subject: &str, message: &str| Finding::new(FindingLevel::Error, subject, message);
        let failure = "the CA is not asked to validate: port 53 does not answer (open it)";
        for (findings, printed) in [
            (vec![error(DNS, "port 53 does not answer")], "the error of \"dns\" says why"),
            (vec![error(CERTIFICATE, "the CA is not asked")], "the other error of \"certificate\" says why"),
            (vec![error(DNS, "another one"), error("ote", "port 53 does not answer")], failure),
            (vec![Finding::new(FindingLevel::Warning, DNS, "port 53 does not answer")], failure),
        ] {
            assert_eq!(reason(failure, &findings), printed);
        }
    }
}
