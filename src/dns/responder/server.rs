//! Serves the zone on sockets, over UDP and TCP (RFC 7766). Runs on a thread of its own, so that a flood of queries cannot
//! slow phones.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::Responder;
use super::client::{Client, Transport};
use super::rate_limit::{INTERVAL, Network, RateLimit};
use crate::clock;

/// The largest query that is read. Real ones are far smaller.
const LARGEST_QUERY: usize = 4096;
/// How long a TCP connection may take for a query, and for an answer.
const IDLE: Duration = Duration::from_secs(5);
/// The TCP connections of each address at the same time. They do not count against those of phones.
const MAX_CONNECTIONS: usize = 128;
/// The TCP connections of one client network. A resolver needs one or two.
const MAX_NETWORK_CONNECTIONS: usize = 16;
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

/// The open TCP connections of an address.
#[derive(Debug)]
struct Connections {
    open: BTreeMap<u64, OpenConnection>,
    queries: RateLimit,
}

#[derive(Debug)]
struct OpenConnection {
    network: Network,
    /// When it was accepted, or last had a query.
    active: Instant,
    handle: AbortHandle,
}

impl Connections {
    fn new() -> Self {
        Self { open: BTreeMap::new(), queries: RateLimit::new(clock::monotonic()) }
    }

    /// Ends a connection if there are too many: the one that has been idle for longest of `network`, if that has too
    /// many, or else of the network with the most. So no network can take the connections of others.
    fn make_room(&mut self, network: Network) {
        let mut counts: HashMap<Network, usize> = HashMap::new();
        for connection in self.open.values() {
            *counts.entry(connection.network).or_default() += 1;
        }
        let from = if counts.get(&network).is_some_and(|count| *count >= MAX_NETWORK_CONNECTIONS) {
            network
        } else if self.open.len() >= MAX_CONNECTIONS {
            let Some((largest, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return };
            largest
        } else {
            return;
        };
        let of_network = self.open.iter().filter(|(_, connection)| connection.network == from);
        let oldest = of_network.min_by_key(|(_, connection)| connection.active).map(|(id, _)| *id);
        if let Some(connection) = oldest.and_then(|id| self.open.remove(&id)) {
            connection.handle.abort();
        }
    }

    /// Counts a query on connection `id`. False if its network must wait first.
    fn allows_query(&mut self, id: u64, address: IpAddr) -> bool {
        let now = clock::monotonic();
        if let Some(connection) = self.open.get_mut(&id) {
            connection.active = now;
        }
        self.queries.allows(address, now)
    }
}

async fn serve_tcp(responder: &Arc<Responder>, listener: &TcpListener) {
    let connections = Arc::new(Mutex::new(Connections::new()));
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
        let network = Network::of(peer.ip());
        connections.lock().make_room(network);
        let (responder, all) = (Arc::clone(responder), Arc::clone(&connections));
        let handle = tasks.spawn(async move {
            // An error ends only this connection.
            let _ = serve_connection(&responder, stream, peer.ip(), &|| all.lock().allows_query(id, peer.ip())).await;
            all.lock().open.remove(&id);
        });
        // The task has not run yet: this thread runs both.
        connections.lock().open.insert(id, OpenConnection { network, active: clock::monotonic(), handle });
    }
}

/// Answers the queries of one connection, one after another. Each waits until `allows_query` returns true.
async fn serve_connection(
    responder: &Responder,
    mut stream: TcpStream,
    address: IpAddr,
    allows_query: &(dyn Fn() -> bool + Send + Sync),
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
        // Backpressure: a network that asks faster than UDP allows waits, and its own socket buffers fill.
        while !allows_query() {
            tokio::time::sleep(INTERVAL).await;
        }
        let client = Client { address, transport: Transport::Tcp };
        let Some(answer) = buffer.get(..length).and_then(|query| responder.answer(query, client)) else {
            // "the server MUST close the connection" only on errors of framing; but what is no query cannot be answered.
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await??;
    }
}
