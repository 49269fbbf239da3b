//! Verifies a device certificate in place of OpenSSL.
//!
//! OpenSSL builds a chain from the phone's certificates, trusts no CA, and so reports an error at the chain's end
//! before it verifies a signature. At that first error we verify the whole chain as for rustls, and from then on ignore
//! OpenSSL's verdict. If we reject the chain, OpenSSL stops there, unless the right alert belongs to an error that it
//! reports later. If it continues, every key in the chain must be no costlier to verify with than the keys that webpki
//! accepts.

use std::sync::Arc;

use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::ssl::{SslRef, SslVerifyMode};
use openssl::x509::{X509StoreContextRef, X509VerifyResult};
use parking_lot::Mutex;
use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;

use crate::identity::trust::{ChainRefusal, RefusedCertificate, Verdict};

/// OpenSSL's error for a weak key, the only one that it reports before it has built the chain (`x509_vfy.h`).
const EE_KEY_TOO_SMALL: i32 = 66;
/// The largest RSA modulus and exponent with which webpki verifies, in bits.
const RSA_BITS: (u32, i32) = (8192, 33);

/// OpenSSL's verification errors, by the alert that it sends for them (`x509_vfy.h`, RFC 5246 §7.2.2).
const UNKNOWN_CA: &[i32] = &[2, 18, 19, 20, 21];
const CERTIFICATE_EXPIRED: &[i32] = &[10];
const DECRYPT_ERROR: &[i32] = &[7];

/// The verify callback of one handshake, with its verdict.
#[derive(Clone, Default)]
pub(super) struct VerifyCallback(Arc<Mutex<Option<Verdict>>>);

impl VerifyCallback {
    /// Installs the callback: `ssl` requires a certificate from its peer, and `verify` decides on it.
    pub(super) fn install(
        &self,
        ssl: &mut SslRef,
        verify: impl Fn(&[CertificateDer<'static>]) -> Verdict + Send + Sync + 'static,
    ) {
        let callback = self.clone();
        ssl.set_verify_callback(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT, move |is_ok, context| {
            callback.on_report(is_ok, context, &verify)
        });
    }

    /// Takes the verdict, if the client presented a certificate.
    pub(super) fn take_verdict(&self) -> Option<Verdict> {
        self.0.lock().take()
    }

    /// Handles one report of OpenSSL. Returns whether it continues.
    fn on_report(
        &self,
        is_ok: bool,
        context: &mut X509StoreContextRef,
        verify: &impl Fn(&[CertificateDer<'static>]) -> Verdict,
    ) -> bool {
        let mut verdict = self.0.lock();
        if verdict.is_none() && context.error().as_raw() == EE_KEY_TOO_SMALL {
            // Clear the error: otherwise OpenSSL reports it again in place of the next one.
            context.set_error(X509VerifyResult::OK);
            return true;
        }
        let verdict = verdict.get_or_insert_with(|| {
            let verdict = verify(&chain(context));
            let disallowed = if must_continue(&verdict) { disallowed_key(context) } else { None };
            match disallowed {
                None => verdict,
                Some(refusal) => {
                    Err(RefusedCertificate { refusal, claim: verdict.err().and_then(|refused| refused.claim) })
                }
            }
        });
        let Err(refused) = &*verdict else {
            context.set_error(X509VerifyResult::OK);
            return true;
        };
        if !is_ok && openssl_errors(&refused.refusal).contains(&context.error().as_raw()) {
            return false;
        }
        let is_last = is_ok && context.error_depth() == 0;
        if must_continue(verdict) && !is_last {
            return true;
        }
        context.set_error(X509VerifyResult::APPLICATION_VERIFICATION);
        false
    }
}

/// The chain that OpenSSL built, the device certificate first; empty if a certificate cannot be encoded.
fn chain(context: &X509StoreContextRef) -> Vec<CertificateDer<'static>> {
    let certificates = context.chain().into_iter().flatten();
    certificates.map(|certificate| certificate.to_der().map(Into::into)).collect::<Result<_, _>>().unwrap_or_default()
}

/// Why OpenSSL must not verify signatures in this chain: a CA key is too costly or of an unsupported kind. The chain
/// may hold any keys outside the verified path, and any keys at all if the certificate is pinned.
fn disallowed_key(context: &X509StoreContextRef) -> Option<ChainRefusal> {
    let cas = context.chain().into_iter().flatten().enumerate().skip(1);
    cas.map(|(place, ca)| (place, ca.public_key())).find(|(_, key)| !key.as_ref().is_ok_and(is_allowed_key)).map(
        |(place, key)| {
            let bits = key.map_or(0, |key| key.bits());
            ChainRefusal::Other(format!("CA {place} has a key of {bits} bits, whose kind or size is not supported"))
        },
    )
}

fn is_allowed_key(key: &PKey<Public>) -> bool {
    match key.id() {
        Id::RSA => key.bits() <= RSA_BITS.0 && key.rsa().is_ok_and(|rsa| rsa.e().num_bits() <= RSA_BITS.1),
        Id::EC => key.ec_key().is_ok_and(|key| {
            matches!(key.group().curve_name(), Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1 | Nid::SECP521R1))
        }),
        id => id == Id::ED25519,
    }
}

/// Whether OpenSSL must go on to check signatures and dates: to finish the handshake, or to reach the error for our
/// alert.
fn must_continue(verdict: &Verdict) -> bool {
    match verdict {
        Ok(_) => true,
        Err(refused) => [CERTIFICATE_EXPIRED, DECRYPT_ERROR].contains(&openssl_errors(&refused.refusal)),
    }
}

/// The OpenSSL errors whose alert is the one that rustls would send. If none fits, OpenSSL sends its alert for an
/// application's rejection.
fn openssl_errors(refusal: &ChainRefusal) -> &'static [i32] {
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
