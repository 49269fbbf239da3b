//! Pebble, a test CA, as a process.
//!
//! The installed one may be old: Debian 12's supports neither renewal information (RFC 9773) nor profiles. `tests/run`
//! downloads one that does into the target directory.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bind::{free_address, program};
use super::pki::{Identity, SERVER_CA, named};
use super::site::Lines;
use super::tool;
use super::{eventually, not_run};

/// Pebble's settings.
#[derive(Clone)]
pub struct Behavior {
    /// The percentage of requests that are rejected with `badNonce`.
    pub rejected_nonces: u32,
    /// The percentage of authorizations that are reused.
    pub reused_authorizations: u32,
    /// How many roots there are in addition to the first.
    pub alternate_roots: u32,
    /// Keys of external accounts, base64url; if there are any, one is required.
    pub external_accounts: BTreeMap<String, String>,
    /// The validity of certificates.
    pub validity_s: u64,
    /// Profiles with their validity in seconds; only the [downloaded](Pebble::fetched) program supports and requires
    /// them.
    pub profiles: BTreeMap<String, u64>,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            rejected_nonces: 5,
            reused_authorizations: 0,
            alternate_roots: 0,
            external_accounts: BTreeMap::new(),
            validity_s: 90 * 86_400,
            profiles: BTreeMap::new(),
        }
    }
}

/// Pebble. Dropped, it is killed and waited for.
pub struct Pebble {
    folder: tempfile::TempDir,
    program: PathBuf,
    behavior: Behavior,
    child: Option<Child>,
    port: u16,
    management_port: u16,
    /// The name server that it queries.
    asks: SocketAddr,
    log: Lines,
}

impl Pebble {
    /// Whether Pebble is installed; if not, `test` is reported as NOT RUN.
    pub fn is_here(test: &str) -> bool {
        let is_here = program("pebble").is_some();
        if !is_here {
            not_run(test, "pebble is not installed");
        }
        is_here
    }

    /// The program that `tests/run` has downloaded; without it, `test` is reported as NOT RUN.
    pub fn fetched(test: &str) -> Option<PathBuf> {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("pebble").join("usr/bin/pebble");
        if !file.is_file() {
            not_run(
                test,
                "the installed Pebble supports neither ARI nor profiles, and tests/run has downloaded no newer one",
            );
            return None;
        }
        Some(file)
    }

    /// Starts it with the name server at `address`.
    pub fn start(behavior: Behavior, address: SocketAddr) -> Self {
        Self::start_program(program("pebble").unwrap(), behavior, address)
    }

    /// Starts this `program` with the name server at `address`.
    pub fn start_program(program: PathBuf, behavior: Behavior, address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        identity().write(folder.path(), "localhost");
        std::fs::write(folder.path().join("root.pem"), SERVER_CA.pem()).unwrap();
        let log = Lines::default();
        let (port, management_port) = (0, 0);
        let mut pebble = Self { folder, program, behavior, child: None, port, management_port, asks: address, log };
        // Another process may take the port before Pebble binds it.
        for _ in 0..5 {
            (pebble.port, pebble.management_port) = (free_address().port(), free_address().port());
            if pebble.launch() {
                return pebble;
            }
        }
        panic!("Pebble found no ports:\n{}", pebble.log());
    }

    /// Starts it again; its accounts and orders are lost.
    pub fn start_again(&mut self) {
        self.stop();
        assert!(self.launch(), "Pebble did not start again:\n{}", self.log());
    }

    /// Whether it listens on its port.
    fn launch(&mut self) -> bool {
        let mut child = Command::new(&self.program)
            .arg("-config")
            .arg(self.write_config())
            .args(["-strict", "-dnsserver", &self.asks.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", self.behavior.rejected_nonces.to_string())
            // Pebble reuses one percent more than configured.
            .env("PEBBLE_AUTHZREUSE", self.behavior.reused_authorizations.to_string())
            .env("PEBBLE_ALTERNATE_ROOTS", self.behavior.alternate_roots.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.log.follow(child.stdout.take().unwrap());
        self.log.follow(child.stderr.take().unwrap());
        // Dropped from here on, it is killed.
        let child = self.child.insert(child);
        let accepts = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        eventually("Pebble to listen", || {
            let is_up = accepts(self.port) && accepts(self.management_port);
            let has_ended = child.try_wait().unwrap().is_some();
            (is_up || has_ended).then_some(!has_ended)
        })
    }

    fn write_config(&self) -> PathBuf {
        let path = |name: &str| self.folder.path().join(name);
        let profile = |validity: &u64| json!({ "description": "of a test", "validityPeriod": validity });
        let profiles: BTreeMap<&String, Value> =
            self.behavior.profiles.iter().map(|(name, validity)| (name, profile(validity))).collect();
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.management_port),
            "certificate": path("localhost.pem"),
            "privateKey": path("localhost.key"),
            "httpPort": 5002, "tlsPort": 5001,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": !self.behavior.external_accounts.is_empty(),
            "externalAccountMACKeys": self.behavior.external_accounts,
            "certificateValidityPeriod": self.behavior.validity_s,
            "profiles": profiles,
        } });
        std::fs::write(path("pebble.json"), config.to_string()).unwrap();
        path("pebble.json")
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.address())
    }

    /// The root of its own HTTPS certificate.
    pub fn root_file(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// Its directory object.
    pub fn links(&self) -> Value {
        serde_json::from_str(&self.fetch(&self.directory(), &[])).unwrap()
    }

    /// One of the roots of its certificates, in PEM.
    pub fn issuing_root(&self, index: u32) -> String {
        self.manage(&format!("roots/{index}"), &[])
    }

    /// The common name of one of the roots of its certificates.
    pub fn issuing_root_name(&self, index: u32) -> String {
        let pem = self.issuing_root(index);
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, root) = X509Certificate::from_der(&pem.contents).unwrap();
        root.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
    }

    /// Sets the renewal window of `certificate` (PEM, RFC 9773 §4.2).
    pub fn set_renewal_window(&self, certificate: &str, start: OffsetDateTime, end: OffsetDateTime) {
        let window = json!({ "start": start.format(&Rfc3339).unwrap(), "end": end.format(&Rfc3339).unwrap() });
        let answer = json!({ "suggestedWindow": window }).to_string();
        let request = json!({ "certificate": certificate, "ariResponse": answer }).to_string();
        self.manage("set-renewal-info/", &["--data-binary", &request]);
    }

    /// Deactivates the account at `url` as its owner may (RFC 8555 §7.3.6), with its key in PEM. Pebble must reject no
    /// nonces.
    pub fn deactivate(&self, url: &str, key: &[u8]) {
        let key = PrivatePkcs8KeyDer::from_pem_slice(key).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der()).unwrap();
        let head = self.fetch(self.links()["newNonce"].as_str().unwrap(), &["--head"]);
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("replay-nonce").then(|| value.trim().to_owned())
        };
        let nonce = head.lines().find_map(header).unwrap();
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = encoded(&json!({ "alg": "ES256", "kid": url, "nonce": nonce, "url": url }));
        let payload = encoded(&json!({ "status": "deactivated" }));
        let signature = key.sign(&SystemRandom::new(), format!("{header}.{payload}").as_bytes()).unwrap();
        let request = json!({
            "protected": header, "payload": payload, "signature": URL_SAFE_NO_PAD.encode(signature.as_ref()),
        });
        let options = ["--header", "Content-Type: application/jose+json", "--data-binary", &request.to_string()];
        let account: Value = serde_json::from_str(&self.fetch(url, &options)).unwrap();
        assert_eq!(account["status"], "deactivated");
    }

    /// Requests `path` of its management interface.
    fn manage(&self, path: &str, arguments: &[&str]) -> String {
        self.fetch(&format!("https://127.0.0.1:{}/{path}", self.management_port), arguments)
    }

    fn fetch(&self, url: &str, arguments: &[&str]) -> String {
        let mut command = Command::new("curl");
        command.args(["-sSf", "--max-time", "20", "--cacert"]).arg(self.root_file()).args(arguments).arg(url);
        let got = tool::run(&mut command);
        assert_eq!(got.code, 0, "{}", got.stderr);
        got.stdout
    }

    /// The status of the certificate with this hexadecimal serial number: `Valid` or `Revoked`.
    pub fn verdict(&self, serial: &str) -> String {
        let status: Value =
            serde_json::from_str(&self.manage(&format!("cert-status-by-serial/{serial}"), &[])).unwrap();
        status["Status"].as_str().unwrap().to_owned()
    }

    /// Its log since the first start.
    pub fn log(&self) -> String {
        self.log.all().join("\n")
    }

    /// How many of its log lines contain `text`.
    pub fn logged(&self, text: &str) -> usize {
        self.log.all().iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The TLS certificate of a CA on this machine.
pub fn identity() -> Identity {
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name = named("localhost");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    SERVER_CA.issue(&params)
}
