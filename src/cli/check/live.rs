//! `check --live` also queries DNS and CAs: whether the names resolve, whether each CA answers and may issue, and
//! whether a published record reaches every authoritative server. Progress is printed at once; faults become findings.
//!
//! It changes only one thing: it publishes a probe record, and removes it afterwards, also when interrupted.

use std::collections::BTreeSet;

use tokio::signal::unix::{SignalKind, signal};

use super::{CERTIFICATE, DNS, Finding, FindingLevel, Progress, phone_names};
use crate::acme::client::AcmeCa;
use crate::acme::client::directory_meta::DirectoryMeta;
use crate::acme::{AcmeFailure, AcmeSettings, FailureKind};
use crate::app::exact_names;
use crate::config::{CertificateSource, Config};
use crate::constituency::Registry;
use crate::dns::responder::{DelegationProblem, DelegationReport, WildcardFaults, inspect_delegation};
use crate::dns::{CaaRecords, Dns, DnsError, DnsMethod, DnsSettings, Issuer, ResponderDns, address_records, probe};

/// What the queries have shown.
#[derive(Debug, Default)]
pub(super) struct LiveResult {
    /// The hosts, without `*.`, whose challenges a CA would find.
    pub(super) good_challenges: BTreeSet<String>,
    /// Whether neither DNS nor a CA has an error.
    pub(super) is_good: bool,
}

/// Runs the queries that apply to `config`.
pub(super) async fn check(
    config: &Config,
    registry: &Registry,
    progress: Progress,
    findings: &mut Vec<Finding>,
) -> LiveResult {
    let mut result = LiveResult::default();
    if config.is_local() {
        findings.push(Finding::new(
            FindingLevel::Note,
            DNS,
            "local mode needs neither DNS nor a CA; --live checked nothing",
        ));
        return result;
    }
    let CertificateSource::Acme(settings) = &config.certificate else {
        phone_names::check(config, registry, &WildcardFaults::default(), progress, findings).await;
        let message = "certificates do not come from ACME, so --live checked only addresses";
        findings.push(Finding::new(FindingLevel::Note, CERTIFICATE, message));
        return result;
    };
    let domain = &config.domain;
    let delegation = match &settings.dns {
        DnsMethod::Update(_) => DelegationReport::default(),
        DnsMethod::Responder(dns) => check_delegation(domain, dns, config, progress, findings, &mut result).await,
    };
    phone_names::check(config, registry, delegation.wildcard_faults(), progress, findings).await;
    check_cas(config, settings, progress, findings).await;
    match &settings.dns {
        DnsMethod::Update(dns) if check_hidden(domain, dns, findings).await => {}
        DnsMethod::Update(dns) => check_primary(domain, dns, progress, findings, &mut result).await,
        DnsMethod::Responder(_) => {}
    }
    for (_, names) in exact_names(config).iter() {
        for name in names {
            check_exact(name, config, settings, progress, findings, &mut result).await;
        }
    }
    let is_live = |it: &Finding| it.level == FindingLevel::Error && [DNS, CERTIFICATE].contains(&it.subject.as_str());
    result.is_good = !findings.iter().any(is_live);
    result
}

/// Checks whether the CAs may issue for an exact name, and whether its challenge can be published.
async fn check_exact(
    name: &str,
    config: &Config,
    settings: &AcmeSettings,
    progress: Progress,
    findings: &mut Vec<Finding>,
    result: &mut LiveResult,
) {
    check_exact_caa(name, config, settings, findings).await;
    let update = match &settings.dns {
        DnsMethod::Update(update) => update,
        DnsMethod::Responder(dns) => {
            check_delegation(name, dns, config, progress, findings, result).await;
            return;
        }
    };
    // Errors in its files were reported before.
    let Ok(dns) = Dns::open(update) else { return };
    match dns.stands_alone(name).await {
        // A probe would hide its address, too.
        Err(error) => findings.push(Finding::new(FindingLevel::Error, DNS, error)),
        Ok(()) => check_primary(name, update, progress, findings, result).await,
    }
}

async fn check_exact_caa(name: &str, config: &Config, settings: &AcmeSettings, findings: &mut Vec<Finding>) {
    let caa = match CaaRecords::find(settings.dns.resolvers(), settings.dns.update(), name).await {
        Ok(caa) => caa,
        Err(error) => return findings.push(Finding::new(FindingLevel::Error, DNS, error)),
    };
    for directory in settings.directories() {
        // Other errors of the CA were reported before.
        let Ok(ca) = AcmeCa::new(directory, &config.state) else { continue };
        let Ok((offer, account)) = ca.survey().await.and_then(|offer| Ok((offer, ca.account_url()?))) else { continue };
        let issuer = Issuer { identities: offer.caa_identities(), account: account.as_deref() };
        if let Err(refusal) = caa.judge_exact(&issuer).map(drop)
            && !issuer.identities.is_empty()
        {
            let remedy = format!("to allow it, publish: {}", caa.recommended_exact(&issuer));
            findings.push(Finding::new(FindingLevel::Error, DNS, refusal).with_remedy(remedy));
        }
    }
}

/// Checks whether a challenge would hide the addresses of the phones' names. If so, a probe would hide them too.
async fn check_hidden(domain: &str, settings: &DnsSettings, findings: &mut Vec<Finding>) -> bool {
    // Errors in its files were reported before. If DNS does not answer, the probe reports it.
    let Ok(dns) = Dns::open(settings) else { return false };
    let Ok(hidden) = dns.hidden_by_challenge(domain).await else { return false };
    if hidden.is_empty() {
        return false;
    }
    let message = format!(
        "only a wildcard record above {domain} leads phones here: while _acme-challenge.{domain} has records, {domain} exists, \
         that wildcard does not answer for the names below it (RFC 4592 §3.3.1), and phones get NXDOMAIN; so no probe record was \
         published"
    );
    let remedy = format!("publish: {}", address_records(&format!("*.{domain}"), &hidden));
    findings.push(Finding::new(FindingLevel::Warning, DNS, message).with_remedy(remedy));
    true
}

/// Checks whether each CA answers, offers what the settings want, and may issue.
async fn check_cas(config: &Config, settings: &AcmeSettings, progress: Progress, findings: &mut Vec<Finding>) {
    let caa = CaaRecords::find(settings.dns.resolvers(), settings.dns.update(), &config.domain).await;
    match &caa {
        Ok(caa) => findings.extend(caa.unknown_above().map(|error| Finding::new(FindingLevel::Warning, DNS, error))),
        Err(error) => {
            let message = format!("{error}; no CA issues a certificate until this lookup works");
            findings.push(Finding::new(FindingLevel::Error, DNS, message));
        }
    }
    for directory in settings.directories() {
        // Errors in its files were reported before.
        let Ok(ca) = AcmeCa::new(directory.clone(), &config.state) else { continue };
        let url = directory.directory.url();
        let surveyed = ca.survey().await.and_then(|offer| Ok((offer, ca.account_url()?)));
        match surveyed {
            Ok((offer, account)) => {
                progress.print(&format!("{url}: answers{}", described(&offer, account.as_deref())));
                if let Ok(caa) = &caa {
                    findings.extend(check_caa(caa, url, &offer, account.as_deref(), progress));
                }
                if let (Some(account), Err(failure)) = (&account, ca.check_account().await) {
                    findings.push(unusable_account(url, account, &failure, caa.as_ref().ok()));
                }
            }
            Err(failure) => findings.push(Finding::new(FindingLevel::Error, CERTIFICATE, failure)),
        }
    }
}

fn described(offer: &DirectoryMeta, account: Option<&str>) -> String {
    let parts = [
        account.map(|account| format!("our account: {account}")),
        offer.terms_of_service().map(|url| format!("terms of service: {url}")),
        (!offer.profiles().is_empty()).then(|| format!("profiles: {}", offer.profiles().join(", "))),
    ];
    parts.into_iter().flatten().map(|part| format!("; {part}")).collect()
}

/// The finding for an account that the CA does not accept: `serve` registers another, unless CAA records forbid that.
fn unusable_account(url: &str, account: &str, failure: &AcmeFailure, caa: Option<&CaaRecords>) -> Finding {
    let key = match failure.kind {
        FailureKind::AccountDeactivated => "a new key",
        FailureKind::AccountUnknown => "the same key",
        _ => return Finding::new(FindingLevel::Error, CERTIFICATE, failure),
    };
    let bound = caa.map(|caa| caa.bound_to(Some(account))).unwrap_or_default();
    let message = format!("{url} does not accept our account {account}: {failure}");
    if bound.is_empty() || failure.kind == FailureKind::AccountUnknown {
        let remedy = format!("nothing to do: the next renewal registers an account with {key}");
        return Finding::new(FindingLevel::Warning, CERTIFICATE, message).with_remedy(remedy);
    }
    let remedy =
        format!("remove accounturi from {}; then the next renewal registers an account with {key}", bound.join(", "));
    Finding::new(FindingLevel::Error, CERTIFICATE, message).with_remedy(remedy)
}

/// Whether the CAA records allow the CA to issue to us. If so, a note says how they could be stricter.
fn check_caa(
    caa: &CaaRecords,
    url: &str,
    offer: &DirectoryMeta,
    account: Option<&str>,
    progress: Progress,
) -> Option<Finding> {
    let issuer = Issuer { identities: offer.caa_identities(), account };
    if issuer.identities.is_empty() {
        let message = format!("{url} does not publish its CAA identity, so CAA records were not checked for it");
        return Some(Finding::new(FindingLevel::Note, DNS, message));
    }
    let records = caa.recommended(&issuer);
    match caa.judge(&issuer) {
        Err(refusal) => Some(
            Finding::new(FindingLevel::Error, DNS, refusal).with_remedy(format!("to allow it, publish: {records}")),
        ),
        Ok(open) if open.is_empty() => {
            progress.print(&format!("{url}: the CAA records allow {} to issue", issuer.identities.join(", ")));
            None
        }
        Ok(open) => {
            let later = if account.is_some() { "" } else { " (add accounturi once there is an account)" };
            let open = open.join(" and ");
            let finding =
                Finding::new(FindingLevel::Note, DNS, format!("CAA records allow any CA to issue for {open}"));
            Some(finding.with_remedy(format!("to allow only {url}, publish{later}: {records}")))
        }
    }
}

/// Checks whether the primary lets us publish a record, and whether every authoritative server returns it.
async fn check_primary(
    domain: &str,
    settings: &DnsSettings,
    progress: Progress,
    findings: &mut Vec<Finding>,
    result: &mut LiveResult,
) {
    // Errors in its files were reported before.
    let Ok(dns) = Dns::open(settings) else { return };
    let error = |error: DnsError| Finding::new(FindingLevel::Error, DNS, error);
    let challenge = format!("_acme-challenge.{domain}");
    match probe(&dns, &challenge, &|line| progress.print(&line), interrupted()).await {
        Err(nowhere) => findings.push(error(nowhere)),
        Ok(probe) => {
            if probe.seen.is_ok() && probe.gone.is_ok() {
                result.good_challenges.insert(domain.to_owned());
            }
            match probe.seen {
                Ok(silent) => findings.extend(silent.iter().map(|who| Finding::new(FindingLevel::Warning, DNS, who))),
                Err(unseen) => findings.push(error(unseen)),
            }
            findings.extend(probe.gone.err().map(error));
        }
    }
}

/// Checks whether the public way to the challenge of `host` leads to the running server's DNS responder: every delegated name
/// server is asked, and a resolver.
async fn check_delegation(
    host: &str,
    settings: &ResponderDns,
    config: &Config,
    progress: Progress,
    findings: &mut Vec<Finding>,
    result: &mut LiveResult,
) -> DelegationReport {
    let finding = |level: FindingLevel, it: DelegationProblem| {
        let finding = Finding::new(level, DNS, it.problem);
        match it.remedy {
            Some(remedy) => finding.with_remedy(remedy),
            None => finding,
        }
    };
    let report = match inspect_delegation(settings, &config.domain, host, &config.state).await {
        Ok(report) => report,
        Err(problem) => {
            findings.push(finding(FindingLevel::Error, problem));
            return DelegationReport::default();
        }
    };
    for server in &report.proven {
        progress.print(&format!("{server}: is this server, by the proof that only it can give"));
    }
    let errors = report.errors();
    if let Some(zone) = report.zone.as_ref().filter(|_| errors.is_empty()) {
        progress.print(&format!("_acme-challenge.{host}: the zone {zone} is delegated to this server"));
        result.good_challenges.insert(host.to_owned());
    }
    findings.extend(errors.into_iter().map(|it| finding(FindingLevel::Error, it)));
    findings.extend(report.warnings().into_iter().map(|it| finding(FindingLevel::Warning, it)));
    report
}

/// Completes on SIGINT, SIGTERM or SIGHUP. From the first call on, these signals no longer end the process by
/// themselves.
async fn interrupted() {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    if let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hang_up)) = signals {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    } else {
        std::future::pending::<()>().await;
    }
}
