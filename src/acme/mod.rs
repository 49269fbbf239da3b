//! Obtains and renews the certificates unattended, by ACME (RFC 8555) with DNS-01 challenges.
//!
//! 1. The [`schedule`] decides which certificate is due. Each kind of key has its own order at its own time, and so has
//!    each constituency that wants a certificate for its [exact] names. The wildcard goes first.
//! 2. The account is opened, or registered; its key is on disk first.
//! 3. A pending order is resumed by its URL, or a new one is placed, with `replaces` if the CA asked for the renewal
//!    (RFC 9773).
//! 4. Authorizations that are not valid yet need DNS records. The records enter the [`journal`], are published in one
//!    update per name, and are awaited on all authoritative servers. Only then is the CA asked to validate.
//! 5. The order is finalized. Chain and key are [checked](check), [stored](store) and published.
//! 6. The records are removed, whatever the result.
//!
//! Requests that must not repeat too often are charged to a [`rate_limit`] first. State that must survive a crash is on
//! disk before it takes effect outside. So the process may end at any point, and the next one resumes.
//!
//! CA, DNS, clock and randomness are [`ports`]; the production CA is in [`client`].

use std::collections::BTreeMap;
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
mod responder;
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
pub use stored::{FailedAttempt, StoredCertificate, stored_certificates};
pub use system_env::SystemEnv;

use journal::ChallengeJournal;
use persistent_state::PersistentState;
use ports::{Ca, ChallengeDns, Env};
use store::{CertificateStore, StoredLineage};

/// The chains of all certificates stored in the state directory `state`, leaf first, each with the directory of its CA.
/// The RSA wildcard's comes first.
#[must_use]
pub fn stored_chains(state: &Path) -> Vec<(String, Vec<CertificateDer<'static>>)> {
    let store = CertificateStore::new(state.join("certs"));
    let wildcards = [KeyKind::Rsa2048, KeyKind::EcdsaP256].map(Lineage::Wildcard);
    let lineages = wildcards.into_iter().chain(store.exact().into_iter().map(Lineage::Exact));
    let stored = lineages.filter_map(|lineage| store.load(&lineage).0);
    stored.map(|stored| (stored.meta.directory, stored.checked.chain)).collect()
}

/// The names of the wildcard certificate of `domain`.
fn wildcard_names(domain: &str) -> Vec<String> {
    vec![format!("*.{domain}"), domain.to_owned()]
}

/// The settings and dependencies of a [`Renewer`].
pub struct Parts {
    /// The certificates are for this name and for all names one label below it.
    pub domain: String,
    /// The kinds of keys.
    pub keys: Vec<KeyKind>,
    /// The exact names that constituencies want besides, kept up to date.
    pub exact: watch::Receiver<Arc<ExactNames>>,
    /// The common name of the issuer at which the chain should end.
    pub preferred_chain: Option<String>,
    /// The CAs in order of preference; at least one.
    pub cas: Vec<Arc<dyn Ca>>,
    /// Publishes the challenges.
    pub dns: Arc<dyn ChallengeDns>,
    /// Clock, randomness and new keys.
    pub env: Arc<dyn Env>,
    /// A hash of the settings. When it changes, past failures are ignored.
    pub fingerprint: String,
}

/// What is to be done for a certificate besides the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RenewalRequest {
    /// Renew it, due or not.
    Renew,
    /// Ask the CA, and renew it if the CA wants that.
    AskCa,
}

/// Obtains and renews certificates.
pub struct Renewer {
    parts: Parts,
    names: Vec<String>,
    store: CertificateStore,
    journal: ChallengeJournal,
    memory: PersistentState,
    held: BTreeMap<Lineage, StoredLineage>,
    /// The exact names that were last adopted.
    wanted: Arc<ExactNames>,
    live: Arc<LiveCertificates>,
    board: Arc<StatusBoard>,
    requests: BTreeMap<Lineage, RenewalRequest>,
    /// How many clean-ups of DNS records failed in a row, and when to try again.
    clean_up_failures: u32,
    clean_up_at: i64,
    /// When to remove leftovers of exact names again.
    remove_leftovers_at: i64,
    /// Whether this is a dry run, which discards its certificates.
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
    /// Reads the state directory `state` and publishes its certificates at once, even if they have expired, and even if
    /// CA and DNS are down.
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
            requests: BTreeMap::new(),
            clean_up_failures: 0,
            clean_up_at: 0,
            remove_leftovers_at: 0,
            is_rehearsal: false,
        };
        let now = renewer.parts.env.now();
        (renewer.clean_up_at, renewer.remove_leftovers_at) = (now, now);
        for kind in renewer.parts.keys.clone() {
            renewer.load(Lineage::Wildcard(kind));
        }
        renewer.adopt_exact_names();
        let (print, random) = (&renewer.parts.fingerprint, renewer.parts.env.random());
        scheduler::recover(&mut renewer.memory.kept, print, &renewer.held, now, random);
        renewer.warn_of_clock(now);
        renewer.publish();
        renewer.board.publish(renewer.status());
        Ok(renewer)
    }

    /// Loads the stored certificate of `lineage` into `held`.
    fn load(&mut self, lineage: Lineage) {
        let (stored, problems) = self.store.load(&lineage);
        for problem in problems {
            tracing::error!("a stored certificate cannot be used: {problem}");
        }
        self.held.extend(stored.map(|stored| (lineage, stored)));
    }

    /// The status by what is on disk.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn peek(parts: Parts, state: &Path) -> io::Result<AcmeStatus> {
        Ok(Self::open(parts, state, Arc::default())?.status())
    }

    /// The board with its status, readable from any thread at any time.
    #[must_use]
    pub fn board(&self) -> Arc<StatusBoard> {
        Arc::clone(&self.board)
    }

    /// One attempt for the certificate of `lineage`, with clean-up. Stores the result.
    async fn attempt(&mut self, lineage: &Lineage) {
        self.board.count_attempt(lineage);
        let ca = self.ca_for(lineage);
        let result = match self.begin(lineage) {
            Ok(()) => self.renew(lineage, &ca).await,
            Err(error) => Err(error),
        };
        // Before the clean-up, which takes a while: if the process is killed meanwhile, the next one must not ask the CA
        // before its Retry-After.
        if let Err(failure) = &result {
            self.store_wait(lineage, ca.directory(), failure);
        }
        // Runs even if the attempt failed.
        self.clean_up().await;
        self.conclude(lineage, ca.directory(), result);
    }

    /// Opens the account and obtains a new certificate by an order.
    async fn renew(&mut self, lineage: &Lineage, ca: &Arc<dyn Ca>) -> Result<(), AcmeFailure> {
        let fault = self.parts.dns.fault().borrow().clone();
        if let Some(fault) = fault {
            return Err(AcmeFailure::action_required(fault));
        }
        self.open_account(lineage, &**ca).await?;
        let mut order = self.take_up_order(lineage, ca).await?;
        let obtained = self.obtain(&mut order).await;
        if obtained.is_ok() || matches!(&obtained, Err(failure) if failure.kind == FailureKind::Refused) {
            self.forget_order(lineage)?;
        }
        obtained
    }

    /// Turns an order into a certificate in use.
    async fn obtain(&mut self, order: &mut order_flow::OrderInProgress) -> Result<(), AcmeFailure> {
        self.authorize(order).await?;
        let chains = self.finalize(order).await?;
        let stored = self.check_and_store(order, &chains)?;
        self.put_in_use(&order.lineage, stored);
        Ok(())
    }
}
