//! [`DeviceVerifier`] as rustls asks for it, and the verdict carried out of the handshake to whoever logs it.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::claim::Claim;
use super::refusal::ChainRefusal;
use super::verifier::{DeviceVerifier, VerifiedDevice};

/// The device that was proven, or why none was.
pub type Verdict = Result<VerifiedDevice, ChainRefusal>;

/// What the verifier found in one handshake.
#[derive(Debug)]
pub struct Finding {
    /// Its verdict.
    pub verdict: Verdict,
    /// Who a certificate that does not count says it is.
    pub claim: Option<Claim>,
}

impl Finding {
    /// What `verifier` finds of `chain` as of `now`.
    #[must_use]
    pub fn of(verifier: &DeviceVerifier, chain: &[CertificateDer<'_>], now: UnixTime) -> Self {
        let verdict = verifier.judge(chain, now);
        let claim = if verdict.is_err() { chain.first().and_then(Claim::of) } else { None };
        Self { verdict, claim }
    }
}

tokio::task_local! {
    /// rustls hands an error on only as an alert; the whole finding waits here for the handshake's own task.
    static FINDING: RefCell<Option<Finding>>;
}

/// Runs a `handshake` and gives, beside its output, what a [`RequireDevice`] found in it, if one was asked.
pub async fn with_finding<F: Future>(handshake: F) -> (F::Output, Option<Finding>) {
    FINDING
        .scope(RefCell::new(None), async {
            let output = handshake.await;
            (output, FINDING.with(RefCell::take))
        })
        .await
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
        let finding = Finding::of(&self.verifier, &chain, now);
        let answer = finding.verdict.as_ref().map(|_| ClientCertVerified::assertion()).map_err(Error::from);
        // Outside of a handshake of ours nobody waits for it.
        let _ = FINDING.try_with(|slot| slot.replace(Some(finding)));
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
