//! `provost install` and `provost uninstall`: everything that a service needs on a machine with systemd. Both can be
//! repeated at any time. They report what they did and what they left, and keep what an operator has changed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use super::print::systemd::{CONFIG, CONSTITUENCIES, STATE, UnitValues};
use super::{ConfigArg, print_error, print_line};
use crate::config::{CertificateSource, Config};
use crate::dns::DnsMethod;

mod layout;
mod place;

use layout::{Item, Layout, USER};
use place::{InstallPlace, PlaceOutcome};

/// The options of `provost install`.
#[derive(Debug, clap::Args)]
pub(super) struct InstallArgs {
    #[command(flatten)]
    target: InstallRoot,
    /// Copy this file with a TSIG key to where the service can read it. The file is what `tsig-keygen`, Knot's `keymgr -t`
    /// or `pdnsutil generate-tsig-key` prints, a line `NAME ALGORITHM SECRET` or `ALGORITHM:NAME:SECRET`, or a `K*` file of
    /// older BIND; a `K*.private` also needs `tsig_key_name` in `provost.json`.
    #[arg(long, value_name = "FILE")]
    tsig_key: Option<PathBuf>,
    /// Install only what a package ships, below /usr: no user, and no folders of a user.
    #[arg(long, requires = "root", conflicts_with = "tsig_key")]
    package: bool,
}

/// The options of `provost uninstall`.
#[derive(Debug, clap::Args)]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    target: InstallRoot,
}

#[derive(Debug, clap::Args)]
struct InstallRoot {
    /// Print what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Install below this folder instead of /, for packages and images; start nothing.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

impl InstallRoot {
    fn place(&self, layout: Layout) -> anyhow::Result<InstallPlace> {
        if self.is_here() && !self.dry_run && !rustix::process::geteuid().is_root() {
            bail!("permission denied: run this as root; --dry-run shows what it would do");
        }
        let root = std::path::absolute(&self.root)?;
        // A package's files are staged in a folder that does not exist yet.
        if layout == Layout::Local && !root.is_dir() {
            bail!("--root: folder {} not found; make it first", root.display());
        }
        Ok(InstallPlace { root, is_dry: self.dry_run, has_marks: layout == Layout::Local, service: None })
    }

    fn is_here(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Runs `systemctl` if systemd runs. A failure is only reported.
    fn systemctl(&self, arguments: &[&str]) {
        if self.dry_run || !self.is_here() || !Path::new("/run/systemd/system").is_dir() {
            return;
        }
        match Command::new("systemctl").args(arguments).status() {
            Ok(status) if status.success() => {}
            Ok(status) => print_error(&format_args!("systemctl {} failed: {status}", arguments.join(" "))),
            Err(error) => print_error(&format_args!("cannot run systemctl {}: {error}", arguments.join(" "))),
        }
    }

    fn report(&self, outcome: PlaceOutcome, what: &str, why: &str) {
        let would =
            if self.dry_run && matches!(outcome, PlaceOutcome::Made | PlaceOutcome::Renewed | PlaceOutcome::Removed) {
                "would be "
            } else {
                ""
            };
        print_line(&format_args!("{what}: {would}{outcome}{why}"));
    }
}

pub(super) fn install(args: &InstallArgs, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    check_unnamed(config)?;
    let layout = if args.package { Layout::Package } else { Layout::Local };
    let target = &args.target;
    let mut place = target.place(layout)?;
    if args.package {
        let fit = UnitValues::usual(layout.program().into(), CONFIG.into());
        let outcome = place.put_program(&std::env::current_exe()?, layout.program())?;
        target.report(outcome, layout.program(), "");
        put_all(target, &place, layout.unit_files(&fit).into_iter().chain(layout.references()?))?;
        put_all(target, &place, layout::package_only())?;
        return Ok(ExitCode::SUCCESS);
    }
    place.service = user(target, &place)?;
    put_all(target, &place, layout::folders().into_iter().chain([layout::example()]))?;
    if let Some(file) = &args.tsig_key {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        put_all(target, &place, [layout::tsig_key(text)])?;
    }
    if is_packaged(&place) {
        print_line(&"program, units, manual and completions come from the package");
    } else {
        let outcome = place.put_program(&std::env::current_exe()?, layout.program())?;
        target.report(outcome, layout.program(), "");
        put_all(target, &place, layout.unit_files(&fit(&place, layout)))?;
        put_all(target, &place, layout.references()?)?;
        target.systemctl(&["daemon-reload"]);
    }
    what_next(&place);
    Ok(ExitCode::SUCCESS)
}

/// Refuses `--config` with another file than the service's, because the unit would not use it.
fn check_unnamed(config: &ConfigArg) -> anyhow::Result<()> {
    match &config.config {
        Some(other) if other != Path::new(CONFIG) => {
            bail!("--config {}: the service reads {CONFIG}; leave out --config", other.display())
        }
        _ => Ok(()),
    }
}

/// Whether a package installed the program and the units.
fn is_packaged(place: &InstallPlace) -> bool {
    place.at(layout::PACKAGED_SERVICE).exists()
}

fn put_all(target: &InstallRoot, place: &InstallPlace, items: impl IntoIterator<Item = Item>) -> anyhow::Result<()> {
    for item in items {
        let outcome = place.put(&item)?;
        let why = match (outcome, &item.what) {
            (PlaceOutcome::Left, layout::ItemKind::Unit(_)) => {
                ", because it was changed; to see the new version, run `provost print systemd-unit` or `systemd-socket`"
            }
            (PlaceOutcome::Left, _) => ", because it belongs to you",
            _ => "",
        };
        target.report(outcome, &item.path, why);
    }
    Ok(())
}

/// The existing configuration. `None` also if it is invalid, which `provost check` explains.
fn configuration(place: &InstallPlace) -> Option<Config> {
    let text = std::fs::read_to_string(place.at(CONFIG)).ok()?;
    Config::parse(Path::new(CONFIG), &text).ok()
}

/// The settings for the units, from the existing configuration.
fn fit(place: &InstallPlace, layout: Layout) -> UnitValues {
    let program = PathBuf::from(layout.program());
    match configuration(place) {
        Some(config) => UnitValues::of_config(program, CONFIG.into(), config),
        None => UnitValues::usual(program, CONFIG.into()),
    }
}

/// The user and group of the service. Creates them if they are missing.
fn user(target: &InstallRoot, place: &InstallPlace) -> anyhow::Result<Option<(u32, u32)>> {
    if let Some(found) = find_user(place) {
        target.report(PlaceOutcome::Same, "user provost", "");
        return Ok(Some(found));
    }
    target.report(PlaceOutcome::Made, "user provost", "");
    if target.dry_run {
        return Ok(None);
    }
    std::fs::create_dir_all(place.at("/etc"))?;
    let made = Command::new("systemd-sysusers")
        .arg(format!("--root={}", place.root.display()))
        .args(["--inline", layout::SYSUSERS.trim()])
        .output()
        .context("cannot make the user provost: cannot run systemd-sysusers")?;
    let found = find_user(place);
    if found.is_none() {
        bail!(
            "cannot make the user provost: systemd-sysusers failed: {}",
            String::from_utf8_lossy(&made.stderr).trim()
        );
    }
    Ok(found)
}

fn find_user(place: &InstallPlace) -> Option<(u32, u32)> {
    let users = std::fs::read_to_string(place.at("/etc/passwd")).ok()?;
    let user = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == USER)?;
    Some((user.get(2)?.parse().ok()?, user.get(3)?.parse().ok()?))
}

fn what_next(place: &InstallPlace) {
    print_line(&"\nWhat comes next:");
    for (step, number) in next_steps(place).iter().zip(1..) {
        print_line(&format_args!("{number}. {step}"));
    }
}

fn next_steps(place: &InstallPlace) -> Vec<String> {
    let mut steps = Vec::new();
    let config = configuration(place);
    let dns = match &config {
        Some(Config { certificate: CertificateSource::Acme(settings), .. }) => Some(&settings.dns),
        _ => None,
    };
    if config.is_none() {
        steps.push(format!(
            "fill in {CONFIG}: domain, contact, the CA's terms of service, and in \"dns\" either \"responder\" (two DNS records \
             at any registrar) or a DNS primary with its key"
        ));
    }
    // Without ACME, DNS has no part in the certificate.
    let key = match (&config, dns) {
        (None, _) => Some(layout::TSIG_KEY.to_owned()),
        (Some(_), dns) => dns.and_then(DnsMethod::key_file).map(|file| file.display().to_string()),
    };
    if let Some(key) = key.filter(|key| !place.at(key).exists()) {
        let only = if config.is_none() { "with a DNS primary only: " } else { "" };
        steps.push(format!(
            "{only}make a key for DNS updates (`tsig-keygen -a hmac-sha256 provost.`), add it to the primary, and put it into \
             {key} (`provost install --tsig-key FILE` copies it to {})",
            layout::TSIG_KEY
        ));
    }
    if config.is_none() || dns.is_some() {
        steps.push(format!(
            "`provost print dns-records --config {CONFIG}` prints the records to enter at the registrar"
        ));
    }
    steps.push(format!("`provost constituency add NAME --config {CONFIG}` makes a constituency in {CONSTITUENCIES}"));
    let live = format!("`runuser -u {USER} -- provost check --live --config {CONFIG}` prints what is still missing");
    let start = "`systemctl enable --now provost.socket provost.service` starts it, now and at boot".to_owned();
    // The proof of the delegation needs the running responder.
    if dns.is_some_and(|dns| dns.responder().is_some()) {
        steps.extend([start, live]);
    } else if config.is_none() {
        steps.extend([format!("{live} (with \"responder\", after the start)"), start]);
    } else {
        steps.extend([live, start]);
    }
    steps.push("after an update, `systemctl restart provost.service` refuses no connection".to_owned());
    steps
}

pub(super) fn uninstall(args: &UninstallArgs, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    check_unnamed(config)?;
    let target = &args.target;
    let layout = Layout::Local;
    let place = target.place(layout)?;
    if is_packaged(&place) {
        bail!("this provost came from a package; remove it with `apt remove provost`, which keeps your data");
    }
    let units = layout.unit_files(&UnitValues::usual(layout.program().into(), CONFIG.into()));
    if units.iter().any(|unit| place.at(&unit.path).exists()) {
        target.systemctl(&["disable", "--now", "provost.socket", "provost.service"]);
    }
    for item in units.iter().chain(&layout.references()?) {
        match place.remove_unchanged(item)? {
            PlaceOutcome::Absent => {}
            PlaceOutcome::Left => target.report(PlaceOutcome::Left, &item.path, ", because it was changed"),
            outcome => target.report(outcome, &item.path, ""),
        }
    }
    match place.remove(layout.program())? {
        PlaceOutcome::Absent => {}
        outcome => target.report(outcome, layout.program(), ""),
    }
    target.systemctl(&["daemon-reload"]);
    let etc = Path::new(CONFIG).parent().unwrap_or(Path::new(CONFIG)).display().to_string();
    for (data, what) in [
        (etc.as_str(), "configuration and keys"),
        (CONSTITUENCIES, "the phones' files"),
        (STATE, "certificates, uploads, phone history"),
    ] {
        if place.at(data).exists() {
            target.report(PlaceOutcome::Left, data, &format!(" alone: {what}"));
        }
    }
    if find_user(&place).is_some() {
        target.report(PlaceOutcome::Left, "user provost", ", which owns the data; to remove it, run `userdel provost`");
    }
    Ok(ExitCode::SUCCESS)
}
