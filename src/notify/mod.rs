//! `"notify"` in `provost.json`: a command that provost runs when the headlines change, for operators without a
//! monitoring system.
//!
//! 1. [`NotifySettings`] names the command.
//! 2. [`Tracker`] decides when a run is due, and what it reports. It keeps in the state directory what was reported, so
//!    that a restart repeats nothing.
//! 3. [`run`] runs the command, with a time limit and bounded output.

mod program;
mod settings;
mod tracker;

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};

pub use program::{RunError, TIME_LIMIT, check_program, run};
pub use settings::NotifySettings;
pub use tracker::{FILE, Report, Tracker};

/// A headline, as the command reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyHeadline {
    /// Identifies the headline while it lasts.
    pub key: String,
    /// A word for what it is about, such as `certificate_expired`.
    pub kind: String,
    /// The certificate or constituency; else `server` or `phones`.
    pub object: String,
    /// `error`, `approval` or `warning`.
    pub level: String,
    pub text: String,
    /// When it appeared, in RFC 3339.
    pub since: String,
    /// Whether a restart hides it, because the server has to listen for hours before it can say the same again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_uptime: bool,
}

/// Why the command failed last, for the page.
#[derive(Debug, Default)]
pub struct NotifyHealth(ArcSwapOption<String>);

impl NotifyHealth {
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.0.load().as_deref().cloned()
    }

    /// Records the result of a run.
    pub fn record(&self, failure: Option<String>) {
        self.0.store(failure.map(Into::into));
    }
}
