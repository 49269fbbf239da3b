//! The current values of the metrics' gauges.

use std::collections::BTreeMap;

use super::LiveAdminData;
use super::phones::is_seen_lately;
use crate::admin::Snapshot;
use crate::admin::snapshot::{CertificateView, ConstituencyView, PhoneView};
use crate::certificate::ConditionLevel;
use crate::metrics::{GaugeValues, RenewalGauge, TlsGauges, ValidityGauge};
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
        for constituency in overview.constituencies.iter().filter(|constituency| constituency.url.is_some()) {
            seen.insert(constituency.name.clone(), 0);
            for (state, count) in constituency.counts.by_state().filter(|(_, count)| *count > 0) {
                phones.insert((constituency.name.clone(), state.name()), count);
            }
        }
        for phone in snapshot.phones.views() {
            if let Some(seen) = seen.get_mut(phone.constituency.as_str()) {
                *seen += usize::from(is_seen_lately(phone, overview.now));
                if let Some(negotiated) = negotiated_tls(phone) {
                    *tls.entry(negotiated).or_default() += 1;
                }
            }
        }
        let is_served = |it: &ConstituencyView| it.url.is_some() && it.problem.is_none();
        GaugeValues {
            version: overview.version,
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
            silent_together: overview
                .silent_together
                .iter()
                .map(|it| (it.constituency.to_string(), it.silent))
                .collect(),
            tls,
            certificates: Self::validities(snapshot),
            levels: Self::levels(snapshot),
            renewals: self.renewals(),
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

    fn renewals(&self) -> Vec<RenewalGauge> {
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
        board.status().certificates.into_iter().map(renewal).collect()
    }
}

/// The TLS version and suite that a phone negotiated. Their number is bounded, because the server accepts only those that
/// it implements.
fn negotiated_tls(phone: &PhoneView) -> Option<TlsGauges> {
    let (version, suite) = phone.tls.as_ref()?.split_once('/')?;
    Some(TlsGauges {
        constituency: phone.constituency.to_string(),
        level: phone.tls_level?,
        version: version.to_owned(),
        suite: suite.to_owned(),
    })
}
