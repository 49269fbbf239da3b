//! `provost print`: what other programs are to be told of this server, ready to be pasted; a file for each thing.

use std::process::ExitCode;

use super::{ConfigArg, say};
use crate::config::Config;

mod grant;

pub use grant::{Dialect, grant};

/// What can be printed.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// What BIND must grant, and nothing more: the update-policy of a zone in named.conf.
    BindPolicy(ConfigArg),
    /// What Knot must grant, and nothing more: an acl in knot.conf.
    KnotAcl(ConfigArg),
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let printed = match command {
        Command::BindPolicy(config) => grant::of(&find(config)?, Dialect::BindPolicy)?,
        Command::KnotAcl(config) => grant::of(&find(config)?, Dialect::KnotAcl)?,
    };
    say(&printed.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn find(config: &ConfigArg) -> anyhow::Result<Config> {
    Ok(Config::find(config.config.as_deref())?)
}
