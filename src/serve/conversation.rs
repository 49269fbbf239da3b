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

use super::pace::Requests;
use super::request::{Answers, Connection};
use super::request_line;
use super::stop::{End, Stop, told};
use crate::clock;

/// The most header fields of a request.
const MAX_HEADERS: usize = 64;
/// The longest header of a request, in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// How long a peer is silent before it is at rest.
const REST_AFTER: Duration = Duration::from_millis(250);

/// What HTTP can be spoken on.
pub trait Channel: AsyncBufRead + AsyncWrite + Unpin + Send + 'static {}

impl<C: AsyncBufRead + AsyncWrite + Unpin + Send + 'static> Channel for C {}

/// Boxed, because it would otherwise be copied, and have room kept for it, wherever it goes.
type Stream<C> = Box<Requests<C>>;

type Http<C> = Pin<Box<http1::Connection<TokioIo<Stream<C>>, Answers>>>;

/// HTTP/1.1 on the connection whose `stream` this is, until either end closes it.
///
/// Not an `async fn`, which would keep room for the stream where it came in beside where it is used.
pub fn converse<C: Channel>(
    stream: C,
    connection: Connection,
    stop: watch::Receiver<Stop>,
) -> impl Future<Output = End> {
    let stream = Box::new(Requests::new(stream, connection.pace.clone(), connection.farewell.clone()));
    speak_and_rest(stream, Arc::new(connection), stop)
}

async fn speak_and_rest<C: Channel>(
    mut stream: Stream<C>,
    connection: Arc<Connection>,
    mut stop: watch::Receiver<Stop>,
) -> End {
    loop {
        let mut http = http(stream, &connection);
        tokio::select! {
            // In this order: what HTTP has begun to discard is looked at at once.
            biased;
            result = http.as_mut() => return close(&connection, result, http),
            never = connection.discard() => match never {},
            () = connection.pace.silence(REST_AFTER) => {}
            () = told(&mut stop, Stop::Drain) => return Box::pin(drain(http, &connection, &mut stop)).await,
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
                Err(_) => return End::Closed,
            },
            () = told(&mut stop, Stop::Drain) => break,
        }
    }
    tokio::select! {
        // A peer that does not take even this much is not waited for.
        _ = tokio::time::timeout(connection.server.limits.drain(), stream.shutdown()) => End::Closed,
        () = told(&mut stop, Stop::Now) => End::CutOff,
    }
}

/// Speaks HTTP on `stream`.
fn http<C: Channel>(stream: Stream<C>, connection: &Arc<Connection>) -> Http<C> {
    let mut http = http1::Builder::new();
    // Deadlines are kept by `Paced`, beneath TLS. Half-closed, a peer that does not wait for the answer has still uploaded.
    http.header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES).half_close(true);
    Box::pin(http.serve_connection(TokioIo::new(stream), Answers(Arc::clone(connection))))
}

/// Lets what is under way end, for as long as a drain may take.
async fn drain<C: Channel>(mut http: Http<C>, connection: &Connection, stop: &mut watch::Receiver<Stop>) -> End {
    http.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        result = http.as_mut() => close(connection, result, http),
        never = connection.discard() => match never {},
        why = end_of_drain(stop, connection.server.limits.drain()) => {
            connection.pace.break_off(why);
            End::CutOff
        }
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
fn close<C: Channel>(connection: &Connection, result: hyper::Result<()>, http: Http<C>) -> End {
    let Err(error) = result else { return End::Closed };
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
        _ => return End::Closed,
    }
    connection.server.access.record(record);
    End::Closed
}

/// The line of the request that hyper refused, as far as that is known; `rest` is what hyper has read and not used.
///
/// hyper leaves a request in its buffer that it cannot parse. One that it refuses for how its header says the length of the
/// body is gone from there.
fn asked<C>(stream: &Requests<C>, rest: &[u8], error: &hyper::Error) -> Option<String> {
    let error = error.to_string();
    match stream.beginning() {
        Some(beginning) => request_line::shown(beginning),
        None if ["content-length", "transfer-encoding"].iter().any(|field| error.contains(field)) => None,
        None => request_line::shown_if_whole(rest),
    }
}
