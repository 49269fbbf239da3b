//! Obtaining and renewing the certificates, unattended: ACME (RFC 8555) with DNS-01 challenges.
//!
//! 1. A timer ([`schedule`]) says which certificate is due: each kind of key is an order of its own, at its own time, and
//!    so is each constituency that wants a certificate for its [exact] names. The wildcard goes first.
//! 2. The account is opened, or registered; its key is on disk first.
//! 3. An order that is under way is taken up by its URL, or a new one is placed, with `replaces` if the CA asked for the
//!    renewal (RFC 9773).
//! 4. Authorizations that are not valid yet want DNS records: they are noted in the [`journal`], published in one update
//!    per name, and awaited on all authorities. Only then the CA is told.
//! 5. The order is finalized; chain and key are [checked](check), [stored](store), published.
//! 6. The records are removed, whatever became of all this.
//!
//! What must not be repeated too often is paid from a [`rate_limit`] first. All that must outlive a crash is on the disk
//! before its consequences are in the world, so a process may end at any point: the next one takes up what is there.
//!
//! CA, DNS, clock and chance are [`ports`]; the real CA is in [`client`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::ca::KeyKind;
use crate::certificate::{ExactNames, LiveCertificates};

mod check;
pub mod client;
mod dns01;
mod dry_run;
mod exact;
mod failure;
mod journal;
mod lineage;
mod order_flow;
mod persistent_state;
pub mod ports;
mod rate_limit;
mod run;
mod schedule;
mod scheduler;
mod settings;
mod status;
mod store;
mod stored;
mod system_env;

pub use failure::{AcmeFailure, FailureKind, Retry};
pub use lineage::Lineage;
pub use run::RenewalCommand;
pub use schedule::RenewalWindow;
pub use settings::{AcmeSettings, Directory, ExternalAccount, FallbackDirectory};
pub use status::{AcmeStatus, AttemptCounts, CertificateStatus, HeldStatus, StatusBoard};
pub use stored::{StoredCertificate, stored_certificates};
pub use system_env::SystemEnv;

use journal::ChallengeJournal;
use persistent_state::PersistentState;
use ports::{Ca, ChallengeDns, Env};
use store::{CertificateStore, StoredLineage};

/// The chains of all certificates that are stored in the state directory, leaf first, each with the directory of its CA. The
/// RSA wildcard's comes first.
#[must_use]
pub fn stored_chains(state: &Path) -> Vec<(String, Vec<CertificateDer<'static>>)> {
    let store = CertificateStore::new(state.join("certs"));
    let wildcards = [KeyKind::Rsa2048, KeyKind::EcdsaP256].map(Lineage::Wildcard);
    let lineages = wildcards.into_iter().chain(store.exact().into_iter().map(Lineage::Exact));
    let stored = lineages.filter_map(|lineage| store.load(&lineage).0);
    stored.map(|stored| (stored.meta.directory, stored.checked.chain)).collect()
}

/// What the wildcard certificate of `domain` is for.
fn wildcard_names(domain: &str) -> Vec<String> {
    vec![format!("*.{domain}"), domain.to_owned()]
}

/// What a [`Renewer`] works with.
pub struct Parts {
    /// The certificates are for this name and for all names one label below it.
    pub domain: String,
    /// The kinds of keys.
    pub keys: Vec<KeyKind>,
    /// The exact names that constituencies want besides, as that changes.
    pub exact: watch::Receiver<Arc<ExactNames>>,
    /// The issuer that a chain should end at.
    pub preferred_chain: Option<String>,
    /// The CAs, in the order in which they are asked; at least one.
    pub cas: Vec<Arc<dyn Ca>>,
    /// Where challenges are published.
    pub dns: Arc<dyn ChallengeDns>,
    /// Time, chance and keys.
    pub world: Arc<dyn Env>,
    /// Differs when the settings do: then past failures do not count.
    pub fingerprint: String,
}

/// Obtains and renews certificates.
pub struct Renewer {
    parts: Parts,
    names: Vec<String>,
    store: CertificateStore,
    journal: ChallengeJournal,
    memory: PersistentState,
    held: BTreeMap<Lineage, StoredLineage>,
    /// The exact names that are wanted, as they were last taken over.
    wanted: Arc<ExactNames>,
    live: Arc<LiveCertificates>,
    board: Arc<StatusBoard>,
    /// What an operator asked for, due or not.
    forced: BTreeSet<Lineage>,
    /// What an operator wants renewed if the CA, asked anew, wants that.
    to_ask: BTreeSet<Lineage>,
    /// How often in a row DNS records could not be removed, and when to try again.
    clean_up_failures: u32,
    clean_up_at: i64,
    /// When to look next for what nobody wants any more.
    tidy_at: i64,
    /// Whether what is obtained is thrown away.
    is_rehearsal: bool,
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
        let store = CertificateStore::new(state.join("certs"));
        let (journal, damaged_journal) = ChallengeJournal::open(state.join("dns-journal.json"))?;
        let (memory, damaged_memory) = PersistentState::open(state.join("renewal.json"))?;
        damaged_journal.iter().chain(&damaged_memory).for_each(|damage| tracing::error!("{damage}"));
        let mut renewer = Self {
            names: wildcard_names(&parts.domain),
            parts,
            store,
            journal,
            memory,
            held: BTreeMap::new(),
            wanted: Arc::default(),
            live,
            board: Arc::default(),
            forced: BTreeSet::new(),
            to_ask: BTreeSet::new(),
            clean_up_failures: 0,
            clean_up_at: 0,
            tidy_at: 0,
            is_rehearsal: false,
        };
        let now = renewer.parts.world.now();
        (renewer.clean_up_at, renewer.tidy_at) = (now, now);
        for kind in renewer.parts.keys.clone() {
            renewer.load(Lineage::Wildcard(kind));
        }
        renewer.take_over();
        let (print, dice) = (&renewer.parts.fingerprint, renewer.parts.world.random());
        scheduler::recover(&mut renewer.memory.kept, print, &renewer.held, now, dice);
        renewer.warn_of_clock(now);
        renewer.publish();
        renewer.board.publish(renewer.status());
        Ok(renewer)
    }

    /// Takes what is stored of `lineage` in use.
    fn load(&mut self, lineage: Lineage) {
        let (stored, problems) = self.store.load(&lineage);
        for problem in problems {
            tracing::error!("a stored certificate cannot be used: {problem}");
        }
        self.held.extend(stored.map(|stored| (lineage, stored)));
    }

    /// How things are, by what is on the disk.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn peek(parts: Parts, state: &Path) -> io::Result<AcmeStatus> {
        Ok(Self::open(parts, state, Arc::default())?.status())
    }

    /// Where its status can be read, by anybody at any time.
    #[must_use]
    pub fn board(&self) -> Arc<StatusBoard> {
        Arc::clone(&self.board)
    }

    /// One attempt for the certificate of `lineage`, from the timer to the clean-up, and what is remembered of it.
    async fn attempt(&mut self, lineage: &Lineage) {
        self.board.count_attempt(lineage);
        let ca = self.ca_for(lineage);
        let result = match self.begin(lineage) {
            Ok(()) => self.renew(lineage, &ca).await,
            Err(error) => Err(error),
        };
        // Outside what may fail, so that nothing can skip it.
        self.clean_up().await;
        self.conclude(lineage, ca.directory(), result);
    }

    /// The way to a new certificate.
    async fn renew(&mut self, lineage: &Lineage, ca: &Arc<dyn Ca>) -> Result<(), AcmeFailure> {
        self.open_account(lineage, &**ca).await?;
        let mut order = self.take_up_order(lineage, ca).await?;
        let obtained = self.obtain(&mut order).await;
        if obtained.is_ok() || matches!(&obtained, Err(failure) if failure.sign == FailureKind::Refused) {
            self.forget_order(lineage)?;
        }
        obtained
    }

    /// From an order to a certificate in use.
    async fn obtain(&mut self, order: &mut order_flow::OrderInProgress) -> Result<(), AcmeFailure> {
        self.authorize(order).await?;
        let chains = self.finalize(order).await?;
        let stored = self.check_and_store(order, &chains)?;
        self.put_in_use(&order.lineage, stored);
        Ok(())
    }
}
