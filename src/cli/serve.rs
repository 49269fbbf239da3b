//! `provost serve`: runs the server.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use super::{ConfigArg, diagnostics, print_error, runtime};
use crate::app::socket_activation::ActivatedSockets;
use crate::app::{ANNOUNCEMENT, App, AppError};
use crate::config::{CONFIG_FILE, Config};
use crate::serve::access_log::LogFormat;

/// The longest time that pending disk operations delay the exit.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);

/// What `provost serve` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The format of the access log and of diagnostics, text or json [default: that of provost.json, else text].
    #[arg(long, value_name = "FORMAT", value_parser = log_format)]
    log: Option<LogFormat>,
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("unknown format {other:?}; use \"text\" or \"json\"")),
    }
}

pub(super) fn run(args: &Args, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    // Before any thread starts, as it reads and clears the environment.
    let sockets = ActivatedSockets::from_environment()?;
    let config = config.read()?;
    // In the wrong folder, local mode would leave a state directory with keys.
    if config.is_local() && !config.constituencies.is_dir() {
        bail!(
            "no {CONFIG_FILE} and no folder {} here; run this in the folder of one of them, name the configuration \
             (--config FILE), or start here with mkdir -p {}/NAME",
            config.constituencies.display(),
            config.constituencies.display()
        );
    }
    let log = args.log.unwrap_or(config.log);
    let diagnostics = diagnostics::start(log)?;
    if config.is_local() {
        tracing::info!(
            target: ANNOUNCEMENT,
            "LOCAL MODE: no provost.json here; serving {} on loopback, with certificates of a local CA",
            config.domain
        );
    }
    let runtime = runtime()?;
    let served = runtime.block_on(serve(config, log, sockets));
    // After the timeout, a hung disk no longer delays the exit.
    runtime.shutdown_timeout(DISK_TIMEOUT);
    drop(diagnostics);
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(AppError::Settings(error)) => Err(error.into()),
        Err(AppError::Denials(error)) => Err(error.into()),
        Err(error) => {
            print_error(&error);
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn serve(config: Config, log: LogFormat, sockets: ActivatedSockets) -> Result<(), AppError> {
    App::start(config, log, std::io::stdout(), sockets)?.run(std::future::pending()).await
}
