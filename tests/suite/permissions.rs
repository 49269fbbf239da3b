//! Reports by `check` and at the server's start about paths that other users can read or change.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::site::Site;
use crate::harness::tool::provost;
use crate::harness::{VVX500, eventually};

/// A path, the strictest mode that breaks its rule, the loosest that does not, and the message.
const RULES: [(&str, u32, u32, &str); 19] = [
    ("provost.json", 0o646, 0o664, "all users of this machine may change the configuration (mode 0646)"),
    ("rsa.pem", 0o602, 0o664, "all users of this machine may change the certificate (mode 0602)"),
    ("rsa.key", 0o644, 0o640, "all users of this machine may read the private key (mode 0644)"),
    ("ec.key", 0o620, 0o640, "its group may change the private key (mode 0620)"),
    ("factory.pem", 0o602, 0o664, "all users of this machine may change the trust bundle (mode 0602)"),
    ("token", 0o660, 0o640, "its group may change the operators' token (mode 0660)"),
    ("state", 0o710, 0o700, "its group may enter the state directory (mode 0710)"),
    ("state", 0o755, 0o700, "all users of this machine may read and enter the state directory (mode 0755)"),
    ("state/digest", 0o750, 0o700, "its group may read and enter the folder of phones' passwords (mode 0750)"),
    ("state/digest/pass.json", 0o604, 0o600, "all users of this machine may read phones' passwords (mode 0604)"),
    ("state/ca", 0o701, 0o700, "all users of this machine may enter the CA's folder (mode 0701)"),
    ("state/ca/ca.key", 0o640, 0o600, "its group may read the CA's private key (mode 0640)"),
    ("state/certs", 0o770, 0o700, "its group may read and change the folder of private keys (mode 0770)"),
    ("constituencies", 0o777, 0o775, "all users of this machine may change the constituencies (mode 0777)"),
    ("constituencies/ote", 0o702, 0o2775, "all users of this machine may change the constituency (mode 0702)"),
    ("constituencies/pass", 0o1777, 0o2775, "all users of this machine may change the constituency (mode 1777)"),
    (
        "constituencies/ote/constituency.json",
        0o606,
        0o664,
        "all users of this machine may change the policy (mode 0606)",
    ),
    (
        "constituencies/pass/constituency.json",
        0o602,
        0o664,
        "all users of this machine may change the policy (mode 0602)",
    ),
    ("", 0o777, 0o1777, "all users of this machine may replace files in this folder (mode 0777)"),
];

fn set_mode(site: &Site, path: &str, mode: u32) {
    fs::set_permissions(site.path(path), PermissionsExt::from_mode(mode)).unwrap();
}

/// A site with each of these paths, all with the loosest allowed mode.
fn site() -> Site {
    let mut site = Site::with_ote();
    site.constituency("pass", &json!({ "client_auth": "digest", "phones": { VVX500: "" } }));
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    site.write_config();
    fs::write(site.path("token"), "a token of 24 characters".replace(' ', "-")).unwrap();
    for folder in ["state/digest", "state/certs"] {
        fs::create_dir_all(site.path(folder)).unwrap();
    }
    set_mode(&site, "state", 0o700);
    set_mode(&site, "state/digest", 0o700);
    assert_eq!(provost(&site.path("."), &["ca", "init"]).code, 0);
    let allowed = provost(&site.path("."), &["allow", VVX500, "--constituency", "pass", "--digest"]);
    assert_eq!(allowed.code, 0, "{allowed:?}");
    for (path, _, mode, _) in RULES.iter().rev() {
        set_mode(&site, path, *mode);
    }
    set_mode(&site, "", 0o700);
    site
}

/// The findings of `check` about permissions: path, message, remedy.
fn findings(site: &Site) -> Vec<(String, String, String)> {
    let ended = provost(&site.path("."), &["check", "--json"]);
    let findings = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    findings
        .filter(|it| text(&it["message"]).contains(" may "))
        .map(|it| {
            assert_eq!(it["severity"], "warning", "{it}");
            (text(&it["file"]), text(&it["message"]), text(&it["remedy"]))
        })
        .collect()
}

#[test]
fn check_reports_each_path_with_loose_permissions() {
    let site = site();
    assert_eq!(findings(&site), []);
    let mut count = 0;
    for (path, loose, allowed, message) in RULES {
        if path.is_empty() {
            continue;
        }
        set_mode(&site, path, loose);
        let found = findings(&site);
        let [(file, said, remedy)] = &found[..] else { panic!("{path}: {found:?}") };
        assert!(file.ends_with(path), "{path}: {file}");
        assert_eq!(said, message, "{path}");
        // The remedy is a command; after running it, the finding is gone.
        let words: Vec<&str> = remedy.split(' ').collect();
        assert_eq!(words[0], "chmod", "{remedy}");
        let mode = u32::from_str_radix(words[1], 8).unwrap();
        assert_eq!(mode & !allowed & 0o077, 0, "{path}: {remedy}");
        set_mode(&site, path, mode);
        assert_eq!(findings(&site), [], "{path}");
        set_mode(&site, path, allowed);
        count += 1;
    }
    assert_eq!(count, RULES.len() - 1);
}

#[test]
fn check_reports_a_world_writable_parent_folder() {
    let site = site();
    set_mode(&site, "", 0o777);
    let found = findings(&site);
    let (_, _, _, message) = RULES[18];
    assert!(found.iter().any(|(file, said, _)| said == message && site.path("").starts_with(file)), "{found:?}");
    // Like /tmp: every user may create files, and only their owners may replace them.
    set_mode(&site, "", 0o1777);
    assert!(findings(&site).iter().all(|(_, said, _)| !said.contains("replace")));
}

#[test]
fn server_logs_loose_permissions_at_start() {
    let site = site();
    let loosened = ["rsa.key", "state/ca/ca.key", "constituencies/ote", "constituencies/ote/constituency.json"];
    let rules: Vec<_> = RULES.iter().filter(|(path, ..)| loosened.contains(path)).collect();
    assert_eq!(rules.len(), loosened.len());
    for (path, loose, ..) in &rules {
        set_mode(&site, path, *loose);
    }
    let server = site.start();
    for (path, _, _, message) in rules {
        let said = server.says(message);
        assert!(said.contains(path) && said.contains("WARN") && said.contains("chmod "), "{path}: {said}");
    }
}

/// Every path beneath `folder` except symlinks and uploads.
fn paths_beneath(folder: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && entry.file_name() != "uploads" {
            paths.extend(paths_beneath(&entry.path()));
        }
        paths.extend((!kind.is_symlink()).then(|| entry.path()));
    }
    paths
}

#[test]
fn check_covers_every_path_of_the_state_directory() {
    let site = site();
    let server = site.start();
    eventually("the phone history", || site.path("state/ledger/ledger.sqlite").exists().then_some(()));
    eventually("a last good policy", || site.path("state/last-good/ote.json").exists().then_some(()));
    assert_eq!(provost(&site.path("."), &["deny", VVX500]).code, 0);
    // Files of ACME and of local mode.
    for file in ["accounts/acme/account.key", "certs/rsa/1/key.pem", "server-ca/ca.key", "local/ca.key"] {
        fs::create_dir_all(site.path("state").join(file).parent().unwrap()).unwrap();
        fs::write(site.path("state").join(file), "").unwrap();
    }
    for file in ["renewal.json", "dns-journal.json", "status-token", "operators.json", "notified.json"] {
        fs::write(site.path("state").join(file), "").unwrap();
    }
    let paths = paths_beneath(&site.path("state"));
    let top: BTreeSet<_> = paths.iter().filter(|path| path.parent() == Some(&site.path("state"))).collect();
    assert_eq!(top.len(), 18, "{top:?}");
    for path in &paths {
        fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let in_state = |path: &str| path.find("state/").map(|at| path[at..].to_owned()).unwrap();
    let found: BTreeSet<String> = findings(&site).iter().map(|(path, ..)| in_state(path)).collect();
    let expected: BTreeSet<String> = paths.iter().map(|path| in_state(path.to_str().unwrap())).collect();
    assert_eq!(found, expected);
    drop(server);
}
