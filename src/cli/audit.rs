//! `provost audit`: shows the audit log. Also what commands use to write it.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{geteuid, getuid};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{ConfigArg, code, escaped_json, note, print_foreign, print_line, replace_controls, warn};
use crate::audit::{self, AuditAction, AuditActor, AuditEntry, AuditSource};
use crate::clock;
use crate::config::Config;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::files::read_regular;

/// What `provost audit` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only changes in this constituency, and those of the whole server.
    #[arg(long, value_name = "NAME")]
    constituency: Option<ConstituencyName>,
    /// Only changes of this phone.
    #[arg(long, value_name = "MAC")]
    phone: Option<MacAddress>,
    /// Only changes since then: an age such as 30d or 12h, or a time such as 2026-11-30T08:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Since>,
    /// Print JSON, one object per line, as in the files.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy)]
enum Since {
    Age(Duration),
    /// In Unix seconds.
    Time(i64),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(Since::Time(time.unix_timestamp()));
    }
    humantime::parse_duration(text)
        .map(Since::Age)
        .map_err(|_| "use an age such as 30d or 12h, or a time such as 2026-11-30T08:00:00Z".to_owned())
}

pub(super) fn run(args: &Args, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    Ok(code(show(args, &config)))
}

fn show(args: &Args, config: &Config) -> anyhow::Result<()> {
    let now = clock::unix_seconds(clock::now());
    let since = args.since.map(|since| match since {
        Since::Age(age) => now.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX)),
        Since::Time(time) => time,
    });
    // RFC 3339 in UTC without fractions sorts as text.
    let since = since.map(|since| clock::rfc3339(since.max(0)));
    let is_wanted = |entry: &AuditEntry| {
        since.as_ref().is_none_or(|since| entry.time >= *since)
            && args.phone.is_none_or(|phone| entry.all_macs().any(|mac| mac == phone))
            && args.constituency.as_ref().is_none_or(|name| entry.constituency.as_ref().is_none_or(|own| own == name))
    };
    let reading = audit::read(&config.state, &is_wanted)
        .with_context(|| format!("cannot read the audit log in {}", config.state.display()))?;
    for (file, lines) in &reading.damaged {
        let file = config.state.join(file);
        warn(&format_args!("{}: lines that are cut or damaged, and not shown: {lines}", file.display()));
    }
    if reading.entries.is_empty() {
        note(&"the audit log has no such change");
    }
    for entry in &reading.entries {
        if args.json { print_line(&escaped_json(&serde_json::to_string(entry)?)) } else { print_foreign(entry) }
    }
    Ok(())
}

/// An entry for a change that this command made.
pub(super) fn entry(action: AuditAction) -> AuditEntry {
    let actor = AuditActor { by: AuditSource::Command, who: user(), claimed_user: sudo_user(), ..AuditActor::file() };
    AuditEntry::new(clock::unix_seconds(clock::now()), action, actor)
}

/// Writes `entries` to the audit log in the state directory `state`. The changes stay in force if that fails.
pub(super) fn record(state: &Path, entries: &[AuditEntry]) {
    match audit::append(state, entries) {
        Ok(()) => {}
        // Before the server's first start there is no state directory, and root must not make it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn(&format_args!(
            "THE CHANGE IS IN FORCE BUT NOT IN THE AUDIT LOG: {} cannot be written: {error}",
            state.join(audit::FILE).display()
        )),
    }
}

/// The user who runs this command.
pub(super) fn user() -> String {
    let user = getuid().as_raw();
    let name = read_regular("/etc/passwd".as_ref()).ok().and_then(|passwd| user_name(&passwd, user));
    name.unwrap_or_else(|| format!("user {user}"))
}

/// The user who called sudo, as the environment says.
fn sudo_user() -> Option<String> {
    std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty())
}

/// For a denial: the user who called sudo, else the one who runs this command.
pub(super) fn operator() -> String {
    let name = sudo_user().filter(|_| geteuid().is_root()).unwrap_or_else(user);
    replace_controls(&name).chars().take(64).collect()
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
    fn user_name_is_read_from_passwd() {
        let passwd = b"root:x:0:0:root:/root:/bin/bash\n# none\nalice:x:1000:100::/home/alice:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("alice"));
        assert_eq!(user_name(passwd, 0).as_deref(), Some("root"));
        assert_eq!(user_name(passwd, 100), None);
    }

    #[test]
    fn since_is_an_age_or_a_time() {
        assert!(matches!(since("30d"), Ok(Since::Age(age)) if age == Duration::from_hours(720)));
        assert!(matches!(since("1970-01-01T01:00:00+01:00"), Ok(Since::Time(0))));
        assert!(since("yesterday").unwrap_err().contains("use an age"));
    }
}
