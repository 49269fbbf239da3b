//! Certificates for exact names, besides the wildcard: which are configured, which are presented, and when leftovers are
//! removed.
//!
//! They never delay the wildcard. All other phones get the wildcard certificate, and so do phones of exact names until
//! their own certificate exists. So if both are due, the wildcard is renewed first. Exact names have rate limits of their
//! own ([`rate_limit`](super::rate_limit)), per name where the CA limits per name. If the CA limits one of them, only
//! that one waits.
//!
//! When a constituency no longer asks for exact names, its certificate is no longer presented or renewed. The
//! certificate and a pending order are kept until the certificate expires. If the constituency asks again, they are
//! used.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::schedule::DAY;
use super::{Lineage, Renewer};
use crate::certificate::Validity;
use crate::constituency::ConstituencyName;

/// How long failures and rate limits of a removed constituency are kept: longer than the slowest rate limit takes to
/// refill, and longer than a CA keeps an order.
const RETENTION: i64 = 8 * DAY;

impl Renewer {
    /// All certificates that are kept renewed.
    pub(super) fn lineages(&self) -> Vec<Lineage> {
        let wildcards = self.parts.keys.iter().copied().map(Lineage::Wildcard);
        wildcards.chain(self.wanted.iter().map(|(constituency, _)| Lineage::Exact(constituency.clone()))).collect()
    }

    /// The names that the certificate of `lineage` must cover.
    pub(super) fn names(&self, lineage: &Lineage) -> &[String] {
        match lineage {
            Lineage::Wildcard(_) => &self.names,
            Lineage::Exact(constituency) => self.wanted.get(constituency).unwrap_or_default(),
        }
    }

    /// Adopts the exact names that the constituencies ask for now.
    pub(super) fn adopt_exact_names(&mut self) {
        let wanted = Arc::clone(&self.parts.exact.borrow_and_update());
        let before = std::mem::replace(&mut self.wanted, Arc::clone(&wanted));
        for (constituency, _) in before.iter().filter(|(constituency, _)| wanted.get(constituency).is_none()) {
            let lineage = Lineage::Exact(constituency.clone());
            self.held.remove(&lineage);
            self.requests.remove(&lineage);
            tracing::info!(
                "certificate ({lineage}): no longer configured, so not renewed; the stored one is kept until it expires"
            );
        }
        for (constituency, names) in
            wanted.iter().filter(|(constituency, names)| before.get(constituency) != Some(*names))
        {
            let lineage = Lineage::Exact(constituency.clone());
            if !self.held.contains_key(&lineage) {
                self.load(lineage.clone());
            }
            let names = names.join(", ");
            match self.held.get(&lineage) {
                Some(stored) if stored.checked.is_for(self.names(&lineage)) => {
                    tracing::info!("certificate ({lineage}): using the stored one for {names}");
                }
                _ => tracing::info!(
                    "certificate ({lineage}): due for {names}; until it is issued, phones get the wildcard certificate"
                ),
            }
        }
    }

    /// Publishes the stored certificates. New handshakes present them.
    pub(super) fn publish(&self) {
        let certificate = |lineage: &Lineage| self.held.get(lineage).map(|stored| stored.checked.certificate.clone());
        let wildcards = self.parts.keys.iter().filter_map(|kind| certificate(&Lineage::Wildcard(*kind)));
        self.live.publish(wildcards.collect());
        self.publish_exact();
    }

    /// Publishes the certificates for exact names. Omits expired ones while a wildcard is valid.
    pub(super) fn publish_exact(&self) {
        let now = self.parts.env.now();
        let is_alive = |lineage: &Lineage| self.validity(lineage).is_some_and(|validity| validity.not_after > now);
        let is_covered = self.parts.keys.iter().any(|kind| is_alive(&Lineage::Wildcard(*kind)));
        let shown: BTreeMap<ConstituencyName, _> = self
            .held
            .iter()
            .filter(|(lineage, _)| !is_covered || is_alive(lineage))
            .filter_map(|(lineage, stored)| {
                Some((lineage.constituency()?.clone(), vec![stored.checked.certificate.clone()]))
            })
            .collect();
        self.live.publish_exact(shown);
    }

    /// The validity of the certificate that phones get for `lineage`: its own, else for exact names the wildcard. The
    /// backoff depends on it.
    pub(super) fn presented_validity(&self, lineage: &Lineage) -> Option<Validity> {
        let wildcards = || self.parts.keys.iter().filter_map(|kind| self.validity(&Lineage::Wildcard(*kind)));
        self.validity(lineage).or_else(|| {
            lineage.constituency()?;
            wildcards().max_by_key(|validity| validity.not_after)
        })
    }

    /// Once a day, removes what is left of constituencies that no longer ask for exact names.
    pub(super) fn remove_leftovers(&mut self) {
        let now = self.parts.env.now();
        if now < self.remove_leftovers_at {
            return;
        }
        self.remove_leftovers_at = now + DAY;
        let kept = &self.memory.kept;
        let with_attempts = kept.certificates.keys().filter_map(Lineage::constituency);
        let with_limits = kept.directories.values().flat_map(|account| account.exact.keys());
        let mut leftovers: BTreeSet<ConstituencyName> =
            with_attempts.chain(with_limits).cloned().chain(self.store.exact()).collect();
        leftovers.retain(|constituency| self.wanted.get(constituency).is_none());
        for lineage in leftovers.into_iter().map(Lineage::Exact) {
            if !self.is_retained(&lineage, now) {
                self.forget(&lineage);
            }
        }
    }

    /// Whether a recent attempt, an unexpired certificate or a used rate limit of `lineage` must be kept.
    fn is_retained(&self, lineage: &Lineage, now: i64) -> bool {
        let attempts = self.memory.of(lineage);
        let last = attempts.last_failure.max(attempts.last_success);
        let is_recent = last.is_some_and(|last| (last..last + RETENTION).contains(&now));
        let is_alive = || {
            let stored = self.store.load(lineage).0;
            stored.is_some_and(|stored| stored.checked.validity().not_after > now)
        };
        let has_full_limits = |constituency| {
            let limits = self.memory.kept.directories.values().filter_map(|account| account.exact.get(constituency));
            limits.into_iter().all(|limit| limit.is_full(now))
        };
        is_recent || is_alive() || !lineage.constituency().is_some_and(has_full_limits)
    }

    fn forget(&mut self, lineage: &Lineage) {
        if let Err(error) = self.store.forget(lineage) {
            tracing::warn!("certificate ({lineage}): cannot remove the expired certificate: {error}");
            return;
        }
        self.memory.kept.certificates.remove(lineage);
        if let Some(constituency) = lineage.constituency() {
            self.memory.kept.directories.values_mut().for_each(|account| drop(account.exact.remove(constituency)));
        }
        tracing::info!("certificate ({lineage}): no longer configured, and expired; removed");
        self.save_state();
    }
}
