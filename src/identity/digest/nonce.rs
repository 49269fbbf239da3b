//! Stateless nonces: each contains its time and is bound to a constituency. The server stores a nonce only after its
//! first valid use. Pure.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce as Iv, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand::SystemRandom;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::constituency::ConstituencyName;

/// The lifetime of a nonce, in milliseconds.
pub(super) const LIFETIME: u64 = 300_000;
const IV: usize = 12;

/// A nonce of this process: the time of issue, in milliseconds of the authenticator's clock, and a serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Nonce {
    pub(super) issued: u64,
    pub(super) number: u64,
}

/// Encrypts the nonces of this process, so that they do not show its uptime or its number of challenges.
pub(super) struct NonceKey {
    nonces: RandomizedNonceKey,
    names: hmac::Key,
}

impl NonceKey {
    pub(super) fn generate() -> Result<Self, Unspecified> {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key)?;
        let names = hmac::Key::generate(HMAC_SHA256, &SystemRandom::new())?;
        Ok(Self { nonces: RandomizedNonceKey::new(&AES_256_GCM, &key)?, names })
    }

    /// Encrypts `nonce` for `constituency`.
    pub(super) fn write(&self, nonce: Nonce, constituency: &ConstituencyName) -> String {
        let mut sealed = [nonce.issued.to_be_bytes(), nonce.number.to_be_bytes()].concat();
        let iv = self.nonces.seal_in_place_append_tag(Aad::from(constituency.as_str()), &mut sealed);
        // If encryption fails, the text is empty, and no response to it is accepted.
        iv.map_or_else(|_| String::new(), |iv| URL_SAFE_NO_PAD.encode([iv.as_ref().as_slice(), &sealed].concat()))
    }

    /// Decrypts `text`; `None` if this process did not issue it for `constituency`.
    pub(super) fn read(&self, text: &str, constituency: &ConstituencyName) -> Option<Nonce> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (iv, sealed) = bytes.split_at_mut_checked(IV)?;
        let iv = Iv::try_assume_unique_for_key(iv).ok()?;
        let opened = self.nonces.open_in_place(iv, Aad::from(constituency.as_str()), sealed).ok()?;
        let (issued, number) = opened.split_at_checked(8)?;
        let number_of = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        Some(Nonce { issued: number_of(issued)?, number: number_of(number)? })
    }

    /// A keyed hash of `name`, which clients cannot predict.
    pub(super) fn hash(&self, constituency: &ConstituencyName, name: &str) -> u64 {
        let text = [constituency.as_str().as_bytes(), b"/", name.as_bytes()].concat();
        let tag = hmac::sign(&self.names, &text);
        tag.as_ref().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
    }
}

/// Hides the key.
impl std::fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonce_is_valid_only_for_its_constituency_and_key() {
        let (key, other) = (NonceKey::generate().unwrap(), NonceKey::generate().unwrap());
        let (ote, prod): (ConstituencyName, ConstituencyName) = ("ote".parse().unwrap(), "prod".parse().unwrap());
        let nonce = Nonce { issued: 77, number: 3 };
        let text = key.write(nonce, &ote);
        assert_eq!(key.read(&text, &ote), Some(nonce));
        assert_eq!((key.read(&text, &prod), other.read(&text, &ote)), (None, None));
        assert_eq!(text.len(), 59);
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(key.read(&changed, &ote), None, "{changed}");
        }
        for bad in ["", "A", &text[..58], &format!("{text}A"), &format!("{text}="), "ä"] {
            assert_eq!(key.read(bad, &ote), None, "{bad}");
        }
    }

    #[test]
    fn nonce_hides_uptime_and_challenge_count() {
        let (key, ote) = (NonceKey::generate().unwrap(), "ote".parse().unwrap());
        let nonce = Nonce { issued: 0x1122_3344_5566_7788, number: 0x99aa_bbcc_ddee_ff00 };
        let texts = [(); 2].map(|()| URL_SAFE_NO_PAD.decode(key.write(nonce, &ote)).unwrap());
        for secret in [nonce.issued.to_be_bytes(), nonce.number.to_be_bytes()] {
            assert!(!texts.concat().windows(4).any(|bytes| bytes == &secret[..4] || bytes == &secret[4..]));
        }
        let (one, other) = (&texts[0], &texts[1]);
        let alike = one.iter().zip(other).filter(|(one, other)| one == other).count();
        assert!(alike < one.len() / 2, "of the same, two texts are {alike} of {} bytes alike", one.len());
    }
}
