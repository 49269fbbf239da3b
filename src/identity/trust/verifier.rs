//! Whether a device certificate counts: the chain by rustls-webpki, and on top what webpki leaves to its user.
//!
//! 1. Bounds before any signature: at most eight certificates, RSA keys of 2048 to 4096 bits.
//! 2. The leaf's key is of a kind that rustls lets sign handshakes, in the old lane too, and its keyUsage allows that.
//! 3. webpki builds and verifies a path to an anchor; the anchor's own dates and path length are checked on it.
//! 4. No list of revocations names it or a CA below the anchor, and every list that might is fresh.
//! 5. The subject names a phone, or says why it does not.
//!
//! A certificate that fails at 3 counts all the same if it is pinned: named by its SHA-256, for the phone that its subject
//! names. That is an explicit decision about one certificate, so neither its signature nor its dates are asked for;
//! the bounds of 1 and 2 and the subject are, and whether it was itself revoked.
//!
//! Time is an argument. The path is verified as of the leaf's last valid second, and every CA's dates as of now: so the
//! leaf's own expiry comes last, may be tolerated by policy, and hides no other reason.

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

/// The most certificates a phone may send. Path building is a puzzle that a stranger sets us.
const MAX_CHAIN: usize = 8;
/// RSA modulus sizes that are verified, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Judges device certificates for one constituency's policy.
#[derive(Debug)]
pub struct DeviceVerifier {
    anchors: Vec<TrustAnchor<'static>>,
    facts: Vec<Anchor>,
    known: Vec<CertificateDer<'static>>,
    revocations: Vec<RevocationList>,
    expired: ExpiredDeviceCertificates,
    algorithms: WebPkiSupportedAlgorithms,
    /// Whether its bundles may be others tomorrow: all may but the one that is built in.
    may_change: bool,
}

/// A device whose certificate was found to count. Only [`DeviceVerifier::judge`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedDevice {
    identity: Result<MacAddress, NoIdentity>,
    not_after: i64,
    above: Above,
    tolerates_expiry: bool,
    pin: Option<Fingerprint>,
    /// The chain, to be judged again if the bundles are others; `None` where they stay as they are.
    chain: Option<Arc<[CertificateDer<'static>]>>,
}

/// What stands above a device certificate on its verified path.
#[derive(Debug, Clone)]
struct Above {
    /// The first notAfter of the CAs.
    not_after: i64,
    /// The list of revocations that must be renewed first.
    list: Option<Box<Freshness>>,
    /// In whose form the certificate names its phone: that of the anchor.
    family: Family,
}

/// How long a list of revocations is believed.
#[derive(Debug, Clone)]
struct Freshness {
    ca: String,
    next_update: i64,
}

impl Above {
    /// Takes into account that `list`, if there is one, says nothing of what happens after its time.
    fn believe(&mut self, list: Option<&RevocationList>) {
        let Some(list) = list else { return };
        if self.list.as_ref().is_none_or(|first| list.next_update < first.next_update) {
            self.list = Some(Box::new(Freshness { ca: list.ca.clone(), next_update: list.next_update }));
        }
    }
}

impl VerifiedDevice {
    /// The phone that the certificate names, or why it names none.
    pub fn mac(&self) -> Result<MacAddress, &NoIdentity> {
        self.identity.as_ref().copied()
    }

    /// Its certificate, if that counts by a pin alone; it does so only while the pin stands.
    #[must_use]
    pub fn pin(&self) -> Option<Fingerprint> {
        self.pin
    }

    /// What it presented, its own certificate first; `None` where it need not be judged again as long as it is connected.
    #[must_use]
    pub fn chain(&self) -> Option<&[CertificateDer<'static>]> {
        self.chain.as_deref()
    }

    /// When the certificate expires, in Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Whether the certificate and the CAs above it still count at `now` (Unix seconds).
    ///
    /// # Errors
    /// What has expired since the chain was verified.
    pub fn still_valid(&self, now: i64) -> Result<(), ChainRefusal> {
        let is_outdated = |list: &&Freshness| now > list.next_update;
        if now > self.above.not_after {
            Err(ChainRefusal::CaExpired {
                ca: "a CA above the device certificate".to_owned(),
                not_after: self.above.not_after,
            })
        } else if let Some(list) = self.above.list.as_deref().filter(is_outdated) {
            Err(ChainRefusal::RevocationsOutdated { ca: list.ca.clone(), next_update: list.next_update })
        } else if now > self.not_after && !self.tolerates_expiry {
            Err(ChainRefusal::Expired { not_after: self.not_after, now })
        } else {
            Ok(())
        }
    }

    /// Whether the certificate is past its notAfter at `now` and counts only because the policy says so.
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

    /// The CAs that are trusted.
    #[must_use]
    pub fn anchors(&self) -> &[Anchor] {
        &self.facts
    }

    pub(super) fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }

    /// Judges the `chain` that a device presented, its own certificate first, for a constituency with these `pins`, as
    /// of `now`.
    ///
    /// # Errors
    /// The exact reason why it does not count.
    pub fn judge(
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
        let device = self.judge_by_chain(leaf_der, &leaf, sent, now).or_else(|refusal| {
            // Whoever revoked it decided about this one certificate, too.
            let is_revoked = revocation::check(&self.revocations, &leaf).is_err();
            by_pin(leaf_der, &leaf, pins).filter(|_| !is_revoked).ok_or(refusal)
        })?;
        let kept = || chain.iter().map(|der| der.clone().into_owned()).collect();
        Ok(VerifiedDevice { chain: self.may_change.then(kept), ..device })
    }

    fn judge_by_chain(
        &self,
        leaf_der: &CertificateDer<'_>,
        leaf: &X509Certificate<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<VerifiedDevice, ChainRefusal> {
        let is_ours = |der: &CertificateDer<'_>| {
            self.known.iter().chain(self.facts.iter().map(|fact| &fact.certificate)).any(|ours| ours == der)
        };
        let strangers: Vec<&CertificateDer<'_>> = sent.iter().filter(|der| !is_ours(der)).collect();
        for der in &strangers {
            check_key_size(&parse(der)?)?;
        }
        let intermediates: Vec<CertificateDer<'_>> =
            strangers.into_iter().chain(&self.known).map(|der| CertificateDer::from(der.as_ref())).collect();

        let not_after = leaf.validity().not_after.timestamp();
        let mut above = self
            .verify_path(leaf_der, &intermediates, now, not_after)
            .map_err(|error| ChainRefusal::explain(error, leaf, now))?;
        above.believe(revocation::check(&self.revocations, leaf)?);
        let device = VerifiedDevice {
            identity: identity::mac_address(leaf.subject(), above.family),
            not_after,
            above,
            tolerates_expiry: self.expired == ExpiredDeviceCertificates::Accept,
            pin: None,
            chain: None,
        };
        device.still_valid(unix_seconds(now))?;
        Ok(device)
    }

    /// Verifies a path to an anchor, whether or not the leaf has expired, and gives what holds for the CAs on it.
    fn verify_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        leaf_not_after: i64,
    ) -> Result<Above, PathError> {
        let end_entity = EndEntityCert::try_from(leaf)?;
        let last_second = u64::try_from(leaf_not_after).unwrap_or(0);
        let as_of = UnixTime::since_unix_epoch(Duration::from_secs(last_second.min(now.as_secs())));
        let accepted = RefCell::new(None);
        let refused = RefCell::new(None);
        let check = |path: &VerifiedPath<'_>| match self.check_authorities(path, now) {
            Ok(above) => {
                *accepted.borrow_mut() = Some(above);
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
            (Ok(Some(above)), _) => Ok(above),
            // A path that was not looked at counts for nothing.
            (Ok(None), _) => Err(PathError::Webpki(webpki::Error::UnknownIssuer)),
            (Err(_), Some(refusal)) => Err(PathError::Refused(refusal)),
            (Err(error), None) => Err(PathError::Webpki(error)),
        }
    }

    /// What webpki does not check of a path: the anchor's dates and path length, every CA's dates as of now, and what
    /// was revoked.
    fn check_authorities(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<Above, ChainRefusal> {
        let now = unix_seconds(now);
        let mut above = Above { not_after: i64::MAX, list: None, family: Family::Polycom };
        let mut count: u32 = 0;
        for ca in path.intermediate_certificates() {
            let der = ca.der();
            let ca = parse(&der)?;
            let (not_before, not_after) = (ca.validity().not_before.timestamp(), ca.validity().not_after.timestamp());
            check_ca_dates(ca.subject(), not_before, not_after, now)?;
            if matches!(ca.key_usage(), Ok(Some(usage)) if !usage.value.key_cert_sign()) {
                return Err(ChainRefusal::CaMayNotSign { ca: ca.subject().to_string() });
            }
            let list = revocation::check(&self.revocations, &ca).map_err(ChainRefusal::of_a_ca)?;
            above.believe(list);
            above.not_after = above.not_after.min(not_after);
            count += 1;
        }
        // The same name and key may stand there twice, in an old certificate and a renewed one: either may count.
        let used = path.anchor();
        let mut refusal = ChainRefusal::UnknownIssuer { issuer: String::new() };
        for fact in self.facts.iter().filter(|fact| fact.anchor == *used) {
            match check_anchor(fact, count, now) {
                Ok(()) => {
                    return Ok(Above { not_after: above.not_after.min(fact.not_after), family: fact.family, ..above });
                }
                Err(found) => refusal = found,
            }
        }
        Err(refusal)
    }
}

/// The device of a certificate that is pinned for the phone that it names. Whoever presents it still proves its key.
fn by_pin(leaf_der: &CertificateDer<'_>, leaf: &X509Certificate<'_>, pins: &Pins) -> Option<VerifiedDevice> {
    let mac = identity::mac_address(leaf.subject(), Family::Polycom).ok()?;
    let pin = *pins.get(&mac)?;
    // What webpki cannot read (version 1, say), it could not verify the handshake's signature with either.
    EndEntityCert::try_from(leaf_der).ok().filter(|_| Fingerprint::of(leaf_der) == pin)?;
    Some(VerifiedDevice {
        identity: Ok(mac),
        not_after: leaf.validity().not_after.timestamp(),
        above: Above { not_after: i64::MAX, list: None, family: Family::Polycom },
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

/// OpenSSL lets keys of more kinds sign a handshake than rustls: weak curves, curves spelt out (RFC 5480 §2.1.1 "MUST NOT"),
/// DSA.
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

/// RFC 5280 §4.2.1.3: a key that signs handshakes has digitalSignature, if keyUsage is there at all.
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
