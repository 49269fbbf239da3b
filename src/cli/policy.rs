//! `provost allow` and `provost deny --constituency` change one line of a policy. `deny` without a constituency and
//! `undeny` change none.

use std::process::ExitCode;

use anyhow::Context;

use super::audit::{entry, record};
use super::{
    ConfigArg, code, denials, passwords, pins, print_error, print_line, replace_controls, server, waiting, warn,
    with_causes,
};
use crate::app::named_files;
use crate::audit::{AuditAction, AuditEntry};
use crate::config::Config;
use crate::constituency::edit::PolicyChange;
use crate::constituency::edit_file::{EditError, EditResult, Edited, change};
use crate::constituency::{ConstituencyName, Fingerprint, MacAddress};

/// What `provost allow` takes.
#[derive(Debug, clap::Args)]
pub(super) struct AllowArgs {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// The constituency that allows it.
    #[arg(long, value_name = "NAME")]
    constituency: ConstituencyName,
    /// A note, such as the phone's place or owner [default: the note that it has].
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Pin this certificate: accept it for this phone, whatever its issuer. All 64 digits, as the phone itself shows them.
    #[arg(long, value_name = "SHA-256")]
    certificate_sha256: Option<Fingerprint>,
    /// Make a new password, and print it once; for constituencies with `client_auth` `digest`.
    #[arg(long, conflicts_with = "certificate_sha256")]
    digest: bool,
}

/// What `provost deny` takes.
#[derive(Debug, clap::Args)]
pub(super) struct DenyArgs {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// Deny it only in this constituency, in its policy [default: on the whole server, whatever the policies].
    #[arg(long, value_name = "NAME")]
    constituency: Option<ConstituencyName>,
    /// The reason of a denial on the whole server [default: the phone's note].
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
    let asks = || if args.digest { passwords::check_uses_passwords(&config, constituency) } else { Ok(()) };
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
        let when = if changed.result == EditResult::Now { "within a second" } else { "already" };
        let print_allowed = || print_line(&format_args!("{mac} is allowed in {constituency}{by} {when}"));
        if args.digest {
            let given = passwords::create(&config, constituency, *mac).with_context(|| {
                format!("{mac} is on the list of {constituency} {when}, but its new password cannot be stored")
            })?;
            print_allowed();
            given.show();
            return Ok(());
        }
        match passwords::has_one(&config, constituency, *mac, changed.client_auth) {
            Ok(None) => print_allowed(),
            Ok(Some(true)) => {
                print_allowed();
                return Ok(());
            }
            Ok(Some(false)) => {
                print_line(&format_args!(
                    "{mac} is on the list of {constituency} {when}, but is refused until it has a password; make one with \
                     provost allow {mac} --constituency {constituency} --digest"
                ));
                return Ok(());
            }
            Err(error) => {
                print_line(&format_args!("{mac} is on the list of {constituency} {when}"));
                warn(&format_args!("cannot read its password, and without one it is refused: {error}"));
                return Ok(());
            }
        }
        let warned = match args.certificate_sha256 {
            Some(_) if changed.result != EditResult::Now => Ok(()),
            Some(certificate) => pins::warn_of_pin(&config, *mac, certificate),
            None => pins::warn_of_unproven(&config, constituency, *mac, changed.pin),
        };
        if let Err(error) = warned {
            warn(&format_args!("cannot read the history of {mac}: {error}"));
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
    let seen = server::phone_history(config).ok().flatten().and_then(|history| history.phones_of(mac).ok());
    let phone = seen.into_iter().flatten().find(|phone| phone.constituency == *constituency);
    let model = phone.and_then(|phone| phone.model);
    let phone = named_files::Phone { constituency, mac, model: model.as_deref(), directory: "" };
    if let Some(missing) = phone.named_files(&config.constituencies).and_then(|named| named.text()) {
        warn(&replace_controls(&missing));
    }
}

pub(super) fn deny(args: &DenyArgs, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    let mac = args.mac;
    let Some(name) = &args.constituency else { return Ok(denials::deny(&config, mac, args.note.as_deref())) };
    let change_policy = |wanted| change_policy(&config, name, wanted).map(|edited| edited.result);
    match passwords::remove_of(&config, name, mac).and(change_policy(PolicyChange::Deny { mac })) {
        Ok(EditResult::Now) => print_line(&format_args!("{mac} is denied in {name} within a second")),
        Ok(EditResult::Already) => print_line(&format_args!("{mac} is already denied in {name}")),
        Ok(EditResult::NoClientAuth) => {
            print_line(&format_args!(
                "{name} does not authenticate clients (\"client_auth\": \"none\"), so it cannot deny a phone"
            ));
        }
        Err(error) => {
            // If the constituency does not exist, no phone is accepted.
            match error.downcast_ref() {
                Some(EditError::Absent { .. }) => {
                    print_error(&format_args!("{}; nothing was changed", with_causes(&error)));
                }
                _ => print_error(&format_args!("{mac} MAY STILL BE ACCEPTED in {name}: {}", with_causes(&error))),
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

fn change_policy(config: &Config, name: &ConstituencyName, wanted: PolicyChange<'_>) -> anyhow::Result<Edited> {
    let bundles = config.bundle_names();
    let bundles: Vec<&str> = bundles.iter().map(String::as_str).collect();
    let edited = change(&config.constituencies, name, wanted, &bundles, &waiting)?;
    if edited.result == EditResult::Now {
        record(&config.state, &entries(name, wanted, &edited));
    }
    Ok(edited)
}

/// The lines of the audit log for the change `wanted`.
fn entries(name: &ConstituencyName, wanted: PolicyChange<'_>, edited: &Edited) -> Vec<AuditEntry> {
    let of = |action, mac| entry(action).of(name).phone(mac);
    match wanted {
        PolicyChange::Allow { mac, .. } => vec![of(AuditAction::Allowed, mac)],
        PolicyChange::RemoveDenial { mac } => vec![of(AuditAction::Undenied, mac)],
        PolicyChange::Pin { mac, certificate, .. } => vec![of(AuditAction::Pinned, mac).detail(certificate)],
        PolicyChange::Deny { mac } => {
            let unpinned = edited.pin_before.map(|pin| of(AuditAction::Unpinned, mac).detail(pin));
            std::iter::once(of(AuditAction::Denied, mac)).chain(unpinned).collect()
        }
    }
}
