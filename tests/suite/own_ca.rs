//! `provost ca`: an own CA from its creation to revocation, tested with real openssl and curl.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::pki::{FACTORY, Identity, SERVER_CA};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::alert;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, namespace, within_a_second};
use crate::print_phone_config::parameters;

/// A site whose constituency `own` trusts its own CA besides the factory, and lists two phones.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["trust"]["own"] = json!(["state/ca/ca.pem"]);
    site.write_config();
    init(&site);
    site.constituency("own", &json!({ "trust": ["own"], "phones": { VVX500: "", VVX550: "" } }));
    site.file("own/site.cfg", "<own/>");
    std::fs::write(site.path("server-ca.pem"), SERVER_CA.pem()).unwrap();
    site
}

/// Creates the CA and returns the output.
fn init(site: &Site) -> String {
    ca(site, &["init", "--name", "Test CA"]).stdout
}

fn ca(site: &Site, arguments: &[&str]) -> Ended {
    let ended = provost(&site.path(""), &[&["ca"], arguments].concat());
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{arguments:?}: {ended:?}");
    ended
}

fn issue(site: &Site, mac: &str, file: &str) -> Identity {
    ca(site, &["issue", mac, "--out", file]);
    Identity::read(&site.path(file), &site.path(file))
}

fn openssl(folder: &Path, arguments: &str) -> Ended {
    run(Command::new("openssl").args(arguments.split(' ')).current_dir(folder))
}

/// The recorded certificates by `list --json`.
fn listed(site: &Site) -> Vec<Value> {
    ca(site, &["list", "--json"]).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// curl with these arguments, which name its certificate.
fn curl(site: &Site, server: &Running, arguments: &[&str]) -> Ended {
    let name = format!("own.{DOMAIN}");
    let connect = format!("{name}:443:{}", server.address());
    let mut command = Command::new("curl");
    command.args(["-sS", "--cacert", "server-ca.pem", "--connect-to", &connect]).args(arguments);
    run(command.arg(format!("https://{name}/site.cfg")).current_dir(site.path("")))
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn issued_certificate_passes_openssl_verification() {
    let site = site();
    issue(&site, VVX500, "phone.pem");
    let folder = site.path("");
    let verified = openssl(
        &folder,
        "verify -CAfile state/ca/ca.pem -CRLfile state/ca/ca.pem -crl_check -purpose sslclient -x509_strict phone.pem",
    );
    assert_eq!((verified.code, verified.stdout.as_str()), (0, "phone.pem: OK\n"), "{verified:?}");
    let text = openssl(&folder, "x509 -in phone.pem -noout -text -nameopt RFC2253").stdout;
    for part in [
        "Subject: CN=00005E00530C\n",
        "Issuer: CN=Test CA\n",
        "Public-Key: (2048 bit)",
        "Digital Signature, Key Encipherment",
        "TLS Web Client Authentication",
        "Signature Algorithm: sha256WithRSAEncryption",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let of_key = openssl(&folder, "pkey -in phone.pem -pubout").stdout;
    assert_eq!(of_key, openssl(&folder, "x509 -in phone.pem -noout -pubkey").stdout);
    let own = openssl(&folder, "x509 -in state/ca/ca.pem -noout -text").stdout;
    assert!(own.contains("CA:TRUE, pathlen:0") && own.contains("Certificate Sign, CRL Sign"), "{own}");

    let serial = openssl(&folder, "x509 -in phone.pem -noout -serial").stdout;
    let sha256 = openssl(&folder, "x509 -in phone.pem -noout -fingerprint -sha256").stdout;
    let record = listed(&site).remove(0);
    assert_eq!(serial.trim(), format!("serial={}", record["serial"].as_str().unwrap().to_uppercase()));
    let sha256 = sha256.trim().split_once('=').unwrap().1.replace(':', "").to_lowercase();
    assert_eq!((record["sha256"].as_str(), &record["mac"]), (Some(sha256.as_str()), &json!(VVX500)));
    for private in ["phone.pem", "state/ca/ca.key", "state/ca/record.jsonl"] {
        assert_eq!(mode(&site.path(private)), 0o600, "{private}");
    }
    assert_eq!((mode(&site.path("state/ca")), mode(&site.path("state/ca/ca.pem"))), (0o700, 0o644));
}

#[test]
fn each_issued_format_works_with_curl_and_only_for_its_ca() {
    let site = site();
    std::fs::write(site.path("password"), "open sesame\nsecond line\n").unwrap();
    ca(&site, &["issue", VVX500, "--out", "phone.pem", "--organization", "Acme & Sons"]);
    ca(&site, &["issue", VVX500, "--out", "phone.der", "--days", "30"]);
    ca(&site, &["issue", VVX500, "--out", "phone.p12", "--password-file", "password"]);
    let server = site.start();
    let forms: [&[&str]; 3] = [
        &["--cert", "phone.pem"],
        &["--cert", "phone.der", "--cert-type", "DER", "--key", "phone.key", "--key-type", "DER"],
        &["--cert", "phone.p12:open sesame", "--cert-type", "P12"],
    ];
    for form in forms {
        let ended = curl(&site, &server, form);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "<own/>"), "{form:?}: {ended:?}");
    }
    for file in ["phone.pem", "phone.der", "phone.key", "phone.p12"] {
        assert_eq!(mode(&site.path(file)), 0o600, "{file}");
    }
    let subject = openssl(&site.path(""), "x509 -in phone.pem -noout -subject -nameopt RFC2253").stdout;
    assert_eq!(subject, "subject=O=Acme & Sons,CN=00005E00530C\n");
    // The factory's certificate is not accepted here, and ours is not accepted elsewhere.
    let own = Identity::read(&site.path("phone.pem"), &site.path("phone.pem"));
    for (constituency, identity) in [("own", FACTORY.device(VVX500)), ("ote", own)] {
        let error = server.client(constituency, &identity).get("/site.cfg").unwrap_err();
        assert_eq!(alert(&error), Some(rustls::AlertDescription::UnknownCA), "{constituency}");
    }
    for chain in ["phone.pem", "phone.der"] {
        let verified = provost(&site.path(""), &["trust", "verify", "--constituency", "own", chain]);
        assert_eq!((verified.code, verified.stdout.as_str()), (0, "accepted: 00005e00530c\n"), "{chain}: {verified:?}");
    }
    let stranger = server.client("own", &issue(&site, STRANGER, "stranger.pem")).get("/site.cfg").unwrap();
    assert_eq!(stranger.status, 403);
    server.reason("00005e0053aa is not known to own");
}

#[test]
fn certificate_is_issued_as_a_polycom_parameter_file() {
    let site = site();
    let said = ca(&site, &["issue", VVX500, "--out", "kitchen.cfg"]).stdout;
    assert!(said.starts_with("00005e00530c: certificate ") && said.ends_with(" in kitchen.cfg\n"), "{said}");
    assert_eq!(mode(&site.path("kitchen.cfg")), 0o600);
    let text = std::fs::read_to_string(site.path("kitchen.cfg")).unwrap();
    let mut parameters = parameters(&text);
    let mut take = |name: &str| parameters.remove(name).unwrap_or_else(|| panic!("{name} in {text}"));
    let [certificate, key] =
        ["publicCert", "privateKey"].map(|part| take(&format!("device.sec.TLS.customDeviceCert1.{part}")));
    assert_eq!(take("device.sec.TLS.profile.deviceCert1"), "Platform1");
    assert_eq!(take("device.sec.TLS.profileSelection.provisioning"), "PlatformProfile1");
    // The remaining switches enable these parameters.
    let switches: Vec<&str> = parameters.keys().map(String::as_str).collect();
    assert_eq!(
        switches,
        [
            "device.sec.TLS.customDeviceCert1.privateKey.set",
            "device.sec.TLS.customDeviceCert1.publicCert.set",
            "device.sec.TLS.customDeviceCert1.set",
            "device.sec.TLS.profile.deviceCert1.set",
            "device.sec.TLS.profileSelection.provisioning.set",
            "device.set",
        ]
    );
    assert!(parameters.values().all(|value| value == "1"), "{parameters:?}");

    // The phone reads PEM with line breaks there, and the certificate is accepted.
    std::fs::write(site.path("certificate.pem"), certificate).unwrap();
    std::fs::write(site.path("key.pem"), key).unwrap();
    let server = site.start();
    let ended = curl(&site, &server, &["--cert", "certificate.pem", "--key", "key.pem"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "<own/>"), "{ended:?}");

    // --format overrides the suffix.
    ca(&site, &["issue", VVX500, "--out", "forced.cfg", "--format", "pem"]);
    ca(&site, &["issue", VVX500, "--out", "forced.pem", "--format", "cfg"]);
    let read = |name: &str| std::fs::read_to_string(site.path(name)).unwrap();
    assert!(read("forced.cfg").starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(read("forced.pem").starts_with("<?xml"));
}

#[test]
fn ca_init_prints_its_folder_and_how_to_trust_it() {
    let folder = tempfile::tempdir().unwrap();
    let here = provost(folder.path(), &["ca", "init"]);
    assert_eq!((here.code, here.stderr.as_str()), (0, ""), "{here:?}");
    for said in [
        "made the CA \"provost device CA\" in state/ca, valid until 20",
        "local mode, because there is no provost.json here; it does not trust this CA. ",
        "provost.json with \"state\": \"state\"; for the service, make the CA with --config /etc/provost/provost.json\n",
        "systemctl reload provost, or send SIGHUP\n",
    ] {
        assert!(here.stdout.contains(said), "{said}: {}", here.stdout);
    }
    let site = Site::with_ote();
    let file = site.write_config();
    let elsewhere = provost(folder.path(), &["ca", "init", "--config", file.to_str().unwrap()]);
    let (state, file) = (site.path("state/ca"), file.display());
    assert!(elsewhere.stdout.contains(&format!(" in {}, valid until 20", state.display())), "{elsewhere:?}");
    assert!(elsewhere.stdout.contains(&format!("to trust it, add to {file}: ")), "{elsewhere:?}");
    assert!(!elsewhere.stdout.contains("local mode"), "{elsewhere:?}");
    let stick = provost(folder.path(), &["ca", "init", "--dir", "stick"]).stdout;
    assert!(stick.contains("copy stick/ca.pem to the server, ") && stick.contains(r#""own": ["own.pem"]"#), "{stick}");
}

#[test]
fn unwritable_output_path_issues_no_certificate() {
    let site = site();
    std::fs::create_dir(site.path("folder")).unwrap();
    std::fs::write(site.path("file"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", site.path("link")).unwrap();
    for (out, said) in [
        ("absent/x.pem", "error: no certificate was issued: cannot write absent/x.pem: No such file or directory"),
        ("file/x.pem", "error: no certificate was issued: cannot write file/x.pem: Not a directory"),
        ("/proc/x.pem", "error: no certificate was issued: cannot write /proc/x.pem: "),
        ("folder", "error: --out: folder is a folder; name a file in it"),
        (".", "error: --out: . is a folder; name a file in it"),
        ("link", "error: --out: link exists"),
        ("-", "error: a private key is not written to standard output; name a file"),
    ] {
        let ended = provost(&site.path(""), &["ca", "issue", VVX500, "--out", out]);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{out}: {ended:?}");
        assert!(ended.stderr.starts_with(said), "{out}: {}", ended.stderr);
    }
    // The certificate can be written, but its key cannot.
    std::fs::write(site.path("x.key"), "").unwrap();
    let ended = provost(&site.path(""), &["ca", "issue", VVX500, "--out", "x.der"]);
    assert!(ended.code == 1 && ended.stderr.contains("x.key exists"), "{ended:?}");
    assert!(listed(&site).is_empty() && !site.path("x.der").exists());
    let left = std::fs::read_dir(site.path("")).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().starts_with(".new-")).count(), 0);
}

#[test]
fn full_disk_issues_no_certificate() {
    let test = "own_ca::full_disk_issues_no_certificate";
    if !namespace::is_inside(test, &[]) {
        return;
    }
    let site = site();
    std::fs::create_dir(site.path("full")).unwrap();
    namespace::mount_full(&site.path("full"));
    for out in ["full/x.pem", "full/x.der", "full/x.cfg"] {
        let ended = provost(&site.path(""), &["ca", "issue", VVX500, "--out", out]);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{out}: {ended:?}");
        assert!(ended.stderr.contains("no certificate was issued: cannot write full/x."), "{out}: {}", ended.stderr);
    }
    assert!(listed(&site).is_empty());
}

#[test]
fn pkcs12_uses_pbes2_with_aes_256_and_sha256() {
    let site = site();
    let said = ca(&site, &["issue", VVX500, "--out", "phone.p12", "--format", "p12"]).stdout;
    let password = said.lines().find_map(|line| line.strip_prefix("password: ")).expect(&said);
    assert_eq!(password.len(), 32);
    let folder = site.path("");
    let info = openssl(&folder, &format!("pkcs12 -in phone.p12 -passin pass:{password} -noout -info"));
    assert_eq!(info.code, 0, "{info:?}");
    for part in [
        "MAC: sha256",
        "Shrouded Keybag: PBES2, PBKDF2, AES-256-CBC",
        "PKCS7 Encrypted data: PBES2, PBKDF2, AES-256-CBC",
    ] {
        assert!(info.stderr.contains(part), "{part}: {info:?}");
    }
    let weak = ["RC2", "3-KeyTripleDES", "sha1,"];
    assert!(weak.iter().all(|weak| !info.stderr.contains(weak)), "{info:?}");
    let content = openssl(&folder, &format!("pkcs12 -in phone.p12 -passin pass:{password} -noenc")).stdout;
    assert_eq!(content.matches("BEGIN CERTIFICATE").count(), 2, "the phone's and the CA's");
    assert!(content.contains("BEGIN PRIVATE KEY") && content.contains("friendlyName: 00005E00530C"), "{content}");
    assert_ne!(openssl(&folder, "pkcs12 -in phone.p12 -passin pass:wrong -noout").code, 0);
    assert!(!std::fs::read(site.path("phone.p12")).unwrap().windows(7).any(|window| window == b"Test CA"));
}

#[test]
fn revoked_certificate_is_refused_within_a_second() {
    let site = site();
    let (lost, other) = (issue(&site, VVX500, "lost.pem"), issue(&site, VVX550, "other.pem"));
    let server = site.start();
    let client = server.client("own", &lost);
    let (mut open, mut beside) = (client.connect().unwrap(), server.client("own", &other).connect().unwrap());
    for connection in [&mut open, &mut beside] {
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    }
    ca(&site, &["revoke", VVX500]);
    within_a_second("the revocation", || client.get("/site.cfg").is_err().then_some(()));

    let error = server.client("own", &lost).get("/site.cfg").unwrap_err();
    assert_eq!(alert(&error), Some(rustls::AlertDescription::CertificateRevoked));
    // The client's ticket is from an earlier session.
    let resuming = client.connect().and_then(|mut connection| {
        assert!(!connection.is_resumed());
        connection.get("/site.cfg")
    });
    assert_eq!(alert(&resuming.unwrap_err()), Some(rustls::AlertDescription::CertificateRevoked));
    let refused = open.get("/site.cfg").unwrap();
    assert_eq!((refused.status, open.is_closed()), (403, true));
    let line = server.reason("was revoked by \"CN=Test CA\"");
    let serial = listed(&site)[0]["serial"].as_str().unwrap().to_owned();
    assert!(line["reason"].as_str().unwrap().contains(&format!("(serial number {serial})")), "{line}");
    let open = server.access("the open connection", |line| line["status"] == 403);
    assert_eq!(open["reason"], line["reason"]);
    // Other phones keep their sessions, also at another revocation.
    for _ in 0..2 {
        assert_eq!(beside.get("/site.cfg").unwrap().status, 200);
        let spare = issue(&site, VVX550, "spare.pem");
        let serial = listed(&site).last().unwrap()["serial"].as_str().unwrap().to_owned();
        ca(&site, &["revoke", &serial]);
        let spare = server.client("own", &spare);
        within_a_second("the revocation", || spare.get("/site.cfg").is_err().then_some(()));
        std::fs::remove_file(site.path("spare.pem")).unwrap();
        assert_eq!(beside.get("/site.cfg").unwrap().status, 200);
    }
    assert_eq!(server.client("own", &other).get("/site.cfg").unwrap().status, 200);
    // A new certificate for the same phone is accepted.
    let again = issue(&site, VVX500, "again.pem");
    assert_eq!(server.client("own", &again).get("/site.cfg").unwrap().status, 200);
}

#[test]
fn revocation_survives_a_restart_and_travels_with_ca_pem() {
    let site = site();
    let (one, two) = (issue(&site, VVX500, "one.pem"), issue(&site, VVX500, "two.pem"));
    let serial = listed(&site)[0]["serial"].as_str().unwrap().to_uppercase();
    ca(&site, &["revoke", &serial]);
    let server = site.start();
    assert!(server.client("own", &one).get("/site.cfg").is_err());
    assert_eq!(server.client("own", &two).get("/site.cfg").unwrap().status, 200);
    // The CA is moved elsewhere; the server uses a copy of its certificate.
    std::fs::rename(site.path("state/ca"), site.path("stick")).unwrap();
    std::fs::create_dir(site.path("state/ca")).unwrap();
    std::fs::copy(site.path("stick/ca.pem"), site.path("state/ca/ca.pem")).unwrap();
    let said = ca(&site, &["revoke", VVX500, "--dir", "stick"]).stdout;
    assert!(said.contains("\ncopy stick/ca.pem to the server again, "), "{said}");
    let another = "00005e00530c has no certificate now; provost ca issue 00005e00530c --out FILE --dir stick makes";
    assert!(said.contains(another), "{said}");
    assert_eq!(server.client("own", &two).get("/site.cfg").unwrap().status, 200);
    std::fs::copy(site.path("stick/ca.pem"), site.path("state/ca/ca.pem")).unwrap();
    server.signal(rustix::process::Signal::HUP);
    within_a_second("the revocation", || server.client("own", &two).get("/site.cfg").is_err().then_some(()));
}

#[test]
fn ca_list_shows_valid_certificates_and_second_ones_are_noted() {
    let site = site();
    let first = ca(&site, &["issue", VVX500, "--out", "one.pem"]).stdout;
    assert!(first.starts_with("00005e00530c: certificate ") && !first.contains("note: "), "{first}");
    let second = ca(&site, &["issue", "00:00:5E:00:53:0C", "--out", "two.pem", "--days", "1"]).stdout;
    let one = listed(&site)[0]["serial"].as_str().unwrap().to_owned();
    assert!(second.contains(&format!("note: 00005e00530c has another valid certificate, {one}, until ")), "{second}");
    let revoked = ca(&site, &["revoke", &one]).stdout;
    assert!(revoked.starts_with(&format!("{one} is revoked\n")), "{revoked}");
    assert!(!revoked.contains("has no certificate now") && !revoked.contains("to the server again"), "{revoked}");
    assert!(ca(&site, &["revoke", &one]).stdout.contains("all certificates are already revoked"));
    let third = ca(&site, &["issue", VVX500, "--out", "three.pem"]).stdout;
    assert_eq!(third.matches("note: ").count(), 1, "only the second is valid: {third}");
    let list: Vec<(bool, bool)> =
        listed(&site).iter().map(|entry| (entry["counts"].as_bool().unwrap(), entry["revoked"].is_string())).collect();
    assert_eq!(list, [(false, true), (true, false), (true, false)]);
    let text = ca(&site, &["list"]).stdout;
    assert_eq!((text.matches("  revoked at 20").count(), text.matches("  valid until 20").count()), (1, 2), "{text}");
}

#[test]
fn invalid_ca_command_changes_no_file() {
    let site = site();
    issue(&site, VVX500, "phone.pem");
    let key = std::fs::read(site.path("state/ca/ca.key")).unwrap();
    let phone = std::fs::read(site.path("phone.pem")).unwrap();
    let cases: [(&[&str], i32, &str); 12] = [
        (
            &["issue", "000000000000", "--out", "x.pem"],
            1,
            "is the name of the fallback files, and not the MAC address of a phone",
        ),
        (&["issue", "ffffffffffff", "--out", "x.pem"], 1, "ffffffffffff is a multicast address"),
        (&["init"], 1, "If the old CA has issued no certificate, remove its folder and run provost ca init again"),
        (
            &["issue", VVX500, "--out", "phone.pem"],
            1,
            "--out: phone.pem exists and may hold a key in use; name another file",
        ),
        (&["issue", VVX500, "--out", "x.key", "--format", "der"], 1, "must not end in .key"),
        (
            &["issue", VVX500, "--out", "x.pem", "--days", "36500"],
            1,
            "a certificate must not be valid longer than its CA",
        ),
        (&["issue", VVX500, "--out", "x.pem", "--password-file", "phone.pem"], 1, "is only for pkcs12"),
        (&["issue", VVX500, "--out", "x.pem", "--dir", "nowhere"], 1, "there is no CA in nowhere"),
        (&["issue", "phone", "--out", "x.pem"], 2, "invalid MAC address"),
        (&["revoke", VVX550], 1, "this CA has issued no certificate for 00005e0053c7"),
        (
            &["revoke", "4a4a4a4a"],
            1,
            "4a4a4a4a is neither a MAC address (12 hex digits) nor the serial number of a certificate",
        ),
        (&["revoke", "kitchen"], 2, "neither a MAC address nor a serial number"),
    ];
    for (arguments, code, said) in cases {
        let ended = provost(&site.path(""), &[&["ca"], arguments].concat());
        assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(said), "{arguments:?}: {}", ended.stderr);
    }
    assert_eq!(std::fs::read(site.path("state/ca/ca.key")).unwrap(), key);
    assert_eq!(std::fs::read(site.path("phone.pem")).unwrap(), phone);
    assert_eq!(listed(&site).len(), 1);
    assert!(!site.path("nowhere").exists() && !site.path("x.pem").exists());
}

#[test]
fn concurrent_ca_commands_all_record_their_certificate() {
    let site = site();
    let names: Vec<String> = (0..6).map(|number| format!("{number}.pem")).collect();
    let children: Vec<_> = names
        .iter()
        .map(|name| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
            command.args(["ca", "issue", VVX500, "--out", name]).current_dir(site.path(""));
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    assert!(children.into_iter().all(|mut child| child.wait().unwrap().success()));
    let serials: std::collections::BTreeSet<String> =
        listed(&site).iter().map(|entry| entry["serial"].as_str().unwrap().to_owned()).collect();
    assert_eq!(serials.len(), 6);
}

#[test]
fn trust_printed_by_ca_init_also_accepts_factory_phones() {
    let mut site = Site::with_ote();
    let said = init(&site);
    let printed = |file: &str| -> Value {
        let line = said.lines().find_map(|line| line.split_once(file)).expect(&said).1;
        serde_json::from_str(&format!("{{ {line} }}")).unwrap()
    };
    site.config["trust"]["own"] = printed("provost.json: ")["trust"]["own"].clone();
    site.write_config();
    assert_eq!(printed("constituency.json: ")["trust"], json!(["polycom", "own"]));
    // Polycom's key is not available, so the tests' factory stands for it.
    site.constituency("own", &json!({ "trust": ["factory", "own"], "phones": { VVX500: "", VVX550: "" } }));
    site.file("own/site.cfg", "<own/>");
    let own = issue(&site, VVX500, "phone.pem");
    let server = site.start();
    for (identity, whose) in [(FACTORY.device(VVX550), "the factory's"), (own, "our own")] {
        assert_eq!(server.client("own", &identity).get("/site.cfg").unwrap().status, 200, "{whose}");
    }
    assert!(said.contains("without \"polycom\", phones with a factory certificate are refused"), "{said}");
}

#[test]
fn virtual_phone_trusts_the_configured_local_ca() {
    let mut site = site();
    site.config["certificate"] = json!({ "local_ca": {} });
    let server = site.start();
    site.file("own/000000000000.cfg", "<APPLICATION CONFIG_FILES=\"site.cfg\"/>");
    issue(&site, VVX500, "kitchen.pem");
    let (url, address) = (format!("https://own.{DOMAIN}/"), server.address().to_string());
    let (kitchen, config) = (site.path("kitchen.pem"), site.path("provost.json"));
    let elsewhere = tempfile::tempdir().unwrap();
    let boot = |folder: &Path, more: &[&str]| {
        let mut words = vec!["phone", "--url", &url, "--mac", VVX500, "--resolve", &address];
        words.extend(["--certificate", "--key"].iter().flat_map(|flag| [*flag, kitchen.to_str().unwrap()]));
        provost(folder, &[&words, more].concat())
    };
    for (folder, more) in
        [(site.path("."), &[][..]), (elsewhere.path().to_owned(), &["--config", config.to_str().unwrap()])]
    {
        let booted = boot(&folder, more);
        assert_eq!(booted.code, 0, "{more:?}: {booted:?}");
    }
    let stranger = boot(elsewhere.path(), &[]);
    assert!(stranger.code == 1 && stranger.stdout.contains("name the CA's certificate with --ca"), "{stranger:?}");
    // An unreadable configuration does not keep the phone from using other servers.
    std::fs::write(elsewhere.path().join("provost.json"), "{").unwrap();
    assert_eq!(boot(elsewhere.path(), &["--ca", site.path("state/server-ca/ca.pem").to_str().unwrap()]).code, 0);
}
