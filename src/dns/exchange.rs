//! One DNS query and its answer over the network, as bytes. An answer has at most 64 KiB.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// The timeout of a connection attempt, and of one answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Queries over TCP, on a connection of its own.
pub(super) async fn over_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = in_time("connect", TcpStream::connect(server)).await?;
    stream.set_nodelay(true)?;
    in_time("answer", async {
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

/// Queries over UDP. Ignores datagrams from other addresses or with another ID.
pub(super) async fn over_udp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    in_time("answer", async {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if length >= 2 && buffer.get(..2) == message.get(..2) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    })
    .await
}

async fn in_time<T>(what: &str, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(ErrorKind::TimedOut, format!("it did not {what} within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(late()))
}

/// Explains a network error of a query.
pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable => {
            "there is no route to it from here".to_owned()
        }
        ErrorKind::ConnectionRefused => "it refuses the connection".to_owned(),
        _ => error.to_string(),
    }
}
