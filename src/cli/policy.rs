//! `provost allow` and `provost deny --constituency` change the list or the policy of a constituency. `deny` without a
//! constituency and `undeny` change none.

use std::process::ExitCode;

use anyhow::{Context, anyhow, ensure};

use super::audit::{entry, record};
use super::phone_set::{PhoneArgs, PhoneSet, phones_text, print_each};
use super::{
    ConfigArg, allow_from, code, denials, passwords, pins, print_error, print_line, replace_controls, server, waiting,
    warn, with_causes,
};
use crate::app::named_files;
use crate::audit::{AuditAction, AuditEntry};
use crate::config::Config;
use crate::constituency::denials::MAX_NOTE;
use crate::constituency::edit::{AllowedPhone, PolicyChange};
use crate::constituency::edit_file::{EditError, EditResult, PolicyEdit, change};
use crate::constituency::{ClientAuth, ConstituencyName, Fingerprint, MacAddress};

/// What `provost allow` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "With --from, the phones of FILE are added, and get its notes; a phone without a note in FILE keeps its own. \
    All or nothing: an invalid line, a phone that FILE lists twice, and a phone that is denied are errors with their lines. \
    Phones that FILE does not list stay on the list; remove them in phones.csv itself, or deny them."
)]
pub(super) struct AllowArgs {
    #[command(flatten)]
    phones: PhoneArgs,
    /// The constituency that allows them.
    #[arg(long, value_name = "NAME")]
    constituency: ConstituencyName,
    /// A note, such as the phone's place or owner [default: the note that it has].
    #[arg(long, value_name = "TEXT", conflicts_with = "from")]
    note: Option<String>,
    /// Pin this certificate: accept it for this phone, whatever its issuer. All 64 digits, as the phone itself shows them.
    #[arg(long, value_name = "SHA-256", conflicts_with = "from")]
    certificate_sha256: Option<Fingerprint>,
    /// Make a new password, and print it once; for constituencies with `client_auth` `digest`.
    #[arg(long, conflicts_with_all = ["certificate_sha256", "from"])]
    digest: bool,
    /// With --from: apply the changes without asking. Without a terminal this is required.
    #[arg(long, conflicts_with = "macs")]
    yes: bool,
    /// With --from: show what would change, and change nothing.
    #[arg(long, conflicts_with_all = ["macs", "yes"])]
    dry_run: bool,
}

/// What `provost deny` takes.
#[derive(Debug, clap::Args)]
pub(super) struct DenyArgs {
    #[command(flatten)]
    phones: PhoneArgs,
    /// Deny them only in this constituency, in its policy [default: on the whole server, whatever the policies].
    #[arg(long, value_name = "NAME")]
    constituency: Option<ConstituencyName>,
    /// The reason of a denial on the whole server [default: the note in FILE].
    #[arg(long, value_name = "TEXT", conflicts_with = "constituency")]
    note: Option<String>,
}

/// What `provost undeny` takes.
#[derive(Debug, clap::Args)]
pub(super) struct UndenyArgs {
    #[command(flatten)]
    phones: PhoneArgs,
}

pub(super) fn allow(args: &AllowArgs, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    ensure!(
        args.phones.macs.len() < 2 || (args.certificate_sha256.is_none() && !args.digest),
        "--certificate-sha256 and --digest take one phone"
    );
    let config = config.find()?;
    let consent = match (args.yes, args.dry_run) {
        (_, true) => allow_from::Consent::DryRun,
        (true, _) => allow_from::Consent::Given,
        _ => allow_from::Consent::Ask,
    };
    let done = args.phones.read().and_then(|phones| match phones {
        PhoneSet::File(file) => allow_from::run(&config, &args.constituency, &file, &args.phones.file_name(), consent),
        PhoneSet::Typed(macs) => match macs.as_slice() {
            [mac] => allow_one(args, &config, *mac),
            macs => allow_several(args, &config, macs),
        },
    });
    Ok(code(done))
}

fn allow_several(args: &AllowArgs, config: &Config, macs: &[MacAddress]) -> anyhow::Result<()> {
    let name = &args.constituency;
    denials::check_not_denied(config, macs)?;
    let note = args.note.as_deref();
    let phones: Vec<_> = macs.iter().map(|mac| AllowedPhone { mac: *mac, note }).collect();
    let edit = change_policy(config, name, PolicyChange::Allow(&phones))?;
    let changed: Vec<MacAddress> = edit.changed().collect();
    print_each(macs, |mac| match changed.binary_search(&mac) {
        Ok(_) => format!("{mac} is allowed in {name} within a second"),
        Err(_) => format!("{mac} is allowed in {name} already"),
    });
    passwords::warn_of_missing(config, name, macs, edit.client_auth);
    Ok(())
}

fn allow_one(args: &AllowArgs, config: &Config, mac: MacAddress) -> anyhow::Result<()> {
    let AllowArgs { constituency, .. } = args;
    denials::check_not_denied(config, &[mac])?;
    if args.digest {
        passwords::check_uses_passwords(config, constituency)?;
    }
    let phone = AllowedPhone { mac, note: args.note.as_deref() };
    let wanted = match args.certificate_sha256 {
        Some(certificate) => PolicyChange::Pin { phone, certificate },
        None => PolicyChange::Allow(&[phone]),
    };
    let changed = change_policy(config, constituency, wanted)?;
    let by = if args.certificate_sha256.is_some() { " with this certificate" } else { "" };
    let when = if changed.result == EditResult::Now { "within a second" } else { "already" };
    let print_allowed = || print_line(&format_args!("{mac} is allowed in {constituency}{by} {when}"));
    if args.digest {
        let given = passwords::create(config, constituency, mac).with_context(|| {
            format!("{mac} is on the list of {constituency} {when}, but its new password cannot be stored")
        })?;
        print_allowed();
        given.show();
    } else if changed.client_auth == ClientAuth::Digest {
        match passwords::missing_of(config, constituency, &[mac], changed.client_auth) {
            Ok(missing) if missing.is_empty() => print_allowed(),
            Ok(_) => print_line(&format_args!(
                "{mac} is on the list of {constituency} {when}, but is refused until it has a password; make one with \
                 provost allow {mac} --constituency {constituency} --digest"
            )),
            Err(error) => {
                print_line(&format_args!("{mac} is on the list of {constituency} {when}"));
                warn(&format_args!("cannot read its password, and without one it is refused: {error}"));
            }
        }
    } else {
        print_allowed();
        let warned = match args.certificate_sha256 {
            Some(_) if changed.result != EditResult::Now => Ok(()),
            Some(certificate) => pins::warn_of_pin(config, mac, certificate),
            None => pins::warn_of_unproven(config, constituency, mac, changed.pins.get(&mac).copied()),
        };
        if let Err(error) = warned {
            warn(&format_args!("cannot read the history of {mac}: {error}"));
        }
    }
    warn_of_missing_files(config, constituency, mac);
    Ok(())
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
    let set = match args.phones.read() {
        Ok(set) => set,
        Err(error) => return Ok(code(Err(error))),
    };
    let phones = set.phones(args.note.as_deref());
    let macs: Vec<MacAddress> = phones.iter().map(|phone| phone.mac).collect();
    if macs.is_empty() {
        return Ok(code(Err(nothing_listed())));
    }
    let Some(name) = &args.constituency else {
        return Ok(match check_reasons(&set, &phones, &args.phones.file_name()) {
            Ok(()) => denials::deny(&config, &phones),
            Err(error) => code(Err(error)),
        });
    };
    let change_policy = |wanted| change_policy(&config, name, wanted);
    match passwords::remove_of(&config, name, &macs).and_then(|()| change_policy(PolicyChange::Deny(&macs))) {
        Ok(edit) if edit.result == EditResult::NoClientAuth => {
            print_line(&format_args!(
                "{name} does not authenticate clients (\"client_auth\": \"none\"), so it cannot deny a phone"
            ));
        }
        Ok(edit) => {
            let denied: Vec<MacAddress> = edit.changed().collect();
            print_each(&macs, |mac| match denied.binary_search(&mac) {
                Ok(_) => format!("{mac} is denied in {name} within a second"),
                Err(_) => format!("{mac} is already denied in {name}"),
            });
        }
        Err(error) => {
            // If the constituency does not exist, no phone is accepted.
            match error.downcast_ref() {
                Some(EditError::Absent { .. }) => {
                    print_error(&format_args!("{}; nothing was changed", with_causes(&error)));
                }
                _ => {
                    let whose = phones_text(&macs);
                    print_error(&format_args!("{whose} MAY STILL BE ACCEPTED in {name}: {}", with_causes(&error)));
                }
            }
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn undeny(args: &UndenyArgs, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    let lifted = args.phones.read().and_then(|set| {
        let macs: Vec<MacAddress> = set.phones(None).iter().map(|phone| phone.mac).collect();
        if macs.is_empty() { Err(nothing_listed()) } else { denials::lift(&config, &macs) }
    });
    Ok(code(lifted))
}

/// Checks the notes in a file as reasons of denials, and names the line of a wrong one.
fn check_reasons(set: &PhoneSet, phones: &[AllowedPhone<'_>], file_name: &str) -> anyhow::Result<()> {
    let PhoneSet::File(file) = set else { return Ok(()) };
    let is_wrong = |note: &str| note.len() > MAX_NOTE || note.chars().any(char::is_control);
    let wrong = phones.iter().filter(|phone| phone.note.is_some_and(is_wrong));
    match wrong.filter_map(|phone| file.line(phone.mac)).min() {
        None => Ok(()),
        Some(line) => Err(anyhow!(
            "{file_name}:{line}: the note must be one line of at most {MAX_NOTE} bytes; nothing was changed"
        )),
    }
}

fn nothing_listed() -> anyhow::Error {
    anyhow!("the file lists no phone; nothing was changed")
}

fn change_policy(config: &Config, name: &ConstituencyName, wanted: PolicyChange<'_>) -> anyhow::Result<PolicyEdit> {
    let bundles = config.bundle_names();
    let bundles: Vec<&str> = bundles.iter().map(String::as_str).collect();
    let edit = change(&config.constituencies, name, wanted, &bundles, &waiting)?;
    record(&config.state, &entries(name, wanted, &edit));
    Ok(edit)
}

/// The lines of the audit log for the change `wanted`.
fn entries(name: &ConstituencyName, wanted: PolicyChange<'_>, edit: &PolicyEdit) -> Vec<AuditEntry> {
    let changed: Vec<MacAddress> = edit.changed().collect();
    let of = |action| entry(action).of(name);
    match wanted {
        PolicyChange::Allow(_) => of(AuditAction::Allowed).phones(&changed),
        PolicyChange::Pin { certificate, .. } => {
            changed.iter().map(|mac| of(AuditAction::Pinned).phone(*mac).detail(certificate)).collect()
        }
        PolicyChange::Deny(_) => {
            let unpinned = changed.iter().filter_map(|mac| {
                let pin = edit.pins_before.get(mac)?;
                Some(of(AuditAction::Unpinned).phone(*mac).detail(pin))
            });
            of(AuditAction::Denied).phones(&changed).into_iter().chain(unpinned).collect()
        }
    }
}
