//! Why an attempt failed, and what helps.
//!
//! Whatever fails on the way to a certificate says three things: a sentence for the operator, with the CA's or the
//! name server's own words in it; the [`Retry`]: try again, wait as long as the CA said, or a human must change
//! something; and the [`FailureKind`], by which the flow knows what became of the order. Nothing is ever given up: also what
//! needs a human is tried again, since the human may have come.

/// What helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Trying again.
    Retry,
    /// Waiting so many seconds, which the CA demands (Retry-After).
    Wait(i64),
    /// Somebody must change something.
    Human,
}

/// What the failure means for the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Nobody knows: no answer, an outage, or a failure of our own.
    Unclear,
    /// The CA said no for good; this order is dead.
    Refused,
    /// The CA does not know our account.
    AccountUnknown,
    /// Our own budget forbids it for now; nothing was asked.
    Budget,
    /// A limit of the CA's is reached, which may be that of these names alone.
    Limited,
}

/// Why an attempt failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct AcmeFailure {
    /// The whole reason.
    pub message: String,
    /// What helps.
    pub cure: Retry,
    /// What it means for the order.
    pub sign: FailureKind,
}

impl AcmeFailure {
    /// Something that may work the next time.
    pub fn retry(message: impl Into<String>) -> Self {
        Self { message: message.into(), cure: Retry::Retry, sign: FailureKind::Unclear }
    }

    /// Something that somebody must put right.
    pub fn action_required(message: impl Into<String>) -> Self {
        Self { message: message.into(), cure: Retry::Human, sign: FailureKind::Unclear }
    }

    /// The same with another sign.
    #[must_use]
    pub fn with_sign(self, sign: FailureKind) -> Self {
        Self { sign, ..self }
    }

    /// The same, to be cured by waiting.
    #[must_use]
    pub fn after(self, seconds: Option<i64>) -> Self {
        Self { cure: seconds.map_or(self.cure, Retry::Wait), ..self }
    }

    /// The same, saying first what was being done.
    #[must_use]
    pub fn during(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// A file of the state directory that cannot be written or read.
    pub(super) fn disk(what: &str, error: &std::io::Error) -> Self {
        Self::action_required(format!("{what} cannot be kept in the state directory: {error}"))
    }
}
