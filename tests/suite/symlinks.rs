//! Symlinks: access is checked for the requested path and for the real path.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site};
use crate::harness::tls::{Client, alert};
use crate::harness::{VVX500, VVX550, eventually};

/// `ote`, `ucs` that shares its folder `firmware`, and `third`, each with a phone's file and a policy.
fn site() -> Site {
    let site = Site::with_ote();
    site.constituency("ucs", &json!({ "trust": ["factory"], "phones": { VVX550: "" }, "shared": ["firmware"] }));
    site.constituency("third", &json!({ "trust": ["factory"], "phones": {}, "shared": ["images"] }));
    for name in [
        "ote/00005e0053c7.cfg",
        "ote/00005e0053c7/ring.wav",
        "ote/.hidden",
        "ote/folder/own.cfg",
        "ucs/site.cfg",
        "ucs/private/secret.cfg",
        "ucs/firmware/00005e0053c7.ld",
        "ucs/firmware/00-00-5e-00-53-0c/sip.ld",
        "ucs/firmware/.git/config",
        "ucs/firmware/old~",
        "ucs/firmware/constituency.json",
        "ucs/deep/firmware/sip.ld",
        "third/firmware/sip.ld",
        "not_a_label/firmware/sip.ld",
    ] {
        site.file(name, format!("secret of {name}"));
    }
    for name in ["ote/00005e00530c.cfg", "ote/000000000000.cfg", "ucs/firmware/sip.ld", "ucs/firmware/5.9/sip.ld"] {
        site.file(name, name);
    }
    std::fs::write(site.path("outside"), "secret outside").unwrap();
    site
}

/// Creates the symlink `constituencies/NAME` to `target`.
fn link(site: &Site, name: &str, target: impl AsRef<Path>) {
    symlink(target, site.served(name)).unwrap();
}

fn phone(server: &Running) -> Client {
    server.client("ote", &FACTORY.device(VVX500))
}

/// Requests `path` and asserts that it is refused with `reason` in the log.
fn refused(server: &Running, path: &str, status: u16, reason: &str) {
    let got = phone(server).get(path).unwrap();
    assert_eq!(got.status, status, "{path}: {}", got.text());
    let line = server.access(path, |line| line["path"] == path);
    assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
}

#[test]
fn symlink_within_the_constituency_is_followed() {
    let site = site();
    link(&site, "ote/latest.cfg", "site.cfg");
    link(&site, "ote/folder/up.cfg", "../site.cfg");
    link(&site, "ote/again.cfg", "folder/up.cfg");
    link(&site, "ote/dir", "folder");
    link(&site, "ote/round.cfg", "../ote/site.cfg");
    link(&site, "ote/mine.cfg", "00005e00530c.cfg");
    link(&site, "ote/everybodys.cfg", "000000000000.cfg");
    link(&site, "ote/00005E00530C-web.cfg", "site.cfg");
    let server = site.start();
    for (path, content) in [
        ("/latest.cfg", "<site/>"),
        ("/folder/up.cfg", "<site/>"),
        ("/again.cfg", "<site/>"),
        ("/dir/up.cfg", "<site/>"),
        ("/dir/own.cfg", "secret of ote/folder/own.cfg"),
        ("/round.cfg", "<site/>"),
        ("/mine.cfg", "ote/00005e00530c.cfg"),
        ("/everybodys.cfg", "ote/000000000000.cfg"),
        ("/00005e00530c-web.cfg", "<site/>"),
    ] {
        assert_eq!(phone(&server).get(path).unwrap().text(), content, "{path}");
    }
    assert_eq!(phone(&server).get("/dir").unwrap().status, 404, "a symlink to a folder is no file either");
}

/// Symlink targets and files there that are never served under their own names.
const HIDDEN: [(&str, &str); 6] = [
    ("#constituency.json#", "#constituency.json#"),
    ("Phones.csv", "Phones.csv"),
    ("site.cfg.rpmsave", "site.cfg.rpmsave"),
    ("site.cfg.BAK", "site.cfg.BAK"),
    ("CVS", "CVS/Entries"),
    ("folder/_darcs", "folder/_darcs/prefs/motd"),
];

#[test]
fn symlink_to_a_foreign_or_hidden_file_is_refused() {
    let site = site();
    link(&site, "ote/a.cfg", "00005e0053c7.cfg");
    link(&site, "ote/00005e00530c-b.cfg", "00005e0053c7.cfg");
    link(&site, "ote/dir", "00005e0053c7");
    link(&site, "ote/00005e0053c7-c.cfg", "site.cfg");
    link(&site, "ote/policy.txt", "constituency.json");
    link(&site, "ote/hidden.txt", ".hidden");
    link(&site, "ote/.dot", "site.cfg");
    for (number, (name, file)) in HIDDEN.iter().enumerate() {
        site.file(&format!("ote/{file}"), "secret");
        link(&site, &format!("ote/{number}.txt"), name);
    }
    let server = site.start();
    for path in ["/a.cfg", "/00005e00530c-b.cfg", "/dir/ring.wav", "/00005e0053c7-c.cfg"] {
        refused(&server, path, 403, "the path holds 00005e0053c7");
    }
    for path in ["/policy.txt", "/hidden.txt", "/.dot"] {
        refused(&server, path, 404, "never served");
    }
    for (number, (name, file)) in HIDDEN.iter().enumerate() {
        let rest = file.strip_prefix(name).unwrap();
        refused(&server, &format!("/{number}.txt{rest}"), 404, "never served");
    }
}

#[test]
fn symlink_into_another_constituency_needs_shared() {
    let site = site();
    link(&site, "ote/firmware", "../ucs/firmware");
    link(&site, "ote/image.ld", "../ucs/firmware/sip.ld");
    link(&site, "ote/deep.ld", "../ucs/deep/firmware/sip.ld");
    link(&site, "ote/site-of-ucs.cfg", "../ucs/site.cfg");
    link(&site, "ote/private", "../ucs/private");
    link(&site, "ote/ucs", "../ucs");
    link(&site, "ote/third", "../third/firmware");
    link(&site, "ote/stray", "../not_a_label/firmware");
    link(&site, "ucs/firmware/on.ld", "../../third/firmware/sip.ld");
    link(&site, "ucs/firmware/back.cfg", "../site.cfg");
    let server = site.start();
    for (path, content) in [
        ("/firmware/sip.ld", "ucs/firmware/sip.ld"),
        ("/firmware/5.9/sip.ld", "ucs/firmware/5.9/sip.ld"),
        ("/image.ld", "ucs/firmware/sip.ld"),
        ("/ucs/firmware/sip.ld", "ucs/firmware/sip.ld"),
    ] {
        assert_eq!(phone(&server).get(path).unwrap().text(), content, "{path}");
    }
    let unshared = "not in a folder that the other constituency lists in \"shared\"";
    refused(&server, "/deep.ld", 404, unshared);
    refused(&server, "/site-of-ucs.cfg", 404, unshared);
    refused(&server, "/private/secret.cfg", 404, unshared);
    refused(&server, "/ucs/site.cfg", 404, unshared);
    refused(&server, "/third/sip.ld", 404, "the symlink leads to third/firmware/sip.ld");
    refused(&server, "/firmware/on.ld", 404, "the symlink leads to third/firmware/sip.ld");
    refused(&server, "/firmware/back.cfg", 404, unshared);
    refused(&server, "/stray/sip.ld", 404, "not_a_label/firmware/sip.ld, and not_a_label is not a served constituency");
    for hidden in ["/firmware/.git/config", "/firmware/old~", "/firmware/constituency.json", "/ucs/constituency.json"] {
        refused(&server, hidden, 404, "never served");
    }
    // A MAC in the requested path belongs to another phone; a MAC in the real path refuses everybody, even that phone.
    refused(&server, "/firmware/00005e0053c7.ld", 403, "the path holds 00005e0053c7");
    refused(&server, "/firmware/00-00-5e-00-53-0c/sip.ld", 404, "a phone's own file is never shared");

    // `shared` is evaluated on each request.
    site.constituency("ucs", &json!({ "trust": ["factory"], "phones": {} }));
    eventually("the folder to be no longer shared", || {
        (phone(&server).get("/image.ld").unwrap().status == 404).then_some(())
    });
}

#[test]
fn absolute_or_escaping_symlink_is_not_followed() {
    let site = site();
    link(&site, "ote/up", "../../outside");
    link(&site, "ote/passwd", "/etc/passwd");
    link(&site, "ote/absolute", site.served("ote/site.cfg"));
    link(&site, "ote/root", "/");
    link(&site, "ote/self", "/proc/self/root");
    link(&site, "ote/in-and-out", format!("../../{}/ote/site.cfg", "constituencies"));
    let server = site.start();
    let cases = [
        ("/up", "ote/up: the symlink leads to "),
        ("/passwd", "ote/passwd: the symlink leads to /etc/passwd, outside the folder of the constituencies"),
        ("/absolute", "ote/absolute: the symlink is absolute and is not followed; make it relative: site.cfg"),
        ("/root/etc/passwd", "ote/root: the symlink leads to /, outside"),
        ("/self/etc/passwd", "ote/self: the symlink leads to /, outside"),
        ("/in-and-out", "a symlink in the path leads out of the folder of the constituencies"),
    ];
    for (path, reason) in cases {
        refused(&server, path, 404, reason);
    }
}

#[test]
fn dangling_or_looping_symlink_is_404() {
    let site = site();
    link(&site, "ote/nowhere", "absent");
    link(&site, "ote/one", "two");
    link(&site, "ote/two", "one");
    link(&site, "ote/itself", "itself");
    let server = site.start();
    refused(&server, "/nowhere", 404, "no such file");
    for path in ["/one", "/two", "/itself", "/itself/x"] {
        refused(&server, path, 404, "symlinks form a loop");
    }
}

#[test]
fn public_constituency_serves_no_phone_file_by_symlink() {
    let site = site();
    site.constituency("public", &json!({ "client_auth": "none" }));
    site.file("public/00005e0053c7.cfg", "secret");
    link(&site, "public/a.cfg", "00005e0053c7.cfg");
    link(&site, "public/firmware", "../ucs/firmware");
    let server = site.start();
    let client = Client::new(server.address(), Some("public.phones.example.com"));
    assert_eq!(client.get("/a.cfg").unwrap().status, 404);
    assert_eq!(client.get("/firmware/sip.ld").unwrap().text(), "ucs/firmware/sip.ld");
}

#[test]
fn constituencies_symlink_is_followed_when_switched() {
    let site = site();
    std::fs::rename(site.path("constituencies"), site.path("release-1")).unwrap();
    symlink("release-1", site.path("constituencies")).unwrap();
    link(&site, "ote/firmware", "../ucs/firmware");
    let server = site.start();
    let mut connection = phone(&server).connect().unwrap();
    assert_eq!(connection.get("/firmware/sip.ld").unwrap().text(), "ucs/firmware/sip.ld");

    std::fs::create_dir_all(site.path("release-2/ote")).unwrap();
    std::fs::copy(site.served("ote/constituency.json"), site.path("release-2/ote/constituency.json")).unwrap();
    std::fs::write(site.path("release-2/ote/site.cfg"), "<new/>").unwrap();
    symlink("release-2", site.path("next")).unwrap();
    std::fs::rename(site.path("next"), site.path("constituencies")).unwrap();
    eventually("the new release", || (phone(&server).get("/site.cfg").ok()?.text() == "<new/>").then_some(()));
    assert_eq!(phone(&server).get("/firmware/sip.ld").unwrap().status, 404);
}

#[test]
fn symlinked_constituency_folder_is_not_served() {
    let site = site();
    link(&site, "linked", "ote");
    let server = site.start();
    server.says("it is a symlink; use a real folder");
    let error = server.client("linked", &FACTORY.device(VVX500)).get("/site.cfg").unwrap_err();
    assert_eq!(alert(&error), Some(rustls::AlertDescription::UnrecognisedName));
}

#[test]
fn symlink_swapped_during_requests_leaks_no_file() {
    const REQUESTS: usize = 2000;
    let site = site();
    link(&site, "ote/current", "site.cfg");
    let server = site.start();
    let targets = ["site.cfg", "00005e0053c7.cfg", "../ucs/firmware/sip.ld", "constituency.json", "../ucs/site.cfg"];
    let done = AtomicBool::new(false);
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for target in targets.iter().cycle() {
                let _ = std::fs::remove_file(site.served("ote/.next"));
                link(&site, "ote/.next", target);
                std::fs::rename(site.served("ote/.next"), site.served("ote/current")).unwrap();
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let mut connection = phone(&server).connect().unwrap();
        for _ in 0..REQUESTS {
            let got = connection.get("/current").unwrap();
            *statuses.entry(got.status).or_default() += 1;
            if got.status == 200 {
                assert!(["<site/>", "ucs/firmware/sip.ld"].contains(&got.text().as_str()), "{}", got.text());
            } else if got.header("connection") == Some("close") {
                connection = phone(&server).connect().unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [200, 403, 404], "{statuses:?}");
}
