//! The interfaces to the outside: CA, DNS, clock. They are traits, so that a test can simulate a decade in seconds.
//!
//! The flow waits by tokio's clock, which a test may pause, and takes the time of day from [`Env`].

use std::path::PathBuf;
use std::pin::Pin;

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::failure::AcmeFailure;
use super::schedule::RenewalWindow;
use crate::ca::KeyKind;
use crate::dns::RecordLocation;
use crate::dns::responder::challenge_name;

/// The future of a port's operation.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, AcmeFailure>> + Send + 'a>>;

/// Reports the progress of a long operation.
pub type StepReporter<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Clock, randomness and new keys.
pub trait Env: Send + Sync {
    /// The time, in seconds since 1970.
    fn now(&self) -> i64;
    /// A number from 0 up to, not including, 1.
    fn random(&self) -> f64;
    /// A new private key.
    fn new_key(&self, kind: KeyKind) -> Result<KeyPair, rcgen::Error>;
}

/// The DNS operations that challenges need: a solver of one kind of challenge.
pub trait ChallengeDns: Send + Sync {
    /// The kind of challenge (RFC 8555 §9.7.8).
    fn method(&self) -> &'static str {
        "dns-01"
    }
    /// The name of the challenge for `domain`.
    fn challenge_name(&self, domain: &str) -> String {
        challenge_name(domain)
    }
    /// Why this machine can publish no challenge until an operator acts, if so; kept up to date.
    fn fault(&self) -> watch::Receiver<Option<String>> {
        watch::channel(None).1
    }
    /// Finds the location of the records of `challenge_name`.
    fn locate<'a>(&'a self, challenge_name: &'a str) -> PortFuture<'a, RecordLocation>;
    /// Fails if `name` has addresses only from a wildcard record, which any record below `name`, such as a challenge,
    /// would hide.
    fn stands_alone<'a>(&'a self, name: &'a str) -> PortFuture<'a, ()>;
    /// The CAA records that apply to `name` and permit only `account`; without one, any account.
    fn account_binding<'a>(&'a self, name: &'a str, account: Option<&'a str>) -> PortFuture<'a, Vec<String>>;
    /// Adds TXT records with `values`; others at the same name stay.
    fn add<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()>;
    /// Removes TXT records with exactly these values. Absent ones are ignored.
    fn remove<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()>;
    /// Waits until all authoritative servers answer with `values`.
    fn wait_until_visible<'a>(
        &'a self,
        location: &'a RecordLocation,
        values: &'a [String],
        report: StepReporter<'a>,
    ) -> PortFuture<'a, ()>;
    /// What DNS shows of `values` at `location` that may be the cause of a failed validation. Changes nothing.
    fn likely_causes<'a>(
        &'a self,
        _location: &'a RecordLocation,
        _values: &'a [String],
    ) -> PortFuture<'a, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// A CA with our account. It handles one request at a time.
pub trait Ca: Send + Sync {
    /// The URL of its directory, which identifies it.
    fn directory(&self) -> &str;
    /// Connects to the CA; true if we have an account there.
    fn open(&self) -> PortFuture<'_, bool>;
    /// Registers our account; the same key returns the same account.
    fn register(&self) -> PortFuture<'_, ()>;
    /// The URL of our account, if one is registered.
    fn account_url(&self) -> Result<Option<String>, AcmeFailure>;
    /// Renames the key of our account, so that the next registration makes a new one; where it is kept.
    fn put_account_aside(&self) -> Result<PathBuf, AcmeFailure>;
    /// How many seconds its clock is ahead of ours, by its last response.
    fn clock_skew(&self) -> Option<i64>;
    /// When it wants `leaf` renewed; `None` if it names no window (RFC 9773).
    fn renewal_window<'a>(&'a self, leaf: &'a CertificateDer<'static>) -> PortFuture<'a, Option<RenewalAdvice>>;
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

/// A CA's renewal information about a certificate (RFC 9773 §4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewalAdvice {
    pub window: RenewalWindow,
    /// In how many seconds to ask again.
    pub recheck_after_s: i64,
    /// The URL of a page that explains the window.
    pub explanation: Option<String>,
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
    /// The challenges of the kind `method`, of authorizations that are not valid yet.
    fn challenges<'a>(&'a mut self, method: &'a str) -> PortFuture<'a, Vec<PendingChallenge>>;
    /// Tells the CA that the records of the challenges of the kind `method` are published, and waits for the result.
    fn validate<'a>(&'a mut self, method: &'a str) -> PortFuture<'a, ()>;
    /// Sends the certificate request.
    fn finalize<'a>(&'a mut self, csr: &'a [u8]) -> PortFuture<'a, ()>;
    /// Waits for the certificate. Returns PEM chains: the CA's default first, the alternates only if `all`.
    fn chains(&mut self, all: bool) -> PortFuture<'_, Vec<String>>;
}
