//! Trust bundles: named sets of CA certificates, checked once when they are loaded.
//!
//! Every CA of a bundle becomes a trust anchor, except where name constraints above it or a CRL of its issuer must be
//! checked for each device. Its own signature, dates and path length, which path building up to the root would check,
//! are checked at load, and the dates again for each device. So a phone may send only its leaf certificate, and a
//! handshake verifies one signature less per CA.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::family::Family;
use super::revocation::RevocationList;

use crate::wording::webpki_error;

/// Why a bundle is not usable. The constituencies that use it are not served.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file contains something other than a usable CA certificate or CRL.
    #[error("{source_name}: {reason}")]
    Unusable {
        /// The file, or the name of the built-in certificate.
        source_name: String,
        /// The problem and its remedy.
        reason: String,
    },
    /// The bundle has no file, or no certificate.
    #[error("the trust bundle \"{0}\" names no certificate")]
    Empty(String),
}

/// A named set of CA certificates.
#[derive(Debug)]
pub struct Bundle {
    /// The name in policies.
    pub name: String,
    /// The family of the devices that these CAs certify.
    pub family: Family,
    /// The trust anchors.
    pub anchors: Vec<Anchor>,
    /// CAs that are not anchors. They complete chains, so that phones need not send them.
    pub known: Vec<CertificateDer<'static>>,
    /// The CRLs of these CAs.
    pub revocations: Vec<RevocationList>,
}

/// A trust anchor, with the constraints that each device verification checks.
#[derive(Debug, Clone)]
pub struct Anchor {
    /// The anchor in webpki's form.
    pub anchor: TrustAnchor<'static>,
    /// The certificate itself.
    pub certificate: CertificateDer<'static>,
    /// The subject, for messages.
    pub subject: String,
    /// The start of validity in Unix seconds: the latest of its own and of the CAs above it.
    pub not_before: i64,
    /// The end of validity in Unix seconds: the earliest of its own and of the CAs above it.
    pub not_after: i64,
    /// The maximum number of CAs between it and a device certificate.
    pub path_length: Option<u32>,
    /// The family of the devices that it certifies.
    pub family: Family,
}

impl Bundle {
    /// Loads the bundle `name` from `files`. Each is PEM (certificates and CRLs) or DER (one of either).
    pub fn load(name: &str, files: &[PathBuf]) -> Result<Self, BundleError> {
        let mut found = FoundPem::default();
        for path in files {
            let bytes =
                crate::files::read_regular(path).map_err(|source| BundleError::File { path: path.clone(), source })?;
            found.decode(path, bytes)?;
        }
        Self::of(name, &found.certificates, &found.lists)
    }

    /// Sets the family of the devices.
    #[must_use]
    pub fn of_family(mut self, family: Family) -> Self {
        self.family = family;
        self.anchors.iter_mut().for_each(|anchor| anchor.family = family);
        self
    }

    /// The subject of a CA that both bundles trust for different families. The form of the MAC address would be
    /// ambiguous.
    #[must_use]
    pub fn conflicting_ca<'a>(&'a self, other: &Self) -> Option<&'a str> {
        let is_same = |one: &&Anchor, two: &Anchor| {
            one.anchor.subject == two.anchor.subject
                && one.anchor.subject_public_key_info == two.anchor.subject_public_key_info
        };
        let both = self.anchors.iter().find(|one| other.anchors.iter().any(|two| is_same(one, two)))?;
        (self.family != other.family).then_some(both.subject.as_str())
    }

    /// Whether both trust the same certificates for the same family, with equal CRLs.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        let anchors =
            |bundle: &Self| bundle.anchors.iter().map(|anchor| anchor.certificate.clone()).collect::<Vec<_>>();
        self.family == other.family
            && self.known == other.known
            && self.revocations == other.revocations
            && anchors(self) == anchors(other)
    }

    /// Builds the bundle `name` from certificates and CRLs, each with the name of its source.
    pub fn of(
        name: &str,
        certificates: &[(String, CertificateDer<'static>)],
        lists: &[(String, CertificateRevocationListDer<'static>)],
    ) -> Result<Self, BundleError> {
        if certificates.is_empty() {
            return Err(BundleError::Empty(name.to_owned()));
        }
        let parsed = certificates
            .iter()
            .map(|(source, der)| Ok((source.as_str(), der, parse_ca(source, der)?)))
            .collect::<Result<Vec<_>, BundleError>>()?;
        let cas: Vec<&X509Certificate<'_>> = parsed.iter().map(|(_, _, ca)| ca).collect();
        let mut revocations: Vec<RevocationList> = Vec::new();
        for (source, der) in lists {
            let unusable = |reason| BundleError::Unusable { source_name: source.clone(), reason };
            let list = RevocationList::read(der, &cas).map_err(unusable)?;
            match revocations.iter_mut().find(|other| other.is_of_same_ca(&list)) {
                Some(other) => other.merge(list),
                None => revocations.push(list),
            }
        }
        let mut bundle = Self {
            name: name.to_owned(),
            family: Family::default(),
            anchors: Vec::new(),
            known: Vec::new(),
            revocations,
        };
        for (source, der, ca) in &parsed {
            let unusable = |reason| BundleError::Unusable { source_name: (*source).to_owned(), reason };
            match through_the_bundle(ca, &parsed, &bundle.revocations, 0).map_err(unusable)? {
                Some(limits) => bundle.anchors.push(anchor(der, ca, &limits).map_err(unusable)?),
                None => bundle.known.push((*der).clone()),
            }
        }
        Ok(bundle)
    }
}

/// The dates and path length that a CA and the CAs above it leave.
struct ChainLimits {
    not_before: i64,
    not_after: i64,
    path_length: Option<u32>,
}

type Parsed<'a> = (&'a str, &'a CertificateDer<'static>, X509Certificate<'a>);

/// Follows `ca` up to the top of the bundle. `None` if a CA above has name constraints, or its issuer has a CRL. These
/// must be checked for each device, so `ca` cannot be an anchor.
fn through_the_bundle(
    ca: &X509Certificate<'_>,
    all: &[Parsed<'_>],
    lists: &[RevocationList],
    depth: usize,
) -> Result<Option<ChainLimits>, String> {
    let path_length = ca.basic_constraints().ok().flatten().and_then(|found| found.value.path_len_constraint);
    let own = ChainLimits {
        not_before: ca.validity().not_before.timestamp(),
        not_after: ca.validity().not_after.timestamp(),
        path_length,
    };
    if ca.subject().as_raw() == ca.issuer().as_raw() {
        return Ok(Some(own));
    }
    let mut above = all
        .iter()
        .map(|(_, _, other)| other)
        .filter(|other| other.subject().as_raw() == ca.issuer().as_raw())
        .peekable();
    if above.peek().is_none() {
        return Ok(Some(own));
    }
    let Some(issuer) = above.find(|issuer| ca.verify_signature(Some(issuer.public_key())).is_ok()) else {
        return Err(format!("its signature is not valid for its issuer \"{}\" in the same bundle", ca.issuer()));
    };
    let may_be_revoked = lists.iter().any(|list| list.is_of_issuer_of(ca));
    if depth > 8 || may_be_revoked || matches!(issuer.name_constraints(), Ok(Some(_)) | Err(_)) {
        return Ok(None);
    }
    let Some(limits) = through_the_bundle(issuer, all, lists, depth + 1)? else { return Ok(None) };
    let from_above = match limits.path_length {
        Some(0) => return Err(format!("its issuer \"{}\" may not have CAs below it (pathlen 0)", ca.issuer())),
        Some(length) => Some(length - 1),
        None => None,
    };
    Ok(Some(ChainLimits {
        not_before: own.not_before.max(limits.not_before),
        not_after: own.not_after.min(limits.not_after),
        path_length: [own.path_length, from_above].into_iter().flatten().min(),
    }))
}

fn anchor(der: &CertificateDer<'static>, ca: &X509Certificate<'_>, limits: &ChainLimits) -> Result<Anchor, String> {
    let anchor = webpki::anchor_from_trusted_cert(der)
        .map_err(|error| format!("cannot be an anchor: {}", webpki_error(&error)))?;
    Ok(Anchor {
        anchor: anchor.to_owned(),
        certificate: der.clone(),
        subject: ca.subject().to_string(),
        not_before: limits.not_before,
        not_after: limits.not_after,
        path_length: limits.path_length,
        family: Family::default(),
    })
}

fn parse_ca<'a>(source: &str, der: &'a [u8]) -> Result<X509Certificate<'a>, BundleError> {
    let unusable = |reason: String| BundleError::Unusable { source_name: source.to_owned(), reason };
    let (rest, ca) = X509Certificate::from_der(der)
        .map_err(|error| unusable(format!("is not an X.509 certificate in PEM or DER ({error})")))?;
    if !rest.is_empty() {
        return Err(unusable("has bytes after the certificate".to_owned()));
    }
    // A version 1 root has no extensions, so it cannot be marked as a CA.
    let is_old_root = ca.version().0 == 0 && ca.subject().as_raw() == ca.issuer().as_raw();
    let is_ca = ca.basic_constraints().ok().flatten().is_some_and(|found| found.value.ca);
    if !is_ca && !is_old_root {
        return Err(unusable(format!(
            "\"{}\" is not a CA certificate (basicConstraints CA:TRUE is missing)",
            ca.subject()
        )));
    }
    if matches!(ca.key_usage(), Ok(Some(usage)) if !usage.value.key_cert_sign()) {
        return Err(unusable(format!("\"{}\" may not sign certificates (keyUsage without keyCertSign)", ca.subject())));
    }
    Ok(ca)
}

/// The contents of a bundle's files, each with the name of its source.
#[derive(Default)]
struct FoundPem {
    certificates: Vec<(String, CertificateDer<'static>)>,
    lists: Vec<(String, CertificateRevocationListDer<'static>)>,
}

impl FoundPem {
    fn decode(&mut self, path: &Path, bytes: Vec<u8>) -> Result<(), BundleError> {
        let source_name = path.display().to_string();
        let unusable = |reason: String| BundleError::Unusable { source_name: source_name.clone(), reason };
        if bytes.is_empty() {
            return Err(unusable("is empty".to_owned()));
        }
        if !bytes.windows(11).any(|window| window == b"-----BEGIN ") {
            if CertificateRevocationList::from_der(&bytes).is_ok() {
                self.lists.push((source_name, bytes.into()));
            } else {
                self.certificates.push((source_name, bytes.into()));
            }
            return Ok(());
        }
        let damaged = |error| unusable(format!("is damaged PEM ({error})"));
        let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        let lists =
            CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        if certificates.is_empty() && lists.is_empty() {
            return Err(unusable("holds no CERTIFICATE block and no X509 CRL block".to_owned()));
        }
        self.certificates.extend(certificates.into_iter().map(|der| (source_name.clone(), der)));
        self.lists.extend(lists.into_iter().map(|der| (source_name.clone(), der)));
        Ok(())
    }
}
