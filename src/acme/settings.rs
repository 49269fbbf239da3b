//! `"certificate": {"acme": …}` in `provost.json`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::ca::KeyKind;
use crate::dns::DnsMethod;

/// How provost obtains and renews certificates.
///
/// ```
/// let text = r#"{ "terms_of_service_agreed": true,
///                 "dns": { "primary": "ns1.example.com", "tsig_key_file": "provost.key" } }"#;
/// let settings: provost::acme::AcmeSettings = serde_json::from_str(text)?;
/// assert_eq!(settings.directory.url(), "https://acme-v02.api.letsencrypt.org/directory");
/// assert_eq!(settings.keys.len(), 2);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcmeSettings {
    /// The CA: `letsencrypt`, `letsencrypt-staging`, or the URL of another CA's ACME directory. Default: `letsencrypt`.
    #[serde(default)]
    pub directory: Directory,
    /// Addresses that the CA may write to, such as `mailto:hostmaster@example.com`.
    #[serde(default)]
    pub contact: Vec<Contact>,
    /// `true`: you agree to the CA's terms of service. Without that, provost obtains nothing.
    #[serde(deserialize_with = "agreed")]
    pub terms_of_service_agreed: bool,
    /// Roots for the HTTPS connection to the CA, PEM. Default: those of browsers.
    pub directory_root: Option<PathBuf>,
    /// The customer account to which the CA shall bind the ACME account. Default: none.
    pub external_account: Option<ExternalAccount>,
    /// The kinds of keys, each with a certificate of its own. Phones need `rsa-2048`.
    #[serde(default = "default_keys", deserialize_with = "keys")]
    pub keys: Vec<KeyKind>,
    /// The certificate profile. Default: `classic`, if the CA offers it.
    pub profile: Option<String>,
    /// The common name of the issuer at which the chain shall end. Default: the CA's default chain.
    pub preferred_chain: Option<String>,
    /// Further CAs, asked in this order when renewal has failed until a sixth of the lifetime is left. Default: none.
    #[serde(default)]
    pub fallback_directories: Vec<FallbackDirectory>,
    /// Where the challenge records are published.
    pub dns: DnsMethod,
}

/// A further CA.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FallbackDirectory {
    /// The URL of the CA's ACME directory.
    pub directory: Directory,
    /// Roots for the HTTPS connection to this CA, PEM. Default: those of browsers.
    pub directory_root: Option<PathBuf>,
    /// The customer account at this CA. Default: none.
    pub external_account: Option<ExternalAccount>,
    /// Addresses that this CA may write to. Default: those of the first CA.
    pub contact: Option<Vec<Contact>>,
    /// The certificate profile at this CA. Default: `classic`, if the CA offers it.
    pub profile: Option<String>,
}

/// External account binding (RFC 8555 §7.3.4): ties the ACME account to a customer account of the CA.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    /// The key identifier that the CA gave you.
    pub key_id: String,
    /// A file with the key in base64url, as the CA shows it.
    pub hmac_key_file: PathBuf,
}

/// A URL by which the CA can reach an operator (RFC 8555 §7.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct Contact(String);

impl TryFrom<String> for Contact {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(':') {
            Some((scheme, whom)) if !scheme.is_empty() && !whom.is_empty() => Ok(Self(text)),
            None if !text.is_empty() => Err(format!("{text:?} is not a URL; write \"mailto:{text}\"")),
            _ => Err(format!("{text:?} is not a URL; write for example \"mailto:hostmaster@example.com\"")),
        }
    }
}

/// The URL of a CA's ACME directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub struct Directory(String);

impl Directory {
    /// Its URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self(instant_acme::LetsEncrypt::Production.url().to_owned())
    }
}

impl TryFrom<String> for Directory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "letsencrypt" => Ok(Self::default()),
            "letsencrypt-staging" => Ok(Self(instant_acme::LetsEncrypt::Staging.url().to_owned())),
            url if url.starts_with("https://") && url.parse::<http::Uri>().is_ok() => Ok(Self(text)),
            other => {
                Err(format!("{other:?} is neither \"letsencrypt\" nor \"letsencrypt-staging\" nor an https:// URL"))
            }
        }
    }
}

impl AcmeSettings {
    /// Resolves relative paths against `base`.
    #[must_use]
    pub fn relative_to(mut self, base: &Path) -> Self {
        let resolve = |path: &mut PathBuf| *path = base.join(&*path);
        self.directory_root.iter_mut().for_each(resolve);
        self.external_account.iter_mut().for_each(|account| resolve(&mut account.hmac_key_file));
        self.dns.resolve_paths(base);
        for fallback in &mut self.fallback_directories {
            fallback.directory_root.iter_mut().for_each(resolve);
            fallback.external_account.iter_mut().for_each(|account| resolve(&mut account.hmac_key_file));
        }
        self
    }

    /// The files that the settings name.
    pub fn files_named(&self) -> impl Iterator<Item = &Path> {
        let accounts = self.external_account.iter().map(|account| &account.hmac_key_file);
        let fallbacks = self.fallback_directories.iter().flat_map(|fallback| {
            let account = fallback.external_account.iter().map(|account| &account.hmac_key_file);
            fallback.directory_root.iter().chain(account)
        });
        let own = self.directory_root.iter().chain(accounts).map(PathBuf::as_path).chain(self.dns.key_file());
        own.chain(fallbacks.map(PathBuf::as_path))
    }

    /// The first CA and the fallbacks, in this order.
    #[must_use]
    pub fn directories(&self) -> Vec<FallbackDirectory> {
        let first = FallbackDirectory {
            directory: self.directory.clone(),
            directory_root: self.directory_root.clone(),
            external_account: self.external_account.clone(),
            contact: Some(self.contact.clone()),
            profile: self.profile.clone(),
        };
        let fallbacks = self.fallback_directories.iter().cloned().map(|mut fallback| {
            fallback.contact.get_or_insert_with(|| self.contact.clone());
            fallback
        });
        std::iter::once(first).chain(fallbacks).collect()
    }
}

fn default_keys() -> Vec<KeyKind> {
    vec![KeyKind::Rsa2048, KeyKind::EcdsaP256]
}

fn agreed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    if bool::deserialize(deserializer)? {
        Ok(true)
    } else {
        Err(D::Error::custom("must be true: the CA issues only to those who agree to its terms of service"))
    }
}

fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<KeyKind>, D::Error> {
    let kinds = Vec::<KeyKind>::deserialize(deserializer)?;
    let twice = kinds.iter().enumerate().any(|(index, kind)| kinds[..index].contains(kind));
    if kinds.is_empty() || twice {
        return Err(D::Error::custom("names \"rsa-2048\", \"ecdsa-p256\" or both, each once"));
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AcmeSettings, String> {
        crate::settings::read(Path::new("p.json"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_documented_key_is_accepted() {
        let settings = parse(
            r#"{ "directory": "letsencrypt", "contact": ["mailto:hostmaster@example.com"], "terms_of_service_agreed": true,
                 "directory_root": "private-ca.pem", "external_account": { "key_id": "kid-1", "hmac_key_file": "eab.key" },
                 "keys": ["rsa-2048", "ecdsa-p256"], "profile": "classic", "preferred_chain": "ISRG Root X1",
                 "fallback_directories": [ { "directory": "https://ca.example/dir" } ],
                 "dns": { "primary": "ns1.example.com:53", "tsig_key_file": "provost.key" } }"#,
        )
        .unwrap()
        .relative_to(Path::new("/etc/provost"));
        assert_eq!(settings.external_account.as_ref().unwrap().hmac_key_file, Path::new("/etc/provost/eab.key"));
        let directories = settings.directories();
        assert_eq!(directories[1].contact.as_ref().unwrap(), &settings.contact);
        assert_eq!((directories.len(), directories[1].directory.url()), (2, "https://ca.example/dir"));
    }

    #[test]
    fn invalid_settings_are_rejected_with_a_reason() {
        let error = |inner: &str| {
            parse(&format!("{{{inner}\"dns\": {{ \"primary\": \"ns1.example.com\", \"tsig_key_file\": \"k\" }}}}"))
                .unwrap_err()
        };
        assert!(error("").contains("the key \"terms_of_service_agreed\" is missing"));
        assert!(error(r#""terms_of_service_agreed": false, "#).contains("must be true"));
        let agreed = r#""terms_of_service_agreed": true, "#;
        assert!(error(&format!("{agreed}\"keys\": [], ")).contains("each once"));
        assert!(error(&format!("{agreed}\"keys\": [\"rsa-2048\", \"rsa-2048\"], ")).contains("each once"));
        assert!(error(&format!("{agreed}\"directory\": \"http://ca/\", ")).contains("nor an https:// URL"));
        let bare = error(&format!("{agreed}\"contact\": [\"hostmaster@example.com\"], "));
        assert!(bare.contains("write \"mailto:hostmaster@example.com\""), "{bare}");
        for empty in ["", ":", "mailto:", ":hostmaster@example.com"] {
            let error = error(&format!("{agreed}\"contact\": [\"{empty}\"], "));
            assert!(error.contains("write for example \"mailto:hostmaster@example.com\""), "{error}");
        }
        assert!(error(&format!("{agreed}\"contacts\": [], ")).contains("did you mean \"contact\"?"));
    }
}
