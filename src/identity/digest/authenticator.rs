//! Whether a request comes from the phone that it names.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use aws_lc_rs::error::Unspecified;
use http::{HeaderMap, Method, Uri};

use super::algorithm::{Algorithm, DigestInput, Ha1};
use super::attempts::FailedAttempts;
use super::authorization::{Authorization, BadAuthorization};
use super::nonce::{LIFETIME, Nonce, NonceKey};
use super::passwords::Passwords;
use super::replay::UsedNonces;
use crate::clock;
use crate::constituency::{ConstituencyName, MacAddress};

/// A phone, as one constituency knows it.
type PhoneName = (ConstituencyName, MacAddress);

/// Judges requests, and makes the challenges that they answer.
#[derive(Debug)]
pub struct DigestAuthenticator {
    passwords: Passwords,
    key: NonceKey,
    started: Instant,
    made: AtomicU64,
    used: Mutex<HashMap<PhoneName, UsedNonces>>,
    attempts: Mutex<FailedAttempts>,
}

/// What a request says.
#[derive(Debug)]
pub struct LoginAttempt<'a> {
    /// The constituency that is asked.
    pub constituency: &'a ConstituencyName,
    /// Its full name.
    pub realm: &'a str,
    /// The method.
    pub method: &'a Method,
    /// The target, as sent.
    pub target: &'a Uri,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// Who asks is not proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnprovenLogin {
    /// For the operator.
    pub why: AuthError,
    /// Whether all was right but for the nonce, so that the client may try again by itself.
    pub is_stale: bool,
    /// Whether so many failed under this name that there is no challenge this time.
    pub is_too_much: bool,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Nothing was said yet.
    #[error("no Authorization yet")]
    Nothing,
    /// It cannot be right.
    #[error("{0}")]
    Bad(#[from] BadAuthorization),
    /// It is for another realm.
    #[error("the password is for {0:?}")]
    OtherRealm(String),
    /// The name is no phone's. It is not repeated: some type the password there.
    #[error("the user name is no MAC address, written as 12 lower-case hex digits")]
    NoPhone,
    /// The name is a phone's, in another spelling.
    #[error("the user name is {0} in another spelling; write it as it stands here")]
    OtherSpelling(MacAddress),
    /// This phone has no password.
    #[error("{mac} has no password here (provost allow {mac} --constituency {constituency} --digest gives it one)")]
    UnknownUser {
        /// The phone.
        mac: MacAddress,
        /// Where it has none.
        constituency: ConstituencyName,
    },
    /// All passwords were made for another name of the constituency.
    #[error(
        "{mac} has a password for {realm:?}, which is not this constituency's name (provost check says what to do)"
    )]
    OldRealm {
        /// The phone.
        mac: MacAddress,
        /// What they were made for.
        realm: String,
    },
    /// The password is wrong.
    #[error("wrong password for {0}")]
    WrongPassword(MacAddress),
    /// The nonce is too old.
    #[error("{0}'s nonce is too old; it was told to ask again")]
    OldNonce(MacAddress),
    /// The nonce is not ours: of another constituency, or made before provost was started.
    #[error("{0}'s nonce is none of this constituency's since provost was started; it was told to ask again")]
    ForeignNonce(MacAddress),
    /// The count was used before.
    #[error("{0}'s nonce was used with this count before (a replay?); it was told to ask again")]
    Replay(MacAddress),
}

impl AuthError {
    /// Whose password it was said to be, where that is what was wrong.
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

impl UnprovenLogin {
    /// Whether every phone meets this, now and then.
    #[must_use]
    pub fn is_routine(&self) -> bool {
        self.is_stale || self.why == AuthError::Nothing
    }
}

impl From<AuthError> for UnprovenLogin {
    fn from(why: AuthError) -> Self {
        let is_stale = matches!(why, AuthError::OldNonce(_) | AuthError::ForeignNonce(_) | AuthError::Replay(_));
        Self { why, is_stale, is_too_much: false }
    }
}

impl DigestAuthenticator {
    /// A gate for the phones that have `passwords`. Whatever was sent before, in another process, is asked for again.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn new(passwords: Passwords) -> Result<Self, Unspecified> {
        Ok(Self {
            passwords,
            key: NonceKey::generate()?,
            started: clock::monotonic(),
            made: AtomicU64::default(),
            used: Mutex::default(),
            attempts: Mutex::default(),
        })
    }

    /// Where the passwords are.
    #[must_use]
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// The values of WWW-Authenticate in a challenge, a header each. RFC 7616 §3.7: the client takes the first that it
    /// knows. Many look at the first only, so `md5_first` is for all that may not know SHA-256.
    #[must_use]
    pub fn challenge(
        &self,
        constituency: &ConstituencyName,
        realm: &str,
        is_stale: bool,
        md5_first: bool,
    ) -> [String; 2] {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let nonce = self.key.write(Nonce { issued: self.now(), number }, constituency);
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

    /// The phone that the request comes from.
    ///
    /// # Errors
    /// Why that is not proven.
    pub fn admit(&self, attempt: &LoginAttempt<'_>) -> Result<MacAddress, UnprovenLogin> {
        self.verify(attempt, self.now())
    }

    fn verify(&self, attempt: &LoginAttempt<'_>, now: u64) -> Result<MacAddress, UnprovenLogin> {
        let said = Authorization::read(attempt.headers).ok_or(AuthError::Nothing)?.map_err(AuthError::Bad)?;
        if said.realm != attempt.realm {
            return Err(AuthError::OtherRealm(said.realm).into());
        }
        if !said.is_for(attempt.target) {
            return Err(AuthError::Bad(BadAuthorization::OtherTarget { uri: said.uri }).into());
        }
        let mac = self.check_password(attempt, &said).map_err(|why| self.fail(attempt, &said, why, now))?;
        let nonce = self.key.read(&said.nonce, attempt.constituency).ok_or(AuthError::ForeignNonce(mac))?;
        if now.saturating_sub(nonce.issued) > LIFETIME {
            return Err(AuthError::OldNonce(mac).into());
        }
        let count = u32::from_str_radix(&said.count, 16).unwrap_or(0);
        let phone = (attempt.constituency.clone(), mac);
        if !locked(&self.used).entry(phone).or_default().take(nonce, count, now) {
            return Err(AuthError::Replay(mac).into());
        }
        Ok(mac)
    }

    /// The phone that is named, if the password was known. It is reckoned out in the same way for names that nobody has.
    fn check_password(&self, attempt: &LoginAttempt<'_>, said: &Authorization) -> Result<MacAddress, AuthError> {
        let mac = MacAddress::from_hex(said.username.as_bytes()).filter(|mac| mac.to_string() == said.username);
        let of_all = self.passwords.of(attempt.constituency);
        let is_old = of_all.as_ref().is_some_and(|all| all.realm != attempt.realm);
        let of_nobody = Ha1::of(&said.username, attempt.realm, "");
        let stored = mac.and_then(|mac| Some((mac, of_all.as_ref()?.phones.get(&mac)?)));
        let asked = DigestInput {
            method: attempt.method.as_str(),
            uri: &said.uri,
            nonce: &said.nonce,
            count: &said.count,
            client_nonce: &said.client_nonce,
        };
        let ha1 = stored.map_or(&of_nobody, |(_, ha1)| ha1);
        let algorithm = said.algorithm.unwrap_or(Algorithm::Md5);
        let is_right = ha1.approves(algorithm, &asked, &said.response);
        match stored {
            None => Err(match (mac, said.username.parse()) {
                (Some(mac), _) => AuthError::UnknownUser { mac, constituency: attempt.constituency.clone() },
                (None, Ok(mac)) => AuthError::OtherSpelling(mac),
                (None, Err(_)) => AuthError::NoPhone,
            }),
            Some((mac, _)) if is_old => {
                Err(AuthError::OldRealm { mac, realm: of_all.map(|all| all.realm.clone()).unwrap_or_default() })
            }
            Some((mac, _)) if !is_right => Err(AuthError::WrongPassword(mac)),
            Some((mac, _)) => Ok(mac),
        }
    }

    fn fail(&self, attempt: &LoginAttempt<'_>, said: &Authorization, why: AuthError, now: u64) -> UnprovenLogin {
        let hash = self.key.hash(attempt.constituency, &said.username);
        let is_too_much = locked(&self.attempts).fail(hash, now);
        UnprovenLogin { why, is_stale: false, is_too_much }
    }

    /// Milliseconds since this gate was made: nobody's clock can be set back to make an old nonce young.
    fn now(&self) -> u64 {
        u64::try_from(clock::monotonic().duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::digest::passwords;
    use http::header::AUTHORIZATION;

    const USER: &str = "00005e00530c";
    const REALM: &str = "ote.example";

    /// A gate of which one phone has a password.
    struct Stage {
        state: tempfile::TempDir,
        gate: DigestAuthenticator,
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
            Self { gate: DigestAuthenticator::new(all).unwrap(), state, name }
        }

        fn nonce(&self, issued: u64, number: u64) -> String {
            self.gate.key.write(Nonce { issued, number }, &self.name)
        }

        /// What becomes of a request with this user, password and nonce at `now`.
        fn ask(
            &self,
            user: &str,
            password: &str,
            nonce: &str,
            count: u32,
            now: u64,
        ) -> Result<MacAddress, UnprovenLogin> {
            let ha1 = Ha1::of(user, REALM, password);
            let count = format!("{count:08x}");
            let asked = DigestInput { method: "GET", uri: "/a", nonce, count: &count, client_nonce: "c" };
            let response = ha1.response(Algorithm::Sha256, &asked);
            let header = format!(
                "Digest username=\"{user}\", realm=\"{REALM}\", nonce=\"{nonce}\", uri=\"/a\", algorithm=SHA-256, \
                 response=\"{response}\", cnonce=\"c\", nc={count}, qop=auth"
            );
            let headers = HeaderMap::from_iter([(AUTHORIZATION, header.parse().unwrap())]);
            let target = Uri::from_static("/a");
            let (constituency, realm) = (&self.name, REALM);
            let attempt =
                LoginAttempt { constituency, realm, method: &Method::GET, target: &target, headers: &headers };
            self.gate.verify(&attempt, now)
        }
    }

    #[test]
    fn a_nonce_has_its_time_and_who_is_right_only_has_to_ask_again() {
        let stage = Stage::new();
        let (nonce, mac) = (stage.nonce(1000, 0), USER.parse().unwrap());
        assert_eq!(stage.ask(USER, "open sesame", &nonce, 1, 1000 + LIFETIME), Ok(mac));
        let late = stage.ask(USER, "open sesame", &nonce, 2, 1001 + LIFETIME).unwrap_err();
        assert_eq!((late.why, late.is_stale), (AuthError::OldNonce(mac), true));
        let replayed = stage.ask(USER, "open sesame", &nonce, 1, 1000).unwrap_err();
        assert_eq!((replayed.why, replayed.is_stale), (AuthError::Replay(mac), true));
        let other = stage.gate.key.write(Nonce { issued: 1000, number: 0 }, &"prod".parse().unwrap());
        for foreign in [other.as_str(), "", "AAAA"] {
            let refused = stage.ask(USER, "open sesame", foreign, 1, 1000).unwrap_err();
            assert_eq!((refused.why, refused.is_stale), (AuthError::ForeignNonce(mac), true));
            // Whoever does not know the password does not learn that the nonce was the fault.
            let wrong = stage.ask(USER, "open barley", foreign, 1, 1000).unwrap_err();
            assert_eq!((wrong.why, wrong.is_stale), (AuthError::WrongPassword(mac), false));
        }
    }

    #[test]
    fn a_stranger_leaves_nothing_behind_and_holds_nobody_up() {
        let stage = Stage::new();
        let mac = USER.parse().unwrap();
        for (user, mut answers) in [(USER, Vec::new()), ("00005e0053aa", Vec::new()), ("nobody", Vec::new())] {
            for number in 0..20 {
                let refused = stage.ask(user, "guess", &stage.nonce(0, number), 1, 0).unwrap_err();
                answers.push(refused.is_too_much);
            }
            assert_eq!(answers, [[false; 10], [true; 10]].concat(), "{user}");
        }
        assert!(locked(&stage.gate.used).is_empty());
        assert_eq!(stage.ask(USER, "open sesame", &stage.nonce(0, 99), 1, 0), Ok(mac));
        assert!(!stage.ask(USER, "guess", &stage.nonce(0, 1), 1, 60_000).unwrap_err().is_too_much);
        assert_eq!(locked(&stage.gate.used).len(), 1);
    }

    #[test]
    fn only_the_phones_own_name_is_a_user() {
        let stage = Stage::new();
        let phone: MacAddress = USER.parse().unwrap();
        let nobody = AuthError::UnknownUser { mac: MacAddress::NOBODY, constituency: stage.name.clone() };
        for (user, why) in [
            ("00005E00530C", AuthError::OtherSpelling(phone)),
            ("00:00:5e:00:53:0c", AuthError::OtherSpelling(phone)),
            ("000000000000", nobody),
            ("00005e00530c ", AuthError::NoPhone),
            ("open sesame", AuthError::NoPhone),
            ("", AuthError::NoPhone),
        ] {
            let refused = stage.ask(user, "open sesame", &stage.nonce(0, 0), 1, 0).unwrap_err();
            assert!(!refused.why.to_string().contains("sesame"), "a password is said");
            assert_eq!(refused.why, why);
        }
    }

    #[test]
    fn passwords_for_another_name_are_of_no_use() {
        let stage = Stage::new();
        let ha1 = Ha1::of(USER, "ote.old.example", "open sesame");
        passwords::remove(stage.state.path(), &stage.name, USER.parse().unwrap(), &|_| ()).unwrap();
        passwords::set(stage.state.path(), &stage.name, "ote.old.example", USER.parse().unwrap(), ha1, &|_| ())
            .unwrap();
        assert!(stage.gate.passwords().refresh().is_empty());
        let refused = stage.ask(USER, "open sesame", &stage.nonce(0, 0), 1, 0).unwrap_err();
        assert!(matches!(refused.why, AuthError::OldRealm { .. }), "{refused:?}");
    }
}
