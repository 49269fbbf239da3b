//! Obtaining and renewing the certificates, unattended: ACME (RFC 8555) with DNS-01 challenges.
//!
//! 1. A timer ([`schedule`]) says which certificate is due: each kind of key is an order of its own, at its own time.
//! 2. The account is opened, or registered; its key is on disk first.
//! 3. An order that is under way is taken up by its URL, or a new one is placed, with `replaces` if the CA asked for the
//!    renewal (RFC 9773).
//! 4. Authorizations that are not valid yet want DNS records: they are noted in the [`journal`], published in one update
//!    per name, and awaited on all authorities. Only then the CA is told.
//! 5. The order is finalized; chain and key are [checked](check), [stored](store), published.
//! 6. The records are removed, whatever became of all this.
//!
//! What must not be repeated too often is paid from a [`budget`] first. All that must outlive a crash is on the disk
//! before its consequences are in the world, so a process may end at any point: the next one takes up what is there.
//!
//! CA, DNS, clock and chance are [`ports`]; the real CA is in [`acme`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use crate::ca::KeyKind;
use crate::certificate::LiveCertificates;

pub mod acme;
mod budget;
mod check;
mod failure;
mod journal;
mod memory;
pub mod ports;
mod rehearsal;
mod run;
mod schedule;
mod settings;
mod status;
mod steps;
mod store;
mod system;
mod through_dns;
mod timetable;

pub use failure::{Cure, Failure, Sign};
pub use run::Command;
pub use schedule::Window;
pub use settings::{AcmeSettings, Directory, ExternalAccount, FallbackDirectory};
pub use status::{AttemptCounts, Board, CertificateStatus, HeldStatus, Status};
pub use system::SystemWorld;

use journal::Journal;
use memory::Memory;
use ports::{Ca, ChallengeDns, World};
use store::{Store, Stored};

/// The chain of the certificate of `kind` that is stored in the state directory, leaf first; `None` before the first.
#[must_use]
pub fn stored_chain(state: &Path, kind: KeyKind) -> Option<Vec<CertificateDer<'static>>> {
    Store::new(state.join("certs")).load(kind).0.map(|stored| stored.checked.chain)
}

/// What a [`Renewer`] works with.
pub struct Parts {
    /// The certificates are for this name and for all names one label below it.
    pub domain: String,
    /// The kinds of keys.
    pub keys: Vec<KeyKind>,
    /// The issuer that a chain should end at.
    pub preferred_chain: Option<String>,
    /// The CAs, in the order in which they are asked; at least one.
    pub cas: Vec<Arc<dyn Ca>>,
    /// Where challenges are published.
    pub dns: Arc<dyn ChallengeDns>,
    /// Time, chance and keys.
    pub world: Arc<dyn World>,
    /// Differs when the settings do: then past failures do not count.
    pub fingerprint: String,
}

/// Obtains and renews certificates.
pub struct Renewer {
    parts: Parts,
    names: Vec<String>,
    store: Store,
    journal: Journal,
    memory: Memory,
    held: BTreeMap<KeyKind, Stored>,
    live: Arc<LiveCertificates>,
    board: Arc<Board>,
    /// What somebody asked for, due or not.
    forced: BTreeSet<KeyKind>,
    /// How often in a row DNS records could not be removed, and when to try again.
    clean_up_failures: u32,
    clean_up_at: i64,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("domain", &self.domain).field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Renewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewer").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Renewer {
    /// Reads what is stored in `state` and publishes the certificates in it at once, be they expired, be CA and DNS down.
    ///
    /// # Errors
    /// If the state directory cannot be read and written.
    pub fn open(parts: Parts, state: &Path, live: Arc<LiveCertificates>) -> io::Result<Self> {
        let store = Store::new(state.join("certs"));
        let (journal, damaged_journal) = Journal::open(state.join("dns-journal.json"))?;
        let (mut memory, damaged_memory) = Memory::open(state.join("renewal.json"))?;
        damaged_journal.iter().chain(&damaged_memory).for_each(|damage| tracing::error!("{damage}"));
        let mut held = BTreeMap::new();
        for kind in &parts.keys {
            let (stored, problems) = store.load(*kind);
            for problem in problems {
                tracing::error!("a stored certificate cannot be used: {problem}");
            }
            held.extend(stored.map(|stored| (*kind, stored)));
        }
        let now = parts.world.now();
        timetable::begin_anew(&mut memory.kept, &parts.fingerprint, &held, now, parts.world.dice());
        let names = vec![format!("*.{}", parts.domain), parts.domain.clone()];
        let board = Arc::new(Board::default());
        let (forced, clean_up_failures, clean_up_at) = (BTreeSet::new(), 0, now);
        let renewer =
            Self { parts, names, store, journal, memory, held, live, board, forced, clean_up_failures, clean_up_at };
        renewer.warn_of_clock(now);
        renewer.publish();
        renewer.board.publish(renewer.status());
        Ok(renewer)
    }

    /// How things are, by what is on the disk.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn peek(parts: Parts, state: &Path) -> io::Result<Status> {
        Ok(Self::open(parts, state, Arc::default())?.status())
    }

    /// Where its status can be read, by anybody at any time.
    #[must_use]
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// One attempt for the certificate of `kind`, from the timer to the clean-up, and what is remembered of it.
    async fn attempt(&mut self, kind: KeyKind) {
        self.board.count_attempt(kind);
        let ca = self.ca_for(kind);
        let result = match self.begin(kind) {
            Ok(()) => self.renew(kind, &ca).await,
            Err(error) => Err(error),
        };
        // Outside what may fail, so that nothing can skip it.
        self.clean_up().await;
        self.conclude(kind, ca.directory(), result);
    }

    /// The way to a new certificate.
    async fn renew(&mut self, kind: KeyKind, ca: &Arc<dyn Ca>) -> Result<(), Failure> {
        self.open_account(kind, &**ca).await?;
        let mut order = self.take_up_order(kind, ca).await?;
        let obtained = self.obtain(&mut order).await;
        if obtained.is_ok() || matches!(&obtained, Err(failure) if failure.sign == Sign::Refused) {
            self.forget_order(kind)?;
        }
        obtained
    }

    /// From an order to a certificate in use.
    async fn obtain(&mut self, order: &mut steps::UnderWay) -> Result<(), Failure> {
        self.authorize(order).await?;
        let chains = self.finalize(order).await?;
        let stored = self.check_and_store(order, &chains)?;
        self.held.insert(order.kind, stored);
        self.publish();
        Ok(())
    }

    /// Shows what we hold to those who connect from now on.
    fn publish(&self) {
        self.live.publish(self.held.values().map(|stored| stored.checked.certificate.clone()).collect());
    }
}
