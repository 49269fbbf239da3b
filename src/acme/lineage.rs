//! Lineages: a certificate and its renewals.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ca::KeyKind;
use crate::constituency::ConstituencyName;

/// The prefix of lineages for exact names, in logs, commands and the folder of certificates.
const EXACT: &str = "exact/";

/// A certificate and its renewals. Wildcards sort before exact names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Lineage {
    /// For the domain and all names one label below it, with a key of this kind.
    Wildcard(KeyKind),
    /// For the exact names of this constituency. Its key is RSA: old firmware that needs exact names does not support
    /// ECDSA, all other firmware supports RSA too, and a second certificate would need a second order under the CA's
    /// rate limits.
    Exact(ConstituencyName),
}

impl Lineage {
    /// The kind of its key.
    #[must_use]
    pub fn key(&self) -> KeyKind {
        match self {
            Self::Wildcard(kind) => *kind,
            Self::Exact(_) => KeyKind::Rsa2048,
        }
    }

    /// The constituency whose exact names it is for.
    #[must_use]
    pub fn constituency(&self) -> Option<&ConstituencyName> {
        match self {
            Self::Wildcard(_) => None,
            Self::Exact(constituency) => Some(constituency),
        }
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wildcard(kind) => kind.fmt(f),
            Self::Exact(constituency) => write!(f, "{EXACT}{constituency}"),
        }
    }
}

impl FromStr for Lineage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(constituency) = text.strip_prefix(EXACT) {
            return constituency.parse().map(Self::Exact).map_err(|error| format!("{error}"));
        }
        let kinds = [KeyKind::Rsa2048, KeyKind::EcdsaP256];
        let kind = kinds.into_iter().find(|kind| kind.name() == text);
        kind.map(Self::Wildcard).ok_or_else(|| format!("{text:?} is neither rsa-2048 nor ecdsa-p256 nor {EXACT}NAME"))
    }
}

impl TryFrom<String> for Lineage {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Lineage> for String {
    fn from(lineage: Lineage) -> Self {
        lineage.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineage_round_trips_through_text_and_json() {
        let ote = Lineage::Exact("ote".parse().unwrap());
        let odd = Lineage::Exact("rsa-2048".parse().unwrap());
        let wildcards = [KeyKind::Rsa2048, KeyKind::EcdsaP256].map(Lineage::Wildcard);
        for lineage in wildcards.iter().chain([&ote, &odd]) {
            assert_eq!(lineage.to_string().parse().as_ref(), Ok(lineage));
            let json = serde_json::to_string(lineage).unwrap();
            assert_eq!(serde_json::from_str::<Lineage>(&json).unwrap(), *lineage);
            assert_ne!(*lineage == odd, wildcards.contains(lineage) || *lineage == ote);
        }
        assert!(wildcards.iter().all(|wildcard| *wildcard < ote));
        for wrong in ["exact/", "exact/../x", "rsa-4096", "ote"] {
            assert!(wrong.parse::<Lineage>().is_err(), "{wrong}");
        }
    }
}
