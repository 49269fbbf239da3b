//! The handshake with OpenSSL, and the resulting stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use openssl::error::ErrorStack;
use openssl::ssl::{self, ErrorCode, Ssl, SslContext};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CipherSuite, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;

use super::context::ContextConfig;
use super::prefixed_stream::PrefixedStream;
use super::verify_callback::VerifyCallback;
use super::{FailedLegacyHandshake, LegacyHandshake, LegacyTlsFailure, SUITES};
use crate::certificate::ServerCertificate;
use crate::constituency::TlsLevel;
use crate::identity::trust::{DeviceVerifier, Verdict};

/// OpenSSL's reason code for a missing client certificate, and the offset of the codes for alerts from the peer
/// (`sslerr.h`: `SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE`, `SSL_AD_REASON_OFFSET`).
const NO_CERTIFICATE: i32 = 199;
const ALERT_OFFSET: i32 = 1000;

/// How many contexts are cached, one per certificate: a constituency presents its own and the wildcard, each before and
/// after a renewal.
const MAX_CONTEXTS: usize = 4;

/// The OpenSSL backend of one constituency, for one TLS part of its policy.
#[derive(Debug)]
pub struct LegacyTls {
    config: ContextConfig,
    requires_device: bool,
    /// Contexts for the certificates presented so far, newest first.
    ready: ArcSwap<Vec<ReadyContext>>,
}

#[derive(Debug, Clone)]
struct ReadyContext {
    certificate: Arc<CertifiedKey>,
    context: SslContext,
}

/// A connection served by OpenSSL.
#[derive(Debug)]
pub struct LegacyStream<S> {
    inner: SslStream<PrefixedStream<S>>,
}

impl LegacyTls {
    /// The backend for `level`, which asks for device certificates of the CAs of `verifier`; `None` at the level
    /// `modern`, or without randomness.
    #[must_use]
    pub fn new(level: TlsLevel, verifier: Option<&DeviceVerifier>) -> Option<Self> {
        let authorities = verifier.map(DeviceVerifier::anchors).unwrap_or_default();
        let mut id = [0; 16];
        // Fail without randomness: nothing is safe without it, and the ID keeps this context's sessions apart from
        // others'.
        openssl::rand::rand_bytes(&mut id).ok()?;
        (level > TlsLevel::Modern).then(|| Self {
            config: ContextConfig {
                level,
                authorities: authorities.iter().map(|ca| ca.certificate.clone()).collect(),
                id,
            },
            requires_device: verifier.is_some(),
            ready: ArcSwap::default(),
        })
    }

    /// Runs the handshake on `stream`, of which `read` is already consumed, and presents `certificate`. Calls `verify`
    /// for the device certificate, if one is required.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        read: Vec<u8>,
        certificate: &ServerCertificate,
        verify: impl Fn(&[CertificateDer<'static>]) -> Verdict + Send + Sync + 'static,
    ) -> LegacyHandshake<S> {
        let callback = VerifyCallback::default();
        let started = self.context(certificate).and_then(|context| {
            let mut ssl = Ssl::new(&context)?;
            if self.requires_device {
                callback.install(&mut ssl, verify);
            }
            SslStream::new(ssl, PrefixedStream::new(stream, read))
        });
        let mut inner = match started {
            Ok(inner) => inner,
            Err(error) => {
                let failure = LegacyTlsFailure::Unable(error.to_string());
                return LegacyHandshake { result: Err(FailedLegacyHandshake { failure, stream: None }), verdict: None };
            }
        };
        let accepted = Pin::new(&mut inner).accept().await;
        let stream = LegacyStream { inner };
        let result = match accepted {
            Ok(()) => Ok(stream),
            Err(error) => Err(FailedLegacyHandshake { failure: error.into(), stream: Some(stream) }),
        };
        LegacyHandshake { result, verdict: callback.take_verdict() }
    }

    /// The context for `certificate`, built when it is first presented.
    fn context(&self, certificate: &ServerCertificate) -> Result<SslContext, ErrorStack> {
        let certified = certificate.certified();
        let ready = self.ready.load();
        if let Some(ready) = ready.iter().find(|ready| Arc::ptr_eq(&ready.certificate, certified)) {
            return Ok(ready.context.clone());
        }
        let context = self.config.build(certificate)?;
        let new = ReadyContext { certificate: Arc::clone(certified), context: context.clone() };
        let kept = ready.iter().take(MAX_CONTEXTS - 1).cloned();
        self.ready.store(Arc::new(std::iter::once(new).chain(kept).collect()));
        Ok(context)
    }
}

impl From<ssl::Error> for LegacyTlsFailure {
    fn from(error: ssl::Error) -> Self {
        let reason = error.ssl_error().and_then(|stack| stack.errors().first());
        match (error.code(), reason) {
            (_, Some(reason)) if reason.reason_code() == NO_CERTIFICATE => Self::NoCertificate,
            (_, Some(reason)) if (ALERT_OFFSET..ALERT_OFFSET + 256).contains(&reason.reason_code()) => {
                let alert = u8::try_from(reason.reason_code() - ALERT_OFFSET).unwrap_or(u8::MAX);
                Self::Alert(AlertDescription::from(alert))
            }
            (_, Some(reason)) => match reason.reason() {
                Some("unexpected eof while reading") => Self::Closed,
                Some(text) => Self::Other(text.to_owned()),
                None => Self::Other(reason.to_string()),
            },
            (ErrorCode::SYSCALL | ErrorCode::ZERO_RETURN, None) => match error.io_error() {
                Some(error) => Self::Broken(error.to_string()),
                None => Self::Closed,
            },
            (_, None) => Self::Other(error.to_string()),
        }
    }
}

impl<S> LegacyStream<S> {
    /// The negotiated version and cipher suite.
    #[must_use]
    pub fn agreed(&self) -> Option<(ProtocolVersion, CipherSuite)> {
        let ssl = self.inner.ssl();
        let version = match ssl.version_str() {
            "TLSv1" => ProtocolVersion::TLSv1_0,
            "TLSv1.1" => ProtocolVersion::TLSv1_1,
            "TLSv1.2" => ProtocolVersion::TLSv1_2,
            _ => return None,
        };
        let name = ssl.current_cipher()?.name();
        SUITES.iter().find(|(_, openssl)| *openssl == name).map(|(suite, _)| (version, *suite))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for LegacyStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LegacyStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = Pin::new(&mut self.get_mut().inner);
        if SslStream::get_ref(&inner).is_shutting_down() || !inner.ssl().is_init_finished() {
            // Our close_notify is sent, or there is none because the handshake failed. Another shutdown would make
            // OpenSSL wait for the peer's close_notify, and fail on data that the peer still sends.
            inner.get_pin_mut().poll_shutdown(cx)
        } else {
            inner.poll_shutdown(cx)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::hello::tests::backends::certificate;

    #[test]
    fn alternating_certificates_build_each_context_once() {
        let backend = LegacyTls::new(TlsLevel::Legacy, None).unwrap();
        let certificates = [(); MAX_CONTEXTS].map(|()| certificate(&rcgen::PKCS_RSA_SHA256));
        let ready = || backend.ready.load_full();
        for certificate in &certificates {
            backend.context(certificate).unwrap();
        }
        let before = ready();
        assert_eq!(before.len(), MAX_CONTEXTS);
        for certificate in certificates.iter().rev().chain(&certificates) {
            backend.context(certificate).unwrap();
        }
        assert!(Arc::ptr_eq(&before, &ready()), "nothing was made anew");
        // One more evicts the oldest.
        backend.context(&certificate(&rcgen::PKCS_RSA_SHA256)).unwrap();
        let kept: Vec<_> = ready().iter().map(|ready| Arc::clone(&ready.certificate)).collect();
        assert_eq!(kept.len(), MAX_CONTEXTS);
        assert!(!kept.iter().any(|kept| Arc::ptr_eq(kept, certificates[0].certified())));
        assert!(kept.iter().any(|kept| Arc::ptr_eq(kept, certificates[1].certified())));
    }
}
