//! Shell completion scripts for our command line.

use clap_complete::{Shell as Dialect, generate};

/// The shell.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

/// A shell.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(in crate::cli) enum Shell {
    /// bash: save as a file in `/etc/bash_completion.d`
    Bash,
    /// zsh: save as `_provost` in a folder of fpath
    Zsh,
    /// fish: save as provost.fish in `~/.config/fish/completions`
    Fish,
}

pub(super) fn of(args: &Args) -> String {
    script(args.shell)
}

/// The script for `shell`.
pub(in crate::cli) fn script(shell: Shell) -> String {
    let dialect = match shell {
        Shell::Bash => Dialect::Bash,
        Shell::Zsh => Dialect::Zsh,
        Shell::Fish => Dialect::Fish,
    };
    let mut text = Vec::new();
    generate(dialect, &mut crate::cli::command_line(), "provost", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}
