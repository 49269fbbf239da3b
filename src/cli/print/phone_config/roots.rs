//! The roots that phones need: a phone must trust the server's certificate, whichever chain the server presents. Most
//! chains do not include their root.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::acme::{self, AcmeSettings, Directory};
use crate::app::LOCAL_SERVER_CA;
use crate::certificate::CertificateFiles;
use crate::config::{CertificateSource, Config};
use crate::files::read_regular;

/// ISRG Root X1, the root of Let's Encrypt's chains; valid until 2035.
const ISRG_ROOT_X1: &str = include_str!("isrg_root_x1.pem");

/// Roots. The one of the chain that most phones get comes first.
pub(super) struct Roots {
    /// Each root once, in PEM.
    pub(super) pem: Vec<String>,
    /// The directories of CAs whose root is unknown until they have issued a certificate.
    pub(super) unknown: Vec<String>,
}

type RootCertificate = CertificateDer<'static>;

/// The roots of all chains that the server can present with `config`, and those in the files `named`.
pub(super) fn find(config: &Config, named: &[PathBuf]) -> anyhow::Result<Roots> {
    let named = named.iter().map(|file| only(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut unknown = Vec::new();
    let mut roots = match &config.certificate {
        CertificateSource::LocalCa(_) => match only(&config.state.join(LOCAL_SERVER_CA).join("ca.pem")) {
            Err(_) if !named.is_empty() => Vec::new(),
            root => {
                vec![root.context("no CA yet: the server makes it at its first start (provost serve)")?]
            }
        },
        CertificateSource::Files(pairs) => above_all(&of_files(pairs)?, &named)?,
        CertificateSource::Acme(settings) => of_acme(config, settings, &named, &mut unknown)?,
    };
    roots.extend(named);
    let mut pem: Vec<String> = Vec::new();
    for root in roots.iter().map(to_pem) {
        if !pem.contains(&root) {
            pem.push(root);
        }
    }
    Ok(Roots { pem, unknown })
}

/// The certificate in `file`, which must be the only one.
fn only(file: &Path) -> anyhow::Result<RootCertificate> {
    let mut all = certificates(file)?;
    match (all.pop(), all.is_empty()) {
        (Some(root), true) if X509Certificate::from_der(&root).is_ok() => Ok(root),
        _ => bail!("{} must hold exactly one CA certificate (PEM)", file.display()),
    }
}

fn certificates(file: &Path) -> anyhow::Result<Vec<RootCertificate>> {
    let bytes = read_regular(file).with_context(|| file.display().to_string())?;
    let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    all.with_context(|| format!("{}: damaged PEM", file.display()))
}

/// The chains of all pairs. Those with an RSA key come first, because every phone accepts them.
fn of_files(pairs: &[CertificateFiles]) -> anyhow::Result<Vec<Vec<RootCertificate>>> {
    let mut chains = pairs.iter().map(|pair| certificates(&pair.chain)).collect::<anyhow::Result<Vec<_>>>()?;
    chains.sort_by_key(|chain| !chain.first().is_some_and(is_rsa));
    Ok(chains)
}

fn is_rsa(certificate: &CertificateDer<'_>) -> bool {
    let parsed = X509Certificate::from_der(certificate);
    parsed.is_ok_and(|(_, parsed)| parsed.public_key().parsed().is_ok_and(|key| key.key_size() >= 1024))
}

/// The roots of the stored certificates, and of certificates that the CAs will issue, if known: Let's Encrypt's.
fn of_acme(
    config: &Config,
    settings: &AcmeSettings,
    named: &[RootCertificate],
    unknown: &mut Vec<String>,
) -> anyhow::Result<Vec<RootCertificate>> {
    let stored = acme::stored_chains(&config.state);
    let chains: Vec<Vec<RootCertificate>> = stored.iter().map(|(_, chain)| chain.clone()).collect();
    let mut roots = above_all(&chains, named)?;
    for (number, ca) in settings.directories().iter().enumerate() {
        let url = ca.directory.url();
        if ca.directory == Directory::default() && settings.preferred_chain.is_none() {
            roots.push(isrg_root_x1());
        } else if named.is_empty() && stored.iter().all(|(directory, _)| directory != url) {
            if number == 0 {
                bail!(
                    "no certificate in {} yet, so the root is unknown; name it with --ca, or run this again when there is \
                     one",
                    config.state.display()
                );
            }
            unknown.push(url.to_owned());
        }
    }
    Ok(roots)
}

#[expect(clippy::expect_used, reason = "it is built in, and a test reads it")]
fn isrg_root_x1() -> RootCertificate {
    CertificateDer::from_pem_slice(ISRG_ROOT_X1.as_bytes()).expect("a certificate")
}

/// The root of each chain: from the chain itself, from `named`, Let's Encrypt's, or one of this machine's.
fn above_all(chains: &[Vec<RootCertificate>], named: &[RootCertificate]) -> anyhow::Result<Vec<RootCertificate>> {
    let mut candidates: Vec<RootCertificate> = chains.iter().flatten().chain(named).cloned().collect();
    candidates.push(isrg_root_x1());
    candidates.extend(rustls_native_certs::load_native_certs().certs);
    chains.iter().map(|chain| above(chain, &candidates)).collect()
}

/// The root above the last certificate of `chain`.
fn above(chain: &[RootCertificate], candidates: &[RootCertificate]) -> anyhow::Result<RootCertificate> {
    let last = chain.last().context("no certificate in the chain")?;
    let (_, parsed) = X509Certificate::from_der(last).context("the chain's last certificate is damaged")?;
    candidates.iter().find(|candidate| is_issued_by(&parsed, candidate)).cloned().with_context(|| {
        format!(
            "the root \"{}\" of a server certificate is not in this machine's trust store; name it with --ca",
            parsed.issuer()
        )
    })
}

/// Whether `root` is a root that issued `certificate`.
fn is_issued_by(certificate: &X509Certificate<'_>, root: &CertificateDer<'_>) -> bool {
    let Ok((_, root)) = X509Certificate::from_der(root) else { return false };
    root.subject().as_raw() == certificate.issuer().as_raw()
        && root.issuer().as_raw() == root.subject().as_raw()
        && certificate.verify_signature(Some(root.public_key())).is_ok()
}

fn to_pem(certificate: &RootCertificate) -> String {
    let text = STANDARD.encode(certificate);
    let mut lines = vec!["-----BEGIN CERTIFICATE-----"];
    let mut rest = text.as_str();
    while let Some((line, after)) = rest.split_at_checked(64) {
        lines.push(line);
        rest = after;
    }
    lines.extend([rest].into_iter().filter(|rest| !rest.is_empty()));
    lines.push("-----END CERTIFICATE-----");
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_root_is_isrg_root_x1() {
        let root = isrg_root_x1();
        let (_, parsed) = X509Certificate::from_der(&root).unwrap();
        assert_eq!(parsed.subject().to_string(), "C=US, O=Internet Security Research Group, CN=ISRG Root X1");
        assert!(is_issued_by(&parsed, &root) && is_rsa(&root));
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root);
        let published = "96bcec06264976f37460779acf28c5a7cfe8a3c0aae11a8ffcee05c0bddf08c6";
        assert_eq!(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>(), published);
        assert_eq!(to_pem(&root).trim(), ISRG_ROOT_X1.trim(), "as it was read");
    }
}
