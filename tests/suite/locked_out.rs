//! Known phones with unproven refusals: every output says that the refusal is unproven, and shows it in one line.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::{DAY, FACTORY, Identity, OTHER_FACTORY, device_params, valid};
use crate::harness::prometheus::firing;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::provost;
use crate::harness::{VVX500, VVX550, eventually, not_run};
use crate::revocation::{issuing, pem_of};

/// A site with an operators' listener, whose constituencies list two phones.
fn site_with_operators() -> Site {
    let mut site = Site::with_ote();
    let phones = json!({ VVX500: "the kitchen", VVX550: "the cellar" });
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones }));
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    site
}

/// The state of a phone by the API.
fn state(operators: &Operators, constituency: &str, mac: &str) -> Value {
    operators.json(&format!("/api/phones/{constituency}/{mac}"))["phone"]["state"].clone()
}

/// Waits until the phone is in `state`.
#[track_caller]
fn wait_for_state(operators: &Operators, constituency: &str, mac: &str, wanted: &str) {
    eventually(&format!("{mac} to be {wanted}"), || (state(operators, constituency, mac) == wanted).then_some(()));
}

/// Asserts that every output says that the phone may be locked out, for `reason`, and that this is unproven.
#[track_caller]
fn assert_reported(site: &Site, operators: &Operators, constituency: &str, mac: &str, reason: &str) {
    wait_for_state(operators, constituency, mac, "locked_out");
    let page = operators.get("/").body;
    assert_eq!(page.matches("may be locked out").count(), 1, "{page}");
    assert!(page.contains("The claim is unproven") && !page.contains("No problems"), "{page}");
    let own = operators.get(&format!("/phones/{constituency}/{mac}")).body;
    assert!(own.contains("locked out?") && own.contains("unproven claim: ") && own.contains(reason), "{own}");
    assert!(!own.contains("\">well<"), "{own}");
    let listed = provost(&site.path("."), &["phones", "--constituency", constituency]);
    let line =
        listed.stdout.lines().find(|line| line.contains("may be locked out")).unwrap_or_else(|| panic!("{listed:?}"));
    assert!(line.contains("claims to be it (unproven)") && line.contains(reason), "{line}");
    let json = provost(&site.path("."), &["phones", "--constituency", constituency, "--json"]).stdout;
    let phones = json.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let own = phones.into_iter().find(|phone| phone["mac"] == mac).unwrap();
    assert_eq!(own["locked_out"]["proven"], false, "{own}");
    assert!(own["locked_out"]["reason"].as_str().unwrap().contains(reason), "{own}");
}

fn expired(mac: &str) -> Identity {
    let mut params = device_params(mac);
    valid(&mut params, SystemTime::now() - 400 * DAY, SystemTime::now() - DAY);
    FACTORY.issuing.issue(&params)
}

#[test]
fn refused_known_phone_is_a_headline_until_accepted() {
    let good = FACTORY.device(VVX500);
    let kinds = [
        (expired(VVX500), "expired"),
        (OTHER_FACTORY.device(VVX500), "is not trusted here"),
        (Identity::self_signed(&device_params(VVX500)), "self-signed"),
    ];
    let site = site_with_operators();
    let server = site.start();
    let operators = Operators::of(&server);
    assert_eq!(server.client("ote", &good).get("/site.cfg").unwrap().status, 200);
    wait_for_state(&operators, "ote", VVX500, "well");
    for (identity, reason) in kinds {
        server.client("ote", &identity).get("/site.cfg").unwrap_err();
        assert_reported(&site, &operators, "ote", VVX500, reason);
        let metrics = operators.get("/metrics").body;
        assert!(metrics.contains("provost_phones{constituency=\"ote\",state=\"locked_out\"} 1"), "{metrics}");
        match firing(&metrics) {
            None => not_run("promtool", "Debian's package prometheus is not installed"),
            Some(firing) => assert!(firing.contains("ProvostPhonesLockedOut"), "{firing:?}"),
        }
        assert_eq!(server.client("ote", &good).get("/site.cfg").unwrap().status, 200);
        wait_for_state(&operators, "ote", VVX500, "well");
        assert!(operators.get("/").body.contains("No problems"));
        let listed = provost(&site.path("."), &["phones"]).stdout;
        assert!(!listed.contains("locked out"), "{listed}");
    }
}

#[test]
fn known_phone_refused_before_its_first_boot_is_a_headline() {
    let site = site_with_operators();
    let server = site.start();
    let operators = Operators::of(&server);
    assert_eq!(state(&operators, "ote", VVX550), "never");
    server.client("ote", &expired(VVX550)).get("/site.cfg").unwrap_err();
    assert_reported(&site, &operators, "ote", VVX550, "expired");
}

#[test]
fn known_phone_whose_certificate_was_revoked_is_a_headline() {
    let mut site = site_with_operators();
    let mut params = device_params(VVX500);
    params.serial_number = Some(0x80.into());
    let phone = FACTORY.issuing.issue(&params);
    std::fs::write(site.path("crl.pem"), pem_of(&issuing(&[]))).unwrap();
    site.config["trust"]["acme"] = json!(["factory.pem", "crl.pem"]);
    site.constituency("acme", &json!({ "trust": ["acme"], "phones": { VVX500: "" } }));
    site.file("acme/site.cfg", "<acme/>");
    let server = site.start();
    let operators = Operators::of(&server);
    let client = server.client("acme", &phone);
    assert_eq!(client.get("/site.cfg").unwrap().status, 200);
    std::fs::write(site.path("new.pem"), pem_of(&issuing(&[0x80]))).unwrap();
    std::fs::rename(site.path("new.pem"), site.path("crl.pem")).unwrap();
    eventually("the new list", || client.get("/site.cfg").is_err().then_some(()));
    assert_reported(&site, &operators, "acme", VVX500, "revoked");
}

#[test]
fn known_phone_with_a_wrong_password_is_a_headline() {
    let site = site_with_operators();
    site.constituency("pw", &json!({ "client_auth": "digest" }));
    site.file("pw/site.cfg", "<pw/>");
    site.write_config();
    crate::digest::allow(&site.path("."), VVX500, "pw");
    let server = site.start();
    let operators = Operators::of(&server);
    let client = Client::new(server.address(), Some(&format!("pw.{DOMAIN}")));
    let mut connection = client.connect().unwrap();
    let challenge = connection.get("/site.cfg").unwrap();
    let nonce =
        challenge.header("www-authenticate").unwrap().split("nonce=\"").nth(1).unwrap().split('"').next().unwrap();
    let answer = format!(
        "Authorization: Digest username=\"{VVX500}\", realm=\"pw.{DOMAIN}\", nonce=\"{nonce}\", uri=\"/site.cfg\", \
         response=\"00000000000000000000000000000000\", algorithm=MD5, cnonce=\"c\", nc=00000001, qop=auth\r\n"
    );
    assert_eq!(connection.request("GET", "/site.cfg", &answer, b"").unwrap().status, 401);
    assert_reported(&site, &operators, "pw", VVX500, "password");
}

#[test]
fn strangers_cannot_flood_the_headlines_with_claims() {
    let site = site_with_operators();
    let mac = |number: u32| format!("00005e01{number:04x}");
    let known: serde_json::Map<String, Value> = (0..10).map(|number| (mac(number), json!(""))).collect();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": known, "denied": [VVX500] }));
    let server = site.start();
    let operators = Operators::of(&server);
    let claim = |server: &Running, mac: &str| {
        server.client("ote", &Identity::self_signed(&device_params(mac))).get("/site.cfg").unwrap_err();
    };
    // Phones that are unlisted or denied cause no headline, however many they are.
    (100..130).for_each(|number| claim(&server, &mac(number)));
    claim(&server, VVX500);
    claim(&server, &mac(0));
    wait_for_state(&operators, "ote", &mac(0), "locked_out");
    let headline = |operators: &Operators| {
        let page = operators.get("/").body;
        assert_eq!(page.matches("may be locked out").count(), 1, "{page}");
        page.split("<ul class=\"needs\">").nth(1).unwrap().split("</ul>").next().unwrap().to_owned()
    };
    assert!(headline(&operators).contains(">1 known phone</a>"), "{}", headline(&operators));
    (1..10).for_each(|number| claim(&server, &mac(number)));
    eventually("all of them", || headline(&operators).contains(">10 known phones</a>").then_some(()));
    assert_eq!(headline(&operators).matches("<li").count(), 1, "{}", headline(&operators));
    assert_eq!(state(&operators, "ote", VVX500), "denied");
    // Later requests of the phone itself take precedence.
    assert_eq!(server.client("ote", &FACTORY.device(&mac(3))).get("/site.cfg").unwrap().status, 200);
    eventually("nine of them", || headline(&operators).contains(">9 known phones</a>").then_some(()));
}
