//! The `phones` of a policy: `"any"`, or a map from MAC address to a note.
//!
//! Instead of a note, a phone may have an object of `note` and `certificate_sha256`. This is a *pin*: the certificate
//! is valid for that phone, whatever its issuer. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Fingerprint, MacAddress, NotAPhone};

/// The phones that a policy lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phones {
    /// Every phone with a valid device certificate.
    Any,
    /// These phones, each with the operator's note.
    Listed(BTreeMap<MacAddress, String>),
}

/// Pinned certificates: each is valid for one phone, whatever its issuer.
pub type Pins = BTreeMap<MacAddress, Fingerprint>;

/// `"phones"` as parsed from JSON.
#[derive(Debug)]
pub(super) struct PhonesInput {
    pub(super) phones: Phones,
    pub(super) pins: Pins,
}

impl Phones {
    /// The listed phones with their notes; `None` with `"any"`.
    pub(super) fn listed(&self) -> Option<&BTreeMap<MacAddress, String>> {
        match self {
            Self::Any => None,
            Self::Listed(listed) => Some(listed),
        }
    }
}

impl PhonesInput {
    /// Rejects `"any"` and pins with `"client_auth": "digest"`: each phone has its own password, which replaces the
    /// certificate.
    pub(super) fn check_with_passwords(&self) -> Result<(), String> {
        if self.phones == Phones::Any {
            return Err(
                "cannot be \"any\" with \"client_auth\": \"digest\", because each phone has its own password; list the phones".to_owned()
            );
        }
        let pinned = self.pins.keys().next();
        pinned.map_or(Ok(()), |mac| {
            Err(format!(
                "certificate_sha256 of {mac} has no effect with \"client_auth\": \"digest\"; remove one of the two"
            ))
        })
    }
}

/// A list of MAC addresses without duplicates.
#[derive(Debug)]
pub(super) struct UniqueAddresses(pub(super) BTreeSet<MacAddress>);

/// The value of a phone in the map.
#[derive(Debug)]
struct ListEntry {
    note: String,
    pin: Option<Fingerprint>,
}

/// A phone with more than a note.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EntryFile {
    /// A note for operators, such as where the phone stands.
    #[serde(default)]
    note: String,
    /// The SHA-256 of a certificate that is valid for this phone, with any issuer: 64 hex digits, with or without colons.
    /// For phones that have only a self-signed certificate. Default: none.
    #[schemars(with = "Option<String>")]
    certificate_sha256: Option<Fingerprint>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum PhonesSchema {
    Any(AnySchema),
    Listed(BTreeMap<String, EntrySchema>),
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum AnySchema {
    Any,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum EntrySchema {
    Note(String),
    Entry(EntryFile),
}

impl PhonesInput {
    /// Rejects a certificate that is pinned for two phones: a certificate names one phone.
    fn check_pins(&self) -> Result<(), String> {
        let mut holders = BTreeMap::new();
        for (mac, pin) in &self.pins {
            if let Some(other) = holders.insert(pin, mac) {
                return Err(format!(
                    "{other} and {mac} have the same certificate_sha256; a certificate names one phone"
                ));
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for PhonesInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = PhonesInput;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of MAC addresses with notes, or \"any\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                if text == "any" {
                    Ok(PhonesInput { phones: Phones::Any, pins: Pins::new() })
                } else {
                    Err(E::invalid_value(Unexpected::Str(text), &self))
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut notes, mut pins) = (BTreeMap::new(), Pins::new());
                while let Some(mac) = map.next_key::<MacAddress>()? {
                    check_address(mac, notes.contains_key(&mac)).map_err(A::Error::custom)?;
                    let ListEntry { note, pin } = map.next_value()?;
                    notes.insert(mac, note);
                    pins.extend(pin.map(|pin| (mac, pin)));
                }
                let input = PhonesInput { phones: Phones::Listed(notes), pins };
                input.check_pins().map_err(A::Error::custom)?;
                Ok(input)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for ListEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = ListEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a note, or an object of \"note\" and \"certificate_sha256\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(ListEntry { note: text.to_owned(), pin: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let EntryFile { note, certificate_sha256 } = EntryFile::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ListEntry { note, pin: certificate_sha256 })
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for UniqueAddresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = UniqueAddresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of MAC addresses")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut addresses = BTreeSet::new();
                while let Some(mac) = seq.next_element::<MacAddress>()? {
                    check_address(mac, addresses.contains(&mac)).map_err(A::Error::custom)?;
                    addresses.insert(mac);
                }
                Ok(UniqueAddresses(addresses))
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

fn check_address(mac: MacAddress, is_known: bool) -> Result<(), String> {
    if is_known {
        Err(format!("{mac} is listed twice (perhaps in two spellings); remove one entry"))
    } else if mac == MacAddress::ZERO {
        Err(NotAPhone::Fallback.to_string())
    } else {
        Ok(())
    }
}
