//! Many phones at once, as after a power cut.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{BootReport, BootTarget, DeviceCertificate, VirtualPhone, Watch, boot};
use crate::clock;
use crate::constituency::MacAddress;

/// What became of many phones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetSummary {
    /// How many booted.
    pub phones: u64,
    /// How many of them have a configuration.
    pub provisioned: u64,
    /// How many of these lack files that their master configuration names.
    pub incomplete: u64,
    /// Requests in all.
    pub requests: u64,
    /// Bytes of all bodies sent.
    pub sent: u64,
    /// Bytes of all bodies received.
    pub received: u64,
    /// The phone that took longest, and how long.
    pub slowest: Option<(MacAddress, Duration)>,
    /// From the first phone's start to the last one's end.
    pub duration: Duration,
}

impl FleetSummary {
    /// Whether every phone was provisioned, and there was one.
    #[must_use]
    pub fn all_provisioned(&self) -> bool {
        self.phones > 0 && self.provisioned == self.phones
    }

    /// Whether every phone was provisioned with all that its master configuration names.
    #[must_use]
    pub fn all_complete(&self) -> bool {
        self.all_provisioned() && self.incomplete == 0
    }

    /// Counts one more phone.
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

/// Boots all of `phones`, no more than `at_once` at a time, each with the watch that `watch` gives for it.
///
/// Certificates are made before, so that what is measured is the server. Dropping the future stops every boot.
pub async fn boot_fleet<W: Watch + 'static>(
    phones: Vec<(VirtualPhone, Option<DeviceCertificate>)>,
    target: &BootTarget,
    at_once: usize,
    mut watch: impl FnMut(&VirtualPhone) -> W,
) -> FleetSummary {
    let started = clock::monotonic();
    let target = Arc::new(target.clone());
    let places = Arc::new(Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS)));
    let mut boots = JoinSet::new();
    for (phone, certificate) in phones {
        let (target, places, mut watch) = (Arc::clone(&target), Arc::clone(&places), watch(&phone));
        boots.spawn(async move {
            // The semaphore is never closed; if it were, the phone would boot without waiting.
            let _place = places.acquire_owned().await;
            boot(&phone, &target, certificate.as_ref(), &mut watch).await
        });
    }
    let mut summary = FleetSummary::default();
    while let Some(boot) = boots.join_next().await {
        match boot {
            Ok(report) => summary.add(&report),
            // A boot that panicked was a phone, too, and is not provisioned.
            Err(_) => summary.phones += 1,
        }
    }
    summary.duration = started.elapsed();
    summary
}
