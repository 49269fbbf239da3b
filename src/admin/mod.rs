//! The operators' listener: the state of the server, its certificates and its phones, apart from the phones' listener.
//! It runs on a thread and a runtime of its own, so that nothing here affects phones.
//!
//! 1. [`listener`]: accepts connections, with a limit and timeouts.
//! 2. [`access_guard`]: checks Host, site and the token of one of the [operators].
//! 3. [`routes`]: handles requests.
//! 4. [`snapshot_cache`]: caches one [`snapshot`] for all clients, made from the [`AdminData`] about once a second. It has
//!    counts, and no list of phones: [`AdminData::phones`] reads the page of it that a client wants.
//! 5. [`page`] renders it for people, the rest of [`routes`] for programs.
//!
//! # How page and routes meet
//! [`page::render`] renders the whole page for `GET /` with the query of [`snapshot::PhoneQuery`], and
//! [`page::render_phone`] for `GET /phones/CONSTITUENCY/MAC`. Their style, script and icon are [`page::asset`]s: the
//! Content-Security-Policy forbids inline ones.
//!
//! - Live: `GET /events` sends `data: NUMBER` (server-sent events) at once, and again for each new snapshot, at most
//!   once a second. The script then fetches its own URL, and updates the page from it.
//! - Sign in: a form posts `token` to `/sign-in` ([`page::render_sign_in`]), which sets a cookie and redirects to `/`.
//!   `/sign-out` removes the cookie.
//! - *Allow* and *Deny*: a form posts `mac`, `constituency` and `note` to `/allow` or `/deny`, and is redirected to
//!   `/`. A script posts the same as JSON to `/api/allow` or `/api/deny`, and gets JSON: `{"changed": true}` or
//!   `{"error": "…"}`. Without `constituency`, the denial is server-wide. With `macs` in place of `mac`, all of them are
//!   changed or none, and the response names those that changed: `{"changed": true, "macs": ["…"]}`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::audit::AuditReading;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::metrics::Exposition;

mod access_guard;
mod connections;
mod events;
pub mod headlines;
pub mod listener;
pub mod operators;
pub mod page;
mod query;
mod response;
mod routes;
pub mod scoped;
mod settings;
pub mod snapshot;
mod snapshot_cache;

pub use settings::{Endpoint, StatusSettings};

use access_guard::AccessGuard;
use operators::{Operator, Operators, Scope};
use snapshot_cache::SnapshotCache;

/// The state of everything at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// What it was made for.
    pub scope: Scope,
    /// Everything but the list of phones.
    pub overview: snapshot::Overview,
    pub numbers: AllNumbers,
    pub version: Version,
}

/// The versions of the index of phones and of the policies: they differ if the numbers of phones may differ.
pub type Version = (i64, u64);

/// The numbers of phones by constituency, also of those that are not served any more.
pub type AllNumbers = BTreeMap<ConstituencyName, snapshot::PhoneNumbers>;

/// A change that an operator requests.
#[derive(Debug, Clone)]
pub struct ChangeRequest {
    pub change: AdminChange,
    /// The phones, sorted and without duplicates: all are changed, or none.
    pub macs: Vec<MacAddress>,
    /// The new note of the phones, or the reason of the denial. `None` keeps the old notes.
    pub note: Option<String>,
    pub by: Author,
}

/// The operator who makes a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    pub operator: Arc<Operator>,
    pub interface: Interface,
    /// The address of the peer; `unix` for a Unix socket.
    pub from: String,
    /// The address that a proxy forwards. Any client can send it.
    pub claimed_from: Option<String>,
}

/// The interface by which an operator makes a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    Page,
    Api,
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = match self.interface {
            Interface::Page => "on the status page",
            Interface::Api => "through the API",
        };
        write!(f, "{}, {interface}", self.operator.name)
    }
}

/// What an operator may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminChange {
    /// Add a phone to the list of a constituency.
    Allow(ConstituencyName),
    /// Deny a phone in a constituency.
    Deny(ConstituencyName),
    /// Deny a phone server-wide.
    DenyEverywhere,
}

/// Whether phones can be served now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why no phone can be served; `None` if some can.
    pub not_ready: Option<String>,
    /// What an operator should fix before phones can no longer be served, a line each.
    pub warnings: Vec<String>,
}

/// The source of snapshots, and the target of changes.
pub trait AdminData: Send + Sync + std::fmt::Debug {
    /// A number that changes when a new snapshot would differ. Does not block.
    fn revision(&self) -> u64;
    /// Makes a snapshot of what is within `scope`. May block on a disk.
    fn snapshot(&self, scope: &Scope) -> Snapshot;
    /// The phones within the scope of `snapshot` that match `query` now, and whether `snapshot` has the numbers of this
    /// moment. May block on a disk.
    ///
    /// # Errors
    /// Why the history cannot be read.
    fn phones(&self, snapshot: &Snapshot, query: &snapshot::PhoneQuery) -> Result<(snapshot::PhonePage, bool), String>;
    /// A phone with its requests and the files that its master configuration names, and the version at that moment;
    /// `None` if there is no such phone within `scope`. May block on a disk.
    ///
    /// # Errors
    /// Why the history cannot be read.
    fn history(
        &self,
        scope: &Scope,
        constituency: &ConstituencyName,
        mac: MacAddress,
    ) -> Result<Option<(snapshot::PhoneHistoryView, Version)>, String>;
    /// The last `count` changes that `operator` may see, of one constituency if it is given. Without an operator, all that
    /// a client on this machine may read. May block on a disk.
    ///
    /// # Errors
    /// Why the audit log cannot be read.
    fn audit(
        &self,
        operator: Option<&Operator>,
        constituency: Option<&ConstituencyName>,
        count: usize,
    ) -> Result<AuditReading, String>;
    /// Whether phones can be served now. Does not block.
    fn readiness(&self) -> Readiness;
    /// Changes who is served, if that is within the scope of the operator. Returns the phones that it changed, sorted. May
    /// block on a disk.
    ///
    /// # Errors
    /// Why nothing changed.
    fn change(&self, wanted: &ChangeRequest) -> Result<Vec<MacAddress>, String>;
    /// The metrics, with the gauges from `snapshot`. May block on a disk.
    fn metrics(&self, snapshot: &Snapshot, exposition: Exposition) -> String;
}

/// The state of the operators' listener.
#[derive(Debug)]
pub struct AdminServer {
    admin_data: Arc<dyn AdminData>,
    operators: Arc<Operators>,
    access_guard: AccessGuard,
    snapshots: SnapshotCache,
}

impl AdminServer {
    /// A server of `admin_data` at `endpoint`.
    #[must_use]
    pub fn new(
        settings: &StatusSettings,
        endpoint: &Endpoint,
        operators: Arc<Operators>,
        admin_data: Arc<dyn AdminData>,
    ) -> Self {
        Self {
            admin_data,
            operators,
            access_guard: AccessGuard::new(settings, endpoint),
            snapshots: SnapshotCache::default(),
        }
    }
}
