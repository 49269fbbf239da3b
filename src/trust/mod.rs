//! Whose certificates count: Polycom's factory PKI as facts, an operator's own bundles, and the judgement of a
//! device certificate.
//!
//! The chain authorises nobody by itself: whoever owns a phone owns a valid one. It proves a MAC address, and the
//! constituency's list says what that address may do.

pub mod bundle;
mod client_verifier;
pub mod identity;
mod polycom;
mod refusal;
mod verifier;

pub use bundle::{Bundle, BundleError, Bundles, load_all};
pub use client_verifier::{RequireDevice, Verdict, with_verdict};
pub use identity::NoIdentity;
pub use refusal::{ChainRefusal, rfc3339};
pub use verifier::{DeviceVerifier, VerifiedDevice};
