//! One phone's HTTP/1.1 client: one connection, kept as long as it lasts, one request after the other.
//!
//! Nothing is spawned: the connection is driven alongside whatever waits for it, so dropping a boot drops its
//! connection.

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

use super::address::{Location, UnusableUrl, UrlOrigin};
use super::connect::{self, ClientTlsFacts, ConnectError, SpeaksTls, TlsFailure};
use super::password::Prover;
use super::upload::{PutBody, UploadHandle};
use crate::constituency::MacAddress;
use crate::wording::{counted, find_tls_error};

/// How long a server may think about its answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may stand still.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// A configuration larger than this is a mistake or an attack; firmware is never held.
const MAX_KEPT_BODY: u64 = 16 << 20;

/// A request as a phone makes it.
pub(super) struct ClientRequest<'a> {
    pub(super) method: Method,
    pub(super) location: &'a Location,
    pub(super) user_agent: &'a str,
    /// The bytes of a PUT.
    pub(super) body: Option<Bytes>,
    /// Where in the server's file they belong.
    pub(super) content_range: Option<String>,
}

/// A whole answer.
pub(super) struct ClientResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Empty where the body was only counted.
    pub(super) body: Bytes,
    pub(super) received: u64,
}

/// What becomes of an answer's body.
pub(super) enum BodySink<'a> {
    /// It is kept, up to 16 MiB.
    Keep,
    /// It is counted: bytes so far, and in all if the server said.
    Count(&'a mut (dyn FnMut(u64, Option<u64>) + Send)),
}

/// Why a request got no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The master configuration names something that cannot be asked for.
    #[error(transparent)]
    Unusable(#[from] UnusableUrl),
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused in TLS after the handshake, as TLS 1.3 does with client certificates.
    #[error(transparent)]
    Tls(#[from] TlsFailure),
    /// Headers that cannot be sent.
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    /// The server hung up instead of answering.
    #[error("the server closed the connection without an answer")]
    Closed,
    /// Connected, asked, and then nothing.
    #[error("no answer within {} s", RESPONSE_TIMEOUT.as_secs())]
    NoAnswer,
    /// A body that stopped.
    #[error("the answer stood still for {} s after {}", PROGRESS_TIMEOUT.as_secs(), counted(*.received, "byte"))]
    Stalled {
        /// How much had come.
        received: u64,
    },
    /// A body that broke off.
    #[error("the answer broke off after {received} bytes: {source}")]
    BrokenOff {
        /// How much had come.
        received: u64,
        /// What the HTTP library said.
        source: hyper::Error,
    },
    /// More configuration than a phone takes.
    #[error("the file is larger than the {} MiB that a configuration may have", MAX_KEPT_BODY >> 20)]
    TooLarge,
    /// It was asked in the clear, where TLS is spoken.
    #[error("TLS is spoken there, and not plain HTTP; use https://")]
    InTheClear,
    /// An answer that is not HTTP/1.1, or a broken connection.
    #[error("HTTP failed: {}", with_cause(.0))]
    Http(hyper::Error),
}

/// One phone's client.
pub(super) struct Client<'a> {
    target: &'a super::BootTarget,
    tls: Arc<rustls::ClientConfig>,
    prover: Option<Prover>,
    connection: Option<ClientConnection>,
    facts: Option<ClientTlsFacts>,
}

struct ClientConnection {
    origin: UrlOrigin,
    sender: SendRequest<PutBody>,
    driver: Driver,
}

/// Moves the connection's bytes while somebody waits for them.
///
/// An ended connection is dropped at once: only that tells those who wait for its other half.
enum Driver {
    Open(Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>),
    Ended(hyper::Result<()>),
}

impl<'a> Client<'a> {
    /// That of the phone `mac`.
    pub(super) fn new(target: &'a super::BootTarget, tls: rustls::ClientConfig, mac: MacAddress) -> Self {
        let prover = target.password.clone().map(|password| Prover::new(mac.to_string(), password));
        Self { target, tls: Arc::new(tls), prover, connection: None, facts: None }
    }

    /// What the last TLS handshake agreed on.
    pub(super) fn tls_facts(&self) -> Option<&ClientTlsFacts> {
        self.facts.as_ref()
    }

    /// Makes `request`, and once more where the server first asks for a password.
    pub(super) async fn exchange(
        &mut self,
        request: &ClientRequest<'_>,
        sink: BodySink<'_>,
    ) -> Result<ClientResponse, ExchangeError> {
        let mut answered = self.ask(request).await?;
        if answered.head.status == StatusCode::UNAUTHORIZED
            && self.prover_for(&request.location.origin).is_some_and(|it| it.is_asked(&answered.head.headers))
        {
            self.connection = answered.read(BodySink::Keep).await?.0;
            answered = self.ask(request).await?;
        }
        let (connection, answer) = answered.read(sink).await?;
        self.connection = connection;
        Ok(answer)
    }

    /// Asks on the open connection where there is one to that server.
    ///
    /// A kept connection may have been closed by the server in the meantime, which only using it shows: then the
    /// request is made once more on a new one.
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

    /// The password is that of one server, and is proved to no other, nor in the clear.
    fn prover_for(&mut self, origin: &UrlOrigin) -> Option<&mut Prover> {
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

/// An answer whose body is still to come.
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

    /// The connection again, if it can take another request.
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

    /// A request's error tells less than its connection's when the connection broke while the request was written.
    async fn explain(mut self, error: hyper::Error) -> ExchangeError {
        if find_tls_error(&error).is_none() && error.is_canceled() {
            // One more turn, for a connection that has its reason ready; it may also have none.
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
    source.and_then(std::io::Error::get_ref).and_then(|inner| inner.downcast_ref::<SpeaksTls>()).is_some()
}

/// Whether the other side had already gone when this one wrote or read.
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
