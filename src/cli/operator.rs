//! `provost operator`: the named operators of page, API and metrics. It needs no running server.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::ensure;
use serde_json::json;

use super::audit::{entry, record};
use super::{ConfigArg, code, note, print_json, print_line, waiting, warn};
use crate::admin::operators::file::{self, OperatorName, Rights, StoredOperator};
use crate::audit::AuditAction;
use crate::clock::{self, rfc3339};
use crate::config::Config;
use crate::constituency::ConstituencyName;
use crate::wording::counted;

/// Operators.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Add an operator, within a second, and print the token once.
    Add {
        /// The name, which logs and denials show: a-z, 0-9, ".", "_" and "-".
        #[arg(value_name = "NAME")]
        name: OperatorName,
        /// Let it see and change only these constituencies and their phones, and deny no phone on the whole server: names,
        /// separated by commas [default: the whole server].
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        constituency: Vec<ConstituencyName>,
        /// Let it read, and change nothing; for Prometheus, for example.
        #[arg(long)]
        read_only: bool,
    },
    /// List the operators. Tokens cannot be shown: provost stores only their hashes.
    List {
        /// Print JSON, one object per line: `name`, `constituencies` (null: the whole server), `read_only`, `created`, and `rotated`
        /// (null before the first new token).
        #[arg(long)]
        json: bool,
    },
    /// Remove an operator, within a second: its token and its sessions are no longer valid.
    Remove {
        /// The operator.
        #[arg(value_name = "NAME")]
        name: OperatorName,
    },
    /// Replace an operator's token, within a second, and print the new one once. Sessions with the old one end.
    Rotate {
        /// The operator.
        #[arg(value_name = "NAME")]
        name: OperatorName,
    },
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    let now = clock::unix_seconds(clock::now());
    Ok(code(match command {
        Command::Add { name, constituency, read_only } => {
            let names: BTreeSet<_> = constituency.iter().cloned().collect();
            let constituencies = Some(names).filter(|names| !names.is_empty());
            add(&config, name, &Rights { constituencies, read_only: *read_only }, now)
        }
        Command::List { json } => list(&config, *json),
        Command::Remove { name } => remove(&config, name),
        Command::Rotate { name } => rotate(&config, name, now),
    }))
}

fn add(config: &Config, name: &OperatorName, rights: &Rights, now: i64) -> anyhow::Result<()> {
    // In the wrong folder, the operator would go where no server reads it.
    ensure!(
        !config.is_local() || config.state.exists() || config.constituencies.exists(),
        "{name} was not added: local mode, without constituencies or state here; name the configuration with --config"
    );
    let is_first = file::read(&config.state)?.0.is_empty();
    let token = file::add(&config.state, name, rights, now, &waiting)?;
    let of = rights.constituencies.as_ref().map(|names| format!(" of {}", joined(names))).unwrap_or_default();
    record(&config.state, &[entry(AuditAction::OperatorAdded).detail(format_args!("{name}{of}"))]);
    let folders = &config.constituencies;
    for absent in rights.constituencies.iter().flatten().filter(|name| !folders.join(name.as_str()).is_dir()) {
        warn(&format_args!("constituency {absent} not found; until it is there, {name} sees nothing of it"));
    }
    let what = if rights.read_only { "a read-only operator" } else { "an operator" };
    print_line(&format_args!("{name} is {what}{of} within a second"));
    show(&token);
    match &config.status {
        None => note(&"it has no effect yet: \"status\" in provost.json opens the page, the API and the metrics"),
        Some(status) if is_first && status.token_file.is_none() && !config.is_local() => {
            note(&"from now on every request needs a token, also from this machine, and also of Prometheus");
        }
        Some(_) => {}
    }
    Ok(())
}

fn joined(names: &BTreeSet<ConstituencyName>) -> String {
    names.iter().map(ConstituencyName::as_str).collect::<Vec<_>>().join(", ")
}

fn show(token: &str) {
    print_line(&"the token is shown only once; enter it on the page, or send it as Authorization: Bearer");
    print_line(&token);
}

fn list(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let operators = file::read(&config.state)?.0;
    let width = operators.keys().map(|name| name.as_str().len()).max().unwrap_or(0);
    for (name, operator) in &operators {
        let StoredOperator { constituencies, read_only, created, rotated, .. } = operator;
        let (created, rotated) = (created.map(rfc3339), rotated.map(rfc3339));
        if as_json {
            print_json(
                &json!({ "name": name, "constituencies": constituencies, "read_only": read_only, "created": created, "rotated": rotated }),
            );
            continue;
        }
        let rights = if *read_only { "reads only" } else { "reads and changes" };
        let of = constituencies.as_ref().map(|names| format!(" {}", joined(names))).unwrap_or_default();
        let created = created.map(|at| format!(", added {at}")).unwrap_or_default();
        let rotated = rotated.map(|at| format!(", token of {at}")).unwrap_or_default();
        print_line(&format_args!("{:<width$}  {rights}{of}{created}{rotated}", name.as_str()));
    }
    Ok(())
}

fn remove(config: &Config, name: &OperatorName) -> anyhow::Result<()> {
    let left = file::remove(&config.state, name, &waiting)?;
    record(&config.state, &[entry(AuditAction::OperatorRemoved).detail(name)]);
    print_line(&format_args!("{name} is no longer an operator within a second; {} left", counted(left, "operator")));
    let is_open = config.status.as_ref().is_some_and(|status| status.token_file.is_none()) && !config.is_local();
    if left == 0 && is_open {
        note(
            &"without an operator and a \"token_file\", every program on this machine reads everything, and nothing can be changed",
        );
    }
    Ok(())
}

fn rotate(config: &Config, name: &OperatorName, now: i64) -> anyhow::Result<()> {
    let token = file::rotate(&config.state, name, now, &waiting)?;
    record(&config.state, &[entry(AuditAction::OperatorRotated).detail(name)]);
    print_line(&format_args!(
        "{name} has a new token within a second; the old one and its sessions are no longer valid"
    ));
    show(&token);
    Ok(())
}
