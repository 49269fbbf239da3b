//! Readiness and the state of certificates: the page, the API, the metrics, `/readyz`, `check` and `certificate status`
//! agree, because one function decides.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use rcgen::CertificateParams;
use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::{DAY, Identity, SERVER_CA, ca_params, valid};
use crate::harness::prometheus::firing;
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::{Ended, provost};
use crate::harness::{eventually, not_run};

const HOUR: Duration = Duration::from_secs(3600);

/// The outputs about the certificates.
struct Reports {
    ready: (u16, String),
    certificates: Vec<Value>,
    page: String,
    metrics: String,
    check: Ended,
    status: Ended,
}

fn said(site: &Site, server: &Running) -> Reports {
    let operators = Operators::of(server);
    let ready = operators.get("/readyz");
    let overview = operators.json("/api/overview");
    Reports {
        ready: (ready.status, ready.body),
        certificates: overview["certificates"].as_array().unwrap().clone(),
        page: operators.get("/").body,
        metrics: operators.get("/metrics").body,
        check: provost(&site.path("."), &["check"]),
        status: provost(&site.path("."), &["certificate", "status"]),
    }
}

impl Reports {
    /// Asserts that all outputs report this level, state and reason for the certificate of `name`.
    #[track_caller]
    fn assert_all_report(&self, key: &str, name: &str, (level, state): (&str, &str), reason: &str) {
        let is_it = |it: &&Value| it["key"] == key && it["names"][0] == name;
        let own = self.certificates.iter().find(is_it).unwrap_or_else(|| panic!("{:?}", self.certificates));
        assert_eq!((&own["level"], &own["state"]), (&json!(level), &json!(state)), "{own}");
        let gauge = |at: &str| {
            let key = key.to_ascii_lowercase();
            format!(
                "provost_certificate_condition{{key=\"{key}\",name=\"{name}\",level=\"{at}\"}} {}",
                u8::from(at == level)
            )
        };
        for at in ["ok", "warning", "error"] {
            assert!(self.metrics.lines().any(|line| line == gauge(at)), "{} in\n{}", gauge(at), self.metrics);
        }
        let alerts: &[(&str, &str)] =
            &[("error", "ProvostCertificateNearExpiry"), ("warning", "ProvostCertificateNotRenewed")];
        match firing(&self.metrics) {
            None => not_run("promtool", "Debian's package prometheus is not installed"),
            Some(firing) => {
                for (at, alert) in alerts {
                    assert_eq!(firing.contains(*alert), *at == level, "{alert} among {firing:?}");
                }
            }
        }
        let lines = [&self.check.stdout, &self.status.stdout, &self.ready.1];
        if level == "ok" {
            assert_eq!((self.check.code, self.status.code, self.ready.0), (0, 0, 200), "{}", self.check.stdout);
            assert_eq!(self.ready.1, "ready\n");
            assert!(self.page.contains("No problems"), "{}", self.page);
            assert!(!self.check.stdout.contains("certificate: "), "{}", self.check.stdout);
            return;
        }
        assert!(!self.page.contains("No problems") && self.page.contains(reason), "{reason} in {}", self.page);
        let is_said = |text: &str| text.lines().any(|line| line.contains(level) && line.contains(reason));
        for (text, place) in lines.into_iter().zip(["check", "status", "readyz"]) {
            assert!(is_said(text), "{place}: {level}, {reason} in\n{text}");
        }
        let code = i32::from(level == "error");
        assert_eq!((self.check.code, self.status.code), (code, code), "{}\n{}", self.check.stdout, self.status.stdout);
    }
}

/// A server certificate for `name` of this age and lifetime.
fn certificate(name: &str, is_rsa: bool, age: Duration, lifetime: Duration) -> Identity {
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let begin = SystemTime::now() - age;
    valid(&mut params, begin, begin + lifetime);
    if is_rsa { SERVER_CA.issue_rsa(&params) } else { SERVER_CA.issue(&params) }
}

/// A site with an operators' listener, whose phones find a master configuration.
fn site_with_operators() -> Site {
    let mut site = Site::with_ote();
    site.file("ote/000000000000.cfg", r#"<APPLICATION CONFIG_FILES="site.cfg"/>"#);
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    site
}

#[test]
fn certificate_near_expiry_is_reported_everywhere() {
    let (ok, soon, error) = (("ok", "valid"), ("warning", "ends_soon"), ("error", "ends_soon"));
    let cases = [
        (90 * DAY, 2159 * HOUR, ok, ""),
        (90 * DAY, 23 * DAY, ok, ""),
        (90 * DAY, 22 * DAY, soon, "has not been renewed"),
        (90 * DAY, DAY, error, "has not been renewed"),
        (6 * DAY, 37 * HOUR, ok, ""),
        (6 * DAY, 35 * HOUR, soon, "has not been renewed"),
        (6 * DAY, 20 * HOUR, error, "has not been renewed"),
    ];
    for (index, (lifetime, left, level, reason)) in cases.into_iter().enumerate() {
        let is_rsa = index % 2 == 0;
        let mut site = site_with_operators();
        let wildcard = format!("*.{DOMAIN}");
        certificate(&wildcard, is_rsa, lifetime.saturating_sub(left), lifetime).write(&site.path("."), "own");
        site.config["certificate"] = json!({ "files": [{ "chain": "own.pem", "key": "own.key" }] });
        let server = site.start();
        let said = said(&site, &server);
        said.assert_all_report(if is_rsa { "RSA" } else { "ECDSA" }, &wildcard, level, reason);
        assert_eq!(said.ready.0, 200, "a certificate that is valid makes no server unready: {}", said.ready.1);
    }
}

#[test]
fn one_expiring_pair_beside_valid_ones_is_reported() {
    let exact = format!("old.{DOMAIN}");
    for (name, is_rsa) in [(&*exact, true), (&*exact, false), (&format!("*.{DOMAIN}"), true)] {
        let mut site = site_with_operators();
        site.constituency("old", &json!({ "client_auth": "none", "certificate_names": "exact" }));
        site.file("old/000000000000.cfg", r#"<APPLICATION CONFIG_FILES=""/>"#);
        certificate(name, is_rsa, 89 * DAY, 90 * DAY).write(&site.path("."), "own");
        let mut pairs = vec![json!({ "chain": "own.pem", "key": "own.key" })];
        if name != exact {
            certificate(&exact, true, DAY, 90 * DAY).write(&site.path("."), "exact");
            pairs.push(json!({ "chain": "exact.pem", "key": "exact.key" }));
        }
        site.config["certificate"]["files"].as_array_mut().unwrap().extend(pairs);
        let server = site.start();
        let key = if is_rsa { "RSA" } else { "ECDSA" };
        // The site's own certificate is for the wildcard too; of two with the same key type and names, the worse one
        // counts.
        let said = said(&site, &server);
        let levels: Vec<&str> = said.certificates.iter().filter_map(|it| it["level"].as_str()).collect();
        assert_eq!(levels.iter().filter(|level| **level == "error").count(), 1, "{:?}", said.certificates);
        assert!(said.ready.0 == 200 && said.ready.1.contains(&format!("error: the {key} certificate for {name}")));
        assert!(said.page.contains("1 problem needs attention"), "{}", said.page);
        assert_eq!((said.check.code, said.status.code), (1, 1), "{}", said.check.stdout);
    }
}

#[test]
fn server_without_a_valid_certificate_is_not_ready() {
    let cases = [
        (100 * DAY, 90 * DAY, "expired", "certificate expired at"),
        (DAY, 23 * HOUR, "expired", "certificate expired at"),
    ];
    for (age, lifetime, state, reason) in cases {
        let mut site = site_with_operators();
        let wildcard = format!("*.{DOMAIN}");
        certificate(&wildcard, true, age, lifetime).write(&site.path("."), "own");
        site.config["certificate"] = json!({ "files": [{ "chain": "own.pem", "key": "own.key" }] });
        let server = site.start();
        let said = said(&site, &server);
        assert!(said.ready.0 == 503 && said.ready.1.contains(reason), "{:?}", said.ready);
        said.assert_all_report("RSA", &wildcard, ("error", state), "expired at");
        assert_alert(&said.metrics, "ProvostNotReady", true);
        // Another valid one is enough.
        let files = site.config["certificate"]["files"].as_array_mut().unwrap();
        files.push(json!({ "chain": "ec.pem", "key": "ec.key" }));
        drop(server);
        let server = site.start();
        let ready = Operators::of(&server).get("/readyz");
        assert!(ready.status == 200 && ready.body.contains("\nerror: the RSA certificate"), "{ready:?}");
    }
}

#[test]
fn expired_pair_is_not_presented_beside_a_valid_one() {
    let (exact, wildcard) = (format!("home.{DOMAIN}"), format!("*.{DOMAIN}"));
    // The names and the key type of the expired pair.
    for (name, is_rsa) in [(&exact, true), (&exact, false), (&wildcard, false), (&wildcard, true)] {
        let mut site = site_with_operators();
        site.constituency("home", &json!({ "client_auth": "none", "certificate_names": "exact" }));
        site.file("home/000000000000.cfg", r#"<APPLICATION CONFIG_FILES=""/>"#);
        certificate(name, is_rsa, 100 * DAY, 90 * DAY).write(&site.path("."), "expired");
        let valid = certificate(&wildcard, true, DAY, 90 * DAY);
        valid.write(&site.path("."), "valid");
        let pair = |name: &str| json!({ "chain": format!("{name}.pem"), "key": format!("{name}.key") });
        site.config["certificate"] = json!({ "files": [pair("expired"), pair("valid")] });
        let server = site.start();
        for label in ["home", "ote"] {
            let client = Client::new(server.address(), Some(&format!("{label}.{DOMAIN}")));
            let connection = client.connect().unwrap();
            let shown = connection.tls().peer_certificates().unwrap()[0].clone().into_owned();
            assert_eq!(shown, valid.chain[0], "{label} beside an expired certificate for {name}, RSA: {is_rsa}");
        }
        let ready = Operators::of(&server).get("/readyz");
        assert!(ready.status == 200 && ready.body.contains(&format!("certificate for {name} expired at")), "{ready:?}");
    }
}

#[test]
fn server_presenting_only_an_expired_certificate_is_not_ready() {
    let mut site = site_with_operators();
    certificate(&format!("*.{DOMAIN}"), true, 100 * DAY, 90 * DAY).write(&site.path("."), "expired");
    // Phones of other constituencies refuse this one too.
    certificate(&format!("other.{DOMAIN}"), false, DAY, 90 * DAY).write(&site.path("."), "other");
    let pair = |name: &str| json!({ "chain": format!("{name}.pem"), "key": format!("{name}.key") });
    site.config["certificate"] = json!({ "files": [pair("expired"), pair("other")] });
    let server = site.start();
    let ready = Operators::of(&server).get("/readyz");
    assert!(ready.status == 503 && ready.body.contains("the RSA certificate expired at"), "{ready:?}");
}

/// A site whose only pair is `own` with this identity.
fn presenting(own: &Identity) -> Site {
    let mut site = site_with_operators();
    own.write(&site.path("."), "own");
    site.config["certificate"] = json!({ "files": [{ "chain": "own.pem", "key": "own.key" }] });
    site
}

#[test]
fn certificate_for_other_names_is_an_error_everywhere() {
    for name in ["*.other.example.org", DOMAIN] {
        let site = presenting(&certificate(name, true, DAY, 90 * DAY));
        let server = site.start();
        let said = said(&site, &server);
        said.assert_all_report("RSA", name, ("error", "wrong_names"), &format!("does not cover *.{DOMAIN}"));
        assert_eq!(said.ready.0, 200, "a certificate that is valid makes no server unready: {}", said.ready.1);
    }
}

#[test]
fn intermediate_near_expiry_is_reported_everywhere() {
    let wildcard = format!("*.{DOMAIN}");
    for (left, level, reason) in [
        (Some(80 * DAY), ("ok", "valid"), ""),
        (Some(20 * DAY), ("warning", "ends_soon"), "\"Test Intermediate\" in its chain, which expires at"),
        (Some(5 * DAY), ("error", "ends_soon"), "\"Test Intermediate\" in its chain, which expires at"),
        (None, ("error", "expired"), "\"Test Intermediate\" in its chain, which expired at"),
    ] {
        let (mut ca, mut leaf) =
            (ca_params("Test Intermediate"), CertificateParams::new(vec![wildcard.clone()]).unwrap());
        let now = SystemTime::now();
        valid(&mut ca, now - 1000 * DAY, left.map_or(now - HOUR, |left| now + left));
        valid(&mut leaf, now - DAY, now + 89 * DAY);
        let ca = SERVER_CA.below(ca);
        let site = presenting(&ca.issue(&leaf).with(&ca));
        let server = site.start();
        let said = said(&site, &server);
        assert_eq!(said.ready.0, 200, "{}", said.ready.1);
        // The page escapes quotation marks.
        let said = Reports { page: said.page.replace("&quot;", "\""), ..said };
        said.assert_all_report("ECDSA", &wildcard, level, reason);
    }
}

#[test]
fn chain_with_expired_intermediate_yields_to_a_valid_one() {
    let (mut ca, leaf) = (ca_params("Test Intermediate"), CertificateParams::new(vec![format!("*.{DOMAIN}")]).unwrap());
    valid(&mut ca, SystemTime::now() - 1000 * DAY, SystemTime::now() - HOUR);
    let ca = SERVER_CA.below(ca);
    let mut site = presenting(&ca.issue(&leaf).with(&ca));
    let whole = certificate(&format!("*.{DOMAIN}"), true, DAY, 90 * DAY);
    whole.write(&site.path("."), "whole");
    let files = site.config["certificate"]["files"].as_array_mut().unwrap();
    files.push(json!({ "chain": "whole.pem", "key": "whole.key" }));
    let server = site.start();
    let connection = Client::new(server.address(), Some(&format!("ote.{DOMAIN}"))).connect().unwrap();
    assert_eq!(connection.tls().peer_certificates().unwrap(), whole.chain);
}

#[test]
fn broken_certificate_files_are_reported_until_repaired() {
    type Break<'a> = (&'a dyn Fn(), &'a str);

    let own = certificate(&format!("*.{DOMAIN}"), true, DAY, 90 * DAY);
    let site = presenting(&own);
    let server = site.start();
    let (chain, key) = (site.path("own.pem"), site.path("own.key"));
    let breaks: [Break<'_>; 4] = [
        (&|| std::fs::remove_file(&key).unwrap(), "own.key: No such file"),
        (
            &|| {
                certificate("x", true, DAY, DAY).write(&site.path("."), "own");
                own.write(&site.path("other"), "own");
                std::fs::copy(site.path("other/own.pem"), &chain).unwrap();
            },
            "does not match",
        ),
        (&|| std::fs::write(&chain, "").unwrap(), "holds no certificate"),
        (
            &|| {
                std::fs::remove_file(&chain).unwrap();
                std::fs::remove_file(&key).unwrap();
            },
            "own.pem: No such file",
        ),
    ];
    std::fs::create_dir(site.path("other")).unwrap();
    let operators = Operators::of(&server);
    for (break_files, reason) in breaks {
        break_files();
        let ready = eventually(reason, || Some(operators.get("/readyz")).filter(|it| it.body.contains(reason)));
        assert!(ready.status == 200 && ready.body.contains("error: the RSA certificate for *."), "{ready:?}");
        let gauge = format!("provost_certificate_condition{{key=\"rsa\",name=\"*.{DOMAIN}\",level=\"error\"}} 1\n");
        let said = eventually("a snapshot with the reason", || {
            Some(said(&site, &server)).filter(|said| said.page.contains(reason) && said.metrics.contains(&gauge))
        });
        let view = &said.certificates[0];
        assert_eq!((&view["level"], &view["state"]), (&json!("error"), &json!("files_unusable")));
        assert!(said.page.contains("can no longer be read from its files"), "{}", said.page);
        assert_eq!((said.check.code, said.status.code), (1, 1), "{}", said.check.stdout);
        own.write(&site.path("."), "own");
        eventually("good files", || (operators.get("/readyz").body == "ready\n").then_some(()));
    }
}

#[test]
fn never_usable_pair_is_reported_beside_a_valid_one() {
    let mut site = site_with_operators();
    std::fs::remove_file(site.path("rsa.key")).unwrap();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = site.start();
    let said = said(&site, &server);
    assert!(said.ready.0 == 200 && said.ready.1.contains("rsa.pem could not be"), "{:?}", said.ready);
    assert!(said.page.contains("rsa.key: No such file"), "{}", said.page);
    assert!(said.metrics.contains("provost_certificate_condition{key=\"unknown\""), "{}", said.metrics);
    let own = said.certificates.iter().find(|it| it["key"] == "unknown").unwrap();
    assert_eq!((&own["level"], &own["state"]), (&json!("error"), &json!("missing")));
}

#[test]
fn not_yet_valid_certificate_advises_to_check_the_clock() {
    let mut site = site_with_operators();
    let wildcard = format!("*.{DOMAIN}");
    let mut params = rcgen::CertificateParams::new(vec![wildcard.clone()]).unwrap();
    valid(&mut params, SystemTime::now() + DAY, SystemTime::now() + 90 * DAY);
    SERVER_CA.issue(&params).write(&site.path("."), "own");
    site.config["certificate"] = json!({ "files": [{ "chain": "own.pem", "key": "own.key" }] });
    let server = site.start();
    let said = said(&site, &server);
    assert_eq!(said.ready.0, 503, "{:?}", said.ready);
    said.assert_all_report("ECDSA", &wildcard, ("error", "not_yet_valid"), "check this machine's clock");
}

#[track_caller]
fn assert_alert(metrics: &str, alert: &str, fires: bool) {
    match firing(metrics) {
        None => not_run("promtool", "Debian's package prometheus is not installed"),
        Some(firing) => assert_eq!(firing.contains(alert), fires, "{alert} among {firing:?}"),
    }
}

/// A site whose CA is unreachable, with an obtained certificate of this age and lifetime.
fn cannot_renew(age: Duration, lifetime: Duration, names: &[String]) -> Site {
    let mut site = site_with_operators();
    let key = "key \"provost.\" { algorithm hmac-sha256; secret \"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MTI=\"; };";
    std::fs::write(site.path("tsig.key"), key).unwrap();
    std::fs::set_permissions(site.path("tsig.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    site.config["certificate"] = json!({ "acme": {
        "directory": "https://127.0.0.1:1/directory", "terms_of_service_agreed": true, "keys": ["rsa-2048"],
        "dns": { "primary": "127.0.0.1:1", "tsig_key_file": "tsig.key" }
    } });
    let folder = site.path("state/certs/rsa-2048/1");
    std::fs::create_dir_all(&folder).unwrap();
    let mut params = rcgen::CertificateParams::new(names.to_vec()).unwrap();
    let begin = SystemTime::now() - age;
    valid(&mut params, begin, begin + lifetime);
    SERVER_CA.issue_rsa(&params).write(&folder, "key");
    std::fs::rename(folder.join("key.pem"), folder.join("chain.pem")).unwrap();
    std::fs::rename(folder.join("key.key"), folder.join("key.pem")).unwrap();
    let meta = json!({ "directory": "https://127.0.0.1:1/directory", "stored": 0 });
    std::fs::write(folder.join("meta.json"), meta.to_string()).unwrap();
    symlink("1", site.path("state/certs/rsa-2048/current")).unwrap();
    site
}

#[test]
fn overdue_renewal_is_reported_everywhere() {
    let (ok, late, error) = (("ok", "valid"), ("warning", "renewal_overdue"), ("error", "renewal_overdue"));
    let cases = [
        (90 * DAY, 40 * DAY, ok, ""),
        (90 * DAY, 25 * DAY, late, "fails: "),
        (90 * DAY, 12 * DAY, error, "fails: "),
        (6 * DAY, 50 * HOUR, late, "fails: "),
        (6 * DAY, 20 * HOUR, error, "fails: "),
    ];
    let names = [format!("*.{DOMAIN}"), DOMAIN.to_owned()];
    for (lifetime, left, level, reason) in cases {
        let site = cannot_renew(lifetime.saturating_sub(left), lifetime, &names);
        let server = site.start();
        let operators = Operators::of(&server);
        if level != ok {
            eventually("an attempt", || {
                operators.json("/api/overview")["certificates"][0]["last_error"].is_string().then_some(())
            });
        }
        let said = said(&site, &server);
        assert_eq!(said.ready.0, 200, "{:?}", said.ready);
        said.assert_all_report("RSA", &names[0], level, reason);
        // Without a server, the files are judged.
        drop(server);
        let stored = provost(&site.path("."), &["certificate", "status"]);
        assert_eq!(stored.code, i32::from(level == error), "{stored:?}");
        assert_eq!(provost(&site.path("."), &["check"]).code, i32::from(level == error));
    }
}

#[test]
fn server_with_no_constituency_is_not_ready_and_alerts() {
    let site = site_with_operators();
    std::fs::rename(site.path("constituencies"), site.path("away")).unwrap();
    let server = site.start();
    let operators = Operators::of(&server);
    let is_ready = |what: &str, wanted: u16, reason: &str| {
        let answer = eventually(what, || {
            Some(operators.get("/readyz")).filter(|it| it.status == wanted && it.body.contains(reason))
        });
        let metrics = eventually("the metric", || {
            let metrics = operators.get("/metrics").body;
            metrics.contains(&format!("provost_ready {}\n", u8::from(wanted == 200))).then_some(metrics)
        });
        assert_alert(&metrics, "ProvostNotReady", wanted != 200);
        answer
    };
    let constituencies = site.path("constituencies").display().to_string();
    is_ready(
        "a folder that is gone",
        503,
        &format!("no constituency is served: {constituencies}: the folder cannot be read"),
    );
    std::fs::create_dir(site.path("constituencies")).unwrap();
    is_ready("an empty folder", 503, &format!("no constituency is served: no constituency in {constituencies}"));
    site.file("ote/constituency.json", "{");
    is_ready("only a broken policy", 503, "no constituency is served: ote: ");
    site.constituency("ote", &json!({ "client_auth": "none" }));
    is_ready("a good policy", 200, "ready");
    // The last good policy serves phones.
    std::fs::write(site.served("ote/constituency.json"), "{").unwrap();
    server.says("the last good policy stays in force");
    is_ready("a last good policy", 200, "ready");
    std::fs::remove_dir_all(site.path("constituencies")).unwrap();
    is_ready("a folder that has gone", 503, "no constituency is served: ");
    std::fs::rename(site.path("away"), site.path("constituencies")).unwrap();
    is_ready("a folder that is back", 200, "ready");
}

#[test]
fn readyz_fails_from_sigterm_on_during_the_drain() {
    let mut site = site_with_operators();
    site.config["limits"]["drain_s"] = 600.into();
    let server = site.start();
    let operators = Operators::of(&server);
    assert_eq!(operators.get("/readyz").status, 200);
    let phone = crate::uploads::phone(&server);
    let mut upload = phone.connect().unwrap();
    let head = format!("PUT {} HTTP/1.1\r\nHost: ote.{DOMAIN}\r\nContent-Length: 2\r\n\r\n1", crate::uploads::LOG);
    upload.send(head.as_bytes()).unwrap();
    eventually("the upload", || std::fs::read_dir(site.path("state/uploads/.incoming")).ok()?.next().map(drop));
    server.signal(rustix::process::Signal::TERM);
    let stopping = eventually("to be unready", || Some(operators.get("/readyz")).filter(|it| it.status == 503));
    assert_eq!(stopping.body, "provost is shutting down\n");
    eventually("the metric", || operators.get("/metrics").body.contains("provost_ready 0\n").then_some(()));
    assert_eq!(operators.get("/healthz").status, 200);
    upload.send(b"2").unwrap();
    assert_eq!(upload.response("PUT").unwrap().status, 201);
    assert!(server.wait().success());
}
