//! One request: decided, answered, logged.

use std::sync::Arc;
use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};

use super::Server;
use super::access::AccessRecord;
use super::answer::{self, Content, Logged};
use super::content;
use super::decision::{Asked, Circumstances, Denial, Grant, HostDenial, decide};
use super::exchange::Exchange;
use super::handshake::Peer;
use super::host::{self, NamedHost};
use super::linger::Farewell;
use super::pace::Pace;
use super::site::Site;
use super::upload::receive::{self, UploadBody};
use crate::clock;
use crate::constituency::{MacAddress, Standing};

/// A connection whose handshake is done: whose requests these are.
#[derive(Debug)]
pub struct Connection {
    /// What it serves from.
    pub server: Arc<Server>,
    /// Who is at the other end.
    pub peer: Peer,
    /// Where that is.
    pub address: std::net::SocketAddr,
    /// What it is waiting for.
    pub pace: Pace,
    /// Whether its next answer is the last.
    pub farewell: Farewell,
}

impl Connection {
    /// The phone at the other end, if it proved which one it is.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddress> {
        self.peer.device.as_ref()?.as_ref().ok()?.mac().ok()
    }

    /// Whether that phone is known to its constituency now. One that is not may be anybody's.
    #[must_use]
    pub fn is_of_known_phone(&self) -> bool {
        let site = self.server.site.load();
        let constituency = site.get(&self.peer.constituency).map(|(constituency, _)| constituency);
        self.mac().zip(constituency).is_some_and(|(mac, constituency)| constituency.standing(mac) == Standing::Known)
    }

    /// A record of something on this connection that began at `time`.
    #[must_use]
    pub fn record(&self, time: SystemTime) -> AccessRecord {
        AccessRecord {
            time,
            address: self.address,
            constituency: Some(self.peer.constituency.clone()),
            mac: self.mac(),
            request: None,
            status: None,
            bytes: 0,
            duration: std::time::Duration::ZERO,
            user_agent: None,
            reason: None,
            tls: self.peer.tls,
        }
    }

    /// Answers one request. Its line of the log is written when it is over, however it ends.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Logged> {
        let time = clock::now();
        let mut record = self.record(time);
        let user_agent = request.headers().get(USER_AGENT).map(HeaderValue::as_bytes);
        record.ask(request.method(), request.uri(), user_agent);
        let is_head = request.method() == Method::HEAD;
        let mut exchange = Exchange::begin(record, &self.server.access, &self.pace);
        let mut response = self.fulfil(request, time).await.unwrap_or_else(|denial| {
            exchange.note(&denial);
            if let Denial::Failed(reason) = &denial {
                tracing::error!(constituency = %self.peer.constituency, "{reason}");
            }
            answer::of_denial(&denial)
        });
        if self.farewell.is_said() {
            answer::close(&mut response);
        }
        answer::logged(response, is_head, exchange)
    }

    async fn fulfil(&self, request: Request<Incoming>, time: SystemTime) -> Result<Response<Content>, Denial> {
        let (head, body) = request.into_parts();
        let grant = {
            let site = self.server.site.load();
            let asked = Asked { host: self.check_host(&head, &site), method: &head.method, path: head.uri.path() };
            let grant = decide(asked, &self.circumstances(&site, time));
            match (grant, site.get(&self.peer.constituency)) {
                (Ok(Grant::Read(grant)), Some((constituency, _))) => {
                    let file = content::open(&grant, constituency, site.registry(), &self.server.uploads)?;
                    return answer::of_file(file, grant.path().as_str(), &head.method, &head.headers);
                }
                (Ok(Grant::Write(grant)), Some((constituency, _))) => Ok((grant, Arc::clone(constituency))),
                (Ok(_), None) => Err(Denial::Gone),
                (Err(denial), _) => Err(denial),
            }
        };
        let mut body = UploadBody::new(body, &head.headers, &self.pace);
        let stored = match grant {
            Ok((grant, constituency)) => {
                let uploads = Arc::clone(&self.server.uploads);
                receive::receive(grant, constituency, uploads, &head.headers, &mut body).await
            }
            Err(denial) => Err(denial),
        };
        if let Err(denial) = &stored
            && !matches!(denial, Denial::BrokenOff(_))
        {
            body.discard(&self.farewell).await;
        }
        stored.map(answer::of_upload)
    }

    fn circumstances<'a>(&'a self, site: &'a Site, time: SystemTime) -> Circumstances<'a> {
        let current = site.get(&self.peer.constituency);
        Circumstances {
            constituency: current.map(|(constituency, _)| constituency.as_ref()),
            tls_is_current: current.is_some_and(|(_, generation)| Arc::ptr_eq(generation, &self.peer.generation)),
            device: self.peer.device.as_ref().map(Result::as_ref),
            now: clock::unix_seconds(time),
        }
    }

    /// Host must lead to this connection's constituency; without SNI it may also be an address.
    fn check_host(&self, head: &hyper::http::request::Parts, site: &Site) -> Result<(), HostDenial> {
        let elsewhere = |host: String| Err(HostDenial::Elsewhere(host));
        match host::of_request(&head.uri, &head.headers).map_err(HostDenial::Bad)? {
            NamedHost::Address(address) if self.peer.has_sni => elsewhere(address.to_string()),
            NamedHost::Address(_) => Ok(()),
            NamedHost::Name(name) => match site.by_host(&name) {
                Some(constituency) if constituency.name == self.peer.constituency => Ok(()),
                // Gone: the decision says so.
                None if site.get(&self.peer.constituency).is_none() => Ok(()),
                _ => elsewhere(name.into_owned()),
            },
        }
    }
}
