//! Which device certificate chains are accepted: one table for real handshakes and for `provost trust verify`.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Purpose, IsCa, KeyUsagePurpose as Usage,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
};
use rustls::AlertDescription::{
    self, AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, DecryptError, UnknownCA,
    UnsupportedCertificate,
};
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};

use crate::harness::pki::{Ca, DAY, FACTORY, Factory, Identity, OTHER_FACTORY, ca_params, device_params, valid};
use crate::harness::site::{DOMAIN, Site};
use crate::harness::tls::{Client, alert};
use crate::harness::tool::{provost, s_client};
use crate::harness::{STRANGER, VVX500, eventually};

/// Polycom's published CA, built into the binary.
const POLYCOM_ISSUING: &str = include_str!("../../src/identity/trust/polycom/polycom_equipment_issuing_ca_1.pem");

struct Case {
    name: &'static str,
    identity: Identity,
    /// `None` if accepted; otherwise a part of the reason, and the alert.
    refused: Option<(&'static str, AlertDescription)>,
}

fn good(name: &'static str, identity: Identity) -> Case {
    Case { name, identity, refused: None }
}

fn bad(name: &'static str, identity: Identity, reason: &'static str, alert: AlertDescription) -> Case {
    Case { name, identity, refused: Some((reason, alert)) }
}

/// The parameters of VVX500's certificate with a change.
fn device(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = device_params(VVX500);
    change(&mut params);
    params
}

fn expired_leaf() -> CertificateParams {
    device(|it| valid(it, SystemTime::now() - 800 * DAY, SystemTime::now() - DAY))
}

fn future_leaf() -> CertificateParams {
    device(|it| valid(it, SystemTime::now() + DAY, SystemTime::now() + 800 * DAY))
}

fn expired_ca(common_name: &str) -> CertificateParams {
    let mut params = ca_params(common_name);
    valid(&mut params, SystemTime::now() - 800 * DAY, SystemTime::now() - DAY);
    params
}

/// A site whose constituency `ote` trusts the CAs of `bundle`, for the phone VVX500.
fn site(bundle: &str, policy: &Value) -> Site {
    let site = Site::new();
    std::fs::write(site.path("factory.pem"), bundle).unwrap();
    let mut whole = json!({ "trust": ["factory"], "phones": { VVX500: "" } });
    whole.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
    site.constituency("ote", &whole);
    site.file("ote/site.cfg", "<site/>");
    site
}

/// Runs every case in handshakes of both TLS versions and by the command: all three must agree.
#[track_caller]
fn run(site: &Site, cases: &[Case]) {
    let server = site.start();
    for Case { name, identity, refused } in cases {
        let (code, said) = verify(site, identity);
        for version in [&TLS12, &TLS13] {
            let before = server.access_lines().len();
            let client = Client::new(server.address(), Some(&format!("ote.{DOMAIN}"))).only(version, Some(identity));
            let result = client.get("/site.cfg");
            let reason = eventually(name, || server.access_lines().get(before).cloned())["reason"].clone();
            match (refused, result) {
                (None, Ok(response)) => {
                    assert_eq!((response.status, &reason), (200, &Value::Null), "{name}");
                    assert_eq!((code, said.trim()), (0, "accepted: 00005e00530c"), "{name}");
                }
                (Some((expected, expected_alert)), Err(error)) => {
                    let reason = reason.as_str().unwrap();
                    assert!(reason.contains(expected), "{name}: {reason}");
                    assert_eq!(alert(&error), Some(*expected_alert), "{name}");
                    assert_eq!((code, said.trim()), (1, format!("refused: {reason}").as_str()), "{name}");
                }
                (_, result) => panic!("{name}, {version:?}: {result:?}; {reason}; verify: {said}"),
            }
        }
    }
}

fn verify(site: &Site, identity: &Identity) -> (i32, String) {
    identity.write(&site.path(""), "phone");
    let ended = provost(&site.path(""), &["trust", "verify", "--constituency", "ote", "phone.pem"]);
    (ended.code, ended.stdout)
}

#[test]
fn chain_is_accepted_whole_partial_unordered_or_with_extras() {
    let leaf = || FACTORY.device(VVX500);
    let eight = || (0..7).fold(leaf(), |identity, _| identity.with(&FACTORY.issuing));
    let cases = [
        good("leaf only", leaf()),
        good("leaf and issuing CA", leaf().with(&FACTORY.issuing)),
        good("the whole chain with its root", leaf().with(&FACTORY.issuing).with(&FACTORY.root)),
        good("in the wrong order", leaf().with(&FACTORY.root).with(&FACTORY.issuing)),
        good("with unrelated certificates", leaf().with(&OTHER_FACTORY.issuing).with(&OTHER_FACTORY.root)),
        good("eight certificates", eight()),
        bad("nine certificates", eight().with(&FACTORY.root), "9 certificates were sent, at most 8", AccessDenied),
        good("an RSA key", FACTORY.issuing.issue_rsa(&device_params(VVX500))),
        good(
            "no keyUsage and no extendedKeyUsage",
            FACTORY.issuing.issue(&device(|it| {
                it.key_usages.clear();
                it.extended_key_usages.clear();
            })),
        ),
        good("signed by the root itself", FACTORY.root.issue(&device_params(VVX500))),
    ];
    run(&site(&FACTORY.bundle(), &json!({})), &cases);
}

#[test]
fn root_only_bundle_needs_the_intermediate_from_the_phone() {
    let leaf = || FACTORY.device(VVX500);
    let unknown = "the device certificate's issuer \"CN=Test Factory Issuing CA 1\" is not trusted here";
    let cases = [
        bad("leaf only", leaf(), unknown, UnknownCA),
        good("leaf and issuing CA", leaf().with(&FACTORY.issuing)),
        good("among unrelated ones", leaf().with(&OTHER_FACTORY.issuing).with(&FACTORY.issuing)),
        bad("another factory's issuing CA", leaf().with(&OTHER_FACTORY.issuing), unknown, UnknownCA),
    ];
    run(&site(&FACTORY.root.pem(), &json!({})), &cases);
}

#[test]
fn invalid_device_certificate_is_refused_with_its_reason() {
    let issue = |change: fn(&mut CertificateParams)| FACTORY.issuing.issue(&device(change));
    let sha1 =
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-sha1", "-addext", "basicConstraints=CA:FALSE"];
    let cases = [
        bad(
            "keyUsage without digitalSignature",
            issue(|it| it.key_usages = vec![Usage::KeyEncipherment]),
            "the device certificate may not sign (keyUsage without digitalSignature)",
            AccessDenied,
        ),
        bad(
            "for servers only",
            issue(|it| it.extended_key_usages = vec![Purpose::ServerAuth]),
            "may not be used by a client (extendedKeyUsage without clientAuth)",
            UnsupportedCertificate,
        ),
        bad(
            "a CA's certificate",
            issue(|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "the device certificate is a CA's",
            AccessDenied,
        ),
        bad(
            "expired",
            FACTORY.issuing.issue(&expired_leaf()),
            "the device certificate expired at 20",
            CertificateExpired,
        ),
        bad(
            "expired, and a stranger's",
            OTHER_FACTORY.issuing.issue(&expired_leaf()),
            "is not trusted here",
            UnknownCA,
        ),
        bad("expired, and self-signed", Identity::self_signed(&expired_leaf()), "is self-signed", UnknownCA),
        bad(
            "not valid yet",
            FACTORY.issuing.issue(&future_leaf()),
            "the device certificate is not valid before 20",
            CertificateExpired,
        ),
        bad("forged", FACTORY.device(VVX500).forged(), SIGNATURE, DecryptError),
        bad(
            "signed with SHA-1",
            FACTORY.issuing.issue_by_openssl("/CN=00005E00530C", sha1),
            "is signed with an algorithm that is not accepted (the device's own: ",
            BadCertificate,
        ),
    ];
    run(&site(&FACTORY.bundle(), &json!({})), &cases);
}

/// The start of the reason if the signature is not by the key of the named CA.
const SIGNATURE: &str =
    "the signature on the device certificate's chain is wrong (issuer \"CN=Test Factory Issuing CA 1\")";

#[test]
fn chain_from_an_invalid_issuer_is_refused() {
    let params = device_params(VVX500);
    let unknown = "is not trusted here";
    let itself = "the device certificate is self-signed";
    let self_made_ca = device(|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let issuing = || FACTORY.issuing.pem();
    let no_sub_ca = FACTORY.root.below({
        let mut params = ca_params("Last CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params
    });
    let sub_ca = no_sub_ca.below(ca_params("One CA too many"));
    let no_signer = FACTORY.root.below({
        let mut params = ca_params("No signer");
        params.key_usages = vec![Usage::DigitalSignature];
        params
    });
    let cases = [
        bad("another factory", OTHER_FACTORY.device(VVX500).with(&OTHER_FACTORY.issuing), unknown, UnknownCA),
        bad("the phone itself", Identity::self_signed(&params), itself, UnknownCA),
        bad("the phone itself, as a CA", Identity::self_signed(&self_made_ca), itself, UnknownCA),
        bad("an impostor", Ca::impostor(&issuing(), &PKCS_ECDSA_P256_SHA256).issue(&params), SIGNATURE, DecryptError),
        bad(
            "an impostor with another key",
            Ca::impostor(&issuing(), &PKCS_RSA_SHA256).issue(&params),
            SIGNATURE,
            DecryptError,
        ),
        bad("another phone", FACTORY.device(STRANGER).signs(&params), "not a CA's signed another", UnknownCA),
        bad(
            "one CA too many",
            sub_ca.issue(&params).with(&sub_ca).with(&no_sub_ca),
            "more CAs below a CA of the chain than its path length constraint allows",
            AccessDenied,
        ),
        good("the last CA", no_sub_ca.issue(&params).with(&no_sub_ca)),
        bad(
            "a CA that may not sign",
            no_signer.issue(&params).with(&no_signer),
            "may not sign certificates",
            AccessDenied,
        ),
    ];
    run(&site(&FACTORY.bundle(), &json!({})), &cases);
}

#[test]
fn accepting_expired_leaves_tolerates_no_other_fault() {
    let old_ca = FACTORY.root.below(expired_ca("Old Issuing CA"));
    let expired = || FACTORY.issuing.issue(&expired_leaf());
    let cases = [
        good("not expired", FACTORY.device(VVX500)),
        bad("not valid yet", FACTORY.issuing.issue(&future_leaf()), "is not valid before 20", CertificateExpired),
        bad("expired and forged", expired().forged(), SIGNATURE, DecryptError),
        bad(
            "below an expired CA",
            old_ca.issue(&expired_leaf()).with(&old_ca),
            "the CA \"CN=Old Issuing CA\" expired",
            CertificateExpired,
        ),
        bad("below a stranger", OTHER_FACTORY.issuing.issue(&expired_leaf()), "is not trusted here", UnknownCA),
        bad("by itself", Identity::self_signed(&expired_leaf()), "is self-signed", UnknownCA),
    ];
    let site = site(&FACTORY.bundle(), &json!({ "expired_device_certificates": "accept" }));
    run(&site, &cases);
    let server = site.start();
    assert_eq!(server.client("ote", &expired()).get("/site.cfg").unwrap().status, 200);
    let (code, said) = verify(&site, &expired());
    assert_eq!((code, said.trim()), (0, "accepted: 00005e00530c (expired, tolerated by policy)"));
}

#[test]
fn expired_ca_is_not_trusted_even_as_an_anchor() {
    let factory = Factory::new("Aged");
    let old_root = factory.root.renewed(&expired_ca("Aged Root CA"));
    let expired = "the CA \"CN=Aged Root CA\" expired at 20";
    let leaf = || factory.root.issue(&device_params(VVX500));
    let accept = json!({ "expired_device_certificates": "accept" });
    for policy in [json!({}), accept] {
        let bundle = old_root.pem() + &FACTORY.bundle();
        let cases = [
            bad("below an expired anchor", leaf(), expired, CertificateExpired),
            bad(
                "two below an expired anchor",
                factory.device(VVX500).with(&factory.issuing),
                expired,
                CertificateExpired,
            ),
            good("below an anchor beside it", FACTORY.device(VVX500)),
        ];
        run(&site(&bundle, &policy), &cases);
    }
    // If the bundle has an expired and a valid certificate of the same CA, the valid one counts.
    for bundle in [old_root.pem() + &factory.root.pem(), factory.root.pem() + &old_root.pem()] {
        run(&site(&bundle, &json!({})), &[good("below a renewed anchor", leaf())]);
    }
}

#[test]
fn certificate_with_a_forged_polycom_issuer_is_refused() {
    let impostor = |algorithm| Ca::impostor(POLYCOM_ISSUING, algorithm).issue(&device_params(VVX500));
    let wrong = "the signature on the device certificate's chain is wrong (issuer";
    let cases = [
        bad("RSA, as the real one", impostor(&PKCS_RSA_SHA256), wrong, DecryptError),
        bad("ECDSA", impostor(&PKCS_ECDSA_P256_SHA256), wrong, DecryptError),
        bad("by another factory", FACTORY.device(VVX500).with(&FACTORY.issuing), "is not trusted here", UnknownCA),
    ];
    let site = site(&FACTORY.bundle(), &json!({ "trust": ["polycom"] }));
    run(&site, &cases);
}

#[test]
fn missing_client_certificate_is_refused_in_tls12_and_tls13() {
    let site = site(&FACTORY.bundle(), &json!({}));
    let server = site.start();
    for version in [&TLS12, &TLS13] {
        let before = server.access_lines().len();
        let client = Client::new(server.address(), Some(&format!("ote.{DOMAIN}"))).only(version, None);
        assert_eq!(alert(&client.get("/site.cfg").unwrap_err()), Some(CertificateRequired), "{version:?}");
        let line = eventually("the refusal", || server.access_lines().get(before).cloned());
        assert_eq!(
            (&line["reason"], &line["constituency"]),
            (&"no client certificate was presented".into(), &"ote".into())
        );
    }
}

/// The usual client of the tests refuses to use such a key; openssl does not.
#[test]
fn short_rsa_key_is_refused_with_its_size() {
    let site = site(&FACTORY.bundle(), &json!({}));
    let server = site.start();
    let short = FACTORY.issuing.issue_by_openssl("/CN=00005E00530C/O=Polycom Inc.", &["-newkey", "rsa:1024"]);
    let (chain, key) = short.write(&site.path(""), "short");
    let name = format!("ote.{DOMAIN}");
    for version in ["-tls1_2", "-tls1_3"] {
        let before = server.access_lines().len();
        let mut arguments = vec![version, "-servername", &name, "-cipher", "DEFAULT@SECLEVEL=0"];
        arguments.extend(["-cert", chain.to_str().unwrap(), "-key", key.to_str().unwrap()]);
        let ended = s_client(server.address(), &arguments, "GET / HTTP/1.1\r\n\r\n");
        assert!(ended.stderr.contains("alert"), "{version}: {}", ended.stderr);
        let line = eventually("the refusal", || server.access_lines().get(before).cloned());
        let reason = line["reason"].as_str().unwrap();
        assert!(reason.contains("has 1024 bits, 2048 to 4096 are allowed"), "{version}: {reason}");
        assert_eq!(verify(&site, &short), (1, format!("refused: {reason}\n")));
    }
}
