//! Our judgement of a device certificate in the place of OpenSSL's.
//!
//! OpenSSL strings a chain together from what the phone sent, trusts nothing, complains of everything that it does not
//! like, and asks us about each complaint. We remember the complaints and let it go on; when it has come to the device's
//! own certificate we judge the whole chain as in the other lane, and nothing that it says counts any more. The
//! complaints serve for the alert alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openssl::ssl::{SslRef, SslVerifyMode};
use openssl::x509::{X509StoreContextRef, X509VerifyResult};
use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;

use crate::trust::{ChainRefusal, Finding};

/// How many complaints are remembered.
const COMPLAINTS: usize = 32;

/// Reasons of OpenSSL, by the alert that it sends for them (`x509_vfy.h`, RFC 5246 §7.2.2).
const UNKNOWN_CA: &[i32] = &[2, 18, 19, 20, 21];
const CERTIFICATE_EXPIRED: &[i32] = &[10];
const DECRYPT_ERROR: &[i32] = &[7];

/// The trial of one handshake's certificate.
#[derive(Clone, Default)]
pub(super) struct Trial(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    complaints: Vec<X509VerifyResult>,
    finding: Option<Finding>,
}

impl Trial {
    /// Has every certificate of `ssl`'s peer judged by `judge`, and demands one.
    pub(super) fn hold(
        &self,
        ssl: &mut SslRef,
        judge: impl Fn(&[CertificateDer<'static>]) -> Finding + Send + Sync + 'static,
    ) {
        let trial = self.clone();
        ssl.set_verify_callback(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT, move |is_fine, context| {
            trial.hear(is_fine, context, &judge)
        });
    }

    /// What was found, if a certificate was presented.
    pub(super) fn finding(&self) -> Option<Finding> {
        self.state().finding.take()
    }

    /// Whether OpenSSL is to go on.
    fn hear(
        &self,
        is_fine: bool,
        context: &mut X509StoreContextRef,
        judge: &impl Fn(&[CertificateDer<'static>]) -> Finding,
    ) -> bool {
        let mut state = self.state();
        if let Some(finding) = &state.finding {
            return finding.verdict.is_ok();
        }
        if !is_fine && state.complaints.len() < COMPLAINTS {
            state.complaints.push(context.error());
        }
        if !is_fine || context.error_depth() > 0 {
            return true;
        }
        let finding = judge(&chain(context));
        context.set_error(match &finding.verdict {
            Ok(_) => X509VerifyResult::OK,
            Err(refusal) => reason(refusal, &state.complaints),
        });
        let is_good = finding.verdict.is_ok();
        state.finding = Some(finding);
        is_good
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The certificates that OpenSSL strung together, the device's own first; none at all if one cannot be had.
fn chain(context: &X509StoreContextRef) -> Vec<CertificateDer<'static>> {
    let certificates = context.chain().into_iter().flatten();
    certificates.map(|certificate| certificate.to_der().map(Into::into)).collect::<Result<_, _>>().unwrap_or_default()
}

/// The complaint for which OpenSSL sends the alert that rustls would send; else what it sends for an application's no.
fn reason(refusal: &ChainRefusal, complaints: &[X509VerifyResult]) -> X509VerifyResult {
    let alert = match rustls::Error::from(refusal) {
        rustls::Error::InvalidCertificate(error) => AlertDescription::from(error),
        _ => AlertDescription::HandshakeFailure,
    };
    let reasons = match alert {
        AlertDescription::UnknownCA => UNKNOWN_CA,
        AlertDescription::CertificateExpired => CERTIFICATE_EXPIRED,
        AlertDescription::DecryptError => DECRYPT_ERROR,
        _ => &[],
    };
    let fitting = complaints.iter().find(|complaint| reasons.contains(&complaint.as_raw()));
    fitting.copied().unwrap_or(X509VerifyResult::APPLICATION_VERIFICATION)
}
