//! Text for messages to operators: counts with nouns, and errors of rustls and webpki as readable text.
//!
//! rustls and webpki display many errors in Rust's debug format: `Other(OtherError(CaUsedAsEndEntity))`. Pure.

use std::error::Error;
use std::fmt::{Debug, Display};
use std::io;

use rustls::{AlertDescription, CertificateError};

/// Whether `letter` hides, or changes how letters beside it are shown: control characters, bidirectional marks, and invisible
/// characters. In untrusted text, they could make it read as another.
#[must_use]
pub fn is_unseen(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A count with its noun, in the plural unless it is 1: `1 connection`, `0 constituencies`, `3 lines of the log`.
#[must_use]
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    if count == N::from(1) {
        return format!("{count} {noun}");
    }
    let (noun, rest) = noun.split_at(noun.find(" of ").unwrap_or(noun.len()));
    let is_after_consonant = |stem: &str| !stem.ends_with(['a', 'e', 'i', 'o', 'u']);
    match noun.strip_suffix('y').filter(|stem| is_after_consonant(stem)) {
        Some(stem) => format!("{count} {stem}ies{rest}"),
        None if noun.ends_with(['s', 'x']) || noun.ends_with("ch") => format!("{count} {noun}es{rest}"),
        None => format!("{count} {noun}s{rest}"),
    }
}

/// [`counted`] with the verb: `1 connection was`, `2 connections were`.
#[must_use]
pub fn counted_were<N: Copy + Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let verb = if count == N::from(1) { "was" } else { "were" };
    format!("{} {verb}", counted(count, noun))
}

/// A duration as text: in days, below two days in hours, below an hour in minutes, below a minute in seconds.
#[must_use]
pub fn span(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Finds the rustls error that an error of an HTTP library or a socket wraps.
///
/// `source()` of an `io::Error` skips the error that it wraps, so this opens it explicitly.
#[must_use]
pub fn find_tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source()).find_map(|error| {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let wrapped = wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        wrapped.or_else(|| error.downcast_ref::<rustls::Error>())
    })
}

/// An error of rustls, as text.
#[must_use]
pub fn tls_error(error: &rustls::Error) -> String {
    use rustls::Error as E;
    match error {
        E::AlertReceived(alert) => format!("the peer sent the alert {}", alert_name(*alert)),
        E::InvalidCertificate(error) => format!("the peer's certificate is not valid: {}", certificate_error(error)),
        E::InvalidCertRevocationList(error) => format!("the revocation list is not valid: {}", words(error)),
        E::InvalidMessage(error) => format!("the peer sent a malformed message: {}", words(error)),
        E::InappropriateMessage { got_type, .. } => format!("the peer sent a message out of turn: {}", words(got_type)),
        E::InappropriateHandshakeMessage { got_type, .. } => {
            format!("the peer sent a handshake message out of turn: {}", words(got_type))
        }
        E::PeerIncompatible(error) => format!("the peer is not compatible: {}", words(error)),
        E::PeerMisbehaved(error) => format!("the peer broke the protocol: {}", words(error)),
        E::InvalidEncryptedClientHello(error) => format!("encrypted client hello failed: {}", words(error)),
        E::InconsistentKeys(_) => "the private key does not belong to the certificate".to_owned(),
        other => other.to_string(),
    }
}

/// Why a certificate is invalid, as text.
#[must_use]
pub fn certificate_error(error: &CertificateError) -> String {
    use CertificateError as C;
    match error {
        C::BadEncoding => "it is damaged".to_owned(),
        C::Expired => "it has expired".to_owned(),
        C::NotValidYet => "it is not valid yet".to_owned(),
        C::Revoked => "it is revoked".to_owned(),
        // Operators search the web for the library's name of this error.
        C::UnknownIssuer => "its issuer is not trusted (UnknownIssuer)".to_owned(),
        C::NotValidForName => "it is for another name".to_owned(),
        C::InvalidPurpose => "it is for another purpose".to_owned(),
        C::BadSignature => "its signature is wrong".to_owned(),
        C::UnhandledCriticalExtension => "it has a critical extension that is not supported".to_owned(),
        C::Other(other) => match other.0.downcast_ref() {
            Some(error) => webpki_error(error),
            None => other.0.to_string(),
        },
        C::NotValidForNameContext { .. }
        | C::ExpiredContext { .. }
        | C::NotValidYetContext { .. }
        | C::ExpiredRevocationListContext { .. }
        | C::InvalidPurposeContext { .. } => error.to_string(),
        other => words(other),
    }
}

/// An error of webpki, as text.
#[must_use]
pub fn webpki_error(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CaUsedAsEndEntity => {
            "a CA's certificate is used where a server's or a device's belongs".to_owned()
        }
        webpki::Error::EndEntityUsedAsCa => "a certificate that is not a CA's signed another".to_owned(),
        webpki::Error::BadDer | webpki::Error::BadDerTime => "it is damaged".to_owned(),
        other => words(other),
    }
}

/// The name of an alert in RFC 8446 §6, such as `unknown_ca`; its number if it has no name.
#[must_use]
pub fn alert_name(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::Unknown(number) => format!("{number}"),
        // RFC 6066 §3 spells it with a z.
        AlertDescription::UnrecognisedName => "unrecognized_name".to_owned(),
        AlertDescription::EncryptedClientHelloRequired => "ech_required".to_owned(),
        alert => parts(&format!("{alert:?}")).join("_").to_lowercase(),
    }
}

/// The name of a TLS parameter, such as `X25519`, or its number if it has no name, such as `0x6399`.
#[must_use]
pub fn parameter_name<P: Copy + Debug + Into<u16>>(parameter: P) -> String {
    let name = format!("{parameter:?}");
    if name.contains('(') { format!("{:#06x}", parameter.into()) } else { name }
}

/// The name of an enum variant as words: `NoCipherSuitesInCommon` becomes `no cipher suites in common`. The variant's
/// fields are omitted.
#[must_use]
pub fn words(variant: &impl Debug) -> String {
    const ACRONYMS: [&str; 9] = ["CA", "CRL", "DER", "EKU", "OCSP", "PSK", "SNI", "TLS", "ALPN"];
    let debug = format!("{variant:?}");
    let parts = parts(&debug).into_iter().map(|part| {
        let upper = part.to_uppercase();
        if ACRONYMS.contains(&upper.as_str()) { upper } else { part.to_lowercase() }
    });
    parts.collect::<Vec<_>>().join(" ")
}

/// Splits a camel-case name into words and keeps acronyms whole: `UnknownCA` becomes `Unknown`, `CA`.
fn parts(debug: &str) -> Vec<&str> {
    let name = debug.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let bytes = name.as_bytes();
    let is_start = |at: usize| {
        let after_lower = !bytes[at - 1].is_ascii_uppercase();
        let before_lower = bytes.get(at + 1).is_some_and(u8::is_ascii_lowercase);
        bytes[at].is_ascii_uppercase() && (after_lower || before_lower)
    };
    let mut starts: Vec<usize> = (1..bytes.len()).filter(|at| is_start(*at)).collect();
    starts.insert(0, 0);
    starts.push(bytes.len());
    starts.windows(2).filter_map(|pair| name.get(pair[0]..pair[1])).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{InvalidMessage, OtherError, PeerIncompatible, PeerMisbehaved};

    use super::*;

    #[test]
    fn one_is_singular() {
        assert_eq!(counted(1, "connection"), "1 connection");
        assert_eq!(counted(0_u64, "connection"), "0 connections");
        assert_eq!(counted(2_i64, "day"), "2 days");
        assert_eq!(counted(2, "constituency"), "2 constituencies");
        assert_eq!(counted(1, "constituency"), "1 constituency");
        assert_eq!(counted(3, "line of the log"), "3 lines of the log");
        assert_eq!(counted(2, "address"), "2 addresses");
        assert_eq!(
            (counted_were(1, "line"), counted_were(3, "line")),
            ("1 line was".to_owned(), "3 lines were".to_owned())
        );
    }

    #[test]
    fn duration_is_given_in_its_largest_fitting_unit() {
        let rows = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h"),
            (172_799, "47 h"),
            (172_800, "2 days"),
        ];
        for (seconds, text) in rows {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(span(103_517_818), "1198 days");
    }

    #[test]
    fn letters_that_reorder_or_hide_others_are_unseen() {
        let hostile = "\u{1b}\u{9b}\u{202e}\u{2066}\u{200b}\u{feff}\u{ad}\u{e0041}\n\u{200f}";
        assert_eq!(hostile.chars().filter(|letter| is_unseen(*letter)).count(), 10);
        assert_eq!("Büro, 事務所, مكتب → \u{1f4de}".chars().find(|letter| is_unseen(*letter)), None);
    }

    #[test]
    fn a_tls_error_is_found_inside_an_io_error() {
        let alert = rustls::Error::AlertReceived(AlertDescription::UnrecognisedName);
        let error = io::Error::new(io::ErrorKind::InvalidData, alert.clone());
        assert_eq!(find_tls_error(&error), Some(&alert));
        assert_eq!(find_tls_error(&io::Error::other("else")), None);
    }

    #[test]
    fn errors_of_tls_libraries_are_words() {
        let of_webpki = |error| CertificateError::Other(OtherError(Arc::new(error)));
        let certificate = |error| tls_error(&rustls::Error::InvalidCertificate(error));
        let all = [
            certificate(of_webpki(webpki::Error::CaUsedAsEndEntity)),
            certificate(of_webpki(webpki::Error::UnsupportedCertVersion)),
            certificate(CertificateError::Other(OtherError(Arc::new(std::io::Error::other("the reason"))))),
            certificate(CertificateError::UnknownIssuer),
            certificate(CertificateError::UnknownRevocationStatus),
            tls_error(&PeerIncompatible::NoCipherSuitesInCommon.into()),
            tls_error(&PeerMisbehaved::TooMuchEarlyDataReceived.into()),
            tls_error(&InvalidMessage::InvalidContentType.into()),
            tls_error(&rustls::Error::AlertReceived(AlertDescription::UnknownCA)),
            tls_error(&rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)),
            tls_error(&rustls::Error::DecryptError),
        ];
        let expected = [
            "the peer's certificate is not valid: a CA's certificate is used where a server's or a device's belongs",
            "the peer's certificate is not valid: unsupported cert version",
            "the peer's certificate is not valid: the reason",
            "the peer's certificate is not valid: its issuer is not trusted (UnknownIssuer)",
            "the peer's certificate is not valid: unknown revocation status",
            "the peer is not compatible: no cipher suites in common",
            "the peer broke the protocol: too much early data received",
            "the peer sent a malformed message: invalid content type",
            "the peer sent the alert unknown_ca",
            "the private key does not belong to the certificate",
            "cannot decrypt peer's message",
        ];
        assert_eq!(all.each_ref().map(String::as_str), expected);
    }

    #[test]
    fn parameters_without_a_name_are_numbers() {
        assert_eq!(parameter_name(rustls::NamedGroup::X25519), "X25519");
        assert_eq!(parameter_name(rustls::NamedGroup::from(0x6399)), "0x6399");
        assert_eq!(parameter_name(rustls::SignatureScheme::from(0x0001)), "0x0001");
    }

    #[test]
    fn alerts_have_the_names_of_the_rfcs() {
        let names = [0, 10, 40, 42, 48, 70, 86, 112, 115, 116, 120, 201].map(|code| alert_name(code.into()));
        let expected = [
            "close_notify",
            "unexpected_message",
            "handshake_failure",
            "bad_certificate",
            "unknown_ca",
            "protocol_version",
            "inappropriate_fallback",
            "unrecognized_name",
            "unknown_psk_identity",
            "certificate_required",
            "no_application_protocol",
            "201",
        ];
        assert_eq!(names.each_ref().map(String::as_str), expected);
    }
}
