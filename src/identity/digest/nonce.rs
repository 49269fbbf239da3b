//! Stateless nonces: each contains its time of issue and an HMAC, so the server stores nothing. Pure.
//!
//! The server does not count the uses of a nonce. Clients send responses within TLS only, which refuses replayed records
//! itself. An attacker who can read a response can read the whole connection.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand::SystemRandom;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::constituency::ConstituencyName;

/// The lifetime of a nonce, in milliseconds.
pub(super) const LIFETIME: u64 = 300_000;

/// Makes and verifies the nonces of this process.
pub(super) struct NonceKey {
    key: hmac::Key,
    /// Random; added to each time, so that a nonce does not show the uptime of the process.
    offset: u64,
}

impl NonceKey {
    pub(super) fn generate() -> Result<Self, Unspecified> {
        let mut offset = [0; 8];
        aws_lc_rs::rand::fill(&mut offset)?;
        let key = hmac::Key::generate(HMAC_SHA256, &SystemRandom::new())?;
        Ok(Self { key, offset: u64::from_be_bytes(offset) })
    }

    /// A nonce for `constituency`, `issued` at this time in milliseconds of the authenticator's clock.
    pub(super) fn write(&self, issued: u64, constituency: &ConstituencyName) -> String {
        let time = issued.wrapping_add(self.offset).to_be_bytes();
        let tag = hmac::sign(&self.key, &signed(time, constituency));
        URL_SAFE_NO_PAD.encode([&time[..], tag.as_ref()].concat())
    }

    /// When the nonce `text` was issued; `None` if this process did not issue it for `constituency`.
    pub(super) fn read(&self, text: &str, constituency: &ConstituencyName) -> Option<u64> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (time, tag) = bytes.split_first_chunk()?;
        hmac::verify(&self.key, &signed(*time, constituency), tag).ok()?;
        Some(u64::from_be_bytes(*time).wrapping_sub(self.offset))
    }
}

fn signed(time: [u8; 8], constituency: &ConstituencyName) -> Vec<u8> {
    [&time[..], constituency.as_str().as_bytes()].concat()
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
        let text = key.write(77, &ote);
        assert_eq!(key.read(&text, &ote), Some(77));
        assert_eq!((key.read(&text, &prod), other.read(&text, &ote)), (None, None));
        assert_eq!(text.len(), 54);
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(key.read(&changed, &ote), None, "{changed}");
        }
        for bad in ["", "A", &text[..53], &text[..11], &format!("{text}A"), &format!("{text}="), "ä"] {
            assert_eq!(key.read(bad, &ote), None, "{bad}");
        }
    }

    #[test]
    fn nonce_hides_the_uptime() {
        let ote = "ote".parse().unwrap();
        let time_in = |key: NonceKey| URL_SAFE_NO_PAD.decode(key.write(0x1122, &ote)).unwrap()[..8].to_vec();
        let times = [(); 3].map(|()| time_in(NonceKey::generate().unwrap()));
        assert!(times[0] != times[1] && times[1] != times[2] && times[2] != times[0], "{times:?}");
    }
}
