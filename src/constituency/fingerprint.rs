//! The SHA-256 fingerprint of a certificate.
//!
//! Pure: text or DER in, value out.

use std::fmt::{self, Write};
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer};

/// The SHA-256 of a certificate's DER. Displayed as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// A text that is not a fingerprint in any usual spelling.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid SHA-256 fingerprint {0:?}: write all 64 hex digits, with or without colons")]
pub struct InvalidFingerprint(String);

impl Fingerprint {
    /// The fingerprint of the certificate `der`.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }

    #[must_use]
    pub fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl From<[u8; 32]> for Fingerprint {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    /// Parses 64 hex digits of either case, or 32 pairs separated by colons, as openssl and phones display them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidFingerprint(text.chars().take(128).collect());
        let is_paired = text.len() == 95 && text.split(':').all(|pair| pair.len() == 2);
        let digits = if is_paired { text.replace(':', "") } else { text.to_owned() };
        let digits: &[u8; 64] = digits.as_bytes().try_into().map_err(|_| invalid())?;
        let digit = |digit: &u8| char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().try_fold(0, |value: u8, it| Some(value << 4 | digit(it)?)).ok_or_else(invalid)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(")?;
        fmt::Display::fmt(self, f)?;
        f.write_char(')')
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_the_same_fingerprint() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let pairs: Vec<String> =
            hex.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).into_owned()).collect();
        let colons = pairs.join(":");
        assert_eq!(Fingerprint::of(b"").to_string(), hex);
        for text in [hex, &hex.to_uppercase(), &colons, &colons.to_uppercase()] {
            assert_eq!(text.parse(), Ok(Fingerprint::of(b"")), "{text}");
        }
        for text in
            ["", &hex[1..], &hex[..63], &format!("{hex}00"), &pairs.join("-"), &format!(" {hex}"), &colons[..94]]
        {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
        assert!(hex.replacen("e3", "e:3", 1).parse::<Fingerprint>().is_err());
        assert!(hex.replacen("e3", "é", 1).parse::<Fingerprint>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn display_parses_back(bytes: [u8; 32]) {
            let fingerprint = Fingerprint::from(bytes);
            proptest::prop_assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap().bytes(), bytes);
        }

        #[test]
        fn no_text_panics(text in ".{0,100}") {
            let _ = text.parse::<Fingerprint>();
        }
    }
}
