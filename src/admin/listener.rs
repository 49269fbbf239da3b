//! Accepts operators' connections, with limits and timeouts.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, yield_now};
use tokio_io_timeout::TimeoutStream;

use super::connections::{Connections, Requests};
use super::{AdminServer, Endpoint, routes};

/// The maximum of event streams.
const STREAMS: usize = 64;
/// The timeout for the header of a request, also between two requests (keep-alive).
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout for a client that reads nothing of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// The limits of a request's header: bytes, and fields.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// The pause after accept fails.
const BACKOFF: Duration = Duration::from_millis(100);

/// The open listener.
#[derive(Debug)]
pub struct AdminListener {
    socket: AdminSocket,
    /// The address on which it listens, with the port that the system chose, if it did.
    pub endpoint: Endpoint,
    /// Removed on drop.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum AdminSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// The file of a Unix socket. It is ours as long as it has the same inode.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // A file that is left is removed at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl AdminListener {
    /// Listens on `endpoint`.
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

    /// Wraps `socket`, which systemd opened and keeps.
    ///
    /// # Errors
    /// If the socket has no address.
    pub fn of_tcp(socket: std::net::TcpListener) -> io::Result<Self> {
        let endpoint = Endpoint::Tcp(socket.local_addr()?);
        Ok(Self { socket: AdminSocket::Tcp(socket), endpoint, _file: None })
    }

    /// Wraps `socket` at `path`, which systemd opened and keeps.
    #[must_use]
    pub fn of_unix(socket: std::os::unix::net::UnixListener, path: PathBuf) -> Self {
        Self { socket: AdminSocket::Unix(socket), endpoint: Endpoint::Unix(path), _file: None }
    }

    /// Serves `status` until it is dropped. Needs a runtime.
    ///
    /// # Errors
    /// If the runtime cannot take over the listener.
    pub async fn serve(self, status: Arc<AdminServer>) -> io::Result<Infallible> {
        let Self { socket, endpoint, _file } = self;
        match socket {
            AdminSocket::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                let accept = async || listener.accept().await.map(|(stream, peer)| (stream, Some(peer.ip())));
                accept_all(endpoint, accept, &status).await
            }
            AdminSocket::Unix(listener) => {
                let listener = UnixListener::from_std(listener)?;
                let accept = async || listener.accept().await.map(|(stream, _)| (stream, None));
                accept_all(endpoint, accept, &status).await
            }
        }
    }
}

async fn accept_all<S>(
    endpoint: Endpoint,
    mut accept: impl AsyncFnMut() -> io::Result<(S, Option<IpAddr>)>,
    status: &Arc<AdminServer>,
) -> io::Result<Infallible>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let streams = Arc::new(Semaphore::new(STREAMS));
    let (mut connections, mut tasks) = (Connections::new(endpoint.clone()), JoinSet::new());
    loop {
        match accept().await {
            Ok((stream, peer)) => {
                let client = peer.map(peer_key);
                if connections.is_full_for(client) {
                    // Connections whose request has arrived read it first: once the runtime has polled the sockets, it
                    // runs their tasks.
                    yield_now().await;
                    yield_now().await;
                }
                if connections.make_room(client) {
                    let (status, streams) = (Arc::clone(status), Arc::clone(&streams));
                    let requests = Arc::new(Requests::default());
                    let task = tasks.spawn(serve_connection(stream, status, peer, streams, Arc::clone(&requests)));
                    connections.add(client, requests, task);
                }
            }
            Err(_) => tokio::time::sleep(BACKOFF).await,
        }
        while let Some(ended) = tasks.try_join_next() {
            if ended.is_err_and(|error| error.is_panic()) {
                tracing::error!("{endpoint}: a connection was closed by an internal error (a panic); please report it");
            }
        }
    }
}

/// Serves one connection. An error only ends the connection.
async fn serve_connection<S>(
    stream: S,
    status: Arc<AdminServer>,
    peer: Option<IpAddr>,
    streams: Arc<Semaphore>,
    requests: Arc<Requests>,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    http.max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES);
    let service = service_fn(|request| {
        let (status, streams, in_progress) = (Arc::clone(&status), Arc::clone(&streams), requests.begin());
        async move {
            let answer = routes::answer(&status, request, peer, &streams).await;
            // The body keeps it until it is sent.
            let answer = answer.map(|body| {
                body.map_frame(move |frame| {
                    let _ = &in_progress;
                    frame
                })
            });
            Ok::<_, Infallible>(answer)
        }
    });
    let _ = http.serve_connection(TokioIo::new(Box::pin(stream)), service).await;
}

/// The address by which connections are counted: an IPv4 address, or an IPv6 /64.
fn peer_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        other => other,
    }
}

/// Removes a socket that a crash left behind, and nothing else.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the path exists and is not a socket; remove it, or choose another path",
        ));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it")),
    }
}
