//! Publishes challenges through our DNS client, and converts its errors.

use super::failure::{AcmeFailure, FailureKind};
use super::ports::{ChallengeDns, PortFuture, StepReporter};
use crate::dns::{CaaRecords, Dns, DnsError, DnsSettings, RecordLocation};

impl ChallengeDns for Dns {
    fn locate<'a>(&'a self, challenge_name: &'a str) -> PortFuture<'a, RecordLocation> {
        Box::pin(async move { Self::locate(self, challenge_name).await.map_err(|error| failure(&error)) })
    }

    fn stands_alone<'a>(&'a self, name: &'a str) -> PortFuture<'a, ()> {
        Box::pin(async move { Self::stands_alone(self, name).await.map_err(|error| failure(&error)) })
    }

    fn account_binding<'a>(&'a self, name: &'a str, account: Option<&'a str>) -> PortFuture<'a, Vec<String>> {
        Box::pin(account_binding(self.resolvers(), Some(self.settings()), name, account))
    }

    fn add<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async move { Self::add(self, location, values).await.map_err(|error| not_added(&error)) })
    }

    fn remove<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async move { Self::remove(self, location, values).await.map_err(|error| failure(&error)) })
    }

    fn wait_until_visible<'a>(
        &'a self,
        location: &'a RecordLocation,
        values: &'a [String],
        report: StepReporter<'a>,
    ) -> PortFuture<'a, ()> {
        Box::pin(async move {
            Self::wait_until_visible(self, location, values, report).await.map(drop).map_err(|error| failure(&error))
        })
    }

    fn likely_causes<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, Vec<String>> {
        Box::pin(async move { Self::likely_causes(self, location, values).await.map_err(|error| failure(&error)) })
    }
}

/// See [`ChallengeDns::account_binding`].
pub(super) async fn account_binding(
    resolvers: &[String],
    update: Option<&DnsSettings>,
    name: &str,
    account: Option<&str>,
) -> Result<Vec<String>, AcmeFailure> {
    let found = CaaRecords::find(resolvers, update, name).await.map_err(|error| failure(&error))?;
    Ok(found.bound_to(account))
}

/// The failure of an addition.
pub(super) fn not_added(error: &DnsError) -> AcmeFailure {
    let failure = failure(error);
    if error.proves_no_change() { failure.with_kind(FailureKind::NotPublished) } else { failure }
}

pub(super) fn failure(error: &DnsError) -> AcmeFailure {
    if error.needs_human() {
        AcmeFailure::action_required(error.to_string())
    } else {
        AcmeFailure::retry(error.to_string())
    }
}
