//! Boots many phones at once, as after a power cut.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{BootObserver, BootReport, BootTarget, DeviceCertificate, VirtualPhone, boot};
use crate::clock;
use crate::constituency::MacAddress;

/// The totals of many boots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetSummary {
    /// The phones that booted.
    pub phones: u64,
    /// Of these, the phones that got a configuration.
    pub provisioned: u64,
    /// Of these, the phones that lack files which their master configuration names.
    pub incomplete: u64,
    /// All requests.
    pub requests: u64,
    /// The bytes of all request bodies.
    pub sent: u64,
    /// The bytes of all response bodies.
    pub received: u64,
    /// The slowest phone, and its boot time.
    pub slowest: Option<(MacAddress, Duration)>,
    /// The time from the first phone's start to the last one's end.
    pub duration: Duration,
}

impl FleetSummary {
    /// Whether every phone was provisioned, and there was at least one.
    #[must_use]
    pub fn all_provisioned(&self) -> bool {
        self.phones > 0 && self.provisioned == self.phones
    }

    /// Whether every phone was also complete: it got every file that its master configuration names.
    #[must_use]
    pub fn all_complete(&self) -> bool {
        self.all_provisioned() && self.incomplete == 0
    }

    /// Adds the report of one phone.
    pub fn add(&mut self, report: &BootReport) {
        let (sent, received) = report.bytes();
        self.phones += 1;
        self.provisioned += u64::from(report.is_provisioned());
        self.incomplete += u64::from(report.is_provisioned() && !report.is_complete());
        self.requests += report.exchanges.len() as u64;
        self.sent += sent;
        self.received += received;
        if self.slowest.is_none_or(|(_, slowest)| report.duration > slowest) {
            self.slowest = Some((report.phone.mac, report.duration));
        }
    }
}

/// Boots `phones`, at most `at_once` at a time. `watch` makes the observer of each phone.
///
/// The certificates are made before, so that the time measured is the server's. Dropping the future stops every boot.
pub async fn boot_fleet<W: BootObserver + 'static>(
    phones: Vec<(VirtualPhone, Option<DeviceCertificate>)>,
    target: &BootTarget,
    at_once: usize,
    mut watch: impl FnMut(&VirtualPhone) -> W,
) -> FleetSummary {
    let started = clock::monotonic();
    let target = Arc::new(target.clone());
    let permits = Arc::new(Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS)));
    let mut boots = JoinSet::new();
    for (phone, certificate) in phones {
        let (target, permits, mut watch) = (Arc::clone(&target), Arc::clone(&permits), watch(&phone));
        boots.spawn(async move {
            // The semaphore is never closed. If it were, the phone would boot without waiting.
            let _permit = permits.acquire_owned().await;
            boot(&phone, &target, certificate.as_ref(), &mut watch).await
        });
    }
    let mut summary = FleetSummary::default();
    while let Some(boot) = boots.join_next().await {
        match boot {
            Ok(report) => summary.add(&report),
            // A boot that panicked is counted as a phone that is not provisioned.
            Err(_) => summary.phones += 1,
        }
    }
    summary.duration = started.elapsed();
    summary
}
