//! Opens a connection: name resolution, TCP, TLS handshake, and the reason for a failure.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::address::UrlOrigin;
use super::alert;

use crate::wording::{alert_name, find_tls_error, tls_error};

/// The timeout for connecting to one address, and then for the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most addresses of one name that a phone tries.
const MAX_ADDRESSES: usize = 8;

/// The first bytes of a TLS server's response to plain HTTP: an alert record (RFC 8446 §5.1).
const TLS_ALERT: [u8; 2] = [21, 3];

/// The server answered plain HTTP with TLS.
#[derive(Debug, thiserror::Error)]
#[error("the server expects TLS there; use https://")]
pub(super) struct UnexpectedTls;

/// A device certificate as the factory installed it, with its key.
pub struct DeviceCertificate {
    /// The device's certificate first, then the intermediates that it sends.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate.
    pub key: PrivateKeyDer<'static>,
}

/// The parameters that a handshake negotiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTlsFacts {
    /// For example `TLSv1_3`.
    pub version: String,
    /// For example `TLS13_AES_128_GCM_SHA256`.
    pub suite: String,
}

/// Why the connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name could not be resolved.
    #[error("the name {host} cannot be resolved: {source}")]
    Unresolvable {
        /// The name.
        host: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// The name resolved to no address.
    #[error("the name {0} has no address")]
    NoAddress(String),
    /// The connection was refused, or there is no route.
    #[error("{address} cannot be reached: {source}")]
    Unreachable {
        /// The last address tried.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The connection timed out.
    #[error("{address} did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut {
        /// The last address tried.
        address: SocketAddr,
    },
    /// The host cannot be the name in a certificate.
    #[error("invalid host name {0:?}")]
    NotAHost(String),
    /// The handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsFailure),
}

/// Why TLS failed, from the phone's point of view.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    /// The server refused with an alert.
    #[error("the server refused with the TLS alert {}: {}", alert_name(*.0), alert::describe_alert(*.0))]
    Alert(rustls::AlertDescription),
    /// The phone does not trust the server's certificate.
    #[error("the server's certificate is not trusted: {}", alert::describe_certificate_error(.0))]
    NotTrusted(rustls::CertificateError),
    /// The response is not a TLS record.
    #[error("the server does not speak TLS there; if it is a port for plain HTTP, use http://")]
    NotTls,
    /// Any other error of the TLS library.
    #[error("TLS failed: {}", tls_error(.0))]
    Protocol(rustls::Error),
    /// The connection broke during the handshake.
    #[error("the connection broke during the TLS handshake: {0}")]
    Broken(io::Error),
}

impl From<&rustls::Error> for TlsFailure {
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Alert(*alert),
            rustls::Error::InvalidCertificate(why) => Self::NotTrusted(why.clone()),
            rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Self::NotTls,
            other => Self::Protocol(other.clone()),
        }
    }
}

impl From<io::Error> for TlsFailure {
    fn from(error: io::Error) -> Self {
        match find_tls_error(&error) {
            Some(tls) => Self::from(tls),
            None => Self::Broken(error),
        }
    }
}

/// The TLS configuration of one phone: the roots that it trusts, and the certificate that it presents.
pub(super) fn tls_config(
    server_roots: Arc<RootCertStore>,
    certificate: Option<&DeviceCertificate>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(server_roots);
    let mut config = match certificate {
        Some(device) => builder.with_client_auth_cert(device.chain.clone(), device.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// An open connection, with or without TLS.
pub(super) enum Transport {
    /// The flag says whether anything was read yet.
    Plain(TcpStream, bool),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects to `origin`: to `resolve` if given, else to the addresses of its name.
pub(super) async fn connect(
    origin: &UrlOrigin,
    resolve: Option<SocketAddr>,
    tls: &Arc<ClientConfig>,
) -> Result<Transport, ConnectError> {
    let (address, tcp) = connect_any(addresses(origin, resolve).await?, origin).await?;
    if !origin.secure {
        return Ok(Transport::Plain(tcp, false));
    }
    let host = origin.bare_host();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::NotAHost(host.to_owned()))?;
    let handshake = timeout(CONNECT_TIMEOUT, TlsConnector::from(Arc::clone(tls)).connect(name, tcp)).await;
    let stream = handshake.map_err(|_| ConnectError::TimedOut { address })?.map_err(TlsFailure::from)?;
    Ok(Transport::Tls(Box::new(stream)))
}

async fn addresses(origin: &UrlOrigin, resolve: Option<SocketAddr>) -> Result<Vec<SocketAddr>, ConnectError> {
    let host = origin.bare_host();
    if let Some(address) = resolve {
        return Ok(vec![address]);
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, origin.port)]);
    }
    if origin.is_localhost() {
        return Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), origin.port)]);
    }
    let found = tokio::net::lookup_host((host, origin.port)).await;
    let found = found.map_err(|source| ConnectError::Unresolvable { host: host.to_owned(), source })?;
    Ok(found.take(MAX_ADDRESSES).collect())
}

/// Connects to the first address that accepts. If none does, returns the error of the last one.
async fn connect_any(addresses: Vec<SocketAddr>, origin: &UrlOrigin) -> Result<(SocketAddr, TcpStream), ConnectError> {
    let mut last = ConnectError::NoAddress(origin.bare_host().to_owned());
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                // Without this, the small requests of a boot wait for delayed acknowledgements (Nagle). If it fails,
                // the socket still works.
                let _ = tcp.set_nodelay(true);
                return Ok((address, tcp));
            }
            Ok(Err(source)) => last = ConnectError::Unreachable { address, source },
            Err(_) => last = ConnectError::TimedOut { address },
        }
    }
    Err(last)
}

impl Transport {
    pub(super) fn facts(&self) -> Option<ClientTlsFacts> {
        let Self::Tls(stream) = self else { return None };
        let session = stream.get_ref().1;
        Some(ClientTlsFacts {
            version: format!("{:?}", session.protocol_version()?),
            suite: format!("{:?}", session.negotiated_cipher_suite()?.suite()),
        })
    }

    /// In TLS 1.3 the server verifies the device certificate after the client has finished its handshake. So the first
    /// sign of a refusal can be a failed write, while the alert with the reason is still unread. This reads it.
    fn alert_behind(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        let mut scratch = [0; 1024];
        let read = Pin::new(self).poll_read(cx, &mut ReadBuf::new(&mut scratch));
        if let Poll::Ready(Err(unread)) = read
            && find_tls_error(&unread).is_some()
        {
            return unread;
        }
        error
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp, was_read) => {
                let before = buf.filled().len();
                ready!(Pin::new(tcp).poll_read(cx, buf))?;
                let is_first = !std::mem::replace(was_read, true);
                let is_alert = is_first && buf.filled()[before..].starts_with(&TLS_ALERT);
                Poll::Ready(if is_alert { Err(io::Error::other(UnexpectedTls)) } else { Ok(()) })
            }
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(match this {
            Self::Plain(tcp, _) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        });
        Poll::Ready(written.map_err(|error| this.alert_behind(cx, error)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(match this {
            Self::Plain(tcp, _) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        });
        Poll::Ready(flushed.map_err(|error| this.alert_behind(cx, error)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp, _) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl std::fmt::Debug for DeviceCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceCertificate").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}
