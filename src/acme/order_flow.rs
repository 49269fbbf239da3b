//! The steps of an attempt, as [`acme`](super) lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use super::check::{check, check_new, choose_chain};
use super::failure::{AcmeFailure, FailureKind, Retry};
use super::ports::{Ca, ChallengeDns, Order, OrderStatus};
use super::rate_limit::Limit;
use super::schedule::{ARI_INTERVAL, Deadline, DueReason, is_clock_wrong};
use super::store::{PendingOrder, StoredLineage, StoredMeta};
use super::{Lineage, Renewer};
use crate::dns::RecordLocation;
use crate::wording::counted;

/// The timeout of the search for causes of a failed validation.
const CAUSES_TIMEOUT: Duration = Duration::from_secs(30);
/// RFC 5280, A.1: `ub-common-name`.
const LONGEST_COMMON_NAME: usize = 64;

/// A pending order, with its key.
pub(super) struct OrderInProgress {
    pub(super) lineage: Lineage,
    record: PendingOrder,
    key: KeyPair,
    order: Box<dyn Order>,
}

impl Renewer {
    /// Connects to the CA and opens our account, or registers it. Fails if the clocks differ too much.
    pub(super) async fn open_account(&mut self, lineage: &Lineage, ca: &dyn Ca) -> Result<(), AcmeFailure> {
        self.board.report_step(lineage, &format!("asking {}", ca.directory()));
        let has_account = ca.open().await?;
        check_clock(ca)?;
        if !has_account {
            self.board.report_step(lineage, "registering an account");
            self.register(lineage, ca).await?;
        }
        Ok(())
    }

    /// Registers our account. If its key is that of a deactivated account, registers another one with a new key.
    async fn register(&mut self, lineage: &Lineage, ca: &dyn Ca) -> Result<(), AcmeFailure> {
        self.spend(ca.directory(), lineage, Limit::Accounts, 1)?;
        match ca.register().await {
            Err(failure) if failure.kind == FailureKind::AccountDeactivated => {
                self.replace_account(lineage, ca, &failure).await
            }
            registered => registered,
        }
    }

    /// Replaces our deactivated account by a new one: once, until that one has obtained a certificate. No account is
    /// registered while CAA records would let the CA issue only to the old one.
    async fn replace_account(
        &mut self,
        lineage: &Lineage,
        ca: &dyn Ca,
        deactivated: &AcmeFailure,
    ) -> Result<(), AcmeFailure> {
        let directory = ca.directory();
        if self.memory.at(directory).replaced_account {
            return Err(AcmeFailure::action_required(format!(
                "{deactivated}; this account had replaced another deactivated one, and obtained no certificate, so that no \
                 third one is registered; ask the CA for the reason; to register again, move account.key of this CA out of \
                 the folder \"accounts\" in the state directory"
            )));
        }
        let old = ca.account_url()?;
        let dns = Arc::clone(&self.parts.dns);
        let lineages = self.lineages();
        let names = lineages.iter().flat_map(|lineage| self.names(lineage)).map(|name| name.trim_start_matches("*."));
        let names: BTreeSet<String> = names.map(str::to_owned).collect();
        let mut bound = BTreeSet::new();
        for name in names {
            bound.extend(dns.account_binding(&name, old.as_deref()).await?);
        }
        if !bound.is_empty() {
            return Err(AcmeFailure::action_required(format!(
                "{deactivated}; no new account is registered, because CAA records permit only the old one: {}; remove \
                 accounturi from them, or name the new account there once it is registered (`provost check --live` prints the \
                 records)",
                bound.into_iter().collect::<Vec<_>>().join(", ")
            )));
        }
        self.spend(directory, lineage, Limit::Accounts, 1)?;
        self.memory.at_mut(directory).replaced_account = true;
        self.memory.keep().map_err(|error| AcmeFailure::disk("renewal.json", &error))?;
        let aside = ca.put_account_aside()?;
        let account = old.map_or_else(|| "our account".to_owned(), |url| format!("our account {url}"));
        self.board.report_step(lineage, &format!("{account} is deactivated ({deactivated}); registering a new one"));
        tracing::warn!("{account} at {directory} is deactivated; its key was renamed to {}", aside.display());
        ca.register().await
    }

    /// Resumes the order that is pending at `ca`, or places a new one.
    pub(super) async fn take_up_order(
        &mut self,
        lineage: &Lineage,
        ca: &Arc<dyn Ca>,
    ) -> Result<OrderInProgress, AcmeFailure> {
        if let Some((record, key)) = self.store.pending(lineage) {
            if record.directory == ca.directory() && record.names == self.names(lineage) && !self.is_done(lineage, &key)
            {
                match ca.order_at(&record.url).await {
                    Ok(mut order) => {
                        if order.status() != OrderStatus::Invalid {
                            self.board.report_step(lineage, "taking up the order that was under way");
                            return Ok(OrderInProgress { lineage: lineage.clone(), record, key, order });
                        }
                    }
                    Err(failure)
                        if matches!(
                            failure.kind,
                            FailureKind::Refused | FailureKind::AccountUnknown | FailureKind::AccountDeactivated
                        ) => {}
                    Err(failure) => return Err(failure.during("the order that is under way")),
                }
                self.board.report_step(lineage, "the order that was under way is gone");
            }
            self.forget_order(lineage)?;
        }
        self.place_order(lineage, ca).await
    }

    /// Whether the certificate for `key` is in use already: the process ended before it could remove the order.
    fn is_done(&self, lineage: &Lineage, key: &KeyPair) -> bool {
        self.held.get(lineage).is_some_and(|stored| stored.checked.is_of(key))
    }

    async fn place_order(&mut self, lineage: &Lineage, ca: &Arc<dyn Ca>) -> Result<OrderInProgress, AcmeFailure> {
        let is_wanted = self.wants_renewal(lineage, ca.directory());
        for limit in certificate_limits(lineage, is_wanted) {
            self.may_spend(ca.directory(), lineage, *limit, 1)?;
        }
        self.spend(ca.directory(), lineage, order_limit(lineage), 1)?;
        let names = self.names(lineage).to_vec();
        let key = self
            .parts
            .env
            .new_key(lineage.key())
            .map_err(|error| AcmeFailure::retry(format!("no new key: {error}")))?;
        self.store.keep_key(lineage, &key).map_err(|error| AcmeFailure::disk("the new key", &error))?;
        self.board.report_step(lineage, &format!("ordering a certificate for {}", names.join(", ")));
        let (order, is_wanted) = self.order_with_account(lineage, &**ca, &names, is_wanted).await?;
        let record = PendingOrder {
            directory: ca.directory().to_owned(),
            url: order.url().to_owned(),
            names,
            wanted: is_wanted,
            spent_validations: 0,
            spent_certificate: false,
        };
        let under_way = OrderInProgress { lineage: lineage.clone(), record, key, order };
        self.keep(&under_way)?;
        Ok(under_way)
    }

    /// Places an order. If the CA no longer knows our account, registers it and retries. If the CA refuses `replaces`,
    /// retries without it.
    async fn order_with_account(
        &mut self,
        lineage: &Lineage,
        ca: &dyn Ca,
        names: &[String],
        is_wanted: bool,
    ) -> Result<(Box<dyn Order>, bool), AcmeFailure> {
        let replaces = self.held.get(lineage).filter(|stored| is_wanted && stored.meta.directory == ca.directory());
        let replaces = replaces.map(|stored| stored.checked.leaf().clone());
        let mut result = ca.order(names, replaces.as_ref()).await;
        match &result {
            Err(failure) if failure.kind == FailureKind::AccountUnknown => {
                self.board.report_step(lineage, "the CA does not know our account; registering it again");
                self.register(lineage, ca).await?;
                result = ca.order(names, replaces.as_ref()).await;
            }
            Err(failure) if failure.kind == FailureKind::AccountDeactivated => {
                self.replace_account(lineage, ca, failure).await?;
                result = ca.order(names, replaces.as_ref()).await;
            }
            _ => {}
        }
        match result {
            Ok(order) => Ok((order, replaces.is_some())),
            Err(failure) if failure.kind == FailureKind::Refused && replaces.is_some() => {
                self.board.report_step(lineage, &format!("the CA replaces nothing ({failure}); ordering anew"));
                for limit in certificate_limits(lineage, false) {
                    self.may_spend(ca.directory(), lineage, *limit, 1)?;
                }
                self.spend(ca.directory(), lineage, order_limit(lineage), 1)?;
                Ok((ca.order(names, None).await?, false))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Proves control of the names whose authorization is not valid yet.
    pub(super) async fn authorize(&mut self, under_way: &mut OrderInProgress) -> Result<(), AcmeFailure> {
        if under_way.order.status() != OrderStatus::Pending {
            return Ok(());
        }
        let lineage = &under_way.lineage.clone();
        let dns = Arc::clone(&self.parts.dns);
        let challenges = under_way.order.challenges(dns.method()).await?;
        let needed = i64::try_from(challenges.len()).unwrap_or(i64::MAX) - under_way.record.spent_validations;
        let directory = under_way.record.directory.clone();
        for limit in [Limit::Validations, Limit::DailyValidations] {
            self.may_spend(&directory, lineage, limit, needed)?;
        }
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for challenge in challenges {
            by_name.entry(dns.challenge_name(&challenge.domain)).or_default().push(challenge.value);
        }
        let mut by_location: BTreeMap<RecordLocation, Vec<String>> = BTreeMap::new();
        if lineage.constituency().is_some() {
            for name in under_way.record.names.clone() {
                self.board.report_step(lineage, &format!("looking whether {name} has an address of its own"));
                dns.stands_alone(&name).await?;
            }
        }
        for (name, values) in by_name {
            self.board.report_step(lineage, &format!("looking where {name} leads"));
            by_location.entry(dns.locate(&name).await?).or_default().extend(values);
        }
        for (location, values) in &by_location {
            self.journal
                .note(location, values)
                .map_err(|error| AcmeFailure::disk("the journal of DNS records", &error))?;
            let records = counted(values.len(), "record");
            self.board.report_step(lineage, &format!("publishing {records} at {}", location.name));
            if let Err(failure) = dns.add(location, values).await {
                if failure.kind == FailureKind::NotPublished {
                    self.journal
                        .withdraw_last()
                        .map_err(|error| AcmeFailure::disk("the journal of DNS records", &error))?;
                }
                return Err(failure);
            }
        }
        for (location, values) in &by_location {
            self.board.report_step(lineage, "waiting until all authorities have them");
            let (board, lineage) = (Arc::clone(&self.board), lineage.clone());
            dns.wait_until_visible(location, values, &move |text| board.report_step(&lineage, &text)).await?;
        }
        match self.validate(under_way, needed).await {
            // Its order is dead, and the values are still published.
            Err(failure) if failure.kind == FailureKind::Refused && failure.retry == Retry::Backoff => {
                self.board.report_step(lineage, "looking for the cause in DNS");
                Err(failure.with_note(&causes(&*dns, &by_location).await))
            }
            validated => validated,
        }
    }

    /// Asks the CA to validate. The rate limit of failures is charged in advance, and refunded on success.
    async fn validate(&mut self, under_way: &mut OrderInProgress, needed: i64) -> Result<(), AcmeFailure> {
        let (directory, lineage) = (under_way.record.directory.clone(), &under_way.lineage.clone());
        if needed > 0 {
            for limit in [Limit::Validations, Limit::DailyValidations] {
                self.spend(&directory, lineage, limit, needed)?;
            }
            under_way.record.spent_validations += needed;
            self.keep(under_way)?;
        }
        self.board.report_step(lineage, "telling the CA");
        under_way.order.validate(self.parts.dns.method()).await?;
        for limit in [Limit::Validations, Limit::DailyValidations] {
            self.give_back(&directory, lineage, limit, under_way.record.spent_validations);
        }
        under_way.record.spent_validations = 0;
        self.keep(under_way)
    }

    /// Sends the certificate request, unless it was sent before, and fetches the chains.
    pub(super) async fn finalize(&mut self, under_way: &mut OrderInProgress) -> Result<Vec<String>, AcmeFailure> {
        let lineage = &under_way.lineage.clone();
        if matches!(under_way.order.status(), OrderStatus::Pending | OrderStatus::Ready) {
            let csr = request(lineage, &under_way.record.names, &under_way.key).map_err(|error| {
                AcmeFailure::action_required(format!("no certificate request can be made: {error}"))
            })?;
            let (directory, limits) =
                (under_way.record.directory.clone(), certificate_limits(lineage, under_way.record.wanted));
            if !under_way.record.spent_certificate {
                for limit in limits {
                    self.may_spend(&directory, lineage, *limit, 1)?;
                }
                for limit in limits {
                    self.spend(&directory, lineage, *limit, 1)?;
                }
                under_way.record.spent_certificate = true;
                self.keep(under_way)?;
            }
            self.board.report_step(lineage, "sending the certificate request");
            let finalized = under_way.order.finalize(&csr).await;
            if matches!(&finalized, Err(failure) if failure.kind == FailureKind::Refused) {
                // Refused, so no certificate was issued.
                for limit in limits {
                    self.give_back(&directory, lineage, *limit, 1);
                }
            }
            finalized?;
        }
        self.board.report_step(lineage, "fetching the certificate");
        under_way.order.chains(self.parts.preferred_chain.is_some()).await
    }

    /// Checks a new certificate and stores it. What cannot be presented is not stored.
    pub(super) fn check_and_store(
        &self,
        under_way: &OrderInProgress,
        chains: &[String],
    ) -> Result<StoredLineage, AcmeFailure> {
        let (lineage, preferred) = (&under_way.lineage, self.parts.preferred_chain.as_deref());
        let index = choose_chain(chains, preferred).unwrap_or_else(|tops| {
            let preferred = preferred.unwrap_or_default();
            tracing::warn!("no chain ends at {preferred:?}, only at {}; using the CA's default", tops.join(", "));
            0
        });
        let useless = |reason: String| AcmeFailure::action_required(reason).with_kind(FailureKind::Refused);
        let chain = chains.get(index).ok_or_else(|| useless("the CA sent no certificate".to_owned()))?;
        let key = under_way.key.serialize_pem();
        let (directory, order) = (&under_way.record.directory, under_way.order.url());
        let unusable = |error| {
            useless(format!(
                "the certificate from the CA is not used: {error} (order {order} at {directory}); the next attempt orders another \
                 one; if this recurs, ask the CA, or name another one in \"directory\""
            ))
        };
        let checked = check(chain, &key).map_err(unusable)?;
        check_new(&checked, &under_way.record.names, self.parts.env.now()).map_err(unusable)?;
        let now = self.parts.env.now();
        let meta = StoredMeta {
            directory: under_way.record.directory.clone(),
            stored: now,
            ari_floor: self.next_ari_floor(lineage, now),
        };
        self.store.save(lineage, chain, &key, &meta).map_err(|error| AcmeFailure::disk("the certificate", &error))?;
        Ok(StoredLineage { checked, meta })
    }

    /// From when a window may make the new certificate of `lineage` due.
    fn next_ari_floor(&self, lineage: &Lineage, now: i64) -> Option<Deadline> {
        let due = self.due(lineage, now);
        if due.reason == DueReason::Window && due.at <= now {
            return Some(Deadline::after(now, ARI_INTERVAL));
        }
        self.held.get(lineage).and_then(|stored| stored.meta.ari_floor)
    }

    /// Publishes a new certificate; new handshakes present it.
    pub(super) fn put_in_use(&mut self, lineage: &Lineage, stored: StoredLineage) {
        let issuer = &stored.checked.issuers[0];
        let step = if self.is_rehearsal {
            format!("a certificate was issued by {issuer}, and is thrown away")
        } else {
            format!("a new certificate is in use, issued by {issuer}")
        };
        self.held.insert(lineage.clone(), stored);
        self.publish();
        self.board.report_step(lineage, &step);
    }

    /// Removes our records from DNS. Failures are retried later.
    pub(super) async fn clean_up(&mut self) {
        let dns = Arc::clone(&self.parts.dns);
        let mut is_clean = true;
        for entry in self.journal.entries().to_vec() {
            let removed = dns.remove(&entry.place, &entry.values).await;
            let struck = removed.and_then(|()| {
                self.journal.strike(&entry).map_err(|error| AcmeFailure::disk("the journal of DNS records", &error))
            });
            if let Err(failure) = struck {
                let count = counted(entry.values.len(), "challenge record");
                tracing::warn!("{count} at {} cannot be removed yet: {failure}", entry.place.name);
                is_clean = false;
            }
        }
        self.plan_clean_up(is_clean);
    }

    pub(super) fn forget_order(&self, lineage: &Lineage) -> Result<(), AcmeFailure> {
        self.store.forget_order(lineage).map_err(|error| AcmeFailure::disk("the pending order", &error))
    }

    fn keep(&self, under_way: &OrderInProgress) -> Result<(), AcmeFailure> {
        let kept = self.store.keep_order(&under_way.lineage, &under_way.record);
        kept.map_err(|error| AcmeFailure::disk("the pending order", &error))
    }

    /// Fails if `limit` has less than `count` left. One certificate of the week is kept back for a lineage without a
    /// valid one; this lineage is one, too, once its certificate has expired.
    fn may_spend(&self, directory: &str, lineage: &Lineage, limit: Limit, count: i64) -> Result<(), AcmeFailure> {
        let now = self.parts.env.now();
        let budget = self.memory.at(directory).budget(lineage, limit);
        let wait = |count: i64| budget.map_or(0, |budget| budget.wait(limit, count, now));
        if limit != Limit::Certificates || self.due(lineage, now).reason == DueReason::Missing {
            return if wait(count) == 0 { Ok(()) } else { Err(overdrawn(limit, wait(count))) };
        }
        let left = self.validity(lineage).map_or(0, |validity| validity.left(now));
        match wait(count + 1).min(wait(count).max(left + 1)) {
            0 => Ok(()),
            wait => {
                Err(overdrawn(limit, wait)
                    .with_note("; one certificate is kept back, in case one is missing or revoked"))
            }
        }
    }

    /// Charges `count` to `limit`; the charge is on disk when this returns.
    fn spend(&mut self, directory: &str, lineage: &Lineage, limit: Limit, count: i64) -> Result<(), AcmeFailure> {
        let now = self.parts.env.now();
        let spent = self.memory.at_mut(directory).budget_mut(lineage, limit).spend(limit, count, now);
        spent.map_err(|wait| overdrawn(limit, wait))?;
        self.memory.keep().map_err(|error| AcmeFailure::disk("renewal.json", &error))
    }

    /// Refunds a charge. If the write fails, the limit stays stricter than necessary.
    fn give_back(&mut self, directory: &str, lineage: &Lineage, limit: Limit, count: i64) {
        self.memory.at_mut(directory).budget_mut(lineage, limit).give_back(limit, count);
        let _ = self.memory.keep();
    }
}

/// The limit to which an order is charged.
fn order_limit(lineage: &Lineage) -> Limit {
    if lineage.constituency().is_some() { Limit::ExactOrders } else { Limit::Orders }
}

/// The limits to which a certificate is charged. A renewal that the CA asked for is exempt from its limits.
fn certificate_limits(lineage: &Lineage, is_wanted: bool) -> &'static [Limit] {
    match lineage {
        _ if is_wanted => &[Limit::WantedCertificates],
        Lineage::Wildcard(_) => &[Limit::Certificates],
        Lineage::Exact(_) => &[Limit::Certificates, Limit::ExactCertificates],
    }
}

/// What DNS shows that may be the cause of a failed validation, as a note on the failure.
async fn causes(dns: &dyn ChallengeDns, by_location: &BTreeMap<RecordLocation, Vec<String>>) -> String {
    let mut causes = BTreeSet::new();
    let all = async {
        for (location, values) in by_location {
            let found = dns.likely_causes(location, values).await;
            causes.extend(found.unwrap_or_else(|failure| vec![failure.message]));
        }
    };
    // What was found until then counts.
    let _ = tokio::time::timeout(CAUSES_TIMEOUT, all).await;
    if causes.is_empty() {
        return String::new();
    }
    format!("; likely cause: {}", causes.into_iter().collect::<Vec<_>>().join("; "))
}

/// Fails if the clock is clearly wrong. Dates would be misjudged, so nothing is ordered and nothing discarded.
fn check_clock(ca: &dyn Ca) -> Result<(), AcmeFailure> {
    match ca.clock_skew() {
        Some(skew) if is_clock_wrong(skew) => Err(AcmeFailure::action_required(format!(
            "the clock of this machine is {} s {} that of {}; set the clock",
            skew.abs(),
            if skew > 0 { "behind" } else { "ahead of" },
            ca.directory()
        ))),
        _ => Ok(()),
    }
}

fn overdrawn(limit: Limit, wait: i64) -> AcmeFailure {
    let what = match limit {
        Limit::Accounts => "accounts",
        Limit::Orders => "orders",
        Limit::Validations | Limit::DailyValidations => "validations",
        Limit::Certificates | Limit::WantedCertificates => "certificates",
        Limit::ExactOrders => "orders for exact names",
        Limit::ExactCertificates => "certificates for exact names",
    };
    AcmeFailure::retry(format!("provost's own rate limit for {what} is reached, not the CA's, which is higher"))
        .after(Some(wait))
        .with_kind(FailureKind::OwnRateLimit)
}

/// A certificate request with an empty subject; the names are in the SAN extension. Only exact names get a common name:
/// firmware that rejects wildcards may compare nothing else, and without one in the request the CA chooses any name.
fn request(lineage: &Lineage, names: &[String], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    let common = names.first().filter(|name| lineage.constituency().is_some() && name.len() <= LONGEST_COMMON_NAME);
    if let Some(name) = common {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    Ok(params.serialize_request(key)?.der().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_rate_limit_is_not_said_to_be_the_cas() {
        let limits = [
            Limit::Accounts,
            Limit::Orders,
            Limit::Validations,
            Limit::DailyValidations,
            Limit::Certificates,
            Limit::WantedCertificates,
            Limit::ExactOrders,
            Limit::ExactCertificates,
        ];
        for limit in limits {
            let failure = overdrawn(limit, 60);
            assert_eq!((failure.retry, failure.kind), (Retry::After(60), FailureKind::OwnRateLimit));
            assert!(failure.message.starts_with("provost's own rate limit for "), "{failure}");
            assert!(failure.message.ends_with(" is reached, not the CA's, which is higher"), "{failure}");
        }
    }
}
