//! The steps of an attempt, each as the [page](super) names them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::Renewer;
use super::budget::Limit;
use super::check::{check, check_new, choose_chain};
use super::failure::{Failure, Sign};
use super::ports::{Ca, Order, OrderStatus};
use super::schedule::is_clock_wrong;
use super::store::{Meta, PendingOrder, Stored};
use crate::ca::KeyKind;
use crate::dns::Place;

/// An order that is under way.
pub(super) struct UnderWay {
    pub(super) kind: KeyKind,
    record: PendingOrder,
    key: KeyPair,
    order: Box<dyn Order>,
}

impl Renewer {
    /// Reaches the CA and opens our account there, or registers it; both clocks must agree.
    pub(super) async fn open_account(&mut self, kind: KeyKind, ca: &dyn Ca) -> Result<(), Failure> {
        self.board.say(kind, &format!("asking {}", ca.directory()));
        let has_account = ca.open().await?;
        check_clock(ca)?;
        if !has_account {
            self.spend(ca.directory(), Limit::Accounts, 1)?;
            self.board.say(kind, "registering an account");
            ca.register().await?;
        }
        Ok(())
    }

    /// Takes up the order that is under way at `ca`, or places a new one.
    pub(super) async fn take_up_order(&mut self, kind: KeyKind, ca: &Arc<dyn Ca>) -> Result<UnderWay, Failure> {
        if let Some((record, key)) = self.store.pending(kind) {
            if record.directory == ca.directory() && record.names == self.names && !self.is_done(kind, &key) {
                match ca.order_at(&record.url).await {
                    Ok(mut order) => {
                        if order.status() != OrderStatus::Invalid {
                            self.board.say(kind, "taking up the order that was under way");
                            return Ok(UnderWay { kind, record, key, order });
                        }
                    }
                    Err(failure) if matches!(failure.sign, Sign::Refused | Sign::AccountUnknown) => {}
                    Err(failure) => return Err(failure.during("the order that is under way")),
                }
                self.board.say(kind, "the order that was under way is gone");
            }
            self.forget_order(kind)?;
        }
        self.place_order(kind, ca).await
    }

    /// Whether the certificate for `key` is in use: the process ended before it could forget the order.
    fn is_done(&self, kind: KeyKind, key: &KeyPair) -> bool {
        self.held.get(&kind).is_some_and(|stored| stored.checked.is_of(key))
    }

    async fn place_order(&mut self, kind: KeyKind, ca: &Arc<dyn Ca>) -> Result<UnderWay, Failure> {
        let is_wanted = self.wants_renewal(kind, ca.directory());
        let limit = if is_wanted { Limit::WantedCertificates } else { Limit::Certificates };
        self.may_spend(ca.directory(), limit, 1)?;
        self.spend(ca.directory(), Limit::Orders, 1)?;
        let key = self.parts.world.new_key(kind).map_err(|error| Failure::retry(format!("no new key: {error}")))?;
        self.store.keep_key(kind, &key).map_err(|error| Failure::disk("the new key", &error))?;
        self.board.say(kind, &format!("ordering a certificate for {}", self.names.join(", ")));
        let (order, is_wanted) = self.order_with_account(kind, &**ca, is_wanted).await?;
        let record = PendingOrder {
            directory: ca.directory().to_owned(),
            url: order.url().to_owned(),
            names: self.names.clone(),
            wanted: is_wanted,
            spent_validations: 0,
            spent_certificate: false,
        };
        let under_way = UnderWay { kind, record, key, order };
        self.keep(&under_way)?;
        Ok(under_way)
    }

    /// Places an order; once more if the CA has forgotten our account, or does not know what would be replaced.
    async fn order_with_account(
        &mut self,
        kind: KeyKind,
        ca: &dyn Ca,
        is_wanted: bool,
    ) -> Result<(Box<dyn Order>, bool), Failure> {
        let replaces = self.held.get(&kind).filter(|stored| is_wanted && stored.meta.directory == ca.directory());
        let replaces = replaces.map(|stored| stored.checked.leaf().clone());
        let mut result = ca.order(&self.names, replaces.as_ref()).await;
        if matches!(&result, Err(failure) if failure.sign == Sign::AccountUnknown) {
            self.spend(ca.directory(), Limit::Accounts, 1)?;
            self.board.say(kind, "the CA does not know our account; registering it again");
            ca.register().await?;
            result = ca.order(&self.names, replaces.as_ref()).await;
        }
        match result {
            Ok(order) => Ok((order, replaces.is_some())),
            Err(failure) if failure.sign == Sign::Refused && replaces.is_some() => {
                self.board.say(kind, &format!("the CA replaces nothing ({failure}); ordering anew"));
                self.may_spend(ca.directory(), Limit::Certificates, 1)?;
                self.spend(ca.directory(), Limit::Orders, 1)?;
                Ok((ca.order(&self.names, None).await?, false))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Proves that the names are ours, as far as the CA does not know it already.
    pub(super) async fn authorize(&mut self, under_way: &mut UnderWay) -> Result<(), Failure> {
        if under_way.order.status() != OrderStatus::Pending {
            return Ok(());
        }
        let kind = under_way.kind;
        let challenges = under_way.order.challenges().await?;
        let needed = i64::try_from(challenges.len()).unwrap_or(i64::MAX) - under_way.record.spent_validations;
        let directory = under_way.record.directory.clone();
        for limit in [Limit::Validations, Limit::DailyValidations] {
            self.may_spend(&directory, limit, needed)?;
        }
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for challenge in challenges {
            by_name.entry(format!("_acme-challenge.{}", challenge.domain)).or_default().push(challenge.value);
        }
        let mut by_place: BTreeMap<Place, Vec<String>> = BTreeMap::new();
        let dns = Arc::clone(&self.parts.dns);
        for (name, values) in by_name {
            self.board.say(kind, &format!("looking where {name} leads"));
            by_place.entry(dns.locate(&name).await?).or_default().extend(values);
        }
        for (place, values) in &by_place {
            self.journal.note(place, values).map_err(|error| Failure::disk("the journal of DNS records", &error))?;
            self.board.say(kind, &format!("publishing {} records at {}", values.len(), place.name));
            dns.add(place, values).await?;
        }
        for (place, values) in &by_place {
            self.board.say(kind, "waiting until all authorities have them");
            let board = Arc::clone(&self.board);
            dns.wait_until_visible(place, values, &move |text| board.say(kind, &text)).await?;
        }
        self.validate(under_way, needed).await
    }

    /// Tells the CA to look; what it finds wrong is paid for in advance.
    async fn validate(&mut self, under_way: &mut UnderWay, needed: i64) -> Result<(), Failure> {
        let directory = under_way.record.directory.clone();
        if needed > 0 {
            for limit in [Limit::Validations, Limit::DailyValidations] {
                self.spend(&directory, limit, needed)?;
            }
            under_way.record.spent_validations += needed;
            self.keep(under_way)?;
        }
        self.board.say(under_way.kind, "telling the CA");
        under_way.order.validate().await?;
        for limit in [Limit::Validations, Limit::DailyValidations] {
            self.give_back(&directory, limit, under_way.record.spent_validations);
        }
        under_way.record.spent_validations = 0;
        self.keep(under_way)
    }

    /// Sends the certificate request, unless that was done, and fetches the chains.
    pub(super) async fn finalize(&mut self, under_way: &mut UnderWay) -> Result<Vec<String>, Failure> {
        if matches!(under_way.order.status(), OrderStatus::Pending | OrderStatus::Ready) {
            let csr = request(&self.names, &under_way.key)
                .map_err(|error| Failure::human(format!("no certificate request can be made: {error}")))?;
            let limit = if under_way.record.wanted { Limit::WantedCertificates } else { Limit::Certificates };
            if !under_way.record.spent_certificate {
                self.spend(&under_way.record.directory.clone(), limit, 1)?;
                under_way.record.spent_certificate = true;
                self.keep(under_way)?;
            }
            self.board.say(under_way.kind, "sending the certificate request");
            let finalized = under_way.order.finalize(&csr).await;
            if matches!(&finalized, Err(failure) if failure.sign == Sign::Refused) {
                // It said no, so there is no certificate.
                self.give_back(&under_way.record.directory.clone(), limit, 1);
            }
            finalized?;
        }
        self.board.say(under_way.kind, "fetching the certificate");
        under_way.order.chains(self.parts.preferred_chain.is_some()).await
    }

    /// Only what can be presented is stored, and only what is stored is presented.
    pub(super) fn check_and_store(&self, under_way: &UnderWay, chains: &[String]) -> Result<Stored, Failure> {
        let (kind, preferred) = (under_way.kind, self.parts.preferred_chain.as_deref());
        let index = choose_chain(chains, preferred).unwrap_or_else(|tops| {
            let preferred = preferred.unwrap_or_default();
            tracing::warn!("no chain ends at {preferred:?}, only at {}; using the CA's default", tops.join(", "));
            0
        });
        let useless = |reason: String| Failure::human(reason).with_sign(Sign::Refused);
        let chain = chains.get(index).ok_or_else(|| useless("the CA sent no certificate".to_owned()))?;
        let key = under_way.key.serialize_pem();
        let unusable = |error| useless(format!("the certificate from the CA is not used: {error}"));
        let checked = check(chain, &key).map_err(unusable)?;
        check_new(&checked, &self.names, self.parts.world.now()).map_err(unusable)?;
        let meta = Meta { directory: under_way.record.directory.clone(), stored: self.parts.world.now() };
        self.store.save(kind, chain, &key, &meta).map_err(|error| Failure::disk("the certificate", &error))?;
        self.board.say(kind, &format!("a new certificate is in use, issued by {}", checked.issuers[0]));
        Ok(Stored { checked, meta })
    }

    /// Removes all records of ours from DNS. What cannot be removed now is tried again later.
    pub(super) async fn clean_up(&mut self) {
        let dns = Arc::clone(&self.parts.dns);
        let mut is_clean = true;
        for entry in self.journal.entries().to_vec() {
            let removed = dns.remove(&entry.place, &entry.values).await;
            let struck = removed.and_then(|()| {
                self.journal.strike(&entry).map_err(|error| Failure::disk("the journal of DNS records", &error))
            });
            if let Err(failure) = struck {
                tracing::warn!("records of ours at {} cannot be removed yet: {failure}", entry.place.name);
                is_clean = false;
            }
        }
        self.plan_clean_up(is_clean);
    }

    pub(super) fn forget_order(&self, kind: KeyKind) -> Result<(), Failure> {
        self.store.forget_order(kind).map_err(|error| Failure::disk("the order", &error))
    }

    fn keep(&self, under_way: &UnderWay) -> Result<(), Failure> {
        let kept = self.store.keep_order(under_way.kind, &under_way.record);
        kept.map_err(|error| Failure::disk("the order", &error))
    }

    /// Says whether a budget has that much left.
    fn may_spend(&self, directory: &str, limit: Limit, count: i64) -> Result<(), Failure> {
        match self.memory.at(directory).budget.wait(limit, count, self.parts.world.now()) {
            0 => Ok(()),
            wait => Err(overdrawn(limit, wait)),
        }
    }

    /// Pays in advance; that is on the disk when this returns.
    fn spend(&mut self, directory: &str, limit: Limit, count: i64) -> Result<(), Failure> {
        let now = self.parts.world.now();
        let spent = self.memory.at_mut(directory).budget.spend(limit, count, now);
        spent.map_err(|wait| overdrawn(limit, wait))?;
        self.memory.keep().map_err(|error| Failure::disk("the budget", &error))
    }

    /// If this is lost, we are more careful than we need be.
    fn give_back(&mut self, directory: &str, limit: Limit, count: i64) {
        self.memory.at_mut(directory).budget.give_back(limit, count);
        let _ = self.memory.keep();
    }
}

/// A clock that is plainly wrong would judge dates wrongly: then nothing is ordered and nothing thrown away.
fn check_clock(ca: &dyn Ca) -> Result<(), Failure> {
    match ca.clock_skew() {
        Some(skew) if is_clock_wrong(skew) => Err(Failure::human(format!(
            "the clock of this machine is {} s {} that of {}; set the clock",
            skew.abs(),
            if skew > 0 { "behind" } else { "ahead of" },
            ca.directory()
        ))),
        _ => Ok(()),
    }
}

fn overdrawn(limit: Limit, wait: i64) -> Failure {
    let what = match limit {
        Limit::Accounts => "accounts",
        Limit::Orders => "orders",
        Limit::Validations | Limit::DailyValidations => "validations",
        Limit::Certificates | Limit::WantedCertificates => "certificates",
    };
    Failure::retry(format!("our own budget of {what} is used up, so that the CA's limits stay far"))
        .after(Some(wait))
        .with_sign(Sign::Budget)
}

/// A certificate request with an empty subject: the names are in the extension.
fn request(names: &[String], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}
