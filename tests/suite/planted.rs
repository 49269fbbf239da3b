//! Files planted by the service's user, and what root's commands do with them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::site::Site;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, not_run};

/// The content of root's file, which is also valid JSON.
const SECRET: &str = "\"root's secret\"";
const UPLOAD: &str = "00005e00530c-app.log";

/// The kinds of planted files.
const KINDS: [&str; 5] = ["link", "hard link", "fifo", "folder", "link instead of its folder"];

/// The places, and the commands that read, write or remove what is there. `DIR` is a folder of root's.
const PLACES: [(&str, &[&str]); 15] = [
    (
        "state/uploads/ote/00005e00530c/00005e00530c-app.log",
        &["uploads list", "uploads cat", "uploads remove", "check"],
    ),
    (
        "state/denied.json",
        &["deny 00005e005399", "undeny 00005e005399", "allow 00005e0053c7 --constituency ote", "phones"],
    ),
    (
        "state/operators.json",
        &["operator add anna", "operator list", "operator rotate anna", "operator remove anna", "check"],
    ),
    ("state/digest/pass.json", &["allow 00005e0053c7 --constituency pass --digest", "deny 00005e00530c", "check"]),
    ("state/last-good/ote.json", &["check", "phones", "deny 00005e00530c --constituency ote"]),
    ("state/ledger/ledger.sqlite", &["phones", "phone-log 00005e00530c", "check"]),
    ("state/ledger/ledger.sqlite-wal", &["phones", "phone-log 00005e00530c"]),
    ("state/renewal.json", &["check", "certificate status"]),
    ("state/certs/rsa-2048/1/key.pem", &["check", "certificate status"]),
    ("state/ca/ca.key", &["ca init", "ca list", "ca issue 00005e00530c --out DIR/phone.pem", "ca revoke 00005e00530c"]),
    ("state/ca/ca.pem", &["ca init", "ca list", "ca issue 00005e00530c --out DIR/phone.pem", "ca revoke 00005e00530c"]),
    ("state/ca/record.jsonl", &["ca init", "ca list", "ca issue 00005e00530c --out DIR/phone.pem"]),
    (
        "constituencies/ote/constituency.json",
        &[
            "allow 00005e0053c7 --constituency ote",
            "deny 00005e00530c --constituency ote",
            "check",
            "constituency list",
            "constituency add new --from ote",
        ],
    ),
    ("constituencies/ote/site.cfg", &["check", "constituency add new --from ote"]),
    ("constituencies/ote/.constituency-4194305-0", &["allow 00005e0053c7 --constituency ote"]),
];

/// A site whose folders belong to the service's user, and root's folder with a file named `name`. Its certificates are
/// obtained or from files.
fn site_of_service_user(name: &str, is_obtained: bool) -> (Site, PathBuf) {
    let mut site = Site::with_ote();
    site.constituency("pass", &json!({ "client_auth": "digest", "phones": { VVX550: "" } }));
    if is_obtained {
        site.config["certificate"] = json!({ "acme": { "terms_of_service_agreed": true, "email": "ops@example.com",
            "dns": { "primary": "127.0.0.1:9", "tsig_key_file": "absent.key" } } });
    }
    site.write_config();
    fs::set_permissions(site.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let roots = site.path("roots");
    fs::create_dir(&roots).unwrap();
    fs::write(roots.join(name), SECRET).unwrap();
    fs::set_permissions(roots.join(name), PermissionsExt::from_mode(0o600)).unwrap();
    (site, roots)
}

fn give_away(site: &Site) {
    let chown = ["chown", "-R", "--no-dereference", "65534:65533", "state", "constituencies"];
    assert_eq!(run(Command::new(chown[0]).args(&chown[1..]).current_dir(site.path(""))).code, 0);
}

fn plant(kind: &str, place: &Path, roots: &Path) {
    let folder = place.parent().unwrap();
    let secret = roots.join(place.file_name().unwrap());
    fs::create_dir_all(folder).unwrap();
    let _ = fs::remove_file(place);
    match kind {
        "link" => symlink(secret, place).unwrap(),
        "hard link" => fs::hard_link(secret, place).unwrap(),
        "fifo" => assert_eq!(run(Command::new("mkfifo").arg(place)).code, 0),
        "folder" => fs::create_dir(place).unwrap(),
        _ => {
            fs::remove_dir_all(folder).unwrap();
            symlink(roots, folder).unwrap();
        }
    }
}

/// Runs a command as root with a timeout.
fn command(site: &Site, words: &str) -> Ended {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_provost")]).args(words.split(' '));
    run(command.current_dir(site.path("")).env_remove("PROVOST_CONFIG"))
}

/// The content of root's `folder`: name, inode, owner, mode and content.
fn state_of(folder: &Path) -> Vec<(String, u64, u32, u32, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, metadata.ino(), metadata.uid(), metadata.mode(), fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn root_commands_neither_print_nor_change_planted_files() {
    if !rustix::process::geteuid().is_root() {
        return not_run("root_commands_neither_print_nor_change_planted_files", "it needs root");
    }
    let mut count = 0;
    for (place, commands) in PLACES {
        let name = place.rsplit('/').next().unwrap();
        for kind in KINDS {
            // It is planted again after each command that changes it.
            for words in commands {
                let (site, roots) = site_of_service_user(
                    name,
                    ["state/certs/", "state/renewal"].iter().any(|it| place.starts_with(it)),
                );
                let before = state_of(&roots);
                fs::create_dir(site.path("state")).unwrap();
                plant(kind, &site.path(place), &roots);
                give_away(&site);
                // `chown` changes the owner of a hard link's file too.
                std::os::unix::fs::chown(roots.join(name), Some(0), Some(0)).unwrap();
                let out = site.path("out");
                fs::create_dir(&out).unwrap();
                let words = words.replace("DIR", out.to_str().unwrap());
                let words = if let Some(command @ ("list" | "cat" | "remove")) = words.strip_prefix("uploads ") {
                    let name = if command == "list" { String::new() } else { format!(" {UPLOAD}") };
                    format!("uploads {command} {VVX500}{name}")
                } else {
                    words
                };
                let ended = command(&site, &words);
                let said = format!("{words}, {kind} at {place}: {ended:?}");
                assert!((0..=2).contains(&ended.code), "{said}");
                assert!(!ended.stdout.contains("root's secret") && !ended.stderr.contains("root's secret"), "{said}");
                assert!(!ended.stderr.contains("panicked") && !ended.stderr.contains("Usage:"), "{said}");
                assert_eq!(state_of(&roots), before, "{said}");
                for copy in files_of(&site.served("")) {
                    // The hard link is root's file itself.
                    let is_planted = copy == site.path(place);
                    assert!(is_planted || !fs::read(&copy).unwrap().ends_with(SECRET.as_bytes()), "{copy:?}: {said}");
                }
                count += 1;
            }
        }
    }
    assert_eq!(count, 5 * PLACES.iter().map(|(_, commands)| commands.len()).sum::<usize>());
    assert!(count > 150, "{count}");
}

/// The regular files below `folder`.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let found = run(Command::new("find").arg(folder).args(["-type", "f"]));
    found.stdout.lines().map(PathBuf::from).collect()
}

#[test]
fn planted_uploads_are_not_followed_by_root_commands() {
    if !rustix::process::geteuid().is_root() {
        return not_run("planted_uploads_are_not_followed_by_root_commands", "it needs root");
    }
    let (site, roots) = site_of_service_user(UPLOAD, false);
    let own = site.uploads("ote", VVX500).join("00005e00530c-boot.log");
    plant("link", &site.uploads("ote", VVX500).join(UPLOAD), &roots);
    plant("link instead of its folder", &site.uploads("ote", VVX550).join(UPLOAD), &roots);
    plant("hard link", &site.uploads("ote", STRANGER).join(UPLOAD), &roots);
    fs::write(&own, "its own").unwrap();
    give_away(&site);
    std::os::unix::fs::chown(roots.join(UPLOAD), Some(0), Some(0)).unwrap();
    let provost = |args: &[&str]| provost(&site.path(""), args);

    let listed = provost(&["uploads", "list", VVX500]);
    assert!(listed.stdout.contains("boot.log") && !listed.stdout.contains(UPLOAD), "{listed:?}");
    let warning = format!("warning: ote: {UPLOAD} is not a regular file, so not an upload\n");
    assert_eq!((listed.code, listed.stderr), (0, warning));
    assert_eq!(provost(&["uploads", "cat", VVX500, "00005e00530c-boot.log"]).stdout, "its own");
    for action in ["cat", "remove"] {
        let ended = provost(&["uploads", action, VVX500, UPLOAD]);
        assert!(ended.code == 1 && ended.stderr.contains("upload not found"), "{ended:?}");
    }
    let swapped = provost(&["uploads", "list", VVX550]);
    assert!(swapped.stderr.contains("a symbolic link, which is not followed"), "{swapped:?}");
    let hard = provost(&["uploads", "cat", STRANGER, UPLOAD]);
    assert!(hard.code == 1 && hard.stderr.contains("Permission denied"), "{hard:?}");
    assert_eq!(fs::read_to_string(roots.join(UPLOAD)).unwrap(), SECRET);
}

#[test]
fn control_characters_in_upload_names_are_replaced() {
    let site = Site::with_ote();
    site.write_config();
    let folder = site.uploads("ote", VVX500);
    fs::create_dir_all(&folder).unwrap();
    for name in ["00005e00530c-\x1b[2J\u{9b}1m\nforged.log", "00005e00530c-plain.log"] {
        fs::write(folder.join(name), "x").unwrap();
    }
    fs::create_dir(folder.join("a\x07folder")).unwrap();
    symlink("nowhere", folder.join("a\x07folder/\x1blink")).unwrap();
    let listed = provost(&site.path(""), &["uploads", "list", VVX500]);
    let printed = format!("{}{}", listed.stdout, listed.stderr);
    assert!(!printed.contains(|c: char| c.is_control() && c != '\n'), "{printed:?}");
    assert_eq!((listed.stdout.lines().count(), listed.stderr.lines().count()), (2, 1), "{printed}");
    assert!(listed.stdout.contains("00005e00530c-\u{fffd}[2J\u{fffd}1m\u{fffd}forged.log"), "{printed}");
    let missing = provost(&site.path(""), &["uploads", "cat", VVX500, "00005e00530c-\x1b[2J.log"]);
    assert!(missing.code == 1 && !missing.stderr.contains('\x1b'), "{missing:?}");
}
