//! Checks a certificate before it is used: chain and key parse, match each other, and match the order. Pure.

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::schedule::HOUR;
use crate::certificate::{PairError, ServerCertificate, Validity};

/// What stands for the issuer of a chain that cannot be read.
const UNREADABLE: &str = "(a chain that cannot be read)";

/// A chain with its key that can be presented.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) certificate: ServerCertificate,
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The issuer of each certificate of the chain, leaf first: its common name, or its whole name without one.
    pub(super) issuers: Vec<String>,
}

/// Why a certificate is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckError {
    #[error("the chain is damaged: {0}")]
    Chain(String),
    #[error("the key is damaged: {0}")]
    Key(String),
    #[error("{0}")]
    Pair(#[from] PairError),
    #[error("it is for {found}, not for {wanted}")]
    Names { wanted: String, found: String },
    #[error("it is not valid yet: only in {0} s by our clock")]
    Early(i64),
    #[error("of its lifetime of {lifetime} s only {left} s are left by our clock")]
    Late { lifetime: i64, left: i64 },
}

impl Checked {
    pub(super) fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    pub(super) fn validity(&self) -> Validity {
        self.certificate.validity()
    }

    /// Whether it was issued for `key`.
    pub(super) fn is_of(&self, key: &KeyPair) -> bool {
        let leaf = X509Certificate::from_der(self.leaf());
        leaf.is_ok_and(|(_, leaf)| leaf.public_key().raw == key.subject_public_key_info())
    }

    /// Whether it lists all of `names` literally.
    pub(super) fn is_for(&self, names: &[String]) -> bool {
        names.iter().all(|name| self.certificate.names.contains(name))
    }
}

/// Parses a chain and its key, PEM. Each certificate must have been issued by the next.
pub(super) fn check(chain: &str, key: &str) -> Result<Checked, CheckError> {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CheckError::Chain(format!("its PEM text is malformed ({error})")))?;
    if chain.is_empty() {
        return Err(CheckError::Chain("it holds no certificate in PEM".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| CheckError::Key(error.to_string()))?;
    let issuers = issuers(&chain)?;
    Ok(Checked { certificate: ServerCertificate::new(chain.clone(), &key)?, chain, issuers })
}

/// Checks that a new certificate is as ordered.
pub(super) fn check_new(checked: &Checked, names: &[String], now: i64) -> Result<(), CheckError> {
    if !checked.is_for(names) {
        return Err(CheckError::Names { wanted: names.join(", "), found: checked.certificate.names.join(", ") });
    }
    let validity = checked.validity();
    if validity.not_before > now + HOUR {
        return Err(CheckError::Early(validity.not_before - now));
    }
    // A certificate that is due at once would only use up rate limits.
    if validity.left(now) <= validity.lifetime() / 3 {
        return Err(CheckError::Late { lifetime: validity.lifetime(), left: validity.left(now) });
    }
    Ok(())
}

fn issuers(chain: &[CertificateDer<'static>]) -> Result<Vec<String>, CheckError> {
    let mut parsed = Vec::new();
    for (number, der) in (1..).zip(chain) {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|_| CheckError::Chain(format!("certificate {number} is not an X.509 certificate")))?;
        parsed.push(certificate);
    }
    if let Some(broken) = parsed.windows(2).position(|pair| pair[0].issuer().as_raw() != pair[1].subject().as_raw()) {
        return Err(CheckError::Chain(format!("certificate {} was not issued by the one after it", broken + 1)));
    }
    Ok(parsed.iter().map(|certificate| common_name(certificate)).collect())
}

/// The issuer's common name, or all of its name if it has none.
fn common_name(certificate: &X509Certificate<'_>) -> String {
    let common = certificate.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
    common.map_or_else(|| certificate.issuer().to_string(), str::to_owned)
}

/// The index of the first chain whose last certificate `preferred` issued; 0 without a preference. `Err` lists the last
/// issuers found instead.
pub(super) fn choose_chain(chains: &[String], preferred: Option<&str>) -> Result<usize, Vec<String>> {
    let Some(preferred) = preferred else { return Ok(0) };
    let tops: Vec<String> = chains.iter().map(|chain| top(chain).unwrap_or_else(|| UNREADABLE.to_owned())).collect();
    tops.iter().position(|top| top == preferred).ok_or(tops)
}

fn top(chain: &str) -> Option<String> {
    let last = CertificateDer::pem_slice_iter(chain.as_bytes()).last()?.ok()?;
    let (_, parsed) = X509Certificate::from_der(&last).ok()?;
    Some(common_name(&parsed))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::ca::KeyKind;
    use crate::clock;

    fn named(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// A chain from a CA called `name`, with the leaf's key.
    fn chain(name: &str, from: SystemTime, days: u64) -> (String, String) {
        let root_key = KeyPair::generate().unwrap();
        let root = named(name);
        let root_pem = root.clone().self_signed(&root_key).unwrap().pem();
        let key = KeyKind::EcdsaP256.generate().unwrap();
        let mut leaf = CertificateParams::new(vec!["*.a.example".to_owned(), "a.example".to_owned()]).unwrap();
        leaf.not_before = from.into();
        leaf.not_after = (from + Duration::from_hours(24 * days)).into();
        let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
        (leaf.pem() + &root_pem, key.serialize_pem())
    }

    fn names() -> Vec<String> {
        vec!["*.a.example".to_owned(), "a.example".to_owned()]
    }

    #[test]
    fn issued_certificate_that_differs_from_the_order_is_rejected() {
        let now = clock::now();
        let seconds = clock::unix_seconds(now);
        let (pem, key) = chain("R1", now, 90);
        let good = check(&pem, &key).unwrap();
        check_new(&good, &names(), seconds).unwrap();
        assert_eq!(good.issuers, ["R1", "R1"]);
        assert!(matches!(check_new(&good, &["b.example".to_owned()], seconds), Err(CheckError::Names { .. })));
        assert!(matches!(check_new(&good, &names(), seconds - 2 * HOUR), Err(CheckError::Early(_))));
        assert!(matches!(check_new(&good, &names(), seconds + 61 * 86_400), Err(CheckError::Late { .. })));
        let other_key = KeyKind::EcdsaP256.generate().unwrap().serialize_pem();
        assert!(matches!(check(&pem, &other_key), Err(CheckError::Pair(PairError::Mismatch))));
        assert!(matches!(check("", &key), Err(CheckError::Chain(_))));
        assert!(matches!(check(&pem, "no key"), Err(CheckError::Key(_))));
        let (stranger, _) = chain("R2", now, 90);
        let (leaf, _) = pem.split_at(pem.find("-----END CERTIFICATE-----").unwrap() + 26);
        let root = &stranger[stranger.rfind("-----BEGIN").unwrap()..];
        assert!(matches!(check(&format!("{leaf}{root}"), &key), Err(CheckError::Chain(_))));
    }

    #[test]
    fn garbage_in_place_of_a_chain_is_named() {
        let (good, key) = chain("*.phones.example.com", clock::now(), 90);
        let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        for (garbage, reason) in [
            (String::new(), "the chain is damaged: it holds no certificate in PEM"),
            ("<html>busy</html>".to_owned(), "the chain is damaged: it holds no certificate in PEM"),
            (pem("!!!"), "the chain is damaged: its PEM text is malformed ("),
            (pem("AAAA"), "the chain is damaged: certificate 1 is not an X.509 certificate"),
            (format!("{good}{}", pem("AAAA")), "the chain is damaged: certificate 3 is not an X.509 certificate"),
        ] {
            let error = check(&garbage, &key).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{garbage:?}: {error}");
        }
        assert_eq!(choose_chain(&[String::new()], Some("Root")), Err(vec![UNREADABLE.to_owned()]));
    }

    #[test]
    fn preferred_chain_is_chosen_by_its_topmost_issuer() {
        let chains = ["R1", "R2"].map(|name| chain(name, clock::now(), 90).0);
        assert_eq!(choose_chain(&chains, None), Ok(0));
        assert_eq!(choose_chain(&chains, Some("R2")), Ok(1));
        assert_eq!(choose_chain(&chains, Some("R3")), Err(vec!["R1".to_owned(), "R2".to_owned()]));
    }
}
