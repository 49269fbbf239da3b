//! Accepting operators' connections: so many and no more, each with its deadlines.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use super::access_guard::ClientLocation;
use super::{AdminServer, Endpoint, routes};

/// How many connections there may be.
const CONNECTIONS: usize = 128;
/// How many of them one address may have, or one IPv6 /64.
const CONNECTIONS_OF_ONE: usize = 32;
/// How many of them may wait for what is new.
const STREAMS: usize = 64;
/// How long a request's header may take, and the pause between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long somebody may take nothing of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest header, in bytes, and the most fields in it.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// How long to wait when no connection can be accepted.
const BACKOFF: Duration = Duration::from_millis(100);

/// The open listener.
#[derive(Debug)]
pub struct AdminListener {
    socket: AdminSocket,
    /// Where it listens: the port is there, too, if the system chose it.
    pub endpoint: Endpoint,
    /// Removed with it.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum AdminSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// The file of a Unix socket: ours while it is the one that we made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // It is in nobody's way for long.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl AdminListener {
    /// Listens on `endpoint`.
    ///
    /// # Errors
    /// If that cannot be.
    pub fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(address) => {
                let socket = std::net::TcpListener::bind(address)?;
                socket.set_nonblocking(true)?;
                let endpoint = Endpoint::Tcp(socket.local_addr()?);
                Ok(Self { socket: AdminSocket::Tcp(socket), endpoint, _file: None })
            }
            Endpoint::Unix(path) => {
                remove_stale(path)?;
                let socket = std::os::unix::net::UnixListener::bind(path)?;
                let file = SocketFile { path: path.clone(), inode: std::fs::symlink_metadata(path)?.ino() };
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
                socket.set_nonblocking(true)?;
                Ok(Self { socket: AdminSocket::Unix(socket), endpoint: endpoint.clone(), _file: Some(file) })
            }
        }
    }

    /// Listens by `socket`, which somebody else opened and keeps.
    ///
    /// # Errors
    /// If it has no address.
    pub fn of_tcp(socket: std::net::TcpListener) -> io::Result<Self> {
        let endpoint = Endpoint::Tcp(socket.local_addr()?);
        Ok(Self { socket: AdminSocket::Tcp(socket), endpoint, _file: None })
    }

    /// Listens by `socket` at `path`, which somebody else opened and keeps.
    #[must_use]
    pub fn of_unix(socket: std::os::unix::net::UnixListener, path: PathBuf) -> Self {
        Self { socket: AdminSocket::Unix(socket), endpoint: Endpoint::Unix(path), _file: None }
    }

    /// Serves `status` until it is dropped, within a runtime.
    ///
    /// # Errors
    /// If the runtime cannot take the listener over.
    pub async fn serve(self, status: Arc<AdminServer>) -> io::Result<Infallible> {
        let Self { socket, endpoint, _file } = self;
        let streams = Arc::new(Semaphore::new(STREAMS));
        let places = ConnectionCounter {
            free: Arc::new(Semaphore::new(CONNECTIONS)),
            peers: HashMap::new(),
            is_full: false,
            endpoint,
        };
        match socket {
            AdminSocket::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                let accept = async || listener.accept().await.map(|(stream, peer)| (stream, Some(peer.ip())));
                places.accept_all(accept, &status, &streams).await
            }
            AdminSocket::Unix(listener) => {
                let listener = UnixListener::from_std(listener)?;
                let accept = async || listener.accept().await.map(|(stream, _)| (stream, None));
                places.accept_all(accept, &status, &streams).await
            }
        }
    }
}

/// Places for connections.
struct ConnectionCounter {
    free: Arc<Semaphore>,
    /// Whoever has a place, or had one lately.
    peers: HashMap<IpAddr, AdminPeer>,
    /// Whether it has been said that there is none left.
    is_full: bool,
    endpoint: Endpoint,
}

/// The places of one peer.
struct AdminPeer {
    free: Arc<Semaphore>,
    /// Whether it has been said that it has them all.
    is_told: bool,
}

impl ConnectionCounter {
    /// A place for one more connection of `peer`; `None` if there is none.
    fn take(&mut self, peer: Option<IpAddr>) -> Option<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)> {
        let Self { free, peers, is_full, endpoint } = self;
        peers.retain(|_, peer| peer.free.available_permits() < CONNECTIONS_OF_ONE);
        let of_one = match peer {
            None => None,
            Some(address) => {
                let all = || AdminPeer { free: Arc::new(Semaphore::new(CONNECTIONS_OF_ONE)), is_told: false };
                let peer = peers.entry(address).or_insert_with(all);
                let Ok(place) = Arc::clone(&peer.free).try_acquire_owned() else {
                    if !std::mem::replace(&mut peer.is_told, true) {
                        tracing::warn!(
                            "{endpoint}: {address} has {CONNECTIONS_OF_ONE} connections; more of it are closed"
                        );
                    }
                    return None;
                };
                Some(place)
            }
        };
        match Arc::clone(free).try_acquire_owned() {
            Ok(place) => {
                *is_full = false;
                Some((place, of_one))
            }
            Err(_) => {
                if !std::mem::replace(is_full, true) {
                    tracing::warn!("{endpoint}: all {CONNECTIONS} connections are taken; others are closed");
                }
                None
            }
        }
    }

    async fn accept_all<S>(
        mut self,
        mut accept: impl AsyncFnMut() -> io::Result<(S, Option<IpAddr>)>,
        status: &Arc<AdminServer>,
        streams: &Arc<Semaphore>,
    ) -> io::Result<Infallible>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut connections = JoinSet::new();
        loop {
            match accept().await {
                Ok((stream, peer)) => {
                    if let Some(place) = self.take(peer.map(unit)) {
                        let is_local = peer.is_none_or(|address| address.to_canonical().is_loopback());
                        let from = if is_local { ClientLocation::Local } else { ClientLocation::Remote };
                        let (status, streams) = (Arc::clone(status), Arc::clone(streams));
                        connections.spawn(async move {
                            serve_connection(stream, status, from, streams).await;
                            drop(place);
                        });
                    }
                }
                Err(_) => tokio::time::sleep(BACKOFF).await,
            }
            while let Some(ended) = connections.try_join_next() {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("{}: a connection ended by a defect of provost (a panic)", self.endpoint);
                }
            }
        }
    }
}

/// One connection; one that breaks off ends, that is all.
async fn serve_connection<S>(stream: S, status: Arc<AdminServer>, from: ClientLocation, streams: Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    http.max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES);
    let service = service_fn(|request| {
        let (status, streams) = (Arc::clone(&status), Arc::clone(&streams));
        async move { Ok::<_, Infallible>(routes::answer(&status, request, from, &streams).await) }
    });
    let _ = http.serve_connection(TokioIo::new(Box::pin(stream)), service).await;
}

/// What counts as one peer: an IPv4 address, or an IPv6 /64.
fn unit(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        other => other,
    }
}

/// Removes the socket that a crash left behind. Whatever else is there stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there")),
    }
}
