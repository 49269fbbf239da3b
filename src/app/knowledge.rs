//! What operators are shown, gathered from those who know it: the site, the ledger, the certificates. Serving, renewing
//! and showing know nothing of one another.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use rustls::SignatureAlgorithm;
use tokio::net::TcpListener;

use super::status::Boards;
use crate::ca::KeyKind;
use crate::certificate::{LiveCertificates, ServerCertificate};
use crate::clock;
use crate::config::{CertificateSource, Config};
use crate::constituency::edit::Change;
use crate::constituency::edit_file::{Changed, change};
use crate::constituency::{ClientAuth, Constituency, ConstituencyName, MacAddress, Phones, Severity, Standing};
use crate::ledger::roster::{Known, together};
use crate::ledger::{Claim, Event, Health, Reader, Request};
use crate::renew::CertificateStatus;
use crate::serve::Server;
use crate::serve::site::Site;
use crate::status::picture::{self, Counts, Overview, Phone, PhoneRequest, PhoneState, Unproven};
use crate::status::{Knowledge, Picture, Wanted};

const DAY: i64 = 86_400;
/// How long a phone may be silent.
const SILENT_AFTER: i64 = 2 * DAY;
/// How many phones that wait, and how many certificates that prove nothing, are shown at once.
const SHOWN: usize = 100;

/// What the picture is gathered from.
#[derive(Debug)]
pub(super) struct Sources {
    /// Not held: it ends when nobody serves any more.
    server: Weak<Server>,
    certificates: Arc<LiveCertificates>,
    boards: Boards,
    health: Arc<Health>,
    config: Config,
    state: PathBuf,
    addresses: Vec<SocketAddr>,
    started: i64,
}

impl Knowledge for Sources {
    fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.health.generation().hash(&mut hasher);
        if let Some(server) = self.server.upgrade() {
            Arc::as_ptr(&server.site.load_full()).hash(&mut hasher);
        }
        Arc::as_ptr(&self.certificates.current()).hash(&mut hasher);
        self.boards.load().as_ref().map(|board| board.generation()).hash(&mut hasher);
        hasher.finish()
    }

    fn picture(&self) -> Picture {
        let now = clock::unix_seconds(clock::now());
        let mut troubles = self.troubles();
        let ledger = Reader::open(&self.state).and_then(|ledger| match ledger {
            Some(ledger) => Ok((ledger.phones()?, ledger.claims()?)),
            None => Ok(Default::default()),
        });
        let (seen, claims) = ledger.unwrap_or_else(|error| {
            troubles.push(error.to_string());
            Default::default()
        });
        let server = self.server.upgrade();
        let site = server.as_ref().map(|server| server.site.load_full());
        let roster = site.as_ref().map(|site| together(site.registry(), seen)).unwrap_or_default();
        let phones: Vec<Phone> = roster.into_iter().map(|(key, known)| phone(key, known, now)).collect();
        let overview = Overview {
            now,
            version: env!("CARGO_PKG_VERSION"),
            domain: self.config.domain.clone(),
            started: self.started,
            not_ready: self.not_ready(),
            certificates: self.certificates(),
            constituencies: site.as_ref().map(|site| self.constituencies(site, &phones, now)).unwrap_or_default(),
            counts: counts(&phones, now),
            waiting: waiting(&phones),
            unproven: unproven(claims),
            activity: picture::Activity::default(),
            troubles,
        };
        Picture { overview, phones }
    }

    fn requests(&self, constituency: &ConstituencyName, mac: MacAddress) -> Result<Vec<PhoneRequest>, String> {
        let Some(ledger) = Reader::open(&self.state).map_err(|error| error.to_string())? else { return Ok(Vec::new()) };
        let requests = ledger.requests(mac).map_err(|error| error.to_string())?;
        Ok(requests.into_iter().rev().filter(|it| it.constituency == *constituency).map(request).collect())
    }

    fn not_ready(&self) -> Option<String> {
        None
    }

    fn change(&self, wanted: &Wanted) -> Result<bool, String> {
        let bundles = self.config.bundle_names();
        let bundles: Vec<&str> = bundles.iter().map(String::as_str).collect();
        let asked = if wanted.is_allowed {
            Change::Allow { mac: wanted.mac, note: wanted.note.as_deref() }
        } else {
            Change::Deny { mac: wanted.mac }
        };
        let name = &wanted.constituency;
        match change(&self.config.constituencies, name, asked, &bundles).map_err(|error| error.to_string())? {
            Changed::AsksNobody => Err(format!("{name} asks nobody who they are, so that nobody can be kept out")),
            changed => Ok(changed == Changed::Now),
        }
    }
}

impl Sources {
    /// What `server` is, from now on.
    pub(super) fn new(
        server: &Arc<Server>,
        boards: Boards,
        health: Arc<Health>,
        config: &Config,
        state: &Path,
        listeners: &[TcpListener],
    ) -> Self {
        Self {
            server: Arc::downgrade(server),
            certificates: Arc::clone(&server.certificates),
            boards,
            health,
            config: config.clone(),
            state: state.to_owned(),
            addresses: listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect(),
            started: clock::unix_seconds(clock::now()),
        }
    }

    /// What has been wrong lately.
    fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if let Some(failure) = self.health.failure() {
            troubles.push(failure);
        }
        match self.health.dropped() {
            0 => {}
            dropped => {
                troubles.push(format!("{dropped} sightings of phones are missing in the ledger: there were too many"));
            }
        }
        troubles
    }

    fn certificates(&self) -> Vec<picture::Certificate> {
        match (&self.config.certificate, self.boards.load().as_ref()) {
            (CertificateSource::Acme(_), Some(board)) => board.status().certificates.into_iter().map(renewed).collect(),
            (CertificateSource::Acme(_), None) => Vec::new(),
            (CertificateSource::Files(_), _) => self.in_use("files"),
            (CertificateSource::LocalCa(_), _) => self.in_use("local_ca"),
        }
    }

    fn in_use(&self, source: &'static str) -> Vec<picture::Certificate> {
        self.certificates.current().iter().map(|certificate| presented(certificate, source)).collect()
    }

    fn constituencies(&self, site: &Site, phones: &[Phone], now: i64) -> Vec<picture::Constituency> {
        let mut all: BTreeMap<String, picture::Constituency> = BTreeMap::new();
        for served in site.registry().served() {
            all.insert(served.name.to_string(), self.constituency(site, served));
        }
        for fault in site.registry().faults().iter().filter(|fault| fault.severity == Severity::Error) {
            let broken = all.entry(fault.subject.clone()).or_insert_with(|| not_served(&fault.subject));
            broken.problem = Some(match broken.problem.take() {
                Some(before) => format!("{before}; {}", fault.message),
                None => fault.message.clone(),
            });
        }
        for phone in phones {
            let Some(own) = all.get_mut(phone.constituency.as_str()) else { continue };
            own.seen_lately += usize::from(is_seen_lately(phone, now));
            own.refused += usize::from(matches!(phone.state, PhoneState::Refused | PhoneState::Waiting));
        }
        all.into_values().collect()
    }

    fn constituency(&self, site: &Site, served: &Constituency) -> picture::Constituency {
        let problem = site.unusable().find(|(name, _)| **name == served.name).map(|(_, reason)| reason.to_owned());
        let port = self.addresses.first().map(SocketAddr::port).filter(|port| *port != 443);
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let url = site.get(&served.name).map(|_| format!("https://{}.{}{port}/", served.name, site.domain()));
        let known = match (served.policy.tls.client_auth, &served.policy.phones) {
            (ClientAuth::None, _) | (_, Phones::Any) => None,
            _ => Some(served.known_phones().len()),
        };
        picture::Constituency {
            description: served.policy.description.clone(),
            url,
            problem,
            known,
            not_allowable: self.not_allowable(served),
            ..not_served(served.name.as_str())
        }
    }

    /// Why no phone can be put on this list from here.
    fn not_allowable(&self, served: &Constituency) -> Option<String> {
        use rustix::fs::{Access, AtFlags, accessat};
        let has_token = self.config.status.as_ref().is_some_and(|status| status.token_file.is_some());
        let access = Access::WRITE_OK | Access::EXEC_OK;
        if served.policy.tls.client_auth == ClientAuth::None {
            Some("it asks nobody who they are".to_owned())
        } else if !has_token {
            Some("no token is configured (\"token_file\" in \"status\")".to_owned())
        } else if accessat(served.folder.handle(), ".", access, AtFlags::EACCESS).is_err() {
            Some("the user that serves may not write to its folder".to_owned())
        } else {
            None
        }
    }
}

fn not_served(name: &str) -> picture::Constituency {
    picture::Constituency {
        name: name.to_owned(),
        description: String::new(),
        url: None,
        problem: None,
        known: Some(0),
        seen_lately: 0,
        refused: 0,
        not_allowable: Some("it is not served".to_owned()),
    }
}

fn renewed(status: CertificateStatus) -> picture::Certificate {
    let held = status.held.as_ref();
    picture::Certificate {
        key: match status.key {
            KeyKind::Rsa2048 => "RSA",
            KeyKind::EcdsaP256 => "ECDSA",
        }
        .to_owned(),
        names: held.map(|held| held.names.clone()).unwrap_or_default(),
        issuer: held.and_then(|held| held.issuers.first().cloned()),
        not_before: held.map(|held| held.not_before),
        not_after: held.map(|held| held.not_after),
        source: "acme",
        next_attempt: Some(status.next_attempt),
        step: status.step,
        last_error: status.last_error,
        needs_human: status.needs_human,
    }
}

fn presented(certificate: &ServerCertificate, source: &'static str) -> picture::Certificate {
    let is_rsa = certificate.algorithm() == SignatureAlgorithm::RSA;
    picture::Certificate {
        key: if is_rsa { "RSA" } else { "ECDSA" }.to_owned(),
        names: certificate.names.clone(),
        issuer: certificate.issuer(),
        not_before: Some(certificate.not_before),
        not_after: Some(certificate.not_after),
        source,
        next_attempt: None,
        step: None,
        last_error: None,
        needs_human: false,
    }
}

fn phone((constituency, mac): (ConstituencyName, MacAddress), known: Known, now: i64) -> Phone {
    let state = state(&known, now);
    let Known { note, seen, .. } = known;
    let mut phone = Phone {
        constituency,
        mac,
        state,
        note,
        first_seen: None,
        last_seen: None,
        address: None,
        model: None,
        firmware: None,
        tls: None,
        certificate_not_after: None,
        configuration: None,
        upload: None,
        refusal: None,
        requests: 0,
        refusals: 0,
    };
    if let Some(seen) = seen {
        let event = |event: Event| (event.what, seconds(event.at));
        phone.first_seen = Some(seconds(seen.first_seen));
        phone.last_seen = Some(seconds(seen.last_seen));
        phone.address = Some(seen.address);
        phone.model = seen.model;
        phone.firmware = seen.firmware;
        phone.tls = seen.tls.map(|(version, suite)| format!("{version}/{suite}"));
        phone.certificate_not_after = Some(seen.certificate_not_after);
        phone.configuration = seen.configuration.map(event);
        phone.upload = seen.upload.map(event);
        phone.refusal = seen.refusal.map(event);
        phone.requests = seen.requests;
        phone.refusals = seen.refusals;
    }
    phone
}

fn state(known: &Known, now: i64) -> PhoneState {
    match (known.standing, &known.seen) {
        (None, _) => PhoneState::Gone,
        (Some(Standing::Denied), _) => PhoneState::Denied,
        (Some(Standing::Unknown), _) => PhoneState::Waiting,
        (Some(Standing::Known), None) => PhoneState::Never,
        (Some(Standing::Known), Some(_)) if known.is_refused() => PhoneState::Refused,
        (Some(Standing::Known), Some(seen)) if now - seconds(seen.last_seen) >= SILENT_AFTER => PhoneState::Silent,
        (Some(Standing::Known), Some(_)) => PhoneState::Well,
    }
}

fn is_seen_lately(phone: &Phone, now: i64) -> bool {
    phone.last_seen.is_some_and(|seen| now - seen < DAY)
}

fn counts(phones: &[Phone], now: i64) -> Counts {
    use PhoneState as State;
    let count = |is_one: &dyn Fn(&Phone) -> bool| phones.iter().filter(|phone| is_one(phone)).count();
    Counts {
        known: count(&|it| matches!(it.state, State::Well | State::Silent | State::Never | State::Refused)),
        well: count(&|it| it.state == State::Well && is_seen_lately(it, now)),
        silent: count(&|it| matches!(it.state, State::Silent | State::Never)),
        refused: count(&|it| matches!(it.state, State::Refused | State::Waiting)),
    }
}

fn waiting(phones: &[Phone]) -> Vec<Phone> {
    let mut waiting: Vec<&Phone> =
        phones.iter().filter(|it| it.state == PhoneState::Waiting && it.refusal.is_some()).collect();
    waiting.sort_by_key(|phone| std::cmp::Reverse(phone.last_seen));
    waiting.into_iter().take(SHOWN).cloned().collect()
}

fn unproven(mut claims: Vec<Claim>) -> Vec<Unproven> {
    claims.sort_by_key(|claim| std::cmp::Reverse(claim.last_seen));
    let unproven = claims.into_iter().take(SHOWN).map(|claim| Unproven {
        constituency: claim.constituency,
        mac: claim.mac,
        certificate_sha256: claim.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
        address: claim.address,
        first_seen: seconds(claim.first_seen),
        last_seen: seconds(claim.last_seen),
        count: claim.count,
        reason: claim.refusal.unwrap_or_default(),
    });
    unproven.collect()
}

fn request(request: Request) -> PhoneRequest {
    let (method, target) = request.asked.unzip();
    PhoneRequest {
        time_ms: request.time,
        address: request.address,
        method,
        target,
        status: request.status,
        bytes: request.bytes,
        duration_ms: request.duration.as_secs_f64() * 1000.0,
        reason: request.reason,
    }
}

/// The ledger's milliseconds.
fn seconds(milliseconds: i64) -> i64 {
    milliseconds.div_euclid(1000)
}
