//! A network and a file system of a test, where port 53 is free and `/etc` can be changed. The test runs itself again
//! inside them.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{not_run, tool};

const INSIDE: &str = "PROVOST_TEST_INSIDE";

/// Whether this process runs inside the namespace, which has loopback and these `addresses`. Outside, it runs `test`,
/// given by its full path, inside and asserts that it passed; if no namespace can be made, `test` is reported as NOT
/// RUN.
pub fn is_inside(test: &str, addresses: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == test) {
        return true;
    }
    let mut script = "set -e; ip link set lo up; ".to_owned();
    script.extend(addresses.iter().map(|address| format!("ip addr add {address} dev lo; ")));
    // Root keeps the machine's user IDs; another user has only its own.
    let is_root = rustix::process::geteuid().is_root()
        && Command::new("unshare").args(["-nm", "true"]).output().is_ok_and(|output| output.status.success());
    let flags = if is_root { "-nm" } else { "-rnm" };
    let inside = |program: &Path| {
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", &format!("{script} exec \"$0\" \"$@\"")]).arg(program);
        command
    };
    if inside(Path::new("true")).output().map_or(true, |output| !output.status.success()) {
        not_run(test, "network and mount namespaces are not available (unshare -rnm)");
        return false;
    }
    let again = std::env::current_exe().unwrap();
    let ended = tool::run(inside(&again).args(["--exact", test, "--nocapture"]).env(INSIDE, test));
    let has_passed = ended.code == 0 && ended.stdout.contains("1 passed");
    assert!(has_passed, "inside:\n{}\n{}", ended.stdout, ended.stderr);
    false
}

/// Whether this process runs inside the namespace of any test.
pub fn is_any() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Mounts `source` over the existing `path`; only inside.
pub fn bind_mount(source: &Path, path: &Path) {
    mount(&[Path::new("--bind"), source, path]);
}

/// Mounts an empty folder over the existing `path`; only inside.
pub fn mount_empty(path: &str) {
    mount(&["-t", "tmpfs", "none", path].map(Path::new));
}

/// Mounts a full file system over the existing `path`; only inside.
pub fn mount_full(path: &Path) {
    mount(&["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), "size=4k".as_ref(), "none".as_ref(), path]);
    fs::write(path.join("everything"), [0; 4096]).unwrap();
}

/// Makes the folder `path` read-only until [`writable`]; only inside.
pub fn read_only(path: &Path) {
    bind_mount(path, path);
    mount(&["-o".as_ref(), "remount,bind,ro".as_ref(), path]);
}

/// Undoes [`read_only`].
pub fn writable(path: &Path) {
    mount(&["-o".as_ref(), "remount,bind,rw".as_ref(), path]);
}

/// Whether there is more than one user ID; only inside.
pub fn has_users() -> bool {
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    users.split_whitespace().nth(2).is_some_and(|count| count != "1")
}

/// Keeps all changes below `path` in an overlay in `folder`; only inside.
pub fn mount_overlay(path: &str, folder: &Path) {
    let above = folder.join(path.replace('/', "_"));
    fs::create_dir(&above).unwrap();
    mount(&["-t", "tmpfs", "none", above.to_str().unwrap()].map(Path::new));
    let (upper, work) = (above.join("upper"), above.join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let options = format!("lowerdir={path},upperdir={},workdir={}", upper.display(), work.display());
    mount(&["-t", "overlay", "overlay", "-o", &options, path].map(Path::new));
}

fn mount(arguments: &[&Path]) {
    let ended = tool::run(Command::new("mount").args(arguments));
    assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
}

/// Makes the server at `address` the system's resolver by a file in `folder`; only inside.
pub fn resolve_through(address: &str, folder: &Path) {
    let file = folder.join("resolv.conf");
    fs::write(&file, format!("nameserver {address}\n")).unwrap();
    let system = Path::new("/etc/resolv.conf");
    // `resolv.conf` may be a symlink into a folder that the test has emptied.
    let real = fs::read_link(system).map_or(system.to_owned(), |target| Path::new("/etc").join(target));
    if !real.exists() {
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        fs::write(&real, "").unwrap();
    }
    bind_mount(&file, system);
}
