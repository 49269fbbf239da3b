//! A private CA for phones whose factory certificate is unusable.
//!
//! It is a folder, which may be on a machine without a network. `ca.key` is its key. `ca.pem` holds its certificate,
//! followed by the certificate revocation list (CRL), so that a trust bundle that names the file has both. The
//! [record](super::record) lists what it issued and revoked. The record is written first and the CRL is made from it,
//! so the next command completes one that was interrupted in between.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, KeyIdMethod, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use rustix::fs::FlockOperation;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use time::OffsetDateTime;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::export;
use super::record::{IssuedStatus, Record, RecordEvent, Serial};
use super::{
    BACKDATED, CaError, CertificateAuthority, IssuedCertificate, KeyKind, ca_params, exists, file_error, named,
};
use crate::clock::unix_seconds;
use crate::constituency::MacAddress;
use crate::state::{self, FolderHandle};

/// The CA's certificate and CRL.
const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const RECORD: &str = "record.jsonl";

/// The CA, locked by this process while the value exists.
#[derive(Debug)]
pub struct DeviceCa {
    folder: PathBuf,
    ca: CertificateAuthority,
    record: Record,
    not_after: i64,
    _lock: OwnedFd,
}

/// The content of a phone's certificate.
#[derive(Debug)]
pub struct DeviceCertificateRequest<'a> {
    /// The phone.
    pub mac: MacAddress,
    /// The subject's O, if any.
    pub organization: Option<&'a str>,
    /// The lifetime; `None`: until the CA expires.
    pub lifetime: Option<Duration>,
}

/// A signed certificate that is not on record yet, and must not be handed out before.
#[derive(Debug)]
pub struct SignedCertificate {
    /// The certificate and its key.
    pub issued: IssuedCertificate,
    /// Its serial number.
    pub serial: Serial,
    event: RecordEvent,
}

/// What to revoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevocationTarget {
    /// Every certificate of a phone.
    Phone(MacAddress),
    /// One certificate.
    Serial(Serial),
}

impl DeviceCa {
    /// Creates a CA named `name` in `folder`.
    ///
    /// # Errors
    /// Also if a CA exists there: all that it issued would be lost.
    pub fn init(folder: &Path, name: &str, lifetime: Duration, now: SystemTime) -> Result<(), CaError> {
        state::private_folder(folder).map_err(|source| file_error(folder, source))?;
        let lock = lock(folder)?;
        for path in [CERTIFICATE, KEY].map(|file| folder.join(file)) {
            if exists(&path)? {
                return Err(CaError::AlreadyExists { path });
            }
        }
        let key = KeyKind::Rsa2048.generate()?;
        let mut params = ca_params(name, now);
        params.not_after = (now + lifetime).into();
        params.serial_number = Some(SerialNumber::from_slice(Serial::random()?.bytes()));
        let certificate = params.self_signed(&key)?;
        let files = [(KEY, key.serialize_pem()), (RECORD, String::new()), (CERTIFICATE, certificate.pem())];
        for (file, content) in files {
            let path = folder.join(file);
            state::write_private(&path, content.as_bytes()).map_err(|source| file_error(&path, source))?;
        }
        drop(lock);
        Self::open(folder, now).map(drop)
    }

    /// Opens the CA in `folder`, and updates its CRL from its record.
    ///
    /// # Errors
    /// If there is no CA, or it is damaged.
    pub fn open(folder: &Path, now: SystemTime) -> Result<Self, CaError> {
        let absent = || CaError::NotFound { folder: folder.to_owned() };
        if !exists(&folder.join(CERTIFICATE))? && !exists(&folder.join(KEY))? {
            return Err(absent());
        }
        let lock = lock(folder)?;
        let ca = CertificateAuthority::open(folder)?;
        let record = Record::read(&folder.join(RECORD))?;
        let not_after = X509Certificate::from_der(ca.certificate())
            .map_err(|error| CaError::Damaged { path: folder.join(CERTIFICATE), reason: error.to_string() })?;
        let not_after = not_after.1.validity().not_after.timestamp();
        let this = Self { folder: folder.to_owned(), ca, record, not_after, _lock: lock };
        this.publish_revocations(now)?;
        Ok(this)
    }

    /// The file with its certificate and CRL, to be named in a trust bundle.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.ca.certificate()
    }

    /// The last second of its certificate, in Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// The record of what it issued and revoked.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Signs a certificate with a new RSA-2048 key, which the oldest phones need. The caller puts it on record before
    /// it hands it out, and only when nothing else can fail: the record cannot show later that a certificate was lost.
    ///
    /// # Errors
    /// If no phone can have the MAC address, the CA has expired, or the certificate would outlive it.
    pub fn sign(&self, wanted: &DeviceCertificateRequest<'_>, now: SystemTime) -> Result<SignedCertificate, CaError> {
        wanted.mac.check_phone()?;
        let end = match wanted.lifetime {
            None => self.not_after,
            Some(lifetime) => unix_seconds(now + lifetime),
        };
        if self.not_after <= unix_seconds(now) {
            return Err(CaError::Expired { not_after: self.not_after });
        }
        if end > self.not_after {
            return Err(CaError::OutlivesCa { not_after: self.not_after });
        }
        let serial = Serial::random()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&wanted.mac.to_upper_hex());
        if let Some(organization) = wanted.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.serial_number = Some(SerialNumber::from_slice(serial.bytes()));
        // keyEncipherment too: tools expect it in a certificate for an RSA key.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let lifetime = Duration::from_secs(u64::try_from(end - unix_seconds(now)).unwrap_or(0));
        let issued = self.ca.issue(params, &KeyKind::Rsa2048.generate()?, now, lifetime)?;
        let sha256 = digest(&SHA256, &issued.certificate);
        let event = RecordEvent::Issued {
            at: unix_seconds(now),
            serial: serial.clone(),
            mac: wanted.mac,
            not_after: end,
            sha256: sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        Ok(SignedCertificate { issued, serial, event })
    }

    /// Records that a certificate was issued.
    ///
    /// # Errors
    /// If the record cannot be written. The certificate must not be handed out then.
    pub fn add_to_record(&mut self, signed: &SignedCertificate) -> Result<(), CaError> {
        self.record.add(std::slice::from_ref(&signed.event))
    }

    /// Revokes those certificates of `which` that are not revoked yet; returns their serial numbers.
    ///
    /// # Errors
    /// If the CA issued none of `which`, or the record or the CRL cannot be written.
    pub fn revoke(&mut self, which: &RevocationTarget, now: SystemTime) -> Result<Vec<Serial>, CaError> {
        let is_meant = |status: &&IssuedStatus| match which {
            RevocationTarget::Phone(mac) => status.mac == *mac,
            RevocationTarget::Serial(serial) => status.serial == *serial,
        };
        let meant: Vec<&IssuedStatus> = self.record.certificates().iter().filter(is_meant).collect();
        if meant.is_empty() {
            return Err(match which {
                RevocationTarget::Phone(mac) => CaError::NeverIssued(mac.to_string()),
                RevocationTarget::Serial(serial) => CaError::NeitherMacNorSerial(serial.to_string()),
            });
        }
        let serials: Vec<Serial> =
            meant.iter().filter(|status| status.revoked.is_none()).map(|status| status.serial.clone()).collect();
        let at = unix_seconds(now);
        let events: Vec<RecordEvent> =
            serials.iter().map(|serial| RecordEvent::Revoked { at, serial: serial.clone() }).collect();
        self.record.add(&events)?;
        self.publish_revocations(now)?;
        Ok(serials)
    }

    /// Rewrites `ca.pem` if its CRL differs from the record.
    fn publish_revocations(&self, now: SystemTime) -> Result<(), CaError> {
        let path = self.bundle();
        let text = state::read(&path).map_err(|source| file_error(&path, source))?;
        let listed = CertificateRevocationListDer::from_pem_slice(&text).ok();
        let revoked: Vec<&IssuedStatus> =
            self.record.certificates().iter().filter(|status| status.revoked.is_some()).collect();
        if listed.is_some_and(|list| lists(&list, &revoked)) {
            return Ok(());
        }
        let list = CertificateRevocationListParams {
            this_update: (now - BACKDATED).into(),
            // Clients read the CRL from this file only and never fetch another, so it is valid as long as the CA.
            next_update: instant(self.not_after.max(unix_seconds(now) + 1)),
            crl_number: SerialNumber::from(self.record.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(|status| revocation(status)).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let content = export::pem("CERTIFICATE", self.certificate()) + &list.signed_by(&self.ca.issuer)?.pem()?;
        state::write_public(&path, content.as_bytes()).map_err(|source| file_error(&path, source))
    }
}

impl std::fmt::Display for RevocationTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Phone(mac) => write!(f, "{mac}"),
            Self::Serial(serial) => write!(f, "the serial number {serial}"),
        }
    }
}

/// Locks the CA against other commands until the result is dropped.
fn lock(folder: &Path) -> Result<OwnedFd, CaError> {
    let handle = FolderHandle::open(folder).and_then(|folder| folder.readable());
    let handle = handle.map_err(|source| file_error(folder, source))?;
    rustix::fs::flock(&handle, FlockOperation::LockExclusive).map_err(|errno| file_error(folder, errno.into()))?;
    Ok(handle)
}

/// Whether `list` names exactly the `revoked` certificates.
fn lists(list: &[u8], revoked: &[&IssuedStatus]) -> bool {
    let Ok((_, list)) = CertificateRevocationList::from_der(list) else { return false };
    let mut listed: Vec<Serial> =
        list.iter_revoked_certificates().map(|entry| Serial::from_bytes(entry.raw_serial())).collect();
    let mut wanted: Vec<Serial> = revoked.iter().map(|status| status.serial.clone()).collect();
    listed.sort_unstable();
    wanted.sort_unstable();
    listed == wanted
}

fn revocation(status: &IssuedStatus) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: SerialNumber::from_slice(status.serial.bytes()),
        revocation_time: instant(status.revoked.unwrap_or_default()),
        reason_code: None,
        invalidity_date: None,
    }
}

fn instant(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const MAC: &str = "00005e00530c";
    const YEAR: Duration = Duration::from_hours(24 * 365);

    fn made(folder: &Path) -> DeviceCa {
        DeviceCa::init(folder, "Test CA", 10 * YEAR, crate::clock::now()).unwrap();
        DeviceCa::open(folder, crate::clock::now()).unwrap()
    }

    fn issue(ca: &mut DeviceCa) -> Serial {
        let wanted = DeviceCertificateRequest { mac: MAC.parse().unwrap(), organization: None, lifetime: Some(YEAR) };
        let signed = ca.sign(&wanted, crate::clock::now()).unwrap();
        ca.add_to_record(&signed).unwrap();
        signed.serial
    }

    fn listed(ca: &DeviceCa) -> Vec<Serial> {
        let list = CertificateRevocationListDer::from_pem_file(ca.bundle()).unwrap();
        let (_, list) = CertificateRevocationList::from_der(&list).unwrap();
        list.iter_revoked_certificates().map(|entry| Serial::from_bytes(entry.raw_serial())).collect()
    }

    #[test]
    fn interrupted_revocation_is_completed_and_stays_listed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca");
        let mut ca = made(&path);
        let (one, two) = (issue(&mut ca), issue(&mut ca));
        assert_eq!(listed(&ca), []);
        let before = std::fs::read(ca.bundle()).unwrap();
        let now = crate::clock::now();
        assert_eq!(ca.revoke(&RevocationTarget::Serial(one.clone()), now).unwrap(), std::slice::from_ref(&one));
        assert_eq!(listed(&ca), std::slice::from_ref(&one));
        // As after a power failure between the writes of the record and the CRL.
        state::write_private(&ca.bundle(), &before).unwrap();
        drop(ca);
        let mut ca = DeviceCa::open(&path, now).unwrap();
        assert_eq!(listed(&ca), std::slice::from_ref(&one));
        // Only the phone's other certificate is left to revoke; then none, which is not an error.
        assert_eq!(ca.revoke(&RevocationTarget::Phone(MAC.parse().unwrap()), now).unwrap(), std::slice::from_ref(&two));
        assert_eq!(ca.revoke(&RevocationTarget::Phone(MAC.parse().unwrap()), now).unwrap(), []);
        assert_eq!(listed(&ca), [one, two]);
        assert!(matches!(
            ca.revoke(&RevocationTarget::Serial(Serial::random().unwrap()), now),
            Err(CaError::NeitherMacNorSerial(_))
        ));
    }

    #[test]
    fn certificate_ends_before_its_ca_and_no_ca_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca");
        let mut ca = made(&path);
        let mac = MAC.parse().unwrap();
        let wanted = DeviceCertificateRequest { mac, organization: None, lifetime: Some(11 * YEAR) };
        let now = crate::clock::now();
        assert!(matches!(ca.sign(&wanted, now), Err(CaError::OutlivesCa { .. })));
        let longest = DeviceCertificateRequest { lifetime: None, ..wanted };
        let signed = ca.sign(&longest, now).unwrap();
        assert_eq!(ca.record().certificates().len(), 0, "what is only signed was never issued");
        ca.add_to_record(&signed).unwrap();
        assert_eq!(ca.record().certificates()[0].not_after, ca.not_after());
        assert!(matches!(ca.sign(&longest, now + 11 * YEAR), Err(CaError::Expired { .. })));
        let multicast = DeviceCertificateRequest { mac: "ffffffffffff".parse().unwrap(), ..longest };
        assert!(matches!(ca.sign(&multicast, now), Err(CaError::NotAPhone(_))));
        assert_eq!(ca.record().certificates().len(), 1);
        drop(ca);
        let key = std::fs::read(path.join(KEY)).unwrap();
        assert!(matches!(DeviceCa::init(&path, "Other", YEAR, now), Err(CaError::AlreadyExists { .. })));
        assert_eq!(std::fs::read(path.join(KEY)).unwrap(), key);
        std::fs::remove_file(path.join(CERTIFICATE)).unwrap();
        assert!(
            matches!(DeviceCa::init(&path, "Other", YEAR, now), Err(CaError::AlreadyExists { .. })),
            "a key alone is a CA"
        );
        assert!(matches!(DeviceCa::open(folder.path(), now), Err(CaError::NotFound { .. })));
    }

    #[test]
    fn ca_key_and_record_are_private_to_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let mut ca = made(&folder.path().join("ca"));
        issue(&mut ca);
        let mode = |name: &str| std::fs::metadata(ca.folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!([KEY, RECORD, CERTIFICATE, ""].map(mode), [0o600, 0o600, 0o644, 0o700]);
        assert_eq!(std::fs::read_dir(&ca.folder).unwrap().count(), 3);
    }
}
