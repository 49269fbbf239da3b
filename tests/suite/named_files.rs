//! Something else in place of a file that `provost.json` names: it blocks neither `check` nor the start, and is named with
//! its kind and a remedy.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};

use crate::harness::site::{Lines, Site};
use crate::harness::tool::{Ended, run};
use crate::harness::{eventually, not_run};

/// The keys that name files, as JSON pointers; the first part is the section.
const OF_FILES: [&str; 5] = [
    "/certificate/files/0/chain",
    "/certificate/files/0/key",
    "/trust/factory/0",
    "/trust/second/files/0",
    "/status/token_file",
];
const OF_ACME: [&str; 5] = [
    "/certificate/acme/directory_root",
    "/certificate/acme/external_account/hmac_key_file",
    "/certificate/acme/fallback_directories/0/directory_root",
    "/certificate/acme/fallback_directories/0/external_account/hmac_key_file",
    "/certificate/acme/dns/tsig_key_file",
];
const REMEDY: &str = "put the file itself in its place";

/// A site whose configuration has each of these keys, with a good file.
fn site_of(keys: &[&str]) -> Site {
    let mut site = Site::with_ote();
    site.config["trust"]["second"] = json!({ "files": ["second.pem"] });
    std::fs::copy(site.path("factory.pem"), site.path("second.pem")).unwrap();
    write_private(&site, "token", "0123456789abcdef0123456789abcdef");
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    if keys == OF_ACME {
        let tsig =
            "key \"provost.\" { algorithm hmac-sha256; secret \"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MTI=\"; };";
        write_private(&site, "tsig.key", tsig);
        for account in ["first.hmac", "second.hmac"] {
            write_private(&site, account, "c2VjcmV0c2VjcmV0c2VjcmV0");
        }
        let ca = |url: &str, root: &str, hmac: &str| {
            json!({
                "directory": url, "directory_root": root,
                "external_account": { "key_id": "customer", "hmac_key_file": hmac },
            })
        };
        let mut acme = ca("https://127.0.0.1:1/one", "factory.pem", "first.hmac");
        acme["fallback_directories"] = json!([ca("https://127.0.0.1:1/two", "second.pem", "second.hmac")]);
        acme["terms_of_service_agreed"] = json!(true);
        acme["dns"] = json!({ "primary": "127.0.0.1:1", "tsig_key_file": "tsig.key" });
        site.config["certificate"] = json!({ "acme": acme });
    }
    for key in keys {
        assert!(site.config.pointer(key).is_some_and(Value::is_string), "no {key} in {}", site.config);
    }
    site
}

fn write_private(site: &Site, name: &str, text: &str) {
    std::fs::write(site.path(name), text).unwrap();
    std::fs::set_permissions(site.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A kind of file, how to make one, and what is said about it.
type Kind = (&'static str, fn(&Path) -> bool);

/// Each returns whether this user may make it.
const KINDS: [Kind; 4] = [
    ("a FIFO", |path| make(path, FileType::Fifo, 0)),
    ("a device", |path| make(path, FileType::CharacterDevice, makedev(1, 5))),
    ("a folder", |path| std::fs::create_dir(path).is_ok()),
    ("a socket", |path| make(path, FileType::Socket, 0)),
];

fn make(path: &Path, kind: FileType, device: u64) -> bool {
    mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, device).is_ok()
}

/// Runs `provost check`, with a time limit.
fn check(site: &Site) -> Ended {
    let mut command = Command::new("timeout");
    run(command.args(["60", env!("CARGO_BIN_EXE_provost"), "check", "--config"]).arg(site.write_config()))
}

#[test]
fn no_other_kind_of_file_blocks_check() {
    let mut seen = BTreeSet::new();
    for keys in [OF_FILES, OF_ACME] {
        for key in keys {
            let mut site = site_of(&keys);
            *site.config.pointer_mut(key).unwrap() = json!("planted");
            for (kind, plant) in KINDS {
                if !plant(&site.path("planted")) {
                    not_run(
                        "named_files::no_other_kind_of_file_blocks_check",
                        &format!("this user cannot make {kind}"),
                    );
                    continue;
                }
                let said = check(&site);
                let text = said.stdout.clone() + &said.stderr;
                let expected = format!("is not a regular file but {kind}; {REMEDY}");
                let is_named = text.lines().any(|line| line.contains("planted") && line.contains(&expected));
                assert!(is_named && said.code == 1, "{key}: {kind}: {said:?}");
                let planted = site.path("planted");
                std::fs::remove_file(&planted).or_else(|_| std::fs::remove_dir(&planted)).unwrap();
                seen.insert((key, kind));
            }
        }
    }
    let is_root = rustix::process::geteuid().is_root();
    assert!(seen.len() == 40 || !is_root, "{seen:?}");
}

#[test]
fn fifo_in_place_of_a_named_file_does_not_block_the_start() {
    let mut seen = 0;
    for keys in [OF_FILES, OF_ACME] {
        for key in keys {
            let mut site = site_of(&keys);
            *site.config.pointer_mut(key).unwrap() = json!("planted");
            assert!(make(&site.path("planted"), FileType::Fifo, 0));
            let mut child = site.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let lines = Lines::default();
            lines.follow(child.stderr.take().unwrap());
            // It serves without this file, or ends.
            eventually(&format!("{key}: the FIFO to be named"), || {
                let is_it =
                    |line: &String| line.contains("planted") && line.contains("is not a regular file but a FIFO");
                lines.all().iter().any(is_it).then_some(())
            });
            child.kill().unwrap();
            child.wait().unwrap();
            seen += 1;
        }
    }
    assert_eq!(seen, 10);
}

#[test]
fn unreadable_named_file_is_reported_with_its_remedy() {
    let test = "named_files::unreadable_named_file_is_reported_with_its_remedy";
    // Root without the capabilities to read every file, or another user.
    let without = ["--bounding-set=-dac_override,-dac_read_search", env!("CARGO_BIN_EXE_provost")];
    let is_root = rustix::process::geteuid().is_root();
    if is_root && !Command::new("setpriv").args(without).arg("version").output().is_ok_and(|it| it.status.success()) {
        return not_run(test, "setpriv (util-linux) cannot drop capabilities here");
    }
    let mut seen = 0;
    for keys in [OF_FILES, OF_ACME] {
        for key in keys {
            let mut site = site_of(&keys);
            *site.config.pointer_mut(key).unwrap() = json!("planted");
            std::fs::write(site.path("planted"), "secret").unwrap();
            std::fs::set_permissions(site.path("planted"), std::fs::Permissions::from_mode(0o000)).unwrap();
            let mut command = if is_root { Command::new("setpriv") } else { Command::new(without[1]) };
            if is_root {
                command.args(without);
            }
            let said = run(command.args(["check", "--config"]).arg(site.write_config()));
            let text = said.stdout.clone() + &said.stderr;
            let expected = "Permission denied (os error 13); let the user that runs provost read it";
            let is_named = text.lines().any(|line| line.contains("planted") && line.contains(expected));
            assert!(is_named && said.code == 1, "{key}: {said:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 10);
}

/// The tests above name all keys: those of the reference that name a file, by the end of their name.
#[test]
fn reference_has_no_further_keys_that_name_files() {
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md")).unwrap();
    let keys = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(key, _)| key);
    let found: BTreeSet<&str> = keys.filter(|key| key.ends_with("_file") || key.ends_with("_root")).collect();
    let tested = OF_FILES.iter().chain(&OF_ACME).filter_map(|key| key.rsplit('/').next());
    let tested: BTreeSet<&str> = tested.filter(|key| key.ends_with("_file") || key.ends_with("_root")).collect();
    assert_eq!((found.len(), &found), (4, &tested));
}
