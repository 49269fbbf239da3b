//! What the flow needs of the world: a CA, DNS, a clock. As traits, so that a decade can pass in seconds in a test.
//!
//! The flow waits with tokio's clock, which a test may pause; what time it is, it asks [`Env`].

use std::pin::Pin;

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;

use super::failure::AcmeFailure;
use super::schedule::RenewalWindow;
use crate::ca::KeyKind;
use crate::dns::RecordLocation;

/// An answer that takes a while.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, AcmeFailure>> + Send + 'a>>;

/// Tells how something long proceeds.
pub type Say<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Time, chance and new keys.
pub trait Env: Send + Sync {
    /// The time, in seconds since 1970.
    fn now(&self) -> i64;
    /// A number from 0 up to, not including, 1.
    fn random(&self) -> f64;
    /// A new private key.
    fn new_key(&self, kind: KeyKind) -> Result<KeyPair, rcgen::Error>;
}

/// DNS, as far as challenges need it.
pub trait ChallengeDns: Send + Sync {
    /// Finds where the records of `challenge_name` belong.
    fn locate<'a>(&'a self, challenge_name: &'a str) -> PortFuture<'a, RecordLocation>;
    /// Fails if `name` has addresses only by a wildcard record, which any record below it, such as a challenge's, would hide.
    fn stands_alone<'a>(&'a self, name: &'a str) -> PortFuture<'a, ()>;
    /// Adds TXT records with `values`, beside whatever is there.
    fn add<'a>(&'a self, place: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()>;
    /// Removes TXT records with exactly these values; that they are not there is no failure.
    fn remove<'a>(&'a self, place: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()>;
    /// Waits until all authorities answer with `values`.
    fn wait_until_visible<'a>(
        &'a self,
        place: &'a RecordLocation,
        values: &'a [String],
        say: Say<'a>,
    ) -> PortFuture<'a, ()>;
}

/// A CA with our account there. One request at a time.
pub trait Ca: Send + Sync {
    /// The URL of its directory, which is its name.
    fn directory(&self) -> &str;
    /// Reaches the CA; true if we have an account there.
    fn open(&self) -> PortFuture<'_, bool>;
    /// Registers our account; the same key gives the same account.
    fn register(&self) -> PortFuture<'_, ()>;
    /// How far its clock is ahead of ours, in seconds, by its last answer.
    fn clock_skew(&self) -> Option<i64>;
    /// When it wants `leaf` renewed, and in how many seconds to ask again; `None` if it does not say (RFC 9773).
    fn renewal_window<'a>(&'a self, leaf: &'a CertificateDer<'static>) -> PortFuture<'a, Option<(RenewalWindow, i64)>>;
    /// Places an order for `names`.
    fn order<'a>(
        &'a self,
        names: &'a [String],
        replaces: Option<&'a CertificateDer<'static>>,
    ) -> PortFuture<'a, Box<dyn Order>>;
    /// Takes up an order that was placed before.
    fn order_at<'a>(&'a self, url: &'a str) -> PortFuture<'a, Box<dyn Order>>;
    /// Revokes a certificate of ours.
    fn revoke<'a>(&'a self, leaf: &'a CertificateDer<'static>) -> PortFuture<'a, ()>;
}

/// How far an order is (RFC 8555 §7.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderStatus {
    /// Authorizations are missing.
    Pending,
    /// It may be finalized.
    Ready,
    /// The CA is issuing.
    Processing,
    /// There is a certificate.
    Valid,
    /// It came to nothing.
    Invalid,
}

/// The record that a pending authorization wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingChallenge {
    /// The name to be authorized, without `*.`.
    pub domain: String,
    /// The value of the TXT record.
    pub value: String,
}

/// An order at a CA.
pub trait Order: Send {
    /// Where it is.
    fn url(&self) -> &str;
    /// How far it was when last seen.
    fn status(&mut self) -> OrderStatus;
    /// The challenges of those authorizations that are not valid yet.
    fn challenges(&mut self) -> PortFuture<'_, Vec<PendingChallenge>>;
    /// Tells the CA that the records are there, and waits for its verdict.
    fn validate(&mut self) -> PortFuture<'_, ()>;
    /// Sends the certificate request.
    fn finalize<'a>(&'a mut self, csr: &'a [u8]) -> PortFuture<'a, ()>;
    /// Waits for the certificate: PEM chains, the CA's default first, its others only if `all`.
    fn chains(&mut self, all: bool) -> PortFuture<'_, Vec<String>>;
}
