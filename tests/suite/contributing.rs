//! docs/CONTRIBUTING.md names paths and test modules that exist, and tests/run selects and announces what it should.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::harness::pages::{code_spans, page};
use crate::harness::tool::{Ended, run};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PAGE: &str = "docs/CONTRIBUTING.md";

#[test]
fn contributing_names_only_existing_paths() {
    let root = Path::new(ROOT);
    // A module is a file or a folder.
    let exists = |path: &str| root.join(path).exists() || root.join(format!("{path}.rs")).exists();
    let is_path = |word: &&str| {
        let is_plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        word.contains('/') && word.split('/').all(is_plain)
    };
    let spans = code_spans(page(PAGE));
    let named = spans.iter().flat_map(|span| span.split(' ')).filter(is_path);
    // A pattern has its variable part in capitals.
    let (patterns, paths): (Vec<&str>, Vec<&str>) = named.partition(|path| path.contains("NAME"));
    let missing: Vec<&&str> = paths.iter().filter(|path| !exists(path)).collect();
    assert!(missing.is_empty(), "{PAGE} names {missing:?}");
    assert!(paths.len() >= 30, "saw only {}: {paths:?}", paths.len());
    assert_eq!(patterns, ["src/cli/NAME.rs"]);
}

#[test]
fn contributing_names_only_existing_test_modules() {
    let root = Path::new(ROOT);
    let spans = code_spans(page(PAGE));
    let mut seen = 0;
    for span in &spans {
        let after = |words: &str| span.split_once(words).map(|(_, rest)| rest.trim_end_matches(':').replace("::", "/"));
        let module = ["--lib ", "tests/run lib::"].into_iter().find_map(after).map(|module| format!("src/{module}"));
        let suite = ["--test suite ", "tests/run suite::"].into_iter().find_map(after);
        let Some(module) = module.or(suite.map(|module| format!("tests/suite/{module}"))) else { continue };
        let is_there = root.join(format!("{module}.rs")).exists() || root.join(&module).join("mod.rs").exists();
        assert!(is_there, "{span:?} in {PAGE}");
        seen += 1;
    }
    assert!(seen >= 5, "saw only {seen} test modules in {PAGE}: {spans:?}");
}

/// `tests/run` with `arguments`, on a machine that has only the programs of `path`.
fn tests_run(path: &Path, arguments: &[&str]) -> Ended {
    run(Command::new(Path::new(ROOT).join("tests/run")).args(arguments).env("PATH", path))
}

#[test]
fn tests_run_announces_what_it_installs_and_selects_one_suite() {
    let path = tempfile::tempdir().unwrap();
    // The shell and what the announcement itself needs.
    for program in ["bash", "env", "sed", "sort", "mktemp", "rm", "tr", "grep", "basename", "dirname"] {
        let found = run(Command::new("sh").args(["-c", &format!("command -v {program}")])).stdout;
        symlink(found.trim(), path.path().join(program)).unwrap();
    }
    let missing = tests_run(path.path(), &["--dry-run"]);
    assert_eq!((missing.code, missing.stdout.as_str()), (1, "cargo is missing: install Rust from https://rustup.rs\n"));
    symlink(env!("CARGO"), path.path().join("cargo")).unwrap();

    let all = tests_run(path.path(), &["--dry-run"]);
    assert_eq!((all.code, all.stderr.as_str()), (0, ""), "{all:?}");
    let packages = all.stdout.lines().find(|line| line.contains("apt-get install --no-install-recommends: ")).unwrap();
    for package in ["curl", "chromium", "lintian", "zsh", "fish"] {
        assert!(packages.split(' ').any(|word| word == package), "{package} in {packages:?}");
    }
    assert!(all.stdout.contains("/usr/sbin/policy-rc.d"), "{all:?}");
    assert!(all.stdout.ends_with("It then runs: format, clippy, all tests, and the unit tests without OpenSSL.\n"));

    for (argument, selection) in [
        ("suite::uploads", "--test suite uploads::"),
        ("suite::drain::sigterm", "--test suite drain::sigterm"),
        ("suite", "--test suite"),
        ("lib::constituency::mac", "--lib constituency::mac"),
        ("architecture", "--test architecture"),
    ] {
        let one = tests_run(path.path(), &["--dry-run", argument]);
        let command = format!("It then runs: cargo test --locked --release --no-fail-fast {selection}\n");
        assert!(one.code == 0 && one.stdout.ends_with(&command), "{argument}: {one:?}");
    }
    for wrong in [&["suite::"][..], &["uploads"], &["--fast"], &["lib", "suite"]] {
        let refused = tests_run(path.path(), wrong);
        assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{wrong:?}: {refused:?}");
    }
}
