//! Server-wide denials: `provost deny MAC` and `provost undeny MAC`, of one phone or several, all or none. They edit no
//! policy and need no running server.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail, ensure};

use super::audit::{entry, operator, record};
use super::phone_set::{first_of, phones_text, print_each};
use super::{code, note, print_error, registry_of, waiting};
use crate::audit::AuditAction;
use crate::clock;
use crate::config::Config;
use crate::constituency::edit::AllowedPhone;
use crate::constituency::{ClientAuth, ConstituencyName, MacAddress, Registry, ServerDenial, ServerDenials, denials};
use crate::identity::digest::passwords;

/// Denies `phones`, which are sorted, each with its note.
pub(super) fn deny(config: &Config, phones: &[AllowedPhone<'_>]) -> ExitCode {
    let macs: Vec<MacAddress> = phones.iter().map(|phone| phone.mac).collect();
    // In the wrong folder, the denial would go where no server reads it.
    if config.is_local() && !config.state.exists() && !config.constituencies.exists() {
        let verb = if macs.len() == 1 { "was" } else { "were" };
        return code(Err(anyhow!(
            "{} {verb} not denied: local mode, without constituencies or state here; name the configuration with --config",
            phones_text(&macs)
        )));
    }
    let (by, at) = (operator(), Some(clock::unix_seconds(clock::now())));
    let denial = |phone: &AllowedPhone<'_>| {
        let note = phone.note.unwrap_or_default().to_owned();
        (phone.mac, ServerDenial { by: by.clone(), at, note })
    };
    match denials::deny(&config.state, phones.iter().map(denial).collect(), &waiting) {
        Ok(denied) => {
            print_each(&macs, |mac| match denied.binary_search(&mac) {
                Ok(_) => format!("{mac} is denied everywhere within a second"),
                Err(_) => format!("{mac} is already denied everywhere"),
            });
            record(&config.state, &entry(AuditAction::Denied).phones(&denied));
        }
        Err(error) => return code(Err(error.into())),
    }
    for (name, reason) in without_effect(config, &registry_of(config, Arc::default())) {
        note(&format_args!("a denial has no effect in {name}: {reason}"));
    }
    // The denial is in force even if this fails.
    let (removed, errors) = passwords::remove_everywhere(&config.state, &macs, &waiting);
    report_removed(config, &removed);
    let whose = phones_text(&macs);
    for error in &errors {
        print_error(&format_args!(
            "cannot remove a password of {whose}, and undeny fails until it is removed: {error}"
        ));
    }
    if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lifts the denials of `macs`, which are sorted. It is an error if none of them is denied.
pub(super) fn lift(config: &Config, macs: &[MacAddress]) -> anyhow::Result<()> {
    let registry = registry_of(config, Arc::default());
    let served = registry.served().flat_map(|served| {
        let denied = served.policy.denied.iter().filter(|mac| macs.binary_search(mac).is_ok());
        denied.map(|mac| {
            format!("{} still denies it; to lift that, run provost allow {mac} --constituency {0}", served.name)
        })
    });
    let still: Vec<String> = served.collect();
    let stored = ServerDenials::read(&config.state)?.phones();
    let (denied, others): (Vec<_>, Vec<_>) = macs.iter().partition(|mac| stored.contains_key(mac));
    if denied.is_empty() {
        let verb = if macs.len() == 1 { "is" } else { "are" };
        let still = if still.is_empty() { String::new() } else { format!("; {}", still.join("; ")) };
        bail!("{} {verb} not denied everywhere{still}", phones_text(macs));
    }
    // A password left from before the denial must not become valid again.
    let (removed, errors) = passwords::remove_everywhere(&config.state, &denied, &waiting);
    report_removed(config, &removed);
    let whose = phones_text(&denied);
    ensure!(
        errors.is_empty(),
        "{whose} {} still denied everywhere: cannot remove a password, which would be valid again: {}",
        if denied.len() == 1 { "is" } else { "are" },
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    );
    let lifted = denials::lift(&config.state, &denied, &waiting)?;
    ensure!(
        !lifted.is_empty(),
        "{whose} {} no longer denied everywhere: another command has just lifted the denial",
        if denied.len() == 1 { "is" } else { "are" }
    );
    print_each(&others, |mac| format!("{mac} is not denied everywhere"));
    let lifted_macs: Vec<MacAddress> = lifted.keys().copied().collect();
    print_each(&lifted_macs, |mac| {
        let was = lifted.get(&mac).map(ServerDenial::explained).unwrap_or_default();
        format!("{mac} is no longer denied everywhere; it was denied {was}")
    });
    record(&config.state, &entry(AuditAction::Undenied).phones(&lifted_macs));
    for constituency in &still {
        note(constituency);
    }
    Ok(())
}

/// Prints that passwords were removed, and logs it.
fn report_removed(config: &Config, removed: &[(ConstituencyName, Vec<MacAddress>)]) {
    let entries = removed.iter().flat_map(|(name, macs)| entry(AuditAction::PasswordRemoved).of(name).phones(macs));
    record(&config.state, &entries.collect::<Vec<_>>());
    for (name, macs) in removed {
        print_each(macs, |mac| format!("removed the password of {mac} for {name}"));
    }
}

/// Fails if one of `macs`, which are sorted, is denied everywhere.
pub(super) fn check_not_denied(config: &Config, macs: &[MacAddress]) -> anyhow::Result<()> {
    let denials = ServerDenials::read(&config.state)?.phones();
    let denied = denials.iter().filter(|(mac, _)| macs.binary_search(mac).is_ok());
    let each: Vec<String> = denied
        .map(|(mac, denial)| {
            format!("{mac} is denied everywhere {}; to lift that, run provost undeny {mac}", denial.explained())
        })
        .collect();
    match each.as_slice() {
        [] => Ok(()),
        [one] => bail!("{one}"),
        all => bail!("{}; nothing was changed", first_of(all, "\n")),
    }
}

/// The constituencies of `registry` in which a server-wide denial has no effect, and why.
pub(super) fn without_effect<'a>(
    config: &'a Config,
    registry: &'a Registry,
) -> impl Iterator<Item = (&'a ConstituencyName, &'static str)> {
    registry.served().flat_map(|served| {
        let policy = &served.policy;
        let is_public = policy.tls.client_auth == ClientAuth::None;
        let is_plain = config.plain_http.is_some() && policy.plain_http;
        let public = is_public.then_some("it does not authenticate clients (\"client_auth\": \"none\")");
        let plain = is_plain.then_some("plain HTTP does not authenticate clients (\"plain_http\": true)");
        public.into_iter().chain(plain).map(|reason| (&served.name, reason))
    })
}
