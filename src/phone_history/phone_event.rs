//! An event of a phone, or of a client that claims to be a phone.

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
    pub address: IpAddr,
    /// The network by which clients are counted.
    pub network: IpNet,
    pub constituency: ConstituencyName,
    /// The phone, as authenticated or claimed.
    pub mac: MacAddress,
    /// How the client authenticated.
    pub proof: Proof,
    /// Method and target, if a request was read.
    pub request: Option<(Method, Box<str>)>,
    pub status: Option<StatusCode>,
    /// Bytes of the response body that were sent.
    pub bytes: u64,
    pub duration: Duration,
    /// The User-Agent header.
    pub user_agent: Option<Box<[u8]>>,
    /// Why it was refused or aborted.
    pub reason: Option<String>,
    /// TLS version and cipher suite.
    pub tls: Option<(&'static str, &'static str)>,
}

/// How a client authenticated as a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A valid device certificate, with its key.
    Certificate {
        /// When it expires, in Unix seconds.
        not_after: i64,
    },
    /// The right password.
    Password,
    /// Not at all: a certificate that any client can make, or a wrong password.
    Claimed {
        /// The SHA-256 of the certificate. `None` if the client used a password.
        fingerprint: Option<[u8; 32]>,
    },
}

/// Whether the server refused. Without a status, a refused handshake has no request, and a request was aborted by the
/// phone.
#[must_use]
pub fn is_refusal(status: Option<StatusCode>, has_request: bool) -> bool {
    status.map_or(!has_request, |status| {
        (status.is_client_error() || status.is_server_error())
            && !matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT)
    })
}

impl PhoneEvent {
    pub(super) fn end(&self) -> SystemTime {
        self.time + self.duration
    }

    /// Whether the phone passed authentication and the constituency's list.
    pub(super) fn is_accepted(&self) -> bool {
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

    /// The reason of the refusal, if it was refused. A missing file is not a refusal: phones request many optional
    /// files. A conflict is not either: it tells a phone where its upload continues.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.reason.as_deref().filter(|_| is_refusal(self.status, self.request.is_some()))
    }

    /// The path of a configuration that was fetched, or was unchanged (304).
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

/// Unix milliseconds. A time before 1970 is zero.
pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
