//! The root that the server's certificate leads to. A chain mostly stops short of it.

use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::app::LOCAL_SERVER_CA;
use crate::ca::KeyKind;
use crate::certificate::CertificateFiles;
use crate::config::{CertificateSource, Config};
use crate::files::read_regular;
use crate::renew::{self, AcmeSettings, Directory};

/// ISRG Root X1, where Let's Encrypt's RSA chains end; until 2035.
const ISRG_ROOT_X1: &str = include_str!("isrg_root_x1.pem");

/// The root, PEM: that of the file `named`, else the one that the certificate in use leads to.
pub(super) fn find(config: &Config, named: Option<&Path>) -> anyhow::Result<String> {
    if let Some(file) = named {
        return only(file).map(|root| pem(&root));
    }
    let root = match &config.certificate {
        CertificateSource::LocalCa(_) => {
            let file = config.state.join(LOCAL_SERVER_CA).join("ca.pem");
            only(&file).context("the server makes its CA when it is started for the first time (provost serve)")?
        }
        CertificateSource::Files(pairs) => above(&of_files(pairs)?)?,
        CertificateSource::Acme(settings) => of_acme(config, settings)?,
    };
    Ok(pem(&root))
}

/// The only certificate in `file`.
fn only(file: &Path) -> anyhow::Result<CertificateDer<'static>> {
    let mut all = certificates(file)?;
    match (all.pop(), all.is_empty()) {
        (Some(root), true) if X509Certificate::from_der(&root).is_ok() => Ok(root),
        _ => bail!("{}: is to hold one CA certificate, PEM, and nothing else", file.display()),
    }
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let bytes = read_regular(file).with_context(|| file.display().to_string())?;
    let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    all.with_context(|| format!("{}: is damaged PEM", file.display()))
}

/// The chain that phones are shown: RSA, where there is one.
fn of_files(pairs: &[CertificateFiles]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chains = pairs.iter().map(|pair| certificates(&pair.chain)).collect::<anyhow::Result<Vec<_>>>()?;
    let rsa = chains.iter().find(|chain| chain.first().is_some_and(is_rsa));
    Ok(rsa.or(chains.first()).cloned().unwrap_or_default())
}

fn is_rsa(certificate: &CertificateDer<'_>) -> bool {
    let parsed = X509Certificate::from_der(certificate);
    parsed.is_ok_and(|(_, parsed)| parsed.public_key().parsed().is_ok_and(|key| key.key_size() >= 1024))
}

/// Before the first certificate is there, Let's Encrypt's root is known all the same.
fn of_acme(config: &Config, settings: &AcmeSettings) -> anyhow::Result<CertificateDer<'static>> {
    let kinds = [KeyKind::Rsa2048, KeyKind::EcdsaP256];
    match kinds.into_iter().find_map(|kind| renew::stored_chain(&config.state, kind)) {
        Some(chain) => above(&chain),
        None if settings.directory == Directory::default() && settings.preferred_chain.is_none() => Ok(isrg_root_x1()),
        None => bail!(
            "there is no certificate in {} yet, which would show the root; name it with --ca, or come back when there is one",
            config.state.display()
        ),
    }
}

#[expect(clippy::expect_used, reason = "it is built in, and a test reads it")]
fn isrg_root_x1() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(ISRG_ROOT_X1.as_bytes()).expect("a certificate")
}

/// The root above the last certificate of `chain`: that one itself, Let's Encrypt's, or one of this machine's.
fn above(chain: &[CertificateDer<'static>]) -> anyhow::Result<CertificateDer<'static>> {
    let last = chain.last().context("the chain holds no certificate")?;
    let (_, parsed) = X509Certificate::from_der(last).context("the chain's last certificate is damaged")?;
    let candidates = [last.clone(), isrg_root_x1()].into_iter().chain(rustls_native_certs::load_native_certs().certs);
    candidates.into_iter().find(|candidate| is_issued_by(&parsed, candidate)).with_context(|| {
        format!(
            "the root \"{}\" of the server's certificate is not among this machine's; name it with --ca",
            parsed.issuer()
        )
    })
}

/// Whether `root` is a root, and has issued `certificate`.
fn is_issued_by(certificate: &X509Certificate<'_>, root: &CertificateDer<'_>) -> bool {
    let Ok((_, root)) = X509Certificate::from_der(root) else { return false };
    root.subject().as_raw() == certificate.issuer().as_raw()
        && root.issuer().as_raw() == root.subject().as_raw()
        && certificate.verify_signature(Some(root.public_key())).is_ok()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
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
    fn let_s_encrypt_s_root_is_the_one_that_it_publishes() {
        let root = isrg_root_x1();
        let (_, parsed) = X509Certificate::from_der(&root).unwrap();
        assert_eq!(parsed.subject().to_string(), "C=US, O=Internet Security Research Group, CN=ISRG Root X1");
        assert!(is_issued_by(&parsed, &root) && is_rsa(&root));
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root);
        let published = "96bcec06264976f37460779acf28c5a7cfe8a3c0aae11a8ffcee05c0bddf08c6";
        assert_eq!(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>(), published);
        assert_eq!(pem(&root).trim(), ISRG_ROOT_X1.trim(), "as it was read");
    }
}
