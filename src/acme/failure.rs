//! Why an attempt failed, and when to retry.
//!
//! Each failure carries a message for the operator, which quotes the CA or the name server; a [`Retry`]; and a
//! [`FailureKind`], which decides what becomes of the order. Every failure is retried, even one that needs an operator,
//! since the operator may have acted.

/// When to retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// With backoff.
    Retry,
    /// After this many seconds: the CA's Retry-After, or our own rate limit.
    Wait(i64),
    /// With backoff, but an operator must change something first.
    ActionRequired,
}

/// What the failure means for the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The outcome is unknown: no response, an outage, or a failure of our own.
    Unclear,
    /// The CA refused for good; this order is dead.
    Refused,
    /// The CA does not know our account.
    AccountUnknown,
    /// Our account was deactivated (RFC 8555 §7.3.6). Its key is of no more use.
    AccountDeactivated,
    /// Our own rate limit blocks it for now; the CA was not asked.
    Budget,
    /// A rate limit of the CA is reached, perhaps for these names alone.
    Limited,
}

/// Why an attempt failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct AcmeFailure {
    /// The full reason.
    pub message: String,
    /// When to retry.
    pub cure: Retry,
    /// What it means for the order.
    pub sign: FailureKind,
}

impl AcmeFailure {
    /// A failure that a retry may solve.
    pub fn retry(message: impl Into<String>) -> Self {
        Self { message: message.into(), cure: Retry::Retry, sign: FailureKind::Unclear }
    }

    /// A failure that an operator must solve.
    pub fn action_required(message: impl Into<String>) -> Self {
        Self { message: message.into(), cure: Retry::ActionRequired, sign: FailureKind::Unclear }
    }

    /// Replaces the kind.
    #[must_use]
    pub fn with_sign(self, sign: FailureKind) -> Self {
        Self { sign, ..self }
    }

    /// Retries after `seconds`, if given.
    #[must_use]
    pub fn after(self, seconds: Option<i64>) -> Self {
        Self { cure: seconds.map_or(self.cure, Retry::Wait), ..self }
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

    /// A file of the state directory cannot be written or read.
    pub(super) fn disk(what: &str, error: &std::io::Error) -> Self {
        Self::action_required(format!("{what} cannot be kept in the state directory: {error}"))
    }
}
