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

/// What the verifier found in one handshake.
#[derive(Debug)]
pub struct Verdict {
    /// The device that was proven, or why none was.
    pub device: Result<VerifiedDevice, ChainRefusal>,
    /// Who a certificate that does not count says it is.
    pub claim: Option<Claim>,
}

tokio::task_local! {
    /// rustls hands an error on only as an alert; the whole verdict waits here for the handshake's own task.
    static VERDICT: RefCell<Option<Verdict>>;
}

/// Runs a `handshake` and gives, beside its output, the verdict that a [`RequireDevice`] reached in it, if one did.
pub async fn with_verdict<F: Future>(handshake: F) -> (F::Output, Option<Verdict>) {
    VERDICT
        .scope(RefCell::new(None), async {
            let output = handshake.await;
            (output, VERDICT.with(RefCell::take))
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
        let device = self.verifier.judge(&chain, now);
        let answer = device.as_ref().map(|_| ClientCertVerified::assertion()).map_err(Error::from);
        let claim = if device.is_err() { Claim::of(end_entity) } else { None };
        // Outside of a handshake of ours nobody waits for the verdict.
        let _ = VERDICT.try_with(|slot| slot.replace(Some(Verdict { device, claim })));
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
