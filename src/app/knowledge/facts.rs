//! What the gauges of the metrics say at the moment.

use std::collections::BTreeMap;

use super::Sources;
use super::phones::is_seen_lately;
use crate::certificate::Level;
use crate::metrics::{Facts, Renewal, Tls, Validity};
use crate::serve::connection_limits::Kind;
use crate::status::Picture;
use crate::status::picture::{Certificate, Constituency, Phone};

impl Sources {
    /// What is so, by `picture` and by what needs no disk.
    pub(super) fn facts(&self, picture: &Picture) -> Facts {
        let overview = &picture.overview;
        let server = self.server.upgrade();
        let count = |kind| server.as_ref().map_or(0, |server| server.connection_limits.count(kind));
        let mut phones: BTreeMap<(String, &'static str), usize> = BTreeMap::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut tls: BTreeMap<Tls, usize> = BTreeMap::new();
        for constituency in overview.constituencies.iter().filter(|constituency| constituency.url.is_some()) {
            seen.insert(constituency.name.clone(), 0);
        }
        for phone in &picture.phones {
            if let Some(seen) = seen.get_mut(phone.constituency.as_str()) {
                *seen += usize::from(is_seen_lately(phone, overview.now));
                *phones.entry((phone.constituency.to_string(), phone.state.name())).or_default() += 1;
                if let Some(spoken) = spoken(phone) {
                    *tls.entry(spoken).or_default() += 1;
                }
            }
        }
        let is_served = |it: &Constituency| it.url.is_some() && it.problem.is_none();
        Facts {
            version: overview.version,
            started: overview.started,
            is_ready: overview.not_ready.is_none(),
            connections: vec![
                ("handshake", count(Kind::Unfinished)),
                ("anonymous", count(Kind::Anonymous)),
                ("known", count(Kind::Proven)),
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
            certificates: Self::validities(picture),
            levels: Self::levels(picture),
            renewals: self.renewals(),
            ledger_is_written: self.health.failure().is_none(),
            ledger_dropped: self.health.dropped(),
            ledger_dropped_claims: self.health.dropped_claims(),
            lines_lost: server.as_ref().map_or(0, |server| server.access.lost()),
        }
    }

    fn validities(picture: &Picture) -> Vec<Validity> {
        let validity = |it: &Certificate| {
            let name = it.names.first().cloned().unwrap_or_default();
            let (not_before, not_after) = it.not_before.zip(it.not_after)?;
            Some(Validity { key: it.key.to_ascii_lowercase(), name, not_before, not_after })
        };
        picture.overview.certificates.iter().filter_map(validity).collect()
    }

    /// The level of each certificate, by key and name: of several with the same, the worst.
    fn levels(picture: &Picture) -> BTreeMap<(String, String), Level> {
        let mut levels = BTreeMap::new();
        for it in &picture.overview.certificates {
            let name = it.names.first().cloned().unwrap_or_default();
            let level = levels.entry((it.key.to_ascii_lowercase(), name)).or_insert(Level::Ok);
            *level = it.level.max(*level);
        }
        levels
    }

    fn renewals(&self) -> Vec<Renewal> {
        let board = self.boards.load();
        let Some(board) = board.as_ref() else { return Vec::new() };
        let renewal = |status: crate::renew::CertificateStatus| {
            let attempts = board.attempts(&status.lineage());
            Renewal {
                key: super::certificates::key(status.key).to_ascii_lowercase(),
                constituency: status.constituency.map(|constituency| constituency.to_string()),
                attempts: attempts.begun,
                failures: attempts.failed,
                failures_in_a_row: status.failures,
                needs_human: status.needs_human,
            }
        };
        board.status().certificates.into_iter().map(renewal).collect()
    }
}

/// How a phone speaks TLS: versions and suites are those that we agree to, so there are only so many.
fn spoken(phone: &Phone) -> Option<Tls> {
    let (version, suite) = phone.tls.as_ref()?.split_once('/')?;
    Some(Tls {
        constituency: phone.constituency.to_string(),
        level: phone.tls_level?,
        version: version.to_owned(),
        suite: suite.to_owned(),
    })
}
