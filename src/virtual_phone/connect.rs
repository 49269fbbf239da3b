//! From a server's name to a TLS connection: addresses, TCP, handshake, and why it failed.

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

/// How long one address, and then the handshake with it, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A phone tries no more addresses of one name than this.
const MAX_ADDRESSES: usize = 8;

/// How the answer of a TLS server begins that was asked in the clear: an alert (RFC 8446 §5.1).
const TLS_ALERT: [u8; 2] = [21, 3];

/// A server was asked in the clear, and answered in TLS.
#[derive(Debug, thiserror::Error)]
#[error("TLS is spoken there; use https://")]
pub(super) struct SpeaksTls;

/// What the factory put into a phone: its certificate, leaf first, and the key that fits it.
pub struct DeviceCertificate {
    /// The device's certificate, and whatever intermediates it sends along.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate.
    pub key: PrivateKeyDer<'static>,
}

/// What a handshake agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTlsFacts {
    /// For example `TLSv1_3`.
    pub version: String,
    /// For example `TLS13_AES_128_GCM_SHA256`.
    pub suite: String,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// DNS had no answer.
    #[error("the name {host} cannot be resolved: {source}")]
    Unresolvable {
        /// The name asked for.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// DNS answered with nothing.
    #[error("the name {0} has no address")]
    NoAddress(String),
    /// Nothing listens there, or no way leads there.
    #[error("{address} cannot be reached: {source}")]
    Unreachable {
        /// The last address tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Silence.
    #[error("{address} did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut {
        /// The last address tried.
        address: SocketAddr,
    },
    /// A host that no certificate could name.
    #[error("{0:?} is no host name")]
    NotAHost(String),
    /// The handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsFailure),
}

/// Why TLS failed, said from the phone's side.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    /// The server refused, and said how.
    #[error("the server refused with the TLS alert {}: {}", alert_name(*.0), alert::meaning(*.0))]
    Alert(rustls::AlertDescription),
    /// This phone refused.
    #[error("the server's certificate is not trusted: {}", alert::distrust(.0))]
    NotTrusted(rustls::CertificateError),
    /// What answered is no TLS record.
    #[error("the server does not speak TLS there; if it is a port for plain HTTP, use http://")]
    NotTls,
    /// Anything else that the TLS library objects to.
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

/// The TLS side of one phone: whom it trusts, and what it proves itself with.
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

/// An open connection, in the clear or not.
pub(super) enum Transport {
    /// And whether anything was read from it yet.
    Plain(TcpStream, bool),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects to `origin`, at `resolve` if that is given, else wherever its name leads.
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

/// The first address that answers; if none does, why the last one did not.
async fn connect_any(addresses: Vec<SocketAddr>, origin: &UrlOrigin) -> Result<(SocketAddr, TcpStream), ConnectError> {
    let mut last = ConnectError::NoAddress(origin.bare_host().to_owned());
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                // Without it the small requests of a boot wait for acknowledgements; a socket without it still works.
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

    /// In TLS 1.3 the server judges the device certificate after this side's handshake is over, so that the first
    /// sign of a refusal may be a write that fails; the alert that says why then waits to be read.
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
                Poll::Ready(if is_alert { Err(io::Error::other(SpeaksTls)) } else { Ok(()) })
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
