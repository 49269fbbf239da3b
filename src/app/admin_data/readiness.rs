//! Whether phones can be served now. Pure.

use std::path::Path;

use crate::admin::snapshot::CertificateView;
use crate::clock::rfc3339;
use crate::constituency::{ConstituencyName, Severity};
use crate::serve::site::Site;

/// Why no phone can be served at `now`, in Unix seconds. `None` if some phone can. `folder` holds the constituencies.
///
/// A certificate that expires soon is not a reason: a load balancer would take all nodes out at once.
pub(super) fn why_not_ready(certificates: &[CertificateView], site: &Site, folder: &Path, now: i64) -> Option<String> {
    if !certificates.iter().any(|certificate| certificate.not_after.is_some()) {
        let error = certificates.iter().filter(|it| it.source == "acme").find_map(|it| it.last_error.as_ref());
        let why = error.map(|error| format!(": {error}")).unwrap_or_default();
        return Some(format!("no server certificate yet{why}"));
    }
    let mut served = site.registry().served().filter_map(|served| site.get(&served.name)).peekable();
    if served.peek().is_none() {
        return Some(why_nothing_is_served(site, folder));
    }
    let host = |name: &ConstituencyName| format!("{name}.{}", site.domain());
    if served.any(|(own, tls)| tls.certificates.is_any_valid(&host(&own.name), now)) {
        return None;
    }
    // A certificate for other names may be valid.
    let is_valid = |it: &&CertificateView| it.not_before <= Some(now) && Some(now) <= it.not_after;
    let last = certificates.iter().filter(|it| !is_valid(it)).max_by_key(|certificate| certificate.not_after);
    let Some(CertificateView { key, not_before, not_after, .. }) = last else {
        return Some("no certificate covers the names that are served".to_owned());
    };
    Some(match (not_before.filter(|begin| now < *begin), not_after.unwrap_or_default()) {
        (Some(begin), _) => {
            format!("no certificate is valid: the {key} certificate is not valid before {}", rfc3339(begin))
        }
        (None, end) => format!("no certificate is valid: the {key} certificate expired at {}", rfc3339(end)),
    })
}

fn why_nothing_is_served(site: &Site, folder: &Path) -> String {
    let unusable = || site.unusable().next().map(|(name, reason)| format!("{name} is not served: {reason}"));
    let is_error = |fault: &&crate::constituency::Fault| fault.severity == Severity::Error;
    let mut faults = site.registry().faults().iter().filter(is_error);
    let fault = || faults.next().map(|fault| format!("{}: {}", fault.subject, fault.message));
    let nothing = || format!("no constituency in {}; make a folder there", folder.display());
    format!("no constituency is served: {}", unusable().or_else(fault).unwrap_or_else(nothing))
}
