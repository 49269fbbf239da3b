//! What an answer said beside its body.

use bytes::Bytes;

/// What the last answer said.
#[derive(Debug, Clone, Default)]
pub(super) struct ResponseHeaders {
    /// 0 if there was none.
    pub(super) status: u16,
    /// In seconds.
    pub(super) retry_after: Option<i64>,
    /// How far the CA's clock is ahead of ours.
    pub(super) clock_skew: Option<i64>,
    /// Where the other chains of a certificate are (RFC 8555 §7.4.2).
    pub(super) alternates: Vec<String>,
    pub(super) body: Bytes,
    pub(super) nonce: Option<String>,
}

impl ResponseHeaders {
    pub(super) fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }
}
