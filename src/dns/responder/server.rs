//! Serves the zone on sockets, over UDP and TCP (RFC 7766). Runs on a thread of its own, so that a flood of queries cannot
//! slow phones.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::Responder;
use super::answer::{Client, Transport};
use super::rate_limit::RateLimit;
use crate::clock;

/// The largest query that is read. Real ones are far smaller.
const LARGEST_QUERY: usize = 4096;
/// How long a TCP connection may take for a query, and for an answer.
const IDLE: Duration = Duration::from_secs(5);
/// The TCP connections of each address at the same time. They do not count against those of phones.
const MAX_CONNECTIONS: usize = 128;
/// The pause after an error of the system, such as a lack of file descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(200);

/// The two sockets of an address.
#[derive(Debug)]
pub struct ResponderSockets {
    pub udp: std::net::UdpSocket,
    pub tcp: std::net::TcpListener,
}

/// Serves `sockets` until dropped. Needs a runtime.
pub async fn serve(responder: Arc<Responder>, sockets: ResponderSockets) -> io::Result<()> {
    let udp = UdpSocket::from_std(sockets.udp)?;
    let tcp = TcpListener::from_std(sockets.tcp)?;
    tokio::join!(serve_udp(&responder, &udp), serve_tcp(&responder, &tcp));
    Ok(())
}

async fn serve_udp(responder: &Responder, socket: &UdpSocket) {
    let mut limit = RateLimit::new(clock::monotonic());
    let mut buffer = vec![0; LARGEST_QUERY];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier answer, or a lack of memory.
            tokio::time::sleep(AFTER_ERROR).await;
            continue;
        };
        // Port 0 can only be forged.
        let Some(query) = buffer.get(..length).filter(|_| peer.port() != 0) else { continue };
        let is_allowed = limit.allows(peer.ip(), clock::monotonic());
        let transport = if is_allowed { Transport::Udp } else { Transport::UdpOverLimit };
        if let Some(answer) = responder.answer(query, Client { address: peer.ip(), transport }) {
            // A full socket buffer loses the answer, as the network may.
            let _ = socket.try_send_to(&answer, peer);
        }
    }
}

/// The open TCP connections: when each last had a query, and how to end it.
type Connections = Arc<Mutex<BTreeMap<u64, (Instant, AbortHandle)>>>;

async fn serve_tcp(responder: &Arc<Responder>, listener: &TcpListener) {
    let connections = Connections::default();
    // Aborts its tasks when it is dropped.
    let mut tasks = JoinSet::new();
    for id in 0.. {
        let (stream, peer) = loop {
            match listener.accept().await {
                Ok(accepted) => break accepted,
                Err(_) => tokio::time::sleep(AFTER_ERROR).await,
            }
        };
        while tasks.try_join_next().is_some() {}
        make_room(&connections);
        let (responder, open) = (Arc::clone(responder), Arc::clone(&connections));
        let handle = tasks.spawn(async move {
            // An error ends only this connection.
            let _ = serve_connection(&responder, stream, peer.ip(), &|| touch(&open, id)).await;
            lock(&open).remove(&id);
        });
        // The task has not run yet: this thread runs both.
        lock(&connections).insert(id, (clock::monotonic(), handle));
    }
}

/// Ends the connection that has been idle for longest, if there are too many.
fn make_room(connections: &Connections) {
    let mut open = lock(connections);
    if open.len() < MAX_CONNECTIONS {
        return;
    }
    let oldest = open.iter().min_by_key(|(_, (since, _))| *since).map(|(id, _)| *id);
    if let Some((_, handle)) = oldest.and_then(|id| open.remove(&id)) {
        handle.abort();
    }
}

fn touch(connections: &Connections, id: u64) {
    if let Some((since, _)) = lock(connections).get_mut(&id) {
        *since = clock::monotonic();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers the queries of one connection, one after another.
async fn serve_connection(
    responder: &Responder,
    mut stream: TcpStream,
    address: IpAddr,
    has_query: &(dyn Fn() + Send + Sync),
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; LARGEST_QUERY];
    loop {
        let length = timeout(IDLE, async {
            let length = usize::from(stream.read_u16().await?);
            let query = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
            stream.read_exact(query).await
        })
        .await??;
        has_query();
        let client = Client { address, transport: Transport::Tcp };
        let Some(answer) = buffer.get(..length).and_then(|query| responder.answer(query, client)) else {
            // "the server MUST close the connection" only on errors of framing; but what is no query cannot be answered.
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await??;
    }
}
