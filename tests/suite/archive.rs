//! The binary archive: it starts where there is nothing but the glibc that its name says, and libgcc.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::pages::{fences, section};
use crate::harness::pki::FACTORY;
use crate::harness::release::{Release, copy_into, libraries};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::{provost, run};
use crate::harness::{VVX500, namespace, not_run};

/// Whether the test may change its root folder; if not, it is reported as NOT RUN.
fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        not_run(test, "it needs root for chroot");
    }
    is_root
}

/// Numbers of a version, such as `2.34`.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map(|number| number.parse().unwrap()).collect()
}

#[test]
fn archive_serves_a_phone_in_a_root_with_only_glibc_and_libgcc() {
    let test = "archive_serves_a_phone_in_a_root_with_only_glibc_and_libgcc";
    let Some(release) = Release::of(test) else { return };
    if !is_root(test) {
        return;
    }
    let site = Site::with_ote();
    site.write_config();
    let root = site.path(".");
    let unpacked = release.unpack(&root);
    let libraries = libraries(&unpacked.join("provost"));
    let of_glibc = ["ld-linux", "libc.so.6", "libgcc_s.so.1", "libm.so.6"];
    assert_eq!(libraries.len(), of_glibc.len(), "{libraries:?}");
    for library in &libraries {
        let name = library.file_name().unwrap().to_str().unwrap();
        assert!(of_glibc.iter().any(|known| name.starts_with(known)), "{name}");
    }
    copy_into(&root, &libraries);
    let program = format!("/{}/provost", release.name());
    let inside = |arguments: &[&str]| {
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(&root).arg(&program).args(arguments).env_clear();
        command
    };
    assert_eq!(run(&mut inside(&["--version"])).stdout, provost(Path::new("/"), &["--version"]).stdout);
    let server = Running::start(inside(&["serve", "--config", "/provost.json"]), 1);
    let phone = Client::new(server.address(), Some(&format!("ote.{DOMAIN}"))).with_identity(&FACTORY.device(VVX500));
    assert_eq!(phone.get("/site.cfg").unwrap().text(), "<site/>");

    // The name of the archive: the newest version that the loader asks for.
    let loaded = run(inside(&["--version"]).env("LD_DEBUG", "versions"));
    let by_program = format!("required by file {program} ");
    let lines = loaded.stderr.lines().filter(|line| line.contains(&by_program));
    let versions = lines.filter_map(|line| line.split_once("`GLIBC_")?.1.split_once('\''));
    let versions: Vec<&str> = versions.map(|found| found.0).collect();
    let newest = versions.iter().max_by_key(|version| numbers(version)).unwrap();
    assert!(versions.len() >= 10, "{versions:?}");
    assert!(release.name().ends_with(&format!("-linux-glibc{newest}")), "{} needs {newest}", release.name());
}

#[test]
fn archive_is_installed_as_the_readme_says() {
    let test = "archive::archive_is_installed_as_the_readme_says";
    let Some(release) = Release::of(test) else { return };
    if !namespace::is_inside(test, &[]) {
        return;
    }
    if !namespace::has_users() {
        return not_run(test, "it needs root to create a user");
    }
    let folder = tempfile::tempdir().unwrap();
    ["/run", "/srv", "/var/lib"].into_iter().for_each(namespace::mount_empty);
    for covered in ["/etc", "/usr/local"] {
        namespace::mount_overlay(covered, folder.path());
    }
    let downloads = folder.path().join("downloads");
    fs::create_dir(&downloads).unwrap();
    for file in [&release.archive, &release.folder.join("SHA256SUMS")] {
        fs::copy(file, downloads.join(file.file_name().unwrap())).unwrap();
    }
    let [_, ("sh", commands)] = fences(section("README.md", "## Install"))[..] else { panic!("blocks") };
    let as_written = || run(Command::new("sh").args(["-ec", commands]).current_dir(&downloads));
    let installed = as_written();
    assert_eq!(installed.code, 0, "{installed:?}");
    assert!(installed.stdout.starts_with(&format!("{}.tar.gz: OK\n", release.name())), "{installed:?}");
    assert!(installed.stdout.contains("/usr/local/bin/provost: made\n"), "{installed:?}");
    let version = run(Command::new("/usr/local/bin/provost").arg("--version"));
    assert_eq!(version.stdout, provost(Path::new("/"), &["--version"]).stdout);
    // What the archive has for other places is what `install` writes.
    for (of_archive, written) in [
        ("man/man1/provost.1", "share/man/man1/provost.1"),
        ("man/man5/constituency.json.5", "share/man/man5/constituency.json.5"),
        ("completions/provost", "share/bash-completion/completions/provost"),
        ("completions/_provost", "share/zsh/site-functions/_provost"),
        ("completions/provost.fish", "share/fish/vendor_completions.d/provost.fish"),
    ] {
        let of_archive = fs::read(downloads.join(release.name()).join(of_archive)).unwrap();
        assert!(of_archive == fs::read(Path::new("/usr/local").join(written)).unwrap(), "{written}");
    }
    // A download that is cut short is noticed.
    let archive = downloads.join(format!("{}.tar.gz", release.name()));
    fs::File::options().write(true).open(&archive).unwrap().set_len(1000).unwrap();
    let damaged = as_written();
    assert!(damaged.code != 0 && damaged.stdout.contains(".tar.gz: FAILED"), "{damaged:?}");
}

#[test]
fn release_made_twice_has_the_same_bytes() {
    let test = "release_made_twice_has_the_same_bytes";
    let Some(release) = Release::of(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("again");
    let made = Release::make(&again, "umask 077; export TZ=Asia/Tokyo LC_ALL=C");
    assert_eq!(made.code, 0, "{made:?}");
    let sums = |folder: &Path| fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    assert_eq!(sums(&again), sums(&release.folder));
    assert_eq!(made.stdout, sums(&again));
    let version = env!("CARGO_PKG_VERSION");
    let names: Vec<&str> = made.stdout.lines().map(|line| line.split_once("  ").unwrap().1).collect();
    let [package, archive] = names[..] else { panic!("{names:?}") };
    assert!(package.starts_with(&format!("provost_{version}-1_")), "{package}");
    assert!(archive.starts_with(&format!("provost-{version}-")), "{archive}");
    for file in Release::in_folder(&again).files() {
        let listed = match file.extension().unwrap().to_str() {
            Some("deb") => run(Command::new("dpkg-deb").arg("-c").arg(&file)).stdout,
            _ => run(Command::new("tar").arg("-tvzf").arg(&file)).stdout,
        };
        // Files of root, which every user may read.
        let lines: Vec<&str> = listed.lines().collect();
        assert!(lines.len() >= 60, "{listed}");
        for line in lines {
            let (mode, owner) = line.split_once(' ').unwrap();
            assert!(["-rw-r--r--", "-rwxr-xr-x", "drwxr-xr-x"].contains(&mode), "{line}");
            assert!(owner.starts_with("0/0 ") || owner.starts_with("root/root "), "{line}");
        }
    }
}

#[test]
fn release_script_reports_wrong_arguments() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".build/packages");
    for (arguments, code, reported) in [
        (&["--program", "/absent/provost"][..], 1, "/absent/provost: No such file or directory\n"),
        (&["--program"], 1, "--program: name a file\n"),
        (&["--output"], 1, "--output: name a folder\n"),
        (&["--slow"], 2, "unknown argument: --slow\nMakes the files of a release"),
    ] {
        let ended = run(Command::new(&script).args(arguments));
        assert!(ended.code == code && ended.stderr.contains(reported), "{arguments:?}: {ended:?}");
        assert_eq!(ended.stdout, "");
    }
}
