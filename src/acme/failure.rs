//! Why an attempt failed, and when to retry.
//!
//! Each failure carries a message for the operator, which quotes the CA or the name server; a [`Retry`]; and a
//! [`FailureKind`], which decides what becomes of the order. Every failure is retried, even one that needs an operator,
//! since the operator may have acted.

/// When to retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// With backoff.
    Backoff,
    /// After this many seconds: the CA's Retry-After, or our own rate limit.
    After(i64),
    /// With backoff, but an operator must change something first.
    ActionRequired,
}

/// What the failure means for the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The outcome is unknown: no response, an outage, or a failure of our own.
    Unclear,
    /// The CA refused; this order is invalid.
    Refused,
    /// The CA does not know our account.
    AccountUnknown,
    /// Our account was deactivated (RFC 8555 §7.3.6). Its key cannot be used again.
    AccountDeactivated,
    /// Our own rate limit is reached; the CA was not contacted.
    OwnRateLimit,
    /// A rate limit of the CA is reached, perhaps for these names alone.
    RateLimited,
    /// The record of a challenge was not added, so that none is left behind.
    NotPublished,
}

/// Why an attempt failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct AcmeFailure {
    /// The full reason.
    pub message: String,
    /// When to retry.
    pub retry: Retry,
    /// What it means for the order.
    pub kind: FailureKind,
}

impl AcmeFailure {
    /// A failure that a retry may solve.
    pub fn retry(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: Retry::Backoff, kind: FailureKind::Unclear }
    }

    /// A failure that an operator must solve.
    pub fn action_required(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: Retry::ActionRequired, kind: FailureKind::Unclear }
    }

    /// Replaces the kind.
    #[must_use]
    pub fn with_kind(self, kind: FailureKind) -> Self {
        Self { kind, ..self }
    }

    /// Retries after `seconds`, if given.
    #[must_use]
    pub fn after(self, seconds: Option<i64>) -> Self {
        Self { retry: seconds.map_or(self.retry, Retry::After), ..self }
    }

    /// Puts the failed operation before the message.
    #[must_use]
    pub fn during(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// Adds `note` to the message.
    #[must_use]
    pub(super) fn with_note(self, note: &str) -> Self {
        Self { message: self.message + note, ..self }
    }

    /// `what` in the state directory cannot be read or written.
    pub(super) fn disk(what: &str, error: &std::io::Error) -> Self {
        Self::action_required(format!("cannot read or write {what} in the state directory: {error}"))
    }
}
