//! The production environment: the system's clock, randomness and keys; and the [`Parts`] of a
//! [`Renewer`](super::Renewer) from settings.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::{digest, rand};
use rcgen::KeyPair;
use tokio::sync::watch;

use super::Parts;
use super::client::AcmeCa;
use super::failure::AcmeFailure;
use super::ports::{Ca, ChallengeDns, Env};
use super::settings::AcmeSettings;
use crate::ca::KeyKind;
use crate::certificate::ExactNames;
use crate::clock;

/// The system's clock, randomness and keys.
#[derive(Debug, Clone, Copy)]
pub struct SystemEnv;

impl Env for SystemEnv {
    fn now(&self) -> i64 {
        clock::unix_seconds(clock::now())
    }

    fn random(&self) -> f64 {
        let mut bytes = [0; 4];
        // Without randomness all servers renew at once, which is better than not renewing.
        let _ = rand::fill(&mut bytes);
        f64::from(u32::from_le_bytes(bytes)) / 4_294_967_296.0
    }

    fn new_key(&self, kind: KeyKind) -> Result<KeyPair, rcgen::Error> {
        kind.generate()
    }
}

impl Parts {
    /// Builds the parts for `domain` from `settings`. Accounts are kept in the state directory `state`.
    ///
    /// # Errors
    /// If a file that the settings name cannot be used.
    pub fn real(
        settings: &AcmeSettings,
        domain: &str,
        state: &Path,
        exact: watch::Receiver<Arc<ExactNames>>,
        dns: Arc<dyn ChallengeDns>,
    ) -> Result<Self, AcmeFailure> {
        let cas = settings.directories().into_iter();
        let cas = cas.map(|directory| AcmeCa::new(directory, state).map(|ca| Arc::new(ca) as Arc<dyn Ca>));
        let print = digest::digest(&digest::SHA256, format!("{domain} {settings:?}").as_bytes());
        Ok(Self {
            domain: domain.to_owned(),
            keys: settings.keys.clone(),
            exact,
            preferred_chain: settings.preferred_chain.clone(),
            cas: cas.collect::<Result<_, _>>()?,
            dns,
            env: Arc::new(SystemEnv),
            fingerprint: print.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}
