//! The server's own certificates: reloaded when their files change, missing at first, or made by the local CA.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use crate::harness::pki::{FACTORY, Identity, server_certificate};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::socket::Socket;
use crate::harness::tls::{Client, alert};
use crate::harness::tool::provost;
use crate::harness::{VVX500, eventually};

/// A site with one ECDSA pair, `ec`.
fn site_with_one_pair() -> Site {
    let mut site = Site::with_ote();
    site.config["certificate"]["files"].as_array_mut().unwrap().remove(0);
    site
}

/// The certificate of a new handshake.
fn shown(server: &Running) -> CertificateDer<'static> {
    let connection = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    connection.tls().peer_certificates().unwrap()[0].clone().into_owned()
}

#[track_caller]
fn is_shown_soon(server: &Running, identity: &Identity) {
    eventually("the new certificate", || (shown(server) == identity.chain[0]).then_some(()));
}

/// Replaces the files of the pair `ec` by those of `identity`, each by a rename.
fn rename_over(site: &Site, identity: &Identity) {
    identity.write(&site.path(""), "new");
    for kind in ["pem", "key"] {
        std::fs::rename(site.path(&format!("new.{kind}")), site.path(&format!("ec.{kind}"))).unwrap();
    }
}

#[test]
fn new_certificate_is_used_without_closing_connections() {
    let site = site_with_one_pair();
    let server = site.start();
    let mut open = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    let by_rename = server_certificate(DOMAIN, false);
    rename_over(&site, &by_rename);
    is_shown_soon(&server, &by_rename);
    // Rewritten in place, with another key type.
    let in_place = server_certificate(DOMAIN, true);
    in_place.write(&site.path(""), "ec");
    is_shown_soon(&server, &in_place);
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
}

#[test]
fn certificate_unreadable_at_first_is_retried_until_loaded() {
    let site = site_with_one_pair();
    let server = site.start();
    server.limit_descriptors(0);
    let new = server_certificate(DOMAIN, false);
    rename_over(&site, &new);
    let cannot = "the last valid pair stays in use";
    let said = server.says(cannot);
    assert!(said.contains("Too many open files"), "{said}");
    server.limit_descriptors(1024);
    is_shown_soon(&server, &new);
    let times = server.stderr().iter().filter(|line| line.contains(cannot)).count();
    assert!(times <= 2, "once for each of the two new files, and not at each retry: {times}");
}

#[test]
fn certificate_behind_a_symlink_is_reloaded_on_a_switch() {
    let mut site = site_with_one_pair();
    let (one, two) = (server_certificate(DOMAIN, false), server_certificate(DOMAIN, false));
    for (name, identity) in [("one", &one), ("two", &two)] {
        std::fs::create_dir(site.path(name)).unwrap();
        identity.write(&site.path(name), "pair");
    }
    std::os::unix::fs::symlink("one", site.path("live")).unwrap();
    site.config["certificate"] = json!({ "files": [{ "chain": "live/pair.pem", "key": "live/pair.key" }] });
    let server = site.start();
    assert_eq!(shown(&server), one.chain[0]);
    std::os::unix::fs::symlink("two", site.path("link")).unwrap();
    std::fs::rename(site.path("link"), site.path("live")).unwrap();
    is_shown_soon(&server, &two);
}

#[test]
fn same_size_rewrites_in_one_second_end_with_the_last() {
    let site = site_with_one_pair();
    let server = site.start();
    let mut candidates: Vec<Identity> = Vec::new();
    while candidates.len() < 3 {
        let candidate = server_certificate(DOMAIN, false);
        if candidates.first().is_none_or(|first| first.chain[0].len() == candidate.chain[0].len()) {
            candidates.push(candidate);
        }
    }
    // The first is loaded; the next two are written within the same second, the second right after a check.
    for candidate in &candidates {
        candidate.write(&site.path(""), "ec");
        is_shown_soon(&server, candidate);
    }
}

#[test]
fn mismatched_pair_keeps_the_last_good_certificate() {
    let site = site_with_one_pair();
    let server = site.start();
    let old = shown(&server);
    let new = server_certificate(DOMAIN, false);
    let (chain, key) = new.write(&site.path(""), "new");
    std::fs::rename(chain, site.path("ec.pem")).unwrap();
    server.says("the private key does not match the first certificate; the last valid pair stays in use");
    assert_eq!(shown(&server), old);
    std::fs::rename(key, site.path("ec.key")).unwrap();
    is_shown_soon(&server, &new);
    for (broken, said) in [("", "holds no private key in PEM"), ("-----BEGIN PRIVATE KEY-----\nAA", "ec.key")] {
        std::fs::write(site.path("ec.key"), broken).unwrap();
        server.says(said);
        assert_eq!(shown(&server), new.chain[0]);
    }
    std::fs::remove_file(site.path("ec.key")).unwrap();
    server.says("No such file or directory");
    assert_eq!(shown(&server), new.chain[0]);
}

#[test]
fn one_broken_pair_does_not_affect_the_other() {
    let mut site = Site::with_ote();
    std::fs::remove_file(site.path("rsa.key")).unwrap();
    let server = site.start();
    server.says("rsa.key");
    let phone = server.client("ote", &FACTORY.device(VVX500));
    assert_eq!(phone.get("/site.cfg").unwrap().status, 200);
    server.kill();
    // A CA's certificate is first, as in a wrong file.
    site.config["certificate"]["files"][0] = json!({ "chain": "factory.pem", "key": "ec.key" });
    let server = site.start();
    server.says("the first certificate is a CA's; the server's own certificate must come first");
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn missing_certificate_rejects_handshakes_until_it_is_created() {
    let site = site_with_one_pair();
    let identity = server_certificate(DOMAIN, false);
    for kind in ["pem", "key"] {
        std::fs::remove_file(site.path(&format!("ec.{kind}"))).unwrap();
    }
    let server = site.start();
    server.says("ec.pem");
    let phone = server.client("ote", &FACTORY.device(VVX500));
    for _ in 0..2 {
        let mut tcp = Socket::connect(server.address()).unwrap();
        tcp.write_all(&phone.hello()).unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).unwrap();
        // Fatal, internal_error: the client has done nothing wrong.
        assert_eq!(answer, [21, 3, 3, 0, 2, 2, 80]);
    }
    assert_eq!(server.reason("there is no server certificate yet")["constituency"], "ote");
    let unknown = server.client("nobody", &FACTORY.device(VVX500)).get("/").unwrap_err();
    assert_eq!(alert(&unknown), Some(rustls::AlertDescription::UnrecognisedName));
    rename_over(&site, &identity);
    let healed = eventually("the server to recover", || phone.get("/site.cfg").ok());
    assert_eq!(healed.status, 200);
}

#[test]
fn certificate_for_another_domain_is_logged_at_start() {
    let site = site_with_one_pair();
    rename_over(&site, &server_certificate("other.example.org", false));
    let server = site.start();
    server.says("ec.pem does not cover *.phones.example.com (it is for *.other.example.org, other.example.org)");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn local_ca_is_created_once_with_a_private_key_file() {
    let mut site = Site::with_ote();
    site.config["certificate"] = json!({ "local_ca": {} });
    let mut issuers = Vec::new();
    for _ in 0..2 {
        let server = site.start();
        let folder = site.path("state/server-ca");
        assert_eq!((mode(&folder), mode(&folder.join("ca.key"))), (0o700, 0o600));
        assert_eq!(mode(&site.path("state")), 0o700);
        let ca = CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap();
        let phone = trusting(server.client("ote", &FACTORY.device(VVX500)), &ca, &FACTORY.device(VVX500));
        assert_eq!(phone.get("/site.cfg").unwrap().text(), "<site/>");
        issuers.push(ca);
        server.kill();
    }
    assert_eq!(issuers[0], issuers[1], "a restart must not create another CA: clients trust the first");
    let names: Vec<_> =
        std::fs::read_dir(site.path("state/server-ca")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "temporary files are left: {names:?}");
}

/// The same client, which trusts only `ca` for the server's certificate.
fn trusting(mut client: Client, ca: &CertificateDer<'static>, identity: &Identity) -> Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    *client.config() = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain.clone(), identity.key())
        .unwrap();
    client
}

/// The local CA signs for any user of this machine, so a public server must not trust it.
#[test]
fn configured_server_never_trusts_the_local_device_ca() {
    let mut site = Site::with_ote();
    let local = json!({ "local_ca": {} });
    let files = site.config["certificate"].clone();
    // The device CA of local mode, as left by a demo in the same folder.
    let ca = crate::harness::pki::Ca::root("provost local device CA");
    std::fs::create_dir_all(site.path("state/local")).unwrap();
    std::fs::write(site.path("state/local/ca.pem"), ca.pem()).unwrap();
    let device = ca.issue(&crate::harness::pki::device_params(VVX500));
    for certificate in [local, files] {
        site.config["certificate"] = certificate;
        let server = site.start();
        let mut client = server.client("ote", &device);
        if site.config["certificate"].get("local_ca").is_some() {
            let ca = CertificateDer::from_pem_file(site.path("state/server-ca/ca.pem")).unwrap();
            client = trusting(client, &ca, &device);
        }
        let error = client.get("/site.cfg").unwrap_err();
        assert_eq!(alert(&error), Some(rustls::AlertDescription::UnknownCA));
        server.reason("issuer \"CN=provost local device CA\" is not trusted here");
        device.write(&site.path(""), "phone");
        let ended = provost(&site.path(""), &["trust", "verify", "--constituency", "ote", "phone.pem"]);
        assert_eq!(ended.code, 1, "{}", ended.stdout);
    }
}

/// The names in the certificate that the client gets.
fn names_shown(client: &Client) -> Vec<String> {
    let connection = client.connect().unwrap();
    let leaf = connection.tls().peer_certificates().unwrap()[0].clone().into_owned();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.iter();
    names.map(|name| name.to_string().trim_start_matches("DNSName(").trim_end_matches(')').to_owned()).collect()
}

fn exact_policy(aliases: &[&str]) -> serde_json::Value {
    json!({ "client_auth": "none", "certificate_names": "exact", "aliases": aliases })
}

#[test]
fn exact_certificate_file_is_served_only_to_its_constituency() {
    let mut site = Site::new();
    site.constituency("old", &exact_policy(&["older"]));
    site.constituency("home", &json!({ "client_auth": "none" }));
    let server = site.start();
    let line = server.says("no certificate file is for exactly");
    for part in
        ["old: ", "old.phones.example.com, older.phones.example.com", "get the wildcard certificate", "add a pair for"]
    {
        assert!(line.contains(part), "{line}");
    }
    let client = |server: &Running, label: &str| Client::new(server.address(), Some(&format!("{label}.{DOMAIN}")));
    let wildcard = [format!("*.{DOMAIN}"), DOMAIN.to_owned()];
    assert_eq!(names_shown(&client(&server, "old")), wildcard);
    let config = site.write_config();
    let check = |site: &Site| provost(&site.path(""), &["check", "--config", config.to_str().unwrap()]);
    let checked = check(&site);
    assert!(checked.code == 1 && checked.stdout.contains("no certificate file is for exactly"), "{checked:?}");
    server.kill();

    let mut params = rcgen::CertificateParams::new(vec![format!("old.{DOMAIN}"), format!("older.{DOMAIN}")]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    crate::harness::pki::SERVER_CA.issue_rsa(&params).write(&site.path(""), "old");
    let files = site.config["certificate"]["files"].as_array_mut().unwrap();
    files.insert(0, json!({ "chain": "old.pem", "key": "old.key" }));
    let server = site.start();
    let exact = [format!("old.{DOMAIN}"), format!("older.{DOMAIN}")];
    assert_eq!(names_shown(&client(&server, "old")), exact);
    assert_eq!(names_shown(&client(&server, "older")), exact);
    assert_eq!(names_shown(&client(&server, "home")), wildcard);
    site.write_config();
    let checked = check(&site);
    assert_eq!(checked.code, 0, "{checked:?}");
    // The setting is changed and changed back while the server runs.
    site.constituency("old", &json!({ "client_auth": "none" }));
    eventually("the wildcard", || (names_shown(&client(&server, "old")) == wildcard).then_some(()));
    site.constituency("old", &exact_policy(&[]));
    eventually("the exact name", || (names_shown(&client(&server, "old")) == exact).then_some(()));
}

#[test]
fn local_ca_issues_exact_certificates_on_policy_change() {
    let mut site = Site::new();
    site.config["certificate"] = json!({ "local_ca": {} });
    site.constituency("old", &exact_policy(&[]));
    site.constituency("home", &json!({ "client_auth": "none" }));
    let server = site.start();
    let ca = CertificateDer::from_pem_file(site.path("state/server-ca/ca.pem")).unwrap();
    let client = |label: &str| {
        let client = Client::new(server.address(), Some(&format!("{label}.{DOMAIN}")));
        trusting(client, &ca, &FACTORY.device(VVX500))
    };
    assert_eq!(names_shown(&client("old")), [format!("old.{DOMAIN}")]);
    assert_eq!(names_shown(&client("home")), [format!("*.{DOMAIN}"), DOMAIN.to_owned()]);
    site.constituency("old", &exact_policy(&["older"]));
    let both = [format!("old.{DOMAIN}"), format!("older.{DOMAIN}")];
    eventually("both names", || (names_shown(&client("old")) == both).then_some(()));
    site.constituency("home", &exact_policy(&[]));
    eventually("another exact name", || (names_shown(&client("home")) == [format!("home.{DOMAIN}")]).then_some(()));
}
