//! `provost --version`: the version, and the commit of a release build from a clone.

use std::path::Path;
use std::process::Command;

use crate::harness::tool::{provost, run};

#[allow(dead_code, reason = "cargo runs its main function")]
#[path = "../../.build/version.rs"]
mod build_script;

fn git(folder: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"];
    let ended = run(Command::new("git").args(identity).args(arguments).current_dir(folder));
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.stdout.trim().to_owned()
}

#[test]
fn version_names_the_commit_of_a_release_build() {
    let commit = if cfg!(debug_assertions) { None } else { build_script::commit(env!("CARGO_MANIFEST_DIR").as_ref()) };
    let version = build_script::with_commit(env!("CARGO_PKG_VERSION"), commit.as_deref());
    assert_eq!(provost(Path::new("/"), &["--version"]).stdout, format!("provost {version}\n"));
    assert_eq!(build_script::with_commit("1.2.3", Some("0123456789")), "1.2.3 (0123456789)");
}

#[test]
fn commit_is_that_of_the_clone_not_of_an_outer_repository() {
    let folder = tempfile::tempdir().unwrap();
    let clone = folder.path();
    assert_eq!(build_script::commit(clone), None, "no repository");
    git(clone, &["init", "--quiet"]);
    assert_eq!(build_script::commit(clone), None, "no commit yet");
    git(clone, &["commit", "--quiet", "--allow-empty", "--message", "first"]);
    let commit = build_script::commit(clone).unwrap();
    assert_eq!(commit.len(), 10);
    assert!(git(clone, &["rev-parse", "HEAD"]).starts_with(&commit));
    let tarball = clone.join("provost-0.2.0");
    std::fs::create_dir(&tarball).unwrap();
    assert_eq!(build_script::commit(&tarball), None, "a tarball unpacked inside another repository");
}

#[test]
fn commit_changes_a_file_that_cargo_watches() {
    let folder = tempfile::tempdir().unwrap();
    let clone = folder.path();
    git(clone, &["init", "--quiet"]);
    git(clone, &["commit", "--quiet", "--allow-empty", "--message", "first"]);
    // In a worktree, the files are in the clone's .git folder.
    let worktree = clone.join("worktree");
    git(clone, &["worktree", "add", "--quiet", worktree.to_str().unwrap()]);
    for folder in [clone, &worktree] {
        let watched = build_script::watched(folder);
        assert_eq!(watched.len(), 3, "HEAD, its log, the branch: {watched:?}");
        let read = || watched.iter().map(|file| std::fs::read(file).unwrap()).collect::<Vec<_>>();
        let before = read();
        git(folder, &["commit", "--quiet", "--allow-empty", "--message", "next"]);
        let changed = read().iter().zip(&before).filter(|(now, before)| now != before).count();
        assert_eq!(changed, 2, "the log and the branch: {watched:?}");
    }
}
