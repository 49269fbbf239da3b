//! The certificates as they are shown, and whether phones can be served with them. Pure.

use rustls::SignatureAlgorithm;

use crate::ca::KeyKind;
use crate::certificate::ServerCertificate;
use crate::clock::rfc3339;
use crate::renew::CertificateStatus;
use crate::serve::site::Site;
use crate::status::picture::Certificate;

/// Which part of its lifetime a certificate has left when a renewal that fails makes us not ready.
const NEAR: i64 = 6;

/// What a key is called.
pub(super) fn key(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Rsa2048 => "RSA",
        KeyKind::EcdsaP256 => "ECDSA",
    }
}

/// A certificate that we renew ourselves.
pub(super) fn renewed(status: CertificateStatus) -> Certificate {
    let held = status.held.as_ref();
    Certificate {
        key: key(status.key).to_owned(),
        names: held.map_or(status.names, |held| held.names.clone()),
        issuer: held.and_then(|held| held.issuers.first().cloned()),
        not_before: held.map(|held| held.not_before),
        not_after: held.map(|held| held.not_after),
        source: "acme",
        next_attempt: Some(status.next_attempt),
        step: status.step,
        last_error: status.last_error,
        needs_human: status.needs_human,
    }
}

/// A certificate that comes from `source`.
pub(super) fn presented(certificate: &ServerCertificate, source: &'static str) -> Certificate {
    let is_rsa = certificate.algorithm() == SignatureAlgorithm::RSA;
    Certificate {
        key: if is_rsa { "RSA" } else { "ECDSA" }.to_owned(),
        names: certificate.names.clone(),
        issuer: certificate.issuer(),
        not_before: Some(certificate.not_before),
        not_after: Some(certificate.not_after),
        source,
        next_attempt: None,
        step: None,
        last_error: None,
        needs_human: false,
    }
}

/// Why phones cannot be served as they should at `now`, in Unix seconds; `None` if they can.
pub(super) fn why_not_ready(certificates: &[Certificate], site: &Site, now: i64) -> Option<String> {
    // One for exact names alone is no reason: where it is missing or old, phones are shown the wildcard.
    let is_common = |certificate: &&Certificate| certificate.names.iter().any(|name| name.starts_with("*."));
    let mut common: Vec<&Certificate> = certificates.iter().filter(is_common).collect();
    if common.is_empty() {
        common = certificates.iter().collect();
    }
    let held = |certificate: &&&Certificate| certificate.not_after.is_some();
    if !common.iter().any(|certificate| held(&certificate)) {
        let error = common.iter().find_map(|certificate| certificate.last_error.as_ref());
        let why = error.map(|error| format!(": {error}")).unwrap_or_default();
        return Some(format!("there is no server certificate yet{why}"));
    }
    let ending = common.iter().filter(held).find_map(|certificate| ending(certificate, now));
    ending.or_else(|| {
        let reason = site.unusable().next().map(|(name, reason)| format!("{name} is not served: {reason}"));
        let is_any_served = site.registry().served().any(|served| site.get(&served.name).is_some());
        reason.filter(|_| !is_any_served)
    })
}

/// Why a certificate will soon be refused by phones, or is already.
fn ending(certificate: &Certificate, now: i64) -> Option<String> {
    let (key, not_after) = (&certificate.key, certificate.not_after?);
    let lifetime = not_after - certificate.not_before.unwrap_or(not_after);
    match &certificate.last_error {
        _ if now > not_after => Some(format!("the {key} certificate expired at {}", rfc3339(not_after))),
        Some(error) if not_after - now < lifetime / NEAR => {
            Some(format!("the {key} certificate expires at {}, and renewing it fails: {error}", rfc3339(not_after)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn certificate(last_error: Option<&str>) -> Certificate {
        Certificate {
            key: "RSA".to_owned(),
            names: Vec::new(),
            issuer: None,
            not_before: Some(0),
            not_after: Some(90 * DAY),
            source: "acme",
            next_attempt: None,
            step: None,
            last_error: last_error.map(str::to_owned),
            needs_human: false,
        }
    }

    fn why(certificate: Certificate, day: i64) -> String {
        why_not_ready(&[certificate], &Site::default(), day * DAY).unwrap_or_default()
    }

    #[test]
    fn a_renewal_that_fails_counts_when_the_certificate_is_near_its_end() {
        assert_eq!(why(certificate(None), 80), "");
        assert_eq!(why(certificate(Some("no route")), 74), "");
        assert!(why(certificate(Some("no route")), 76).ends_with("and renewing it fails: no route"));
        assert!(why(certificate(None), 91).starts_with("the RSA certificate expired at 1970-04-01T"));
        let none_yet = Certificate { not_after: None, ..certificate(Some("no route")) };
        assert_eq!(why(none_yet, 1), "there is no server certificate yet: no route");
        let named =
            |name: &str, not_after| Certificate { names: vec![name.to_owned()], not_after, ..certificate(None) };
        let both = |wildcard, exact| {
            let certificates = [named("*.example", wildcard), named("a.example", exact)];
            why_not_ready(&certificates, &Site::default(), DAY)
        };
        assert_eq!(both(Some(90 * DAY), Some(1)), None, "phones are shown the wildcard");
        assert_eq!(both(Some(90 * DAY), None), None);
        assert!(both(None, Some(90 * DAY)).is_some() && both(Some(1), Some(90 * DAY)).is_some());
        assert_eq!(why_not_ready(&[], &Site::default(), 0).unwrap(), "there is no server certificate yet");
    }
}
