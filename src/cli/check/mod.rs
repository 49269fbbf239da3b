//! `provost check`: reports everything that is wrong with configuration, certificates, constituencies and trust at
//! once.
//!
//! An error prevents files from being served, or phones from using them. A warning is probably unintended. A note is
//! information. The check changes nothing, takes no lock, and uses no network, except with [`--live`](live). If root
//! runs it, it checks as the [user of the service](service), who can read less.

mod contents;
mod denials;
mod folder;
mod legacy_tls;
mod live;
mod master_configs;
mod operators;
mod overlay;
mod phone_names;
mod plain_http;
mod reach;
mod served_view;
mod service;
mod stored;
mod strays;
mod vendors;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use super::passwords;
use super::{ConfigArg, USAGE, note, print_json, print_line, replace_controls, runtime, trust};
use crate::acme::AcmeSettings;
use crate::acme::client::AcmeCa;
use crate::admin::operators::token_file;
use crate::app::exact_names;
use crate::app::file_limit::FileLimit;
use crate::app::permissions::loose_permissions;
use crate::app::state_faults::state_faults;
use crate::certificate::{self, CertificateFiles, Condition, FilesError, FilesSource, LiveCertificates};
use crate::clock;
use crate::config::{CertificateSource, Config};
use crate::constituency::{ClientAuth, Constituency, Phones, Severity};
use crate::dns::{Dns, DnsSettings, ResponderDns, TsigKey};
use crate::identity::digest::passwords::stored as stored_passwords;
use crate::identity::trust::RevocationList;
use crate::notify::check_program;
use crate::phone_history::{HistoryReader, ReadError};
use crate::serve::site::Site;
use crate::settings::SettingsError;
use crate::wording::counted;

use live::LiveResult;
use reach::{Remedies, Unreachable};
use service::ServiceUser;

/// The subject of findings about certificates.
const CERTIFICATE: &str = "certificate";
/// The subject of findings about the user of the service.
const SERVICE: &str = "service";
const DNS: &str = "dns";

/// What `provost check` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also check DNS and the CA: addresses, CAA records, the CA's directory, and whether a probe record, which is published
    /// and then removed, reaches every authoritative server.
    #[arg(long)]
    live: bool,
    /// Print JSON, one object per line: `severity` (error, warning or note), `subject` and `message`; `remedy`, `file` and `line`
    /// where they are known.
    #[arg(long)]
    json: bool,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum FindingLevel {
    Error,
    Warning,
    Note,
}

impl FindingLevel {
    /// The level for the `condition` of a certificate; `None` if it is good.
    fn of(condition: &Condition) -> Option<Self> {
        match condition.level() {
            certificate::ConditionLevel::Ok => None,
            certificate::ConditionLevel::Warning => Some(Self::Warning),
            certificate::ConditionLevel::Error => Some(Self::Error),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    level: FindingLevel,
    subject: String,
    message: String,
    /// How to fix it.
    remedy: Option<String>,
    file: Option<PathBuf>,
    line: Option<usize>,
}

impl Finding {
    fn new(level: FindingLevel, subject: impl Display, message: impl Display) -> Self {
        let (subject, message) = (subject.to_string(), message.to_string());
        Self { level, subject, message, remedy: None, file: None, line: None }
    }

    fn with_remedy(self, remedy: impl Display) -> Self {
        Self { remedy: Some(remedy.to_string()), ..self }
    }

    fn in_file(self, file: impl Into<PathBuf>, line: Option<usize>) -> Self {
        Self { file: Some(file.into()), line, ..self }
    }

    fn json(&self) -> Value {
        let mut json = json!({ "severity": self.level.name(), "subject": self.subject, "message": self.message });
        if let Some(remedy) = &self.remedy {
            json["remedy"] = json!(remedy);
        }
        if let Some(file) = &self.file {
            json["file"] = json!(file.to_string_lossy());
        }
        if let Some(line) = self.line {
            json["line"] = json!(line);
        }
        json
    }
}

impl FindingLevel {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// The output for the progress of `--live`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Stdout,
    /// Used if standard output carries JSON.
    Stderr,
}

impl Progress {
    fn print(self, line: &str) {
        match self {
            Self::Stdout => print_line(&replace_controls(line)),
            Self::Stderr => note(&replace_controls(line)),
        }
    }
}

/// Runs all checks and prints the findings. Warnings alone give exit code 0.
pub(super) fn run(args: &Args, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = match config.find() {
        Err(error) if args.json => {
            let Some(error) = error.downcast_ref::<SettingsError>() else { return Err(error) };
            print_json(&Finding::from(error.clone()).json());
            return Ok(ExitCode::from(USAGE));
        }
        found => found?,
    };
    let mut findings = Vec::new();
    // Before root becomes the service's user, who cannot see all of them.
    findings.extend(loose_permissions(&config).into_iter().map(|loose| {
        let found = Finding::new(FindingLevel::Warning, loose.path.display(), loose.message);
        found.with_remedy(loose.remedy).in_file(loose.path, None)
    }));
    let unreachable = as_the_service(&config, &mut findings);
    let denials = Arc::new(denials::read(&config, &mut findings));
    let site = trust::site_of(&config, Arc::clone(&denials))?;
    check_configuration(&config, &site, &mut findings);
    let live = if args.live {
        let progress = if args.json { Progress::Stderr } else { Progress::Stdout };
        runtime()?.block_on(live::check(&config, site.registry(), progress, &mut findings))
    } else {
        LiveResult::default()
    };
    check_certificates(&config, &site, &unreachable, &live, &mut findings);
    check_trust(&config, &site, &mut findings);
    for fault in site.registry().faults() {
        let level = if fault.severity == Severity::Error { FindingLevel::Error } else { FindingLevel::Warning };
        findings.push(Finding::new(level, &fault.subject, &fault.message));
    }
    for (name, reason) in site.unusable() {
        findings.push(Finding::new(FindingLevel::Error, name, format!("not served: {reason}")));
    }
    check_constituencies(&config, &site, &mut findings);
    denials::check(&config, &denials, site.registry(), &mut findings);
    strays::check(&config, site.registry(), &mut findings);
    plain_http::check(&config, &site, &mut findings);
    findings.sort();
    findings.dedup();
    for finding in &findings {
        if args.json { print_json(&finding.json()) } else { print(finding) }
    }
    let errors = findings.iter().filter(|finding| finding.level == FindingLevel::Error).count();
    let warnings = findings.iter().filter(|finding| finding.level == FindingLevel::Warning).count();
    let served = site.registry().served().filter(|served| site.get(&served.name).is_some()).count();
    let (errors_found, warnings) = (counted(errors, "error"), counted(warnings, "warning"));
    if !args.json {
        print_line(&format_args!("{} can be served; {errors_found}, {warnings}", counted(served, "constituency")));
    }
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// If run as root, becomes the service's user, if that is known. Reports the files of `config` that cannot be read.
fn as_the_service(config: &Config, findings: &mut Vec<Finding>) -> Unreachable {
    let is_root = rustix::process::geteuid().is_root() && !config.is_local();
    let found = if is_root { ServiceUser::find(Path::new("/"), config) } else { Ok(None) };
    let user = found.unwrap_or_else(|error| {
        findings.push(Finding::new(FindingLevel::Error, SERVICE, error));
        None
    });
    let Some(user) = user else { return reach::check(config, None, &Remedies::default(), findings) };
    let remedies = reach::remedies(config, &user);
    if let Err(errno) = user.assume() {
        let message = format!(
            "cannot become {}, the service's user ({}): {errno}; checked as root, which may read more",
            user.name, user.source
        );
        findings.push(Finding::new(FindingLevel::Warning, SERVICE, message));
        return Unreachable::default();
    }
    findings.push(Finding::new(
        FindingLevel::Note,
        SERVICE,
        format!("checked as the user {} ({})", user.name, user.source),
    ));
    reach::check(config, Some(&user), &remedies, findings)
}

fn print(finding: &Finding) {
    let style = match finding.level {
        FindingLevel::Error => AnsiColor::Red.on_default().bold(),
        FindingLevel::Warning => AnsiColor::Yellow.on_default().bold(),
        FindingLevel::Note => Style::new().dimmed(),
    };
    let Finding { level, subject, message, remedy, .. } = finding;
    let remedy = remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
    let message = replace_controls(&format!("{message}{remedy}"));
    print_line(&format_args!("{style}{}:{style:#} {}: {message}", level.name(), replace_controls(subject)));
}

fn check_configuration(config: &Config, site: &Site, findings: &mut Vec<Finding>) {
    let file = config.file.as_ref().map_or_else(|| "local mode".to_owned(), |file| file.display().to_string());
    if let Err(error) = config.check_apart() {
        findings.push(error.into());
    }
    if let Some(name) = &config.no_sni
        && site.get(name).is_none()
    {
        let message = format!("\"no_sni\": {name} is not served, so clients without SNI are refused");
        findings.push(Finding::new(FindingLevel::Error, &file, message));
    }
    if let Some(file) = config.status.as_ref().and_then(|status| status.token_file.as_deref())
        && let Err(error) = token_file::read(file)
    {
        findings.push(Finding::new(FindingLevel::Error, file.display(), error));
    }
    operators::check(config, findings);
    if let Some(notify) = &config.notify {
        // The service's user may be another one, if root cannot become that user.
        let owner = std::fs::metadata(&config.state).map(|state| std::os::unix::fs::MetadataExt::uid(&state));
        let checked = check_program(notify.program(), &owner.into_iter().collect::<Vec<u32>>());
        findings.extend(checked.err().map(|error| Finding::new(FindingLevel::Error, "notify", error)));
    }
    findings.extend(
        FileLimit::highest()
            .shortage(site.registry(), config.limits.connections)
            .map(|shortage| Finding::new(FindingLevel::Warning, "limits", shortage)),
    );
    findings.extend(state_faults(config).into_iter().map(|fault| {
        // The server may run as another user.
        let level = if fault.is_permission { FindingLevel::Warning } else { FindingLevel::Error };
        Finding::new(level, &file, fault.message)
    }));
}

fn check_certificates(
    config: &Config,
    site: &Site,
    unreachable: &Unreachable,
    live: &LiveResult,
    findings: &mut Vec<Finding>,
) {
    match &config.certificate {
        CertificateSource::Files(pairs) => {
            let live = check_files(config, pairs, unreachable, findings);
            legacy_tls::check_files(config, site, live, findings);
        }
        CertificateSource::Acme(settings) => {
            check_acme(config, settings, live, findings);
            legacy_tls::check_acme(config, site, settings, findings);
        }
        // Its keys are RSA.
        CertificateSource::LocalCa(_) => {}
    }
}

/// Checks the files that ACME needs.
fn check_acme(config: &Config, settings: &AcmeSettings, live: &LiveResult, findings: &mut Vec<Finding>) {
    stored::check(config, settings, live, findings);
    if let Some(ResponderDns { responder, .. }) = settings.dns.responder() {
        // With "addresses", something in front of this machine forwards anyway.
        let level = if responder.addresses.is_empty() { FindingLevel::Warning } else { FindingLevel::Note };
        let ports: BTreeSet<SocketAddr> =
            responder.public_addresses().into_iter().filter_map(|address| responder.other_port(address)).collect();
        findings.extend(ports.into_iter().map(|listen| {
            let message = format!("the DNS responder listens on {listen}, and resolvers ask port 53");
            // The system chooses port 0 anew at each start.
            let forward = if listen.port() == 0 { "" } else { ", or forward port 53 (UDP and TCP) to it" };
            Finding::new(level, DNS, message).with_remedy(format!("listen on port 53{forward}"))
        }));
    }
    if let Some(update) = settings.dns.update() {
        match Dns::open(update) {
            Err(error) => findings.push(Finding::new(FindingLevel::Error, DNS, error)),
            Ok(dns) => findings.extend(check_secret(dns.key(), update)),
        }
    }
    let failures = settings.directories().into_iter().filter_map(|it| AcmeCa::new(it, &config.state).err());
    findings.extend(failures.map(|failure| Finding::new(FindingLevel::Error, CERTIFICATE, failure)));
}

/// Checks the length of a TSIG key's secret.
fn check_secret(key: &TsigKey, settings: &DnsSettings) -> Option<Finding> {
    let (bytes, needed) = key.short_secret()?;
    let (name, algorithm) = (key.name(), key.algorithm());
    let message = format!(
        "the secret of the TSIG key {name} has {}; with fewer than {needed} bytes, {algorithm} is weaker (RFC 2104)",
        counted(bytes, "byte")
    );
    let file = &settings.tsig_key_file;
    let remedy = format!(
        "make a new key (`tsig-keygen -a {algorithm} {name}`), and put it into {} and into the primary",
        file.display()
    );
    Some(Finding::new(FindingLevel::Warning, DNS, message).with_remedy(remedy).in_file(file, None))
}

/// Checks the certificate files. Returns the certificates that the server would present.
fn check_files(
    config: &Config,
    pairs: &[CertificateFiles],
    unreachable: &Unreachable,
    findings: &mut Vec<Finding>,
) -> LiveCertificates {
    let mut source = FilesSource::new(pairs.to_vec(), &config.domain);
    let live = LiveCertificates::default();
    let refreshed = source.refresh(&live, &exact_names(config));
    // `reach` has reported these with their remedy.
    let is_reported =
        |error: &&FilesError| matches!(error, FilesError::Read { path, .. } if unreachable.contains(path));
    let errors = refreshed.errors.iter().filter(|error| !is_reported(error));
    findings.extend(errors.map(|error| Finding::new(FindingLevel::Error, CERTIFICATE, error)));
    findings.extend(refreshed.lacking.iter().map(|lacking| Finding::new(FindingLevel::Error, CERTIFICATE, lacking)));
    // The others are among the errors.
    for pair in source.pairs().iter().filter(|pair| pair.certificate.is_some()) {
        let condition = pair.condition(clock::unix_seconds(clock::now()));
        if let Some(level) = FindingLevel::of(&condition) {
            findings.push(Finding::new(level, CERTIFICATE, format!("{} {condition}", pair.files.chain.display())));
        }
    }
    live
}

fn check_trust(config: &Config, site: &Site, findings: &mut Vec<Finding>) {
    let now = clock::unix_seconds(clock::now());
    let registry = site.registry();
    // An unreadable policy may name any of them.
    let is_whole = registry.faults().iter().all(|fault| fault.severity != Severity::Error);
    let is_named = |name: &String| registry.served().any(|served| served.policy.tls.trust.contains(name));
    for name in config.trust.keys().filter(|name| is_whole && !is_named(name)) {
        let message = "no effect: no constituency has it in its \"trust\"";
        findings.push(Finding::new(FindingLevel::Note, format!("trust bundle \"{name}\""), message));
    }
    for (name, bundle) in crate::identity::trust::load_all(&config.trust) {
        let subject = format!("trust bundle \"{name}\"");
        match bundle {
            Err(error) => findings.push(Finding::new(FindingLevel::Error, subject, error)),
            Ok(bundle) => {
                let expired = bundle.anchors.iter().filter(|anchor| now > anchor.not_after);
                findings.extend(expired.map(|anchor| {
                    Finding::new(FindingLevel::Warning, &subject, format!("{} has expired", anchor.subject))
                }));
                findings.extend(bundle.revocations.iter().filter_map(|list| check_list(list, &subject, now)));
            }
        }
    }
}

/// Checks a CRL. If it is outdated, all certificates of its CA are refused.
fn check_list(list: &RevocationList, subject: &str, now: i64) -> Option<Finding> {
    let (ca, due) = (&list.ca, clock::rfc3339(list.next_update));
    if now > list.next_update {
        let message = format!("the CRL of {ca} expired at {due}: all certificates of this CA are refused");
        return Some(Finding::new(FindingLevel::Error, subject, message).with_remedy("renew the CRL"));
    }
    let is_soon = list.next_update - now < 30 * 86_400;
    let message = format!("the CRL of {ca} expires at {due}; from then on all certificates of this CA are refused");
    is_soon.then(|| Finding::new(FindingLevel::Warning, subject, message))
}

fn check_constituencies(config: &Config, site: &Site, findings: &mut Vec<Finding>) {
    // If the phone history cannot be read, models are unknown.
    let seen = HistoryReader::open(&config.state).and_then(|reader| reader.map_or(Ok(Vec::new()), |it| it.phones()));
    let seen = seen.unwrap_or_else(|error| {
        // The check of the state directory reports files that cannot be opened.
        if !matches!(error, ReadError::File { .. }) {
            findings.push(Finding::new(FindingLevel::Warning, "phone history", error));
        }
        Vec::new()
    });
    if site.registry().served().next().is_none() {
        let is_folder = |subject: &str| config.constituencies.join(subject).is_dir();
        let mut faults = site.registry().faults().iter();
        let is_broken = faults.any(|fault| fault.severity == Severity::Error && is_folder(&fault.subject));
        let finding = |message| Finding::new(FindingLevel::Warning, config.constituencies.display(), message);
        findings.push(if is_broken {
            finding("no constituency can be served")
        } else {
            finding("no constituency").with_remedy("make a folder in it")
        });
    }
    for constituency in site.registry().served() {
        let asks = constituency.policy.tls.client_auth != ClientAuth::None;
        if asks && constituency.policy.phones != Phones::Any && constituency.known_phones().is_empty() {
            let finding =
                Finding::new(FindingLevel::Warning, &constituency.name, "no known phone, so all phones are refused");
            findings.push(finding.with_remedy("list phones in constituency.json, or make a <mac>.cfg"));
        }
        if constituency.policy.tls.client_auth == ClientAuth::Digest {
            check_passwords(config, constituency, findings);
        }
        folder::check(config, site, constituency, &seen, findings);
    }
}

/// A running server keeps the last good passwords in memory; a restarted one has none.
fn check_passwords(config: &Config, constituency: &Constituency, findings: &mut Vec<Finding>) {
    if let Err(error) = stored_passwords(&config.state, &constituency.name) {
        let finding = Finding::new(
            FindingLevel::Error,
            &constituency.name,
            format!("{error}; after a restart all phones are refused"),
        );
        let remedy = "restore the file from a backup, or remove it and give each phone a new password (provost allow MAC --digest)";
        return findings.push(finding.with_remedy(remedy));
    }
    let faults = passwords::faults(config, constituency);
    findings.extend(faults.iter().map(|fault| Finding::new(FindingLevel::Warning, &constituency.name, fault)));
}

impl From<SettingsError> for Finding {
    fn from(error: SettingsError) -> Self {
        let finding =
            Self::new(FindingLevel::Error, error.location(), error.problem()).in_file(error.file(), error.line());
        Self { remedy: error.hint().map(str::to_owned), ..finding }
    }
}
