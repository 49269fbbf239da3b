//! The HTTP/1.1 client of one phone: one keep-alive connection, one request at a time.
//!
//! It spawns no task. Each wait for a response also drives the connection, so dropping a boot closes its connection.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::address::{InvalidUrl, Location, UrlOrigin};
use super::connect::{self, ClientTlsFacts, ConnectError, TlsFailure, UnexpectedTls};
use super::password::DigestCredentials;
use super::upload::{PutBody, UploadHandle};
use crate::constituency::MacAddress;
use crate::wording::{counted, find_tls_error};

/// The timeout for a response's head.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout for the next part of a body.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest body that is kept in memory. A larger configuration is a mistake or an attack. Firmware is only counted.
const MAX_KEPT_BODY: u64 = 16 << 20;

/// One request of a phone.
pub(super) struct ClientRequest<'a> {
    pub(super) method: Method,
    pub(super) location: &'a Location,
    pub(super) user_agent: &'a str,
    /// The body of a PUT.
    pub(super) body: Option<Bytes>,
    /// The `Content-Range`: where the body belongs in the server's file.
    pub(super) content_range: Option<String>,
}

/// A complete response.
pub(super) struct ClientResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Empty if the body was only counted.
    pub(super) body: Bytes,
    pub(super) received: u64,
}

/// How to handle a response's body.
pub(super) enum BodySink<'a> {
    /// Keep it, up to 16 MiB.
    Keep,
    /// Count it. The callback gets the bytes so far, and the total if the server sent a length.
    Count(&'a mut (dyn FnMut(u64, Option<u64>) + Send)),
}

/// Why a request got no complete response.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The master configuration names a URL that cannot be requested.
    #[error(transparent)]
    Unusable(#[from] InvalidUrl),
    /// The connection could not be opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused in TLS after the handshake, as TLS 1.3 does with client certificates.
    #[error(transparent)]
    Tls(#[from] TlsFailure),
    /// A header is invalid.
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    /// The server closed the connection without a response.
    #[error("the server closed the connection without a response")]
    Closed,
    /// The response's head did not come within the timeout.
    #[error("no response within {} s", RESPONSE_TIMEOUT.as_secs())]
    NoAnswer,
    /// The body stalled.
    #[error("the response stalled for {} s after {}", PROGRESS_TIMEOUT.as_secs(), counted(*.received, "byte"))]
    Stalled {
        /// The bytes received so far.
        received: u64,
    },
    /// The connection broke in the body.
    #[error("the response ended early, after {received} bytes: {source}")]
    BrokenOff {
        /// The bytes received so far.
        received: u64,
        /// The error of the HTTP library.
        source: hyper::Error,
    },
    /// The configuration is larger than the limit.
    #[error("the file is larger than the {} MiB that a configuration may have", MAX_KEPT_BODY >> 20)]
    TooLarge,
    /// The request was plain HTTP, and the server speaks TLS.
    #[error("the server expects TLS there, not plain HTTP; use https://")]
    InTheClear,
    /// The response is not HTTP/1.1, or the connection broke.
    #[error("HTTP failed: {}", with_cause(.0))]
    Http(hyper::Error),
}

/// The client of one phone.
pub(super) struct Client<'a> {
    target: &'a super::BootTarget,
    tls: Arc<rustls::ClientConfig>,
    prover: Option<DigestCredentials>,
    connection: Option<ClientConnection>,
    facts: Option<ClientTlsFacts>,
}

struct ClientConnection {
    origin: UrlOrigin,
    sender: SendRequest<PutBody>,
    driver: Driver,
}

/// Drives the connection while the client waits for something else.
///
/// Once the connection has ended it is dropped at once: only the drop wakes the tasks that wait for its other half.
enum Driver {
    Open(Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>),
    Ended(hyper::Result<()>),
}

impl<'a> Client<'a> {
    /// The client of the phone `mac`.
    pub(super) fn new(target: &'a super::BootTarget, tls: rustls::ClientConfig, mac: MacAddress) -> Self {
        let prover = target.password.clone().map(|password| DigestCredentials::new(mac.to_string(), password));
        Self { target, tls: Arc::new(tls), prover, connection: None, facts: None }
    }

    /// The parameters of the last TLS handshake.
    pub(super) fn tls_facts(&self) -> Option<&ClientTlsFacts> {
        self.facts.as_ref()
    }

    /// Sends `request`. If the server asks for a password, sends it again with the answer to the challenge.
    pub(super) async fn exchange(
        &mut self,
        request: &ClientRequest<'_>,
        sink: BodySink<'_>,
    ) -> Result<ClientResponse, ExchangeError> {
        let mut answered = self.ask(request).await?;
        if answered.head.status == StatusCode::UNAUTHORIZED
            && self.prover_for(&request.location.origin).is_some_and(|it| it.store_challenge(&answered.head.headers))
        {
            self.connection = answered.read(BodySink::Keep).await?.0;
            answered = self.ask(request).await?;
        }
        let (connection, answer) = answered.read(sink).await?;
        self.connection = connection;
        Ok(answer)
    }

    /// Sends `request`, on the open connection if there is one to this server.
    ///
    /// The server may have closed an idle connection, and only sending shows it. In that case the request is sent again
    /// on a new connection.
    async fn ask(&mut self, request: &ClientRequest<'_>) -> Result<Answered, ExchangeError> {
        let kept = self.connection.take().filter(|kept| kept.serves(&request.location.origin));
        if let Some(kept) = kept {
            match kept.send(request, self.authorization(request)).await {
                Err(ExchangeError::Closed) => {}
                other => return other,
            }
        }
        let authorization = self.authorization(request);
        self.open(&request.location.origin).await?.send(request, authorization).await
    }

    fn authorization(&mut self, request: &ClientRequest<'_>) -> Option<String> {
        self.prover_for(&request.location.origin)?.answer(request.method.as_str(), &request.location.path)
    }

    /// The password belongs to one server. It is not proved to any other server, and never over plain HTTP.
    fn prover_for(&mut self, origin: &UrlOrigin) -> Option<&mut DigestCredentials> {
        let is_home = origin.secure && origin == self.target.url.origin();
        self.prover.as_mut().filter(|_| is_home)
    }

    async fn open(&mut self, origin: &UrlOrigin) -> Result<ClientConnection, ExchangeError> {
        let resolve = self.target.resolve.filter(|_| origin == self.target.url.origin());
        let transport = connect::connect(origin, resolve, &self.tls).await?;
        if let Some(facts) = transport.facts() {
            self.facts = Some(facts);
        }
        let handshake = http1::handshake(TokioIo::new(transport)).await;
        let (sender, connection) = handshake.map_err(ExchangeError::Http)?;
        let driver = Driver::Open(Box::pin(connection));
        Ok(ClientConnection { origin: origin.clone(), sender, driver })
    }
}

/// A response whose body is not read yet.
struct Answered {
    connection: ClientConnection,
    head: http::response::Parts,
    body: Incoming,
    upload: Option<UploadHandle>,
}

impl ClientConnection {
    fn serves(&self, origin: &UrlOrigin) -> bool {
        self.origin == *origin && !self.sender.is_closed()
    }

    async fn send(
        mut self,
        request: &ClientRequest<'_>,
        authorization: Option<String>,
    ) -> Result<Answered, ExchangeError> {
        let (http_request, upload) = build(request, authorization)?;
        let answer = self.driver.alongside(self.sender.send_request(http_request));
        match timeout(RESPONSE_TIMEOUT, answer).await {
            Err(_) => Err(ExchangeError::NoAnswer),
            Ok(Err(error)) => Err(self.driver.explain(error).await),
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                Ok(Answered { connection: self, head, body, upload })
            }
        }
    }

    /// The connection, if it can take another request.
    async fn when_ready(mut self) -> Option<Self> {
        let ready = timeout(PROGRESS_TIMEOUT, self.driver.alongside(self.sender.ready())).await;
        matches!(ready, Ok(Ok(()))).then_some(self)
    }
}

impl Answered {
    async fn read(
        mut self,
        mut sink: BodySink<'_>,
    ) -> Result<(Option<ClientConnection>, ClientResponse), ExchangeError> {
        let expected = http_body::Body::size_hint(&self.body).exact();
        let (mut kept, mut received) = (BytesMut::new(), 0);
        loop {
            let frame = self.connection.driver.alongside(self.body.frame());
            let frame = timeout(PROGRESS_TIMEOUT, frame).await.map_err(|_| ExchangeError::Stalled { received })?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|source| broken_off(received, source))?;
            let Ok(data) = frame.into_data() else { continue };
            received += data.len() as u64;
            match &mut sink {
                BodySink::Keep if received > MAX_KEPT_BODY => return Err(ExchangeError::TooLarge),
                BodySink::Keep => kept.extend_from_slice(&data),
                BodySink::Count(watch) => watch(received, expected),
            }
        }
        let http::response::Parts { status, headers, .. } = self.head;
        let reusable = self.upload.is_none_or(|upload| upload.was_sent());
        let connection = if reusable { self.connection.when_ready().await } else { None };
        Ok((connection, ClientResponse { status, headers, body: kept.freeze(), received }))
    }
}

impl Driver {
    async fn alongside<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            if let Self::Open(connection) = self
                && let Poll::Ready(ended) = connection.as_mut().poll(cx)
            {
                *self = Self::Ended(ended);
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Explains why a request failed. If the connection broke while the request was being written, the connection's
    /// error says more than the request's.
    async fn explain(mut self, error: hyper::Error) -> ExchangeError {
        if find_tls_error(&error).is_none() && error.is_canceled() {
            // Poll once more: the connection may have its error ready, or none.
            self.alongside(tokio::task::yield_now()).await;
        }
        match self {
            Self::Ended(Err(cause)) if find_tls_error(&error).is_none() => explain(cause),
            _ => explain(error),
        }
    }
}

fn explain(error: hyper::Error) -> ExchangeError {
    match find_tls_error(&error) {
        Some(tls) => ExchangeError::Tls(TlsFailure::from(tls)),
        None if error.is_canceled() || error.is_closed() || error.is_incomplete_message() => ExchangeError::Closed,
        None if met_tls(&error) => ExchangeError::InTheClear,
        None if was_reset(&error) => ExchangeError::Closed,
        None => ExchangeError::Http(error),
    }
}

fn met_tls(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.and_then(std::io::Error::get_ref).and_then(|inner| inner.downcast_ref::<UnexpectedTls>()).is_some()
}

/// Whether the peer had already closed the connection.
fn was_reset(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|source| matches!(source.kind(), BrokenPipe | ConnectionReset | UnexpectedEof))
}

fn broken_off(received: u64, source: hyper::Error) -> ExchangeError {
    match find_tls_error(&source) {
        Some(tls) => ExchangeError::Tls(TlsFailure::from(tls)),
        None => ExchangeError::BrokenOff { received, source },
    }
}

fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn build(
    request: &ClientRequest<'_>,
    authorization: Option<String>,
) -> Result<(http::Request<PutBody>, Option<UploadHandle>), http::Error> {
    let mut head = http::Request::builder()
        .method(&request.method)
        .uri(request.location.path.as_str())
        .header(header::HOST, request.location.origin.authority())
        .header(header::USER_AGENT, request.user_agent)
        .header(header::ACCEPT, "*/*");
    if let Some(authorization) = authorization {
        head = head.header(header::AUTHORIZATION, authorization);
    }
    if let Some(range) = &request.content_range {
        head = head.header(header::CONTENT_RANGE, range);
    }
    let Some(bytes) = &request.body else {
        return Ok((head.body(PutBody::none())?, None));
    };
    let (body, handle) = PutBody::expecting_continue(bytes.clone());
    let mut request = head.header(header::EXPECT, "100-continue").body(body)?;
    let open = handle.opener();
    hyper::ext::on_informational(&mut request, move |answer| {
        if answer.status() == StatusCode::CONTINUE {
            open();
        }
    });
    Ok((request, Some(handle)))
}
