//! [`DeviceVerifier`] as rustls asks for it, and the verdict carried out of the handshake to whoever logs it.

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

/// The device that was proven, or why none was.
pub type Verdict = Result<VerifiedDevice, ChainRefusal>;

/// What the verifier found in one handshake.
#[derive(Debug)]
pub struct DeviceFinding {
    /// Its verdict.
    pub verdict: Verdict,
    /// Who a certificate that does not count says it is.
    pub claim: Option<ClaimedIdentity>,
}

/// One handshake, as its verifier sees it.
struct FindingSlot {
    /// The policy that is in force.
    policy: Arc<Policy>,
    /// rustls hands an error on only as an alert; the whole finding waits here for the handshake's own task.
    finding: RefCell<Option<DeviceFinding>>,
}

tokio::task_local! {
    static HANDSHAKE: FindingSlot;
}

/// Runs a `handshake` under `policy` and gives, beside its output, what a [`RequireDevice`] found in it, if one was asked.
pub async fn with_finding<F: Future>(policy: Arc<Policy>, handshake: F) -> (F::Output, Option<DeviceFinding>) {
    HANDSHAKE
        .scope(FindingSlot { policy, finding: RefCell::new(None) }, async {
            let output = handshake.await;
            (output, HANDSHAKE.with(|handshake| handshake.finding.take()))
        })
        .await
}

impl DeviceVerifier {
    /// Judges `chain` as [`judge`](Self::judge) does, and says of one that does not count who it claims to be.
    #[must_use]
    pub fn examine(&self, chain: &[CertificateDer<'_>], pins: &Pins, now: UnixTime) -> DeviceFinding {
        let verdict = self.judge(chain, pins, now);
        let claim = if verdict.is_err() { chain.first().and_then(ClaimedIdentity::of) } else { None };
        DeviceFinding { verdict, claim }
    }
}

/// Requires a device certificate that its [`DeviceVerifier`] accepts.
#[derive(Debug)]
pub struct RequireDevice {
    verifier: Arc<DeviceVerifier>,
    hints: Vec<DistinguishedName>,
}

impl RequireDevice {
    /// Asks for certificates below the verifier's anchors.
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
        // Outside of a handshake of ours nothing is pinned, and nobody waits for what is found.
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
