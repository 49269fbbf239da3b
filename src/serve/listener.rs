//! Accepting connections, and each connection's life: a place, a handshake, requests, an end.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::access::{AccessRecord, Tls};
use super::admission::{Full, Kind, Place};
use super::conversation::converse;
use super::handshake::{self, Refused};
use super::linger::Lingering;
use super::pace::{Paced, Phase};
use super::request::Connection;
use super::secured::Secured;
use super::stop::{End, Stop, told};
use super::{PlainHttp, Server};
use crate::clock;
use crate::wording::counted_were;

/// How much is read at first of a request over plain HTTP by a peer that was at rest.
const FIRST_BYTES: usize = 256;
/// How much is read of whoever was refused in the handshake, in bytes: the rest of it, and requests behind it.
const HEARD_OUT: u64 = 256 << 10;
/// How long to wait for somebody to close a file when there is none left to open.
const BACKOFF: Duration = Duration::from_millis(100);
/// How long there must have been enough of them before that is over.
const OVER_AFTER: Duration = Duration::from_secs(1);

/// Serves what `listener` accepts until `stop` is told, and then what is under way, for as long as a drain may take.
pub async fn serve(listener: TcpListener, server: Arc<Server>, stop: watch::Receiver<Stop>) {
    let stopped = stop.clone();
    accept_all(listener, stop, |stream, arrival| live(stream, arrival, Arc::clone(&server), stopped.clone())).await;
}

/// The same, over `plain` HTTP.
pub async fn serve_plain(
    listener: TcpListener,
    plain: Arc<PlainHttp>,
    server: Arc<Server>,
    stop: watch::Receiver<Stop>,
) {
    let stopped = stop.clone();
    accept_all(listener, stop, |stream, arrival| {
        live_plain(stream, arrival, Arc::clone(&plain), Arc::clone(&server), stopped.clone())
    })
    .await;
}

/// The connection of a phone underneath TLS.
type Phone = Paced<Lingering<TcpStream>>;

/// Who came, and when.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    address: SocketAddr,
    time: SystemTime,
    /// The same, by the clock that nobody sets.
    began: Instant,
}

impl Arrival {
    fn of(address: SocketAddr) -> Self {
        Self { address, time: clock::now(), began: clock::monotonic() }
    }
}

/// Accepts until `stop` is told, gives each connection a task of its own to `live` in, and waits for all of them.
async fn accept_all<L: Future<Output = End> + Send + 'static>(
    listener: TcpListener,
    mut stop: watch::Receiver<Stop>,
    mut live: impl FnMut(TcpStream, Arrival) -> L,
) {
    let mut connections = JoinSet::new();
    let mut shortage = Shortage::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    shortage.note_accepted();
                    connections.spawn(live(stream, Arrival::of(address)));
                }
                Err(error) => shortage.wait_out(&error).await,
            },
            Some(ended) = connections.join_next() => {
                was_cut_off(ended);
            }
            () = told(&mut stop, Stop::Drain) => break,
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
fn was_cut_off(ended: Result<End, tokio::task::JoinError>) -> bool {
    match ended {
        Ok(end) => end == End::CutOff,
        Err(error) => {
            if error.is_panic() {
                tracing::error!("a connection ended by a defect of provost (a panic); the others go on");
            }
            false
        }
    }
}

/// Whether connections cannot be accepted at the moment, for lack of file descriptors or memory.
#[derive(Debug, Default)]
struct Shortage {
    /// When it last was so; `None` if it is over.
    last: Option<Instant>,
}

impl Shortage {
    /// A connection that ended before it was accepted is nobody's concern; without file descriptors we must wait.
    async fn wait_out(&mut self, error: &io::Error) {
        if let Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR) =
            error.raw_os_error().map(Errno::from_raw_os_error)
        {
            return;
        }
        if self.last.replace(clock::monotonic()).is_none() {
            tracing::warn!("no connection can be accepted: {error}");
        }
        tokio::time::sleep(BACKOFF).await;
    }

    /// One connection that gets through while others do not is no end of it.
    fn note_accepted(&mut self) {
        if self.last.take_if(|last| clock::monotonic().duration_since(*last) > OVER_AFTER).is_some() {
            tracing::info!("connections are accepted again");
        }
    }
}

/// One connection from accept to close.
async fn live(stream: TcpStream, arrival: Arrival, server: Arc<Server>, stop: watch::Receiver<Stop>) -> End {
    // Boxed and gone before the conversation begins, so that an idle connection carries none of the handshake about.
    match Box::pin(receive(stream, arrival, server, stop)).await {
        Some(conversation) => conversation.await,
        None => End::Closed,
    }
}

/// Begins the conversation, or says why there is none. Who was told so by an alert is heard out, in its place and in the
/// time that a handshake may take: if what it still says met a closed connection, it would not get to read the alert.
async fn receive(
    stream: TcpStream,
    arrival: Arrival,
    server: Arc<Server>,
    mut stop: watch::Receiver<Stop>,
) -> Option<impl Future<Output = End>> {
    match welcome(stream, arrival, &server, &mut stop).await {
        Ok((stream, connection)) => Some(converse(stream, connection, stop)),
        Err((mut refused, _seat)) => {
            let close = refused.close.take();
            refuse(&server, arrival, refused);
            if let Some(close) = close {
                let deadline = arrival.began + server.limits.handshake();
                tokio::select! {
                    biased;
                    _ = tokio::time::timeout_at(deadline.into(), close.finish()) => {}
                    () = told(&mut stop, Stop::Drain) => {}
                }
            }
            None
        }
    }
}

/// Gives a connection its place, and shakes hands.
///
/// # Errors
/// Why it is refused, and the place that it has nevertheless.
async fn welcome(
    stream: TcpStream,
    Arrival { address, began, .. }: Arrival,
    server: &Arc<Server>,
    stop: &mut watch::Receiver<Stop>,
) -> Result<(Secured<Phone>, Connection), (Refused, Option<Place>)> {
    let refused = Refused::because;
    let no_place = |constituency, full: Full| (refused(constituency, "no_place", full.to_string()), None);
    let seat = server.admission.enter(address.ip()).map_err(|full| no_place(None, full))?;
    let _ = stream.set_nodelay(true);
    let (stream, farewell) = Lingering::new(stream);
    let (stream, pace) = Paced::new(stream, &server.limits);
    let handshake = handshake::shake_hands(stream, &server.site, &server.certificates);
    let deadline = began + server.limits.handshake();
    let finished = tokio::select! {
        finished = tokio::time::timeout_at(deadline.into(), handshake) => finished.unwrap_or_else(|_| {
            Err(refused(None, "slow", format!("the handshake took more than {} s", server.limits.handshake_s)))
        }),
        // It has asked for nothing yet, and would only be sent away.
        () = told(stop, Stop::Drain) => Err(refused(None, "stopping", "provost is being stopped".to_owned())),
    };
    let (stream, peer) = match finished {
        Ok(finished) => finished,
        Err(refused) => {
            farewell.say_within(HEARD_OUT);
            return Err((refused, Some(seat)));
        }
    };
    server.handshakes.count(peer.is_resumed);
    let constituency = peer.constituency.clone();
    let server = Arc::clone(server);
    let connection = Connection::new(server, Some(peer), address, pace, farewell, seat);
    let kind = if connection.is_of_known_phone() { Kind::Proven } else { Kind::Anonymous };
    let phone = connection.mac().map(|mac| (constituency.clone(), mac));
    let seated = connection.seat.lock().unwrap_or_else(PoisonError::into_inner).become_kind(kind, phone);
    seated.map_err(|full| no_place(Some(constituency), full))?;
    connection.pace.enter(Phase::Idle);
    Ok((stream, connection))
}

/// One connection over plain HTTP.
async fn live_plain(
    stream: TcpStream,
    arrival: Arrival,
    plain: Arc<PlainHttp>,
    server: Arc<Server>,
    stop: watch::Receiver<Stop>,
) -> End {
    match welcome_plain(stream, arrival.address, &plain, Arc::clone(&server), stop) {
        Ok(conversation) => conversation.await,
        Err(refused) => {
            refuse(&server, arrival, refused);
            End::Closed
        }
    }
}

/// Gives a connection over plain HTTP a stranger's place, and begins the conversation. From elsewhere than the networks
/// that are named nothing is even read.
fn welcome_plain(
    stream: TcpStream,
    address: SocketAddr,
    plain: &PlainHttp,
    server: Arc<Server>,
    stop: watch::Receiver<Stop>,
) -> Result<impl Future<Output = End> + use<>, Refused> {
    let refused = |kind, reason: &dyn std::fmt::Display| Refused::because(None, kind, reason.to_string());
    if !plain.admits(address.ip()) {
        return Err(refused("elsewhere", &"outside of the networks for plain HTTP (plain_http.networks)"));
    }
    let mut seat = server.admission.enter(address.ip()).map_err(|full| refused("no_place", &full))?;
    seat.become_kind(Kind::Anonymous, None).map_err(|full| refused("no_place", &full))?;
    let _ = stream.set_nodelay(true);
    let (stream, farewell) = Lingering::new(stream);
    let (stream, pace) = Paced::new(stream, &server.limits);
    pace.enter(Phase::Idle);
    let connection = Connection::new(server, None, address, pace, farewell, seat);
    Ok(converse(BufReader::with_capacity(FIRST_BYTES, stream), connection, stop))
}

fn refuse(server: &Server, arrival: Arrival, refused: Refused) {
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
        tls: refused.is_of_old_lane.then_some(Tls::OldLane),
        certificate_not_after: None,
        is_by_password: false,
        claim: refused.claim.map(Box::new),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Sends back what comes, and panics at an `!`.
    async fn fragile(mut stream: TcpStream, _: Arrival) -> End {
        while let Ok(byte) = stream.read_u8().await {
            assert_ne!(byte, b'!', "a defect, as a test wants it");
            stream.write_u8(byte).await.unwrap();
        }
        End::Closed
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_connection_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(Stop::default());
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
            stop.send(Stop::Drain).unwrap();
        };
        tokio::join!(accept_all(listener, stopped, fragile), clients);
    }
}
