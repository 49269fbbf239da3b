//! The commands, one file each. Exit codes: 0 success, 1 failure, 2 usage or configuration error.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use clap::builder::Styles;
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::Value;

use crate::clock;
use crate::config::{CONFIG_FILE, Config};
use crate::constituency::last_good::LastGood;
use crate::constituency::scan::Scanner;
use crate::constituency::{Registry, ServerDenials};
use crate::wording::is_unseen;

mod allow_from;
mod audit;
pub mod boot_table;
mod ca;
mod certificate;
pub mod check;
mod constituency;
mod demo;
mod denials;
mod diagnostics;
mod install;
mod journal;
mod local;
mod operator;
mod parameters;
mod passwords;
pub mod phone;
mod phone_log;
mod phone_set;
mod phones;
mod pins;
mod policy;
pub mod print;
mod reference;
mod schema;
mod serve;
mod server;
mod trust;
mod uploads;

/// The exit code of a usage or configuration error.
const USAGE: u8 = 2;

const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Green.on_default());

/// Polycom phone provisioning on the public internet: mutual TLS by the phones' factory certificates, a folder per
/// constituency, one binary.
///
/// Without `--config`, `PROVOST_CONFIG` and provost.json in the working directory, provost runs in local mode: it serves
/// ./constituencies as https://*.phones.localhost:8443 on loopback, with certificates of its own.
#[derive(Debug, Parser)]
#[command(
    name = "provost",
    version = env!("PROVOST_VERSION"),
    styles = STYLES,
    propagate_version = true,
    max_term_width = 100,
    after_long_help = print::manual::closing()
)]
struct Cli {
    #[command(flatten)]
    config: ConfigArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve constituencies to phones.
    Serve(serve::Args),
    /// Show provost on this machine: serve in local mode and boot three virtual phones.
    Demo(demo::Args),
    /// Print all problems of the configuration and the constituencies.
    Check(check::Args),
    /// Show, renew and revoke the server's certificates.
    #[command(subcommand)]
    Certificate(certificate::Command),
    /// List known phones and phones that were seen: when, from where, and why refused.
    Phones(phones::Args),
    /// Show the requests of one phone and the responses.
    PhoneLog(phone_log::Args),
    /// Put phones on a constituency's list, within a second.
    Allow(policy::AllowArgs),
    /// Deny phones on the whole server or in one constituency, within a second.
    Deny(policy::DenyArgs),
    /// Lift the denial of phones on the whole server.
    Undeny(policy::UndenyArgs),
    /// Add, list and remove operators of the status page, and replace their tokens.
    #[command(subcommand)]
    Operator(operator::Command),
    /// Show who changed what, from where and when: the audit log.
    Audit(audit::Args),
    /// List constituencies, or make one.
    #[command(subcommand)]
    Constituency(constituency::Command),
    /// List, print, remove and move phones' uploads.
    #[command(subcommand)]
    Uploads(uploads::Command),
    Phone(phone::Args),
    /// Show trusted CAs, or check a device certificate.
    #[command(subcommand)]
    Trust(trust::Command),
    /// Run your own CA for phones without a usable factory certificate.
    #[command(subcommand)]
    Ca(ca::Command),
    /// Print configuration for other programs: DNS, DHCP, systemd, Prometheus, phones.
    #[command(subcommand)]
    Print(print::Command),
    /// Print the JSON Schema of a configuration file.
    Schema(schema::Args),
    /// Install a systemd service: user, folders, units, an example configuration.
    Install(install::InstallArgs),
    /// Remove what `install` installed; keep all data.
    Uninstall(install::UninstallArgs),
}

/// The environment variable that names the configuration if `--config` is missing.
const CONFIG_VARIABLE: &str = "PROVOST_CONFIG";

/// Which configuration a command is about.
#[derive(Debug, Clone, clap::Args)]
struct ConfigArg {
    /// The configuration [default: the file that `PROVOST_CONFIG` names, else provost.json in the working directory; without
    /// one, local mode].
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl ConfigArg {
    /// The file named by the command line or the environment. An empty variable counts as unset.
    fn named(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os(CONFIG_VARIABLE).filter(|value| !value.is_empty());
        self.config.clone().or_else(|| variable().map(PathBuf::from))
    }

    /// Reads the configuration. A named file that is missing is an error: local mode applies only if none is named.
    fn read(&self) -> anyhow::Result<Config> {
        Ok(Config::find(self.named().as_deref())?)
    }

    /// Reads the configuration for a command about a server. In local mode, prints a note with the path of the
    /// service's configuration if that exists.
    fn find(&self) -> anyhow::Result<Config> {
        let config = self.read()?;
        let service = print::systemd::CONFIG;
        if config.is_local() && !config.constituencies.exists() && Path::new(service).exists() {
            note(&format_args!(
                "local mode, because there is no {CONFIG_FILE} here; for the service, add --config {service}"
            ));
        }
        Ok(config)
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { config, command } = Cli::parse();
    let result = match command {
        Command::Serve(args) => serve::run(&args, &config),
        Command::Demo(args) => demo::run(&args, &config),
        Command::Check(args) => check::run(&args, &config),
        Command::Certificate(command) => certificate::run(&command, &config),
        Command::Phones(args) => phones::run(&args, &config),
        Command::PhoneLog(args) => phone_log::run(&args, &config),
        Command::Allow(args) => policy::allow(&args, &config),
        Command::Deny(args) => policy::deny(&args, &config),
        Command::Undeny(args) => policy::undeny(&args, &config),
        Command::Operator(command) => operator::run(&command, &config),
        Command::Audit(args) => audit::run(&args, &config),
        Command::Constituency(command) => constituency::run(&command, &config),
        Command::Uploads(command) => uploads::run(&command, &config),
        Command::Phone(args) => local::run_phone(&args, &config),
        Command::Trust(command) => trust::run(&command, &config),
        Command::Ca(command) => ca::run(&command, &config),
        Command::Print(command) => print::run(&command, &config),
        Command::Schema(args) => schema::run(&args),
        Command::Install(args) => install::install(&args, &config),
        Command::Uninstall(args) => install::uninstall(&args, &config),
    };
    result.unwrap_or_else(|error| {
        print_error(&with_causes(&error));
        ExitCode::from(USAGE)
    })
}

/// The definition of the command line, for completions and manual pages.
fn command_line() -> clap::Command {
    Cli::command()
}

/// Prints a line to standard output. A closed pipe is not an error.
fn print_line(line: &dyn Display) {
    let _ = writeln!(anstream::stdout(), "{line}");
}

/// Prints a line that contains foreign text.
fn print_foreign(line: &dyn Display) {
    print_line(&replace_controls(&line.to_string()));
}

/// Replaces control characters and invisible ones in foreign text: file names, notes, and messages of CAs and name servers.
fn replace_controls(text: &str) -> String {
    text.replace(is_unseen, "\u{fffd}")
}

/// Prints JSON on one line. JSON escapes only what is below U+0020; this also escapes the other control characters, and
/// invisible ones.
fn print_json(json: &Value) {
    print_line(&escaped_json(&json.to_string()));
}

fn escaped_json(json: &str) -> String {
    let escaped = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
    let escape = |c: char| if is_unseen(c) && c != '\n' { escaped(c) } else { c.to_string() };
    json.chars().map(escape).collect()
}

/// Text of several lines, with other control characters and invisible ones replaced.
fn lines(text: &dyn Display) -> String {
    text.to_string().replace(|c: char| is_unseen(c) && c != '\n', "\u{fffd}")
}

/// Prints an error to standard error.
fn print_error(error: &dyn Display) {
    let style = AnsiColor::Red.on_default().bold();
    let _ = writeln!(anstream::stderr(), "{style}error:{style:#} {}", lines(error));
}

/// Prints a warning to standard error.
fn warn(warning: &dyn Display) {
    let style = AnsiColor::Yellow.on_default().bold();
    let _ = writeln!(anstream::stderr(), "{style}warning:{style:#} {}", lines(warning));
}

/// Prints a note to standard error, about what an operator may not have meant.
fn note(remark: &dyn Display) {
    let style = AnsiColor::Cyan.on_default().bold();
    let _ = writeln!(anstream::stderr(), "{style}note:{style:#} {}", lines(remark));
}

/// Prints to standard error that another process is waited for.
fn waiting(message: &str) {
    note(&replace_controls(message));
}

/// An error with its causes. A cause that the text before it already contains is left out.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        before if before.contains(&cause) => text,
        before => format!("{before}: {cause}"),
    })
}

/// The exit code of a result. An error is printed.
fn code(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// The constituencies as a server would serve them now: with the last good policies, and with the server-wide `denials`
/// applied.
fn registry_of(config: &Config, denials: Arc<ServerDenials>) -> Registry {
    let scanner = Scanner::new(config.constituencies.clone(), config.bundle_names());
    scanner.with_denials(denials).with_last_good(LastGood::of_state(&config.state)).scan(clock::now())
}

/// The async runtime of a command that uses the network.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
