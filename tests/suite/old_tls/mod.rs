//! The old lane: which clients are served at which setting, by whom, and that nothing else is different there.

mod devices;
mod hostile;
mod lanes;
mod matrix;
mod probes;
mod traffic;

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::harness::VVX500;
use crate::harness::pki::{FACTORY, Identity, SERVER_CA, device_params};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tool::s_client;

/// The settings, each a constituency of its own name.
const SETTINGS: [&str; 3] = ["modern", "compatible", "legacy"];

/// The phone VVX500 with an RSA key, as the factory makes them.
static PHONE: LazyLock<Identity> = LazyLock::new(|| FACTORY.issuing.issue_rsa(&device_params(VVX500)));

fn policy(setting: &str) -> Value {
    json!({ "trust": ["factory"], "phones": { VVX500: "vvx500" }, "tls": setting })
}

/// A constituency for each setting, and `open`, which is legacy and asks nobody who they are.
fn shelf() -> Site {
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

/// What openssl says of one attempt to get `site.cfg`.
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

    /// Version and suite, as openssl names them.
    fn agreed(&self) -> Option<(&str, &str)> {
        let line = self.text.lines().find(|line| line.starts_with("New, "))?;
        let (_, suite) = line.split_once("Cipher is ")?;
        let version = self.text.lines().find_map(|line| line.trim().strip_prefix("Protocol  : "))?;
        Some((version, suite))
    }

    /// The alert that came, as openssl words it.
    fn alert(&self) -> Option<&str> {
        let line = self.text.lines().find(|line| line.contains(" alert "))?;
        // error:0A000410:SSL routines:ssl3_read_bytes:sslv3 alert handshake failure:...
        line.split(':').find_map(|part| Some(part.split_once("alert ")?.1))
    }
}

/// Asks `host` for `site.cfg` over a connection to `name`, as openssl with `arguments`, which may be older than anything
/// that it would do by itself; the server's certificate must verify.
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

/// The arguments of an openssl that speaks `version` with the suites `ciphers` alone, whatever their age.
fn only(version: &str, ciphers: &str) -> String {
    format!("-{version} -cipher {ciphers}:@SECLEVEL=0")
}
