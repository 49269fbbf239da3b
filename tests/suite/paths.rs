//! Paths: their spellings, the phones that they name, and files that are never served.

use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::tls::{Client, Connection};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, not_run};

fn phone(server: &Running) -> Connection {
    server.client("ote", &FACTORY.device(VVX500)).connect().unwrap()
}

#[test]
fn path_spellings_of_phones_lead_to_the_same_file() {
    let site = Site::with_ote();
    site.file("ote/logs/a b.txt", "<log/>");
    site.file("ote/a%62", "decoded once");
    let server = site.start();
    let mut phone = phone(&server);
    for path in [
        "/site.cfg",
        "//site.cfg",
        "///./site.cfg",
        "/./site.cfg",
        "/%73ite.cfg",
        "/site%2Ecfg",
        "/%2e/site.cfg",
        "/site.cfg?",
        "/site.cfg?x=/../..&y=00005e0053c7",
    ] {
        assert_eq!(phone.get(path).unwrap().text(), "<site/>", "{path}");
    }
    for path in ["/logs/a%20b.txt", "//logs//a%20b.txt", "/./logs/./a%20b.txt"] {
        assert_eq!(phone.get(path).unwrap().text(), "<log/>", "{path}");
    }
    assert_eq!(phone.get("/a%2562").unwrap().text(), "decoded once");
    for path in ["/", "//", "/logs", "/logs/", "/logs/.", "/site.cfg/", "/site.cfg/x", "/SITE.CFG"] {
        assert_eq!(phone.get(path).unwrap().status, 404, "{path}");
    }
    assert_eq!(phone.get(&format!("/{}", "x".repeat(300))).unwrap().status, 404, "longer than a name can be");
    assert_eq!(phone.get(&format!("/{}x", "x/".repeat(3000))).unwrap().status, 404, "longer than a path can be");
}

#[test]
fn invalid_path_gets_400() {
    let site = Site::with_ote();
    let server = site.start();
    let device = server.client("ote", &FACTORY.device(VVX500));
    let paths: [&[u8]; 21] = [
        b"/..",
        b"/../site.cfg",
        b"/logs/../site.cfg",
        b"/%2e%2e/site.cfg",
        b"/.%2E/site.cfg",
        b"/..;/site.cfg/..",
        b"/logs%2fx",
        b"/logs%2Fx",
        b"/..%2f..%2fetc/passwd",
        b"/..\\..\\etc",
        b"/a\\b",
        b"/a%5cb",
        b"/a%00",
        b"/site.cfg%00.txt",
        b"/a%0d%0aX-Injected:1",
        b"/a%1b[2J",
        b"/a%7f",
        b"/a%c2%85",
        b"/a%ff",
        b"/a%c0%ae%c0%ae",
        b"/%ed%a0%80",
    ];
    for path in paths {
        let shown = String::from_utf8_lossy(path);
        let mut connection = device.connect().unwrap();
        let request = [b"GET ", path, b" HTTP/1.1\r\nHost: ote.phones.example.com\r\n\r\n"].concat();
        connection.send(&request).unwrap();
        assert_eq!(connection.response("GET").unwrap().status, 400, "{shown}");
    }
    eventually("a line for each", || {
        let lines = server.access_lines();
        (lines.iter().filter(|line| line["status"] == 400).count() == paths.len()).then_some(())
    });
}

#[test]
fn phone_gets_its_own_files_in_either_case() {
    let site = Site::with_ote();
    site.file("ote/00005e00530c.cfg", "lower");
    site.file("ote/00005E00530C-web.cfg", "upper");
    site.file("ote/logs/00005e00530c.txt", "lower of two");
    site.file("ote/logs/00005E00530C.txt", "upper of two");
    site.file("ote/00005E00530C/ring.wav", "in a folder of its own");
    let server = site.start();
    let mut phone = phone(&server);
    for (path, content) in [
        ("/00005e00530c.cfg", "lower"),
        ("/00005E00530C.cfg", "lower"),
        ("/00005e00530c-web.cfg", "upper"),
        ("/00005E00530C-web.cfg", "upper"),
        ("/logs/00005e00530c.txt", "lower of two"),
        ("/logs/00005E00530C.txt", "upper of two"),
        ("/logs/00005e00530C.txt", "lower of two"),
        ("/00005e00530c/ring.wav", "in a folder of its own"),
    ] {
        assert_eq!(phone.get(path).unwrap().text(), content, "{path}");
    }
    assert_eq!(phone.get("/00005e00530c-WEB.cfg").unwrap().status, 404, "only the address has two cases");
}

#[test]
fn file_of_an_unlisted_mac_is_refused_in_every_spelling() {
    let site = Site::with_ote();
    let others = [
        "00005e0053c7.cfg",
        "00005E0053C7.cfg",
        "00005E0053c7.cfg",
        "00-00-5e-00-53-c7.cfg",
        "00:00:5E:00:53:C7.cfg",
        "00-00:5e-00:53-c7.cfg",
        "x-00005e0053c7-phone.cfg",
        "x00005e0053c7x",
        "logs/00005e0053c7-app.log",
        "00005e0053c7/site.cfg",
        "00-00-5e-00-53-c7/a/b.cfg",
        "phone00005e0053c7.cfg",
        "0000.5e00.53c7.cfg",
        "deadbeefdeadbeef.bin",
        "00005e00530c/00005e0053c7.cfg",
        // A pair in front of an address makes it another one.
        "ab-00-00-5e-00-53-c7.cfg",
    ];
    let server = site.start();
    let device = server.client("ote", &FACTORY.device(VVX500));
    let ask = |path: &str| device.get(&format!("/{path}")).unwrap();
    let absent = others.map(ask);
    for other in others {
        site.file(&format!("ote/{other}"), "secret");
    }
    let present = others.map(ask);
    for ((other, absent), present) in others.iter().zip(absent).zip(present) {
        assert_eq!(absent.status, 403, "{other}");
        assert_eq!(absent.without_date(), present.without_date(), "{other}");
    }
    for encoded in ["/%30%30005e0053c7.cfg", "//00005e0053c7%2ecfg", "/00-00-5e-00-53-%43%37.cfg?x"] {
        assert_eq!(device.get(encoded).unwrap().status, 403, "{encoded}");
    }
    assert_eq!(device.request("HEAD", "/00005e0053c7.cfg", "", b"").unwrap().status, 403);
    assert_eq!(device.put("/00005e0053c7-app.log", "", b"x").unwrap().status, 403);
    server.reason("the path holds ab00005e0053");
}

#[test]
fn names_that_resemble_hidden_ones_are_served() {
    let site = Site::with_ote();
    let names = ["logs/phones.csv", "my-phones.csv", "site.old.cfg", "rpm/site.cfg", "cvs", "old/site.bak.cfg"];
    for name in names {
        site.file(&format!("ote/{name}"), name);
    }
    let server = site.start();
    let mut phone = phone(&server);
    for name in names {
        assert_eq!(phone.get(&format!("/{name}")).unwrap().text(), name);
    }
}

#[test]
fn names_with_other_digit_groups_are_served() {
    let site = Site::with_ote();
    let common = [
        "000000000000.cfg",
        "000000000000-directory.xml",
        "00-00-00-00-00-00.cfg",
        "y000000000028.cfg",
        "00005e0053c.cfg",
        "00-00-5e-00-53.xml",
        "3111-44500-001.sip.ld",
        "3111-44500-001.3111-44500-001.sip.ld",
        "backup-202611300630.cfg",
        "123e4567-e89b-12d3-a456-426614174000.wav",
        "d41d8cd98f00b204e9800998ecf8427e.bin",
    ];
    for name in common {
        site.file(&format!("ote/{name}"), name);
    }
    let server = site.start();
    let mut phone = phone(&server);
    for name in common {
        assert_eq!(phone.get(&format!("/{name}")).unwrap().text(), name);
    }
}

/// Creates in `ote` every kind of file that is never served, and returns the paths; with a device file if this user may
/// create one.
fn never_served(site: &Site) -> (Vec<&'static str>, UnixListener) {
    let hidden = [
        "constituency.json.bak",
        "constituency.json~",
        "logs/constituency.json",
        "Constituency.JSON",
        "CONSTITUENCY.json.2026-11-30",
        "#constituency.json#",
        "#Constituency.json.1",
        "phones.csv",
        "Phones.CSV.gz",
        "phones.csv.d/all.txt",
        "site.cfg.swp",
        "site.cfg.SWO",
        "site.cfg.bak",
        "site.cfg.Orig",
        "site.cfg.rej",
        "logs/site.cfg.old",
        "site.cfg.dpkg-dist",
        "site.cfg.rpmnew",
        "SITE.CFG~",
        "CVS/Entries",
        "logs/cvs/Root",
        "_darcs/inventory",
        ".hidden",
        ".git/config",
        "logs/.htpasswd",
        "site.cfg~",
        "old~/site.cfg",
        ".00005e00530c.cfg",
    ];
    for name in hidden {
        site.file(&format!("ote/{name}"), "secret");
    }
    std::fs::create_dir(site.served("ote/folder")).unwrap();
    let mkfifo = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, site.served(name), kind, rustix::fs::Mode::from_raw_mode(0o666), device)
    };
    mkfifo("ote/fifo", rustix::fs::FileType::Fifo, 0).unwrap();
    let socket = UnixListener::bind(site.served("ote/socket")).unwrap();
    let mut paths = vec!["/constituency.json", "/folder", "/folder/", "/fifo", "/socket", "/absent", "/a/b/c", "/"];
    paths.extend(hidden.map(|name| &*format!("/{name}").leak()));
    match mkfifo("ote/zero", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 5)) {
        Ok(()) => paths.push("/zero"),
        Err(error) => not_run("device files are never served", &format!("no device file can be created: {error}")),
    }
    (paths, socket)
}

/// The bytes of a response without its date.
fn bytes(client: &Client, method: &str, path: &str) -> String {
    let mut connection = client.connect().unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: ote.phones.example.com\r\nConnection: close\r\n");
    let length = if method == "PUT" { "Content-Length: 0\r\n" } else { "" };
    connection.send(format!("{request}{length}\r\n").as_bytes()).unwrap();
    let answer = String::from_utf8(connection.read_to_close().unwrap()).unwrap();
    let lines: Vec<&str> = answer.split("\r\n").filter(|line| !line.starts_with("date: ")).collect();
    assert_eq!(lines.len() + 1, answer.split("\r\n").count(), "{answer}");
    lines.join("\n")
}

#[test]
fn all_404_answers_are_identical_and_special_files_do_not_block() {
    let site = Site::with_ote();
    let too_long = [format!("/{}", "x".repeat(256)), format!("/{}", vec!["x"; 2049].join("/"))];
    let (paths, _socket) = never_served(&site);
    std::os::unix::fs::symlink("/etc/passwd", site.served("ote/link")).unwrap();
    let server = site.start();
    let device = server.client("ote", &FACTORY.device(VVX500));
    assert_eq!(device.put("/00005e00530c-private.pem", "", b"secret").unwrap().status, 201);
    let others = ["/link", "/00005e00530c-private.pem", &too_long[0], &too_long[1]];
    let paths: Vec<&str> = paths.into_iter().chain(others).collect();
    assert!(paths.len() >= 37, "{paths:?}");
    for method in ["GET", "HEAD"] {
        let expected = bytes(&device, method, "/never-there");
        assert!(expected.starts_with("HTTP/1.1 404 Not Found\n"), "{expected}");
        for path in &paths {
            assert_eq!(bytes(&device, method, path), expected, "{method} {path}");
        }
    }
    let head = bytes(&device, "HEAD", "/absent");
    assert!(!head.contains("content-length: 0"), "a HEAD says the length of the GET, or none: {head}");
    assert_eq!(device.get("/site.cfg").unwrap().status, 200);
    for path in &too_long {
        let line = server.access("a path that is too long", |line| line["path"] == path.as_str());
        assert_eq!(line["reason"], "names of this kind are never served", "no file system access is needed");
    }
}

#[test]
fn all_403_answers_are_identical() {
    let site = Site::with_ote();
    let uploads_off = json!({ "trust": ["factory"], "phones": "any", "denied": [VVX550] });
    site.constituency("any", &uploads_off);
    site.file("ote/00005e00530c-here.cfg", "of the folder");
    let server = site.start();
    let known = server.client("ote", &FACTORY.device(VVX500));
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    let denied = server.client("any", &FACTORY.device(VVX550)).host("any.phones.example.com");
    let expected = bytes(&stranger, "GET", "/site.cfg");
    assert!(expected.starts_with("HTTP/1.1 403 Forbidden\n"), "{expected}");
    for path in ["/", "/absent", "/constituency.json", "/00005e0053c7.cfg", "/00005e0053aa.cfg"] {
        assert_eq!(bytes(&stranger, "GET", path), expected, "a stranger's {path}");
        assert_eq!(bytes(&stranger, "PUT", path), expected, "a stranger's {path}");
    }
    for (method, path) in [
        ("GET", "/00005e0053c7.cfg"),
        ("PUT", "/00005e0053c7-app.log"),
        ("PUT", "/00005e00530c.cfg"),
        ("PUT", "/00005e00530c-here.cfg"),
        ("PUT", "/site.cfg"),
        ("PUT", "/a/b/c/d/e/00005e00530c-app.log"),
    ] {
        assert_eq!(bytes(&known, method, path), expected, "{method} {path}");
    }
    let close = "Connection: close\r\n";
    let denied = denied.request("GET", "/site.cfg", close, b"").unwrap().without_date();
    assert_eq!(denied, stranger.request("GET", "/site.cfg", close, b"").unwrap().without_date());
    assert_eq!(bytes(&stranger, "HEAD", "/site.cfg"), bytes(&known, "HEAD", "/00005e0053c7.cfg"));
}
