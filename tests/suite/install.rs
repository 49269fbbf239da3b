//! Installing and uninstalling, repeatedly, in a root folder of the test with files changed by an operator.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::pki::{FACTORY, server_certificate};
use crate::harness::site::{DOMAIN, Running};
use crate::harness::systemd::value;
use crate::harness::tls::Client;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::{VVX500, not_run};

const CONFIG: &str = "etc/provost/provost.json";
const SERVICE: &str = "etc/systemd/system/provost.service";
const SOCKET: &str = "etc/systemd/system/provost.socket";

/// A root folder, removed with the test.
struct Root(tempfile::TempDir);

impl Root {
    /// A root folder where the test may create users and change owners; `None`, after NOT RUN, without root.
    fn of(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            not_run(test, "it needs root to create a user");
            return None;
        }
        let root = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(root.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Some(root)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Ended {
        let root = self.0.path().display().to_string();
        provost(Path::new("/"), &[&[command, "--root", &root], arguments].concat())
    }

    #[track_caller]
    fn install(&self, arguments: &[&str]) -> String {
        let ended = self.run("install", arguments);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
        ended.stdout
    }

    /// Every path with its mode, owner and content.
    fn all(&self) -> BTreeMap<PathBuf, (u32, u32, u32, Vec<u8>)> {
        let mut all = BTreeMap::new();
        let mut waiting = vec![self.0.path().to_owned()];
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let found = entry.metadata().unwrap();
                let content = if found.is_dir() { Vec::new() } else { fs::read(entry.path()).unwrap() };
                all.insert(entry.path(), (found.mode(), found.uid(), found.gid(), content));
                if found.is_dir() {
                    waiting.push(entry.path());
                }
            }
        }
        all
    }

    /// The user ID and the group ID of the service.
    fn service(&self) -> (u32, u32) {
        let users = self.read("etc/passwd");
        let user: Vec<&str> = users.lines().find(|line| line.starts_with("provost:")).unwrap().split(':').collect();
        assert_eq!(&user[4..], ["Polycom phone provisioning", "/var/lib/provost", "/usr/sbin/nologin"]);
        (user[2].parse().unwrap(), user[3].parse().unwrap())
    }
}

/// The lines with the outcome `outcome`.
fn lines_with<'a>(text: &'a str, outcome: &str) -> Vec<&'a str> {
    let lines = text.split("\n\n").next().unwrap().lines();
    lines
        .filter_map(|line| line.split_once(": ").filter(|(_, said)| said.starts_with(outcome)).map(|it| it.0))
        .collect()
}

#[test]
fn missing_root_folder_is_not_created_except_for_packages() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("typo");
    for command in ["install", "uninstall"] {
        let ended = provost(folder.path(), &[command, "--root", root.to_str().unwrap()]);
        assert!(
            ended.code == 2 && ended.stderr.contains(&format!("folder {} not found; ", root.display())),
            "{ended:?}"
        );
    }
    assert!(!root.exists());
    let ended = provost(folder.path(), &["install", "--package", "--root", root.to_str().unwrap()]);
    assert_eq!((ended.code, root.join("usr").is_dir()), (0, true), "{ended:?}");
}

#[test]
fn install_creates_everything_once_with_owner_and_mode() {
    let Some(root) = Root::of("install_creates_everything_once_with_owner_and_mode") else { return };
    let dry = root.install(&["--dry-run"]);
    assert!(root.all().is_empty(), "{:?}", root.all().keys());
    let said = root.install(&[]);
    assert_eq!(lines_with(&dry, "would be made"), lines_with(&said, "made"));
    let (user, group) = root.service();
    assert!(user != 0 && group != 0);
    for (path, expected) in [
        ("etc/provost", (0o40_755, 0, 0)),
        (CONFIG, (0o100_644, 0, 0)),
        ("srv", (0o40_755, 0, 0)),
        ("srv/provost", (0o40_750, 0, group)),
        ("srv/provost/constituencies", (0o42_750, 0, group)),
        ("var/lib/provost", (0o40_700, user, group)),
        ("usr/local/bin/provost", (0o100_755, 0, 0)),
        (SERVICE, (0o100_644, 0, 0)),
        (SOCKET, (0o100_644, 0, 0)),
        ("usr/local/share/man/man1/provost-serve.1", (0o100_644, 0, 0)),
        ("usr/local/share/man/man5/provost.json.5", (0o100_644, 0, 0)),
        ("usr/local/share/bash-completion/completions/provost", (0o100_644, 0, 0)),
    ] {
        let found = fs::metadata(root.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!((found.mode(), found.uid(), found.gid()), expected, "{path}");
    }
    let start = "/usr/local/bin/provost serve --config /etc/provost/provost.json";
    assert_eq!(value(&root.read(SERVICE), "ExecStart"), start);
    assert!(said.contains("What comes next:") && said.contains("systemctl enable --now provost.socket"), "{said}");

    let before = root.all();
    let again = root.install(&[]);
    assert_eq!(lines_with(&again, "as it is"), lines_with(&said, "made"), "{again}");
    assert!(root.all() == before, "the second time changes nothing");
}

#[test]
fn install_keeps_edited_files_and_renews_the_others() {
    let Some(root) = Root::of("install_keeps_edited_files_and_renews_the_others") else { return };
    let key = root.at("made.key");
    let tsig = "key \"provost.\" {\n\talgorithm hmac-sha256;\n\tsecret \"c2VjcmV0\";\n};\n";
    fs::write(&key, tsig).unwrap();
    let said = root.install(&["--tsig-key", key.to_str().unwrap()]);
    let placed = fs::metadata(root.at("etc/provost/tsig.key")).unwrap();
    assert_eq!((placed.mode(), placed.uid(), placed.gid()), (0o100_640, 0, root.service().1));
    assert!(!said.contains("c2VjcmV0"), "{said}");

    let config = root
        .read(CONFIG)
        .replace("false", "true")
        .replace("\"status\"", "\"listen\": [\"192.0.2.7:443\"],\n  \"status\"");
    fs::write(root.at(CONFIG), &config).unwrap();
    let mine = root.read(SERVICE).replace("WatchdogSec=1min", "WatchdogSec=5min");
    fs::write(root.at(SERVICE), &mine).unwrap();
    fs::set_permissions(root.at("srv/provost"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.at("usr/local/bin/provost"), "an older one").unwrap();
    fs::write(&key, tsig.replace("c2Vj", "YW5v")).unwrap();
    let said = root.install(&["--tsig-key", key.to_str().unwrap()]);
    assert_eq!(
        lines_with(&said, "left"),
        ["/etc/provost/provost.json", "/etc/provost/tsig.key", "/etc/systemd/system/provost.service"]
    );
    assert_eq!(lines_with(&said, "renewed"), ["/usr/local/bin/provost", "/etc/systemd/system/provost.socket"]);
    assert_eq!(lines_with(&said, "made"), [""; 0], "{said}");
    assert_eq!(
        (root.read(CONFIG), root.read(SERVICE), root.read("etc/provost/tsig.key")),
        (config, mine, tsig.to_owned())
    );
    assert_eq!(fs::metadata(root.at("srv/provost")).unwrap().mode(), 0o40_755);
    assert!(root.read(SOCKET).contains("\nListenStream=192.0.2.7:443\n"), "{}", root.read(SOCKET));
    assert!(fs::read(root.at("usr/local/bin/provost")).unwrap() == fs::read(env!("CARGO_BIN_EXE_provost")).unwrap());
}

#[test]
fn uninstall_removes_installed_files_but_no_data() {
    let Some(root) = Root::of("uninstall_removes_installed_files_but_no_data") else { return };
    root.install(&[]);
    fs::write(root.at("srv/provost/constituencies/site.cfg"), "a phone's").unwrap();
    fs::write(root.at(SOCKET), "mine").unwrap();
    let before = root.all();
    let dry = root.run("uninstall", &["--dry-run"]).stdout;
    assert!(root.all() == before);
    let ended = root.run("uninstall", &[]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert_eq!(lines_with(&dry, "would be removed"), lines_with(&ended.stdout, "removed"));
    assert!(lines_with(&ended.stdout, "removed").len() > 30, "{}", ended.stdout);
    for left in [
        "/etc/systemd/system/provost.socket",
        "/etc/provost",
        "/srv/provost/constituencies",
        "/var/lib/provost",
        "user provost",
    ] {
        assert!(lines_with(&ended.stdout, "left").contains(&left), "{left} in {}", ended.stdout);
    }
    let files = root.all().into_iter().filter(|(path, found)| !path.is_dir() && !found.3.is_empty());
    let names: Vec<String> =
        files.map(|(path, _)| path.strip_prefix(root.0.path()).unwrap().display().to_string()).collect();
    let ours: Vec<&String> =
        names.iter().filter(|name| !name.starts_with("etc/") || name.contains("provost")).collect();
    assert_eq!(ours, [CONFIG, SOCKET, "srv/provost/constituencies/site.cfg"], "{names:?}");
    let nothing = root.run("uninstall", &[]);
    assert_eq!((nothing.code, lines_with(&nothing.stdout, "removed")), (0, vec![]));
}

#[test]
fn install_without_root_privileges_is_refused() {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    // That user need not be able to read the binary, because install copies it.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("provost");
    assert_eq!(run(Command::new("cp").arg(env!("CARGO_BIN_EXE_provost")).arg(&copy)).code, 0);
    for what in ["install", "uninstall"] {
        let ended = run(Command::new(command.get_program()).args(command.get_args()).arg(&copy).arg(what));
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{ended:?}");
        assert!(ended.stderr.contains("run this as root; --dry-run shows"), "{ended:?}");
    }
}

#[test]
fn installed_service_serves_as_its_user() {
    let test = "installed_service_serves_as_its_user";
    let Some(root) = Root::of(test) else { return };
    root.install(&[]);
    let config = root.read(CONFIG);
    let (before, rest) = config.split_once("\"acme\": {").unwrap();
    let after = rest.split_once("  } },\n").unwrap().1;
    let config = format!("{before}\"files\": [{{ \"chain\": \"rsa.pem\", \"key\": \"rsa.key\" }}] }},\n{after}")
        .replace("127.0.0.1:8444", "127.0.0.1:0");
    let config = config.replace(
        "\"status\"",
        "\"listen\": [\"127.0.0.1:0\"], \"trust\": { \"factory\": [\"factory.pem\"] },\n  \"status\"",
    );
    fs::write(root.at(CONFIG), &config).unwrap();
    fs::write(root.at("etc/provost/factory.pem"), FACTORY.bundle()).unwrap();
    server_certificate(DOMAIN, true).write(&root.at("etc/provost"), "rsa");
    let (user, group) = root.service();
    std::os::unix::fs::chown(root.at("etc/provost/rsa.key"), None, Some(group)).unwrap();
    fs::set_permissions(root.at("etc/provost/rsa.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let home = root.at("srv/provost/constituencies/home");
    fs::create_dir(&home).unwrap();
    fs::write(
        home.join("constituency.json"),
        format!("{{ \"trust\": [\"factory\"], \"phones\": {{ \"{VVX500}\": \"\" }} }}"),
    )
    .unwrap();
    fs::write(home.join("site.cfg"), "<site/>").unwrap();
    fs::set_permissions(home.join("site.cfg"), fs::Permissions::from_mode(0o640)).unwrap();

    // The machine's libraries, mounted into that root for this process only.
    for folder in ["lib", "lib64"] {
        fs::create_dir(root.at(folder)).unwrap();
    }
    let script = "set -e; mount --bind /lib \"$1/lib\"; mount --bind /lib64 \"$1/lib64\"; shift; exec \"$@\"";
    let start = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(root.0.path());
        command.args(["chroot", &format!("--userspec={user}:{group}")]).arg(root.0.path()).args(words);
        command
    };
    if run(&mut start(&["/usr/local/bin/provost", "--version"])).code != 0 {
        return not_run(test, "mount namespaces are not available (unshare -m, chroot)");
    }
    let checked = run(&mut start(&["/usr/local/bin/provost", "check", "--config", "/etc/provost/provost.json"]));
    assert_eq!(checked.code, 0, "{checked:?}");
    let service = root.read(SERVICE);
    let mut command = start(&value(&service, "ExecStart").split(' ').collect::<Vec<_>>());
    command.stdout(Stdio::piped());
    let server = Running::start(command, 1);
    let phone = Client::new(server.address(), Some("home.phones.example.com")).with_identity(&FACTORY.device(VVX500));
    assert_eq!(phone.get("/site.cfg").unwrap().text(), "<site/>");
    let upload = format!("/{VVX500}-app.log");
    assert_eq!(phone.put(&upload, "", b"log").unwrap().status, 201);
    assert!(root.at("var/lib/provost/uploads/home").join(VVX500).exists());
}

#[test]
fn install_with_responder_names_its_own_next_steps() {
    let Some(root) = Root::of("install_with_responder_names_its_own_next_steps") else { return };
    let position = |said: &str, text: &str| said.find(text).unwrap_or_else(|| panic!("no {text:?} in {said}"));
    let said = root.install(&[]);
    assert!(said.contains("either \"responder\"") && said.contains("with a DNS primary only: make a key"), "{said}");
    let acme = r#""acme": { "terms_of_service_agreed": true, "dns": { "responder": { "listen": ["9.9.9.9:53"] } } }"#;
    let config = format!(r#"{{ "domain": "phones.example.com", "certificate": {{ {acme} }} }}"#);
    fs::write(root.at(CONFIG), config).unwrap();
    let said = root.install(&[]);
    assert!(!said.contains("fill in") && !said.contains("tsig"), "{said}");
    // The proof of the delegation needs the running responder.
    let steps = ["provost print dns-records", "systemctl enable --now", "provost check --live"];
    let at = steps.map(|step| position(&said, step));
    assert!(at.is_sorted(), "{said}");
}

#[test]
fn install_asks_for_a_tsig_key_only_with_acme() {
    let Some(root) = Root::of("install_asks_for_a_tsig_key_only_with_acme") else { return };
    let said = root.install(&[]);
    assert!(said.contains("fill in /etc/provost/provost.json") && said.contains("tsig-keygen"), "{said}");
    let acme = root.read(CONFIG).replace("false", "true").replace("/etc/provost/tsig.key", "/etc/provost/mine.key");
    fs::write(root.at(CONFIG), &acme).unwrap();
    let said = root.install(&[]);
    assert!(!said.contains("fill in") && said.contains("put it into /etc/provost/mine.key"), "{said}");
    fs::write(root.at("etc/provost/mine.key"), "key").unwrap();
    assert!(!root.install(&[]).contains("tsig"), "there is a key");
    for certificate in [r#"{ "files": [{ "chain": "c.pem", "key": "k.pem" }] }"#, r#"{ "local_ca": {} }"#] {
        fs::remove_file(root.at("etc/provost/mine.key")).unwrap_or_default();
        let config = format!(r#"{{ "domain": "phones.example.com", "certificate": {certificate} }}"#);
        fs::write(root.at(CONFIG), config).unwrap();
        let said = root.install(&[]);
        assert!(!said.contains("tsig") && said.contains("constituency add"), "{said}");
    }
}
