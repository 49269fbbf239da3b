//! `"certificate_names"`: the names in the server certificate that a constituency's phones get.

use schemars::JsonSchema;
use serde::Deserialize;

/// The names of the server certificate that phones are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateNames {
    /// The wildcard certificate, for all constituencies.
    #[default]
    Wildcard,
    /// A certificate for this constituency's name and aliases, for firmware that refuses wildcards. The names become public.
    Exact,
}
