//! The claimed identity of an unauthenticated client.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::family::Family;
use super::identity;
use crate::constituency::{Fingerprint, MacAddress};

/// An unproven identity. Anyone can make a certificate with this name, or send this user name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedIdentity {
    /// The claimed MAC address.
    pub mac: MacAddress,
    /// The SHA-256 of the certificate; `None` if the claim came with a wrong password.
    pub fingerprint: Option<Fingerprint>,
}

impl ClaimedIdentity {
    /// The claim of the certificate `leaf`; `None` if it has no MAC address.
    #[must_use]
    pub fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let mac = identity::mac_address(certificate.subject(), Family::Polycom).ok()?;
        Some(Self { mac, fingerprint: Some(Fingerprint::of(leaf)) })
    }
}
