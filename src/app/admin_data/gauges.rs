//! The current values of the metrics' gauges.

use std::collections::{BTreeMap, HashSet};

use super::LiveAdminData;
use crate::admin::Snapshot;
use crate::admin::operators::Scope;
use crate::admin::snapshot::{CertificateView, ConstituencyView};
use crate::certificate::ConditionLevel;
use crate::constituency::TlsLevel;
use crate::metrics::{GaugeValues, MetricsDetail, RenewalGauge, TlsGauges, ValidityGauge};
use crate::phone_history::HistoryReader;
use crate::serve::connection_limits::ConnectionKind;

impl LiveAdminData {
    /// The values of all gauges: from `snapshot`, and from counters in memory.
    pub(super) fn gauges(&self, snapshot: &Snapshot) -> GaugeValues {
        let overview = &snapshot.overview;
        let server = self.server.upgrade();
        let count = |kind| server.as_ref().map_or(0, |server| server.connection_limits.count(kind));
        let mut phones: BTreeMap<(String, &'static str), usize> = BTreeMap::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut tls: BTreeMap<TlsGauges, usize> = BTreeMap::new();
        let scope = &snapshot.scope;
        let detail = match scope {
            Scope::All => self.config.status.as_ref().map(|status| status.metrics).unwrap_or_default(),
            // There are few, and a total would be of these.
            Scope::Constituencies(_) => MetricsDetail::Constituencies,
        };
        let name_of = |name: &str| detail.name_of(name).to_owned();
        let mut served: HashSet<&str> = HashSet::new();
        for constituency in overview.constituencies.iter().filter(|constituency| constituency.url.is_some()) {
            served.insert(&constituency.name);
            for (state, count) in constituency.counts.by_state().filter(|(_, count)| *count > 0) {
                *phones.entry((name_of(&constituency.name), state.name())).or_default() += count;
            }
            let numbers = snapshot.numbers.get(constituency.name.as_str());
            *seen.entry(name_of(&constituency.name)).or_default() += numbers.map_or(0, |numbers| numbers.seen_lately);
        }
        let mut silent_together: BTreeMap<String, usize> = BTreeMap::new();
        for silence in &overview.silent_together {
            *silent_together.entry(name_of(silence.constituency.as_str())).or_default() += silence.silent;
        }
        // What is missing if the history cannot be read has a metric of its own.
        let counts = HistoryReader::open(&self.state).ok().flatten().and_then(|reader| reader.tls_counts().ok());
        for (name, text, count) in counts.unwrap_or_default() {
            if served.contains(name.as_str())
                && let Some(negotiated) = negotiated_tls(detail.name_of(name.as_str()), &text)
            {
                *tls.entry(negotiated).or_default() += count;
            }
        }
        let is_served = |it: &ConstituencyView| it.url.is_some() && it.problem.is_none();
        GaugeValues {
            version: overview.version,
            detail,
            is_part: !scope.is_all(),
            started: overview.started,
            is_ready: overview.not_ready.is_none(),
            connections: vec![
                ("handshake", count(ConnectionKind::Unfinished)),
                ("anonymous", count(ConnectionKind::Anonymous)),
                ("known", count(ConnectionKind::Proven)),
            ],
            constituencies: overview.constituencies.iter().map(|it| (it.name.clone(), is_served(it))).collect(),
            phones,
            seen,
            silent_together,
            tls,
            certificates: Self::validities(snapshot),
            levels: Self::levels(snapshot),
            renewals: self.renewals(scope),
            ledger_is_written: self.health.failure().is_none(),
            ledger_dropped: self.health.dropped(),
            ledger_dropped_claims: self.health.dropped_claims(),
            lines_dropped: server.as_ref().map_or(0, |server| server.access.lost()),
        }
    }

    fn validities(snapshot: &Snapshot) -> Vec<ValidityGauge> {
        let validity = |it: &CertificateView| {
            let name = it.names.first().cloned().unwrap_or_default();
            let (not_before, not_after) = it.not_before.zip(it.not_after)?;
            Some(ValidityGauge { key: it.key.to_ascii_lowercase(), name, not_before, not_after })
        };
        snapshot.overview.certificates.iter().filter_map(validity).collect()
    }

    /// The level of each certificate, by key and name. Of several with the same key and name, the worst.
    fn levels(snapshot: &Snapshot) -> BTreeMap<(String, String), ConditionLevel> {
        let mut levels = BTreeMap::new();
        for it in &snapshot.overview.certificates {
            let name = it.names.first().cloned().unwrap_or_default();
            let level = levels.entry((it.key.to_ascii_lowercase(), name)).or_insert(ConditionLevel::Ok);
            *level = it.level.max(*level);
        }
        levels
    }

    fn renewals(&self, scope: &Scope) -> Vec<RenewalGauge> {
        let board = self.renewal.board.load();
        let Some(board) = board.as_ref() else { return Vec::new() };
        let renewal = |status: crate::acme::CertificateStatus| {
            let attempts = board.attempts(&status.lineage());
            RenewalGauge {
                key: super::certificates::key_name(status.key).to_ascii_lowercase(),
                constituency: status.constituency.map(|constituency| constituency.to_string()),
                attempts: attempts.begun,
                failures: attempts.failed,
                failures_in_a_row: status.failures,
                action_required: status.action_required,
            }
        };
        let is_visible = |it: &crate::acme::CertificateStatus| {
            it.constituency.as_ref().is_none_or(|name| scope.includes(name.as_str()))
        };
        board.status().certificates.into_iter().filter(is_visible).map(renewal).collect()
    }
}

/// The TLS version and suite of phones. Their number is bounded, because the server negotiates only those that it knows.
fn negotiated_tls(constituency: &str, text: &str) -> Option<TlsGauges> {
    let (version, suite) = text.split_once('/')?;
    Some(TlsGauges {
        constituency: constituency.to_string(),
        level: TlsLevel::of(version, suite).as_str(),
        version: version.to_owned(),
        suite: suite.to_owned(),
    })
}
