//! The status and headers of a response.

use bytes::Bytes;

/// The last response, as our HTTP client keeps it.
#[derive(Debug, Clone, Default)]
pub(super) struct ResponseHeaders {
    /// 0 if there was no response.
    pub(super) status: u16,
    /// Retry-After in seconds.
    pub(super) retry_after: Option<i64>,
    /// How many seconds the CA's clock is ahead of ours.
    pub(super) clock_skew: Option<i64>,
    /// The URLs of the certificate's alternate chains (RFC 8555 §7.4.2).
    pub(super) alternates: Vec<String>,
    pub(super) body: Bytes,
    pub(super) nonce: Option<String>,
}

impl ResponseHeaders {
    pub(super) fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}
