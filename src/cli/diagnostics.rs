//! Diagnostics: what provost says of itself, on standard error. `PROVOST_LOG` sets what is said, for example `debug`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::UtcTime;

use crate::serve::access::LogFormat;

/// Sends diagnostics to standard error from now on.
pub(super) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("PROVOST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(UtcTime::rfc_3339())
        .with_target(false);
    // Somebody has started them before only in tests.
    let _ = match format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
}
