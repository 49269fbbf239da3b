//! A machine booted by systemd: the installed service is enabled, serves under all restrictions of the unit, and
//! restarts without a refused connection.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::certbot::Certbot;
use crate::harness::pages::{fences, section};
use crate::harness::tool::{provost, run};
use crate::harness::{is_here, not_run};

/// The folders of this machine that the other one has, too.
const PROGRAMS: [&str; 5] = ["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/share"];

/// The commands that run on it. Each line of their output is checked.
const DONE: &str = r#"exec >/etc/done 2>&1
get() { curl -sk --max-time 60 --resolve home.phones.example.com:443:127.0.0.1 https://home.phones.example.com/site.cfg; }
provost check --config /etc/provost/provost.json
sh -e /etc/hook.sh
provost check --config /etc/provost/provost.json && echo "certbot's copies are read"
systemctl enable --now provost.socket provost.service
get
systemctl reload provost.service && echo reloaded
(for visit in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do get || echo "failed $?"; done) > /etc/visits &
systemctl restart provost.service
systemctl restart provost.service
wait
echo "visits: $(grep -c '<site/>' /etc/visits)"
# As curl numbers its errors.
echo "refused: $(grep -c 'failed 7$' /etc/visits)"
systemctl show provost.service -p User -p ActiveState -p NRestarts -p StatusText
journalctl --no-pager -o cat CONSTITUENCY=home
provost uninstall | grep 'removed$' | head -2
systemctl is-active provost.service provost.socket
"#;

/// A machine with only systemd, this machine's programs, and an installed provost.
fn machine(root: &Path) {
    for folder in
        PROGRAMS.iter().chain(&["/etc/systemd/system", "/var/lib", "/run", "/tmp", "/root", "/proc", "/sys", "/dev"])
    {
        fs::create_dir_all(root.join(&folder[1..])).unwrap();
    }
    for folder in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{folder}"), root.join(folder)).unwrap();
    }
    for (file, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("os-release", "ID=test\n"),
        ("do.sh", DONE),
        (
            "systemd/system/test.service",
            "[Unit]\nDefaultDependencies=no\nWants=systemd-journald.socket\nAfter=systemd-journald.socket\n\
             SuccessAction=exit\nFailureAction=exit\n[Service]\nType=oneshot\nExecStart=/bin/sh /etc/do.sh\n",
        ),
    ] {
        fs::write(root.join("etc").join(file), text).unwrap();
    }
    let installed = provost(Path::new("/"), &["install", "--root", root.to_str().unwrap()]);
    assert_eq!((installed.code, installed.stderr.as_str()), (0, ""));
    // With certbot's files, as in the manual.
    let [("json", config), ("sh", hook)] = fences(section("docs/operating.md", "## Certbot's files"))[..] else {
        panic!("blocks")
    };
    let config = config.replace("ucs-5-9", "home");
    fs::write(root.join("etc/provost/provost.json"), config).unwrap();
    fs::write(root.join("etc/hook.sh"), hook).unwrap();
    let certbot = Certbot::below(root);
    for lineage in ["phones", "phones-ec"] {
        drop(certbot.renew(lineage, 1));
    }
    let home = root.join("srv/provost/constituencies/home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("constituency.json"), "{ \"client_auth\": \"none\" }").unwrap();
    fs::write(home.join("site.cfg"), "<site/>\n").unwrap();
}

#[test]
fn booted_systemd_starts_reloads_and_restarts_the_service() {
    let test = "booted_systemd_starts_reloads_and_restarts_the_service";
    if !rustix::process::geteuid().is_root() {
        return not_run(test, "it needs root to boot a machine");
    }
    if !is_here(test, "systemd-nspawn") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("machine");
    machine(&root);
    // None of it is visible outside.
    let script = "mount -t tmpfs none /run && exec timeout 100 systemd-nspawn \"$@\"";
    let mut boot = Command::new("unshare");
    boot.args(["-m", "sh", "-c", script, "sh", "--quiet", "--register=no", "--keep-unit", "--private-network", "-D"]);
    boot.arg(&root).args(PROGRAMS.map(|programs| format!("--bind-ro={programs}")));
    let booted = run(boot.args(["--boot", "systemd.unit=test.service"]).stdin(Stdio::null()));
    let Ok(done) = fs::read_to_string(root.join("etc/done")) else {
        return not_run(
            test,
            &format!("no machine can be booted here: {}", booted.stderr.lines().next().unwrap_or("")),
        );
    };
    let lines: Vec<&str> = done.lines().filter(|line| !line.starts_with("Created symlink")).collect();
    let is_there = |wanted: &str| lines.iter().any(|line| line.starts_with(wanted));
    let unread = "error: /etc/provost/certificates/phones-fullchain.pem: ";
    assert!(lines[0].starts_with("error: "), "{done}");
    let served = lines.iter().position(|line| *line == "<site/>").unwrap_or_else(|| panic!("{done}"));
    let copied = lines.iter().position(|line| *line == "certbot's copies are read").unwrap_or_else(|| panic!("{done}"));
    assert!(copied < served && !lines[copied..].iter().any(|line| line.starts_with(unread)), "{done}");
    for wanted in [
        "reloaded",
        "refused: 0",
        "User=provost",
        "ActiveState=active",
        "NRestarts=0",
        "StatusText=1 constituency; the certificate ends in ",
        "home is served",
        "/etc/systemd/system/provost.service: removed",
    ] {
        assert!(is_there(wanted), "{wanted} in\n{done}");
    }
    let visits: u32 = lines.iter().find_map(|line| line.strip_prefix("visits: ")).unwrap().parse().unwrap();
    // A handshake in progress at a stop is aborted: at most one in each of two restarts.
    assert!((18..=20).contains(&visits), "{done}");
    assert_eq!(lines[lines.len() - 2..], ["inactive", "inactive"], "{done}");
}
