//! Constituencies that allow legacy TLS but have no RSA certificate, without which it cannot work.

use std::sync::Arc;

use super::{Finding, FindingLevel};
use crate::acme::AcmeSettings;
use crate::ca::KeyKind;
use crate::certificate::{ConstituencyCertificates, LiveCertificates};
use crate::config::Config;
use crate::constituency::{CertificateNames, Constituency, TlsLevel};
use crate::serve::site::Site;

/// Checks the certificates from files. If there are none at all, another finding reports that.
pub(super) fn check_files(config: &Config, site: &Site, live: LiveCertificates, findings: &mut Vec<Finding>) {
    if live.is_empty() {
        return;
    }
    let live = Arc::new(live);
    let has_rsa = |constituency: &Constituency| {
        let exact = is_exact(constituency).then(|| constituency.name.clone());
        let host = format!("{}.{}", constituency.name, config.domain);
        ConstituencyCertificates::new(Arc::clone(&live), exact).rsa(Some(&host)).is_some()
    };
    check(config, site, has_rsa, "add a pair with an RSA key to \"files\"", findings);
}

/// Checks the kinds of keys of ACME certificates. Certificates for exact names always have RSA keys.
pub(super) fn check_acme(config: &Config, site: &Site, settings: &AcmeSettings, findings: &mut Vec<Finding>) {
    let has_rsa = |constituency: &Constituency| settings.keys.contains(&KeyKind::Rsa2048) || is_exact(constituency);
    check(config, site, has_rsa, "add \"rsa-2048\" to \"keys\"", findings);
}

fn check(
    config: &Config,
    site: &Site,
    has_rsa: impl Fn(&Constituency) -> bool,
    advice: &str,
    findings: &mut Vec<Finding>,
) {
    for constituency in site.registry().served() {
        let level = constituency.policy.tls.level.unwrap_or(config.tls);
        if level > TlsLevel::Modern && !has_rsa(constituency) {
            let message = format!(
                "\"tls\" is \"{}\", but legacy TLS needs an RSA server certificate, and there is none, so phones that \
                 need it are refused",
                level.as_str()
            );
            findings.push(Finding::new(FindingLevel::Warning, &constituency.name, message).with_remedy(advice));
        }
    }
}

fn is_exact(constituency: &Constituency) -> bool {
    constituency.policy.tls.certificate_names == CertificateNames::Exact
}
