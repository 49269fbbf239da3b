//! `provost allow` and `provost deny --constituency` change one line of a policy. `deny` without a constituency and
//! `undeny` change none.

use std::process::ExitCode;

use anyhow::Context;

use super::{ConfigArg, code, complain, denials, passwords, pins, say, server, shown, waiting, warn, whole};
use crate::app::named_files;
use crate::config::Config;
use crate::constituency::edit::PolicyChange;
use crate::constituency::edit_file::{EditError, EditResult, change};
use crate::constituency::{ConstituencyName, Fingerprint, MacAddress};

/// What `provost allow` takes.
#[derive(Debug, clap::Args)]
pub(super) struct AllowArgs {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// The constituency that lets it in.
    #[arg(long, value_name = "NAME")]
    constituency: ConstituencyName,
    /// What stands beside it: where it is, whose it is [default: the note that it has].
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Admit exactly this certificate for it, whoever signed it: all 64 digits, as the phone itself shows them.
    #[arg(long, value_name = "SHA-256")]
    certificate_sha256: Option<Fingerprint>,
    /// Make a new password for it, and print it once, where `client_auth` is `digest`.
    #[arg(long, conflicts_with = "certificate_sha256")]
    digest: bool,
}

/// What `provost deny` takes.
#[derive(Debug, clap::Args)]
pub(super) struct DenyArgs {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// Only this constituency denies it, by its policy [default: the whole server does, whatever policies say].
    #[arg(long, value_name = "NAME")]
    constituency: Option<ConstituencyName>,
    /// Why the whole server denies it [default: the note that it has].
    #[arg(long, value_name = "TEXT", conflicts_with = "constituency")]
    note: Option<String>,
}

/// What `provost undeny` takes.
#[derive(Debug, clap::Args)]
pub(super) struct UndenyArgs {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
}

pub(super) fn allow(args: &AllowArgs, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    let AllowArgs { mac, constituency, .. } = args;
    let asks = || if args.digest { passwords::check_asks(&config, constituency) } else { Ok(()) };
    if let Err(error) = denials::check_not_denied(&config, *mac).and_then(|()| asks()) {
        return Ok(code(Err(error)));
    }
    let note = args.note.as_deref();
    let wanted = match args.certificate_sha256 {
        Some(certificate) => PolicyChange::Pin { mac: *mac, note, certificate },
        None => PolicyChange::Allow { mac: *mac, note },
    };
    let done = change_policy(&config, constituency, wanted).and_then(|changed| {
        let by = if args.certificate_sha256.is_some() { " with this certificate" } else { "" };
        let when = if changed == EditResult::Now { "within a second" } else { "already" };
        let say_accepted = || say(&format_args!("{mac} is let in by {constituency}{by} {when}"));
        if args.digest {
            let given = passwords::give(&config, constituency, *mac).with_context(|| {
                format!("{mac} is on the list of {constituency} {when}, and no new password could be stored for it")
            })?;
            say_accepted();
            given.show();
            return Ok(());
        }
        match passwords::has_one(&config, constituency, *mac) {
            Ok(None) => say_accepted(),
            Ok(Some(true)) => {
                say_accepted();
                return Ok(());
            }
            Ok(Some(false)) => {
                say(&format_args!(
                    "{mac} is on the list of {constituency} {when}, and stays out as long as it has no password: \
                     provost allow {mac} --constituency {constituency} --digest gives it one"
                ));
                return Ok(());
            }
            Err(error) => {
                say(&format_args!("{mac} is on the list of {constituency} {when}"));
                warn(&format_args!("whether it has a password, without which it stays out, is unknown: {error}"));
                return Ok(());
            }
        }
        let warned = match args.certificate_sha256 {
            Some(_) if changed != EditResult::Now => Ok(()),
            Some(certificate) => pins::warn_of_pin(&config, *mac, certificate),
            None => pins::warn_of_unproven(&config, constituency, *mac),
        };
        if let Err(error) = warned {
            warn(&format_args!("what was seen of {mac} cannot be looked up: {error}"));
        }
        Ok(())
    });
    if done.is_ok() {
        warn_of_missing_files(&config, constituency, *mac);
    }
    Ok(code(done))
}

/// Warns if the phone's folder lacks files that its master configuration names.
fn warn_of_missing_files(config: &Config, constituency: &ConstituencyName, mac: MacAddress) {
    let seen = server::phone_history(config).ok().flatten().and_then(|history| history.phones().ok());
    let phone = seen.into_iter().flatten().find(|phone| phone.mac == mac && phone.constituency == *constituency);
    let model = phone.and_then(|phone| phone.model);
    let phone = named_files::Phone { constituency, mac, model: model.as_deref(), directory: "" };
    if let Some(missing) = phone.named_files(&config.constituencies).and_then(|named| named.text()) {
        warn(&shown(&missing));
    }
}

pub(super) fn deny(args: &DenyArgs, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    let mac = args.mac;
    let Some(name) = &args.constituency else { return Ok(denials::deny(&config, mac, args.note.as_deref())) };
    match passwords::take(&config, name, mac).and(change_policy(&config, name, PolicyChange::Deny { mac })) {
        Ok(EditResult::Now) => say(&format_args!("{mac} is kept out of {name} within a second")),
        Ok(EditResult::Already) => say(&format_args!("{mac} is kept out of {name} already")),
        Ok(EditResult::NoClientAuth) => {
            say(&format_args!("{name} asks nobody who they are (\"client_auth\": \"none\"): nobody is kept out"));
        }
        Err(error) => {
            // If the constituency does not exist, no phone is accepted.
            match error.downcast_ref() {
                Some(EditError::Absent { .. }) => complain(&format_args!("{}; nothing was changed", whole(&error))),
                _ => complain(&format_args!("{mac} MAY STILL GET IN at {name}: {}", whole(&error))),
            }
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn undeny(args: &UndenyArgs, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    Ok(code(denials::lift(&config, args.mac)))
}

fn change_policy(config: &Config, name: &ConstituencyName, wanted: PolicyChange<'_>) -> anyhow::Result<EditResult> {
    let bundles = config.bundle_names();
    let bundles: Vec<&str> = bundles.iter().map(String::as_str).collect();
    Ok(change(&config.constituencies, name, wanted, &bundles, &waiting)?)
}
