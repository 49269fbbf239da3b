//! The constituencies that need a certificate for their exact names, and these names. Pure.

use std::collections::BTreeMap;

use crate::constituency::{CertificateNames, Constituency, ConstituencyName, Registry};

/// The wanted exact names by constituency: its own name first, then its aliases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExactNames(BTreeMap<ConstituencyName, Vec<String>>);

impl ExactNames {
    /// The exact names that the constituencies of `registry` need, one label below `domain`.
    #[must_use]
    pub fn of(registry: &Registry, domain: &str) -> Self {
        let needs_exact = |constituency: &&std::sync::Arc<Constituency>| {
            constituency.policy.tls.certificate_names == CertificateNames::Exact
        };
        let names = |constituency: &Constituency| {
            // Only aliases that are in effect; phones do not use the others.
            let aliases = constituency.policy.aliases.iter().filter(|alias| {
                **alias != constituency.name
                    && registry.find(alias.as_str()).is_some_and(|found| found.name == constituency.name)
            });
            std::iter::once(&constituency.name).chain(aliases).map(|label| format!("{label}.{domain}")).collect()
        };
        Self(
            registry
                .served()
                .filter(needs_exact)
                .map(|constituency| (constituency.name.clone(), names(constituency)))
                .collect(),
        )
    }

    /// Each constituency with its names.
    pub fn iter(&self) -> impl Iterator<Item = (&ConstituencyName, &[String])> {
        self.0.iter().map(|(constituency, names)| (constituency, names.as_slice()))
    }

    /// The exact names that `constituency` needs, if any.
    #[must_use]
    pub fn get(&self, constituency: &ConstituencyName) -> Option<&[String]> {
        self.0.get(constituency).map(Vec::as_slice)
    }
}

impl FromIterator<(ConstituencyName, Vec<String>)> for ExactNames {
    fn from_iter<I: IntoIterator<Item = (ConstituencyName, Vec<String>)>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}
