//! Connects [`DeviceVerifier`] to rustls, and passes its verdict from the handshake to the code that logs it.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::claim::ClaimedIdentity;
use super::refusal::ChainRefusal;
use super::verifier::{DeviceVerifier, VerifiedDevice};
use crate::constituency::{Pins, Policy};

/// The verified device, or why the chain was refused.
pub type Verdict = Result<VerifiedDevice, ChainRefusal>;

/// The result of verification in one handshake.
#[derive(Debug)]
pub struct DeviceFinding {
    pub verdict: Verdict,
    /// The identity that a refused certificate claims.
    pub claim: Option<ClaimedIdentity>,
}

/// The context of one handshake, as a task-local.
struct FindingSlot {
    /// The current policy.
    policy: Arc<Policy>,
    /// rustls passes an error on only as an alert. This slot passes the whole finding to the task of the handshake.
    finding: RefCell<Option<DeviceFinding>>,
}

tokio::task_local! {
    static HANDSHAKE: FindingSlot;
}

/// Runs a `handshake` under `policy`. Gives its output, and the finding of [`RequireDevice`] if it was called.
pub async fn with_finding<F: Future>(policy: Arc<Policy>, handshake: F) -> (F::Output, Option<DeviceFinding>) {
    HANDSHAKE
        .scope(FindingSlot { policy, finding: RefCell::new(None) }, async {
            let output = handshake.await;
            (output, HANDSHAKE.with(|handshake| handshake.finding.take()))
        })
        .await
}

impl DeviceVerifier {
    /// Verifies `chain` with [`verify`](Self::verify). If it is refused, adds the identity that it claims.
    #[must_use]
    pub fn examine(&self, chain: &[CertificateDer<'_>], pins: &Pins, now: UnixTime) -> DeviceFinding {
        let verdict = self.verify(chain, pins, now);
        let claim = if verdict.is_err() { chain.first().and_then(ClaimedIdentity::of) } else { None };
        DeviceFinding { verdict, claim }
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
        // Outside of `with_finding`, there are no pins and no receiver of the finding.
        let within = |handshake: &FindingSlot| self.verifier.examine(&chain, &handshake.policy.pins, now);
        let finding = HANDSHAKE.try_with(within).unwrap_or_else(|_| self.verifier.examine(&chain, &Pins::new(), now));
        let answer = finding.verdict.as_ref().map(|_| ClientCertVerified::assertion()).map_err(Error::from);
        let _ = HANDSHAKE.try_with(|handshake| handshake.finding.replace(Some(finding)));
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
