//! Files are served to a known phone only.

use crate::harness::pki::{FACTORY, OTHER_FACTORY};
use crate::harness::site::Site;
use crate::harness::tls::{Client, alert};
use crate::harness::{STRANGER, VVX500, not_run, tool};

#[test]
fn known_phone_is_served_and_logged() {
    let site = Site::with_ote();
    let server = site.start();
    let mut phone = server.client("ote", &FACTORY.device(VVX500)).connect().unwrap();
    let response = phone.get("/site.cfg").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "<site/>"));
    assert_eq!(phone.get("/absent.cfg").unwrap().status, 404);
    let line = server.access("site.cfg", |line| line["path"] == "/site.cfg");
    assert_eq!((&line["mac"], &line["constituency"], &line["status"]), (&VVX500.into(), &"ote".into(), &200.into()));
}

#[test]
fn unknown_phone_gets_403_and_a_logged_reason() {
    let site = Site::with_ote();
    let server = site.start();
    let response = server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap();
    assert_eq!(response.status, 403);
    assert_eq!(server.reason("is not known to ote")["mac"], STRANGER);
}

#[test]
fn certificate_of_another_factory_fails_the_handshake() {
    let site = Site::with_ote();
    let server = site.start();
    let error = server.client("ote", &OTHER_FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
    assert_eq!(alert(&error), Some(rustls::AlertDescription::UnknownCA));
    server.reason("issuer \"CN=Other Factory Issuing CA 1\" is not trusted here");
}

#[test]
fn unknown_server_name_gets_unrecognized_name() {
    let site = Site::with_ote();
    let server = site.start();
    for name in [Some("nobody.phones.example.com"), Some("phones.example.com"), Some("a.ote.phones.example.com"), None]
    {
        let error = Client::new(server.address(), name).with_identity(&FACTORY.device(VVX500)).get("/").unwrap_err();
        assert_eq!(alert(&error), Some(rustls::AlertDescription::UnrecognisedName), "{name:?}");
    }
    server.reason("unknown server name \"nobody.phones.example.com\"");
    server.reason("no SNI");
}

#[test]
fn listening_on_a_foreign_ipv6_address_is_an_error() {
    let test = "listening_on_a_foreign_ipv6_address_is_an_error";
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return not_run(test, "this host has no IPv6");
    }
    let mut site = Site::with_ote();
    site.config["listen"] = serde_json::json!(["127.0.0.1:0", "[2001:db8::1]:0"]);
    let ended = tool::run(&mut site.command_under(&["timeout", "20"]));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("cannot listen on [2001:db8::1]:0"), "{ended:?}");
    assert!(ended.stderr.contains("this host has no such address"), "{ended:?}");
}
