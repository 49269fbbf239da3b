//! A pair of files, and its condition.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{CertificateFacts, Condition, ServerCertificate};

/// A certificate chain and its private key, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The server's certificate and those between it and the root, in this order.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A pair of files, and what is known of it.
#[derive(Debug, Clone)]
pub struct FilePair {
    pub files: CertificateFiles,
    /// The last certificate that could be read.
    pub certificate: Option<ServerCertificate>,
    /// Why the files cannot be used as they are now.
    pub error: Option<String>,
    /// What the certificate should cover, if it covers no name that phones ask for.
    pub(super) uncovered: Option<String>,
}

impl FilePair {
    /// The condition at `now` of what it holds.
    #[must_use]
    pub fn condition(&self, now: i64) -> Condition {
        let certificate = self.certificate.as_ref();
        let facts = CertificateFacts {
            validity: certificate.map(ServerCertificate::validity),
            intermediates: certificate.map(|it| it.intermediates.as_slice()).unwrap_or_default(),
            wrong_names: certificate.map(|it| it.names.as_slice()).zip(self.uncovered.as_deref()),
            files_error: self.error.as_deref(),
        };
        Condition::of(now, &facts, None)
    }
}
