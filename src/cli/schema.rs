//! `provost schema`: prints the JSON Schema of a configuration file, for editors.

use std::process::ExitCode;

use schemars::transform::{RecursiveTransform, Transform};
use schemars::{Schema, schema_for};

use super::{print_line, reference};
use crate::config::{CONFIG_FILE, ConfigFile};
use crate::constituency::{POLICY_FILE, PolicyFile};

/// What `provost schema` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file.
    #[arg(value_enum)]
    file: File,
    /// Print tables of the keys instead, in Markdown, as docs/reference.md has them.
    #[arg(long, hide = true)]
    markdown: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum File {
    /// provost.json
    Provost,
    /// constituency.json
    Constituency,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let schema = args.file.schema();
    if args.markdown {
        print_line(&reference::markdown(&reference::sections(schema.as_value())).trim_end());
    } else {
        print_line(&serde_json::to_string_pretty(&schema)?);
    }
    Ok(ExitCode::SUCCESS)
}

impl File {
    pub(super) const ALL: [Self; 2] = [Self::Provost, Self::Constituency];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Provost => CONFIG_FILE,
            Self::Constituency => POLICY_FILE,
        }
    }

    pub(super) fn schema(self) -> Schema {
        let mut schema = match self {
            Self::Provost => schema_for!(ConfigFile),
            Self::Constituency => schema_for!(PolicyFile),
        };
        RecursiveTransform(without_code).transform(&mut schema);
        schema
    }
}

/// Removes Rust examples from descriptions, because editors show these to operators.
fn without_code(schema: &mut Schema) {
    let text = schema.get("description").and_then(|text| text.as_str()?.split_once("\n\n```")).map(|(text, _)| text);
    if let Some(text) = text.map(str::to_owned) {
        schema.insert("description".to_owned(), text.into());
    }
}
