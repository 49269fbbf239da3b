//! `provost ca`: the operator's own CA, for phones without a usable factory certificate.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use super::audit::{entry, record};
use super::print::systemd;
use super::{ConfigArg, code, print_json, print_line};
use crate::audit::AuditAction;
use crate::ca::device::{DeviceCa, RevocationTarget};
use crate::clock::{self, rfc3339, unix_seconds};
use crate::config::{CONFIG_FILE, Config};
use crate::constituency::MacAddress;

mod issue;

use issue::Issue;

/// The CA's folder in the state directory.
const FOLDER: &str = "ca";

/// Your own CA for phones without a usable factory certificate.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the CA, and print how to trust it.
    Init {
        #[command(flatten)]
        place: CaPlace,
        /// The CA's name.
        #[arg(long, value_name = "NAME", default_value = "provost device CA", value_parser = name)]
        name: String,
        /// The lifetime in days.
        #[arg(long, value_name = "N", default_value_t = 7300, value_parser = days())]
        days: u32,
    },
    /// Issue a certificate for a phone.
    Issue(Issue),
    /// List the issued certificates, and whether they are revoked.
    List {
        #[command(flatten)]
        place: CaPlace,
        /// Print JSON, one object per line.
        #[arg(long)]
        json: bool,
    },
    /// Revoke the certificates of a phone, or one certificate. It cannot be undone.
    Revoke {
        #[command(flatten)]
        place: CaPlace,
        /// A MAC address: all of its certificates. A serial number: that certificate. It cannot be undone.
        #[arg(value_name = "MAC|SERIAL", value_parser = which)]
        which: RevocationTarget,
    },
}

/// The CA's folder.
#[derive(Debug, clap::Args)]
pub(super) struct CaPlace {
    /// The CA's folder, which may be on a USB stick [default: ca in the state directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=36_500)
}

/// A common name has up to 64 characters (X.520).
fn name(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().count() > 64 || text.chars().any(char::is_control) {
        return Err("use 1 to 64 characters".to_owned());
    }
    Ok(text.to_owned())
}

fn which(text: &str) -> Result<RevocationTarget, String> {
    let mac = text.parse().map(RevocationTarget::Phone);
    mac.or_else(|_| text.parse().map(RevocationTarget::Serial))
        .map_err(|error: crate::ca::record::InvalidSerial| error.to_string())
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let (Command::Init { place, .. }
    | Command::Issue(Issue { place, .. })
    | Command::List { place, .. }
    | Command::Revoke { place, .. }) = command;
    let (folder, config) = place.find(config)?;
    Ok(code(match command {
        Command::Init { name, days, .. } => init(&folder, config.as_ref(), name, lifetime(*days)),
        Command::Issue(issue) => issue.run(&folder, config.as_ref()),
        Command::List { json, .. } => list(&folder, *json),
        Command::Revoke { which, .. } => revoke(&folder, config.as_ref(), which),
    }))
}

impl CaPlace {
    /// The CA's folder, and the configuration if `--dir` is not given.
    fn find(&self, config: &ConfigArg) -> anyhow::Result<(PathBuf, Option<Config>)> {
        if let Some(folder) = &self.dir {
            ensure!(config.config.is_none(), "--dir and --config cannot be used together");
            return Ok((folder.clone(), None));
        }
        let config = config.find()?;
        Ok((config.state.join(FOLDER), Some(config)))
    }
}

fn lifetime(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

fn init(folder: &Path, config: Option<&Config>, name: &str, lifetime: Duration) -> anyhow::Result<()> {
    let now = clock::now();
    DeviceCa::init(folder, name, lifetime, now)?;
    let ca = DeviceCa::open(folder, now)?;
    if let Some(config) = config {
        record(&config.state, &[entry(AuditAction::CaMade).detail(name)]);
    }
    let bundle = json!(std::path::absolute(ca.bundle())?);
    let (place, end) = (folder.display(), rfc3339(ca.not_after()));
    print_line(&format_args!("made the CA {name:?} in {place}, valid until {end}"));
    if let Some(local) = config.filter(|config| config.is_local()) {
        let (state, service) = (local.state.display(), systemd::CONFIG);
        print_line(&format_args!(
            "local mode, because there is no {CONFIG_FILE} here; it does not trust this CA. To use the CA here, make a \
             {CONFIG_FILE} with \"state\": \"{state}\"; for the service, make the CA with --config {service}"
        ));
    }
    let file = config.and_then(|config| config.file.as_deref()).unwrap_or(Path::new(CONFIG_FILE)).display();
    if config.is_some() {
        print_line(&format_args!("to trust it, add to {file}:        \"trust\": {{ \"own\": [{bundle}] }}"));
    } else {
        let copied = ca.bundle();
        print_line(&format_args!(
            "copy {} to the server, for example as own.pem beside {CONFIG_FILE}; copy it again after each revoke",
            copied.display()
        ));
        print_line(&format_args!("to trust it, add to {file}:        \"trust\": {{ \"own\": [\"own.pem\"] }}"));
    }
    print_line(&"and to a constituency's constituency.json: \"trust\": [\"polycom\", \"own\"]");
    print_line(&"(without \"polycom\", phones with a factory certificate are refused)");
    print_line(&"to apply it to a running server, run systemctl reload provost, or send SIGHUP");
    Ok(())
}

fn list(folder: &Path, as_json: bool) -> anyhow::Result<()> {
    let now = clock::now();
    let ca = DeviceCa::open(folder, now)?;
    let now = unix_seconds(now);
    for certificate in ca.record().certificates() {
        if as_json {
            print_json(&json!({
                "mac": certificate.mac, "serial": certificate.serial, "issued": rfc3339(certificate.issued),
                "not_after": rfc3339(certificate.not_after), "sha256": certificate.sha256,
                "revoked": certificate.revoked.map(rfc3339), "counts": certificate.is_valid(now),
            }));
        } else {
            let state = match certificate.revoked {
                Some(at) => format!("revoked at {}", rfc3339(at)),
                None if !certificate.is_valid(now) => format!("expired at {}", rfc3339(certificate.not_after)),
                None => format!("valid until {}", rfc3339(certificate.not_after)),
            };
            print_line(&format_args!("{}  {}  {state}", certificate.mac, certificate.serial));
        }
    }
    Ok(())
}

fn revoke(folder: &Path, config: Option<&Config>, which: &RevocationTarget) -> anyhow::Result<()> {
    let is_elsewhere = config.is_none();
    let now = clock::now();
    let mut ca = DeviceCa::open(folder, now)?;
    let revoked = ca.revoke(which, now)?;
    if let Some(config) = config {
        let certificates = ca.record().certificates();
        let of_phones = certificates.iter().filter(|it| revoked.contains(&it.serial));
        let entries = of_phones.map(|it| entry(AuditAction::DeviceCertificateRevoked).phone(it.mac).detail(&it.serial));
        record(&config.state, &entries.collect::<Vec<_>>());
    }
    for serial in &revoked {
        print_line(&format_args!("{serial} is revoked"));
    }
    if revoked.is_empty() {
        print_line(&format_args!("{which}: all certificates are already revoked"));
    }
    let bundle = ca.bundle();
    let bundle = bundle.display();
    print_line(&format_args!(
        "the revocation list is in {bundle}: a server that reads this file refuses them within a second, others after you copy it there"
    ));
    if is_elsewhere {
        print_line(&format_args!("copy {bundle} to the server again, for example as own.pem beside {CONFIG_FILE}"));
    }
    let place = if is_elsewhere { format!(" --dir {}", folder.display()) } else { String::new() };
    let now = unix_seconds(now);
    let certificates = ca.record().certificates();
    let lost: BTreeSet<MacAddress> =
        certificates.iter().filter(|it| revoked.contains(&it.serial)).map(|it| it.mac).collect();
    for mac in lost.into_iter().filter(|mac| !certificates.iter().any(|it| it.mac == *mac && it.is_valid(now))) {
        print_line(&format_args!(
            "{mac} has no certificate now; provost ca issue {mac} --out FILE{place} makes another"
        ));
    }
    Ok(())
}
