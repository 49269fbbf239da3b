//! An order at a CA, by instant-acme.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{Account, AuthorizationStatus, ChallengeStatus, ChallengeType, Error, Identifier, RetryPolicy};
use tokio::time::sleep;

use super::http::AcmeHttp;
use super::response_headers::ResponseHeaders;
use super::{NONCE_TRIES, insist, refusal};
use crate::acme::failure::{AcmeFailure, FailureKind};
use crate::acme::ports::{Order, OrderStatus, PendingChallenge, PortFuture};
use crate::wording::words;

/// How long we poll the CA. A later attempt resumes the order, so a timeout loses nothing.
const POLL_POLICY: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_mins(3));

/// The pauses before an order that was not ready is finalized again stay below this: half a minute in all.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct AcmeOrder {
    order: instant_acme::Order,
    account: Account,
    http: Arc<AcmeHttp>,
}

/// Runs a block for each authorization of an order. The block may `continue`, and `return` failures. If the CA refuses
/// a nonce, the loop starts over, since the iterator cannot go back.
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
                    Err(error) => {
                        return Err(refusal::explain(&error, &$http.seen()).during("the order's authorizations"));
                    }
                };
                $body
            }
            break;
        }
    }};
}

impl AcmeOrder {
    pub(super) fn new(order: instant_acme::Order, account: Account, http: Arc<AcmeHttp>) -> Self {
        Self { order, account, http }
    }

    fn explain(&self, error: &Error) -> AcmeFailure {
        refusal::explain(error, &self.http.seen())
    }

    async fn pending(&mut self, method: &str) -> Result<Vec<PendingChallenge>, AcmeFailure> {
        let mut found: Vec<PendingChallenge> = Vec::new();
        each_authorization!(self, http, handle, {
            let name = handle.identifier().to_string();
            match handle.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                other => {
                    let reason = format!("the authorization of {name} is {}", words(&other));
                    return Err(AcmeFailure::retry(reason).with_kind(FailureKind::Refused));
                }
            }
            let Identifier::Dns(domain) = handle.identifier().identifier.clone() else {
                return Err(AcmeFailure::action_required(format!(
                    "the CA wants to authorize {name}, which is not a DNS name"
                )));
            };
            let Some(challenge) = handle.challenge(kind(method)) else {
                return Err(AcmeFailure::action_required(format!("the CA offers no {method} challenge for {name}")));
            };
            let challenge = PendingChallenge { domain, value: challenge.key_authorization().dns_value() };
            if !found.contains(&challenge) {
                found.push(challenge);
            }
        });
        Ok(found)
    }

    async fn be_validated(&mut self, method: &str) -> Result<(), AcmeFailure> {
        each_authorization!(self, http, handle, {
            if handle.status != AuthorizationStatus::Pending {
                continue;
            }
            let Some(mut challenge) = handle.challenge(kind(method)) else { continue };
            if challenge.status != ChallengeStatus::Pending {
                continue;
            }
            match insist!(challenge.set_ready()) {
                Err(error) if is_verdict(&error, &http.seen()) => break,
                sent => {
                    sent.map_err(|error| refusal::explain(&error, &http.seen()).during("the request to validate"))?;
                }
            }
        });
        match insist!(self.order.poll_ready(&POLL_POLICY)) {
            Ok(instant_acme::OrderStatus::Ready) => Ok(()),
            Ok(_) => Err(self.reasons(None).await),
            Err(error) if is_verdict(&error, &self.http.seen()) => {
                let failure = self.explain(&error);
                Err(self.reasons(Some(failure)).await)
            }
            Err(error) => Err(self.explain(&error).during("waiting for the validation")),
        }
    }

    /// The CA's reasons for a failed validation. The order is dead.
    async fn reasons(&mut self, order: Option<AcmeFailure>) -> AcmeFailure {
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
        AcmeFailure::retry(format!("the CA's validation failed: {}", reasons.join("; ")))
            .with_kind(FailureKind::Refused)
    }

    /// "A request to finalize an order will result in error if the order is not in the `ready` state. In such cases, the
    /// server MUST return a 403 (Forbidden) error with a problem document of type `orderNotReady`. The client should then
    /// send a POST-as-GET request to the order resource to obtain its current state." (RFC 8555 §7.4)
    async fn finalize_once_ready(&mut self, csr: &[u8]) -> Result<(), AcmeFailure> {
        let mut pause = Duration::from_millis(250);
        loop {
            match insist!(self.order.finalize_csr(csr)) {
                Err(error) if refusal::is_not_ready(&error) && pause < LONGEST_PAUSE => {}
                sent => return sent.map_err(|error| self.explain(&error).during("the certificate request")),
            }
            sleep(pause).await;
            pause *= 2;
            insist!(async { self.order.refresh().await.map(drop) })
                .map_err(|error| self.explain(&error).during("waiting until the order is ready"))?;
            match self.status() {
                OrderStatus::Pending | OrderStatus::Ready => {}
                // An earlier request was received, though its answer was lost.
                OrderStatus::Processing | OrderStatus::Valid => return Ok(()),
                OrderStatus::Invalid => return Err(self.reasons(None).await),
            }
        }
    }

    async fn fetch(&mut self, all: bool) -> Result<Vec<String>, AcmeFailure> {
        let chain = match insist!(self.order.poll_certificate(&POLL_POLICY)) {
            Ok(chain) => chain,
            Err(Error::Str(reason)) if self.http.seen().is_good() => {
                return Err(unusable(&self.http.seen().url, reason));
            }
            Err(error) => return Err(self.explain(&error).during("fetching the certificate")),
        };
        let mut chains = vec![chain];
        if all {
            for url in self.http.seen().alternates {
                // instant-acme reads JSON only; our HTTP client kept the body with the PEM.
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

/// The order has a certificate, and a further attempt would fetch the same.
fn unusable(url: &str, reason: &str) -> AcmeFailure {
    AcmeFailure::action_required(format!(
        "{url}: the CA sent no certificate that can be read ({reason}); the next attempt places another order; if this recurs, \
         ask the CA, or name another one in \"directory\""
    ))
    .with_kind(FailureKind::Refused)
}

/// The kind of challenge, as instant-acme names it.
fn kind(method: &str) -> ChallengeType {
    match method {
        "dns-01" => ChallengeType::Dns01,
        other => ChallengeType::Unknown(other.to_owned()),
    }
}

/// Whether an error came in a 2xx response. Then it is about the order or the challenge, not about this request. A CA
/// may report it before the order's status changes, even in its response to "challenge ready".
fn is_verdict(error: &Error, seen: &ResponseHeaders) -> bool {
    matches!(error, Error::Api(_)) && seen.is_good()
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

    fn challenges<'a>(&'a mut self, method: &'a str) -> PortFuture<'a, Vec<PendingChallenge>> {
        Box::pin(self.pending(method))
    }

    fn validate<'a>(&'a mut self, method: &'a str) -> PortFuture<'a, ()> {
        Box::pin(self.be_validated(method))
    }

    fn finalize<'a>(&'a mut self, csr: &'a [u8]) -> PortFuture<'a, ()> {
        Box::pin(self.finalize_once_ready(csr))
    }

    fn chains(&mut self, all: bool) -> PortFuture<'_, Vec<String>> {
        Box::pin(self.fetch(all))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use bytes::Bytes;
    use http::{Request, Response};
    use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
    use parking_lot::Mutex;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use serde_json::{Value, json};

    use super::*;
    use crate::ca::KeyKind;

    const ERROR: &str =
        r#"{ "type": "urn:ietf:params:acme:error:unauthorized", "detail": "no record", "status": 403 }"#;

    /// A CA whose order has an error already, but is not yet invalid.
    struct Slow(Arc<AcmeHttp>);

    impl Slow {
        fn answer(path: &str) -> Value {
            let error = || serde_json::from_str::<Value>(ERROR).unwrap();
            let challenge = |status| {
                json!({ "type": "dns-01", "url": "https://ca/challenge", "token": "t",
                                             "status": status, "error": error() })
            };
            match path {
                "/dir" => {
                    json!({ "newNonce": "https://ca/nonce", "newAccount": "https://ca/", "newOrder": "https://ca/" })
                }
                "/order" => json!({ "status": "pending", "authorizations": ["https://ca/authorization"],
                                    "finalize": "https://ca/finalize", "error": error() }),
                "/authorization" => json!({ "status": "pending", "challenges": [challenge("pending")],
                                            "identifier": { "type": "dns", "value": "a.example" } }),
                "/challenge" => challenge("invalid"),
                _ => json!({}),
            }
        }
    }

    impl HttpClient for Slow {
        fn request(
            &self,
            request: Request<BodyWrapper<Bytes>>,
        ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
            let body = Bytes::from(Self::answer(request.uri().path()).to_string());
            let (parts, ()) = Response::builder().header("replay-nonce", "n").body(()).unwrap().into_parts();
            self.0.record(ResponseHeaders { status: 200, ..ResponseHeaders::default() });
            Box::pin(async { Ok(BytesResponse { parts, body: Box::new(body) }) })
        }
    }

    /// A CA that does not answer requests to one path, and never gets an order ready.
    struct Hanging {
        http: Arc<AcmeHttp>,
        path: Arc<Mutex<&'static str>>,
    }

    impl HttpClient for Hanging {
        fn request(
            &self,
            request: Request<BodyWrapper<Bytes>>,
        ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
            let path = request.uri().path();
            let url = format!("https://ca{path}");
            if path == *self.path.lock() {
                let late = format!("{url}: the CA did not answer within 90 s");
                return Box::pin(async { Err(Error::Other(late.into())) });
            }
            let mut body = Slow::answer(path);
            if path == "/order" {
                body.as_object_mut().unwrap().remove("error");
            }
            let body = Bytes::from(body.to_string());
            let (parts, ()) = Response::builder().header("replay-nonce", "n").body(()).unwrap().into_parts();
            self.http.record(ResponseHeaders { url, status: 200, ..ResponseHeaders::default() });
            Box::pin(async { Ok(BytesResponse { parts, body: Box::new(body) }) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_request_is_named_with_its_step_and_url() {
        let http = Arc::new(AcmeHttp::new(None).unwrap());
        let path = Arc::new(Mutex::new(""));
        let order = async || {
            let key = PrivatePkcs8KeyDer::from(KeyKind::EcdsaP256.generate().unwrap().serialize_der());
            let ca = Hanging { http: Arc::clone(&http), path: Arc::clone(&path) };
            let account = Account::builder_with_http(Box::new(ca));
            let account = account.from_parts("https://ca/me".into(), key, "https://ca/dir".into()).await.unwrap();
            let order = account.order("https://ca/order".to_owned()).await.unwrap();
            AcmeOrder::new(order, account, Arc::clone(&http))
        };
        let fails = |text: &str, failure: Result<(), AcmeFailure>| {
            let failure = failure.unwrap_err();
            assert_eq!((failure.message.as_str(), failure.kind), (text, FailureKind::Unclear));
        };
        let late = "the CA did not answer within 90 s";
        let hang_at = |at| *path.lock() = at;
        let mut one = order().await;
        hang_at("/authorization");
        let asked = one.challenges("dns-01").await.map(drop);
        fails(&format!("the order's authorizations: https://ca/authorization: {late}"), asked);
        hang_at("/challenge");
        fails(&format!("the request to validate: https://ca/challenge: {late}"), one.validate("dns-01").await);
        hang_at("/order");
        fails(&format!("waiting for the validation: https://ca/order: {late}"), one.validate("dns-01").await);
        fails(&format!("fetching the certificate: https://ca/order: {late}"), one.chains(false).await.map(drop));
        hang_at("/finalize");
        fails(&format!("the certificate request: https://ca/finalize: {late}"), one.finalize(b"csr").await);
        hang_at("");
        let never = "timeout while the CA processed the order; the next attempt resumes it";
        fails(&format!("waiting for the validation: https://ca/order: {never}"), one.validate("dns-01").await);
    }

    #[tokio::test(start_paused = true)]
    async fn pending_order_with_an_error_has_failed() {
        let key = KeyKind::EcdsaP256.generate().unwrap().serialize_der();
        let http = Arc::new(AcmeHttp::new(None).unwrap());
        let account = Account::builder_with_http(Box::new(Slow(Arc::clone(&http))));
        let account =
            account.from_parts("https://ca/me".into(), PrivatePkcs8KeyDer::from(key), "https://ca/dir".into());
        let account = account.await.unwrap();
        let order = account.order("https://ca/order".to_owned()).await.unwrap();
        let mut order = AcmeOrder::new(order, account, http);
        let failure = order.validate("dns-01").await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.starts_with("the CA's validation failed: no record"), "{failure}");
        assert!(failure.message.contains("a.example: no record"), "{failure}");
    }
}
