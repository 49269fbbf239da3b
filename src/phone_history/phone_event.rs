//! One thing that a phone did, or somebody who claims to be it.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use ipnet::IpNet;

use crate::constituency::{ConstituencyName, MacAddress};

/// A request, or a refused handshake.
#[derive(Debug, Clone)]
pub struct PhoneEvent {
    /// When it began.
    pub time: SystemTime,
    /// From where.
    pub address: IpAddr,
    /// The network that counts as one peer.
    pub network: IpNet,
    /// The constituency that was asked.
    pub constituency: ConstituencyName,
    /// The phone.
    pub mac: MacAddress,
    /// How it is known to be that phone.
    pub proof: Proof,
    /// Method and target, if a request was read.
    pub request: Option<(Method, Box<str>)>,
    /// The answer's status.
    pub status: Option<StatusCode>,
    /// Bytes of body that were sent.
    pub bytes: u64,
    /// How long it took.
    pub duration: Duration,
    /// What the peer calls itself.
    pub user_agent: Option<Box<[u8]>>,
    /// Why it was refused or broke off.
    pub reason: Option<String>,
    /// TLS version and cipher suite.
    pub tls: Option<(&'static str, &'static str)>,
}

/// How somebody is known to be a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// By a device certificate that counts, and its key.
    Certificate {
        /// When it expires, in Unix seconds.
        not_after: i64,
    },
    /// By a password that is right.
    Password,
    /// Not at all: by a certificate that anybody can make, or a password that is wrong.
    Claimed {
        /// The certificate's SHA-256, if it was one.
        fingerprint: Option<[u8; 32]>,
    },
}

/// Whether `status` is that of a refusal, or none is: without an answer, a refused handshake has no request, and anything
/// else was broken off by the phone.
#[must_use]
pub fn is_refusal(status: Option<StatusCode>, has_request: bool) -> bool {
    status.map_or(!has_request, |status| {
        (status.is_client_error() || status.is_server_error())
            && !matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT)
    })
}

impl PhoneEvent {
    /// When it was over.
    pub(super) fn end(&self) -> SystemTime {
        self.time + self.duration
    }

    /// Whether the phone got past the question who it is and whether it is on the list.
    pub(super) fn is_let_in(&self) -> bool {
        self.status.is_some_and(|status| {
            !matches!(
                status,
                StatusCode::BAD_REQUEST
                    | StatusCode::FORBIDDEN
                    | StatusCode::METHOD_NOT_ALLOWED
                    | StatusCode::MISDIRECTED_REQUEST
                    | StatusCode::URI_TOO_LONG
                    | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            )
        })
    }

    /// Why it was refused, if it was. A file that is not there is no refusal: phones ask for many that are optional; nor
    /// is a conflict, by which a phone learns where its upload goes on.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.reason.as_deref().filter(|_| is_refusal(self.status, self.request.is_some()))
    }

    /// The path of a configuration that was fetched, or found to be the one the phone has.
    pub(super) fn configuration(&self) -> Option<&str> {
        let is_had = matches!(self.status, Some(StatusCode::OK | StatusCode::NOT_MODIFIED));
        self.path_of(&Method::GET).filter(|path| is_had && path.to_ascii_lowercase().ends_with(".cfg"))
    }

    /// The path of an upload that was stored.
    pub(super) fn upload(&self) -> Option<&str> {
        self.path_of(&Method::PUT).filter(|_| self.status.is_some_and(|status| status.is_success()))
    }

    fn path_of(&self, method: &Method) -> Option<&str> {
        let (own, target) = self.request.as_ref()?;
        (own == method).then(|| target.split('?').next().unwrap_or_default())
    }
}

/// Unix milliseconds; a clock before 1970 counts as zero.
pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
