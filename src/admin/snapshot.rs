//! The views that the page renders and the API serves as JSON. Pure.
//!
//! Times are Unix seconds. Texts from phones, policies and certificates are raw: the renderer escapes them.

use serde::Serialize;

use crate::certificate::ConditionLevel;
use crate::constituency::{ConstituencyName, Listing, MacAddress};
use crate::phone_history::PhoneState;

/// How many missing files a text names.
const MISSING_SHOWN: usize = 5;

/// The state of the server at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// The time of the snapshot.
    pub now: i64,
    pub version: &'static str,
    /// The base domain of the site.
    pub domain: String,
    /// The absolute path of the configuration's file. `None` is local mode.
    pub config: Option<String>,
    /// When the server started.
    pub started: i64,
    /// Why the server is not ready. `None` if it is.
    pub not_ready: Option<String>,
    /// The server certificates, in use or wanted.
    pub certificates: Vec<CertificateView>,
    /// Every folder of a constituency, served or not.
    pub constituencies: Vec<ConstituencyView>,
    pub counts: PhoneCounts,
    /// Phones with a valid certificate that were refused because no list has them: the newest first, at most 100.
    pub waiting: Vec<PhoneView>,
    /// Constituencies most of whose phones fell silent at the same time.
    pub silent_together: Vec<SilentTogether>,
    /// Unproven claims: the newest first, at most 100.
    pub unproven: Vec<UnprovenView>,
    /// Phones that are denied server-wide.
    pub denied: Vec<DeniedPhone>,
    /// The activity of the last day, in steps of equal length, oldest first. The last step is not over.
    pub activity: ActivityView,
    /// Current problems for the operator, such as an unwritable phone history or lost log lines.
    #[serde(rename = "troubles")]
    pub problems: Vec<String>,
    /// Why the `notify` command failed last. `None` if it did not.
    pub notify_failure: Option<String>,
}

/// Phones of one constituency that fell silent at the same time.
#[derive(Debug, Clone, Serialize)]
pub struct SilentTogether {
    pub constituency: ConstituencyName,
    /// How many fell silent.
    pub silent: usize,
    /// How many came regularly until then.
    pub of: usize,
    /// When the last of the silent phones was seen.
    pub since: i64,
}

/// A server certificate and its renewal.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateView {
    /// "RSA" or "ECDSA"; "unknown" if its files were never usable.
    pub key: String,
    /// The names that it is for; the file of its chain if they are unknown.
    pub names: Vec<String>,
    pub issuer: Option<String>,
    /// The first second of its validity. `None` if there is no certificate yet.
    pub not_before: Option<i64>,
    /// The last second of its validity.
    pub not_after: Option<i64>,
    /// The source: `acme`, `files` or `local_ca`.
    pub source: &'static str,
    /// `ok`, `warning` or `error`.
    pub level: ConditionLevel,
    /// Its condition: `valid`, `missing`, `not_yet_valid`, `expired`, `wrong_names`, `files_unusable`, `ends_soon`
    /// or `renewal_overdue`.
    pub state: &'static str,
    /// The problem. `None` if there is none.
    pub problem: Option<String>,
    /// When renewal is next attempted.
    pub next_attempt: Option<i64>,
    /// The current step of the renewal.
    pub step: Option<String>,
    /// The error of the last attempt, if it failed.
    pub last_error: Option<String>,
    /// Whether an operator must act.
    #[serde(rename = "needs_human")]
    pub action_required: bool,
}

/// A folder of a constituency.
#[derive(Debug, Clone, Serialize)]
pub struct ConstituencyView {
    /// The folder's name, which may be an invalid DNS label.
    pub name: String,
    pub description: String,
    /// The URL for phones. `None` if it is not served.
    pub url: Option<String>,
    /// The error. If there is a URL, the last good policy is in force.
    pub problem: Option<String>,
    /// Parts of the policy without effect.
    pub warnings: Vec<String>,
    /// How many phones are known. `None` if every phone is accepted.
    pub known: Option<usize>,
    pub counts: PhoneCounts,
    /// How many known phones are accepted, and were seen during the last day.
    pub seen_lately: usize,
    /// How many known phones were refused at their last request; the same as `counts.refused`.
    pub refused: usize,
    /// Why the page cannot allow a phone, such as no token or a folder that is not writable.
    pub not_allowable: Option<String>,
}

/// How many phones are in each [`PhoneState`]. Each count equals the size of the list with that filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PhoneCounts {
    /// Known phones in any state: the filter `known`.
    pub known: usize,
    pub well: usize,
    pub silent: usize,
    pub never: usize,
    pub allowed: usize,
    pub waiting: usize,
    pub refused: usize,
    pub locked_out: usize,
    pub denied: usize,
    pub removed: usize,
    pub gone: usize,
}

/// The phones of one constituency, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PhoneNumbers {
    /// All phones.
    pub counts: PhoneCounts,
    /// Those that the index does not have: they were never seen, and are known or denied.
    pub unseen_known: usize,
    pub unseen_denied: usize,
    /// How many were seen during the last day.
    pub seen_lately: usize,
    /// How many of these are well.
    pub well_lately: usize,
}

impl PhoneNumbers {
    /// The phones with this listing that the index does not have.
    #[must_use]
    pub fn unseen(&self, listing: Listing) -> usize {
        match listing {
            Listing::Known => self.unseen_known,
            Listing::Denied => self.unseen_denied,
        }
    }

    /// The phones of the index by state.
    pub fn seen_by_state(&self) -> impl Iterator<Item = (PhoneState, usize)> {
        let unseen = |state| {
            let of = |listing| if PhoneState::of_unseen(listing) == state { self.unseen(listing) } else { 0 };
            of(Listing::Known) + of(Listing::Denied)
        };
        self.counts.by_state().map(move |(state, count)| (state, count.saturating_sub(unseen(state))))
    }
}

/// A phone, by its constituency's policy and the phone history.
#[derive(Debug, Clone, Serialize)]
pub struct PhoneView {
    pub constituency: ConstituencyName,
    pub mac: MacAddress,
    pub state: PhoneState,
    /// The operator's note.
    pub note: String,
    pub first_seen: Option<i64>,
    pub last_seen: Option<i64>,
    /// The last client address.
    pub address: Option<String>,
    /// The model from the User-Agent.
    pub model: Option<String>,
    /// The firmware version from the User-Agent.
    pub firmware: Option<String>,
    /// TLS version and cipher suite.
    pub tls: Option<String>,
    /// The lowest level of the policy's `tls` that accepts this TLS. Above `modern`, OpenSSL serves it.
    pub tls_level: Option<&'static str>,
    /// The end of validity of the device certificate.
    pub certificate_not_after: Option<i64>,
    /// The last configuration that it fetched, and when.
    pub configuration: Option<(String, i64)>,
    /// The last upload that was stored, and when.
    pub upload: Option<(String, i64)>,
    /// Why it was last refused, and when, even if it was accepted since.
    pub refusal: Option<(String, i64)>,
    /// Why a client that claims to be this phone was last refused, and when, if the phone may be locked out. Unproven.
    pub claimed: Option<(String, i64)>,
    pub requests: u64,
    pub refusals: u64,
    /// The server-wide denial, if there is one.
    pub denied_everywhere: Option<DenialView>,
}

impl PhoneView {
    /// A phone that was never seen.
    #[must_use]
    pub fn unseen(constituency: ConstituencyName, mac: MacAddress, state: PhoneState, note: String) -> Self {
        Self {
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
            tls_level: None,
            certificate_not_after: None,
            configuration: None,
            upload: None,
            refusal: None,
            claimed: None,
            requests: 0,
            refusals: 0,
            denied_everywhere: None,
        }
    }
}

/// A server-wide denial: by whom, when, and why. Texts may be empty.
#[derive(Debug, Clone, Serialize)]
pub struct DenialView {
    pub by: String,
    pub at: Option<i64>,
    pub note: String,
}

/// A phone that is denied server-wide, whether or not a constituency knows it.
#[derive(Debug, Clone, Serialize)]
pub struct DeniedPhone {
    pub mac: MacAddress,
    #[serde(flatten)]
    pub denial: DenialView,
}

/// A phone, and its recent requests.
#[derive(Debug, Clone, Serialize)]
pub struct PhoneHistoryView {
    pub phone: PhoneView,
    /// The files that its master configuration names.
    pub named: Option<NamedFiles>,
    /// Its stored requests in this constituency, the newest first.
    pub requests: Vec<PhoneRequestView>,
}

/// The files that a phone's master configuration names for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedFiles {
    /// The master configuration, `<mac>.cfg` or `000000000000.cfg`.
    pub master: String,
    pub files: Vec<String>,
    /// The files that the constituency's folder lacks.
    pub missing: Vec<String>,
}

impl NamedFiles {
    /// Describes the missing files. `None` if none is missing.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let mut list = self.missing.iter().take(MISSING_SHOWN).cloned().collect::<Vec<_>>();
        let more = self.missing.len() - list.len();
        list.extend((more > 0).then(|| format!("{more} more")));
        let (master, list) = (&self.master, list.join(", "));
        match self.missing.len() {
            0 => None,
            all if all == self.files.len() => Some(format!("all files that {master} names for it are missing: {list}")),
            1 => Some(format!("1 file that {master} names for it is missing: {list}")),
            some => Some(format!("{some} files that {master} names for it are missing: {list}")),
        }
    }
}

/// A request of a phone, or a refused handshake.
#[derive(Debug, Clone, Serialize)]
pub struct PhoneRequestView {
    /// When it began, in Unix milliseconds.
    pub time_ms: i64,
    pub address: String,
    /// The method. `None` if no request was read.
    pub method: Option<String>,
    /// The target. `None` if no request was read.
    pub target: Option<String>,
    pub status: Option<u16>,
    /// Bytes of the response body that were sent.
    pub bytes: u64,
    /// The duration in milliseconds.
    pub duration_ms: f64,
    /// Why it was refused or aborted.
    pub reason: Option<String>,
    /// Whether the phone's master configuration names the requested file.
    pub is_named: bool,
}

/// A client that claims to be a phone, with a certificate that proves nothing or a wrong password.
#[derive(Debug, Clone, Serialize)]
pub struct UnprovenView {
    pub constituency: ConstituencyName,
    /// The phone that the client claims to be.
    pub mac: MacAddress,
    /// The SHA-256 of the certificate, in hex. `None` if the client used a password.
    pub certificate_sha256: Option<String>,
    /// The last client address.
    pub address: String,
    /// The client addresses, the last seen first.
    pub addresses: Vec<NetworkView>,
    pub first_seen: i64,
    pub last_seen: i64,
    /// How often the claim was made.
    pub count: u64,
    /// Why it was last refused.
    pub reason: String,
}

/// A client address of a claim.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkView {
    pub address: String,
    pub first_seen: i64,
    pub last_seen: i64,
}

/// Counts over time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ActivityView {
    /// The length of a step, in seconds.
    pub step_s: i64,
    /// When the first step began.
    pub since: i64,
    /// Requests that were answered, including those for missing files.
    pub served: Vec<u64>,
    /// Requests and handshakes that were refused.
    pub refused: Vec<u64>,
    /// Handshakes, completed or refused.
    pub handshakes: Vec<u64>,
}

/// A query for phones, of the page and of `/api/phones`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PhoneQuery {
    /// The text that MAC address, note, address, model, firmware or constituency must contain. Case-insensitive.
    pub search: String,
    /// Only phones of this constituency.
    pub constituency: Option<String>,
    /// Only phones in this state.
    pub state: Option<StateFilter>,
    pub sort: PhoneSort,
    /// Whether the order is reversed.
    pub is_reversed: bool,
    /// How many phones to skip.
    pub offset: usize,
    /// The maximum of phones.
    pub limit: usize,
}

/// The parts of the page's other lists that are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SectionQuery {
    /// The text that a constituency's name or description must contain. Case-insensitive.
    pub folder: String,
    /// How many constituencies to skip.
    pub folder_offset: usize,
    /// How many unproven claims to skip.
    pub unproven_offset: usize,
    /// How many phones that are denied server-wide to skip.
    pub denied_offset: usize,
}

/// A filter by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFilter {
    One(PhoneState),
    /// Every state of a known phone.
    Known,
}

/// The order of phones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PhoneSort {
    /// Those that need an operator first: refused, waiting, silent, then the others.
    #[default]
    State,
    /// Last seen, the newest first.
    LastSeen,
    /// Constituency, then MAC address.
    Name,
    /// Model, then firmware.
    Model,
}

/// The result of a [`PhoneQuery`].
#[derive(Debug, Clone, Serialize)]
pub struct PhonePage {
    /// How many phones there are.
    pub total: usize,
    /// How many phones match, on all pages.
    pub matching: usize,
    /// The phones of this page.
    pub phones: Vec<PhoneView>,
}
