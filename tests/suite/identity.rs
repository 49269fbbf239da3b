//! The MAC in a certificate's subject: it alone identifies the phone, and an invalid one is refused.

use rcgen::string::{BmpString, Ia5String, PrintableString};
use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue};
use serde_json::json;

use crate::harness::pki::{FACTORY, Identity, device_params};
use crate::harness::site::Site;
use crate::harness::tool::provost;
use crate::harness::{VVX500, eventually};

/// A factory certificate with this subject, in which a type may occur twice.
fn subject(attributes: &[(DnType, DnValue)]) -> Identity {
    FACTORY.issuing.issue(&subject_params(attributes))
}

fn subject_params(attributes: &[(DnType, DnValue)]) -> CertificateParams {
    let mut params = device_params(VVX500);
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in attributes {
        params.distinguished_name.push(kind.clone(), value.clone());
    }
    params
}

fn cn(value: impl Into<DnValue>) -> (DnType, DnValue) {
    (DnType::CommonName, value.into())
}

fn organization() -> (DnType, DnValue) {
    (DnType::OrganizationName, "Polycom Inc.".into())
}

/// A second CN: another type for the certificate library, which is encoded alike.
fn second_cn(value: &str) -> (DnType, DnValue) {
    (DnType::CustomDnType(vec![2, 5, 4, 3]), value.into())
}

/// A site that accepts every phone with a valid subject, so that each refusal is due to the subject.
fn site_with_any_phone() -> Site {
    let site = Site::new();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": "any" }));
    for name in ["ote/site.cfg", "ote/00005e00530c.cfg", "ote/000000000000.cfg"] {
        site.file(name, "<site/>");
    }
    site
}

fn verify(site: &Site, identity: &Identity) -> (i32, String) {
    identity.write(&site.path(""), "phone");
    let ended = provost(&site.path(""), &["trust", "verify", "--constituency", "ote", "phone.pem"]);
    (ended.code, ended.stdout.trim().to_owned())
}

#[test]
fn mac_in_the_subject_is_accepted_as_factories_write_it() {
    let site = site_with_any_phone();
    let server = site.start();
    let printable = |text: &str| DnValue::PrintableString(PrintableString::try_from(text).unwrap());
    let cases = [
        ("as Polycom does", subject(&[cn("00005E00530C"), organization()])),
        ("O first", subject(&[organization(), cn("00005E00530C")])),
        ("without O", subject(&[cn("00005E00530C")])),
        ("lower case", subject(&[cn("00005e00530c"), organization()])),
        ("mixed case", subject(&[cn("00005e00530C")])),
        ("PrintableString", subject(&[cn(printable("00005E00530C")), organization()])),
    ];
    for (name, identity) in cases {
        let before = server.access_lines().len();
        let response = server.client("ote", &identity).get("/00005e00530c.cfg").unwrap();
        assert_eq!(response.status, 200, "{name}");
        let line = eventually(name, || server.access_lines().get(before).cloned());
        assert_eq!(line["mac"], VVX500, "{name}");
        assert_eq!(verify(&site, &identity), (0, "accepted: 00005e00530c".to_owned()), "{name}");
    }
}

fn invalid_subjects() -> Vec<(Identity, &'static str)> {
    let of_type = |name: &str| {
        format!(
            "the device certificate's CN is a string of ASN.1 type {name}, only UTF8String and PrintableString are allowed"
        )
    };
    let not_mac = |text: &str| format!("the device certificate's CN {text:?} is not a MAC address of 12 hex digits");
    let single = |value: DnValue| subject(&[cn(value), organization()]);
    let by_openssl = |subject: &str| FACTORY.issuing.issue_by_openssl(subject, LEAF);
    let mut invalid_subjects = vec![
        (subject(&[]), "the device certificate's subject has no CN".to_owned()),
        (subject(&[organization()]), "the device certificate's subject has no CN".to_owned()),
        (
            subject(&[cn("00005E00530C"), second_cn("00005E0053C7")]),
            "the device certificate's subject has 2 CNs, exactly one is allowed".to_owned(),
        ),
        (
            subject(&[cn("00005E00530C"), organization(), second_cn("00005E00530C")]),
            "the device certificate's subject has 2 CNs, exactly one is allowed".to_owned(),
        ),
        (
            by_openssl("/CN=00005E00530C+O=Polycom Inc."),
            "the device certificate's CN is in a multi-valued RDN".to_owned(),
        ),
        (single(DnValue::BmpString(BmpString::try_from("00005E00530C").unwrap())), of_type("BmpString")),
        (single(DnValue::Ia5String(Ia5String::try_from("00005E00530C").unwrap())), of_type("Ia5String")),
        (
            single("000000000000".into()),
            "the device certificate's CN names no phone: 000000000000 is the name of the fallback files, and not the MAC address of a phone"
                .to_owned(),
        ),
    ];
    for group in ["FFFFFFFFFFFF", "01005E000001", "333300000001"] {
        let words = format!(
            "{} is a multicast address (its first octet is odd), and not the MAC address of a phone",
            group.to_lowercase()
        );
        invalid_subjects.push((single(group.into()), format!("the device certificate's CN names no phone: {words}")));
    }
    for text in [
        "00005E00530CA",
        "00005E00530",
        "00005E00530C ",
        " 00005E00530C",
        "00005E 00530C",
        "00:00:5E:00:53:0C",
        "00-00-5E-00-53-0C",
        "00005E00530G",
        "00005E00530C\0",
        "00005E00530C\n",
        "00005E0053\u{410}C",
        "CN=00005E00530C",
        "00005E00530C/O=Polycom Inc.",
        "*",
    ] {
        invalid_subjects.push((single(text.into()), not_mac(text)));
    }
    invalid_subjects.into_iter().map(|(identity, reason)| (identity, &*reason.leak())).collect()
}

const LEAF: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-addext", "basicConstraints=CA:FALSE"];

#[test]
fn invalid_subject_is_refused_on_every_path_and_logged() {
    let site = site_with_any_phone();
    let server = site.start();
    let invalid_subjects = invalid_subjects();
    assert_eq!(invalid_subjects.len(), 25);
    let mut bodies = std::collections::BTreeSet::new();
    for (identity, expected) in invalid_subjects {
        let phone = server.client("ote", &identity);
        for (method, path) in [
            ("GET", "/site.cfg"),
            ("HEAD", "/site.cfg"),
            ("GET", "/00005e00530c.cfg"),
            ("GET", "/000000000000.cfg"),
            ("GET", "/absent"),
            ("PUT", "/00005e00530c-app.log"),
        ] {
            let before = server.access_lines().len();
            let response = phone.request(method, path, "", b"").unwrap();
            assert_eq!(response.status, 403, "{expected}: {method} {path}");
            let line = eventually(expected, || server.access_lines().get(before).cloned());
            // A letter that resembles one of ours is escaped.
            assert_eq!(line["reason"], expected.replace('\u{410}', "\\u{410}"), "{method} {path}");
            assert!(line["mac"].is_null(), "{expected}: {line}");
            if method == "GET" {
                bodies.insert(response.body);
            }
        }
        assert_eq!(verify(&site, &identity), (1, format!("refused: {expected}")));
    }
    assert_eq!(bodies.len(), 1, "all refusals are identical");
    assert!(!site.uploads("ote", VVX500).exists());
}

#[test]
fn only_the_leaf_certificate_identifies_the_phone() {
    let site = site_with_any_phone();
    let server = site.start();
    // Keycloak once used the name of another certificate of the chain (CVE-2023-2422).
    let identity = subject(&[organization()]).and(&FACTORY.device(VVX500).chain[0]);
    assert_eq!(server.client("ote", &identity).get("/site.cfg").unwrap().status, 403);
    server.reason("the device certificate's subject has no CN");
    let identity = FACTORY.device(VVX500).and(&FACTORY.device(crate::harness::STRANGER).chain[0]);
    assert_eq!(server.client("ote", &identity).get("/00005e00530c.cfg").unwrap().status, 200);
}

#[test]
fn hostile_subject_cannot_break_a_log_line() {
    let mut site = site_with_any_phone();
    site.config["log"] = "text".into();
    let server = site.start();
    let identity = subject(&[cn("x\u{1b}[2J\r\n10.0.0.1 GET / 200")]);
    assert_eq!(server.client("ote", &identity).get("/site.cfg").unwrap().status, 403);
    let line = eventually("the refusal", || server.stdout().into_iter().find(|line| line.contains("is not a MAC")));
    assert!(!line.contains('\u{1b}') && line.contains("GET / 200"), "{line:?}");
    assert_eq!(server.stdout().len(), 1, "{:?}", server.stdout());
}
