//! Parses the Authorization header of a request (RFC 7616 §3.4). Pure.
//!
//! Strict: rejects all ambiguous input.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::algorithm::Algorithm;

/// The maximum length of the header, in bytes.
const LONGEST: usize = 4096;

/// Why a header is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAuthorization {
    /// There are several Authorization headers.
    #[error("several Authorization headers")]
    Several,
    /// The scheme is not Digest.
    #[error("only Digest authentication is accepted, because Basic would reveal the password")]
    Scheme,
    /// The syntax is invalid.
    #[error("the Authorization header cannot be read: {0}")]
    Malformed(&'static str),
    /// A required parameter is missing.
    #[error("the Authorization header has no {0}")]
    Missing(&'static str),
    /// A parameter has a value that the challenge did not offer.
    #[error("the Authorization header has another {0} than the challenge")]
    Unknown(&'static str),
    /// The response is for another request.
    #[error("the Authorization header's uri {uri:?} is not the request's target")]
    OtherTarget {
        /// The URI in the header.
        uri: String,
    },
}

/// The parameters of the header.
#[derive(Debug, Default)]
pub(super) struct Authorization {
    pub(super) username: String,
    pub(super) realm: String,
    pub(super) nonce: String,
    pub(super) uri: String,
    pub(super) response: String,
    pub(super) algorithm: Option<Algorithm>,
    pub(super) client_nonce: String,
    pub(super) count: String,
}

impl Authorization {
    /// Parses the only Authorization header; `None` if there is none.
    pub(super) fn read(headers: &HeaderMap) -> Option<Result<Self, BadAuthorization>> {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let only = all.next()?;
        if all.next().is_some() {
            return Some(Err(BadAuthorization::Several));
        }
        if only.len() > LONGEST {
            return Some(Err(BadAuthorization::Malformed("it is too long")));
        }
        let text = only.to_str().map_err(|_| BadAuthorization::Malformed("it is not ASCII"));
        Some(text.and_then(Self::parse))
    }

    fn parse(text: &str) -> Result<Self, BadAuthorization> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if !scheme.eq_ignore_ascii_case("Digest") {
            return Err(BadAuthorization::Scheme);
        }
        Parameters::read(rest)?.check()
    }

    /// Whether the response is for a request with this `target` (RFC 7616 §3.4.6).
    pub(super) fn is_for(&self, target: &http::Uri) -> bool {
        let path = target.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        self.uri == path || (target.authority().is_some() && self.uri == target.to_string())
    }
}

/// Authentication parameters without duplicates.
#[derive(Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Parses the parameters that follow the scheme.
    pub(super) fn read(text: &str) -> Result<Self, BadAuthorization> {
        let (mut parameters, mut rest) = (Self::default(), ParameterCursor(text));
        while let Some((name, value)) = rest.parameter()? {
            parameters.put(name, value)?;
        }
        Ok(parameters)
    }

    fn put(&mut self, name: &str, value: String) -> Result<(), BadAuthorization> {
        let name = name.to_ascii_lowercase();
        if self.0.iter().any(|(other, _)| *other == name) {
            return Err(BadAuthorization::Malformed("a parameter is repeated"));
        }
        self.0.push((name, value));
        Ok(())
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn check(mut self) -> Result<Authorization, BadAuthorization> {
        let mut must = |name: &'static str| self.take(name).ok_or(BadAuthorization::Missing(name));
        let read = Authorization {
            username: must("username")?,
            realm: must("realm")?,
            nonce: must("nonce")?,
            uri: must("uri")?,
            response: must("response")?,
            algorithm: None,
            client_nonce: must("cnonce")?,
            count: must("nc")?,
        };
        if must("qop")? != "auth" {
            return Err(BadAuthorization::Unknown("qop"));
        }
        if self.take("userhash").is_some_and(|hashed| !hashed.eq_ignore_ascii_case("false")) {
            return Err(BadAuthorization::Unknown("userhash"));
        }
        let algorithm = Algorithm::from_name(self.take("algorithm").as_deref());
        let algorithm = algorithm.ok_or(BadAuthorization::Unknown("algorithm"))?;
        if read.count.len() != 8 || !read.count.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadAuthorization::Malformed("nc must have 8 hex digits"));
        }
        Ok(Authorization { algorithm: Some(algorithm), ..read })
    }
}

/// The unread rest of the parameters: `#auth-param` (RFC 9110 §5.6.1, §11.2).
struct ParameterCursor<'a>(&'a str);

impl<'a> ParameterCursor<'a> {
    /// The next parameter as name and value; `None` at the end.
    fn parameter(&mut self) -> Result<Option<(&'a str, String)>, BadAuthorization> {
        self.0 = self.0.trim_start_matches([' ', '\t', ',']);
        if self.0.is_empty() {
            return Ok(None);
        }
        let name = self.token().ok_or(BadAuthorization::Malformed("a name is expected"))?;
        self.skip_blanks();
        self.0 = self.0.strip_prefix('=').ok_or(BadAuthorization::Malformed("a name without a value"))?;
        self.skip_blanks();
        let value = match self.0.strip_prefix('"') {
            Some(quoted) => self.quoted(quoted)?,
            None => self.token().ok_or(BadAuthorization::Malformed("a name without a value"))?.to_owned(),
        };
        self.skip_blanks();
        if self.0.is_empty() || self.0.starts_with(',') {
            Ok(Some((name, value)))
        } else {
            Err(BadAuthorization::Malformed("a comma is expected"))
        }
    }

    fn skip_blanks(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }

    fn token(&mut self) -> Option<&'a str> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let end = self.0.bytes().position(|byte| !is_token(byte)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(token).filter(|token| !token.is_empty())
    }

    /// Reads the rest of a quoted string after its opening quote.
    fn quoted(&mut self, text: &'a str) -> Result<String, BadAuthorization> {
        let mut value = String::new();
        let mut characters = text.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.0 = text.get(at + 1..).unwrap_or_default();
                    return Ok(value);
                }
                '\\' => match characters.next() {
                    Some((_, escaped)) => value.push(escaped),
                    None => break,
                },
                plain => value.push(plain),
            }
        }
        Err(BadAuthorization::Malformed("a quote is not closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"Digest username="00005e00530c", realm="r", nonce="n", uri="/a?b", response="00", cnonce="c", nc=00000001, qop=auth"#;

    fn read(text: &str) -> Result<Authorization, BadAuthorization> {
        Authorization::parse(text)
    }

    #[test]
    fn headers_of_real_clients_parse() {
        let plain = read(GOOD).unwrap();
        assert_eq!((plain.username.as_str(), plain.uri.as_str()), ("00005e00530c", "/a?b"));
        assert_eq!((plain.algorithm, plain.count.as_str()), (Some(Algorithm::Md5), "00000001"));
        let other =
            read(&format!("DIGEST  ,{} , QOP = \"auth\",algorithm=sha-256, opaque=\"\"", &GOOD[7..GOOD.len() - 10]));
        assert_eq!(other.unwrap().algorithm, Some(Algorithm::Sha256));
        // libcurl up to 7.60 quotes values that RFC 7616 §3.4 does not quote.
        let of_old_curl = read(&format!("{GOOD}, opaque=\"o\", algorithm=\"MD5\""));
        assert_eq!(of_old_curl.unwrap().algorithm, Some(Algorithm::Md5));
        let escaped = read(&GOOD.replace("\"r\"", r#""a \"b\", nc=\\""#)).unwrap();
        assert_eq!(escaped.realm, r#"a "b", nc=\"#);
    }

    #[test]
    fn ambiguous_header_is_rejected() {
        let replaced = |old: &str, new: &str| {
            assert!(GOOD.contains(old), "{old}");
            read(&GOOD.replace(old, new)).unwrap_err()
        };
        assert_eq!(read("Basic YTpi").unwrap_err(), BadAuthorization::Scheme);
        assert_eq!(read("").unwrap_err(), BadAuthorization::Scheme);
        assert_eq!(read("Digest").unwrap_err(), BadAuthorization::Missing("username"));
        for name in ["username", "realm", "nonce", "uri", "response", "cnonce", "nc", "qop"] {
            assert_eq!(replaced(&format!("{name}="), "x="), BadAuthorization::Missing(name), "{name}");
        }
        let twice = BadAuthorization::Malformed("a parameter is repeated");
        assert_eq!(replaced("nc=00000001", "nc=00000001, nc=00000002"), twice);
        assert_eq!(replaced("nc=00000001", "nc=00000001, USERNAME=x"), twice);
        assert_eq!(replaced("qop=auth", "qop=auth-int"), BadAuthorization::Unknown("qop"));
        assert_eq!(replaced("qop=auth", "qop=auth, algorithm=MD5-sess"), BadAuthorization::Unknown("algorithm"));
        assert_eq!(replaced("qop=auth", "qop=auth, userhash=true"), BadAuthorization::Unknown("userhash"));
        for count in ["1", "000000001", "0000000g", "-0000001"] {
            assert_eq!(
                replaced("00000001", count),
                BadAuthorization::Malformed("nc must have 8 hex digits"),
                "{count}"
            );
        }
        for (old, new) in [
            ("qop=auth", "qop=\"auth"),
            ("qop=auth", "qop=\"auth\\"),
            ("uri=", "uri"),
            (", nc", " nc"),
            ("qop=auth", "="),
        ] {
            assert!(matches!(replaced(old, new), BadAuthorization::Malformed(_)), "{new}");
        }
    }

    #[test]
    fn uri_must_match_the_target_as_sent() {
        let header = read(GOOD).unwrap();
        let is_for = |target: &str| header.is_for(&target.parse().unwrap());
        assert!(is_for("/a?b") && is_for("https://host.example/a?b"));
        for other in ["/a", "/a?c", "/a%3Fb", "//a?b", "/A?b", "/a?b&c"] {
            assert!(!is_for(other), "{other}");
        }
        let absolute = read(&GOOD.replace("/a?b", "https://host.example/a?b")).unwrap();
        assert!(absolute.is_for(&"https://host.example/a?b".parse().unwrap()));
        assert!(!absolute.is_for(&"/a?b".parse().unwrap()));
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics(text in "\\PC{0,80}", tail in "[ -~]{0,40}") {
            let _ = read(&text);
            let _ = read(&format!("Digest {tail}"));
            let _ = read(&format!("{GOOD}{tail}"));
        }
    }
}
