//! The manual: a page for each command, in roff, from what `--help` says.

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;

/// Which page.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The command whose page it is, such as `certificate renew` [default: provost itself].
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

/// The page that `args` ask for.
pub(super) fn page(args: &Args) -> anyhow::Result<String> {
    let mut command = &whole();
    for name in &args.command {
        command = command.find_subcommand(name).with_context(|| format!("there is no command {name:?}"))?;
    }
    render(command)
}

/// Every page: its file name and its text.
pub(in crate::cli) fn pages() -> anyhow::Result<Vec<(String, String)>> {
    let whole = whole();
    let mut pages = Vec::new();
    let mut waiting = vec![&whole];
    while let Some(command) = waiting.pop() {
        pages.push((format!("{}.1", title(command)), render(command)?));
        waiting.extend(command.get_subcommands().filter(|command| !command.is_hide_set()));
    }
    pages.sort();
    Ok(pages)
}

fn whole() -> Command {
    let mut command = crate::cli::command_line().disable_help_subcommand(true);
    command.build();
    command
}

fn title(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn render(command: &Command) -> anyhow::Result<String> {
    let mut text = Vec::new();
    Man::new(command.clone()).manual("provost").render(&mut text)?;
    Ok(String::from_utf8(text)?)
}
