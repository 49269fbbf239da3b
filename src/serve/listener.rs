//! Accepting connections, and each connection's life: a place, a handshake, requests, an end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
use super::pace::{Paced, Phase};
use super::request::Connection;
use crate::clock;

/// How long to wait for somebody to close a file when there is none left to open.
const BACKOFF: Duration = Duration::from_millis(100);
/// The most header fields of a request.
const MAX_HEADERS: usize = 64;
/// The longest header of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Serves what `listener` accepts until `stop` is told, and then what is under way, for as long as a drain may take.
pub async fn serve(listener: TcpListener, server: Arc<Server>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let told = stop.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    connections.spawn(live(stream, address, Arc::clone(&server), told.clone()));
                }
                Err(error) => wait_out(&error).await,
            },
            Some(ended) = connections.join_next() => note_panic(ended),
            () = told_to_stop(&mut stop) => break,
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(server.limits.drain(), async {
        while let Some(ended) = connections.join_next().await {
            note_panic(ended);
        }
    });
    if drained.await.is_err() {
        tracing::warn!("{} connections are cut off: they did not end within limits.drain_s", connections.len());
    }
}

/// Waits until a stop is told; if nobody is left to tell, that is a stop too.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection ended by a defect of provost (a panic); the others go on");
    }
}

/// A connection that ended before it was accepted is nobody's concern; without file descriptors we must wait.
async fn wait_out(error: &io::Error) {
    if let Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR) =
        error.raw_os_error().map(Errno::from_raw_os_error)
    {
    } else {
        tracing::warn!("no connection can be accepted: {error}");
        tokio::time::sleep(BACKOFF).await;
    }
}

/// One connection from accept to close.
async fn live(stream: TcpStream, address: SocketAddr, server: Arc<Server>, stop: watch::Receiver<bool>) {
    let mut seat = match server.admission.enter(address.ip()) {
        Ok(seat) => seat,
        Err(full) => return refuse(&server, address, Refused { constituency: None, reason: full.to_string() }),
    };
    let _ = stream.set_nodelay(true);
    let (stream, pace) = Paced::new(stream, &server.limits);
    // Boxed and ended here, so that an idle connection does not carry the handshake's state about.
    let handshake = Box::pin(async {
        let site = server.site.load_full();
        tokio::time::timeout(server.limits.handshake(), handshake::shake_hands(stream, &site, &server.certificates))
            .await
            .unwrap_or_else(|_| {
                let reason = format!("the handshake took more than {} s", server.limits.handshake_s);
                Err(Refused { constituency: None, reason })
            })
    });
    let (stream, peer) = match handshake.await {
        Ok(finished) => finished,
        Err(refused) => return refuse(&server, address, refused),
    };
    let connection = Connection { server: Arc::clone(&server), peer, address, pace };
    let kind = if connection.mac().is_some() { Kind::Proven } else { Kind::Anonymous };
    if let Err(full) = seat.become_kind(kind) {
        let constituency = Some(connection.peer.constituency.clone());
        return refuse(&server, address, Refused { constituency, reason: full.to_string() });
    }
    connection.pace.enter(Phase::Idle);
    Box::pin(converse(stream, connection, seat, stop)).await;
}

/// HTTP/1.1 on a connection, until either end closes it.
async fn converse(
    stream: TlsStream<Paced<TcpStream>>,
    connection: Connection,
    _seat: Place,
    mut stop: watch::Receiver<bool>,
) {
    let began = clock::now();
    let connection = Arc::new(connection);
    let answering = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&answering);
        async move { Ok::<_, std::convert::Infallible>(connection.answer(request).await) }
    });
    let mut http = http1::Builder::new();
    // Deadlines are kept by `Paced`, beneath. Half-closed, a peer that does not wait for the answer has still uploaded.
    http.header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES).half_close(true);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = told_to_stop(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        note_refused_request(&connection, &error, began);
    }
}

/// What hyper refuses by itself never becomes a request of ours; the log tells it all the same.
fn note_refused_request(connection: &Connection, error: &hyper::Error, began: std::time::SystemTime) {
    if !error.is_parse() {
        return;
    }
    let mut record = connection.record(began);
    record.status = Some(match error {
        error if error.is_parse_too_large() => 431,
        error if error.to_string().contains("URI too long") => 414,
        _ => 400,
    });
    record.reason = Some(format!("malformed request: {error}"));
    connection.server.access.record(record);
}

fn refuse(server: &Server, address: SocketAddr, refused: Refused) {
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
    });
}
