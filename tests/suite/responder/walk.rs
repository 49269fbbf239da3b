//! The walk of the manual: a bare machine and any registrar, two DNS records, and phones are served in public.

use std::path::Path;
use std::process::Command;

use super::chain::{Above, is_inside};
use crate::harness::pages::{code_spans, fences, section};
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::site::Running;
use crate::harness::systemd::value;
use crate::harness::tool::{Ended, run};
use crate::harness::{eventually, namespace, not_run};

/// The shell commands that the walk takes.
const COMMANDS: usize = 4;

/// A command that finds `provost`.
fn command(program: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_provost")).parent().unwrap();
    let path = format!("{}:{}:/usr/sbin:/sbin", binary.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

fn sh(script: &str) -> Ended {
    let folder = Some(Path::new("/etc/provost")).filter(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let ended = run(command("sh").args(["-e", "-c", script]).current_dir(folder));
    assert_eq!(ended.code, 0, "{script}\n{ended:?}");
    ended
}

#[test]
fn a_bare_machine_goes_public_with_two_dns_records() {
    let test = "responder::walk::a_bare_machine_goes_public_with_two_dns_records";
    if !is_inside(test) {
        return;
    }
    if !namespace::has_users() {
        return not_run(test, "only root can make a user");
    }
    let folder = tempfile::tempdir().unwrap();
    let steps = fences(section("docs/going-public.md", "## With two DNS records"));
    let [("sh", install), ("json", site), ("text", records), ("sh", start)] = steps[..] else { panic!("{steps:?}") };
    assert_eq!((records.lines().count(), install.lines().count() + start.lines().count()), (2, COMMANDS));

    let above = Above::start(records);
    ["/run", "/srv", "/var/lib"].into_iter().for_each(namespace::mount_empty);
    for covered in ["/etc", "/usr/local"] {
        namespace::mount_overlay(covered, folder.path());
    }
    namespace::resolve_through("127.0.0.1", folder.path());
    let pebble = Pebble::start(Behavior::default(), above.resolver.address);
    sh(install);
    std::fs::copy(pebble.root_file(), "/etc/provost/pebble.pem").unwrap();
    // The public CA is played by Pebble.
    let ca = format!("\"acme\": {{ \"directory\": \"{}\", \"directory_root\": \"pebble.pem\",", pebble.directory());
    assert_eq!(site.matches("\"acme\": {").count(), 1);
    std::fs::write("/etc/provost/provost.json", site.replace("\"acme\": {", &ca)).unwrap();
    assert_eq!(start, "systemctl enable --now provost.socket provost.service\n");
    // systemd does not run here: what its unit says is started as it says.
    let unit = std::fs::read_to_string("/etc/systemd/system/provost.service").unwrap();
    let mut serve = command("setpriv");
    serve.args(["--reuid", value(&unit, "User"), "--regid", value(&unit, "Group"), "--clear-groups", "--no-new-privs"]);
    serve.args(["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}=-all,+net_bind_service")));
    serve.args(value(&unit, "ExecStart").split(' ')).current_dir("/");
    let server = Running::start(serve, 2);
    let issued = folder.path().join("issued.pem");
    std::fs::write(&issued, pebble.issuing_root(0)).unwrap();
    let name = "home.phones.example.com";
    eventually("the wildcard", || {
        let arguments = ["s_client", "-connect", &format!("{name}:443"), "-verify_hostname", name, "-CAfile"];
        let seen = run(command("openssl").args(arguments).arg(&issued)).stdout;
        seen.contains("Verify return code: 0 (ok)").then_some(())
    });
    server.says("a new certificate is in use");
    let checked = sh("runuser -u provost -- provost check --live").stdout;
    assert!(checked.contains("is delegated to this server"), "{checked}");
    assert!(checked.contains("1 constituency can be served; 0 errors, 0 warnings"), "{checked}");
    let printed = sh("provost print dns-records").stdout;
    boots_a_virtual_phone(&server, &issued);
    let printed: Vec<&str> = printed.lines().filter(|line| !line.starts_with(';')).collect();
    let full = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        format!("{}.example.com. {} {}", words[0], words[1], words[2])
    };
    assert_eq!(printed[..2], records.lines().map(full).collect::<Vec<_>>());
}

/// The manual's virtual phone boots against the public server. `issued` has the root of its certificate.
fn boots_a_virtual_phone(server: &Running, issued: &Path) {
    let section = section("docs/going-public.md", "## Boot a virtual phone");
    let [("sh", make), ("sh", apply), ("sh", boot)] = fences(section)[..] else { panic!("{section}") };
    let printed = sh(&make.replace("/root/", "/srv/")).stdout;
    let trust = code_spans(section).into_iter().find(|code| code.starts_with("\"trust\"")).unwrap();
    assert!(printed.contains(&format!("add to provost.json:        {trust}")), "{printed}");
    let file = "/etc/provost/provost.json";
    let site = std::fs::read_to_string(file).unwrap();
    assert_eq!(site.matches("\"status\": {").count(), 1);
    std::fs::write(file, site.replace("\"status\": {", &format!("{trust}, \"status\": {{"))).unwrap();
    let (check, reload) = apply.trim_end().split_once('\n').unwrap();
    assert!(sh(check).stdout.contains("2 constituencies can be served; 0 errors"));
    assert_eq!(reload, "systemctl reload provost");
    server.signal(rustix::process::Signal::HUP);
    // The system's CAs do not include Pebble's.
    let boot = format!("cd /srv && {} --ca {}", boot.trim_end(), issued.display());
    let booted = eventually("the new trust bundle", || {
        let ended = run(command("sh").args(["-e", "-c", &boot]));
        (ended.code == 0).then_some(ended)
    });
    assert!(booted.stdout.contains("provisioned"), "{booted:?}");
    let listed = sh("provost phones --constituency test").stdout;
    assert!(listed.contains("00005e0053ff") && listed.contains("a virtual phone"), "{listed}");
}
