//! Connects [`DeviceVerifier`] to rustls, and passes its verdict from the handshake to the code that logs it.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::refusal::{ClaimedIdentity, RefusedCertificate};
use super::verifier::{DeviceVerifier, VerifiedDevice};
use crate::constituency::{Pins, Policy};

/// The verified device, or why its certificate was refused.
pub type Verdict = Result<VerifiedDevice, RefusedCertificate>;

/// The context of one handshake, as a task-local.
struct VerdictSlot {
    /// The current policy.
    policy: Arc<Policy>,
    /// rustls passes an error on only as an alert. This slot passes the verdict to the task of the handshake.
    verdict: RefCell<Option<Verdict>>,
}

tokio::task_local! {
    static HANDSHAKE: VerdictSlot;
}

/// Runs a `handshake` under `policy`. Gives its output, and the verdict of [`RequireDevice`] if it was called.
pub async fn with_verdict<F: Future>(policy: Arc<Policy>, handshake: F) -> (F::Output, Option<Verdict>) {
    HANDSHAKE
        .scope(VerdictSlot { policy, verdict: RefCell::new(None) }, async {
            let output = handshake.await;
            (output, HANDSHAKE.with(|handshake| handshake.verdict.take()))
        })
        .await
}

impl DeviceVerifier {
    /// Verifies `chain` with [`verify`](Self::verify). If it is refused, adds the identity that it claims.
    ///
    /// # Errors
    /// The refusal and the claim.
    pub fn examine(&self, chain: &[CertificateDer<'_>], pins: &Pins, now: UnixTime) -> Verdict {
        self.verify(chain, pins, now).map_err(|refusal| {
            let claim = chain.first().and_then(ClaimedIdentity::of);
            RefusedCertificate { refusal, claim }
        })
    }
}

/// A rustls verifier that requires a device certificate which its [`DeviceVerifier`] accepts.
#[derive(Debug)]
pub struct RequireDevice {
    verifier: Arc<DeviceVerifier>,
    hints: Vec<DistinguishedName>,
}

impl RequireDevice {
    /// Requests certificates below the verifier's anchors.
    #[must_use]
    pub fn new(verifier: Arc<DeviceVerifier>) -> Self {
        let hints =
            verifier.anchors().iter().map(|fact| DistinguishedName::in_sequence(&fact.anchor.subject)).collect();
        Self { verifier, hints }
    }
}

impl ClientCertVerifier for RequireDevice {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(intermediates).map(|der| CertificateDer::from(der.as_ref())).collect();
        // Outside of `with_verdict`, there are no pins and no receiver of the verdict.
        let within = |handshake: &VerdictSlot| self.verifier.examine(&chain, &handshake.policy.pins, now);
        let verdict = HANDSHAKE.try_with(within).unwrap_or_else(|_| self.verifier.examine(&chain, &Pins::new(), now));
        let answer = verdict.as_ref().map(|_| ClientCertVerified::assertion());
        let answer = answer.map_err(|refused| Error::from(&refused.refusal));
        let _ = HANDSHAKE.try_with(|handshake| handshake.verdict.replace(Some(verdict)));
        answer
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, self.verifier.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, self.verifier.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.algorithms().supported_schemes()
    }
}
