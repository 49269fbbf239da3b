//! What both servers serve: one constituency's folder, a factory's CA, server certificates, a list of phones.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{KeyPair, PKCS_RSA_SHA256};
use rustls::RootCertStore;
use serde_json::{Map, Value, json};

use super::pki::{Ca, Identity, SERVER_CA, ca_params, device_params, server_certificate};

pub const DOMAIN: &str = "phones.example.com";
/// The name whose TXT records prove the domain to a CA.
pub const CHALLENGE: &str = "_acme-challenge.phones.example.com.";
pub const HOST: &str = "ote.phones.example.com";
/// The phone of the load.
pub const MAC: &str = "00005e00530c";
pub const SMALL_FILE: &str = "/000000000000.cfg";
pub const SITE_FILE: &str = "/site.cfg";
pub const FIRMWARE: &str = "/3111-44500-001.sip.ld";
pub const FIRMWARE_BYTES: usize = 100 << 20;
const SMALL_FILE_BYTES: usize = 1800;
const SITE_FILE_BYTES: usize = 20_000;
/// The number of listed phones, like that of a large site.
const PHONES: u32 = 6000;
/// The first of them.
const FIRST: u64 = 0x0000_5e00_5000;

/// The kind of the server's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Rsa2048,
    P256,
}

/// Everything that is served. Dropped, it is removed.
pub struct Site {
    folder: tempfile::TempDir,
    issuing: Ca,
    /// The phone's certificate chain, with the CA that issued it, as phones send it.
    pub phone: Identity,
    pub small_file: Vec<u8>,
    pub server_roots: Arc<RootCertStore>,
}

impl Key {
    /// The base name of its files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa",
            Self::P256 => "ec",
        }
    }

    /// Its name in `provost.json`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa-2048",
            Self::P256 => "ecdsa-p256",
        }
    }
}

impl Site {
    pub fn write() -> Self {
        let folder = tempfile::Builder::new().prefix("provost-bench-").tempdir().unwrap();
        let rsa = || KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let root = Ca::root_with("Bench Factory Root CA", rsa());
        let issuing = root.below_with(ca_params("Bench Factory Issuing CA 1"), rsa());
        std::fs::write(folder.path().join("factory.pem"), root.pem() + &issuing.pem()).unwrap();
        for key in [Key::Rsa2048, Key::P256] {
            server_certificate(DOMAIN, key == Key::Rsa2048).write(folder.path(), key.name());
        }
        let group = ["genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048", "-out"];
        let made = Command::new("openssl").args(group).arg(folder.path().join("dh.pem")).status();
        assert!(made.expect("openssl").success(), "nginx has no DHE without a group");
        let mut server_roots = RootCertStore::empty();
        server_roots.add(SERVER_CA.certificate.der().clone()).unwrap();

        let served = folder.path().join("constituencies/ote");
        std::fs::create_dir_all(&served).unwrap();
        let small_file: Vec<u8> = b"<PHONE_CONFIG voIpProt.server.1.address=\"sip.example.com\"/>\n"
            .iter()
            .copied()
            .cycle()
            .take(SMALL_FILE_BYTES)
            .collect();
        std::fs::write(served.join(&SMALL_FILE[1..]), &small_file).unwrap();
        std::fs::write(served.join(&SITE_FILE[1..]), vec![b' '; SITE_FILE_BYTES]).unwrap();
        let firmware: Vec<u8> = (0..FIRMWARE_BYTES).map(|index| index.to_le_bytes()[index % 3]).collect();
        std::fs::write(served.join(&FIRMWARE[1..]), firmware).unwrap();
        let phones: Map<String, Value> = phones().map(|mac| (mac, "a phone".into())).collect();
        let policy = json!({ "trust": ["factory"], "phones": phones });
        std::fs::write(served.join("constituency.json"), policy.to_string()).unwrap();
        Self {
            phone: issuing.issue_rsa(&device_params(MAC)).with(&issuing),
            issuing,
            small_file,
            server_roots: Arc::new(server_roots),
            folder,
        }
    }

    /// The first phones of the list, `count` of them: each with its own certificate, and all with one key, because
    /// generating keys would take too long.
    pub fn phones(&self, count: usize) -> Vec<(String, Identity)> {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let issue = |mac: String| {
            let identity = self.issuing.issue_with(&device_params(&mac), &key).with(&self.issuing);
            (mac, identity)
        };
        phones().take(count).map(issue).collect()
    }

    /// Puts the server certificate of this key type into the state directory `state`, as if a CA had just issued it.
    pub fn store_certificate(&self, state: &str, key: Key) {
        let lineage = self.path(state).join("certs").join(key.kind());
        std::fs::create_dir_all(lineage.join("1")).unwrap();
        for (from, to) in [("pem", "chain.pem"), ("key", "key.pem")] {
            std::fs::copy(self.path(&format!("{}.{from}", key.name())), lineage.join("1").join(to)).unwrap();
        }
        let meta = json!({ "directory": "https://127.0.0.1:1/dir", "stored": 0 });
        std::fs::write(lineage.join("1/meta.json"), meta.to_string()).unwrap();
        std::os::unix::fs::symlink("1", lineage.join("current")).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The listed phones, including the one of the load.
pub fn phones() -> impl Iterator<Item = String> {
    (0..u64::from(PHONES)).map(|number| format!("{:012x}", FIRST + number))
}
