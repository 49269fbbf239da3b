//! What a device certificate that does not count says of itself.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity;
use crate::constituency::{Fingerprint, MacAddress};

/// A phone that somebody claims to be and did not prove: anybody can make such a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The claimed address.
    pub mac: MacAddress,
    /// The SHA-256 of the certificate.
    pub fingerprint: Fingerprint,
}

impl Claim {
    /// The claim of the certificate `leaf`; `None` if it names no phone.
    #[must_use]
    pub fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let mac = identity::mac_address(certificate.subject()).ok()?;
        Some(Self { mac, fingerprint: Fingerprint::of(leaf) })
    }
}
