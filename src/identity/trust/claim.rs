//! Who somebody says to be that has not proved it.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::family::Family;
use super::identity;
use crate::constituency::{Fingerprint, MacAddress};

/// A phone that somebody claims to be and did not prove: anybody can make such a certificate, or say such a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedIdentity {
    /// The claimed address.
    pub mac: MacAddress,
    /// The SHA-256 of the certificate; `None` if it was said with a password that is wrong.
    pub fingerprint: Option<Fingerprint>,
}

impl ClaimedIdentity {
    /// The claim of the certificate `leaf`; `None` if it names no phone.
    #[must_use]
    pub fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let mac = identity::mac_address(certificate.subject(), Family::Polycom).ok()?;
        Some(Self { mac, fingerprint: Some(Fingerprint::of(leaf)) })
    }
}
