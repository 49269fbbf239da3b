//! Certificates for exact names, besides the wildcard: which are wanted, which are presented, and when leftovers are
//! removed.
//!
//! They must never delay the wildcard. All other phones are shown it, and so are phones that want exact names until
//! their certificate exists. So the wildcard goes first if both are due. Exact names have their own limits
//! ([`rate_limit`](super::rate_limit)), per name where the CA limits per name. If the CA limits one of them, only that
//! one waits.
//!
//! When a constituency stops wanting exact names, its certificate is no longer presented or renewed. The certificate is
//! kept until it expires, and so is a pending order. If the constituency wants them again, it needs no new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::schedule::DAY;
use super::{Lineage, Renewer};
use crate::certificate::Validity;
use crate::constituency::ConstituencyName;

/// How long failures and rate limits of a removed constituency are kept: longer than the slowest rate limit takes to
/// refill, and longer than a CA keeps an order.
const REMEMBERED: i64 = 8 * DAY;

impl Renewer {
    /// All certificates to keep renewed.
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

    /// Adopts the exact names that constituencies want now.
    pub(super) fn take_over(&mut self) {
        let wanted = Arc::clone(&self.parts.exact.borrow_and_update());
        let before = std::mem::replace(&mut self.wanted, Arc::clone(&wanted));
        for (constituency, _) in before.iter().filter(|(constituency, _)| wanted.get(constituency).is_none()) {
            let lineage = Lineage::Exact(constituency.clone());
            self.held.remove(&lineage);
            self.requests.remove(&lineage);
            tracing::info!(
                "certificate ({lineage}): not wanted any more, so not renewed; what is stored is kept until it expires"
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
                    tracing::info!("certificate ({lineage}): the one for {names} is in use");
                }
                _ => tracing::info!(
                    "certificate ({lineage}): wanted for {names}; until it is there, phones are shown the wildcard"
                ),
            }
        }
    }

    /// Publishes the certificates that we hold; new handshakes present them.
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

    /// The validity of the certificate that phones are shown for `lineage`: its own, or for exact names the wildcard.
    /// The backoff depends on it.
    pub(super) fn at_stake(&self, lineage: &Lineage) -> Option<Validity> {
        let wildcards = || self.parts.keys.iter().filter_map(|kind| self.validity(&Lineage::Wildcard(*kind)));
        self.validity(lineage).or_else(|| {
            lineage.constituency()?;
            wildcards().max_by_key(|validity| validity.not_after)
        })
    }

    /// Once a day, removes leftovers of constituencies that no longer want exact names.
    pub(super) fn tidy(&mut self) {
        let now = self.parts.env.now();
        if now < self.tidy_at {
            return;
        }
        self.tidy_at = now + DAY;
        let kept = &self.memory.kept;
        let remembered = kept.certificates.keys().filter_map(Lineage::constituency);
        let budgeted = kept.directories.values().flat_map(|account| account.exact.keys());
        let mut unwanted: BTreeSet<ConstituencyName> =
            remembered.chain(budgeted).cloned().chain(self.store.exact()).collect();
        unwanted.retain(|constituency| self.wanted.get(constituency).is_none());
        for lineage in unwanted.into_iter().map(Lineage::Exact) {
            if !self.is_worth_keeping(&lineage, now) {
                self.forget(&lineage);
            }
        }
    }

    fn is_worth_keeping(&self, lineage: &Lineage, now: i64) -> bool {
        let attempts = self.memory.of(lineage);
        let last = attempts.last_failure.max(attempts.last_success);
        let is_recent = last.is_some_and(|last| (last..last + REMEMBERED).contains(&now));
        let is_alive = || {
            let stored = self.store.load(lineage).0;
            stored.is_some_and(|stored| stored.checked.validity().not_after > now)
        };
        let is_paid = |constituency| {
            let budgets = self.memory.kept.directories.values().filter_map(|account| account.exact.get(constituency));
            budgets.into_iter().all(|budget| budget.is_full(now))
        };
        is_recent || is_alive() || !lineage.constituency().is_some_and(is_paid)
    }

    fn forget(&mut self, lineage: &Lineage) {
        if let Err(error) = self.store.forget(lineage) {
            tracing::warn!("certificate ({lineage}): what is stored for it cannot be removed: {error}");
            return;
        }
        self.memory.kept.certificates.remove(lineage);
        if let Some(constituency) = lineage.constituency() {
            self.memory.kept.directories.values_mut().for_each(|account| drop(account.exact.remove(constituency)));
        }
        tracing::info!("certificate ({lineage}): not wanted any more and expired; it was removed");
        self.remember();
    }
}
