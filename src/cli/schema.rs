//! `provost schema`: the JSON Schema of a configuration file, for editors.

use std::process::ExitCode;

use schemars::schema_for;

use super::say;
use crate::config::ConfigFile;
use crate::constituency::PolicyFile;

/// What `provost schema` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Of which file.
    #[arg(value_enum)]
    file: File,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum File {
    /// provost.json
    Provost,
    /// constituency.json
    Constituency,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let schema = match args.file {
        File::Provost => schema_for!(ConfigFile),
        File::Constituency => schema_for!(PolicyFile),
    };
    say(&serde_json::to_string_pretty(&schema)?);
    Ok(ExitCode::SUCCESS)
}
