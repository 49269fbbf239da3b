//! A phone's password (`device.prov.password`), and what it answers with it where it is asked.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use zeroize::Zeroizing;

use crate::identity::digest::{ChallengeRequest, DigestChallenge};

/// A password. It is never shown.
#[derive(Clone)]
pub struct Password(Arc<Zeroizing<String>>);

impl Password {
    /// That password.
    #[must_use]
    pub fn new(password: String) -> Self {
        Self(Arc::new(Zeroizing::new(password)))
    }
}

/// Not what it is.
impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// A phone that can be asked for its password.
pub(super) struct Prover {
    user: String,
    password: Password,
    /// What was asked last, and how often that was answered.
    challenge: Option<(DigestChallenge, u32)>,
}

impl Prover {
    /// The phone whose `user` has this `password`.
    pub(super) fn new(user: String, password: Password) -> Self {
        Self { user, password, challenge: None }
    }

    /// The value of Authorization for a request, once it is known what the server asks; another one each time.
    pub(super) fn answer(&mut self, method: &str, target: &str) -> Option<String> {
        let (challenge, count) = self.challenge.as_mut()?;
        *count += 1;
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        let client_nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let asked = ChallengeRequest { method, target, count: *count, client_nonce: &client_nonce };
        Some(challenge.answer(&self.user, &self.password.0, asked))
    }

    /// Takes in the challenge of a 401; whether it makes sense to ask again with an answer to it. A new one after an
    /// answer means that the password is wrong, unless it says that the old one is too old.
    pub(super) fn is_asked(&mut self, headers: &HeaderMap) -> bool {
        let has_answered = self.challenge.is_some();
        let challenge = DigestChallenge::first(headers).filter(|challenge| !has_answered || challenge.is_stale);
        self.challenge = challenge.map(|challenge| (challenge, 0));
        self.challenge.is_some()
    }
}
