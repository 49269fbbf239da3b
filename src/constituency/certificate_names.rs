//! `"certificate_names"`: for which names the certificate is that a constituency's phones are shown.

use schemars::JsonSchema;
use serde::Deserialize;

/// For which names the server's certificate is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateNames {
    /// For all constituencies at once.
    #[default]
    Wildcard,
    /// For this constituency's own name and its aliases, as old firmware wants it, which refuses wildcards.
    Exact,
}
