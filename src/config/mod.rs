//! The configuration: `provost.json`, which combines the settings of all modules, or local mode if there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::acme::AcmeSettings;
use crate::admin::StatusSettings;
use crate::certificate::CertificateFiles;
use crate::constituency::{ConstituencyName, POLYCOM, TlsLevel};
use crate::identity::trust::{BundleFiles, BundleSchema};
use crate::notify::NotifySettings;
use crate::serve::access_log::LogFormat;
use crate::serve::addresses::{OneOrSeveral, one_or_several};
use crate::serve::host;
use crate::serve::{Limits, LoadBalancers, PlainHttp};
use crate::settings::{self, SettingsError};

#[cfg(test)]
mod tests;

/// The name of the configuration file in the working directory.
pub const CONFIG_FILE: &str = "provost.json";

/// The domain in local mode. All names under `localhost` are loopback (RFC 6761 §6.3).
pub const LOCAL_DOMAIN: &str = "phones.localhost";

/// The port in local mode.
pub const LOCAL_PORT: u16 = 8443;

/// A checked configuration. All paths are absolute or relative to the working directory.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that it was read from; `None` in local mode.
    pub file: Option<PathBuf>,
    /// The site's base domain, normalized.
    pub domain: String,
    /// The addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Plain HTTP on a trusted LAN.
    pub plain_http: Option<PlainHttp>,
    /// The load balancers in front of `listen`.
    pub load_balancers: LoadBalancers,
    /// The folder `constituencies`.
    pub constituencies: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// The source of the server certificate.
    pub certificate: CertificateSource,
    /// The configured trust bundles by name, without the built-in `polycom`.
    pub trust: BTreeMap<String, BundleFiles>,
    /// The constituency of clients without SNI.
    pub no_sni: Option<ConstituencyName>,
    /// The oldest accepted TLS, unless a policy overrides it.
    pub tls: TlsLevel,
    /// The format of the access log and of diagnostics.
    pub log: LogFormat,
    pub limits: Limits,
    /// The operators' listener; `None` if there is none.
    pub status: Option<StatusSettings>,
    /// The command that reports the headlines; `None` if there is none.
    pub notify: Option<NotifySettings>,
}

/// Where the server's certificate comes from: one of these keys.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", try_from = "CertificateKeys")]
#[schemars(!try_from)]
pub enum CertificateSource {
    /// Pairs of files that another program writes, such as certbot. New files are used within a second.
    Files(Vec<CertificateFiles>),
    /// A CA that provost makes on first use, for a LAN. Phones must be given its certificate.
    LocalCa(LocalCaSettings),
    /// A CA with ACME, such as Let's Encrypt. provost proves the domain by records in DNS (DNS-01).
    Acme(Box<AcmeSettings>),
}

/// It has no keys: `{}`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalCaSettings {}

/// [`CertificateSource`] as parsed from JSON, so that several keys at once give an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateKeys {
    files: Option<Vec<CertificateFiles>>,
    local_ca: Option<LocalCaSettings>,
    acme: Option<Box<AcmeSettings>>,
}

impl TryFrom<CertificateKeys> for CertificateSource {
    type Error = &'static str;

    fn try_from(keys: CertificateKeys) -> Result<Self, Self::Error> {
        match (keys.files, keys.local_ca, keys.acme) {
            (Some(files), None, None) => Ok(Self::Files(files)),
            (None, Some(local), None) => Ok(Self::LocalCa(local)),
            (None, None, Some(acme)) => Ok(Self::Acme(acme)),
            _ => Err("takes exactly one of \"acme\", \"files\" and \"local_ca\""),
        }
    }
}

/// The configuration of the server. Relative paths are relative to the file.
///
/// ```
/// let text = r#"{ "domain": "phones.example.com", "certificate": { "local_ca": {} } }"#;
/// let config = provost::config::Config::parse("/etc/provost/provost.json".as_ref(), text)?;
/// assert_eq!(config.constituencies, std::path::Path::new("/etc/provost/constituencies"));
/// # Ok::<(), provost::settings::SettingsError>(())
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "provost.json")]
pub struct ConfigFile {
    /// The site's base name. Each constituency is one label below it, such as `home.phones.example.com` below
    /// `phones.example.com`.
    domain: String,
    /// One address or a list of addresses to listen on, each with its port. An IPv6 address takes IPv6 only.
    #[serde(default = "Config::default_listen", deserialize_with = "one_or_several")]
    #[schemars(with = "OneOrSeveral")]
    listen: Vec<SocketAddr>,
    /// Plain HTTP on a trusted LAN, for firmware that is too old for TLS. Default: off.
    plain_http: Option<PlainHttp>,
    /// The networks of load balancers in front of `listen`, such as `["10.0.0.5/32"]`. A connection from there must begin
    /// with a PROXY header (version 1 or 2), whose address is the client's in logs, phone history and limits. From other
    /// networks, no header is read. Default: none.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    proxy_protocol: Vec<IpNet>,
    /// The folder that holds a folder for each constituency. It may be a symbolic link.
    #[serde(default = "default_constituencies")]
    constituencies: PathBuf,
    /// The state directory, for what provost itself keeps: certificates, the ACME account, uploads, phone history. Never
    /// served.
    #[serde(default = "default_state")]
    state: PathBuf,
    /// Where the server's certificate comes from: exactly one of `acme`, `files` and `local_ca`.
    certificate: CertificateSource,
    /// Trust bundles that policies may name, beside the built-in `polycom`: names with lists of files, such as
    /// `{"acme-corp": ["trust/root.pem"]}`. A file holds device CA certificates, CRLs or both, PEM or DER. A bundle of
    /// another vendor's CAs is an object with `files` and `family`. Default: none.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, BundleSchema>")]
    trust: BTreeMap<String, BundleFiles>,
    /// The constituency of phones that send no SNI. Default: they are refused.
    no_sni: Option<ConstituencyName>,
    /// The oldest TLS that a constituency accepts, unless its `constituency.json` has a `tls` of its own. Default: `modern`.
    #[serde(default)]
    tls: TlsLevel,
    /// The format of the access log and of the diagnostics. Default: `text`.
    #[serde(default)]
    log: LogFormat,
    /// What one peer, or all of them together, may take. Default: that of each limit.
    #[serde(default)]
    limits: Limits,
    /// The operators' listener: page, API, metrics. Default: none; in local mode `127.0.0.1:8444`.
    status: Option<StatusSettings>,
    /// A command that reports changes of the page's headlines. Default: none.
    notify: Option<NotifySettings>,
}

fn default_constituencies() -> PathBuf {
    "constituencies".into()
}

fn default_state() -> PathBuf {
    "/var/lib/provost".into()
}

impl Config {
    /// The configuration for a command: `--config`, else `provost.json` in the working directory, else local mode.
    ///
    /// # Errors
    /// If the file cannot be read, or is invalid.
    pub fn find(named: Option<&Path>) -> Result<Self, SettingsError> {
        match named {
            Some(file) => Self::read(file),
            None if Path::new(CONFIG_FILE).exists() => Self::read(Path::new(CONFIG_FILE)),
            None => Ok(Self::local()),
        }
    }

    /// Reads and checks `file`.
    ///
    /// # Errors
    /// If it cannot be read, or is invalid.
    pub fn read(file: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| SettingsError::of_file(file, format!("cannot be read: {error}")))?;
        Self::parse(file, &text)
    }

    /// Parses and checks the `text` of `file`.
    ///
    /// # Errors
    /// The first error, with its line and key.
    pub fn parse(file: &Path, text: &str) -> Result<Self, SettingsError> {
        let typed: ConfigFile = settings::read(file, text)?;
        settings::check_without_controls(file, text)?;
        let wrong = |key: &str, reason: String| SettingsError::of_key(file, text, key, reason);
        let base = file.parent().unwrap_or(Path::new(""));
        let domain = host::normalize(&typed.domain).filter(|domain| domain.contains('.')).ok_or_else(|| {
            wrong("domain", format!("invalid domain name {:?}: write one such as phones.example.com", typed.domain))
        })?;
        let listen = typed.listen;
        check_listen(&listen).map_err(|reason| wrong("listen", reason))?;
        if let Some(plain) = &typed.plain_http {
            plain.check(&listen).map_err(|reason| wrong("plain_http", reason))?;
        }
        let load_balancers =
            LoadBalancers::new(typed.proxy_protocol).map_err(|reason| wrong("proxy_protocol", reason))?;
        if matches!(&typed.certificate, CertificateSource::Files(pairs) if pairs.is_empty()) {
            return Err(wrong("certificate", "\"files\" is empty; name a certificate chain and its key".to_owned()));
        }
        if let CertificateSource::Acme(acme) = &typed.certificate
            && let Some(responder) = acme.dns.responder()
        {
            responder.check(&domain).map_err(|reason| wrong("certificate", reason))?;
        }
        typed.limits.check().map_err(|reason| wrong("limits", reason))?;
        typed.status.as_ref().map_or(Ok(()), StatusSettings::check).map_err(|reason| wrong("status", reason))?;
        typed.notify.as_ref().map_or(Ok(()), NotifySettings::check).map_err(|reason| wrong("notify", reason))?;
        if typed.trust.contains_key(POLYCOM) {
            return Err(wrong("trust", format!("\"{POLYCOM}\" is built in; give your bundle another name")));
        }
        let from_base = |path: PathBuf| base.join(path);
        Ok(Self {
            file: Some(file.to_owned()),
            domain: domain.into_owned(),
            listen,
            plain_http: typed.plain_http,
            load_balancers,
            constituencies: from_base(typed.constituencies),
            state: from_base(typed.state),
            certificate: match typed.certificate {
                CertificateSource::Files(pairs) => CertificateSource::Files(
                    pairs
                        .into_iter()
                        .map(|pair| CertificateFiles { chain: from_base(pair.chain), key: from_base(pair.key) })
                        .collect(),
                ),
                local @ CertificateSource::LocalCa(_) => local,
                CertificateSource::Acme(settings) => CertificateSource::Acme(Box::new(settings.relative_to(base))),
            },
            trust: typed.trust.into_iter().map(|(name, named)| (name, named.relative_to(base))).collect(),
            no_sni: typed.no_sni,
            tls: typed.tls,
            log: typed.log,
            limits: typed.limits,
            status: typed.status.map(|status| status.relative_to(base)),
            notify: typed.notify,
        })
    }

    /// The configuration of local mode, where everything works except the public domain.
    #[must_use]
    pub fn local() -> Self {
        Self {
            file: None,
            domain: LOCAL_DOMAIN.to_owned(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], LOCAL_PORT))],
            plain_http: None,
            load_balancers: LoadBalancers::default(),
            constituencies: default_constituencies(),
            state: "state".into(),
            certificate: CertificateSource::LocalCa(LocalCaSettings {}),
            trust: BTreeMap::new(),
            no_sni: None,
            tls: TlsLevel::Modern,
            log: LogFormat::Text,
            limits: Limits::default(),
            status: Some(StatusSettings::default()),
            notify: None,
        }
    }

    /// The HTTPS URL of the constituency `label`, with the port unless it is 443.
    #[must_use]
    pub fn url(&self, label: &str) -> String {
        const HTTPS: u16 = 443;
        let port = self.listen.iter().map(SocketAddr::port).find(|port| *port != 0).unwrap_or(HTTPS);
        let port = if port == HTTPS { String::new() } else { format!(":{port}") };
        format!("https://{label}.{}{port}/", self.domain)
    }

    /// The plain HTTP URL of the constituency `label`; `None` if plain HTTP is off.
    #[must_use]
    pub fn plain_http_url(&self, label: &str) -> Option<String> {
        const HTTP: u16 = 80;
        let plain = self.plain_http.as_ref()?;
        let port = plain.listen.iter().map(SocketAddr::port).find(|port| *port != 0).unwrap_or(HTTP);
        let port = if port == HTTP { String::new() } else { format!(":{port}") };
        Some(format!("http://{label}.{}{port}/", self.domain))
    }

    /// The default addresses to listen on.
    #[must_use]
    pub fn default_listen() -> Vec<SocketAddr> {
        vec![(Ipv4Addr::UNSPECIFIED, 443).into(), (Ipv6Addr::UNSPECIFIED, 443).into()]
    }

    /// Whether this is local mode, in which the local device CA is trusted.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.file.is_none()
    }

    /// All files and folders that the configuration names and the server reads, including the configuration file.
    #[must_use]
    pub fn files_named(&self) -> Vec<&Path> {
        let mut named: Vec<&Path> = self.file.iter().map(PathBuf::as_path).collect();
        match &self.certificate {
            CertificateSource::Files(pairs) => named.extend(pairs.iter().flat_map(|pair| [&*pair.chain, &*pair.key])),
            CertificateSource::Acme(settings) => named.extend(settings.files_named()),
            CertificateSource::LocalCa(_) => {}
        }
        named.extend(self.trust.values().flat_map(|bundle| &bundle.files).map(PathBuf::as_path));
        named.extend(self.status.iter().filter_map(|status| status.token_file.as_deref()));
        named.push(&self.constituencies);
        named
    }

    /// The names of all trust bundles.
    #[must_use]
    pub fn bundle_names(&self) -> Vec<String> {
        self.trust.keys().cloned().chain([POLYCOM.to_owned()]).collect()
    }

    /// Checks that neither of the state directory and `constituencies` contains the other: the server would serve the
    /// secrets of the state directory.
    ///
    /// # Errors
    /// If one contains the other, with symlinks resolved.
    pub fn check_apart(&self) -> Result<(), SettingsError> {
        let (state, constituencies) = (resolved(&self.state), resolved(&self.constituencies));
        if !state.starts_with(&constituencies) && !constituencies.starts_with(&state) {
            return Ok(());
        }
        let file = self.file.clone().unwrap_or_else(|| CONFIG_FILE.into());
        let reason = format!(
            "the state directory {} and the constituencies {} must not contain each other",
            state.display(),
            constituencies.display()
        );
        Err(SettingsError::of_file(&file, reason))
    }
}

fn check_listen(listen: &[SocketAddr]) -> Result<(), String> {
    if listen.is_empty() {
        return Err("is empty; name an address to listen on".to_owned());
    }
    let mut seen = BTreeSet::new();
    match listen.iter().find(|address| address.port() != 0 && !seen.insert(**address)) {
        Some(twice) => Err(format!("names {twice} twice")),
        None => Ok(()),
    }
}

/// `path` with the symlinks of its existing part resolved.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for existing in absolute.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            return real.iter().chain(absolute.strip_prefix(existing).unwrap_or(Path::new(""))).collect();
        }
    }
    absolute
}
