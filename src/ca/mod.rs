//! Certificate authorities of our own: created on first use, kept in two private files.
//!
//! Local mode uses two: one signs the server's certificate on a LAN, one signs the certificates of virtual phones. A
//! [`device`] CA is an operator's own, for phones whose factory certificate is unusable.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::constituency::{MacAddress, NotAPhone};
use crate::settings::SettingsError;
use crate::state;

pub mod device;
pub mod export;
pub mod record;

/// The lifetime of a CA of our own.
const CA_LIFETIME: Duration = Duration::from_hours(24 * 3650);
/// How far in the past certificates begin, for clients whose clock is a little behind ours.
const BACKDATED: Duration = Duration::from_hours(1);

/// Why a CA of our own cannot be created, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File { path: PathBuf, source: io::Error },
    /// A file exists but holds no certificate or key.
    #[error("{path} is damaged: {reason}; restore it, or remove the folder so that a new CA is made", path = .path.display())]
    Damaged { path: PathBuf, reason: String },
    /// The certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// A CA would be created where one exists.
    #[error("{path} already exists, and a new CA would make the certificates of the old one invalid; name another folder (--dir). \
         If the old CA has issued no certificate, remove its folder and run provost ca init again", path = .path.display())]
    AlreadyExists {
        /// The file that exists.
        path: PathBuf,
    },
    /// There is no CA.
    #[error("there is no CA in {folder}; make one with provost ca init, or name its folder (--dir)", folder = .folder.display())]
    NotFound {
        /// Where it was expected.
        folder: PathBuf,
    },
    /// The record of what was issued is damaged.
    #[error("{}: the record of the CA is damaged: {}; restore it from a backup", .0.location(), .0.message())]
    BadRecord(SettingsError),
    /// A certificate would outlive its CA.
    #[error("the CA expires at {}, and a certificate must not be valid longer than its CA; use fewer --days", rfc3339(*.not_after))]
    OutlivesCa {
        /// The CA's last second, in Unix seconds.
        not_after: i64,
    },
    /// The CA has expired.
    #[error("the CA expired at {}, and with it all its certificates; make a new CA in another folder (provost ca init --dir)", rfc3339(*.not_after))]
    Expired {
        /// Its last second, in Unix seconds.
        not_after: i64,
    },
    /// No phone can have this address.
    #[error("{0}")]
    NotAPhone(#[from] NotAPhone),
    /// The CA issued no certificate to this phone.
    #[error("this CA has issued no certificate for {0}; see provost ca list")]
    NeverIssued(String),
    /// Hex digits that are neither a MAC address nor a serial number of this CA.
    #[error(
        "{0} is neither a MAC address (12 hex digits) nor the serial number of a certificate of this CA (all its digits); see \
         provost ca list"
    )]
    NeitherMacNorSerial(String),
    /// A certificate was made but cannot be used.
    #[error("the new certificate is unusable: {0}")]
    Unusable(String),
}

/// The kind of a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum KeyKind {
    /// RSA with 2048 bits.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// ECDSA on P-256.
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
}

impl KeyKind {
    /// Its name in settings and folders.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa-2048",
            Self::EcdsaP256 => "ecdsa-p256",
        }
    }

    /// Generates a key. RSA takes a while.
    pub fn generate(self) -> Result<KeyPair, rcgen::Error> {
        KeyPair::generate_for(match self {
            Self::Rsa2048 => &PKCS_RSA_SHA256,
            Self::EcdsaP256 => &PKCS_ECDSA_P256_SHA256,
        })
    }
}

impl std::fmt::Display for KeyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A CA whose private key we hold.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A new certificate with its key.
pub struct IssuedCertificate {
    /// The certificate, issued directly by the CA.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateAuthority")
    }
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issued")
    }
}

impl CertificateAuthority {
    /// Opens the CA in `folder` (`ca.pem`, `ca.key`), or creates one named `common_name` with a key of `kind`.
    ///
    /// The key is written before the certificate, so a certificate on disk always has its key.
    pub fn open_or_make(folder: &Path, common_name: &str, kind: KeyKind, now: SystemTime) -> Result<Self, CaError> {
        let (certificate_file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
        if !exists(&certificate_file)? {
            state::private_folder(folder).map_err(|source| file_error(folder, source))?;
            let key = kind.generate()?;
            let certificate = ca_params(common_name, now).self_signed(&key)?;
            for (path, pem) in [(&key_file, key.serialize_pem()), (&certificate_file, certificate.pem())] {
                state::write_private(path, pem.as_bytes()).map_err(|source| file_error(path, source))?;
            }
        }
        Self::open(folder)
    }

    /// Opens the CA in `folder`.
    fn open(folder: &Path) -> Result<Self, CaError> {
        let (certificate_file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
        let read = |path: &PathBuf| state::read_text(path).map_err(|source| file_error(path, source));
        let damaged = |path: &Path, reason: String| CaError::Damaged { path: path.to_owned(), reason };
        let key = KeyPair::from_pem(&read(&key_file)?).map_err(|error| damaged(&key_file, error.to_string()))?;
        let certificate = CertificateDer::from_pem_slice(read(&certificate_file)?.as_bytes())
            .map_err(|error| damaged(&certificate_file, error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| damaged(&certificate_file, error.to_string()))?;
        Ok(Self { issuer, certificate })
    }

    /// The CA's own certificate, which clients must trust.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Issues a server certificate for `names`, valid for `lifetime`, with the RSA-2048 key that phones need.
    ///
    /// Takes about 100 ms of CPU.
    pub fn issue_server(
        &self,
        names: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, CaError> {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256)?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = named(names.first().map_or("", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, &key, now, lifetime)
    }

    /// Issues a device certificate as Polycom's factory does: the MAC address in upper case as the only CN.
    pub fn issue_device(
        &self,
        mac: MacAddress,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&mac.to_upper_hex());
        params.distinguished_name.push(DnType::OrganizationName, "provost virtual phone");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, &key, now, lifetime)
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        key: &KeyPair,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, CaError> {
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + lifetime).into();
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(IssuedCertificate {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        })
    }
}

fn ca_params(common_name: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + CA_LIFETIME).into();
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn exists(path: &Path) -> Result<bool, CaError> {
    state::exists(path).map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: io::Error) -> CaError {
    CaError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ca_is_created_once_and_then_reopened() {
        let folder = tempfile::tempdir().unwrap();
        let now = crate::clock::now();
        let path = folder.path().join("ca");
        let first = CertificateAuthority::open_or_make(&path, "test CA", KeyKind::EcdsaP256, now).unwrap();
        let again = CertificateAuthority::open_or_make(&path, "other name", KeyKind::EcdsaP256, now).unwrap();
        assert_eq!(first.certificate(), again.certificate());
        again.issue_device("00005e00530c".parse().unwrap(), now, Duration::from_hours(1)).unwrap();
        std::fs::remove_file(path.join("ca.key")).unwrap();
        assert!(
            CertificateAuthority::open_or_make(&path, "test CA", KeyKind::EcdsaP256, now)
                .unwrap_err()
                .to_string()
                .contains("ca.key")
        );
    }
}
