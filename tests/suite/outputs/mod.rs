//! Everything that programs read from provost or send to it: names, keys, enumerated values, paths, exit codes.
//!
//! A change would break a monitoring system, a script or a settings file, so each is pinned by a golden file in
//! `outputs/`. Internal names may change at any time; this test shows that the outputs stayed the same. Only what must
//! occur is listed: no times, ports, digests or texts for people.

mod refusals;
mod words;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use rcgen::CertificateParams;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::golden::{Golden, Lines, paths, placeholder};
use crate::harness::operators::Operators;
use crate::harness::pki::{DAY, FACTORY, Identity, SERVER_CA, device_params, valid};
use crate::harness::site::{DOMAIN, Running, Site};
use crate::harness::tls::Client;
use crate::harness::tool::{Ended, provost, s_client};
use crate::harness::{STRANGER, VVX500, VVX550, eventually, namespace};
use refusals::Other;

/// Further phones: one that is denied everywhere, one with a pin, one that is denied by its constituency.
const LOST: &str = "00005e0053f1";
const PINNED: &str = "00005e0053f2";
const DENIED: &str = "00005e0053f3";
const AGENT: &str = "User-Agent: FileTransport PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application\r\n";
/// An old phone that rustls cannot serve.
const OLD_TLS: &str = "-tls1 -cipher AES128-SHA:@SECLEVEL=0";

#[test]
fn outputs_of_a_running_site_are_pinned() {
    let site = site();
    let server = Running::start(site.command(), 2);
    let operators = Operators::of(&server);
    visit(&site, &server);
    refusals::provoke(&site, &server);
    let others = [Other::crowded(), Other::without_certificate(), Other::full()];
    let metrics_of_all = || {
        let texts = std::iter::once(&operators).chain(others.iter().map(|other| &other.operators));
        metrics(&texts.map(|operators| operators.get("/metrics").body).collect::<Vec<_>>())
    };

    let mut golden = Golden::default();
    golden.check_eventually("metrics.txt", metrics_of_all);
    golden.check_eventually("access_log_json.txt", || {
        let lines =
            server.access_lines().into_iter().chain(others.iter().flat_map(|other| other.server.access_lines()));
        paths(&lines.collect::<Vec<_>>(), &["lane"], &[])
    });
    golden.check("access_log_text.txt", access_log_text());
    golden.check_eventually("diagnostics.txt", || {
        let lines = [server.stderr(), others[0].server.stderr()].concat();
        let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let is_announced = |line: &&Value| line["message"].as_str().is_some_and(|it| it.starts_with("listening on "));
        let listening = lines.iter().filter(is_announced).map(|line| {
            let (words, address) = line["message"].as_str().unwrap().split_at("listening on ".len());
            let address = address.split(' ').next().unwrap();
            address.parse::<std::net::SocketAddr>().unwrap();
            format!("{words}ADDRESS")
        });
        let keys = paths(&lines, &["level"], &[]);
        keys.into_iter().chain(listening.collect::<Lines>())
    });
    golden.check_eventually("api.txt", || words::api(&operators));
    golden.check_eventually("commands_json.txt", || commands_json(&site, &server));
    golden.check_eventually("state_files.txt", || state_files(&site.path("state")));
    golden.check_eventually("phone_history.txt", || phone_history(&site.path("state/ledger/ledger.sqlite")));
    // These requests change something.
    golden.check("api_changes.txt", words::changes(&operators));
    golden.check("api_queries.txt", words::queries(&operators));
    golden.finish();
}

#[test]
fn settings_commands_exit_codes_and_alerts_are_pinned() {
    let mut golden = Golden::default();
    for file in ["provost", "constituency"] {
        golden.check(&format!("settings_{file}.txt"), words::settings(file));
    }
    let command_line = words::command_line();
    let with_json = command_line.iter().filter_map(|line| line.strip_prefix("provost ")?.strip_suffix(" --json"));
    let pinned: Lines = JSON_COMMANDS.iter().map(|(words, _)| words.join(" ")).chain(["phone".to_owned()]).collect();
    let missing: Vec<&str> = with_json.filter(|command| !pinned.iter().any(|it| it.starts_with(command))).collect();
    assert!(missing.is_empty() && pinned.len() >= 9, "JSON of {missing:?} is not pinned: add to JSON_COMMANDS");
    golden.check("command_line.txt", command_line);
    golden.check("exit_codes.txt", exit_codes());
    golden.check("certificate_states.txt", certificate_states());
    golden.check("prometheus_alerts.txt", words::alerts());
    golden.finish();
}

#[test]
fn outputs_in_the_journal_and_in_local_mode_are_pinned() {
    if !namespace::is_inside("outputs::outputs_in_the_journal_and_in_local_mode_are_pinned", &[]) {
        return;
    }
    namespace::mount_empty("/run");
    std::fs::create_dir_all("/run/systemd/journal").unwrap();
    let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    journal.set_nonblocking(true).unwrap();
    let site = Site::with_ote();
    std::fs::create_dir(site.served("Not A Label")).unwrap();
    // systemd sets this variable to the journal's stream.
    let script = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec \"$@\"";
    let served = site.command();
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(served.get_program()).args(served.get_args());
    let log = std::fs::File::create(site.path("stderr")).unwrap();
    let mut server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();

    // The denial is logged only if the server is running.
    eventually("the server", || site.path("state/control.sock").exists().then_some(()));
    good(&site, &["deny", LOST]);
    let mut fields = Lines::new();
    let mut golden = Golden::default();
    golden.check_eventually("journal_fields.txt", || {
        let mut entry = vec![0; 64 << 10];
        while let Ok(length) = journal.recv(&mut entry) {
            let text = std::str::from_utf8(&entry[..length]).unwrap();
            fields.extend(text.lines().map(|line| {
                let (name, value) = line.split_once('=').unwrap();
                if ["PRIORITY", "SYSLOG_IDENTIFIER"].contains(&name) {
                    format!("{name}={value}")
                } else {
                    name.to_owned()
                }
            }));
        }
        fields.clone()
    });
    server.kill().unwrap();
    server.wait().unwrap();
    // The ports of local mode are free here.
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("constituencies/ote")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_provost"));
    command.arg("serve").current_dir(folder.path()).env_remove("PROVOST_CONFIG");
    let _local = Running::start(command, 1);
    golden.check_eventually("local_state_files.txt", || state_files(&folder.path().join("state")));
    golden.finish();
}

#[test]
fn outputs_of_certificates_from_a_ca_are_pinned() {
    let test = "outputs::outputs_of_certificates_from_a_ca_are_pinned";
    let Some((_bind, mut public)) = crate::acme_e2e::usual(test, crate::harness::pebble::Behavior::default()) else {
        return;
    };
    public.acme()["keys"] = json!(["rsa-2048", "ecdsa-p256"]);
    public.site.config["status"] = json!({ "listen": "127.0.0.1:0" });
    let server = public.start();
    let operators = Operators::of(&server);
    public.obtains();
    let mut golden = Golden::default();
    golden.check_eventually("acme_status.txt", || {
        paths(&[public.status()], &["key", "level", "state"], &["window", "start", "end"])
    });
    golden.check_eventually("acme_api.txt", || {
        let overview = operators.json("/api/overview");
        paths(overview["certificates"].as_array().unwrap(), &["key", "level", "source", "state"], &[])
    });
    golden.check_eventually("acme_metrics.txt", || {
        let metrics = metrics(&[operators.get("/metrics").body]);
        metrics.into_iter().filter(|line| line.contains("certificate") || line.contains("renewal")).collect::<Lines>()
    });
    golden.check_eventually("acme_state_files.txt", || state_files(&public.site.path("state")));
    golden.finish();
}

/// A site with a constituency of each kind.
fn site() -> Site {
    let mut site = Site::with_ote();
    std::fs::write(site.path("token"), "of-a-test-of-outputs\n").unwrap();
    std::fs::set_permissions(site.path("token"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(site.path("server-ca.pem"), SERVER_CA.pem()).unwrap();
    site.config["status"] = json!({ "listen": "127.0.0.1:0", "token_file": "token" });
    // Loopback is not among the networks, so this client is refused.
    site.config["plain_http"] = json!({ "listen": "127.0.0.1:0", "networks": ["192.0.2.0/24"] });
    site.config["trust"]["own"] = json!(["state/ca/ca.pem"]);
    refusals::prepare(&mut site);
    site.write_config();
    for arguments in [
        &["ca", "init", "--name", "Test CA"][..],
        &["ca", "issue", VVX500, "--out", "first.pem"],
        &["ca", "issue", VVX550, "--out", "second.pem"],
        &["ca", "revoke", VVX550],
    ] {
        good(&site, arguments);
    }
    let pinned = json!({ "note": "pinned", "certificate_sha256": words::sha256(&refusals::PINNED_PHONE) });
    let phones = json!({ VVX500: "the kitchen", VVX550: "the cellar", PINNED: pinned });
    let uploads = json!({ "max_file_bytes": 100_000 });
    site.constituency(
        "ote",
        &json!({ "trust": ["factory"], "phones": phones, "denied": [DENIED], "uploads": uploads }),
    );
    site.file("ote/000000000000.cfg", "<APPLICATION APP_FILE_PATH=\"\" CONFIG_FILES=\"site.cfg, absent.cfg\"/>");
    site.constituency("own", &json!({ "trust": ["own"], "phones": { VVX500: "", PINNED: pinned } }));
    site.constituency("pw", &json!({ "client_auth": "digest", "phones": {} }));
    site.constituency("open", &json!({ "client_auth": "none" }));
    site.constituency("old", &json!({ "trust": ["factory"], "phones": { VVX500: "" }, "tls": "legacy" }));
    site.constituency("any", &json!({ "trust": ["factory"], "phones": "any", "aliases": ["some", "ote"] }));
    for name in ["own", "pw", "open", "old", "any"] {
        site.file(&format!("{name}/site.cfg"), "<site/>");
        site.file(&format!("{name}/000000000000.cfg"), "<APPLICATION APP_FILE_PATH=\"\" CONFIG_FILES=\"site.cfg\"/>");
    }
    site.file("open/000000000000.cfg", "<APPLICATION APP_FILE_PATH=\"sip.ld\" CONFIG_FILES=\"site.cfg\"/>");
    site.file("open/sip.ld", "firmware");
    site.file("broken/constituency.json", "{ \"phones\": 7 }");
    std::fs::create_dir(site.served("Not A Label")).unwrap();
    with_password(&site);
    site
}

/// Runs a command that must succeed.
#[track_caller]
fn good(site: &Site, arguments: &[&str]) -> Ended {
    let ended = provost(&site.path(""), arguments);
    assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");
    ended
}

/// Sets a password for a phone by a command, and writes it to the file `password`.
fn with_password(site: &Site) {
    let printed = good(site, &["allow", VVX500, "--constituency", "pw", "--digest"]).stdout;
    let (_, rest) = printed.split_once("device.prov.password=\"").unwrap();
    std::fs::write(site.path("password"), rest.split('"').next().unwrap()).unwrap();
    std::fs::write(site.path("wrong-password"), "another").unwrap();
}

/// The boot of a virtual phone at the constituency `name`.
fn boot(site: &Site, server: &Running, name: &str, more: &[&str]) -> Ended {
    let (url, resolve) = (format!("https://{name}.{DOMAIN}/"), server.address().to_string());
    let arguments = ["phone", "--url", &url, "--mac", VVX500, "--ca", "server-ca.pem", "--resolve", &resolve];
    provost(&site.path(""), &[&arguments[..], more].concat())
}

/// The usual requests of phones and operators, and those that lead to each state of a phone.
fn visit(site: &Site, server: &Running) {
    let phone = server.client("ote", &FACTORY.device(VVX500));
    for (method, path, status) in [
        ("GET", "/site.cfg", 200),
        ("HEAD", "/site.cfg", 200),
        ("GET", "/absent.cfg", 404),
        ("PUT", "/00005e00530c-app.log", 201),
        ("PUT", "/00005e00530c-app.log", 204),
    ] {
        let body: &[u8] = if method == "PUT" { b"a log" } else { b"" };
        assert_eq!(phone.request(method, path, AGENT, body).unwrap().status, status, "{method} {path}");
    }
    assert_eq!(server.client("ote", &refusals::PINNED_PHONE).get("/site.cfg").unwrap().status, 200);
    let open = Client::new(server.address(), Some(&format!("open.{DOMAIN}")));
    assert_eq!(open.get("/site.cfg").unwrap().status, 200);
    assert!(old_tls(site, server, "old", OLD_TLS).contains("200 OK"));
    for (file, code) in [("password", 0), ("wrong-password", 1)] {
        let booted = boot(site, server, "pw", &["--password-file", file]);
        assert_eq!(booted.code, code, "{file}: {booted:?}");
    }
    assert_eq!(server.client("ote", &FACTORY.device(STRANGER)).get("/site.cfg").unwrap().status, 403);
    good(site, &["deny", LOST, "--note", "lost on a train"]);
    good(site, &["operator", "add", "anna", "--read-only"]);
    good(site, &["operator", "rotate", "anna"]);
    eventually("the denial of the lost phone", || {
        (server.client("any", &FACTORY.device(LOST)).get("/site.cfg").ok()?.status == 403).then_some(())
    });
}

/// The output of openssl as an old phone at the constituency `name`.
fn old_tls(site: &Site, server: &Running, name: &str, arguments: &str) -> String {
    let (chain, key) = FACTORY.issuing.issue_rsa(&device_params(VVX500)).write(&site.path(""), "old-phone");
    old_tls_with(server, name, arguments, &chain, &key)
}

fn old_tls_with(server: &Running, name: &str, arguments: &str, chain: &Path, key: &Path) -> String {
    let host = format!("{name}.{DOMAIN}");
    let fixed = ["-servername", &host, "-cert", chain.to_str().unwrap(), "-key", key.to_str().unwrap()];
    let arguments: Vec<&str> = fixed.into_iter().chain(arguments.split(' ')).collect();
    let request = format!("GET /site.cfg HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let ended = s_client(server.address(), &arguments, &request);
    ended.stdout + &ended.stderr
}

/// Names and types of metrics; and the values of each label that is enumerated.
fn metrics(texts: &[String]) -> Lines {
    let mut found = Lines::new();
    let lines = texts.iter().flat_map(|text| text.lines());
    for line in lines {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            found.insert(kind.to_owned());
        }
        let Some((name, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) else { continue };
        let labels = rest.rsplit_once('}').unwrap().0.trim_end_matches('"').split("\",");
        let labels: Vec<(&str, &str)> = labels.map(|label| label.split_once("=\"").unwrap()).collect();
        let keys: Vec<&str> = labels.iter().map(|(key, _)| *key).collect();
        found.insert(format!("{name}{{{}}}", keys.join(",")));
        for (key, value) in labels {
            if ["reason", "outcome", "state", "kind", "level", "key", "method"].contains(&key) {
                found.insert(format!("{name}{{{key}=\"{value}\"}}"));
            }
        }
    }
    found
}

/// Lines of the access log as text: a request, one over legacy TLS with an expired certificate, a refused handshake.
fn access_log_text() -> Vec<String> {
    let site = Site::with_ote();
    let policy = json!({
        "trust": ["factory"], "phones": "any", "tls": "legacy", "expired_device_certificates": "accept",
    });
    site.constituency("ote", &policy);
    let mut command = site.command();
    command.args(["--log", "text"]);
    let server = Running::start(command, 1);
    let lines = |count: usize| eventually("the log", || Some(server.stdout()).filter(|lines| lines.len() == count));
    let phone = server.client("ote", &FACTORY.device(VVX500));
    phone.request("GET", "/site.cfg?query", "User-Agent: Agent\r\n", b"").unwrap();
    lines(1);
    phone.get("/00005e0053c7.cfg").unwrap();
    lines(2);
    let (chain, key) = refusals::expired().write(&site.path(""), "expired");
    old_tls_with(&server, "ote", OLD_TLS, &chain, &key);
    lines(3);
    let (chain, key) = Identity::self_signed(&device_params(VVX500)).write(&site.path(""), "self-signed");
    old_tls_with(&server, "ote", OLD_TLS, &chain, &key);
    let shape = |line: &String| {
        let (line, reason) =
            line.split_once(" reason=\"").map_or((line.as_str(), ""), |(line, _)| (line, " reason=\"REASON\""));
        let words = line.split(' ').enumerate().map(|(place, word)| match place {
            0 => "TIME",
            1 => "ADDRESS",
            _ if word.ends_with("ms") => "DURATIONms",
            _ => word,
        });
        words.collect::<Vec<_>>().join(" ") + reason
    };
    lines(4).iter().map(shape).collect()
}

/// Commands that print JSON, and their keys with enumerated values. `provost phone` is tested separately.
const JSON_COMMANDS: [(&[&str], &[&str]); 10] = [
    (&["check"], &["severity"]),
    (&["certificate", "status"], &["level", "state"]),
    (&["phones"], &["standing", "tls_level"]),
    (&["phones", "--refused"], &["standing", "tls_level"]),
    (&["phone-log", VVX500], &["method", "standing"]),
    (&["phone-log", LOST], &["standing"]),
    (&["constituency", "list"], &["client_auth", "severity"]),
    (&["operator", "list"], &[]),
    (&["ca", "list"], &[]),
    // What it prints depends on the moment; the module `audit` pins it.
    (&["audit", "--since", "2100-01-01T00:00:00Z"], &[]),
];

/// The keys that every command with `--json` prints.
fn commands_json(site: &Site, server: &Running) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |title: &str, ended: &Ended, enumerated: &[&str]| {
        let stream = serde_json::Deserializer::from_str(&ended.stdout).into_iter::<Value>();
        let values: Vec<Value> =
            stream.map(|value| value.unwrap_or_else(|error| panic!("{error}: {ended:?}"))).collect();
        found.push(format!("[provost {title}]"));
        found.extend(paths(&values, enumerated, &[]));
    };
    for (words, enumerated) in JSON_COMMANDS {
        let ended = provost(&site.path(""), &[words, &["--json"]].concat());
        add(&words.join(" "), &ended, enumerated);
    }
    let enumerated = ["event", "method", "program", "step"];
    add("phone", &boot(site, server, "pw", &["--password-file", "password", "--json"]), &enumerated);
    add("phone, refused", &boot(site, server, "pw", &["--password-file", "wrong-password", "--json"]), &enumerated);
    let two = ["--no-certificate", "--count", "2"];
    add("phone --count 2", &boot(site, server, "open", &[&two[..], &["--json"]].concat()), &enumerated);
    let booted = boot(site, server, "open", &two);
    let text = booted.stdout.lines().last().unwrap_or_else(|| panic!("{booted:?}"));
    let (summary, _) = text.split_once(" in ").unwrap();
    found.push("[provost phone --count 2, in words]".to_owned());
    found.push(summary.to_owned());
    found
}

/// The files below a state folder, and the keys of those that are JSON.
fn state_files(folder: &Path) -> Lines {
    let mut found = Lines::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        let name = |path: &Path| {
            let parts = path.strip_prefix(folder).unwrap().iter().map(|part| placeholder(part.to_str().unwrap()));
            parts.collect::<Vec<_>>().join("/")
        };
        for entry in std::fs::read_dir(&next).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            // Uploads under way have random names.
            if next.ends_with(".incoming") {
                continue;
            }
            if kind.is_dir() {
                found.insert(format!("{}/", name(&path)));
                open.push(path);
                continue;
            }
            found.insert(name(&path));
            let is_json =
                path.extension().is_some_and(|it| it == "json") && !path.starts_with(folder.join("last-good"));
            // A file may be replaced meanwhile; the next attempt reads it.
            if let Some(value) = std::fs::read(&path).ok().filter(|_| is_json) {
                let value: Value = serde_json::from_slice(&value).unwrap();
                found.extend(paths([&value], &[], &[]).iter().map(|line| format!("{} {line}", name(&path))));
            }
        }
    }
    found
}

/// Tables, columns and indexes of the phone history.
fn phone_history(file: &Path) -> Vec<String> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = rusqlite::Connection::open_with_flags(file, flags).unwrap();
    let all = |query: &str| -> Vec<String> {
        let mut statement = database.prepare(query).unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|row| row.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let pragmas = ["user_version", "application_id", "journal_mode"].map(|name| {
        let value = database.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, rusqlite::types::Value>(0));
        format!("{name}: {:?}", value.unwrap())
    });
    let columns = "SELECT printf('%s.%s %s%s%s', t.name, c.name, c.type, iif(c.\"notnull\", ' NOT NULL', ''),
                                 iif(c.pk, ' key ' || c.pk, ''))
                   FROM sqlite_master t JOIN pragma_table_info(t.name) c
                   WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' ORDER BY t.name, c.cid";
    let others = "SELECT sql FROM sqlite_master WHERE type != 'table' AND sql IS NOT NULL ORDER BY name";
    [pragmas.to_vec(), all(columns), all(others)].concat()
}

/// The exit code of each command, for success and failure.
fn exit_codes() -> Vec<String> {
    let site = Site::with_ote();
    site.write_config();
    std::fs::write(site.path("bad.json"), "{}").unwrap();
    std::fs::write(site.path("list.csv"), "mac,note\n00005e0053c8,hall\n00005e0053c9,attic\n").unwrap();
    site.constituency("pw", &json!({ "client_auth": "digest", "phones": {} }));
    FACTORY.device(VVX500).write(&site.path(""), "phone");
    Identity::self_signed(&device_params(VVX500)).write(&site.path(""), "other");
    let mut found = Vec::new();
    let mut code = |line: &str| {
        let ended = provost(&site.path(""), &line.split(' ').collect::<Vec<_>>());
        found.push(format!("{} provost {line}", ended.code));
    };
    for line in [
        "--help",
        "--version",
        "--frobnicate",
        "frobnicate",
        "help check",
        "check",
        "check --config absent.json",
        "check --config bad.json --json",
        "serve --config absent.json",
        "serve --config bad.json",
        "serve --log xml",
        "demo",
        "constituency list",
        "constituency add --frobnicate",
        "allow 00005e0053c7 --constituency ote",
        "allow 00005e0053c7 --constituency ote",
        "allow 00005e0053c7 --constituency absent",
        "allow no-mac --constituency ote",
        "allow 00005e0053c7 --constituency pw --digest",
        "deny 00005e0053c7 --constituency ote",
        "deny 00005e0053c7",
        "deny 00005e0053c7",
        "allow 00005e0053c7 --constituency ote",
        "undeny 00005e0053c7",
        "undeny 00005e0053c7",
        "allow --from list.csv --constituency ote",
        "allow --from list.csv --constituency ote --dry-run",
        "allow --from list.csv --constituency ote --yes",
        "allow --from list.csv --constituency ote",
        "allow --from absent.csv --constituency ote --yes",
        "allow --constituency ote",
        "deny 00005e0053c8 00005e0053c9",
        "undeny --from list.csv",
        "undeny --from list.csv",
        "operator list",
        "operator add berta",
        "operator add berta",
        "operator add Berta",
        "operator list",
        "operator rotate berta",
        "operator remove berta",
        "operator remove berta",
        "operator rotate berta",
        "phones",
        "phones --constituency absent",
        "phones --silent-for never",
        "phone-log 00005e0053c7",
        "uploads list 00005e0053c7",
        "uploads cat 00005e0053c7 absent",
        "certificate status",
        "certificate renew",
        "certificate rehearse",
        "certificate renew --dry-run",
        "trust list",
        "trust verify --constituency ote phone.pem",
        "trust verify --constituency ote other.pem",
        "ca list",
        "ca init",
        "ca init",
        "ca list",
        "ca issue 00005e0053c7 --out issued.pem",
        "ca revoke 00005e0053c7",
        "ca revoke 00005e0053c8",
        "phone --url https://127.0.0.1:1/ --mac 00005e00530c",
        "schema provost",
        "schema constituency",
        "schema frobnicate",
        "print man",
        "print man frobnicate",
        "print systemd-unit",
        "print dhcp",
    ] {
        code(line);
    }
    std::fs::write(site.served("ote/constituency.json"), "{ \"phones\": 7 }").unwrap();
    for line in ["check", "constituency list", "phones"] {
        code(line);
    }
    let server = site.start();
    code("serve");
    server.signal(Signal::TERM);
    found.push(format!("{} provost serve, ended by SIGTERM", server.wait().code().unwrap()));
    found
}

/// The levels and states of certificates from files, by their dates.
fn certificate_states() -> Vec<String> {
    let mut site = Site::with_ote();
    let mut found = Vec::new();
    let now = SystemTime::now();
    for (from, to) in [
        (now - DAY, now + 90 * DAY),
        (now - 89 * DAY, now + DAY),
        (now - 90 * DAY, now - DAY),
        (now + DAY, now + 90 * DAY),
    ] {
        let mut params = CertificateParams::new(vec![format!("*.{DOMAIN}"), DOMAIN.to_owned()]).unwrap();
        valid(&mut params, from, to);
        SERVER_CA.issue(&params).write(&site.path(""), "ec");
        site.config["certificate"] = json!({ "files": [{ "chain": "ec.pem", "key": "ec.key" }] });
        site.write_config();
        let ended = provost(&site.path(""), &["certificate", "status", "--json"]);
        let status: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        let certificate = &status["certificates"][0];
        found.push(format!("{}: {}, exit code {}", certificate["state"], certificate["level"], ended.code));
    }
    found
}
