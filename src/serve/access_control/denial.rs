//! Why a request is denied, as a value. Pure.

use std::time::Duration;

use hyper::{Method, StatusCode};

use super::content_range::BadContentRange;
use super::upload_name::BadUploadName;
use crate::constituency::file_names::ForeignMac;
use crate::constituency::{ConstituencyName, Fingerprint, MacAddress, PhoneStanding};
use crate::identity::trust::{ClaimedIdentity, NoIdentity, RefusedCertificate};
use crate::metrics::RefusalKind;
use crate::serve::host::BadHost;
use crate::serve::path::BadPath;
use crate::wording::counted;

/// The reason why a request is refused (400, 403 Forbidden, 404, 421, …). Its `Display` is for the operator; the peer sees only [`Denial::status`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    #[error("{0}")]
    Host(BadHost),
    #[error("Host {host:?} is not the constituency of this connection")]
    Misdirected { host: String },
    #[error("Host {host:?} is not a constituency with \"plain_http\": true")]
    NotPlain { host: String },
    #[error("the constituency no longer exists")]
    Gone,
    /// The folder was replaced, and a file that is missing in the old one may exist in the new one. The request is
    /// decided again by the policy of the new folder.
    #[error("the folder of the constituency was replaced, and the new one is not read yet")]
    Replaced,
    #[error("the method {method} is not allowed")]
    Method { method: Method, allow: &'static str },
    #[error("{0}")]
    Path(#[from] BadPath),
    #[error("{0}")]
    NoIdentity(#[from] NoIdentity),
    #[error("no device certificate on this connection")]
    NoDevice,
    #[error("{reason}")]
    Unauthenticated { reason: String, claimed: Option<MacAddress>, is_routine: bool, challenges: Box<[String; 2]> },
    #[error("{reason}; too many failed logins on this connection (the correct password is still accepted)")]
    TooManyAttempts { reason: String, claimed: Option<MacAddress> },
    #[error("{0}")]
    ConnectionLimit(String),
    #[error("{}", PhoneStanding::Unknown.refusal(*mac, constituency).unwrap_or_default())]
    Unknown { mac: MacAddress, constituency: ConstituencyName },
    #[error("{}", PhoneStanding::Denied.refusal(*mac, constituency).unwrap_or_default())]
    Denied { mac: MacAddress, constituency: ConstituencyName },
    #[error("{}", PhoneStanding::DeniedEverywhere.refusal(*mac, constituency).unwrap_or_default())]
    DeniedEverywhere { mac: MacAddress, constituency: ConstituencyName },
    #[error("{constituency} no longer pins the certificate of {mac} (SHA-256 {certificate})")]
    Unpinned { mac: MacAddress, constituency: ConstituencyName, certificate: Fingerprint },
    #[error("{0}")]
    Certificate(RefusedCertificate),
    #[error("the policy's TLS settings changed after this connection was made")]
    TlsSettingsChanged,
    #[error("{0}")]
    OthersFile(ForeignMac),
    #[error("{0}; this client has not authenticated as a phone")]
    UnprovenMac(ForeignMac),
    #[error("{0}")]
    UploadName(#[from] BadUploadName),
    #[error("uploads are off in {constituency}")]
    UploadsOff { constituency: ConstituencyName },
    #[error("the folder has a file of this name, and an upload may not hide it")]
    HidesFile,
    #[error("names of this kind are never served")]
    Hidden,
    #[error("uploads of this kind are never served back")]
    WriteOnly,
    #[error("a folder, not a file")]
    Folder,
    #[error("not a regular file")]
    NotRegular,
    #[error("no such file")]
    NotFound,
    #[error("{0}")]
    Link(String),
    #[error("{0}")]
    ContentRange(#[from] BadContentRange),
    #[error("the upload starts at byte {first}, but the file has {}", counted(*.size, "byte"))]
    Gap { first: u64, size: u64 },
    #[error("another upload of this file is under way")]
    Busy,
    #[error("{} under way already", if *.allowed == 1 { "an upload of this phone is".to_owned() } else { format!("{} uploads of this phone are", .allowed) })]
    TooManyUploads { allowed: usize },
    #[error("a file exists where a folder is needed, or a folder where a file is needed")]
    NameConflict,
    #[error("the file would be larger than {} (max_file_bytes)", counted(*.allowed, "byte"))]
    FileTooLarge { allowed: u64 },
    #[error("the quota {quota} ({allowed}) is used up")]
    QuotaExceeded { quota: &'static str, allowed: u64 },
    #[error("the quota max_phone_write_bytes_per_hour ({allowed}) is used up; it allows this upload in {} s", seconds(*retry_after))]
    WriteQuotaExceeded { allowed: u64, retry_after: Duration },
    #[error("the file system of the state directory is full ({reserve} bytes stay reserved)")]
    DiskFull { reserve: u64 },
    #[error("the upload was incomplete: {0}")]
    Incomplete(String),
    #[error("{0}")]
    Failed(String),
}

impl Denial {
    /// The kind for the metrics.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Host(_) | Self::Path(_) | Self::ContentRange(_) => RefusalKind::Malformed,
            Self::Misdirected { .. } | Self::NotPlain { .. } => RefusalKind::Misdirected,
            Self::Gone => RefusalKind::ConstituencyGone,
            Self::Method { .. } => RefusalKind::Method,
            Self::NoIdentity(_) => RefusalKind::NoIdentity,
            Self::NoDevice => RefusalKind::NoCertificate,
            Self::Unauthenticated { is_routine: true, .. } => RefusalKind::Challenge,
            Self::Unauthenticated { .. } => RefusalKind::WrongPassword,
            Self::TooManyAttempts { .. } => RefusalKind::TooManyAttempts,
            Self::ConnectionLimit(_) => RefusalKind::ConnectionLimit,
            Self::Unknown { .. } => RefusalKind::UnknownPhone,
            Self::Denied { .. } | Self::DeniedEverywhere { .. } => RefusalKind::DeniedPhone,
            Self::Unpinned { .. } => RefusalKind::Unpinned,
            Self::Certificate(refused) => refused.refusal.kind(),
            Self::TlsSettingsChanged => RefusalKind::TlsSettingsChanged,
            Self::OthersFile(_) => RefusalKind::OthersFile,
            Self::UploadName(_) | Self::HidesFile => RefusalKind::UploadName,
            Self::UploadsOff { .. } => RefusalKind::UploadsOff,
            Self::UnprovenMac(_)
            | Self::Hidden
            | Self::WriteOnly
            | Self::Folder
            | Self::NotRegular
            | Self::NotFound
            | Self::Link(_) => RefusalKind::NotFound,
            Self::Gap { .. } | Self::Busy | Self::NameConflict => RefusalKind::UploadConflict,
            Self::FileTooLarge { .. }
            | Self::TooManyUploads { .. }
            | Self::QuotaExceeded { .. }
            | Self::WriteQuotaExceeded { .. } => RefusalKind::UploadQuota,
            Self::DiskFull { .. } => RefusalKind::DiskFull,
            Self::Incomplete(_) => RefusalKind::Disconnected,
            Self::Replaced | Self::Failed(_) => RefusalKind::InternalError,
        }
    }

    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Host(_) | Self::Path(_) | Self::ContentRange(_) | Self::Incomplete(_) => StatusCode::BAD_REQUEST,
            Self::Misdirected { .. } | Self::NotPlain { .. } | Self::Gone => StatusCode::MISDIRECTED_REQUEST,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoIdentity(_)
            | Self::NoDevice
            | Self::Unknown { .. }
            | Self::Denied { .. }
            | Self::DeniedEverywhere { .. }
            | Self::Unpinned { .. }
            | Self::Certificate(_)
            | Self::TlsSettingsChanged
            | Self::OthersFile(_)
            | Self::UploadName(_)
            | Self::UploadsOff { .. }
            | Self::HidesFile => StatusCode::FORBIDDEN,
            Self::UnprovenMac(_)
            | Self::Hidden
            | Self::WriteOnly
            | Self::Folder
            | Self::NotRegular
            | Self::NotFound
            | Self::Link(_) => StatusCode::NOT_FOUND,
            Self::Gap { .. } | Self::Busy | Self::NameConflict => StatusCode::CONFLICT,
            Self::FileTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
            Self::TooManyAttempts { .. } | Self::WriteQuotaExceeded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TooManyUploads { .. } | Self::ConnectionLimit(_) | Self::Replaced => StatusCode::SERVICE_UNAVAILABLE,
            Self::QuotaExceeded { .. } | Self::DiskFull { .. } => StatusCode::INSUFFICIENT_STORAGE,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The identity that the client only claims, if the denial says so.
    #[must_use]
    pub fn claim(&self) -> Option<ClaimedIdentity> {
        match self {
            Self::Certificate(refused) => refused.claim.clone(),
            Self::Unpinned { mac, certificate, .. } => {
                Some(ClaimedIdentity { mac: *mac, fingerprint: Some(*certificate) })
            }
            Self::Unauthenticated { claimed, .. } | Self::TooManyAttempts { claimed, .. } => {
                claimed.map(|mac| ClaimedIdentity { mac, fingerprint: None })
            }
            _ => None,
        }
    }

    /// The seconds of the Retry-After header, if the response has one.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TooManyAttempts { .. } => Some(60),
            Self::WriteQuotaExceeded { retry_after, .. } => Some(seconds(*retry_after)),
            _ => None,
        }
    }

    /// Whether the connection ends with this response.
    ///
    /// Every 403 ends it, so that a client cannot tell the denials that must end it from the others.
    #[must_use]
    pub fn closes(&self) -> bool {
        matches!(self.status(), StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST)
            || matches!(
                self,
                Self::Host(_) | Self::Incomplete(_) | Self::ConnectionLimit(_) | Self::TooManyAttempts { .. }
            )
    }
}

/// Rounds up to whole seconds, at least one.
fn seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden test of metrics has no client that causes this.
    #[test]
    fn internal_error_is_counted_as_failed() {
        let denial = Denial::Failed(String::new());
        assert_eq!((denial.kind().label(), denial.status()), ("failed", StatusCode::INTERNAL_SERVER_ERROR));
    }
}
