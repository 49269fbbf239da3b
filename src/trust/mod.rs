//! Whose certificates count: Polycom's factory PKI as facts, an operator's own bundles, and the judgement of a
//! device certificate.
//!
//! The chain authorises nobody by itself: whoever owns a phone owns a valid one. It proves a MAC address, and the
//! constituency's list says what that address may do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::constituency::POLYCOM;

pub mod bundle;
mod claim;
mod client_verifier;
pub mod identity;
mod polycom;
mod refusal;
mod revocation;
#[cfg(test)]
mod tests;
mod verifier;

pub use bundle::{Bundle, BundleError};
pub use claim::Claim;
pub use client_verifier::{Finding, RequireDevice, Verdict, with_finding};
pub use identity::NoIdentity;
pub use refusal::ChainRefusal;
pub use revocation::RevocationList;
pub use verifier::{DeviceVerifier, VerifiedDevice};

/// The bundles of a configuration, by name. A bundle that does not load is there with its error.
pub type Bundles = BTreeMap<String, Result<Arc<Bundle>, Arc<BundleError>>>;

/// Loads every bundle of `files`, and Polycom's, which is built in.
#[must_use]
pub fn load_all(files: &BTreeMap<String, Vec<PathBuf>>) -> Bundles {
    let mut bundles: Bundles = files
        .iter()
        .map(|(name, files)| (name.clone(), Bundle::load(name, files).map(Arc::new).map_err(Arc::new)))
        .collect();
    bundles.insert(POLYCOM.to_owned(), polycom::bundle().map(Arc::new).map_err(Arc::new));
    bundles
}
