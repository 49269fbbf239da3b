//! `provost print phone-config`: a valid XML parameter file with the requested settings.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use rcgen::CertificateParams;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use crate::harness::pki::{Ca, Identity, SERVER_CA, named, pem};
use crate::harness::site::{DOMAIN, Site};
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{VVX500, namespace};

/// A site whose certificate is from a CA unknown to the machine.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["listen"] = json!(["127.0.0.1:443"]);
    site.write_config();
    std::fs::write(site.path("root.pem"), SERVER_CA.pem()).unwrap();
    site
}

fn print(site: &Site, more: &[&str]) -> Ended {
    provost(&site.path("."), &[&["print", "phone-config", "--constituency", "ote"], more].concat())
}

/// All parameters of a file that a phone reads, at any element.
pub fn parameters(text: &str) -> BTreeMap<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("printed.cfg");
    std::fs::write(&file, text).unwrap();
    let xmllint = run(Command::new("xmllint").args(["--noout", "--nonet"]).arg(&file));
    assert_eq!((xmllint.code, xmllint.stderr.as_str()), (0, ""), "{text}");
    let document = roxmltree::Document::parse(text).unwrap();
    let attributes = document.descendants().flat_map(|element| element.attributes());
    let all: Vec<_> = attributes.map(|it| (it.name().to_owned(), it.value().to_owned())).collect();
    let map: BTreeMap<_, _> = all.iter().cloned().collect();
    assert_eq!(map.len(), all.len(), "none twice: {text}");
    map
}

#[track_caller]
fn printed(site: &Site, more: &[&str]) -> BTreeMap<String, String> {
    let ended = print(site, &[&["--ca", "root.pem"], more].concat());
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    parameters(&ended.stdout)
}

#[test]
fn printed_phone_config_sets_server_root_time_and_polling() {
    let site = site();
    let parameters = printed(&site, &["--ntp", "ntp.example.com", "--polling", "02:00-04:30"]);
    let expected = [
        ("device.set", "1"),
        ("device.prov.serverType", "HTTPS"),
        ("device.prov.serverName", "ote.phones.example.com"),
        ("device.dhcp.bootSrvUseOpt", "Static"),
        ("device.sntp.serverName", "ntp.example.com"),
        ("tcpIpApp.sntp.address", "ntp.example.com"),
        ("tcpIpApp.sntp.address.overrideDHCP", "1"),
        ("device.sec.TLS.profile.caCertList1", "All"),
        ("prov.polling.enabled", "1"),
        ("prov.polling.mode", "random"),
        ("prov.polling.period", "86400"),
        ("prov.polling.time", "02:00"),
        ("prov.polling.timeRandomEnd", "04:30"),
        ("log.render.file.upload.append", "1"),
        ("log.render.file.upload.append.sizeLimit", "512"),
        ("log.render.file.upload.append.limitMode", "delete"),
    ];
    for (name, value) in expected {
        assert_eq!(parameters.get(name).map(String::as_str), Some(value), "{name}");
    }
    let root = CertificateDer::from_pem_slice(parameters["device.sec.TLS.customCaCert1"].as_bytes()).unwrap();
    assert_eq!(root, *SERVER_CA.certificate.der());
    let of_the_device = parameters.keys().filter(|name| name.starts_with("device.") && *name != "device.set");
    let values: Vec<&String> = of_the_device.filter(|name| name.strip_suffix(".set").is_none()).collect();
    assert_eq!(values.len(), 6, "{values:?}");
    for value in &values {
        assert_eq!(parameters.get(&format!("{value}.set")).map(String::as_str), Some("1"), "{value}");
    }
    assert_eq!(parameters.len(), expected.len() + 1 + values.len(), "nothing else: {parameters:?}");
}

#[test]
fn no_name_check_is_printed_with_a_warning() {
    let site = site();
    let name = "device.sec.TLS.prov.strictCertCommonNameValidation";
    assert!(!printed(&site, &[]).contains_key(name));
    let ended = print(&site, &["--ca", "root.pem", "--no-name-check"]);
    assert_eq!(ended.code, 0);
    let parameters = parameters(&ended.stdout);
    assert_eq!((parameters[name].as_str(), parameters[&format!("{name}.set")].as_str()), ("0", "1"));
    for text in [&ended.stderr, &ended.stdout] {
        let text = text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("warning:") && text.contains("can pose as this server"), "{text}");
        assert!(text.contains("\"certificate_names\": \"exact\""), "{text}");
    }
}

#[test]
fn root_is_derived_from_the_certificate_in_use() {
    let mut site = site();
    let unknown = print(&site, &[]);
    assert_eq!((unknown.code, unknown.stdout.as_str()), (2, ""));
    assert!(
        unknown.stderr.contains("the root \"CN=Test Server CA\"") && unknown.stderr.contains("--ca"),
        "{unknown:?}"
    );
    let root = |site: &Site| {
        let ended = print(site, &[]);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
        CertificateDer::from_pem_slice(parameters(&ended.stdout)["device.sec.TLS.customCaCert1"].as_bytes()).unwrap()
    };

    // A chain that includes its root, which is also the root of the other pair.
    let chain = std::fs::read_to_string(site.path("rsa.pem")).unwrap();
    std::fs::write(site.path("rsa.pem"), format!("{chain}{}", SERVER_CA.pem())).unwrap();
    assert_eq!(root(&site), *SERVER_CA.certificate.der());

    // A chain whose root the machine trusts.
    std::fs::write(site.path("rsa.pem"), &chain).unwrap();
    let known = run(Command::new(env!("CARGO_BIN_EXE_provost"))
        .args(["print", "phone-config", "--constituency", "ote"])
        .env("SSL_CERT_FILE", site.path("root.pem"))
        .current_dir(site.path(".")));
    assert_eq!((known.code, known.stderr.as_str()), (0, ""));
    assert!(known.stdout.contains(pem("CERTIFICATE", SERVER_CA.certificate.der()).lines().nth(1).unwrap()));

    // The local CA, once it exists.
    site.config["certificate"] = json!({ "local_ca": {} });
    site.config["listen"] = json!(["127.0.0.1:0"]);
    site.write_config();
    let early = print(&site, &[]);
    assert!(early.code == 2 && early.stderr.contains("makes it at its first start"), "{early:?}");
    drop(site.start());
    assert_eq!(root(&site), CertificateDer::from_pem_file(site.path("state/server-ca/ca.pem")).unwrap());

    // Let's Encrypt's roots, before the first certificate.
    let dns = json!({ "primary": "127.0.0.1", "tsig_key_file": "absent.key", "zone": "example.com" });
    site.config["certificate"] = json!({ "acme": { "terms_of_service_agreed": true, "dns": dns } });
    site.config["state"] = json!("another");
    site.write_config();
    let (_, parsed) = x509_parser::parse_x509_certificate(&root(&site))
        .map(|(rest, it)| (rest.len(), it.subject().to_string()))
        .unwrap();
    assert!(parsed.contains("ISRG Root X1"), "{parsed}");
    site.config["certificate"]["acme"]["directory"] = json!("https://ca.example.net/directory");
    site.write_config();
    let other = print(&site, &[]);
    assert!(other.code == 2 && other.stderr.contains("--ca"), "{other:?}");
}

#[test]
fn root_file_must_hold_exactly_one_certificate() {
    let site = site();
    let refused = |content: &str| {
        std::fs::write(site.path("root.pem"), content).unwrap();
        let ended = print(&site, &["--ca", "root.pem"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{content}");
        assert!(ended.stderr.contains("root.pem"), "{}", ended.stderr);
    };
    refused("");
    refused("text");
    refused(&(SERVER_CA.pem() + &SERVER_CA.pem()));
    refused(&pem("CERTIFICATE", b"no certificate"));
    std::fs::remove_file(site.path("root.pem")).unwrap();
    let absent = print(&site, &["--ca", "root.pem"]);
    assert!(absent.code == 2 && absent.stderr.contains("root.pem"), "{absent:?}");
}

#[test]
fn printed_log_size_stays_below_the_upload_limit() {
    let site = site();
    let name = "log.render.file.upload.append.sizeLimit";
    let policy = |uploads| json!({ "trust": ["factory"], "phones": { VVX500: "" }, "uploads": uploads });
    site.constituency("ote", &policy(json!({ "max_file_bytes": 100_000 })));
    assert_eq!(printed(&site, &[])[name], "97");
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": "any" }));
    let names: Vec<String> = printed(&site, &[]).into_keys().collect();
    assert!(!names.iter().any(|name| name.starts_with("log.")), "no certificate is used: {names:?}");
}

#[test]
fn printed_server_name_contains_a_nonstandard_port() {
    let mut site = site();
    site.constituency("xn--bcher-kva--x", &json!({ "trust": ["factory"], "phones": {} }));
    site.config["listen"] = json!(["127.0.0.1:8443"]);
    site.write_config();
    let args = ["print", "phone-config", "--constituency", "xn--bcher-kva--x", "--ca", "root.pem"];
    let ended = provost(&site.path("."), &args);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let name = &parameters(&ended.stdout)["device.prov.serverName"];
    assert_eq!(name, "https://xn--bcher-kva--x.phones.example.com:8443/");
    for wrong in [["--polling", "5:00-1:00"], ["--ntp", "a b"], ["--constituency", "Ote"]] {
        assert_eq!(print(&site, &wrong).code, 2, "{wrong:?}");
    }
}

/// The root certificates for the phone, in order.
fn roots(parameters: &BTreeMap<String, String>) -> Vec<CertificateDer<'static>> {
    let numbered = (1..).map_while(|number| parameters.get(&format!("device.sec.TLS.customCaCert{number}")));
    let all: Vec<_> = numbered.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
    let total = parameters.keys().filter(|name| name.starts_with("device.sec.TLS.customCaCert")).count();
    assert_eq!(total, 2 * all.len(), "each with its .set: {parameters:?}");
    all
}

/// A server certificate of the site issued by `ca`.
fn below(ca: &Ca) -> Identity {
    let mut params = CertificateParams::new(vec![format!("*.{DOMAIN}"), DOMAIN.to_owned()]).unwrap();
    params.distinguished_name = named(DOMAIN);
    ca.issue(&params)
}

#[test]
fn phone_config_contains_the_root_of_every_pair() {
    let site = site();
    let other = Ca::root("Other Server CA");
    below(&other).with(&other).write(&site.path("."), "ec");
    let unknown = print(&site, &[]);
    assert!(unknown.code == 2 && unknown.stderr.contains("the root \"CN=Test Server CA\""), "{unknown:?}");
    let found = roots(&printed(&site, &[]));
    assert_eq!(found, [SERVER_CA.certificate.der().clone(), other.certificate.der().clone()], "RSA first");
    // Several roots may be named.
    below(&other).write(&site.path("."), "ec");
    std::fs::write(site.path("other.pem"), other.pem()).unwrap();
    let third = Ca::root("A Third CA");
    std::fs::write(site.path("third.pem"), third.pem()).unwrap();
    let parameters = printed(&site, &["--ca", "other.pem", "--ca", "third.pem"]);
    assert_eq!(roots(&parameters).len(), 3);
    assert_eq!(parameters["device.sec.TLS.profile.caCertList1"], "All");
}

/// Stores `identity` as a certificate that the server obtained from the CA of `directory`.
fn store(site: &Site, lineage: &str, identity: &Identity, directory: &str) {
    let folder = site.path("state/certs").join(lineage);
    let generation = folder.join("1");
    std::fs::create_dir_all(&generation).unwrap();
    identity.write(&generation, "chain");
    std::fs::rename(generation.join("chain.key"), generation.join("key.pem")).unwrap();
    let meta = json!({ "directory": directory, "stored": 1_700_000_000 });
    std::fs::write(generation.join("meta.json"), meta.to_string()).unwrap();
    std::os::unix::fs::symlink("1", folder.join("current")).unwrap();
}

#[test]
fn phone_config_contains_roots_of_stored_and_fallback_cas() {
    let mut site = site();
    let letsencrypt = "https://acme-v02.api.letsencrypt.org/directory";
    let (first, second) = (Ca::root("First CA"), Ca::root("Second CA"));
    store(&site, "ecdsa-p256", &below(&first).with(&first), letsencrypt);
    store(&site, "exact/ote", &below(&second).with(&second), "https://second.example/directory");
    let dns = json!({ "primary": "127.0.0.1", "tsig_key_file": "absent.key", "zone": "example.com" });
    site.config["certificate"] = json!({ "acme": {
        "terms_of_service_agreed": true, "dns": dns,
        "fallback_directories": [
            { "directory": "https://second.example/directory" }, { "directory": "https://third.example/directory" }
        ],
    } });
    site.write_config();
    let ended = print(&site, &[]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let found = roots(&parameters(&ended.stdout));
    let subject = |der: &CertificateDer<'_>| x509_parser::parse_x509_certificate(der).unwrap().1.subject().to_string();
    let subjects: Vec<String> = found.iter().map(subject).collect();
    assert_eq!(subjects.len(), 3, "{subjects:?}");
    assert!(subjects[0].contains("First CA") && subjects[1].contains("Second CA"), "{subjects:?}");
    assert!(subjects[2].contains("ISRG Root X1"), "what Let's Encrypt issues next: {subjects:?}");
    let warning = "the root of the fallback CA https://third.example/directory is unknown";
    assert!(ended.stderr.contains(warning) && ended.stderr.contains("--ca"), "{ended:?}");
    assert!(!ended.stderr.contains("second.example"), "{ended:?}");
    let with_all = print(&site, &["--ca", "root.pem"]);
    assert_eq!((with_all.code, with_all.stderr.as_str()), (0, ""));
    assert_eq!(roots(&parameters(&with_all.stdout)).len(), 4);
}

#[test]
fn phone_config_counts_the_addresses_of_the_server() {
    let test = "print_phone_config::phone_config_counts_the_addresses_of_the_server";
    if !namespace::is_inside(test, &[]) {
        return;
    }
    let mut site = site();
    let servers = |site: &Site, more: &[&str]| {
        let parameters = printed(site, more);
        for name in ["device.prov.redunAttemptLimit", "device.prov.redunInterAttemptDelay"] {
            assert_eq!(parameters.contains_key(name), parameters.contains_key("device.prov.maxRedunServers"), "{name}");
        }
        parameters.get("device.prov.maxRedunServers").cloned()
    };
    assert_eq!(servers(&site, &[]), None);
    assert_eq!(servers(&site, &["--addresses", "3"]).as_deref(), Some("3"));
    assert_eq!(servers(&site, &["--addresses", "1"]), None);
    for wrong in ["0", "9", "x"] {
        assert_eq!(print(&site, &["--ca", "root.pem", "--addresses", wrong]).code, 2, "{wrong}");
    }
    site.config["listen"] = json!(["192.0.2.10:443", "192.0.2.11:443", "[2001:db8::1]:443"]);
    site.write_config();
    assert_eq!(servers(&site, &[]).as_deref(), Some("2"), "IPv4 only");

    // DNS is queried where it is available.
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let lines = (1..=9).map(|last| format!("192.0.2.{last} ote.phones.example.com\n"));
    std::fs::write(&hosts, lines.take(3).collect::<String>()).unwrap();
    namespace::bind_mount(&hosts, Path::new("/etc/hosts"));
    assert_eq!(servers(&site, &[]).as_deref(), Some("3"));
    let all: String = (1..=9).map(|last| format!("192.0.2.{last} ote.phones.example.com\n")).collect();
    std::fs::write(&hosts, all).unwrap();
    assert_eq!(servers(&site, &[]).as_deref(), Some("8"), "a phone tries no more addresses");
}
