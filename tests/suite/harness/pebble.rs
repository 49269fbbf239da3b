//! Pebble, a CA for tests, as a process; and a DNS server with nothing but TXT records, for it to ask.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use serde_json::{Value, json};

use super::eventually;
use super::pki::{SERVER_CA, named};
use super::site::Lines;
use super::tool;

/// How Pebble is to behave.
#[derive(Clone)]
pub struct Behaviour {
    /// How many requests in a hundred are told that their nonce is bad.
    pub rejected_nonces: u32,
    /// How many authorizations in a hundred are reused.
    pub reused_authorizations: u32,
    /// How many roots there are beside the first.
    pub alternate_roots: u32,
    /// Keys of external accounts, base64url; if there are any, one is required.
    pub external_accounts: BTreeMap<String, String>,
    /// For how long certificates are valid.
    pub validity_s: u64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            rejected_nonces: 5,
            reused_authorizations: 0,
            alternate_roots: 0,
            external_accounts: BTreeMap::new(),
            validity_s: 90 * 86_400,
        }
    }
}

/// Pebble, with its own DNS. Dropped, it is killed and waited for.
pub struct Pebble {
    folder: tempfile::TempDir,
    behaviour: Behaviour,
    child: Option<Child>,
    port: u16,
    management_port: u16,
    pub dns: TxtServer,
    /// The DNS that it asks.
    asks: String,
}

impl Pebble {
    /// Whether Pebble is installed here.
    pub fn is_here() -> bool {
        Command::new("pebble").arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    /// Starts it with a DNS of its own.
    pub fn start(behaviour: Behaviour) -> Self {
        let dns = TxtServer::start();
        let asks = dns.address.clone();
        Self::start_asking(behaviour, dns, asks)
    }

    /// Starts it to ask the name server at `address`.
    pub fn start_with_dns(behaviour: Behaviour, address: std::net::SocketAddr) -> Self {
        Self::start_asking(behaviour, TxtServer::start(), address.to_string())
    }

    fn start_asking(behaviour: Behaviour, dns: TxtServer, asks: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = named("localhost");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        SERVER_CA.issue(&params).write(folder.path(), "localhost");
        std::fs::write(folder.path().join("root.pem"), SERVER_CA.pem()).unwrap();
        let (port, management_port) = (free_port(), free_port());
        let mut pebble = Self { folder, behaviour, child: None, port, management_port, dns, asks };
        pebble.start_again();
        pebble
    }

    /// Starts it, with all that it knew forgotten.
    pub fn start_again(&mut self) {
        self.stop();
        let path = |name: &str| self.folder.path().join(name);
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{}", self.management_port),
            "certificate": path("localhost.pem"),
            "privateKey": path("localhost.key"),
            "httpPort": 5002, "tlsPort": 5001,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": !self.behaviour.external_accounts.is_empty(),
            "externalAccountMACKeys": self.behaviour.external_accounts,
            "certificateValidityPeriod": self.behaviour.validity_s,
        } });
        std::fs::write(path("pebble.json"), config.to_string()).unwrap();
        let mut child = Command::new("pebble")
            .arg("-config")
            .arg(path("pebble.json"))
            .args(["-strict", "-dnsserver", &self.asks])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", self.behaviour.rejected_nonces.to_string())
            .env("PEBBLE_AUTHZREUSE", self.behaviour.reused_authorizations.to_string())
            .env("PEBBLE_ALTERNATE_ROOTS", self.behaviour.alternate_roots.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Lines::default();
        lines.follow(child.stdout.take().unwrap());
        lines.follow(child.stderr.take().unwrap());
        eventually("Pebble to listen", || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("Pebble ended with {status}:\n{}", lines.all().join("\n"));
            }
            lines.all().iter().any(|line| line.contains("ACME directory available")).then_some(())
        });
        eventually("Pebble to accept", || std::net::TcpStream::connect(("127.0.0.1", self.port)).ok());
        self.child = Some(child);
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn directory(&self) -> String {
        format!("https://127.0.0.1:{}/dir", self.port)
    }

    /// The root of its own HTTPS certificate.
    pub fn root_file(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// What its directory says.
    pub fn links(&self) -> Value {
        serde_json::from_str(&self.get(&self.directory())).unwrap()
    }

    /// The PEM of one of the roots that it issues under.
    pub fn issuing_root(&self, index: u32) -> String {
        self.get(&format!("https://127.0.0.1:{}/roots/{index}", self.management_port))
    }

    fn get(&self, url: &str) -> String {
        let got = tool::run(Command::new("curl").args(["-sSf", "--cacert"]).arg(self.root_file()).arg(url));
        assert_eq!(got.code, 0, "{}", got.stderr);
        got.stdout
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A name server that has TXT records and nothing else. Dropped, it ends.
pub struct TxtServer {
    pub address: String,
    pub records: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TxtServer {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let records: Arc<Mutex<BTreeMap<String, Vec<String>>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (Arc::clone(&records), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut query = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut query) else { continue };
                if let Some(answer) = answer(&query[..length], &theirs.lock().unwrap()) {
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        Self { address, records, stop, thread: Some(thread) }
    }
}

impl Drop for TxtServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// RFC 1035 §4.1, as far as one question about TXT goes; anything else has no data.
fn answer(query: &[u8], records: &BTreeMap<String, Vec<String>>) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let is_txt = question.ends_with(&[0, 16, 0, 1]);
    let values = records.get(&labels.join(".")).filter(|_| is_txt).cloned().unwrap_or_default();
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([0x84, 0, 0, 1, 0, u8::try_from(values.len()).ok()?, 0, 0, 0, 0]);
    answer.extend(question);
    for value in values {
        let length = u8::try_from(value.len()).ok()?;
        answer.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0, 0, length + 1, length]);
        answer.extend(value.as_bytes());
    }
    Some(answer)
}
