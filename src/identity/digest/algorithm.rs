//! The hashes of RFC 7616 §3.4, and the HA1 that is stored of a password. Pure.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use md5::{Digest, Md5};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A hash algorithm of a digest response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// MD5, which every phone supports.
    Md5,
    /// SHA-256, which newer clients prefer.
    Sha256,
}

impl Algorithm {
    /// The algorithm with this name; without a name, MD5 (RFC 7616 §3.4).
    pub(super) fn from_name(name: Option<&str>) -> Option<Self> {
        match name {
            None => Some(Self::Md5),
            Some(name) => [Self::Md5, Self::Sha256].into_iter().find(|one| one.name().eq_ignore_ascii_case(name)),
        }
    }

    /// The name in HTTP headers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha256 => "SHA-256",
        }
    }

    /// H(the parts, joined by colons), in lower-case hex.
    fn hash(self, parts: &[&str]) -> String {
        let text = parts.join(":");
        match self {
            Self::Md5 => hex(&Md5::digest(text.as_bytes())),
            Self::Sha256 => hex(digest(&SHA256, text.as_bytes()).as_ref()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The inputs of a response, except the secret.
#[derive(Debug)]
pub(super) struct DigestInput<'a> {
    pub(super) method: &'a str,
    pub(super) uri: &'a str,
    pub(super) nonce: &'a str,
    pub(super) count: &'a str,
    pub(super) client_nonce: &'a str,
}

/// H(user:realm:password) by each algorithm, in hex. Equivalent to the password within the realm.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Ha1 {
    #[serde(serialize_with = "text")]
    md5: String,
    #[serde(serialize_with = "text")]
    sha256: String,
}

fn text<S: Serializer>(hash: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(hash)
}

impl Ha1 {
    /// The HA1 of a password.
    #[must_use]
    pub fn of(user: &str, realm: &str, password: &str) -> Self {
        let hash = |algorithm: Algorithm| algorithm.hash(&[user, realm, password]);
        Self { md5: hash(Algorithm::Md5), sha256: hash(Algorithm::Sha256) }
    }

    /// Whether `response` is correct (RFC 7616 §3.4.1, with qop "auth"). Compares in constant time.
    pub(super) fn verifies(&self, algorithm: Algorithm, input: &DigestInput<'_>, response: &str) -> bool {
        let expected = self.response(algorithm, input);
        verify_slices_are_equal(expected.as_bytes(), response.as_bytes()).is_ok()
    }

    pub(super) fn response(&self, algorithm: Algorithm, input: &DigestInput<'_>) -> String {
        let own = match algorithm {
            Algorithm::Md5 => &self.md5,
            Algorithm::Sha256 => &self.sha256,
        };
        let request = algorithm.hash(&[input.method, input.uri]);
        algorithm.hash(&[own, input.nonce, input.count, input.client_nonce, "auth", &request])
    }
}

/// Hides the secret.
impl fmt::Debug for Ha1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ha1")
    }
}

impl<'de> Deserialize<'de> for Ha1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Typed {
            md5: String,
            sha256: String,
        }
        let Typed { md5, sha256 } = Typed::deserialize(deserializer)?;
        let is_hash = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        // The error omits the value, which may be a part of the secret.
        if !is_hash(&md5, 32) || !is_hash(&sha256, 64) {
            return Err(D::Error::custom("\"md5\" has 32 and \"sha256\" 64 lower-case hex digits"));
        }
        Ok(Self { md5, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7616 §3.9.1.
    #[test]
    fn rfc_example_gives_the_rfc_response() {
        let ha1 = Ha1::of("Mufasa", "http-auth@example.org", "Circle of Life");
        let input = DigestInput {
            method: "GET",
            uri: "/dir/index.html",
            nonce: "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            count: "00000001",
            client_nonce: "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        };
        assert!(ha1.verifies(Algorithm::Md5, &input, "8ca523f5e9506fed4657c9700eebdbec"));
        let sha256 = "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1";
        assert!(ha1.verifies(Algorithm::Sha256, &input, sha256));
        assert!(!ha1.verifies(Algorithm::Md5, &input, sha256));
        assert!(!ha1.verifies(Algorithm::Sha256, &DigestInput { method: "PUT", ..input }, sha256));
        assert_eq!(format!("{ha1:?}"), "Ha1");
    }

    #[test]
    fn invalid_hash_is_rejected_and_not_shown_in_the_error() {
        let ha1 = Ha1::of("a", "b", "c");
        let text = serde_json::to_string(&ha1).unwrap();
        assert_eq!(serde_json::from_str::<Ha1>(&text).unwrap(), ha1);
        for bad in [text.to_uppercase().replace("MD5", "md5").replace("SHA256", "sha256"), text.replace(&ha1.md5, "ab")]
        {
            let error = serde_json::from_str::<Ha1>(&bad).unwrap_err().to_string();
            assert!(error.contains("hex digits") && !error.contains(&ha1.sha256[..8]), "{error}");
        }
    }
}
