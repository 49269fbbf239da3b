//! Certificate revocation lists (CRLs, RFC 5280 §5), checked once when their bundle is loaded.
//!
//! A CRL is a file that the operator puts beside its CA; provost fetches none. A CA with a CRL is trusted only while
//! the CRL is fresh (nextUpdate): an outdated CRL lacks later revocations.

use std::collections::HashSet;

use rustls::pki_types::CertificateRevocationListDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::refusal::ChainRefusal;

/// The certificates that one CA has revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// The CA, for messages.
    pub ca: String,
    /// When the CRL becomes outdated, in Unix seconds.
    pub next_update: i64,
    issuer: Vec<u8>,
    /// The key identifiers of the CAs with this name in the same bundle.
    keys: HashSet<Vec<u8>>,
    serials: HashSet<Vec<u8>>,
}

impl RevocationList {
    /// Parses the CRL `der`. One of `cas` must have signed it.
    pub(super) fn read(der: &CertificateRevocationListDer<'_>, cas: &[&X509Certificate<'_>]) -> Result<Self, String> {
        let list = match CertificateRevocationList::from_der(der) {
            Ok(([], list)) => list,
            Ok(_) => return Err("has bytes after the CRL".to_owned()),
            Err(error) => return Err(format!("is not a CRL ({error})")),
        };
        // CRLs that cover only some certificates, certificates of other CAs, or only changes (delta CRLs) have a
        // critical extension.
        let entries = list.iter_revoked_certificates().flat_map(|entry| entry.extensions());
        if let Some(extension) = list.extensions().iter().chain(entries).find(|extension| extension.critical) {
            let oid = &extension.oid;
            return Err(format!(
                "has a CRL with the critical extension {oid}; only complete CRLs of the CA itself are supported"
            ));
        }
        let ca = list.issuer().to_string();
        let of_that_name = || cas.iter().filter(|other| other.subject().as_raw() == list.issuer().as_raw());
        if of_that_name().next().is_none() {
            return Err(format!("has a CRL of \"{ca}\", which is not a CA of the same bundle"));
        }
        if !of_that_name().any(|ca| may_sign(ca) && list.verify_signature(ca.public_key()).is_ok()) {
            return Err(format!("has a CRL that \"{ca}\" did not sign"));
        }
        Ok(Self {
            ca,
            next_update: list.next_update().map_or(i64::MAX, |time| time.timestamp()),
            issuer: list.issuer().as_raw().to_vec(),
            keys: of_that_name().filter_map(|ca| Some(own_key(ca)?.to_vec())).collect(),
            serials: list.iter_revoked_certificates().map(|entry| number(entry.raw_serial()).to_vec()).collect(),
        })
    }

    /// Whether it is a CRL of the CA that issued `certificate`.
    pub(super) fn is_of_issuer_of(&self, certificate: &X509Certificate<'_>) -> bool {
        self.issuer == certificate.issuer().as_raw()
    }

    /// Whether both are of the same CA.
    pub(super) fn is_of_same_ca(&self, other: &Self) -> bool {
        self.issuer == other.issuer
    }

    /// Merges `other`, a CRL of the same CA: a certificate in either is revoked, and the later nextUpdate applies.
    pub(super) fn merge(&mut self, other: Self) {
        self.next_update = self.next_update.max(other.next_update);
        self.serials.extend(other.serials);
    }

    /// The number of revoked certificates.
    #[must_use]
    pub fn len(&self) -> usize {
        self.serials.len()
    }

    /// Whether no certificate is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }

    fn names(&self, certificate: &X509Certificate<'_>) -> bool {
        self.serials.contains(number(certificate.raw_serial()))
    }
}

/// Checks that no CRL in `lists` revokes `certificate`. Gives the CRL whose nextUpdate limits this result; `None` if no
/// CRL covers the issuer.
///
/// # Errors
/// If `certificate` is revoked.
pub(super) fn check<'a>(
    lists: &'a [RevocationList],
    certificate: &X509Certificate<'_>,
) -> Result<Option<&'a RevocationList>, ChainRefusal> {
    // CRLs match by the issuer's name: a CA may have signed its CRL with a newer key (RFC 5280 §5).
    let of_issuer = || lists.iter().filter(|list| list.is_of_issuer_of(certificate));
    if let Some(list) = of_issuer().find(|list| list.names(certificate)) {
        let serial = number(certificate.raw_serial()).iter().map(|byte| format!("{byte:02x}")).collect();
        let subject = certificate.subject().to_string();
        return Err(ChainRefusal::Revoked { subject, serial, ca: list.ca.clone() });
    }
    // If CAs of the same name in two bundles have CRLs, prefer those for the key of the issuer: a fresh CRL of one CA
    // does not make that of the other one fresher.
    let key = of_issuer().nth(1).and_then(|_| issuers_key(certificate));
    let is_own = |list: &&RevocationList| key.is_some_and(|key| list.keys.contains(key));
    let has_own = of_issuer().any(|list| is_own(&list));
    Ok(of_issuer().filter(|list| !has_own || is_own(list)).max_by_key(|list| list.next_update))
}

/// The subject key identifier of a CA.
fn own_key<'a>(ca: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(key.0),
        _ => None,
    })
}

/// The authority key identifier of `certificate`, if it has one.
fn issuers_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => Some(authority.key_identifier.as_ref()?.0),
        _ => None,
    })
}

/// Whether the keyUsage of a CA allows it to sign CRLs. Without a keyUsage, it may (RFC 5280 §6.3.3 (f)).
fn may_sign(ca: &X509Certificate<'_>) -> bool {
    match ca.key_usage() {
        Ok(Some(usage)) => usage.value.crl_sign(),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// A serial number without leading zeros, which DER may require.
fn number(serial: &[u8]) -> &[u8] {
    let zeroes = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeroes..).unwrap_or_default()
}
