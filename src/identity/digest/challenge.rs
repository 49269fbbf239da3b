//! The client side: parses a challenge (RFC 7616 §3.3) and computes the response. Pure.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

use super::algorithm::{Algorithm, DigestInput, Ha1};
use super::authorization::Parameters;

/// A challenge of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestChallenge {
    realm: String,
    nonce: String,
    opaque: Option<String>,
    algorithm: Algorithm,
    /// Whether the last response was correct, except for its nonce.
    pub is_stale: bool,
}

/// The request that a response is for.
#[derive(Debug, Clone, Copy)]
pub struct ChallengeRequest<'a> {
    pub method: &'a str,
    /// The request target, as sent.
    pub target: &'a str,
    /// The number of responses to this challenge so far, including this one.
    pub count: u32,
    /// The client's random nonce.
    pub client_nonce: &'a str,
}

impl DigestChallenge {
    /// Parses the first challenge of the scheme Digest; `None` if it is not supported. libcurl, which phones use, looks
    /// only at the first too.
    #[must_use]
    pub fn first(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut of_digest = texts.filter_map(|text| {
            let (scheme, rest) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("Digest").then_some(rest)
        });
        let mut parameters = Parameters::read(of_digest.next()?).ok()?;
        let has_auth = parameters.take("qop")?.split(',').any(|qop| qop.trim() == "auth");
        let (realm, nonce) = (parameters.take("realm")?, parameters.take("nonce")?);
        // The response quotes these values, so they must not need escaping.
        let is_plain = |text: &String| !text.contains(['"', '\\']);
        let opaque = parameters.take("opaque");
        if !has_auth || ![Some(&realm), Some(&nonce), opaque.as_ref()].into_iter().flatten().all(is_plain) {
            return None;
        }
        let algorithm = Algorithm::from_name(parameters.take("algorithm").as_deref())?;
        let is_stale = parameters.take("stale").is_some_and(|stale| stale.eq_ignore_ascii_case("true"));
        Some(Self { realm, nonce, opaque, algorithm, is_stale })
    }

    /// The value of the Authorization header that proves that `user` knows `password`.
    #[must_use]
    pub fn answer(&self, user: &str, password: &str, request: ChallengeRequest<'_>) -> String {
        let Self { realm, nonce, opaque, algorithm, .. } = self;
        let ChallengeRequest { method, target, client_nonce, .. } = request;
        let count = format!("{:08x}", request.count);
        let input = DigestInput { method, uri: target, nonce, count: &count, client_nonce };
        let response = Ha1::of(user, realm, password).response(*algorithm, &input);
        let opaque = opaque.as_ref().map(|opaque| format!(", opaque=\"{opaque}\"")).unwrap_or_default();
        format!(
            "Digest username=\"{user}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{target}\", cnonce=\"{client_nonce}\", \
             nc={count}, qop=auth, response=\"{response}\", algorithm={}{opaque}",
            algorithm.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenges(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (WWW_AUTHENTICATE, http::HeaderValue::from_static(value))).collect()
    }

    /// RFC 7616 §3.9.1.
    #[test]
    fn rfc_challenge_gives_the_rfc_answer() {
        let sha256 = "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm=SHA-256, \
                      nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"";
        let md5 = "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm=MD5, \
                   nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"";
        let client_nonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
        let request = ChallengeRequest { method: "GET", target: "/dir/index.html", count: 1, client_nonce };
        for (order, response) in [
            ([sha256, md5], "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
            ([md5, sha256], "8ca523f5e9506fed4657c9700eebdbec"),
        ] {
            let challenge = DigestChallenge::first(&challenges(&order)).unwrap();
            let answer = challenge.answer("Mufasa", "Circle of Life", request);
            assert!(answer.contains(&format!(" response=\"{response}\"")), "{answer}");
            assert!(
                answer.ends_with(", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"") && !challenge.is_stale
            );
        }
    }

    #[test]
    fn unsupported_challenge_is_ignored() {
        let first = |values: &[&'static str]| DigestChallenge::first(&challenges(values));
        assert_eq!(first(&[]), None);
        assert_eq!(first(&["Basic realm=\"a\""]), None);
        assert!(
            first(&["Basic realm=\"a\"", "digest realm=\"a\", nonce=\"b\", qop=auth, stale=TRUE"]).unwrap().is_stale
        );
        for bad in [
            "Digest realm=\"a\", nonce=\"b\"",
            "Digest realm=\"a\", nonce=\"b\", qop=\"auth-int\"",
            "Digest realm=\"a\", nonce=\"b\", qop=\"auth\", algorithm=SHA-512-256",
            "Digest realm=\"a\\\"\", nonce=\"b\", qop=\"auth\"",
            "Digest realm=\"a\", nonce=\"b\", nonce=\"c\", qop=\"auth\"",
            "Digest nonce=\"b\", qop=\"auth\"",
        ] {
            assert_eq!(first(&[bad]), None, "{bad}");
        }
        // A client that looks only at the first challenge gives up if it does not support its algorithm.
        assert_eq!(
            first(&[
                "Digest realm=\"a\", nonce=\"b\", qop=auth, algorithm=X",
                "Digest realm=\"a\", nonce=\"b\", qop=auth"
            ]),
            None
        );
    }
}
