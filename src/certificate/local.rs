//! Certificates from a CA of our own: for a LAN, and for local mode.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::{ExactNames, LiveCertificates, ServerCertificate};
use crate::ca::{CaError, CertificateAuthority, KeyKind};
use crate::clock;
use crate::constituency::ConstituencyName;

/// The lifetime of a certificate from the local CA.
const LIFETIME: Duration = Duration::from_hours(24 * 90);
/// A certificate is renewed when less than this is left.
const RENEW_BEFORE: Duration = Duration::from_hours(24 * 30);

/// Issues and presents certificates of a local CA: a wildcard, and those for exact names. The CA is on disk, its
/// certificates are in memory.
#[derive(Debug)]
pub struct LocalCa {
    ca: CertificateAuthority,
    names: Vec<String>,
    not_after: Option<i64>,
    exact: BTreeMap<ConstituencyName, Exact>,
}

/// A certificate, and the exact names that were requested for it. `refresh_exact` compares the requested names: a name
/// that the certificate lacks would otherwise cause a new one each time.
#[derive(Debug)]
struct Exact {
    names: Vec<String>,
    certificate: ServerCertificate,
}

impl LocalCa {
    /// Opens or creates the CA in `folder`, to issue for `domain` and all names one label below it.
    pub fn open(folder: &Path, domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let ca = CertificateAuthority::open_or_make(folder, "provost local CA", KeyKind::Rsa2048, now)?;
        let names = vec![format!("*.{domain}"), domain.to_owned()];
        Ok(Self { ca, names, not_after: None, exact: BTreeMap::new() })
    }

    /// The CA certificate that clients must trust.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.ca.certificate()
    }

    /// When a certificate that ends at `not_after` is replaced.
    #[must_use]
    pub fn renewal(not_after: i64) -> i64 {
        not_after.saturating_sub(i64::try_from(RENEW_BEFORE.as_secs()).unwrap_or(i64::MAX))
    }

    /// Publishes certificates to `live` if there are none yet, those in use expire soon, or `exact` has changed.
    pub fn refresh(&mut self, live: &LiveCertificates, exact: &ExactNames, now: SystemTime) -> Result<(), CaError> {
        let soon = clock::unix_seconds(now + RENEW_BEFORE);
        if self.not_after.is_none_or(|not_after| not_after <= soon) {
            let certificate = self.issue(&self.names, now)?;
            self.not_after = Some(certificate.not_after);
            live.publish(vec![certificate]);
        }
        self.refresh_exact(live, exact, now, soon)
    }

    fn refresh_exact(
        &mut self,
        live: &LiveCertificates,
        wanted: &ExactNames,
        now: SystemTime,
        soon: i64,
    ) -> Result<(), CaError> {
        let before = self.exact.len();
        self.exact.retain(|constituency, _| wanted.get(constituency).is_some());
        let mut is_new = self.exact.len() != before;
        let mut failure = None;
        for (constituency, names) in wanted.iter() {
            let is_good = |exact: &Exact| exact.names == names && exact.certificate.not_after > soon;
            if !self.exact.get(constituency).is_some_and(is_good) {
                match self.issue(names, now) {
                    Ok(certificate) => {
                        let exact = Exact { names: names.to_vec(), certificate };
                        self.exact.insert(constituency.clone(), exact);
                        is_new = true;
                    }
                    // Publish the other certificates all the same.
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        if is_new {
            let shown = |(name, exact): (&ConstituencyName, &Exact)| (name.clone(), vec![exact.certificate.clone()]);
            live.publish_exact(self.exact.iter().map(shown).collect());
        }
        failure.map_or(Ok(()), Err)
    }

    fn issue(&self, names: &[String], now: SystemTime) -> Result<ServerCertificate, CaError> {
        let issued = self.ca.issue_server(names, now, LIFETIME)?;
        ServerCertificate::new(vec![issued.certificate], &issued.key)
            .map_err(|error| CaError::Unusable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unusable_name_does_not_block_other_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let now = clock::now();
        let mut local = LocalCa::open(folder.path(), "phones.example.com", now).unwrap();
        let live = LiveCertificates::default();
        let names = |name: &str, host: &str| (name.parse::<ConstituencyName>().unwrap(), vec![host.to_owned()]);
        let good = names("a", "a.phones.example.com");
        let exact = [good.clone(), names("b", "no ASCII: ä")].into_iter().collect();
        for _ in 0..2 {
            assert!(local.refresh(&live, &exact, now).is_err());
            assert_eq!(live.exact().keys().collect::<Vec<_>>(), [&good.0]);
        }
        let generation = live.generation();
        local.refresh(&live, &[good].into_iter().collect(), now).unwrap();
        assert_eq!(live.generation(), generation, "nothing has changed");
    }
}
