//! Server-wide denials: `provost deny MAC` and `provost undeny MAC`. They edit no policy and need no running server.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail, ensure};

use super::audit::{entry, operator, record};
use super::{code, note, print_error, print_line, registry_of, waiting};
use crate::audit::AuditAction;
use crate::clock;
use crate::config::Config;
use crate::constituency::{ClientAuth, ConstituencyName, MacAddress, Registry, ServerDenial, ServerDenials, denials};
use crate::identity::digest::passwords;

/// Denies `mac`, with the note `why`.
pub(super) fn deny(config: &Config, mac: MacAddress, why: Option<&str>) -> ExitCode {
    // In the wrong folder, the denial would go where no server reads it.
    if config.is_local() && !config.state.exists() && !config.constituencies.exists() {
        return code(Err(anyhow!(
            "{mac} was not denied: local mode, without constituencies or state here; name the configuration with --config"
        )));
    }
    let at = Some(clock::unix_seconds(clock::now()));
    let denial = ServerDenial { by: operator(), at, note: why.unwrap_or_default().to_owned() };
    match denials::deny(&config.state, mac, denial, &waiting) {
        Ok(true) => {
            print_line(&format_args!("{mac} is denied everywhere within a second"));
            record(&config.state, &[entry(AuditAction::Denied).phone(mac)]);
        }
        Ok(false) => print_line(&format_args!("{mac} is already denied everywhere")),
        Err(error) => return code(Err(error.into())),
    }
    for (name, reason) in without_effect(config, &registry_of(config, Arc::default())) {
        note(&format_args!("a denial has no effect in {name}: {reason}"));
    }
    // The denial is in force even if this fails.
    let (removed, errors) = passwords::remove_everywhere(&config.state, mac, &waiting);
    report_removed(config, mac, &removed);
    for error in &errors {
        print_error(&format_args!("cannot remove a password of {mac}, and undeny fails until it is removed: {error}"));
    }
    if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lifts the denial of `mac`.
pub(super) fn lift(config: &Config, mac: MacAddress) -> anyhow::Result<()> {
    let registry = registry_of(config, Arc::default());
    let served = registry.served().filter(|served| served.policy.denied.contains(&mac));
    let still: Vec<String> = served
        .map(|served| {
            format!("{} still denies it; to lift that, run provost allow {mac} --constituency {0}", served.name)
        })
        .collect();
    if !ServerDenials::read(&config.state)?.has(mac) {
        let still = if still.is_empty() { String::new() } else { format!("; {}", still.join("; ")) };
        bail!("{mac} is not denied everywhere{still}");
    }
    // A password left from before the denial must not become valid again.
    let (removed, errors) = passwords::remove_everywhere(&config.state, mac, &waiting);
    report_removed(config, mac, &removed);
    ensure!(
        errors.is_empty(),
        "{mac} is still denied everywhere: cannot remove a password, which would be valid again: {}",
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    );
    let Some(denial) = denials::lift(&config.state, mac, &waiting)? else {
        bail!("{mac} is no longer denied everywhere: another command has just lifted the denial");
    };
    print_line(&format_args!("{mac} is no longer denied everywhere; it was denied {}", denial.explained()));
    record(&config.state, &[entry(AuditAction::Undenied).phone(mac)]);
    for constituency in &still {
        note(constituency);
    }
    Ok(())
}

/// Prints that passwords of `mac` were removed, and logs it.
fn report_removed(config: &Config, mac: MacAddress, constituencies: &[ConstituencyName]) {
    let removed = constituencies.iter().map(|name| entry(AuditAction::PasswordRemoved).of(name).phone(mac));
    record(&config.state, &removed.collect::<Vec<_>>());
    for name in constituencies {
        print_line(&format_args!("removed the password of {mac} for {name}"));
    }
}

/// Fails if `mac` is denied everywhere.
pub(super) fn check_not_denied(config: &Config, mac: MacAddress) -> anyhow::Result<()> {
    match ServerDenials::read(&config.state)?.get(mac) {
        Some(denial) => {
            bail!("{mac} is denied everywhere {}; to lift that, run provost undeny {mac}", denial.explained())
        }
        None => Ok(()),
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
