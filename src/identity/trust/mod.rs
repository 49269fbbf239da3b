//! Trust in device certificates: Polycom's factory PKI, the operator's own bundles, and verification.
//!
//! A valid chain alone authorizes no access: every owner of a phone has one. It proves a MAC address, and the
//! constituency's list decides what that address may access.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::constituency::POLYCOM;

pub mod bundle;
mod client_verifier;
mod family;
pub mod identity;
mod polycom;
mod refusal;
mod revocation;
#[cfg(test)]
mod tests;
mod verifier;

pub use bundle::{Bundle, BundleError};
pub use client_verifier::{RequireDevice, Verdict, with_verdict};
pub use family::Family;
pub use identity::NoIdentity;
pub use refusal::{ChainRefusal, ClaimedIdentity, RefusedCertificate};
pub use revocation::RevocationList;
pub use verifier::{DeviceVerifier, VerifiedDevice};

/// The bundles of a configuration, by name. A bundle that cannot be loaded has an error.
pub type Bundles = BTreeMap<String, Result<Arc<Bundle>, Arc<BundleError>>>;

/// A bundle in `provost.json`: a list of files, or an object with files and the family of the devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleFiles {
    /// The files with CA certificates and CRLs.
    pub files: Vec<PathBuf>,
    /// The family of the devices.
    pub family: Family,
}

impl BundleFiles {
    /// Resolves the files relative to `base`.
    #[must_use]
    pub fn relative_to(self, base: &Path) -> Self {
        Self { files: self.files.into_iter().map(|file| base.join(file)).collect(), ..self }
    }
}

/// The longer form of [`BundleFiles`], as it is typed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BundleFile {
    /// Files of CA certificates and CRLs, PEM or DER.
    files: Vec<PathBuf>,
    /// The vendor, which decides where a certificate carries the MAC address. Default: `polycom`.
    #[serde(default)]
    family: Family,
}

/// A trust bundle: a list of files, or an object.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub enum BundleSchema {
    /// Files of CA certificates and CRLs, PEM or DER.
    Files(Vec<PathBuf>),
    /// Files with the vendor of the devices.
    OfFamily(BundleFile),
}

impl<'de> Deserialize<'de> for BundleFiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = BundleFiles;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of files, or an object of \"files\" and \"family\"")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, files: A) -> Result<BundleFiles, A::Error> {
                let files = Vec::deserialize(SeqAccessDeserializer::new(files))?;
                Ok(BundleFiles { files, family: Family::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BundleFiles, A::Error> {
                let BundleFile { files, family } = BundleFile::deserialize(MapAccessDeserializer::new(map))?;
                Ok(BundleFiles { files, family })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Loads all bundles in `files` and the built-in one of Polycom.
#[must_use]
pub fn load_all(files: &BTreeMap<String, BundleFiles>) -> Bundles {
    let load = |name: &str, named: &BundleFiles| Ok(Bundle::load(name, &named.files)?.of_family(named.family));
    let mut bundles: Bundles =
        files.iter().map(|(name, named)| (name.clone(), load(name, named).map(Arc::new).map_err(Arc::new))).collect();
    bundles.insert(POLYCOM.to_owned(), polycom::bundle().map(Arc::new).map_err(Arc::new));
    bundles
}
