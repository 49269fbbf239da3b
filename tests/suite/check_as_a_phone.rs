//! `provost check` reads a constituency like its phones, and reports missing files and files that should not be served.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::harness::pki::FACTORY;
use crate::harness::site::Site;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, Stopwatch, VVX500, VVX550};
use crate::uploads::phone;

const MASTER: &str = r#"<?xml version="1.0"?>
<APPLICATION APP_FILE_PATH="" CONFIG_FILES="[PHONE_MAC_ADDRESS]-user.cfg, site.cfg"
    LOG_FILE_DIRECTORY="logs"/>"#;

/// The usual site, with a master configuration and all files that it names.
fn site() -> Site {
    let site = Site::with_ote();
    site.file("ote/000000000000.cfg", MASTER);
    site.file(&format!("ote/{VVX500}-user.cfg"), r#"<user reg.1.auth.password="s3cret"/>"#);
    site
}

pub(crate) fn check(site: &Site) -> Ended {
    site.write_config();
    provost(&site.path("."), &["check"])
}

/// The findings about constituencies, without the summary line.
pub(crate) fn findings(site: &Site) -> Vec<String> {
    let ended = check(site);
    assert_eq!(ended.stderr, "");
    let lines: Vec<String> = ended.stdout.lines().map(str::to_owned).collect();
    let errors = lines.iter().any(|line| line.starts_with("error: "));
    assert_eq!(ended.code, i32::from(errors), "{}", ended.stdout);
    let is_of_constituencies = |line: &&String| !line.starts_with("note: trust bundle ");
    lines.split_last().unwrap().1.iter().filter(is_of_constituencies).cloned().collect()
}

/// Asserts that exactly these findings are reported, each by its start and end.
#[track_caller]
pub(crate) fn finds(site: &Site, expected: &[(&str, &str)]) {
    let found = findings(site);
    for (start, end) in expected {
        let is_it = |line: &&String| line.starts_with(start) && line.ends_with(end);
        assert_eq!(found.iter().filter(is_it).count(), 1, "{start:?} … {end:?} is not once among {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn served_private_key_is_found_under_any_file_name() {
    let site = site();
    let key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n";
    site.file("ote/kitchen.pem", format!("-----BEGIN CERTIFICATE-----\n{key}"));
    site.file("ote/old/server", key.replace("BEGIN ", "BEGIN RSA "));
    site.file("ote/text.cfg", key);
    site.file(
        "ote/pair.cfg",
        format!("<x device.sec.TLS.customDeviceCert1.privateKey=\"{}\"/>", key.replace('\n', "&#10;")),
    );
    site.file(&format!("ote/{VVX500}-own.pem"), key);
    // Files that are not served, and files that contain no key.
    site.file("ote/.hidden.pem", key);
    site.file(&format!("ote/{VVX550}-own.pem"), key);
    site.file("ote/ca.pem", "-----BEGIN CERTIFICATE-----\n");
    site.file("ote/sip.ld", [&vec![0; 2 << 20], key.as_bytes()].concat());
    let advice = "move it out of the folder, and replace it if others may have read it";
    let every = "holds a private key that every phone of the constituency can read";
    finds(
        &site,
        &[
            (&format!("warning: ote/kitchen.pem:2: {every}"), advice),
            (&format!("warning: ote/old/server:1: {every}"), advice),
            (&format!("warning: ote/text.cfg:1: {every}"), advice),
            ("warning: ote/text.cfg: the file holds no XML element", ""),
            ("warning: ote/pair.cfg:1: device.sec.TLS.customDeviceCert1.privateKey holds a secret", ""),
            (&format!("note: ote/{VVX500}-own.pem:1: holds a private key that its phone can read"), advice),
            (&format!("warning: ote: served to no phone: {VVX550}-own.pem"), ""),
        ],
    );
    let open = Site::new();
    open.constituency("ote", &json!({ "client_auth": "none" }));
    open.file("ote/kitchen.pem", key);
    finds(&open, &[("error: ote/kitchen.pem:1: holds a private key that any client can read", advice)]);
}

#[test]
fn complete_constituency_has_no_findings() {
    finds(&site(), &[]);
}

#[test]
fn missing_files_of_a_master_are_reported_per_model_and_phone() {
    let site = site();
    let phones = json!({ VVX500: "", VVX550: "", STRANGER: "" });
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones, "denied": [STRANGER] }));
    site.file(
        "ote/000000000000.cfg",
        r#"<APPLICATION CONFIG_FILES="[PHONE_MAC_ADDRESS]-user.cfg, [PHONE_MODEL].cfg, Site.cfg, https://elsewhere.example/x.cfg">
  <APPLICATION_VVX500 CONFIG_FILES_VVX500="a/VVX500.cfg, site.cfg"/>
  <APPLICATION_VVX600 CONFIG_FILES_VVX600="[PHONE_PART_NUMBER].cfg, absent.cfg"/>
  <APPLICATION_VVX601 APP_FILE_PATH_VVX601="a/sip.ld"/>
</APPLICATION>"#,
    );
    site.file("ote/a/VVX500.cfg", "<x/>");
    site.file("ote/a/3111-44500-001.sip.ld", "firmware");
    let own = r#"<APPLICATION CONFIG_FILES="own.cfg,https://ote.phones.example.com/site.cfg,https://ote.phones.example.com/no.cfg"/>"#;
    site.file(&format!("ote/{VVX550}.cfg"), own);
    let master = "warning: ote/000000000000.cfg:";
    finds(
        &site,
        &[
            (
                &format!("warning: ote: \"phones\" and \"denied\" both name {STRANGER}: the denial takes precedence"),
                "removes the denial)",
            ),
            (
                &format!(
                    "{master}1: CONFIG_FILES names Site.cfg, which is not found, but site.cfg is: names are case-sensitive"
                ),
                "",
            ),
            (
                "warning: ote/000000000000.cfg: it names missing files for models that no known phone has (VVX600, VVX601): \
                 VVX601.cfg, absent.cfg",
                "",
            ),
            (
                "note: ote/000000000000.cfg:1: CONFIG_FILES names https://elsewhere.example/x.cfg, on another server, so it was \
                 not checked",
                "",
            ),
            (&format!("warning: ote/{VVX550}.cfg:1: CONFIG_FILES names own.cfg, which is not found"), ""),
            (
                &format!(
                    "warning: ote/{VVX550}.cfg:1: CONFIG_FILES names https://ote.phones.example.com/no.cfg, which is not found"
                ),
                "",
            ),
        ],
    );
    std::fs::remove_file(site.served(&format!("ote/{VVX550}.cfg"))).unwrap();
    let missing = format!("{master}1: CONFIG_FILES names [PHONE_MAC_ADDRESS]-user.cfg, which is not found");
    let who = |end: &str| findings(&site).iter().any(|line| line.starts_with(&missing) && line.ends_with(end));
    assert!(who(&format!("(for {VVX550})")), "{:#?}", findings(&site));
    std::fs::remove_file(site.served(&format!("ote/{VVX500}-user.cfg"))).unwrap();
    assert!(who("(for all 2 phones)"), "{:#?}", findings(&site));
}

#[test]
fn unparsable_file_is_an_error_if_a_master_names_it() {
    let site = site();
    site.file("ote/site.cfg", "<site>\n  <a b='1'\n");
    site.file("ote/unused.cfg", "<a b=c/>");
    site.file("ote/notes.txt", "<<<");
    site.file("ote/SoundPointIPLocalization/x.xml", "");
    site.file("ote/latin.cfg", b"<a b='\xe4'/>");
    finds(
        &site,
        &[
            ("error: ote/site.cfg: the file ends within a tag that begins at 2:3", ""),
            ("warning: ote/unused.cfg:1:6: found c instead of a quote", "what phones do with it is not known"),
            ("warning: ote/SoundPointIPLocalization/x.xml: the file is empty", ""),
            ("warning: ote/latin.cfg:1:7: the file is not UTF-8 and declares no other encoding", "save it as UTF-8"),
        ],
    );
}

#[test]
fn exposed_secret_is_reported_without_its_value() {
    let site = site();
    site.file(
        "ote/site.cfg",
        "<site>\n <a reg.1.auth.password=\"hunter2-one\" device.auth.localAdminPassword.set=\"1\"/>\n\
         <b dir.corp.address=\"https://u:hunter2-two@h/\" reg.2.auth.password=\"\"/></site>",
    );
    let named = "put it into a file with the phone's MAC address in its name: only that phone gets that";
    let who = "every phone of the constituency can read";
    finds(
        &site,
        &[
            (&format!("warning: ote/site.cfg:2: reg.1.auth.password holds a secret that {who}"), named),
            (&format!("warning: ote/site.cfg:3: dir.corp.address holds a URL with a password that {who}"), named),
        ],
    );
    assert!(!check(&site).stdout.contains("hunter2"), "a secret is shown");

    site.constituency("ote", &json!({ "trust": ["factory"], "phones": "any" }));
    let all = findings(&site);
    assert!(all.iter().all(|line| line.contains("every phone with a valid certificate can read")) && all.len() == 2);

    site.constituency("ote", &json!({ "client_auth": "none" }));
    let all = findings(&site);
    assert_eq!(
        all.iter().filter(|line| line.starts_with("error: ") && line.contains("that any client can read")).count(),
        2
    );
    assert!(all.iter().any(|line| line.contains("which is never served without client authentication")), "{all:#?}");
    let users = format!("warning: ote: served to no phone: {VVX500}-user.cfg: the path holds {VVX500}, ");
    assert!(all.iter().any(|line| line.starts_with(&users)) && all.len() == 4, "{all:#?}");

    let mut open = self::site();
    open.config["plain_http"] = json!({ "listen": "127.0.0.1:0", "networks": ["127.0.0.0/8"] });
    open.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "plain_http": true }));
    open.file("ote/site.cfg", "<site a.password='hunter2'/>");
    finds(
        &open,
        &[(
            "error: ote/site.cfg:1: a.password holds a secret that any client in the networks of \"plain_http\"",
            named,
        )],
    );

    let many: String = (0..25).map(|number| format!("reg.{number}.auth.password=\"hunter2\"\n")).collect();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" } }));
    site.file("ote/site.cfg", format!("<site {many}/>"));
    let all = findings(&site);
    assert_eq!(all.len(), 11, "{all:#?}");
    assert!(all[0].starts_with("warning: ote/site.cfg: 15 more secrets that every phone"), "{all:#?}");
}

#[test]
fn unserved_files_are_reported_with_a_remedy() {
    let site = site();
    site.file(&format!("ote/{STRANGER}-user.cfg"), "<x/>");
    site.file(&format!("ote/calls/{}-calls.xml", STRANGER.to_uppercase()), "<x/>");
    site.file(&format!("ote/{VVX550}-user.cfg"), "<x/>");
    site.file(&format!("ote/{VVX500}-{VVX550}.cfg"), "<x/>");
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "denied": [VVX550] }));
    let unknown =
        format!("{STRANGER} is on no list; if it is a phone, run provost allow {STRANGER} --constituency ote; ");
    let upper = format!("calls/{}-calls.xml", STRANGER.to_uppercase());
    let files = format!("{STRANGER}-user.cfg, {upper}");
    let for_all = format!("to serve them to every client, add \"{STRANGER}-user.cfg\", \"{upper}\" to \"common\"");
    finds(
        &site,
        &[
            (&format!("warning: ote: served to no phone: {files}: {unknown}"), &for_all),
            (&format!("note: ote: served to no phone: {VVX550}-user.cfg: {VVX550} is denied"), ""),
            (
                &format!(
                    "warning: ote: served to no phone: {VVX500}-{VVX550}.cfg: it belongs to {VVX500}, and the path "
                ),
                "also holds another MAC address",
            ),
        ],
    );
    site.constituency("ote", &json!({ "client_auth": "digest", "phones": { VVX500: "" } }));
    let with_password = format!("provost allow {STRANGER} --constituency ote --digest;");
    assert!(findings(&site).iter().any(|line| line.contains(&with_password)), "{:#?}", findings(&site));
}

#[test]
fn upload_that_hides_a_file_is_reported_with_the_remedy() {
    let site = site();
    let file = format!("overrides/{VVX500}-phone.cfg");
    site.file(&format!("ote/{file}"), "<ours/>");
    let server = site.start();
    assert_eq!(phone(&server).put(&format!("/{file}"), "", b"<theirs/>").unwrap().status, 201);
    assert_eq!(phone(&server).put(&format!("/logs/{VVX500}-app.log"), "", b"log").unwrap().status, 201);
    let back = format!("uploads remove {VVX500} {file} --constituency ote");
    let expected = format!(
        "warning: ote/{file}: hidden by an upload: {VVX500} gets its upload instead; to give it this file, run provost {back}"
    );
    finds(&site, &[(&expected, "")]);
    let removed = provost(&site.path("."), &back.split(' ').collect::<Vec<_>>());
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    finds(&site, &[(&format!("warning: ote/{file}: phones upload files of this name: once {VVX500} does"), "")]);
    assert_eq!(phone(&server).get(&format!("/{file}")).unwrap().body, b"<ours/>");
}

#[test]
fn case_conflicts_and_refused_upload_folders_are_reported() {
    let site = site();
    site.file("ote/Site.cfg", "<x/>");
    site.file("ote/ring tones/a.wav", "x");
    site.file("ote/000000000000.cfg", MASTER.replace("\"logs\"", "\"my logs\""));
    finds(
        &site,
        &[
            ("warning: ote: Site.cfg and site.cfg differ only in case", ""),
            ("warning: ote/000000000000.cfg:3: LOG_FILE_DIRECTORY names my logs, where uploads are refused: ", ""),
        ],
    );
}

/// The usual site with valid and invalid names and symlinks; and the paths by which a phone may request them.
fn site_of_links() -> (Site, [&'static str; 26]) {
    let site = site();
    let ucs = json!({ "trust": ["factory"], "phones": { VVX500: "" }, "shared": ["firmware", "common"] });
    site.constituency("ucs", &ucs);
    site.file("ucs/common/shared.cfg", "<x/>");
    site.file(&format!("ucs/common/{VVX500}-x.cfg"), "<x/>");
    site.file("ucs/private.cfg", "<x/>");
    site.file("ote/folder/real.cfg", "<x/>");
    site.file(&format!("ote/{VVX550}-user.cfg"), "<x/>");
    site.file("ote/.hidden.cfg", "<x/>");
    site.file("ote/backup.cfg~", "<x/>");
    let ote = |name: &str| site.served(&format!("ote/{name}"));
    symlink("folder/real.cfg", ote("inside.cfg")).unwrap();
    symlink("../ucs/common/shared.cfg", ote("shared.cfg")).unwrap();
    symlink("../ucs/common", ote("common")).unwrap();
    symlink("../ucs/private.cfg", ote("private.cfg")).unwrap();
    symlink("/etc/hostname", ote("outside.cfg")).unwrap();
    symlink("../../provost.json", ote("above.cfg")).unwrap();
    symlink(ote("site.cfg"), ote("absolute.cfg")).unwrap();
    symlink("circle.cfg", ote("circle.cfg")).unwrap();
    symlink(format!("{VVX550}-user.cfg"), ote("others.cfg")).unwrap();
    symlink("constituency.json", ote("policy.cfg")).unwrap();
    assert_eq!(run(Command::new("mkfifo").arg(ote("pipe.cfg"))).code, 0);
    let names = [
        "site.cfg",
        "/site.cfg",
        "./site.cfg",
        "folder//real.cfg",
        "folder/real.cfg",
        "inside.cfg",
        "shared.cfg",
        "common/shared.cfg",
        "private.cfg",
        "outside.cfg",
        "above.cfg",
        "absolute.cfg",
        "circle.cfg",
        "others.cfg",
        "policy.cfg",
        "pipe.cfg",
        ".hidden.cfg",
        "backup.cfg~",
        "folder",
        "folder/../site.cfg",
        "SITE.cfg",
        "constituency.json",
        "absent.cfg",
        "[PHONE_MAC_ADDRESS]-user.cfg",
        "common/[PHONE_MAC_ADDRESS]-x.cfg",
        "00005e0053c7-user.cfg",
    ];
    (site, names)
}

/// `check` must report a file as missing exactly if the server refuses it.
#[test]
fn check_reports_missing_exactly_what_the_server_refuses() {
    let (site, names) = site_of_links();
    site.file("ote/000000000000.cfg", format!(r#"<APPLICATION CONFIG_FILES="{}"/>"#, names.join(",")));
    let server = site.start();
    let found = findings(&site);
    let mut missing = 0;
    for name in names {
        let path = name.replace("[PHONE_MAC_ADDRESS]", VVX500);
        let path = format!("/{path}");
        let is_served = phone(&server).get(&path).unwrap().status == 200;
        let is_missed = found.iter().any(|line| line.contains(&format!("CONFIG_FILES names {name}, ")));
        assert_eq!(is_served, !is_missed, "{name}: {found:#?}");
        missing += usize::from(is_missed);
    }
    assert_eq!(missing, 17, "{found:#?}");
    assert!(!found.iter().any(|line| line.contains("root:")), "nothing outside was read");
}

#[test]
fn hostile_files_do_not_stall_the_check() {
    let site = site();
    let deep = "<a>".repeat(400_000) + &"</a>".repeat(400_000);
    site.file("ote/deep.cfg", deep);
    let passwords = |count: u32| (0..count).map(|number| format!("p{number}.password='x'\n")).collect::<String>();
    site.file("ote/wide.cfg", format!("<a {}/>", passwords(150_000)));
    site.file("ote/secrets.cfg", format!("<a {}/>", passwords(9_000)));
    let bomb = "<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;'>]><a>&b;</a>";
    site.file("ote/bomb.xml", bomb);
    site.file("ote/external.xml", "<!DOCTYPE a [<!ENTITY a SYSTEM '/etc/hostname'>]><a>&a;</a>");
    let huge = std::fs::File::create(site.served("ote/huge.cfg")).unwrap();
    huge.set_len(1 << 40).unwrap();
    std::fs::File::create(site.served("ote/firmware.sip.ld")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(run(Command::new("mkfifo").arg(site.served("ote/pipe.cfg"))).code, 0);
    symlink("/dev/zero", site.served("ote/zero.cfg")).unwrap();
    symlink(".", site.served("ote/loop")).unwrap();
    let nested = (0..300).fold(site.served("ote"), |folder, _| folder.join("d"));
    std::fs::create_dir_all(nested).unwrap();
    site.file("ote/escape\u{1b}[31m.cfg", "<\u{1b}[2J");
    let watch = Stopwatch::start();
    let found = findings(&site);
    watch.at_most(Duration::from_secs(20), "the look");
    for part in [
        "ote/huge.cfg: larger than 4 MiB: not checked",
        "ote/pipe.cfg: not a regular file: never served",
        "ote/zero.cfg: the symlink leads to /dev/zero, outside",
        "ote/bomb.xml:1:1: a DOCTYPE",
        "ote/external.xml:1:1: a DOCTYPE",
        "ote/deep.cfg: elements are nested more than 1000 deep at 1:3001",
        "ote/wide.cfg: 149990 more secrets",
        "ote/secrets.cfg: 8990 more secrets",
    ] {
        assert!(found.iter().any(|line| line.contains(part)), "{part} is not among {found:#?}");
    }
    assert!(!found.iter().any(|line| line.contains("firmware.sip.ld")), "{found:#?}");
    assert!(!found.iter().any(|line| line.contains('\x1b')), "{found:#?}");
}

#[test]
fn check_of_a_thousand_phones_finishes_within_its_deadline() {
    let site = site();
    let mac = |number: u32| format!("00005e01{number:04x}");
    let phones: serde_json::Map<_, _> = (0..1000).map(|number| (mac(number), "".into())).collect();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": phones }));
    for number in 0..1000 {
        // A third of them have a file of their own, and as many files belong to unlisted phones.
        if number % 3 == 0 {
            site.file(&format!("ote/{}-user.cfg", mac(number)), "<x/>");
            site.file(&format!("ote/{}-user.cfg", mac(number + 0x1000)), "<x/>");
        }
    }
    let watch = Stopwatch::start();
    let found = findings(&site);
    watch.at_most(Duration::from_secs(10), "the look");
    assert!(
        found.iter().any(|line| line.contains("which is not found (for 00005e010001,") && line.ends_with("661 more)")),
        "{found:#?}"
    );
    assert_eq!(found.iter().filter(|line| line.contains("served to no phone: ")).count(), 335, "{found:#?}");
    assert_eq!(found.len(), 336, "{found:#?}");
}

#[test]
fn check_modifies_no_file_beside_a_running_server() {
    let site = site();
    let server = site.start();
    assert_eq!(server.client("ote", &FACTORY.device(VVX500)).get("/site.cfg").unwrap().status, 200);
    let find = ["constituencies", "state/uploads", "-printf", "%p %T@ %C@ %m %s\n"];
    let files = || run(Command::new("find").args(find).current_dir(site.path("."))).stdout;
    let before = files();
    assert!(before.lines().count() >= 6, "{before}");
    finds(&site, &[]);
    assert_eq!(before, files());
}
