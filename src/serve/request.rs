//! One request: decided, answered, logged.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::http::request::Parts;
use hyper::service::Service;
use hyper::{Method, Request, Response};

use super::Server;
use super::access_control::{ClientContext, Denial, Grant, HostDenial, RequestTarget, WriteGrant, decide};
use super::access_log::AccessRecord;
use super::connection_limits::ConnectionPermit;
use super::discard::{Discard, RequestBody};
use super::file_lookup;
use super::handshake::TlsClient;
use super::host::{self, BadHost, NamedHost};
use super::lingering_close::LingerControl;
use super::plain_http;
use super::request_log::RequestLog;
use super::response::{self, LoggedBody, ResponseContent};
use super::site::{Current, Site, TlsGeneration};
use super::timeouts::TimeoutControl;
use super::upload::receive::{self, UploadBody};
use crate::clock;
use crate::constituency::{Constituency, ListedPhones, MacAddress, PhoneStanding};
use crate::identity::trust::{ClaimedIdentity, Verdict, VerifiedDevice};

/// How long a request waits for the scan of a folder that was replaced: a change counts within a second.
const REPLACED_FOR: Duration = Duration::from_secs(1);
/// How soon to scan again where the folder is missing, and that does not count as a removal yet.
const SCAN_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// A connection that speaks HTTP: whose requests these are.
#[derive(Debug)]
pub struct HttpClient {
    /// What it serves from.
    pub server: Arc<Server>,
    /// Who is at the other end; `None` over plain HTTP, where nobody says.
    pub peer: Option<TlsClient>,
    /// Where that is.
    pub address: SocketAddr,
    /// What it is waiting for.
    pub pace: TimeoutControl,
    /// Whether its next answer is the last.
    pub farewell: LingerControl,
    /// Its place among all connections.
    pub permit: Mutex<ConnectionPermit>,
    /// The last judgement of its device since the handshake.
    again: Mutex<Option<Arc<Judgement>>>,
    /// The body of a request that was answered without it.
    discard: Discard,
}

/// A device that was judged again, because its constituency's bundles hold something else now.
#[derive(Debug)]
struct Judgement {
    generation: Arc<TlsGeneration>,
    verdict: Verdict,
}

/// What answers a connection's requests.
#[derive(Debug)]
pub struct RequestService(pub Arc<HttpClient>);

impl Service<Request<Incoming>> for RequestService {
    type Response = Response<LoggedBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<Incoming>) -> ResponseFuture {
        self.0.answer(request)
    }
}

/// An answer: there at once, unless a body has to come first. Every connection keeps room for this, so it is small.
pub enum ResponseFuture {
    /// It is there, and taken once.
    Now(Option<Response<LoggedBody>>),
    /// It waits for the request's body.
    Later(Pin<Box<dyn Future<Output = Response<LoggedBody>> + Send>>),
}

impl ResponseFuture {
    fn now(response: Response<LoggedBody>) -> Self {
        Self::Now(Some(response))
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<LoggedBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(response) => response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response))),
            Self::Later(response) => response.as_mut().poll(cx).map(Ok),
        }
    }
}

/// What becomes of a request that is granted.
enum Decided {
    /// The answer is there.
    Answer(Response<ResponseContent>),
    /// The request's body is to be stored.
    Upload(WriteGrant, Arc<Constituency>),
}

impl HttpClient {
    /// A connection that has asked for nothing yet.
    #[must_use]
    pub fn new(
        server: Arc<Server>,
        peer: Option<TlsClient>,
        address: SocketAddr,
        pace: TimeoutControl,
        farewell: LingerControl,
        permit: ConnectionPermit,
    ) -> Self {
        Self {
            server,
            peer,
            address,
            pace,
            farewell,
            permit: Mutex::new(permit),
            again: Mutex::default(),
            discard: Discard::default(),
        }
    }

    /// Reads bodies that nothing takes in, for as long as the connection lasts.
    pub async fn discard(&self) -> Infallible {
        self.discard.run(&self.pace, &self.farewell).await
    }

    /// The phone at the other end, if it proved which one it is.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddress> {
        self.device()?.mac().ok()
    }

    fn device(&self) -> Option<&VerifiedDevice> {
        self.peer.as_ref()?.device.as_ref()?.as_ref().ok()
    }

    /// Whether that phone is known to its constituency now. One that is not may be anybody's.
    #[must_use]
    pub fn is_of_known_phone(&self) -> bool {
        let site = self.server.site.load();
        let constituency = self.peer.as_ref().and_then(|peer| Some(site.get(&peer.constituency)?.0));
        let Some((constituency, device)) = constituency.zip(self.device()) else { return false };
        let is_pinned = |mac| device.pin().is_none_or(|certificate| constituency.is_pinned(mac, certificate));
        device.mac().is_ok_and(|mac| constituency.standing(mac) == PhoneStanding::Known && is_pinned(mac))
    }

    /// A record of something on this connection that began at `time`.
    #[must_use]
    pub fn record(&self, time: SystemTime) -> Box<AccessRecord> {
        let peer = self.peer.as_ref();
        Box::new(AccessRecord {
            time,
            address: self.address,
            constituency: peer.map(|peer| peer.constituency.clone()),
            mac: self.mac(),
            request: None,
            status: None,
            bytes: 0,
            duration: Duration::ZERO,
            user_agent: None,
            reason: None,
            kind: None,
            tls: peer.and_then(|peer| peer.tls),
            certificate_not_after: self.device().map(VerifiedDevice::not_after),
            is_by_password: false,
            claim: peer.and_then(|peer| peer.claim.clone()).map(Box::new),
        })
    }

    /// Answers one request. Its line of the log is written when it is over, however it ends.
    fn answer(self: &Arc<Self>, request: Request<Incoming>) -> ResponseFuture {
        let time = clock::now();
        let mut record = self.record(time);
        let user_agent = request.headers().get(USER_AGENT).map(HeaderValue::as_bytes);
        record.ask(request.method(), request.uri(), user_agent);
        let is_head = request.method() == Method::HEAD;
        let (head, body) = request.into_parts();
        let password = self.check_password(&head);
        if let Some(Ok(mac)) = password {
            record.mac = Some(mac);
            record.is_by_password = true;
        }
        let mut exchange = RequestLog::begin(record, &self.server.access, &self.pace);
        let body = RequestBody::new(body, &head.headers);
        let decided = match self.decide(&head, password.as_ref(), time, &mut exchange) {
            Ok(Decided::Answer(response)) => {
                return ResponseFuture::now(self.finish(Ok(response), body, is_head, exchange));
            }
            Err(denial) if denial != Denial::Replaced => {
                return ResponseFuture::now(self.finish(Err(denial), body, is_head, exchange));
            }
            decided => decided,
        };
        let connection = Arc::clone(self);
        ResponseFuture::Later(Box::pin(async move {
            let mut upload = UploadBody::new(body, &connection.pace);
            let decided = match decided {
                Err(Denial::Replaced) => connection.decide_again(&head, password.as_ref(), &mut exchange).await,
                decided => decided,
            };
            let answer = match decided {
                Ok(Decided::Answer(response)) => Ok(response),
                Ok(Decided::Upload(grant, constituency)) => {
                    let uploads = Arc::clone(&connection.server.uploads);
                    let stored = receive::receive(grant, constituency, uploads, &head.headers, &mut upload).await;
                    stored.map(response::of_upload)
                }
                Err(denial) => Err(denial),
            };
            connection.finish(answer, upload.into_rest(), is_head, exchange)
        }))
    }

    /// Decides by the folder that has taken the place of the constituency's, with the policy that came with it.
    async fn decide_again(
        &self,
        head: &Parts,
        password: Option<&Result<MacAddress, Denial>>,
        exchange: &mut RequestLog,
    ) -> Result<Decided, Denial> {
        let until = clock::monotonic() + REPLACED_FOR;
        loop {
            self.server.scan_folders().await;
            let decided = self.decide(head, password, clock::now(), exchange);
            if !matches!(decided, Err(Denial::Replaced)) || clock::monotonic() >= until {
                return decided;
            }
            tokio::time::sleep(SCAN_AGAIN_AFTER).await;
        }
    }

    /// The answer that is sent: noted, and marked if it is the connection's last. What is left of the request's body is read
    /// meanwhile, if the connection can go on after it.
    fn finish(
        &self,
        answer: Result<Response<ResponseContent>, Denial>,
        body: RequestBody,
        is_head: bool,
        mut exchange: RequestLog,
    ) -> Response<LoggedBody> {
        let mut response = answer.unwrap_or_else(|denial| {
            exchange.refuse(denial.kind(), &denial);
            match &denial {
                Denial::Failed(reason) => {
                    let constituency = self.peer.as_ref().map(|peer| peer.constituency.as_str());
                    let mac = self.mac().map(tracing::field::display);
                    tracing::error!(constituency, mac, "{reason}");
                }
                Denial::Unpinned { mac, certificate, .. } => {
                    exchange.disown(ClaimedIdentity { mac: *mac, fingerprint: Some(*certificate) });
                }
                Denial::Unauthenticated { claimed: Some(mac), .. }
                | Denial::TooManyAttempts { claimed: Some(mac), .. } => {
                    exchange.disown(ClaimedIdentity { mac: *mac, fingerprint: None });
                }
                _ => {}
            }
            response::of_denial(&denial)
        });
        if !body.has_ended() {
            if body.ends_connection() || response::closes(&response) {
                self.farewell.say();
            } else {
                self.discard.begin(body, &self.pace);
            }
        }
        if self.farewell.is_said() {
            response::close(&mut response);
        }
        response::logged(response, is_head, exchange)
    }

    /// Decides from the site as it is now, and opens the file that the decision grants.
    fn decide(
        &self,
        head: &Parts,
        password: Option<&Result<MacAddress, Denial>>,
        time: SystemTime,
        exchange: &mut RequestLog,
    ) -> Result<Decided, Denial> {
        let site = self.server.site.load();
        let (host, current) = match &self.peer {
            Some(peer) => (check_host(head, peer, &site), site.get(&peer.constituency)),
            None => match plain_host(head, &site) {
                Ok(found) => {
                    exchange.is_for(&found.0.name);
                    (Ok(()), Some(found))
                }
                Err(denial) => (Err(denial), None),
            },
        };
        let asked = RequestTarget { host, method: &head.method, path: head.uri.path() };
        let password = password.map(|proven| proven.as_ref().copied());
        let again = self.judge_again(current, time);
        let listed = site.registry().listed();
        let circumstances = self.circumstances(current, listed, again.as_deref(), time);
        let grant = decide(asked, &ClientContext { password, ..circumstances })?;
        let (constituency, _) = current.ok_or(Denial::Gone)?;
        match grant {
            Grant::Read(grant) => {
                let file = file_lookup::open(&grant, constituency, site.registry(), &self.server.uploads)?;
                response::of_file(file, grant.path().as_str(), &head.method, &head.headers).map(Decided::Answer)
            }
            // Whether the folder has a file of that name, only the folder in place can tell.
            Grant::Write(_) if !constituency.folder.is_in_place() => Err(Denial::Replaced),
            Grant::Write(grant) => Ok(Decided::Upload(grant, Arc::clone(constituency))),
        }
    }

    /// What is to be found now of a device whose handshake was under other content of the same bundles: a CA's latest
    /// list is no reason to send away whom it does not name. Found once for each such change.
    fn judge_again(&self, current: Option<Current<'_>>, time: SystemTime) -> Option<Arc<Judgement>> {
        let (peer, (constituency, generation)) = self.peer.as_ref().zip(current)?;
        if Arc::ptr_eq(generation, &peer.generation) || !generation.has_policy_of(&peer.generation) {
            return None;
        }
        let chain = self.device()?.chain()?;
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(judgement) = again.as_ref().filter(|judgement| Arc::ptr_eq(&judgement.generation, generation)) {
            return Some(Arc::clone(judgement));
        }
        let verdict = generation.examine(constituency, chain, clock::unix_seconds(time))?.verdict;
        Some(Arc::clone(again.insert(Arc::new(Judgement { generation: Arc::clone(generation), verdict }))))
    }

    fn circumstances<'a>(
        &'a self,
        current: Option<Current<'a>>,
        listed: &'a ListedPhones,
        again: Option<&'a Judgement>,
        time: SystemTime,
    ) -> ClientContext<'a> {
        let peer = self.peer.as_ref();
        let generation = current.map(|(_, generation)| generation);
        let is_as_it_was = peer.zip(generation).is_some_and(|(peer, current)| Arc::ptr_eq(current, &peer.generation));
        let verdict = again.map(|judgement| &judgement.verdict);
        ClientContext {
            constituency: current.map(|(constituency, _)| constituency.as_ref()),
            listed,
            is_plain: peer.is_none(),
            tls_is_current: is_as_it_was || again.is_some(),
            device: verdict.or_else(|| peer?.device.as_ref()).map(Result::as_ref),
            password: None,
            now: clock::unix_seconds(time),
        }
    }
}

/// Host must lead to this connection's constituency. Without SNI it may also be an address. In HTTP/1.0 there may be
/// none; SNI or `no_sni` has then named the constituency.
fn check_host(head: &Parts, peer: &TlsClient, site: &Site) -> Result<(), HostDenial> {
    let elsewhere = |host: String| Err(HostDenial::Elsewhere(host));
    // It may have become another one since the handshake.
    let is_default = || site.no_sni() == Some(&peer.constituency);
    match named_host(head)? {
        None if peer.has_sni || is_default() => Ok(()),
        None => Err(HostDenial::Bad(BadHost::NoDefault)),
        Some(NamedHost::Address(_)) if !peer.has_sni && is_default() => Ok(()),
        Some(NamedHost::Address(address)) => elsewhere(address.to_string()),
        Some(NamedHost::Name(name)) => match site.by_host(&name) {
            Some(constituency) if constituency.name == peer.constituency => Ok(()),
            // Gone: the decision says so.
            None if site.get(&peer.constituency).is_none() => Ok(()),
            _ => elsewhere(name.into_owned()),
        },
    }
}

/// Over plain HTTP, Host alone leads to a constituency, and in HTTP/1.0 its absence to that of `no_sni`.
fn plain_host<'a>(head: &Parts, site: &'a Site) -> Result<Current<'a>, HostDenial> {
    plain_http::constituency_of(named_host(head)?.as_ref(), site)
}

fn named_host(head: &Parts) -> Result<Option<NamedHost<'_>>, HostDenial> {
    host::of_request(head.version, &head.uri, &head.headers).map_err(HostDenial::Bad)
}
