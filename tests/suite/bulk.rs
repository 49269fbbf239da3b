//! Several phones at once: `allow --from`, `allow`, `deny` and `undeny` of several, and the same by the API. All or none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use inotify::{Inotify, WatchMask};
use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::FACTORY;
use crate::harness::site::{Running, Site, holds};
use crate::harness::tool::{Ended, provost};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, not_run, within_a_second};

const LIST: &str = "ote/phones.csv";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const FROM: [&str; 5] = ["allow", "--from", "new.csv", "--constituency", "ote"];

/// A site whose constituency knows VVX500 by its policy and VVX550 by `phones.csv`, as Excel writes it.
fn site() -> Site {
    let site = Site::with_ote();
    site.file(LIST, LISTED);
    site.write_config();
    site
}

const LISTED: &str = "\u{feff}Site;MAC;Note;Serial\r\nA;00:00:5E:00:53:C7;\"the \"\"lobby\"\"\";0017\r\n";

fn command(site: &Site, args: &[&str]) -> Ended {
    provost(&site.path("."), args)
}

#[track_caller]
fn good(site: &Site, args: &[&str]) -> String {
    let ended = command(site, args);
    assert_eq!(ended.code, 0, "{args:?}: {ended:?}");
    ended.stdout
}

/// The error of a command that must fail.
#[track_caller]
fn bad(site: &Site, args: &[&str]) -> String {
    let ended = command(site, args);
    assert_eq!(ended.code, 1, "{args:?}: {ended:?}");
    ended.stderr
}

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more].concat()
}

fn status(server: &Running, mac: &str) -> u16 {
    server.client("ote", &FACTORY.device(mac)).get("/site.cfg").unwrap().status
}

/// The files of the lists, each with its inode and content.
fn lists(site: &Site) -> Vec<Option<(u64, Vec<u8>)>> {
    let files = [site.served(LIST), site.served("ote/constituency.json"), site.path("state/denied.json")];
    files.map(|file| Some((fs::metadata(&file).ok()?.ino(), fs::read(file).unwrap()))).to_vec()
}

fn audit(site: &Site, arguments: &[&str]) -> Vec<Value> {
    let shown = good(site, &with(&["audit", "--json"], arguments));
    shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn new_list(site: &Site, text: &str) {
    fs::write(site.path("new.csv"), text).unwrap();
}

#[test]
fn allow_from_shows_the_difference_and_changes_no_other_byte() {
    let site = site();
    let list = site.served(LIST);
    fs::set_permissions(&list, PermissionsExt::from_mode(0o640)).unwrap();
    let server = site.start();
    new_list(
        &site,
        &format!("mac,note,room\n{STRANGER},attic; east,1\n00005e0053c7,hall,2\n00005e0053ab,,3\n{VVX500},,4\n"),
    );
    let before = lists(&site);
    let shown = "+ 00005e0053aa  attic; east\n+ 00005e0053ab\n~ 00005e0053c7  \"the \\\"lobby\\\"\" -> \"hall\"\n\
                 ote/phones.csv: 2 phones to add, 1 note to change, 1 unchanged\n";
    // Without a terminal, there is no answer.
    let asked = command(&site, &FROM);
    assert_eq!((asked.code, asked.stdout.as_str()), (1, shown), "{asked:?}");
    assert!(asked.stderr.contains("not a terminal") && asked.stderr.contains("--yes"), "{asked:?}");
    let dry = command(&site, &with(&FROM, &["--dry-run"]));
    assert_eq!((dry.code, dry.stdout.as_str()), (0, shown), "{dry:?}");
    assert!(dry.stderr.contains("nothing was changed"), "{dry:?}");
    assert_eq!((lists(&site), status(&server, STRANGER)), (before.clone(), 403));

    let applied = command(&site, &with(&FROM, &["--yes"]));
    let done = "2 phones added, 1 note changed, 1 unchanged in ote within a second\n";
    assert_eq!((applied.code, applied.stdout, applied.stderr.as_str()), (0, format!("{shown}{done}"), ""));
    let after =
        LISTED.replace("\"the \"\"lobby\"\"\"", "hall") + ";00005e0053aa;\"attic; east\";\r\n;00005e0053ab;;\r\n";
    assert!(holds(&list, &after), "{:?}", fs::read_to_string(&list));
    assert_eq!(fs::metadata(&list).unwrap().mode() & 0o7777, 0o640);
    within_a_second("the list", || (status(&server, STRANGER) == 200).then_some(()));
    assert_eq!((status(&server, VVX500), status(&server, VVX550)), (200, 200));
    // One line in the audit log, which each of the phones finds.
    let [entry] = &audit(&site, &[])[..] else { panic!("{:?}", audit(&site, &[])) };
    assert_eq!(
        (&entry["action"], &entry["constituency"], &entry["mac"]),
        (&json!("allowed"), &json!("ote"), &Value::Null)
    );
    assert_eq!(entry["macs"], json!([STRANGER, "00005e0053ab", VVX550]));
    for mac in [STRANGER, VVX550] {
        assert_eq!(audit(&site, &["--phone", mac]).len(), 1, "{mac}");
    }
    assert!(audit(&site, &["--phone", VVX500]).is_empty());
    let line = good(&site, &["audit", "--phone", "00:00:5e:00:53:ab"]);
    assert!(line.contains(" allowed 3 phones (00005e0053aa, 00005e0053ab, 00005e0053c7) in ote, by root"), "{line}");

    // Again: nothing to do, and no question. A phone that the file does not list stays.
    new_list(&site, &format!("mac,note\n{STRANGER},attic; east\n"));
    let before = lists(&site);
    let again = command(&site, &FROM);
    let same = "ote/phones.csv: 0 phones to add, 0 notes to change, 1 unchanged\n";
    assert_eq!((again.code, again.stdout.as_str(), again.stderr.as_str()), (0, same, ""));
    assert_eq!(lists(&site), before);
    assert_eq!(audit(&site, &[]).len(), 1);
    assert_eq!(fs::read_dir(site.served("ote")).unwrap().count(), 3, "no temporary file is left");
    // What the command logged is not a change by another program.
    site.constituency("later", &json!({}));
    let later =
        eventually("the new folder", || audit(&site, &[]).into_iter().find(|it| it["action"] == "file_changed"));
    assert_eq!(later["constituency"], "later");
}

#[test]
fn allow_from_a_bad_file_changes_nothing_and_names_the_line() {
    let site = site();
    good(&site, &["deny", "00005e0053d1", "--note", "stolen"]);
    good(&site, &["deny", "00005e0053d2", "--constituency", "ote"]);
    let before = lists(&site);
    let table = [
        ("", "new.csv:1: no column \"mac\""),
        ("00005e0053aa,attic\n", "new.csv:1: no column \"mac\""),
        ("mac,note\n00005e0053aa,a\nkitchen,b\n", "new.csv:3: invalid MAC address \"kitchen\""),
        (
            "mac,note\r\n00005e0053aa,a\r\n\r\n00:00:5E:00:53:AA,b\r\n",
            "new.csv:4: 00005e0053aa is listed twice, first in line 2",
        ),
        ("mac,note\n00005e0053aa,a\n01005e0053aa,b\n", "new.csv:3: 01005e0053aa is a multicast address"),
        ("mac,note\n00005e0053aa,a\n000000000000,b\n", "new.csv:3: 000000000000 is the name of the fallback files"),
        ("mac,note\n00005e0053aa,\"a\n00005e0053ab,b\n", "new.csv:2: a field has a line break"),
        ("mac,note\n00005e0053aa,a\n00005e0053d1,b\n", "new.csv:3: 00005e0053d1 is denied everywhere by root at "),
        (
            "mac,note\n00005e0053d2,a\n00005e0053aa,b\n",
            "new.csv:2: 00005e0053d2 is denied in ote; to lift that, run provost allow",
        ),
    ];
    for (text, error) in &table {
        new_list(&site, text);
        for more in [&["--yes"][..], &["--dry-run"], &[]] {
            let ended = command(&site, &with(&FROM, more));
            assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{text:?}: {ended:?}");
            assert!(ended.stderr.contains(error), "{text:?}: {ended:?}");
        }
    }
    assert_eq!(table.len(), 9);
    new_list(&site, "mac\n00005e0053d2\n00005e0053aa\n00005e0053d1\n");
    let both = bad(&site, &with(&FROM, &["--yes"]));
    assert!(both.contains("new.csv:2: 00005e0053d2 is") && both.contains("new.csv:4: 00005e0053d1 is"), "{both}");
    assert!(both.contains(": stolen; to lift that, run provost undeny 00005e0053d1, or remove the line"), "{both}");
    assert!(both.contains("nothing was changed"), "{both}");
    let absent = bad(&site, &["allow", "--from", "absent.csv", "--constituency", "ote", "--yes"]);
    assert!(absent.contains("absent.csv: cannot be read: No such file"), "{absent}");
    new_list(&site, "mac\n00005e0053aa\n");
    for (name, error) in
        [("nosuch", "there is no constituency nosuch"), ("public", "has no effect with \"client_auth\": \"none\"")]
    {
        site.constituency("public", &json!({ "client_auth": "none" }));
        let refused = bad(&site, &["allow", "--from", "new.csv", "--constituency", name, "--yes"]);
        assert!(refused.contains(error), "{refused}");
    }
    // A list that is broken already is not edited.
    site.file(LIST, "mac\nkitchen\n");
    let broken = bad(&site, &with(&FROM, &["--yes"]));
    assert!(broken.contains("ote/phones.csv:2: invalid MAC address \"kitchen\""), "{broken}");
    site.file(LIST, LISTED);
    assert_eq!(lists(&site)[1..], before[1..]);
    assert!(holds(&site.served(LIST), LISTED));
    assert_eq!(audit(&site, &[]).len(), 2, "the two denials");
    // These do not go together.
    for more in [&["--note", "x"][..], &["--digest"], &[STRANGER], &["--yes", "--dry-run"]] {
        assert_eq!(command(&site, &with(&FROM, more)).code, 2, "{more:?}");
    }
    for args in
        [&["allow", STRANGER, "--constituency", "ote", "--yes"][..], &["allow", "--constituency", "ote"], &["deny"]]
    {
        assert_eq!(command(&site, args).code, 2, "{args:?}");
    }
}

#[test]
fn allow_from_without_a_list_edits_the_policy() {
    let site = Site::with_ote();
    let server = site.start();
    let file = site.served("ote/constituency.json");
    let text = format!(
        "{{\n  \"trust\": [\"factory\"],\n  \"phones\": {{\n    \"{VVX500}\": \"one\",\n    \"{VVX550}\": \"two\"\n  }}\n}}\n"
    );
    fs::write(&file, &text).unwrap();
    new_list(&site, &format!("note;mac\ncellar;{VVX550}\nattic;{STRANGER}\n;{VVX500}\n\"a \"\"b\"\"\";00005e0053ab\n"));
    let shown = good(&site, &with(&FROM, &["--yes"]));
    let summary = "ote/constituency.json: 2 phones to add, 1 note to change, 1 unchanged\n";
    assert!(shown.contains(summary) && shown.contains("~ 00005e0053c7  \"two\" -> \"cellar\"\n"), "{shown}");
    let after = text
        .replace("\"two\"\n", "\"cellar\",\n    \"00005e0053aa\": \"attic\",\n    \"00005e0053ab\": \"a \\\"b\\\"\"\n");
    assert!(holds(&file, &after), "{}", fs::read_to_string(&file).unwrap());
    assert!(!site.served(LIST).exists());
    within_a_second("the policy", || (status(&server, STRANGER) == 200).then_some(()));
    // Where every phone is accepted, there is nothing to change.
    site.constituency("any", &json!({ "trust": ["factory"], "phones": "any" }));
    let any = good(&site, &["allow", "--from", "new.csv", "--constituency", "any"]);
    assert_eq!(any, "any/constituency.json: 0 phones to add, 0 notes to change, 4 unchanged\n");
}

#[test]
fn allow_from_warns_of_phones_that_another_constituency_knows() {
    let site = site();
    for name in ["home", "lab"] {
        site.constituency(name, &json!({ "trust": ["factory"], "phones": { STRANGER: "" } }));
    }
    site.file("home/phones.csv", "mac\n00005e0053ab\n");
    site.file("lab/00005e0053c7.cfg", "");
    // One that denies it does not know it.
    site.constituency("gone", &json!({ "trust": ["factory"], "denied": ["00005e0053ac"] }));
    // Those that are listed here already are no news.
    new_list(&site, &format!("mac\n{STRANGER}\n00005e0053ab\n00005e0053ac\n{VVX550}\n"));
    let ended = command(&site, &with(&FROM, &["--yes"]));
    let lines = "+ 00005e0053aa    (also known in home, lab)\n+ 00005e0053ab    (also known in home)\n+ 00005e0053ac\n";
    assert!(ended.code == 0 && ended.stdout.starts_with(lines), "{ended:?}");
    let warning = "warning: another constituency knows 2 added phones: 00005e0053aa, 00005e0053ab (home, lab)\n";
    assert_eq!(ended.stderr, warning);
}

/// The names that get a file by a rename into `folder`, and how often, while `act` runs. `None` without inotify.
fn renames(folder: &Path, act: impl FnOnce()) -> Option<BTreeMap<String, usize>> {
    let mut inotify = Inotify::init().ok()?;
    inotify.watches().add(folder, WatchMask::MOVED_TO).ok()?;
    act();
    let (mut seen, mut buffer) = (BTreeMap::new(), [0; 4096]);
    while let Ok(events) = inotify.read_events(&mut buffer) {
        for event in events {
            *seen.entry(event.name.unwrap().to_string_lossy().into_owned()).or_default() += 1;
        }
    }
    Some(seen)
}

#[test]
fn each_file_is_replaced_once_however_many_phones_change() {
    let once = |files: &[&str]| files.iter().map(|file| ((*file).to_owned(), 1)).collect::<BTreeMap<_, _>>();
    let mut seen = 0;
    for count in [2, 2000] {
        let site = site();
        let phones: String = (0..count).map(|number| format!("00005e01{number:04x},room {number}\n")).collect();
        new_list(&site, &format!("mac,note\n{phones}{VVX500},kitchen\n"));
        fs::create_dir(site.path("state")).unwrap();
        for (folder, args, files) in [
            // The policy names VVX500.
            (site.served("ote"), &with(&FROM, &["--yes"])[..], &["constituency.json", "phones.csv"][..]),
            (site.served("ote"), &["deny", "--from", "new.csv", "--constituency", "ote"], &["constituency.json"]),
            (site.path("state"), &["deny", "--from", "new.csv"], &["denied.json"]),
            (site.path("state"), &["undeny", "--from", "new.csv"], &["denied.json"]),
        ] {
            match renames(&folder, || drop(good(&site, args))) {
                Some(found) => assert_eq!(found, once(files), "{count}: {args:?}"),
                None => return not_run("each_file_is_replaced_once_however_many_phones_change", "no inotify"),
            }
            seen += 1;
        }
        let entries = audit(&site, &["--phone", VVX500]);
        let actions: Vec<&str> = entries.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
        assert_eq!(actions, ["allowed", "denied", "denied", "undenied"]);
    }
    assert_eq!(seen, 8);
}

#[test]
fn list_and_policy_change_together() {
    let site = site();
    new_list(&site, &format!("mac,note\n{VVX500},kitchen\n{STRANGER},attic\n"));
    let shown = good(&site, &with(&FROM, &["--yes"]));
    let lines = "~ 00005e00530c  \"vvx500\" -> \"kitchen\"\n+ 00005e0053aa  attic\n\
                 ote/phones.csv and constituency.json: 1 phone to add, 1 note to change, 0 unchanged\n";
    assert!(shown.starts_with(lines), "{shown}");
    assert!(holds(&site.served(LIST), format!("{LISTED};00005e0053aa;attic;\r\n")));
    let policy: Value = serde_json::from_slice(&fs::read(site.served("ote/constituency.json")).unwrap()).unwrap();
    assert_eq!(policy["phones"], json!({ VVX500: "kitchen" }));
}

#[test]
fn list_from_standard_input_needs_yes() {
    let site = site();
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
        command.args(["allow", "--from", "-", "--constituency", "ote"]).args(more).current_dir(site.path("."));
        command.env_remove("PROVOST_CONFIG").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let text = format!("mac,note\n{STRANGER},attic\nkitchen,x\n");
        let text = if more.contains(&"--yes") { text.replace("kitchen,x\n", "") } else { text };
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let refused = run(&[]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("standard input:3: invalid MAC address \"kitchen\""), "{error}");
    assert!(run(&["--yes"]).status.success());
    assert!(fs::read_to_string(site.served(LIST)).unwrap().ends_with(";00005e0053aa;attic;\r\n"));
}

/// `provost allow --from new.csv` on a terminal: shows the question to `meanwhile`, then answers it.
fn on_a_terminal(site: &Site, answer: &str, meanwhile: impl FnOnce()) -> (i32, String) {
    let line = format!("{} {}", env!("CARGO_BIN_EXE_provost"), FROM.join(" "));
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-f", "-c", &line, "/dev/null"]).current_dir(site.path(".")).env_remove("PROVOST_CONFIG");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shown = Vec::new();
    let mut byte = [0];
    while !shown.ends_with(b"[y/N] ") && output.read(&mut byte).unwrap() == 1 {
        shown.extend(byte);
    }
    meanwhile();
    writeln!(input, "{answer}").unwrap();
    output.read_to_end(&mut shown).unwrap();
    drop(input);
    (child.wait().unwrap().code().unwrap(), String::from_utf8_lossy(&shown).replace("\r\n", "\n"))
}

#[test]
fn allow_from_asks_on_a_terminal_and_refuses_a_changed_file() {
    let site = site();
    new_list(&site, &format!("mac,note\n{STRANGER},attic\n"));
    let before = lists(&site);
    for answer in ["n", "", "maybe"] {
        let (code, shown) = on_a_terminal(&site, answer, || ());
        assert!(code == 1 && shown.contains("apply this to ote? [y/N] "), "{answer}: {code} {shown}");
        assert!(shown.contains("+ 00005e0053aa  attic\n") && shown.contains("nothing was changed"), "{shown}");
        assert_eq!(lists(&site), before);
    }
    // Another program changes the list, the policy or the denials before the answer.
    let edited = format!("{LISTED}B;00005e0053ad;;\r\n");
    let (code, shown) = on_a_terminal(&site, "y", || drop(site.file(LIST, &edited)));
    let error = "ote/phones.csv has changed since it was read; nothing was changed; run this again";
    assert!(code == 1 && shown.contains(error), "{code} {shown}");
    assert!(holds(&site.served(LIST), &edited));
    let policy = fs::read_to_string(site.served("ote/constituency.json")).unwrap();
    let other = policy.replacen('{', "{\"description\": \"new\", ", 1);
    let edit = || drop(site.file("ote/constituency.json", &other));
    let (code, shown) = on_a_terminal(&site, "y", edit);
    assert!(code == 1 && shown.contains("ote/constituency.json has changed since it was read"), "{code} {shown}");
    assert!(holds(&site.served("ote/constituency.json"), &other) && holds(&site.served(LIST), &edited));
    let (code, shown) = on_a_terminal(&site, "y", || drop(good(&site, &["deny", STRANGER])));
    assert!(code == 1 && shown.contains("new.csv:2: 00005e0053aa is denied everywhere"), "{code} {shown}");
    assert!(holds(&site.served(LIST), &edited));
    good(&site, &["undeny", STRANGER]);
    // A deploy replaces the folder: the new one is changed.
    let swap = || {
        fs::rename(site.served("ote"), site.path("old")).unwrap();
        fs::create_dir(site.served("ote")).unwrap();
        for file in ["phones.csv", "constituency.json"] {
            fs::copy(site.path("old").join(file), site.served("ote").join(file)).unwrap();
        }
    };
    let (code, shown) = on_a_terminal(&site, "yes", swap);
    assert!(code == 0 && shown.contains("1 phone added, 0 notes changed, 0 unchanged in ote"), "{code} {shown}");
    assert!(holds(&site.served(LIST), format!("{edited};00005e0053aa;attic;\r\n")));
}

#[test]
fn several_typed_phones_are_allowed_together() {
    let site = site();
    let server = site.start();
    good(&site, &["deny", VVX550, "--constituency", "ote"]);
    let macs = [STRANGER, VVX500, "00:00:5e:00:53:c7", STRANGER];
    let said = good(&site, &with(&["allow", "--constituency", "ote"], &macs));
    let lines = "00005e00530c is allowed in ote already\n00005e0053aa is allowed in ote within a second\n\
                 00005e0053c7 is allowed in ote within a second\n";
    assert_eq!(said, lines);
    assert!(holds(&site.served(LIST), format!("{LISTED};00005e0053aa;;\r\n")));
    within_a_second("the phones", || ([STRANGER, VVX550].map(|mac| status(&server, mac)) == [200; 2]).then_some(()));
    // One that is denied everywhere, or that cannot be a phone, refuses all.
    good(&site, &["deny", "00005e0053d1"]);
    let before = lists(&site);
    for (mac, error) in
        [("00005e0053d1", "00005e0053d1 is denied everywhere"), ("ffffffffffff", "is a multicast address")]
    {
        let refused = bad(&site, &["allow", "00005e0053d0", mac, "--constituency", "ote"]);
        assert!(refused.contains(error), "{refused}");
    }
    assert_eq!(command(&site, &["allow", STRANGER, VVX500, "--constituency", "ote", "--digest"]).code, 2);
    assert_eq!(lists(&site), before);
    site.constituency("pw", &json!({ "client_auth": "digest", "phones": {} }));
    good(&site, &["allow", STRANGER, "--constituency", "pw", "--digest"]);
    let ended = command(&site, &["allow", STRANGER, VVX500, "--constituency", "pw"]);
    assert!(ended.code == 0 && ended.stderr.contains("1 of these on the list of pw are refused until"), "{ended:?}");
}

#[test]
fn several_phones_are_denied_and_lifted_together() {
    let site = site();
    site.constituency("pw", &json!({ "client_auth": "digest", "phones": { STRANGER: "" } }));
    good(&site, &["allow", STRANGER, "--constituency", "pw", "--digest"]);
    let server = site.start();
    good(&site, &["deny", VVX500, "--note", "lost"]);
    let said = good(&site, &["deny", STRANGER, VVX500, VVX550]);
    let lines = "00005e00530c is already denied everywhere\n00005e0053aa is denied everywhere within a second\n\
                 00005e0053c7 is denied everywhere within a second\nremoved the password of 00005e0053aa for pw\n";
    assert_eq!(said, lines);
    within_a_second("the denials", || ([VVX500, VVX550].map(|mac| status(&server, mac)) == [403; 2]).then_some(()));
    let denied = || -> Value { serde_json::from_slice(&fs::read(site.path("state/denied.json")).unwrap()).unwrap() };
    assert_eq!((denied().as_object().unwrap().len(), &denied()[VVX500]["note"]), (3, &json!("lost")));
    // By a file: its notes are the reasons.
    new_list(&site, &format!("mac,note\n{VVX550},\n00005e0053d1,stolen\n"));
    let said = good(&site, &["deny", "--from", "new.csv"]);
    assert_eq!(said, "00005e0053c7 is already denied everywhere\n00005e0053d1 is denied everywhere within a second\n");
    assert_eq!(denied()["00005e0053d1"]["note"], "stolen");
    let before = lists(&site);
    assert!(bad(&site, &["deny", "00005e0053d2", "ffffffffffff"]).contains("ffffffffffff is a multicast"));
    new_list(&site, &format!("mac,note\n00005e0053d2,a\n00005e0053d3,{}\n", "x".repeat(513)));
    let refused = bad(&site, &["deny", "--from", "new.csv"]);
    assert!(refused.contains("new.csv:3: the note must be one line of at most 512 bytes"), "{refused}");
    for verb in ["deny", "undeny"] {
        new_list(&site, "mac\n00005e0053d2\n00005e0053d2\n");
        assert!(bad(&site, &[verb, "--from", "new.csv"]).contains("new.csv:3: 00005e0053d2 is listed twice"));
        new_list(&site, "mac\n");
        assert!(bad(&site, &[verb, "--from", "new.csv"]).contains("the file lists no phone"));
    }
    assert_eq!(lists(&site), before);

    let said = good(&site, &["undeny", VVX500, "00005e0053d2", VVX550]);
    assert!(
        said.starts_with("00005e0053d2 is not denied everywhere\n00005e00530c is no longer denied everywhere; "),
        "{said}"
    );
    within_a_second("the phones", || ([VVX500, VVX550].map(|mac| status(&server, mac)) == [200; 2]).then_some(()));
    assert_eq!(bad(&site, &["undeny", VVX500, VVX550]), "error: 2 phones are not denied everywhere\n");
    new_list(&site, &format!("mac\n{STRANGER}\n00005e0053d1\n"));
    good(&site, &["undeny", "--from", "new.csv"]);
    assert_eq!(denied(), json!({}));

    // In one constituency: by its policy, which is replaced once.
    let said = good(&site, &["deny", VVX550, STRANGER, "--constituency", "ote"]);
    let lines = "00005e0053aa is denied in ote within a second\n00005e0053c7 is denied in ote within a second\n";
    assert_eq!(said, lines);
    within_a_second("the denial", || (status(&server, VVX550) == 403).then_some(()));
    let before = lists(&site);
    let again = good(&site, &["deny", VVX550, STRANGER, "--constituency", "ote"]);
    assert_eq!(again, lines.replace("is denied in ote within a second", "is already denied in ote"));
    assert_eq!(lists(&site), before);
    let policy: Value = serde_json::from_slice(&fs::read(site.served("ote/constituency.json")).unwrap()).unwrap();
    assert_eq!(policy["denied"], json!([STRANGER, VVX550]));
    let broken = bad(&site, &["deny", VVX550, STRANGER, "--constituency", "nosuch"]);
    assert!(broken.contains("there is no constituency nosuch"), "{broken}");
    // One line each.
    let all = audit(&site, &["--phone", VVX550]);
    let shown: Vec<(&str, usize)> =
        all.iter().map(|it| (it["action"].as_str().unwrap(), it["macs"].as_array().map_or(1, Vec::len))).collect();
    assert_eq!(shown, [("denied", 2), ("undenied", 2), ("denied", 2)]);
}

#[test]
fn api_takes_a_list_of_phones_all_or_none() {
    let mut site = site();
    fs::write(site.path("token"), TOKEN).unwrap();
    fs::set_permissions(site.path("token"), PermissionsExt::from_mode(0o600)).unwrap();
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    let server = site.start();
    let operators = Operators::of(&server).with_token(TOKEN);
    let allow = |body: Value| operators.post("/api/allow", &body);
    let answer = allow(json!({ "macs": [VVX550, STRANGER, VVX500], "constituency": "ote", "note": "hall" }));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json(), json!({ "changed": true, "macs": [VVX500, STRANGER, VVX550] }));
    assert_eq!(status(&server, STRANGER), 200, "it is in force when the answer arrives");
    let list = LISTED.replace("\"the \"\"lobby\"\"\"", "hall") + ";00005e0053aa;hall;\r\n";
    assert!(holds(&site.served(LIST), list));
    let again = allow(json!({ "macs": [STRANGER], "constituency": "ote" }));
    assert_eq!(again.json(), json!({ "changed": false, "macs": [] }));

    let denied = operators.post("/api/deny", &json!({ "macs": ["00005e0053d1", "00005e0053d2"], "note": "lost" }));
    assert_eq!(denied.json(), json!({ "changed": true, "macs": ["00005e0053d1", "00005e0053d2"] }));
    let before = lists(&site);
    let many: Vec<String> = (0..600).map(|number| format!("00005e01{number:04x}")).collect();
    let table = [
        (
            json!({ "macs": ["00005e0053ab", "00005e0053d2"], "constituency": "ote" }),
            409,
            "00005e0053d2 is denied everywhere",
        ),
        (json!({ "macs": ["00005e0053ab", "kitchen"], "constituency": "ote" }), 400, "invalid MAC address"),
        (json!({ "macs": ["00005e0053ab", "ffffffffffff"], "constituency": "ote" }), 409, "is a multicast address"),
        (json!({ "macs": ["00005e0053ab", "00:00:5e:00:53:ab"], "constituency": "ote" }), 400, "occurs twice"),
        (json!({ "macs": ["00005e0053ab", "000000000000"], "constituency": "ote" }), 400, "no phone has it"),
        (json!({ "macs": [], "constituency": "ote" }), 400, "\"macs\" is empty"),
        (json!({ "mac": STRANGER, "macs": [VVX550], "constituency": "ote" }), 400, "one of \"mac\" and \"macs\""),
        (json!({ "constituency": "ote" }), 400, "the key \"mac\" is missing, or \"macs\""),
        (json!({ "macs": ["00005e0053ab"] }), 400, "\"constituency\""),
        (json!({ "macs": ["00005e0053ab"], "constituency": "nosuch" }), 409, "there is no constituency nosuch"),
        (json!({ "macs": "00005e0053ab", "constituency": "ote" }), 400, "macs"),
        (json!({ "macs": many, "constituency": "ote" }), 413, "longer than 8192 bytes"),
    ];
    for (body, code, error) in &table {
        let answer = allow(body.clone());
        assert_eq!(answer.status, *code, "{body}: {answer:?}");
        assert!(answer.json()["error"].as_str().unwrap().contains(error), "{body}: {answer:?}");
    }
    assert_eq!((table.len(), lists(&site)), (12, before));
    let here = operators.post("/api/deny", &json!({ "macs": [STRANGER, VVX550], "constituency": "ote" }));
    assert_eq!(here.json(), json!({ "changed": true, "macs": [STRANGER, VVX550] }));
    assert_eq!([STRANGER, VVX550].map(|mac| status(&server, mac)), [403, 403]);
    let entries = audit(&site, &[]);
    let shown: Vec<(&str, usize)> =
        entries.iter().map(|it| (it["action"].as_str().unwrap(), it["macs"].as_array().unwrap().len())).collect();
    assert_eq!(shown, [("allowed", 3), ("denied", 2), ("denied", 2)]);
    assert!(entries.iter().all(|entry| entry["by"] == "api" && entry["from"] == "127.0.0.1"));
    let page = operators.get("/audit").body;
    assert!(page.contains("3 phones (00005e00530c, 00005e0053aa, 00005e0053c7)"), "{page}");
}

#[test]
fn audit_log_of_a_large_list_stays_readable() {
    let site = site();
    drop(site.start());
    let phones: String = (0..1000).map(|number| format!("00005e01{number:04x}\n")).collect();
    new_list(&site, &format!("mac\n{phones}"));
    good(&site, &with(&FROM, &["--yes"]));
    let entries = audit(&site, &[]);
    let sizes: Vec<usize> = entries.iter().map(|entry| entry["macs"].as_array().unwrap().len()).collect();
    assert_eq!((sizes, &entries[2]["detail"]), (vec![400, 400, 200], &json!("part 3 of 3")));
    let of_one = audit(&site, &["--phone", "00005e0103e7"]);
    assert_eq!((of_one.len(), &of_one[0]["detail"]), (1, &json!("part 3 of 3")));
    assert!(good(&site, &["audit"]).lines().all(|line| line.len() < 200));
}
