//! Certificate revocation lists (CRLs) in trust bundles, as easy-rsa and openssl make them.

use std::time::SystemTime;

use rcgen::{
    CertificateRevocationList, CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint,
    KeyIdMethod, SerialNumber,
};
use serde_json::json;
use time::format_description::well_known::Rfc3339;

use crate::harness::pki::{Ca, DAY, FACTORY, Identity, OTHER_FACTORY, device_params, pem};
use crate::harness::site::{Running, Site};
use crate::harness::tool::provost;
use crate::harness::{VVX500, VVX550, within_a_second};

/// A site whose constituency `acme` trusts the factory with these CRLs.
fn site(lists: &[(&str, Vec<u8>)]) -> Site {
    let mut site = Site::with_ote();
    for (name, content) in lists {
        std::fs::write(site.path(name), content).unwrap();
    }
    let names: Vec<&str> = lists.iter().map(|(name, _)| *name).chain(["factory.pem"]).collect();
    site.config["trust"]["acme"] = json!(names);
    site.constituency("acme", &json!({ "trust": ["acme"], "phones": { VVX500: "", VVX550: "" } }));
    site.file("acme/site.cfg", "<acme/>");
    site
}

/// A factory phone whose certificate has this serial number.
fn numbered(mac: &str, serial: u64) -> Identity {
    let mut params = device_params(mac);
    params.serial_number = Some(serial.into());
    FACTORY.issuing.issue(&params)
}

/// A CRL of the factory's issuing CA.
pub fn issuing(serials: &[u64]) -> CertificateRevocationList {
    let serials: Vec<SerialNumber> = serials.iter().map(|serial| (*serial).into()).collect();
    FACTORY.issuing.crl(&serials, SystemTime::now() + 20 * DAY)
}

pub fn pem_of(list: &CertificateRevocationList) -> Vec<u8> {
    pem("X509 CRL", list.der()).into_bytes()
}

fn status(server: &Running, identity: &Identity) -> Option<u16> {
    server.client("acme", identity).get("/site.cfg").ok().map(|response| response.status)
}

#[test]
fn crl_applies_in_every_format_to_its_bundle_only() {
    let (revoked, good) = (numbered(VVX500, 0x80), numbered(VVX500, 0x81));
    let list = issuing(&[7, 0x80, 0xffff_ffff]);
    let all = [FACTORY.bundle().into_bytes(), pem_of(&list)].concat();
    let forms = [("crl.pem", pem_of(&list)), ("crl.der", list.der().to_vec()), ("all.pem", all)];
    for (name, content) in forms {
        let site = site(&[(name, content)]);
        let server = site.start();
        assert_eq!((status(&server, &revoked), status(&server, &good)), (None, Some(200)), "{name}");
        server.reason("(serial number 80) was revoked by \"CN=Test Factory Issuing CA 1\"");
        // ote trusts the factory without the CRL.
        assert_eq!(server.client("ote", &revoked).get("/site.cfg").unwrap().status, 200, "{name}");
        let listed = provost(&site.path(""), &["trust", "list"]).stdout;
        assert!(listed.contains("  revoked by CN=Test Factory Issuing CA 1: 3, next list due by 20"), "{listed}");
    }
}

#[test]
fn new_crl_applies_within_a_second() {
    let (lost, good) = (numbered(VVX500, 5), numbered(VVX550, 6));
    let site = site(&[("crl.pem", pem_of(&issuing(&[])))]);
    let server = site.start();
    let client = server.client("acme", &lost);
    let mut open = client.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    std::fs::write(site.path("new.pem"), pem_of(&issuing(&[5]))).unwrap();
    std::fs::rename(site.path("new.pem"), site.path("crl.pem")).unwrap();
    within_a_second("the new list", || client.get("/site.cfg").is_err().then_some(()));
    assert_eq!((open.get("/site.cfg").unwrap().status, open.is_closed()), (403, true));
    assert_eq!(status(&server, &good), Some(200));
    std::fs::write(site.path("crl.pem"), pem_of(&issuing(&[5, 6]))).unwrap();
    server.signal(rustix::process::Signal::HUP);
    within_a_second("the third list", || status(&server, &good).is_none().then_some(()));
}

#[test]
fn crl_unreadable_at_first_is_retried_until_loaded() {
    let site = site(&[("crl.pem", pem_of(&issuing(&[])))]);
    let server = site.start();
    let client = server.client("acme", &numbered(VVX500, 5));
    assert_eq!(client.get("/site.cfg").unwrap().status, 200);
    server.limit_descriptors(0);
    std::fs::write(site.path("new.pem"), pem_of(&issuing(&[5]))).unwrap();
    std::fs::rename(site.path("new.pem"), site.path("crl.pem")).unwrap();
    let cannot = "invalid trust bundle \\\"acme\\\"";
    let said = server.says(cannot);
    assert!(said.contains("Too many open files") && said.contains("the last valid one stays in force"), "{said}");
    server.limit_descriptors(1024);
    within_a_second("the new list", || client.get("/site.cfg").is_err().then_some(()));
    server.reason("(serial number 05) was revoked");
    let times = server.stderr().iter().filter(|line| line.contains(cannot)).count();
    assert_eq!(times, 1, "it is retried often and logged once");
}

#[test]
fn outdated_crl_refuses_all_certificates_of_its_ca() {
    let phone = numbered(VVX500, 9);
    let ended = FACTORY.issuing.crl(&[], SystemTime::now() - DAY);
    let outdated = site(&[("crl.pem", pem_of(&ended))]);
    let server = outdated.start();
    assert_eq!(status(&server, &phone), None);
    server.reason("the CRL of \"CN=Test Factory Issuing CA 1\" expired at 20");
    let checked = provost(&outdated.path(""), &["check"]);
    assert_eq!(checked.code, 1, "{checked:?}");
    assert!(checked.stdout.contains("the CRL of CN=Test Factory Issuing CA 1 expired at 20"), "{}", checked.stdout);
    assert!(
        provost(&outdated.path(""), &["trust", "list"])
            .stdout
            .contains("(EXPIRED: all certificates of this CA are refused)")
    );
    // With a newer CRL besides, it is valid, and the serial numbers of both are revoked.
    let renewed = site(&[("crl.pem", pem_of(&ended)), ("new.pem", pem_of(&issuing(&[10])))]);
    let server = renewed.start();
    assert_eq!((status(&server, &phone), status(&server, &numbered(VVX500, 10))), (Some(200), None));
    // Its coming expiry is announced.
    let checked = provost(&renewed.path(""), &["check"]);
    assert!(checked.stdout.contains("expires at 20"), "{}", checked.stdout);
    phone.write(&renewed.path(""), "phone");
    let later = (time::OffsetDateTime::now_utc() + time::Duration::days(31)).format(&Rfc3339).unwrap();
    let verify = |at: &[&str]| {
        let arguments = [&["trust", "verify", "--constituency", "acme", "phone.pem"], at].concat();
        provost(&renewed.path(""), &arguments).stdout
    };
    assert_eq!(verify(&[]), "accepted: 00005e00530c\n");
    assert!(verify(&["--at", &later]).starts_with("refused: the CRL of "), "{}", verify(&["--at", &later]));
}

#[test]
fn fresh_crl_of_a_namesake_ca_does_not_renew_an_outdated_one() {
    let namesake = Ca::root("Test Factory Issuing CA 1");
    let issued_by = |ca: &Ca| {
        let mut params = device_params(VVX500);
        params.use_authority_key_identifier_extension = true;
        ca.issue(&params)
    };
    let ended = FACTORY.issuing.crl(&[], SystemTime::now() - DAY);
    let mut site = site(&[("crl.pem", pem_of(&ended))]);
    let fresh = namesake.crl(&[7.into()], SystemTime::now() + 20 * DAY);
    std::fs::write(site.path("namesake.pem"), [namesake.pem().into_bytes(), pem_of(&fresh)].concat()).unwrap();
    site.config["trust"]["namesake"] = json!(["namesake.pem"]);
    site.constituency("acme", &json!({ "trust": ["acme", "namesake"], "phones": { VVX500: "" } }));
    let server = site.start();
    assert_eq!(
        (status(&server, &issued_by(&namesake)), status(&server, &issued_by(&FACTORY.issuing))),
        (Some(200), None)
    );
    server.reason("the CRL of \"CN=Test Factory Issuing CA 1\" expired at 20");
    // The serial numbers of either CRL are revoked for both CAs, because nothing distinguishes certificates of the same
    // issuer name and serial number.
    assert_eq!(status(&server, &numbered(VVX500, 7)), None);
    server.reason("(serial number 07) was revoked");
}

#[test]
fn revoked_ca_revokes_the_certificates_it_signed() {
    let issuing = serial_of(FACTORY.issuing.certificate.der());
    let list = FACTORY.root.crl(&[SerialNumber::from_slice(&issuing)], SystemTime::now() + DAY);
    let phone = numbered(VVX500, 11);
    let revoked = site(&[("crl.pem", pem_of(&list))]);
    let server = revoked.start();
    assert_eq!(status(&server, &phone), None);
    assert_eq!(status(&server, &phone.clone().with(&FACTORY.issuing)), None, "nor when the phone sends it");
    server.reason("the CA \"CN=Test Factory Issuing CA 1\" (serial number ");
    // The root's own CRL, which lists other certificates, changes nothing.
    let other = FACTORY.root.crl(&[1.into()], SystemTime::now() + DAY);
    let unrevoked = site(&[("crl.pem", pem_of(&other))]);
    let server = unrevoked.start();
    assert_eq!(status(&server, &phone), Some(200));
}

/// The serial number of a certificate by openssl.
fn serial_of(der: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.der"), der).unwrap();
    let mut command = std::process::Command::new("openssl");
    command.args(["x509", "-inform", "DER", "-in", "ca.der", "-noout", "-serial"]).current_dir(folder.path());
    let said = crate::harness::tool::run(&mut command).stdout;
    let hex = said.trim().strip_prefix("serial=").unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[test]
fn forged_foreign_or_partial_crl_makes_the_bundle_unusable() {
    let good = issuing(&[1]);
    let mut forged = good.der().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let mut long = good.der().to_vec();
    long.push(0);
    let partial = FACTORY.issuing.sign_crl(&CertificateRevocationListParams {
        this_update: SystemTime::now().into(),
        next_update: (SystemTime::now() + DAY).into(),
        crl_number: 1.into(),
        issuing_distribution_point: Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec!["http://crl.example/".to_owned()] },
            scope: None,
        }),
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    });
    let cut = String::from_utf8(pem_of(&good)).unwrap().replace("-----END X509 CRL-----\n", "");
    let cases: [(&str, Vec<u8>, &str); 6] = [
        (
            "forged",
            pem("X509 CRL", &forged).into_bytes(),
            "has a CRL that \"CN=Test Factory Issuing CA 1\" did not sign",
        ),
        (
            "foreign",
            pem_of(&OTHER_FACTORY.root.crl(&[], SystemTime::now() + DAY)),
            "which is not a CA of the same bundle",
        ),
        ("partial", pem_of(&partial), "with the critical extension 2.5.29.28"),
        ("long", pem("X509 CRL", &long).into_bytes(), "has bytes after the CRL"),
        ("damaged", pem("X509 CRL", b"no list").into_bytes(), "is not a CRL"),
        ("cut off", cut.into_bytes(), "is damaged PEM"),
    ];
    for (name, content, reason) in cases {
        let site = site(&[("crl.pem", content)]);
        let server = site.start();
        assert_eq!(status(&server, &numbered(VVX500, 2)), None, "{name}");
        let line = server.reason("the trust bundle \"acme\" cannot be used: ");
        assert!(line["reason"].as_str().unwrap().contains(reason), "{name}: {line}");
    }
}

#[test]
fn pin_does_not_override_a_revoked_certificate() {
    let (lost, of_revoked_ca) = (numbered(VVX500, 30), numbered(VVX550, 31));
    let root = FACTORY
        .root
        .crl(&[SerialNumber::from_slice(&serial_of(FACTORY.issuing.certificate.der()))], SystemTime::now() + DAY);
    let site = site(&[("crl.pem", pem_of(&issuing(&[30]))), ("root.pem", pem_of(&root))]);
    let pinned = |identity: &Identity| json!({ "note": "", "certificate_sha256": fingerprint(identity) });
    let phones = json!({ VVX500: pinned(&lost), VVX550: pinned(&of_revoked_ca) });
    site.constituency("acme", &json!({ "trust": ["acme"], "phones": phones }));
    let server = site.start();
    assert_eq!((status(&server, &lost), status(&server, &of_revoked_ca)), (None, Some(200)));
}

/// The SHA-256 of a certificate, in hex.
fn fingerprint(identity: &Identity) -> String {
    let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &identity.chain[0]);
    sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn broken_crl_keeps_the_last_good_one() {
    let (lost, good) = (numbered(VVX500, 20), numbered(VVX550, 21));
    let site = site(&[("crl.pem", pem_of(&issuing(&[20])))]);
    let server = site.start();
    assert_eq!((status(&server, &lost), status(&server, &good)), (None, Some(200)));
    std::fs::write(site.path("new.pem"), "broken").unwrap();
    std::fs::rename(site.path("new.pem"), site.path("crl.pem")).unwrap();
    server.says("the last valid one stays in force");
    assert_eq!((status(&server, &lost), status(&server, &good)), (None, Some(200)));
}
