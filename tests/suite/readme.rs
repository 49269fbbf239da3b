//! The README's promises: every command and configuration in it works as it stands.

use std::path::Path;
use std::process::Command;

use provost::config::Config;
use provost::constituency::Policy;

use crate::harness::tool::{provost, run};
use crate::harness::{VVX500, not_run};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of the README in this language.
fn blocks(language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    README.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn every_block_is_of_a_kind_that_a_test_knows() {
    let fences = README.lines().filter(|line| line.starts_with("```")).count();
    let known = blocks("sh").len() + blocks("json").len() + blocks("text").len();
    assert_eq!(fences, known * 2);
    assert_eq!((blocks("sh").len(), blocks("json").len()), (4, 4));
}

#[test]
fn every_configuration_is_good() {
    let (sites, policies): (Vec<_>, Vec<_>) =
        blocks("json").into_iter().partition(|block| block.contains("\"domain\""));
    assert_eq!((sites.len(), policies.len()), (3, 1));
    for site in sites {
        Config::parse(Path::new("provost.json"), &site).unwrap();
    }
    for policy in policies {
        Policy::parse(Path::new("constituency.json"), &policy, &["polycom"]).unwrap();
    }
}

#[test]
fn the_tables_name_exactly_the_keys_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    for (file, heading) in [("provost", "| key of `provost.json`"), ("constituency", "| key of `constituency.json`")] {
        let schema: serde_json::Value =
            serde_json::from_str(&provost(folder.path(), &["schema", file]).stdout).unwrap();
        let mut keys: Vec<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let table = README.split(heading).nth(1).unwrap().split("\n\n").next().unwrap();
        let mut named: Vec<&str> = table.lines().skip(2).map(|row| row.split('`').nth(1).unwrap()).collect();
        // A description needs no explanation.
        keys.retain(|key| *key != "description");
        keys.sort_unstable();
        named.sort_unstable();
        assert_eq!(named, keys, "{file}");
    }
}

#[test]
fn the_table_of_limits_names_them_all_with_their_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let schema: serde_json::Value =
        serde_json::from_str(&provost(folder.path(), &["schema", "provost"]).stdout).unwrap();
    let limits = schema["$defs"]["Limits"]["properties"].as_object().unwrap();
    let mut keys: Vec<(&str, String)> =
        limits.iter().map(|(key, it)| (key.as_str(), it["default"].to_string())).collect();
    let table = README.split("| key of `limits`").nth(1).unwrap().split("\n\n").next().unwrap();
    let row = |row: &'static str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let code = |cell: &'static str| cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
        (code(cells[1]).unwrap(), code(cells[3]).unwrap_or("null").to_owned())
    };
    let mut named: Vec<(&str, String)> = table.lines().skip(2).map(row).collect();
    keys.sort_unstable();
    named.sort_unstable();
    assert!(keys.len() >= 12, "{keys:?}");
    assert_eq!(named, keys);
}

#[test]
fn the_primary_is_told_what_to_grant_to_the_key_that_the_readme_makes() {
    let folder = tempfile::tempdir().unwrap();
    let keygen = blocks("text").into_iter().find(|block| block.starts_with("tsig-keygen")).unwrap();
    let ended = run(Command::new("sh").args(["-c", &keygen]).current_dir(folder.path()));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let site = blocks("json").into_iter().find(|block| block.contains("\"acme\"")).unwrap();
    std::fs::write(folder.path().join("provost.json"), site).unwrap();
    for (dialect, grant) in [
        ("bind-policy", "grant provost. name _acme-challenge.phones.example.com. TXT;"),
        ("knot-acl", "update-owner-name: [_acme-challenge.phones.example.com.]"),
    ] {
        let printed = provost(folder.path(), &["print", dialect]);
        assert_eq!(printed.code, 0, "{}", printed.stderr);
        assert!(printed.stdout.contains(grant), "{}", printed.stdout);
    }
}

#[test]
fn the_two_commands_are_what_they_say() {
    let shell = blocks("sh");
    assert_eq!((shell[0].as_str(), shell[1].as_str()), ("cargo run --release -- demo\n", "tests/run\n"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = std::fs::read_to_string(root.join(".ci/run")).unwrap();
    assert!(script.contains("tests/run"), "CI runs the README's command");
    assert!(root.join("tests/run").exists());
}

#[test]
fn a_first_phone_boots_as_the_readme_says() {
    // A network of its own: local mode's port is fixed, and other tests and people use it too.
    let isolated = |script: &str, folder: &Path| {
        let binary = Path::new(env!("CARGO_BIN_EXE_provost")).parent().unwrap();
        let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
        let script = format!("set -e; ip link set lo up; {script}");
        let mut command = Command::new("unshare");
        command.args(["-rn", "sh", "-c", &script]).current_dir(folder).env("PATH", path);
        run(&mut command)
    };
    let folder = tempfile::tempdir().unwrap();
    if isolated("true", folder.path()).code != 0 {
        return not_run("a_first_phone_boots_as_the_readme_says", "no network namespace can be made here");
    }
    let shell = blocks("sh");
    let setup = shell[2].strip_suffix("provost serve\n").expect("the block ends by serving");
    let phone = shell[3].trim();
    let script = format!(
        "{setup}\nprovost serve >access.log 2>diagnostics.log & server=$!
         until grep -q 'listening on' diagnostics.log; do kill -0 $server; done
         {phone} >known.txt; {} >unknown.txt || echo \"unknown: $?\"; kill $server; wait $server",
        phone.replace(VVX500, "00005e0053aa")
    );
    let ended = isolated(&script, folder.path());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert_eq!(ended.code, 0, "{ended:?}\n{}", read("diagnostics.log"));
    assert!(ended.stdout.contains("1 constituency can be served; 0 errors, 0 warnings"), "{}", ended.stdout);
    assert!(ended.stdout.contains("unknown: 1"), "{}", ended.stdout);
    assert!(read("known.txt").lines().last().unwrap().starts_with("provisioned"), "{}", read("known.txt"));
    assert!(read("unknown.txt").contains("not provisioned"), "{}", read("unknown.txt"));
    assert!(read("diagnostics.log").lines().next().unwrap().contains("LOCAL MODE"));
    assert!(read("access.log").contains("00005e0053aa is not known to home"));
}
