//! Accepting connections, and each connection's life: a place, a handshake, requests, an end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

use super::Server;
use super::access::AccessRecord;
use super::admission::{Kind, Place};
use super::handshake::{self, Refused};
use super::linger::Lingering;
use super::pace::{Paced, Phase, Requests};
use super::request::Connection;
use crate::clock;

/// How long to wait for somebody to close a file when there is none left to open.
const BACKOFF: Duration = Duration::from_millis(100);
/// How long there must have been enough of them before that is over.
const OVER_AFTER: Duration = Duration::from_secs(1);
/// The most header fields of a request.
const MAX_HEADERS: usize = 64;
/// The longest header of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// What connections are told about the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Nothing yet.
    #[default]
    NotYet,
    /// What is under way may end, for as long as a drain may take.
    Drain,
    /// Nothing may.
    Now,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By either end, in order or not.
    Closed,
    /// By us, because the drain was over.
    CutOff,
}

/// Serves what `listener` accepts until `stop` is told, and then what is under way, for as long as a drain may take.
pub async fn serve(listener: TcpListener, server: Arc<Server>, stop: watch::Receiver<Stop>) {
    let stopped = stop.clone();
    accept_all(listener, stop, |stream, address| live(stream, address, Arc::clone(&server), stopped.clone())).await;
}

/// Accepts until `stop` is told, gives each connection a task of its own to `live` in, and waits for all of them.
async fn accept_all<L: Future<Output = End> + Send + 'static>(
    listener: TcpListener,
    mut stop: watch::Receiver<Stop>,
    mut live: impl FnMut(TcpStream, SocketAddr) -> L,
) {
    let mut connections = JoinSet::new();
    let mut shortage = Shortage::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    shortage.note_accepted();
                    connections.spawn(live(stream, address));
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
        tracing::warn!("{cut_off} connections were cut off before they had ended");
    }
}

/// Waits until `what` is told, or more; if nobody is left to tell, that is told too.
async fn told(stop: &mut watch::Receiver<Stop>, what: Stop) {
    let _ = stop.wait_for(|told| *told >= what).await;
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
async fn live(stream: TcpStream, address: SocketAddr, server: Arc<Server>, mut stop: watch::Receiver<Stop>) -> End {
    let mut seat = match server.admission.enter(address.ip()) {
        Ok(seat) => seat,
        Err(full) => return refuse(&server, address, Refused::because(None, full.to_string())),
    };
    let _ = stream.set_nodelay(true);
    let (stream, farewell) = Lingering::new(stream);
    let (stream, pace) = Paced::new(stream, &server.limits);
    // Boxed and ended here, so that an idle connection does not carry the handshake's state about.
    let handshake = Box::pin(async {
        tokio::time::timeout(
            server.limits.handshake(),
            handshake::shake_hands(stream, &server.site, &server.certificates),
        )
        .await
        .unwrap_or_else(|_| {
            let reason = format!("the handshake took more than {} s", server.limits.handshake_s);
            Err(Refused::because(None, reason))
        })
    });
    let finished = tokio::select! {
        finished = handshake => finished,
        // It has asked for nothing yet, and would only be sent away.
        () = told(&mut stop, Stop::Drain) => Err(Refused::because(None, "provost is being stopped".to_owned())),
    };
    let (stream, peer) = match finished {
        Ok(finished) => finished,
        Err(refused) => return refuse(&server, address, refused),
    };
    let connection = Connection { server: Arc::clone(&server), peer, address, pace, farewell };
    let kind = if connection.is_of_known_phone() { Kind::Proven } else { Kind::Anonymous };
    if let Err(full) = seat.become_kind(kind) {
        let constituency = Some(connection.peer.constituency.clone());
        return refuse(&server, address, Refused::because(constituency, full.to_string()));
    }
    connection.pace.enter(Phase::Idle);
    converse(stream, connection, seat, stop).await
}

/// HTTP/1.1 on a connection, until either end closes it.
///
/// Not an `async fn`, which would keep room for the stream where it came in beside where it is used.
fn converse(
    stream: TlsStream<Paced<Lingering<TcpStream>>>,
    connection: Connection,
    seat: Place,
    mut stop: watch::Receiver<Stop>,
) -> impl Future<Output = End> {
    let began = clock::now();
    let connection = Arc::new(connection);
    let answering = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&answering);
        async move { Ok::<_, std::convert::Infallible>(connection.answer(request).await) }
    });
    let mut http = http1::Builder::new();
    // Deadlines are kept by `Paced`, beneath TLS. Half-closed, a peer that does not wait for the answer has still uploaded.
    http.header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES).half_close(true);
    let stream = Requests::new(stream, connection.pace.clone());
    let mut serving = Box::pin(http.serve_connection(TokioIo::new(stream), service));
    async move {
        let _seat = seat;
        let result = tokio::select! {
            result = serving.as_mut() => result,
            () = told(&mut stop, Stop::Drain) => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    result = serving.as_mut() => result,
                    why = end_of_drain(&mut stop, connection.server.limits.drain()) => {
                        connection.pace.break_off(why);
                        return End::CutOff;
                    }
                }
            }
        };
        if let Err(error) = result {
            note_refused_request(&connection, &error, began);
        }
        End::Closed
    }
}

/// Waits as long as what is under way may take, and says why it may not take longer.
async fn end_of_drain(stop: &mut watch::Receiver<Stop>, drain: Duration) -> &'static str {
    tokio::select! {
        () = tokio::time::sleep(drain) => "cut off at the end of the drain (limits.drain_s)",
        () = told(stop, Stop::Now) => "cut off by a second signal to stop",
    }
}

/// What hyper refuses by itself never becomes a request of ours; the log tells it all the same.
fn note_refused_request(connection: &Connection, error: &hyper::Error, began: std::time::SystemTime) {
    let mut record = connection.record(began);
    match connection.pace.broken_off() {
        Some(why) if connection.pace.is_in_header() => record.reason = Some(why.to_owned()),
        _ if error.is_parse() => {
            record.status = Some(match error {
                error if error.is_parse_too_large() => 431,
                error if error.to_string().contains("URI too long") => 414,
                _ => 400,
            });
            record.reason = Some(format!("malformed request: {error}"));
        }
        _ => return,
    }
    connection.server.access.record(record);
}

fn refuse(server: &Server, address: SocketAddr, refused: Refused) -> End {
    server.access.record(AccessRecord {
        time: clock::now(),
        address,
        constituency: refused.constituency,
        mac: None,
        request: None,
        status: None,
        bytes: 0,
        duration: Duration::ZERO,
        user_agent: None,
        reason: Some(refused.reason),
        tls: None,
        certificate_not_after: None,
        claim: refused.claim.map(Box::new),
    });
    End::Closed
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Sends back what comes, and panics at an `!`.
    async fn fragile(mut stream: TcpStream, _: SocketAddr) -> End {
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
