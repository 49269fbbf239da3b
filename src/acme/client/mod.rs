//! The production CA client: ACME over HTTPS. instant-acme builds the messages, our own [HTTP client](http) sends them.
//!
//! instant-acme repeats a request with a stale nonce only three times, and drops the Retry-After of errors. So we
//! repeat each call while the CA refuses only its nonce, and read the outcome from the response that our HTTP client
//! kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use instant_acme::{Account, CertificateIdentifier, Identifier, NewOrder, RevocationRequest};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use self::account::{AccountStore, HmacKey, Registration};
use self::directory_meta::DirectoryMeta;
use self::http::{AcmeHttp, HttpPort};
use self::order::AcmeOrder;
use super::failure::{AcmeFailure, FailureKind};
use super::ports::{Ca, Order, PortFuture, RenewalAdvice};
use super::schedule::RenewalWindow;
use super::settings::FallbackDirectory;

mod account;
pub mod directory_meta;
mod http;
mod order;
mod proxy;
mod refusal;
mod response_headers;

/// How often a request is repeated because the CA refuses its nonce.
const NONCE_TRIES: u32 = 20;

/// The profile we request if the CA offers it, unless the settings name another.
const DEFAULT_PROFILE: &str = "classic";

/// Repeats an ACME request while the CA refuses only its nonce (RFC 8555 §6.5).
macro_rules! insist {
    ($request:expr) => {{
        let mut tries = 0;
        loop {
            match $request.await {
                Err(error) if tries < $crate::acme::client::NONCE_TRIES && refusal::is_bad_nonce(&error) => tries += 1,
                other => break other,
            }
        }
    }};
}
use insist;

/// A CA that speaks ACME.
pub struct AcmeCa {
    settings: FallbackDirectory,
    hmac_key: Option<HmacKey>,
    http: Arc<AcmeHttp>,
    accounts: AccountStore,
    account: Mutex<Option<Account>>,
}

impl AcmeCa {
    /// A client for the CA that `settings` name. Our account is kept in the state directory `state`.
    ///
    /// # Errors
    /// If a file that the settings name cannot be read.
    pub fn new(settings: FallbackDirectory, state: &Path) -> Result<Self, AcmeFailure> {
        let http = Arc::new(AcmeHttp::new(settings.directory_root.as_deref())?);
        let hmac_key = settings.external_account.as_ref().map(|external| HmacKey::read(&external.hmac_key_file));
        let accounts = AccountStore::new(&state.join("accounts"), settings.directory.url());
        Ok(Self { hmac_key: hmac_key.transpose()?, settings, http, accounts, account: Mutex::new(None) })
    }

    /// Fetches the directory and a nonce, as every order does first, and checks that the CA offers what the settings
    /// need. Changes nothing, here or there.
    ///
    /// # Errors
    /// If the CA cannot be reached, or does not offer what the settings need.
    pub async fn survey(&self) -> Result<DirectoryMeta, AcmeFailure> {
        let offer = DirectoryMeta::fetch(&self.http, self.url()).await?;
        self.http.get(&offer.new_nonce).await?;
        self.http.nonce()?;
        self.profile(&offer.profiles())?;
        if offer.requires_external_account() && self.hmac_key.is_none() && self.accounts.registered()?.is_none() {
            return Err(AcmeFailure::action_required(format!(
                "{} takes only customers of the CA: put the key that it gave you into \"external_account\"",
                self.url()
            )));
        }
        Ok(offer)
    }

    /// The URL of our account at this CA, if one is registered.
    ///
    /// # Errors
    /// If the account's files cannot be read.
    pub fn account_url(&self) -> Result<Option<String>, AcmeFailure> {
        Ok(self.accounts.registered()?.map(|registered| registered.id))
    }

    /// Asks the CA for our account, if one is registered. Changes nothing, here or there.
    ///
    /// # Errors
    /// If the CA cannot be reached, does not know the account, or has deactivated it.
    pub async fn check_account(&self) -> Result<(), AcmeFailure> {
        if !self.open_known().await? {
            return Ok(());
        }
        let account = self.account()?;
        // instant-acme reads only orders from a URL. So only a refusal is read here.
        let Err(error @ instant_acme::Error::Api(_)) = insist!(account.order(account.id().to_owned())) else {
            return Ok(());
        };
        let failure = refusal::explain(&error, &self.http.seen());
        match failure.kind {
            FailureKind::AccountUnknown | FailureKind::AccountDeactivated => Err(failure),
            _ => Ok(()),
        }
    }

    fn url(&self) -> &str {
        self.settings.directory.url()
    }

    fn account(&self) -> Result<Account, AcmeFailure> {
        let account = self.account.lock().clone();
        account.ok_or_else(|| AcmeFailure::retry("our account is not open").with_kind(FailureKind::AccountUnknown))
    }

    fn set_account(&self, account: Option<Account>) {
        *self.account.lock() = account;
    }

    /// Explains an error of the CA. If the CA does not know our account, removes the registration here too.
    fn failure(&self, error: &instant_acme::Error) -> AcmeFailure {
        let failure = refusal::explain(error, &self.http.seen());
        if failure.kind == FailureKind::AccountUnknown {
            self.set_account(None);
            if let Err(error) = self.accounts.forget_registration() {
                return AcmeFailure::disk("account.json", &error);
            }
        }
        failure
    }

    async fn open_known(&self) -> Result<bool, AcmeFailure> {
        self.set_account(None);
        let Some(registered) = self.accounts.registered()? else {
            DirectoryMeta::fetch(&self.http, self.url()).await.map(drop)?;
            return Ok(false);
        };
        let builder = Account::builder_with_http(Box::new(HttpPort(Arc::clone(&self.http))));
        let opened = builder.from_parts(registered.id, registered.key, self.url().to_owned()).await;
        self.set_account(Some(opened.map_err(|error| self.failure(&error).during("the CA's directory"))?));
        Ok(true)
    }

    async fn register_new(&self) -> Result<(), AcmeFailure> {
        let key = self.accounts.key()?;
        let external = self.settings.external_account.as_ref().zip(self.hmac_key.as_ref());
        let registration = Registration {
            contact: self.settings.contact.as_deref().unwrap_or_default(),
            external: external.map(|(external, hmac_key)| (external.key_id.as_str(), hmac_key)),
        };
        let id = account::register(&self.http, self.url(), &key, &registration).await?;
        self.accounts.keep_registration(self.url(), &id)?;
        self.open_known().await.map(drop)
    }

    /// The profile to request. The CA must offer a profile that the settings name.
    fn profile(&self, offered: &[&str]) -> Result<Option<String>, AcmeFailure> {
        match &self.settings.profile {
            Some(wanted) if offered.contains(&wanted.as_str()) => Ok(Some(wanted.clone())),
            Some(wanted) => Err(AcmeFailure::action_required(format!(
                "{} offers no profile {wanted:?}, only: {}",
                self.url(),
                if offered.is_empty() { "none at all".to_owned() } else { offered.join(", ") }
            ))),
            None => Ok(offered.contains(&DEFAULT_PROFILE).then(|| DEFAULT_PROFILE.to_owned())),
        }
    }

    async fn place(
        &self,
        names: &[String],
        replaces: Option<&CertificateDer<'static>>,
    ) -> Result<Box<dyn Order>, AcmeFailure> {
        let account = self.account()?;
        let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
        let mut offered: Vec<&str> = account.profiles().map(|profile| profile.name).collect();
        offered.sort_unstable();
        let profile = self.profile(&offered)?;
        let mut order = NewOrder::new(&identifiers);
        if let Some(profile) = &profile {
            order = order.profile(profile);
        }
        if let Some(leaf) = replaces {
            order = order.replaces(identifier(leaf)?);
        }
        let placed = insist!(account.new_order(&order));
        let placed = placed.map_err(|error| match self.failure(&error).during("the order") {
            // The CA accepted the order but did not confirm `replaces`. `Refused` makes the caller order without it.
            failure
                if replaces.is_some()
                    && matches!(error, instant_acme::Error::Other(_))
                    && self.http.seen().is_good() =>
            {
                failure.with_kind(FailureKind::Refused)
            }
            failure => failure,
        })?;
        Ok(Box::new(AcmeOrder::new(placed, account, Arc::clone(&self.http))))
    }

    async fn window(&self, leaf: &CertificateDer<'static>) -> Result<Option<RenewalAdvice>, AcmeFailure> {
        let account = self.account()?;
        match account.renewal_info(&identifier(leaf)?).await {
            Ok((info, again)) => {
                let window = RenewalWindow {
                    start: info.suggested_window.start.unix_timestamp(),
                    end: info.suggested_window.end.unix_timestamp(),
                };
                Ok(Some(RenewalAdvice {
                    window,
                    recheck_after_s: i64::try_from(again.as_secs()).unwrap_or(i64::MAX),
                    explanation: info.explanation_url.filter(|url| url.parse::<::http::Uri>().is_ok()),
                }))
            }
            Err(instant_acme::Error::Unsupported(_)) => Ok(None),
            // The CA does not know the certificate (any more), so it has no window for it.
            Err(_) if self.http.seen().status == 404 => Ok(None),
            Err(error) => Err(self.failure(&error)),
        }
    }
}

impl Ca for AcmeCa {
    fn directory(&self) -> &str {
        self.url()
    }

    fn open(&self) -> PortFuture<'_, bool> {
        Box::pin(self.open_known())
    }

    fn register(&self) -> PortFuture<'_, ()> {
        Box::pin(self.register_new())
    }

    fn account_url(&self) -> Result<Option<String>, AcmeFailure> {
        self.accounts.url()
    }

    fn put_account_aside(&self) -> Result<PathBuf, AcmeFailure> {
        self.set_account(None);
        self.accounts.put_key_aside()
    }

    fn clock_skew(&self) -> Option<i64> {
        self.http.seen().clock_skew
    }

    fn renewal_window<'a>(&'a self, leaf: &'a CertificateDer<'static>) -> PortFuture<'a, Option<RenewalAdvice>> {
        Box::pin(self.window(leaf))
    }

    fn order<'a>(
        &'a self,
        names: &'a [String],
        replaces: Option<&'a CertificateDer<'static>>,
    ) -> PortFuture<'a, Box<dyn Order>> {
        Box::pin(self.place(names, replaces))
    }

    fn order_at<'a>(&'a self, url: &'a str) -> PortFuture<'a, Box<dyn Order>> {
        Box::pin(async move {
            let account = self.account()?;
            let order = insist!(account.order(url.to_owned())).map_err(|error| self.failure(&error))?;
            Ok(Box::new(AcmeOrder::new(order, account, Arc::clone(&self.http))) as Box<dyn Order>)
        })
    }

    fn revoke<'a>(&'a self, leaf: &'a CertificateDer<'static>) -> PortFuture<'a, ()> {
        Box::pin(async move {
            let account = self.account()?;
            let request = RevocationRequest { certificate: leaf, reason: None };
            insist!(account.revoke(&request)).map_err(|error| self.failure(&error).during("the revocation"))
        })
    }
}

/// The ARI identifier of a certificate (RFC 9773 §4.1).
fn identifier(leaf: &CertificateDer<'static>) -> Result<CertificateIdentifier<'static>, AcmeFailure> {
    let identifier = CertificateIdentifier::try_from(leaf);
    identifier
        .map(CertificateIdentifier::into_owned)
        .map_err(|error| AcmeFailure::action_required(error).with_kind(FailureKind::Refused))
}
