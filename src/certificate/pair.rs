//! A certificate chain with its private key, checked before use.

use std::fmt;
use std::sync::Arc;

use rustls::SignatureAlgorithm;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::{Intermediate, Validity};
use crate::wording::tls_error;

/// Why a chain and a key cannot be presented.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// There is no certificate to present.
    #[error("holds no certificate")]
    NoCertificate,
    /// The first certificate cannot be parsed.
    #[error("the first certificate cannot be read: {0}")]
    Malformed(String),
    /// The kind of the key is not supported.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// The key belongs to another certificate.
    #[error("the private key does not match the first certificate")]
    Mismatch,
    /// A CA certificate comes first: wrong order, or wrong file.
    #[error("the first certificate is a CA's; the server's own certificate must come first")]
    CaFirst,
}

/// A server certificate that is ready to be presented.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    pub(super) key: Arc<CertifiedKey>,
    /// The private key if it is RSA, for the OpenSSL backend.
    secret: Option<Arc<PrivateKeyBytes>>,
    /// Its dNSNames, in lower case.
    pub names: Vec<String>,
    /// Its first second, Unix time.
    pub not_before: i64,
    /// Its last second, Unix time.
    pub not_after: i64,
    /// The intermediates of its chain that are not valid for as long as it is.
    pub intermediates: Vec<Intermediate>,
}

/// A private key that is wiped when it is dropped, and never printed.
struct PrivateKeyBytes(Zeroizing<PrivateKeyDer<'static>>);

impl fmt::Debug for PrivateKeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl ServerCertificate {
    /// Checks that `key` fits the first certificate of `chain`, which is the server's own.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Result<Self, PairError> {
        let leaf = chain.first().ok_or(PairError::NoCertificate)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| PairError::Malformed(error.to_string()))?;
        if parsed.is_ca() {
            return Err(PairError::CaFirst);
        }
        let names = dns_names(&parsed);
        let (not_before, not_after) =
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let intermediates = shorter_lived(&chain[1..], not_before, not_after);
        let signing = any_supported_type(key).map_err(|error| PairError::Key(tls_error(&error)))?;
        let is_rsa = signing.algorithm() == SignatureAlgorithm::RSA;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| PairError::Mismatch)?;
        let secret = is_rsa.then(|| Arc::new(PrivateKeyBytes(Zeroizing::new(key.clone_key()))));
        Ok(Self { key: Arc::new(certified), secret, names, not_before, not_after, intermediates })
    }

    /// Whether this certificate is for the host `name`.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        covers(&self.names, name)
    }

    /// The form that rustls uses.
    #[must_use]
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Its private key as DER if it is RSA, for the OpenSSL backend.
    #[must_use]
    pub fn rsa_key(&self) -> Option<&[u8]> {
        self.secret.as_ref().map(|secret| secret.0.secret_der())
    }

    /// Its issuer: the CN, or the whole name without one.
    #[must_use]
    pub fn issuer(&self) -> Option<String> {
        let (_, parsed) = X509Certificate::from_der(self.key.cert.first()?).ok()?;
        let common_name = parsed.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
        Some(common_name.map_or_else(|| parsed.issuer().to_string(), str::to_owned))
    }

    /// Whether both are the same loaded pair.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.key, &other.key)
    }

    /// Its validity period.
    #[must_use]
    pub fn validity(&self) -> Validity {
        Validity { not_before: self.not_before, not_after: self.not_after }
    }

    /// Whether it and each intermediate of its chain are valid at `now`.
    #[must_use]
    pub fn is_chain_valid(&self, now: i64) -> bool {
        let is_valid = |it: &Intermediate| (it.not_before..=it.not_after).contains(&now);
        self.validity().contains(now) && self.intermediates.iter().all(is_valid)
    }

    /// The kind of its key.
    #[must_use]
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.key.key.algorithm()
    }
}

/// What tells a server's own certificate from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// Its dNSNames, in lower case.
    pub names: Vec<String>,
    /// Its key: the `SubjectPublicKeyInfo`, DER.
    pub public_key: Vec<u8>,
}

impl LeafFacts {
    /// Those of the certificate `leaf`; `None` if it is malformed.
    #[must_use]
    pub fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        Some(Self { names: dns_names(&parsed), public_key: parsed.public_key().raw.to_vec() })
    }

    /// Whether it is for the host `name`.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        covers(&self.names, name)
    }

    /// For whom it is: `for a.example, b.example`.
    #[must_use]
    pub fn text(&self) -> String {
        if self.names.is_empty() { "without a host name".to_owned() } else { format!("for {}", self.names.join(", ")) }
    }
}

/// Whether one of `names` is for the host `name` (RFC 6125 §6.4.3: a wildcard stands for one label).
fn covers(names: &[String], name: &str) -> bool {
    let parent = name.split_once('.').map(|(_, parent)| parent);
    names.iter().any(|covered| match covered.strip_prefix("*.") {
        Some(base) => parent == Some(base),
        None => covered == name,
    })
}

/// The intermediates among `issuers` that begin after the server's own certificate, or end before it.
fn shorter_lived(issuers: &[CertificateDer<'static>], not_before: i64, not_after: i64) -> Vec<Intermediate> {
    let intermediate = |der: &CertificateDer<'static>| {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        // Clients have roots of their own, and ignore one in the chain.
        let is_root = parsed.subject().as_raw() == parsed.issuer().as_raw();
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let ca = common_name.map_or_else(|| parsed.subject().to_string(), str::to_owned);
        let validity = parsed.validity();
        let it =
            Intermediate { ca, not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() };
        (!is_root && (it.not_before > not_before || it.not_after < not_after)).then_some(it)
    };
    issuers.iter().filter_map(intermediate).collect()
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let as_dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(as_dns).collect()
}
