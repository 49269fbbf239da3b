//! Nonces that say by themselves when and for whom they were made: nothing is kept of one until it was used well. Pure.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand::SystemRandom;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::constituency::ConstituencyName;

/// How long a nonce may be used, in milliseconds.
pub(super) const LIFETIME: u64 = 300_000;
const TAG: usize = 16;

/// A nonce that we made: when, in milliseconds of our own clock, and which of that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Nonce {
    pub(super) issued: u64,
    pub(super) number: u64,
}

/// Signs what we make, for as long as this process lives.
pub(super) struct Key(hmac::Key);

impl Key {
    pub(super) fn generate() -> Result<Self, Unspecified> {
        hmac::Key::generate(HMAC_SHA256, &SystemRandom::new()).map(Self)
    }

    /// The text of `nonce` for `constituency`.
    pub(super) fn write(&self, nonce: Nonce, constituency: &ConstituencyName) -> String {
        let mut bytes = [nonce.issued.to_be_bytes(), nonce.number.to_be_bytes()].concat();
        let tag = self.tag(&bytes, constituency);
        bytes.extend_from_slice(tag.as_ref().get(..TAG).unwrap_or_default());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The nonce that `text` is, if it is one of ours for `constituency`.
    pub(super) fn read(&self, text: &str, constituency: &ConstituencyName) -> Option<Nonce> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (said, tag) = bytes.split_at_checked(16).filter(|(_, tag)| tag.len() == TAG)?;
        let expected = self.tag(said, constituency);
        verify_slices_are_equal(expected.as_ref().get(..TAG)?, tag).ok()?;
        let (issued, number) = said.split_at(8);
        let number_of = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        Some(Nonce { issued: number_of(issued)?, number: number_of(number)? })
    }

    fn tag(&self, said: &[u8], constituency: &ConstituencyName) -> hmac::Tag {
        hmac::sign(&self.0, &[b"nonce", said, constituency.as_str().as_bytes()].concat())
    }

    /// A number for `name` that nobody else can foresee.
    pub(super) fn hash(&self, constituency: &ConstituencyName, name: &str) -> u64 {
        let text = [b"name".as_slice(), constituency.as_str().as_bytes(), b"/", name.as_bytes()].concat();
        let tag = hmac::sign(&self.0, &text);
        tag.as_ref().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
    }
}

/// Not what it is.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_read_where_it_was_made_and_nowhere_else() {
        let (key, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let (ote, prod): (ConstituencyName, ConstituencyName) = ("ote".parse().unwrap(), "prod".parse().unwrap());
        let nonce = Nonce { issued: 77, number: 3 };
        let text = key.write(nonce, &ote);
        assert_eq!(key.read(&text, &ote), Some(nonce));
        assert_eq!((key.read(&text, &prod), other.read(&text, &ote)), (None, None));
        assert_eq!(text.len(), 43);
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(key.read(&changed, &ote), None, "{changed}");
        }
        for bad in ["", "A", &text[..42], &format!("{text}A"), &format!("{text}="), "ä"] {
            assert_eq!(key.read(bad, &ote), None, "{bad}");
        }
    }
}
