//! Metrics for Prometheus: `provost_…`, with bounded label values.
//!
//! The request path counts nothing: a record is counted after its line of the access log is formatted. A handshake
//! costs one atomic addition. All else is computed at each scrape.
//!
//! A new metric is a field of [`GaugeValues`] with a `register_…` line here, and a value in `app/admin_data/gauges.rs`.

mod refusal_kind;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::Method;
use parking_lot::Mutex;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::certificate::ConditionLevel;
use crate::constituency::ConstituencyName;
use crate::dns::responder::QueryCounts;

pub use refusal_kind::RefusalKind;

/// Counts finished handshakes.
#[derive(Debug, Default)]
pub struct Handshakes {
    full: AtomicU64,
    resumed: AtomicU64,
}

/// A finished request, or a refused handshake.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// The constituency, if it was determined.
    pub constituency: Option<&'a ConstituencyName>,
    /// The method, if it is a request.
    pub method: Option<&'a Method>,
    /// The response status.
    pub status: Option<u16>,
    /// The kind of a refusal.
    pub refusal: Option<RefusalKind>,
    /// Bytes of response body that were sent.
    pub bytes: u64,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Finished handshakes. Refused ones are counted by [`observe`](Metrics::observe).
    pub handshakes: Arc<Handshakes>,
    /// Queries to the DNS responder, if there is one.
    pub dns_queries: OnceLock<Arc<QueryCounts>>,
    tallies: Mutex<BTreeMap<Option<ConstituencyName>, RequestTally>>,
}

/// The counters of one constituency.
#[derive(Debug, Default, Clone)]
struct RequestTally {
    /// By method and status; status 0 means no response.
    requests: BTreeMap<(&'static str, u16), u64>,
    refusals: BTreeMap<RefusalKind, u64>,
    refused_handshakes: u64,
    bytes: u64,
}

impl RequestTally {
    fn add(&mut self, other: Self) {
        for (key, count) in other.requests {
            *self.requests.entry(key).or_default() += count;
        }
        for (kind, count) in other.refusals {
            *self.refusals.entry(kind).or_default() += count;
        }
        self.refused_handshakes += other.refused_handshakes;
        self.bytes += other.bytes;
    }
}

/// What `/metrics` tells apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricsDetail {
    /// A series for each constituency, some hundred bytes to each. Their sum is the total.
    #[default]
    Constituencies,
    /// The totals alone: the same metrics without the label `constituency`.
    Totals,
}

/// The current values of the gauges.
#[derive(Debug, Default)]
pub struct GaugeValues {
    /// Whether these are the values of some constituencies, and not those of the whole server.
    pub is_part: bool,
    /// Our version.
    pub version: &'static str,
    /// Whether the maps have an entry for each constituency, or totals with an empty name.
    pub detail: MetricsDetail,
    /// When the process started, in Unix seconds.
    pub started: i64,
    /// Whether phones can be served.
    pub is_ready: bool,
    /// Connections by kind.
    pub connections: Vec<(&'static str, usize)>,
    /// Every constituency folder, and whether it is served without an error.
    pub constituencies: Vec<(String, bool)>,
    /// Phones by constituency and state.
    pub phones: BTreeMap<(String, &'static str), usize>,
    /// Phones seen during the last day, by constituency.
    pub seen: BTreeMap<String, usize>,
    /// Phones that fell silent at the same time, by constituency.
    pub silent_together: BTreeMap<String, usize>,
    /// Known phones by the TLS that they spoke when they were last seen.
    pub tls: BTreeMap<TlsGauges, usize>,
    /// The certificates in use.
    pub certificates: Vec<ValidityGauge>,
    /// The level of each certificate's condition, by key and first name.
    pub levels: BTreeMap<(String, String), ConditionLevel>,
    /// The state of renewal by key, and for exact names by constituency.
    pub renewals: Vec<RenewalGauge>,
    /// Whether the phone history can be written.
    pub ledger_is_written: bool,
    /// Phone events that the phone history dropped because its queue was full.
    pub ledger_dropped: u64,
    /// Claims that the phone history dropped.
    pub ledger_dropped_claims: u64,
    /// Lines of the access log that were dropped because its reader was too slow.
    pub lines_dropped: u64,
}

/// The TLS that phones of a constituency speak.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TlsGauges {
    /// The constituency.
    pub constituency: String,
    /// The lowest setting of `tls` that accepts them. Above `modern`, OpenSSL serves them.
    pub level: &'static str,
    /// The version.
    pub version: String,
    /// The cipher suite.
    pub suite: String,
}

/// The validity period of a certificate, in Unix seconds.
#[derive(Debug, Clone)]
pub struct ValidityGauge {
    /// Its key.
    pub key: String,
    /// Its first name.
    pub name: String,
    /// Its first second.
    pub not_before: i64,
    /// Its last second.
    pub not_after: i64,
}

/// The state of the renewal of one certificate.
#[derive(Debug, Clone)]
pub struct RenewalGauge {
    /// Its key.
    pub key: String,
    /// The constituency whose exact names it is for; `None` for the wildcard.
    pub constituency: Option<String>,
    /// Attempts since the start.
    pub attempts: u64,
    /// Failed attempts since the start.
    pub failures: u64,
    /// Failures in a row.
    pub failures_in_a_row: u32,
    /// Whether an operator must change something.
    pub action_required: bool,
}

/// An exposition format of Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Plain,
}

impl Handshakes {
    /// Counts one handshake. Costs an atomic addition.
    pub fn count(&self, is_resumed: bool) {
        let counter = if is_resumed { &self.resumed } else { &self.full };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// All finished handshakes.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.full.load(Ordering::Relaxed) + self.resumed.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// Counts a finished request or a refused handshake.
    pub fn observe(&self, observed: Observation<'_>) {
        let mut tallies = self.tallies.lock();
        let tally = match tallies.entry(observed.constituency.cloned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(RequestTally::default()),
        };
        match observed.method {
            Some(method) => {
                *tally.requests.entry((name(method), observed.status.unwrap_or(0))).or_default() += 1;
                tally.bytes += observed.bytes;
            }
            // A request that could not be parsed, but was answered.
            None if observed.status.is_some() => {
                *tally.requests.entry(("other", observed.status.unwrap_or(0))).or_default() += 1;
            }
            None => tally.refused_handshakes += 1,
        }
        if let Some(refusal) = observed.refusal {
            *tally.refusals.entry(refusal).or_default() += 1;
        }
    }

    /// The number of observations of any kind.
    #[must_use]
    pub fn observed(&self) -> u64 {
        let tallies = self.tallies.lock();
        tallies.values().map(|tally| tally.requests.values().sum::<u64>() + tally.refused_handshakes).sum()
    }

    /// All metrics as text. Drops the counters of constituencies that no longer exist.
    ///
    /// # Errors
    /// If formatting fails, which would be a bug.
    pub fn text(&self, facts: &GaugeValues, exposition: Exposition) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("provost");
        self.register_counts(facts, &mut registry);
        if !facts.is_part {
            self.register_whole(&mut registry);
            facts.register_connections(&mut registry);
        }
        facts.register_process(&mut registry);
        facts.register_phones(&mut registry);
        facts.register_certificates(&mut registry);
        let mut written = String::new();
        match exposition {
            Exposition::OpenMetrics => text::encode(&mut written, &registry)?,
            Exposition::Plain => prometheus_text::encode(&mut written, &registry)?,
        }
        Ok(written)
    }

    fn register_counts(&self, facts: &GaugeValues, registry: &mut Registry) {
        let there: HashSet<&str> = facts.constituencies.iter().map(|(name, _)| name.as_str()).collect();
        let is_there = |name: &ConstituencyName| there.contains(name.as_str());
        let mut tallies = self.tallies.lock();
        // Refusals without a constituency stay.
        let gone = tallies.keys().filter(|name| !facts.is_part && !name.as_ref().is_none_or(is_there));
        for name in gone.cloned().collect::<Vec<_>>() {
            let tally = tallies.remove(&name).unwrap_or_default();
            if facts.detail == MetricsDetail::Totals {
                // A total never decreases.
                tallies.entry(None).or_default().add(tally);
            }
        }
        let (requests, refusals, bytes) = <(CounterFamily, CounterFamily, CounterFamily)>::default();
        let is_wanted = |name: &&Option<ConstituencyName>| !facts.is_part || name.as_ref().is_some_and(is_there);
        for (name, tally) in tallies.iter().filter(|(name, _)| is_wanted(name)) {
            let name = name.as_ref().map_or("", ConstituencyName::as_str);
            for ((method, status), count) in &tally.requests {
                let status = if *status == 0 { "none".to_owned() } else { status.to_string() };
                add(&requests, &facts.detail.labels(name, &[("method", method), ("code", &status)]), *count);
            }
            for (kind, count) in &tally.refusals {
                add(&refusals, &facts.detail.labels(name, &[("reason", kind.label())]), *count);
            }
            if !name.is_empty() || facts.detail == MetricsDetail::Totals {
                add(&bytes, &facts.detail.labels(name, &[]), tally.bytes);
            }
        }
        registry.register("requests", "Requests by constituency, method and status", requests);
        registry.register("refusals", "Refused requests and handshakes by the kind of their reason", refusals);
        registry.register("sent_bytes", "Bytes of bodies that were sent", bytes);
    }

    /// What is counted for the whole server alone.
    fn register_whole(&self, registry: &mut Registry) {
        let handshakes = CounterFamily::default();
        let refused = self.tallies.lock().values().map(|tally| tally.refused_handshakes).sum();
        add(&handshakes, &[("outcome", "full")], self.handshakes.full.load(Ordering::Relaxed));
        add(&handshakes, &[("outcome", "resumed")], self.handshakes.resumed.load(Ordering::Relaxed));
        add(&handshakes, &[("outcome", "refused")], refused);
        registry.register("handshakes", "TLS handshakes by outcome", handshakes);
        if let Some(counts) = self.dns_queries.get() {
            let queries = CounterFamily::default();
            for (transport, outcome, count) in counts.all() {
                add(&queries, &[("transport", transport), ("outcome", outcome)], count);
            }
            registry.register("dns_queries", "Queries to the built-in DNS responder by outcome", queries);
        }
    }
}

type Labels = Vec<(&'static str, String)>;
type CounterFamily = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge<i64, AtomicI64>>;

fn labels(pairs: &[(&'static str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
}

fn add(counts: &CounterFamily, pairs: &[(&'static str, &str)], count: u64) {
    counts.get_or_create(&labels(pairs)).inc_by(count);
}

fn set(gauges: &Gauges, pairs: &[(&'static str, &str)], value: impl TryInto<i64>) {
    gauges.get_or_create(&labels(pairs)).set(value.try_into().unwrap_or(i64::MAX));
}

/// A gauge without labels.
fn gauge(value: impl TryInto<i64>) -> Gauge<i64, AtomicI64> {
    let gauge = Gauge::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    gauge
}

fn counter(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

impl MetricsDetail {
    /// The name by which a constituency is counted.
    #[must_use]
    pub fn name_of(self, constituency: &str) -> &str {
        match self {
            Self::Constituencies => constituency,
            Self::Totals => "",
        }
    }

    /// The labels of a series of `constituency`.
    fn labels<'a>(self, constituency: &'a str, others: &[(&'static str, &'a str)]) -> Vec<(&'static str, &'a str)> {
        let own = (self == Self::Constituencies).then_some(("constituency", constituency));
        own.into_iter().chain(others.iter().copied()).collect()
    }
}

impl GaugeValues {
    fn register_process(&self, registry: &mut Registry) {
        registry.register("build", "The running version", Info::new(vec![("version", self.version)]));
        registry.register("start_time_seconds", "The start time, in Unix time", gauge(self.started));
        registry.register("ready", "Whether phones can be served (1) or not (0)", gauge(i64::from(self.is_ready)));
    }

    fn register_connections(&self, registry: &mut Registry) {
        let connections = Gauges::default();
        for (kind, count) in &self.connections {
            set(&connections, &[("kind", kind)], *count);
        }
        registry.register("connections", "Phones' connections by kind", connections);
        let is_written = gauge(i64::from(self.ledger_is_written));
        registry.register("ledger_writable", "Whether the phone history can be written (1) or not (0)", is_written);
        let dropped = "Phone events that were dropped because the queue of the phone history was full";
        registry.register("ledger_dropped_sightings", dropped, counter(self.ledger_dropped));
        let claims = "Unproven claims to be a phone that were dropped because the queue of the phone history was full";
        registry.register("ledger_dropped_claims", claims, counter(self.ledger_dropped_claims));
        let lost = "Lines of the access log that were dropped because standard output was not read fast enough";
        registry.register("access_log_lost_lines", lost, counter(self.lines_dropped));
    }

    fn register_phones(&self, registry: &mut Registry) {
        let (phones, seen, tls, constituencies) = <(Gauges, Gauges, Gauges, Gauges)>::default();
        for ((constituency, state), count) in &self.phones {
            set(&phones, &self.detail.labels(constituency, &[("state", state)]), *count);
        }
        for (constituency, count) in &self.seen {
            set(&seen, &self.detail.labels(constituency, &[]), *count);
        }
        // Each constituency has a value, so that a rate or an alert sees it come and go.
        let silent = Gauges::default();
        for constituency in self.seen.keys() {
            let count = self.silent_together.get(constituency).copied().unwrap_or_default();
            set(&silent, &self.detail.labels(constituency, &[]), count);
        }
        for (spoken, count) in &self.tls {
            let TlsGauges { constituency, level, version, suite } = spoken;
            let spoken: [(&str, &str); 3] = [("level", level), ("version", version), ("suite", suite)];
            set(&tls, &self.detail.labels(constituency, &spoken), *count);
        }
        for (state, is_served) in [("served", true), ("broken", false)] {
            let count = self.constituencies.iter().filter(|(_, served)| *served == is_served).count();
            set(&constituencies, &[("state", state)], count);
        }
        registry.register("phones", "Phones by constituency and state", phones);
        registry.register("phones_seen", "Phones seen during the last day", seen);
        let together = "Phones that fell silent together, where these are most of those that connect regularly";
        registry.register("phones_silent_together", together, silent);
        registry.register("phones_tls", "Phones by the TLS version that they used last", tls);
        registry.register("constituencies", "Folders of constituencies by whether they are served", constituencies);
    }

    fn register_certificates(&self, registry: &mut Registry) {
        let (start, expiry, level, in_a_row, action_required) = <(Gauges, Gauges, Gauges, Gauges, Gauges)>::default();
        let (attempts, failures) = <(CounterFamily, CounterFamily)>::default();
        for certificate in &self.certificates {
            let labels = [("key", certificate.key.as_str()), ("name", certificate.name.as_str())];
            set(&start, &labels, certificate.not_before);
            set(&expiry, &labels, certificate.not_after);
        }
        for ((key, name), own) in &self.levels {
            for one in [ConditionLevel::Ok, ConditionLevel::Warning, ConditionLevel::Error] {
                let labels = [("key", key.as_str()), ("name", name.as_str()), ("level", one.as_str())];
                set(&level, &labels, i64::from(one == *own));
            }
        }
        for renewal in &self.renewals {
            let constituency = renewal.constituency.as_deref().map(|constituency| ("constituency", constituency));
            let key: Vec<(&str, &str)> = std::iter::once(("key", renewal.key.as_str())).chain(constituency).collect();
            add(&attempts, &key, renewal.attempts);
            add(&failures, &key, renewal.failures);
            set(&in_a_row, &key, renewal.failures_in_a_row);
            set(&action_required, &key, i64::from(renewal.action_required));
        }
        let starts = "The notBefore of the certificate in use, in Unix time";
        registry.register("certificate_start_timestamp_seconds", starts, start);
        let expires = "The notAfter of the certificate in use, in Unix time";
        registry.register("certificate_expiry_timestamp_seconds", expires, expiry);
        let levels = "Whether the condition of the certificate is at this level (1) or not (0): ok, warning, error";
        registry.register("certificate_condition", levels, level);
        registry.register("renewal_attempts", "Attempts to obtain or renew a certificate", attempts);
        registry.register("renewal_failures", "Attempts to obtain or renew a certificate that failed", failures);
        registry.register("renewal_consecutive_failures", "Consecutive failed attempts", in_a_row);
        registry.register(
            "renewal_needs_human",
            "Whether renewal needs an action of an operator (1) or not (0)",
            action_required,
        );
    }
}

/// The method as a label, one of a bounded set.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        _ => "other",
    }
}
