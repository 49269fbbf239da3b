//! Our judgement of a device certificate in the place of OpenSSL's.
//!
//! OpenSSL strings a chain together from what the phone sent, trusts nothing, and so complains of the chain's end before
//! it verifies a signature. At that first complaint we judge the whole chain as in the other lane, and nothing that
//! OpenSSL says counts any more. If we refuse, it stops there, unless the right alert takes a complaint that comes later.
//! If it goes on, no key of the chain may be dearer to verify with than those that webpki takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::ssl::{SslRef, SslVerifyMode};
use openssl::x509::{X509StoreContextRef, X509VerifyResult};
use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;

use crate::identity::trust::{ChainRefusal, DeviceFinding, Verdict};

/// OpenSSL's complaint of a weak key, the only one that comes before it has strung the chain together (`x509_vfy.h`).
const EE_KEY_TOO_SMALL: i32 = 66;
/// The largest RSA modulus and exponent that webpki verifies with, in bits.
const RSA_BITS: (u32, i32) = (8192, 33);

/// Reasons of OpenSSL, by the alert that it sends for them (`x509_vfy.h`, RFC 5246 §7.2.2).
const UNKNOWN_CA: &[i32] = &[2, 18, 19, 20, 21];
const CERTIFICATE_EXPIRED: &[i32] = &[10];
const DECRYPT_ERROR: &[i32] = &[7];

/// The trial of one handshake's certificate.
#[derive(Clone, Default)]
pub(super) struct VerifyCallback(Arc<Mutex<Option<DeviceFinding>>>);

impl VerifyCallback {
    /// Has every certificate of `ssl`'s peer judged by `judge`, and demands one.
    pub(super) fn hold(
        &self,
        ssl: &mut SslRef,
        judge: impl Fn(&[CertificateDer<'static>]) -> DeviceFinding + Send + Sync + 'static,
    ) {
        let trial = self.clone();
        ssl.set_verify_callback(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT, move |is_fine, context| {
            trial.hear(is_fine, context, &judge)
        });
    }

    /// What was found, if a certificate was presented.
    pub(super) fn finding(&self) -> Option<DeviceFinding> {
        self.found().take()
    }

    /// Whether OpenSSL is to go on.
    fn hear(
        &self,
        is_fine: bool,
        context: &mut X509StoreContextRef,
        judge: &impl Fn(&[CertificateDer<'static>]) -> DeviceFinding,
    ) -> bool {
        let mut found = self.found();
        if found.is_none() && context.error().as_raw() == EE_KEY_TOO_SMALL {
            // It would say so again in the place of the next complaint.
            context.set_error(X509VerifyResult::OK);
            return true;
        }
        let finding = found.get_or_insert_with(|| {
            let mut finding = judge(&chain(context));
            if goes_on(&finding.verdict)
                && let Some(refusal) = heavy_key(context)
            {
                finding.verdict = Err(refusal);
            }
            finding
        });
        let Err(refusal) = &finding.verdict else {
            context.set_error(X509VerifyResult::OK);
            return true;
        };
        if !is_fine && complaints(refusal).contains(&context.error().as_raw()) {
            return false;
        }
        let is_last = is_fine && context.error_depth() == 0;
        if goes_on(&finding.verdict) && !is_last {
            return true;
        }
        context.set_error(X509VerifyResult::APPLICATION_VERIFICATION);
        false
    }

    fn found(&self) -> MutexGuard<'_, Option<DeviceFinding>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The certificates that OpenSSL strung together, the device's own first; none at all if one cannot be had.
fn chain(context: &X509StoreContextRef) -> Vec<CertificateDer<'static>> {
    let certificates = context.chain().into_iter().flatten();
    certificates.map(|certificate| certificate.to_der().map(Into::into)).collect::<Result<_, _>>().unwrap_or_default()
}

/// Why OpenSSL is not to verify signatures in the chain: by a key that costs too much, or is of a kind that counts for
/// nothing. A chain may hold any keys beside those of the path that was judged, and all of them if it is pinned.
fn heavy_key(context: &X509StoreContextRef) -> Option<ChainRefusal> {
    let cas = context.chain().into_iter().flatten().enumerate().skip(1);
    cas.map(|(place, ca)| (place, ca.public_key())).find(|(_, key)| !key.as_ref().is_ok_and(is_light)).map(
        |(place, key)| {
            let bits = key.map_or(0, |key| key.bits());
            ChainRefusal::Other(format!("CA {place} has a key of {bits} bits with which no signature is verified"))
        },
    )
}

fn is_light(key: &PKey<Public>) -> bool {
    match key.id() {
        Id::RSA => key.bits() <= RSA_BITS.0 && key.rsa().is_ok_and(|rsa| rsa.e().num_bits() <= RSA_BITS.1),
        Id::EC => key.ec_key().is_ok_and(|key| {
            matches!(key.group().curve_name(), Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1 | Nid::SECP521R1))
        }),
        id => id == Id::ED25519,
    }
}

/// Whether OpenSSL is to look at the signatures and dates too: it has to finish, or its complaint comes only then.
fn goes_on(verdict: &Verdict) -> bool {
    match verdict {
        Ok(_) => true,
        Err(refusal) => [CERTIFICATE_EXPIRED, DECRYPT_ERROR].contains(&complaints(refusal)),
    }
}

/// The complaints for which OpenSSL sends the alert that rustls would send; none where it is to send what it sends for an
/// application's no.
fn complaints(refusal: &ChainRefusal) -> &'static [i32] {
    let alert = match rustls::Error::from(refusal) {
        rustls::Error::InvalidCertificate(error) => AlertDescription::from(error),
        _ => AlertDescription::HandshakeFailure,
    };
    match alert {
        AlertDescription::UnknownCA => UNKNOWN_CA,
        AlertDescription::CertificateExpired => CERTIFICATE_EXPIRED,
        AlertDescription::DecryptError => DECRYPT_ERROR,
        _ => &[],
    }
}
