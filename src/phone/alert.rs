//! TLS alerts in the RFC's words, and what each usually means to somebody who installs phones. Pure.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// The alert's name as RFC 8446 §6 and RFC 6066 write it.
#[must_use]
pub fn name(alert: AlertDescription) -> String {
    let known = match alert {
        AlertDescription::HandshakeFailure => "handshake_failure",
        AlertDescription::BadCertificate => "bad_certificate",
        AlertDescription::UnsupportedCertificate => "unsupported_certificate",
        AlertDescription::CertificateRevoked => "certificate_revoked",
        AlertDescription::CertificateExpired => "certificate_expired",
        AlertDescription::CertificateUnknown => "certificate_unknown",
        AlertDescription::UnknownCA => "unknown_ca",
        AlertDescription::AccessDenied => "access_denied",
        AlertDescription::DecryptError => "decrypt_error",
        AlertDescription::ProtocolVersion => "protocol_version",
        AlertDescription::InsufficientSecurity => "insufficient_security",
        AlertDescription::InternalError => "internal_error",
        AlertDescription::UnrecognisedName => "unrecognized_name",
        AlertDescription::CertificateRequired => "certificate_required",
        AlertDescription::NoApplicationProtocol => "no_application_protocol",
        other => return format!("alert {}", u8::from(other)),
    };
    known.to_owned()
}

/// What to look at when a server sends this alert.
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
        other => other.to_string(),
    }
}

fn is_ca_used_as_server(error: &CertificateError) -> bool {
    let CertificateError::Other(other) = error else { return false };
    matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// The TLS error inside whatever the HTTP library or the socket made of it.
///
/// `io::Error` hides the error that it wraps from `source()`, so it has to be opened by hand.
#[must_use]
pub fn find_tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source()).find_map(|error| {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let wrapped = wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        wrapped.or_else(|| error.downcast_ref::<rustls::Error>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_inside_an_io_error() {
        let alert = rustls::Error::AlertReceived(AlertDescription::UnrecognisedName);
        let error = io::Error::new(io::ErrorKind::InvalidData, alert.clone());
        assert_eq!(find_tls_error(&error), Some(&alert));
        assert_eq!(find_tls_error(&io::Error::other("else")), None);
        assert_eq!(name(AlertDescription::UnrecognisedName), "unrecognized_name");
        assert_eq!(name(AlertDescription::from(201)), "alert 201");
    }
}
