//! The data of the operators' pages, API and metrics, from the site, the phone history and the certificates. It is joined
//! here, so that `serve`, `acme` and `admin` do not depend on one another.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

mod certificates;
mod gauges;
mod phone_list;
mod phones;

use super::audit::AuditWriter;
use super::denials::DenialsThread;
use super::publisher::Publisher;
use super::renewal_thread::RenewalHandle;
use super::state_faults::StateFaults;
use crate::admin::operators::{Operator, Operators, Scope};
use crate::admin::scoped::ScopeFilter;
use crate::admin::snapshot::{self, CertificateView, Overview, PhoneCounts, PhoneHistoryView, PhonePage, PhoneQuery};
use crate::admin::{
    AdminChange, AdminData, AllNumbers, Author, ChangeRequest, Interface, Readiness, Snapshot, Version,
};
use crate::audit::{self, AuditAction, AuditActor, AuditEntry, AuditReading, AuditSource};
use crate::certificate::{LiveCertificates, ServerCertificate};
use crate::clock::{self, rfc3339};
use crate::config::{CertificateSource, Config};
use crate::constituency::edit_file::EditResult;
use crate::constituency::{
    ClientAuth, Constituency, ConstituencyName, Fault, MacAddress, Phones, Registry, ServerDenial, ServerDenials,
    Severity, denials, edit, edit_file,
};
use crate::identity::digest::passwords;
use crate::metrics::{Exposition, Metrics};
use crate::notify::NotifyHealth;
use crate::phone_history::{self, HistoryHealth, HistoryReader, ReadError, STEP_S, StoredClaim};
use crate::serve::Server;
use crate::serve::shutdown::ShutdownPhase;
use crate::serve::site::Site;
use crate::wording::{counted, counted_were};
use certificates::{from_acme, from_files, from_local_ca};
use phone_list::PhoneList;
pub(super) use phones::SilenceCache;

/// How long an admin request waits until its change is in force.
const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(1);

/// The sources of a snapshot.
#[derive(Debug)]
pub(super) struct LiveAdminData {
    /// Weak, so that the server can be dropped at shutdown.
    pub(super) server: Weak<Server>,
    pub(super) certificates: Arc<LiveCertificates>,
    pub(super) renewal: RenewalHandle,
    pub(super) health: Arc<HistoryHealth>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) config: Config,
    pub(super) publisher: Arc<Publisher>,
    pub(super) stop: watch::Receiver<ShutdownPhase>,
    pub(super) state: PathBuf,
    /// `None` if there is no operators' listener.
    pub(super) operators: Option<Arc<Operators>>,
    pub(super) denials: Arc<ServerDenials>,
    pub(super) denials_thread: DenialsThread,
    pub(super) state_faults: Arc<StateFaults>,
    pub(super) addresses: Vec<SocketAddr>,
    /// When the server started.
    pub(super) started: i64,
    pub(super) notify_health: Arc<NotifyHealth>,
    pub(super) audit: Arc<AuditWriter>,
    pub(super) silences: SilenceCache,
    pub(super) writable: WritableFolders,
}

/// Which folders of constituencies may be written. It is looked up again after a few seconds, not for each snapshot.
#[derive(Debug, Default)]
pub(super) struct WritableFolders(Mutex<Option<(Instant, HashMap<ConstituencyName, bool>)>>);

impl WritableFolders {
    const MAX_AGE: Duration = Duration::from_secs(5);

    fn is_so(&self, name: &ConstituencyName, look: impl FnOnce() -> bool) -> bool {
        let mut kept = self.0.lock();
        let now = clock::monotonic();
        let (_, folders) = match &mut *kept {
            Some((at, folders)) if now.duration_since(*at) < Self::MAX_AGE => (at, folders),
            outdated => {
                let (at, folders) = outdated.insert((now, HashMap::new()));
                (at, folders)
            }
        };
        *folders.entry(name.clone()).or_insert_with(look)
    }
}

/// What a snapshot reads from the phone history.
#[derive(Debug, Default)]
struct FromHistory {
    numbers: AllNumbers,
    version: Version,
    waiting: Vec<snapshot::PhoneView>,
    silent_together: Vec<snapshot::SilentTogether>,
    claims: Vec<StoredClaim>,
}

impl AdminData for LiveAdminData {
    fn revision(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.health.generation().hash(&mut hasher);
        self.metrics.observed().hash(&mut hasher);
        if let Some(server) = self.server.upgrade() {
            server.site.load().generation().hash(&mut hasher);
        }
        self.certificates.generation().hash(&mut hasher);
        self.denials.generation().hash(&mut hasher);
        self.operators.as_ref().map(|operators| operators.error()).hash(&mut hasher);
        self.state_faults.messages().hash(&mut hasher);
        self.notify_health.failure().hash(&mut hasher);
        self.audit.failure().hash(&mut hasher);
        self.renewal.board.load().as_ref().map(|board| board.generation()).hash(&mut hasher);
        self.is_stopping().hash(&mut hasher);
        hasher.finish()
    }

    fn snapshot(&self, scope: &Scope) -> Snapshot {
        let now = clock::unix_seconds(clock::now());
        let mut problems = self.problems();
        let server = self.server.upgrade();
        let site = server.as_ref().map(|server| server.site.load_full());
        let registry = site.as_ref().map(|site| site.registry());
        let history = HistoryReader::open(&self.state).and_then(|reader| match &reader {
            Some(reader) => reader.at_one_moment(|| self.read(Some(reader), scope, now)),
            None => self.read(None, scope, now),
        });
        let FromHistory { numbers, version, waiting, silent_together, claims } = history.unwrap_or_else(|error| {
            problems.push(error.to_string());
            let mut numbers = registry.map(|registry| phones::numbers(registry, &[])).unwrap_or_default();
            numbers.retain(|name, _| scope.includes(name.as_str()));
            FromHistory { numbers, ..FromHistory::default() }
        });
        let denied = self.denials.phones();
        let faults = site.iter().flat_map(|site| site.registry().faults());
        let broken = faults.filter(|fault| fault.severity == Severity::Error);
        problems.extend(broken.map(|fault| format!("{}: {}", fault.subject, fault.message)));
        let mut counts = PhoneCounts::default();
        for own in numbers.values() {
            counts.add_all(own.counts);
        }
        let overview = Overview {
            now,
            version: env!("CARGO_PKG_VERSION"),
            domain: self.config.domain.clone(),
            config: self.config.file.as_deref().map(absolute),
            started: self.started,
            not_ready: self.readiness().not_ready,
            certificates: self.certificates(now),
            constituencies: site.as_ref().map(|site| self.constituencies(site, &numbers)).unwrap_or_default(),
            counts,
            waiting,
            silent_together,
            unproven: phones::unproven(claims),
            denied: phones::denied(&denied),
            activity: self.activity(now),
            problems,
            notify_failure: self.notify_health.failure(),
        };
        let overview = overview.within(&ScopeFilter::new(scope, registry));
        Snapshot { scope: scope.clone(), overview, numbers, version }
    }

    fn phones(&self, snapshot: &Snapshot, query: &PhoneQuery) -> Result<(PhonePage, bool), String> {
        let now = clock::unix_seconds(clock::now());
        // Without the history, the phones that the policies name are shown. The overview says why.
        let reader = HistoryReader::open(&self.state).ok().flatten();
        let page = |reader: Option<&HistoryReader>| {
            let scope = &snapshot.scope;
            let is_unchanged = self.version(reader)? == snapshot.version;
            self.with_list(reader, scope, &snapshot.numbers, now, |list| {
                if is_unchanged {
                    return Ok((list.page(query)?, true));
                }
                let numbers = list.count()?;
                // What happens outside of a scope changes the version, and must not show in the age of a snapshot.
                let is_current = !scope.is_all() && numbers == snapshot.numbers;
                Ok((PhoneList { numbers: &numbers, ..*list }.page(query)?, is_current))
            })
        };
        let page: Result<_, ReadError> = match &reader {
            Some(reader) => reader.at_one_moment(|| page(Some(reader))),
            None => page(None),
        };
        let (mut page, is_current) = page.map_err(|error| error.to_string())?;
        self.filter(&snapshot.scope, |filter| page.phones.iter_mut().for_each(|phone| filter.reduce_phone(phone)));
        Ok((page, is_current))
    }

    fn history(
        &self,
        scope: &Scope,
        constituency: &ConstituencyName,
        mac: MacAddress,
    ) -> Result<Option<(PhoneHistoryView, Version)>, String> {
        let now = clock::unix_seconds(clock::now());
        let found = HistoryReader::open(&self.state).and_then(|reader| {
            let key = (constituency.clone(), mac);
            let version = self.version(reader.as_ref())?;
            let phone = self.with_list(reader.as_ref(), scope, &AllNumbers::new(), now, |list| list.find(key))?;
            let requests = reader.map_or(Ok(Vec::new()), |reader| reader.requests(mac))?;
            Ok(phone.map(|phone| (phone, requests, version)))
        });
        let found = found.map_err(|error| error.to_string())?;
        Ok(found.map(|(phone, requests, version)| {
            let own = requests.into_iter().rev().filter(|request| request.constituency == *constituency);
            let mut history = phones::history(phone, own.map(phones::request).collect(), &self.config.constituencies);
            self.filter(scope, |filter| filter.reduce_history(&mut history));
            (history, version)
        }))
    }

    fn readiness(&self) -> Readiness {
        let now = clock::unix_seconds(clock::now());
        let site = self.server.upgrade().map(|server| server.site.load_full()).filter(|_| !self.is_stopping());
        let Some(site) = site else {
            return Readiness { not_ready: Some("provost is shutting down".to_owned()), warnings: Vec::new() };
        };
        let certificates = self.certificates(now);
        let faults = self.state_problems().into_iter().map(|message| format!("error: {message}"));
        Readiness {
            not_ready: why_not_ready(&certificates, &site, &self.config.constituencies, now),
            warnings: certificates::warnings(&certificates).into_iter().chain(faults).collect(),
        }
    }

    fn metrics(&self, snapshot: &Snapshot, exposition: Exposition) -> String {
        // Writing to a String does not fail.
        self.metrics.text(&self.gauges(snapshot), exposition).unwrap_or_default()
    }

    fn audit(
        &self,
        operator: Option<&Operator>,
        constituency: Option<&ConstituencyName>,
        count: usize,
    ) -> Result<AuditReading, String> {
        let is_wanted = |entry: &AuditEntry| {
            constituency.is_none_or(|name| entry.constituency.as_ref().is_none_or(|own| own == name))
                && operator.is_none_or(|operator| operator.sees(entry))
        };
        match audit::read_last(&self.state, count, &is_wanted) {
            Ok(reading) => Ok(match operator {
                Some(operator) => operator.restrict(reading),
                None => reading,
            }),
            Err(error) => Err(format!("cannot read the audit log in {}: {error}", self.state.display())),
        }
    }

    fn change(&self, wanted: &ChangeRequest) -> Result<Vec<MacAddress>, String> {
        self.ensure_within_scope(wanted)?;
        let changed = match &wanted.change {
            AdminChange::Allow(name) => {
                let denied = self.denials.phones();
                let denied = wanted.macs.iter().filter_map(|mac| Some((mac, denied.get(mac)?.explained())));
                let is_administrator = wanted.by.operator.scope.is_all();
                let reasons: Vec<String> = denied
                    .map(|(mac, why)| {
                        if is_administrator {
                            format!("{mac} is denied everywhere {why}; to lift that, run provost undeny {mac}")
                        } else {
                            format!("{mac} is denied everywhere; only an administrator can lift that")
                        }
                    })
                    .collect();
                if !reasons.is_empty() {
                    return Err(reasons.join("; "));
                }
                let note = wanted.note.as_deref();
                let phones: Vec<_> = wanted.macs.iter().map(|mac| edit::AllowedPhone { mac: *mac, note }).collect();
                self.change_policy(name, edit::PolicyChange::Allow(&phones), wanted)?
            }
            AdminChange::Deny(name) => self.change_policy(name, edit::PolicyChange::Deny(&wanted.macs), wanted)?,
            AdminChange::DenyEverywhere => self.deny_everywhere(wanted)?,
        };
        if !changed.is_empty() {
            self.wait_until_in_force(&wanted.change);
        }
        Ok(changed)
    }
}

impl LiveAdminData {
    /// Does `work` with what hides the outside of `scope`.
    fn filter<T>(&self, scope: &Scope, work: impl FnOnce(&ScopeFilter<'_>) -> T) -> T {
        let site = self.server.upgrade().map(|server| server.site.load_full());
        work(&ScopeFilter::new(scope, site.as_ref().map(|site| site.registry())))
    }

    /// Refuses a change outside of the scope of its author, and answers as for a constituency that does not exist.
    fn ensure_within_scope(&self, wanted: &ChangeRequest) -> Result<(), String> {
        let scope = &wanted.by.operator.scope;
        match &wanted.change {
            AdminChange::Allow(name) | AdminChange::Deny(name) if !scope.includes(name.as_str()) => {
                let path = self.config.constituencies.join(name.as_str());
                Err(edit_file::EditError::Absent { name: name.clone(), path }.to_string())
            }
            AdminChange::DenyEverywhere if !scope.is_all() => {
                Err("only an administrator may deny a phone on the whole server".to_owned())
            }
            AdminChange::Allow(_) | AdminChange::Deny(_) | AdminChange::DenyEverywhere => Ok(()),
        }
    }

    fn read(&self, reader: Option<&HistoryReader>, scope: &Scope, now: i64) -> Result<FromHistory, ReadError> {
        // Before the numbers: a policy that changes meanwhile makes them outdated.
        let version = self.version(reader)?;
        let (numbers, waiting) =
            self.with_list(reader, scope, &AllNumbers::new(), now, |list| Ok((list.count()?, list.waiting()?)))?;
        let Some(reader) = reader else { return Ok(FromHistory { numbers, version, ..FromHistory::default() }) };
        let silent_together = self.silences.current(now, || phones::silences(reader, now, self.started))?;
        let claims = reader.newest_claims(scope.constituencies(), phones::SHOWN)?;
        Ok(FromHistory { numbers, version, waiting, silent_together, claims })
    }

    /// The versions of what the numbers of phones derive from: the index and the policies.
    fn version(&self, reader: Option<&HistoryReader>) -> Result<Version, ReadError> {
        let index = reader.map(HistoryReader::index_version).transpose()?.unwrap_or_default();
        let policies = self.server.upgrade().map_or(0, |server| server.site.load().generation());
        Ok((index, policies))
    }

    /// Does `work` with the list of the phones that the current policies and the history have.
    fn with_list<T>(
        &self,
        reader: Option<&HistoryReader>,
        scope: &Scope,
        numbers: &AllNumbers,
        now: i64,
        work: impl FnOnce(&PhoneList<'_>) -> T,
    ) -> T {
        match self.server.upgrade().map(|server| server.site.load_full()) {
            Some(site) => work(&PhoneList { reader, scope, registry: site.registry(), numbers, now }),
            None => work(&PhoneList { reader, scope, registry: &Registry::default(), numbers, now }),
        }
    }

    fn change_policy(
        &self,
        name: &ConstituencyName,
        change: edit::PolicyChange<'_>,
        wanted: &ChangeRequest,
    ) -> Result<Vec<MacAddress>, String> {
        let bundles = self.publisher.bundle_names();
        let bundles: Vec<&str> = bundles.iter().map(String::as_str).collect();
        let edit = edit_file::change(&self.config.constituencies, name, change, &bundles, &log_wait);
        let edit = edit.map_err(|error| error.to_string())?;
        if edit.result == EditResult::NoClientAuth {
            return Err(format!(
                "{name} does not authenticate clients (\"client_auth\": \"none\"), so it cannot deny a phone"
            ));
        }
        let changed: Vec<MacAddress> = edit.changed().collect();
        let entry = |action| entry(wanted, action).of(name);
        let done = match wanted.change {
            AdminChange::Allow(_) => AuditAction::Allowed,
            AdminChange::Deny(_) | AdminChange::DenyEverywhere => AuditAction::Denied,
        };
        let unpinned = changed.iter().filter(|mac| !edit.pins.contains_key(mac)).filter_map(|mac| {
            let pin = edit.pins_before.get(mac)?;
            Some(entry(AuditAction::Unpinned).phone(*mac).detail(pin))
        });
        self.audit.write(&entry(done).phones(&changed).into_iter().chain(unpinned).collect::<Vec<_>>());
        Ok(changed)
    }

    fn deny_everywhere(&self, wanted: &ChangeRequest) -> Result<Vec<MacAddress>, String> {
        let at = Some(clock::unix_seconds(clock::now()));
        let denial = ServerDenial { by: wanted.by.to_string(), at, note: wanted.note.clone().unwrap_or_default() };
        let all = wanted.macs.iter().map(|mac| (*mac, denial.clone())).collect();
        let changed = denials::deny(&self.state, all, &log_wait).map_err(|error| error.to_string())?;
        let (removed, errors) = passwords::remove_everywhere(&self.state, &wanted.macs, &log_wait);
        let denied = entry(wanted, AuditAction::Denied).phones(&changed);
        let removed =
            removed.iter().flat_map(|(name, macs)| entry(wanted, AuditAction::PasswordRemoved).of(name).phones(macs));
        self.audit.write(&denied.into_iter().chain(removed).collect::<Vec<_>>());
        match (errors.first(), wanted.macs.as_slice()) {
            (None, _) => Ok(changed),
            (Some(error), [mac]) => Err(format!("{mac} is denied everywhere, but cannot remove its password: {error}")),
            (Some(error), macs) => Err(format!(
                "{} are denied everywhere, but cannot remove their passwords: {error}",
                counted(macs.len(), "phone")
            )),
        }
    }

    /// Waits until the change is in force, so that the next snapshot shows it; at most [`IN_FORCE_TIMEOUT`].
    fn wait_until_in_force(&self, change: &AdminChange) {
        let (done, in_force) = mpsc::channel();
        match change {
            AdminChange::Allow(_) | AdminChange::Deny(_) => {
                let Some(server) = self.server.upgrade() else { return };
                let Some(scanner) = server.scanner.get() else { return };
                scanner.rescan(move || drop(done));
            }
            AdminChange::DenyEverywhere => self.denials_thread.refresh(done),
        }
        // The channel closes once the change is in force.
        let _: Result<(), _> = in_force.recv_timeout(IN_FORCE_TIMEOUT);
        // The list of phones follows with the next write of the history.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let _ = runtime.block_on(async { tokio::time::timeout(IN_FORCE_TIMEOUT, self.health.flush()).await });
        }
    }

    /// The faults of the state directory. If none of them is the phone history's, also why it cannot be written.
    fn state_problems(&self) -> Vec<String> {
        let mut problems = self.state_faults.messages();
        if !self.state_faults.concern(&self.config.state.join(phone_history::FOLDER)) {
            problems.extend(self.health.failure());
        }
        problems
    }

    /// The current problems, for the operator.
    fn problems(&self) -> Vec<String> {
        let mut problems = self.state_problems();
        if self.health.is_indexing() {
            problems.push("the list of phones is being made from the phone history: it is not complete yet".to_owned());
        }
        problems.extend(self.operators.as_ref().and_then(|operators| operators.error()));
        if !self.state_faults.concern(&self.config.state.join(audit::FILE)) {
            problems.extend(self.audit.failure());
        }
        match self.health.dropped() {
            0 => {}
            dropped => problems.push(format!(
                "{} not written to the phone history since the start: the queue was full",
                counted_were(dropped, "phone event")
            )),
        }
        match self.server.upgrade().map_or(0, |server| server.access.lost()) {
            0 => {}
            lost => problems.push(format!(
                "{} lost since the start: standard output is not read fast enough",
                counted_were(lost, "line of the access log")
            )),
        }
        problems
    }

    fn activity(&self, now: i64) -> snapshot::ActivityView {
        let (since, steps) = self.health.activity(now);
        snapshot::ActivityView {
            step_s: STEP_S,
            since,
            served: steps.iter().map(|step| step.served).collect(),
            refused: steps.iter().map(|step| step.refused).collect(),
            handshakes: steps.iter().map(|step| step.handshakes).collect(),
        }
    }

    fn is_stopping(&self) -> bool {
        *self.stop.borrow() > ShutdownPhase::NotYet
    }

    fn certificates(&self, now: i64) -> Vec<snapshot::CertificateView> {
        match (&self.config.certificate, self.renewal.board.load().as_ref()) {
            (CertificateSource::Acme(_), Some(board)) => {
                board.status().certificates.into_iter().map(|status| from_acme(status, now)).collect()
            }
            (CertificateSource::Acme(_), None) => Vec::new(),
            (CertificateSource::Files(_), _) => {
                let pairs = self.certificates.pairs();
                let mut views: Vec<_> = pairs.iter().map(|pair| from_files(pair, now)).collect();
                // In the order of preference: the wildcard first, ECDSA before RSA.
                views.sort_by_key(|it| (!it.names.iter().any(|name| name.starts_with("*.")), it.key != "ECDSA"));
                views
            }
            (CertificateSource::LocalCa(_), _) => self.presented(|certificate| from_local_ca(certificate, now)),
        }
    }

    /// The views of the certificates that handshakes present.
    fn presented(
        &self,
        view: impl Fn(&ServerCertificate) -> snapshot::CertificateView,
    ) -> Vec<snapshot::CertificateView> {
        let (current, exact) = (self.certificates.current(), self.certificates.exact());
        // A pair of files may serve both.
        let own = exact.values().flatten().filter(|own| !current.iter().any(|common| common.is_same_as(own)));
        current.iter().chain(own).map(view).collect()
    }

    fn constituencies(&self, site: &Site, numbers: &AllNumbers) -> Vec<snapshot::ConstituencyView> {
        let mut all: BTreeMap<String, snapshot::ConstituencyView> = BTreeMap::new();
        for served in site.registry().served() {
            all.insert(served.name.to_string(), self.constituency(site, served));
        }
        for fault in site.registry().faults() {
            let at_fault = all.entry(fault.subject.clone()).or_insert_with(|| not_served(&fault.subject));
            match (fault.severity, &mut at_fault.problem) {
                (Severity::Warning, _) => at_fault.warnings.push(fault.message.clone()),
                (Severity::Error, Some(before)) => *before = format!("{before}; {}", fault.message),
                (Severity::Error, none) => *none = Some(fault.message.clone()),
            }
        }
        for (name, own) in numbers {
            if let Some(view) = all.get_mut(name.as_str()) {
                view.counts = own.counts;
                view.seen_lately = own.well_lately;
            }
        }
        for own in all.values_mut() {
            // Without the phones that are also denied.
            own.known = own.known.map(|_| own.counts.known);
            own.refused = own.counts.refused;
        }
        all.into_values().collect()
    }

    fn constituency(&self, site: &Site, served: &Constituency) -> snapshot::ConstituencyView {
        let problem = site.why_unusable(&served.name).map(str::to_owned);
        let port = self.addresses.first().map(SocketAddr::port).filter(|port| *port != 443);
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let url = site.get(&served.name).map(|_| format!("https://{}.{}{port}/", served.name, site.domain()));
        let is_list = served.policy.tls.client_auth != ClientAuth::None && served.policy.phones != Phones::Any;
        snapshot::ConstituencyView {
            description: served.policy.description.clone(),
            url,
            problem,
            known: is_list.then_some(0),
            not_allowable: self.not_allowable(served),
            ..not_served(served.name.as_str())
        }
    }

    /// Why the page and the API cannot add a phone to the list.
    fn not_allowable(&self, served: &Constituency) -> Option<String> {
        use rustix::fs::{Access, AtFlags, accessat};
        let access = Access::WRITE_OK | Access::EXEC_OK;
        if served.policy.tls.client_auth == ClientAuth::None {
            Some("it does not authenticate clients (\"client_auth\": \"none\")".to_owned())
        } else if served.policy.tls.client_auth == ClientAuth::Digest {
            Some("its phones need passwords (provost allow MAC --digest)".to_owned())
        } else if !self.operators.as_ref().is_some_and(|operators| operators.are_required()) {
            Some("no token is configured (\"token_file\" in \"status\", or provost operator add)".to_owned())
        } else if !self.writable.is_so(&served.name, || {
            accessat(served.folder.root(), served.name.as_str(), access, AtFlags::EACCESS).is_ok()
        }) {
            Some("the service's user has no write permission on its folder".to_owned())
        } else {
            None
        }
    }
}

/// An entry for the audit log: what was done for `wanted`.
fn entry(wanted: &ChangeRequest, action: AuditAction) -> AuditEntry {
    let Author { operator, interface, from, claimed_from } = wanted.by.clone();
    let by = match interface {
        Interface::Page => AuditSource::Page,
        Interface::Api => AuditSource::Api,
    };
    let actor = AuditActor { by, who: operator.name.clone(), claimed_user: None, from: Some(from), claimed_from };
    AuditEntry::new(clock::unix_seconds(clock::now()), action, actor)
}

/// Logs that a change waits for another one.
fn log_wait(message: &str) {
    tracing::info!("{message}");
}

fn absolute(file: &Path) -> String {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned()).display().to_string()
}

fn not_served(name: &str) -> snapshot::ConstituencyView {
    snapshot::ConstituencyView {
        name: name.to_owned(),
        description: String::new(),
        url: None,
        problem: None,
        warnings: Vec::new(),
        known: Some(0),
        counts: snapshot::PhoneCounts::default(),
        seen_lately: 0,
        refused: 0,
        not_allowable: Some("it is not served".to_owned()),
    }
}

/// Why no phone can be served at `now`, in Unix seconds. `None` if some phone can. `folder` holds the constituencies.
///
/// A certificate that expires soon is not a reason: a load balancer would take all nodes out at once.
fn why_not_ready(certificates: &[CertificateView], site: &Site, folder: &Path, now: i64) -> Option<String> {
    if !certificates.iter().any(|certificate| certificate.not_after.is_some()) {
        let error = certificates.iter().filter(|it| it.source == "acme").find_map(|it| it.last_error.as_ref());
        let why = error.map(|error| format!(": {error}")).unwrap_or_default();
        return Some(format!("no server certificate yet{why}"));
    }
    let mut served = site.registry().served().filter_map(|served| site.get(&served.name)).peekable();
    if served.peek().is_none() {
        return Some(why_nothing_is_served(site, folder));
    }
    let host = |name: &ConstituencyName| format!("{name}.{}", site.domain());
    if served.any(|(own, tls)| tls.certificates.is_any_valid(&host(&own.name), now)) {
        return None;
    }
    // A certificate for other names may be valid.
    let is_valid = |it: &&CertificateView| it.not_before <= Some(now) && Some(now) <= it.not_after;
    let last = certificates.iter().filter(|it| !is_valid(it)).max_by_key(|certificate| certificate.not_after);
    let Some(CertificateView { key, not_before, not_after, .. }) = last else {
        return Some("no certificate covers the names that are served".to_owned());
    };
    Some(match (not_before.filter(|begin| now < *begin), not_after.unwrap_or_default()) {
        (Some(begin), _) => {
            format!("no certificate is valid: the {key} certificate is not valid before {}", rfc3339(begin))
        }
        (None, end) => format!("no certificate is valid: the {key} certificate expired at {}", rfc3339(end)),
    })
}

fn why_nothing_is_served(site: &Site, folder: &Path) -> String {
    let unusable = || site.unusable().next().map(|(name, reason)| format!("{name} is not served: {reason}"));
    let is_error = |fault: &&Fault| fault.severity == Severity::Error;
    let mut faults = site.registry().faults().iter().filter(is_error);
    let fault = || faults.next().map(|fault| format!("{}: {}", fault.subject, fault.message));
    let nothing = || format!("no constituency in {}; make a folder there", folder.display());
    format!("no constituency is served: {}", unusable().or_else(fault).unwrap_or_else(nothing))
}
