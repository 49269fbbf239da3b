//! Verifies digest responses and issues challenges.

use std::time::Instant;

use aws_lc_rs::error::Unspecified;
use http::{HeaderMap, Method, Uri};

use super::algorithm::{Algorithm, DigestInput, Ha1};
use super::authorization::{Authorization, BadAuthorization};
use super::nonce::{LIFETIME, NonceKey};
use super::passwords::Passwords;
use crate::clock;
use crate::constituency::{ConstituencyName, MacAddress};

/// Verifies requests, and issues the challenges that they respond to.
#[derive(Debug)]
pub struct DigestAuthenticator {
    passwords: Passwords,
    key: NonceKey,
    started: Instant,
}

/// The parts of a request that authentication needs.
#[derive(Debug)]
pub struct LoginAttempt<'a> {
    /// The requested constituency.
    pub constituency: &'a ConstituencyName,
    /// The constituency's full domain name.
    pub realm: &'a str,
    pub method: &'a Method,
    /// The request target, as sent.
    pub target: &'a Uri,
    pub headers: &'a HeaderMap,
}

/// A request that is not authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginFailure {
    /// The reason, for the operator.
    pub why: AuthError,
    /// Whether only the nonce was invalid, so that the client may retry by itself.
    pub is_stale: bool,
}

/// Why a request is not authenticated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There is no Authorization header.
    #[error("no Authorization header")]
    NoHeader,
    /// The header is invalid.
    #[error("{0}")]
    Bad(#[from] BadAuthorization),
    /// The response is for another realm.
    #[error("the password is for the realm {0:?}")]
    OtherRealm(String),
    /// The user name is not a MAC address. It is not logged, because some users enter the password there.
    #[error("the user name is not a MAC address of 12 lower-case hex digits")]
    NotMacAddress,
    /// The user name is a MAC address in another spelling.
    #[error("the user name must be written as {0}")]
    OtherSpelling(MacAddress),
    /// The phone has no password.
    #[error(
        "{mac} has no password in {constituency}; create one with provost allow {mac} --constituency {constituency} --digest"
    )]
    UnknownUser {
        /// The phone.
        mac: MacAddress,
        /// The constituency in which it has none.
        constituency: ConstituencyName,
    },
    /// The constituency's passwords were made for another domain name.
    #[error(
        "{mac} has a password for {realm:?}, which is not this constituency's name; provost check shows the remedy"
    )]
    OldRealm {
        /// The phone.
        mac: MacAddress,
        /// The realm that they were made for.
        realm: String,
    },
    /// The password is wrong.
    #[error("wrong password for {0}")]
    WrongPassword(MacAddress),
    /// The nonce has expired.
    #[error("the nonce of {0} has expired; the phone gets a new one")]
    OldNonce(MacAddress),
    /// The nonce was issued for another constituency, or before provost was started.
    #[error(
        "the nonce of {0} is from another constituency, or from before provost was started; the phone gets a new one"
    )]
    ForeignNonce(MacAddress),
}

impl AuthError {
    /// The MAC address that the client claims, if its password or its spelling is the reason.
    #[must_use]
    pub fn claimed(&self) -> Option<MacAddress> {
        match self {
            Self::WrongPassword(mac)
            | Self::OldRealm { mac, .. }
            | Self::UnknownUser { mac, .. }
            | Self::OtherSpelling(mac) => Some(*mac),
            _ => None,
        }
    }
}

impl LoginFailure {
    /// Whether this happens to every phone in normal operation.
    #[must_use]
    pub fn is_routine(&self) -> bool {
        self.is_stale || self.why == AuthError::NoHeader
    }
}

impl From<AuthError> for LoginFailure {
    fn from(why: AuthError) -> Self {
        let is_stale = matches!(why, AuthError::OldNonce(_) | AuthError::ForeignNonce(_));
        Self { why, is_stale }
    }
}

impl DigestAuthenticator {
    /// An authenticator for the phones in `passwords`. It does not accept nonces of an earlier process.
    ///
    /// # Errors
    /// If the system's random number generator fails.
    pub fn new(passwords: Passwords) -> Result<Self, Unspecified> {
        Ok(Self { passwords, key: NonceKey::generate()?, started: clock::monotonic() })
    }

    #[must_use]
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// The values of the two `WWW-Authenticate` headers of a challenge. By RFC 7616 §3.7 the client takes the first
    /// that it supports. Many clients look only at the first, so `md5_first` is for clients that may not support
    /// SHA-256.
    #[must_use]
    pub fn challenge(
        &self,
        constituency: &ConstituencyName,
        realm: &str,
        is_stale: bool,
        md5_first: bool,
    ) -> [String; 2] {
        let nonce = self.key.write(self.now(), constituency);
        let stale = if is_stale { ", stale=true" } else { "" };
        let offer = |algorithm: Algorithm| {
            let name = algorithm.name();
            format!("Digest realm=\"{realm}\", qop=\"auth\", algorithm={name}, nonce=\"{nonce}\"{stale}")
        };
        if md5_first {
            [offer(Algorithm::Md5), offer(Algorithm::Sha256)]
        } else {
            [offer(Algorithm::Sha256), offer(Algorithm::Md5)]
        }
    }

    /// Authenticates a request; gives its phone.
    ///
    /// # Errors
    /// Why it is not authenticated.
    pub fn authenticate(&self, attempt: &LoginAttempt<'_>) -> Result<MacAddress, LoginFailure> {
        self.verify(attempt, self.now())
    }

    fn verify(&self, attempt: &LoginAttempt<'_>, now: u64) -> Result<MacAddress, LoginFailure> {
        let header = Authorization::read(attempt.headers).ok_or(AuthError::NoHeader)?.map_err(AuthError::Bad)?;
        if header.realm != attempt.realm {
            return Err(AuthError::OtherRealm(header.realm).into());
        }
        if !header.is_for(attempt.target) {
            return Err(AuthError::Bad(BadAuthorization::OtherTarget { uri: header.uri }).into());
        }
        let mac = self.check_password(attempt, &header)?;
        let issued = self.key.read(&header.nonce, attempt.constituency).ok_or(AuthError::ForeignNonce(mac))?;
        if now.saturating_sub(issued) > LIFETIME {
            return Err(AuthError::OldNonce(mac).into());
        }
        Ok(mac)
    }

    /// The phone of the user name, if the response is correct. For unknown names it computes the same hashes, so that
    /// the time does not show which names exist.
    fn check_password(&self, attempt: &LoginAttempt<'_>, header: &Authorization) -> Result<MacAddress, AuthError> {
        let mac = MacAddress::from_hex(header.username.as_bytes()).filter(|mac| mac.to_string() == header.username);
        let all = self.passwords.of(attempt.constituency);
        let is_old = all.as_ref().is_some_and(|all| all.realm != attempt.realm);
        let dummy = Ha1::of(&header.username, attempt.realm, "");
        let stored = mac.and_then(|mac| Some((mac, all.as_ref()?.phones.get(&mac)?)));
        let input = DigestInput {
            method: attempt.method.as_str(),
            uri: &header.uri,
            nonce: &header.nonce,
            count: &header.count,
            client_nonce: &header.client_nonce,
        };
        let ha1 = stored.map_or(&dummy, |(_, ha1)| ha1);
        let algorithm = header.algorithm.unwrap_or(Algorithm::Md5);
        let is_correct = ha1.verifies(algorithm, &input, &header.response);
        match stored {
            None => Err(match (mac, header.username.parse()) {
                (Some(mac), _) => AuthError::UnknownUser { mac, constituency: attempt.constituency.clone() },
                (None, Ok(mac)) => AuthError::OtherSpelling(mac),
                (None, Err(_)) => AuthError::NotMacAddress,
            }),
            Some((mac, _)) if is_old => {
                Err(AuthError::OldRealm { mac, realm: all.map(|all| all.realm.clone()).unwrap_or_default() })
            }
            Some((mac, _)) if !is_correct => Err(AuthError::WrongPassword(mac)),
            Some((mac, _)) => Ok(mac),
        }
    }

    /// Milliseconds since the authenticator was created. This clock is monotonic, so that setting the system time back
    /// cannot revive an expired nonce.
    fn now(&self) -> u64 {
        u64::try_from(clock::monotonic().duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::digest::passwords;
    use http::header::AUTHORIZATION;

    const USER: &str = "00005e00530c";
    const REALM: &str = "ote.example";

    /// An authenticator with a password for one phone.
    struct Stage {
        state: tempfile::TempDir,
        authenticator: DigestAuthenticator,
        name: ConstituencyName,
    }

    impl Stage {
        fn new() -> Self {
            let state = tempfile::tempdir().unwrap();
            let name: ConstituencyName = "ote".parse().unwrap();
            let ha1 = Ha1::of(USER, REALM, "open sesame");
            passwords::set(state.path(), &name, REALM, USER.parse().unwrap(), ha1, &|_| ()).unwrap();
            let all = Passwords::of_state(state.path());
            assert!(all.refresh().is_empty());
            Self { authenticator: DigestAuthenticator::new(all).unwrap(), state, name }
        }

        fn nonce(&self, issued: u64) -> String {
            self.authenticator.key.write(issued, &self.name)
        }

        /// Verifies a request with this user, password and nonce at `now`.
        fn ask(
            &self,
            user: &str,
            password: &str,
            nonce: &str,
            count: u32,
            now: u64,
        ) -> Result<MacAddress, LoginFailure> {
            let ha1 = Ha1::of(user, REALM, password);
            let count = format!("{count:08x}");
            let input = DigestInput { method: "GET", uri: "/a", nonce, count: &count, client_nonce: "c" };
            let response = ha1.response(Algorithm::Sha256, &input);
            let header = format!(
                "Digest username=\"{user}\", realm=\"{REALM}\", nonce=\"{nonce}\", uri=\"/a\", algorithm=SHA-256, \
                 response=\"{response}\", cnonce=\"c\", nc={count}, qop=auth"
            );
            let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
            let target = Uri::from_static("/a");
            let (constituency, realm) = (&self.name, REALM);
            let attempt =
                LoginAttempt { constituency, realm, method: &Method::GET, target: &target, headers: &headers };
            self.authenticator.verify(&attempt, now)
        }
    }

    #[test]
    fn expired_nonce_gives_a_stale_challenge() {
        let stage = Stage::new();
        let (nonce, mac) = (stage.nonce(1000), USER.parse().unwrap());
        for count in [1, 7, 1] {
            assert_eq!(stage.ask(USER, "open sesame", &nonce, count, 1000 + LIFETIME), Ok(mac));
        }
        let late = stage.ask(USER, "open sesame", &nonce, 2, 1001 + LIFETIME).unwrap_err();
        assert_eq!((late.why, late.is_stale), (AuthError::OldNonce(mac), true));
        let other = stage.authenticator.key.write(1000, &"prod".parse().unwrap());
        for foreign in [other.as_str(), "", "AAAA"] {
            let refused = stage.ask(USER, "open sesame", foreign, 1, 1000).unwrap_err();
            assert_eq!((refused.why, refused.is_stale), (AuthError::ForeignNonce(mac), true));
            // A client with a wrong password does not learn that the nonce was invalid.
            let wrong = stage.ask(USER, "open barley", foreign, 1, 1000).unwrap_err();
            assert_eq!((wrong.why, wrong.is_stale), (AuthError::WrongPassword(mac), false));
        }
    }

    #[test]
    fn user_name_must_be_the_mac_as_written() {
        let stage = Stage::new();
        let phone: MacAddress = USER.parse().unwrap();
        let unknown = AuthError::UnknownUser { mac: MacAddress::ZERO, constituency: stage.name.clone() };
        for (user, why) in [
            ("00005E00530C", AuthError::OtherSpelling(phone)),
            ("00:00:5e:00:53:0c", AuthError::OtherSpelling(phone)),
            ("000000000000", unknown),
            ("00005e00530c ", AuthError::NotMacAddress),
            ("open sesame", AuthError::NotMacAddress),
            ("", AuthError::NotMacAddress),
        ] {
            let refused = stage.ask(user, "open sesame", &stage.nonce(0), 1, 0).unwrap_err();
            assert!(!refused.why.to_string().contains("sesame"), "the error shows the password");
            assert_eq!(refused.why, why);
        }
    }

    #[test]
    fn passwords_for_another_realm_are_rejected() {
        let stage = Stage::new();
        let ha1 = Ha1::of(USER, "ote.old.example", "open sesame");
        passwords::remove(stage.state.path(), &stage.name, &[USER.parse().unwrap()], &|_| ()).unwrap();
        passwords::set(stage.state.path(), &stage.name, "ote.old.example", USER.parse().unwrap(), ha1, &|_| ())
            .unwrap();
        assert!(stage.authenticator.passwords().refresh().is_empty());
        let refused = stage.ask(USER, "open sesame", &stage.nonce(0), 1, 0).unwrap_err();
        assert!(matches!(refused.why, AuthError::OldRealm { .. }), "{refused:?}");
    }
}
