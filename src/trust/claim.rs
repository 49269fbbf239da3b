//! What a device certificate that does not count says of itself.

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity;
use crate::constituency::MacAddress;

/// A phone that somebody claims to be and did not prove: anybody can make such a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The claimed address.
    pub mac: MacAddress,
    /// The SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
}

impl Claim {
    /// The claim of the certificate `leaf`; `None` if it names no phone.
    #[must_use]
    pub fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let mac = identity::mac_address(certificate.subject()).ok()?;
        let fingerprint = digest(&SHA256, leaf).as_ref().try_into().ok()?;
        Some(Self { mac, fingerprint })
    }
}
