//! The formats in which a certificate and its key are given to a phone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKey, PrivateKeyChain};
use rustls::pki_types::CertificateDer;

use super::{CaError, IssuedCertificate};

/// `der` as a PEM block.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    // Base64 is ASCII, so each byte is a character.
    let lines: Vec<String> =
        text.as_bytes().chunks(64).map(|line| line.iter().copied().map(char::from).collect()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// The certificate followed by its key (PKCS#8), in PEM.
#[must_use]
pub fn to_pem(issued: &IssuedCertificate) -> String {
    to_pem_blocks(issued).concat()
}

/// The certificate and its key (PKCS#8), each as a PEM block.
#[must_use]
pub fn to_pem_blocks(issued: &IssuedCertificate) -> [String; 2] {
    [pem("CERTIFICATE", &issued.certificate), pem("PRIVATE KEY", issued.key.secret_der())]
}

/// Certificate, key and CA as PKCS#12: AES-256 and HMAC-SHA-256, both by a key derived from `password`.
///
/// # Errors
/// If it cannot be encoded.
pub fn to_pkcs12(
    issued: &IssuedCertificate,
    ca: &CertificateDer<'_>,
    name: &str,
    serial: &super::record::Serial,
    password: &str,
) -> Result<Vec<u8>, CaError> {
    let failed = |error: p12_keystore::error::Error| CaError::Unusable(format!("PKCS#12: {error}"));
    let chain = [issued.certificate.as_ref(), ca.as_ref()]
        .into_iter()
        .map(Certificate::from_der)
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let key = PrivateKey::from_der(issued.key.secret_der()).map_err(failed)?;
    let mut store = KeyStore::new();
    let chain = PrivateKeyChain::new(serial.bytes(), key, chain);
    store.add_entry(name, KeyStoreEntry::PrivateKeyChain(chain));
    store.writer(password).write().map_err(failed)
}
