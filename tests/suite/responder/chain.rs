//! The whole chain, as on the internet: a signed root and a signed parent zone (NSEC3) in BIND, an insecure delegation to
//! provost's responder, a strict validating resolver, and a CA that asks it. In a network of the test's own, since all of
//! them need port 53.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hickory_net::proto::rr::RecordType;
use serde_json::json;

use crate::harness::bind::{self, Bind, BindConfig, dig, program};
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::unbound::Unbound;
use crate::harness::{VVX500, eventually, namespace, not_run, tool};

pub const ROOT: &str = "198.41.0.4";
pub const REGISTRAR: &str = "192.0.2.53";
pub const SERVER: &str = "192.0.2.10";
/// Another machine.
pub const OTHER: &str = "192.0.2.99";
/// Where the resolver is.
pub const RESOLVER: &str = "127.0.0.1:53";
/// The two records of the simplest case.
pub const TWO_RECORDS: &str = "*.phones A 192.0.2.10\n_acme-challenge.phones NS ns.phones.example.com.\n";

/// The DNS above provost. Dropped, all of it ends.
pub struct Above {
    _root: Bind,
    _registrar: Bind,
    pub resolver: Unbound,
    _folder: tempfile::TempDir,
}

/// Whether this is inside a network of the test's own, with all programs.
pub fn is_inside(test: &str) -> bool {
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return false;
    }
    if program("unbound").is_none() {
        not_run(test, "unbound is not installed");
        return false;
    }
    namespace::is_inside(test, &[ROOT, REGISTRAR, SERVER, OTHER])
}

impl Above {
    /// The root, which delegates `example.com`, and the registrar's server with these `records` in that zone.
    pub fn start(records: &str) -> Self {
        Self::start_with(records, &[])
    }

    /// The same, with a resolver that has these `options`, lines of its configuration.
    pub fn start_with(records: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let zone = format!(
            "$TTL 300\n@ SOA ns1.example.com. hostmaster.example.com. 1 3600 600 86400 60\n@ NS ns1.example.com.\n\
             ns1 A {REGISTRAR}\n{records}\n"
        );
        let (signed, ds) = sign(folder.path(), "example.com", &zone);
        let root = format!(
            "$TTL 300\n. SOA . . 1 1 1 1 1\n. NS a.root-servers.net.\na.root-servers.net. A {ROOT}\n\
             example.com. NS ns1.example.com.\nns1.example.com. A {REGISTRAR}\n{ds}\n"
        );
        let (signed_root, _) = sign(folder.path(), ".", &root);
        let registrar = BindConfig::new().primary_from("example.com", &signed, "");
        let registrar = registrar.start_at(format!("{REGISTRAR}:53").parse().unwrap());
        let root =
            BindConfig::new().primary_from(".", &signed_root, "").start_at(format!("{ROOT}:53").parse().unwrap());
        let anchor = folder.path().join("anchor");
        let keys = signed_root.lines().filter(|line| line.contains("DNSKEY\t257") || line.contains("DNSKEY 257"));
        let keys: String = keys.map(|line| format!("{line}\n")).collect();
        assert!(keys.contains("257"), "{signed_root}");
        std::fs::write(&anchor, keys).unwrap();
        let resolver = Unbound::start(RESOLVER.parse().unwrap(), ROOT, &anchor, options);
        let soa = dig(resolver.address, &["example.com", "SOA", "+dnssec"]);
        assert!(soa.contains(" ad") && soa.contains("RRSIG"), "the parent is not validated: {soa}\n{}", resolver.log());
        Self { _root: root, _registrar: registrar, resolver, _folder: folder }
    }
}

/// Signs a zone with NSEC3. Returns it, one record a line, and the DS records for its parent.
fn sign(folder: &Path, zone: &str, text: &str) -> (String, String) {
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(bind::program(program).unwrap());
        let ended = tool::run(command.args(args).current_dir(folder));
        assert_eq!(ended.code, 0, "{program}: {ended:?}");
    };
    run("dnssec-keygen", &["-q", "-a", "ECDSAP256SHA256", "-f", "KSK", zone]);
    run("dnssec-keygen", &["-q", "-a", "ECDSAP256SHA256", zone]);
    let file = if zone == "." { "root" } else { zone };
    std::fs::write(folder.join(file), text).unwrap();
    run("dnssec-signzone", &["-S", "-3", "-", "-O", "full", "-o", zone, "-f", "signed", file]);
    let ds = std::fs::read_to_string(folder.join(format!("dsset-{zone}")))
        .or_else(|_| std::fs::read_to_string(folder.join(format!("dsset-{zone}."))));
    (std::fs::read_to_string(folder.join("signed")).unwrap(), ds.unwrap_or_default())
}

/// A site on this machine that obtains its certificates from `pebble`, with nothing in `dns` but what a user writes.
pub fn site(pebble: &Pebble) -> Site {
    let mut site = Site::with_ote();
    site.config["certificate"] = json!({ "acme": {
        "directory": pebble.directory(), "directory_root": pebble.root_file(), "terms_of_service_agreed": true,
        "keys": ["ecdsa-p256"], "dns": { "responder": { "listen": [format!("{SERVER}:53")] } },
    } });
    site.config["listen"] = json!([format!("{SERVER}:443")]);
    site
}

/// `provost` with the configuration of `site`.
pub fn provost(site: &Site, args: &[&str]) -> tool::Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
    tool::run(command.args(args).arg("--config").arg(site.write_config()))
}

/// Waits until every certificate is there.
#[track_caller]
pub fn obtains(site: &Site, count: usize) {
    eventually("the certificates", || {
        let status = provost(site, &["certificate", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
        let all = status["certificates"].as_array().unwrap();
        (all.len() == count && all.iter().all(|it| it["held"].is_object() && it["step"].is_null())).then_some(())
    });
}

#[test]
fn a_wildcard_is_obtained_below_a_signed_parent() {
    if !is_inside("responder::chain::a_wildcard_is_obtained_below_a_signed_parent") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let exact = "ote.phones A 192.0.2.10\n_acme-challenge.ote.phones CNAME ote._acme-challenge.phones.example.com.\n";
    let above = Above::start(&format!("{TWO_RECORDS}{exact}"));
    namespace::resolve_through("127.0.0.1", folder.path());
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    site.constituency("ote", &json!({ "client_auth": "none", "certificate_names": "exact" }));
    let server = site.start();
    server.says("DNS responder on 192.0.2.10:53 (UDP and TCP)");
    obtains(&site, 2);
    assert!(
        above.resolver.log().contains("notice") && !above.resolver.log().contains("SERVFAIL"),
        "{}",
        above.resolver.log()
    );
    let kept = std::fs::read_to_string(site.path("state/responder.json")).unwrap();
    assert!(kept.contains("\"zone\":\"_acme-challenge.phones.example.com\""), "{kept}");
    let journal = std::fs::read_to_string(site.path("state/dns-journal.json")).unwrap_or_default();
    assert!(!journal.contains("values"), "{journal}");
    let checked = provost(&site, &["check", "--live"]);
    for host in ["phones.example.com", "ote.phones.example.com"] {
        let line =
            format!("_acme-challenge.{host}: the zone _acme-challenge.phones.example.com is delegated to this server");
        assert!(checked.stdout.contains(&line), "{checked:?}");
    }
    assert!(!checked.stdout.contains("error: dns"), "{checked:?}");
    // Two orders in a row: nothing of the first is left in the resolver's cache.
    let renewed = provost(&site, &["certificate", "renew", "--now"]);
    assert_eq!((renewed.code, renewed.stdout.matches("a new certificate is in use").count()), (0, 2), "{renewed:?}");
    // A rehearsal's challenges are published by the running server.
    let (directory, root) = (pebble.directory(), pebble.root_file());
    let rehearse = ["certificate", "rehearse", "--directory", &directory, "--directory-root", root.to_str().unwrap()];
    let rehearsed = provost(&site, &rehearse);
    assert!(rehearsed.code == 0 && rehearsed.stdout.contains("dry run successful: 2 certificates"), "{rehearsed:?}");
    phones_are_served_while_the_port_is_busy(&site, server);
    let alone = provost(&site, &rehearse);
    assert!(alone.code == 1 && alone.stderr.contains("no server is running"), "{alone:?}");
}

#[test]
fn records_entered_after_the_start_renew_at_once() {
    if !is_inside("responder::chain::records_entered_after_the_start_renew_at_once") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let above = Above::start("*.phones A 192.0.2.10\n");
    namespace::resolve_through("127.0.0.1", folder.path());
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    let server = site.start();
    // The second attempt would come after a minute, and the later ones after hours.
    server.says("next attempt");
    drop(above);
    let _above = Above::start(TWO_RECORDS);
    server.says("_acme-challenge.phones.example.com is delegated to this server now");
    obtains(&site, 1);
}

/// A server that cannot listen on port 53 serves phones, and says that renewal waits for an operator.
fn phones_are_served_while_the_port_is_busy(site: &Site, server: Running) {
    server.kill();
    let other = std::net::UdpSocket::bind(format!("{SERVER}:53")).unwrap();
    let server = site.start();
    server.says("the DNS responder cannot listen on 192.0.2.10:53");
    let fetched = tool::run(
        Command::new("curl")
            .args(["-sk", "--resolve", "ote.phones.example.com:443:192.0.2.10"])
            .args(["https://ote.phones.example.com/site.cfg"]),
    );
    assert_eq!(fetched.stdout, "<site/>", "{fetched:?}");
    let status = provost(site, &["certificate", "status"]);
    assert!(status.stdout.contains("warning: ") && status.stdout.contains("(action required)"), "{status:?}");
    drop(other);
    server.says("DNS responder on 192.0.2.10:53");
    eventually("a valid condition", || {
        provost(site, &["certificate", "status"]).stdout.contains("condition:    is valid").then_some(())
    });
}

/// Sends queries of strangers for as long as this lives: good, refused, malformed and random ones, each by UDP.
struct Flood(Arc<AtomicBool>, Vec<std::thread::JoinHandle<usize>>);

impl Flood {
    fn start(lanes: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let lane = |seed: usize| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(format!("{SERVER}:53")).unwrap();
                socket.set_nonblocking(true).unwrap();
                let good = super::query("_acme-challenge.phones.example.com.", RecordType::TXT);
                let mut sent = 0_usize;
                while !is_over.load(Ordering::Relaxed) {
                    let mut query = good.clone();
                    let at = (sent * 7 + seed) % query.len();
                    query[at] ^= u8::try_from(sent % 256).unwrap();
                    // A full buffer loses it, as the network may.
                    sent += usize::from(socket.send(&query).is_ok());
                    let _ = socket.recv(&mut [0; 1500]);
                }
                sent
            })
        };
        let lanes = (0..lanes).map(lane).collect();
        Self(is_over, lanes)
    }

    /// Ends it. Returns how many queries were sent.
    fn end(self) -> usize {
        self.0.store(true, Ordering::Relaxed);
        self.1.into_iter().map(|lane| lane.join().unwrap()).sum()
    }
}

#[test]
fn phones_boot_while_the_responder_is_flooded() {
    if !is_inside("responder::chain::phones_boot_while_the_responder_is_flooded") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let above = Above::start(TWO_RECORDS);
    namespace::resolve_through("127.0.0.1", folder.path());
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    let site = site(&pebble);
    site.file("ote/000000000000.cfg", "<APPLICATION CONFIG_FILES='site.cfg'/>");
    site.file("ote/site.cfg", "<site a='1'/>");
    FACTORY.device(VVX500).write(&site.path("."), VVX500);
    std::fs::write(site.path("issued.pem"), pebble.issuing_root(0)).unwrap();
    let server = site.start();
    obtains(&site, 1);
    let flood = Flood::start(2);
    let (certificate, key) = (format!("{VVX500}.pem"), format!("{VVX500}.key"));
    let mut args = vec!["phone", "--url", "https://ote.phones.example.com/", "--mac", VVX500, "--ca", "issued.pem"];
    args.extend(["--certificate", &certificate, "--key", &key]);
    for _ in 0..5 {
        let booted = tool::provost(&site.path("."), &args);
        let verdict = booted.stdout.lines().last().unwrap_or_default();
        assert!(booted.code == 0 && verdict.starts_with("provisioned ("), "{booted:?}");
    }
    let sent = flood.end();
    assert!(sent > 1000, "only {sent} queries were sent");
    // It serves on, and so does the CA's way to it.
    let renewed = provost(&site, &["certificate", "renew", "--now"]);
    assert_eq!(renewed.code, 0, "{renewed:?}");
    drop(server);
}
