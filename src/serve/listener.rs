//! Accepting connections, and each connection's life: a permit, a hello, a handshake, requests, an end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::access_log::{AccessRecord, TlsResult};
use super::connection_limits::{ConnectionKind, ConnectionLimits, ConnectionPermit, Eviction};
use super::crypto_queue::{Turn, TurnStream};
use super::handshake::{self, Close, ReceivedHello, RejectedHandshake, TlsClient};
use super::http1::serve_connection;
use super::lingering_close::{LingerControl, LingeringStream};
use super::request::HttpClient;
use super::shutdown::{CloseReason, ShutdownPhase, told};
use super::timeouts::{Phase, TimeoutControl, TimeoutStream};
use super::{PlainHttp, Server};
use crate::clock;
use crate::wording::counted_were;

/// How much is read at first of a request over plain HTTP by a peer that was at rest.
const FIRST_BYTES: usize = 256;
/// How much is read of whoever was refused in the handshake, in bytes: the rest of it, and requests behind it.
const LINGER_BYTES: u64 = 256 << 10;
/// The kind of a refusal for lack of a place.
const NO_PLACE: &str = "no_place";
/// How long to wait for somebody to close a file when there is none left to open.
const BACKOFF: Duration = Duration::from_millis(100);
/// How long there must have been enough of them before that is over.
const OVER_AFTER: Duration = Duration::from_secs(1);

/// Serves what `listener` accepts until `stop` is told, and then what is under way, for as long as a drain may take.
pub async fn serve(listener: TcpListener, server: Arc<Server>, stop: watch::Receiver<ShutdownPhase>) {
    let limits = Arc::clone(&server.connection_limits);
    let (refuse, stopped) = (refuse_by(&server), stop.clone());
    let live =
        |stream, arrival, permit| handle_connection(stream, arrival, permit, Arc::clone(&server), stopped.clone());
    accept_all(listener, &limits, stop, |_| Ok(()), refuse, live).await;
}

/// The same, over `plain` HTTP. From elsewhere than the networks that are named nothing is even read.
pub async fn serve_plain(
    listener: TcpListener,
    plain: Arc<PlainHttp>,
    server: Arc<Server>,
    stop: watch::Receiver<ShutdownPhase>,
) {
    let limits = Arc::clone(&server.connection_limits);
    let (refuse, stopped) = (refuse_by(&server), stop.clone());
    let elsewhere = || "outside of the networks for plain HTTP (plain_http.networks)".to_owned();
    let admit = |address| {
        if plain.admits(address) { Ok(()) } else { Err(RejectedHandshake::because(None, "elsewhere", elsewhere())) }
    };
    let live = |stream, arrival, permit| {
        handle_plain_connection(stream, arrival, permit, Arc::clone(&server), stopped.clone())
    };
    accept_all(listener, &limits, stop, admit, refuse, live).await;
}

fn refuse_by(server: &Arc<Server>) -> impl Fn(AcceptedConnection, RejectedHandshake) + use<> {
    let server = Arc::clone(server);
    move |arrival, refused| log_refusal(&server, arrival, refused)
}

/// The connection of a phone underneath TLS.
type TimedTcpStream = TimeoutStream<LingeringStream<TcpStream>>;

/// A client's address, and when its connection was accepted.
#[derive(Debug, Clone, Copy)]
struct AcceptedConnection {
    address: SocketAddr,
    time: SystemTime,
    /// The same, by the clock that nobody sets.
    began: Instant,
}

impl AcceptedConnection {
    fn of(address: SocketAddr) -> Self {
        Self { address, time: clock::now(), began: clock::monotonic() }
    }
}

/// Accepts until `stop` is told, gives each connection that `admit` and `limits` admit a task of its own to `live` in,
/// and waits for all of them.
async fn accept_all<L: Future<Output = CloseReason> + Send + 'static>(
    listener: TcpListener,
    limits: &Arc<ConnectionLimits>,
    mut stop: watch::Receiver<ShutdownPhase>,
    admit: impl Fn(IpAddr) -> Result<(), RejectedHandshake>,
    refuse: impl Fn(AcceptedConnection, RejectedHandshake),
    mut live: impl FnMut(TcpStream, AcceptedConnection, ConnectionPermit) -> L,
) {
    let mut connections = JoinSet::new();
    let mut shortage = DescriptorShortage::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                was_cut_off(ended);
                continue;
            }
            () = told(&mut stop, ShutdownPhase::Drain) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                shortage.wait_out(&error).await;
                continue;
            }
        };
        if let Err(refused) = admit(address.ip()) {
            refuse(AcceptedConnection::of(address), refused);
            continue;
        }
        let entered = tokio::select! {
            entered = limits.enter(address.ip(), |full| shortage.note(full)) => entered,
            () = told(&mut stop, ShutdownPhase::Drain) => break,
        };
        match entered {
            Ok(permit) => {
                shortage.note_accepted();
                connections.spawn(live(stream, AcceptedConnection::of(address), permit));
            }
            Err(full) => {
                refuse(AcceptedConnection::of(address), RejectedHandshake::because(None, NO_PLACE, full.to_string()));
            }
        }
    }
    drop(listener);
    let mut cut_off = 0_usize;
    while let Some(ended) = connections.join_next().await {
        cut_off += usize::from(was_cut_off(ended));
    }
    if cut_off > 0 {
        tracing::warn!("{} cut off before they had ended", counted_were(cut_off, "connection"));
    }
}

/// A panic in one connection is said, and costs the others nothing.
fn was_cut_off(ended: Result<CloseReason, tokio::task::JoinError>) -> bool {
    match ended {
        Ok(end) => end == CloseReason::CutOff,
        Err(error) => {
            if error.is_panic() {
                tracing::error!("a connection ended by a defect of provost (a panic); the others go on");
            }
            false
        }
    }
}

/// Whether connections cannot be accepted at the moment, for lack of places, file descriptors or memory.
#[derive(Debug, Default)]
struct DescriptorShortage {
    /// When it last was so; `None` if it is over.
    last: Option<Instant>,
}

impl DescriptorShortage {
    /// A connection that ended before it was accepted is nobody's concern; without file descriptors we must wait.
    async fn wait_out(&mut self, error: &io::Error) {
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

    /// One connection that gets through while others do not is no end of it.
    fn note_accepted(&mut self) {
        if self.last.take_if(|last| clock::monotonic().duration_since(*last) > OVER_AFTER).is_some() {
            tracing::info!("connections are accepted again");
        }
    }
}

/// One connection from accept to close.
///
/// Not an `async fn`, which would keep room for what it is called with beside what it makes of it. What comes after the
/// wait for the handshake is boxed, so that a client without a hello has no room for it, nor an idle one for a handshake.
fn handle_connection(
    stream: TcpStream,
    arrival: AcceptedConnection,
    permit: ConnectionPermit,
    server: Arc<Server>,
    stop: watch::Receiver<ShutdownPhase>,
) -> impl Future<Output = CloseReason> {
    let _ = stream.set_nodelay(true);
    let (stream, farewell) = LingeringStream::new(stream);
    let (mut stream, pace) = TimeoutStream::new(stream, &server.limits, arrival.began.into());
    let mut pending = PendingConnection { arrival, permit, pace, farewell, server, stop };
    async move {
        let (received, turn) = match pending.wait_for_handshake(&mut stream).await {
            Ok(ready) => ready,
            Err(refused) => {
                log_refusal(&pending.server, arrival, refused);
                return CloseReason::Closed;
            }
        };
        match Box::pin(pending.accept(stream, received, turn)).await {
            Some(rest) => rest.await,
            None => CloseReason::Closed,
        }
    }
}

/// What is left of a connection's life.
type ConnectionFuture = Pin<Box<dyn Future<Output = CloseReason> + Send>>;

/// A connection whose handshake is under way.
struct PendingConnection {
    arrival: AcceptedConnection,
    permit: ConnectionPermit,
    pace: TimeoutControl,
    farewell: LingerControl,
    server: Arc<Server>,
    stop: watch::Receiver<ShutdownPhase>,
}

impl PendingConnection {
    /// Waits for the ClientHello, and then for the handshake's turn.
    async fn wait_for_handshake(
        &mut self,
        stream: &mut TimedTcpStream,
    ) -> Result<(ReceivedHello, Turn), RejectedHandshake> {
        let received = self.receive_hello(stream).await?;
        let turn = self.server.crypto_queue.enter(self.pace.clone());
        tokio::select! {
            biased;
            () = turn.begin() => Ok((received, turn)),
            () = told(&mut self.stop, ShutdownPhase::Drain) => Err(stopping()),
        }
    }

    /// Waits for the ClientHello; until it is complete, the connection may be evicted.
    async fn receive_hello(&mut self, stream: &mut TimedTcpStream) -> Result<ReceivedHello, RejectedHandshake> {
        let received = tokio::select! {
            biased;
            received = handshake::receive_hello(stream) => self.in_time(received),
            eviction = self.permit.evicted() => Err(evicted(&eviction)),
            () = told(&mut self.stop, ShutdownPhase::Drain) => Err(stopping()),
        }?;
        self.permit.note_hello().map_err(|eviction| evicted(&eviction))?;
        Ok(received)
    }

    /// Runs the handshake and begins the conversation, or logs why there is none.
    async fn accept(
        mut self,
        stream: TimedTcpStream,
        mut received: ReceivedHello,
        turn: Turn,
    ) -> Option<ConnectionFuture> {
        let stream = TurnStream::new(stream, received.take_rest(), turn.clone());
        let finished = {
            let handshake = pin!(handshake::accept_tls(stream, received, &self.server.site, &self.server.certificates));
            tokio::select! {
                biased;
                finished = turn.run(handshake) => self.in_time(finished),
                // It has asked for nothing yet, and would only be sent away.
                () = told(&mut self.stop, ShutdownPhase::Drain) => Err(stopping()),
            }
        };
        match finished {
            Ok((stream, peer)) => {
                let stop = self.stop.clone();
                Some(Box::pin(serve_connection(stream, self.admit(peer)?, stop)))
            }
            Err(mut refused) => {
                let close = refused.close.take();
                log_refusal(&self.server, self.arrival, refused);
                Some(Box::pin(self.linger(close?)))
            }
        }
    }

    /// A handshake that ended because its time was over is logged as such.
    fn in_time<T>(&self, result: Result<T, RejectedHandshake>) -> Result<T, RejectedHandshake> {
        result.map_err(|refused| match self.pace.broken_off() {
            Some(_) => {
                let reason = format!("the handshake took more than {} s", self.server.limits.handshake_s);
                RejectedHandshake { kind: "slow", reason, close: None, ..refused }
            }
            None => refused,
        })
    }

    /// Gives a connection whose handshake is finished its place among the others of its kind.
    fn admit(self, peer: TlsClient) -> Option<HttpClient> {
        let Self { arrival, permit, pace, farewell, server, .. } = self;
        server.handshakes.count(peer.is_resumed);
        let constituency = peer.constituency.clone();
        let connection = HttpClient::new(Arc::clone(&server), Some(peer), arrival.address, pace, farewell, permit);
        let kind = if connection.is_of_known_phone() { ConnectionKind::Proven } else { ConnectionKind::Anonymous };
        let phone = connection.mac().map(|mac| (constituency.clone(), mac));
        let moved = connection.permit.lock().unwrap_or_else(PoisonError::into_inner).become_kind(kind, phone);
        if let Err(full) = moved {
            log_refusal(&server, arrival, RejectedHandshake::because(Some(constituency), NO_PLACE, full.to_string()));
            return None;
        }
        connection.pace.enter(Phase::Idle);
        Some(connection)
    }

    /// Closes on a client that was sent an alert: if what it still sends met a closed connection, it could not read the
    /// alert. It has the rest of the time that a handshake may take, and may be evicted meanwhile.
    async fn linger(mut self, close: Close) -> CloseReason {
        self.farewell.say_within(LINGER_BYTES);
        tokio::select! {
            biased;
            _ = tokio::time::timeout_at(self.pace.handshake_deadline(), close.finish()) => {}
            _ = self.permit.evicted() => {}
            () = told(&mut self.stop, ShutdownPhase::Drain) => {}
        }
        CloseReason::Closed
    }
}

fn evicted(eviction: &Eviction) -> RejectedHandshake {
    RejectedHandshake::because(None, "evicted", eviction.to_string())
}

fn stopping() -> RejectedHandshake {
    RejectedHandshake::because(None, "stopping", "provost is being stopped".to_owned())
}

/// One connection over plain HTTP: it has a stranger's place.
async fn handle_plain_connection(
    stream: TcpStream,
    arrival: AcceptedConnection,
    mut permit: ConnectionPermit,
    server: Arc<Server>,
    stop: watch::Receiver<ShutdownPhase>,
) -> CloseReason {
    if let Err(full) = permit.become_kind(ConnectionKind::Anonymous, None) {
        log_refusal(&server, arrival, RejectedHandshake::because(None, NO_PLACE, full.to_string()));
        return CloseReason::Closed;
    }
    let _ = stream.set_nodelay(true);
    let (stream, farewell) = LingeringStream::new(stream);
    let (stream, pace) = TimeoutStream::new(stream, &server.limits, arrival.began.into());
    pace.enter(Phase::Idle);
    let connection = HttpClient::new(server, None, arrival.address, pace, farewell, permit);
    serve_connection(BufReader::with_capacity(FIRST_BYTES, stream), connection, stop).await
}

fn log_refusal(server: &Server, arrival: AcceptedConnection, refused: RejectedHandshake) {
    server.access.record(Box::new(AccessRecord {
        time: arrival.time,
        address: arrival.address,
        constituency: refused.constituency,
        mac: None,
        request: None,
        status: None,
        bytes: 0,
        duration: clock::monotonic().duration_since(arrival.began),
        user_agent: None,
        reason: Some(refused.reason),
        kind: Some(refused.kind),
        tls: refused.is_of_old_lane.then_some(TlsResult::OldLane),
        certificate_not_after: None,
        is_by_password: false,
        claim: refused.claim.map(Box::new),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Limits;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Sends back what comes, and panics at an `!`.
    async fn fragile(mut stream: TcpStream, _: AcceptedConnection, _permit: ConnectionPermit) -> CloseReason {
        while let Ok(byte) = stream.read_u8().await {
            assert_ne!(byte, b'!', "a defect, as a test wants it");
            stream.write_u8(byte).await.unwrap();
        }
        CloseReason::Closed
    }

    /// The size of the futures that a function of five arguments returns, in bytes.
    fn future_size<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn task_of_a_connection_is_small() {
        assert!(future_size(handle_connection) <= 1200, "{} bytes", future_size(handle_connection));
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_connection_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(ShutdownPhase::default());
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
            stop.send(ShutdownPhase::Drain).unwrap();
        };
        let limits = Arc::new(ConnectionLimits::new(Limits::default(), 100));
        let served = accept_all(listener, &limits, stopped, |_| Ok(()), |_, _| unreachable!(), fragile);
        tokio::join!(served, clients);
        assert_eq!(limits.count(ConnectionKind::Unfinished), 0);
    }
}
