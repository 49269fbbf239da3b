//! `provost certificate`: shows the condition of the certificates, and renews or revokes them by hand.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::audit::{entry, record};
use super::{ConfigArg, escaped_json, print_error, print_foreign, print_line, runtime, server};
use crate::acme::ports::{ChallengeDns, PortFuture, StepReporter};
use crate::acme::{AcmeFailure, AcmeSettings, AcmeStatus, CertificateStatus, Directory, Lineage, Parts, Renewer};
use crate::app::control::{ControlReply, ControlRequest};
use crate::app::{Solver, exact_names, renewal_parts};
use crate::audit::{AuditAction, AuditEntry};
use crate::ca::KeyKind;
use crate::certificate::{
    CertificateFiles, Condition, ConditionLevel, FilesSource, LiveCertificates, ServerCertificate,
};
use crate::clock::{self, utc_minute};
use crate::config::{CertificateSource, Config};
use crate::constituency::ConstituencyName;
use crate::dns::{RecordLocation, Responder};
use crate::state;
use crate::wording::{counted, span};

/// The server's certificates: their condition, and those that provost obtains by itself.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show names, issuers, days left and condition; for certificates by ACME also the next attempt and the last error. The
    /// exit code is 1 if a certificate is missing or its condition is an error.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have the running server ask the CA again what is due, and renew that now. With --dry-run, test the whole way to a
    /// certificate instead.
    Renew {
        /// Renew all certificates, due or not.
        #[arg(long, conflicts_with = "dry_run")]
        now: bool,
        /// Only the certificate for the exact names of this constituency.
        #[arg(long, value_name = "NAME", conflicts_with = "dry_run")]
        constituency: Option<ConstituencyName>,
        /// Order test certificates from another directory, with the configured DNS, and discard them. Changes no
        /// certificate in use. Keeps only the account at that directory.
        #[arg(long)]
        dry_run: bool,
        /// The directory for --dry-run: letsencrypt-staging, or a URL.
        #[arg(long, value_name = "DIRECTORY", default_value = STAGING, value_parser = directory, requires = "dry_run")]
        directory: Directory,
        /// The roots of the directory's own certificate, PEM [default: the public web's].
        #[arg(long, value_name = "FILE", requires = "dry_run")]
        directory_root: Option<PathBuf>,
    },
    /// The name of `renew --dry-run` before version 0.2.
    #[command(hide = true)]
    Rehearse {
        /// The directory: letsencrypt-staging, or a URL.
        #[arg(long, value_name = "DIRECTORY", default_value = STAGING, value_parser = directory)]
        directory: Directory,
        /// The roots of the directory's own certificate, PEM [default: the public web's].
        #[arg(long, value_name = "FILE")]
        directory_root: Option<PathBuf>,
    },
    /// Have the running server revoke a certificate, and obtain a new one.
    #[command(group = clap::ArgGroup::new("certificate").required(true))]
    Revoke {
        /// The wildcard with this kind of key: rsa-2048 or ecdsa-p256.
        #[arg(long, group = "certificate", value_parser = key_kind)]
        key: Option<KeyKind>,
        /// The certificate for the exact names of this constituency.
        #[arg(long, group = "certificate", value_name = "NAME")]
        constituency: Option<ConstituencyName>,
    },
}

const DAY_S: i64 = 86_400;
/// The default directory of a dry run.
const STAGING: &str = "letsencrypt-staging";
/// The timeout for the running server's status. After it, the stored state is shown.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

fn directory(text: &str) -> Result<Directory, String> {
    text.to_owned().try_into()
}

fn key_kind(text: &str) -> Result<KeyKind, String> {
    let kinds = [KeyKind::Rsa2048, KeyKind::EcdsaP256];
    kinds.into_iter().find(|kind| kind.name() == text).ok_or_else(|| "use rsa-2048 or ecdsa-p256".to_owned())
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status { json } => {
            let config = config.find()?;
            match &config.certificate {
                CertificateSource::Files(pairs) => Ok(show_files(pairs, &config, *json)),
                _ => show_status(&AcmeSite::of(config)?, *json),
            }
        }
        Command::Renew { dry_run: true, directory, directory_root, .. }
        | Command::Rehearse { directory, directory_root } => {
            dry_run(AcmeSite::find(config)?, directory, directory_root.as_deref())
        }
        Command::Renew { now, constituency, .. } => {
            ask(&AcmeSite::find(config)?, &ControlRequest::Renew { all: *now, only: constituency.clone() })
        }
        Command::Revoke { key, constituency } => {
            let exact = constituency.clone().map(Lineage::Exact);
            let certificate =
                exact.or(key.map(Lineage::Wildcard)).context("no certificate named; use --key or --constituency")?;
            ask(&AcmeSite::find(config)?, &ControlRequest::Revoke { certificate })
        }
    }
}

/// A configuration that obtains its certificates by ACME.
struct AcmeSite {
    config: Config,
    settings: AcmeSettings,
}

impl AcmeSite {
    fn find(config: &ConfigArg) -> anyhow::Result<Self> {
        Self::of(config.find()?)
    }

    fn of(config: Config) -> anyhow::Result<Self> {
        let whose = match &config.certificate {
            CertificateSource::Acme(settings) => return Ok(Self { settings: (**settings).clone(), config }),
            CertificateSource::Files(_) => "files, which another program renews",
            CertificateSource::LocalCa(_) => "the server's own CA, and the running server renews them",
        };
        bail!(
            "the certificates come from {whose}; this command needs \"acme\" in \"certificate\". The status page and the \
             metric provost_certificate_expiry_timestamp_seconds show when they expire"
        )
    }

    fn state(&self) -> &Path {
        &self.config.state
    }

    /// The parts that obtain certificates, with their state in `state`.
    fn parts(&self, state: &Path) -> anyhow::Result<Parts> {
        let (_, exact) = watch::channel(Arc::new(exact_names(&self.config)));
        let solver = Solver::open(&self.settings, &self.config.domain, state)?;
        Ok(renewal_parts(&self.settings, &self.config.domain, state, exact, &solver)?)
    }
}

/// Sends a request to the running server, and prints the steps that it reports.
fn ask(site: &AcmeSite, request: &ControlRequest) -> anyhow::Result<ExitCode> {
    let Some(replies) = server::ask(site.state(), request, None)? else {
        print_error(&"no server is running on this state directory; start provost serve, which renews certificates");
        return Ok(ExitCode::FAILURE);
    };
    let mut has_failed = false;
    for reply in replies {
        match reply? {
            ControlReply::Progress(step) => {
                has_failed |= step.contains(": failed: ");
                print_foreign(&step);
            }
            ControlReply::Done if has_failed => return Ok(ExitCode::FAILURE),
            ControlReply::Done => {
                record(site.state(), entries(request).as_slice());
                return Ok(ExitCode::SUCCESS);
            }
            ControlReply::Failed(reason) => {
                print_error(&reason);
                return Ok(ExitCode::FAILURE);
            }
            ControlReply::Status(_) => {}
        }
    }
    print_error(&"the server closed the connection before the command was complete");
    Ok(ExitCode::FAILURE)
}

/// The line of the audit log for a request that changes something.
fn entries(request: &ControlRequest) -> Option<AuditEntry> {
    match request {
        ControlRequest::Renew { all, only } => {
            let detail = if *all { "also those that are not due" } else { "those that are due" };
            let renewed = entry(AuditAction::CertificateRenewed).detail(detail);
            Some(only.iter().fold(renewed, AuditEntry::of))
        }
        ControlRequest::Revoke { certificate } => Some(entry(AuditAction::CertificateRevoked).detail(certificate)),
        ControlRequest::Flush
        | ControlRequest::Status
        | ControlRequest::AddChallenge { .. }
        | ControlRequest::RemoveChallenge { .. } => None,
    }
}

fn show_status(site: &AcmeSite, is_json: bool) -> anyhow::Result<ExitCode> {
    let replies = server::ask(site.state(), &ControlRequest::Status, Some(STATUS_TIMEOUT))?;
    let answered = replies.and_then(|mut replies| match replies.next() {
        Some(Ok(ControlReply::Status(status))) => Some(*status),
        _ => None,
    });
    let is_running = answered.is_some();
    let status = match answered {
        Some(status) => status,
        None => Renewer::peek(site.parts(site.state())?, site.state())?,
    };
    if is_json {
        print_line(&escaped_json(&serde_json::to_string_pretty(&with_conditions(&status)?)?));
    } else {
        print(&status, is_running);
    }
    let is_good = |certificate: &CertificateStatus| {
        certificate.held.is_some() && certificate.condition(status.now).level() < ConditionLevel::Error
    };
    Ok(if status.certificates.iter().all(is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The status as JSON, with each certificate's condition.
fn with_conditions(status: &AcmeStatus) -> anyhow::Result<Value> {
    let mut json = serde_json::to_value(status)?;
    let certificates = json["certificates"].as_array_mut().into_iter().flatten();
    for (object, certificate) in certificates.zip(&status.certificates) {
        add_condition(object, &certificate.condition(status.now));
    }
    Ok(json)
}

fn add_condition(object: &mut Value, condition: &Condition) {
    object["level"] = json!(condition.level());
    object["state"] = json!(condition.label());
    object["problem"] = json!(condition.problem());
}

/// Prints the certificates from files, each with its condition.
fn show_files(pairs: &[CertificateFiles], config: &Config, is_json: bool) -> ExitCode {
    let now = clock::unix_seconds(clock::now());
    let mut source = FilesSource::new(pairs.to_vec(), &config.domain);
    let errors = source.refresh(&LiveCertificates::default(), &exact_names(config)).errors;
    let mut is_good = errors.is_empty();
    let mut certificates = Vec::new();
    for pair in source.pairs() {
        let Some(certificate) = &pair.certificate else { continue };
        let (files, condition) = (&pair.files, pair.condition(now));
        is_good &= condition.level() < ConditionLevel::Error;
        if is_json {
            let (validity, issuer) = (certificate.validity(), certificate.issuer());
            let mut object = json!({
                "chain": files.chain, "names": certificate.names, "issuer": issuer,
                "not_before": validity.not_before, "not_after": validity.not_after,
                "days_left": validity.left(now).div_euclid(DAY_S),
            });
            add_condition(&mut object, &condition);
            certificates.push(object);
        } else {
            print_pair(files, certificate, &condition, now);
        }
    }
    if is_json {
        print_line(&escaped_json(&format!("{:#}", json!({ "now": now, "certificates": certificates }))));
    }
    for error in &errors {
        print_error(error);
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_pair(files: &CertificateFiles, certificate: &ServerCertificate, condition: &Condition, now: i64) {
    let validity = certificate.validity();
    let days = validity.left(now).div_euclid(DAY_S);
    print_foreign(&files.chain.display());
    print_foreign(&format_args!("  names:        {}", certificate.names.join(", ")));
    print_foreign(&format_args!("  issued by:    {}", certificate.issuer().unwrap_or_default()));
    print_foreign(&format_args!("  valid until:  {}, {} left", date(validity.not_after), counted(days, "day")));
    print_condition(condition);
}

fn print_condition(condition: &Condition) {
    let level = match condition.level() {
        ConditionLevel::Ok => String::new(),
        level => format!("{}: ", level.as_str()),
    };
    print_foreign(&format_args!("  condition:    {level}{condition}"));
}

fn print(status: &AcmeStatus, is_running: bool) {
    if !is_running {
        print_line(&"no server is running; showing the stored certificates");
    }
    for certificate in &status.certificates {
        print_foreign(&certificate.lineage());
        match &certificate.held {
            None if certificate.constituency.is_some() => {
                let names = certificate.names.join(", ");
                print_foreign(&format_args!(
                    "  certificate:  none yet for {names}; phones get the wildcard certificate"
                ));
            }
            None => print_line(&"  certificate:  none yet"),
            Some(held) => {
                print_foreign(&format_args!("  names:        {}", held.names.join(", ")));
                print_foreign(&format_args!("  issued by:    {}", held.issuers.join(" ← ")));
                let left = counted(held.days_left, "day");
                print_foreign(&format_args!("  valid until:  {}, {left} left", date(held.not_after)));
                print_foreign(&format_args!("  obtained at:  {}", held.directory));
            }
        }
        // Its reason follows with the attempt.
        let condition = certificate.condition(status.now);
        let is_dated = certificate.last_failure.is_some() && condition.failure().is_some();
        print_condition(&if is_dated { condition.with_failure("see the last attempt") } else { condition });
        if let Some(window) = &certificate.window {
            print_foreign(&format_args!("  CA's window:  {} to {}", date(window.start), date(window.end)));
        }
        if let Some(step) = &certificate.step {
            print_foreign(&format_args!("  right now:    {step}"));
        }
        if let Some(error) = &certificate.last_error {
            let hint = if certificate.action_required { " (action required)" } else { "" };
            let at =
                certificate.last_failure.map_or_else(|| "failed".to_owned(), |at| format!("{} failed", utc_minute(at)));
            let earlier =
                status.certificates.iter().take_while(|other| other.lineage() != certificate.lineage()).find(|other| {
                    other.last_error.as_ref() == Some(error) && other.action_required == certificate.action_required
                });
            let reason = match earlier {
                Some(other) => format!(" for the same reason as {}", other.lineage()),
                None => format!(": {error}{hint}"),
            };
            let count = counted(certificate.failures, "failure");
            print_foreign(&format_args!("  last attempt: {at}{reason}; {count} in a row"));
        }
        let next = match certificate.next_attempt - status.now {
            ..=0 => "now".to_owned(),
            wait => format!("{} (in {})", utc_minute(certificate.next_attempt), span(wait)),
        };
        print_foreign(&format_args!("  next attempt: {next}, at {}", certificate.directory));
    }
    match status.leftover_records {
        0 => {}
        1 => print_line(&"1 challenge record is not yet removed from DNS"),
        count => print_foreign(&format_args!("{count} challenge records are not yet removed from DNS")),
    }
    if let Some(skew) = status.clock_skew_s {
        print_foreign(&format_args!("clock skew: this machine's clock and the CA's differ by {} s", skew.abs()));
    }
}

fn date(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| seconds.to_string())
}

fn dry_run(mut site: AcmeSite, directory: &Directory, root: Option<&Path>) -> anyhow::Result<ExitCode> {
    if site.settings.directory != *directory {
        // Settings for one directory do not apply to another.
        site.settings.directory = directory.clone();
        site.settings.directory_root = None;
        site.settings.external_account = None;
        site.settings.preferred_chain = None;
    }
    site.settings.directory_root = root.map(Path::to_owned).or(site.settings.directory_root);
    site.settings.fallback_directories.clear();
    let throw_away = tempfile::tempdir()?;
    let folder = if is_ours(site.state()) { site.state().join("rehearsal") } else { throw_away.path().to_owned() };
    state::private_folder(&folder)?;
    let mut parts = site.parts(&folder)?;
    if let Some(dns) = site.settings.dns.responder() {
        let responder = Responder::open(dns, &site.config.domain, site.state())?;
        parts.dns = Arc::new(RunningResponder { responder, state: site.state().to_owned() });
    }
    let result = runtime()?.block_on(async {
        let (progress, mut said) = tokio::sync::mpsc::unbounded_channel();
        let printing = async {
            while let Some(step) = said.recv().await {
                print_foreign(&step);
            }
        };
        tokio::join!(Renewer::dry_run(parts, &folder, progress), printing).0
    });
    match result {
        Ok(status) => {
            let names =
                |it: &CertificateStatus| it.held.as_ref().map_or(String::new(), |held| held.issuers.join(" ← "));
            let issuers: Vec<String> = status.certificates.iter().map(names).collect();
            let count = counted(issuers.len(), "certificate");
            print_line(&format_args!("dry run successful: {count}, issued by {}", issuers.join("; ")));
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            print_error(&failure);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The DNS responder of the running server. It has the port, so it publishes the challenges of a rehearsal too.
struct RunningResponder {
    /// Only finds the zone. It serves nothing.
    responder: Responder,
    state: PathBuf,
}

impl RunningResponder {
    fn ask(&self, request: &ControlRequest) -> Result<(), AcmeFailure> {
        let failed = |reason: String| AcmeFailure::action_required(reason);
        let replies = server::ask(&self.state, request, Some(STATUS_TIMEOUT));
        let replies = replies.map_err(|error| AcmeFailure::retry(format!("{error:#}")))?.ok_or_else(|| {
            failed(
                "no server is running, whose DNS responder would publish the challenges; start provost serve"
                    .to_owned(),
            )
        })?;
        for reply in replies {
            match reply.map_err(|error| AcmeFailure::retry(format!("{error:#}")))? {
                ControlReply::Done => return Ok(()),
                ControlReply::Failed(reason) => return Err(failed(reason)),
                ControlReply::Progress(_) | ControlReply::Status(_) => {}
            }
        }
        Err(failed("the running server does not know this request; restart it".to_owned()))
    }
}

impl ChallengeDns for RunningResponder {
    fn locate<'a>(&'a self, challenge_name: &'a str) -> PortFuture<'a, RecordLocation> {
        ChallengeDns::locate(&self.responder, challenge_name)
    }

    fn stands_alone<'a>(&'a self, name: &'a str) -> PortFuture<'a, ()> {
        ChallengeDns::stands_alone(&self.responder, name)
    }

    fn account_binding<'a>(&'a self, name: &'a str, account: Option<&'a str>) -> PortFuture<'a, Vec<String>> {
        ChallengeDns::account_binding(&self.responder, name, account)
    }

    fn add<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        let (location, values) = (location.clone(), values.to_vec());
        Box::pin(std::future::ready(self.ask(&ControlRequest::AddChallenge { location, values })))
    }

    fn remove<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        let (location, values) = (location.clone(), values.to_vec());
        Box::pin(std::future::ready(self.ask(&ControlRequest::RemoveChallenge { location, values })))
    }

    fn wait_until_visible<'a>(
        &'a self,
        location: &'a RecordLocation,
        values: &'a [String],
        report: StepReporter<'a>,
    ) -> PortFuture<'a, ()> {
        ChallengeDns::wait_until_visible(&self.responder, location, values, report)
    }
}

/// Whether the state directory exists and belongs to this user. Files are not left in another user's directory.
fn is_ours(state: &Path) -> bool {
    std::fs::metadata(state).is_ok_and(|metadata| metadata.uid() == rustix::process::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CertificateLine {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let words = std::iter::once("certificate").chain(line.split(' '));
        CertificateLine::try_parse_from(words).map(|parsed| parsed.command)
    }

    #[test]
    fn dry_run_options_need_dry_run_and_exclude_a_renewal() {
        let staging = directory(STAGING).unwrap();
        let is_of = |line: &str, url: &Directory| match parse(line) {
            Ok(Command::Renew { dry_run: true, directory, .. } | Command::Rehearse { directory, .. }) => {
                directory == *url
            }
            _ => false,
        };
        assert!(is_of("renew --dry-run", &staging) && is_of("rehearse", &staging));
        let other = directory("https://ca.example/").unwrap();
        for line in ["renew --dry-run", "rehearse"] {
            assert!(
                is_of(&format!("{line} --directory https://ca.example/ --directory-root root.pem"), &other),
                "{line}"
            );
        }
        assert!(matches!(parse("renew --now"), Ok(Command::Renew { dry_run: false, now: true, .. })));
        for wrong in [
            "renew --directory https://ca.example/",
            "renew --directory-root root.pem",
            "renew --dry-run --now",
            "renew --dry-run --constituency ote",
            "rehearse --now",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
