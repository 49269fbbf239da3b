//! After the handshake, legacy TLS behaves like rustls: requests, uploads, large files, idle connections, and the phone
//! history.

use std::process::Command;
use std::time::Duration;

use super::*;
use crate::harness::Stopwatch;
use crate::harness::eventually;
use crate::harness::operators::Operators;
use crate::harness::site::holds;
use crate::harness::tool::{Ended, provost, run};

/// curl like a phone from before ECDHE, at the constituency `legacy`.
fn curl(site: &Site, server: &Running, arguments: &[&str], paths: &[&str]) -> Ended {
    let (chain, key) = PHONE.write(&site.path(""), "phone");
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--tlsv1.0", "--tls-max", "1.0", "--ciphers", "AES128-SHA:@SECLEVEL=0"]);
    curl.arg("--cacert").arg(site.path("server-ca.pem")).arg("--cert").arg(&chain).arg("--key").arg(&key);
    curl.args(["--connect-to", &format!("::{}", server.address())]).args(arguments);
    curl.args(paths.iter().map(|path| format!("https://legacy.{DOMAIN}/{path}")));
    // Debian's own restrictions do not apply.
    curl.env("OPENSSL_CONF", "/dev/null");
    run(&mut curl)
}

#[test]
fn phone_boots_and_uploads_over_legacy_tls() {
    let site = site_with_each_setting();
    let server = site.start();
    site.file(&format!("legacy/{VVX500}.cfg"), "<own/>");
    assert_eq!(curl(&site, &server, &[], &["site.cfg", &format!("{VVX500}.cfg")]).stdout, "<legacy/><own/>");
    assert_eq!(
        curl(&site, &server, &["--output", "/dev/null", "--write-out", "%{http_code}"], &["00005e0053c7.cfg"]).stdout,
        "403"
    );
    assert_eq!(
        curl(&site, &server, &["--output", "/dev/null", "--write-out", "%{http_code}"], &["absent.cfg"]).stdout,
        "404"
    );

    // Uploads, the second of which appends.
    let log = site.path("boot.log");
    std::fs::write(&log, "0123456789".repeat(2000)).unwrap();
    let name = format!("{VVX500}-app.log");
    let sent = curl(&site, &server, &["-T", log.to_str().unwrap(), "--write-out", "%{http_code}"], &[&name]);
    assert_eq!(sent.stdout, "201", "{}", sent.stderr);
    let stored = site.uploads("legacy", VVX500).join(&name);
    assert!(holds(&stored, "0123456789".repeat(2000)));
    std::fs::write(&log, "0123456789".repeat(3000)).unwrap();
    let sent =
        curl(&site, &server, &["-T", log.to_str().unwrap(), "-C", "20000", "--write-out", "%{http_code}"], &[&name]);
    assert_eq!(sent.stdout, "204", "{}", sent.stderr);
    assert!(holds(&stored, "0123456789".repeat(3000)));

    // Firmware, whole and in ranges.
    let firmware: Vec<u8> = (0..9_000_000_u32).map(|it| it.to_le_bytes()[usize::from(it % 3 == 0)]).collect();
    site.file("legacy/firmware.ld", &firmware);
    let to = site.path("got.ld");
    curl(&site, &server, &["--output", to.to_str().unwrap()], &["firmware.ld"]);
    assert!(holds(&to, &firmware));
    curl(&site, &server, &["--output", to.to_str().unwrap(), "--range", "4000000-8000000"], &["firmware.ld"]);
    assert!(holds(&to, &firmware[4_000_000..=8_000_000]));

    // An upload that is too large is refused, and the phone can read the answer.
    std::fs::write(&log, vec![b'x'; 6 << 20]).unwrap();
    let sent =
        curl(&site, &server, &["-H", "Expect:", "-T", log.to_str().unwrap(), "--write-out", "%{http_code}"], &[&name]);
    assert_eq!((sent.stdout.as_str(), sent.code), ("Payload Too Large\n413", 0), "{}", sent.stderr);
    let lines = eventually("all lines", || Some(server.access_lines()).filter(|lines| lines.len() >= 9));
    assert!(lines.iter().all(|line| line["lane"] == "old" && line["mac"] == VVX500), "{lines:?}");
}

#[test]
fn legacy_connection_is_answered_again_and_closed_on_shutdown() {
    let site = site_with_each_setting();
    let server = site.start();
    let mut phone = OpenConnection::start(&site, &server, "legacy", &PHONE, OLD);
    for _ in 0..3 {
        assert_eq!(phone.ask(), 200);
    }
    let _without_request = OpenConnection::start(&site, &server, "legacy", &PHONE, OLD);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    phone.wait_for_close();
}

#[test]
fn phones_that_need_legacy_tls_are_listed_and_marked() {
    let mut site = site_with_each_setting();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    assert!(attempt(&site, &server, "legacy", Some(&PHONE), "-tls1 -cipher AES128-SHA:@SECLEVEL=0").is_served());
    assert!(
        attempt(&site, &server, "compatible", Some(&PHONE), "-tls1_2 -cipher DHE-RSA-AES128-SHA:@SECLEVEL=0")
            .is_served()
    );
    assert!(attempt(&site, &server, "modern", Some(&PHONE), "-tls1_2").is_served());
    let config = site.path("provost.json");
    let list = |arguments: &[&str]| {
        let all = [&["phones", "--config", config.to_str().unwrap()], arguments].concat();
        provost(&site.path(""), &all).stdout
    };
    let listed = eventually("three phones", || {
        let all = list(&["--json"]);
        let seen: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (seen.iter().filter(|phone| phone["tls"].is_string()).count() == 3).then_some(seen)
    });
    let level = |name: &str| listed.iter().find(|phone| phone["constituency"] == name).unwrap()["tls_level"].clone();
    assert_eq!([level("modern"), level("compatible"), level("legacy")], ["modern", "compatible", "legacy"]);
    let old = list(&["--tls-legacy"]);
    assert_eq!(old.matches(VVX500).count(), 2, "{old}");
    assert!(old.contains("it needs \"tls\": \"legacy\" (TLSv1.0, TLS_RSA_WITH_AES_128_CBC_SHA)"), "{old}");
    assert!(old.contains("it needs \"tls\": \"compatible\" (TLSv1.2, TLS_DHE_RSA_WITH_AES_128_CBC_SHA)"), "{old}");

    // A phone that supports only SHA-1 signatures needs more than its version and suite show.
    let sha1 = "-tls1_2 -cipher AES128-SHA:@SECLEVEL=0 -sigalgs RSA+SHA1";
    assert!(attempt(&site, &server, "legacy", Some(&PHONE), sha1).is_served());
    let needs = "it needs \"tls\": \"legacy\" (TLSv1.2-sha1, TLS_RSA_WITH_AES_128_CBC_SHA)";
    eventually("the phone to be listed so", || list(&["--tls-legacy"]).contains(needs).then_some(()));
    assert!(attempt(&site, &server, "legacy", Some(&PHONE), "-tls1 -cipher AES128-SHA:@SECLEVEL=0").is_served());

    let operators = Operators::of(&server);
    let metric = r#"provost_phones_tls{constituency="legacy",level="legacy",version="TLSv1.0",suite="TLS_RSA_WITH_AES_128_CBC_SHA"} 1"#;
    eventually("the metric", || operators.get("/metrics").body.lines().any(|line| line == metric).then_some(()));
    let page = |constituency: &str| operators.get(&format!("/phones/{constituency}/{VVX500}")).body;
    assert!(page("legacy").contains("old TLS</span> (legacy)"), "{}", page("legacy"));
    assert!(!page("modern").contains("old TLS"), "{}", page("modern"));

    // A phone that became modern leaves the list, which shows the next one.
    assert!(attempt(&site, &server, "legacy", Some(&PHONE), "-tls1_3").is_served());
    eventually("the phone to be modern", || (list(&["--tls-legacy"]).matches(VVX500).count() == 1).then_some(()));
    drop(server);
    assert_eq!(list(&["--tls-legacy", "--constituency", "legacy"]).matches(VVX500).count(), 0);
}

/// A request over legacy TLS must not wait for anything, such as delayed acknowledgements.
#[test]
fn legacy_tls_answers_are_not_delayed() {
    let site = site_with_each_setting();
    let server = site.start();
    let paths = ["site.cfg"; 50];
    let watch = Stopwatch::start();
    let answered = curl(&site, &server, &[], &paths);
    assert_eq!(answered.stdout, "<legacy/>".repeat(50));
    watch.at_most(Duration::from_secs(2), "50 requests");
}
