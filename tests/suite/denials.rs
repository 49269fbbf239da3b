//! Phones that are denied on the whole server, regardless of folders, pins, passwords and deploys.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::pki::{FACTORY, Identity, device_params};
use crate::harness::site::{Lines, Site, holds};
use crate::harness::tls::Client;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, not_run, within_a_second};
use crate::uploads::files_below;

const TOKEN: &str = "a-token-for-tests-0123456789";

fn command(site: &Site, args: &[&str]) -> Ended {
    provost(&site.path("."), args)
}

#[track_caller]
fn good(site: &Site, args: &[&str]) -> String {
    let ended = command(site, args);
    assert_eq!(ended.code, 0, "{args:?}: {ended:?}");
    ended.stdout
}

#[track_caller]
fn bad(site: &Site, args: &[&str]) -> String {
    let ended = command(site, args);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args:?}: {ended:?}");
    ended.stderr
}

fn status(client: &Client) -> u16 {
    client.get("/site.cfg").unwrap().status
}

#[track_caller]
fn gives_within_a_second(client: &Client, wanted: u16) {
    within_a_second(&format!("{wanted}"), || (status(client) == wanted).then_some(()));
}

/// Two constituencies that accept VVX500, by a list and with `"phones": "any"`, and one without authentication.
fn site() -> Site {
    let site = Site::with_ote();
    site.constituency("any", &json!({ "trust": ["factory"], "phones": "any" }));
    site.file("any/site.cfg", "<any/>");
    site.constituency("public", &json!({ "client_auth": "none" }));
    site.file("public/site.cfg", "<public/>");
    site.write_config();
    site
}

/// The same with a status page that requires [`TOKEN`].
fn site_with_operators() -> Site {
    let mut site = site();
    fs::write(site.path("token"), TOKEN).unwrap();
    fs::set_permissions(site.path("token"), PermissionsExt::from_mode(0o600)).unwrap();
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    site.write_config();
    site
}

fn denied(site: &Site) -> Value {
    serde_json::from_slice(&fs::read(site.path("state/denied.json")).unwrap()).unwrap()
}

/// Every file below `constituencies` with its content.
fn folders(site: &Site) -> Vec<(String, Vec<u8>)> {
    let files = files_below(&site.served(""));
    files.into_iter().map(|file| (file.clone(), fs::read(site.served(&file)).unwrap())).collect()
}

#[test]
fn server_wide_denial_applies_within_a_second_in_all_folders() {
    let site = site();
    let server = site.start();
    let clients = ["ote", "any"].map(|name| server.client(name, &FACTORY.device(VVX500)));
    let mut open = clients.each_ref().map(|client| client.connect().unwrap());
    assert_eq!(open.each_mut().map(|open| open.get("/site.cfg").unwrap().status), [200; 2]);
    let bystander = server.client("any", &FACTORY.device(VVX550));
    assert_eq!(status(&bystander), 200);
    let before = folders(&site);

    let ended = command(&site, &["deny", "00:00:5E:00:53:0C", "--note", "left in a taxi"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "00005e00530c is denied everywhere within a second\n"));
    let public =
        "note: a denial has no effect in public: it does not authenticate clients (\"client_auth\": \"none\")\n";
    assert_eq!(ended.stderr, public);
    for open in &mut open {
        within_a_second("403 on an open connection", || (open.get("/site.cfg").unwrap().status == 403).then_some(()));
        assert!(open.is_closed());
    }
    assert_eq!(clients.each_ref().map(status), [403; 2]);
    server.reason("00005e00530c is denied everywhere (provost undeny 00005e00530c lifts it)");
    assert_eq!((status(&bystander), bystander.resumes()), (200, true));
    assert_eq!(status(&server.client("public", &FACTORY.device(VVX500))), 200);
    assert_eq!(folders(&site), before);

    let file = site.path("state/denied.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let entry = &denied(&site)[VVX500];
    assert_eq!(entry["note"], "left in a taxi");
    assert!(entry["by"].as_str().is_some_and(|by| !by.is_empty()) && entry["at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(good(&site, &["deny", VVX500]), "00005e00530c is already denied everywhere\n");
    assert_eq!(denied(&site)[VVX500], *entry);

    let refused = bad(&site, &["allow", VVX500, "--constituency", "ote"]);
    assert!(refused.contains(": left in a taxi; to lift that, run provost undeny 00005e00530c"), "{refused}");
    assert_eq!(folders(&site), before);
    let lifted = good(&site, &["undeny", VVX500]);
    assert!(lifted.starts_with("00005e00530c is no longer denied everywhere; it was denied by "), "{lifted}");
    for client in &clients {
        gives_within_a_second(client, 200);
    }
    assert_eq!(bad(&site, &["undeny", VVX500]), "error: 00005e00530c is not denied everywhere\n");
    assert_eq!(denied(&site), json!({}));
}

#[test]
fn denial_survives_deploys_restarts_and_removed_policies() {
    let site = site();
    site.file(&format!("ote/{STRANGER}.cfg"), "<own/>");
    good(&site, &["deny", STRANGER, "--note", "stolen"]);
    // Denied while no server runs.
    let server = site.start();
    let stranger = server.client("ote", &FACTORY.device(STRANGER));
    assert_eq!(status(&stranger), 403);
    fs::remove_file(site.served("ote/constituency.json")).unwrap();
    site.constituency("any", &json!({ "trust": ["factory"], "phones": { STRANGER: "is back" } }));
    server.says("any: the policy changed");
    assert_eq!(status(&server.client("any", &FACTORY.device(STRANGER))), 403);
    server.kill();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { STRANGER: "", VVX500: "" } }));
    let server = site.start();
    let clients = [STRANGER, VVX500].map(|mac| server.client("ote", &FACTORY.device(mac)));
    assert_eq!(clients.each_ref().map(status), [403, 200]);
    // It does not remove a policy's own denial.
    good(&site, &["deny", STRANGER, "--constituency", "ote"]);
    let lifted = command(&site, &["undeny", STRANGER]);
    let still = "note: ote still denies it; to lift that, run provost allow 00005e0053aa --constituency ote\n";
    assert_eq!((lifted.code, lifted.stderr.as_str()), (0, still));
    server.says("00005e0053aa is no longer denied everywhere");
    assert_eq!(status(&clients[0]), 403);
    assert!(bad(&site, &["undeny", STRANGER]).ends_with(
        "is not denied everywhere; ote still denies it; to lift that, run provost allow 00005e0053aa --constituency ote\n"
    ));
}

#[test]
fn undeny_restores_certificate_pins_but_not_passwords() {
    let site = site();
    let own = Identity::self_signed(&device_params(STRANGER));
    let (chain, _) = own.write(&site.path(""), "own");
    let print =
        run(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(chain)).stdout;
    let print = print.trim().split_once('=').unwrap().1;
    good(&site, &["allow", STRANGER, "--constituency", "ote", "--certificate-sha256", print]);
    for name in ["pw", "gone"] {
        site.constituency(name, &json!({ "client_auth": "digest", "phones": { STRANGER: "", VVX500: "" } }));
        for mac in [STRANGER, VVX500] {
            good(&site, &["allow", mac, "--constituency", name, "--digest"]);
        }
    }
    fs::remove_dir_all(site.served("gone")).unwrap();
    let passwords = |name: &str| -> Vec<String> {
        let text = fs::read(site.path(&format!("state/digest/{name}.json"))).unwrap();
        let all: Value = serde_json::from_slice(&text).unwrap();
        all["phones"].as_object().unwrap().keys().cloned().collect()
    };
    let server = site.start();
    let pinned = server.client("ote", &own);
    assert_eq!(status(&pinned), 200);
    let said = good(&site, &["deny", STRANGER]);
    assert!(said.contains("removed the password of 00005e0053aa for gone") && said.contains("00005e0053aa for pw\n"));
    gives_within_a_second(&pinned, 403);
    for name in ["pw", "gone"] {
        assert_eq!(passwords(name), [VVX500], "{name}");
    }
    for more in [&["--certificate-sha256", print][..], &["--digest"]] {
        let name = if more[0] == "--digest" { "pw" } else { "ote" };
        let refused = bad(&site, &[&["allow", STRANGER, "--constituency", name], more].concat());
        assert!(refused.contains("to lift that, run provost undeny 00005e0053aa"), "{refused}");
    }
    // A password stored by hand does not count either.
    let file = site.path("state/digest/pw.json");
    let mut smuggled: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    smuggled["phones"][STRANGER] = smuggled["phones"][VVX500].clone();
    fs::write(&file, smuggled.to_string()).unwrap();
    assert!(good(&site, &["undeny", STRANGER]).contains("removed the password of 00005e0053aa for pw"));
    assert_eq!(passwords("pw"), [VVX500]);
    gives_within_a_second(&pinned, 200);
    // If passwords cannot be removed, the denial stays.
    good(&site, &["deny", STRANGER]);
    fs::write(&file, "{").unwrap();
    assert!(bad(&site, &["undeny", STRANGER]).contains("is still denied everywhere: cannot remove a password"));
    let again = command(&site, &["deny", STRANGER]);
    assert!(again.code == 1 && again.stderr.contains("undeny fails until it is removed"), "{again:?}");
    assert_eq!(denied(&site).as_object().unwrap().len(), 1);
}

#[test]
fn unreadable_denials_block_start_and_the_last_read_stay() {
    let site = site();
    good(&site, &["deny", VVX500]);
    let text = fs::read(site.path("state/denied.json")).unwrap();
    let server = site.start();
    let phones = [VVX500, VVX550].map(|mac| server.client("any", &FACTORY.device(mac)));
    let file = site.path("state/denied.json");
    fs::write(&file, "{ \"00005e0053c7\": ").unwrap();
    // The server may also read it while it is still empty.
    let reported = server.says("denied.json:1:18: ");
    assert!(reported.contains("the last valid denials stay in force") && reported.contains("ERROR"), "{reported}");
    assert_eq!(phones.each_ref().map(status), [403, 200]);
    let checked = command(&site, &["check"]);
    assert_eq!(checked.code, 1);
    assert!(
        checked.stdout.contains("error: denied.json: ") && checked.stdout.contains("denied.json:1:18: "),
        "{checked:?}"
    );
    for args in [
        &["phones"][..],
        &["phone-log", VVX500],
        &["allow", VVX550, "--constituency", "ote"],
        &["deny", VVX550],
        &["undeny", VVX500],
    ] {
        assert!(bad(&site, args).contains("denied.json:1:18: "), "{args:?}");
    }
    server.kill();
    let stops = |what: &str| {
        let ended = run(&mut site.command());
        assert_eq!(ended.code, 2, "{what}: {ended:?}");
        assert!(ended.stderr.contains("denied.json"), "{what}: {}", ended.stderr);
    };
    stops("broken");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    stops("a folder");
    fs::remove_dir(&file).unwrap();
    symlink("/dev/null", &file).unwrap();
    stops("a link");
    fs::remove_file(&file).unwrap();
    fs::write(&file, &text).unwrap();
    let server = site.start();
    let phones = [VVX500, VVX550].map(|mac| server.client("any", &FACTORY.device(mac)));
    assert_eq!(phones.each_ref().map(status), [403, 200]);
    // A repair and a removal while the server runs are both logged.
    fs::write(&file, "x").unwrap();
    server.says("the last valid denials stay in force");
    fs::write(&file, format!("{{ \"{VVX550}\": {{}} }}")).unwrap();
    server.says("denied.json is valid again and in force");
    assert_eq!(phones.each_ref().map(status), [200, 403]);
    fs::remove_file(&file).unwrap();
    gives_within_a_second(&phones[1], 200);
    assert!(server.says("denied.json was removed").contains("WARN"));
}

#[test]
fn denial_is_shown_with_author_time_and_note_escaped() {
    let site = site_with_operators();
    fs::create_dir_all(site.path("state")).unwrap();
    let hostile = "\u{1b}[2J<script>alert(1)</script>\r\nerror: forged";
    let entries = json!({
        VVX500: { "by": "alice", "at": "2026-11-30T22:14:05Z", "note": "left in a taxi" },
        STRANGER: { "by": hostile, "note": hostile },
    });
    fs::write(site.path("state/denied.json"), entries.to_string()).unwrap();
    fs::set_permissions(site.path("state/denied.json"), PermissionsExt::from_mode(0o600)).unwrap();
    let server = site.start();
    assert_eq!(status(&server.client("ote", &FACTORY.device(VVX500))), 403);
    server.reason("00005e00530c is denied everywhere");
    let reported = "denied everywhere by alice at 2026-11-30T22:14:05Z: left in a taxi";
    let phones = eventually("the phone", || {
        let listed = good(&site, &["phones"]);
        listed.contains("refused at").then_some(listed)
    });
    assert!(phones.contains(&format!("    {reported}\n")), "{phones}");
    assert!(phones.contains(&format!("{STRANGER} is denied everywhere by \u{fffd}[2J<script>")), "{phones}");
    let listed = good(&site, &["phones", "--json"]);
    let lines: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |mac: &str| lines.iter().find(|line| line["mac"] == mac).unwrap();
    assert_eq!((&of(VVX500)["standing"], &of(VVX500)["denied_everywhere"]["by"]), (&json!("denied"), &json!("alice")));
    assert_eq!(
        (&of(STRANGER)["constituency"], &of(STRANGER)["denied_everywhere"]["note"]),
        (&Value::Null, &json!(hostile))
    );
    let log = good(&site, &["phone-log", VVX500]);
    assert!(log.contains(&format!("{VVX500} is {reported}\n")) && log.contains("\"GET /site.cfg\" 403"), "{log}");
    let unseen = command(&site, &["phone-log", STRANGER]);
    assert!(unseen.code == 0 && unseen.stderr.contains("it was never seen"), "{unseen:?}");
    let checked = good(&site, &["check"]);
    assert!(checked.contains(&format!("note: denied.json: {VVX500} is {reported}\n")), "{checked}");
    let public =
        "note: public: phones that are denied everywhere are still served here: it does not authenticate clients";
    assert!(checked.contains(public) && !checked.contains("note: any: phones that are denied"), "{checked}");
    for shown in [&phones, &listed, &log, &unseen.stdout, &checked] {
        assert!(!shown.contains('\u{1b}') && !shown.contains("\nerror: forged"), "{shown}");
    }

    let operators = Operators::of(&server).with_token(TOKEN);
    let overview = operators.json("/api/overview");
    let expected = json!({ "mac": VVX500, "by": "alice", "at": 1_796_076_845, "note": "left in a taxi" });
    assert_eq!(overview["denied"][0], expected);
    assert_eq!(overview["denied"].as_array().unwrap().len(), 2);
    let phone = &operators.json(&format!("/api/phones/ote/{VVX500}"))["phone"];
    assert_eq!((&phone["state"], &phone["denied_everywhere"]["by"]), (&json!("denied"), &json!("alice")));
    let page = operators.get("/").body;
    let own = operators.get(&format!("/phones/ote/{VVX500}")).body;
    assert!(page.contains("Denied everywhere") && page.contains("left in a taxi"), "{page}");
    assert!(own.contains("It is denied everywhere by ") && own.contains("left in a taxi"), "{own}");
    assert!(own.contains("undeny 00005e00530c") && !own.contains("allow 00005e00530c"), "{own}");
    for shown in [&page, &own] {
        assert!(!shown.contains("<script>alert") && !shown.contains('\u{1b}'), "{shown}");
    }
}

#[test]
fn api_deny_without_constituency_denies_server_wide() {
    let site = site_with_operators();
    let server = site.start();
    let operators = Operators::of(&server).with_token(TOKEN);
    let phone = server.client("any", &FACTORY.device(VVX500));
    assert_eq!(status(&phone), 200);
    let before = folders(&site);
    let deny = json!({ "mac": VVX500, "note": "lost" });
    let answer = operators.post("/api/deny", &deny);
    assert_eq!((answer.status, answer.json()), (200, json!({ "changed": true })));
    assert_eq!(status(&phone), 403, "it applies when the answer arrives");
    assert_eq!(operators.post("/api/deny", &deny).json(), json!({ "changed": false }));
    assert_eq!(
        (&denied(&site)[VVX500]["by"], &denied(&site)[VVX500]["note"]),
        (&json!("token_file, through the API"), &json!("lost"))
    );
    assert_eq!(folders(&site), before);
    let allowed = operators.post("/api/allow", &json!({ "mac": VVX500, "constituency": "ote" }));
    assert_eq!(allowed.status, 409);
    assert!(allowed.json()["error"].as_str().unwrap().contains("provost undeny 00005e00530c"), "{allowed:?}");
    let nowhere = operators.post("/api/allow", &json!({ "mac": VVX550 }));
    assert_eq!(nowhere.status, 400);
    for wrong in [json!({ "mac": VVX550, "constituency": "" }), json!({ "mac": VVX550, "note": "a\nb" })] {
        assert_eq!(operators.post("/api/deny", &wrong).status, 400, "{wrong}");
    }
    assert_eq!(operators.without_token().post("/api/deny", &json!({ "mac": VVX550 })).status, 401);
    assert_eq!(denied(&site).as_object().unwrap().len(), 1);
    // The form as a browser posts it.
    let form = format!("mac={VVX550}&note=sold");
    let posted = operators.with(&["--data", &form]).get("/deny");
    assert_eq!((posted.status, posted.headers["location"].as_str()), (303, "/?denied=00005e0053c7"), "{posted:?}");
    assert_eq!(denied(&site)[VVX550]["by"], "token_file, on the status page");
}

#[test]
fn concurrent_denials_are_all_kept() {
    let site = site();
    let mac = |number: usize| format!("00005e0053{number:02x}");
    let children: Vec<_> = (0x10..0x28)
        .map(|number| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
            command.args(["deny", &mac(number), "--note", "x"]).current_dir(site.path("."));
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    assert!(children.into_iter().all(|mut child| child.wait().unwrap().success()));
    assert_eq!(denied(&site).as_object().unwrap().len(), 24);
}

#[test]
fn denial_file_written_by_root_keeps_the_state_owner() {
    let test = "denial_file_written_by_root_keeps_the_state_owner";
    if !rustix::process::geteuid().is_root() {
        return not_run(test, "it needs root");
    }
    let site = site();
    fs::create_dir(site.path("state")).unwrap();
    fs::set_permissions(site.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(site.path("state"), Some(65534), Some(65533)).unwrap();
    let file = site.path("state/denied.json");
    let owner = || fs::symlink_metadata(&file).map(|file| (file.uid(), file.gid(), file.mode() & 0o777)).unwrap();
    good(&site, &["deny", VVX500]);
    assert_eq!(owner(), (65534, 65533, 0o600));
    good(&site, &["undeny", VVX500]);
    assert_eq!(owner(), (65534, 65533, 0o600));
    // A symlink set by the state's owner is not followed.
    fs::remove_file(&file).unwrap();
    fs::write(site.path("roots"), "{}").unwrap();
    symlink("../roots", &file).unwrap();
    assert!(bad(&site, &["deny", VVX500]).contains("denied.json"));
    assert!(holds(&site.path("roots"), "{}"));
}

#[test]
fn command_waiting_for_a_lock_reports_it_and_times_out() {
    let site = site();
    let held = |path: &str| {
        let file = File::open(site.path(path)).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file
    };
    let start = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
        command.args(args).current_dir(site.path(".")).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Lines::default();
        lines.follow(child.stderr.take().unwrap());
        (child, lines)
    };
    fs::create_dir_all(site.path("state")).unwrap();
    let me = format!("process {} (", std::process::id());
    let says =
        |lines: &Lines, text: &str| eventually(text, || lines.all().iter().find(|line| line.contains(text)).cloned());
    let commands: [(&str, &[&str]); 3] = [
        ("constituencies/ote", &["allow", VVX550, "--constituency", "ote"]),
        ("constituencies/ote", &["deny", VVX550, "--constituency", "ote"]),
        ("state", &["deny", VVX550]),
    ];
    for (path, args) in commands {
        let lock = held(path);
        let (mut child, lines) = start(args);
        assert!(says(&lines, "note: waiting for ").contains(&me), "{args:?}");
        drop(lock);
        assert!(child.wait().unwrap().success(), "{args:?}");
    }
    let before = folders(&site);
    let locks = [held("constituencies/ote"), held("state")];
    let children = [&["allow", VVX500, "--constituency", "ote", "--note", "x"][..], &["undeny", VVX550]].map(start);
    for (mut child, lines) in children {
        let status = eventually("the end of a command that waits in vain", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(1));
        let error = says(&lines, "error: ");
        assert!(
            error.contains(&me) && error.contains("after 10 s") && error.contains("nothing was changed"),
            "{error}"
        );
    }
    drop(locks);
    assert_eq!(folders(&site), before);
    assert_eq!(denied(&site).as_object().unwrap().len(), 1);
}

#[test]
fn deny_in_a_folder_without_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ended = provost(folder.path(), &["deny", VVX500]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("00005e00530c was not denied: local mode"), "{ended:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn denial_among_thousands_applies_within_a_second() {
    let site = site();
    fs::create_dir_all(site.path("state")).unwrap();
    let many: serde_json::Map<String, Value> =
        (0..20_000).map(|number| (format!("{:012x}", 0x0004_f200_0000_u64 + number), json!({}))).collect();
    fs::write(site.path("state/denied.json"), Value::Object(many).to_string()).unwrap();
    let server = site.start();
    let phone = server.client("any", &FACTORY.device(VVX500));
    assert_eq!(status(&phone), 200);
    good(&site, &["deny", VVX500]);
    gives_within_a_second(&phone, 403);
    assert_eq!(status(&server.client("any", &FACTORY.device("0004f2004e1f"))), 403);
    let checked = good(&site, &["check"]);
    assert!(checked.contains("19951 more phones are denied everywhere"), "{checked}");
}
