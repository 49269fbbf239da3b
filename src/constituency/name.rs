//! The name of a constituency, which is both its folder's name and its DNS label under the site's domain.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One lower-case DNS label (RFC 1123 §2.1): 1 to 63 letters, digits and inner hyphens.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConstituencyName(Arc<str>);

/// Why a text is not a valid constituency name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Empty, or longer than a DNS label may be.
    #[error("invalid constituency name {0:?}: use 1 to 63 characters")]
    Length(String),
    /// DNS ignores case. Only lower case is allowed, so that each name has exactly one folder.
    #[error("invalid constituency name {0:?}: use lower-case letters")]
    UpperCase(String),
    /// A character that is not allowed in a DNS label, or a hyphen at either end.
    #[error("invalid constituency name {0:?}: use only a-z, 0-9 and hyphens, without a hyphen at either end")]
    Character(String),
}

impl ConstituencyName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConstituencyName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(80).collect::<String>();
        let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > 63 {
            Err(InvalidName::Length(shown()))
        } else if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Err(InvalidName::UpperCase(shown()))
        } else if !text.bytes().all(label) || text.starts_with('-') || text.ends_with('-') {
            Err(InvalidName::Character(shown()))
        } else {
            Ok(Self(text.into()))
        }
    }
}

impl std::borrow::Borrow<str> for ConstituencyName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ConstituencyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConstituencyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl Serialize for ConstituencyName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ConstituencyName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for ConstituencyName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ConstituencyName".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "The name of a folder in constituencies: one lower-case DNS label.",
            "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_dns_labels_are_names() {
        let longest = "a".repeat(63);
        for good in ["ucs-5-9", "ote", "a", "0", "x--y", &longest] {
            assert_eq!(good.parse::<ConstituencyName>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", "a-", "Ote", "a.b", "a_b", "ä", ".git", "a b", &too_long] {
            assert!(bad.parse::<ConstituencyName>().is_err(), "{bad}");
        }
    }
}
