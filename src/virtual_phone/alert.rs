//! Explanations of TLS alerts and errors for installers of phones. Pure.

use rustls::{AlertDescription, CertificateError};

use crate::wording::certificate_error;

/// The likely cause when a server sends this alert.
#[must_use]
pub fn describe_alert(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnrecognisedName => "the server has no constituency of that name",
        AlertDescription::CertificateExpired => "the device certificate has expired",
        AlertDescription::CertificateRequired => "the server requires a device certificate and got none",
        AlertDescription::UnknownCA => "the device certificate is not from a CA that the constituency trusts",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => "the server does not accept this device certificate",
        AlertDescription::CertificateRevoked => "the device certificate was revoked",
        AlertDescription::AccessDenied => "the server refused this device",
        AlertDescription::DecryptError => {
            "a signature is invalid: check that the key belongs to the certificate, and that the right CA signed it"
        }
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "no common cipher suite or signature scheme, or no device certificate where one is required"
        }
        AlertDescription::ProtocolVersion => "the server supports no TLS version of this phone",
        AlertDescription::NoApplicationProtocol => "the server does not support HTTP/1.1 there",
        AlertDescription::InternalError => "the server failed, or has no certificate of its own yet",
        _ => "the server's log has the reason",
    }
}

/// Why this phone does not trust the server's certificate.
#[must_use]
pub fn describe_certificate_error(error: &CertificateError) -> String {
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
