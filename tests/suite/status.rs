//! The operators' listener: its content and access to it.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::{FACTORY, SERVER_CA, server_certificate, valid};
use crate::harness::site::Site;
use crate::harness::{STRANGER, VVX500, eventually, within_a_second};

#[test]
fn site_without_status_has_no_operators_listener() {
    let site = Site::with_ote();
    let server = site.start();
    assert!(!server.stderr().iter().any(|line| line.contains("status page")));
}

#[test]
fn overview_lists_waiting_and_well_phones() {
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
    let row = &overview["constituencies"][0];
    let figures = [&row["seen_lately"], &row["refused"], &row["counts"]["refused"], &row["counts"]["waiting"]];
    assert_eq!(figures, [1, 0, 0, 1], "a phone that waits is not counted as refused");
    assert_eq!(
        overview["constituencies"][0]["url"],
        format!("https://ote.phones.example.com:{}/", server.address().port())
    );
}

const TOKEN: &str = "a-token-for-tests-0123456789";

/// A site whose operators' listener requires [`TOKEN`], or is reachable only from this machine.
fn site_with_operators() -> Site {
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
fn phone_allowed_by_the_api_is_served_within_a_second() {
    let site = site_with_operators();
    let server = site.start();
    let operators = Operators::of(&server).with_token(TOKEN);
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    assert_eq!(stranger.get("/site.cfg").unwrap().status, 403);
    let wanted = json!({ "mac": "00:00:5E:00:53:AA", "constituency": "ote", "note": "Küche \"2\"" });
    let answer = operators.post("/api/allow", &wanted);
    assert_eq!((answer.status, answer.json()), (200, json!({ "changed": true })));
    within_a_second("the phone to be accepted", || (stranger.get("/site.cfg").unwrap().status == 200).then_some(()));
    assert_eq!(operators.post("/api/allow", &wanted).json(), json!({ "changed": false }));
    assert!(std::fs::read_to_string(site.served("ote/constituency.json")).unwrap().contains("Küche \\\"2\\\""));
    let denied = operators.post("/api/deny", &json!({ "mac": STRANGER, "constituency": "ote" }));
    assert_eq!(denied.json(), json!({ "changed": true }));
    within_a_second("the phone to be refused", || (stranger.get("/site.cfg").unwrap().status == 403).then_some(()));
}

#[test]
fn every_answer_carries_security_headers() {
    let site = site_with_operators();
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

#[test]
fn api_phones_are_searched_sorted_and_paged() {
    let mut site = Site::new();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let note = |number: u32| if number == 7 { "the Küche" } else { "" };
    let phones: serde_json::Map<String, Value> =
        (0..30).map(|number| (format!("00005e0053{number:02x}"), json!(note(number)))).collect();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones }));
    site.constituency("home", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "denied": ["00005e005301"] }));
    site.file("ote/site.cfg", "<site/>");
    let server = site.start();
    let operators = Operators::of(&server);
    assert_eq!(server.client("ote", &FACTORY.device("00005e005305")).get("/site.cfg").unwrap().status, 200);
    assert_eq!(server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status, 403);
    let given = |query: &str| {
        let page = operators.json(&format!("/api/phones?{query}"));
        let macs = page["phones"].as_array().unwrap().iter().map(|phone| phone["mac"].as_str().unwrap().to_owned());
        (page["matching"].as_u64().unwrap(), macs.collect::<Vec<String>>())
    };
    eventually("the stranger", || (given("state=waiting").1 == [STRANGER]).then_some(()));
    assert_eq!(operators.json("/api/phones")["total"], 33);
    assert_eq!(given("").1[0], STRANGER, "phones that need an operator come first");
    assert_eq!(given("state=well").1, ["00005e005305"]);
    assert_eq!(given("state=denied&constituency=home").1, ["00005e005301"]);
    assert_eq!(given("search=k%C3%BCche").1, ["00005e005307"]);
    assert_eq!(given("search=00:00:5E:00:53:0C&constituency=home").1, [VVX500]);
    assert_eq!(
        given("sort=name&constituency=ote&offset=2&limit=2"),
        (31, vec!["00005e005302".to_owned(), "00005e005303".to_owned()])
    );
    // They may have sent requests within the same second.
    let mut seen = given("sort=last_seen&limit=2").1;
    seen.sort_unstable();
    assert_eq!(seen, ["00005e005305", STRANGER]);
    assert_eq!(given("search=nothing").0, 0);
}

#[test]
fn api_phone_history_lists_newest_requests_first() {
    let site = site_with_operators();
    let server = site.start();
    let operators = Operators::of(&server);
    let phone = server.client("ote", &FACTORY.device(VVX500));
    phone.get("/site.cfg").unwrap();
    phone.get("/nothing&lt;b.cfg").unwrap();
    let history = eventually("both requests", || {
        let answer = operators.get(&format!("/api/phones/ote/{VVX500}"));
        assert_eq!(answer.status, 200);
        let is_whole =
            |history: &Value| history["requests"].as_array().unwrap().len() == 2 && history["phone"]["state"] == "well";
        Some(answer.json()).filter(is_whole)
    });
    assert_eq!(history["phone"]["note"], "vvx500");
    assert_eq!((&history["requests"][0]["status"], &history["requests"][1]["status"]), (&json!(404), &json!(200)));
    assert_eq!(history["requests"][1]["target"], "/site.cfg");
    let page = operators.get(&format!("/phones/ote/{VVX500}"));
    assert!(page.status == 200 && page.headers["content-type"].starts_with("text/html"), "{page:?}");
    assert!(page.body.contains("/nothing&amp;lt;b.cfg"), "{}", page.body);
}

#[test]
fn activity_is_counted_and_survives_a_restart() {
    let site = site_with_operators();
    let server = site.start();
    let operators = Operators::of(&server);
    let phone = server.client("ote", &FACTORY.device(VVX500));
    for path in ["/site.cfg", "/site.cfg", "/nothing.cfg"] {
        phone.get(path).unwrap();
    }
    server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap();
    server.client("nobody", &FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
    let sums = |operators: &Operators| {
        let activity = operators.json("/api/overview")["activity"].clone();
        let sum = |key: &str| {
            let steps = activity[key].as_array().unwrap();
            assert_eq!(steps.len(), 144);
            steps.iter().map(|step| step.as_u64().unwrap()).sum::<u64>()
        };
        (sum("served"), sum("refused"), sum("handshakes"))
    };
    eventually("the recorded requests", || (sums(&operators) == (3, 2, 5)).then_some(()));
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    let server = site.start();
    let operators = Operators::of(&server);
    eventually("the earlier requests", || (sums(&operators) == (3, 2, 5)).then_some(()));
}

#[test]
fn events_stream_reports_new_activity() {
    use std::io::{BufRead, BufReader};
    let site = site_with_operators();
    let server = site.start();
    let operators = Operators::of(&server);
    let mut curl = operators.with(&["--no-buffer"]).curl("/events");
    let mut curl = curl.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "content-type: text/event-stream"));
    let mut numbers = lines.filter_map(|line| line.strip_prefix("data: ")?.parse::<u64>().ok());
    let first = numbers.next().unwrap();
    server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap();
    let second = numbers.next().unwrap();
    assert!(second > first);
    curl.kill().unwrap();
    curl.wait().unwrap();
}

#[test]
fn readyz_fails_only_if_no_phone_can_be_served() {
    let mut site = site_with_operators();
    let server = site.start();
    let operators = Operators::of(&server);
    assert_eq!((operators.get("/healthz").status, operators.get("/readyz").status), (200, 200));
    // With a broken bundle, no phone can be served.
    site.config["trust"]["factory"] = json!(["broken.pem"]);
    std::fs::write(site.path("broken.pem"), "no certificate").unwrap();
    drop(server);
    let server = site.start();
    let not_ready = Operators::of(&server).get("/readyz");
    assert!(not_ready.status == 503 && not_ready.body.contains("ote is not served"), "{not_ready:?}");
    assert_eq!(Operators::of(&server).get("/healthz").status, 200);
    // Another constituency can still be served.
    site.constituency("open", &json!({ "client_auth": "none" }));
    eventually("readiness", || (Operators::of(&server).get("/readyz").status == 200).then_some(()));
}

#[test]
fn readyz_fails_with_a_missing_or_expired_certificate() {
    let mut site = site_with_operators();
    site.config["certificate"] = json!({ "files": [{ "chain": "later.pem", "key": "later.key" }] });
    let server = site.start();
    let operators = Operators::of(&server);
    let not_ready = operators.get("/readyz");
    assert!(not_ready.status == 503 && not_ready.body.contains("no server certificate yet"), "{not_ready:?}");
    assert_eq!(operators.json("/api/overview")["not_ready"], "no server certificate yet");
    let day = std::time::Duration::from_secs(86_400);
    let mut params = rcgen::CertificateParams::new(vec!["*.phones.example.com".to_owned()]).unwrap();
    let now = std::time::SystemTime::now();
    valid(&mut params, now - 90 * day, now - day);
    SERVER_CA.issue(&params).write(&site.path("."), "later");
    let expired = eventually("an expired certificate", || {
        Some(operators.get("/readyz")).filter(|it| it.body.contains("certificate expired at"))
    });
    assert_eq!(expired.status, 503);
    server_certificate("phones.example.com", false).write(&site.path("."), "later");
    eventually("readiness", || (operators.get("/readyz").status == 200).then_some(()));
}

#[test]
fn overview_lists_problems_with_policies_and_the_history() {
    let site = site_with_operators();
    std::fs::create_dir_all(site.served("broken")).unwrap();
    std::fs::write(site.served("broken/constituency.json"), "{").unwrap();
    let server = site.start();
    let operators = Operators::of(&server);
    let overview = operators.json("/api/overview");
    let troubles = overview["troubles"].to_string();
    assert!(troubles.contains("broken: ") && troubles.contains("constituency.json"), "{troubles}");
    let broken = overview["constituencies"].as_array().unwrap().iter().find(|it| it["name"] == "broken").unwrap();
    assert_eq!(broken["url"], Value::Null);
    let problem = broken["problem"].as_str().unwrap();
    assert!(problem.contains("constituency.json:1:1: the file ends before the closing }"), "{problem}");
    assert_eq!(overview["constituencies"].as_array().unwrap().len(), 2);
    // The history's folder becomes a file, so that nothing can be written.
    std::fs::rename(site.path("state/ledger"), site.path("state/ledger.away")).unwrap();
    std::fs::write(site.path("state/ledger"), "").unwrap();
    server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap();
    eventually("the phone history's error", || {
        operators.json("/api/overview")["troubles"].to_string().contains("state/ledger").then_some(())
    });
    eventually("the phone history's metric", || {
        operators.get("/metrics").body.contains("provost_ledger_writable 0").then_some(())
    });
}
