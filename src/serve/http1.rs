//! HTTP/1.1 on a connection, over TLS after its handshake or over plain TCP, until either end closes it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
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

type HttpConnection<S> = Pin<Box<http1::Connection<TokioIo<RequestStream<S>>, RequestService>>>;

/// Serves HTTP/1.1 on `stream`, which is that of `connection`, until either end closes it.
///
/// Not an `async fn`, whose future would reserve memory for the stream twice: as an argument, and where it is used.
pub fn serve_connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    connection: HttpClient,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> impl Future<Output = CloseReason> {
    let connection = Arc::new(connection);
    let stream = RequestStream::new(stream, connection.timeouts.clone(), connection.linger.clone());
    let mut http = http1::Builder::new();
    // `TimeoutStream`, beneath TLS, enforces the timeouts. Half-close: an upload is stored even if its client closes
    // its sending half and does not wait for the response.
    http.header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES).half_close(true);
    let http = Box::pin(http.serve_connection(TokioIo::new(stream), RequestService(Arc::clone(&connection))));
    serve(http, connection, shutdown)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut http: HttpConnection<S>,
    connection: Arc<HttpClient>,
    mut shutdown: watch::Receiver<ShutdownPhase>,
) -> CloseReason {
    tokio::select! {
        // In this order: if HTTP begins to discard a body, its discarding is polled at once.
        biased;
        result = http.as_mut() => return close(&connection, result, http),
        never = connection.discard() => match never {},
        eviction = connection.evicted() => return evicted(&connection, &eviction),
        () = wait_for(&mut shutdown, ShutdownPhase::Drain) => {}
    }
    // Closes an idle connection at once. A request in progress may finish within the drain time.
    http.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        result = http.as_mut() => close(&connection, result, http),
        never = connection.discard() => match never {},
        why = end_of_drain(&mut shutdown, connection.server.limits.drain()) => {
            connection.timeouts.abort(why);
            CloseReason::CutOff
        }
    }
}

/// Logs the eviction.
fn evicted(connection: &HttpClient, eviction: &Eviction) -> CloseReason {
    let mut record = connection.record(clock::now());
    record.reason = Some(eviction.to_string());
    record.kind = Some(RefusalKind::Evicted);
    connection.server.access.record(record);
    CloseReason::Closed
}

/// Waits until the request in progress is to be cut off, and returns the reason.
async fn end_of_drain(shutdown: &mut watch::Receiver<ShutdownPhase>, drain: Duration) -> &'static str {
    tokio::select! {
        () = tokio::time::sleep(drain) => "closed at the end of the drain time (limits.drain_s)",
        () = wait_for(shutdown, ShutdownPhase::Now) => "closed because of a second stop signal",
    }
}

/// Logs a request that hyper refused or that timed out in its header. Such a request never reaches [`RequestService`].
fn close<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    connection: &HttpClient,
    result: hyper::Result<()>,
    http: HttpConnection<S>,
) -> CloseReason {
    let Err(error) = result else { return CloseReason::Closed };
    let stream = Pin::into_inner(http).into_parts().io.into_inner();
    let line = || request_line::shown(stream.request_start()?);
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
