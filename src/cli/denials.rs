//! Server-wide denials: `provost deny MAC` and `provost undeny MAC`. They edit no policy and need no running server.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{anyhow, bail, ensure};
use rustix::process::{geteuid, getuid};

use super::{code, complain, note, registry_of, say, shown, waiting};
use crate::clock;
use crate::config::Config;
use crate::constituency::{ClientAuth, ConstituencyName, MacAddress, Registry, ServerDenial, ServerDenials, denials};
use crate::files::read_regular;
use crate::identity::digest::passwords;

/// Denies `mac`, with the note `why`.
pub(super) fn deny(config: &Config, mac: MacAddress, why: Option<&str>) -> ExitCode {
    // In the wrong folder, the denial would go where no server reads it.
    if config.is_local() && !config.state.exists() && !config.constituencies.exists() {
        return code(Err(anyhow!(
            "{mac} is not denied: local mode, and neither provost.json nor constituencies nor state are here"
        )));
    }
    let at = Some(clock::unix_seconds(clock::now()));
    let denial = ServerDenial { by: operator(), at, note: why.unwrap_or_default().to_owned() };
    match denials::deny(&config.state, mac, denial, &waiting) {
        Ok(true) => say(&format_args!("{mac} is denied everywhere within a second")),
        Ok(false) => say(&format_args!("{mac} is denied everywhere already")),
        Err(error) => return code(Err(error.into())),
    }
    for (name, reason) in without_effect(config, &registry_of(config, Arc::default())) {
        note(&format_args!("a denial has no effect in {name}: {reason}"));
    }
    // The denial is in force even if this fails.
    let (removed, errors) = passwords::remove_everywhere(&config.state, mac, &waiting);
    say_removed(mac, &removed);
    for error in &errors {
        complain(&format_args!(
            "a password of {mac} may still be there, and undeny will not work until it is not: {error}"
        ));
    }
    if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lifts the denial of `mac`.
pub(super) fn lift(config: &Config, mac: MacAddress) -> anyhow::Result<()> {
    let registry = registry_of(config, Arc::default());
    let served = registry.served().filter(|served| served.policy.denied.contains(&mac));
    let still: Vec<String> = served
        .map(|served| format!("{} denies it (provost allow {mac} --constituency {0} lifts that)", served.name))
        .collect();
    if !ServerDenials::read(&config.state)?.has(mac) {
        let still = if still.is_empty() { String::new() } else { format!("; {}", still.join("; ")) };
        bail!("{mac} is not denied everywhere{still}");
    }
    // A password left from before the denial must not become valid again.
    let (removed, errors) = passwords::remove_everywhere(&config.state, mac, &waiting);
    say_removed(mac, &removed);
    ensure!(
        errors.is_empty(),
        "a password of {mac} that cannot be removed would count again; its denial was not lifted: {}",
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    );
    let Some(denial) = denials::lift(&config.state, mac, &waiting)? else {
        bail!("{mac} is not denied everywhere any more: another command has just lifted that");
    };
    say(&format_args!("{mac} is not denied everywhere any more; it was denied {}", denial.explained()));
    for constituency in &still {
        note(constituency);
    }
    Ok(())
}

fn say_removed(mac: MacAddress, constituencies: &[ConstituencyName]) {
    for name in constituencies {
        say(&format_args!("{mac} has no password for {name} any more"));
    }
}

/// Fails if `mac` is denied everywhere.
pub(super) fn check_not_denied(config: &Config, mac: MacAddress) -> anyhow::Result<()> {
    match ServerDenials::read(&config.state)?.get(mac) {
        Some(denial) => bail!("{mac} is denied everywhere {}; provost undeny {mac} lifts that", denial.explained()),
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
        let public = is_public.then_some("it asks no phone who it is (\"client_auth\": \"none\")");
        let plain = is_plain.then_some("over plain HTTP no phone says who it is (\"plain_http\": true)");
        public.into_iter().chain(plain).map(|reason| (&served.name, reason))
    })
}

/// The user who runs this command; for root, the user who called sudo.
fn operator() -> String {
    let by_sudo = std::env::var("SUDO_USER").ok().filter(|name| geteuid().is_root() && !name.is_empty());
    let user = getuid().as_raw();
    let name = by_sudo.or_else(|| user_name(&read_regular("/etc/passwd".as_ref()).ok()?, user));
    shown(&name.unwrap_or_else(|| format!("user {user}"))).chars().take(64).collect()
}

/// The name of `user` in the text of /etc/passwd (passwd(5)).
fn user_name(passwd: &[u8], user: u32) -> Option<String> {
    String::from_utf8_lossy(passwd).lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_name_of_its_line_in_passwd() {
        let passwd = b"root:x:0:0:root:/root:/bin/bash\n# none\nalice:x:1000:100::/home/alice:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("alice"));
        assert_eq!(user_name(passwd, 0).as_deref(), Some("root"));
        assert_eq!(user_name(passwd, 100), None);
    }
}
