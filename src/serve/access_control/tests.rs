//! Access control, by example and by property.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustls::pki_types::UnixTime;

use super::*;
use crate::ca::{CertificateAuthority, KeyKind};
use crate::clock;
use crate::constituency::scan::Scanner;
use crate::constituency::{ExpiredDeviceCertificates, Registry};
use crate::identity::trust::{Bundle, DeviceVerifier};
use crate::serve::site::TlsMaterial;

const OWN: &str = "00005e00530c";
const OTHER: &str = "00005e0053c7";

/// One constituency with this policy, and a phone's verified identity.
struct Stage {
    registry: Registry,
    constituency: Arc<Constituency>,
    identity: ClientIdentity,
    now: i64,
}

impl Stage {
    fn new(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ote = folder.path().join("constituencies/ote");
        std::fs::create_dir_all(&ote).unwrap();
        std::fs::File::create(ote.join("constituency.json"))
            .and_then(|mut file| std::io::Write::write_all(&mut file, policy.as_bytes()))
            .unwrap();
        let time = clock::now();
        let mut scanner = Scanner::new(folder.path().join("constituencies"), vec!["polycom".to_owned()]);
        let registry = scanner.scan(time);
        let constituency = Arc::clone(registry.find("ote").expect("a good policy"));

        let path = folder.path().join("ca");
        let ca = CertificateAuthority::open_or_make(&path, "test", KeyKind::EcdsaP256, time).unwrap();
        let bundle = Bundle::of("test", &[("test".to_owned(), ca.certificate().clone())], &[]).unwrap();
        let algorithms = TlsMaterial::provider().signature_verification_algorithms;
        let verifier = DeviceVerifier::new([&bundle], ExpiredDeviceCertificates::Refuse, algorithms);
        let issued = ca.issue_device(OWN.parse().unwrap(), time, Duration::from_hours(1)).unwrap();
        let now = clock::unix_seconds(time);
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now.cast_unsigned()));
        let device = verifier.verify(&[issued.certificate], &constituency.policy.pins, at).unwrap();
        Self { registry, constituency, identity: ClientIdentity::Certificate(Arc::new(device)), now }
    }

    fn known() -> Self {
        Self::new(&format!(r#"{{ "phones": {{ "{OWN}": "" }} }}"#))
    }

    fn decide(&self, method: &Method, path: &str) -> Result<Grant, Denial> {
        decide(RequestTarget { host: Ok(()), method, path }, &self.client_context())
    }

    fn client_context(&self) -> ClientContext<'_> {
        ClientContext {
            constituency: Some(&self.constituency),
            listed: self.registry.listed(),
            tls_is_current: true,
            identity: Ok(&self.identity),
            now: self.now,
        }
    }

    fn status(&self, method: &Method, path: &str) -> u16 {
        self.decide(method, path).map_or_else(|denial| denial.status().as_u16(), |_| 200)
    }
}

#[test]
fn known_phone_reads_common_and_own_files() {
    let stage = Stage::known();
    for path in
        ["/site.cfg", "/000000000000.cfg", "/firmware/sip.ld", &format!("/{OWN}.cfg"), &format!("/logs/{OWN}-app.log")]
    {
        assert_eq!(stage.status(&Method::GET, path), 200, "{path}");
        assert_eq!(stage.status(&Method::HEAD, path), 200, "{path}");
    }
    assert_eq!(stage.status(&Method::PUT, &format!("/logs/{OWN}-app.log")), 200);
}

#[test]
fn checks_run_in_the_documented_order() {
    let stage = Stage::known();
    let elsewhere = || Err(HostDenial::Elsewhere("x".to_owned()));
    let hidden_of_other = format!("/{OTHER}/.x");
    let asked = |host, method, path| RequestTarget { host, method, path };
    let status = |asked: RequestTarget<'_>, client_context: &ClientContext<'_>| {
        decide(asked, client_context).map_or_else(|denial| denial.status().as_u16(), |_| 200)
    };
    let gone = ClientContext { constituency: None, ..stage.client_context() };
    let outdated = ClientContext { tls_is_current: false, ..stage.client_context() };
    let late = ClientContext { now: stage.now + 7200, ..stage.client_context() };
    let anonymous = ClientContext { identity: Ok(&ClientIdentity::Anonymous), ..stage.client_context() };
    let bad = || Err(HostDenial::Bad(BadHost::Missing));
    assert_eq!(status(asked(bad(), &Method::DELETE, "/.."), &gone), 400);
    assert_eq!(status(asked(elsewhere(), &Method::DELETE, "/.."), &gone), 421);
    assert_eq!(status(asked(Ok(()), &Method::DELETE, "/.."), &gone), 421);
    assert_eq!(status(asked(Ok(()), &Method::DELETE, "/.."), &anonymous), 405);
    assert_eq!(status(asked(Ok(()), &Method::GET, "/.."), &anonymous), 400);
    for refused in [&anonymous, &outdated, &late] {
        assert_eq!(status(asked(Ok(()), &Method::GET, "/.hidden"), refused), 403);
        assert_eq!(status(asked(Ok(()), &Method::GET, "/site.cfg"), refused), 403);
    }
    assert_eq!(status(asked(Ok(()), &Method::GET, &hidden_of_other), &stage.client_context()), 403);
    assert_eq!(status(asked(Ok(()), &Method::GET, "/.hidden"), &stage.client_context()), 404);
}

#[test]
fn denied_wins_over_listed_and_any() {
    let unknown = Stage::new(r#"{ "phones": {} }"#);
    assert_eq!(unknown.status(&Method::GET, "/site.cfg"), 403);
    let denied = Stage::new(&format!(r#"{{ "phones": "any", "denied": ["{OWN}"] }}"#));
    assert!(matches!(denied.decide(&Method::GET, "/site.cfg"), Err(Denial::Denied { .. })));
    let any = Stage::new(r#"{ "phones": "any" }"#);
    assert_eq!(any.status(&Method::GET, "/site.cfg"), 200);
    assert!(matches!(any.decide(&Method::PUT, &format!("/{OWN}-app.log")), Err(Denial::UploadsOff { .. })));
}

#[test]
fn identity_of_another_kind_than_required_is_refused() {
    let password = ClientIdentity::Password(OWN.parse().unwrap());
    for (client_auth, with_certificate, with_password) in [("required", 200, 403), ("digest", 403, 200)] {
        let stage = Stage::new(&format!(r#"{{ "client_auth": "{client_auth}", "phones": {{ "{OWN}": "" }} }}"#));
        let status = |identity: &ClientIdentity| {
            let asked = RequestTarget { host: Ok(()), method: &Method::GET, path: "/site.cfg" };
            let context = ClientContext { identity: Ok(identity), ..stage.client_context() };
            decide(asked, &context).map_or_else(|denial| denial.status().as_u16(), |_| 200)
        };
        assert_eq!((status(&stage.identity), status(&password)), (with_certificate, with_password), "{client_auth}");
        assert_eq!(status(&ClientIdentity::Anonymous), 403);
    }
}

#[test]
fn no_client_auth_hides_phone_files_and_refuses_uploads() {
    let open = Stage::new(r#"{ "client_auth": "none" }"#);
    assert_eq!(open.status(&Method::GET, "/firmware/sip.ld"), 200);
    assert_eq!(open.status(&Method::GET, "/000000000000.cfg"), 200);
    assert_eq!(open.status(&Method::GET, &format!("/{OWN}.cfg")), 404);
    assert_eq!(open.status(&Method::PUT, &format!("/{OWN}-app.log")), 405);
}

#[test]
fn plain_http_serves_only_reads_of_files_without_mac() {
    for policy in [&format!(r#"{{ "phones": {{ "{OWN}": "" }} }}"#), r#"{ "client_auth": "none" }"#] {
        let stage = Stage::new(policy);
        let plain = ClientContext { identity: Ok(&ClientIdentity::Plain), ..stage.client_context() };
        let status = |method: &Method, path: &str| {
            let asked = RequestTarget { host: Ok(()), method, path };
            decide(asked, &plain).map_or_else(|denial| denial.status().as_u16(), |_| 200)
        };
        for path in ["/firmware/sip.ld", "/000000000000.cfg", "/y000000000028.cfg", "/site.cfg"] {
            assert_eq!((status(&Method::GET, path), status(&Method::HEAD, path)), (200, 200), "{path}");
            assert_eq!(status(&Method::PUT, path), 405, "{path}");
        }
        let own = format!("/{OWN}.cfg");
        let spelled = format!("/phone{OWN}.cfg");
        for path in [
            &own,
            &spelled,
            "/00-00-5e-00-53-0c/site.cfg",
            "/logs/00005E00530C-app.log",
            "/00005e0053aa.cfg",
            "/.hidden",
            "/firmware/",
        ] {
            assert_eq!((status(&Method::GET, path), status(&Method::HEAD, path)), (404, 404), "{path}");
        }
        assert_eq!((status(&Method::PUT, &own), status(&Method::GET, "/..")), (405, 400));
    }
}

fn segment() -> impl Strategy<Value = String> {
    let mac = prop_oneof![Just(OWN.to_owned()), Just(OTHER.to_uppercase()), Just("00-00-5e-00-53-c7".to_owned())];
    let word = prop_oneof![
        mac,
        Just("constituency.json".to_owned()),
        Just("..".to_owned()),
        Just("%2e".to_owned()),
        "[a-z0-9.~%-]{0,6}"
    ];
    prop::collection::vec(word, 1..3).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_grant_covers_other_phones_or_hidden_files(
        segments in prop::collection::vec(segment(), 1..4),
        is_put: bool,
    ) {
        static STAGE: std::sync::LazyLock<Stage> = std::sync::LazyLock::new(|| {
            Stage::new(&format!(r#"{{ "phones": {{ "{OWN}": "" }}, "denied": ["{OTHER}"] }}"#))
        });
        let stage = &*STAGE;
        let path = format!("/{}", segments.join("/"));
        let method = if is_put { Method::PUT } else { Method::GET };
        let other = OTHER.parse().unwrap();
        match stage.decide(&method, &path) {
            Ok(Grant::Read(grant)) => {
                let granted = grant.path().as_str();
                prop_assert!(!path::spells(granted, other));
                prop_assert!(!path::is_hidden(granted) && granted.split('/').all(|segment| segment != ".."));
            }
            Ok(Grant::Write(grant)) => {
                prop_assert!(!path::spells(grant.name().as_str(), other));
                prop_assert!(grant.name().as_str().rsplit('/').next().is_some_and(|file| file.starts_with(OWN)));
            }
            Err(_) => {}
        }
    }
}
