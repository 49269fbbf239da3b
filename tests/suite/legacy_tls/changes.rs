//! Changes while legacy TLS connections are open: the server's certificate, the setting, revocations.

use rustix::process::Signal;

use super::*;
use crate::harness::pki::server_certificate;
use crate::harness::{VVX550, within_a_second};
use crate::revocation::{issuing, pem_of};

/// For each setting with legacy TLS, the offer of an old phone.
const OLD_OFFERS: [(&str, &str); 4] = [
    ("legacy", OLD),
    ("legacy", "-tls1_1 -cipher DHE-RSA-AES128-SHA:@SECLEVEL=0"),
    ("legacy", "-tls1_2 -cipher AES128-SHA:@SECLEVEL=0"),
    ("compatible", "-tls1_2 -cipher AES128-GCM-SHA256:@SECLEVEL=0"),
];

/// Asserts that `requests` were answered, all of them over legacy TLS.
#[track_caller]
fn all_are_old(server: &Running, requests: usize) {
    let answered = || server.access_lines().into_iter().filter(|line| !line["status"].is_null()).collect::<Vec<_>>();
    let lines = eventually("all lines", || Some(answered()).filter(|lines| lines.len() >= requests));
    assert_eq!(lines.len(), requests, "{lines:?}");
    assert!(lines.iter().all(|line| line["lane"] == "old"), "{lines:?}");
}

#[test]
fn new_certificate_is_used_within_a_second_by_legacy_tls() {
    let site = site_with_each_setting();
    let server = site.start();
    let shown = || {
        let found = attempt(&site, &server, "legacy", Some(&PHONE), OLD);
        assert!(found.is_served(), "{}", found.text);
        let (_, rest) = found.text.split_once("-----BEGIN CERTIFICATE-----").unwrap();
        rest.split("-----END").next().unwrap().to_owned()
    };
    let mut open = OLD_OFFERS.map(|(name, arguments)| OpenConnection::start(&site, &server, name, &PHONE, arguments));
    assert_eq!(open.each_mut().map(OpenConnection::ask), [200; 4]);
    let before = shown();
    assert_eq!(shown(), before);
    server_certificate(DOMAIN, true).write(&site.path(""), "new");
    for end in ["pem", "key"] {
        std::fs::rename(site.path(&format!("new.{end}")), site.path(&format!("rsa.{end}"))).unwrap();
    }
    let mut seen = 2;
    within_a_second("the new certificate", || {
        seen += 1;
        (shown() != before).then_some(())
    });
    assert_eq!(open.each_mut().map(OpenConnection::ask), [200; 4]);
    all_are_old(&server, 8 + seen);
}

#[test]
fn changed_tls_setting_ends_earlier_legacy_connections() {
    let site = site_with_each_setting();
    let server = site.start();
    let mut open = OLD_OFFERS.map(|(name, arguments)| OpenConnection::start(&site, &server, name, &PHONE, arguments));
    assert_eq!(open.each_mut().map(OpenConnection::ask), [200; 4]);
    site.constituency("legacy", &policy("modern"));
    let mut seen = 0;
    eventually("the change to apply", || {
        let found = attempt(&site, &server, "legacy", Some(&PHONE), OLD);
        seen += usize::from(found.status().is_some());
        (found.alert() == Some("protocol version")).then_some(())
    });
    // Connections of an unchanged constituency stay open.
    assert_eq!(open.each_mut().map(OpenConnection::ask), [403, 403, 403, 200]);
    open[..3].iter().for_each(OpenConnection::wait_for_close);
    server.says("legacy: the TLS part of the policy changed");
    all_are_old(&server, 8 + seen);
}

/// SIGHUP reloads the default of `provost.json` for constituencies without a setting of their own.
#[test]
fn default_tls_setting_applies_on_sighup_where_unset() {
    let mut site = site_with_each_setting();
    let mut silent = policy("modern");
    silent.as_object_mut().unwrap().remove("tls");
    site.constituency("silent", &silent);
    site.file("silent/site.cfg", "<silent/>");
    let server = site.start();
    assert_eq!(attempt(&site, &server, "silent", Some(&PHONE), OLD).alert(), Some("protocol version"));
    let open_modern = |name: &str| server.client(name, &PHONE).connect().unwrap();
    let (mut follows, mut stays) = (open_modern("silent"), open_modern("modern"));
    site.config["tls"] = "legacy".into();
    site.write_config();
    server.signal(Signal::HUP);
    server.says("SIGHUP: ");
    assert_eq!((follows.get("/site.cfg").unwrap().status, follows.is_closed()), (403, true));
    assert_eq!(attempt(&site, &server, "modern", Some(&PHONE), OLD).alert(), Some("protocol version"));

    let mut old = OpenConnection::start(&site, &server, "silent", &PHONE, OLD);
    let mut other = OpenConnection::start(&site, &server, "legacy", &PHONE, OLD);
    assert_eq!((old.ask(), other.ask()), (200, 200));
    site.config["tls"] = "modern".into();
    site.write_config();
    server.signal(Signal::HUP);
    eventually("the second SIGHUP", || {
        (server.stderr().iter().filter(|line| line.contains("SIGHUP: ")).count() == 2).then_some(())
    });
    assert_eq!((old.ask(), other.ask()), (403, 200));
    old.wait_for_close();
    assert_eq!(attempt(&site, &server, "silent", Some(&PHONE), OLD).alert(), Some("protocol version"));
    assert_eq!(stays.get("/site.cfg").unwrap().status, 200);
}

/// A factory phone with an RSA key, whose certificate has this serial number.
fn numbered(mac: &str, serial: u64) -> Identity {
    let mut params = device_params(mac);
    params.serial_number = Some(serial.into());
    FACTORY.issuing.issue_rsa(&params)
}

/// Whether `identity` is refused because its certificate is revoked.
#[track_caller]
fn is_revoked(site: &Site, server: &Running, identity: &Identity, (name, arguments): (&str, &str)) -> bool {
    let is_it = |line: &Value| {
        let why = ") was revoked by \"CN=Test Factory Issuing CA 1\"";
        line["reason"].as_str().is_some_and(|reason| reason.contains(why))
    };
    let reported = || server.access_lines().into_iter().filter(is_it).collect::<Vec<_>>();
    let before = reported().len();
    let found = attempt(site, server, name, Some(identity), arguments);
    if found.is_served() {
        return false;
    }
    assert_eq!(found.alert(), Some("handshake failure"), "{name} {arguments}: {}", found.text);
    // Lines of earlier requests may arrive late.
    let of_handshake = |line: &Value| line["mac"].is_null() && line["status"].is_null() && line["constituency"] == name;
    eventually("a line", || reported().into_iter().skip(before).find(of_handshake));
    true
}

#[test]
fn revocation_applies_to_legacy_handshakes_and_connections() {
    let mut site = site_with_each_setting();
    std::fs::write(site.path("crl.pem"), pem_of(&issuing(&[5]))).unwrap();
    site.config["trust"]["listed"] = json!(["crl.pem", "factory.pem"]);
    for setting in ["legacy", "compatible"] {
        let mut listed = policy(setting);
        listed["trust"] = json!(["listed"]);
        listed["phones"][VVX550] = "vvx550".into();
        site.constituency(setting, &listed);
    }
    // Trusts the factory without the CRL.
    site.constituency("unlisted", &policy("legacy"));
    site.file("unlisted/site.cfg", "<unlisted/>");
    let (revoked, lost, good) = (numbered(VVX500, 5), numbered(VVX500, 6), numbered(VVX550, 7));
    let server = site.start();
    let are = |identity: &Identity| OLD_OFFERS.map(|old| is_revoked(&site, &server, identity, old));
    assert_eq!((are(&revoked), are(&lost), are(&good)), ([true; 4], [false; 4], [false; 4]));

    let mut open = OLD_OFFERS.map(|(name, arguments)| OpenConnection::start(&site, &server, name, &lost, arguments));
    let mut unlisted = OpenConnection::start(&site, &server, "unlisted", &lost, OLD);
    assert_eq!((open.each_mut().map(OpenConnection::ask), unlisted.ask()), ([200; 4], 200));
    std::fs::write(site.path("new.pem"), pem_of(&issuing(&[5, 6]))).unwrap();
    std::fs::rename(site.path("new.pem"), site.path("crl.pem")).unwrap();
    // Until then it gets the file, or the answer to a request during the change.
    let mut overtaken = 0;
    eventually("the new list", || {
        let status = attempt(&site, &server, "legacy", Some(&lost), OLD).status();
        overtaken += usize::from(status == Some(403));
        status.is_none().then_some(())
    });
    // A phone that is not revoked can reconnect.
    assert_eq!((open.each_mut().map(OpenConnection::ask), unlisted.ask()), ([403; 4], 200));
    open.iter().for_each(OpenConnection::wait_for_close);
    assert_eq!((are(&revoked), are(&lost), are(&good)), ([true; 4], [true; 4], [false; 4]));
    let refused: Vec<Value> = server.access_lines().into_iter().filter(|line| line["status"] == 403).collect();
    assert_eq!(refused.len(), 4 + overtaken);
    assert!(refused.iter().all(|line| line["lane"] == "old"), "{refused:?}");
}
