//! A CA's ACME directory and its metadata (RFC 8555 §7.1.1).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::http::AcmeHttp;
use crate::acme::failure::AcmeFailure;

/// The fields of a CA's directory that we use ourselves.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectoryMeta {
    pub(super) new_nonce: String,
    pub(super) new_account: String,
    #[serde(default)]
    meta: MetaFields,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MetaFields {
    terms_of_service: Option<String>,
    caa_identities: Vec<String>,
    external_account_required: bool,
    profiles: BTreeMap<String, Value>,
}

impl DirectoryMeta {
    pub(super) async fn fetch(http: &AcmeHttp, directory: &str) -> Result<Self, AcmeFailure> {
        let text = http.get(directory).await?;
        serde_json::from_slice(&text).map_err(|error| {
            let is_page = text.trim_ascii_start().starts_with(b"<");
            let found = if is_page { "a web page".to_owned() } else { error.to_string() };
            AcmeFailure::retry(format!(
                "{directory} is not an ACME directory ({found}); correct \"directory\" (Let's Encrypt: \
                 https://acme-v02.api.letsencrypt.org/directory), or see whether a proxy or a portal on the way answers in its \
                 place (`curl -v {directory}`)"
            ))
        })
    }

    /// The URL of the terms of service.
    #[must_use]
    pub fn terms_of_service(&self) -> Option<&str> {
        self.meta.terms_of_service.as_deref()
    }

    /// The names that stand for this CA in CAA records (RFC 8555 §9.7.6). Many CAs publish none.
    #[must_use]
    pub fn caa_identities(&self) -> &[String] {
        &self.meta.caa_identities
    }

    /// Whether an account needs an external account binding (RFC 8555 §7.3.4).
    pub(super) fn requires_external_account(&self) -> bool {
        self.meta.external_account_required
    }

    /// The names of the certificate profiles.
    #[must_use]
    pub fn profiles(&self) -> Vec<&str> {
        self.meta.profiles.keys().map(String::as_str).collect()
    }
}
