//! Findings about plain HTTP: public networks that can use it, and settings without effect.

use super::{Finding, FindingLevel};
use crate::config::Config;
use crate::serve::site::Site;

/// Checks `config` and the policies of `site`.
pub(super) fn check(config: &Config, site: &Site, findings: &mut Vec<Finding>) {
    let file = config.file.as_ref().map_or_else(|| "local mode".to_owned(), |file| file.display().to_string());
    let open: Vec<_> = site.registry().served().filter(|served| served.policy.plain_http).collect();
    let Some(plain) = &config.plain_http else {
        let message = "\"plain_http\": true has no effect: \"plain_http\" is not set in provost.json";
        findings.extend(open.into_iter().map(|served| Finding::new(FindingLevel::Warning, &served.name, message)));
        return;
    };
    for network in plain.public_networks() {
        let message = format!(
            "\"plain_http\": {network} is not a private network: an attacker on the path can read and change everything"
        );
        findings.push(Finding::new(FindingLevel::Warning, &file, message));
    }
    for network in config.load_balancers.networks() {
        let is_shared = |plain: &&ipnet::IpNet| plain.contains(network) || network.contains(*plain);
        if let Some(shared) = plain.networks.iter().find(is_shared) {
            let message = format!(
                "\"plain_http\": {shared} overlaps with {network} of \"proxy_protocol\": over plain HTTP, a load balancer's \
                 clients count as the balancer itself, so let no balancer forward to this port"
            );
            findings.push(Finding::new(FindingLevel::Warning, &file, message));
        }
    }
    if open.is_empty() {
        let message = "\"plain_http\": no constituency has \"plain_http\": true, so the port serves no files";
        findings.push(Finding::new(FindingLevel::Warning, &file, message));
    }
}
