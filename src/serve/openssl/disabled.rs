//! Replaces the OpenSSL backend in a build without OpenSSL. The types have no values.

use std::convert::Infallible;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::LegacyHandshake;
use crate::certificate::ServerCertificate;
use crate::constituency::TlsLevel;
use crate::identity::trust::{DeviceVerifier, Verdict};

#[derive(Debug)]
pub struct LegacyTls(Infallible);

#[derive(Debug)]
pub struct LegacyStream<S>(Infallible, PhantomData<S>);

impl LegacyTls {
    /// Always `None`.
    #[must_use]
    pub fn new(_: TlsLevel, _: Option<&DeviceVerifier>) -> Option<Self> {
        None
    }

    /// Never called.
    #[expect(clippy::unused_async, reason = "the other one waits")]
    pub async fn accept<S>(
        &self,
        _: S,
        _: Vec<u8>,
        _: &ServerCertificate,
        _: impl Fn(&[CertificateDer<'static>]) -> Verdict + Send + Sync + 'static,
    ) -> LegacyHandshake<S> {
        match self.0 {}
    }
}

impl<S> LegacyStream<S> {
    #[must_use]
    pub fn agreed(&self) -> Option<(ProtocolVersion, CipherSuite)> {
        match self.0 {}
    }
}

impl<S: Unpin> AsyncRead for LegacyStream<S> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().0 {}
    }
}

impl<S: Unpin> AsyncWrite for LegacyStream<S> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut().0 {}
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().0 {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().0 {}
    }
}
