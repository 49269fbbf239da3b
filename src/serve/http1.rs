//! A conversation: HTTP/1.1 on a connection, over TLS whose handshake is done or over nothing at all, until either end closes it.
//!
//! A peer that has been silent for a moment is at rest: what HTTP keeps for it, most of what a connection takes of
//! memory, is given back, and made anew when it speaks. Phones are silent for most of their lives.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::request::{HttpClient, RequestService};
use super::request_line;
use super::shutdown::{CloseReason, ShutdownPhase, told};
use super::timeouts::RequestStream;
use crate::clock;

/// The most header fields of a request.
const MAX_HEADERS: usize = 64;
/// The longest header of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// How long a peer is silent before it is at rest.
const SUSPEND_AFTER: Duration = Duration::from_millis(250);

/// What HTTP can be spoken on.
pub trait ClientStream: AsyncBufRead + AsyncWrite + Unpin + Send + 'static {}

impl<C: AsyncBufRead + AsyncWrite + Unpin + Send + 'static> ClientStream for C {}

/// Boxed, because it would otherwise be copied, and have room kept for it, wherever it goes.
type Stream<C> = Box<RequestStream<C>>;

type HttpConnection<C> = Pin<Box<http1::Connection<TokioIo<Stream<C>>, RequestService>>>;

/// HTTP/1.1 on the connection whose `stream` this is, until either end closes it.
///
/// Not an `async fn`, which would keep room for the stream where it came in beside where it is used.
pub fn serve_connection<C: ClientStream>(
    stream: C,
    connection: HttpClient,
    stop: watch::Receiver<ShutdownPhase>,
) -> impl Future<Output = CloseReason> {
    let stream = Box::new(RequestStream::new(stream, connection.pace.clone(), connection.farewell.clone()));
    serve_until_idle(stream, Arc::new(connection), stop)
}

async fn serve_until_idle<C: ClientStream>(
    mut stream: Stream<C>,
    connection: Arc<HttpClient>,
    mut stop: watch::Receiver<ShutdownPhase>,
) -> CloseReason {
    loop {
        let mut http = http(stream, &connection);
        tokio::select! {
            // In this order: what HTTP has begun to discard is looked at at once.
            biased;
            result = http.as_mut() => return close(&connection, result, http),
            never = connection.discard() => match never {},
            () = connection.pace.wait_idle(SUSPEND_AFTER) => {}
            () = told(&mut stop, ShutdownPhase::Drain) => return Box::pin(drain(http, &connection, &mut stop)).await,
        }
        let parts = Pin::into_inner(http).into_parts();
        stream = parts.io.into_inner();
        stream.unread(&parts.read_buf);
        drop(parts.read_buf);
        tracing::trace!(address = %connection.address, "at rest");
        tokio::select! {
            spoken = stream.spoken() => match spoken {
                Ok(true) => {}
                Ok(false) => break,
                // Idle for too long, or gone without a word.
                Err(_) => return CloseReason::Closed,
            },
            () = told(&mut stop, ShutdownPhase::Drain) => break,
        }
    }
    tokio::select! {
        // A peer that does not take even this much is not waited for.
        _ = tokio::time::timeout(connection.server.limits.drain(), stream.shutdown()) => CloseReason::Closed,
        () = told(&mut stop, ShutdownPhase::Now) => CloseReason::CutOff,
    }
}

/// Speaks HTTP on `stream`.
fn http<C: ClientStream>(stream: Stream<C>, connection: &Arc<HttpClient>) -> HttpConnection<C> {
    let mut http = http1::Builder::new();
    // Deadlines are kept by `Paced`, beneath TLS. Half-closed, a peer that does not wait for the answer has still uploaded.
    http.header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES).half_close(true);
    Box::pin(http.serve_connection(TokioIo::new(stream), RequestService(Arc::clone(connection))))
}

/// Lets what is under way end, for as long as a drain may take.
async fn drain<C: ClientStream>(
    mut http: HttpConnection<C>,
    connection: &HttpClient,
    stop: &mut watch::Receiver<ShutdownPhase>,
) -> CloseReason {
    http.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        result = http.as_mut() => close(connection, result, http),
        never = connection.discard() => match never {},
        why = end_of_drain(stop, connection.server.limits.drain()) => {
            connection.pace.break_off(why);
            CloseReason::CutOff
        }
    }
}

/// Waits as long as what is under way may take, and says why it may not take longer.
async fn end_of_drain(stop: &mut watch::Receiver<ShutdownPhase>, drain: Duration) -> &'static str {
    tokio::select! {
        () = tokio::time::sleep(drain) => "cut off at the end of the drain (limits.drain_s)",
        () = told(stop, ShutdownPhase::Now) => "cut off by a second signal to stop",
    }
}

/// What hyper refuses by itself never becomes a request of ours; the log tells it all the same.
fn close<C: ClientStream>(connection: &HttpClient, result: hyper::Result<()>, http: HttpConnection<C>) -> CloseReason {
    let Err(error) = result else { return CloseReason::Closed };
    let asked = || {
        let parts = Pin::into_inner(http).into_parts();
        asked(&parts.io.into_inner(), &parts.read_buf, &error)
    };
    let (now, lasted) = (clock::now(), connection.pace.header_lasted());
    let mut record = connection.record(now.checked_sub(lasted).unwrap_or(now));
    record.duration = lasted;
    match connection.pace.broken_off() {
        Some(why) if connection.pace.is_in_header() => {
            record.reason = Some(match asked() {
                Some(line) => format!("{why}; it begins {line}"),
                None => why.to_owned(),
            });
            record.kind = Some("slow");
        }
        // Answered by nothing: the client reads frames, and no text.
        _ if error.is_parse_version_h2() => {
            record.reason = Some("malformed request: HTTP/2 is not spoken here".to_owned());
            record.kind = Some("malformed");
        }
        _ if error.is_parse() => {
            record.status = Some(match &error {
                error if error.is_parse_too_large() => 431,
                error if error.to_string().contains("URI too long") => 414,
                _ => 400,
            });
            record.reason = Some(match asked() {
                Some(line) if request_line::has_raw_space(&line) => {
                    format!("malformed request: a raw space in the target (write %20) in {line}")
                }
                Some(line) => format!("malformed request: {error} in {line}"),
                None => format!("malformed request: {error}"),
            });
            record.kind = Some("malformed");
        }
        _ => return CloseReason::Closed,
    }
    connection.server.access.record(record);
    CloseReason::Closed
}

/// The line of the request that hyper refused, as far as that is known; `rest` is what hyper has read and not used.
///
/// hyper leaves a request in its buffer that it cannot parse. One that it refuses for how its header says the length of the
/// body is gone from there.
fn asked<C>(stream: &RequestStream<C>, rest: &[u8], error: &hyper::Error) -> Option<String> {
    let error = error.to_string();
    match stream.beginning() {
        Some(beginning) => request_line::shown(beginning),
        None if ["content-length", "transfer-encoding"].iter().any(|field| error.contains(field)) => None,
        None => request_line::shown_if_whole(rest),
    }
}
