//! The `notify` command: when it runs, what it reads, and what happens if it fails.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::operators::Operators;
use crate::harness::site::Site;
use crate::harness::tool::provost;
use crate::harness::{VVX500, eventually};

/// A site whose notify command keeps each input in a file of its own, then does `more`.
fn site(more: &str) -> Site {
    let mut site = Site::with_ote();
    site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let script = site.path("notify.sh");
    let text = format!(
        "#!/bin/sh\nn=$(ls \"$1\" | wc -l)\ncat > \"$1/.new\"\nmv \"$1/.new\" \"$1/$(printf %04d \"$n\")\"\n{more}\n"
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(site.path("runs")).unwrap();
    site.config["notify"] = json!({ "command": [script, site.path("runs")] });
    site
}

/// The input of each run so far.
fn runs(site: &Site) -> Vec<Value> {
    let entries = std::fs::read_dir(site.path("runs")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| !path.ends_with(".new")).collect();
    files.sort();
    files.iter().map(|path| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()).collect()
}

/// The input of the run `number`, which may take the pauses of several runs.
fn run(site: &Site, number: usize) -> Value {
    eventually("the notify command", || runs(site).into_iter().nth(number))
}

fn changes(run: &Value) -> Vec<[&str; 3]> {
    let changes = run["changes"].as_array().unwrap().iter();
    changes.map(|change| ["change", "kind", "object"].map(|key| change[key].as_str().unwrap())).collect()
}

/// Replaces the policy of `name` by one that cannot be read.
fn break_policy(site: &Site, name: &str) {
    std::fs::create_dir_all(site.served(name)).unwrap();
    std::fs::write(site.served(name).join("constituency.json"), "{ broken").unwrap();
}

#[test]
fn headline_is_notified_when_it_appears_and_goes_also_over_a_restart() {
    let site = site("");
    let server = site.start();
    break_policy(&site, "ote");
    let first = run(&site, 0);
    assert_eq!(changes(&first), [["appeared", "constituency_last_good_policy", "ote"]]);
    assert_eq!((&first["version"], first["domain"].as_str()), (&json!(1), site.config["domain"].as_str()));
    let headline = &first["headlines"][0];
    assert_eq!((&headline["level"], first["headlines"].as_array().unwrap().len()), (&json!("warning"), 1));
    let text = headline["text"].as_str().unwrap();
    assert!(text.starts_with("ote keeps its last good policy: ") && text.contains("constituency.json"), "{text}");
    assert!(!first["host"].as_str().unwrap().is_empty() && first["time"].as_str().unwrap().ends_with('Z'), "{first}");

    server.signal(Signal::TERM);
    assert!(server.wait().success());
    let server = site.start();
    // Were the first headline repeated, it would be in this run.
    break_policy(&site, "home");
    let second = run(&site, 1);
    assert_eq!(changes(&second), [["appeared", "constituency_not_served", "home"]]);
    assert_eq!(second["headlines"].as_array().unwrap().len(), 2);
    assert_eq!(second["headlines"][0]["since"], second["changes"][0]["since"]);
    let of_ote = second["headlines"].as_array().unwrap().iter().find(|it| it["object"] == "ote").unwrap();
    assert_eq!(of_ote["since"], headline["since"], "the time outlives the restart");

    std::fs::remove_dir_all(site.served("home")).unwrap();
    site.constituency("ote", &json!({ "trust": ["factory"], "phones": { VVX500: "" } }));
    let third = run(&site, 2);
    let mut gone = changes(&third);
    gone.sort_unstable();
    assert_eq!(gone, [["gone", "constituency_last_good_policy", "ote"], ["gone", "constituency_not_served", "home"]]);
    assert_eq!(third["headlines"], json!([]));
    drop(server);
}

#[test]
fn failing_notify_command_is_logged_shown_and_repeated() {
    let site = site("test -e \"$1/../repaired\" && exit 0\necho 'smtp: no route' >&2\nexit 7");
    let server = site.start();
    let operators = Operators::of(&server);
    break_policy(&site, "ote");
    let logged = server.says("ended with status 7");
    assert!(logged.contains("ERROR") && logged.contains("it printed: smtp: no route"), "{logged}");
    let page = eventually("the failure on the page", || {
        let page = operators.get("/").body;
        page.contains("ended with status 7; it printed: smtp: no route").then_some(page)
    });
    assert!(page.contains("2 problems need attention"), "{page}");
    std::fs::write(site.path("repaired"), "").unwrap();
    // The same report again, without the failure itself.
    let again = eventually("the success", || {
        let overview = operators.json("/api/overview");
        (overview["notify_failure"] == Value::Null).then(|| runs(&site))
    });
    for run in &again {
        assert_eq!(changes(run), [["appeared", "constituency_last_good_policy", "ote"]], "{again:?}");
        assert_eq!(run["headlines"].as_array().unwrap().len(), 1, "{again:?}");
    }
    assert!(again.len() >= 2, "{again:?}");
}

#[test]
fn shutdown_ends_a_running_notify_command() {
    let site = site("echo $$ > \"$1/../pid\"\nexec sleep 1000");
    let server = site.start();
    break_policy(&site, "ote");
    let pid = eventually("the command", || {
        let pid = std::fs::read_to_string(site.path("pid")).ok()?;
        pid.trim().parse::<u32>().ok()
    });
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    eventually("the end of the command", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn check_names_a_notify_command_that_cannot_run() {
    let mut site = site("");
    break_policy(&site, "ote");
    site.write_config();
    let check = |site: &Site| provost(&site.path("."), &["check"]).stdout;
    let good = check(&site);
    assert!(!good.contains("notify"), "{good}");
    let script = site.path("notify.sh");
    for (mode, problem) in
        [(0o644, "notify.sh is not executable; run chmod +x"), (0o757, "all users of this machine may change")]
    {
        std::fs::set_permissions(&script, PermissionsExt::from_mode(mode)).unwrap();
        let said = check(&site);
        assert!(said.contains("error: notify: ") && said.contains(problem), "{said}");
    }
    std::fs::remove_file(&script).unwrap();
    let said = check(&site);
    assert!(said.contains("notify.sh cannot be run: No such file"), "{said}");
    site.config["notify"] = json!({ "command": ["notify.sh"] });
    site.write_config();
    let said = provost(&site.path("."), &["check"]);
    let problem = "\"notify\": \"command\": \"notify.sh\" is not an absolute path";
    assert!(said.code == 2 && said.stderr.contains(problem), "{said:?}");
    // Reading commands never run it.
    assert!(runs(&site).is_empty());
}
