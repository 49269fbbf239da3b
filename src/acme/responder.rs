//! Publishes challenges through the built-in DNS responder: in memory, at once.

use std::time::Duration;

use tokio::sync::watch;

use super::dns01::{account_binding, failure, not_added};
use super::ports::{ChallengeDns, PortFuture, StepReporter};
use crate::dns::{RecordLocation, Responder};

/// How long a resolver may keep an answer about a challenge. Its TTL is one second, and resolvers count whole seconds.
const CACHED_FOR: Duration = Duration::from_secs(2);

impl ChallengeDns for Responder {
    fn fault(&self) -> watch::Receiver<Option<String>> {
        Self::fault(self)
    }

    fn locate<'a>(&'a self, challenge_name: &'a str) -> PortFuture<'a, RecordLocation> {
        Box::pin(async move { Self::locate(self, challenge_name).await.map_err(|error| failure(&error)) })
    }

    fn stands_alone<'a>(&'a self, name: &'a str) -> PortFuture<'a, ()> {
        Box::pin(async move { Self::stands_alone(self, name).await.map_err(|error| failure(&error)) })
    }

    fn account_binding<'a>(&'a self, name: &'a str, account: Option<&'a str>) -> PortFuture<'a, Vec<String>> {
        Box::pin(account_binding(self.resolvers(), None, name, account))
    }

    fn add<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async move { Self::add(self, location, values).map_err(|error| not_added(&error)) })
    }

    fn remove<'a>(&'a self, location: &'a RecordLocation, values: &'a [String]) -> PortFuture<'a, ()> {
        Box::pin(async move { Self::remove(self, location, values).map_err(|error| failure(&error)) })
    }

    /// The next answer of this server has the values. But the CA may ask another one by a wrong delegation, and an earlier
    /// answer may still be in a resolver's cache.
    fn wait_until_visible<'a>(
        &'a self,
        location: &'a RecordLocation,
        _values: &'a [String],
        report: StepReporter<'a>,
    ) -> PortFuture<'a, ()> {
        Box::pin(async move {
            self.prove_delegation(location, report).await.map_err(|error| failure(&error))?;
            tokio::time::sleep(CACHED_FOR).await;
            Ok(())
        })
    }

    fn likely_causes<'a>(&'a self, location: &'a RecordLocation, _values: &'a [String]) -> PortFuture<'a, Vec<String>> {
        Box::pin(async move { Ok(Self::likely_causes(self, location).await) })
    }
}
