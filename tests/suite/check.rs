//! `provost check`: every problem of a site in one run.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::SystemTime;

use rcgen::CertificateParams;
use serde_json::{Value, json};

use crate::harness::pki::{DAY, SERVER_CA, named, valid};
use crate::harness::site::{DOMAIN, Site};
use crate::harness::tool::{Ended, provost};
use crate::harness::{VVX500, VVX550, not_run};

fn check(site: &Site) -> Ended {
    site.write_config();
    provost(&site.path("."), &["check"])
}

/// Writes a server certificate for `name` that expired yesterday.
fn expired_certificate(site: &Site, name: &str) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = named(name);
    valid(&mut params, SystemTime::now() - 90 * DAY, SystemTime::now() - DAY);
    SERVER_CA.issue(&params).write(&site.path("."), "expired");
}

/// A site with one problem of each kind.
fn site_full_of_problems() -> Site {
    let mut site = Site::with_ote();
    let known = |more: serde_json::Value| {
        let mut policy = json!({ "trust": ["factory"], "phones": { VVX500: "" } });
        policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        policy
    };
    site.constituency("ote", &known(json!({ "aliases": ["both", "ucs"] })));
    site.constituency("ucs", &known(json!({ "aliases": ["both"], "shared": ["firmware"] })));
    site.constituency("broken", &json!({ "client_aut": "none" }));
    site.constituency("no-bundle", &known(json!({ "trust": ["absent"] })));
    site.constituency("bad-bundle", &known(json!({ "trust": ["damaged"] })));
    site.constituency("lonely", &json!({ "trust": ["factory"] }));
    std::fs::create_dir(site.served("Bad_Label")).unwrap();
    symlink("ote", site.served("linked")).unwrap();
    site.file("ucs/firmware/sip.ld", "firmware");
    site.file("ucs/private.cfg", "private");
    symlink(site.served("ote/site.cfg").canonicalize().unwrap(), site.served("ote/absolute.cfg")).unwrap();
    symlink(site.served("ucs/firmware").canonicalize().unwrap(), site.served("ote/firmware")).unwrap();
    symlink("../ucs/firmware", site.served("ote/good")).unwrap();
    symlink("../ucs/private.cfg", site.served("ote/unshared.cfg")).unwrap();
    symlink("/etc/passwd", site.served("ote/outside")).unwrap();
    symlink("absent", site.served("ote/dangling")).unwrap();
    site.file(&format!("ote/{VVX550}.cfg"), "<APPLICATION/>");
    site.file(&format!("ote/{}.cfg", VVX550.to_uppercase()), "<APPLICATION/>");
    site.file("ote/000000000000.cfg", r#"<APPLICATION APP_FILE_PATH="firmware/sip.ld" CONFIG_FILES="site.cfg"/>"#);
    site.file("ucs/000000000000.cfg", "<APPLICATION");
    std::fs::write(site.path("damaged.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    expired_certificate(&site, "elsewhere.example.net");
    site.config["trust"]["damaged"] = json!(["damaged.pem"]);
    site.config["certificate"] = json!({ "files": [
        { "chain": "expired.pem", "key": "expired.key" }, { "chain": "absent.pem", "key": "rsa.key" }
    ] });
    site.config["no_sni"] = "nobody".into();
    site
}

#[test]
fn check_reports_every_problem_in_one_run() {
    let site = site_full_of_problems();
    let ended = check(&site);
    assert_eq!((ended.code, ended.stderr.as_str()), (1, ""), "{}", ended.stdout);
    let expected = [
        ("error: provost.json: \"no_sni\": nobody is not served", ""),
        ("error: certificate: ", "absent.pem"),
        ("error: certificate: ", "expired.pem"),
        ("error: certificate: ", "*.phones.example.com"),
        ("error: trust bundle \"damaged\": ", "damaged.pem"),
        ("error: broken: ", "constituency.json:1:2: \"client_aut\": unknown key; did you mean \"client_auth\"?"),
        ("error: no-bundle: ", "\"trust\": "),
        ("error: bad-bundle: not served: ", "\"damaged\" cannot be used"),
        ("error: Bad_Label: the folder is not served: ", "use lower-case letters"),
        ("error: linked: the folder is not served: it is a symlink", ""),
        ("warning: ote: the alias \"both\" has no effect: ote and ucs have the same alias", ""),
        ("warning: ucs: the alias \"both\" has no effect: ote and ucs have the same alias", ""),
        ("warning: ote: the alias \"ucs\" has no effect: a folder of that name exists", ""),
        ("warning: lonely: no known phone", ""),
        ("warning: ote/absolute.cfg: the symlink is absolute and is not followed; make it relative: site.cfg", ""),
        ("warning: ote/firmware: the symlink is absolute and is not followed; make it relative: ../ucs/firmware", ""),
        ("warning: ote/unshared.cfg: the symlink leads to ucs/private.cfg", "\"shared\""),
        ("warning: ote/outside: the symlink leads to /etc/passwd, outside", ""),
        ("warning: ote/dangling: the symlink to absent is broken", ""),
        ("warning: ote: 00005E0053C7.cfg and 00005e0053c7.cfg differ only in the case", ""),
        ("error: ucs/000000000000.cfg: ", "the file ends within a tag that begins at 1:1"),
        ("note: ote: firmware firmware/sip.ld is not served: ", "absolute"),
    ];
    for (start, part) in expected {
        let is_it = |line: &str| line.starts_with(start) && line.contains(part);
        assert!(ended.stdout.lines().any(is_it), "{start:?} {part:?} is not among\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("ote/good"), "{}", ended.stdout);
    let last = ended.stdout.lines().last().unwrap();
    let count = |level: &str| ended.stdout.lines().filter(|line| line.starts_with(level)).count();
    let summary =
        format!("3 constituencies can be served; {} errors, {} warnings", count("error: "), count("warning: "));
    assert_eq!(last, summary);
    assert!(!ended.stdout.contains('\x1b'), "colors only on a terminal");
    assert!(!site.path("state").exists(), "nothing is created or locked");
}

#[test]
fn check_of_a_good_site_reports_no_findings() {
    let site = Site::with_ote();
    let master = site.file("ote/000000000000.cfg", r#"<APPLICATION CONFIG_FILES="site.cfg"/>"#);
    let ended = check(&site);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "1 constituency can be served; 0 errors, 0 warnings\n"));
    std::fs::remove_file(master).unwrap();
    let ended = check(&site);
    let note = "note: ote: no 000000000000.cfg: phones without a master configuration of their own get none\n";
    assert!(ended.code == 0 && ended.stdout.starts_with(note), "{}", ended.stdout);
}

#[test]
fn unused_trust_bundle_is_a_note_if_every_policy_is_readable() {
    let mut site = Site::with_ote();
    site.config["trust"]["house"] = site.config["trust"]["factory"].clone();
    let reported = |site: &Site| {
        let named = check(site).stdout.lines().filter(|line| line.contains("in its \"trust\"")).collect::<String>();
        named.replace("no effect: no constituency has it in its \"trust\"", "-")
    };
    assert_eq!(reported(&site), "note: trust bundle \"house\": -");
    site.file("lab/constituency.json", "{");
    assert_eq!(reported(&site), "", "the unreadable policy may use it");
    site.constituency("lab", &json!({ "trust": ["house"], "phones": { VVX500: "" } }));
    assert_eq!(reported(&site), "");
}

#[test]
fn check_exits_0_on_warnings_and_1_on_an_error() {
    let site = Site::with_ote();
    symlink("absent", site.served("ote/dangling")).unwrap();
    let ended = check(&site);
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert!(ended.stdout.ends_with("1 constituency can be served; 0 errors, 1 warning\n"), "{}", ended.stdout);
    std::fs::create_dir(site.served("Bad_Label")).unwrap();
    assert_eq!(check(&site).code, 1);
}

#[test]
fn check_distinguishes_no_constituency_from_no_valid_one() {
    let site = Site::new();
    assert!(check(&site).stdout.contains(": no constituency; make a folder in it\n"));
    site.file("home/constituency.json", "{");
    let ended = check(&site);
    assert!(ended.stdout.contains(": no constituency can be served\n"), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("\n0 constituencies can be served; 1 error, 1 warning\n"), "{}", ended.stdout);
}

#[test]
fn check_works_beside_a_running_server() {
    let site = Site::with_ote();
    let server = site.start();
    let ended = check(&site);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
    drop(server);
}

/// A user ID that owns nothing else.
const SERVICE: u32 = 64_123;

/// A site whose state belongs to another user, who may enter its folder; `None`, after NOT RUN, without root.
fn site_of_a_service(test: &str) -> Option<Site> {
    if !rustix::process::geteuid().is_root() {
        not_run(test, "it needs root to change owners");
        return None;
    }
    let site = Site::with_ote();
    site.file("ote/000000000000.cfg", r#"<APPLICATION CONFIG_FILES="site.cfg"/>"#);
    std::fs::set_permissions(site.path("."), Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(site.path("state")).unwrap();
    chown(site.path("state"), Some(SERVICE), Some(SERVICE)).unwrap();
    std::fs::set_permissions(site.path("state"), Permissions::from_mode(0o700)).unwrap();
    Some(site)
}

#[test]
fn check_by_root_runs_as_the_owner_of_the_state() {
    let Some(site) = site_of_a_service("check_by_root_runs_as_the_owner_of_the_state") else { return };
    for key in ["rsa.key", "ec.key"] {
        chown(site.path(key), None, Some(SERVICE)).unwrap();
        std::fs::set_permissions(site.path(key), Permissions::from_mode(0o640)).unwrap();
    }
    let note = format!("note: service: checked as the user {SERVICE} (the owner of ");
    let ended = check(&site);
    assert!(ended.code == 0 && ended.stdout.contains(&note), "{ended:?}");
    assert!(ended.stdout.ends_with("0 errors, 0 warnings\n"), "{ended:?}");
    let close = |path: &str| std::fs::set_permissions(site.path(path), Permissions::from_mode(0o600)).unwrap();
    // Each kind of file named in provost.json, and a phone's file.
    for (path, what) in [
        ("rsa.key", "read the file"),
        ("factory.pem", "read the file"),
        ("constituencies", "read the folder"),
        ("constituencies/ote/site.cfg", "phones do not get this file"),
    ] {
        let mode = std::fs::metadata(site.path(path)).unwrap().permissions();
        close(path);
        let ended = check(&site);
        let line = ended.stdout.lines().find(|line| line.starts_with("error: ") && line.contains(what));
        let line = line.unwrap_or_else(|| panic!("{path}: {ended:?}"));
        assert_eq!(ended.code, 1, "{path}: {ended:?}");
        if !path.contains("site.cfg") {
            assert!(line.contains("; run chgrp 64123 ") && line.contains(" && chmod g+r"), "{line}");
            let commands = line.split("; run ").nth(1).unwrap();
            let mended = std::process::Command::new("sh").args(["-ec", commands]).status().unwrap();
            assert!(mended.success(), "{commands}");
            assert_eq!(check(&site).code, 0, "{path}: {:?}", check(&site));
        }
        std::fs::set_permissions(site.path(path), mode).unwrap();
    }
}

#[test]
fn check_by_root_stays_root_if_root_owns_the_state() {
    let site = Site::with_ote();
    std::fs::set_permissions(site.path("rsa.key"), Permissions::from_mode(0o600)).unwrap();
    let ended = check(&site);
    assert!(ended.code == 0 && !ended.stdout.contains("checked as"), "{ended:?}");
}

#[test]
fn folder_without_search_permission_is_named_with_its_file() {
    let Some(mut site) = site_of_a_service("folder_without_search_permission_is_named_with_its_file") else { return };
    for folder in ["live", "archive"] {
        std::fs::create_dir(site.path(folder)).unwrap();
        std::fs::set_permissions(site.path(folder), Permissions::from_mode(0o700)).unwrap();
    }
    for (file, mode) in [("rsa.pem", 0o644), ("rsa.key", 0o600)] {
        std::fs::rename(site.path(file), site.path("archive").join(file)).unwrap();
        std::fs::set_permissions(site.path("archive").join(file), Permissions::from_mode(mode)).unwrap();
        symlink(format!("../archive/{file}"), site.path("live").join(file)).unwrap();
    }
    site.config["certificate"] = json!({ "files": [{ "chain": "live/rsa.pem", "key": "live/rsa.key" }] });
    let ended = check(&site);
    let errors: Vec<&str> = ended.stdout.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 2, "one for each file: {ended:?}");
    for (line, last) in errors.iter().zip(["rsa.key", "rsa.pem"]) {
        assert!(line.contains("may not enter the folder ") && line.contains("/live (mode 0700, root:root)"), "{line}");
        let archive = site.path("archive").canonicalize().unwrap();
        assert!(line.contains(&archive.display().to_string()), "{line}");
        assert_eq!(line.contains(&format!("chmod g+r {}", archive.join(last).display())), last == "rsa.key", "{line}");
    }
    let json = provost(&site.path("."), &["check", "--json"]).stdout;
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert!(first["remedy"].as_str().unwrap().starts_with("run chgrp 64123 "), "{first}");
}

#[test]
fn shipped_constituencies_have_no_errors_or_warnings() {
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    symlink(repository.join("constituencies"), folder.path().join("constituencies")).unwrap();
    let ended = provost(folder.path(), &["check"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("2 constituencies can be served; 0 errors, 0 warnings\n"), "{}", ended.stdout);
    let notes: Vec<&str> = ended.stdout.lines().filter(|line| line.starts_with("note: ")).collect();
    let is_of_firmware = |note: &&&str| note.contains(": firmware firmware/") || note.contains("): firmware/");
    assert_eq!(notes.iter().filter(is_of_firmware).count(), notes.len(), "{notes:?}");
    assert!(notes.len() >= 2 && notes.len() + 1 == ended.stdout.lines().count(), "{notes:?}");
}

/// The findings about legacy TLS, by subject.
#[cfg(feature = "old-tls")]
fn legacy_tls_findings(site: &Site) -> Vec<String> {
    let ended = check(site);
    assert_eq!(ended.stderr, "", "{}", ended.stdout);
    let reported = ended.stdout.lines().filter_map(|line| {
        let (subject, what) = line.strip_prefix("warning: ")?.split_once(": ")?;
        what.contains("legacy TLS needs an RSA server certificate, and there is none").then(|| subject.to_owned())
    });
    reported.collect()
}

#[test]
#[cfg(feature = "old-tls")]
fn legacy_tls_without_rsa_certificate_is_a_warning_per_subject() {
    let mut site = Site::with_ote();
    let policy = |tls: &str| json!({ "trust": ["factory"], "phones": { VVX500: "" }, "tls": tls });
    for level in ["modern", "compatible", "legacy"] {
        site.constituency(level, &policy(level));
    }
    let mut exact = policy("legacy");
    exact["certificate_names"] = "exact".into();
    site.constituency("exact", &exact);
    assert_eq!(legacy_tls_findings(&site), [""; 0], "there is one");
    site.config["certificate"]["files"].as_array_mut().unwrap().remove(0);
    assert_eq!(legacy_tls_findings(&site), ["compatible", "exact", "legacy"]);
    site.config["tls"] = "compatible".into();
    assert_eq!(legacy_tls_findings(&site), ["compatible", "exact", "legacy", "ote"], "by default too");
    // A certificate for the exact names of another constituency does not help.
    let mut params = CertificateParams::new(vec![format!("exact.{DOMAIN}")]).unwrap();
    params.distinguished_name = named("exact");
    SERVER_CA.issue_rsa(&params).write(&site.path("."), "own");
    site.config["certificate"]["files"].as_array_mut().unwrap().push(json!({ "chain": "own.pem", "key": "own.key" }));
    assert_eq!(legacy_tls_findings(&site), ["compatible", "legacy", "ote"]);
    // A missing certificate is reported instead.
    site.config["certificate"] = json!({ "files": [{ "chain": "absent.pem", "key": "absent.key" }] });
    assert_eq!(legacy_tls_findings(&site), [""; 0]);

    let obtained = |keys: &[&str]| {
        json!({ "acme": { "terms_of_service_agreed": true, "keys": keys,
                          "dns": { "primary": "127.0.0.1:53", "tsig_key_file": "absent.key" } } })
    };
    site.config["certificate"] = obtained(&["ecdsa-p256"]);
    assert_eq!(legacy_tls_findings(&site), ["compatible", "legacy", "ote"], "for exact names the key is always RSA");
    site.config["certificate"] = obtained(&["rsa-2048", "ecdsa-p256"]);
    assert_eq!(legacy_tls_findings(&site), [""; 0]);
}

#[test]
fn short_tsig_secret_is_a_warning() {
    let mut site = Site::with_ote();
    site.config["certificate"] = json!({ "acme": { "terms_of_service_agreed": true,
        "dns": { "primary": "127.0.0.1:1", "tsig_key_file": "tsig.key" } } });
    let warnings = |secret: &str| {
        let key = format!("key \"provost.\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n");
        std::fs::write(site.path("tsig.key"), key).unwrap();
        std::fs::set_permissions(site.path("tsig.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        site.write_config();
        let (code, all) = findings(&site.path("."), &[]);
        assert_eq!(code, 0, "{all:?}");
        let about =
            |it: &Value| it["message"].as_str().is_some_and(|text| text.starts_with("the secret of the TSIG key"));
        all.into_iter().filter(about).collect::<Vec<_>>()
    };
    assert_eq!(warnings("c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyYnk="), Vec::<Value>::new());
    let [short] = &warnings("eA==")[..] else { panic!() };
    assert_eq!((&short["severity"], &short["subject"]), (&json!("warning"), &json!("dns")));
    let message = "the secret of the TSIG key provost. has 1 byte; with fewer than 32 bytes, hmac-sha256 is weaker";
    assert!(short["message"].as_str().unwrap().starts_with(message), "{short}");
    assert!(short["remedy"].as_str().unwrap().contains("tsig-keygen -a hmac-sha256 provost."), "{short}");
}

/// The findings of `check --json`, one object per line.
fn findings(folder: &Path, more: &[&str]) -> (i32, Vec<Value>) {
    let ended = provost(folder, &[&["check", "--json"], more].concat());
    let lines = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{ended:?}")));
    (ended.code, lines.collect())
}

#[test]
fn check_json_has_the_same_findings_and_exit_code_as_text() {
    let site = Site::with_ote();
    site.write_config();
    site.file("ote/00005e00530c.cfg", "<x reg.1.auth.password=\"secret\"/>");
    site.file("broken/constituency.json", "{\n  \"phnes\": {}\n}");
    site.file("ote/common.cfg", "<x\n reg.1.auth.password=\"secret\"/>");
    site.file("ote/000000000000.cfg", "<APPLICATION CONFIG_FILES=\"common.cfg\"/>");
    let text = provost(&site.path("."), &["check"]);
    let (code, findings) = findings(&site.path("."), &[]);
    assert_eq!((code, text.code), (1, 1));
    let lines: Vec<&str> = text.stdout.lines().collect();
    assert_eq!(findings.len() + 1, lines.len(), "all but the last line: {text:?}\n{findings:?}");
    for (finding, line) in findings.iter().zip(lines) {
        let [severity, subject, message] = ["severity", "subject", "message"].map(|key| finding[key].as_str().unwrap());
        let remedy = finding["remedy"].as_str().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        assert_eq!(line, format!("{severity}: {subject}: {message}{remedy}"));
        let known = ["severity", "subject", "message", "remedy", "file", "line"];
        assert!(finding.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{finding}");
    }
    let secret = findings.iter().find(|finding| finding["subject"] == "ote/common.cfg:2").unwrap();
    assert_eq!(secret["file"], site.served("ote/common.cfg").display().to_string().replace("/./", "/"), "{secret}");
    assert_eq!(secret["line"], 2, "{secret}");
}

#[test]
fn check_json_reports_errors_in_provost_json() {
    let site = Site::with_ote();
    let text = "{ \"domain\": \"phones.example.com\",\n \"certificate\": { \"local_ca\": {} },\n \"limts\": {} }";
    std::fs::write(site.path("provost.json"), text).unwrap();
    let (code, findings) = findings(&site.path("."), &[]);
    assert_eq!((code, findings.len()), (2, 1));
    let finding = &findings[0];
    assert_eq!((&finding["severity"], &finding["line"]), (&json!("error"), &json!(3)), "{finding}");
    assert_eq!(finding["file"], "provost.json", "{finding}");
    assert_eq!(finding["remedy"], "did you mean \"limits\"?", "{finding}");
    let good = Site::with_ote();
    good.write_config();
    let (code, _) = self::findings(&good.path("."), &[]);
    assert_eq!(code, 0);
}
