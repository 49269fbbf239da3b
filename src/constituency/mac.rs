//! The MAC address (EUI-48) that names a phone.
//!
//! Pure: text in, value out. Other modules find the address in a certificate or a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A phone's EUI-48: the identity that its factory certificate proves.
///
/// Displayed as twelve lower-case hex digits, as phones write it in URLs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress([u8; 6]);

/// A text that is not a MAC address in any usual spelling.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid MAC address {0:?}: write 12 hex digits, for example 00005e00530c")]
pub struct InvalidMacAddress(String);

/// An address that no phone can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAPhone {
    /// All zeros.
    #[error("000000000000 is the name of the fallback files, and not the MAC address of a phone")]
    Fallback,
    /// A group address (multicast or broadcast).
    #[error("{0} is a multicast address (its first octet is odd), and not the MAC address of a phone")]
    Group(MacAddress),
}

impl MacAddress {
    /// `000000000000`: the name of Polycom's fallback files, never a phone.
    pub const ZERO: Self = Self([0; 6]);

    /// Parses exactly twelve hex digits of either case.
    ///
    /// Certificates and file names use this strict form. [`FromStr`] accepts the spellings that people use.
    #[must_use]
    pub fn from_hex(digits: &[u8]) -> Option<Self> {
        let digits: &[u8; 12] = digits.try_into().ok()?;
        let mut octets = [0; 6];
        for (octet, pair) in octets.iter_mut().zip(digits.chunks_exact(2)) {
            *octet = pair.iter().try_fold(0, |value: u8, digit| {
                Some(value << 4 | u8::try_from(char::from(*digit).to_digit(16)?).ok()?)
            })?;
        }
        Some(Self(octets))
    }

    /// Whether a phone can have this address.
    ///
    /// IEEE 802-2014 §8.2: the least significant bit of the first octet distinguishes a group address from an
    /// individual one.
    ///
    /// # Errors
    /// If it is all zeros, or a group address.
    pub fn check_phone(self) -> Result<(), NotAPhone> {
        match self {
            Self::ZERO => Err(NotAPhone::Fallback),
            Self([first, ..]) if first & 1 == 1 => Err(NotAPhone::Group(self)),
            _ => Ok(()),
        }
    }

    /// Whether the first three octets are zero, as in `000000000000` and in Yealink's `y000000000028.cfg`. Phones do
    /// not have such addresses, so a file whose name spells one is common to all phones.
    #[must_use]
    pub fn has_zero_prefix(self) -> bool {
        matches!(self.0, [0, 0, 0, ..])
    }

    /// The six octets, most significant first.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The address `steps` after this one, for consecutively numbered phones; wraps after `ffffffffffff`.
    #[must_use]
    pub fn plus(self, steps: u64) -> Self {
        let mut wide = [0; 8];
        wide[2..].copy_from_slice(&self.0);
        let sum = u64::from_be_bytes(wide).wrapping_add(steps).to_be_bytes();
        let mut octets = [0; 6];
        octets.copy_from_slice(&sum[2..]);
        Self(octets)
    }

    /// Twelve upper-case hex digits, as in the CN of a factory certificate.
    #[must_use]
    pub fn to_upper_hex(self) -> String {
        self.to_string().to_ascii_uppercase()
    }
}

impl FromStr for MacAddress {
    type Err = InvalidMacAddress;

    /// Parses `00005e00530c`, `00:00:5E:00:53:0C`, `00-00-5e-00-53-0c`, `0000.5e00.530c` and `0000-5e00-530c`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMacAddress(text.chars().take(64).collect());
        let grouped = |separator: char, group: usize| {
            let parts: Vec<&str> = text.split(separator).collect();
            (parts.len() * group == 12 && parts.iter().all(|part| part.len() == group)).then(|| parts.concat())
        };
        let plain = Some(text.to_owned()).filter(|text| text.len() == 12);
        let in_groups =
            || [(':', 2), ('-', 2), ('.', 4), ('-', 4)].into_iter().find_map(|(by, group)| grouped(by, group));
        plain.or_else(in_groups).and_then(|digits| Self::from_hex(digits.as_bytes())).ok_or_else(invalid)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Formats the address at once, not octet by octet: the access log writes one on each line.
        let mut wide = [0; 8];
        wide[2..].copy_from_slice(&self.0);
        write!(f, "{:012x}", u64::from_be_bytes(wide))
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MacAddress({self})")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_the_same_address() {
        let expected = MacAddress([0x00, 0x00, 0x5e, 0x00, 0x53, 0x0c]);
        for text in [
            "00005e00530c",
            "00005E00530C",
            "00:00:5E:00:53:0c",
            "00-00-5e-00-53-0c",
            "0000.5e00.530c",
            "0000-5E00-530c",
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        assert_eq!(expected.to_string(), "00005e00530c");
        assert_eq!(expected.to_upper_hex(), "00005E00530C");
    }

    #[test]
    fn invalid_mac_address_is_rejected() {
        for text in [
            "",
            "00005e00530",
            "00005e00530cc",
            "00005e00530g",
            "0:00:5e:00:53:0c1",
            "00:00-5e:00:53:0c",
            "00005é0530c",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn zero_and_multicast_addresses_are_not_phones() {
        let check = |text: &str| text.parse::<MacAddress>().unwrap().check_phone();
        assert_eq!(check("000000000000"), Err(NotAPhone::Fallback));
        for group in ["ffffffffffff", "01005e000001", "333300000001"] {
            assert_eq!(check(group), Err(NotAPhone::Group(group.parse().unwrap())), "{group}");
        }
        // 02: locally administered, as virtual machines have.
        for own in ["00005e00530c", "0004f2000000", "020000000001"] {
            assert_eq!(check(own), Ok(()), "{own}");
        }
    }

    #[test]
    fn plus_counts_up_and_wraps() {
        let first: MacAddress = "00005e0053ff".parse().unwrap();
        assert_eq!(first.plus(1).to_string(), "00005e005400");
        assert_eq!("ffffffffffff".parse::<MacAddress>().unwrap().plus(1), MacAddress::ZERO);
    }

    proptest::proptest! {
        #[test]
        fn display_parses_back(octets: [u8; 6]) {
            let address = MacAddress(octets);
            proptest::prop_assert_eq!(address.to_string().parse::<MacAddress>().unwrap(), address);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<MacAddress>();
        }
    }
}
