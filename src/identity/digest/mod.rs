//! Digest authentication (RFC 7616): for phones that have no certificate of use, and only within TLS.
//!
//! What a request brings is judged in this order:
//!
//! 1. [`authorization`]: exactly one header, of the scheme Digest, that names each thing once.
//! 2. [`algorithm`]: the response is right for the password of the phone that is named. What is stored of a password is
//!    its HA1 ([`passwords`]), which is as good as the password itself within this realm.
//! 3. [`nonce`]: it is one of ours, for this constituency, and young.
//! 4. [`replay`]: this nonce was not used with this count.
//!
//! Whoever fails at 2 is not told whether the phone or the password is unknown, and after too many failures under one
//! name ([`attempts`]) gets no more challenges for a while; a right response is never held back, so nobody can lock a
//! phone out by using its name. Whoever is right and fails later only has to ask again (`stale`).
//!
//! The virtual phone is at the other end, with [`challenge`].

mod algorithm;
mod attempts;
mod authenticator;
mod authorization;
mod challenge;
mod nonce;
pub mod passwords;
mod replay;

pub use algorithm::{Algorithm, Ha1};
pub use authenticator::{AuthError, DigestAuthenticator, LoginAttempt, UnprovenLogin};
pub use challenge::{ChallengeRequest, DigestChallenge};
