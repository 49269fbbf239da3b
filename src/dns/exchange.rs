//! One DNS message and its answer over the network, as bytes. An answer has at most 64 KiB.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// "Messages carried by UDP are restricted to 512 bytes" (RFC 1035 §4.2.1)
pub(super) const LARGEST_DATAGRAM: usize = 512;

/// The timeout of an answer by UDP. Datagrams are lost, so the next attempt must not wait long.
const UDP_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout of an answer on a connection.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);

/// `EAFNOSUPPORT` of Linux: the kernel runs without this address family.
const NO_ADDRESS_FAMILY: i32 = 97;

/// Sends `message` on a TCP connection of its own, and returns the answer.
pub(super) async fn over_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = in_time("connect", CONNECT_TIMEOUT, TcpStream::connect(server)).await?;
    stream.set_nodelay(true)?;
    in_time("answer", TCP_TIMEOUT, async {
        let length = u16::try_from(message.len()).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    })
    .await
    .map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "it closed the connection without an answer"),
        _ => error,
    })
}

/// Sends `message` by UDP, and returns the first datagram that `accept` takes for its answer.
///
/// The socket is new, so the kernel chooses a random port. It is connected, so the kernel drops datagrams from other
/// addresses. Datagrams that `accept` rejects are ignored: a forger cannot end the wait.
pub(super) async fn over_udp<T>(
    server: SocketAddr,
    message: &[u8],
    accept: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<T> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    in_time("answer", UDP_TIMEOUT, async {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(answer) = buffer.get(..length).and_then(&accept) {
                return Ok(answer);
            }
        }
    })
    .await
}

async fn in_time<T>(what: &str, limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(ErrorKind::TimedOut, format!("it did not {what} within {} s", limit.as_secs()));
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

/// Whether this machine cannot send to the address at all, so that no other attempt can succeed.
pub(super) fn is_no_route(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::NetworkUnreachable,
        ErrorKind::HostUnreachable,
        ErrorKind::AddrNotAvailable,
        // A route of the type "prohibit".
        ErrorKind::PermissionDenied,
    ];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(NO_ADDRESS_FAMILY)
}

/// Explains a network error.
pub(super) fn reason(server: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        _ if is_no_route(error) => {
            format!("there is no route to it from here ({})", if server.is_ipv4() { "IPv4" } else { "IPv6" })
        }
        ErrorKind::ConnectionRefused => "it refuses the connection".to_owned(),
        _ => error.to_string(),
    }
}
