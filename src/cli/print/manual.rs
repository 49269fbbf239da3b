//! The manual in roff: a page for each command from its `--help`, and one for each configuration file from its schema.

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;
use roff::{Inline, Roff};

use super::systemd::{CONFIG, CONSTITUENCIES, STATE};
use crate::cli::reference;
use crate::cli::schema::File;

/// The end of provost's own `--help` and page: headings, each with its entries.
const CLOSING: [(&str, &[(&str, &str)]); 3] = [
    (
        "Files",
        &[
            ("provost.json", "the configuration in the working directory; without it, local mode"),
            (CONFIG, "the service's configuration; name it with --config or PROVOST_CONFIG"),
            (CONSTITUENCIES, "the service's constituencies: a folder each, with constituency.json as its policy"),
            (STATE, "the service's state: certificates and keys, uploads, the phone history, your own CA"),
        ],
    ),
    (
        "Environment",
        &[
            ("PROVOST_CONFIG", "the configuration for commands without --config; empty means unset"),
            (
                "PROVOST_LOG",
                "the level of diagnostics: error, warn, info (default), debug or trace, or one per module, such as info,provost::acme=debug",
            ),
        ],
    ),
    (
        "Exit status",
        &[
            ("0", "good"),
            ("1", "failure: refused, not provisioned, errors found"),
            ("2", "usage or configuration error"),
        ],
    ),
];

/// The page.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The command, such as `certificate renew`, or `provost.json` or `constituency.json` [default: provost itself].
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

/// The page for `args`.
pub(super) fn page(args: &Args) -> anyhow::Result<String> {
    if let [name] = &args.command[..]
        && let Some(file) = File::ALL.into_iter().find(|file| file.name() == name)
    {
        return file_page(file);
    }
    let mut command = &whole();
    for name in &args.command {
        command = command.find_subcommand(name).with_context(|| format!("unknown command {name:?}"))?;
    }
    render(command)
}

/// All pages: file name and text.
pub(in crate::cli) fn pages() -> anyhow::Result<Vec<(String, String)>> {
    let whole = whole();
    let mut pages = Vec::new();
    let mut waiting = vec![&whole];
    while let Some(command) = waiting.pop() {
        pages.push((format!("{}.1", title(command)), render(command)?));
        waiting.extend(command.get_subcommands().filter(|command| !command.is_hide_set()));
    }
    for file in File::ALL {
        pages.push((format!("{}.5", file.name()), file_page(file)?));
    }
    pages.sort();
    Ok(pages)
}

/// The page of a configuration file.
fn file_page(file: File) -> anyhow::Result<String> {
    Ok(reference::manual_page(file.name(), &reference::sections(file.schema().as_value()))?)
}

fn whole() -> Command {
    let mut command = crate::cli::command_line().disable_help_subcommand(true);
    // Pages have sections of their own for the end of `--help`.
    command = command.after_long_help("");
    command.build();
    command
}

fn title(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// The end of provost's own `--help`.
pub(in crate::cli) fn closing() -> String {
    let row = |(name, words): &(&str, &str)| format!("  {name}\n          {words}\n");
    let section =
        |(heading, rows): &(&str, &[(&str, &str)])| format!("{heading}:\n{}", rows.iter().map(row).collect::<String>());
    CLOSING.iter().map(section).collect::<Vec<_>>().join("\n")
}

fn render(command: &Command) -> anyhow::Result<String> {
    let mut text = Vec::new();
    let man = Man::new(command.clone()).manual("provost");
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if command.get_name() == "provost" {
        render_closing(&mut text)?;
    }
    man.render_version_section(&mut text)?;
    Ok(String::from_utf8(text)?)
}

fn render_closing(text: &mut Vec<u8>) -> std::io::Result<()> {
    let mut roff = Roff::new();
    for (heading, rows) in CLOSING {
        roff.control("SH", [heading.to_uppercase().as_str()]);
        for (name, words) in rows {
            roff.control("TP", []);
            roff.text([Inline::Bold((*name).to_owned())]).text([Inline::Roman((*words).to_owned())]);
        }
    }
    roff.to_writer(text)
}
