//! `provost ca issue`: issues a certificate for a phone, with its key, in a format that the phone accepts.
//!
//! A certificate whose key got lost stays valid until it is revoked. So everything that can fail is tried before the
//! certificate is recorded: the target folders, that the files are new, and disk space for them.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use aws_lc_rs::rand;

use super::{days, lifetime, name};
use crate::ca::device::{DeviceCa, DeviceCertificateRequest, SignedCertificate};
use crate::ca::export;
use crate::ca::record::IssuedStatus;
use crate::cli::parameters::{Group, parameter_file};
use crate::cli::say;
use crate::clock::{self, rfc3339, unix_seconds};
use crate::constituency::MacAddress;
use crate::state::{self, FolderHandle};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Issue {
    #[command(flatten)]
    pub(super) place: super::CaPlace,
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// Where to write certificate and key; with der, the key goes into a file beside it that ends in .key.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The form [default: by the ending of FILE, .cfg, .der, .p12 or .pfx; else pem].
    #[arg(long, value_enum)]
    format: Option<IssueForm>,
    /// For how long it counts [default: as long as the CA].
    #[arg(long, value_name = "N", value_parser = days())]
    days: Option<u32>,
    /// The subject's O [default: none].
    #[arg(long, value_name = "TEXT", value_parser = name)]
    organization: Option<String>,
    /// With pkcs12: the file's password, the first line of FILE [default: one is made and printed].
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum IssueForm {
    /// A parameter file that a Polycom phone takes as it is.
    #[value(alias = "cfg")]
    Phone,
    /// One file of text: the certificate, then its key.
    Pem,
    /// Two files of bytes, the certificate and its key (PKCS#8).
    Der,
    /// One encrypted file.
    #[value(alias = "p12")]
    Pkcs12,
}

impl Issue {
    pub(super) fn run(&self, folder: &Path) -> anyhow::Result<()> {
        let form = self.form();
        ensure!(
            form == IssueForm::Pkcs12 || self.password_file.is_none(),
            "--password-file is for pkcs12: other forms are not encrypted"
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
        for (file, draft) in files.iter().zip(drafts) {
            draft.put(file.file_name().unwrap_or_default()).with_context(|| {
                format!(
                    "the certificate was issued, but {} cannot be written; provost ca revoke {serial} ends it",
                    file.display()
                )
            })?;
        }
        let end = ca.record().certificates().last().map_or(0, |certificate| certificate.not_after);
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        let (mac, end) = (self.mac, rfc3339(end));
        say(&format_args!("{mac}: certificate {serial}, valid until {end}, in {}", files.join(" and ")));
        if is_made {
            say(&format_args!("password: {password}"));
        }
        for IssuedStatus { serial, not_after, .. } in earlier {
            let end = rfc3339(not_after);
            say(&format_args!(
                "note: {mac} has another one that counts, {serial}, until {end}; provost ca revoke {serial} ends it"
            ));
        }
        Ok(())
    }

    fn form(&self) -> IssueForm {
        let ending = self.out.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        self.format.unwrap_or(match ending.as_deref() {
            Some("cfg") => IssueForm::Phone,
            Some("der") => IssueForm::Der,
            Some("p12" | "pfx") => IssueForm::Pkcs12,
            _ => IssueForm::Pem,
        })
    }

    /// The files to write. Fails if one exists.
    fn files(&self, form: IssueForm) -> anyhow::Result<Vec<PathBuf>> {
        let out = &self.out;
        ensure!(
            out.as_os_str() != "-",
            "a private key is not shown on standard output: name a file, which only you may read then (./- if it is to be \
             called that)"
        );
        let files =
            if form == IssueForm::Der { vec![out.clone(), out.with_extension("key")] } else { vec![out.clone()] };
        ensure!(files.len() == 1 || files[0] != files[1], "--out must not end in .key, as the key's own file does");
        for file in &files {
            ensure!(!file.is_dir(), "{} is a folder; name a file in it", file.display());
            let is_there = file.symlink_metadata().is_ok();
            ensure!(
                !is_there,
                "{} is there already; it may hold a key that is in use; name another file by --out",
                file.display()
            );
            ensure!(file.file_name().is_some(), "--out names no file");
        }
        Ok(files)
    }

    /// The password of an encrypted form, and whether it was generated here.
    fn password(&self, form: IssueForm) -> anyhow::Result<(String, bool)> {
        let Some(file) = &self.password_file else { return Ok((random_password()?, form == IssueForm::Pkcs12)) };
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let password = text.lines().next().unwrap_or_default().to_owned();
        ensure!(!password.is_empty(), "{} holds no password in its first line", file.display());
        Ok((password, false))
    }

    fn contents(
        &self,
        form: IssueForm,
        signed: &SignedCertificate,
        ca: &DeviceCa,
        password: &str,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let SignedCertificate { issued, serial, .. } = signed;
        Ok(match form {
            IssueForm::Phone => vec![self.parameters(signed).into_bytes()],
            IssueForm::Pem => vec![export::to_pem(issued).into_bytes()],
            IssueForm::Der => vec![issued.certificate.to_vec(), issued.key.secret_der().to_vec()],
            IssueForm::Pkcs12 => {
                let name = self.mac.to_upper_hex();
                vec![export::to_pkcs12(issued, ca.certificate(), &name, serial, password)?]
            }
        })
    }

    /// The parameters for the first of the two custom certificate slots of a phone, and its use for provisioning.
    fn parameters(&self, signed: &SignedCertificate) -> String {
        let heading = format!(
            "Gives the phone {} a certificate of its own. This file holds its PRIVATE KEY: who has it can pass for that phone. \
             Import it on the phone's web page, or let the phone fetch it once where nobody else can, and remove it. For UC \
             Software 4.0 and later.",
            self.mac
        );
        let [certificate, key] = export::to_pem_blocks(&signed.issued);
        let pair = Group::new("certificate", "The certificate and its key.")
            .plain("device.set", "1")
            .plain("device.sec.TLS.customDeviceCert1.set", "1")
            .device("device.sec.TLS.customDeviceCert1.publicCert", certificate.trim_end())
            .device("device.sec.TLS.customDeviceCert1.privateKey", key.trim_end());
        let profile = Group::new("profile", "What the phone shows to the provisioning server.")
            .device("device.sec.TLS.profile.deviceCert1", "Platform1")
            .device("device.sec.TLS.profileSelection.provisioning", "PlatformProfile1");
        parameter_file(&heading, &[pair, profile])
    }
}

fn folder_of(file: &Path) -> anyhow::Result<FolderHandle> {
    state::folder_of(file).with_context(|| nothing_issued(file))
}

fn nothing_issued(file: &Path) -> String {
    format!("nothing was issued: {} cannot be written", file.display())
}

/// 128 random bits in hex.
fn random_password() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok().context("the system gives no random numbers")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
