//! The command line: help, schemas, configuration errors.

use std::collections::BTreeSet;
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::harness::site::Site;
use crate::harness::tool::{Ended, provost, run};

/// Runs `provost` in an empty folder.
fn alone(args: &[&str]) -> Ended {
    provost(tempfile::tempdir().unwrap().path(), args)
}

/// The commands that the help of `command` lists.
pub fn subcommands(command: &[&str]) -> Vec<String> {
    let help = alone(&[command, &["--help"]].concat()).stdout;
    let listed = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_help_text() {
    let commands = [
        "serve",
        "demo",
        "check",
        "certificate",
        "phones",
        "phone-log",
        "allow",
        "deny",
        "undeny",
        "operator",
        "audit",
        "constituency",
        "uploads",
        "phone",
        "trust",
        "ca",
        "print",
        "schema",
        "install",
        "uninstall",
    ];
    let help = alone(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    let listed: Vec<&str> = help
        .stdout
        .split("Commands:")
        .nth(1)
        .and_then(|rest| rest.split("\n\n").next())
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(listed, [&commands[..], &["help"]].concat(), "{}", help.stdout);
    let lines = commands.iter().map(|command| vec![*command]);
    let certificate = ["status", "renew", "rehearse", "revoke"].map(|command| vec!["certificate", command]);
    let uploads = ["list", "cat", "remove", "move"].map(|command| vec!["uploads", command]);
    let operator = ["add", "list", "remove", "rotate"].map(|command| vec!["operator", command]);
    let constituency = ["list", "add"].map(|command| vec!["constituency", command]);
    for line in lines
        .chain(certificate)
        .chain(uploads)
        .chain(operator)
        .chain(constituency)
        .chain([vec!["trust", "list"], vec!["trust", "verify"]])
    {
        let help = alone(&[&line[..], &["--help"]].concat());
        assert_eq!(help.code, 0, "{line:?}");
        assert!(help.stdout.contains(&format!("Usage: provost {}", line.join(" "))), "{}", help.stdout);
        assert!(!help.stdout.contains('\x1b'), "colors only on a terminal");
        assert!(help.stdout.lines().all(|line| line.chars().count() <= 100), "{}", help.stdout);
    }
}

#[test]
fn invalid_command_line_exits_with_status_2() {
    for line in [
        &[][..],
        &["frobnicate"],
        &["serve", "--log", "xml"],
        &["serve", "--frobnicate"],
        &["schema"],
        &["schema", "phones"],
        &["phone", "--mac", "00005e00530c"],
        &["phone", "--url", "https://ote.phones.localhost:1/", "--mac", "00005e0053"],
        &["phone", "--url", "ftp://ote.phones.localhost/", "--mac", "00005e00530c"],
        &["phone", "--url", "https://ote.phones.localhost:1/", "--mac", "00005e00530c", "--certificate", "absent.pem"],
        // There is no certificate and no local device CA to issue one.
        &["phone", "--url", "https://ote.phones.localhost:1/", "--mac", "00005e00530c"],
    ] {
        let ended = alone(line);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{line:?}: {}", ended.stderr);
        assert!(!ended.stderr.is_empty(), "{line:?}");
    }
}

#[test]
fn configuration_error_names_file_line_key_and_suggestion() {
    let good = r#""domain": "phones.example.com", "certificate": { "local_ca": {} }"#;
    let cases = [
        (
            format!("{{ {good},\n \"limts\": {{}} }}"),
            "provost.json:2:2: \"limts\": unknown key; did you mean \"limits\"?",
        ),
        (format!("{{ {good}, \"no-sni\": \"a\" }}"), "\"no-sni\": unknown key; did you mean \"no_sni\"?"),
        (
            format!("{{ {good}, \"limits\": {{\n\"idle\": 1 }} }}"),
            "provost.json:2:1: \"idle\": unknown key; did you mean \"idle_s\"?",
        ),
        (format!("{{ {good}, \"zzz\": 1 }}"), "\"zzz\": unknown key; known keys: domain, listen,"),
        (format!("{{ {good}, \"log\": \"xml\" }}"), "\"log\": must be one of \"text\", \"json\", not \"xml\""),
        (format!("{{ {good}, \"listen\": [\"localhost:1\"] }}"), ": \"listen\": invalid address \"localhost:1\""),
        (
            format!("{{ {good}, \"listen\": 443 }}"),
            "\"listen\": must be an address with a port, or a list of them, not 443",
        ),
        (format!("{{ {good}, \"no_sni\": \"Two.Labels\" }}"), ": \"no_sni\": "),
        (format!("{{ {good}, {good} }}"), "duplicate key \"domain\""),
        (format!("{{ {good},\n\n }}"), "provost.json:3:2: trailing comma: remove the comma before this }"),
        (format!("{{ {good} }} x"), "unexpected text after the end of the object"),
        (
            format!("{{ {good},\n  \"listen\": [\"127.0.0.1:0\""),
            "provost.json:2:26: the file ends before the closing ]",
        ),
        (
            format!("{{ {good}, // mine\n \"log\": \"text\" }}"),
            "a comment (// or /* */): JSON has no comments; remove it",
        ),
        ("{ \"domain\": \"phones.example.com\" }".to_owned(), "the key \"certificate\" is missing"),
        ("{ \"domain\": \"a.example\", \"certificate\": { \"fles\": [] } }".to_owned(), "did you mean \"files\"?"),
        (format!("{{ {good}, \"state\": \"constituencies/state\" }}"), "must not contain each other"),
        (format!("{{ {good}, \"constituencies\": \"/var\" }}"), "must not contain each other"),
    ];
    let site = Site::new();
    for (text, message) in cases {
        std::fs::write(site.path("provost.json"), &text).unwrap();
        // Also without --config, from the working directory.
        for args in [&["serve", "--config", "provost.json"][..], &["serve"]] {
            let ended = provost(&site.path("."), args);
            assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{text}");
            let last = ended.stderr.lines().last().unwrap();
            assert!(last.starts_with("error: provost.json") && last.contains(message), "{text}\n{last}");
        }
        let check = provost(&site.path("."), &["check"]);
        assert_ne!(check.code, 0, "{text}");
        assert!((check.stdout + &check.stderr).contains(message), "{text}");
    }
    for command in [&["serve"][..], &["check"], &["trust", "list"]] {
        let ended = alone(&[command, &["--config", "absent.json"]].concat());
        assert_eq!(ended.code, 2, "{command:?}");
        assert!(ended.stderr.contains("absent.json: cannot be read"), "{}", ended.stderr);
    }
}

#[test]
fn port_in_use_is_reported_with_a_remedy() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut site = Site::with_ote();
    site.config["listen"] = json!([holder.local_addr().unwrap().to_string()]);
    let ended = run(&mut site.command());
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("another process listens there; `ss -ltnp` shows it"), "{}", ended.stderr);
}

#[test]
fn second_server_on_the_same_state_is_refused() {
    let site = Site::with_ote();
    let first = site.start();
    let ended = run(&mut site.command());
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("another provost uses the state directory"), "{}", ended.stderr);
    first.kill();
    site.start();
}

/// Whether `value` is valid by `schema`. Supports only the keywords in our schemas; another keyword fails the test.
fn check(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let fail = |why: &str| Err(format!("{value} is not {why}"));
    let Some(keywords) = schema.as_object() else { return if *schema == true { Ok(()) } else { fail("allowed") } };
    for (keyword, said) in keywords {
        let all = || said.as_array().unwrap().iter();
        match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" | "format" | "properties" => {}
            "$ref" => check(root, root.pointer(said.as_str().unwrap().strip_prefix('#').unwrap()).unwrap(), value)?,
            "type"
                if [said].into_iter().chain(said.as_array().into_iter().flatten()).any(|kind| is_of(kind, value)) => {}
            "const" if said == value => {}
            "enum" if all().any(|one| one == value) => {}
            "anyOf" if all().any(|one| check(root, one, value).is_ok()) => {}
            "oneOf" if all().filter(|one| check(root, one, value).is_ok()).count() == 1 => {}
            "minimum" if value.as_i64().is_none_or(|number| number >= said.as_i64().unwrap()) => {}
            "required"
                if value.as_object().is_none_or(|it| all().all(|key| it.contains_key(key.as_str().unwrap()))) => {}
            "items" => value.as_array().into_iter().flatten().try_for_each(|item| check(root, said, item))?,
            "uniqueItems" => {
                let items: Vec<String> = value.as_array().unwrap().iter().map(Value::to_string).collect();
                assert_eq!(items.iter().collect::<BTreeSet<_>>().len(), items.len());
            }
            "additionalProperties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    let known = schema.get("properties").and_then(|properties| properties.get(key));
                    check(root, known.unwrap_or(said), inner).map_err(|why| format!("{key}: {why}"))?;
                }
            }
            "pattern" => {
                assert_eq!(said, "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$");
                if !value.as_str().is_some_and(|name| {
                    name.bytes().all(|byte| byte.is_ascii_lowercase() || b"-0123456789".contains(&byte))
                }) {
                    return fail("a label");
                }
            }
            "type" | "const" | "enum" | "anyOf" | "oneOf" | "minimum" | "required" => {
                return fail(&format!("{keyword} {said}"));
            }
            other => panic!("a keyword that this test does not know: {other}"),
        }
    }
    Ok(())
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    }
}

/// Both files with every key.
fn documented() -> (Value, Value) {
    let documented = json!({
        "domain": "phones.example.com", "listen": ["0.0.0.0:443", "[::]:443"], "constituencies": "constituencies",
        "state": "/var/lib/provost",
        "certificate": { "files": [
            { "chain": "rsa.pem", "key": "rsa.key" }, { "chain": "ec.pem", "key": "ec.key" }
        ] },
        "trust": { "acme-corp": ["trust/acme-root.pem", "trust/acme-issuing.der"] },
        "no_sni": "ucs-5-9", "tls": "modern", "log": "text", "limits": {},
        "plain_http": { "listen": "192.168.1.5:80", "networks": ["192.168.0.0/16"] },
        "proxy_protocol": ["10.0.0.5/32"],
        "status": { "listen": "127.0.0.1:8444", "token_file": "token", "hosts": ["provost.example.com"] },
    });
    let policy = json!({
        "description": "UC Software 5.9, production", "client_auth": "required", "trust": ["polycom"],
        "expired_device_certificates": "refuse", "certificate_names": "exact", "tls": "modern",
        "phones": { "00005e00530c": "vvx500 #1", "00:00:5E:00:53:C7": "vvx550 #2",
                    "00005e0053ab": { "note": "lobby", "certificate_sha256": "7D:3A" } },
        "denied": ["00005e0053ff"], "aliases": ["old-name"], "shared": ["firmware"], "plain_http": true,
        "common": ["firmware/00005e0053aa-*.ld"],
        "uploads": { "max_file_bytes": 4_194_304, "max_phone_bytes": 67_108_864, "max_phone_files": 256 },
    });
    (documented, policy)
}

#[test]
fn schemas_accept_documented_keys_and_reject_invalid_values() {
    let schema = |file: &str| -> Value {
        let printed = alone(&["schema", file]);
        assert_eq!(printed.code, 0);
        assert!(!printed.stdout.contains("```"), "descriptions are for operators: {}", printed.stdout);
        serde_json::from_str(&printed.stdout).unwrap()
    };
    let (provost, constituency) = (schema("provost"), schema("constituency"));
    assert_eq!(provost["properties"].as_object().unwrap().len(), 14);
    assert_eq!(constituency["properties"].as_object().unwrap().len(), 13);
    let (documented, policy) = documented();
    check(&provost, &provost, &documented).unwrap();
    check(&constituency, &constituency, &policy).unwrap();
    check(&constituency, &constituency, &json!({})).unwrap();
    check(&constituency, &constituency, &json!({ "phones": "any", "client_auth": "none" })).unwrap();

    let with = |good: &Value, key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    for (key, value) in [
        ("frobnicate", json!(1)),
        ("domain", json!(1)),
        ("certificate", json!({})),
        ("certificate", json!({ "files": [{ "chain": "a" }] })),
        ("certificate", json!({ "files": [], "local_ca": {} })),
        ("certificate", json!({ "local_ca": { "a": 1 } })),
        ("log", json!("xml")),
        ("limits", json!({ "drain": 1 })),
        ("plain_http", json!({ "listen": "192.168.1.5:80" })),
        ("plain_http", json!({ "listen": 80, "networks": [] })),
        ("no_sni", json!("Two.Labels")),
        ("notify", json!({ "command": "/bin/notify" })),
        ("notify", json!({})),
    ] {
        assert!(check(&provost, &provost, &with(&documented, key, value.clone())).is_err(), "{key}: {value}");
    }
    for (key, value) in [
        ("frobnicate", json!(1)),
        ("client_auth", json!("maybe")),
        ("phones", json!("all")),
        ("phones", json!(["00005e00530c"])),
        ("phones", json!({ "00005e00530c": { "certificate": "7d3a" } })),
        ("plain_http", json!("yes")),
        ("uploads", json!({ "max_files": 1 })),
        ("uploads", json!({ "max_file_bytes": -1 })),
        ("aliases", json!(["Old Name"])),
    ] {
        assert!(check(&constituency, &constituency, &with(&policy, key, value.clone())).is_err(), "{key}: {value}");
    }
}

#[test]
fn printed_grant_marks_a_guessed_zone_and_rejects_a_wrong_one() {
    let folder = tempfile::tempdir().unwrap();
    let key = "key \"provost.\" { algorithm hmac-sha256; secret \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"; };";
    std::fs::write(folder.path().join("provost.key"), key).unwrap();
    let print = |zone: Value| {
        let config = json!({ "domain": "phones.example.com", "certificate": { "acme": {
            "terms_of_service_agreed": true,
            "dns": { "primary": "127.0.0.1", "tsig_key_file": "provost.key", "zone": zone },
        } } });
        std::fs::write(folder.path().join("provost.json"), config.to_string()).unwrap();
        ["bind-policy", "knot-acl"].map(|dialect| provost(folder.path(), &["print", dialect]))
    };
    let [bind, knot] = print(json!("example.com"));
    assert!(bind.stdout.contains("zone \"example.com\" {"), "{bind:?}");
    assert!(!bind.stdout.contains("guess") && !knot.stdout.contains("guess"), "{bind:?}{knot:?}");
    for (guess, mark) in print(Value::Null).iter().zip(["//", "#"]) {
        let lines: Vec<&str> = guess.stdout.lines().take(3).collect();
        assert!(lines.len() == 3 && lines.iter().all(|line| line.starts_with(&format!("{mark} "))), "{guess:?}");
        assert!(lines[0].starts_with(&format!("{mark} The zone is guessed, because provost.json has no \"zone\".")));
        assert!(lines[0].ends_with("_acme-challenge.phones.example.com"), "{guess:?}");
        assert!(lines[1].contains("is a CNAME record") && lines[1].contains("provost check --live"), "{guess:?}");
        assert!(guess.stdout.contains("phones.example.com"), "{guess:?}");
    }
    let [elsewhere, _] = print(json!("acme.example.com"));
    assert_eq!((elsewhere.code, elsewhere.stdout.as_str()), (2, ""));
    let reason = "_acme-challenge.phones.example.com is not in the zone acme.example.com: it is a CNAME record into that zone, or";
    assert!(elsewhere.stderr.contains(reason) && elsewhere.stderr.contains("check --live"), "{}", elsewhere.stderr);

    std::fs::remove_file(folder.path().join("provost.key")).unwrap();
    let [missing, _] = print(json!("example.com"));
    let missing = missing.stderr;
    assert_eq!(missing.matches("No such file").count(), 1, "{missing}");
}

#[test]
fn certificate_commands_are_refused_without_acme() {
    let mut site = Site::with_ote();
    for (whose, command, certificate) in [
        ("files, which another program renews", "renew", site.config["certificate"].clone()),
        ("the server's own CA", "renew", json!({ "local_ca": {} })),
        ("the server's own CA", "status", json!({ "local_ca": {} })),
    ] {
        site.config["certificate"] = certificate;
        site.write_config();
        let ended = provost(&site.path(""), &["certificate", command]);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{ended:?}");
        assert!(ended.stderr.contains(&format!("the certificates come from {whose}")), "{ended:?}");
        assert!(ended.stderr.contains("this command needs \"acme\""), "{ended:?}");
    }
}

#[test]
fn certificate_status_lists_each_pair_and_read_error() {
    let site = Site::with_ote();
    site.write_config();
    let status = |arguments: &[&str]| provost(&site.path(""), &[&["certificate", "status"], arguments].concat());
    let shown = status(&[]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""), "{shown:?}");
    for part in
        ["rsa.pem\n", "ec.pem\n", "*.phones.example.com", "Test Server CA", " days left", "condition:    is valid\n"]
    {
        assert!(shown.stdout.contains(part), "{part} in {}", shown.stdout);
    }
    let json: serde_json::Value = serde_json::from_str(&status(&["--json"]).stdout).unwrap();
    let certificates = json["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 2);
    assert!(certificates.iter().all(|it| it["level"] == "ok" && it["state"] == "valid" && it["problem"].is_null()));
    std::fs::remove_file(site.path("ec.key")).unwrap();
    let broken = status(&[]);
    assert!(broken.code == 1 && broken.stderr.contains("ec.key: No such file"), "{broken:?}");
    assert!(broken.stdout.contains("rsa.pem\n") && !broken.stdout.contains("ec.pem"), "{broken:?}");
}
