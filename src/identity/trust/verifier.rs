//! Verifies device certificates: the chain with rustls-webpki, and the checks that webpki leaves to its user.
//!
//! 1. Limits, before any signature is verified: at most eight certificates, RSA keys of 2048 to 4096 bits.
//! 2. The leaf's key is of a type that rustls accepts for handshake signatures, also with legacy TLS, and its keyUsage
//!    allows signing.
//! 3. webpki builds and verifies a path to an anchor. The anchor's own dates and path length are checked too.
//! 4. No CRL revokes the leaf or a CA below the anchor, and all their CRLs are fresh.
//! 5. The MAC address is read from the subject. Without one, the device is verified, but has no identity.
//!
//! A certificate that fails at 3 or 4 is valid all the same if the policy pins its SHA-256 for the MAC address in its
//! subject. A pin is an explicit decision about one certificate, so its signature and dates are not checked. Steps 1
//! and 2, the subject, and whether the certificate itself is revoked still are.
//!
//! Time is an argument. The path is verified as of the leaf's last valid second if that has passed, and the CAs' dates
//! as of now. So the leaf's own expiry is checked last: the policy can tolerate it, and it hides no other reason.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::bundle::{Anchor, Bundle};
use super::family::Family;
use super::identity::{self, NoIdentity};
use super::refusal::{ChainRefusal, PathError};
use super::revocation::{self, RevocationList};
use crate::constituency::{ExpiredDeviceCertificates, Fingerprint, MacAddress, POLYCOM, Pins};

/// The maximum number of certificates in a chain. It limits the cost of path building, which the client controls.
const MAX_CHAIN: usize = 8;
/// The accepted sizes of RSA keys, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Verifies device certificates for the policy of one constituency.
#[derive(Debug)]
pub struct DeviceVerifier {
    anchors: Vec<TrustAnchor<'static>>,
    facts: Vec<Anchor>,
    known: Vec<CertificateDer<'static>>,
    revocations: Vec<RevocationList>,
    expired: ExpiredDeviceCertificates,
    algorithms: WebPkiSupportedAlgorithms,
    /// Whether its bundles may change at run time. All may, except the built-in one.
    may_change: bool,
}

/// A device with a valid certificate. Only [`DeviceVerifier::verify`] creates one.
#[derive(Debug, Clone)]
pub struct VerifiedDevice {
    identity: Result<MacAddress, NoIdentity>,
    not_after: i64,
    constraints: PathConstraints,
    tolerates_expiry: bool,
    pin: Option<Fingerprint>,
    /// The chain, for verifying it again when the bundles change; `None` if they cannot change.
    chain: Option<Arc<[CertificateDer<'static>]>>,
}

/// The constraints of the verified path above a device certificate.
#[derive(Debug, Clone)]
struct PathConstraints {
    /// The earliest notAfter of the CAs.
    not_after: i64,
    /// The CRL that becomes outdated first.
    list: Option<Box<Freshness>>,
    /// The family of the anchor, which determines the form of the MAC address.
    family: Family,
}

/// The end of a CRL's freshness.
#[derive(Debug, Clone)]
struct Freshness {
    ca: String,
    next_update: i64,
}

impl PathConstraints {
    /// Adds the nextUpdate of `list`, if there is a CRL, to the constraints.
    fn limit_by_crl(&mut self, list: Option<&RevocationList>) {
        let Some(list) = list else { return };
        if self.list.as_ref().is_none_or(|first| list.next_update < first.next_update) {
            self.list = Some(Box::new(Freshness { ca: list.ca.clone(), next_update: list.next_update }));
        }
    }
}

impl VerifiedDevice {
    /// The MAC address in the certificate, or why there is none.
    pub fn mac(&self) -> Result<MacAddress, &NoIdentity> {
        self.identity.as_ref().copied()
    }

    /// The fingerprint of the certificate, if only a pin makes it valid. It is valid while the pin exists.
    #[must_use]
    pub fn pin(&self) -> Option<Fingerprint> {
        self.pin
    }

    /// The presented chain, leaf first; `None` if it need not be verified again during the connection.
    #[must_use]
    pub fn chain(&self) -> Option<&[CertificateDer<'static>]> {
        self.chain.as_deref()
    }

    /// The end of the certificate's validity, in Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Checks that the certificate and the CAs above it are still valid at `now` (Unix seconds).
    ///
    /// # Errors
    /// The certificate or CRL that has expired since the chain was verified.
    pub fn still_valid(&self, now: i64) -> Result<(), ChainRefusal> {
        let is_outdated = |list: &&Freshness| now > list.next_update;
        if now > self.constraints.not_after {
            Err(ChainRefusal::CaExpired {
                ca: "a CA above the device certificate".to_owned(),
                not_after: self.constraints.not_after,
            })
        } else if let Some(list) = self.constraints.list.as_deref().filter(is_outdated) {
            Err(ChainRefusal::RevocationsOutdated { ca: list.ca.clone(), next_update: list.next_update })
        } else if now > self.not_after && !self.tolerates_expiry {
            Err(ChainRefusal::Expired { not_after: self.not_after, now })
        } else {
            Ok(())
        }
    }

    /// Whether the certificate has expired at `now` and is valid only because the policy accepts that.
    #[must_use]
    pub fn is_tolerated(&self, now: i64) -> bool {
        now > self.not_after && self.tolerates_expiry
    }
}

impl DeviceVerifier {
    /// A verifier that trusts `bundles`.
    #[must_use]
    pub fn new<'a>(
        bundles: impl IntoIterator<Item = &'a Bundle>,
        expired: ExpiredDeviceCertificates,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        let (mut facts, mut known, mut revocations) = (Vec::new(), Vec::new(), Vec::new());
        let mut may_change = false;
        for bundle in bundles {
            may_change |= bundle.name != POLYCOM;
            facts.extend(bundle.anchors.iter().cloned());
            known.extend(bundle.known.iter().cloned());
            revocations.extend(bundle.revocations.iter().cloned());
        }
        let anchors = facts.iter().map(|fact| fact.anchor.clone()).collect();
        Self { anchors, facts, known, revocations, expired, algorithms, may_change }
    }

    /// The trust anchors.
    #[must_use]
    pub fn anchors(&self) -> &[Anchor] {
        &self.facts
    }

    pub(super) fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }

    /// Verifies the `chain` of a device, leaf first, at `now`, for a constituency with these `pins`.
    ///
    /// # Errors
    /// The exact reason for a refusal.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        pins: &Pins,
        now: UnixTime,
    ) -> Result<VerifiedDevice, ChainRefusal> {
        let (leaf_der, sent) = chain.split_first().ok_or(ChainRefusal::NoCertificate)?;
        if chain.len() > MAX_CHAIN {
            return Err(ChainRefusal::TooManyCertificates { sent: chain.len(), allowed: MAX_CHAIN });
        }
        let leaf = parse(leaf_der)?;
        check_key_size(&leaf)?;
        check_key_kind(&leaf)?;
        check_key_usage(&leaf)?;
        let device = self.verify_by_chain(leaf_der, &leaf, sent, now).or_else(|refusal| {
            // A revocation is a decision about this one certificate too, so it overrides the pin.
            let is_revoked = revocation::check(&self.revocations, &leaf).is_err();
            by_pin(leaf_der, &leaf, pins).filter(|_| !is_revoked).ok_or(refusal)
        })?;
        let owned_chain = || chain.iter().map(|der| der.clone().into_owned()).collect();
        Ok(VerifiedDevice { chain: self.may_change.then(owned_chain), ..device })
    }

    fn verify_by_chain(
        &self,
        leaf_der: &CertificateDer<'_>,
        leaf: &X509Certificate<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedDevice, ChainRefusal> {
        let is_known = |der: &CertificateDer<'_>| {
            self.known.iter().chain(self.facts.iter().map(|fact| &fact.certificate)).any(|known| known == der)
        };
        let unknown: Vec<&CertificateDer<'_>> = sent.iter().filter(|der| !is_known(der)).collect();
        for der in &unknown {
            check_key_size(&parse(der)?)?;
        }
        let intermediates: Vec<CertificateDer<'_>> =
            unknown.into_iter().chain(&self.known).map(|der| CertificateDer::from(der.as_ref())).collect();

        let not_after = leaf.validity().not_after.timestamp();
        let mut constraints = self
            .verify_path(leaf_der, &intermediates, now, not_after)
            .map_err(|error| ChainRefusal::explain(error, leaf, now))?;
        constraints.limit_by_crl(revocation::check(&self.revocations, leaf)?);
        let device = VerifiedDevice {
            identity: identity::mac_address(leaf.subject(), constraints.family),
            not_after,
            constraints,
            tolerates_expiry: self.expired == ExpiredDeviceCertificates::Accept,
            pin: None,
            chain: None,
        };
        device.still_valid(unix_seconds(now))?;
        Ok(device)
    }

    /// Verifies a path to an anchor, ignoring an expiry of the leaf. Gives the constraints of the path.
    fn verify_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        leaf_not_after: i64,
    ) -> Result<PathConstraints, PathError> {
        let end_entity = EndEntityCert::try_from(leaf)?;
        let last_second = u64::try_from(leaf_not_after).unwrap_or(0);
        let as_of = UnixTime::since_unix_epoch(Duration::from_secs(last_second.min(now.as_secs())));
        let accepted = RefCell::new(None);
        let refused = RefCell::new(None);
        let check = |path: &VerifiedPath<'_>| match self.check_authorities(path, now) {
            Ok(constraints) => {
                *accepted.borrow_mut() = Some(constraints);
                Ok(())
            }
            Err(refusal) => {
                *refused.borrow_mut() = Some(refusal);
                Err(webpki::Error::UnknownIssuer)
            }
        };
        let verified = end_entity.verify_for_usage(
            self.algorithms.all,
            &self.anchors,
            intermediates,
            as_of,
            KeyUsage::client_auth(),
            None,
            Some(&check),
        );
        match (verified.map(|_| accepted.take()), refused.take()) {
            (Ok(Some(constraints)), _) => Ok(constraints),
            // webpki did not call the check, so the path is not trusted.
            (Ok(None), _) => Err(PathError::Webpki(webpki::Error::UnknownIssuer)),
            (Err(_), Some(refusal)) => Err(PathError::Refused(refusal)),
            (Err(error), None) => Err(PathError::Webpki(error)),
        }
    }

    /// The checks of a path that webpki does not do: the anchor's dates and path length, all CAs' dates at `now`, and
    /// revocation.
    fn check_authorities(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<PathConstraints, ChainRefusal> {
        let now = unix_seconds(now);
        let mut constraints = PathConstraints { not_after: i64::MAX, list: None, family: Family::Polycom };
        let mut count: u32 = 0;
        for ca in path.intermediate_certificates() {
            let der = ca.der();
            let ca = parse(&der)?;
            let (not_before, not_after) = (ca.validity().not_before.timestamp(), ca.validity().not_after.timestamp());
            check_ca_dates(ca.subject(), not_before, not_after, now)?;
            if matches!(ca.key_usage(), Ok(Some(usage)) if !usage.value.key_cert_sign()) {
                return Err(ChainRefusal::CaMayNotSign { ca: ca.subject().to_string() });
            }
            let list = revocation::check(&self.revocations, &ca).map_err(ChainRefusal::for_ca)?;
            constraints.limit_by_crl(list);
            constraints.not_after = constraints.not_after.min(not_after);
            count += 1;
        }
        // An old and a renewed certificate may have the same name and key. Either of them may be valid.
        let used = path.anchor();
        let mut refusal = ChainRefusal::UnknownIssuer { issuer: String::new() };
        for fact in self.facts.iter().filter(|fact| fact.anchor == *used) {
            match check_anchor(fact, count, now) {
                Ok(()) => {
                    return Ok(PathConstraints {
                        not_after: constraints.not_after.min(fact.not_after),
                        family: fact.family,
                        ..constraints
                    });
                }
                Err(found) => refusal = found,
            }
        }
        Err(refusal)
    }
}

/// The device of a certificate that is pinned for the MAC address in its subject. The handshake still proves the key.
fn by_pin(leaf_der: &CertificateDer<'_>, leaf: &X509Certificate<'_>, pins: &Pins) -> Option<VerifiedDevice> {
    let mac = identity::mac_address(leaf.subject(), Family::Polycom).ok()?;
    let pin = *pins.get(&mac)?;
    // webpki must be able to parse the certificate (not version 1, for example): it also verifies the handshake's
    // signature.
    EndEntityCert::try_from(leaf_der).ok().filter(|_| Fingerprint::of(leaf_der) == pin)?;
    Some(VerifiedDevice {
        identity: Ok(mac),
        not_after: leaf.validity().not_after.timestamp(),
        constraints: PathConstraints { not_after: i64::MAX, list: None, family: Family::Polycom },
        tolerates_expiry: true,
        pin: Some(pin),
        chain: None,
    })
}

fn unix_seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, ChainRefusal> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(ChainRefusal::Malformed("bytes after the certificate".to_owned())),
        Err(error) => Err(ChainRefusal::Malformed(error.to_string())),
    }
}

fn check_key_size(certificate: &X509Certificate<'_>) -> Result<(), ChainRefusal> {
    let Ok(PublicKey::RSA(key)) = certificate.public_key().parsed() else { return Ok(()) };
    let bits = key.key_size();
    if RSA_BITS.contains(&bits) {
        Ok(())
    } else {
        Err(ChainRefusal::KeySize { subject: certificate.subject().to_string(), bits })
    }
}

/// OpenSSL accepts more types of keys for handshake signatures than rustls: weak curves, explicit curve parameters (RFC
/// 5480 §2.1.1 "MUST NOT"), DSA.
fn check_key_kind(leaf: &X509Certificate<'_>) -> Result<(), ChainRefusal> {
    let algorithm = &leaf.public_key().algorithm;
    let is_accepted = if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        curve.is_some_and(|curve| [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521].contains(&curve))
    } else {
        [OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519].contains(&algorithm.algorithm)
    };
    if is_accepted { Ok(()) } else { Err(ChainRefusal::KeyKind) }
}

/// RFC 5280 §4.2.1.3: if the leaf has a keyUsage, it must include digitalSignature, which handshake signatures need.
fn check_key_usage(leaf: &X509Certificate<'_>) -> Result<(), ChainRefusal> {
    match leaf.key_usage() {
        Ok(Some(usage)) if !usage.value.digital_signature() => Err(ChainRefusal::KeyUsage),
        Ok(_) => Ok(()),
        Err(error) => Err(ChainRefusal::Malformed(error.to_string())),
    }
}

fn check_anchor(fact: &Anchor, cas_below: u32, now: i64) -> Result<(), ChainRefusal> {
    check_ca_dates(&fact.subject, fact.not_before, fact.not_after, now)?;
    if fact.path_length.is_some_and(|allowed| cas_below > allowed) {
        return Err(ChainRefusal::PathTooLong { ca: format!("{:?}", fact.subject) });
    }
    Ok(())
}

fn check_ca_dates(ca: &impl ToString, not_before: i64, not_after: i64, now: i64) -> Result<(), ChainRefusal> {
    if now > not_after {
        Err(ChainRefusal::CaExpired { ca: ca.to_string(), not_after })
    } else if now < not_before {
        Err(ChainRefusal::CaNotYetValid { ca: ca.to_string(), not_before })
    } else {
        Ok(())
    }
}
