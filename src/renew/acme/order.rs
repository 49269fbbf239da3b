//! An order at a real CA.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{Account, AuthorizationStatus, ChallengeStatus, ChallengeType, Error, Identifier, RetryPolicy};

use super::http::Http;
use super::{NONCE_TRIES, insist, refusal};
use crate::renew::failure::{Failure, Sign};
use crate::renew::ports::{Answer, Challenge, Order, OrderStatus};

/// The longest that we wait for the CA's work; the order is taken up later, so nothing is lost.
const PATIENCE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_mins(3));

pub(super) struct AcmeOrder {
    order: instant_acme::Order,
    account: Account,
    http: Arc<Http>,
}

/// Goes through the authorizations of an order; the body may `continue`, and `return` failures. Starts anew where the
/// CA disliked a nonce, since the iterator does not go back.
macro_rules! each_authorization {
    ($self:ident, $http:ident, $handle:ident, $body:block) => {{
        let $http = Arc::clone(&$self.http);
        let mut tries = 0;
        'again: loop {
            let mut authorizations = $self.order.authorizations();
            while let Some(next) = authorizations.next().await {
                #[allow(unused_mut, reason = "not every body changes it")]
                let mut $handle = match next {
                    Ok(handle) => handle,
                    Err(error) if tries < NONCE_TRIES && refusal::is_bad_nonce(&error) => {
                        tries += 1;
                        continue 'again;
                    }
                    Err(error) => return Err(refusal::explain(&error, &$http.seen())),
                };
                $body
            }
            break;
        }
    }};
}

impl AcmeOrder {
    pub(super) fn new(order: instant_acme::Order, account: Account, http: Arc<Http>) -> Self {
        Self { order, account, http }
    }

    fn explain(&self, error: &Error) -> Failure {
        refusal::explain(error, &self.http.seen())
    }

    async fn pending(&mut self) -> Result<Vec<Challenge>, Failure> {
        let mut found: Vec<Challenge> = Vec::new();
        each_authorization!(self, http, handle, {
            let name = handle.identifier().to_string();
            match handle.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                other => {
                    let reason = format!("the authorization of {name} is {other:?}");
                    return Err(Failure::retry(reason).with_sign(Sign::Refused));
                }
            }
            let Identifier::Dns(domain) = handle.identifier().identifier.clone() else {
                return Err(Failure::human(format!("the CA wants to authorize {name}, which is no DNS name")));
            };
            let Some(challenge) = handle.challenge(ChallengeType::Dns01) else {
                return Err(Failure::human(format!("the CA offers no DNS challenge for {name}")));
            };
            let challenge = Challenge { domain, value: challenge.key_authorization().dns_value() };
            if !found.contains(&challenge) {
                found.push(challenge);
            }
        });
        Ok(found)
    }

    async fn be_validated(&mut self) -> Result<(), Failure> {
        each_authorization!(self, http, handle, {
            if handle.status != AuthorizationStatus::Pending {
                continue;
            }
            let Some(mut challenge) = handle.challenge(ChallengeType::Dns01) else { continue };
            if challenge.status == ChallengeStatus::Pending {
                insist!(challenge.set_ready()).map_err(|error| refusal::explain(&error, &http.seen()))?;
            }
        });
        match insist!(self.order.poll_ready(&PATIENCE)) {
            Ok(instant_acme::OrderStatus::Ready) => Ok(()),
            Ok(_) => Err(self.reasons(None).await),
            Err(error @ Error::Api(_)) => {
                let failure = self.explain(&error);
                if self.order.state().status == instant_acme::OrderStatus::Invalid {
                    return Err(self.reasons(Some(failure)).await);
                }
                Err(failure)
            }
            Err(error) => Err(self.explain(&error)),
        }
    }

    /// Why the CA did not find what it looked for, in its own words; the order is dead.
    async fn reasons(&mut self, order: Option<Failure>) -> Failure {
        let mut reasons: Vec<String> = order.map(|failure| failure.message).into_iter().collect();
        let mut authorizations = self.order.authorizations();
        while let Some(Ok(mut handle)) = authorizations.next().await {
            let name = handle.identifier().to_string();
            let Ok(state) = insist!(handle.refresh()) else { continue };
            let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            reasons.extend(errors.map(|error| {
                let text = error.to_string();
                format!("{name}: {}", text.strip_prefix("API error: ").unwrap_or(&text))
            }));
        }
        if reasons.is_empty() {
            reasons.push("without a reason".to_owned());
        }
        Failure::retry(format!("the CA's validation failed: {}", reasons.join("; "))).with_sign(Sign::Refused)
    }

    async fn fetch(&mut self, all: bool) -> Result<Vec<String>, Failure> {
        let chain = insist!(self.order.poll_certificate(&PATIENCE)).map_err(|error| self.explain(&error))?;
        let mut chains = vec![chain];
        if all {
            for url in self.http.seen().alternates {
                // The library reads JSON only, but our HTTP keeps the body.
                let _ = insist!(self.account.order(url.clone()));
                let seen = self.http.seen();
                match String::from_utf8(seen.body.to_vec()) {
                    Ok(pem) if seen.is_good() => chains.push(pem),
                    _ => tracing::warn!("the chain at {url} cannot be fetched: the CA answered {}", seen.status),
                }
            }
        }
        Ok(chains)
    }
}

impl Order for AcmeOrder {
    fn url(&self) -> &str {
        self.order.url()
    }

    fn status(&mut self) -> OrderStatus {
        match self.order.state().status {
            instant_acme::OrderStatus::Pending => OrderStatus::Pending,
            instant_acme::OrderStatus::Ready => OrderStatus::Ready,
            instant_acme::OrderStatus::Processing => OrderStatus::Processing,
            instant_acme::OrderStatus::Valid => OrderStatus::Valid,
            instant_acme::OrderStatus::Invalid => OrderStatus::Invalid,
        }
    }

    fn challenges(&mut self) -> Answer<'_, Vec<Challenge>> {
        Box::pin(self.pending())
    }

    fn validate(&mut self) -> Answer<'_, ()> {
        Box::pin(self.be_validated())
    }

    fn finalize<'a>(&'a mut self, csr: &'a [u8]) -> Answer<'a, ()> {
        Box::pin(async move { insist!(self.order.finalize_csr(csr)).map_err(|error| self.explain(&error)) })
    }

    fn chains(&mut self, all: bool) -> Answer<'_, Vec<String>> {
        Box::pin(self.fetch(all))
    }
}
