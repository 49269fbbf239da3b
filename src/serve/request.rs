//! Handles one request: access control, response, log line.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper::body::{Body, Incoming};
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::http::request::Parts;
use hyper::service::Service;
use hyper::{Method, Request, Response};
use parking_lot::{Mutex, MutexGuard};

use super::Server;
use super::access_control::{ClientContext, Denial, Grant, HostDenial, RequestTarget, WriteGrant, decide};
use super::access_log::AccessRecord;
use super::connection_limits::{ConnectionPermit, Eviction};
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
use crate::constituency::{Constituency, MacAddress, PhoneStanding};
use crate::identity::ClientIdentity;
use crate::identity::trust::VerifiedDevice;

/// How long a request waits for the scan of a replaced folder: changes apply within one second.
const REPLACED_FOR: Duration = Duration::from_secs(1);
/// The interval between scans while the folder is missing and does not yet count as removed.
const SCAN_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How long an anonymous connection is idle before it may be evicted. So a client that sends one request after the other
/// is not evicted, and its requests do not change the candidates for eviction: that takes a global lock for 1 µs.
const EVICTABLE_AFTER: Duration = Duration::from_millis(250);

/// An HTTP connection, with the client whose requests it carries.
#[derive(Debug)]
pub struct HttpClient {
    pub server: Arc<Server>,
    /// The client's TLS identity; `None` over plain HTTP.
    pub peer: Option<TlsClient>,
    /// The client's address.
    pub address: SocketAddr,
    /// The connection's timeouts, by the phase that it is in.
    pub timeouts: TimeoutControl,
    /// Controls the lingering close, and with it whether the next response is the last.
    pub linger: LingerControl,
    /// The connection's permit.
    permit: Mutex<ConnectionPermit>,
    /// The latest verdict on the device, if it was verified again after the handshake.
    reverified: Mutex<Option<Arc<ReverifiedDevice>>>,
    /// The unread body of a request whose response did not need it.
    discard: Discard,
    /// How many logins with a password have failed.
    pub(super) failed_logins: AtomicU32,
}

/// A device that was verified again because its constituency's CA bundles have changed.
#[derive(Debug)]
struct ReverifiedDevice {
    generation: Arc<TlsGeneration>,
    identity: Identified,
}

/// Who a client is, or why its certificate or password is refused.
type Identified = Result<ClientIdentity, Denial>;

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

/// The future of a response: ready at once, unless a body must be read first. Each connection has room for one, so it
/// is small.
pub enum ResponseFuture {
    /// A ready response, taken once.
    Now(Option<Response<LoggedBody>>),
    /// A response that waits for the request's body, or for the scan of a replaced folder.
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

/// The result for a granted request.
enum Decided {
    /// The response is ready.
    Answer(Response<ResponseContent>),
    /// The request's body is to be stored.
    Upload(WriteGrant, Arc<Constituency>),
}

impl HttpClient {
    /// A connection without requests yet.
    #[must_use]
    pub fn new(
        server: Arc<Server>,
        peer: Option<TlsClient>,
        address: SocketAddr,
        timeouts: TimeoutControl,
        linger: LingerControl,
        permit: ConnectionPermit,
    ) -> Self {
        Self {
            server,
            peer,
            address,
            timeouts,
            linger,
            permit: Mutex::new(permit),
            reverified: Mutex::default(),
            discard: Discard::default(),
            failed_logins: AtomicU32::default(),
        }
    }

    /// Discards unused request bodies for as long as the connection lasts.
    pub async fn discard(&self) -> Infallible {
        self.discard.run(&self.timeouts, &self.linger).await
    }

    pub(super) fn permit(&self) -> MutexGuard<'_, ConnectionPermit> {
        self.permit.lock()
    }

    /// Waits until the connection is evicted. An anonymous one may be evicted after it was idle for [`EVICTABLE_AFTER`].
    /// The caller polls HTTP first, so a connection whose next request has arrived is not idle.
    pub async fn evicted(&self) -> Eviction {
        let mut timer = pin!(tokio::time::sleep(EVICTABLE_AFTER));
        poll_fn(|cx| {
            let mut permit = self.permit();
            while permit.is_evictable_when_idle() && timer.as_mut().poll(cx).is_ready() {
                if self.timeouts.is_idle_for(EVICTABLE_AFTER) {
                    permit.note_idle();
                }
                timer.as_mut().reset(tokio::time::Instant::now() + EVICTABLE_AFTER);
            }
            permit.poll_evicted(cx)
        })
        .await
    }

    /// The MAC address of the verified device certificate, if there is one.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddress> {
        self.device()?.mac().ok()
    }

    fn device(&self) -> Option<&VerifiedDevice> {
        self.peer.as_ref()?.identity.as_ref().ok()?.device()
    }

    /// Who the client is, by its connection and the password of this request.
    fn identify(&self, head: &Parts) -> Identified {
        let Some(peer) = &self.peer else { return Ok(ClientIdentity::Plain) };
        match self.check_password(head) {
            Some(proven) => proven.map(ClientIdentity::Password),
            None => peer.identity.clone().map_err(Denial::Certificate),
        }
    }

    /// Whether the verified device is a phone that its constituency knows now, by a current pin if it is pinned. An
    /// unknown phone may belong to anyone.
    #[must_use]
    pub fn is_of_known_phone(&self) -> bool {
        let site = self.server.site.load();
        let constituency = self.peer.as_ref().and_then(|peer| Some(site.get(&peer.constituency)?.0));
        let Some((constituency, device)) = constituency.zip(self.device()) else { return false };
        let is_pinned = |mac| device.pin().is_none_or(|certificate| constituency.is_pinned(mac, certificate));
        device.mac().is_ok_and(|mac| constituency.standing(mac) == PhoneStanding::Known && is_pinned(mac))
    }

    /// An access record for an event on this connection that began at `time`.
    #[must_use]
    pub fn record(&self, time: SystemTime) -> Box<AccessRecord> {
        let peer = self.peer.as_ref();
        let identity = peer.map_or(ClientIdentity::Plain, |peer| match &peer.identity {
            Ok(identity) => identity.clone(),
            Err(refused) => refused.claim.clone().map_or(ClientIdentity::Anonymous, ClientIdentity::Claimed),
        });
        Box::new(AccessRecord {
            time,
            address: self.address,
            constituency: peer.map(|peer| peer.constituency.clone()),
            identity,
            request: None,
            status: None,
            bytes: 0,
            duration: Duration::ZERO,
            user_agent: None,
            reason: None,
            kind: None,
            tls: peer.and_then(|peer| peer.tls),
        })
    }

    /// Responds to one request. The log line is written when the request ends, however it ends.
    fn answer(self: &Arc<Self>, request: Request<Incoming>) -> ResponseFuture {
        self.permit().note_request();
        let time = clock::now();
        let mut record = self.record(time);
        let user_agent = request.headers().get(USER_AGENT).map(HeaderValue::as_bytes);
        record.set_request(request.method(), request.uri(), user_agent);
        let is_head = request.method() == Method::HEAD;
        let (head, body) = request.into_parts();
        let identified = self.identify(&head);
        if let Ok(identity) = &identified {
            record.identity = identity.clone();
        }
        let mut request_log = RequestLog::begin(record, body.size_hint().exact(), &self.server.access, &self.timeouts);
        let body = RequestBody::new(body, &head.headers);
        let decided = match self.decide(&head, &identified, time, &mut request_log) {
            Ok(Decided::Answer(response)) => {
                return ResponseFuture::now(self.finish(Ok(response), body, is_head, request_log));
            }
            Err(denial) if denial != Denial::Replaced => {
                return ResponseFuture::now(self.finish(Err(denial), body, is_head, request_log));
            }
            decided => decided,
        };
        let connection = Arc::clone(self);
        ResponseFuture::Later(Box::pin(async move {
            let mut upload = UploadBody::new(body, &connection.timeouts);
            let decided = match decided {
                Err(Denial::Replaced) => connection.decide_again(&head, &identified, &mut request_log).await,
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
            connection.finish(answer, upload.into_rest(), is_head, request_log)
        }))
    }

    /// Decides by the replacement of the constituency's folder, with the policy that came with it.
    async fn decide_again(
        &self,
        head: &Parts,
        identified: &Identified,
        request_log: &mut RequestLog,
    ) -> Result<Decided, Denial> {
        let until = clock::monotonic() + REPLACED_FOR;
        loop {
            self.server.scan_folders().await;
            let decided = self.decide(head, identified, clock::now(), request_log);
            if !matches!(decided, Err(Denial::Replaced)) || clock::monotonic() >= until {
                return decided;
            }
            tokio::time::sleep(SCAN_AGAIN_AFTER).await;
        }
    }

    /// Finishes the response: logs it, and marks it if it is the connection's last. If the connection continues,
    /// discards the rest of the request's body at the same time.
    fn finish(
        &self,
        answer: Result<Response<ResponseContent>, Denial>,
        body: RequestBody,
        is_head: bool,
        mut request_log: RequestLog,
    ) -> Response<LoggedBody> {
        let mut response = answer.unwrap_or_else(|denial| {
            request_log.refuse(denial.kind(), &denial);
            if let Some(claim) = denial.claim() {
                request_log.set_claim(claim);
            }
            if let Denial::Failed(reason) = &denial {
                let constituency = self.peer.as_ref().map(|peer| peer.constituency.as_str());
                let mac = self.mac().map(tracing::field::display);
                tracing::error!(constituency, mac, "{reason}");
            }
            response::of_denial(&denial)
        });
        if !body.has_ended() {
            if body.ends_connection() || response::closes(&response) {
                self.linger.request();
            } else {
                self.discard.begin(body, &self.timeouts);
            }
        }
        if self.linger.is_requested() {
            response::close(&mut response);
        }
        response::logged(response, is_head, request_log)
    }

    /// Decides by the current site, and opens the granted file.
    fn decide(
        &self,
        head: &Parts,
        identified: &Identified,
        time: SystemTime,
        request_log: &mut RequestLog,
    ) -> Result<Decided, Denial> {
        let site = self.server.site.load();
        let (host, current) = match &self.peer {
            Some(peer) => (check_host(head, peer, &site), site.get(&peer.constituency)),
            None => match plain_host(head, &site) {
                Ok(found) => {
                    request_log.set_constituency(&found.0.name);
                    (Ok(()), Some(found))
                }
                Err(denial) => (Err(denial), None),
            },
        };
        let target = RequestTarget { host, method: &head.method, path: head.uri.path() };
        let reverified = self.verify_again(current, time);
        let tls_is_current =
            self.peer.as_ref().zip(current).is_some_and(|(peer, (_, generation))| {
                Arc::ptr_eq(generation, &peer.generation) || reverified.is_some()
            });
        let context = ClientContext {
            constituency: current.map(|(constituency, _)| constituency.as_ref()),
            listed: site.registry().listed(),
            tls_is_current,
            identity: reverified.as_ref().map_or(identified, |device| &device.identity).as_ref(),
            now: clock::unix_seconds(time),
        };
        let grant = decide(target, &context)?;
        let (constituency, _) = current.ok_or(Denial::Gone)?;
        match grant {
            Grant::Read(grant) => {
                let file = file_lookup::open(&grant, constituency, site.registry(), &self.server.uploads)?;
                response::of_file(file, grant.path().as_str(), &head.method, &head.headers).map(Decided::Answer)
            }
            // Only the folder in place can show whether it has a file of that name.
            Grant::Write(_) if !constituency.folder.is_in_place() => Err(Denial::Replaced),
            Grant::Write(grant) => Ok(Decided::Upload(grant, Arc::clone(constituency))),
        }
    }

    /// Verifies a device again if the contents of its CA bundles changed after the handshake: a new CRL must not reject
    /// phones that it does not list. Runs once per such change.
    fn verify_again(&self, current: Option<Current<'_>>, time: SystemTime) -> Option<Arc<ReverifiedDevice>> {
        let (peer, (constituency, generation)) = self.peer.as_ref().zip(current)?;
        if Arc::ptr_eq(generation, &peer.generation) || !generation.has_policy_of(&peer.generation) {
            return None;
        }
        let chain = self.device()?.chain()?;
        let mut reverified = self.reverified.lock();
        if let Some(device) = reverified.as_ref().filter(|device| Arc::ptr_eq(&device.generation, generation)) {
            return Some(Arc::clone(device));
        }
        let identity = match generation.examine(constituency, chain, clock::unix_seconds(time))? {
            Ok(device) => Ok(ClientIdentity::Certificate(Arc::new(device))),
            // The client has proven this identity in its handshake.
            Err(refused) => Err(Denial::Certificate(refused.refusal.into())),
        };
        Some(Arc::clone(reverified.insert(Arc::new(ReverifiedDevice { generation: Arc::clone(generation), identity }))))
    }
}

/// Host must name this connection's constituency. Without SNI it may also be an IP address. HTTP/1.0 may omit it; SNI
/// or `no_sni` has then chosen the constituency.
fn check_host(head: &Parts, peer: &TlsClient, site: &Site) -> Result<(), HostDenial> {
    let elsewhere = |host: String| Err(HostDenial::Elsewhere(host));
    // `no_sni` may have changed since the handshake.
    let is_default = || site.no_sni() == Some(&peer.constituency);
    match named_host(head)? {
        None if peer.has_sni || is_default() => Ok(()),
        None => Err(HostDenial::Bad(BadHost::NoDefault)),
        Some(NamedHost::Address(_)) if !peer.has_sni && is_default() => Ok(()),
        Some(NamedHost::Address(address)) => elsewhere(address.to_string()),
        Some(NamedHost::Name(name)) => match site.by_host(&name) {
            Some(constituency) if constituency.name == peer.constituency => Ok(()),
            // The constituency was removed; access control reports that.
            None if site.get(&peer.constituency).is_none() => Ok(()),
            _ => elsewhere(name.into_owned()),
        },
    }
}

/// Over plain HTTP, Host alone chooses the constituency. If HTTP/1.0 omits it, `no_sni` does.
fn plain_host<'a>(head: &Parts, site: &'a Site) -> Result<Current<'a>, HostDenial> {
    plain_http::constituency_of(named_host(head)?.as_ref(), site)
}

fn named_host(head: &Parts) -> Result<Option<NamedHost<'_>>, HostDenial> {
    host::of_request(head.version, &head.uri, &head.headers).map_err(HostDenial::Bad)
}
