//! Folders that are created, removed, exchanged or invalid: the server follows `constituencies` on the disk.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};

use provost::virtual_phone::{
    BootObserver, BootReport, BootTarget, DeviceCertificate, FleetSummary, VirtualPhone, boot_fleet,
};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use rustls::{AlertDescription, RootCertStore};
use serde_json::{Value, json};

use crate::harness::pki::{FACTORY, SERVER_CA};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::{Client, alert};
use crate::harness::tool::run;
use crate::harness::{STRANGER, VVX500, not_run, within_a_second};

fn policy() -> Value {
    json!({ "trust": ["factory"], "phones": { VVX500: "" } })
}

/// Creates in `folder` a constituency `name` that serves `content`.
fn make(folder: &Path, name: &str, content: &str) {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("site.cfg"), content).unwrap();
    fs::write(folder.join("constituency.json"), policy().to_string()).unwrap();
}

fn client(server: &Running, name: &str) -> Client {
    server.client(name, &FACTORY.device(VVX500))
}

fn target(server: &Running, name: &str) -> BootTarget {
    let mut roots = RootCertStore::empty();
    roots.add(SERVER_CA.certificate.der().clone()).unwrap();
    BootTarget {
        url: format!("https://{name}.{DOMAIN}:{}/", server.address().port()).parse().unwrap(),
        server_roots: Arc::new(roots),
        resolve: Some(server.address()),
        password: None,
    }
}

fn serves(client: &Client, content: &str) -> Option<()> {
    client.get("/site.cfg").is_ok_and(|response| response.status == 200 && response.text() == content).then_some(())
}

fn is_unrecognized(client: &Client) -> Option<()> {
    let error = client.get("/site.cfg").err()?;
    (alert(&error) == Some(AlertDescription::UnrecognisedName)).then_some(())
}

/// Exchanges `new` and `old` atomically, so that the old content remains at `new`.
fn exchange(new: &Path, old: &Path) {
    renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn new_folder_is_served_within_a_second() {
    let site = Site::new();
    let server = site.start();
    assert!(is_unrecognized(&client(&server, "made")).is_some());
    make(&site.served(""), "made", "<made/>");
    within_a_second("a folder made in place", || serves(&client(&server, "made"), "<made/>"));
    make(&site.path("staging"), "moved", "<moved/>");
    fs::rename(site.path("staging/moved"), site.served("moved")).unwrap();
    within_a_second("a folder moved in", || serves(&client(&server, "moved"), "<moved/>"));
}

#[test]
fn removed_folder_gets_421_within_a_second() {
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
    assert!(is_unrecognized(&client(&server, "ote")).is_some());
    server.reason("the constituency no longer exists");
    assert_eq!(other.get("/site.cfg").unwrap().status, 200);
    // A folder that returns is a new constituency: no earlier session is resumed.
    let before = client(&server, "ote");
    site.constituency("ote", &policy());
    site.file("ote/site.cfg", "<again/>");
    within_a_second("the recreated folder", || serves(&before, "<again/>"));
}

/// Replaces the tree that `constituencies` links to by a copy with `change` applied, and removes the old tree.
fn deploy(site: &Site, change: impl FnOnce(&Path)) {
    let link = site.path("constituencies");
    let old = fs::read_link(&link).unwrap();
    let number: u32 = old.to_str().unwrap().strip_prefix("release-").unwrap().parse().unwrap();
    let new = format!("release-{}", number + 1);
    let copied = run(Command::new("cp").arg("-a").arg(site.path(old.to_str().unwrap())).arg(site.path(&new)));
    assert_eq!(copied.code, 0, "{}", copied.stderr);
    change(&site.path(&new));
    symlink(&new, site.path("next")).unwrap();
    fs::rename(site.path("next"), &link).unwrap();
    fs::remove_dir_all(site.path(old.to_str().unwrap())).unwrap();
}

/// Makes `constituencies` of `site` a symlink to a tree of releases.
fn released(site: &Site) {
    fs::rename(site.served(""), site.path("release-1")).unwrap();
    symlink("release-1", site.path("constituencies")).unwrap();
}

/// The lines of the access log with a refusal.
fn refusals(server: &Running) -> Vec<Value> {
    let is_refused = |line: &Value| matches!(line["status"].as_u64(), Some(403 | 421 | 500..) | None);
    server.access_lines().into_iter().filter(is_refused).collect()
}

/// A site of two constituencies with every file that 400 booting phones request.
fn fleet_site(phones: &[String]) -> Site {
    let site = Site::new();
    for (name, half) in ["ote", "ucs"].into_iter().zip(phones.chunks(phones.len() / 2)) {
        let known: serde_json::Map<String, Value> = half.iter().map(|mac| (mac.clone(), "".into())).collect();
        site.constituency(name, &json!({ "trust": ["factory"], "phones": known }));
        let master = r#"<APPLICATION APP_FILE_PATH="sip.ld" CONFIG_FILES="[PHONE_MAC_ADDRESS]-user.cfg, site.cfg"
            LOG_FILE_DIRECTORY="logs"/>"#;
        for mac in half {
            site.file(&format!("{name}/{mac}.cfg"), master);
            site.file(&format!("{name}/{mac}-user.cfg"), "<user/>");
        }
        site.file(&format!("{name}/site.cfg"), "<site/>");
    }
    released(&site);
    site
}

#[test]
fn twenty_deploys_during_400_boots_refuse_no_request() {
    const PHONES: usize = 400;
    const DEPLOYS: usize = 20;
    let macs: Vec<String> = (0..PHONES).map(|number| format!("00005e03{number:04x}")).collect();
    let site = Arc::new(fleet_site(&macs));
    let server = site.start();
    let mut idle: Vec<_> = [("ote", &macs[0]), ("ote", &macs[1]), ("ucs", &macs[PHONES - 1])]
        .map(|(name, mac)| server.client(name, &FACTORY.device(mac)))
        .map(|client| (client.connect().unwrap(), client))
        .into();
    for (open, client) in &mut idle {
        assert_eq!(open.get("/site.cfg").unwrap().status, 200);
        assert!(client.get("/site.cfg").is_ok());
    }
    let phones = |name: &str, macs: &[String]| {
        let rack = macs.iter().map(|mac| {
            let device = FACTORY.device(mac);
            let certificate = DeviceCertificate { chain: device.chain.clone(), key: device.key() };
            (VirtualPhone::new(mac.parse().unwrap()), Some(certificate))
        });
        (rack.collect::<Vec<_>>(), target(&server, name))
    };
    let racks = [phones("ote", &macs[..PHONES / 2]), phones("ucs", &macs[PHONES / 2..])];
    let (booted, ended) = mpsc::channel();
    let swapping = Arc::clone(&site);
    // Deploys happen while phones boot.
    let swapper = std::thread::spawn(move || {
        let mut lost = Vec::new();
        for (number, outcome) in ended.into_iter().enumerate() {
            lost.extend(outcome);
            if number % (PHONES / DEPLOYS) == PHONES / DEPLOYS / 2 {
                deploy(&swapping, |_| ());
            }
        }
        lost
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let summaries = runtime.block_on(async {
        let [one, other] = racks.map(|(rack, target)| {
            let booted = booted.clone();
            async move { boot_fleet(rack, &target, 12, |_| FailureReporter(booted.clone())).await }
        });
        let both = tokio::join!(one, other);
        [both.0, both.1]
    });
    drop(booted);
    let lost = swapper.join().unwrap();
    let count = |of: fn(&FleetSummary) -> u64| summaries.iter().map(of).sum::<u64>();
    let swaps = fs::read_link(site.path("constituencies")).unwrap();
    assert_eq!(swaps, Path::new(&format!("release-{}", DEPLOYS + 1)));
    let refused = refusals(&server);
    assert_eq!(
        (count(|it| it.phones), count(|it| it.provisioned), refused.len()),
        (400, 400, 0),
        "lost first: {:?}, refused first: {:#?}",
        lost.first(),
        refused.first()
    );
    let missed: Vec<Value> = server
        .access_lines()
        .into_iter()
        .filter(|line| line["status"] == 404 && fs::exists(site.served("ote").join(name_of(line))).unwrap())
        .collect();
    assert_eq!(missed, [] as [Value; 0], "a file of every tree");
    for (open, client) in &mut idle {
        assert_eq!(open.get("/site.cfg").unwrap().status, 200, "a connection opened before all deploys");
        assert!(client.resumes(), "a session from before all deploys");
    }
}

/// Sends the outcome of each failed boot.
struct FailureReporter(mpsc::Sender<Option<String>>);

impl BootObserver for FailureReporter {
    fn ended(&mut self, report: &BootReport) {
        let failure = (!report.is_provisioned()).then(|| format!("{:?}", report.outcome));
        self.0.send(failure).unwrap();
    }
}

/// The file name in a line of the access log.
fn name_of(line: &Value) -> String {
    line["path"].as_str().unwrap_or_default().trim_start_matches('/').to_owned()
}

#[test]
fn no_request_fails_right_after_a_deploy() {
    let site = Site::with_ote();
    released(&site);
    let server = site.start();
    let phone = client(&server, "ote");
    let mut open = phone.connect().unwrap();
    for swap in 0..20 {
        let content = format!("<site number=\"{swap}\"/>");
        deploy(&site, |tree| fs::write(tree.join("ote/site.cfg"), &content).unwrap());
        // The old tree is removed, possibly before the server has noticed.
        let answer = open.get("/site.cfg").unwrap();
        assert_eq!((answer.status, answer.text()), (200, content), "deploy {swap}");
        let put = open.request("PUT", &format!("/{VVX500}-app.log"), "", b"log").unwrap();
        assert!(matches!(put.status, 201 | 204), "{}", put.status);
    }
}

#[test]
fn deploy_with_a_broken_policy_keeps_the_last_good_one() {
    let site = Site::with_ote();
    released(&site);
    let server = site.start();
    let phone = client(&server, "ote");
    let mut open = phone.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    deploy(&site, |tree| {
        fs::write(tree.join("ote/constituency.json"), "{ \"phnes\": {} }").unwrap();
        fs::write(tree.join("ote/site.cfg"), "<two/>").unwrap();
    });
    server.says("unknown key");
    within_a_second("the second release", || (open.get("/site.cfg").unwrap().text() == "<two/>").then_some(()));
    assert!(phone.resumes());
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    assert_eq!(stranger.get("/site.cfg").unwrap().status, 403);
    // Without a last good policy, nothing is served.
    deploy(&site, |tree| {
        fs::create_dir(tree.join("new")).unwrap();
        fs::write(tree.join("new/constituency.json"), "{").unwrap();
    });
    server.says("new: ");
    assert!(is_unrecognized(&client(&server, "new")).is_some());
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
}

#[test]
fn deploy_with_other_tls_settings_ends_old_sessions() {
    let site = Site::with_ote();
    released(&site);
    let server = site.start();
    let phone = client(&server, "ote");
    let strict = policy().to_string();
    let mut tolerant = policy();
    tolerant["expired_device_certificates"] = "accept".into();
    let tolerant = tolerant.to_string();
    let mut deployed = 0;
    for text in [&tolerant, &strict, &tolerant, &strict] {
        assert_eq!(phone.get("/site.cfg").unwrap().status, 200);
        assert!(phone.resumes());
        let mut open = phone.connect().unwrap();
        assert_eq!(open.get("/site.cfg").unwrap().status, 200);
        deploy(&site, |tree| fs::write(tree.join("ote/constituency.json"), text).unwrap());
        within_a_second("403", || (open.get("/site.cfg").unwrap().status == 403).then_some(()));
        assert!(open.is_closed());
        assert!(!phone.resumes(), "a session from before {text}");
        deployed += 1;
    }
    assert_eq!(deployed, 4);
}

#[test]
fn deploy_without_a_folder_removes_only_that_constituency() {
    let site = Site::with_ote();
    make(&site.served(""), "stays", "<stays/>");
    released(&site);
    let server = site.start();
    let (mut open, mut other) =
        (client(&server, "ote").connect().unwrap(), client(&server, "stays").connect().unwrap());
    assert_eq!((open.get("/site.cfg").unwrap().status, other.get("/site.cfg").unwrap().status), (200, 200));
    deploy(&site, |tree| fs::remove_dir_all(tree.join("ote")).unwrap());
    within_a_second("421", || (open.get("/site.cfg").unwrap().status == 421).then_some(()));
    assert!(open.is_closed());
    assert!(is_unrecognized(&client(&server, "ote")).is_some());
    assert_eq!(other.get("/site.cfg").unwrap().status, 200);
    // A folder that returns is a new constituency: no earlier session is resumed.
    let before = client(&server, "ote");
    deploy(&site, |tree| make(tree, "ote", "<again/>"));
    within_a_second("the recreated folder", || serves(&before, "<again/>"));
    assert_eq!(other.get("/site.cfg").unwrap().status, 200);
}

#[test]
fn folder_replaced_by_rename_keeps_sessions_and_connections() {
    type Replace = fn(&Site);
    let ways: [(&str, Replace); 3] = [
        ("exchanged", |site| exchange(&site.path("staging/ote"), &site.served("ote"))),
        ("moved away, and the new one moved in", |site| {
            fs::rename(site.served("ote"), site.served(".old")).unwrap();
            fs::rename(site.path("staging/ote"), site.served("ote")).unwrap();
            fs::remove_dir_all(site.served(".old")).unwrap();
        }),
        ("removed, and the new one moved in", |site| {
            fs::remove_dir_all(site.served("ote")).unwrap();
            fs::rename(site.path("staging/ote"), site.served("ote")).unwrap();
        }),
    ];
    for (way, replace) in ways {
        let site = Site::with_ote();
        let server = site.start();
        let phone = client(&server, "ote");
        let mut open = phone.connect().unwrap();
        assert_eq!(open.get("/site.cfg").unwrap().status, 200);
        make(&site.path("staging"), "ote", "<anew/>");
        replace(&site);
        let answer = open.get("/site.cfg").unwrap();
        assert_eq!(answer.status, 200, "{way}");
        within_a_second(way, || (open.get("/site.cfg").unwrap().text() == "<anew/>").then_some(()));
        assert!(phone.resumes(), "{way}");
        // The new folder is watched like the old one.
        site.file(&format!("ote/{STRANGER}.cfg"), "");
        let stranger = server.client("ote", &FACTORY.device(STRANGER));
        within_a_second("a file of its own", || (stranger.get("/site.cfg").unwrap().status == 200).then_some(()));
        assert!(refusals(&server).iter().all(|line| line["mac"] == STRANGER), "{way}");
    }
    assert_eq!(ways.len(), 3);
}

#[test]
fn deploy_keeps_uploads_and_follows_symlinks_in_the_new_tree() {
    let site = Site::with_ote();
    site.constituency("ucs", &json!({ "trust": ["factory"], "shared": ["firmware"] }));
    site.file("ucs/firmware/sip.ld", "one");
    site.file(&format!("ote/{VVX500}-directory.xml"), "<folder/>");
    symlink("../ucs/firmware", site.served("ote/firmware")).unwrap();
    symlink(format!("{VVX500}-directory.xml"), site.served("ote/own.xml")).unwrap();
    released(&site);
    let server = site.start();
    let mut open = client(&server, "ote").connect().unwrap();
    assert_eq!(open.get("/firmware/sip.ld").unwrap().text(), "one");
    assert_eq!(open.get("/own.xml").unwrap().text(), "<folder/>");
    assert_eq!(open.request("PUT", &format!("/{VVX500}-calls.xml"), "", b"<calls/>").unwrap().status, 201);
    for number in ["two", "three"] {
        deploy(&site, |tree| fs::write(tree.join("ucs/firmware/sip.ld"), number).unwrap());
        assert_eq!(open.get("/firmware/sip.ld").unwrap().text(), number);
        assert_eq!(open.get("/own.xml").unwrap().text(), "<folder/>");
        assert_eq!(open.get(&format!("/{VVX500}-calls.xml")).unwrap().text(), "<calls/>");
        // A file of the folder wins in every tree.
        let put = open.request("PUT", &format!("/{VVX500}-notes.txt"), "", b"x").unwrap();
        assert!(matches!(put.status, 201 | 204), "{}", put.status);
    }
    // Without `shared`, the symlink into it is refused.
    let unshared = json!({ "trust": ["factory"] }).to_string();
    deploy(&site, |tree| fs::write(tree.join("ucs/constituency.json"), &unshared).unwrap());
    within_a_second("404", || (open.get("/firmware/sip.ld").unwrap().status == 404).then_some(()));
}

#[test]
fn symlink_switch_deploys_all_constituencies_at_once() {
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
    // The new folder is watched like the old one.
    fs::write(site.path(&format!("release-2/ote/{VVX500}.cfg")), "").unwrap();
    make(&site.path("release-2"), "later", "<later/>");
    within_a_second("a folder in the second release", || serves(&client(&server, "later"), "<later/>"));
}

#[test]
fn switch_of_a_parent_symlink_deploys_all_constituencies() {
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
fn rename_exchange_deploys_all_constituencies_at_once() {
    let site = Site::with_ote();
    let server = site.start();
    let mut open = client(&server, "ote").connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    make(&site.path("next"), "ote", "<two/>");
    make(&site.path("next"), "new", "<new/>");
    exchange(&site.path("next"), &site.served(""));
    within_a_second("the second release", || serves(&client(&server, "ote"), "<two/>"));
    assert!(serves(&client(&server, "new"), "<new/>").is_some());
    assert_eq!(open.get("/site.cfg").unwrap().text(), "<two/>", "on the earlier connection");
}

#[test]
fn missing_constituencies_folder_serves_no_host_until_restored() {
    let site = Site::with_ote();
    let server = site.start();
    let phone = client(&server, "ote");
    let mut open = phone.connect().unwrap();
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    fs::rename(site.served(""), site.path("away")).unwrap();
    within_a_second("421", || (open.get("/site.cfg").unwrap().status == 421).then_some(()));
    assert!(is_unrecognized(&phone).is_some());
    server.says("(nothing is served)");
    fs::rename(site.path("away"), site.served("")).unwrap();
    within_a_second("the folder that is back", || serves(&phone, "<site/>"));
    fs::remove_dir_all(site.served("")).unwrap();
    within_a_second("the refusal", || is_unrecognized(&phone));
    make(&site.served(""), "ote", "<anew/>");
    within_a_second("the recreated folder", || serves(&phone, "<anew/>"));
}

#[test]
fn unreadable_policy_is_reported_and_affects_no_other_folder() {
    type Make = fn(&Path);
    let site = Site::with_ote();
    let server = site.start();
    let kinds: [(&str, Make, &str); 5] = [
        (
            "fifo",
            |path| mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
            "not a regular file",
        ),
        ("folder", |path| fs::create_dir(path).unwrap(), "not a regular file"),
        ("link", |path| symlink("../ote/constituency.json", path).unwrap(), "not a regular file"),
        ("large", |path| fs::write(path, " ".repeat(17 << 20)).unwrap(), "larger than 16 MiB"),
        ("binary", |path| fs::write(path, b"{ \"description\": \"\xff\" }").unwrap(), "not UTF-8 text"),
    ];
    for (name, put, complaint) in kinds {
        fs::create_dir(site.served(name)).unwrap();
        // The folder exists first, as usual; until its policy is there, the default policy applies.
        put(&site.served(name).join("constituency.json"));
        server.says(&format!("{name}/constituency.json: is {complaint}"));
        assert!(client(&server, name).get("/site.cfg").is_err(), "{name}");
        make(&site.served(""), &format!("after-{name}"), "<after/>");
        within_a_second("another folder", || serves(&client(&server, &format!("after-{name}")), "<after/>"));
        assert!(serves(&client(&server, "ote"), "<site/>").is_some(), "{name}");
    }
    // After the repair, each is served.
    for (name, ..) in kinds {
        let path = site.served(name).join("constituency.json");
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
        make(&site.served(""), name, "<mended/>");
        within_a_second(name, || serves(&client(&server, name), "<mended/>"));
    }
    assert_eq!(kinds.len(), 5);
}

#[test]
fn folder_with_invalid_name_or_symlink_is_reported() {
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
    server.says("linked: the folder is not served: it is a symlink");
    assert!(is_unrecognized(&client(&server, "linked")).is_some());
    fs::create_dir(site.served(".hidden")).unwrap();
    fs::write(site.served("README.md"), "").unwrap();
    make(&site.served(""), "marker", "");
    server.says("marker is served");
    let said = server.stderr().join("\n");
    assert!(!said.contains("hidden") && !said.contains("README"), "{said}");
    // After the folder is renamed to a valid name, it is served and its error disappears.
    fs::rename(site.served("Upper"), site.served("upper")).unwrap();
    server.says("upper is served");
    server.says("Upper: resolved");
}

#[test]
fn unreadable_folder_is_reported_and_affects_no_other() {
    use std::os::unix::fs::PermissionsExt;
    if rustix::process::geteuid().is_root() {
        return not_run("unreadable_folder_is_reported_and_affects_no_other", "root can read every folder");
    }
    let site = Site::with_ote();
    let server = site.start();
    make(&site.served(""), "locked", "<locked/>");
    within_a_second("the folder", || serves(&client(&server, "locked"), "<locked/>"));
    fs::set_permissions(site.served("locked"), fs::Permissions::from_mode(0o000)).unwrap();
    server.says("locked: the folder cannot be opened");
    assert!(is_unrecognized(&client(&server, "locked")).is_some());
    assert!(serves(&client(&server, "ote"), "<site/>").is_some());
    fs::set_permissions(site.served("locked"), fs::Permissions::from_mode(0o700)).unwrap();
    within_a_second("the folder", || serves(&client(&server, "locked"), "<locked/>"));
}
