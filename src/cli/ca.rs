//! `provost ca`: a CA of one's own, for phones whose factory certificate is of no use.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use aws_lc_rs::rand;
use serde_json::json;

use super::{ConfigArg, code, say};
use crate::ca::device::{DeviceCa, Wanted, Which};
use crate::ca::record::Standing;
use crate::ca::{Issued, export};
use crate::clock::{self, rfc3339, unix_seconds};
use crate::constituency::MacAddress;
use crate::state;

/// The CA's folder in the state directory.
const FOLDER: &str = "ca";

/// A CA of one's own for phones without a usable factory certificate.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the CA, and say how to trust it.
    Init {
        #[command(flatten)]
        place: Place,
        /// What it is called.
        #[arg(long, value_name = "NAME", default_value = "provost device CA", value_parser = name)]
        name: String,
        /// For how long it counts.
        #[arg(long, value_name = "N", default_value_t = 7300, value_parser = days())]
        days: u32,
    },
    /// Issue a certificate for a phone.
    Issue(Issue),
    /// List the certificates that were issued, and which of them were revoked.
    List {
        #[command(flatten)]
        place: Place,
        /// As JSON, one object per line.
        #[arg(long)]
        json: bool,
    },
    /// Revoke the certificates of a phone, or one certificate.
    Revoke {
        #[command(flatten)]
        place: Place,
        /// The phone, or the certificate's serial number.
        #[arg(value_name = "MAC|SERIAL", value_parser = which)]
        which: Which,
    },
}

/// Where the CA lies.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    #[command(flatten)]
    config: ConfigArg,
    /// The CA's folder, which may lie on a medium of its own [default: ca in the state directory].
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Issue {
    #[command(flatten)]
    place: Place,
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// Where to write certificate and key; with der, the key goes into a file beside it that ends in .key.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The form.
    #[arg(long, value_enum, default_value_t = Form::Pem)]
    format: Form,
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
enum Form {
    /// One file of text: the certificate, then its key.
    Pem,
    /// Two files of bytes, the certificate and its key (PKCS#8).
    Der,
    /// One encrypted file.
    Pkcs12,
}

fn days() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=36_500)
}

/// X.520: a common name has up to 64 characters.
fn name(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().count() > 64 || text.chars().any(char::is_control) {
        return Err("a name has 1 to 64 characters".to_owned());
    }
    Ok(text.to_owned())
}

fn which(text: &str) -> Result<Which, String> {
    let mac = text.parse().map(Which::Phone);
    mac.or_else(|_| text.parse().map(Which::Serial))
        .map_err(|error: crate::ca::record::InvalidSerial| error.to_string())
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let (Command::Init { place, .. }
    | Command::Issue(Issue { place, .. })
    | Command::List { place, .. }
    | Command::Revoke { place, .. }) = command;
    let folder = place.folder()?;
    Ok(code(match command {
        Command::Init { name, days, .. } => init(&folder, name, lifetime(*days)),
        Command::Issue(issue) => issue.run(&folder),
        Command::List { json, .. } => list(&folder, *json),
        Command::Revoke { which, .. } => revoke(&folder, which),
    }))
}

impl Place {
    fn folder(&self) -> anyhow::Result<PathBuf> {
        match &self.dir {
            Some(folder) => Ok(folder.clone()),
            None => Ok(self.config.find()?.state.join(FOLDER)),
        }
    }
}

fn lifetime(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

fn init(folder: &Path, name: &str, lifetime: Duration) -> anyhow::Result<()> {
    let now = clock::now();
    DeviceCa::init(folder, name, lifetime, now)?;
    let ca = DeviceCa::open(folder, now)?;
    let bundle = json!(std::path::absolute(ca.bundle())?);
    say(&format_args!("made the CA {name:?}, which counts until {}", rfc3339(ca.not_after())));
    say(&format_args!("to trust it, add to provost.json:        \"trust\": {{ \"own\": [{bundle}] }}"));
    say(&"and to a constituency's constituency.json: \"trust\": [\"polycom\", \"own\"]");
    say(&"(without \"polycom\", phones with a factory certificate are kept out)");
    Ok(())
}

impl Issue {
    fn run(&self, folder: &Path) -> anyhow::Result<()> {
        let files = match self.format {
            Form::Der => vec![self.out.clone(), self.out.with_extension("key")],
            Form::Pem | Form::Pkcs12 => vec![self.out.clone()],
        };
        ensure!(files.len() == 1 || files[0] != files[1], "--out must not end in .key, as the key's own file does");
        for file in &files {
            ensure!(!file.exists(), "{} is there already; it may hold a key that is in use", file.display());
        }
        if self.format != Form::Pkcs12 && self.password_file.is_some() {
            bail!("--password-file is for pkcs12: other forms are not encrypted");
        }
        let (password, is_made) = self.password()?;
        let now = clock::now();
        let mut ca = DeviceCa::open(folder, now)?;
        let seconds = unix_seconds(now);
        let earlier: Vec<Standing> =
            ca.record().standings().iter().filter(|it| it.mac == self.mac && it.counts(seconds)).cloned().collect();
        let wanted =
            Wanted { mac: self.mac, organization: self.organization.as_deref(), lifetime: self.days.map(lifetime) };
        let (issued, serial) = ca.issue(&wanted, now)?;
        let contents = self.contents(&issued, &ca, &serial, &password)?;
        for (file, content) in files.iter().zip(contents) {
            state::write_private(file, &content).with_context(|| {
                format!(
                    "the certificate {serial} was issued, but {} cannot be written; its key is lost",
                    file.display()
                )
            })?;
        }
        let end = ca.record().standings().last().map_or(0, |standing| standing.not_after);
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        say(&format_args!(
            "{}: certificate {serial}, valid until {}, in {}",
            self.mac,
            rfc3339(end),
            files.join(" and ")
        ));
        if is_made {
            say(&format_args!("password: {password}"));
        }
        for standing in earlier {
            let end = rfc3339(standing.not_after);
            say(&format_args!(
                "note: {} has another one that counts, {}, until {end}; provost ca revoke {} ends it",
                self.mac, standing.serial, standing.serial
            ));
        }
        Ok(())
    }

    /// The password of an encrypted form, and whether it was made here.
    fn password(&self) -> anyhow::Result<(String, bool)> {
        let Some(file) = &self.password_file else { return Ok((random_password()?, self.format == Form::Pkcs12)) };
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let password = text.lines().next().unwrap_or_default().to_owned();
        ensure!(!password.is_empty(), "{} holds no password in its first line", file.display());
        Ok((password, false))
    }

    fn contents(
        &self,
        issued: &Issued,
        ca: &DeviceCa,
        serial: &crate::ca::record::Serial,
        password: &str,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        Ok(match self.format {
            Form::Pem => vec![export::to_pem(issued).into_bytes()],
            Form::Der => vec![issued.certificate.to_vec(), issued.key.secret_der().to_vec()],
            Form::Pkcs12 => {
                let name = self.mac.to_upper_hex();
                vec![export::to_pkcs12(issued, ca.certificate(), &name, serial, password)?]
            }
        })
    }
}

/// 128 bits in hex.
fn random_password() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok().context("the system gives no random numbers")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn list(folder: &Path, as_json: bool) -> anyhow::Result<()> {
    let now = clock::now();
    let ca = DeviceCa::open(folder, now)?;
    let now = unix_seconds(now);
    for standing in ca.record().standings() {
        if as_json {
            say(&json!({
                "mac": standing.mac, "serial": standing.serial, "issued": rfc3339(standing.issued),
                "not_after": rfc3339(standing.not_after), "sha256": standing.sha256,
                "revoked": standing.revoked.map(rfc3339), "counts": standing.counts(now),
            }));
        } else {
            let state = match standing.revoked {
                Some(at) => format!("revoked at {}", rfc3339(at)),
                None if !standing.counts(now) => format!("expired at {}", rfc3339(standing.not_after)),
                None => format!("valid until {}", rfc3339(standing.not_after)),
            };
            say(&format_args!("{}  {}  {state}", standing.mac, standing.serial));
        }
    }
    Ok(())
}

fn revoke(folder: &Path, which: &Which) -> anyhow::Result<()> {
    let now = clock::now();
    let mut ca = DeviceCa::open(folder, now)?;
    let revoked = ca.revoke(which, now)?;
    for serial in &revoked {
        say(&format_args!("{serial} is revoked"));
    }
    if revoked.is_empty() {
        say(&format_args!("{which}: everything is revoked already"));
    }
    let bundle = ca.bundle();
    let bundle = bundle.display();
    say(&format_args!(
        "the list is in {bundle}: a server that trusts this file refuses them within a second, others when they have a copy"
    ));
    Ok(())
}
