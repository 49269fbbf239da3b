//! Uploads: which files a phone may store, where they are stored, and which phones can read them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::pki::{FACTORY, Identity, SERVER_CA};
use crate::harness::site::{DOMAIN, Running, Site, holds};
use crate::harness::tls::{Client, Connection};
use crate::harness::tool::{Ended, run};
use crate::harness::{VVX500, VVX550, eventually};

pub const LOG: &str = "/00005e00530c-app.log";

/// The usual phone of the usual constituency.
pub fn phone(server: &Running) -> Client {
    server.client("ote", &FACTORY.device(VVX500))
}

/// The usual site with these `uploads` in its policy and a second phone.
pub fn site_with(uploads: &serde_json::Value) -> Site {
    let site = Site::with_ote();
    let phones = json!({ VVX500: "vvx500", VVX550: "vvx550" });
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones, "uploads": uploads }));
    site
}

/// A PUT under way: it announces `length` bytes and has sent `part` of them.
pub fn begin_put(client: &Client, path: &str, headers: &str, length: usize, part: &[u8]) -> Connection {
    let mut connection = client.connect().unwrap();
    connection.send_head("PUT", path, &format!("Content-Length: {length}\r\n{headers}")).unwrap();
    connection.send(part).unwrap();
    connection
}

/// The number of incomplete uploads.
pub fn incomplete_uploads(site: &Site) -> usize {
    std::fs::read_dir(site.path("state/uploads/.incoming")).unwrap().count()
}

/// `length` bytes without repetitions.
pub fn content(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(step).collect()
}

/// Every file below `folder`, as sorted paths relative to it.
pub fn files_below(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// Real curl as the phone VVX500; prints the status on standard output.
pub fn curl(site: &Site, server: &Running, path: &str, args: &[&str]) -> Ended {
    run(&mut curl_command(site, server, &FACTORY.device(VVX500), path, args))
}

fn curl_command(site: &Site, server: &Running, identity: &Identity, path: &str, args: &[&str]) -> Command {
    let (chain, key) = identity.write(&site.path(""), "curl");
    std::fs::write(site.path("server-ca.pem"), SERVER_CA.pem()).unwrap();
    let port = server.address().port();
    let mut command = Command::new("curl");
    command.args(["-sS", "--http1.1", "--max-time", "20", "-w", "%{http_code}", "--noproxy", "*", "-o", "/dev/null"]);
    command.arg("--cacert").arg(site.path("server-ca.pem")).arg("--cert").arg(chain).arg("--key").arg(key);
    command.args(["--resolve", &format!("ote.{DOMAIN}:{port}:127.0.0.1")]).args(args);
    command.arg(format!("https://ote.{DOMAIN}:{port}{path}"));
    command
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn upload_is_stored_privately_and_read_back_by_its_phone() {
    let site = Site::with_ote();
    let server = site.start();
    let mut phone = phone(&server).connect().unwrap();
    assert_eq!(phone.request("PUT", "/Logs/a/00005E00530C-App.log", "", b"first").unwrap().status, 201);
    let stored = site.uploads("ote", VVX500).join("Logs/a/00005e00530c-App.log");
    assert!(holds(&stored, "first"));
    assert_eq!(mode(&stored), 0o600);
    let folders: Vec<&Path> = stored.ancestors().skip(1).take_while(|path| *path != site.path("")).collect();
    assert_eq!(folders.len(), 6, "Logs/a, Logs, the phone, ote, uploads, state");
    assert!(folders.iter().all(|folder| mode(folder) == 0o700), "{folders:?}");

    let replaced = phone.request("PUT", "/Logs/a/00005e00530c-App.log", "", b"longer than before").unwrap();
    assert_eq!((replaced.status, replaced.body.len()), (204, 0));
    assert!(holds(&stored, "longer than before"));
    for path in ["/Logs/a/00005e00530c-App.log", "//Logs/./a/00005E00530C-App.log"] {
        let read = phone.get(path).unwrap();
        assert_eq!((read.status, read.text().as_str()), (200, "longer than before"), "{path}");
        let head = phone.request("HEAD", path, "", b"").unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some("18")), "{path}");
    }
    assert_eq!(phone.request("HEAD", LOG, "", b"").unwrap().status, 404);
    assert_eq!(phone.request("PUT", LOG, "", b"").unwrap().status, 201, "an empty file is a file");
    assert_eq!(phone.request("HEAD", LOG, "", b"").unwrap().header("content-length"), Some("0"));
    let line = server.access("the first PUT", |line| line["method"] == "PUT");
    assert_eq!((&line["status"], &line["mac"], &line["reason"]), (&201.into(), &VVX500.into(), &json!(null)));
}

#[test]
fn incomplete_upload_is_not_visible() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let (old, new) = (content(600_000, 1), content(700_000, 2));
    assert_eq!(phone.put(LOG, "", &old).unwrap().status, 201);
    let mut slow = begin_put(&phone, LOG, "", new.len(), &new[..600_000]);
    eventually("the upload to wait beside", || (incomplete_uploads(&site) == 1).then_some(()));
    assert!(phone.get(LOG).unwrap().body == old, "the old one, whole");
    slow.send(&new[600_000..]).unwrap();
    assert_eq!(slow.response("PUT").unwrap().status, 204);
    assert!(phone.get(LOG).unwrap().body == new, "the new one, whole");
    assert_eq!(incomplete_uploads(&site), 0);
}

#[test]
fn upload_is_not_readable_by_other_phones() {
    let site = site_with(&json!({}));
    let server = site.start();
    let owner = phone(&server);
    let other = server.client("ote", &FACTORY.device(VVX550));
    for path in [LOG, "/00005e00530c-phone.cfg", "/logs/00005e00530c-boot.log"] {
        assert_eq!(owner.put(path, "", b"secret").unwrap().status, 201);
        assert_eq!(other.get(path).unwrap().status, 403, "{path}");
        assert_eq!(other.get(&path.replace(VVX500, VVX550)).unwrap().status, 404, "{path}");
        assert_eq!(other.put(path, "", b"forged").unwrap().status, 403, "{path}");
        assert_eq!(owner.get(path).unwrap().text(), "secret");
    }
}

#[test]
fn uploaded_overrides_shadow_the_folder_for_their_phone() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let kinds = ["-phone.cfg", "-web.cfg", "-directory.xml", "-calls.xml"];
    for kind in kinds {
        let path = format!("/overrides/{VVX500}{kind}");
        let file = site.file(&format!("ote{}", path.replace(VVX500, &VVX500.to_uppercase())), "the folder's");
        assert_eq!(phone.get(&path).unwrap().text(), "the folder's", "{kind}");
        assert_eq!(phone.put(&path, "", b"the phone's").unwrap().status, 201, "{kind}");
        assert_eq!(phone.get(&path).unwrap().text(), "the phone's", "{kind}");
        assert!(holds(&file, "the folder's"), "{kind}");
        std::fs::remove_dir_all(site.uploads("ote", VVX500)).unwrap();
        assert_eq!(phone.get(&path).unwrap().text(), "the folder's", "{kind}");
    }
}

#[test]
fn ordinary_uploads_do_not_shadow_a_file_of_the_folder() {
    let site = Site::with_ote();
    site.file("ote/00005e00530c-user.cfg", "the folder's");
    site.file("ote/logs/00005E00530C-app.log", "the folder's");
    site.file("ote/00005e00530c-license.cfg/x", "a folder");
    std::os::unix::fs::symlink("nowhere", site.served("ote/00005e00530c-boot.log")).unwrap();
    let server = site.start();
    let phone = phone(&server);
    for path in
        ["/00005e00530c-user.cfg", "/logs/00005e00530c-app.log", "/00005e00530c-license.cfg", "/00005e00530c-boot.log"]
    {
        assert_eq!(phone.put(path, "", b"the phone's").unwrap().status, 403, "{path}");
        server.access(path, |line| {
            line["path"] == path && line["reason"].as_str().is_some_and(|reason| reason.contains("may not hide it"))
        });
    }
    assert_eq!(files_below(&site.path("state/uploads")), Vec::<String>::new());
    // A file that is added to the folder later takes precedence.
    assert_eq!(phone.put(LOG, "", b"the phone's").unwrap().status, 201);
    site.file("ote/00005e00530c-app.log", "the folder's");
    assert_eq!(phone.get(LOG).unwrap().text(), "the folder's");
}

#[test]
fn put_to_a_name_not_of_this_phone_is_refused() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let longest = format!("/00005e00530c-{}", "x".repeat(115));
    let names = [
        "/00005e00530c.cfg",
        "/00005E00530C.CFG",
        "/00005e00530c",
        "/00005e00530c-",
        "/00005e0053c7-app.log",
        "/app.log",
        "/site.cfg",
        "/000000000000.cfg",
        "/000000000000-directory.xml",
        "/constituency.json",
        "/00005e00530c/app.log",
        "/x00005e00530c-app.log",
        "/00005e0053c7/00005e00530c-app.log",
        "/a/b/c/d/e/00005e00530c-app.log",
        "/.ssh/00005e00530c-app.log",
        "/00005e00530c-app.log/",
        "/00005e00530c-app%20log",
        "/00005e00530c-app%3Blog",
        "/00005e00530c-%C3%A4.log",
        "/00005e00530c-app.log~",
        &format!("{longest}x"),
    ];
    for name in names {
        assert_eq!(phone.put(name, "", b"x").unwrap().status, 403, "{name}");
    }
    for name in ["/../00005e00530c-app.log", "/a%2f..%2f00005e00530c-app.log", "/00005e00530c-%00.log"] {
        assert_eq!(phone.put(name, "", b"x").unwrap().status, 400, "{name}");
    }
    assert_eq!(files_below(&site.path("state/uploads")), Vec::<String>::new());
    for name in [longest.as_str(), "/a/b/c/d/00005e00530c-app.log", "/00005e00530c.csr", "/00005e00530c-a_b.C-9"] {
        assert_eq!(phone.put(name, "", b"x").unwrap().status, 201, "{name}");
    }
}

#[test]
fn uploaded_keys_csrs_and_core_files_are_never_served() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    let names = ["-private.pem", ".csr", "-core.gz", "-app-core.1.tar"].map(|kind| format!("/cert/{VVX500}{kind}"));
    let absent = phone.get("/cert/00005e00530c-absent.log").unwrap().without_date();
    assert_eq!(absent.status, 404);
    for name in &names {
        assert_eq!(phone.put(name, "", b"secret").unwrap().status, 201, "{name}");
        assert!(holds(&site.uploads("ote", VVX500).join(&name[1..]), "secret"), "{name}");
        assert_eq!(phone.get(name).unwrap().without_date(), absent, "{name}");
        assert_eq!(phone.request("HEAD", name, "", b"").unwrap().status, 404, "{name}");
    }
    server.reason("never served back");
}

#[test]
fn upload_clashing_with_a_folder_or_file_gets_409() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = phone(&server);
    assert_eq!(phone.put("/00005e00530c-a/00005e00530c-b", "", b"x").unwrap().status, 201);
    assert_eq!(phone.put("/00005e00530c-a", "", b"x").unwrap().status, 409, "a folder is there");
    assert_eq!(phone.put(LOG, "", b"x").unwrap().status, 201);
    assert_eq!(phone.put(&format!("{LOG}/00005e00530c-b"), "", b"x").unwrap().status, 409, "a file is there");
    let ranged = phone.put(&format!("{LOG}/00005e00530c-b"), "Content-Range: bytes 0-0/1\r\n", b"x").unwrap();
    assert_eq!(ranged.status, 409);
    assert!(server.stderr().iter().all(|line| !line.contains("ERROR")), "{:?}", server.stderr());
}

#[test]
fn put_with_client_auth_none_gets_405() {
    let site = Site::with_ote();
    site.constituency("open", &json!({ "client_auth": "none" }));
    let server = site.start();
    let client = Client::new(server.address(), Some(&format!("open.{DOMAIN}")));
    let response = client.put(LOG, "", b"x").unwrap();
    assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn uploads_with_phones_any_need_an_uploads_policy() {
    let site = Site::with_ote();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": "any" }));
    let server = site.start();
    let phone = phone(&server);
    assert_eq!(phone.put(LOG, "", b"x").unwrap().status, 403);
    server.reason("uploads are off in ote");
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": "any", "uploads": {} }));
    eventually("uploads to be on", || (phone.put(LOG, "", b"x").unwrap().status == 201).then_some(()));
}

#[test]
fn curl_uploads_replaces_and_resumes_exactly() {
    let site = Site::with_ote();
    let server = site.start();
    let stored = site.uploads("ote", VVX500).join(&LOG[1..]);
    let (old, mut new) = (content(1_500_000, 3), content(1_400_000, 4));
    let file = site.path("upload");
    let file_name = file.to_str().unwrap();
    std::fs::write(&file, &old).unwrap();
    assert_eq!(curl(&site, &server, LOG, &["-T", file_name]).stdout, "201");
    assert!(holds(&stored, &old));
    std::fs::write(&file, &new).unwrap();
    assert_eq!(curl(&site, &server, LOG, &["-T", file_name]).stdout, "204");
    assert!(holds(&stored, &new));
    // As a phone appends to its log: HEAD returns the stored size, and the rest follows.
    new.extend(content(600, 5));
    std::fs::write(&file, &new).unwrap();
    assert_eq!(curl(&site, &server, LOG, &["-T", file_name, "-C", "1400000"]).stdout, "204");
    assert!(holds(&stored, &new));
    // libcurl finds the size itself by HEAD.
    new.extend(content(700_000, 6));
    std::fs::write(&file, &new).unwrap();
    assert_eq!(curl(&site, &server, LOG, &["-T", file_name, "-C", "-"]).stdout, "204");
    assert!(holds(&stored, &new));
    let sent = curl(&site, &server, "/00005e00530c-new.log", &["-T", file_name, "-H", "Content-Range: bytes 7-9/10"]);
    assert_eq!(sent.stdout, "400", "{}", sent.stderr);
}

#[test]
fn curl_streams_an_upload_of_unknown_length() {
    let site = Site::with_ote();
    let server = site.start();
    let body = content(900_000, 7);
    std::fs::write(site.path("upload"), &body).unwrap();
    for (wait, status) in [("0.001", "201"), ("20", "204")] {
        let args = ["-T", "-", "--expect100-timeout", wait, "-H", "Expect: 100-continue"];
        let mut command = curl_command(&site, &server, &FACTORY.device(VVX500), LOG, &args);
        let ended = run(command.stdin(std::fs::File::open(site.path("upload")).unwrap()));
        assert_eq!(ended.stdout, status, "{}", ended.stderr);
        assert!(holds(&site.uploads("ote", VVX500).join(&LOG[1..]), &body));
    }
}
