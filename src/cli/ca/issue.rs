//! `provost ca issue`: issues a certificate for a phone, with its key, in a format that the phone accepts.
//!
//! A certificate whose key got lost stays valid until it is revoked. So everything that can fail is tried before the
//! certificate is recorded: the target folders, that the files are new, and disk space for them.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use aws_lc_rs::rand;

use super::{days, lifetime, name};
use crate::audit::AuditAction;
use crate::ca::device::{DeviceCa, DeviceCertificateRequest, SignedCertificate};
use crate::ca::export;
use crate::ca::record::IssuedStatus;
use crate::cli::audit::{entry, record};
use crate::cli::parameters::{Group, parameter_file};
use crate::cli::print_line;
use crate::clock::{self, rfc3339, unix_seconds};
use crate::config::Config;
use crate::constituency::MacAddress;
use crate::state::{self, FolderHandle};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Issue {
    #[command(flatten)]
    pub(super) place: super::CaPlace,
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// The file for certificate and key; with der, the key is in a file beside it that ends in .key.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The format [default: by the extension of FILE, .cfg, .der, .p12 or .pfx; else pem].
    #[arg(long, value_enum)]
    format: Option<IssueFormat>,
    /// The lifetime in days [default: that of the CA].
    #[arg(long, value_name = "N", value_parser = days())]
    days: Option<u32>,
    /// The subject's O [default: none].
    #[arg(long, value_name = "TEXT", value_parser = name)]
    organization: Option<String>,
    /// With pkcs12: encrypt with the password in the first line of FILE [default: make and print one].
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum IssueFormat {
    /// A parameter file for Polycom phones.
    #[value(alias = "cfg")]
    Phone,
    /// A PEM file: the certificate, then its key.
    Pem,
    /// Two binary files, the certificate and its key (PKCS#8).
    Der,
    /// An encrypted PKCS#12 file.
    #[value(alias = "p12")]
    Pkcs12,
}

impl Issue {
    pub(super) fn run(&self, folder: &Path, config: Option<&Config>) -> anyhow::Result<()> {
        let form = self.form();
        ensure!(
            form == IssueFormat::Pkcs12 || self.password_file.is_none(),
            "--password-file is only for pkcs12: the other formats are not encrypted"
        );
        let (password, is_made) = self.password(form)?;
        let now = clock::now();
        let mut ca = DeviceCa::open(folder, now)?;
        let files = self.files(form)?;
        let folders = files.iter().map(|file| folder_of(file)).collect::<anyhow::Result<Vec<FolderHandle>>>()?;
        let seconds = unix_seconds(now);
        let earlier: Vec<IssuedStatus> = ca
            .record()
            .certificates()
            .iter()
            .filter(|it| it.mac == self.mac && it.is_valid(seconds))
            .cloned()
            .collect();
        let wanted = DeviceCertificateRequest {
            mac: self.mac,
            organization: self.organization.as_deref(),
            lifetime: self.days.map(lifetime),
        };
        let signed = ca.sign(&wanted, now)?;
        let contents = self.contents(form, &signed, &ca, &password)?;
        let mut drafts = Vec::new();
        for ((file, folder), content) in files.iter().zip(&folders).zip(contents) {
            drafts.push(state::draft_private(folder, &content).with_context(|| nothing_issued(file))?);
        }
        ca.add_to_record(&signed)?;
        let serial = &signed.serial;
        if let Some(config) = config {
            record(&config.state, &[entry(AuditAction::DeviceCertificateIssued).phone(self.mac).detail(serial)]);
        }
        for (file, draft) in files.iter().zip(drafts) {
            draft.put(file.file_name().unwrap_or_default()).with_context(|| {
                format!(
                    "the certificate was issued, but {} cannot be written; to revoke it, run provost ca revoke {serial}",
                    file.display()
                )
            })?;
        }
        let end = ca.record().certificates().last().map_or(0, |certificate| certificate.not_after);
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        let (mac, end) = (self.mac, rfc3339(end));
        print_line(&format_args!("{mac}: certificate {serial}, valid until {end}, in {}", files.join(" and ")));
        if is_made {
            print_line(&format_args!("password: {password}"));
        }
        for IssuedStatus { serial, not_after, .. } in earlier {
            let end = rfc3339(not_after);
            print_line(&format_args!(
                "note: {mac} has another valid certificate, {serial}, until {end}; to revoke it, run provost ca revoke {serial}"
            ));
        }
        Ok(())
    }

    fn form(&self) -> IssueFormat {
        let ending = self.out.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        self.format.unwrap_or(match ending.as_deref() {
            Some("cfg") => IssueFormat::Phone,
            Some("der") => IssueFormat::Der,
            Some("p12" | "pfx") => IssueFormat::Pkcs12,
            _ => IssueFormat::Pem,
        })
    }

    /// The files to write. Fails if one exists.
    fn files(&self, form: IssueFormat) -> anyhow::Result<Vec<PathBuf>> {
        let out = &self.out;
        ensure!(
            out.as_os_str() != "-",
            "a private key is not written to standard output; name a file, which only you can read (./- for a file of that \
             name)"
        );
        let files =
            if form == IssueFormat::Der { vec![out.clone(), out.with_extension("key")] } else { vec![out.clone()] };
        ensure!(files.len() == 1 || files[0] != files[1], "--out must not end in .key: the private key gets that name");
        for file in &files {
            ensure!(!file.is_dir(), "--out: {} is a folder; name a file in it", file.display());
            let is_there = file.symlink_metadata().is_ok();
            ensure!(!is_there, "--out: {} exists and may hold a key in use; name another file", file.display());
            ensure!(file.file_name().is_some(), "--out: not a file name");
        }
        Ok(files)
    }

    /// The password of an encrypted form, and whether it was generated here.
    fn password(&self, form: IssueFormat) -> anyhow::Result<(String, bool)> {
        let Some(file) = &self.password_file else { return Ok((random_password()?, form == IssueFormat::Pkcs12)) };
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let password = text.lines().next().unwrap_or_default().to_owned();
        ensure!(!password.is_empty(), "--password-file: no password in the first line of {}", file.display());
        Ok((password, false))
    }

    fn contents(
        &self,
        form: IssueFormat,
        signed: &SignedCertificate,
        ca: &DeviceCa,
        password: &str,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let SignedCertificate { issued, serial, .. } = signed;
        Ok(match form {
            IssueFormat::Phone => vec![self.parameters(signed).into_bytes()],
            IssueFormat::Pem => vec![export::to_pem(issued).into_bytes()],
            IssueFormat::Der => vec![issued.certificate.to_vec(), issued.key.secret_der().to_vec()],
            IssueFormat::Pkcs12 => {
                let name = self.mac.to_upper_hex();
                vec![export::to_pkcs12(issued, ca.certificate(), &name, serial, password)?]
            }
        })
    }

    /// The parameters for the first of the two custom certificate slots of a phone, and its use for provisioning.
    fn parameters(&self, signed: &SignedCertificate) -> String {
        let heading = format!(
            "Installs a certificate for the phone {}. This file holds its PRIVATE KEY, by which anyone can pose as that phone. \
             Import it on the phone's web page, or let the phone fetch it once from a place that only it can read. Then delete it. For UC \
             Software 4.0 and later.",
            self.mac
        );
        let [certificate, key] = export::to_pem_blocks(&signed.issued);
        let pair = Group::new("certificate", "The certificate and its key.")
            .plain("device.set", "1")
            .plain("device.sec.TLS.customDeviceCert1.set", "1")
            .device("device.sec.TLS.customDeviceCert1.publicCert", certificate.trim_end())
            .device("device.sec.TLS.customDeviceCert1.privateKey", key.trim_end());
        let profile = Group::new("profile", "The certificate that the phone presents to the provisioning server.")
            .device("device.sec.TLS.profile.deviceCert1", "Platform1")
            .device("device.sec.TLS.profileSelection.provisioning", "PlatformProfile1");
        parameter_file(&heading, &[pair, profile])
    }
}

fn folder_of(file: &Path) -> anyhow::Result<FolderHandle> {
    state::folder_of(file).with_context(|| nothing_issued(file))
}

fn nothing_issued(file: &Path) -> String {
    format!("no certificate was issued: cannot write {}", file.display())
}

/// 128 random bits in hex.
fn random_password() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok().context("the system's random number generator failed")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
