//! `provost schema`: the JSON Schema of a configuration file, for editors.

use std::process::ExitCode;

use schemars::transform::{RecursiveTransform, Transform};
use schemars::{Schema, schema_for};

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
    let mut schema = match args.file {
        File::Provost => schema_for!(ConfigFile),
        File::Constituency => schema_for!(PolicyFile),
    };
    RecursiveTransform(without_code).transform(&mut schema);
    say(&serde_json::to_string_pretty(&schema)?);
    Ok(ExitCode::SUCCESS)
}

/// Cuts off the examples in Rust that stand in our own documentation: an editor shows descriptions to operators.
fn without_code(schema: &mut Schema) {
    let text = schema.get("description").and_then(|text| text.as_str()?.split_once("\n\n```")).map(|(text, _)| text);
    if let Some(text) = text.map(str::to_owned) {
        schema.insert("description".to_owned(), text.into());
    }
}
