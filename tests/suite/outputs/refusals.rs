//! Refusals of each kind, so that each occurs as a label.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::sync::LazyLock;
use std::time::SystemTime;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{AGENT, DENIED, OLD_TLS, PINNED, old_tls, old_tls_with};
use crate::harness::operators::Operators;
use crate::harness::pki::{DAY, FACTORY, Identity, OTHER_FACTORY, ca_params, device_params, named, valid};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::{Client, Connection};
use crate::harness::tool::run;
use crate::harness::{VVX500, VVX550, eventually};
use crate::revocation::{issuing, pem_of};

/// A phone with only a self-signed certificate.
pub static PINNED_PHONE: LazyLock<Identity> = LazyLock::new(|| Identity::self_signed(&device_params(PINNED)));

/// The revoked serial number.
const REVOKED: u64 = 5;

/// The policy of a constituency that trusts the bundle `trust`.
fn trusting(trust: &str) -> Value {
    json!({ "trust": [trust], "phones": { VVX500: "", VVX550: "" } })
}

/// Prepares the site: bundles with CRLs, and constituencies that will change.
pub fn prepare(site: &mut Site) {
    let outdated = FACTORY.issuing.crl(&[], SystemTime::now() - DAY);
    for (name, list) in [("listed", issuing(&[REVOKED])), ("outdated", outdated)] {
        std::fs::write(site.path(&format!("{name}.pem")), pem_of(&list)).unwrap();
        site.config["trust"][name] = json!([format!("{name}.pem"), "factory.pem"]);
        site.constituency(name, &trusting(name));
    }
    site.config["trust"]["empty"] = json!([]);
    site.constituency("unusable", &trusting("empty"));
    for name in ["changing", "leaving"] {
        site.constituency(name, &trusting("factory"));
        site.file(&format!("{name}/site.cfg"), "<site/>");
    }
}

/// The phone VVX550 whose certificate expired yesterday.
pub fn expired() -> Identity {
    let mut params = device_params(VVX550);
    valid(&mut params, SystemTime::now() - 800 * DAY, SystemTime::now() - DAY);
    FACTORY.issuing.issue_rsa(&params)
}

/// Sends requests and handshakes that are refused, one for each reason that a client can cause.
pub fn provoke(site: &Site, server: &Running) {
    requests(site, server);
    certificates(site, server);
    handshakes(site, server);
    changes(site, server);
    crate::digest::guess_until_refused(server);
}

fn requests(site: &Site, server: &Running) {
    site.file(&format!("ote/{VVX550}-user.cfg"), "<theirs/>");
    let phone = server.client("ote", &FACTORY.device(VVX500));
    let gap = "Content-Range: bytes 70-71/72\r\n";
    let any = server.client("any", &FACTORY.device(VVX500));
    let denied = server.client("ote", &FACTORY.device(DENIED));
    let mut kitchen = CertificateParams::default();
    kitchen.distinguished_name = named("kitchen phone");
    let nameless = server.client("ote", &FACTORY.issuing.issue(&kitchen));
    let large = vec![0; 200_000];
    let other_host = phone.clone().host(&format!("any.{DOMAIN}"));
    let with_body: [(&Client, &str, &str, &[u8], u16); 4] = [
        (&phone, "/site.cfg", "", b"x", 403),
        (&phone, "/00005e00530c-gap.log", gap, b"xy", 409),
        (&phone, "/00005e00530c-large.log", "", &large, 413),
        (&any, "/00005e00530c-app.log", "", b"x", 403),
    ];
    for (client, path, headers, body, status) in with_body {
        assert_eq!(client.request("PUT", path, headers, body).unwrap().status, status, "PUT {path}");
    }
    let refused: [(&Client, &str, &str, &str, u16); 7] = [
        (&phone, "GET", "/../site.cfg", "", 400),
        (&phone, "DELETE", "/site.cfg", "", 405),
        (&phone, "GET", "/00005e0053c7-user.cfg", "", 403),
        (&denied, "GET", "/site.cfg", "", 403),
        (&nameless, "GET", "/site.cfg", "", 403),
        (&phone, "GET", "/constituency.json", AGENT, 404),
        (&other_host, "GET", "/site.cfg", "", 421),
    ];
    for (client, method, path, headers, status) in refused {
        assert_eq!(client.request(method, path, headers, b"").unwrap().status, status, "{method} {path}");
    }
}

/// Invalid certificates, each for another reason.
fn certificates(site: &Site, server: &Running) {
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = device_params(VVX550);
        change(&mut params);
        FACTORY.issuing.issue(&params)
    };
    let by_openssl = |arguments: &[&str]| {
        let all = [arguments, &["-addext", "basicConstraints=CA:FALSE"]].concat();
        FACTORY.issuing.issue_by_openssl(&format!("/CN={VVX550}"), &all)
    };
    let numbered = with(&|it| it.serial_number = Some(REVOKED.into()));
    let server_only = with(&|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let early = with(&|it| valid(it, SystemTime::now() + DAY, SystemTime::now() + 800 * DAY));
    let invalid = [
        ("ote", expired()),
        ("ote", early),
        ("ote", server_only),
        ("ote", OTHER_FACTORY.device(VVX550)),
        ("ote", Identity::self_signed(&device_params(VVX550))),
        ("ote", FACTORY.device(VVX550).forged()),
        ("ote", FACTORY.issuing.issue(&ca_params(VVX550))),
        ("ote", by_openssl(&["-newkey", "rsa:2048", "-sha1"])),
        ("listed", numbered),
        ("outdated", FACTORY.device(VVX550)),
    ];
    for (name, identity) in invalid {
        server.client(name, &identity).get("/site.cfg").unwrap_err();
    }
    Client::new(server.address(), Some(&format!("ote.{DOMAIN}"))).get("/site.cfg").unwrap_err();
    // OpenSSL can use keys that rustls's client cannot.
    for key in [&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp224r1"][..], &["-newkey", "rsa:1024"]] {
        let (chain, key) = by_openssl(key).write(&site.path(""), "weak");
        assert!(!old_tls_with(server, "old", OLD_TLS, &chain, &key).contains("200 OK"));
    }
}

fn handshakes(site: &Site, server: &Running) {
    assert!(!old_tls(site, server, "ote", OLD_TLS).contains("200 OK"));
    for name in ["unknown", "unusable"] {
        server.client(name, &FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
    }
    // curl does not know the CA of the server's certificate, and sends an alert.
    let connect = format!("ote.{DOMAIN}:443:{}", server.address());
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--cacert", "factory.pem", "--connect-to", &connect]);
    assert_ne!(run(curl.arg(format!("https://ote.{DOMAIN}/")).current_dir(site.path(""))).code, 0);
    let mut half = Socket::connect(server.address()).unwrap();
    half.write_all(b"\x16\x03\x01\x02").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let _ = half.read_to_end(&mut Vec::new());
    // Plain HTTP is not allowed from this address.
    let _ = Socket::connect(server.addresses[1]).unwrap().read_to_end(&mut Vec::new());
}

/// Changes while connections are open.
fn changes(site: &Site, server: &Running) {
    let phone = FACTORY.device(VVX500);
    let open = |name: &str, identity: &Identity| {
        let mut connection = server.client(name, identity).connect().unwrap();
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200, "{name}");
        connection
    };
    let mut pinned = open("ote", &PINNED_PHONE);
    let mut changing = open("changing", &phone);
    let mut leaving = open("leaving", &phone);
    let mut stricter = trusting("factory");
    stricter["expired_device_certificates"] = "accept".into();
    site.constituency("changing", &stricter);
    std::fs::rename(site.served("leaving"), site.path("left")).unwrap();
    let text = std::fs::read_to_string(site.served("ote/constituency.json")).unwrap();
    let mut policy: Value = serde_json::from_str(&text).unwrap();
    policy["phones"][PINNED] = "pinned no more".into();
    site.constituency("ote", &policy);
    for (connection, status) in [(&mut pinned, 403), (&mut changing, 403), (&mut leaving, 421)] {
        eventually("the change", || (connection.get("/site.cfg").unwrap().status == status).then_some(()));
    }
}

/// A second server with its open connections. Dropped, it is killed.
pub struct Other {
    pub server: Running,
    pub operators: Operators,
    site: Site,
    open: Vec<Socket>,
    upload: Option<Connection>,
}

impl Other {
    fn start(mut site: Site) -> Self {
        site.config["status"] = json!({ "listen": "127.0.0.1:0" });
        let server = site.start();
        let operators = Operators::of(&server);
        Self { server, operators, site, open: Vec::new(), upload: None }
    }

    /// Its connection limits are reached; then it shuts down and waits for an upload.
    pub fn crowded() -> Self {
        let mut site = Site::with_ote();
        site.config["limits"] = json!({
            "connections_per_address": 1, "handshake_s": 600, "drain_s": 600,
            "stall_s": 3600, "min_bytes_per_s": 0, "free_space_bytes": 0,
        });
        site.config["proxy_protocol"] = json!(["127.0.0.3/32"]);
        let mut other = Self::start(site);
        let phone = other.server.client("ote", &FACTORY.device(VVX500));
        other.upload = Some(crate::uploads::begin_put(&phone, crate::uploads::LOG, "", 2, b"1"));
        eventually("the upload", || (crate::uploads::incomplete_uploads(&other.site) == 1).then_some(()));
        // The upload is the only connection of its address and stays. At another address, a connection without a
        // ClientHello is evicted.
        for (address, reason) in [([127, 0, 0, 1], "no_place"), ([127, 0, 0, 2], "evicted")] {
            eventually(reason, || {
                other.open.push(Socket::connect_from(address.into(), other.server.address()).unwrap());
                other.has_refused(reason).then_some(())
            });
        }
        // A load balancer that sends no PROXY header.
        eventually("proxy_header", || {
            let mut socket = Socket::connect_from([127, 0, 0, 3].into(), other.server.address()).unwrap();
            let _ = socket.write_all(b"GET ");
            other.has_refused("proxy_header").then_some(())
        });
        other.server.signal(Signal::TERM);
        eventually("stopping", || other.has_refused("stopping").then_some(()));
        other
    }

    /// It has no certificate and cannot get one.
    pub fn without_certificate() -> Self {
        let mut site = Site::with_ote();
        crate::status_metrics::cannot_renew(&mut site);
        let other = Self::start(site);
        other.server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
        other
    }

    /// Its disk has less free space than its reserve.
    pub fn full() -> Self {
        let mut site = Site::with_ote();
        site.config["limits"]["free_space_bytes"] = (1_u64 << 60).into();
        let other = Self::start(site);
        let phone = other.server.client("ote", &FACTORY.device(VVX500));
        assert_eq!(phone.put(crate::uploads::LOG, "", b"a log").unwrap().status, 507);
        other
    }

    fn has_refused(&self, reason: &str) -> bool {
        self.operators.get("/metrics").body.contains(&format!("reason=\"{reason}\"}}"))
    }
}
