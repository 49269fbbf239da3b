//! Adds the commit to the version that `provost --version` prints.
//!
//! A release build from a clone has a commit. A build from a tarball has none. Nor has a debug build: each commit would
//! rebuild the whole crate.
#![allow(clippy::print_stdout, reason = "cargo reads a build script's output")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=.build/version.rs");
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let folder = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let commit = if is_release { commit(&folder) } else { None };
    for file in commit.iter().flat_map(|_| watched(&folder)) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    println!("cargo::rustc-env=PROVOST_VERSION={}", with_commit(&version, commit.as_deref()));
}

pub(crate) fn with_commit(version: &str, commit: Option<&str>) -> String {
    commit.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"))
}

/// The short name of the commit that is checked out in `folder`, if `folder` is the top of a repository. A tarball that is
/// unpacked inside another repository has none.
pub(crate) fn commit(folder: &Path) -> Option<String> {
    let top = PathBuf::from(git(folder, &["rev-parse", "--show-toplevel"])?);
    let is_top = top.canonicalize().ok()? == folder.canonicalize().ok()?;
    if is_top { git(folder, &["rev-parse", "--short=10", "HEAD"]) } else { None }
}

/// The files that change with the commit. Cargo runs the script each time if one does not exist, so those are left out.
pub(crate) fn watched(folder: &Path) -> Vec<PathBuf> {
    // The log has each commit, and the branch's file has it where no log is kept.
    let branch = git(folder, &["rev-parse", "--symbolic-full-name", "HEAD"]);
    let names = ["HEAD", "logs/HEAD"].map(str::to_owned).into_iter().chain(branch);
    let paths = names.filter_map(|name| git(folder, &["rev-parse", "--git-path", &name]));
    paths.map(|path| folder.join(path)).filter(|path| path.exists()).collect()
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    // In a hook these name the repository that runs it.
    git.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").env_remove("GIT_INDEX_FILE");
    let output = git.args(arguments).current_dir(folder).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
