//! The commands that edit policies: `allow`, `deny`, `constituency`.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::pki::FACTORY;
use crate::harness::site::{Site, holds};
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, not_run, within_a_second};
use crate::uploads::files_below;

/// Runs a command in the site's folder.
fn command(site: &Site, args: &[&str]) -> Ended {
    provost(&site.path("."), args)
}

#[track_caller]
fn good(site: &Site, args: &[&str]) -> String {
    let ended = command(site, args);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}: {}", ended.stdout);
    ended.stdout
}

fn policy(site: &Site, name: &str) -> Value {
    let text = std::fs::read_to_string(site.served(name).join("constituency.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn allow_and_deny_apply_within_a_second_and_keep_sessions() {
    let site = Site::with_ote();
    let server = site.start();
    let (known, stranger) =
        (server.client("ote", &FACTORY.device(VVX500)), server.client("ote", &FACTORY.device(STRANGER)));
    let mut bystander = known.connect().unwrap();
    assert_eq!(bystander.get("/site.cfg").unwrap().status, 200);
    assert_eq!(stranger.get("/site.cfg").unwrap().status, 403);
    let status = |status: u16| {
        within_a_second("the change", || (stranger.get("/site.cfg").unwrap().status == status).then_some(()))
    };

    let said = good(&site, &["allow", "00:00:5E:00:53:AA", "--constituency", "ote", "--note", "the \"attic\""]);
    status(200);
    assert_eq!(said, "00005e0053aa is allowed in ote within a second\n");
    assert_eq!(policy(&site, "ote")["phones"], json!({ VVX500: "vvx500", STRANGER: "the \"attic\"" }));
    let again = good(&site, &["allow", STRANGER, "--constituency", "ote"]);
    assert_eq!(again, "00005e0053aa is allowed in ote already\n");

    let mut open = stranger.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert_eq!(
        good(&site, &["deny", STRANGER, "--constituency", "ote"]),
        "00005e0053aa is denied in ote within a second\n"
    );
    status(403);
    assert_eq!(open.get("/site.cfg").unwrap().status, 403, "on an open connection too");
    assert_eq!(policy(&site, "ote")["phones"][STRANGER], "the \"attic\"", "the note stays");
    good(&site, &["allow", STRANGER, "--constituency", "ote"]);
    status(200);
    assert_eq!(policy(&site, "ote")["denied"], json!([]));

    assert_eq!(bystander.get("/site.cfg").unwrap().status, 200, "its connection stayed open");
    assert!(known.resumes(), "and its session is resumed");
}

#[test]
fn deny_edits_only_the_policy_of_its_constituency() {
    let site = Site::with_ote();
    site.constituency("lab", &json!({ "trust": ["factory"], "phones": "any" }));
    site.constituency("public", &json!({ "client_auth": "none" }));
    std::fs::create_dir(site.served("bare")).unwrap();
    site.file("broken/constituency.json", "{ \"phnes\": {} }");
    site.write_config();
    for name in ["bare", "lab", "ote"] {
        let said = good(&site, &["deny", VVX500, "--constituency", name]);
        assert_eq!(said, format!("{VVX500} is denied in {name} within a second\n"));
        assert_eq!(policy(&site, name)["denied"], json!([VVX500]), "{name}");
    }
    let said = good(&site, &["deny", VVX500, "--constituency", "public"]);
    assert!(said.starts_with("public does not authenticate clients"), "{said}");
    assert_eq!(policy(&site, "public"), json!({ "client_auth": "none" }));
    let ended = command(&site, &["deny", VVX500, "--constituency", "broken"]);
    let error = "00005e00530c MAY STILL BE ACCEPTED in broken: constituencies/broken/constituency.json:1:3: \"phnes\": unknown key";
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains(error) && ended.stderr.contains("nothing was changed"), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("unknown key").count(), 1, "it is said once: {}", ended.stderr);
    assert!(holds(&site.served("broken/constituency.json"), "{ \"phnes\": {} }"));
    let nowhere = command(&site, &["deny", VVX500, "--constituency", "nosuch"]);
    assert_eq!((nowhere.code, nowhere.stdout.as_str()), (1, ""));
    let error = "error: there is no constituency nosuch: constituencies/nosuch is not a folder; nothing was changed\n";
    assert_eq!(nowhere.stderr, error);
    assert_eq!(command(&site, &["deny", VVX500, "--constituency", "ote", "--note", "x"]).code, 2);
    assert!(!site.path("state/denied.json").exists());
}

#[test]
fn policy_edits_keep_format_and_mode_or_change_nothing() {
    let site = Site::with_ote();
    site.write_config();
    let file = site.served("ote/constituency.json");
    let before = "{\n\t\"trust\" : [ \"factory\" ],\n\n\t\"phones\": {\n\t\t\"00:00:5E:00:53:0C\": \"vvx500\"\n\t},\n\t\"uploads\": {\"max_phone_files\":3}\n}";
    std::fs::write(&file, before).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    good(&site, &["allow", VVX550, "--constituency", "ote", "--note", "b"]);
    let after = before.replace("\"vvx500\"\n", "\"vvx500\",\n\t\t\"00005e0053c7\": \"b\"\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), after);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    good(&site, &["allow", VVX500, "--constituency", "ote", "--note", "renamed"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), after.replace("vvx500", "renamed"));

    site.constituency("public", &json!({ "client_auth": "none" }));
    symlink("../ote/constituency.json", site.served("public/link")).unwrap();
    std::fs::create_dir(site.served("linked")).unwrap();
    symlink("../ote/constituency.json", site.served("linked/constituency.json")).unwrap();
    for (mac, name, error) in [
        (VVX500, "absent", "there is no constituency absent"),
        (VVX500, "public", "\"phones\": has no effect"),
        (VVX500, "linked", "is not a regular file"),
        ("000000000000", "ote", "000000000000 is the name of the fallback files, and not the MAC address of a phone"),
        (
            "ffffffffffff",
            "ote",
            "ffffffffffff is a multicast address (its first octet is odd), and not the MAC address of a phone",
        ),
    ] {
        let ended = command(&site, &["allow", mac, "--constituency", name]);
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{name}");
        assert!(ended.stderr.contains(error), "{name}: {}", ended.stderr);
    }
    assert_eq!(command(&site, &["allow", "vvx", "--constituency", "ote"]).code, 2);
    assert_eq!(files_below(&site.served("")).len(), 5, "nothing is left beside: {:?}", files_below(&site.served("")));
}

#[test]
fn temporary_file_of_a_killed_allow_is_removed_by_the_next() {
    let site = Site::with_ote();
    site.write_config();
    // Linux does not use such process numbers.
    let [left, linked] = [".constituency-4194305-0", ".constituency-4194306-3"];
    let running = format!(".constituency-{}-0", std::process::id());
    for name in [left, running.as_str(), ".constituency.json", "constituency-4194305-0", ".constituency-4194305-0.cfg"]
    {
        site.file(&format!("ote/{name}"), "x");
    }
    symlink("site.cfg", site.served("ote").join(linked)).unwrap();
    good(&site, &["allow", VVX550, "--constituency", "ote"]);
    let files = files_below(&site.served("ote"));
    let mut stays = [
        ".constituency-4194305-0.cfg",
        &running,
        ".constituency.json",
        "constituency-4194305-0",
        "constituency.json",
        "site.cfg",
    ];
    stays.sort_unstable();
    assert_eq!(files, stays);
}

#[test]
fn concurrent_allow_commands_are_all_kept() {
    let site = Site::with_ote();
    site.write_config();
    let mac = |number: usize| format!("00005e0053{number:02x}");
    let children: Vec<_> = (0x10..0x28)
        .map(|number| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
            command.args(["allow", &mac(number), "--constituency", "ote", "--note", "x"]).current_dir(site.path("."));
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    assert!(children.into_iter().all(|mut child| child.wait().unwrap().success()));
    assert_eq!(policy(&site, "ote")["phones"].as_object().unwrap().len(), 25);
}

#[test]
fn files_changed_by_root_keep_the_owner_of_their_folder() {
    let test = "files_changed_by_root_keep_the_owner_of_their_folder";
    if !rustix::process::geteuid().is_root() {
        return not_run(test, "it needs root");
    }
    let site = Site::with_ote();
    site.write_config();
    std::fs::create_dir(site.served("bare")).unwrap();
    std::fs::set_permissions(site.served("bare"), PermissionsExt::from_mode(0o750)).unwrap();
    std::fs::set_permissions(site.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(run(Command::new("chown").args(["-R", "65534:65533"]).arg(site.path("constituencies"))).code, 0);
    good(&site, &["allow", VVX550, "--constituency", "ote"]);
    good(&site, &["allow", VVX550, "--constituency", "bare"]);
    good(&site, &["constituency", "add", "new", "--from", "ote"]);
    let files = files_below(&site.served(""));
    assert_eq!(files.len(), 5, "{files:?}");
    for path in files.iter().map(String::as_str).chain(["new"]) {
        let metadata = std::fs::symlink_metadata(site.served(path)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (65534, 65533), "{path}");
    }
    assert_eq!(std::fs::metadata(site.served("bare/constituency.json")).unwrap().mode() & 0o777, 0o640);

    // A setuid program must not become one of root's.
    for (name, mode) in [("ote/site.cfg", 0o4755), ("ote/langs", 0o2750), ("ote/langs/fr.xml", 0o6755)] {
        if name == "ote/langs" {
            site.file("ote/langs/fr.xml", "x");
        }
        std::fs::set_permissions(site.served(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::chown(site.served(""), Some(0), Some(0)).unwrap();
    good(&site, &["constituency", "add", "copy", "--from", "ote"]);
    for (name, mode) in [("copy/site.cfg", 0o644), ("copy/langs", 0o750), ("copy/langs/fr.xml", 0o644)] {
        let metadata = std::fs::symlink_metadata(site.served(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, mode), "{name}");
    }

    // The constituencies' folder may be a symlink set by a deployment. Root's command reaches only what its owner may
    // reach.
    let deployed = site.path("deployed");
    std::fs::rename(site.path("constituencies"), &deployed).unwrap();
    std::os::unix::fs::chown(&deployed, Some(65534), Some(65533)).unwrap();
    let link = |target: &Path| {
        let _ = std::fs::remove_file(site.path("constituencies"));
        symlink(target, site.path("constituencies")).unwrap();
        std::os::unix::fs::lchown(site.path("constituencies"), Some(65534), Some(65533)).unwrap();
    };
    link(&deployed);
    good(&site, &["allow", STRANGER, "--constituency", "ote"]);
    assert_eq!(std::fs::metadata(deployed.join("ote/constituency.json")).unwrap().uid(), 65534);
    let roots = site.path("roots");
    std::fs::create_dir_all(roots.join("ote")).unwrap();
    link(&roots);
    let ended = command(&site, &["allow", STRANGER, "--constituency", "ote"]);
    assert!(ended.code == 1 && ended.stderr.contains("Permission denied"), "{ended:?}");
    assert!(files_below(&roots).is_empty());
    link(&deployed);

    // Another user must not, and gets an error.
    let mut other = Command::new("setpriv");
    other.args(["--reuid=1", "--regid=1", "--clear-groups", env!("CARGO_BIN_EXE_provost")]);
    let ended = run(other.args(["allow", VVX500, "--constituency", "ote", "--note", "x"]).current_dir(site.path(".")));
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("Permission denied") && ended.stderr.contains("run this as its owner"),
        "{}",
        ended.stderr
    );
}

#[test]
fn constituency_add_from_copies_only_common_files() {
    let site = Site::with_ote();
    site.constituency(
        "ote",
        &json!({ "description": "trials", "trust": ["factory"], "phones": { VVX500: "a" }, "denied": [STRANGER],
                 "aliases": ["trial"], "shared": ["firmware"], "uploads": { "max_phone_files": 7 } }),
    );
    for name in [
        "000000000000.cfg",
        "firmware/sip.ld",
        "langs/fr.xml",
        "00005e00530c.cfg",
        "users/00005e00530c-user.cfg",
        ".git/config",
        "old.cfg~",
        "#constituency.json#",
        "phones.csv",
        "old.cfg.dpkg-old",
        "langs/fr.xml.orig",
        "langs/CVS/Entries",
    ] {
        site.file(&format!("ote/{name}"), name);
    }
    symlink("site.cfg", site.served("ote/alias.cfg")).unwrap();
    let server = site.start();
    let said = good(&site, &["constituency", "add", "new", "--from", "ote"]);
    assert_eq!(
        said,
        "https://new.phones.example.com/ has 3 files; to allow a phone, run provost allow MAC --constituency new\n"
    );
    good(&site, &["allow", VVX550, "--constituency", "new", "--note", "b"]);
    assert_eq!(
        policy(&site, "new"),
        json!({ "trust": ["factory"], "phones": { VVX550: "b" }, "uploads": { "max_phone_files": 7 } })
    );
    let phone = server.client("new", &FACTORY.device(VVX550));
    within_a_second("the constituency", || {
        phone.get("/site.cfg").is_ok_and(|answer| answer.status == 200).then_some(())
    });
    for (path, status) in [
        ("/000000000000.cfg", 200),
        ("/alias.cfg", 200),
        ("/langs/fr.xml", 200),
        ("/firmware/sip.ld", 200),
        ("/old.cfg", 404),
    ] {
        assert_eq!(phone.get(path).unwrap().status, status, "{path}");
    }
    assert_eq!(std::fs::read_link(site.served("new/firmware")).unwrap(), Path::new("../ote/firmware"));
    let files = files_below(&site.served("new"));
    let expected =
        ["000000000000.cfg", "alias.cfg", "constituency.json", "firmware/sip.ld", "langs/fr.xml", "site.cfg"];
    assert!(!site.served("new/langs/CVS/Entries").exists());
    assert_eq!(files, expected);
}

#[test]
fn constituency_list_and_add_refuse_names_in_use() {
    let site = Site::with_ote();
    let policy = json!({ "description": "trials", "phones": "any", "trust": ["factory"], "aliases": ["trial"] });
    site.constituency("ote", &policy);
    site.write_config();
    good(&site, &["constituency", "add", "new"]);
    good(&site, &["allow", VVX500, "--constituency", "new"]);
    for (args, error) in [
        (&["new"][..], "constituency new already exists in "),
        (&["trial"], "trial is an alias of ote; remove it there first"),
        (&["x", "--from", "absent"], "constituency absent not found"),
    ] {
        let ended = command(&site, &[&["constituency", "add"], args].concat());
        assert_eq!(ended.code, 1, "{args:?}");
        assert!(ended.stderr.contains(error), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(command(&site, &["constituency", "add", "Not_A_Label"]).code, 2);
    good(&site, &["constituency", "add", "plain"]);
    let listed = good(&site, &["constituency", "list"]);
    assert_eq!(listed, "new         1 phone\note       any phone  trials\nplain      0 phones\n");
    site.file("broken/constituency.json", "{");
    let ended = command(&site, &["constituency", "list"]);
    assert!(ended.code == 1 && ended.stderr.contains("broken: ") && ended.stdout == listed, "{ended:?}");
    let json = command(&site, &["constituency", "list", "--json"]);
    let lines: Vec<Value> = json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((json.code, lines.len()), (1, 4), "{json:?}");
    let ote = json!({
        "name": "ote", "served": true, "url": "https://ote.phones.example.com/", "description": "trials",
        "aliases": ["trial"], "client_auth": "required", "phones": null, "problems": [],
    });
    assert_eq!(lines[1], ote);
    assert_eq!((&lines[0]["name"], &lines[0]["phones"]), (&json!("new"), &json!(1)));
    let broken = &lines[3];
    assert_eq!((&broken["name"], &broken["served"]), (&json!("broken"), &json!(false)), "{broken}");
    assert_eq!(broken["problems"][0]["severity"], "error", "{broken}");
    assert!(broken["problems"][0]["message"].as_str().unwrap().contains("constituency.json"), "{broken}");
    let left: Vec<_> = std::fs::read_dir(site.served("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
    std::fs::remove_dir_all(site.served("")).unwrap();
    let ended = command(&site, &["constituency", "add", "new"]);
    assert!(ended.code == 1 && ended.stderr.contains("make it with mkdir -p "), "{ended:?}");
}

#[test]
fn constituency_list_shows_what_a_server_does_with_it() {
    let site = Site::with_ote();
    site.write_config();
    site.file("ote/constituency.json", "{");
    let listed = |site: &Site| {
        let ended = command(site, &["constituency", "list", "--json"]);
        let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((ended.code, lines.len()), (1, 1), "{ended:?}");
        lines[0].clone()
    };
    // A running server may have a last good policy.
    let unknown = listed(&site);
    assert_eq!(unknown["served"], false, "{unknown}");
    let message = unknown["problems"][0]["message"].as_str().unwrap();
    let said = "(a running server keeps the last good policy, if it had one; not served after a restart)";
    assert!(message.ends_with(said), "{message}");
    let text = command(&site, &["constituency", "list"]);
    assert!(text.code == 1 && text.stderr.contains(said) && text.stdout.is_empty(), "{text:?}");

    let kept = site.path("state/last-good");
    std::fs::create_dir_all(&kept).unwrap();
    let policy = json!({ "trust": ["factory"], "phones": { VVX500: "", VVX550: "" } });
    std::fs::write(kept.join("ote.json"), policy.to_string()).unwrap();
    let known = listed(&site);
    assert_eq!((&known["served"], &known["phones"]), (&json!(true), &json!(2)), "{known}");
    let message = known["problems"][0]["message"].as_str().unwrap();
    assert!(message.ends_with("(the last good policy stays in force)"), "{message}");
    let text = command(&site, &["constituency", "list"]);
    assert!(text.code == 1 && text.stdout == "ote      2 phones\n", "{text:?}");
}
