//! A phone's password (`device.prov.password`), and its answers to digest challenges.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use zeroize::Zeroizing;

use crate::identity::digest::{ChallengeRequest, DigestChallenge};

/// A password. `Debug` does not show it.
#[derive(Clone)]
pub struct Password(Arc<Zeroizing<String>>);

impl Password {
    #[must_use]
    pub fn new(password: String) -> Self {
        Self(Arc::new(Zeroizing::new(password)))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

/// Answers digest challenges for one phone.
pub(super) struct DigestCredentials {
    user: String,
    password: Password,
    /// The last challenge, and how many answers it got.
    challenge: Option<(DigestChallenge, u32)>,
}

impl DigestCredentials {
    /// For the phone with this `user` name and `password`.
    pub(super) fn new(user: String, password: Password) -> Self {
        Self { user, password, challenge: None }
    }

    /// The value of the Authorization header, once a challenge is known. Each call gives a different one.
    pub(super) fn answer(&mut self, method: &str, target: &str) -> Option<String> {
        let (challenge, count) = self.challenge.as_mut()?;
        *count += 1;
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        let client_nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let asked = ChallengeRequest { method, target, count: *count, client_nonce: &client_nonce };
        Some(challenge.answer(&self.user, &self.password.0, asked))
    }

    /// Stores the challenge of a 401 response. Returns whether to repeat the request with an answer. A second challenge
    /// after an answer means that the password is wrong, unless it is marked stale.
    pub(super) fn store_challenge(&mut self, headers: &HeaderMap) -> bool {
        let has_answered = self.challenge.is_some();
        let challenge = DigestChallenge::first(headers).filter(|challenge| !has_answered || challenge.is_stale);
        self.challenge = challenge.map(|challenge| (challenge, 0));
        self.challenge.is_some()
    }
}
