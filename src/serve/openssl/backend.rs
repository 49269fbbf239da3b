//! A handshake by OpenSSL, and the stream that it leaves.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwap;
use openssl::error::ErrorStack;
use openssl::ssl::{self, ErrorCode, Ssl, SslContext};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CipherSuite, ProtocolVersion};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;

use super::context::ContextConfig;
use super::prefixed_stream::PrefixedStream;
use super::verify_callback::VerifyCallback;
use super::{LegacyAccept, LegacyTlsFailure, SUITES};
use crate::certificate::ServerCertificate;
use crate::constituency::TlsLevel;
use crate::identity::trust::{DeviceFinding, DeviceVerifier};

/// OpenSSL's reason for a handshake without client certificate, and from where on a reason is an alert of the peer
/// (`sslerr.h`: `SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE`, `SSL_AD_REASON_OFFSET`).
const NO_CERTIFICATE: i32 = 199;
const ALERTS: i32 = 1000;

/// How much is read ahead of whoever only asks whether there is something to read, in bytes.
const AHEAD: usize = 1024;

/// For how many certificates a context is kept ready: a constituency shows its own and the wildcard's, each before and
/// after a renewal.
const CERTIFICATES: usize = 4;

/// The old lane of one constituency under one TLS part of its policy.
#[derive(Debug)]
pub struct LegacyTls {
    recipe: ContextConfig,
    requires_device: bool,
    /// For the certificates that were presented, the newest first.
    ready: ArcSwap<Vec<ReadyContext>>,
}

#[derive(Debug, Clone)]
struct ReadyContext {
    certificate: Arc<CertifiedKey>,
    context: SslContext,
}

/// A connection of the old lane.
#[derive(Debug)]
pub struct LegacyStream<S> {
    inner: SslStream<PrefixedStream<S>>,
    /// What was read for [`AsyncBufRead`], and how much of it was taken.
    ahead: Vec<u8>,
    taken: usize,
}

impl LegacyTls {
    /// The lane that `level` opens, if it opens one, where devices are judged by `verifier`.
    #[must_use]
    pub fn new(level: TlsLevel, verifier: Option<&DeviceVerifier>) -> Option<Self> {
        let authorities = verifier.map(DeviceVerifier::anchors).unwrap_or_default();
        let mut id = [0; 16];
        // Without randomness nothing is safe; no session is made that this could tell from another.
        openssl::rand::rand_bytes(&mut id).ok()?;
        (level > TlsLevel::Modern).then(|| Self {
            recipe: ContextConfig {
                level,
                authorities: authorities.iter().map(|ca| ca.certificate.clone()).collect(),
                id,
            },
            requires_device: verifier.is_some(),
            ready: ArcSwap::default(),
        })
    }

    /// Runs the handshake on `stream`, from which `read` was read already, presenting `certificate`. A device
    /// certificate is judged by `judge`, if one is required.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        read: Vec<u8>,
        certificate: &ServerCertificate,
        judge: impl Fn(&[CertificateDer<'static>]) -> DeviceFinding + Send + Sync + 'static,
    ) -> LegacyAccept<S> {
        let trial = VerifyCallback::default();
        let started = self.context(certificate).and_then(|context| {
            let mut ssl = Ssl::new(&context)?;
            if self.requires_device {
                trial.hold(&mut ssl, judge);
            }
            SslStream::new(ssl, PrefixedStream::new(stream, read))
        });
        let mut inner = match started {
            Ok(inner) => inner,
            Err(error) => return (Err((LegacyTlsFailure::Unable(error.to_string()), None)), None),
        };
        let accepted = Pin::new(&mut inner).accept().await;
        let stream = LegacyStream { inner, ahead: Vec::new(), taken: 0 };
        let result = match accepted {
            Ok(()) => Ok(stream),
            Err(error) => Err((error.into(), Some(stream))),
        };
        (result, trial.finding())
    }

    /// The context for `certificate`, made when it is presented for the first time.
    fn context(&self, certificate: &ServerCertificate) -> Result<SslContext, ErrorStack> {
        let certified = certificate.certified();
        let ready = self.ready.load();
        if let Some(ready) = ready.iter().find(|ready| Arc::ptr_eq(&ready.certificate, certified)) {
            return Ok(ready.context.clone());
        }
        let context = self.recipe.build(certificate)?;
        let new = ReadyContext { certificate: Arc::clone(certified), context: context.clone() };
        let kept = ready.iter().take(CERTIFICATES - 1).cloned();
        self.ready.store(Arc::new(std::iter::once(new).chain(kept).collect()));
        Ok(context)
    }
}

impl From<ssl::Error> for LegacyTlsFailure {
    fn from(error: ssl::Error) -> Self {
        let reason = error.ssl_error().and_then(|stack| stack.errors().first());
        match (error.code(), reason) {
            (_, Some(reason)) if reason.reason_code() == NO_CERTIFICATE => Self::NoCertificate,
            (_, Some(reason)) if (ALERTS..ALERTS + 256).contains(&reason.reason_code()) => {
                let alert = u8::try_from(reason.reason_code() - ALERTS).unwrap_or(u8::MAX);
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
    /// Version and suite.
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
        let this = self.get_mut();
        let ahead = this.ahead.get(this.taken..).unwrap_or_default();
        if ahead.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let given = ahead.get(..buffer.remaining()).unwrap_or(ahead);
        buffer.put_slice(given);
        let given = given.len();
        Pin::new(this).consume(given);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncBufRead for LegacyStream<S> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.taken == this.ahead.len() {
            // On the stack, because whoever is at rest is to keep nothing.
            let mut bytes = [0; AHEAD];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer))?;
            this.ahead = buffer.filled().to_vec();
            this.taken = 0;
        }
        Poll::Ready(Ok(this.ahead.get(this.taken..).unwrap_or_default()))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.taken = this.ahead.len().min(this.taken.saturating_add(amount));
        if this.taken == this.ahead.len() {
            this.ahead = Vec::new();
            this.taken = 0;
        }
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
            // The close_notify is out, or there is none, since there was only an alert. Asked once more, OpenSSL would wait
            // for the peer's, and fail at what it still says.
            inner.get_pin_mut().poll_shutdown(cx)
        } else {
            inner.poll_shutdown(cx)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::hello::tests::lanes::certificate;

    #[test]
    fn certificates_that_are_shown_in_turn_are_made_ready_once() {
        let lane = LegacyTls::new(TlsLevel::Legacy, None).unwrap();
        let certificates = [(); CERTIFICATES].map(|()| certificate(&rcgen::PKCS_RSA_SHA256));
        let ready = || lane.ready.load_full();
        for certificate in &certificates {
            lane.context(certificate).unwrap();
        }
        let before = ready();
        assert_eq!(before.len(), CERTIFICATES);
        for certificate in certificates.iter().rev().chain(&certificates) {
            lane.context(certificate).unwrap();
        }
        assert!(Arc::ptr_eq(&before, &ready()), "nothing was made anew");
        // One more takes the place of the oldest.
        lane.context(&certificate(&rcgen::PKCS_RSA_SHA256)).unwrap();
        let kept: Vec<_> = ready().iter().map(|ready| Arc::clone(&ready.certificate)).collect();
        assert_eq!(kept.len(), CERTIFICATES);
        assert!(!kept.iter().any(|kept| Arc::ptr_eq(kept, certificates[0].certified())));
        assert!(kept.iter().any(|kept| Arc::ptr_eq(kept, certificates[1].certified())));
    }
}
