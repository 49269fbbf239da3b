//! HTTP/1.1 on a connection, over TLS after its handshake or over plain TCP, until either end closes it.
//!
//! When a connection has been idle for a moment, HTTP is suspended: the state that hyper keeps, most of the memory of a
//! connection, is freed, and created anew when the client sends. Phones are idle most of the time: a connection holds
//! 14 KiB then, and would hold 29 KiB without the suspension.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::connection_limits::Eviction;
use super::request::{HttpClient, RequestService};
use super::request_line;
use super::shutdown::{CloseReason, ShutdownPhase, wait_for};
use super::timeouts::RequestStream;
use crate::clock;
use crate::metrics::RefusalKind;

/// The maximum number of header fields of a request.
const MAX_HEADERS: usize = 64;
/// The longest header of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// How long a connection is idle before HTTP is suspended.
const SUSPEND_AFTER: Duration = Duration::from_millis(250);

/// A stream on which HTTP can be served.
pub trait ClientStream: AsyncBufRead + AsyncWrite + Unpin + Send + 'static {}

impl<C: AsyncBufRead + AsyncWrite + Unpin + Send + 'static> ClientStream for C {}

/// Boxed, so that it is not copied when it moves, and futures that it moves through do not each reserve memory for it.
type Stream<C> = Box<RequestStream<C>>;

type HttpConnection<C> = Pin<Box<http1::Connection<TokioIo<Stream<C>>, RequestService>>>;

/// Serves HTTP/1.1 on `stream`, which is that of `connection`, until either end closes it.
///
/// Not an `async fn`, whose future would reserve memory for the stream twice: as an argument, and where it is used.
pub fn serve_connection<C: ClientStream>(
    stream: C,
    connection: HttpClient,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> impl Future<Output = CloseReason> {
    let stream = Box::new(RequestStream::new(stream, connection.timeouts.clone(), connection.linger.clone()));
    serve_until_idle(stream, Arc::new(connection), shutdown)
}

async fn serve_until_idle<C: ClientStream>(
    mut stream: Stream<C>,
    connection: Arc<HttpClient>,
    mut shutdown: watch::Receiver<ShutdownPhase>,
) -> CloseReason {
    loop {
        let mut http = http(stream, &connection);
        tokio::select! {
            // In this order: if HTTP begins to discard a body, its discarding is polled at once.
            biased;
            result = http.as_mut() => return close(&connection, result, http),
            never = connection.discard() => match never {},
            eviction = connection.evicted() => return evicted(&connection, &eviction),
            () = connection.timeouts.wait_idle(SUSPEND_AFTER) => {}
            () = wait_for(&mut shutdown, ShutdownPhase::Drain) => {
                return Box::pin(drain(http, &connection, &mut shutdown)).await;
            }
        }
        let parts = Pin::into_inner(http).into_parts();
        stream = parts.io.into_inner();
        stream.unread(&parts.read_buf);
        drop(parts.read_buf);
        tracing::trace!(address = %connection.address, "HTTP suspended");
        connection.permit().note_idle();
        tokio::select! {
            has_data = stream.wait_readable() => match has_data {
                Ok(true) => {}
                Ok(false) => break,
                // The idle timeout has passed, or the connection broke.
                Err(_) => return CloseReason::Closed,
            },
            eviction = connection.evicted() => return evicted(&connection, &eviction),
            // A graceful shutdown closes idle keep-alive connections at once.
            () = wait_for(&mut shutdown, ShutdownPhase::Drain) => break,
        }
    }
    tokio::select! {
        // A client may not even read TLS's close_notify: the wait is bounded.
        _ = tokio::time::timeout(connection.server.limits.drain(), stream.shutdown()) => CloseReason::Closed,
        () = wait_for(&mut shutdown, ShutdownPhase::Now) => CloseReason::CutOff,
    }
}

/// Creates hyper's connection on `stream`.
fn http<C: ClientStream>(stream: Stream<C>, connection: &Arc<HttpClient>) -> HttpConnection<C> {
    let mut http = http1::Builder::new();
    // `TimeoutStream`, beneath TLS, enforces the timeouts. Half-close: an upload is stored even if its client closes
    // its sending half and does not wait for the response.
    http.header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES).half_close(true);
    Box::pin(http.serve_connection(TokioIo::new(stream), RequestService(Arc::clone(connection))))
}

/// Logs the eviction.
fn evicted(connection: &HttpClient, eviction: &Eviction) -> CloseReason {
    let mut record = connection.record(clock::now());
    record.reason = Some(eviction.to_string());
    record.kind = Some(RefusalKind::Evicted);
    connection.server.access.record(record);
    CloseReason::Closed
}

/// Lets the request in progress finish, within the drain time.
async fn drain<C: ClientStream>(
    mut http: HttpConnection<C>,
    connection: &HttpClient,
    shutdown: &mut watch::Receiver<ShutdownPhase>,
) -> CloseReason {
    http.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        result = http.as_mut() => close(connection, result, http),
        never = connection.discard() => match never {},
        why = end_of_drain(shutdown, connection.server.limits.drain()) => {
            connection.timeouts.abort(why);
            CloseReason::CutOff
        }
    }
}

/// Waits until the request in progress is to be cut off, and returns the reason.
async fn end_of_drain(shutdown: &mut watch::Receiver<ShutdownPhase>, drain: Duration) -> &'static str {
    tokio::select! {
        () = tokio::time::sleep(drain) => "closed at the end of the drain time (limits.drain_s)",
        () = wait_for(shutdown, ShutdownPhase::Now) => "closed because of a second stop signal",
    }
}

/// Logs a request that hyper refused or that timed out in its header. Such a request never reaches [`RequestService`].
fn close<C: ClientStream>(connection: &HttpClient, result: hyper::Result<()>, http: HttpConnection<C>) -> CloseReason {
    let Err(error) = result else { return CloseReason::Closed };
    let line = || {
        let parts = Pin::into_inner(http).into_parts();
        refused_line(&parts.io.into_inner(), &parts.read_buf, &error)
    };
    let (now, lasted) = (clock::now(), connection.timeouts.header_lasted());
    let mut record = connection.record(now.checked_sub(lasted).unwrap_or(now));
    record.duration = lasted;
    match connection.timeouts.abort_reason() {
        Some(why) if connection.timeouts.is_in_header() => {
            record.reason = Some(match line() {
                Some(line) => format!("{why}; it starts with {line}"),
                None => why.to_owned(),
            });
            record.kind = Some(RefusalKind::Timeout);
        }
        // There is no response: the client reads HTTP/2 frames, not text.
        _ if error.is_parse_version_h2() => {
            record.reason = Some("malformed request: HTTP/2 is not supported".to_owned());
            record.kind = Some(RefusalKind::Malformed);
        }
        _ if error.is_parse() => {
            record.status = Some(match &error {
                error if error.is_parse_too_large() => 431,
                error if error.to_string().contains("URI too long") => 414,
                _ => 400,
            });
            record.reason = Some(match line() {
                Some(line) if request_line::has_raw_space(&line) => {
                    format!("malformed request: a raw space in the target (write %20) in {line}")
                }
                Some(line) => format!("malformed request: {error} in {line}"),
                None => format!("malformed request: {error}"),
            });
            record.kind = Some(RefusalKind::Malformed);
        }
        _ => return CloseReason::Closed,
    }
    connection.server.access.record(record);
    CloseReason::Closed
}

/// The line of the request that hyper refused, if it is known. `rest` is data that hyper has read and not used.
///
/// hyper leaves a request that it cannot parse in its buffer. It removes one that it refuses because of how the header
/// gives the length of the body.
fn refused_line<C>(stream: &RequestStream<C>, rest: &[u8], error: &hyper::Error) -> Option<String> {
    let error = error.to_string();
    match stream.request_start() {
        Some(beginning) => request_line::shown(beginning),
        None if ["content-length", "transfer-encoding"].iter().any(|field| error.contains(field)) => None,
        None => request_line::shown_if_whole(rest),
    }
}
