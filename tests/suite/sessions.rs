//! TLS sessions: resumed only within a constituency with unchanged TLS settings, and authorized again each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::CustomExtension;
use rustix::process::Signal;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, NamedGroup, SupportedProtocolVersion};
use serde_json::{Value, json};

use crate::harness::pki::{DAY, FACTORY, Identity, OTHER_FACTORY, device_params, valid};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::{Client, alert};
use crate::harness::tool::run;
use crate::harness::{VVX500, eventually, not_run};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A client's session store that offers the sessions of any server to any other, and counts them.
#[derive(Debug)]
struct SharedStore {
    sessions: ClientSessionMemoryCache,
    given: AtomicUsize,
}

impl SharedStore {
    fn new() -> Arc<Self> {
        Arc::new(Self { sessions: ClientSessionMemoryCache::new(64), given: AtomicUsize::new(0) })
    }

    fn given(&self) -> usize {
        self.given.load(Ordering::SeqCst)
    }

    fn count<T>(&self, session: Option<T>) -> Option<T> {
        self.given.fetch_add(usize::from(session.is_some()), Ordering::SeqCst);
        session
    }
}

fn any_server() -> ServerName<'static> {
    ServerName::try_from("anybody.example").unwrap()
}

impl ClientSessionStore for SharedStore {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.sessions.set_kx_hint(any_server(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.kx_hint(&any_server())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.sessions.set_tls12_session(any_server(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.count(self.sessions.tls12_session(&any_server()))
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.sessions.remove_tls12_session(&any_server());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.sessions.insert_tls13_ticket(any_server(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.count(self.sessions.take_tls13_ticket(&any_server()))
    }
}

fn policy() -> Value {
    json!({ "trust": ["factory"], "phones": { VVX500: "" } })
}

fn client(
    server: &Running,
    name: &str,
    version: &'static SupportedProtocolVersion,
    identity: Option<&Identity>,
) -> (Client, Arc<SharedStore>) {
    let memory = SharedStore::new();
    let client = Client::new(server.address(), Some(&format!("{name}.{DOMAIN}"))).only(version, identity);
    (client.with_sessions(memory.clone()), memory)
}

/// Gets `site.cfg` on a new connection: its status, and whether a session was resumed.
#[track_caller]
fn visit(client: &Client) -> (u16, bool) {
    let mut connection = client.connect().unwrap();
    let status = connection.get("/site.cfg").unwrap().status;
    (status, connection.is_resumed())
}

#[test]
fn session_is_resumed_within_its_constituency_as_the_same_phone() {
    let site = Site::with_ote();
    let server = site.start();
    for version in VERSIONS {
        let (phone, memory) = client(&server, "ote", version, Some(&FACTORY.device(VVX500)));
        assert_eq!(visit(&phone), (200, false), "{version:?}");
        for _ in 0..3 {
            assert_eq!(visit(&phone), (200, true), "{version:?}");
        }
        assert_eq!(memory.given(), 3, "{version:?}");
    }
    let macs = eventually("eight lines", || {
        let lines = server.access_lines();
        (lines.len() == 8).then(|| lines.iter().filter(|line| line["mac"] == VVX500).count())
    });
    assert_eq!(macs, 8);
}

#[test]
fn session_is_never_resumed_in_another_constituency() {
    let mut site = Site::with_ote();
    std::fs::write(site.path("other.pem"), OTHER_FACTORY.bundle()).unwrap();
    site.config["trust"]["other"] = json!(["other.pem"]);
    site.constituency("twin", &policy());
    site.constituency("strict", &json!({ "trust": ["other"], "phones": { VVX500: "" } }));
    site.file("twin/site.cfg", "<twin/>");
    site.file("strict/site.cfg", "<strict/>");
    let server = site.start();
    for version in VERSIONS {
        let (phone, memory) = client(&server, "ote", version, Some(&FACTORY.device(VVX500)));
        assert_eq!(visit(&phone), (200, false));
        let strict = phone.clone().named(Some(&format!("strict.{DOMAIN}")));
        assert_eq!(alert(&strict.get("/site.cfg").unwrap_err()), Some(AlertDescription::UnknownCA), "{version:?}");
        assert_eq!(visit(&phone).0, 200);
        let twin = phone.clone().named(Some(&format!("twin.{DOMAIN}")));
        assert_eq!(visit(&twin), (200, false), "{version:?}");
        assert_eq!(visit(&phone), (200, false), "a session of twin, {version:?}");
        assert!(memory.given() >= 3, "{version:?}: the client did offer the sessions");
    }
}

#[test]
fn anonymous_session_is_not_resumed_where_a_cert_is_required() {
    let site = Site::with_ote();
    site.constituency("open", &json!({ "client_auth": "none", "aliases": ["public"] }));
    site.file("open/site.cfg", "<open/>");
    let server = site.start();
    for version in VERSIONS {
        let (anonymous, memory) = client(&server, "open", version, None);
        assert_eq!((visit(&anonymous), visit(&anonymous)), ((200, false), (200, true)), "{version:?}");
        let error = anonymous.clone().named(Some(&format!("ote.{DOMAIN}"))).get("/site.cfg").unwrap_err();
        assert_eq!(alert(&error), Some(AlertDescription::CertificateRequired), "{version:?}");
        assert_eq!(memory.given(), 2);
    }
}

/// With the same name, only the TLS configuration keeps the sessions apart.
#[test]
fn session_is_not_resumed_after_its_alias_moved() {
    for version in VERSIONS {
        let site = Site::new();
        site.constituency("open", &json!({ "client_auth": "none", "aliases": ["moving"] }));
        site.file("open/site.cfg", "<open/>");
        site.constituency("ote", &policy());
        site.file("ote/site.cfg", "<site/>");
        let server = site.start();
        let (anonymous, memory) = client(&server, "moving", version, None);
        assert_eq!((visit(&anonymous), visit(&anonymous)), ((200, false), (200, true)));
        site.constituency("open", &json!({ "client_auth": "none" }));
        let mut mine = policy();
        mine["aliases"] = json!(["moving"]);
        site.constituency("ote", &mine);
        let last = eventually("the alias to move", || {
            let given = memory.given();
            let error = anonymous.get("/site.cfg").err()?;
            (alert(&error) != Some(AlertDescription::UnrecognisedName))
                .then_some((alert(&error), memory.given() - given))
        });
        assert_eq!(last, (Some(AlertDescription::CertificateRequired), 1), "{version:?}");
    }
}

#[test]
fn session_without_sni_ends_when_no_sni_changes() {
    for version in VERSIONS {
        let mut site = Site::with_ote();
        site.config["no_sni"] = "open".into();
        site.constituency("open", &json!({ "client_auth": "none" }));
        site.file("open/site.cfg", "<open/>");
        let server = site.start();
        let (anonymous, memory) = client(&server, "open", version, None);
        let anonymous = anonymous.named(None);
        assert_eq!((visit(&anonymous), visit(&anonymous)), ((200, false), (200, true)));
        site.config["no_sni"] = "ote".into();
        site.write_config();
        server.signal(Signal::HUP);
        server.says("SIGHUP: ");
        let given = memory.given();
        let error = anonymous.get("/site.cfg").unwrap_err();
        assert_eq!((alert(&error), memory.given() - given), (Some(AlertDescription::CertificateRequired), 1));
    }
}

#[test]
fn no_session_survives_a_tls_policy_change() {
    let required = |extra: Value| {
        let mut policy = policy();
        policy.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        policy
    };
    let changes = [
        (json!({ "client_auth": "none" }), policy()),
        (policy(), json!({ "client_auth": "none" })),
        (policy(), required(json!({ "trust": ["factory", "polycom"] }))),
        (policy(), required(json!({ "expired_device_certificates": "accept" }))),
        (required(json!({ "expired_device_certificates": "accept" })), policy()),
    ];
    for ((before, after), version) in changes.iter().flat_map(|change| VERSIONS.map(|version| (change, version))) {
        let site = Site::with_ote();
        site.constituency("ote", before);
        let server = site.start();
        let (phone, memory) = client(&server, "ote", version, Some(&FACTORY.device(VVX500)));
        assert_eq!((visit(&phone), visit(&phone)), ((200, false), (200, true)));
        let mut open = phone.connect().unwrap();
        site.constituency("ote", after);
        server.says("the TLS part of the policy changed");
        let refused = eventually("the change to apply", || {
            let response = open.get("/site.cfg").unwrap();
            (response.status != 200).then_some(response.status)
        });
        assert_eq!((refused, open.is_closed()), (403, true), "{before} to {after}");
        let given = memory.given();
        assert_eq!((visit(&phone), memory.given() - given), ((200, false), 1), "{before} to {after}");
        assert_eq!(visit(&phone), (200, true), "{before} to {after}");
    }
}

#[test]
fn phone_list_changes_keep_sessions_and_apply_to_resumed_ones() {
    let site = Site::with_ote();
    let server = site.start();
    for version in VERSIONS {
        site.constituency("ote", &policy());
        let (phone, _) = client(&server, "ote", version, Some(&FACTORY.device(VVX500)));
        eventually("the phone to be known", || (visit(&phone).0 == 200).then_some(()));
        assert_eq!(visit(&phone), (200, true));
        site.constituency("ote", &json!({ "trust": ["factory"], "phones": {} }));
        eventually("the phone to be unknown", || {
            let (status, is_resumed) = visit(&phone);
            assert!(is_resumed, "{version:?}");
            (status == 403).then_some(())
        });
        site.constituency("ote", &json!({ "trust": ["factory"], "phones": "any", "denied": [VVX500] }));
        server.reason("00005e00530c is not known to ote");
        eventually("the phone to be denied", || {
            assert_eq!(visit(&phone), (403, true), "{version:?}");
            server.access_lines().iter().any(|line| line["reason"] == "00005e00530c is denied by ote").then_some(())
        });
    }
}

#[test]
fn no_session_survives_a_restart_or_a_recreated_folder() {
    let site = Site::with_ote();
    for version in VERSIONS {
        let server = site.start();
        let (phone, memory) = client(&server, "ote", version, Some(&FACTORY.device(VVX500)));
        assert_eq!((visit(&phone), visit(&phone)), ((200, false), (200, true)));
        server.kill();
        let server = site.start();
        let phone = phone.at(server.address()).host(&format!("ote.{DOMAIN}"));
        assert_eq!((visit(&phone), memory.given()), ((200, false), 2), "{version:?}");
        std::fs::rename(site.served("ote"), site.path("away")).unwrap();
        eventually("the folder to go", || phone.get("/site.cfg").is_err().then_some(()));
        std::fs::rename(site.path("away"), site.served("ote")).unwrap();
        let first = eventually("the folder to come back", || {
            let mut connection = phone.connect().ok()?;
            connection.get("/site.cfg").ok().map(|response| (response.status, connection.is_resumed()))
        });
        assert_eq!(first, (200, false), "{version:?}");
    }
}

#[test]
fn reloaded_bundle_ends_sessions_only_if_it_changed() {
    let site = Site::with_ote();
    let server = site.start();
    let (phone, _) = client(&server, "ote", &TLS13, Some(&FACTORY.device(VVX500)));
    assert_eq!((visit(&phone), visit(&phone)), ((200, false), (200, true)));
    server.signal(Signal::HUP);
    server.says("SIGHUP: ");
    assert_eq!(visit(&phone), (200, true));
    std::fs::write(site.path("factory.pem"), FACTORY.bundle() + &OTHER_FACTORY.bundle()).unwrap();
    server.signal(Signal::HUP);
    eventually("the other factory to be trusted", || {
        server.client("ote", &OTHER_FACTORY.device(VVX500)).get("/site.cfg").ok()
    });
    assert_eq!(visit(&phone), (200, false));
    // After a CA is removed from a bundle, an old session is useless.
    std::fs::write(site.path("factory.pem"), OTHER_FACTORY.bundle()).unwrap();
    server.signal(Signal::HUP);
    let error = eventually("the factory to be distrusted", || phone.get("/site.cfg").err());
    assert_eq!(alert(&error), Some(AlertDescription::UnknownCA));
}

#[test]
fn expiring_certificate_ends_connections_and_sessions() {
    let site = Site::with_ote();
    let server = site.start();
    let mut params = device_params(VVX500);
    valid(&mut params, SystemTime::now() - DAY, SystemTime::now() + Duration::from_secs(5));
    let device = FACTORY.issuing.issue(&params);
    let phones = VERSIONS.map(|version| client(&server, "ote", version, Some(&device)).0);
    let mut open: Vec<_> = phones.iter().map(|phone| phone.connect().unwrap()).collect();
    for connection in &mut open {
        assert_eq!(connection.get("/site.cfg").unwrap().status, 200);
    }
    for (phone, connection) in phones.iter().zip(&mut open) {
        eventually("the certificate to expire", || (connection.get("/site.cfg").unwrap().status == 403).then_some(()));
        assert!(connection.is_closed());
        assert_eq!(visit(phone), (403, true), "a resumed session is authorized by its stored certificate");
        let error = server.client("ote", &device).get("/site.cfg").unwrap_err();
        assert_eq!(alert(&error), Some(AlertDescription::CertificateExpired));
    }
    eventually("a line for each", || {
        let lines = server.access_lines();
        (lines.iter().filter(|line| line["reason"].to_string().contains("expired at")).count() >= 4).then_some(())
    });
}

/// A device certificate of about this many bytes.
fn device_of(bytes: usize) -> Identity {
    let mut params = device_params(VVX500);
    // An unknown extension with an OID of the arc for examples.
    params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 999, 1], vec![0; bytes]));
    FACTORY.issuing.issue(&params)
}

/// A ticket contains the client's certificates, and the next ClientHello has to hold the ticket.
#[test]
fn chain_over_8_kib_gets_no_ticket_and_can_reconnect() {
    let site = Site::with_ote();
    let server = site.start();
    for (bytes, has_ticket) in [(6 << 10, true), (8 << 10, false), (30 << 10, false)] {
        for version in VERSIONS {
            let (phone, memory) = client(&server, "ote", version, Some(&device_of(bytes)));
            assert_eq!(visit(&phone), (200, false), "{bytes}, {version:?}");
            let hello = phone.hello();
            assert!(has_ticket || hello.len() < 4096, "{} bytes of hello for {bytes}, {version:?}", hello.len());
            assert!(!has_ticket || hello.len() > bytes, "{} bytes of hello for {bytes}, {version:?}", hello.len());
            let given = memory.given();
            let (status, is_resumed) = visit(&phone);
            assert_eq!(status, 200, "{bytes}, {version:?}");
            // TLS 1.2 also resumes sessions without a ticket.
            assert!(version == &TLS12 || is_resumed == (has_ticket && given == 0), "{bytes}, {version:?}");
        }
    }
}

/// Connects twice by openssl in TLS 1.2 with a stored session: whether the extended master secret was used, and whether
/// the session was resumed.
fn by_openssl(site: &Site, server: &Running, options: &str) -> (bool, bool) {
    let conf = site.path("openssl.cnf");
    let text =
        format!("openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n[tls]\nOptions = {options}\n");
    std::fs::write(&conf, text).unwrap();
    let name = format!("ote.{DOMAIN}");
    let request = format!("GET /site.cfg HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    std::fs::write(site.path("request"), request).unwrap();
    FACTORY.device(VVX500).write(&site.path(""), "device");
    let [first, second] = ["-sess_out", "-sess_in"].map(|remember| {
        let mut command = std::process::Command::new("timeout");
        command.args(["20", "openssl", "s_client", "-ign_eof", "-tls1_2", "-servername", &name, "-connect"]);
        command.arg(server.address().to_string()).args(["-cert", "device.pem", "-key", "device.key"]);
        command.args([remember, "session.pem"]).env("OPENSSL_CONF", &conf).current_dir(site.path(""));
        command.stdin(std::fs::File::open(site.path("request")).unwrap());
        let said = run(&mut command).stdout;
        assert!(said.contains("<site/>"), "{said}");
        said
    });
    (first.contains("Extended master secret: yes"), second.contains("Reused, TLSv1.2"))
}

/// RFC 7627 §5.3: without it, a session could be spliced into another handshake.
#[test]
fn tls12_session_without_extended_master_secret_is_not_resumed() {
    let site = Site::with_ote();
    let server = site.start();
    assert_eq!(by_openssl(&site, &server, "ExtendedMasterSecret"), (true, true));
    match by_openssl(&site, &server, "-ExtendedMasterSecret") {
        (true, _) => not_run("sessions without extended master secret", "this openssl cannot disable it"),
        (false, is_resumed) => assert!(!is_resumed),
    }
}
