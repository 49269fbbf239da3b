//! The operators' listener: what it shows, to whom.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::harness::operators::Operators;
use crate::harness::pki::FACTORY;
use crate::harness::site::Site;
use crate::harness::{STRANGER, VVX500, eventually, within_a_second};

#[test]
fn a_site_without_status_has_no_such_listener() {
    let site = Site::with_ote();
    let server = site.start();
    assert!(!server.stderr().iter().any(|line| line.contains("status page")));
}

#[test]
fn the_overview_says_who_waits_and_who_is_well() {
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    let operators = Operators::of(&server);
    let known = FACTORY.device(VVX500);
    assert_eq!(server.client("ote", &known).get("/site.cfg").unwrap().status, 200);
    assert_eq!(server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status, 403);
    let overview = eventually("both phones in the overview", || {
        let overview = operators.json("/api/overview");
        (overview["counts"]["well"] == 1 && overview["waiting"].as_array()?.len() == 1).then_some(overview)
    });
    assert_eq!(overview["waiting"][0]["mac"], STRANGER);
    assert_eq!(
        overview["constituencies"][0]["url"],
        format!("https://ote.phones.example.com:{}/", server.address().port())
    );
}

const TOKEN: &str = "a-token-for-tests-0123456789";

/// A site whose operators show [`TOKEN`], or cannot be reached but from here.
fn watched() -> Site {
    let mut site = Site::with_ote();
    write_token(&site, TOKEN, 0o600);
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    site
}

fn write_token(site: &Site, token: &str, mode: u32) {
    let file = site.path("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_phone_that_is_allowed_by_the_api_is_let_in_within_a_second() {
    let site = watched();
    let server = site.start();
    let operators = Operators::of(&server).with_token(TOKEN);
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    assert_eq!(stranger.get("/site.cfg").unwrap().status, 403);
    let wanted = json!({ "mac": "00:00:5E:00:53:AA", "constituency": "ote", "note": "Küche \"2\"" });
    let answer = operators.post("/api/allow", &wanted);
    assert_eq!((answer.status, answer.json()), (200, json!({ "changed": true })));
    within_a_second("the phone to be let in", || (stranger.get("/site.cfg").unwrap().status == 200).then_some(()));
    assert_eq!(operators.post("/api/allow", &wanted).json(), json!({ "changed": false }));
    assert!(std::fs::read_to_string(site.served("ote/constituency.json")).unwrap().contains("Küche \\\"2\\\""));
    let denied = operators.post("/api/deny", &json!({ "mac": STRANGER, "constituency": "ote" }));
    assert_eq!(denied.json(), json!({ "changed": true }));
    within_a_second("the phone to be kept out", || (stranger.get("/site.cfg").unwrap().status == 403).then_some(()));
}

#[test]
fn every_answer_says_that_it_is_for_this_page_alone() {
    let site = watched();
    let server = site.start();
    let operators = Operators::of(&server);
    let paths = ["/", "/healthz", "/readyz", "/api/overview", "/sign-in", "/nothing"];
    for path in paths {
        let headers = operators.get(path).headers;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["cache-control"], "no-store", "{path}");
        assert_eq!(headers["referrer-policy"], "same-origin", "{path}");
        let policy = &headers["content-security-policy"];
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
    }
}
