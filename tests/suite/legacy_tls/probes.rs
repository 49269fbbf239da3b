//! The findings of the scanner testssl.sh about each setting.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::harness::tool::run;

/// Protocols, categories of suites, ROBOT, POODLE, Logjam, Lucky13, `FALLBACK_SCSV`, CRIME and FREAK.
const CHECKS: [&str; 9] = ["-p", "-s", "-BB", "-O", "-J", "-L", "-Z", "-C", "-F"];

/// The findings at every setting: severity and start of the text.
const ALWAYS: [(&str, &str, &str); 15] = [
    ("SSLv2", "OK", "not offered"),
    ("SSLv3", "OK", "not offered"),
    ("TLS1_2", "OK", "offered"),
    ("TLS1_3", "OK", "offered with final"),
    ("cipherlist_NULL", "OK", "not offered"),
    ("cipherlist_aNULL", "OK", "not offered"),
    ("cipherlist_EXPORT", "OK", "not offered"),
    ("cipherlist_LOW", "OK", "not offered"),
    ("cipherlist_3DES_IDEA", "INFO", "not offered"),
    ("cipherlist_STRONG", "OK", "offered"),
    ("ROBOT", "OK", "not vulnerable"),
    ("POODLE_SSL", "OK", "not vulnerable"),
    ("CRIME_TLS", "OK", "not vulnerable"),
    ("FREAK", "OK", "not vulnerable"),
    ("LOGJAM", "OK", "not vulnerable"),
];

/// The findings that differ by setting. Lucky13 is an attack on CBC, and testssl.sh reports it as possible wherever CBC
/// is offered, because it cannot see that OpenSSL decrypts in constant time.
const DIFFERENT: [(&str, [(&str, &str); 3]); 4] = [
    ("TLS1", [("INFO", "not offered"), ("INFO", "not offered"), ("LOW", "offered (deprecated)")]),
    ("TLS1_1", [("INFO", "not offered"), ("INFO", "not offered"), ("LOW", "offered (deprecated)")]),
    ("cipherlist_AVERAGE", [("INFO", "not offered"), ("LOW", "offered"), ("LOW", "offered")]),
    ("LUCKY13", [("OK", "not vulnerable"), ("LOW", "potentially"), ("LOW", "potentially")]),
];

/// The findings of testssl.sh about a constituency: severity and text of each.
fn findings(server: &Running, folder: &Path, setting: &str) -> std::collections::BTreeMap<String, (String, String)> {
    let json = folder.join(format!("{setting}.json"));
    let mut testssl = Command::new("testssl");
    testssl.args([
        "--quiet",
        "--color",
        "0",
        "--warnings",
        "off",
        "--ip",
        "127.0.0.1",
        "--nodns",
        "none",
        "--jsonfile",
    ]);
    testssl.arg(&json).args(CHECKS).arg(format!("https://{setting}.{DOMAIN}:{}", server.address().port()));
    let ended = run(&mut testssl);
    let text = std::fs::read_to_string(&json).unwrap_or_else(|error| panic!("{error}: {}", ended.stdout));
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let said = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    all.iter().map(|it| (said(it, "id"), (said(it, "severity"), said(it, "finding")))).collect()
}

#[test]
fn testssl_findings_match_each_tls_setting() {
    let site = Site::new();
    for setting in SETTINGS {
        // Without client authentication, because testssl.sh presents no certificate.
        site.constituency(setting, &json!({ "client_auth": "none", "tls": setting }));
    }
    let server = site.start();
    // Most of the time is waiting.
    std::thread::scope(|scope| {
        for (which, setting) in SETTINGS.into_iter().enumerate() {
            let (server, folder) = (&server, site.path(""));
            scope.spawn(move || {
                let found = findings(server, &folder, setting);
                let expected = ALWAYS.into_iter().chain(DIFFERENT.map(|(id, by)| (id, by[which].0, by[which].1)));
                let mut seen = 0;
                for (id, severity, finding) in expected {
                    let said = found.get(id).unwrap_or_else(|| panic!("{setting}: nothing of {id} in {found:?}"));
                    assert!(said.0 == severity && said.1.starts_with(finding), "{setting}, {id}: {said:?}");
                    seen += 1;
                }
                assert_eq!(seen, ALWAYS.len() + DIFFERENT.len());
                // 2048 bits of a well-known group, or none.
                let prime = found.get("LOGJAM-common_primes").map(|(severity, finding)| (&severity[..], &finding[..]));
                let old = Some(("INFO", "RFC7919/ffdhe2048"));
                assert_eq!(prime.filter(|(severity, _)| *severity != "OK"), old.filter(|_| which > 0), "{setting}");
                let fallback = &found["fallback_SCSV"];
                assert!(["OK", "INFO"].contains(&&fallback.0[..]), "{setting}: {fallback:?}");
                let worse =
                    found.iter().filter(|(_, (severity, _))| ["MEDIUM", "HIGH", "CRITICAL"].contains(&&severity[..]));
                assert_eq!(worse.collect::<Vec<_>>(), [], "{setting}");
            });
        }
    });
}
