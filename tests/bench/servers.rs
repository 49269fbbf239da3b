//! The two servers as processes, each on the same processor, with the best configuration that we know.

use std::fmt::Write;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cases::TlsLevel;
use super::machine;
use super::site::{CHALLENGE, DOMAIN, HOST, Key, Site, phones};

/// The state directory of the server with a responder.
const RESPONDER_STATE: &str = "state-responder";
/// The timeout of a server's start.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Nginx,
    Provost,
}

/// A running server. Dropped, it is stopped and waited for.
pub struct Server {
    child: Child,
    pub program: Program,
    pub address: SocketAddr,
}

impl Program {
    /// In the order of the table's columns.
    pub const BOTH: [Self; 2] = [Self::Nginx, Self::Provost];

    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Provost => "provost",
        }
    }
}

impl Server {
    /// Starts a server of `site` with the certificate of this key type, and waits until it listens.
    pub fn start(program: Program, site: &Site, key: Key, level: TlsLevel) -> Self {
        // A port that was just free is most likely still free.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
        let command = match program {
            Program::Nginx => nginx(site, key, level, address),
            Program::Provost => {
                let key = key.name();
                let files = json!({ "files": [{ "chain": format!("{key}.pem"), "key": format!("{key}.key") }] });
                provost(site, &format!("state-{key}"), &files, level, address)
            }
        };
        Self::spawn(program, site, &command, address)
    }

    /// Starts provost with its DNS responder and a stored certificate, and waits until it listens. Returns the
    /// responder's address too.
    pub fn start_with_responder(site: &Site) -> (Self, SocketAddr) {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
        site.store_certificate(RESPONDER_STATE, Key::P256);
        let acme = json!({ "acme": {
            // The stored certificate is not due.
            "directory": "https://127.0.0.1:1/dir",
            "terms_of_service_agreed": true,
            "keys": [Key::P256.kind()],
            "dns": { "responder": { "listen": ["127.0.0.1:0"] }, "zone": CHALLENGE, "resolvers": ["127.0.0.1:1"] },
        } });
        let command = provost(site, RESPONDER_STATE, &acme, TlsLevel::Modern, address);
        let server = Self::spawn(Program::Provost, site, &command, address);
        let responder = server.logged_address(site, "DNS responder on ");
        (server, responder)
    }

    /// Starts provost with an operators' listener, and waits until it listens. Returns that listener's address too.
    pub fn start_with_operators(site: &Site) -> (Self, SocketAddr) {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
        let files = json!({ "files": [{ "chain": "ec.pem", "key": "ec.key" }] });
        let command = provost(site, "state-scale", &files, TlsLevel::Modern, address);
        let file = site.path("provost.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        config["status"] = json!({ "listen": "127.0.0.1:0" });
        std::fs::write(&file, config.to_string()).unwrap();
        let server = Self::spawn(Program::Provost, site, &command, address);
        let operators = server.logged_address(site, "status page at http://");
        (server, operators)
    }

    /// The address behind `words` in the log.
    fn logged_address(&self, site: &Site, words: &str) -> SocketAddr {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let log = std::fs::read_to_string(site.path(&format!("{}.errors", self.program.name()))).unwrap();
            let text = log.split_once(words).map(|(_, rest)| rest.split([' ', '/']).next().unwrap_or_default());
            if let Some(address) = text.and_then(|text| text.parse().ok()) {
                return address;
            }
            assert!(Instant::now() < deadline, "no {words:?} in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn spawn(program: Program, site: &Site, command: &[String], address: SocketAddr) -> Self {
        let name = program.name();
        let errors = site.path(&format!("{name}.errors"));
        let child = pinned(command)
            .current_dir(site.folder())
            .stdin(Stdio::null())
            .stdout(File::create(site.path(&format!("{name}.output"))).unwrap())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let mut server = Self { child, program, address };
        let deadline = Instant::now() + TIMEOUT;
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait().unwrap();
            let is_hopeful = ended.is_none() && Instant::now() < deadline;
            let said = || std::fs::read_to_string(&errors).unwrap_or_default();
            assert!(is_hopeful, "{name} does not listen:\n{}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only a master that is asked to stop also stops its workers.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// `command` on the servers' processor.
fn pinned(command: &[String]) -> Command {
    let mut words: Vec<&str> = command.iter().map(String::as_str).collect();
    if machine::has_two_processors() {
        words.splice(..0, ["taskset", "-c", machine::SERVER_CPU]);
    }
    let mut pinned = Command::new(words[0]);
    pinned.args(&words[1..]);
    pinned
}

fn provost(site: &Site, state: &str, certificate: &Value, level: TlsLevel, address: SocketAddr) -> Vec<String> {
    let config = json!({
        "domain": DOMAIN,
        "listen": [address],
        "constituencies": "constituencies",
        "state": state,
        "certificate": certificate,
        "trust": { "factory": ["factory.pem"] },
        "log": "text",
        "tls": match level { TlsLevel::Modern => "modern", TlsLevel::Legacy => "legacy" },
        // All load comes from one address, and idle connections must stay open.
        "limits": { "connections_per_address": 0, "connections_per_phone": 0, "idle_s": 600, "drain_s": 1, "free_space_bytes": 0 },
    });
    let file = site.path("provost.json");
    std::fs::write(&file, config.to_string()).unwrap();
    [env!("CARGO_BIN_EXE_provost"), "serve", "--config", file.to_str().unwrap()].map(str::to_owned).to_vec()
}

fn nginx(site: &Site, key: Key, level: TlsLevel, address: SocketAddr) -> Vec<String> {
    let file = site.path("nginx.conf");
    std::fs::write(&file, nginx_conf(site, key, level, address)).unwrap();
    let folder = site.folder().to_str().unwrap().to_owned();
    ["nginx".to_owned(), "-p".to_owned(), folder, "-e".to_owned(), "stderr".to_owned(), "-c".to_owned()]
        .into_iter()
        .chain([file.to_str().unwrap().to_owned()])
        .collect()
}

/// The phones of the site, as lines of a `map`.
fn nginx_list() -> String {
    let mut list = String::new();
    for mac in phones() {
        let _ = writeln!(list, "    \"O=Polycom Inc.,CN={}\" 1;", mac.to_ascii_uppercase());
    }
    list
}

/// nginx as an expert would configure it: the same suites and group first, session IDs and tickets, a buffered log, and
/// the same list of phones checked on every request. `open_file_cache` stays off, because changed files must be served
/// at once.
fn nginx_conf(site: &Site, key: Key, level: TlsLevel, address: SocketAddr) -> String {
    let key = key.name();
    let (old_versions, old_suites) = match level {
        TlsLevel::Modern => ("", ""),
        TlsLevel::Legacy => {
            ("TLSv1 TLSv1.1", ":DHE-RSA-AES128-GCM-SHA256:AES128-GCM-SHA256:AES128-SHA:@SECLEVEL=0; ssl_dhparam dh.pem")
        }
    };
    let folder = site.folder().display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let allowed = nginx_list();
    format!(
        r#"
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid nginx.pid;
events {{ worker_connections 32768; multi_accept on; }}
http {{
  client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi; uwsgi_temp_path {folder}/nginx-uwsgi; scgi_temp_path {folder}/nginx-scgi;
  types {{ text/xml cfg xml; application/octet-stream ld; }}
  log_format phones '$remote_addr $server_name "$ssl_client_s_dn" [$time_iso8601] "$request" $status '
                    '$body_bytes_sent $request_time "$http_user_agent" $ssl_protocol/$ssl_cipher';
  access_log nginx.access phones buffer=64k flush=1s;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_timeout 600s;
  keepalive_requests 100000000;
  server_tokens off;
  ssl_protocols {old_versions} TLSv1.2 TLSv1.3;
  ssl_prefer_server_ciphers on;
  ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384{old_suites};
  ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256;
  ssl_ecdh_curve X25519:prime256v1:secp384r1;
  ssl_session_cache shared:phones:50m;
  ssl_session_tickets on;
  ssl_session_timeout 6h;
  map_hash_max_size 32768;
  map_hash_bucket_size 128;
  map $ssl_client_s_dn $allowed {{
    default 0;
{allowed}  }}
  server {{
    listen {address} ssl backlog=4096;
    server_name {HOST};
    root constituencies/ote;
    ssl_certificate {key}.pem;
    ssl_certificate_key {key}.key;
    ssl_verify_client on;
    ssl_verify_depth 2;
    ssl_client_certificate factory.pem;
    if ($allowed = 0) {{ return 403; }}
    location / {{ }}
    location = /constituency.json {{ return 404; }}
  }}
}}
"#
    )
}
