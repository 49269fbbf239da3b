//! The interfaces to the outside: CA, DNS, clock. They are traits, so that a test can simulate a decade in seconds.
//!
//! The flow waits by tokio's clock, which a test may pause, and takes the time of day from [`Env`].

use std::pin::Pin;

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;

use super::failure::AcmeFailure;
use super::schedule::RenewalWindow;
use crate::ca::KeyKind;
use crate::dns::RecordLocation;

/// The future of a port's operation.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, AcmeFailure>> + Send + 'a>>;

/// Reports the progress of a long operation.
pub type Say<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Clock, randomness and new keys.
pub trait Env: Send + Sync {
    /// The time, in seconds since 1970.
    fn now(&self) -> i64;
    /// A number from 0 up to, not including, 1.
    fn random(&self) -> f64;
    /// A new private key.
    fn new_key(&self, kind: KeyKind) -> Result<KeyPair, rcgen::Error>;
}

/// The DNS operations that challenges need.
pub trait ChallengeDns: Send + Sync {
    /// Finds the location of the records of `challenge_name`.
    fn locate<'a>(&'a self, challenge_name: &'a str) -> PortFuture<'a, RecordLocation>;
    /// Fails if `name` has addresses only from a wildcard record, which any record below `name`, such as a challenge,
    /// would hide.
    fn stands_alone<'a>(&'a self, name: &'a str) -> PortFuture<'a, ()>;
    /// Adds TXT records with `values`; others at the same name stay.
    fn add<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()>;
    /// Removes TXT records with exactly these values. Absent ones are ignored.
    fn remove<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()>;
    /// Waits until all authoritative servers answer with `values`.
    fn wait_until_visible<'a>(
        &'a self,
        location: &'a RecordLocation,
        values: &'a [String],
        say: Say<'a>,
    ) -> PortFuture<'a, ()>;
}

/// A CA with our account. It handles one request at a time.
pub trait Ca: Send + Sync {
    /// The URL of its directory, which identifies it.
    fn directory(&self) -> &str;
    /// Connects to the CA; true if we have an account there.
    fn open(&self) -> PortFuture<'_, bool>;
    /// Registers our account; the same key returns the same account.
    fn register(&self) -> PortFuture<'_, ()>;
    /// How many seconds its clock is ahead of ours, by its last response.
    fn clock_skew(&self) -> Option<i64>;
    /// When it wants `leaf` renewed, and in how many seconds to ask again; `None` if it names no window (RFC 9773).
    fn renewal_window<'a>(&'a self, leaf: &'a CertificateDer<'static>) -> PortFuture<'a, Option<(RenewalWindow, i64)>>;
    /// Places an order for `names`.
    fn order<'a>(
        &'a self,
        names: &'a [String],
        replaces: Option<&'a CertificateDer<'static>>,
    ) -> PortFuture<'a, Box<dyn Order>>;
    /// Resumes an order by its URL.
    fn order_at<'a>(&'a self, url: &'a str) -> PortFuture<'a, Box<dyn Order>>;
    /// Revokes a certificate of ours.
    fn revoke<'a>(&'a self, leaf: &'a CertificateDer<'static>) -> PortFuture<'a, ()>;
}

/// The status of an order (RFC 8555 §7.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderStatus {
    /// Authorizations are missing.
    Pending,
    /// It may be finalized.
    Ready,
    /// The CA is issuing.
    Processing,
    /// The certificate was issued.
    Valid,
    /// The order failed.
    Invalid,
}

/// The TXT record that a pending authorization needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingChallenge {
    /// The name to be authorized, without `*.`.
    pub domain: String,
    /// The value of the TXT record.
    pub value: String,
}

/// An order at a CA.
pub trait Order: Send {
    fn url(&self) -> &str;
    /// Its status in the last response.
    fn status(&mut self) -> OrderStatus;
    /// The challenges of authorizations that are not valid yet.
    fn challenges(&mut self) -> PortFuture<'_, Vec<PendingChallenge>>;
    /// Tells the CA that the records are published, and waits for the result.
    fn validate(&mut self) -> PortFuture<'_, ()>;
    /// Sends the certificate request.
    fn finalize<'a>(&'a mut self, csr: &'a [u8]) -> PortFuture<'a, ()>;
    /// Waits for the certificate. Returns PEM chains: the CA's default first, the alternates only if `all`.
    fn chains(&mut self, all: bool) -> PortFuture<'_, Vec<String>>;
}
