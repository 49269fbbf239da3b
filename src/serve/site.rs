//! The site: every constituency with the TLS configuration of its policy, published as one immutable snapshot.
//!
//! Each constituency has a TLS configuration of its own, with its own session store and ticket keys. It gets a new one
//! whenever the TLS part of its policy or a bundle that it trusts changes. If any of it were shared, a session made
//! under one policy could skip the client authentication of another. Only the verifier is shared, among those that trust the
//! same bundles: it holds certificates and no sessions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hashlink::LruCache;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{NoServerSessionStorage, ProducesTickets, StoresServerSessions};
use rustls::{ServerConfig, version};

use super::openssl::LegacyTls;
use super::{ALPN_PROTOCOLS, host};
use crate::certificate::{ConstituencyCertificates, LiveCertificates};
use crate::constituency::{
    CertificateNames, ClientAuth, Constituency, ConstituencyName, ExpiredDeviceCertificates, Registry, TlsLevel,
};
use crate::identity::trust::{Bundle, Bundles, DeviceVerifier, RequireDevice, Verdict};
use crate::metrics::RefusalKind;

/// The inputs of every TLS configuration.
#[derive(Debug, Clone)]
pub struct TlsMaterial {
    /// The certificates that the server presents.
    pub certificates: Arc<LiveCertificates>,
    /// The bundles that policies name.
    pub bundles: Bundles,
    /// Bundles that every constituency trusts in addition: only the device CA of local mode.
    pub always_trusted: Vec<Arc<Bundle>>,
    /// Algorithms, in our order of preference.
    pub provider: Arc<CryptoProvider>,
    /// How old the phones' TLS may be, where a policy does not set a level.
    pub level: TlsLevel,
}

/// All that is served, as of one moment.
#[derive(Debug, Default)]
pub struct Site {
    /// How many sites preceded this one.
    generation: u64,
    domain: String,
    no_sni: Option<ConstituencyName>,
    registry: Registry,
    tls: BTreeMap<ConstituencyName, Arc<TlsGeneration>>,
    unusable: BTreeMap<ConstituencyName, String>,
}

/// The TLS configuration of one constituency for one TLS part of its policy. Generations are compared by pointer.
#[derive(Debug)]
pub struct TlsGeneration {
    policy_generation: u64,
    /// How old the phones' TLS may be.
    pub level: TlsLevel,
    bundles: Vec<Arc<Bundle>>,
    config: Arc<ServerConfig>,
    config_without_resumption: Arc<ServerConfig>,
    /// The certificates that the constituency presents.
    pub certificates: Arc<ConstituencyCertificates>,
    /// Verifies the client's chain; `None` if the constituency requests none.
    pub verifier: Option<Arc<SharedVerifier>>,
    /// OpenSSL, for phones that rustls cannot serve; `None` if the level does not allow them.
    pub legacy_tls: Option<LegacyTls>,
    /// The realm of passwords; `None` if the constituency requests none.
    pub realm: Option<String>,
}

/// The verifier of all constituencies that trust the same bundles. A copy for each would take 14 kB with Polycom's CAs.
#[derive(Debug)]
pub struct SharedVerifier {
    bundles: Vec<Arc<Bundle>>,
    expired: ExpiredDeviceCertificates,
    verifier: Arc<DeviceVerifier>,
    rustls: Arc<RequireDevice>,
}

/// The current state of a constituency, with its TLS configuration.
pub type Current<'a> = (&'a Arc<Constituency>, &'a Arc<TlsGeneration>);

/// Why there is no constituency to serve for a server name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// No SNI, and no constituency for such clients.
    #[error("no SNI, and provost.json names no constituency for such clients (\"no_sni\")")]
    NoName,
    /// Not one label under the domain, or no such constituency.
    #[error("unknown server name {0:?}")]
    Unknown(String),
    /// The constituency exists, but cannot be served.
    #[error("{name} is not served: {reason}")]
    Unusable { name: ConstituencyName, reason: String },
}

impl NotServed {
    /// The kind for the metrics.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::NoName | Self::Unknown(_) => RefusalKind::UnknownServerName,
            Self::Unusable { .. } => RefusalKind::NotServed,
        }
    }
}

impl TlsMaterial {
    /// The provider for all TLS: aws-lc-rs, with AES-128 first, because the key schedule of AES-256 costs more
    /// than it gives, and X25519 first.
    #[must_use]
    pub fn provider() -> Arc<CryptoProvider> {
        static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(TlsMaterial::algorithms()));
        Arc::clone(&PROVIDER)
    }

    fn algorithms() -> CryptoProvider {
        use aws_lc_rs::{cipher_suite as suite, kx_group as group};
        CryptoProvider {
            cipher_suites: vec![
                suite::TLS13_AES_128_GCM_SHA256,
                suite::TLS13_AES_256_GCM_SHA384,
                suite::TLS13_CHACHA20_POLY1305_SHA256,
                suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![group::X25519, group::SECP256R1, group::X25519MLKEM768, group::SECP384R1],
            ..aws_lc_rs::default_provider()
        }
    }
}

impl Site {
    /// A site that serves nothing yet. `no_sni` is the constituency of clients without SNI.
    #[must_use]
    pub fn new(domain: String, no_sni: Option<ConstituencyName>) -> Self {
        Self { domain, no_sni, ..Self::default() }
    }

    /// The site for `registry`. It takes over TLS configurations from this site that are still current.
    #[must_use]
    pub fn with(&self, registry: Registry, no_sni: Option<ConstituencyName>, material: &TlsMaterial) -> Self {
        let mut tls = BTreeMap::new();
        let mut unusable = BTreeMap::new();
        let mut verifiers = Vec::new();
        for constituency in registry.served() {
            let name = constituency.name.clone();
            match self.generation_for(constituency, material, &mut verifiers) {
                Ok(generation) => {
                    tls.insert(name, generation);
                }
                Err(reason) => {
                    unusable.insert(name, reason);
                }
            }
        }
        let generation = self.generation + 1;
        Self { generation, domain: self.domain.clone(), no_sni, registry, tls, unusable }
    }

    /// The current or a new TLS configuration of `constituency`. `verifiers` are those that new ones use so far.
    fn generation_for(
        &self,
        constituency: &Constituency,
        material: &TlsMaterial,
        verifiers: &mut Vec<Arc<SharedVerifier>>,
    ) -> Result<Arc<TlsGeneration>, String> {
        let bundles = bundles_of(constituency, material)?;
        let is_current = |generation: &&Arc<TlsGeneration>| {
            generation.policy_generation == constituency.tls_generation
                && generation.level == level_of(constituency, material)
                && generation.bundles.len() == bundles.len()
                && generation
                    .bundles
                    .iter()
                    .zip(&bundles)
                    .all(|(one, other)| Arc::ptr_eq(one, other) || one.is_same_as(other))
        };
        match self.tls.get(&constituency.name).filter(is_current) {
            Some(current) => Ok(Arc::clone(current)),
            None => {
                let verifier = (constituency.policy.tls.client_auth == ClientAuth::Required)
                    .then(|| self.verifier_for(constituency, &bundles, material, verifiers));
                TlsGeneration::new(constituency, &self.domain, bundles, verifier, material)
                    .map(Arc::new)
                    .map_err(|error| error.to_string())
            }
        }
    }

    fn verifier_for(
        &self,
        constituency: &Constituency,
        bundles: &[Arc<Bundle>],
        material: &TlsMaterial,
        verifiers: &mut Vec<Arc<SharedVerifier>>,
    ) -> Arc<SharedVerifier> {
        let expired = constituency.policy.tls.expired_device_certificates;
        let is_it = |one: &&Arc<SharedVerifier>| one.verifies(bundles, expired);
        if let Some(shared) = verifiers.iter().find(is_it) {
            return Arc::clone(shared);
        }
        let before = self.tls.values().filter_map(|generation| generation.verifier.as_ref()).find(is_it);
        let shared = before.cloned().unwrap_or_else(|| Arc::new(SharedVerifier::new(bundles, expired, material)));
        verifiers.push(Arc::clone(&shared));
        shared
    }

    /// A number that grows by one with each site made [from another](Self::with).
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The site's base name.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The snapshot of the constituencies' folders.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The constituency of clients without SNI.
    #[must_use]
    pub fn no_sni(&self) -> Option<&ConstituencyName> {
        self.no_sni.as_ref()
    }

    /// Constituencies whose policy is valid but whose TLS configuration cannot be built, with the reason.
    pub fn unusable(&self) -> impl Iterator<Item = (&ConstituencyName, &str)> {
        self.unusable.iter().map(|(name, reason)| (name, reason.as_str()))
    }

    /// Why the TLS configuration of `name` cannot be built.
    #[must_use]
    pub fn why_unusable(&self, name: &ConstituencyName) -> Option<&str> {
        self.unusable.get(name).map(String::as_str)
    }

    /// The current state of constituency `name`, if it is served.
    #[must_use]
    pub fn get(&self, name: &ConstituencyName) -> Option<Current<'_>> {
        let constituency = self.registry.find(name.as_str()).filter(|found| found.name == *name)?;
        Some((constituency, self.tls.get(name)?))
    }

    /// The constituency that `server_name` (SNI) names; without one, that of `no_sni`.
    ///
    /// # Errors
    /// If there is none, or it cannot be served.
    pub fn by_server_name(
        &self,
        server_name: Option<&str>,
    ) -> Result<(&Arc<Constituency>, &Arc<TlsGeneration>), NotServed> {
        let constituency = if let Some(server_name) = server_name {
            self.by_host(server_name).ok_or_else(|| NotServed::Unknown(server_name.to_owned()))?
        } else {
            let name = self.no_sni.as_ref().ok_or(NotServed::NoName)?;
            let gone = || NotServed::Unusable {
                name: name.clone(),
                reason: "no such constituency, or its policy is invalid".to_owned(),
            };
            self.registry.find(name.as_str()).filter(|found| found.name == *name).ok_or_else(gone)?
        };
        let name = &constituency.name;
        let unusable =
            || NotServed::Unusable { name: name.clone(), reason: self.unusable.get(name).cloned().unwrap_or_default() };
        Ok((constituency, self.tls.get(name).ok_or_else(unusable)?))
    }

    /// The constituency of a host name: exactly one label under the domain, which is a name or an alias.
    #[must_use]
    pub fn by_host(&self, name: &str) -> Option<&Arc<Constituency>> {
        let name = host::normalize(name)?;
        self.registry.find(host::label_under(&name, &self.domain)?)
    }
}

fn level_of(constituency: &Constituency, material: &TlsMaterial) -> TlsLevel {
    constituency.policy.tls.level.unwrap_or(material.level)
}

fn bundles_of(constituency: &Constituency, material: &TlsMaterial) -> Result<Vec<Arc<Bundle>>, String> {
    let policy = &constituency.policy.tls;
    if policy.client_auth != ClientAuth::Required {
        return Ok(Vec::new());
    }
    let mut bundles = material.always_trusted.clone();
    for name in &policy.trust {
        match material.bundles.get(name) {
            Some(Ok(bundle)) => bundles.push(Arc::clone(bundle)),
            Some(Err(error)) => return Err(format!("the trust bundle \"{name}\" cannot be used: {error}")),
            None => return Err(format!("unknown trust bundle \"{name}\"")),
        }
    }
    for (one, other) in
        bundles.iter().enumerate().flat_map(|(at, one)| bundles.iter().take(at).map(move |it| (one, it)))
    {
        if let Some(ca) = one.conflicting_ca(other) {
            let (one, other) = (&one.name, &other.name);
            return Err(format!(
                "the trust bundles \"{one}\" and \"{other}\" assign {ca} to different device families"
            ));
        }
    }
    Ok(bundles)
}

impl SharedVerifier {
    fn new(bundles: &[Arc<Bundle>], expired: ExpiredDeviceCertificates, material: &TlsMaterial) -> Self {
        let algorithms = material.provider.signature_verification_algorithms;
        let verifier = Arc::new(DeviceVerifier::new(bundles.iter().map(AsRef::as_ref), expired, algorithms));
        let rustls = Arc::new(RequireDevice::new(Arc::clone(&verifier)));
        Self { bundles: bundles.to_vec(), expired, verifier, rustls }
    }

    /// Whether it trusts exactly these `bundles`, in this order. A bundle that was read again is another one.
    fn verifies(&self, bundles: &[Arc<Bundle>], expired: ExpiredDeviceCertificates) -> bool {
        self.expired == expired
            && self.bundles.len() == bundles.len()
            && self.bundles.iter().zip(bundles).all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

impl TlsGeneration {
    fn new(
        constituency: &Constituency,
        domain: &str,
        bundles: Vec<Arc<Bundle>>,
        verifier: Option<Arc<SharedVerifier>>,
        material: &TlsMaterial,
    ) -> Result<Self, rustls::Error> {
        let policy = &constituency.policy.tls;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&material.provider))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?;
        let builder = match &verifier {
            Some(shared) => builder.with_client_cert_verifier(Arc::clone(&shared.rustls) as _),
            None => builder.with_no_client_auth(),
        };
        let exact = (policy.certificate_names == CertificateNames::Exact).then(|| constituency.name.clone());
        let certificates = Arc::new(ConstituencyCertificates::new(Arc::clone(&material.certificates), exact));
        let mut config = builder.with_cert_resolver(certificates.clone());
        config.alpn_protocols = ALPN_PROTOCOLS.map(Into::into).to_vec();
        config.ignore_client_order = true;
        config.session_storage = Arc::new(Sessions::default());
        config.ticketer = Arc::new(BoundedTickets(aws_lc_rs::Ticketer::new()?));
        // One is enough: the phone uses it for its next connection, or makes a full handshake.
        config.send_tls13_tickets = 1;

        let mut without_resumption = config.clone();
        without_resumption.session_storage = Arc::new(NoServerSessionStorage {});
        without_resumption.ticketer = Arc::new(NoTickets);
        without_resumption.send_tls13_tickets = 0;
        let level = level_of(constituency, material);
        Ok(Self {
            policy_generation: constituency.tls_generation,
            level,
            bundles,
            config: Arc::new(config),
            config_without_resumption: Arc::new(without_resumption),
            legacy_tls: LegacyTls::new(level, verifier.as_ref().map(|shared| shared.verifier.as_ref())),
            certificates,
            verifier,
            realm: (policy.client_auth == ClientAuth::Digest).then(|| format!("{}.{domain}", constituency.name)),
        })
    }

    /// Whether this has the policy of `other`, so that they differ at most in the content of their bundles.
    #[must_use]
    pub fn has_policy_of(&self, other: &Self) -> bool {
        self.policy_generation == other.policy_generation && self.level == other.level
    }

    /// Verifies the `chain` of a client of `constituency` at `now`, in Unix seconds; `None` if no chain is requested.
    /// The client must in addition have proven that it has the private key.
    #[must_use]
    pub fn examine(&self, constituency: &Constituency, chain: &[CertificateDer<'_>], now: i64) -> Option<Verdict> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
        Some(self.verifier.as_ref()?.verifier.examine(chain, &constituency.policy.pins, now))
    }

    /// The configuration for a client whose session may be resumed later, or may not. RFC 7627 §5.3: without the
    /// extended master secret, a TLS 1.2 session must not be resumed, because it could be spliced into another.
    #[must_use]
    pub fn config(&self, can_resume: bool) -> Arc<ServerConfig> {
        Arc::clone(if can_resume { &self.config } else { &self.config_without_resumption })
    }
}

/// The largest session that is put into a ticket, in bytes. Most of a session is the client's certificates. The client
/// sends the ticket in its next ClientHello, which is limited to [`HELLO_LIMIT`](super::hello::HELLO_LIMIT) bytes.
const TICKET_LIMIT: usize = 8 << 10;

/// Issues no ticket that might make a ClientHello too long.
#[derive(Debug)]
struct BoundedTickets(Arc<dyn ProducesTickets>);

impl ProducesTickets for BoundedTickets {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        if session.len() > TICKET_LIMIT { None } else { self.0.encrypt(session) }
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(ticket)
    }
}

/// The sessions of TLS 1.2 that one configuration can resume by their ID; the latest ones. It takes memory as it fills:
/// rustls' own store takes 31 kB from the start, for each constituency.
struct Sessions(Mutex<LruCache<Vec<u8>, Vec<u8>>>);

/// As many as rustls stores by default.
const MAX_SESSIONS: usize = 256;

impl Default for Sessions {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_SESSIONS)))
    }
}

impl fmt::Debug for Sessions {
    /// Without the sessions, which are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, id: Vec<u8>, session: Vec<u8>) -> bool {
        self.0.lock().insert(id, session);
        true
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().get(id).cloned()
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().remove(id)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// Neither issues nor accepts session tickets.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::constituency::scan::Scanner;
    use crate::identity::trust;
    use crate::state;

    #[test]
    fn constituencies_share_a_verifier_but_no_session() {
        let folder = tempfile::tempdir().unwrap();
        let policy = |name: &str, text: &str| {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
            state::write_private(&folder.path().join(name).join("constituency.json"), text.as_bytes()).unwrap();
        };
        for (name, text) in [
            ("one", "{}"),
            ("two", r#"{ "aliases": ["second"] }"#),
            ("tolerant", r#"{ "expired_device_certificates": "accept" }"#),
            ("open", r#"{ "client_auth": "none" }"#),
        ] {
            policy(name, text);
        }
        let material = TlsMaterial {
            certificates: Arc::default(),
            bundles: trust::load_all(&BTreeMap::new()),
            always_trusted: Vec::new(),
            provider: TlsMaterial::provider(),
            level: TlsLevel::Modern,
        };
        let mut scanner = Scanner::new(folder.path().to_owned(), vec!["polycom".to_owned()]);
        let site = Site::default().with(scanner.scan(clock::now()), None, &material);
        policy("later", "{}");
        let site = site.with(scanner.scan(clock::now()), None, &material);
        let of = |name: &str| Arc::clone(site.get(&name.parse().unwrap()).unwrap().1);
        let verifier = |name: &str| of(name).verifier.as_ref().map(Arc::as_ptr);
        assert!(
            verifier("one").is_some() && verifier("one") == verifier("two") && verifier("one") == verifier("later")
        );
        assert!(verifier("tolerant").is_some() && verifier("tolerant") != verifier("one"));
        assert_eq!(verifier("open"), None);

        let all = ["one", "two", "tolerant", "open", "later"];
        for name in all {
            let own = of(name).config(true);
            assert!(own.session_storage.put(b"id".to_vec(), name.as_bytes().to_vec()));
            let ticket = own.ticketer.encrypt(name.as_bytes()).unwrap();
            for other in all.into_iter().filter(|other| *other != name) {
                let other = of(other).config(true);
                assert_ne!(other.session_storage.get(b"id").as_deref(), Some(name.as_bytes()));
                assert_eq!(other.ticketer.decrypt(&ticket), None);
            }
            assert_eq!(own.session_storage.take(b"id").as_deref(), Some(name.as_bytes()));
            assert_eq!(own.ticketer.decrypt(&ticket).as_deref(), Some(name.as_bytes()));
            assert_eq!(of(name).config(false).session_storage.get(b"id"), None);
        }
    }

    #[test]
    fn only_the_latest_sessions_are_stored() {
        let sessions = Sessions::default();
        let id = |number: usize| number.to_be_bytes().to_vec();
        for number in 0..=MAX_SESSIONS {
            assert!(sessions.put(id(number), vec![1; 32]));
        }
        assert_eq!((sessions.get(&id(0)), sessions.get(&id(1))), (None, Some(vec![1; 32])));
        assert_eq!((sessions.take(&id(2)), sessions.get(&id(2))), (Some(vec![1; 32]), None));
        assert_eq!(format!("{sessions:?}"), "Sessions");
    }
}
