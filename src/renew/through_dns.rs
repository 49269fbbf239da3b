//! Challenges through our own DNS: what fails there, as the flow understands it.

use super::failure::Failure;
use super::ports::{Answer, ChallengeDns, Say};
use crate::dns::{Dns, DnsError, Place};

impl ChallengeDns for Dns {
    fn locate<'a>(&'a self, challenge_name: &'a str) -> Answer<'a, Place> {
        Box::pin(async move { Self::locate(self, challenge_name).await.map_err(|error| failure(&error)) })
    }

    fn stands_alone<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { Self::stands_alone(self, name).await.map_err(|error| failure(&error)) })
    }

    fn add<'a>(&'a self, place: &'a Place, values: &'a [String]) -> Answer<'a, ()> {
        Box::pin(async move { Self::add(self, place, values).await.map_err(|error| failure(&error)) })
    }

    fn remove<'a>(&'a self, place: &'a Place, values: &'a [String]) -> Answer<'a, ()> {
        Box::pin(async move { Self::remove(self, place, values).await.map_err(|error| failure(&error)) })
    }

    fn wait_until_visible<'a>(&'a self, place: &'a Place, values: &'a [String], say: Say<'a>) -> Answer<'a, ()> {
        Box::pin(async move {
            Self::wait_until_visible(self, place, values, say).await.map(drop).map_err(|error| failure(&error))
        })
    }
}

fn failure(error: &DnsError) -> Failure {
    if error.needs_human() { Failure::human(error.to_string()) } else { Failure::retry(error.to_string()) }
}
