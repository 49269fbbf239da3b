//! The operators' own listener: how the server, its certificates and its phones are doing, apart from the phones'
//! listener. It runs on a thread and a runtime of its own, so that nothing that happens here touches the phones.
//!
//! 1. [`listener`]: accept, so many and no more, each with its deadlines.
//! 2. [`access_guard`]: Host, site, [token]: who may ask.
//! 3. [`routes`]: what is asked.
//! 4. [`snapshot_cache`]: everything that is shown is gathered into one [`snapshot`], by whoever has the [`AdminData`], about
//!    once a second for all who look.
//! 5. [`page`] shows it to people, the rest of [`routes`] to programs.
//!
//! # How page and routes meet
//! The page is rendered whole by [`page::render`], for `GET /` with the query of [`snapshot::PhoneQuery`], and by
//! [`page::render_phone`] for `GET /phones/CONSTITUENCY/MAC`; what they need besides is an [`page::asset`]. Nothing inline: the policy of contents forbids it.
//!
//! - Live: `GET /events` sends `data: NUMBER` (server-sent events) at once, and again when there is another picture, at most
//!   once a second. The script then fetches its own URL and takes from it what is new.
//! - Sign in: a form posts `token` to `/sign-in` ([`page::render_sign_in`]), which sets a cookie and leads to `/`;
//!   `/sign-out` takes it back.
//! - *Allow* and *Deny*: a form posts `mac`, `constituency` and `note` to `/allow` or `/deny`, and comes back to `/`;
//!   a script posts the same as JSON to `/api/allow` or `/api/deny`, and gets JSON: `{"changed": true}` or
//!   `{"error": "…"}`. Without `constituency`, a denial is the whole server's.

use std::sync::Arc;

use crate::constituency::{ConstituencyName, MacAddress};
use crate::metrics::Exposition;

mod access_guard;
mod events;
pub mod listener;
pub mod page;
mod query;
mod response;
mod routes;
mod settings;
pub mod snapshot;
mod snapshot_cache;
pub mod token;

pub use settings::{Endpoint, StatusSettings};

use access_guard::AccessGuard;
use snapshot_cache::SnapshotCache;
use token::OperatorToken;

/// Everything at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The whole.
    pub overview: snapshot::Overview,
    /// Every phone, in the order of constituency and address.
    pub phones: Vec<snapshot::PhoneView>,
}

/// A change of who is served, as an operator wants it.
#[derive(Debug, Clone)]
pub struct SnapshotRequest {
    /// What.
    pub change: AdminChange,
    /// The phone.
    pub mac: MacAddress,
    /// What is to stand beside it, or why it is denied everywhere; `None` leaves the note that it has.
    pub note: Option<String>,
    /// By which way the operator came.
    pub by: &'static str,
}

/// What an operator may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminChange {
    /// A phone on the list of a constituency.
    Allow(ConstituencyName),
    /// A phone denied by a constituency.
    Deny(ConstituencyName),
    /// A phone denied on the whole server.
    DenyEverywhere,
}

/// Whether phones can be served now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why no phone can be served; `None` if some can.
    pub not_ready: Option<String>,
    /// What an operator should look at before that is so: a line each.
    pub warnings: Vec<String>,
}

/// Whoever knows what is shown, and does what is wanted.
pub trait AdminData: Send + Sync + std::fmt::Debug {
    /// Another number whenever another picture would show something else. Does not wait.
    fn mark(&self) -> u64;
    /// Gathers a picture. May wait for a disk.
    fn snapshot(&self) -> Snapshot;
    /// `phone` with what it asked and what its master configuration names. May wait for a disk.
    ///
    /// # Errors
    /// Why that cannot be read.
    fn history(&self, phone: snapshot::PhoneView) -> Result<snapshot::PhoneHistoryView, String>;
    /// Whether phones can be served now. Does not wait.
    fn readiness(&self) -> Readiness;
    /// Changes who is served; whether that made a difference. May wait for a disk.
    ///
    /// # Errors
    /// Why it is as it was.
    fn change(&self, wanted: &SnapshotRequest) -> Result<bool, String>;
    /// The metrics, with what of them stands in `picture`. Does not wait.
    fn metrics(&self, picture: &Snapshot, exposition: Exposition) -> String;
}

/// What the listener serves from.
#[derive(Debug)]
pub struct AdminServer {
    knowledge: Arc<dyn AdminData>,
    token: Arc<OperatorToken>,
    gate: AccessGuard,
    pictures: SnapshotCache,
}

impl AdminServer {
    /// Serves what `knowledge` knows on `endpoint`, to those who may.
    #[must_use]
    pub fn new(
        settings: &StatusSettings,
        endpoint: &Endpoint,
        token: Arc<OperatorToken>,
        knowledge: Arc<dyn AdminData>,
    ) -> Self {
        Self { knowledge, token, gate: AccessGuard::new(settings, endpoint), pictures: SnapshotCache::default() }
    }
}
