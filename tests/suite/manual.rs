//! Completions and man pages, with real shells and man.

use std::path::Path;
use std::process::Command;

use crate::harness::is_here;
use crate::harness::tool::{provost, run};

fn printed(args: &[&str]) -> String {
    let ended = provost(Path::new("/"), &[&["print"], args].concat());
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}");
    ended.stdout
}

#[test]
fn bash_completion_suggests_commands_and_options() {
    let script = format!(
        "{}\ncomplete -p provost
         complete_it() {{ COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _provost provost \"${{@: -1}}\"; echo \"${{COMPREPLY[*]}}\"; }}
         complete_it provost cert; complete_it provost certificate re; complete_it provost serve --log",
        printed(&["completions", "bash"])
    );
    let ended = run(Command::new("bash").args(["--norc", "-c", &script]));
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].ends_with(" -F _provost provost"), "{ended:?}");
    assert_eq!(lines[1..], ["certificate", "renew rehearse revoke", "--log"], "{ended:?}");
}

#[test]
fn zsh_and_fish_completions_load() {
    if !["zsh", "fish"].into_iter().all(|shell| is_here("zsh_and_fish_completions_load", shell)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("_provost"), printed(&["completions", "zsh"])).unwrap();
    let load =
        "fpath=($PWD $fpath); autoload -Uz compinit; compinit -D -u; echo $_comps[provost]; autoload +X _provost";
    let zsh = run(Command::new("zsh").args(["-f", "-c", load]).current_dir(folder.path()));
    assert_eq!((zsh.code, zsh.stdout.as_str(), zsh.stderr.as_str()), (0, "_provost\n", ""));

    let ask = format!("{}\ncomplete --do-complete 'provost cert'", printed(&["completions", "fish"]));
    let fish = run(Command::new("fish").args(["--no-config", "-c", &ask]).env("HOME", folder.path()));
    assert!(fish.stdout.lines().any(|line| line.starts_with("certificate\t")), "{fish:?}");
}

/// The text of a page as man renders it without a warning.
fn shown(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.1");
    std::fs::write(&file, text).unwrap();
    let mut man = Command::new("man");
    man.args(["--warnings", "--local-file"]).arg(&file).env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8");
    let shown = run(&mut man);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""), "{text}");
    shown.stdout
}

#[test]
fn man_page_of_each_configuration_file_lists_all_keys() {
    if !is_here("man_page_of_each_configuration_file_lists_all_keys", "man") {
        return;
    }
    for (file, least) in [("provost", 12), ("constituency", 13)] {
        let page = shown(&printed(&["man", &format!("{file}.json")]));
        assert!(page.contains(&format!("{file}.json(5)")) && page.contains("\nNAME\n"), "{page}");
        let schema = provost(Path::new("/"), &["schema", file]).stdout;
        let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
        let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        assert!(keys.len() >= least, "{keys:?}");
        for key in keys {
            assert!(page.lines().any(|line| line.starts_with(&format!("       {key} ("))), "{key} in {page}");
        }
    }
}

#[test]
fn man_page_of_every_command_has_no_warning() {
    if !is_here("man_page_of_every_command_has_no_warning", "man") {
        return;
    }
    let commands = crate::commands::subcommands(&[]);
    let deeper = commands
        .iter()
        .flat_map(|command| crate::commands::subcommands(&[command]).into_iter().map(|sub| vec![command.clone(), sub]));
    let pages: Vec<Vec<String>> =
        commands.iter().map(|command| vec![command.clone()]).chain(deeper).chain([vec![]]).collect();
    assert!(pages.len() >= 30, "{pages:?}");
    for command in pages {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let text = printed(&[&["man"], &words[..]].concat());
        let shown = shown(&text);
        let title = [&["provost"], &words[..]].concat().join("-");
        assert!(shown.contains(&format!("{title}(1)")), "{shown}");
        assert!(shown.contains("SYNOPSIS"), "{shown}");
        for heading in ["\nFILES\n", "\nENVIRONMENT\n", "\nEXIT STATUS\n", " PROVOST_LOG\n"] {
            assert_eq!(shown.contains(heading), words.is_empty(), "{words:?}: {heading}\n{shown}");
        }
        if words.is_empty() {
            assert!(shown.contains(" /srv/provost/constituencies\n"), "{shown}");
        }
    }
    assert_eq!(provost(Path::new("/"), &["print", "man", "frobnicate"]).code, 2);
}
