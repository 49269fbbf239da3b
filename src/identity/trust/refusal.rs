//! Why a device certificate is refused, in words for the operator. The client gets only a TLS alert.

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::objects::{oid_registry, oid2sn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::family::Family;
use super::identity;
use crate::clock::rfc3339;
use crate::constituency::{Fingerprint, MacAddress};
use crate::metrics::RefusalKind;
use crate::wording::{counted_were, webpki_error};

/// Why a presented chain is refused. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainRefusal {
    #[error("no client certificate was presented")]
    NoCertificate,
    #[error("the device certificate cannot be read: {0}")]
    Malformed(String),
    #[error("{} sent, at most {allowed} are accepted", counted_were(*.sent, "certificate"))]
    TooManyCertificates { sent: usize, allowed: usize },
    #[error("the RSA key of {subject:?} has {bits} bits, 2048 to 4096 are allowed")]
    KeySize { subject: String, bits: usize },
    #[error("the device certificate's key is neither RSA, nor ECDSA with P-256, P-384 or P-521, nor Ed25519")]
    KeyKind,
    #[error("the device certificate may not sign (keyUsage without digitalSignature)")]
    KeyUsage,
    #[error("the device certificate expired at {}", rfc3339(*not_after))]
    Expired { not_after: i64, now: i64 },
    #[error("the device certificate is not valid before {}", rfc3339(*not_before))]
    NotYetValid { not_before: i64 },
    #[error("the CA {ca:?} expired at {}", rfc3339(*not_after))]
    CaExpired { ca: String, not_after: i64 },
    #[error("the CA {ca:?} is not valid before {}", rfc3339(*not_before))]
    CaNotYetValid { ca: String, not_before: i64 },
    #[error("the CA {ca:?} may not sign certificates (keyUsage without keyCertSign)")]
    CaMayNotSign { ca: String },
    #[error("the chain has more CAs below {ca} than its path length constraint allows")]
    PathTooLong { ca: String },
    #[error("the device certificate's issuer {issuer:?} is not trusted here")]
    UnknownIssuer { issuer: String },
    #[error("a certificate that is not a CA's signed another one (the device certificate's issuer is {issuer:?})")]
    IssuerNotCa { issuer: String },
    #[error("the device certificate is self-signed ({subject:?}), not signed by a trusted CA")]
    SelfSigned { subject: String },
    #[error("the signature on the device certificate's chain is wrong (issuer {issuer:?})")]
    BadSignature { issuer: String },
    #[error("the device certificate is a CA's, not a device's")]
    CaAsDevice,
    #[error(
        "a certificate of the chain is signed with an algorithm that is not accepted (the device's own: {leaf_algorithm})"
    )]
    SignatureAlgorithm { leaf_algorithm: String },
    #[error("the device certificate may not be used by a client (extendedKeyUsage without clientAuth)")]
    Purpose,
    #[error("the device certificate (serial number {serial}) was revoked by {ca:?}")]
    Revoked { subject: String, serial: String, ca: String },
    #[error("the CA {subject:?} (serial number {serial}) was revoked by {ca:?}")]
    CaRevoked { subject: String, serial: String, ca: String },
    #[error("the CRL of {ca:?} expired at {}", rfc3339(*next_update))]
    RevocationsOutdated { ca: String, next_update: i64 },
    #[error("the device certificate's chain is not acceptable: {0}")]
    Other(String),
}

/// A refused certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}")]
pub struct RefusedCertificate {
    pub refusal: ChainRefusal,
    /// The identity that the certificate claims; `None` for a device that was verified before.
    pub claim: Option<ClaimedIdentity>,
}

impl From<ChainRefusal> for RefusedCertificate {
    fn from(refusal: ChainRefusal) -> Self {
        Self { refusal, claim: None }
    }
}

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

/// Why path building failed: an error of webpki, or a refusal by the additional checks.
pub(super) enum PathError {
    Webpki(webpki::Error),
    Refused(ChainRefusal),
}

impl From<webpki::Error> for PathError {
    fn from(error: webpki::Error) -> Self {
        Self::Webpki(error)
    }
}

impl ChainRefusal {
    /// The kind for the metrics.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::NoCertificate => RefusalKind::NoCertificate,
            Self::Malformed(_) => RefusalKind::MalformedCertificate,
            Self::KeySize { .. } => RefusalKind::KeySize,
            Self::KeyKind => RefusalKind::KeyType,
            Self::KeyUsage | Self::Purpose => RefusalKind::KeyUsage,
            Self::Expired { .. } => RefusalKind::Expired,
            Self::NotYetValid { .. } => RefusalKind::NotYetValid,
            Self::UnknownIssuer { .. } => RefusalKind::UnknownIssuer,
            Self::SelfSigned { .. } => RefusalKind::SelfSigned,
            Self::BadSignature { .. } => RefusalKind::BadSignature,
            Self::SignatureAlgorithm { .. } => RefusalKind::SignatureAlgorithm,
            Self::Revoked { .. } | Self::CaRevoked { .. } => RefusalKind::Revoked,
            Self::RevocationsOutdated { .. } => RefusalKind::CrlExpired,
            _ => RefusalKind::BadChain,
        }
    }

    /// The same reason for a CA above the device certificate.
    pub(super) fn for_ca(self) -> Self {
        match self {
            Self::Revoked { subject, serial, ca } => Self::CaRevoked { subject, serial, ca },
            other => other,
        }
    }

    /// Translates an error of path building to a refusal, with details of the `leaf`.
    pub(super) fn explain(error: PathError, leaf: &X509Certificate<'_>, now: UnixTime) -> Self {
        let error = match error {
            PathError::Refused(refusal) => return refusal,
            PathError::Webpki(error) => error,
        };
        let issuer = || leaf.issuer().to_string();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let (not_before, not_after) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        match error {
            webpki::Error::CertExpired { .. } if now > not_after => Self::Expired { not_after, now },
            webpki::Error::CertNotValidYet { .. } if now < not_before => Self::NotYetValid { not_before },
            // Self-signed certificates of phones are often marked as a CA's.
            webpki::Error::UnknownIssuer | webpki::Error::CaUsedAsEndEntity if is_self_signed(leaf) => {
                Self::SelfSigned { subject: leaf.subject().to_string() }
            }
            webpki::Error::UnknownIssuer => Self::UnknownIssuer { issuer: issuer() },
            webpki::Error::CaUsedAsEndEntity => Self::CaAsDevice,
            webpki::Error::PathLenConstraintViolated => Self::PathTooLong { ca: "a CA of the chain".to_owned() },
            webpki::Error::EndEntityUsedAsCa => Self::IssuerNotCa { issuer: issuer() },
            // A signature by another type of key than the issuer's cannot be the issuer's.
            webpki::Error::InvalidSignatureForPublicKey
            | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                Self::BadSignature { issuer: issuer() }
            }
            webpki::Error::UnsupportedSignatureAlgorithmContext(_) => {
                Self::SignatureAlgorithm { leaf_algorithm: algorithm_name(leaf) }
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => Self::Purpose,
            webpki::Error::UnsupportedCertVersion => {
                Self::Other("one of its certificates has an X.509 version below 3".to_owned())
            }
            other => Self::Other(webpki_error(&other)),
        }
    }
}

fn is_self_signed(leaf: &X509Certificate<'_>) -> bool {
    leaf.subject().as_raw() == leaf.issuer().as_raw()
}

fn algorithm_name(leaf: &X509Certificate<'_>) -> String {
    let oid = leaf.signature_algorithm.oid();
    oid2sn(oid, oid_registry()).map_or_else(|_| oid.to_id_string(), ToOwned::to_owned)
}

impl From<&ChainRefusal> for rustls::Error {
    /// Chooses the TLS alert. The reason itself goes to the log separately.
    fn from(refusal: &ChainRefusal) -> Self {
        Self::InvalidCertificate(match refusal {
            ChainRefusal::Expired { .. } | ChainRefusal::CaExpired { .. } => CertificateError::Expired,
            ChainRefusal::NotYetValid { .. } | ChainRefusal::CaNotYetValid { .. } => CertificateError::NotValidYet,
            ChainRefusal::UnknownIssuer { .. } | ChainRefusal::IssuerNotCa { .. } | ChainRefusal::SelfSigned { .. } => {
                CertificateError::UnknownIssuer
            }
            ChainRefusal::Revoked { .. } | ChainRefusal::CaRevoked { .. } => CertificateError::Revoked,
            ChainRefusal::RevocationsOutdated { .. } => CertificateError::UnknownRevocationStatus,
            ChainRefusal::BadSignature { .. } => CertificateError::BadSignature,
            // RFC 8446 §4.4.2.4: a SHA-1 signature gets bad_certificate, like a malformed certificate.
            ChainRefusal::Malformed(_) | ChainRefusal::SignatureAlgorithm { .. } => CertificateError::BadEncoding,
            ChainRefusal::Purpose => CertificateError::InvalidPurpose,
            _ => CertificateError::ApplicationVerificationFailure,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden test of the metrics does not cover this reason.
    #[test]
    fn unreadable_certificate_has_its_own_reason() {
        assert_eq!(ChainRefusal::Malformed(String::new()).kind().label(), "malformed_certificate");
    }
}
