//! `provost trust`: lists the trusted CAs, and verifies a device certificate.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{ConfigArg, print_line, registry_of};
use crate::certificate::LiveCertificates;
use crate::clock::{self, rfc3339};
use crate::config::Config;
use crate::constituency::{ClientAuth, ConstituencyName, ServerDenials};
use crate::files::read_regular;
use crate::identity::trust::{self, Bundle, VerifiedDevice};
use crate::serve::site::{Site, TlsMaterial};
use crate::wording::counted;

/// The commands about trust.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the trust bundles and their CA certificates.
    List,
    /// Check a device certificate for a constituency: prints the MAC address, or the exact reason of a refusal.
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// The constituency.
    #[arg(long, value_name = "NAME")]
    constituency: ConstituencyName,
    /// The phone's chain, its own certificate first (PEM), or that certificate alone (DER).
    #[arg(value_name = "CHAIN.pem")]
    chain: PathBuf,
    /// The time of the check [default: now].
    #[arg(long, value_name = "RFC3339", value_parser = |text: &str| OffsetDateTime::parse(text, &Rfc3339))]
    at: Option<OffsetDateTime>,
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    match command {
        Command::List => Ok(list(&config)),
        Command::Verify(args) => verify(args, &config),
    }
}

fn list(config: &Config) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, bundle) in trust::load_all(&config.trust) {
        match bundle {
            Ok(bundle) => list_bundle(&name, &bundle),
            Err(error) => {
                print_line(&format_args!("{name}: INVALID: {error}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn list_bundle(name: &str, bundle: &Bundle) {
    print_line(&name);
    print_line(&format_args!("  family {}", bundle.family.explained()));
    let now = clock::unix_seconds(clock::now());
    for anchor in &bundle.anchors {
        let sha256 = digest(&SHA256, &anchor.certificate);
        let fingerprint: String = sha256.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        let (from, to) = (rfc3339(anchor.not_before), rfc3339(anchor.not_after));
        let mark = if now > anchor.not_after { " (EXPIRED: its certificates are refused)" } else { "" };
        print_line(&format_args!("  {}{mark}\n    valid {from} to {to}\n    SHA-256 {fingerprint}", anchor.subject));
    }
    for list in &bundle.revocations {
        let mark = if now > list.next_update { " (EXPIRED: all certificates of this CA are refused)" } else { "" };
        let (count, end) = (list.len(), rfc3339(list.next_update));
        print_line(&format_args!("  revoked by {}: {count}, next list due by {end}{mark}", list.ca));
    }
    if !bundle.known.is_empty() {
        let known = counted(bundle.known.len(), "CA");
        print_line(&format_args!("  intermediates: {known}"));
    }
}

fn verify(args: &VerifyArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let chain = read_chain(&args.chain)?;
    let site = site_of(config, Arc::new(ServerDenials::read(&config.state)?))?;
    let refused = |reason: String| {
        print_line(&format_args!("refused: {reason}"));
        Ok(ExitCode::FAILURE)
    };
    let Some((constituency, generation)) = site.get(&args.constituency) else {
        let name = &args.constituency;
        let unusable = site.unusable().find(|(unusable, _)| *unusable == name).map(|(_, reason)| reason.to_owned());
        let fault = site.registry().faults().iter().find(|fault| fault.subject == name.as_str());
        let reason = unusable.or_else(|| fault.map(|fault| fault.message.clone()));
        return refused(reason.unwrap_or_else(|| format!("constituency {name} not found")));
    };
    let now = args.at.map_or_else(|| clock::unix_seconds(clock::now()), OffsetDateTime::unix_timestamp);
    let Some(verdict) = generation.examine(constituency, &chain, now) else {
        if constituency.policy.tls.client_auth == ClientAuth::Digest {
            return refused("this constituency uses passwords, not certificates".to_owned());
        }
        print_line(&"accepted: this constituency needs no certificate (\"client_auth\": \"none\")");
        return Ok(ExitCode::SUCCESS);
    };
    match verdict {
        Err(certificate) => refused(certificate.to_string()),
        Ok(device) => match device.mac() {
            Err(reason) => refused(reason.to_string()),
            Ok(mac) => {
                if let Some(reason) = constituency.standing(mac).refusal(mac, &constituency.name) {
                    refused(reason)
                } else {
                    print_line(&format_args!("accepted: {mac}{}", note(&device, now)));
                    Ok(ExitCode::SUCCESS)
                }
            }
        },
    }
}

fn note(device: &VerifiedDevice, now: i64) -> &'static str {
    if device.pin().is_some() {
        " (this certificate is pinned for it)"
    } else if device.is_tolerated(now) {
        " (expired, tolerated by policy)"
    } else {
        ""
    }
}

fn read_chain(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let bytes = read_regular(path).with_context(|| path.display().to_string())?;
    let path = path.display();
    if X509Certificate::from_der(&bytes).is_ok_and(|(rest, _)| rest.is_empty()) {
        return Ok(vec![bytes.into()]);
    }
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let chain = chain.with_context(|| format!("{path} is not PEM"))?;
    anyhow::ensure!(!chain.is_empty(), "no certificate in {path}, neither PEM nor DER");
    Ok(chain)
}

/// The site as a server would build it now, with these server-wide `denials`. Faults of folders are in its registry.
pub(super) fn site_of(config: &Config, denials: Arc<ServerDenials>) -> anyhow::Result<Site> {
    let material = TlsMaterial {
        certificates: Arc::new(LiveCertificates::default()),
        bundles: trust::load_all(&config.trust),
        always_trusted: crate::app::local_device_bundle(config)?.into_iter().map(Arc::new).collect(),
        provider: TlsMaterial::provider(),
        level: config.tls,
    };
    let registry = registry_of(config, denials);
    Ok(Site::new(config.domain.clone(), None).with(registry, config.no_sni.clone(), &material))
}
