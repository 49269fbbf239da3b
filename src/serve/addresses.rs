//! Listen addresses in a configuration: one, or a list.

use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Deserializer;
use serde::de::{SeqAccess, Visitor};

/// One address, or a list.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) enum OneOrSeveral {
    One(String),
    Several(Vec<String>),
}

/// Deserializes one address, or a list of them.
pub(crate) fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    struct AddressVisitor;
    impl<'de> Visitor<'de> for AddressVisitor {
        type Value = Vec<SocketAddr>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address with a port, or a list of them")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![address(text)?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut addresses = Vec::new();
            while let Some(text) = seq.next_element::<String>()? {
                addresses.push(address(&text)?);
            }
            Ok(addresses)
        }
    }
    deserializer.deserialize_any(AddressVisitor)
}

fn address<E: serde::de::Error>(text: &str) -> Result<SocketAddr, E> {
    text.parse().map_err(|_| {
        E::custom(format_args!(
            "invalid address {text:?}: write an address with a port, such as \"0.0.0.0:443\" or \"[::]:443\""
        ))
    })
}
