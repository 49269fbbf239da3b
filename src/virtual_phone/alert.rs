//! Explanations of TLS alerts and errors for installers of phones. Pure.

use rustls::{AlertDescription, CertificateError};

use crate::wording::certificate_error;

/// The likely cause when a server sends this alert.
#[must_use]
pub fn meaning(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnrecognisedName => "the server has no constituency of that name",
        AlertDescription::CertificateExpired => "the device certificate has expired",
        AlertDescription::CertificateRequired => "the server wants a device certificate and got none",
        AlertDescription::UnknownCA => "no CA that the constituency trusts stands behind the device certificate",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => "the server does not accept this device certificate",
        AlertDescription::CertificateRevoked => "the device certificate was revoked",
        AlertDescription::AccessDenied => "the server does not let this device in",
        AlertDescription::DecryptError => {
            "a signature did not fit: is the key that of the certificate, and the CA behind it the real one?"
        }
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "no common cipher suite or signature scheme, or no device certificate where one is wanted"
        }
        AlertDescription::ProtocolVersion => "the server speaks no TLS version that this phone speaks",
        AlertDescription::NoApplicationProtocol => "the server does not speak HTTP/1.1 there",
        AlertDescription::InternalError => "the server failed, or has no certificate of its own yet",
        _ => "the server's log has the reason",
    }
}

/// Why this phone does not trust the server's certificate.
#[must_use]
pub fn distrust(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "its issuer is not among the trusted roots; name the CA's certificate with --ca".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired (or this machine's clock is wrong)".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet (or this machine's clock is wrong)".to_owned()
        }
        other if is_ca_used_as_server(other) => {
            "it is a CA's certificate; the server needs one of its own, signed by that CA".to_owned()
        }
        other => certificate_error(other),
    }
}

fn is_ca_used_as_server(error: &CertificateError) -> bool {
    let CertificateError::Other(other) = error else { return false };
    matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}
