//! `provost phone`: boots a virtual phone, to see whether a phone would be accepted from here, and what it would get.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::boot_table::{BootTable, OutputFormat};
use crate::constituency::MacAddress;
use crate::virtual_phone::{
    BootTarget, DeviceCertificate, FleetSummary, Password, ServerUrl, VirtualPhone, boot, boot_fleet,
};

/// Boot a virtual phone, and print its requests and the responses.
///
/// Exits with 0 if the phone was provisioned, 1 if not, 2 for a usage error. If the server lacks a file that the master
/// configuration names, the phone boots without it: the last line says so, and with --strict the exit code is 1.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The URL of the provisioning server, as in DHCP option 160.
    #[arg(long, value_name = "URL")]
    pub url: ServerUrl,
    /// The phone's address; of the first phone, with --count.
    #[arg(long, value_name = "MAC")]
    pub mac: MacAddress,
    /// The model, as the User-Agent writes it.
    #[arg(long, value_name = "MODEL", default_value = VirtualPhone::DEFAULT_MODEL)]
    pub model: String,
    /// The firmware on the phone.
    #[arg(long, value_name = "VERSION", default_value = VirtualPhone::DEFAULT_FIRMWARE)]
    pub firmware: String,
    /// The hardware's part number, which names its firmware image.
    #[arg(long, value_name = "NUMBER", default_value = VirtualPhone::DEFAULT_PART_NUMBER)]
    pub part_number: String,
    /// The device certificate with its chain (PEM) [default: in local mode, one of the local device CA].
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "count")]
    pub certificate: Option<PathBuf>,
    /// The private key of --certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// Send no device certificate, for a constituency that needs none.
    #[arg(long, conflicts_with_all = ["certificate", "key"])]
    pub no_certificate: bool,
    /// The password that `provost allow --digest` made, in a file of one line; then no certificate is needed.
    #[arg(long, value_name = "FILE", conflicts_with = "count")]
    pub password_file: Option<PathBuf>,
    /// Trust only servers of these CAs (PEM) [default: the system's CAs, and the server's own CA in local mode and where the
    /// configuration says `local_ca`].
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Connect to this address instead of resolving the name in the URL [default: by DNS; loopback for *.localhost].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub resolve: Option<SocketAddr>,
    /// Boot this many phones of consecutive addresses at once [default: one].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub count: Option<u32>,
    /// With --count: how many of them boot at the same time.
    #[arg(long, value_name = "N", default_value_t = 256, requires = "count",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub at_once: u32,
    /// Exit with 1 also if the server lacks a file that the master configuration names, or one cannot be read.
    #[arg(long)]
    pub strict: bool,
    /// Print JSON, one object per line.
    #[arg(long)]
    pub json: bool,
    /// The state directory with the local device CA.
    #[arg(long, value_name = "DIR", default_value = "state")]
    pub state: PathBuf,
}

/// Issues certificates for virtual phones in local mode.
pub trait DeviceCertificates {
    /// A device certificate for `mac`.
    fn certificate(&self, mac: MacAddress) -> anyhow::Result<DeviceCertificate>;
}

/// Boots the phone or phones of `args`. They trust `server_ca` and the system's CAs. An error is a usage error.
pub async fn run(
    args: &Args,
    local: Option<&dyn DeviceCertificates>,
    server_ca: Option<CertificateDer<'static>>,
) -> anyhow::Result<ExitCode> {
    let server_roots = Arc::new(server_roots(args.ca.as_deref(), server_ca)?);
    let password = args.password_file.as_deref().map(read_password).transpose()?;
    if password.is_some() && !args.url.origin().secure {
        bail!("a password is used only over https, but --url is {}", args.url);
    }
    let target = BootTarget { url: args.url.clone(), server_roots, resolve: args.resolve, password };
    let format = if args.json { OutputFormat::Json } else { OutputFormat::Table };
    let good = match args.count {
        None => {
            let certificate = certificate(args, local, args.mac)?;
            let phone = args.phone();
            let mut watch = BootTable::new(format).for_one_phone(&phone);
            let report = boot(&phone, &target, certificate.as_ref(), &mut watch).await;
            if args.strict { report.is_complete() } else { report.is_provisioned() }
        }
        Some(count) => {
            let summary = boot_many(args, count, &target, local, format).await?;
            if args.strict { summary.all_complete() } else { summary.all_provisioned() }
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn boot_many(
    args: &Args,
    count: u32,
    target: &BootTarget,
    local: Option<&dyn DeviceCertificates>,
    format: OutputFormat,
) -> anyhow::Result<FleetSummary> {
    let first = args.phone();
    let phones = (0..u64::from(count)).map(|steps| {
        let phone = first.neighbor(steps);
        certificate(args, local, phone.mac).map(|certificate| (phone, certificate))
    });
    let phones = phones.collect::<anyhow::Result<Vec<_>>>()?;
    let printer = BootTable::new(format);
    let at_once = usize::try_from(args.at_once)?;
    let summary = boot_fleet(phones, target, at_once, |phone| printer.for_phone_of_many(phone)).await;
    printer.summary(&summary);
    Ok(summary)
}

impl Args {
    fn phone(&self) -> VirtualPhone {
        let Self { mac, model, firmware, part_number, .. } = self.clone();
        VirtualPhone { mac, model, firmware, part_number }
    }
}

fn certificate(
    args: &Args,
    local: Option<&dyn DeviceCertificates>,
    mac: MacAddress,
) -> anyhow::Result<Option<DeviceCertificate>> {
    match (&args.certificate, &args.key, local) {
        _ if args.no_certificate => Ok(None),
        (Some(chain), Some(key), _) => read_certificate(chain, key).map(Some),
        _ if args.password_file.is_some() => Ok(None),
        (.., Some(local)) => local.certificate(mac).map(Some),
        _ => bail!(
            "no certificate: use --certificate and --key, or --password-file, or --no-certificate; for a server in local mode, \
             run this in its working directory, or name its state directory with --state"
        ),
    }
}

fn read_password(file: &Path) -> anyhow::Result<Password> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    match text.lines().collect::<Vec<_>>()[..] {
        [password] if !password.is_empty() => Ok(Password::new(password.to_owned())),
        _ => bail!("no password in {}; use a file with one line", file.display()),
    }
}

fn read_certificate(chain: &Path, key: &Path) -> anyhow::Result<DeviceCertificate> {
    let certificates = read_certificates(chain)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("no usable private key in {}; use unencrypted PEM", key.display()))?;
    Ok(DeviceCertificate { chain: certificates, key })
}

fn read_certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.with_context(|| format!("{} is not PEM", file.display()))?;
    if certificates.is_empty() {
        bail!("no certificate (PEM) in {}", file.display());
    }
    Ok(certificates)
}

fn server_roots(ca: Option<&Path>, server_ca: Option<CertificateDer<'static>>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = ca {
        for certificate in read_certificates(ca)? {
            roots.add(certificate).with_context(|| format!("no CA certificate in {}", ca.display()))?;
        }
        return Ok(roots);
    }
    // An unreadable root of the system does not matter for the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(server_ca) = server_ca {
        roots.add(server_ca).context("cannot read the certificate of the server's own CA")?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(more: &str) -> Result<Args, clap::Error> {
        let words = "phone --url https://ote.phones.localhost:8443/ --mac 00:00:5E:00:53:0C";
        let words = words.split_whitespace().chain(more.split_whitespace());
        Command::try_parse_from(words).map(|command| command.args)
    }

    #[test]
    fn url_and_mac_are_sufficient_arguments() {
        let args = parse("").unwrap();
        assert_eq!(args.phone(), VirtualPhone::new("00005e00530c".parse().unwrap()));
        assert!(parse("--count 3 --at-once 2 --json --resolve 127.0.0.1:8443").is_ok());
    }

    #[test]
    fn invalid_combinations_of_options_are_errors() {
        for more in [
            "--certificate c.pem",
            "--key k.pem",
            "--certificate c.pem --key k.pem --count 2",
            "--certificate c.pem --key k.pem --no-certificate",
            "--count 0",
            "--at-once 2",
            "--resolve localhost:1",
        ] {
            assert!(parse(more).is_err(), "{more}");
        }
    }

    #[test]
    fn missing_certificate_error_names_the_options() {
        let error = certificate(&parse("").unwrap(), None, MacAddress::ZERO).unwrap_err();
        assert!(error.to_string().contains("--certificate"));
        assert!(certificate(&parse("--no-certificate").unwrap(), None, MacAddress::ZERO).unwrap().is_none());
    }
}
