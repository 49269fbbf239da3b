//! HTTPS to a CA: one connection per request, timeouts, bounded bodies. Keeps the status and headers of the last
//! response.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{DATE, HOST, LINK, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::proxy::{self, ProxySettings};
use super::refusal;
use super::response_headers::ResponseHeaders;
use crate::acme::failure::AcmeFailure;
use crate::clock;
use crate::files::read_regular;
use crate::wording::{find_tls_error, tls_error};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Long, because a CA may issue the certificate before it responds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
const MAX_BODY: usize = 1 << 20;
/// What to do where the network may be the cause.
const ON_THE_WAY: &str = "if this recurs, see the CA's status page, and whether a firewall or a proxy on the way interferes \
                          (`curl -v` with this URL)";
const OUR_NAME: &str = concat!("provost/", env!("CARGO_PKG_VERSION"));

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An HTTPS client for one CA.
pub(super) struct AcmeHttp {
    tls: TlsConnector,
    proxy: ProxySettings,
    answer_timeout: Duration,
    last_response: Mutex<ResponseHeaders>,
}

/// [`AcmeHttp`] as the HTTP client of instant-acme.
pub(super) struct HttpPort(pub(super) Arc<AcmeHttp>);

impl AcmeHttp {
    /// Trusts the roots in the PEM file `root`, or without it the web's roots.
    pub(super) fn new(root: Option<&Path>) -> Result<Self, AcmeFailure> {
        let roots = match root {
            Some(file) => read_roots(file)
                .map_err(|error| AcmeFailure::action_required(format!("{}: {error}", file.display())))?,
            None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| AcmeFailure::action_required(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (tls, proxy) = (TlsConnector::from(Arc::new(config)), ProxySettings::from_environment());
        Ok(Self { tls, proxy, answer_timeout: ANSWER_TIMEOUT, last_response: Mutex::default() })
    }

    /// The status, headers and body of the last response.
    pub(super) fn seen(&self) -> ResponseHeaders {
        self.last_response.lock().clone()
    }

    /// The nonce of the last response.
    pub(super) fn nonce(&self) -> Result<String, AcmeFailure> {
        self.seen().nonce.ok_or_else(|| AcmeFailure::retry("the CA gives no nonce"))
    }

    /// Sends a GET and fails unless the status is 2xx. Afterwards [`seen`](Self::seen) returns this response.
    pub(super) async fn get(&self, url: &str) -> Result<Bytes, AcmeFailure> {
        let request =
            Request::get(url).body(Bytes::new()).map_err(|error| AcmeFailure::action_required(error.to_string()))?;
        let answered = self.exchange(request).await;
        let (_, body) = answered.map_err(|error| AcmeFailure::retry(error.to_string()))?;
        let seen = self.seen();
        if seen.is_good() {
            return Ok(body);
        }
        Err(refusal::of_status(format!("{url}: the CA answered {}", seen.status), seen.status, &seen))
    }

    /// Sends a request and keeps the status and headers of its response. An error names the URL.
    ///
    /// A redirect is an error: a signed request holds the URL to which it is sent (RFC 8555 §6.4).
    pub(super) async fn exchange(&self, request: Request<Bytes>) -> Result<(http::response::Parts, Bytes), BoxError> {
        let url = request.uri().to_string();
        let failed = |reason: &dyn std::fmt::Display| BoxError::from(format!("{url}: {reason}"));
        let skew = self.seen().clock_skew;
        self.record(ResponseHeaders { url: url.clone(), clock_skew: skew, ..ResponseHeaders::default() });
        let (parts, body) = match timeout(self.answer_timeout, self.send(request)).await {
            Ok(answered) => answered.map_err(|error| failed(&explain(error)))?,
            Err(_) => {
                let limit = self.answer_timeout.as_secs();
                return Err(failed(&format_args!("the CA did not answer within {limit} s; {ON_THE_WAY}")));
            }
        };
        self.record(ResponseHeaders {
            url: url.clone(),
            status: parts.status.as_u16(),
            retry_after: retry_after(&parts.headers),
            clock_skew: date(&parts.headers).map(|date| date - clock::unix_seconds(clock::now())).or(skew),
            alternates: links(&parts.headers, "alternate"),
            terms_of_service: links(&parts.headers, "terms-of-service").into_iter().next(),
            body: body.clone(),
            nonce: parts.headers.get("replay-nonce").and_then(|nonce| nonce.to_str().ok()).map(str::to_owned),
        });
        if parts.status.is_redirection() {
            return Err(failed(&redirect(&parts)));
        }
        Ok((parts, body))
    }

    pub(super) fn record(&self, seen: ResponseHeaders) {
        *self.last_response.lock() = seen;
    }

    async fn send(&self, mut request: Request<Bytes>) -> Result<(http::response::Parts, Bytes), BoxError> {
        let uri = request.uri().clone();
        let host = uri.host().ok_or("the URL names no host")?.trim_matches(['[', ']']).to_owned();
        if uri.scheme_str() != Some("https") {
            return Err("the URL is not https".into());
        }
        let tcp = match self.proxy.for_uri(&uri) {
            Some(proxy) => proxy::connect(&uri, proxy?).await?,
            None => connect(&host, uri.port_u16().unwrap_or(443)).await?,
        };
        let tls = self.tls.connect(ServerName::try_from(host)?, tcp).await?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>()?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        request.headers_mut().insert(HOST, HeaderValue::from_str(authority)?);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(OUR_NAME));
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        let mut answer = std::pin::pin!(async move {
            let (parts, body) = sender.send_request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
                if !error.is::<LengthLimitError>() {
                    return error;
                }
                let text = "its answer is longer than the answers of ACME";
                format!("{text} ({MAX_BODY} bytes); check that the \"directory\" is the URL of an ACME CA").into()
            })?;
            Ok::<_, BoxError>((parts, body.to_bytes()))
        });
        tokio::select! {
            answer = &mut answer => answer,
            // The connection has ended; the response carries the error, if there was one.
            _ = connection => answer.await,
        }
    }
}

impl HttpClient for HttpPort {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let http = Arc::clone(&self.0);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // A body in memory cannot fail.
            let Ok(body) = body.collect().await;
            let exchanged = http.exchange(Request::from_parts(parts, body.to_bytes())).await;
            let (parts, body) = exchanged.map_err(instant_acme::Error::Other)?;
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

/// Explains a closed connection, and TLS errors. For an unknown issuer it hints at `directory_root`, since a private CA has its
/// own root.
fn explain(error: BoxError) -> BoxError {
    let Some(tls) = find_tls_error(&*error) else {
        let text = if is_closed(&*error) { "the CA closed the connection before its answer was complete" } else { "" };
        return if text.is_empty() { error } else { format!("{text}; {ON_THE_WAY}").into() };
    };
    let hint = match tls {
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::Other(_),
        ) => "; if the CA's directory has a root of its own, name it in \"directory_root\"",
        _ => "",
    };
    format!("{}{hint}", tls_error(tls)).into()
}

/// Whether the other end closed the connection, as an error of hyper, or of a socket.
fn is_closed(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        let is_closed_http = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message);
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        is_closed_http
            || matches!(kind, Some(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
    })
}

/// Explains a redirect.
fn redirect(parts: &http::response::Parts) -> String {
    let status = parts.status.as_u16();
    match parts.headers.get(LOCATION).and_then(|target| target.to_str().ok()) {
        Some(target) => format!(
            "the CA redirects (HTTP {status}) to {target}, and ACME has no redirects; if the CA has moved, write the URL of its \
             new directory to \"directory\"; else ask the CA, or see what a proxy on the way does"
        ),
        None => format!(
            "the answer is a redirect (HTTP {status}) that names no URL (Location), and ACME has no redirects; check that the \
             \"directory\" is the URL of an ACME CA; {ON_THE_WAY}"
        ),
    }
}

/// Connects to the first address of `host` that answers.
async fn connect(host: &str, port: u16) -> Result<TcpStream, BoxError> {
    let late = |_| format!("no address of {host} is found within {} s", CONNECT_TIMEOUT.as_secs());
    let found = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host, port))).await.map_err(late)?;
    let addresses = found.map_err(|error| format!("{host}: {error}"))?;
    let connected = first_to_answer(addresses, CONNECT_TIMEOUT).await;
    connected.map_err(|why| why.unwrap_or_else(|| format!("{host} has no address")).into())
}

/// Tries the addresses in turn, each for at most `limit`, so that an unreachable one does not block the next. Fails
/// with the reason of the last.
async fn first_to_answer(
    addresses: impl IntoIterator<Item = SocketAddr>,
    limit: Duration,
) -> Result<TcpStream, Option<String>> {
    let mut last = None;
    for address in addresses {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(format!("{address}: {error}")),
            Err(_) => last = Some(format!("{address}: no connection within {} s", limit.as_secs())),
        }
    }
    Err(last)
}

fn read_roots(file: &Path) -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read_regular(file)?) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err("holds no certificate".into()) } else { Ok(roots) }
}

fn date(headers: &HeaderMap) -> Option<i64> {
    http_date(headers.get(DATE)?)
}

fn http_date(value: &HeaderValue) -> Option<i64> {
    let time: SystemTime = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    Some(clock::unix_seconds(time))
}

/// Reads Retry-After: seconds, or a date relative to the server's Date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<i64> {
    let value = headers.get(RETRY_AFTER)?;
    let seconds = value.to_str().ok()?.trim().parse().ok();
    seconds.or_else(|| Some(http_date(value)? - date(headers)?)).map(|seconds: i64| seconds.max(0))
}

/// The URLs of `Link: <URL>;rel="RELATION"`, one or several per line.
fn links(headers: &HeaderMap, relation: &str) -> Vec<String> {
    let values = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let links = values.flat_map(|value| value.split(',')).filter_map(|link| {
        let (url, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        let mut parameters = rest.split(';').filter_map(|part| part.trim().strip_prefix("rel="));
        parameters.any(|found| found.trim_matches('"') == relation).then(|| url.to_owned())
    });
    links.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(http::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_server_clock() {
        let date = (DATE, "Mon, 23 Nov 2026 07:00:00 GMT");
        assert_eq!(retry_after(&headers(&[(RETRY_AFTER, " 120 ")])), Some(120));
        assert_eq!(retry_after(&headers(&[date.clone(), (RETRY_AFTER, "Mon, 23 Nov 2026 07:01:30 GMT")])), Some(90));
        assert_eq!(retry_after(&headers(&[date.clone(), (RETRY_AFTER, "Mon, 23 Nov 2026 06:00:00 GMT")])), Some(0));
        assert_eq!(retry_after(&headers(&[date, (RETRY_AFTER, "soon")])), None);
    }

    #[tokio::test]
    async fn connect_times_out_and_tries_the_next_address() {
        let listen = |backlog| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            socket.listen(backlog).unwrap()
        };
        // A listener with a full backlog drops further connection attempts.
        let full = listen(0);
        let _waiting = TcpStream::connect(full.local_addr().unwrap()).await.unwrap();
        let good = listen(16);
        let limit = Duration::from_millis(200);
        let addresses = [full.local_addr().unwrap(), good.local_addr().unwrap()];
        let connected = first_to_answer(addresses, limit).await.unwrap();
        assert_eq!(connected.peer_addr().unwrap(), good.local_addr().unwrap());
        let refused = first_to_answer([full.local_addr().unwrap()], limit).await.unwrap_err().unwrap();
        assert!(refused.contains("no connection within"), "{refused}");
    }

    #[tokio::test]
    async fn hanging_ca_is_named_with_the_url() {
        // It accepts connections, and never answers the TLS handshake.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/dir", listener.local_addr().unwrap());
        let http = AcmeHttp { answer_timeout: Duration::from_secs(1), ..AcmeHttp::new(None).unwrap() };
        let failure = http.get(&url).await.unwrap_err();
        assert!(failure.message.starts_with(&format!("{url}: the CA did not answer within 1 s")), "{failure}");
    }

    #[tokio::test]
    async fn connection_that_the_ca_closes_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/dir", listener.local_addr().unwrap());
        let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let failure = AcmeHttp::new(None).unwrap().get(&url).await.unwrap_err();
        closing.join().unwrap();
        let start = format!("{url}: the CA closed the connection before its answer was complete; ");
        assert!(failure.message.starts_with(&start) && failure.message.ends_with(ON_THE_WAY), "{failure}");
    }

    #[test]
    fn alternate_chains_are_read_from_link_headers() {
        let headers = headers(&[(
            LINK,
            r#"<https://ca/dir>;rel="index", <https://ca/1/alt>; rel="alternate",<https://ca/2>;rel=alternate"#,
        )]);
        assert_eq!(links(&headers, "alternate"), ["https://ca/1/alt", "https://ca/2"]);
        assert!(links(&headers, "terms-of-service").is_empty());
    }
}
