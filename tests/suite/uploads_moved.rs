//! Uploads of a phone that moved to another constituency, or whose constituency was renamed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site, holds};
use crate::harness::tls::Client;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, not_run, within_a_second};
use crate::uploads::files_below;

fn command(site: &Site, args: &[&str]) -> Ended {
    provost(&site.path("."), args)
}

#[track_caller]
fn moves(site: &Site, from: &str, to: &str) -> Ended {
    command(site, &["uploads", "move", VVX500, "--from", from, "--to", to])
}

/// The notes of `check` about uploads.
fn upload_notes(site: &Site) -> Vec<String> {
    let ended = command(site, &["check"]);
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    let lines = ended.stdout.lines().filter_map(|line| line.strip_prefix("note: uploads: "));
    lines.map(str::to_owned).collect()
}

fn policy_listing(phones: &[&str]) -> Value {
    let phones: serde_json::Map<String, Value> = phones.iter().map(|mac| ((*mac).to_owned(), "".into())).collect();
    json!({ "trust": ["factory"], "phones": phones })
}

fn phone(server: &Running, name: &str) -> Client {
    server.client(name, &FACTORY.device(VVX500))
}

#[track_caller]
fn put(client: &Client, name: &str, content: &str) {
    let status = client.put(&format!("/{name}"), "", content.as_bytes()).unwrap().status;
    assert!(matches!(status, 201 | 204), "{name}: {status}");
}

/// Every file below `state/uploads` except the server's own.
fn stored(site: &Site) -> Vec<String> {
    files_below(&site.path("state/uploads")).into_iter().filter(|file| !file.starts_with('.')).collect()
}

/// A site with two constituencies, of which the first lists the phone, and the phone's uploads there.
fn site() -> (Site, Running) {
    let site = Site::new();
    site.constituency("old", &policy_listing(&[VVX500, VVX550]));
    site.constituency("new", &policy_listing(&[VVX550]));
    let server = site.start();
    let client = phone(&server, "old");
    put(&client, &format!("{VVX500}-directory.xml"), "<directory/>");
    put(&client, &format!("overrides/{VVX500}-phone.cfg"), "<overrides/>");
    put(&server.client("old", &FACTORY.device(VVX550)), &format!("{VVX550}-app.log"), "log");
    (site, server)
}

#[test]
fn check_names_the_move_command_for_a_moved_phone() {
    let (site, server) = site();
    assert_eq!(upload_notes(&site), [] as [&str; 0]);
    site.constituency("old", &policy_listing(&[VVX550]));
    site.constituency("new", &policy_listing(&[VVX500, VVX550]));
    let client = phone(&server, "new");
    within_a_second("the phone", || client.get("/").is_ok_and(|answer| answer.status == 404).then_some(()));
    assert_eq!(client.get(&format!("/{VVX500}-directory.xml")).unwrap().status, 404);
    let notes = upload_notes(&site);
    let named = format!("provost uploads move {VVX500} --from old --to new");
    let note =
        format!("new lists {VVX500}, but its uploads are under old, which does not list it; to move them, run {named}");
    assert_eq!(notes, [note]);
    let words: Vec<&str> = named.split(' ').skip(1).collect();
    let ended = command(&site, &words);
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (0, "00005e00530c: 2 uploads moved from old to new\n"),
        "{ended:?}"
    );
    assert_eq!(client.get(&format!("/{VVX500}-directory.xml")).unwrap().text(), "<directory/>");
    assert_eq!(client.get(&format!("/overrides/{VVX500}-phone.cfg")).unwrap().text(), "<overrides/>");
    assert_eq!(upload_notes(&site), [] as [&str; 0]);
    let expected = [
        format!("new/{VVX500}/{VVX500}-directory.xml"),
        format!("new/{VVX500}/overrides/{VVX500}-phone.cfg"),
        format!("old/{VVX550}/{VVX550}-app.log"),
    ];
    assert_eq!(stored(&site), expected);
    let again = moves(&site, "old", "new");
    assert_eq!((again.code, again.stderr.as_str()), (1, "error: no uploads of 00005e00530c to old\n"));
}

#[test]
fn uploads_of_a_renamed_folder_are_noted_and_moved() {
    let (site, server) = site();
    site.constituency("new", &policy_listing(&[STRANGER]));
    fs::rename(site.served("old"), site.served("renamed")).unwrap();
    let client = phone(&server, "renamed");
    within_a_second("the new name", || client.get("/").is_ok_and(|answer| answer.status == 404).then_some(()));
    let notes = upload_notes(&site);
    assert_eq!(notes.len(), 2, "{notes:?}");
    for mac in [VVX500, VVX550] {
        let named = format!("provost uploads move {mac} --from old --to renamed");
        let is_it = |note: &String| note.contains(&named) && note.contains("under old, whose folder is missing");
        assert!(notes.iter().any(is_it), "{notes:?}");
        assert_eq!(command(&site, &named.split(' ').skip(1).collect::<Vec<_>>()).code, 0);
    }
    assert_eq!(client.get(&format!("/{VVX500}-directory.xml")).unwrap().text(), "<directory/>");
    assert!(!site.path("state/uploads/old").exists(), "nothing is left of it");
    assert_eq!(upload_notes(&site), [] as [&str; 0]);
    // If no constituency lists the phone, one with `"phones": "any"` may be the renamed folder.
    fs::rename(site.served("renamed"), site.served("again")).unwrap();
    site.constituency("again", &json!({ "trust": ["factory"], "phones": "any" }));
    let note = format!(
        "uploads of 2 phones are under renamed, whose folder is missing, and no served constituency lists these phones: \
         {VVX500}, {VVX550}; to move a phone's uploads, run provost uploads move MAC --from renamed --to NAME"
    );
    assert_eq!(upload_notes(&site), [note]);
    assert_eq!(moves(&site, "renamed", "again").code, 0);
    // It accepts the phone without listing it.
    site.constituency("first", &policy_listing(&[VVX500]));
    site.constituency("second", &policy_listing(&[VVX500]));
    let named = format!("to move them, run provost uploads move {VVX500} --from again --to first (or --to second)");
    assert!(upload_notes(&site).iter().any(|note| note.ends_with(&named)), "{:?}", upload_notes(&site));
    // The phones listed by a broken policy are unknown.
    fs::write(site.served("again/constituency.json"), "{").unwrap();
    let broken = command(&site, &["check"]);
    assert!(broken.code == 1 && !broken.stdout.contains("under again"), "{}", broken.stdout);
}

#[test]
fn move_keeps_conflicting_uploads_and_moves_the_others() {
    let (site, server) = site();
    site.constituency("new", &policy_listing(&[VVX500]));
    let client = phone(&server, "new");
    within_a_second("the phone", || client.get("/").is_ok_and(|answer| answer.status == 404).then_some(()));
    put(&client, &format!("{VVX500}-directory.xml"), "<newer/>");
    put(&client, &format!("logs/{VVX500}-app.log"), "log");
    let ended = moves(&site, "old", "new");
    let error = format!(
        "error: new already has uploads of {VVX500} with these names, so these stay in old: {VVX500}-directory.xml; remove \
         one of each (provost uploads remove {VVX500} NAME --constituency old|new) and run the command again\n"
    );
    assert_eq!((ended.code, ended.stderr), (1, error));
    assert_eq!(ended.stdout, format!("{VVX500}: 1 upload moved from old to new\n"));
    let directory = format!("{VVX500}-directory.xml");
    assert!(holds(&site.uploads("new", VVX500).join(&directory), "<newer/>"));
    assert_eq!(files_below(&site.uploads("old", VVX500)), [directory.as_str()]);
    let removed = command(&site, &["uploads", "remove", VVX500, &directory, "--constituency", "new"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert_eq!(moves(&site, "old", "new").stdout, format!("{VVX500}: 1 upload moved from old to new\n"));
    let expected = [directory.clone(), format!("logs/{VVX500}-app.log"), format!("overrides/{VVX500}-phone.cfg")];
    assert_eq!(files_below(&site.uploads("new", VVX500)), expected);
    assert!(holds(&site.uploads("new", VVX500).join(&directory), "<directory/>"));
    assert!(!site.uploads("old", VVX500).exists());
    assert_eq!(stored(&site).len(), 4, "the other phone's are where they were");
    for (from, to, error) in [
        ("old", "old", "--from and --to are the same: old"),
        ("new", "nwe", "constituency nwe not found in "),
        ("nowhere", "new", "no uploads of 00005e00530c to nowhere"),
    ] {
        let ended = moves(&site, from, to);
        assert!(ended.code == 1 && ended.stderr.contains(error), "{ended:?}");
    }
    assert_eq!(files_below(&site.uploads("new", VVX500)), expected);
}

#[test]
fn file_in_place_of_a_folder_does_not_stop_the_move() {
    let (site, server) = site();
    server.kill();
    site.constituency("new", &policy_listing(&[VVX500]));
    let write = |constituency: &str, name: &str| {
        let path = site.uploads(constituency, VVX500).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, constituency).unwrap();
    };
    // In "new", a file has the name of a folder, and a folder the name of a file.
    let names = |kind: &str| [format!("{VVX500}-{kind}"), format!("{VVX500}-{kind}/{VVX500}-1")];
    let ([a, below_a], [b, below_b]) = (names("a"), names("b"));
    for (constituency, name) in [("old", &below_a), ("new", &a), ("old", &b), ("new", &below_b)] {
        write(constituency, name);
    }
    write("old", "z");
    let ended = moves(&site, "old", "new");
    let error = format!(
        "error: new already has uploads of {VVX500} with these names, so these stay in old: {below_a} ({a} is a file in new); \
         remove one of each (provost uploads remove {VVX500} NAME --constituency old|new) and run the command again; \
         new has folders with these names, so these uploads stay in old: {b}; remove them (provost uploads remove \
         {VVX500} NAME --constituency old), or all uploads in those folders (provost uploads list {VVX500} \
         --constituency new lists them), and run the command again\n"
    );
    assert_eq!((ended.code, ended.stderr), (1, error));
    assert_eq!(ended.stdout, format!("{VVX500}: 3 uploads moved from old to new\n"));
    assert_eq!(files_below(&site.uploads("old", VVX500)), [below_a.as_str(), &b]);
    let directory = format!("{VVX500}-directory.xml");
    let overrides = format!("overrides/{VVX500}-phone.cfg");
    let expected = [&a, &below_b, &directory, &overrides, "z"];
    assert_eq!(files_below(&site.uploads("new", VVX500)), expected);
    assert!(holds(&site.uploads("new", VVX500).join(&a), "new"));

    // Each remedy works.
    for (name, constituency) in [(&a, "new"), (&below_b, "new")] {
        let removed = command(&site, &["uploads", "remove", VVX500, name, "--constituency", constituency]);
        assert_eq!(removed.code, 0, "{removed:?}");
    }
    let again = moves(&site, "old", "new");
    assert_eq!((again.code, again.stdout), (0, format!("{VVX500}: 2 uploads moved from old to new\n")));
    let expected = [&below_a, &b, &directory, &overrides, "z"];
    assert_eq!(files_below(&site.uploads("new", VVX500)), expected);
    assert!(holds(&site.uploads("new", VVX500).join(&b), "old"));
    // The other remedy: remove the upload that the folder blocks. A folder without uploads does not block one.
    for name in [format!("{VVX500}-c/deep/{VVX500}-1"), format!("{VVX500}-d/deep/{VVX500}-1")] {
        write("new", &name);
    }
    for name in ["c", "d"].map(|kind| format!("{VVX500}-{kind}")) {
        write("old", &name);
    }
    fs::remove_file(site.uploads("new", VVX500).join(format!("{VVX500}-d/deep/{VVX500}-1"))).unwrap();
    let blocked = moves(&site, "old", "new");
    assert_eq!((blocked.code, blocked.stdout), (1, format!("{VVX500}: 1 upload moved from old to new\n")));
    let c = format!("{VVX500}-c");
    assert_eq!(command(&site, &["uploads", "remove", VVX500, &c, "--constituency", "old"]).code, 0);
    assert_eq!(moves(&site, "old", "new").stderr, format!("error: no uploads of {VVX500} to old\n"));
}

#[test]
fn root_moves_uploads_as_their_owner_without_symlinks() {
    let test = "root_moves_uploads_as_their_owner_without_symlinks";
    if !rustix::process::geteuid().is_root() {
        return not_run(test, "it needs root");
    }
    let (site, server) = site();
    server.kill();
    site.constituency("new", &policy_listing(&[VVX500]));
    fs::set_permissions(site.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(run(Command::new("chown").args(["-R", "65534:65533"]).arg(site.path("state"))).code, 0);
    let owner = |path: &Path| fs::symlink_metadata(path).map(|it| (it.uid(), it.gid())).unwrap();
    // A folder of root's, to which the owner of the state sets symlinks.
    let roots = site.path("roots");
    fs::create_dir(&roots).unwrap();
    let nothing_in_roots = || fs::read_dir(&roots).unwrap().count() == 0;
    let link = |at: &Path| {
        symlink(&roots, at).unwrap();
        std::os::unix::fs::lchown(at, Some(65534), Some(65533)).unwrap();
    };
    let uploads = site.path("state/uploads");
    link(&uploads.join("new"));
    assert_eq!(moves(&site, "old", "new").code, 1);
    assert!(nothing_in_roots());
    fs::remove_file(uploads.join("new")).unwrap();
    fs::create_dir(uploads.join("new")).unwrap();
    link(&site.uploads("new", VVX500));
    assert_eq!(moves(&site, "old", "new").code, 1);
    assert!(nothing_in_roots());
    fs::remove_dir_all(uploads.join("new")).unwrap();
    // A symlink among the uploads stays, or is moved as a symlink.
    fs::create_dir_all(site.uploads("new", VVX500).join("logs")).unwrap();
    fs::write(site.uploads("new", VVX500).join("logs/x"), "").unwrap();
    assert_eq!(run(Command::new("chown").args(["-R", "65534:65533"]).arg(uploads.join("new"))).code, 0);
    link(&site.uploads("new", VVX500).join("overrides"));
    assert!(moves(&site, "old", "new").stderr.contains("overrides"), "a link is in the way");
    assert!(nothing_in_roots());
    assert!(site.uploads("old", VVX500).join(format!("overrides/{VVX500}-phone.cfg")).exists());
    fs::remove_file(site.uploads("new", VVX500).join("overrides")).unwrap();
    link(&site.uploads("old", VVX500).join("linked"));
    let ended = moves(&site, "old", "new");
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(nothing_in_roots() && site.uploads("old", VVX500).join("linked").is_symlink());
    for path in ["", "overrides", &format!("overrides/{VVX500}-phone.cfg")] {
        assert_eq!(owner(&site.uploads("new", VVX500).join(path)), (65534, 65533), "{path}");
    }
    assert_eq!(owner(&roots), (0, 0));
    // A new folder of the other constituency belongs to the owner as well.
    fs::remove_file(site.uploads("old", VVX500).join("linked")).unwrap();
    site.constituency("third", &policy_listing(&[VVX500]));
    assert_eq!(moves(&site, "new", "third").code, 0);
    assert_eq!(
        (owner(&uploads.join("third")), owner(&site.uploads("third", VVX500))),
        ((65534, 65533), (65534, 65533))
    );
}
