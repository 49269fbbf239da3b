//! Trust bundles as operators write them, and `provost trust`, which reports the certificates that a constituency
//! accepts.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use rustix::process::Signal;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::harness::pki::{DAY, FACTORY, OTHER_FACTORY, ca_params, device_params, pem, valid};
use crate::harness::site::{Running, Site};
use crate::harness::tls::alert;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually};

/// A site with the constituency `acme`, which trusts a bundle of these files, and `ote`, which trusts another.
fn site_trusting(files: &[(&str, Vec<u8>)]) -> Site {
    let mut site = Site::with_ote();
    for (name, content) in files {
        std::fs::write(site.path(name), content).unwrap();
    }
    let names: Vec<Value> = files.iter().map(|(name, _)| (*name).into()).collect();
    site.config["trust"]["acme"] = names.into();
    site.constituency("acme", &json!({ "trust": ["acme"], "phones": { VVX500: "" } }));
    site.file("acme/site.cfg", "<acme/>");
    site
}

fn status(server: &Running, constituency: &str) -> Option<u16> {
    server.client(constituency, &FACTORY.device(VVX500)).get("/site.cfg").ok().map(|response| response.status)
}

fn verify(site: &Site, more: &[&str]) -> Ended {
    provost(&site.path(""), &[&["trust", "verify", "phone.pem", "--constituency"], more].concat())
}

#[test]
fn trust_bundle_is_read_in_every_common_format() {
    let (root, issuing) = (&FACTORY.root.certificate, &FACTORY.issuing.certificate);
    let with_text = format!("Issuer: somebody\n\n{}\ntrailing words\n", FACTORY.bundle());
    let forms: [&[(&str, Vec<u8>)]; 7] = [
        &[("all.pem", FACTORY.bundle().into_bytes())],
        &[("root.pem", root.pem().into_bytes()), ("issuing.pem", issuing.pem().into_bytes())],
        &[("root.der", root.der().to_vec()), ("issuing.der", issuing.der().to_vec())],
        &[("issuing.cer", issuing.der().to_vec())],
        &[("issuing.pem", issuing.pem().into_bytes()), ("root.cer", root.der().to_vec())],
        &[("dos.pem", FACTORY.bundle().replace('\n', "\r\n").into_bytes())],
        &[("text.pem", with_text.into_bytes()), ("again.pem", FACTORY.bundle().into_bytes())],
    ];
    for files in forms {
        let site = site_trusting(files);
        let server = site.start();
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        assert_eq!(status(&server, "acme"), Some(200), "{names:?}");
    }
}

/// Bundles that must be rejected as a whole, with their errors.
fn broken_bundles() -> Vec<(&'static str, Option<Vec<u8>>, &'static str)> {
    let good = FACTORY.bundle();
    let half = format!("{good}-----BEGIN CERTIFICATE-----\nMIIB\n");
    let damaged = format!("{good}{}", pem("CERTIFICATE", b"this is no certificate"));
    let leaf = pem("CERTIFICATE", &FACTORY.device(VVX500).chain[0]);
    let mut long = FACTORY.root.certificate.der().to_vec();
    long.push(0);
    vec![
        ("missing", None, "No such file or directory"),
        ("empty", Some(Vec::new()), "is empty"),
        ("garbage", Some(b"\x00\x01garbage".to_vec()), "is not an X.509 certificate in PEM or DER"),
        ("cut off", Some(half.into_bytes()), "is damaged PEM"),
        ("one of three damaged", Some(damaged.into_bytes()), "is not an X.509 certificate in PEM or DER"),
        ("a key", Some(pem("PRIVATE KEY", b"secret").into_bytes()), "holds no CERTIFICATE block"),
        ("a phone's certificate", Some(leaf.into_bytes()), "is not a CA certificate"),
        ("bytes after it", Some(long), "has bytes after the certificate"),
    ]
}

#[test]
fn broken_bundle_disables_only_the_constituencies_using_it() {
    let bundles = broken_bundles();
    assert_eq!(bundles.len(), 8);
    for (name, content, reason) in bundles {
        let site = site_trusting(&[("acme.pem", Vec::new())]);
        match content {
            Some(content) => std::fs::write(site.path("acme.pem"), content).unwrap(),
            None => std::fs::remove_file(site.path("acme.pem")).unwrap(),
        }
        let server = site.start();
        server.says("acme is not served: the trust bundle \\\"acme\\\" cannot be used");
        let error = server.client("acme", &FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
        assert_eq!(alert(&error), Some(rustls::AlertDescription::UnrecognisedName), "{name}");
        let line = server.reason("acme is not served: the trust bundle \"acme\" cannot be used: ");
        let said = line["reason"].as_str().unwrap();
        assert!(said.contains(reason) && said.contains("acme.pem"), "{name}: {said}");
        assert_eq!(status(&server, "ote"), Some(200), "{name}");

        FACTORY.device(VVX500).write(&site.path(""), "phone");
        let config = site.write_config();
        let ended = verify(&site, &["acme", "--config", config.to_str().unwrap()]);
        assert_eq!(
            (ended.code, format!("acme is not served: {}", &ended.stdout["refused: ".len()..])),
            (1, format!("{said}\n"))
        );
        let listed = provost(&site.path(""), &["trust", "list"]);
        assert_eq!(listed.code, 1, "{name}");
        assert!(listed.stdout.contains("acme: INVALID: ") && listed.stdout.contains(reason), "{}", listed.stdout);
    }
}

#[test]
fn bundle_without_files_trusts_no_certificate() {
    let site = site_trusting(&[]);
    let server = site.start();
    assert_eq!((status(&server, "acme"), status(&server, "ote")), (None, Some(200)));
    server.reason("the trust bundle \"acme\" names no certificate");
}

#[test]
fn changed_bundle_is_loaded_and_a_broken_one_is_ignored() {
    let site = site_trusting(&[("acme.pem", Vec::new())]);
    let server = site.start();
    assert_eq!(status(&server, "acme"), None);
    std::fs::write(site.path("acme.pem"), FACTORY.bundle()).unwrap();
    eventually("the bundle to be used", || (status(&server, "acme") == Some(200)).then_some(()));
    std::fs::write(site.path("acme.pem"), "broken").unwrap();
    let reported = || server.stderr().iter().filter(|line| line.contains("SIGHUP: ")).count();
    let before = reported();
    server.signal(Signal::HUP);
    eventually("the second reload", || (reported() > before).then_some(()));
    assert_eq!(status(&server, "acme"), Some(200));
}

#[test]
fn trust_list_shows_every_ca_with_dates_and_fingerprint() {
    let site = site_trusting(&[("other.pem", OTHER_FACTORY.bundle().into_bytes())]);
    site.write_config();
    let listed = provost(&site.path(""), &["trust", "list"]);
    assert_eq!((listed.code, listed.stderr.as_str()), (0, ""));
    let text = listed.stdout;
    let bundles: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(bundles, ["acme", "factory", "polycom"]);
    assert_eq!(text.matches("SHA-256 ").count(), 2 + 2 + 4);
    for subject in ["CN=Other Factory Root CA", "CN=Test Factory Issuing CA 1", "Polycom Equipment Issuing CA 2"] {
        assert!(text.contains(subject), "{subject}: {text}");
    }
    std::fs::write(site.path("ca.pem"), FACTORY.root.pem()).unwrap();
    let fingerprint = openssl(&site.path(""), "x509 -in ca.pem -noout -fingerprint -sha256");
    let fingerprint = fingerprint.split_once('=').unwrap().1.trim().replace(':', "");
    assert!(text.contains(&format!("SHA-256 {fingerprint}")), "{fingerprint}: {text}");
    assert!(text.contains("valid 20"), "{text}");
}

fn openssl(folder: &Path, arguments: &str) -> String {
    let ended = run(Command::new("openssl").args(arguments.split(' ')).current_dir(folder));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended.stdout
}

#[test]
fn trust_verify_applies_the_list_of_phones() {
    let site = Site::with_ote();
    site.write_config();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "denied": [VVX550] }));
    site.constituency("everybody", &json!({ "trust": ["factory"], "phones": "any" }));
    site.constituency("open", &json!({ "client_auth": "none" }));
    site.file("broken/constituency.json", "{ \"phone\": {} }");
    let by_file = "00005e0053ab";
    site.file("ote/00005e0053ab.cfg", "");
    let cases = [
        (VVX500, "ote", 0, "accepted: 00005e00530c"),
        (by_file, "ote", 0, "accepted: 00005e0053ab"),
        (STRANGER, "ote", 1, "refused: 00005e0053aa is not known to ote"),
        (VVX550, "ote", 1, "refused: 00005e0053c7 is denied by ote"),
        (STRANGER, "everybody", 0, "accepted: 00005e0053aa"),
        (STRANGER, "open", 0, "accepted: this constituency needs no certificate (\"client_auth\": \"none\")"),
        (VVX500, "nobody", 1, "refused: constituency nobody not found"),
    ];
    for (mac, constituency, code, said) in cases {
        FACTORY.device(mac).write(&site.path(""), "phone");
        let ended = verify(&site, &[constituency]);
        assert_eq!((ended.code, ended.stdout.trim()), (code, said), "{mac} {constituency}: {}", ended.stderr);
    }
    let ended = verify(&site, &["broken"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains("did you mean \"phones\"?"), "{}", ended.stdout);
}

#[test]
fn trust_verify_at_answers_for_any_time() {
    let site = Site::with_ote();
    site.write_config();
    let now = time::OffsetDateTime::now_utc().truncate_to_second();
    let (begin, end, second) = (now - time::Duration::hours(1), now + time::Duration::weeks(9), time::Duration::SECOND);
    let text = |at: time::OffsetDateTime| at.format(&Rfc3339).unwrap();
    let mut params = device_params(VVX500);
    (params.not_before, params.not_after) = (begin, end);
    FACTORY.issuing.issue(&params).write(&site.path(""), "phone");
    let let_in = "accepted: 00005e00530c".to_owned();
    let expired = format!("refused: the device certificate expired at {}", text(end));
    let early = format!("refused: the device certificate is not valid before {}", text(begin));
    let cases = [
        (text(end - second), 0, let_in.clone()),
        (text(end), 0, let_in),
        (text(end + second), 1, expired.clone()),
        // The same second in another time zone.
        (text((end + second).to_offset(time::macros::offset!(+2))), 1, expired),
        (text(begin - second), 1, early),
    ];
    for (at, code, said) in cases {
        let ended = verify(&site, &["ote", "--at", &at]);
        assert_eq!((ended.code, ended.stdout.trim()), (code, said.as_str()), "{at}: {}", ended.stderr);
    }
    let tolerant = json!({ "trust": ["factory"], "phones": "any", "expired_device_certificates": "accept" });
    site.constituency("ote", &tolerant);
    let ended = verify(&site, &["ote", "--at", &text(end + second)]);
    assert_eq!((ended.code, ended.stdout.trim()), (0, "accepted: 00005e00530c (expired, tolerated by policy)"));
    // Much later, the CAs have expired as well, which is never tolerated.
    let ended = verify(&site, &["ote", "--at", &text(now + time::Duration::weeks(1000))]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stdout.starts_with("refused: the CA \"CN=Test Factory Issuing CA 1\" expired at "),
        "{}",
        ended.stdout
    );
}

#[test]
fn trust_commands_exit_2_on_wrong_usage_or_configuration() {
    let site = Site::with_ote();
    site.write_config();
    FACTORY.device(VVX500).write(&site.path(""), "phone");
    let cases: [(&[&str], &str); 7] = [
        (&["trust", "verify", "--constituency", "ote", "absent.pem"], "absent.pem"),
        (&["trust", "verify", "--constituency", "ote", "phone.key"], "phone.key"),
        (&["trust", "verify", "--constituency", "ote", "phone.pem", "--at", "tomorrow"], "--at"),
        (&["trust", "verify", "--constituency", "O TE", "phone.pem"], "--constituency"),
        (&["trust", "verify", "phone.pem"], "--constituency"),
        (&["trust", "verify", "--constituency", "ote", "phone.pem", "--config", "absent.json"], "absent.json"),
        (&["trust", "list", "--config", "absent.json"], "absent.json"),
    ];
    for (arguments, said) in cases {
        let ended = provost(&site.path(""), arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn expired_ca_is_marked_in_trust_list() {
    let mut params = ca_params("Old Factory CA");
    valid(&mut params, SystemTime::now() - 800 * DAY, SystemTime::now() - DAY);
    let old = FACTORY.root.renewed(&params);
    let site = site_trusting(&[("old.pem", old.pem().into_bytes())]);
    site.write_config();
    let listed = provost(&site.path(""), &["trust", "list"]);
    assert_eq!(listed.code, 0, "{listed:?}");
    let marked: Vec<&str> = listed.stdout.lines().filter(|line| line.contains("EXPIRED")).collect();
    assert!(marked.len() == 1 && marked[0].contains("Old Factory CA"), "{}", listed.stdout);
}
