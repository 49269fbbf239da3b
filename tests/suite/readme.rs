//! The manual (README.md and `docs`): its commands and configurations work as written, its tables equal the schemas,
//! and its links resolve.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use provost::admin::StatusSettings;
use provost::config::Config;
use provost::constituency::Policy;
use serde_json::json;

use crate::harness::bind::{self, Bind, BindConfig, Named};
use crate::harness::certbot::Certbot;
use crate::harness::internet::{self, at, delegation, root, zone_file};
use crate::harness::pages::{PAGES, anchor, code_spans, fences, internal_links, page, prose, resolved, section};
use crate::harness::pebble::{Behavior, Pebble};
use crate::harness::pki::{Identity, device_params};
use crate::harness::site::{Running, Site};
use crate::harness::systemd::value;
use crate::harness::tls::Client;
use crate::harness::tool::{Ended, provost, run};
use crate::harness::unbound;
use crate::harness::{VVX500, eventually, namespace, not_run};

/// The section about setting up a service on a bare machine.
const GOING_PUBLIC: (&str, &str) = ("docs/going-public.md", "## From a bare server to a service");

/// The fenced shell blocks of the README, from *Two commands* on; those before are tested with the package and the archive.
fn readme_commands() -> Vec<&'static str> {
    let (_, text) = page("README.md").split_once("\n## Two commands\n").unwrap();
    fences(text).into_iter().filter(|fence| fence.0 == "sh").map(|fence| fence.1).collect()
}

/// All fenced blocks of this language in the manual.
fn blocks(language: &str) -> Vec<&'static str> {
    let all = PAGES.iter().flat_map(|page| fences(&page.1));
    all.filter(|fence| fence.0 == language).map(|fence| fence.1).collect()
}

fn schema(file: &str) -> serde_json::Value {
    serde_json::from_str(&provost(Path::new("/"), &["schema", file]).stdout).unwrap()
}

#[test]
fn readme_is_short() {
    let lines = page("README.md").lines().count();
    assert!(lines <= 200, "README.md has {lines} lines; move details into docs");
}

#[test]
fn every_fenced_block_is_covered_by_a_test() {
    assert_eq!(PAGES.len(), 9);
    for (name, text) in &*PAGES {
        assert_eq!(text.matches("```").count() % 2, 0, "{name}");
        let count = |language: &str| fences(text).iter().filter(|fence| fence.0 == language).count();
        let counts = (count("sh"), count("json"), count("text"));
        let expected = match name.as_str() {
            "README.md" => (8, 0, 0),
            "docs/going-public.md" => (8, 2, 2),
            "docs/operating.md" => (3, 2, 0),
            "docs/phones.md" => (2, 1, 0),
            "docs/reference.md" => (0, 1, 2),
            _ => (0, 0, 0),
        };
        assert_eq!(counts, expected, "{name}: a new block needs a test that runs or reads it");
        assert_eq!(fences(text).len(), counts.0 + counts.1 + counts.2, "{name}: a block of another kind");
    }
}

#[test]
fn every_documented_configuration_is_valid() {
    let (sites, policies): (Vec<_>, Vec<_>) =
        blocks("json").into_iter().partition(|block| block.contains("\"domain\""));
    assert_eq!((sites.len(), policies.len()), (5, 1));
    for site in sites {
        Config::parse(Path::new("provost.json"), site).unwrap();
    }
    for policy in policies {
        Policy::parse(Path::new("constituency.json"), policy, &["polycom"]).unwrap();
    }
    let spans = code_spans(section("docs/phones.md", "## Old firmware on a LAN"));
    let plain = spans.iter().find(|code| code.starts_with("\"plain_http\": {")).unwrap();
    let site = format!(r#"{{ "domain": "a.example", "certificate": {{ "local_ca": {{}} }}, {plain} }}"#);
    assert_eq!(Config::parse(Path::new("provost.json"), &site).unwrap().plain_http.unwrap().networks.len(), 1);
}

#[test]
fn reference_tables_equal_the_schemas() {
    let mut text = page("docs/reference.md").to_owned();
    for file in ["provost", "constituency"] {
        let mark = format!("<!-- generated: provost schema {file} --markdown -->\n");
        let (before, rest) = text.split_once(&mark).unwrap();
        let (_, after) = rest.split_once("<!-- end -->").unwrap();
        let tables = provost(Path::new("/"), &["schema", file, "--markdown"]).stdout;
        text = format!("{before}{mark}\n{tables}\n<!-- end -->{after}");
    }
    if std::env::var_os("PROVOST_ACCEPT_OUTPUTS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
        return std::fs::write(path, text).unwrap();
    }
    let advice = "a key changed: run PROVOST_ACCEPT_OUTPUTS=1 cargo test --test suite readme::";
    for (committed, generated) in page("docs/reference.md").lines().zip(text.lines()) {
        assert_eq!(committed, generated, "{advice}");
    }
    assert!(text == page("docs/reference.md"), "{advice}");
}

/// All keys in `schema`.
fn keys(schema: &serde_json::Value, found: &mut BTreeSet<String>) {
    match schema {
        serde_json::Value::Object(object) => {
            let properties = object.get("properties").and_then(serde_json::Value::as_object);
            found.extend(properties.into_iter().flat_map(|properties| properties.keys().cloned()));
            object.values().for_each(|value| keys(value, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

#[test]
fn reference_has_a_complete_row_for_every_key() {
    for (file, next, least) in [("provost", "## A constituency's folder", 45), ("constituency", "## Capacity", 18)] {
        let heading = format!("\n## {file}.json\n");
        let tables = page("docs/reference.md").split_once(&heading).unwrap().1.split_once(next).unwrap().0;
        let rows: Vec<Vec<&str>> = tables
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
            .collect();
        for row in &rows {
            assert!(row.len() == 4 && row[1..].iter().all(|cell| !cell.is_empty()), "{row:?}");
        }
        let named: BTreeSet<String> = rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
        let mut expected = BTreeSet::new();
        keys(&schema(file), &mut expected);
        assert!(expected.len() >= least, "{expected:?}");
        assert_eq!(named, expected, "{file}");
    }
}

#[test]
fn reference_lists_every_limit_with_its_default() {
    let schema = schema("provost");
    let limits = schema["$defs"]["Limits"]["properties"].as_object().unwrap();
    let expected: BTreeSet<(&str, String)> =
        limits.iter().map(|(key, it)| (key.as_str(), it["default"].to_string())).collect();
    let row = |row: &'static str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let code = |cell: &'static str| cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
        (code(cells[1]).unwrap(), code(cells[4]).unwrap_or("null").to_owned())
    };
    let table = section("docs/reference.md", "### `limits`");
    let named: BTreeSet<(&str, String)> = table.lines().filter(|line| line.starts_with("| `")).map(row).collect();
    assert!(expected.len() >= 12, "{expected:?}");
    assert_eq!(named, expected);
}

#[test]
fn every_internal_link_resolves() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for (name, text) in &*PAGES {
        for (path, wanted) in internal_links(text) {
            seen += 1;
            let target = resolved(name, &path);
            assert!(root.join(&target).exists(), "{name} links to {target}, which does not exist");
            if wanted.is_empty() {
                continue;
            }
            let headings: Vec<String> = prose(page(&target)).filter(|line| line.starts_with('#')).map(anchor).collect();
            let there = headings.iter().filter(|heading| **heading == wanted).count();
            assert_eq!(there, 1, "{name} links to #{wanted} of {target}, which has {headings:?}");
        }
    }
    assert!(seen >= 75, "found only {seen} links");
}

#[test]
fn every_documented_command_exists_with_its_options() {
    let mut commands = BTreeSet::new();
    for (_, text) in &*PAGES {
        commands.extend(code_spans(text).into_iter().filter(|span| span.starts_with("provost ")));
    }
    assert!(commands.len() >= 50, "{commands:?}");
    for command in commands {
        let is_name = |word: &&str| word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-');
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let names: Vec<&str> =
            words.iter().copied().take_while(|word| is_name(word) && !word.starts_with('-')).collect();
        if names == ["help"] {
            continue;
        }
        let help = provost(Path::new("/"), &[&names[..], &["--help"]].concat());
        assert_eq!(help.code, 0, "{command}: {help:?}");
        for option in words.iter().filter(|word| word.starts_with("--") && **word != "--markdown") {
            assert!(help.stdout.contains(option), "{command}: {}", help.stdout);
        }
    }
}

#[test]
fn readme_commands_equal_those_of_ci() {
    let shell = readme_commands();
    assert_eq!((shell[0], shell[1]), ("OPENSSL_NO_VENDOR=1 cargo run --release -- demo\n", "tests/run\n"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = std::fs::read_to_string(root.join(".ci/run")).unwrap();
    assert!(script.contains("tests/run"), "CI runs the README's command");
    assert!(root.join("tests/run").exists());
}

/// The commands in the text itself, `provost …`.
fn commands(text: &str) -> Vec<Vec<String>> {
    let words = |span: String| Some(span.strip_prefix("provost ")?.split_whitespace().map(str::to_owned).collect());
    code_spans(text).into_iter().filter_map(words).collect()
}

#[test]
fn documented_dhcp_and_phone_config_commands_print() {
    let mut site = Site::new();
    site.config["certificate"] = json!({ "local_ca": {} });
    site.constituency("home", &json!({ "phones": { VVX500: "the kitchen" } }));
    let text = section("docs/phones.md", "## Send phones to this server");
    let commands = commands(text);
    assert_eq!(commands.len(), 2, "{commands:?}");
    let commands: Vec<Vec<&str>> = commands.iter().map(|words| words.iter().map(String::as_str).collect()).collect();
    // It creates the CA that phones are to trust.
    drop(site.start());
    let printed = |command: &[&str]| {
        let ended = provost(&site.path("."), command);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{command:?}");
        ended.stdout
    };
    let dhcp = &commands[0];
    for option in ["--vlan 10", "--timezone Europe/Berlin", "--offset +01:00", "--ntp 192.0.2.1"] {
        assert!(text.contains(&format!("`{option}`")), "{option}");
        let with_it = [&dhcp[..], &option.split(' ').collect::<Vec<_>>()].concat();
        assert_ne!(printed(dhcp), printed(&with_it), "{option}");
    }
    for format in ["isc", "kea", "dnsmasq", "mikrotik"] {
        let command: Vec<&str> = dhcp.iter().map(|word| if *word == "isc" { format } else { word }).collect();
        let reported = if format == "mikrotik" { "provost-home-160" } else { "\"https://home.phones.example.com/\"" };
        assert!(printed(&command).contains(reported), "{format}");
    }
    let kept = printed(&commands[1]);
    assert!(kept.contains("device.prov.serverName=\"home.phones.example.com\""), "{kept}");
    assert_ne!(kept, printed(&[&commands[1][..], &["--ntp", "ntp.example.com"]].concat()));
}

#[test]
fn first_phone_boots_as_documented() {
    // In a network namespace, because local mode's port is fixed and may be in use.
    let isolated = |script: &str, folder: &Path| {
        let script = format!("set -e; ip link set lo up; {script}");
        run(command("unshare").args(["-rn", "sh", "-c", &script]).current_dir(folder))
    };
    let folder = tempfile::tempdir().unwrap();
    if isolated("true", folder.path()).code != 0 {
        return not_run("first_phone_boots_as_documented", "network namespaces are not available");
    }
    let shell = readme_commands();
    let setup = shell[2].strip_suffix("provost serve\n").expect("the block ends by serving");
    let (phone, allow) = (shell[3].trim(), shell[4]);
    let stranger = phone.replace(VVX500, "00005e0053aa");
    let script = format!(
        "{setup}\nprovost serve >access.log 2>diagnostics.log & server=$!
         until grep -q 'listening on' diagnostics.log; do kill -0 $server; done
         {phone} >known.txt; {stranger} >unknown.txt || echo \"unknown: $?\"
         until provost phones --refused | grep -q 00005e0053aa; do kill -0 $server; done
         {allow}
         until {stranger} >let-in.txt; do kill -0 $server; done
         kill $server; wait $server"
    );
    let ended = isolated(&script, folder.path());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert_eq!(ended.code, 0, "{ended:?}\n{}", read("diagnostics.log"));
    assert!(ended.stdout.contains("1 constituency can be served; 0 errors, 0 warnings"), "{}", ended.stdout);
    assert!(ended.stdout.contains("unknown: 1"), "{}", ended.stdout);
    assert!(read("known.txt").lines().last().unwrap().starts_with("provisioned"), "{}", read("known.txt"));
    assert!(read("unknown.txt").contains("not provisioned"), "{}", read("unknown.txt"));
    assert!(ended.stdout.contains(": 00005e0053aa is not known to home"), "{}", ended.stdout);
    assert!(ended.stdout.contains("00005e0053aa is allowed in home within a second"), "{}", ended.stdout);
    assert!(read("let-in.txt").lines().last().unwrap().starts_with("provisioned"), "{}", read("let-in.txt"));
    assert!(read("diagnostics.log").lines().next().unwrap().contains("LOCAL MODE"));
    assert!(read("access.log").contains("00005e0053aa is not known to home"));
}

/// A bare machine, as installed by Debian, with its domain delegated; only inside the namespace.
struct Machine {
    bind: Named,
    /// The root of DNS and `com`, which delegates `example.com` to this machine.
    _above: Bind,
}

impl Machine {
    /// All changes stay in memory. BIND's configuration is Debian's, without validation by the real root's signatures
    /// and without listening on the root's address.
    fn bare(folder: &Path) -> Self {
        let above = BindConfig::new()
            .primary_from(
                ".",
                "$TTL 300\n@ SOA . . 1 1 1 1 1\n@ NS a.root-servers.net.\na.root-servers.net. A 198.41.0.4\n\
                 com NS a.root-servers.net.\n",
                "",
            )
            .primary_from(
                "com",
                "$TTL 300\n@ SOA . . 1 1 1 1 1\n@ NS a.root-servers.net.\nexample NS ns1.example\n\
                 ns1.example A 192.0.2.10\n",
                "",
            );
        let above = above.start_at("198.41.0.4:53".parse().unwrap());
        ["/run", "/srv", "/var/lib", "/var/cache"].into_iter().for_each(namespace::mount_empty);
        for covered in ["/etc", "/usr/local"] {
            namespace::mount_overlay(covered, folder);
        }
        for made in ["/run/named", "/var/lib/bind", "/var/cache/bind"] {
            std::fs::create_dir(made).unwrap();
        }
        let etc = folder.join("bind");
        std::fs::create_dir(&etc).unwrap();
        let mut copied = 0;
        for file in std::fs::read_dir("/etc/bind").unwrap().flatten() {
            // A user may not read the machine's own key.
            copied += u32::from(
                file.file_name() != "rndc.key" && std::fs::copy(file.path(), etc.join(file.file_name())).is_ok(),
            );
        }
        assert!(copied >= 5, "only {copied} files in /etc/bind");
        let options = std::fs::read_to_string(etc.join("named.conf.options")).unwrap();
        let here = "dnssec-validation no;\n\tlisten-on { 127.0.0.1; 192.0.2.10; };";
        std::fs::write(etc.join("named.conf.options"), with(&options, "dnssec-validation auto;", here)).unwrap();
        namespace::bind_mount(&etc, Path::new("/etc/bind"));
        assert_eq!(run(command("rndc-confgen").arg("-a")).code, 0);
        namespace::resolve_through("192.0.2.10", folder);
        Self { bind: Named::start(Path::new("/etc/bind/named.conf")), _above: above }
    }

    /// Runs commands of the manual, in `/etc/provost` unless they change the folder.
    fn sh(&self, script: &str) -> Ended {
        let folder = Some(Path::new("/etc/provost")).filter(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let ended = run(command("sh").args(["-e", "-c", script]).current_dir(folder));
        assert_eq!(ended.code, 0, "{script}\n{ended:?}\n{}", self.bind.log.all().join("\n"));
        ended
    }
}

/// A command with `provost` and the daemons in its PATH.
fn command(program: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_provost")).parent().unwrap();
    let path = format!("{}:{}:/usr/sbin:/sbin", binary.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

/// `text` with `new` instead of `old`, which must occur exactly once.
fn with(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old} in\n{text}");
    text.replace(old, new)
}

#[test]
fn readme_public_setup_commands_are_those_of_the_page() {
    let (page, heading) = ("docs/going-public.md", "## With two DNS records");
    let commands = fences(section(page, heading)).iter().map(|fence| fence.1).collect::<String>();
    let readme = readme_commands()[5];
    assert_eq!(readme.lines().count(), 3, "{readme}");
    for line in readme.lines() {
        assert!(commands.lines().any(|there| there == line), "{line:?} is not run with {page}");
    }
}

#[test]
fn bare_machine_goes_public_as_documented() {
    let test = "readme::bare_machine_goes_public_as_documented";
    if !bind::is_here(test) || !Pebble::is_here(test) {
        return;
    }
    if !Path::new("/etc/bind/named.conf.options").exists() {
        return not_run(test, "the configuration of Debian's bind9 is not installed");
    }
    if !namespace::is_inside(test, &["192.0.2.10", "198.41.0.4"]) {
        return;
    }
    if !namespace::has_users() {
        return not_run(test, "it needs root to create a user");
    }
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::bare(folder.path());
    let pebble = Pebble::start(Behavior::default(), "192.0.2.10:53".parse().unwrap());
    let steps = fences(section(GOING_PUBLIC.0, GOING_PUBLIC.1));
    let [("sh", zone), ("json", site), ("sh", grant), ("sh", last)] = steps[..] else { panic!("{steps:?}") };

    // The package is installed, and its server runs.
    machine.sh(&with(zone, "apt-get install --yes bind9\n", ""));
    let (directory, root) = (pebble.directory(), "/etc/provost/pebble.pem");
    std::fs::copy(pebble.root_file(), root).unwrap();
    let ca = format!("\"acme\": {{ \"directory\": \"{directory}\", \"directory_root\": \"{root}\",");
    std::fs::write("/etc/provost/provost.json", with(site, "\"acme\": {", &ca)).unwrap();
    for line in machine.sh("provost print bind-policy").stdout.lines().filter(|line| !line.starts_with("//")) {
        assert!(grant.contains(line), "{line:?} is printed and not in\n{grant}");
    }
    let knot = machine.sh("provost print knot-acl").stdout;
    assert!(knot.contains("update-owner-name: [_acme-challenge.phones.example.com.]"), "{knot}");
    machine.sh(grant);
    let primary = "192.0.2.10:53".parse().unwrap();
    eventually("the zone", || bind::dig(primary, &["example.com", "SOA"]).contains("ANSWER: 1").then_some(()));

    let start = "systemctl enable --now provost.socket provost.service\n";
    let dry_run = format!("provost certificate renew --dry-run --directory {directory} --directory-root {root}\n");
    let last = with(last, "provost certificate renew --dry-run\n", &dry_run);
    let tried = machine.sh(last.strip_suffix(start).expect("the last block ends by starting the service")).stdout;
    assert!(tried.contains("\nns1.example.com (192.0.2.10:53): has the records no more\n"), "{tried}");
    assert!(tried.contains("\n1 constituency can be served; 0 errors, 0 warnings\n"), "{tried}");
    assert!(tried.contains("\ndry run successful: 2 certificates, issued by "), "{tried}");
    // systemd does not run here, so the unit's command is started directly.
    let unit = std::fs::read_to_string("/etc/systemd/system/provost.service").unwrap();
    let serve = || {
        let mut serve = command("setpriv");
        serve.args(["--reuid", value(&unit, "User"), "--regid", value(&unit, "Group")]);
        serve.args(["--clear-groups", "--no-new-privs"]);
        serve.args(["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}=-all,+net_bind_service")));
        serve.args(value(&unit, "ExecStart").split(' ')).current_dir("/");
        serve
    };
    let server = Running::start(serve(), 2);
    let issued = folder.path().join("issued.pem");
    std::fs::write(&issued, pebble.issuing_root(0)).unwrap();
    let name = "home.phones.example.com";
    eventually("the wildcard", || {
        let arguments = ["s_client", "-connect", &format!("{name}:443"), "-verify_hostname", name, "-CAfile"];
        let seen = run(command("openssl").args(arguments).arg(&issued)).stdout;
        seen.contains("Verify return code: 0 (ok)").then_some(())
    });
    server.says("a new certificate is in use");
    drop(server);
    operators_may_allow(&machine, serve());
}

/// Follows the manual on *Allow*, and asserts that phones can be allowed from the page's listener.
fn operators_may_allow(machine: &Machine, serve: Command) {
    let blocks = |heading| fences(section("docs/operating.md", heading));
    let ([("sh", allow)], [("sh", asked)]) = (&blocks("### Who may use it")[..], &blocks("## API")[..]) else {
        panic!("blocks")
    };
    // systemd does not run here.
    machine.sh(&with(allow, "systemctl daemon-reload\nsystemctl restart provost\n", ""));
    let drop_in = std::fs::read_to_string("/etc/systemd/system/provost.service.d/allow.conf").unwrap();
    assert_eq!(drop_in, "[Service]\nReadWritePaths=/srv/provost/constituencies\n");
    let configured = std::fs::read_to_string("/etc/provost/provost.json").unwrap();
    let listen = r#""status": { "listen": "127.0.0.1:8444""#;
    let with_token = format!(r#"{listen}, "token_file": "/etc/provost/token""#);
    std::fs::write("/etc/provost/provost.json", with(&configured, listen, &with_token)).unwrap();
    let server = Running::start(serve, 2);
    server.says("status page at http://127.0.0.1:8444/");
    assert!(machine.sh(asked).stdout.contains("{\"changed\":true}"));
    let policy = std::fs::read_to_string("/srv/provost/constituencies/home/constituency.json").unwrap();
    assert!(policy.contains("\"00005e0053aa\": \"the hall\""), "{policy}");
}

#[test]
fn phone_with_a_pinned_certificate_is_allowed_as_documented() {
    let shell = blocks("sh");
    let pin = *shell.iter().find(|block| block.contains("--certificate-sha256")).unwrap();
    let (said, mac) = (pin.trim().rsplit(' ').next().unwrap(), pin.split(' ').nth(2).unwrap());
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("constituencies/home")).unwrap();
    let identity = Identity::self_signed(&device_params(mac));
    let (chain, _) = identity.write(folder.path(), "phone");
    let openssl = run(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&chain));
    let real = openssl.stdout.trim().split_once('=').unwrap().1;
    for (fingerprint, word) in [(said, "refused: "), (real, "accepted: ")] {
        let ended = run(command("sh").args(["-ec", &pin.replace(said, fingerprint)]).current_dir(folder.path()));
        assert_eq!(
            ended.stdout,
            format!("{mac} is allowed in home with this certificate within a second\n"),
            "{}",
            ended.stderr
        );
        let verified = provost(folder.path(), &["trust", "verify", "--constituency", "home", chain.to_str().unwrap()]);
        assert!(verified.stdout.starts_with(word), "{}", verified.stdout);
    }
    let text = std::fs::read_to_string(folder.path().join("constituencies/home/constituency.json")).unwrap();
    let policy: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(policy["phones"][mac]["note"], "the lobby");
}

#[test]
fn documented_phone_list_is_read() {
    let [("text", list)] = fences(section("docs/reference.md", "### phones.csv"))[..] else { panic!("blocks") };
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("constituencies/home")).unwrap();
    std::fs::write(folder.path().join("constituencies/home/phones.csv"), list).unwrap();
    let listed = provost(folder.path(), &["phones", "--constituency", "home", "--json"]);
    let phones: Vec<serde_json::Value> =
        listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let notes: Vec<_> = phones.iter().map(|phone| (&phone["mac"], &phone["standing"], &phone["note"])).collect();
    let (known, kitchen, lobby) = (json!("known"), json!("the kitchen"), json!("the lobby, 2nd floor"));
    let macs = (json!("00005e00530c"), json!("00005e0053c7"));
    assert_eq!(notes, [(&macs.0, &known, &kitchen), (&macs.1, &known, &lobby)]);
}

#[test]
fn own_ca_is_created_and_used_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let own_ca = section("docs/phones.md", "### A CA of your own");
    let [("sh", script)] = fences(own_ca)[..] else { panic!("{own_ca}") };
    let ended = run(command("sh").args(["-e", "-c", script]).current_dir(folder.path()));
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    let trust: Vec<&str> = ended.stdout.lines().filter(|line| line.contains("\"trust\": ")).collect();
    let [of_site, of_constituency] = trust[..] else { panic!("{ended:?}") };
    // The output is the content of both files.
    let certificate = r#""domain": "phones.example.com", "certificate": { "local_ca": {} }"#;
    let site = format!("{{ {certificate}, {} }}", of_site.split_once("provost.json: ").unwrap().1);
    let site = Config::parse(Path::new("provost.json"), &site).unwrap();
    assert!(site.bundle_names().contains(&"own".to_owned()));
    let policy = format!("{{ {} }}", of_constituency.split_once("constituency.json: ").unwrap().1);
    let bundles = site.bundle_names();
    let bundles: Vec<&str> = bundles.iter().map(String::as_str).collect();
    Policy::parse(Path::new("constituency.json"), &policy, &bundles).unwrap();
    assert!(folder.path().join("state/ca/ca.pem").exists() && folder.path().join("kitchen.cfg").exists());
    assert!(own_ca.contains("`provost ca list`") && own_ca.contains("`provost ca revoke`"));
    let listed = provost(folder.path(), &["ca", "list"]);
    let serial = listed.stdout.split_whitespace().find(|word| word.len() == 32).unwrap().to_owned();
    let revoked = provost(folder.path(), &["ca", "revoke", &serial]);
    assert!(revoked.code == 0 && revoked.stdout.contains(" is revoked\n"), "{revoked:?}");
    // So a family is named.
    let others = section("docs/phones.md", "## Other vendors");
    let codes: Vec<String> = code_spans(others).into_iter().filter(|code| code.starts_with("\"trust\"")).collect();
    let [of_site, of_constituency] = &codes[..] else { panic!("{others}") };
    let site = Config::parse(Path::new("provost.json"), &format!("{{ {certificate}, {of_site} }}")).unwrap();
    assert!(site.bundle_names().contains(&"yealink".to_owned()));
    Policy::parse(Path::new("constituency.json"), &format!("{{ {of_constituency} }}"), &["polycom", "yealink"])
        .unwrap();
}

#[test]
fn challenge_delegation_works_as_documented() {
    let test = "readme::challenge_delegation_works_as_documented";
    let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.10"];
    if !bind::is_here(test) || !unbound::is_here(test) || !namespace::is_inside(test, &addresses) {
        return;
    }
    let paragraph = section("docs/going-public.md", "## A registrar without RFC 2136");
    let [("text", records)] = fences(paragraph)[..] else { panic!("{paragraph}") };
    let grant = paragraph.split('`').find(|code| code.starts_with("grant ")).unwrap();
    let _root = root(&[("com", &delegation("example.com", "192.0.2.2"))]);
    let registrar = BindConfig::new().primary_from("example.com", &zone_file("example.com", "192.0.2.2", records), "");
    let _registrar = registrar.start_at(at("192.0.2.2"));
    let ours = zone_file("acme.example.com", "192.0.2.10", "");
    let ours = BindConfig::new().key("provost.", "hmac-sha256").primary_from("acme.example.com", &ours, grant);
    let ours = ours.start_at(at("192.0.2.10"));
    let resolver = internet::resolver(&[]);
    let mut site = Site::with_ote();
    site.config["certificate"] = json!({ "acme": { "directory": "https://127.0.0.1:1/dir", "terms_of_service_agreed": true, "dns": {
        "primary": "192.0.2.10", "tsig_key_file": ours.key_file("provost."), "resolvers": [resolver.address.ip().to_string()],
    } } });
    site.write_config();
    let checked = provost(&site.path("."), &["check", "--live"]).stdout;
    assert!(checked.contains("*.phones.example.com: resolves to 192.0.2.10\n"), "{checked}");
    assert!(checked.contains("\nphones.acme.example.com: the probe record was removed\n"), "{checked}");
    assert!(!checked.contains("error: dns: ") && !checked.contains("warning: dns: "), "{checked}");
}

#[test]
fn certbot_files_reach_the_service_as_documented() {
    let test = "readme::certbot_files_reach_the_service_as_documented";
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
    let sh = |script: &str| run(command("sh").args(["-e", "-c", script]).current_dir("/"));
    assert_eq!(sh("provost install && mkdir /srv/provost/constituencies/home").code, 0);
    std::fs::write("/srv/provost/constituencies/home/constituency.json", r#"{ "client_auth": "none" }"#).unwrap();
    let [("json", site), ("sh", hook)] = fences(section("docs/operating.md", "## Certbot's files"))[..] else {
        panic!("blocks")
    };
    let certbot = Certbot::new();
    let first = ["phones", "phones-ec"].map(|lineage| certbot.renew(lineage, 1));
    // Without copies, as an administrator would first write it.
    let site = with(site, "\"no_sni\": \"ucs-5-9\"", "\"listen\": \"127.0.0.1:0\", \"no_sni\": \"home\"");
    std::fs::write(
        "/etc/provost/provost.json",
        site.replace("/etc/provost/certificates/phones-", "/etc/letsencrypt/live/phones/"),
    )
    .unwrap();
    let check = || sh("provost check --config /etc/provost/provost.json");
    let refused = check();
    let (error, live) =
        ("error: /etc/letsencrypt/live/phones/privkey.pem: ", "/etc/letsencrypt/live (mode 0700, root:root)");
    let line = refused.stdout.lines().find(|line| line.starts_with(error)).unwrap_or_else(|| panic!("{refused:?}"));
    assert!(refused.code == 1 && line.contains("the service's user provost may not enter"), "{line}");
    for part in [
        live,
        "run chgrp provost /etc/letsencrypt/live /etc/letsencrypt/archive /etc/letsencrypt/archive/phones/privkey1.pem",
        "chmod g+x /etc/letsencrypt/live /etc/letsencrypt/archive && chmod g+r /etc/letsencrypt/archive/phones/privkey1.pem",
        "the deploy hook in docs/operating.md",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(
        refused
            .stdout
            .contains("note: service: checked as the user provost (User= in /etc/systemd/system/provost.service)")
    );
    // The named commands suffice for the current files.
    let commands = line.split("; run ").nth(1).unwrap().split(", or let").next().unwrap();
    assert_eq!(sh(commands).code, 0, "{commands}");
    assert!(!check().stdout.contains(error), "{}", check().stdout);

    assert_eq!(sh(hook).code, 0);
    std::fs::write("/etc/provost/provost.json", site).unwrap();
    let good = check();
    assert!(good.code == 0 && good.stdout.contains("0 errors, 0 warnings"), "{good:?}");
    let unit = std::fs::read_to_string("/etc/systemd/system/provost.service").unwrap();
    let mut serve = command("setpriv");
    serve.args(["--reuid", value(&unit, "User"), "--regid", value(&unit, "Group"), "--init-groups", "--no-new-privs"]);
    serve.args(["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}=-all,+net_bind_service")));
    serve.args(value(&unit, "ExecStart").split(' ')).current_dir("/");
    let server = Running::start(serve, 1);
    let shown = || Client::new(server.address(), Some("home.phones.example.com")).connect().unwrap();
    let leaf = || shown().tls().peer_certificates().unwrap()[0].clone().into_owned();
    assert!(first.iter().any(|identity| identity.chain[0] == leaf()));
    // certbot renews and runs the hook.
    let second = certbot.renew("phones-ec", 2);
    let ended = sh("RENEWED_LINEAGE=/etc/letsencrypt/live/phones-ec /etc/letsencrypt/renewal-hooks/deploy/provost");
    assert_eq!(ended.code, 0, "{ended:?}");
    eventually("the renewed certificate", || (leaf() == second.chain[0]).then_some(()));
    for (copy, mode) in [("", 0o40_750), ("phones-privkey.pem", 0o100_640), ("phones-ec-fullchain.pem", 0o100_640)] {
        let found = std::fs::metadata(format!("/etc/provost/certificates/{copy}")).unwrap();
        assert_eq!((found.mode(), found.uid()), (mode, 0), "{copy}");
    }
}

#[test]
fn local_mode_is_monitored_as_documented() {
    let test = "readme::local_mode_is_monitored_as_documented";
    let spans = code_spans(section("docs/operating.md", "## The page"));
    let status = &spans[0];
    let site = format!(r#"{{ "domain": "a.example", "certificate": {{ "local_ca": {{}} }}, {status} }}"#);
    let parsed = Config::parse(Path::new("provost.json"), &site.replace(": {\"listen", ": {\"hosts\": [], \"listen"));
    assert_eq!(parsed.unwrap().status, Some(StatusSettings::default()), "{status} is the default");
    let printed = commands(section("docs/operating.md", "## Metrics and health"));
    let printed: Vec<_> = printed.iter().filter(|words| words[0] == "print").collect();
    assert_eq!(printed.len(), 2, "{printed:?}");
    for words in printed {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_eq!(provost(Path::new("/"), &words).code, 0, "{words:?}");
    }

    let folder = tempfile::tempdir().unwrap();
    if !namespace::is_inside(test, &[]) {
        return;
    }
    let [("sh", script)] = fences(section("docs/operating.md", "## API"))[..] else { panic!("blocks") };
    let script = format!(
        "set -e; mkdir -p constituencies/home; echo '{{}}' > constituencies/home/constituency.json
         provost serve >access.log 2>diagnostics.log & server=$!
         until grep -q 'listening on' diagnostics.log; do kill -0 $server; done
         curl -sf http://127.0.0.1:8444/healthz; curl -sf http://127.0.0.1:8444/readyz
         {}
         kill $server; wait $server",
        with(script, "/etc/provost/token", "state/status-token")
    );
    let ended = run(command("sh").args(["-c", &script]).current_dir(folder.path()));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert_eq!(ended.code, 0, "{ended:?}\n{}", read("diagnostics.log"));
    assert!(ended.stdout.starts_with("ok\n{"), "{}", ended.stdout);
    assert!(ended.stdout.contains("\"matching\":0") && ended.stdout.contains("{\"changed\":true}"), "{}", ended.stdout);
    assert!(read("constituencies/home/constituency.json").contains("\"00005e0053aa\": \"the hall\""));
    assert!(read("diagnostics.log").contains("status page at http://127.0.0.1:8444/ (token: "));
}
