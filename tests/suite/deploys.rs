//! Folders that come, go, are swapped whole, or hold what no policy should be: `constituencies` follows the disk.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use rustls::AlertDescription;
use serde_json::{Value, json};

use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::tls::{Client, alert};
use crate::harness::{VVX500, not_run, within_a_second};

fn policy() -> Value {
    json!({ "trust": ["factory"], "phones": { VVX500: "" } })
}

/// Makes in `folder` a constituency `name` that serves `content`.
fn make(folder: &Path, name: &str, content: &str) {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("site.cfg"), content).unwrap();
    fs::write(folder.join("constituency.json"), policy().to_string()).unwrap();
}

fn client(server: &Running, name: &str) -> Client {
    server.client(name, &FACTORY.device(VVX500))
}

fn serves(client: &Client, content: &str) -> Option<()> {
    client.get("/site.cfg").is_ok_and(|response| response.status == 200 && response.text() == content).then_some(())
}

fn is_unrecognised(client: &Client) -> Option<()> {
    let error = client.get("/site.cfg").err()?;
    (alert(&error) == Some(AlertDescription::UnrecognisedName)).then_some(())
}

/// Puts what is at `new` in the place of `old`, which keeps what was there under the name of `new`.
fn exchange(new: &Path, old: &Path) {
    renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn a_new_folder_is_served_within_a_second_however_it_comes() {
    let site = Site::new();
    let server = site.start();
    assert!(is_unrecognised(&client(&server, "made")).is_some());
    make(&site.served(""), "made", "<made/>");
    within_a_second("a folder made in place", || serves(&client(&server, "made"), "<made/>"));
    make(&site.path("staging"), "moved", "<moved/>");
    fs::rename(site.path("staging/moved"), site.served("moved")).unwrap();
    within_a_second("a folder moved in", || serves(&client(&server, "moved"), "<moved/>"));
}

#[test]
fn a_removed_folder_is_gone_within_a_second_on_open_connections_too() {
    let site = Site::with_ote();
    make(&site.served(""), "stays", "<stays/>");
    let server = site.start();
    let mut open = client(&server, "ote").connect().unwrap();
    let mut other = client(&server, "stays").connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert_eq!(other.get("/site.cfg").unwrap().status, 200);
    fs::remove_dir_all(site.served("ote")).unwrap();
    within_a_second("421", || (open.get("/site.cfg").unwrap().status == 421).then_some(()));
    assert!(open.is_closed());
    assert!(is_unrecognised(&client(&server, "ote")).is_some());
    server.reason("the constituency is gone");
    assert_eq!(other.get("/site.cfg").unwrap().status, 200);
    // It comes back as another: nothing of before opens it.
    let before = client(&server, "ote");
    site.constituency("ote", &policy());
    site.file("ote/site.cfg", "<again/>");
    within_a_second("the folder made anew", || serves(&before, "<again/>"));
}

#[test]
fn a_folder_made_anew_at_once_is_not_the_one_of_before() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = client(&server, "ote");
    let mut open = phone.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    // Faster than anybody looks, so that only the folder's identity tells.
    make(&site.path("staging"), "ote", "<anew/>");
    exchange(&site.path("staging/ote"), &site.served("ote"));
    within_a_second("403", || (open.get("/site.cfg").unwrap().status == 403).then_some(()));
    assert!(open.is_closed());
    let fresh = phone.connect().unwrap();
    assert!(!fresh.is_resumed(), "a session of a folder that is gone");
    assert!(serves(&phone, "<anew/>").is_some());
}

#[test]
fn all_constituencies_are_swapped_at_once_by_a_link() {
    let site = Site::new();
    make(&site.path("release-1"), "ote", "<one/>");
    make(&site.path("release-2"), "ote", "<two/>");
    make(&site.path("release-2"), "new", "<new/>");
    fs::remove_dir(site.served("")).unwrap();
    symlink("release-1", site.path("constituencies")).unwrap();
    let server = site.start();
    assert!(serves(&client(&server, "ote"), "<one/>").is_some());
    symlink("release-2", site.path("next")).unwrap();
    fs::rename(site.path("next"), site.path("constituencies")).unwrap();
    within_a_second("the second release", || serves(&client(&server, "ote"), "<two/>"));
    assert!(serves(&client(&server, "new"), "<new/>").is_some());
    // What changes in the new one is noticed as it was in the old.
    fs::write(site.path(&format!("release-2/ote/{VVX500}.cfg")), "").unwrap();
    make(&site.path("release-2"), "later", "<later/>");
    within_a_second("a folder in the second release", || serves(&client(&server, "later"), "<later/>"));
}

#[test]
fn all_constituencies_are_swapped_at_once_by_a_link_further_up() {
    let mut site = Site::new();
    make(&site.path("releases/1/constituencies"), "ote", "<one/>");
    make(&site.path("releases/2/constituencies"), "ote", "<two/>");
    symlink("releases/1", site.path("current")).unwrap();
    site.config["constituencies"] = "current/constituencies".into();
    let server = site.start();
    assert!(serves(&client(&server, "ote"), "<one/>").is_some());
    symlink("releases/2", site.path("next")).unwrap();
    fs::rename(site.path("next"), site.path("current")).unwrap();
    within_a_second("the second release", || serves(&client(&server, "ote"), "<two/>"));
}

#[test]
fn all_constituencies_are_swapped_at_once_by_a_rename() {
    let site = Site::with_ote();
    let server = site.start();
    let mut open = client(&server, "ote").connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    make(&site.path("next"), "ote", "<two/>");
    make(&site.path("next"), "new", "<new/>");
    exchange(&site.path("next"), &site.served(""));
    within_a_second("the second release", || serves(&client(&server, "ote"), "<two/>"));
    assert!(serves(&client(&server, "new"), "<new/>").is_some());
    // Another folder is another constituency, whose TLS is its own.
    assert_eq!(open.get("/site.cfg").unwrap().status, 403);
}

#[test]
fn without_constituencies_nobody_is_served_until_they_are_back() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = client(&server, "ote");
    let mut open = phone.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    fs::rename(site.served(""), site.path("away")).unwrap();
    within_a_second("421", || (open.get("/site.cfg").unwrap().status == 421).then_some(()));
    assert!(is_unrecognised(&phone).is_some());
    server.says("(nothing is served)");
    fs::rename(site.path("away"), site.served("")).unwrap();
    within_a_second("the folder that is back", || serves(&phone, "<site/>"));
    fs::remove_dir_all(site.served("")).unwrap();
    within_a_second("nobody", || is_unrecognised(&phone));
    make(&site.served(""), "ote", "<anew/>");
    within_a_second("the folder made anew", || serves(&phone, "<anew/>"));
}

#[test]
fn what_is_no_policy_is_reported_and_stops_nobody_else() {
    type Make = fn(&Path);
    let site = Site::with_ote();
    let server = site.start();
    let kinds: [(&str, Make, &str); 5] = [
        ("fifo", |path| mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(), "no regular file"),
        ("folder", |path| fs::create_dir(path).unwrap(), "no regular file"),
        ("link", |path| symlink("../ote/constituency.json", path).unwrap(), "no regular file"),
        ("large", |path| fs::write(path, " ".repeat(17 << 20)).unwrap(), "larger than 16 MiB"),
        ("binary", |path| fs::write(path, b"{ \"description\": \"\xff\" }").unwrap(), "not UTF-8 text"),
    ];
    for (name, put, complaint) in kinds {
        fs::create_dir(site.served(name)).unwrap();
        // The folder comes first, as it does in life; what is known of it then is the default policy.
        put(&site.served(name).join("constituency.json"));
        server.says(&format!("{name}/constituency.json: is {complaint}"));
        assert!(client(&server, name).get("/site.cfg").is_err(), "{name}");
        make(&site.served(""), &format!("after-{name}"), "<after/>");
        within_a_second("another folder", || serves(&client(&server, &format!("after-{name}")), "<after/>"));
        assert!(serves(&client(&server, "ote"), "<site/>").is_some(), "{name}");
    }
    // Mended, each is served.
    for (name, ..) in kinds {
        let path = site.served(name).join("constituency.json");
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
        make(&site.served(""), name, "<mended/>");
        within_a_second(name, || serves(&client(&server, name), "<mended/>"));
    }
    assert_eq!(kinds.len(), 5);
}

#[test]
fn a_folder_whose_name_is_no_label_or_that_is_a_link_is_reported() {
    let site = Site::with_ote();
    let server = site.start();
    for name in ["Upper", "under_score", "-dash", "two.labels"] {
        fs::create_dir(site.served(name)).unwrap();
        server.says(&format!("{name}: the folder is not served"));
    }
    fs::create_dir(site.served("").join(OsStr::from_bytes(b"bad-\xff\x1b"))).unwrap();
    let said = server.says("bad-");
    assert!(!said.contains('\u{1b}') && !said.contains("\\u001b"), "no escape reaches a terminal: {said}");
    symlink("ote", site.served("linked")).unwrap();
    server.says("linked: the folder is not served: it is a link");
    assert!(is_unrecognised(&client(&server, "linked")).is_some());
    fs::create_dir(site.served(".hidden")).unwrap();
    fs::write(site.served("README.md"), "").unwrap();
    make(&site.served(""), "marker", "");
    server.says("marker is served");
    let said = server.stderr().join("\n");
    assert!(!said.contains("hidden") && !said.contains("README"), "{said}");
    // Renamed to what it should be called, it is served, and the complaint is taken back.
    fs::rename(site.served("Upper"), site.served("upper")).unwrap();
    server.says("upper is served");
    server.says("Upper: no longer so");
}

#[test]
fn a_folder_that_cannot_be_read_is_reported_and_stops_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    if rustix::process::geteuid().is_root() {
        return not_run("a_folder_that_cannot_be_read_is_reported_and_stops_nobody_else", "root reads every folder");
    }
    let site = Site::with_ote();
    let server = site.start();
    make(&site.served(""), "locked", "<locked/>");
    within_a_second("the folder", || serves(&client(&server, "locked"), "<locked/>"));
    fs::set_permissions(site.served("locked"), fs::Permissions::from_mode(0o000)).unwrap();
    server.says("locked: the folder cannot be opened");
    assert!(is_unrecognised(&client(&server, "locked")).is_some());
    assert!(serves(&client(&server, "ote"), "<site/>").is_some());
    fs::set_permissions(site.served("locked"), fs::Permissions::from_mode(0o700)).unwrap();
    within_a_second("the folder", || serves(&client(&server, "locked"), "<locked/>"));
}
