//! Legacy TLS: which clients are served at which setting and by which library; everything else equals rustls.

mod changes;
mod devices;
mod heavy_keys;
mod hostile;
mod matrix;
mod offers;
mod passwords;
mod probes;
mod refusal_hints;
mod tls_libraries;
mod traffic;

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::harness::pki::{FACTORY, Identity, SERVER_CA, device_params};
use crate::harness::site::{DOMAIN, Lines, Running, Site};
use crate::harness::tool::s_client;
use crate::harness::{VVX500, eventually};

/// The settings, each in a constituency of the same name.
const SETTINGS: [&str; 3] = ["modern", "compatible", "legacy"];

/// The offer of an old phone.
const OLD: &str = "-tls1 -cipher AES128-SHA:@SECLEVEL=0";

/// The phone VVX500 with an RSA key.
static PHONE: LazyLock<Identity> = LazyLock::new(|| FACTORY.issuing.issue_rsa(&device_params(VVX500)));

fn policy(setting: &str) -> Value {
    json!({ "trust": ["factory"], "phones": { VVX500: "vvx500" }, "tls": setting })
}

/// A constituency for each setting, and `open`, which is legacy without client authentication.
fn site_with_each_setting() -> Site {
    let site = Site::new();
    for setting in SETTINGS {
        site.constituency(setting, &policy(setting));
        site.file(&format!("{setting}/site.cfg"), format!("<{setting}/>"));
    }
    site.constituency("open", &json!({ "client_auth": "none", "tls": "legacy" }));
    site.file("open/site.cfg", "<open/>");
    std::fs::write(site.path("server-ca.pem"), SERVER_CA.pem()).unwrap();
    site
}

/// openssl's report of an attempt to get `site.cfg`.
struct Attempt {
    text: String,
}

impl Attempt {
    fn is_served(&self) -> bool {
        self.text.contains("HTTP/1.1 200 OK")
    }

    fn status(&self) -> Option<u16> {
        self.text.split_once("HTTP/1.1 ")?.1.get(..3)?.parse().ok()
    }

    /// Version and suite by their OpenSSL names.
    fn agreed(&self) -> Option<(&str, &str)> {
        let line = self.text.lines().find(|line| line.starts_with("New, "))?;
        let (_, suite) = line.split_once("Cipher is ")?;
        let version = self.text.lines().find_map(|line| line.trim().strip_prefix("Protocol  : "))?;
        Some((version, suite))
    }

    /// The received alert in openssl's words.
    fn alert(&self) -> Option<&str> {
        let line = self.text.lines().find(|line| line.contains(" alert "))?;
        // error:0A000410:SSL routines:ssl3_read_bytes:sslv3 alert handshake failure:...
        line.split(':').find_map(|part| Some(part.split_once("alert ")?.1))
    }
}

/// Requests `site.cfg` of `host` over a connection to `name` with openssl's `arguments`, which may be weaker than its
/// defaults; the server's certificate must verify.
fn attempt(site: &Site, server: &Running, name: &str, identity: Option<&Identity>, arguments: &str) -> Attempt {
    attempt_as(site, server, name, &format!("{name}.{DOMAIN}"), identity, arguments)
}

fn attempt_as(
    site: &Site,
    server: &Running,
    name: &str,
    host: &str,
    identity: Option<&Identity>,
    arguments: &str,
) -> Attempt {
    let (name, ca) = (format!("{name}.{DOMAIN}"), site.path("server-ca.pem"));
    let mut all = vec!["-CAfile", ca.to_str().unwrap(), "-verify_hostname", &name, "-verify_return_error"];
    if !arguments.contains("-noservername") {
        all.extend(["-servername", &name]);
    }
    let files = identity.map(|identity| identity.write(&site.path(""), "device"));
    if let Some((chain, key)) = &files {
        all.extend(["-cert", chain.to_str().unwrap(), "-key", key.to_str().unwrap()]);
        if identity.is_some_and(|identity| identity.chain.len() > 1) {
            all.extend(["-cert_chain", chain.to_str().unwrap()]);
        }
    }
    all.extend(arguments.split_whitespace());
    let request = format!("GET /site.cfg HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let ended = s_client(server.address(), &all, &request);
    Attempt { text: ended.stdout + &ended.stderr }
}

/// The arguments of an openssl that offers only `version` with the suites `ciphers`, however old.
fn only(version: &str, ciphers: &str) -> String {
    format!("-{version} -cipher {ciphers}:@SECLEVEL=0")
}

/// An openssl client with an open connection. Dropped, it is killed and waited for.
struct OpenConnection {
    child: Child,
    name: String,
    heard: Lines,
}

impl OpenConnection {
    /// Connects to the constituency `name`, over legacy TLS if `arguments` offer nothing else.
    fn start(site: &Site, server: &Running, name: &str, identity: &Identity, arguments: &str) -> Self {
        let (chain, key) = identity.write(&site.path(""), "talking");
        let name = format!("{name}.{DOMAIN}");
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &server.address().to_string(), "-servername", &name, "-nocommands"]);
        command.arg("-cert").arg(chain).arg("-key").arg(key).args(arguments.split(' '));
        command.env("OPENSSL_CONF", "/dev/null");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let heard = Lines::default();
        heard.follow(child.stdout.take().unwrap());
        // It prints this after it has read its files.
        eventually("the handshake", || heard.all().iter().any(|line| line.starts_with("New, ")).then_some(()));
        Self { child, name, heard }
    }

    /// The status of another request for `site.cfg`.
    fn ask(&mut self) -> u16 {
        let before = self.statuses().len();
        let request = format!("GET /site.cfg HTTP/1.1\r\nHost: {}\r\n\r\n", self.name);
        self.child.stdin.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
        eventually("an answer", || self.statuses().get(before).copied())
    }

    /// The status of each answer so far. A body may end without a line break.
    fn statuses(&self) -> Vec<u16> {
        self.heard.all().iter().filter_map(|line| line.split_once("HTTP/1.1 ")?.1.get(..3)?.parse().ok()).collect()
    }

    /// Waits until the server has closed.
    fn wait_for_close(&self) {
        eventually("the end", || self.heard.all().iter().any(|line| line.ends_with("closed")).then_some(()));
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
