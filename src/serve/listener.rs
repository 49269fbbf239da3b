//! Accepts connections, and runs each through its permit, ClientHello, handshake, requests and close.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::access_log::{AccessRecord, TlsResult};
use super::connection_limits::{
    ClientRefused, ConnectionKind, ConnectionLimits, ConnectionPermit, ConnectionSource, Eviction, LimitReached,
};
use super::crypto_queue::{HandshakeTurn, TurnStream};
use super::handshake::{self, Close, ReceivedHello, RejectedHandshake, TlsClient};
use super::http1::serve_connection;
use super::lingering_close::{LingerControl, LingeringStream};
use super::proxy_protocol::{HeaderError, receive_header};
use super::request::HttpClient;
use super::shutdown::{CloseReason, ShutdownPhase, wait_for};
use super::timeouts::{Phase, TimeoutControl, TimeoutStream};
use super::{PlainHttp, Server};
use crate::clock;
use crate::constituency::ConstituencyName;
use crate::identity::ClientIdentity;
use crate::metrics::RefusalKind;
use crate::wording::counted_were;

/// How much a lingering close reads after a refused handshake, in bytes: the rest of it, and requests behind it.
const LINGER_BYTES: u64 = 256 << 10;
/// The backoff after a failed accept, such as for lack of file descriptors.
const BACKOFF: Duration = Duration::from_millis(100);
/// A shortage is over when a connection is accepted and the last failure was longer ago than this.
const RECOVERED_AFTER: Duration = Duration::from_secs(1);

/// Serves the connections of `listener` until shutdown begins. Then waits for requests in progress (`limits.drain_s`).
pub async fn serve(listener: TcpListener, server: Arc<Server>, shutdown: watch::Receiver<ShutdownPhase>) {
    let limits = Arc::clone(&server.connection_limits);
    let (refuse, receiver) = (refusal_logger(&server), shutdown.clone());
    let admit = |address| {
        let is_balancer = server.load_balancers.contains(address);
        Ok(if is_balancer { ConnectionSource::LoadBalancer(address) } else { ConnectionSource::Client(address) })
    };
    let handle =
        |stream, arrival, permit| handle_connection(stream, arrival, permit, Arc::clone(&server), receiver.clone());
    accept_all(listener, &limits, shutdown, admit, refuse, handle).await;
}

/// The same, over `plain` HTTP. Connections from outside of its networks are closed before anything is read. PROXY
/// headers are not read here: the address that is allowed is the one at the other end of the connection.
pub async fn serve_plain(
    listener: TcpListener,
    plain: Arc<PlainHttp>,
    server: Arc<Server>,
    shutdown: watch::Receiver<ShutdownPhase>,
) {
    let limits = Arc::clone(&server.connection_limits);
    let (refuse, receiver) = (refusal_logger(&server), shutdown.clone());
    let elsewhere = || "the client is outside the networks for plain HTTP (plain_http.networks)".to_owned();
    let admit = |address| {
        if plain.allows(address) {
            Ok(ConnectionSource::Client(address))
        } else {
            Err(RejectedHandshake::because(None, RefusalKind::OutsideNetworks, elsewhere()))
        }
    };
    let handle = |stream, arrival, permit| {
        handle_plain_connection(stream, arrival, permit, Arc::clone(&server), receiver.clone())
    };
    accept_all(listener, &limits, shutdown, admit, refuse, handle).await;
}

fn refusal_logger(server: &Arc<Server>) -> impl Fn(AcceptedConnection, RejectedHandshake) + use<> {
    let server = Arc::clone(server);
    move |arrival, refused| log_refusal(&server, arrival, refused)
}

/// A connection beneath TLS.
type TimedTcpStream = TimeoutStream<LingeringStream<TcpStream>>;

/// A client's address, and when its connection was accepted.
#[derive(Debug, Clone, Copy)]
struct AcceptedConnection {
    /// That of a load balancer, until its PROXY header is read.
    address: SocketAddr,
    time: SystemTime,
    /// The same, by the monotonic clock.
    began: Instant,
}

impl AcceptedConnection {
    fn of(address: SocketAddr) -> Self {
        Self { address, time: clock::now(), began: clock::monotonic() }
    }
}

/// Accepts until shutdown begins. Runs `handle` in a task of its own for each connection that `admit` and `limits`
/// allow. Then waits for all tasks.
async fn accept_all<L: Future<Output = CloseReason> + Send + 'static>(
    listener: TcpListener,
    limits: &Arc<ConnectionLimits>,
    mut shutdown: watch::Receiver<ShutdownPhase>,
    admit: impl Fn(IpAddr) -> Result<ConnectionSource, RejectedHandshake>,
    refuse: impl Fn(AcceptedConnection, RejectedHandshake),
    mut handle: impl FnMut(TcpStream, AcceptedConnection, ConnectionPermit) -> L,
) {
    let mut connections = JoinSet::new();
    let mut shortage = DescriptorShortage::default();
    loop {
        let (stream, address) = match next_event(&listener, &mut connections, &mut shutdown).await {
            ListenerEvent::Accepted(Ok(accepted)) => accepted,
            ListenerEvent::Accepted(Err(error)) => {
                shortage.back_off(&error).await;
                continue;
            }
            ListenerEvent::Ended(ended) => {
                was_cut_off(ended);
                continue;
            }
            ListenerEvent::Drain => break,
        };
        let source = match admit(address.ip()) {
            Ok(source) => source,
            Err(refused) => {
                refuse(AcceptedConnection::of(address), refused);
                continue;
            }
        };
        let entered = tokio::select! {
            entered = limits.enter(source, |full| shortage.note(full)) => entered,
            () = wait_for(&mut shutdown, ShutdownPhase::Drain) => break,
        };
        match entered {
            Ok(permit) => {
                shortage.note_accepted();
                connections.spawn(handle(stream, AcceptedConnection::of(address), permit));
            }
            Err(full) => {
                refuse(AcceptedConnection::of(address), limit_reached(None, &full));
            }
        }
    }
    drop(listener);
    let mut cut_off = 0_usize;
    while let Some(ended) = connections.join_next().await {
        cut_off += usize::from(was_cut_off(ended));
    }
    if cut_off > 0 {
        tracing::warn!("{} closed before they had finished", counted_were(cut_off, "connection"));
    }
}

/// What a listener's loop acts on.
#[derive(Debug)]
enum ListenerEvent {
    Accepted(io::Result<(TcpStream, SocketAddr)>),
    Ended(Result<CloseReason, JoinError>),
    Drain,
}

/// Waits for the next event. Ended connections come before new ones: each occupies the memory of its task until it is
/// joined, and in a flood there is always a new one.
async fn next_event(
    listener: &TcpListener,
    connections: &mut JoinSet<CloseReason>,
    shutdown: &mut watch::Receiver<ShutdownPhase>,
) -> ListenerEvent {
    tokio::select! {
        biased;
        () = wait_for(shutdown, ShutdownPhase::Drain) => ListenerEvent::Drain,
        Some(ended) = connections.join_next() => ListenerEvent::Ended(ended),
        accepted = listener.accept() => ListenerEvent::Accepted(accepted),
    }
}

/// Whether the connection was cut off. Logs a panic, which ends only its own connection.
fn was_cut_off(ended: Result<CloseReason, JoinError>) -> bool {
    match ended {
        Ok(end) => end == CloseReason::CutOff,
        Err(error) => {
            if error.is_panic() {
                tracing::error!("a bug in provost (panic) closed a connection; other connections continue");
            }
            false
        }
    }
}

/// Whether accepting fails at the moment, for lack of permits, file descriptors or memory. Logs its beginning and end.
#[derive(Debug, Default)]
struct DescriptorShortage {
    /// When accepting last failed; `None` if the shortage is over.
    last: Option<Instant>,
}

impl DescriptorShortage {
    /// Waits before the next accept, such as for a file descriptor. There is no wait after the error of a connection
    /// that ended before it was accepted.
    async fn back_off(&mut self, error: &io::Error) {
        if let Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR) =
            error.raw_os_error().map(Errno::from_raw_os_error)
        {
            return;
        }
        self.note(error);
        tokio::time::sleep(BACKOFF).await;
    }

    fn note(&mut self, why: &dyn std::fmt::Display) {
        if self.last.replace(clock::monotonic()).is_none() {
            tracing::warn!("no connection can be accepted: {why}");
        }
    }

    /// Ends the shortage, unless accepting failed a moment ago: one success among failures does not end it.
    fn note_accepted(&mut self) {
        if self.last.take_if(|last| clock::monotonic().duration_since(*last) > RECOVERED_AFTER).is_some() {
            tracing::info!("connections are accepted again");
        }
    }
}

/// One connection from accept to close.
///
/// Not an `async fn`, whose future would store the arguments in addition to the values made from them. The part after
/// the wait for the handshake is boxed. So a client without a ClientHello takes no memory for that part, and an idle
/// one takes none for a handshake.
fn handle_connection(
    stream: TcpStream,
    arrival: AcceptedConnection,
    permit: ConnectionPermit,
    server: Arc<Server>,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> impl Future<Output = CloseReason> {
    let _ = stream.set_nodelay(true);
    let (stream, linger) = LingeringStream::new(stream);
    let (mut stream, timeouts) = TimeoutStream::new(stream, &server.limits, arrival.began.into());
    let mut pending = PendingConnection { arrival, permit, timeouts, linger, server, shutdown };
    async move {
        let (received, turn) = match pending.wait_for_handshake(&mut stream).await {
            Ok(ready) => ready,
            Err(NoHandshake::Rejected(refused)) => {
                log_refusal(&pending.server, pending.arrival, *refused);
                return CloseReason::Closed;
            }
            Err(NoHandshake::HealthCheck) => return CloseReason::Closed,
        };
        match Box::pin(pending.accept(stream, received, turn)).await {
            Some(rest) => rest.await,
            None => CloseReason::Closed,
        }
    }
}

/// The rest of a connection, after its handshake.
type ConnectionFuture = Pin<Box<dyn Future<Output = CloseReason> + Send>>;

/// Why a connection comes to no handshake.
enum NoHandshake {
    Rejected(Box<RejectedHandshake>),
    /// A load balancer connected and closed, to see whether the port is open. That is not logged.
    HealthCheck,
}

impl From<RejectedHandshake> for NoHandshake {
    fn from(rejected: RejectedHandshake) -> Self {
        Self::Rejected(Box::new(rejected))
    }
}

/// A connection whose handshake is in progress.
struct PendingConnection {
    arrival: AcceptedConnection,
    permit: ConnectionPermit,
    timeouts: TimeoutControl,
    linger: LingerControl,
    server: Arc<Server>,
    shutdown: watch::Receiver<ShutdownPhase>,
}

impl PendingConnection {
    /// Waits for the ClientHello, from a load balancer behind the PROXY header, and then for the handshake's turn.
    async fn wait_for_handshake(
        &mut self,
        stream: &mut TimedTcpStream,
    ) -> Result<(ReceivedHello, HandshakeTurn), NoHandshake> {
        if self.is_of_balancer() {
            // Boxed, so that the future stays small for all other clients.
            Box::pin(self.receive_proxy_header(stream)).await?;
        }
        let received = match self.receive_hello(stream).await {
            Ok(received) => received,
            Err(refused) if refused.sent_nothing && self.is_of_balancer() => return Err(NoHandshake::HealthCheck),
            Err(refused) => return Err(refused.into()),
        };
        let turn = self.server.crypto_queue.enter(self.timeouts.clone());
        tokio::select! {
            biased;
            () = turn.begin() => Ok((received, turn)),
            () = wait_for(&mut self.shutdown, ShutdownPhase::Drain) => Err(stopping().into()),
        }
    }

    /// Whether the client is a load balancer: before its PROXY header, or if the header names no other client.
    fn is_of_balancer(&self) -> bool {
        self.server.load_balancers.contains(self.arrival.address.ip())
    }

    /// Waits for the PROXY header. From then on, the connection is the named client's.
    async fn receive_proxy_header(&mut self, stream: &mut TimedTcpStream) -> Result<(), NoHandshake> {
        let header = tokio::select! {
            biased;
            header = receive_header(stream) => header,
            eviction = self.permit.evicted() => return Err(evicted(&eviction).into()),
            () = wait_for(&mut self.shutdown, ShutdownPhase::Drain) => return Err(stopping().into()),
        };
        match header {
            Ok(client) => self.arrival.address = client.unwrap_or(self.arrival.address),
            Err(HeaderError::Nothing) => return Err(NoHandshake::HealthCheck),
            Err(error) => {
                let (kind, reason) = match error {
                    HeaderError::Io(_) if self.timeouts.abort_reason().is_some() => (
                        RefusalKind::Timeout,
                        format!("no whole PROXY header within {} s", self.server.limits.handshake_s),
                    ),
                    HeaderError::Incomplete(_) | HeaderError::Io(_) => (RefusalKind::Disconnected, error.to_string()),
                    _ => (RefusalKind::ProxyHeader, error.to_string()),
                };
                return Err(RejectedHandshake::because(None, kind, reason).into());
            }
        }
        self.permit.set_client(self.arrival.address.ip()).map_err(|refused| match refused {
            ClientRefused::Evicted(eviction) => evicted(&eviction).into(),
            ClientRefused::Full(full) => limit_reached(None, &full).into(),
        })
    }

    /// Waits for the ClientHello; until it is complete, the connection may be evicted.
    async fn receive_hello(&mut self, stream: &mut TimedTcpStream) -> Result<ReceivedHello, RejectedHandshake> {
        let received = tokio::select! {
            biased;
            received = handshake::receive_hello(stream) => self.with_timeout_reason(received),
            eviction = self.permit.evicted() => Err(evicted(&eviction)),
            () = wait_for(&mut self.shutdown, ShutdownPhase::Drain) => Err(stopping()),
        }?;
        self.permit.note_hello().map_err(|eviction| evicted(&eviction))?;
        Ok(received)
    }

    /// Runs the handshake. Returns the future that serves HTTP or, after a refusal, the one that closes lingeringly, if
    /// either is needed. Logs the refusal.
    async fn accept(
        mut self,
        stream: TimedTcpStream,
        mut received: ReceivedHello,
        turn: HandshakeTurn,
    ) -> Option<ConnectionFuture> {
        let stream = TurnStream::new(stream, received.take_rest(), turn.clone());
        let finished = {
            let handshake = pin!(handshake::accept_tls(stream, received, &self.server.site, &self.server.certificates));
            tokio::select! {
                biased;
                finished = turn.run(handshake) => self.with_timeout_reason(finished),
                // The drain does not wait for this client, because it has no request in progress.
                () = wait_for(&mut self.shutdown, ShutdownPhase::Drain) => Err(stopping()),
            }
        };
        match finished {
            Ok((stream, peer)) => {
                let shutdown = self.shutdown.clone();
                Some(Box::pin(serve_connection(stream, self.admit(peer)?, shutdown)))
            }
            Err(mut refused) => {
                let close = refused.close.take();
                log_refusal(&self.server, self.arrival, refused);
                Some(Box::pin(self.linger(close?)))
            }
        }
    }

    /// Gives the timeout as the reason of a refusal, if the handshake timed out.
    fn with_timeout_reason<T>(&self, result: Result<T, RejectedHandshake>) -> Result<T, RejectedHandshake> {
        result.map_err(|refused| match self.timeouts.abort_reason() {
            Some(_) => {
                let reason = format!("the handshake took more than {} s", self.server.limits.handshake_s);
                RejectedHandshake { kind: RefusalKind::Timeout, reason, close: None, ..refused }
            }
            None => refused,
        })
    }

    /// Makes the permit one for a known phone or an anonymous connection. Logs a refusal if that limit is reached.
    fn admit(self, peer: TlsClient) -> Option<HttpClient> {
        let Self { arrival, permit, timeouts, linger, server, .. } = self;
        server.handshakes.count(peer.is_resumed);
        let constituency = peer.constituency.clone();
        let connection = HttpClient::new(Arc::clone(&server), Some(peer), arrival.address, timeouts, linger, permit);
        let kind = if connection.is_of_known_phone() { ConnectionKind::Proven } else { ConnectionKind::Anonymous };
        let phone = connection.mac().map(|mac| (constituency.clone(), mac));
        let moved = connection.permit().set_kind(kind, phone);
        if let Err(full) = moved {
            log_refusal(&server, arrival, limit_reached(Some(constituency), &full));
            return None;
        }
        connection.timeouts.enter(Phase::FirstRequest);
        Some(connection)
    }

    /// Lingering close after an alert: if data that the client still sends met a closed connection, the client could
    /// not read the alert. It lasts for the rest of the handshake timeout at most, and the connection may be evicted
    /// meanwhile.
    async fn linger(mut self, close: Close) -> CloseReason {
        self.linger.request_within(LINGER_BYTES);
        tokio::select! {
            biased;
            _ = tokio::time::timeout_at(self.timeouts.handshake_deadline(), close.finish()) => {}
            _ = self.permit.evicted() => {}
            () = wait_for(&mut self.shutdown, ShutdownPhase::Drain) => {}
        }
        CloseReason::Closed
    }
}

fn evicted(eviction: &Eviction) -> RejectedHandshake {
    RejectedHandshake::because(None, RefusalKind::Evicted, eviction.to_string())
}

fn limit_reached(constituency: Option<ConstituencyName>, full: &LimitReached) -> RejectedHandshake {
    RejectedHandshake::because(constituency, RefusalKind::ConnectionLimit, full.to_string())
}

fn stopping() -> RejectedHandshake {
    RejectedHandshake::because(None, RefusalKind::ShuttingDown, "provost is shutting down".to_owned())
}

/// One connection over plain HTTP, from accept to close. It counts as anonymous.
async fn handle_plain_connection(
    stream: TcpStream,
    arrival: AcceptedConnection,
    mut permit: ConnectionPermit,
    server: Arc<Server>,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> CloseReason {
    if let Err(full) = permit.set_kind(ConnectionKind::Anonymous, None) {
        log_refusal(&server, arrival, limit_reached(None, &full));
        return CloseReason::Closed;
    }
    let _ = stream.set_nodelay(true);
    let (stream, linger) = LingeringStream::new(stream);
    let (stream, timeouts) = TimeoutStream::new(stream, &server.limits, arrival.began.into());
    timeouts.enter(Phase::FirstRequest);
    let connection = HttpClient::new(server, None, arrival.address, timeouts, linger, permit);
    serve_connection(stream, connection, shutdown).await
}

fn log_refusal(server: &Server, arrival: AcceptedConnection, refused: RejectedHandshake) {
    server.access.record(Box::new(AccessRecord {
        time: arrival.time,
        address: arrival.address,
        constituency: refused.constituency,
        identity: refused.claim.map_or(ClientIdentity::Anonymous, ClientIdentity::Claimed),
        request: None,
        status: None,
        bytes: 0,
        duration: clock::monotonic().duration_since(arrival.began),
        user_agent: None,
        reason: Some(refused.reason),
        kind: Some(refused.kind),
        tls: refused.is_openssl.then_some(TlsResult::OpensslFailed),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Limits;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Echoes bytes, and panics at an `!`.
    async fn fragile(mut stream: TcpStream, _: AcceptedConnection, _permit: ConnectionPermit) -> CloseReason {
        while let Ok(byte) = stream.read_u8().await {
            assert_ne!(byte, b'!', "the test panics here");
            stream.write_u8(byte).await.unwrap();
        }
        CloseReason::Closed
    }

    /// The size of the future that a function of five arguments returns, in bytes.
    fn future_size<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn connection_task_is_small() {
        assert!(future_size(handle_connection) <= 1200, "{} bytes", future_size(handle_connection));
    }

    #[tokio::test]
    async fn ended_connections_are_released_before_new_ones_are_accepted() {
        const ENDED: usize = 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_sender, mut shutdown) = watch::channel(ShutdownPhase::default());
        let mut connections = JoinSet::new();
        for _ in 0..ENDED {
            connections.spawn(async { CloseReason::Closed });
        }
        tokio::task::yield_now().await;
        for left in (0..ENDED).rev() {
            let event = next_event(&listener, &mut connections, &mut shutdown).await;
            assert!(matches!(event, ListenerEvent::Ended(Ok(CloseReason::Closed))), "{event:?}");
            assert_eq!(connections.len(), left);
        }
        let event = next_event(&listener, &mut connections, &mut shutdown).await;
        assert!(matches!(event, ListenerEvent::Accepted(Ok(_))), "{event:?}");
    }

    #[tokio::test]
    async fn panic_ends_only_its_own_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, shutdown) = watch::channel(ShutdownPhase::default());
        let clients = async {
            let mut bystander = TcpStream::connect(address).await.unwrap();
            bystander.write_u8(b'a').await.unwrap();
            assert_eq!(bystander.read_u8().await.unwrap(), b'a');
            let mut victim = TcpStream::connect(address).await.unwrap();
            victim.write_u8(b'!').await.unwrap();
            victim.read_u8().await.unwrap_err();
            bystander.write_u8(b'b').await.unwrap();
            assert_eq!(bystander.read_u8().await.unwrap(), b'b');
            let mut newcomer = TcpStream::connect(address).await.unwrap();
            newcomer.write_u8(b'c').await.unwrap();
            assert_eq!(newcomer.read_u8().await.unwrap(), b'c');
            sender.send(ShutdownPhase::Drain).unwrap();
        };
        let limits = Arc::new(ConnectionLimits::new(Limits::default(), 100));
        let admit = |address| Ok(ConnectionSource::Client(address));
        let served = accept_all(listener, &limits, shutdown, admit, |_, _| unreachable!(), fragile);
        tokio::join!(served, clients);
        assert_eq!(limits.count(ConnectionKind::Unfinished), 0);
    }
}
