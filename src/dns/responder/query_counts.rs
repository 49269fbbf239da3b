//! Counts queries by their outcome, for the metrics. The labels are a few words, whatever is asked.

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_net::proto::op::{Message, ResponseCode};

use super::client::Transport;

/// What became of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueryOutcome {
    /// It got records.
    Answered,
    /// The name exists, and has no records of this type.
    NoData,
    NameError,
    /// The name is outside the zone, the query is for a transfer, or it is signed with a TSIG key, which we do not have.
    Refused,
    /// FORMERR
    Malformed,
    /// An unknown opcode or EDNS version.
    Unsupported,
    /// Its answer did not fit into a datagram: empty, with TC.
    Truncated,
    /// Its network was over the rate limit: empty, with TC, or no answer to what would be refused.
    RateLimited,
    /// It was a response or a fragment, and got no answer.
    Ignored,
}

impl QueryOutcome {
    const ALL: [Self; 9] = [
        Self::Answered,
        Self::NoData,
        Self::NameError,
        Self::Refused,
        Self::Malformed,
        Self::Unsupported,
        Self::Truncated,
        Self::RateLimited,
        Self::Ignored,
    ];

    /// The outcome of a query that gets `response` in full.
    pub(super) fn of(response: &Message) -> Self {
        match response.response_code {
            ResponseCode::NoError if response.answers.is_empty() => Self::NoData,
            ResponseCode::NXDomain => Self::NameError,
            ResponseCode::Refused | ResponseCode::NotAuth => Self::Refused,
            ResponseCode::FormErr => Self::Malformed,
            ResponseCode::NotImp | ResponseCode::BADVERS => Self::Unsupported,
            _ => Self::Answered,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoData => "no_data",
            Self::NameError => "nxdomain",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::Truncated => "truncated",
            Self::RateLimited => "rate_limited",
            Self::Ignored => "ignored",
        }
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct QueryCounts {
    udp: [AtomicU64; QueryOutcome::ALL.len()],
    tcp: [AtomicU64; QueryOutcome::ALL.len()],
}

impl QueryCounts {
    /// Counts one query. Costs an atomic addition.
    pub(super) fn count(&self, transport: Transport, outcome: QueryOutcome) {
        let counts = if transport == Transport::Tcp { &self.tcp } else { &self.udp };
        if let Some(count) = counts.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each transport and outcome, and how many queries had them.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let of = |transport, counts: &[AtomicU64]| -> Vec<_> {
            let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
            QueryOutcome::ALL.iter().zip(counts).map(|(outcome, count)| (transport, outcome.label(), count)).collect()
        };
        of("udp", &self.udp).into_iter().chain(of("tcp", &self.tcp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_a_counter_and_label_of_its_own() {
        let counts = QueryCounts::default();
        for (times, outcome) in (1..).zip(QueryOutcome::ALL) {
            (0..times).for_each(|_| counts.count(Transport::UdpOverLimit, outcome));
        }
        let all: Vec<_> = counts.all().collect();
        let (udp, tcp) = all.split_at(QueryOutcome::ALL.len());
        assert!(udp.iter().map(|(_, _, count)| *count).eq(1..=9), "{udp:?}");
        assert!(tcp.iter().all(|(transport, _, count)| (*transport, *count) == ("tcp", 0)), "{tcp:?}");
        let labels: std::collections::BTreeSet<_> = udp.iter().map(|(_, outcome, _)| outcome).collect();
        assert_eq!(labels.len(), 9);
    }
}
