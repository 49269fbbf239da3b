//! Certificates from a CA of our own: for a LAN, and for local mode.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::{LiveCertificates, ServerCertificate};
use crate::ca::{CaError, CertificateAuthority, KeyKind};
use crate::clock;

/// How long a certificate of the local CA lives.
const LIFETIME: Duration = Duration::from_hours(24 * 90);
/// A new one is made when less than this is left.
const RENEW_BEFORE: Duration = Duration::from_hours(24 * 30);

/// Presents a certificate of a local CA. The CA is kept, its certificates live in memory.
#[derive(Debug)]
pub struct LocalCa {
    ca: CertificateAuthority,
    names: Vec<String>,
    not_after: Option<i64>,
}

impl LocalCa {
    /// Opens the CA in `folder`, or makes it, to issue for `domain` and everything one label below it.
    pub fn open(folder: &Path, domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let ca = CertificateAuthority::open_or_make(folder, "provost local CA", KeyKind::Rsa2048, now)?;
        Ok(Self { ca, names: vec![format!("*.{domain}"), domain.to_owned()], not_after: None })
    }

    /// The CA certificate that clients must trust.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.ca.certificate()
    }

    /// Publishes a certificate in `live` if there is none yet, or the one in use is near its end.
    pub fn refresh(&mut self, live: &LiveCertificates, now: SystemTime) -> Result<(), CaError> {
        let soon = clock::unix_seconds(now + RENEW_BEFORE);
        if self.not_after.is_some_and(|not_after| not_after > soon) {
            return Ok(());
        }
        let issued = self.ca.issue_server(&self.names, now, LIFETIME)?;
        let certificate = ServerCertificate::new(vec![issued.certificate], &issued.key)
            .map_err(|error| CaError::Unusable(error.to_string()))?;
        self.not_after = Some(certificate.not_after);
        live.publish(vec![certificate]);
        Ok(())
    }
}
