//! The metrics: their exact values, and their formats.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::{FACTORY, OTHER_FACTORY};
use crate::harness::site::{Running, Site};
use crate::harness::tool::provost;
use crate::harness::{STRANGER, VVX500, eventually, not_run};

/// A site with an operators' listener, after various requests.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    site
}

fn send_various_requests(server: &Running) {
    // Before the phone itself, because this claim would mark it as possibly locked out.
    server.client("ote", &OTHER_FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
    let phone = server.client("ote", &FACTORY.device(VVX500));
    for path in ["/site.cfg", "/site.cfg", "/site.cfg", "/nothing.cfg"] {
        phone.get(path).unwrap();
    }
    server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap();
    server.client("nobody", &FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
}

/// The metrics, once they include all requests: a refusal is counted after its client has the answer.
fn metrics(operators: &Operators) -> String {
    let last = [
        r#"code="200"} 3"#,
        r#"code="404"} 1"#,
        r#"code="403"} 1"#,
        r#"outcome="refused"} 2"#,
        r#"state="waiting"} 1"#,
        r#"state="well"} 1"#,
    ];
    eventually("the figures", || {
        let text = operators.get("/metrics").body;
        last.iter().all(|part| text.contains(part)).then_some(text)
    })
}

#[test]
fn metrics_count_exactly_what_was_done() {
    let site = site();
    let server = site.start();
    let operators = Operators::of(&server);
    send_various_requests(&server);
    let text = metrics(&operators);
    let length = "<site/>".len();
    for expected in [
        r#"provost_requests_total{constituency="ote",method="GET",code="200"} 3"#,
        r#"provost_requests_total{constituency="ote",method="GET",code="404"} 1"#,
        r#"provost_requests_total{constituency="ote",method="GET",code="403"} 1"#,
        r#"provost_refusals_total{constituency="ote",reason="unknown_phone"} 1"#,
        r#"provost_refusals_total{constituency="ote",reason="unknown_issuer"} 1"#,
        r#"provost_refusals_total{constituency="",reason="unknown_name"} 1"#,
        r#"provost_handshakes_total{outcome="refused"} 2"#,
        r#"provost_phones{constituency="ote",state="well"} 1"#,
        r#"provost_phones{constituency="ote",state="waiting"} 1"#,
        r#"provost_phones_seen{constituency="ote"} 2"#,
        r#"provost_constituencies{state="served"} 1"#,
        r#"provost_constituencies{state="broken"} 0"#,
        "provost_ready 1",
        "provost_ledger_writable 1",
        "provost_ledger_dropped_sightings_total 0",
        "provost_ledger_dropped_claims_total 0",
        "provost_access_log_lost_lines_total 0",
        &format!("provost_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected} is not in\n{text}");
    }
    let value = |start: &str| -> u64 {
        let mut lines = text.lines().filter(|line| line.starts_with(start));
        lines.next().unwrap_or_else(|| panic!("{start} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    let finished = r#"provost_handshakes_total{outcome=""#;
    let finished = value(&format!("{finished}full\"}}")) + value(&format!("{finished}resumed\"}}"));
    assert!((5..=6).contains(&finished), "{finished} handshakes for 5 requests of phones that were let in:\n{text}");
    assert!(value(r#"provost_sent_bytes_total{constituency="ote"}"#) >= 3 * length as u64);
    assert!(value(r#"provost_certificate_expiry_timestamp_seconds{key="rsa""#) > value("provost_start_time_seconds"));
}

#[test]
fn metrics_without_constituencies_are_the_same_in_total() {
    let mut site = site();
    site.config["status"]["metrics"] = json!("totals");
    let server = site.start();
    let operators = Operators::of(&server);
    send_various_requests(&server);
    let text = metrics(&operators);
    for expected in [
        r#"provost_requests_total{method="GET",code="200"} 3"#,
        r#"provost_refusals_total{reason="unknown_name"} 1"#,
        r#"provost_phones{state="well"} 1"#,
        r#"provost_phones{state="waiting"} 1"#,
        "provost_phones_seen 2",
        "provost_phones_silent_together 0",
        r#"provost_phones_tls{level="modern",version="TLSv1.3",suite="TLS13_AES_128_GCM_SHA256"} 2"#,
        r#"provost_constituencies{state="served"} 1"#,
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected} is not in\n{text}");
    }
    assert!(!text.contains("constituency="), "{text}");
}

#[test]
fn metrics_are_valid_prometheus_and_openmetrics() {
    let site = site();
    let server = site.start();
    let operators = Operators::of(&server);
    send_various_requests(&server);
    let plain = metrics(&operators);
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let open = operators.with(&["-H", accept]).get("/metrics");
    assert!(open.headers["content-type"].starts_with("application/openmetrics-text; version=1.0.0"), "{open:?}");
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
    check("metrics", &plain);
}

/// The names of our metrics in `text`.
fn names(text: &str) -> BTreeSet<String> {
    let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_';
    let words = text.split(|it| !is_name(it)).filter(|word| word.starts_with("provost_"));
    words.map(str::to_owned).collect()
}

/// Configures `site` for a CA that does not answer.
pub fn cannot_renew(site: &mut Site) {
    std::fs::write(
        site.path("tsig.key"),
        "key \"provost.\" { algorithm hmac-sha256; secret \"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MTI=\"; };",
    )
    .unwrap();
    std::fs::set_permissions(site.path("tsig.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    site.config["certificate"] = json!({ "acme": {
        "directory": "https://127.0.0.1:1/directory", "terms_of_service_agreed": true,
        "dns": { "primary": "127.0.0.1:1", "tsig_key_file": "tsig.key" }
    } });
}

/// The metrics of a server after requests, and of one that cannot renew.
fn all_metrics() -> String {
    let plain = site();
    let server = plain.start();
    send_various_requests(&server);
    let mut text = metrics(&Operators::of(&server));
    let mut renews = site();
    cannot_renew(&mut renews);
    let server = renews.start();
    let operators = Operators::of(&server);
    text += &eventually("a renewal that failed", || {
        let text = operators.get("/metrics").body;
        text.contains("provost_renewal_failures_total{key=\"rsa\"} 1").then_some(text)
    });
    assert!(text.contains("provost_ready 0"), "{text}");
    let not_ready = operators.get("/readyz");
    assert!(not_ready.status == 503 && not_ready.body.contains("no server certificate yet: "), "{not_ready:?}");
    text
}

#[test]
fn alerts_and_dashboard_name_only_existing_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let printed = |what: &str| {
        let ended = provost(folder.path(), &["print", what]);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout
    };
    let there = names(&all_metrics());
    assert!(there.len() >= 20, "{there:?}");
    let alerts = printed("prometheus-alerts");
    check("rules", &alerts);
    let rules = alerts.matches("- alert: ").count();
    assert!(rules >= 12, "{rules}");
    assert_eq!(alerts.matches("summary: ").count(), rules, "each has a remedy");
    let dashboard: Value = serde_json::from_str(&printed("grafana-dashboard")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 12 && panels.iter().all(|panel| panel["targets"][0]["expr"].is_string()));
    let (in_alerts, in_dashboard) = (names(&alerts), names(&dashboard.to_string()));
    assert!(in_alerts.len() >= 10 && in_dashboard.len() >= 10, "{in_alerts:?} {in_dashboard:?}");
    let missing: Vec<_> = in_alerts.union(&in_dashboard).filter(|name| !there.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?} are not among {there:?}");
}

/// Runs `promtool check` on `text`.
fn check(what: &str, text: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let mut promtool = Command::new("promtool");
    promtool.args(["check", what]);
    if what == "rules" {
        promtool.arg(file.path());
    } else {
        promtool.stdin(file.reopen().unwrap());
    }
    let Ok(output) = promtool.output() else {
        return not_run("promtool", "Debian's package prometheus is not installed");
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{text}");
    assert!(!said.contains("error"), "{said}\n{text}");
}
