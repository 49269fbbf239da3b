//! The configuration that a command reads: `--config` or `-c` before or after its name, then `PROVOST_CONFIG`, then
//! `./provost.json`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::commands::subcommands;
use crate::harness::site::Site;
use crate::harness::tool::{Ended, run};

/// A command line for every command that reads a configuration.
const READING: [&str; 36] = [
    "serve",
    "check",
    "certificate status",
    "certificate renew",
    "certificate rehearse",
    "certificate renew --dry-run",
    "certificate revoke --key rsa-2048",
    "phones",
    "phone-log 00005e00530c",
    "allow 00005e00530c --constituency ote",
    "deny 00005e00530c --constituency ote",
    "undeny 00005e00530c",
    "operator add anna",
    "operator list",
    "operator remove anna",
    "operator rotate anna",
    "audit",
    "constituency list",
    "constituency add new",
    "uploads list 00005e00530c",
    "uploads cat 00005e00530c x",
    "uploads remove 00005e00530c x",
    "uploads move 00005e00530c --from a --to b",
    "phone --url https://ote.phones.localhost:1/ --mac 00005e00530c --no-certificate",
    "trust list",
    "trust verify --constituency ote chain.pem",
    "ca init --name Own",
    "ca issue 00005e00530c --out phone.pem",
    "ca list",
    "ca revoke 00005e00530c",
    "print bind-policy",
    "print knot-acl",
    "print dns-records",
    "print dhcp --format isc --constituency ote",
    "print phone-config --constituency ote",
    "print haproxy --node 192.0.2.10",
];

/// Commands that read no configuration, or accept one that does not exist yet.
const NOT_READING: [&str; 12] = [
    "demo",
    "install",
    "uninstall",
    "schema",
    "print systemd-unit",
    "print systemd-socket",
    "print containerfile",
    "print prometheus-alerts",
    "print grafana-dashboard",
    "print completions",
    "print man",
    "help",
];

fn provost_in(folder: &Path, variable: Option<&str>, words: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
    command.args(words).current_dir(folder).env_remove("PROVOST_CONFIG");
    command.envs(variable.map(|value| ("PROVOST_CONFIG", value)));
    run(&mut command)
}

/// Every command in the help, with its subcommands.
fn all_commands() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for command in subcommands(&[]) {
        let below = subcommands(&[&command]);
        if below.is_empty() {
            all.insert(command);
        } else {
            all.extend(below.iter().map(|sub| format!("{command} {sub}")));
        }
    }
    all
}

#[test]
fn missing_configuration_stops_every_command() {
    let known = READING.iter().chain(&NOT_READING).copied();
    let names = all_commands();
    let untested: Vec<&String> = names
        .iter()
        .filter(|name| !known.clone().any(|line| format!("{line} ").starts_with(&format!("{name} "))))
        .collect();
    assert!(untested.is_empty() && names.len() >= 30, "{untested:?} of {names:?}");

    let folder = tempfile::tempdir().unwrap();
    for line in READING {
        let words: Vec<&str> = line.split(' ').collect();
        let (first, rest) = words.split_at(1);
        let before = [&["--config", "absent.json"], &words[..]].concat();
        let between = [first, &["-c", "absent.json"], rest].concat();
        let after = [&words[..], &["-c", "absent.json"]].concat();
        for (variable, words) in
            [(None, &before), (None, &between), (None, &after), (Some("absent.json"), &words), (Some(""), &before)]
        {
            let ended = provost_in(folder.path(), variable, words);
            assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{variable:?} {words:?}: {}", ended.stderr);
            assert!(ended.stderr.contains("absent.json: cannot be read"), "{words:?}: {}", ended.stderr);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{line} made something");
    }
}

#[test]
fn config_flag_overrides_variable_and_variable_the_folder() {
    let site = Site::with_ote();
    let config = |domain: &str| {
        let mut config = site.config.clone();
        config["domain"] = domain.into();
        config.to_string()
    };
    for name in ["flag", "variable", "provost"] {
        std::fs::write(site.path(&format!("{name}.json")), config(&format!("{name}.example.com"))).unwrap();
    }
    let print = ["print", "dhcp", "--format", "isc", "--constituency", "ote"];
    let domain = |variable: Option<&str>, more: &[&str]| {
        let ended = provost_in(&site.path("."), variable, &[&print, more].concat());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let start = ended.stdout.split("https://ote.").nth(1).unwrap();
        start.split('.').next().unwrap().to_owned()
    };
    assert_eq!(domain(None, &[]), "provost");
    assert_eq!(domain(Some(""), &[]), "provost");
    assert_eq!(domain(Some("variable.json"), &[]), "variable");
    assert_eq!(domain(Some("variable.json"), &["--config", "flag.json"]), "flag");
    assert_eq!(domain(Some("absent.json"), &["-c", "flag.json"]), "flag");
}

#[test]
fn commands_without_a_configuration_reject_the_option() {
    let site = Site::with_ote();
    site.write_config();
    let folder = site.path(".");
    for (variable, words) in [
        (None, &["demo", "--once", "-c", "provost.json"][..]),
        (Some("provost.json"), &["demo", "--once"]),
        (None, &["-c", "provost.json", "install", "--dry-run"]),
        (None, &["uninstall", "--dry-run", "--config", "provost.json"]),
        (None, &["-c", "provost.json", "ca", "list", "--dir", "ca"]),
        (None, &["ca", "list", "--dir", "ca", "-c", "provost.json"]),
    ] {
        let ended = provost_in(&folder, variable, words);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{words:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("--config"), "{words:?}: {}", ended.stderr);
    }
    let schema = provost_in(&folder, Some("absent.json"), &["-c", "absent.json", "schema", "provost"]);
    assert_eq!(schema.code, 0, "{}", schema.stderr);
    let unit = provost_in(&folder, Some("/etc/provost/other.json"), &["print", "systemd-unit"]);
    assert!(unit.stdout.contains(" serve --config /etc/provost/other.json\n"), "{unit:?}");
}

#[test]
fn every_help_names_the_config_option_and_variable() {
    let folder = tempfile::tempdir().unwrap();
    let names = all_commands();
    for name in &names {
        let words: Vec<&str> = name.split(' ').chain(["--help"]).collect();
        let help = provost_in(folder.path(), None, &words);
        assert!(help.stdout.contains("-c, --config <FILE>") && help.stdout.contains("PROVOST_CONFIG"), "{help:?}");
    }
    assert!(names.len() >= 30, "{names:?}");
}

#[test]
fn no_command_creates_files_in_a_folder_without_a_site() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    // A CA may be created anywhere.
    for line in READING.iter().filter(|line| !line.starts_with("ca ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let ended = provost_in(folder.path(), None, &words);
        let made: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(made.is_empty(), "{line} made {made:?}: {ended:?}");
        count += 1;
    }
    assert_eq!(count, 32);
    let serve = provost_in(folder.path(), None, &["serve"]);
    assert_eq!((serve.code, serve.stdout.as_str()), (2, ""), "{serve:?}");
    let said = "no provost.json and no folder constituencies here";
    assert!(serve.stderr.contains(said) && serve.stderr.contains("--config FILE"), "{serve:?}");
}
