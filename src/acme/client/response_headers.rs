//! The status and headers of a response.

use bytes::Bytes;

/// The last response, as our HTTP client keeps it.
#[derive(Debug, Clone, Default)]
pub(super) struct ResponseHeaders {
    /// The URL of the request.
    pub(super) url: String,
    /// 0 if there was no response.
    pub(super) status: u16,
    /// Retry-After in seconds.
    pub(super) retry_after: Option<i64>,
    /// How many seconds the CA's clock is ahead of ours.
    pub(super) clock_skew: Option<i64>,
    /// The URLs of the certificate's alternate chains (RFC 8555 §7.4.2).
    pub(super) alternates: Vec<String>,
    /// The URL of terms of service to which the user must agree (RFC 8555 §7.3.3).
    pub(super) terms_of_service: Option<String>,
    pub(super) body: Bytes,
    pub(super) nonce: Option<String>,
}

impl ResponseHeaders {
    pub(super) fn is_good(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The page where the user can do what the CA requires: "with a type of `userActionRequired` and a Link header with
    /// link relation `terms-of-service` and the latest terms-of-service URL. The problem document returned with the error
    /// MUST also include an `instance` field, indicating a URL that the client should direct a human user to visit" (RFC
    /// 8555 §7.3.3).
    pub(super) fn user_action_url(&self) -> Option<String> {
        let problem: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        let instance = problem.and_then(|problem| problem["instance"].as_str().map(str::to_owned));
        instance.or_else(|| self.terms_of_service.clone())
    }
}
