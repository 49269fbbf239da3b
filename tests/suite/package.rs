//! The Debian package: built, installed by dpkg into a root folder of the test, and removed; and the plain binary.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::pages::{fences, internal_links, pages_in, resolved, section};
use crate::harness::release::Release;
use crate::harness::systemd::value;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{is_here, namespace, not_run};

/// The package; `None`, after NOT RUN, if a program is missing.
fn package(test: &str) -> Option<PathBuf> {
    Release::of(test).map(|release| release.package)
}

#[test]
fn debian_package_is_built_installed_and_removed_by_dpkg() {
    let test = "debian_package_is_built_installed_and_removed_by_dpkg";
    let Some(package) = package(test) else { return };
    let ask = |arguments: &[&str]| run(Command::new("dpkg-deb").args(arguments).arg(&package)).stdout;
    let depends = run(Command::new("dpkg-deb").arg("-f").arg(&package).arg("Depends")).stdout;
    let dependencies: Vec<&str> = depends.trim().split(", ").map(|one| one.split(' ').next().unwrap()).collect();
    assert!(dependencies.iter().all(|one| ["libc6", "libgcc-s1", "systemd"].contains(one)), "{depends}");
    let listed = ask(&["-c"]);
    let files: Vec<(&str, &str)> =
        listed.lines().map(|line| (&line[..10], line.split_whitespace().nth(5).unwrap())).collect();
    for expected in [
        ("-rwxr-xr-x", "./usr/bin/provost"),
        ("-rw-r--r--", "./usr/lib/systemd/system/provost.service"),
        ("-rw-r--r--", "./usr/lib/systemd/system/provost.socket"),
        ("-rw-r--r--", "./usr/lib/sysusers.d/provost.conf"),
        ("-rw-r--r--", "./usr/share/man/man1/provost.1.gz"),
        ("-rw-r--r--", "./usr/share/man/man1/provost-certificate-renew.1.gz"),
        ("-rw-r--r--", "./usr/share/man/man5/constituency.json.5.gz"),
        ("-rw-r--r--", "./usr/share/doc/provost/docs/reference.md"),
        ("-rw-r--r--", "./usr/share/doc/provost/docs/operators-page.png"),
        ("-rw-r--r--", "./usr/share/bash-completion/completions/provost"),
        ("-rw-r--r--", "./usr/share/zsh/vendor-completions/_provost"),
        ("-rw-r--r--", "./usr/share/fish/vendor_completions.d/provost.fish"),
        ("-rw-r--r--", "./usr/share/doc/provost/copyright"),
        ("-rw-r--r--", "./etc/provost/provost.json"),
    ] {
        assert!(files.contains(&expected), "{expected:?} in\n{listed}");
    }
    assert!(!files.iter().any(|(_, path)| path.starts_with("./srv") || path.starts_with("./var")), "{listed}");
    if run(Command::new("id").arg("-u")).stdout.trim() == "0" {
        let folder = tempfile::tempdir().unwrap();
        install_and_remove(&package, folder.path());
    } else {
        not_run(test, "it needs root to install a package");
    }
}

/// Uses dpkg, which runs the package's scripts, with an otherwise empty root folder.
fn install_and_remove(package: &Path, root: &Path) {
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = |arguments: &[&str]| -> Ended {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display())).args(["--force-depends", "--force-script-chrootless"]);
        let ended = run(command.args(arguments));
        assert_eq!(ended.code, 0, "{ended:?}");
        ended
    };
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let installed = dpkg(&["-i", package.to_str().unwrap()]);
    assert!(installed.stdout.contains("user provost: made"), "{installed:?}");
    assert!(installed.stdout.contains("program, units, manual and completions come from the package"), "{installed:?}");
    assert!(read("etc/passwd").contains("provost:"), "{installed:?}");
    let start = "/usr/bin/provost serve --config /etc/provost/provost.json";
    assert_eq!(value(&read("usr/lib/systemd/system/provost.service"), "ExecStart"), start);
    assert!(!root.join("usr/local").exists() && !root.join("etc/systemd").exists());
    assert!(read("var/lib/dpkg/info/provost.conffiles").contains("/etc/provost/provost.json"));

    // An upgrade keeps the operator's configuration.
    fs::write(root.join("etc/provost/provost.json"), "mine").unwrap();
    fs::write(root.join("srv/provost/constituencies/site.cfg"), "a phone's").unwrap();
    dpkg(&["-i", package.to_str().unwrap()]);
    assert_eq!(read("etc/provost/provost.json"), "mine");
    let refused = provost(Path::new("/"), &["uninstall", "--root", root.to_str().unwrap()]);
    assert!(refused.code == 2 && refused.stderr.contains("apt remove provost"), "{refused:?}");

    dpkg(&["-r", "provost"]);
    assert!(!root.join("usr/bin/provost").exists());
    assert_eq!(read("etc/provost/provost.json"), "mine");
    let purged = dpkg(&["-P", "provost"]);
    assert!(purged.stdout.contains("kept: /var/lib/provost, /srv/provost"), "{purged:?}");
    assert_eq!(read("srv/provost/constituencies/site.cfg"), "a phone's");
    assert!(root.join("var/lib/provost").exists());
}

#[test]
fn package_is_installed_as_the_readme_says() {
    let test = "package::package_is_installed_as_the_readme_says";
    let Some(release) = Release::of(test) else { return };
    if !namespace::is_inside(test, &[]) {
        return;
    }
    if !namespace::has_users() {
        return not_run(test, "it needs root to install a package");
    }
    let folder = tempfile::tempdir().unwrap();
    ["/run", "/srv"].into_iter().for_each(namespace::mount_empty);
    for covered in ["/etc", "/usr", "/var"] {
        namespace::mount_overlay(covered, folder.path());
    }
    let [("sh", commands), ..] = fences(section("README.md", "## Install"))[..] else { panic!("blocks") };
    let install = commands.strip_prefix(".build/packages\n").expect("the first command makes the package");
    fs::create_dir(folder.path().join("target")).unwrap();
    symlink(&release.folder, folder.path().join("target/dist")).unwrap();
    let installed = run(Command::new("sh").args(["-ec", install]).current_dir(folder.path()));
    assert_eq!(installed.code, 0, "{installed:?}");
    assert!(installed.stdout.contains("user provost: made"), "{installed:?}");
    let of_package = run(Command::new("/usr/bin/provost").arg("--version"));
    assert_eq!(of_package.stdout, provost(Path::new("/"), &["--version"]).stdout);
    let owner = run(Command::new("dpkg").args(["--search", "/usr/lib/systemd/system/provost.service"]));
    assert!(owner.stdout.starts_with("provost: "), "{owner:?}");
}

#[test]
fn links_of_the_packaged_manual_resolve_in_the_package() {
    let Some(package) = package("links_of_the_packaged_manual_resolve_in_the_package") else { return };
    let folder = tempfile::tempdir().unwrap();
    let unpacked = run(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder.path()));
    assert_eq!(unpacked.code, 0, "{unpacked:?}");
    let manual = folder.path().join("usr/share/doc/provost");
    let (mut links, mut images) = (0, 0);
    for (name, text) in pages_in(&manual) {
        for (path, _) in internal_links(&text) {
            let target = resolved(&name, &path);
            assert!(manual.join(&target).is_file(), "{name} links to {target}, which the package lacks");
            links += 1;
            images += usize::from(Path::new(&target).extension() == Some("png".as_ref()));
        }
    }
    assert!(links >= 75 && images == 1, "saw {links} links, {images} to images");
}

#[test]
fn lintian_finds_no_error_in_the_package() {
    let test = "lintian_finds_no_error_in_the_package";
    if !is_here(test, "lintian") {
        return;
    }
    let Some(package) = package(test) else { return };
    let judged = run(Command::new("lintian").args(["--allow-root", "--fail-on", "none"]).arg(package));
    assert_eq!(judged.code, 0, "{judged:?}");
    // There is no Debian changelog, and backtraces need function names.
    let known = ["no-changelog", "unstripped-binary-or-object"];
    let errors = judged.stdout.lines().filter(|line| line.starts_with("E: "));
    let errors: Vec<&str> = errors.filter(|line| !known.iter().any(|known| line.contains(known))).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn binary_links_only_glibc_and_libgcc() {
    let needed = run(Command::new("readelf").args(["-d", env!("CARGO_BIN_EXE_provost")])).stdout;
    let libraries: Vec<&str> =
        needed.lines().filter_map(|line| line.split_once("Shared library: [")?.1.strip_suffix(']')).collect();
    assert!(libraries.contains(&"libc.so.6"), "{needed}");
    // The last unwinds the stack on a panic; it needs only the others.
    let known = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"];
    let is_known = |library: &&str| known.contains(library) || library.starts_with("ld-linux");
    assert!(libraries.iter().all(is_known), "{libraries:?}");
}
