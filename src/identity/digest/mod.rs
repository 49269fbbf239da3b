//! Digest authentication (RFC 7616), for phones without a usable certificate. Only over TLS.
//!
//! A request is verified in this order:
//!
//! 1. [`authorization`]: there is exactly one Authorization header, of the scheme Digest, without duplicate parameters.
//! 2. [`algorithm`]: the response is correct for the password of the named phone. For each password, [`passwords`]
//!    stores its HA1, which is equivalent to the password within this realm.
//! 3. [`nonce`]: the nonce was issued by this process, for this constituency, and has not expired.
//!
//! A failure at step 2 does not show the client whether the phone or the password is unknown. After a failure at step 3,
//! the client is challenged again with `stale=true`. Nothing is stored of a client: the connection limits its failures
//! (`serve::password_auth`), and a correct response is always accepted, so a third party cannot lock a phone out by
//! using its name.
//!
//! [`challenge`] is the client side, for the virtual phone.

mod algorithm;
mod authenticator;
mod authorization;
mod challenge;
mod nonce;
pub mod passwords;

pub use algorithm::{Algorithm, Ha1};
pub use authenticator::{AuthError, DigestAuthenticator, LoginAttempt, LoginFailure};
pub use challenge::{ChallengeRequest, DigestChallenge};
