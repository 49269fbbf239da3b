//! What is shown: the page renders these values, and the API gives them as JSON. Pure.
//!
//! Times are Unix seconds. Texts that come from phones, policies or certificates are as they came: whoever renders them
//! escapes them.

use serde::Serialize;

use crate::certificate::ConditionLevel;
use crate::constituency::{ConstituencyName, MacAddress};

/// How many missing files have their names in a text.
const MISSING_SHOWN: usize = 5;

/// How the server is, at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// When this was so.
    pub now: i64,
    /// Our version.
    pub version: &'static str,
    /// The site's base name.
    pub domain: String,
    /// The configuration's file, absolute; `None` is local mode.
    pub config: Option<String>,
    /// Since when the server has been running.
    pub started: i64,
    /// Why it is not ready to serve; `None` if it is.
    pub not_ready: Option<String>,
    /// The server's certificates, in use or wanted.
    pub certificates: Vec<CertificateView>,
    /// Every folder, served or not.
    pub constituencies: Vec<ConstituencyView>,
    /// How many phones there are, by their state.
    pub counts: PhoneCounts,
    /// Proven phones that are on no list and were refused for it: the newest first, the first hundred.
    pub waiting: Vec<PhoneView>,
    /// Constituencies most of whose phones fell silent at the same time.
    pub silent_together: Vec<SilentTogether>,
    /// Refused certificates that prove nothing: the newest first, the first hundred.
    pub unproven: Vec<UnprovenView>,
    /// Phones that are denied on the whole server.
    pub denied: Vec<DeniedPhone>,
    /// What went on during the last day, oldest first, in steps of equal length; the last one is not over yet.
    pub activity: ActivityView,
    /// What has been wrong lately, in the operator's words: a ledger that is not written, log lines that were lost.
    pub troubles: Vec<String>,
}

/// Phones of one constituency that fell silent at the same time.
#[derive(Debug, Clone, Serialize)]
pub struct SilentTogether {
    pub constituency: ConstituencyName,
    /// How many.
    pub silent: usize,
    /// Of how many that came regularly until then.
    pub of: usize,
    /// When the last of them was seen.
    pub since: i64,
}

/// A server certificate and its renewal.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateView {
    /// "RSA" or "ECDSA".
    pub key: String,
    /// The names that it is for.
    pub names: Vec<String>,
    /// Who issued it.
    pub issuer: Option<String>,
    /// Its first second; `None` if there is none yet.
    pub not_before: Option<i64>,
    /// Its last second.
    pub not_after: Option<i64>,
    /// Where it comes from: `acme`, `files` or `local_ca`.
    pub source: &'static str,
    /// `ok`, `warning` or `error`.
    pub level: ConditionLevel,
    /// Its condition: `valid`, `missing`, `not_yet_valid`, `expired`, `ends_soon` or `renewal_overdue`.
    pub state: &'static str,
    /// What is wrong with it; `None` if nothing is.
    pub problem: Option<String>,
    /// When the next attempt to renew it is made.
    pub next_attempt: Option<i64>,
    /// What is being done right now.
    pub step: Option<String>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<String>,
    /// Whether somebody must change something.
    pub needs_human: bool,
}

/// A constituency's folder.
#[derive(Debug, Clone, Serialize)]
pub struct ConstituencyView {
    /// The folder's name, which may be no DNS label.
    pub name: String,
    /// The policy's description.
    pub description: String,
    /// Where phones find it; `None` if it is not served.
    pub url: Option<String>,
    /// What is wrong with it; with a URL, the last good policy is in force.
    pub problem: Option<String>,
    /// What in its policy has no effect, although it is served.
    pub warnings: Vec<String>,
    /// Known phones, or `None` where every phone is admitted.
    pub known: Option<usize>,
    /// How many phones it has, by their state.
    pub counts: PhoneCounts,
    /// Known phones that are let in and were seen during the last day.
    pub seen_lately: usize,
    /// Phones that were refused when they last asked: the known ones and those that wait.
    pub refused: usize,
    /// Why a phone cannot be allowed from the page: no token is configured, or the folder is not ours to write.
    pub not_allowable: Option<String>,
}

/// How many phones there are in each [`PhoneState`]; each is exactly what the list gives that is filtered by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PhoneCounts {
    /// On the list of a constituency, whatever their state: the filter `known`.
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

/// Whether a phone is all right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PhoneState {
    /// Known, accepted when it last asked, and seen during the last two days.
    Well,
    /// Known, and not seen for two days.
    Silent,
    /// Known, and never seen.
    Never,
    /// Proven, and refused because it is not on the list: it waits for approval.
    Waiting,
    /// Taken off the list since it last asked, when it was accepted.
    Removed,
    /// On the list since it last asked, when it was not.
    Allowed,
    /// Known, and refused when it last asked.
    Refused,
    /// Known, and a client that claims to be it was refused since it was last accepted. A claim proves nothing.
    LockedOut,
    /// Denied by the policy.
    Denied,
    /// Its constituency is not served any more.
    Gone,
}

/// A phone as its constituency's policy and the ledger know it.
#[derive(Debug, Clone, Serialize)]
pub struct PhoneView {
    /// The constituency.
    pub constituency: ConstituencyName,
    /// The phone.
    pub mac: MacAddress,
    /// How it is.
    pub state: PhoneState,
    /// The operator's note.
    pub note: String,
    /// When it was first seen.
    pub first_seen: Option<i64>,
    /// When it was last seen.
    pub last_seen: Option<i64>,
    /// From where it came last.
    pub address: Option<String>,
    /// Its model, as it calls itself.
    pub model: Option<String>,
    /// Its firmware, as it calls itself.
    pub firmware: Option<String>,
    /// TLS version and cipher suite.
    pub tls: Option<String>,
    /// The least setting of `tls` that lets it in so; above `modern` it came by the old lane.
    pub tls_level: Option<&'static str>,
    /// When its device certificate expires.
    pub certificate_not_after: Option<i64>,
    /// The configuration that it last fetched, and when.
    pub configuration: Option<(String, i64)>,
    /// The upload that it last stored, and when.
    pub upload: Option<(String, i64)>,
    /// Why it was last refused, and when; also if it was let in since.
    pub refusal: Option<(String, i64)>,
    /// Why a client that claims to be it was last refused, and when, if the phone may be locked out by that. Unproven.
    pub claimed: Option<(String, i64)>,
    /// How many requests it made.
    pub requests: u64,
    /// How many of them were refused.
    pub refusals: u64,
    /// Who denied it on the whole server; `None` if that is not so.
    pub denied_everywhere: Option<DenialView>,
}

/// Who denied a phone on the whole server, when, and why. Texts may be empty.
#[derive(Debug, Clone, Serialize)]
pub struct DenialView {
    /// Who.
    pub by: String,
    /// When.
    pub at: Option<i64>,
    /// Why.
    pub note: String,
}

/// A phone that is denied on the whole server, whether or not any constituency knows it.
#[derive(Debug, Clone, Serialize)]
pub struct DeniedPhone {
    /// The phone.
    pub mac: MacAddress,
    /// Who denied it, when, and why.
    #[serde(flatten)]
    pub denial: DenialView,
}

/// A phone, and what it asked lately.
#[derive(Debug, Clone, Serialize)]
pub struct PhoneHistoryView {
    /// The phone.
    pub phone: PhoneView,
    /// What its master configuration names for it.
    pub named: Option<NamedFiles>,
    /// Its requests that are kept, in this constituency, the newest first.
    pub requests: Vec<PhoneRequestView>,
}

/// The files that a phone's master configuration names for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedFiles {
    /// The master configuration, `<mac>.cfg` or `000000000000.cfg`.
    pub master: String,
    pub files: Vec<String>,
    /// Those of the files that the phone's folder does not have.
    pub missing: Vec<String>,
}

impl NamedFiles {
    /// Which files are missing, in words; `None` if all are there.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let mut list = self.missing.iter().take(MISSING_SHOWN).cloned().collect::<Vec<_>>();
        let more = self.missing.len() - list.len();
        list.extend((more > 0).then(|| format!("{more} more")));
        let (master, list) = (&self.master, list.join(", "));
        match self.missing.len() {
            0 => None,
            all if all == self.files.len() => {
                Some(format!("none of the files that {master} names for it is there: {list}"))
            }
            1 => Some(format!("1 file that {master} names for it is missing: {list}")),
            some => Some(format!("{some} files that {master} names for it are missing: {list}")),
        }
    }
}

/// One request of a phone, or a handshake that was refused.
#[derive(Debug, Clone, Serialize)]
pub struct PhoneRequestView {
    /// When it began, in milliseconds.
    pub time_ms: i64,
    /// From where it came.
    pub address: String,
    /// The method, if a request was read.
    pub method: Option<String>,
    /// What was asked for.
    pub target: Option<String>,
    /// The answer's status.
    pub status: Option<u16>,
    /// Bytes of body that were sent.
    pub bytes: u64,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// Why it was refused or broke off.
    pub reason: Option<String>,
    /// Whether the phone's master configuration names what was asked for.
    pub is_named: bool,
}

/// Somebody who claims to be a phone, by a certificate that anybody can have made or a password that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct UnprovenView {
    /// The constituency that was asked.
    pub constituency: ConstituencyName,
    /// The phone that it claims to be.
    pub mac: MacAddress,
    /// The SHA-256 of the certificate, in hex; `None`: there was a password.
    pub certificate_sha256: Option<String>,
    /// From where it came last.
    pub address: String,
    /// From where it came: the addresses that were seen last, in that order.
    pub addresses: Vec<NetworkView>,
    /// When it was first seen.
    pub first_seen: i64,
    /// When it was last seen.
    pub last_seen: i64,
    /// How often it came.
    pub count: u64,
    /// Why it was refused.
    pub reason: String,
}

/// An address, and when somebody came from there.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkView {
    /// The address.
    pub address: String,
    /// When first.
    pub first_seen: i64,
    /// When last.
    pub last_seen: i64,
}

/// Counts over time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ActivityView {
    /// The length of a step, in seconds.
    pub step_s: i64,
    /// When the first step began.
    pub since: i64,
    /// Requests that were answered with what was asked, or that it is not there.
    pub served: Vec<u64>,
    /// Requests and handshakes that were refused.
    pub refused: Vec<u64>,
    /// Handshakes, finished or refused.
    pub handshakes: Vec<u64>,
}

/// Which phones are asked for: the query of the page and of `/api/phones`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PhoneQuery {
    /// What MAC address, note, address, model, firmware or constituency must contain, whatever the case.
    pub search: String,
    /// Only of this constituency.
    pub constituency: Option<String>,
    /// Only those in this state.
    pub state: Option<StateFilter>,
    /// By what they are sorted.
    pub sort: PhoneSort,
    /// Whether the order is turned round.
    pub is_reversed: bool,
    /// How many are left out at the begin.
    pub offset: usize,
    /// How many are given at most.
    pub limit: usize,
}

/// Which states are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFilter {
    One(PhoneState),
    /// Every state of a phone that is on the list.
    Known,
}

/// By what phones are sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PhoneSort {
    /// What needs somebody first: refused, waiting, silent, then the others.
    #[default]
    State,
    /// When it was last seen, the newest first.
    LastSeen,
    /// Constituency, then MAC address.
    Name,
    /// Model, then firmware.
    Model,
}

/// The phones that were asked for.
#[derive(Debug, Clone, Serialize)]
pub struct PhonePage {
    /// How many there are in all.
    pub total: usize,
    /// How many match, on all pages.
    pub matching: usize,
    /// Those of this page.
    pub phones: Vec<PhoneView>,
}
